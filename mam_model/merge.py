"""Merging the three scales into one matte, coarse where it is certain and fine where it is not.

Li, Jain, Shi: "Matting Anything", arXiv 2306.05399, section 3.3 ("iterative refinement"), as the released
system does it.
"""
# OpenCV is imported where it is used, so that importing the library costs ComfyUI no start-up time.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .frame import Frame
from .m2m import AlphaPyramid

# Alpha closer to 0 or 1 than one 8-bit level counts as certain.
_LEVEL = 1.0 / 255.0


@dataclass(frozen=True)
class MergeOptions:
    """How the scales are merged. The defaults are those of the published evaluation.

    Attributes:
        guidance: "mask" starts from SAM's mask, which keeps other instances out; "alpha" starts from the coarsest
            alpha, for one salient subject.
        sides: "one" takes everything that is not surely subject for uncertain near the edge; "two" takes only the
            values between 0 and 1 for uncertain.
        width_os8, width_os4, width_os1: pixels of the original picture by which the band is widened in which os8, os4
            and os1 replace what is there; half the width is the diameter of the structuring element.
        clear_outside_box: with guidance "alpha", keep the mask, which is 0, outside the mask's bounding box.
    """

    guidance: str = "mask"
    sides: str = "one"
    width_os8: int = 10
    width_os4: int = 20
    width_os1: int = 10
    clear_outside_box: bool = True

    def __post_init__(self):
        if self.guidance not in ("mask", "alpha"):
            raise ValueError(f'guidance is "mask" or "alpha", not "{self.guidance}".')
        if self.sides not in ("one", "two"):
            raise ValueError(f'sides is "one" or "two", not "{self.sides}".')
        if min(self.width_os8, self.width_os4, self.width_os1) < 0:
            raise ValueError("The widths of the bands are pixels and cannot be negative.")


PUBLISHED_MERGE = MergeOptions()


def merge(pyramid: AlphaPyramid, post_mask: Tensor, frame: Frame, options: MergeOptions = PUBLISHED_MERGE) -> Tensor:
    """Merges the pyramid of one target.

    Args:
        pyramid: of one target (N = 1).
        post_mask: float [H, W] in 0..1, SAM's mask at the size of the original picture.
    Returns:
        float32 [H, W] on the CPU, alpha in 0..1. An empty mask gives an empty matte.
    """
    mask = post_mask.float().cpu().numpy()
    alpha = np.zeros_like(mask)
    rows, columns = _reach(mask, options)
    if rows.stop == rows.start:
        return torch.from_numpy(alpha)
    mask = mask[rows, columns]

    def at_original_size(square: Tensor) -> np.ndarray:
        return frame.crop_to_original(square)[0, 0, rows, columns].float().cpu().numpy()

    os8 = at_original_size(pyramid.os8)
    if options.guidance == "mask":
        merged = np.where(os8_weight(mask, options.width_os8, options.sides), os8, mask)
    elif options.clear_outside_box:
        merged = np.where(_inside_box(mask), os8, mask)
    else:
        merged = os8
    band = unknown_area(merged, options.width_os4, options.sides)
    merged = np.where(band, at_original_size(pyramid.os4), merged)
    band = unknown_area(merged, options.width_os1, options.sides)
    alpha[rows, columns] = np.where(band, at_original_size(pyramid.os1), merged)
    return torch.from_numpy(alpha)


def os8_weight(mask: np.ndarray, width_px: int, sides: str) -> np.ndarray:
    """Where os8 replaces the mask in guidance "mask".

    Args:
        mask: float [H, W] in 0..1; values between 0 and 1 are never certain.
    Returns:
        bool [H, W]: True except surely inside (one side: the mask itself; two sides: the eroded mask) and surely
        outside (the eroded complement).
    """
    import cv2

    kernel = _ellipse(width_px)
    outside = cv2.erode(1.0 - mask, kernel) == 1
    inside = mask == 1 if sides == "one" else cv2.erode(mask, kernel) == 1
    return ~(inside | outside)


def unknown_area(alpha: np.ndarray, width_px: int, sides: str) -> np.ndarray:
    """Where the next finer scale replaces alpha.

    Args:
        alpha: float [H, W] in 0..1.
    Returns:
        bool [H, W]. One side: around everything that is not surely background, less what is surely subject.
        Two sides: around the values between 0 and 1.
    """
    import cv2

    kernel = _ellipse(width_px)
    if sides == "one":
        near = cv2.dilate((alpha >= _LEVEL).astype(np.uint8), kernel) > 0
        return near & ~(alpha > 1 - _LEVEL)
    uncertain = (alpha >= _LEVEL) & (alpha <= 1 - _LEVEL)
    return cv2.dilate(uncertain.astype(np.uint8), kernel) > 0


def _ellipse(width_px: int) -> np.ndarray:
    import cv2

    size = max(1, width_px // 2)
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def _inside_box(mask: np.ndarray) -> np.ndarray:
    """The mask's bounding box less its last row and column, where the released system keeps the mask itself."""
    inside = np.zeros(mask.shape, dtype=bool)
    rows, columns = _bounding_box(mask)
    inside[rows.start : rows.stop - 1, columns.start : columns.stop - 1] = True
    return inside


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that hold anything above 0; empty slices for an empty mask."""
    rows = np.flatnonzero(mask.max(axis=1) > 0)
    columns = np.flatnonzero(mask.max(axis=0) > 0)
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _reach(mask: np.ndarray, options: MergeOptions) -> tuple[slice, slice]:
    """The rectangle outside which the matte is 0 whatever the network says."""
    if options.guidance == "alpha" and not options.clear_outside_box:
        return tuple(slice(0, n) if mask.any() else slice(0, 0) for n in mask.shape)
    rows, columns = _bounding_box(mask)
    # Each band widens what is not background by at most its structuring element; one more covers its asymmetry.
    margin = (options.width_os8 + options.width_os4 + options.width_os1) // 2 + 3
    height, width = mask.shape
    if rows.stop == rows.start:
        return rows, columns
    return (
        slice(max(0, rows.start - margin), min(height, rows.stop + margin)),
        slice(max(0, columns.start - margin), min(width, columns.stop + margin)),
    )
