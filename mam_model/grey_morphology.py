"""Grey dilation and erosion by a disc: the largest or smallest value in the disc around every pixel.

A row of a disc is a run of neighbours, a run is two shorter ones, and the rows of a disc grow wider towards its middle.
So the largest value of every run is made once, from the shortest to the longest, and each is used for the rows that are
so wide. That takes three passes over the picture for each pixel of the radius, where comparing every pixel of the disc
takes as many as its area. Values are compared and never computed with, so nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

# Rows that are worked on together: few enough for the processor's cache, many compared with the disc's own height.
_BAND_ROWS = 256


def dilated_by_disc(values: np.ndarray, radius: int, on_band: Callable[[int, int], None] | None = None) -> np.ndarray:
    """The largest value in the disc around every pixel.

    Args:
        values: float [H, W]; not changed. What lies beyond the border does not count.
        radius: in pixels, at least 1. The disc holds every pixel whose middle is at most a quarter of a pixel farther.
        on_band: is told after each band of rows how many are done and how many there are; may raise.
    Returns:
        float [H, W] of the same type.
    """
    return _extreme_in_disc(values, radius, np.maximum, -np.inf, on_band)


def eroded_by_disc(values: np.ndarray, radius: int, on_band: Callable[[int, int], None] | None = None) -> np.ndarray:
    """The smallest value in the disc around every pixel; see `dilated_by_disc`."""
    return _extreme_in_disc(values, radius, np.minimum, np.inf, on_band)


def _extreme_in_disc(
    values: np.ndarray, radius: int, extreme: np.ufunc, beyond: float, on_band: Callable[[int, int], None] | None
) -> np.ndarray:
    height, width = values.shape
    # From corner to corner a disc holds the whole picture already.
    radius = min(radius, math.isqrt(height**2 + width**2) + 1)
    padded = np.full((height + 2 * radius, width + 2 * radius), beyond, values.dtype)
    padded[radius : radius + height, radius : radius + width] = values
    rows = _rows_of_disc(radius)
    result = values.copy()
    bands = range(0, height, _BAND_ROWS)
    for part, top in enumerate(bands, 1):
        band = result[top : top + _BAND_ROWS]
        runs, length = padded[top : top + len(band) + 2 * radius], 1
        for half_width, offsets in rows:
            # runs[y, x] is the extreme of `length` places from x on.
            while length < 2 * half_width + 1:
                longer = min(2 * length, 2 * half_width + 1)
                runs = extreme(runs[:, : length - longer], runs[:, longer - length :])
                length = longer
            first = radius - half_width
            for offset in offsets:
                extreme(band, runs[radius + offset : radius + offset + len(band), first : first + width], out=band)
        if on_band is not None:
            on_band(part, len(bands))
    return result


def _rows_of_disc(radius: int) -> list[tuple[int, list[int]]]:
    """(half of the width, without the middle; which rows are so wide, from -radius to radius), the narrowest first."""
    rows: dict[int, list[int]] = {}
    for offset in range(-radius, radius + 1):
        rows.setdefault(math.isqrt(int((radius + 0.25) ** 2 - offset**2)), []).append(offset)
    return sorted(rows.items())
