"""The library without ComfyUI: here, and only here, the repository's root is on sys.path, as in a plain checkout."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
