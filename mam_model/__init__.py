"""Matting Anything: soft mattes from points, boxes, scribbles and masks.

The frozen Segment Anything Model finds the target, the Mask-to-Matte network predicts its alpha at three scales, and
the scales are merged into one matte (Li, Jain, Shi: "Matting Anything", arXiv 2306.05399). Pictures are float tensors
[H, W, 3] in sRGB, 0..1; mattes are float tensors [H, W], 1 = subject; coordinates are pixels of the original picture.

The names that a script needs first can be imported from here; everything else from the module named for it.
"""

import importlib

_HOMES = {
    "AlphaPyramid": "m2m",
    "CheckpointError": "checkpoint",
    "Embedding": "sam",
    "Frame": "frame",
    "Guidance": "sam",
    "MattingAnything": "matting",
    "MergeOptions": "merge",
    "Photo": "photo",
    "PhotoError": "photo",
    "Prompt": "prompt",
    "PromptError": "prompt",
    "Scribble": "prompt",
    "estimate_foreground": "foreground",
    "load_in_context_decoder": "checkpoint",
    "load_m2m": "checkpoint",
    "load_sam": "checkpoint",
    "matte_without_models": "classical",
    "over": "composite",
    "read_photo": "photo",
    "share_pixels": "instances",
    "with_alpha": "composite",
    "write_picture": "photo",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    # Only when a name is first used is its module imported, and PyTorch or OpenCV with it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
