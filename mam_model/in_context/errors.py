"""What can go wrong with pictures and prompts on the way to an in-context matte."""

from __future__ import annotations


class InContextError(ValueError):
    """A reference, a picture or a diffusion model that cannot be used, said in words for the person who chose it."""
