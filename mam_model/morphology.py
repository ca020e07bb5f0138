"""Areas of a picture: their outline, and widening them by an ellipse, by OpenCV in arrays and by shifts in tensors,
both bit for bit the same.

Of an array OpenCV is the fastest. A tensor may lie on a GPU, and should not have to leave it: a row of an ellipse is a
run of neighbours, and a run of 2 n is two runs of n, so widening takes some thirty shifted copies for the widths in
use, where a pooling or a convolution reads every neighbour of every pixel.
"""
# OpenCV is imported where it is used, so that importing the library costs ComfyUI no start-up time.

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=64)
def ellipse(size: int) -> np.ndarray:
    """OpenCV's structuring element, uint8 [size, size] of {0, 1}. An even one reaches half its size to the left and up,
    and a pixel less to the right and down."""
    import cv2

    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def dilated(area: np.ndarray | Tensor, size: int) -> np.ndarray | Tensor:
    """Every pixel that has one of the area in the ellipse around it.

    Args:
        area: bool, an array [h, w] or a tensor [..., h, w] on any device. Beyond its edge nothing belongs to the area.
        size: diameter of the ellipse in pixels, at least 1.
    Returns:
        bool, of the same kind and shape; a new one.
    """
    if isinstance(area, Tensor):
        return _dilated_by_runs(area, size)
    import cv2

    return cv2.dilate(area.view(np.uint8), ellipse(size)).view(bool)


def eroded(area: np.ndarray | Tensor, size: int) -> np.ndarray | Tensor:
    """Every pixel that has nothing but the area in the ellipse around it. Beyond the edge everything belongs to it."""
    return ~dilated(~area, size)


def outline(area: np.ndarray) -> np.ndarray:
    """Every pixel of the area that has one outside it among its eight neighbours, and every one outside that has one of
    the area. The picture's border is no outline.

    Args:
        area: bool [h, w].
    Returns:
        bool [h, w].
    """
    import cv2

    around = np.ones((3, 3), dtype=np.uint8)
    levels = area.view(np.uint8)
    return cv2.dilate(levels, around) != cv2.erode(levels, around)


def _dilated_by_runs(area: Tensor, size: int) -> Tensor:
    height, width = area.shape[-2:]
    before = size // 2
    padded = area.new_zeros(*area.shape[:-2], height + size - 1, width + size - 1)
    padded[..., before : before + height, before : before + width] = area
    # doubled[k] holds, for each place, whether anything lies in the 2 ** k places from it on.
    doubled = [padded]
    widened = torch.zeros_like(area)
    for (first, length), rows in _runs(size).items():
        while 2 ** len(doubled) <= length:
            half = 2 ** (len(doubled) - 1)
            doubled.append(doubled[-1][..., :-half] | doubled[-1][..., half:])
        power = length.bit_length() - 1
        last = first + length - 2**power
        run = doubled[power][..., first : first + width] | doubled[power][..., last : last + width]
        for row in rows:
            widened |= run[..., row : row + height, :]
    return widened


@lru_cache(maxsize=64)
def _runs(size: int) -> dict[tuple[int, int], list[int]]:
    """(first column, length) of every different row of the ellipse -> which rows are so."""
    runs: dict[tuple[int, int], list[int]] = {}
    for row, filled in enumerate(ellipse(size)):
        columns = np.flatnonzero(filled)
        runs.setdefault((int(columns[0]), len(columns)), []).append(row)
    return runs
