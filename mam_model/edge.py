"""Adjusting the edge of a finished matte with the controls that retouchers know. No network runs."""
# OpenCV is imported where it is used, so that importing the library costs ComfyUI no start-up time.

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .gaussian import blurred
from .grey_morphology import dilated_by_disc, eroded_by_disc

# Nearer to 0 or 1 than this counts as clear or solid when holes and specks are looked for.
_CLEAR = 1.0 / 255.0


@dataclass(frozen=True)
class EdgeOptions:
    """What to do to an edge. The defaults do nothing; the steps are taken in the order of the attributes.

    Attributes:
        remove_specks_px: islands of up to this many pixels in area disappear.
        fill_holes_px: holes inside the subject of up to this many pixels in area become solid.
        black_point, white_point: alpha up to the one becomes 0, from the other on 1, between them it is stretched.
        shift_px: moves the edge outwards (above 0) or inwards (below 0); fractions of a pixel count.
        feather_px: standard deviation of a Gaussian blur.
        contrast: 0..1, steepens the edge about its middle; 1 makes it hard.
    """

    remove_specks_px: int = 0
    fill_holes_px: int = 0
    black_point: float = 0.0
    white_point: float = 1.0
    shift_px: float = 0.0
    feather_px: float = 0.0
    contrast: float = 0.0

    def __post_init__(self):
        if not 0 <= self.black_point < self.white_point <= 1:
            raise ValueError(
                f"The black point ({self.black_point:g}) must lie below the white point ({self.white_point:g}), "
                "and both between 0 and 1."
            )
        if not (math.isfinite(self.shift_px) and math.isfinite(self.feather_px)):
            raise ValueError(
                f"Shift ({self.shift_px:g}) and feather ({self.feather_px:g}) are given in pixels and must be finite."
            )
        if self.feather_px < 0 or self.remove_specks_px < 0 or self.fill_holes_px < 0:
            raise ValueError("Feather, specks and holes are given in pixels and cannot be negative.")
        if not 0 <= self.contrast <= 1:
            raise ValueError(f"Contrast goes from 0 (unchanged) to 1 (hard edge), not {self.contrast:g}.")


def adjust_edge(alpha: Tensor, options: EdgeOptions, on_part: Callable[[int, int], None] | None = None) -> Tensor:
    """A matte with its edge adjusted.

    Args:
        alpha: float [H, W] or [B, H, W] in 0..1; not changed.
        on_part: is told after each part of a frame's shift, which takes longest, how many of the frame are done and
            how many there are; may raise.
    Returns:
        float32 of the same shape on the CPU, 0..1.
    """
    frames = alpha.detach().float().cpu().reshape(-1, *alpha.shape[-2:])
    adjusted = torch.empty(frames.shape)
    for result, frame in zip(adjusted, frames):
        result.copy_(torch.from_numpy(_adjusted(frame.clamp(0, 1).numpy(), options, on_part)))
    return adjusted.reshape(alpha.shape)


def _adjusted(alpha: np.ndarray, options: EdgeOptions, on_part: Callable[[int, int], None] | None) -> np.ndarray:
    """`adjust_edge` of one float32 [H, W] in 0..1, which may be changed."""
    if options.remove_specks_px:
        alpha[_small_regions(alpha > _CLEAR, options.remove_specks_px)] = 0
    if options.fill_holes_px:
        alpha[_holes(alpha < 1 - _CLEAR, options.fill_holes_px)] = 1
    if (options.black_point, options.white_point) != (0, 1):
        alpha = ((alpha - options.black_point) / (options.white_point - options.black_point)).clip(0, 1)
    if options.shift_px:
        alpha = _shifted(alpha, options.shift_px, on_part)
    if options.feather_px:
        # Four standard deviations far, as OpenCV blurs what is not in 8 bits.
        reach_px = (round(8 * options.feather_px) + 1) // 2
        # A subject that the picture's border cuts off stays solid there.
        alpha = blurred(torch.from_numpy(alpha), options.feather_px, reach_px).numpy()
    if options.contrast == 1:
        alpha = (alpha >= 0.5).astype(np.float32)
    elif options.contrast:
        alpha = (0.5 + (alpha - 0.5) / (1 - options.contrast)).clip(0, 1)
    return alpha.astype(np.float32, copy=False)


def _regions(area: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 8-connected regions of a bool area: their numbers [H, W], 0 outside, and (left, top, w, h, size) of each."""
    import cv2

    _, numbers, facts, _ = cv2.connectedComponentsWithStats(area.astype(np.uint8), connectivity=8)
    return numbers, facts


def _small_regions(area: np.ndarray, largest_px: int) -> np.ndarray:
    numbers, facts = _regions(area)
    small = facts[:, 4] <= largest_px
    small[0] = False
    return small[numbers]


def _holes(open_area: np.ndarray, largest_px: int) -> np.ndarray:
    """Small regions that are not solid and do not touch the picture's border: those are gaps, not holes."""
    height, width = open_area.shape
    numbers, facts = _regions(open_area)
    left, top, columns, rows, size = facts.T
    inside = (left > 0) & (top > 0) & (left + columns < width) & (top + rows < height)
    hole = inside & (size <= largest_px)
    hole[0] = False
    return hole[numbers]


def _shifted(alpha: np.ndarray, shift_px: float, on_part: Callable[[int, int], None] | None) -> np.ndarray:
    """Grey dilation or erosion by a disc: every level of a soft edge moves by the same distance."""
    move = dilated_by_disc if shift_px > 0 else eroded_by_disc
    distance = abs(shift_px)
    radii = math.floor(distance), math.ceil(distance)
    if radii[0] == radii[1]:
        return move(alpha, radii[0], on_part)

    def tell(pass_: int, done: int, parts: int) -> None:
        if on_part is not None:
            on_part(pass_ * parts + done, 2 * parts)

    near, far = (move(alpha, radius, partial(tell, pass_)) if radius else alpha for pass_, radius in enumerate(radii))
    share = distance - radii[0]
    return near + share * (far - near)
