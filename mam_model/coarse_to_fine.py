"""What a smaller size of a picture says about a mask of the larger one.

A network that has learned masks a few pixels off, and sees some hundred pixels, knows neither the masks nor the hair of
a photo of many megapixels. At a smaller size it does, and what it finds there is carried up, from size to size, to
where the larger mask has nothing better to say.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .regions import Window

# Rows of the larger size of which is computed at a time; even, so that no cell is cut.
_STRIP_PX = 256
# How far in cells around an edge is looked for what the mask shows finer than a cell, and for the edge itself.
_AROUND = 6
# A mask that differs from its own smaller size, enlarged again, by this share of its contrast is as fine as its pixels.
_FINE = 0.1
# A mask whose values differ by less around a cell has no edge there.
_CONTRAST = 0.1
# By how much alpha differs from the mask, both of the smaller size, where a fine mask is doubted and where given up.
_DOUBTED, _GIVEN_UP = 0.3, 0.6


def halved(plane: Tensor) -> Tensor:
    """Means over cells of 2 x 2 pixels; at the right and at the bottom over what there is.

    Args:
        plane: [H, W] or [H, W, C], floating.

    Returns:
        float32 [(H + 1) // 2, (W + 1) // 2] or with C, on the plane's device.
    """
    deep = plane if plane.ndim == 3 else plane[..., None]
    strips = (deep[top : top + _STRIP_PX].float().movedim(-1, 0) for top in range(0, len(deep), _STRIP_PX))
    cells = torch.cat([F.avg_pool2d(strip, 2, ceil_mode=True).movedim(0, -1) for strip in strips])
    return cells if plane.ndim == 3 else cells[..., 0]


def corrected(mask: Tensor, small_mask: Tensor, small_alpha: Tensor) -> Tensor:
    """A mask with what has been found at half its size.

    What was found there moves the mask in two cases. Where the mask is no finer than the smaller size, as one that was
    made there and enlarged, it says nothing that the smaller alpha does not say better. And where the smaller alpha is
    far from the smaller mask, the mask is off by pixels of that size, however sharp it looks. Elsewhere it stays: it
    shows strands that the smaller size cannot.

    Args:
        mask: float32 [H, W] in 0..1.
        small_mask: `halved(mask)`.
        small_alpha: of the same size, what was found for it, in 0..1.

    Returns:
        float32 [H, W] in 0..1, a new tensor.
    """
    contrast = _largest(small_mask) + _largest(-small_mask)
    # Elsewhere both sizes say the same, which in a large picture with a small subject is nearly everywhere.
    near = Window.around(((contrast > _CONTRAST) | (small_alpha != small_mask)).numpy())
    moved = mask.clone()
    if near is not None:
        cells = near.grown(_AROUND, *small_mask.shape)
        pixels = cells.finer(2)
        pixels.of(moved)[:] = _moved(pixels.of(mask), *map(cells.of, (small_mask, small_alpha, contrast)))
    return moved


def _moved(mask: Tensor, small_mask: Tensor, small_alpha: Tensor, contrast: Tensor) -> Tensor:
    """`corrected` in the part of the picture that holds all that differs and `_AROUND` cells more on each side."""
    height, width = mask.shape
    finer = torch.cat([_cells_of_difference(mask, small_mask, strip) for strip in _strips(height)])
    coarse = (1 - _largest(finer) / (_FINE * contrast.clamp_min(_CONTRAST))).clamp(0, 1) * (contrast > _CONTRAST)
    moved = torch.empty_like(mask)
    for strip in _strips(height):
        said, found, no_finer = (_doubled(cells, strip, width) for cells in (small_mask, small_alpha, coarse))
        doubt = ((found - said).abs() - _DOUBTED) / (_GIVEN_UP - _DOUBTED)
        moved[strip] = torch.lerp(mask[strip], found, torch.maximum(doubt.clamp(0, 1), no_finer))
    return moved.clamp_(0, 1)


def _strips(height: int) -> list[slice]:
    return [slice(top, min(top + _STRIP_PX, height)) for top in range(0, height, _STRIP_PX)]


def _cells_of_difference(mask: Tensor, small_mask: Tensor, strip: slice) -> Tensor:
    return halved((mask[strip] - _doubled(small_mask, strip, mask.shape[1])).abs())


def _largest(cells: Tensor) -> Tensor:
    """The largest value of [h, w] in the square around each cell."""
    for side in ((2 * _AROUND + 1, 1), (1, 2 * _AROUND + 1)):
        cells = F.max_pool2d(cells[None], side, 1, (side[0] // 2, side[1] // 2))[0]
    return cells


def _doubled(cells: Tensor, strip: slice, width: int) -> Tensor:
    """Rows `strip` of [h, w] enlarged bilinearly to twice the size and cut to `width`."""
    first, last = max(0, strip.start // 2 - 1), -(-strip.stop // 2) + 1
    doubled = F.interpolate(cells[None, None, first:last], scale_factor=2, mode="bilinear", align_corners=False)[0, 0]
    return doubled[strip.start - 2 * first : strip.stop - 2 * first, :width]
