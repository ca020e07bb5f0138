"""Which files of weights this machine has, and which SAM and Mask-to-Matte belong together."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .published import PUBLISHED, sources

_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
_PUBLISHED_NAMES = {file.name for file in PUBLISHED}


@dataclass(frozen=True)
class Pair:
    """The two files of a run; one and the same when it holds the whole of Matting Anything."""

    sam: Path
    m2m: Path

    @property
    def fits(self) -> bool:
        """False when the names speak of two different SAMs (ViT-B, L, H); the files themselves do not tell."""
        sizes = {_size(self.sam), _size(self.m2m)}
        return len(sizes) == 1 or None in sizes


def model_folders(given: Path | None = None) -> list[Path]:
    """Where weights are looked for: the given folder, then the models folder of the ComfyUI at COMFYUI_PATH.

    In each of them the files may lie in sams/ and mam/, as in ComfyUI, or directly.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    if given and not given.is_dir():
        raise NotADirectoryError(f"There is no folder {given}.")
    comfyui = os.environ.get("COMFYUI_PATH")
    return [folder for folder in (given, comfyui and Path(comfyui) / "models") if folder]


def find_file(name: str, kind: str, folders: Sequence[Path]) -> Path:
    """The file of that path, or of that name in one of the folders.

    Args:
        kind: ComfyUI's folder for such files, "sams" or "mam".
    Raises:
        FileNotFoundError: it is nowhere; the message says where it was looked for and where to get it.
    """
    places = [Path(name), *(place / name for folder in folders for place in (folder / kind, folder))]
    for path in places:
        if path.is_file():
            return path
    looked = ", ".join(str(folder) for folder in folders)
    raise FileNotFoundError(f"There is no file {name}{f' here or in {looked}' if looked else ''}. {sources(kind)}")


def find_pair(sam: str | None, m2m: str | None, folders: Sequence[Path]) -> Pair | None:
    """A SAM and the Mask-to-Matte that was trained with it, the smallest there is.

    Args:
        sam, m2m: a path or a name that settles that half, or None.
    Returns:
        None when there is none; never when both were named.
    Raises:
        FileNotFoundError: a named file does not exist.
        CheckpointError: a file that may hold both networks cannot be read.
    """
    sams = [find_file(sam, "sams", folders)] if sam else _listed(folders, "sams")
    m2ms = [find_file(m2m, "mam", folders)] if m2m else _listed(folders, "mam")
    if sam and m2m:
        return Pair(sams[0], m2ms[0])
    for size in "blh":
        for pair in (Pair(left, right) for left in sams for right in m2ms):
            if _size(pair.sam) == _size(pair.m2m) == size:
                return pair
    for path in sams if sam else m2ms:
        if _holds_both(path):
            return Pair(path, path)
    if len(sams) == len(m2ms) == 1 and (pair := Pair(sams[0], m2ms[0])).fits:
        return pair
    return None


def _listed(folders: Sequence[Path], kind: str) -> list[Path]:
    """The files of weights in the folders, published ones first."""
    found = []
    for folder in folders:
        found += sorted((folder / kind).rglob("*"))
        # Beside each other, only their names tell the two kinds apart without opening gigabytes.
        is_m2m = re.compile("mam|m2m", re.IGNORECASE).search
        found += sorted(path for path in folder.glob("*") if bool(is_m2m(path.name)) == (kind == "mam"))
    files = [path for path in found if path.suffix.lower() in _SUFFIXES and path.is_file()]
    return sorted(files, key=lambda path: path.name not in _PUBLISHED_NAMES)


def _size(path: Path) -> str | None:
    """The b, l or h of "vit_b" or "vitb" in a file's name."""
    found = re.search(r"vit_?([blh])(?![a-z])", path.name.lower())
    return found and found[1]


def _holds_both(path: Path) -> bool:
    from .checkpoint import Kind, identify, read_state_dict

    return identify(read_state_dict(path)).kind is Kind.MATTING_ANYTHING
