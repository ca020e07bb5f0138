"""Merging the three scales into one matte, coarse where it is certain and fine where it is not.

Li, Jain, Shi: "Matting Anything", arXiv 2306.05399, section 3.3 ("iterative refinement"), as the released
system does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .frame import Frame
from .morphology import dilated, eroded
from .regions import Window, strips

if TYPE_CHECKING:
    from .m2m import AlphaPyramid

# Alpha closer to 0 or 1 than one 8-bit level counts as certain.
_LEVEL = 1.0 / 255.0
# No picture is wider; a disc of this size already takes a gigabyte.
_WIDEST_PX = 65_536
# Squares of the picture of which it is known whether the mask has an edge there.
_BLOCK_PX = 64


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
        if max(self.width_os8, self.width_os4, self.width_os1) > _WIDEST_PX:
            raise ValueError(f"The widths of the bands are pixels, {_WIDEST_PX:,} at most.")

    def scaled(self, factor: float) -> MergeOptions:
        """The same bands on a picture that is `factor` times as large."""
        widths = (round(width_px * factor) for width_px in (self.width_os8, self.width_os4, self.width_os1))
        return replace(self, **dict(zip(("width_os8", "width_os4", "width_os1"), widths)))


PUBLISHED_MERGE = MergeOptions()


# (scale, bool [h, w] where it is wanted) -> alpha at the size of the picture, float32 [h, w], right where wanted.
ReadScale = Callable[[str, np.ndarray], np.ndarray]


@torch.no_grad()
def merge(pyramid: AlphaPyramid, post_mask: Tensor, frame: Frame, options: MergeOptions = PUBLISHED_MERGE) -> Tensor:
    """Merges the pyramid of one target.

    Args:
        pyramid: of one target (N = 1).
        post_mask: float [H, W] in 0..1, SAM's mask at the size of the original picture.
    Returns:
        float32 [H, W] on the CPU without gradients, alpha in 0..1. An empty mask gives an empty matte.
    """
    device = pyramid.os8.device
    mask = post_mask.to(device, torch.float32)
    alpha = torch.zeros(mask.shape)
    box = Window.around_each(mask[None] > 0)[0]
    if box is None:
        return alpha
    window = reach_of_box(box, *mask.shape, options)

    def read(scale: str) -> Tensor:
        return frame.crop_to_original(getattr(pyramid, scale), window)[0].float()

    inside = window.of(alpha)
    if merges_in_arrays(device):
        inside[:] = window.of(mask)
        merge_scales(inside.numpy(), lambda scale, _: read(scale)[0].numpy(), options)
    else:
        inside[:] = merge_together(window.of(mask)[None], read, options)[0].cpu()
    return alpha


def merges_in_arrays(device: torch.device) -> bool:
    """Whether targets on this device are matted one by one and merged in arrays, by OpenCV.

    On the processor that is by far the fastest way. On a GPU several go together, and what is there is merged there.
    """
    return device.type == "cpu"


def merge_scales(alpha: np.ndarray, read: ReadScale, options: MergeOptions = PUBLISHED_MERGE) -> None:
    """Merges what `read` gives, asking only for what can be seen in the result, from the coarsest scale to the finest.

    Args:
        alpha: float32 [h, w] in 0..1, SAM's mask in the window of the picture that `reach` gives; becomes the matte.
        read: is called with "os8", "os4" and "os1" at most once each, in this order, and with where they are needed.
    """
    parts = _uncertain_parts(alpha, options)
    if options.guidance == "mask":
        near_edge = partial(os8_weight, width_px=options.width_os8, sides=options.sides)
        uncertain = _found_in(parts, alpha, options.width_os8, near_edge)
    elif options.clear_outside_box:
        uncertain = _inside_box(alpha)
    else:
        uncertain = np.ones(alpha.shape, dtype=bool)
    _replace(alpha, "os8", uncertain, read, parts)
    for scale, width_px in (("os4", options.width_os4), ("os1", options.width_os1)):
        unknown = partial(unknown_area, width_px=width_px, sides=options.sides)
        _replace(alpha, scale, _found_in(parts, alpha, width_px, unknown), read, parts)


def _uncertain_parts(mask: np.ndarray, options: MergeOptions) -> list[Window]:
    """Disjoint windows outside which the matte is the mask, whatever the network says.

    With guidance "mask" these are the surroundings of the mask's edge: the bands grow from there. So a picture of many
    megapixels costs as much as its edge is long.
    """
    height, width = mask.shape
    if options.guidance == "alpha":
        return [Window.whole(height, width)]
    import cv2

    lowest, highest = (_of_blocks(mask, extreme) for extreme in (np.minimum, np.maximum))
    blocks = -(-_reach_px(options) // _BLOCK_PX)
    around = np.ones((2 * blocks + 1, 2 * blocks + 1), dtype=np.uint8)
    lowest, highest = cv2.erode(lowest, around), cv2.dilate(highest, around)
    uncertain = (lowest < 1) & (highest > 0)
    found = (strip.finer(_BLOCK_PX) for strip in strips(uncertain, across=2))
    return [Window(part.top, part.left, min(part.bottom, height), min(part.right, width)) for part in found]


def _of_blocks(mask: np.ndarray, extreme: np.ufunc) -> np.ndarray:
    """The minimum or maximum of each block."""
    down, across = (range(0, length, _BLOCK_PX) for length in mask.shape)
    # Row by row: `reduceat` takes ten times as long.
    rows = np.stack([extreme.reduce(mask[top : top + _BLOCK_PX], axis=0) for top in down])
    return np.stack([extreme.reduce(rows[:, left : left + _BLOCK_PX], axis=1) for left in across], axis=1)


def _found_in(
    parts: Sequence[Window], alpha: np.ndarray, width_px: int, area: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """`area(alpha)` in some windows, bool [h, w]; False elsewhere."""
    found = np.zeros(alpha.shape, dtype=bool)
    for part in parts:
        around = part.grown(_size(width_px), *alpha.shape)
        part.of(found)[:] = part.within(around).of(area(around.of(alpha)))
    return found


def _replace(alpha: np.ndarray, scale: str, where: np.ndarray, read: ReadScale, parts: Sequence[Window]) -> None:
    """Puts a scale in place of certain pixels, which lie in some windows."""
    if where.any():
        values = read(scale, where)
        for part in parts:
            np.copyto(part.of(alpha), part.of(values), where=part.of(where))


def merge_together(masks: Tensor, read: Callable[[str], Tensor], options: MergeOptions = PUBLISHED_MERGE) -> Tensor:
    """`merge_scales` of several targets, each in a window of the same size, without leaving their device.

    Which pixels are wanted is not looked at, for which a GPU would have to be waited for: every scale is read whole.

    Args:
        masks: float32 [T, h, w] in 0..1, SAM's masks in windows that hold what `reach` gives. An empty one gives an
            empty matte.
        read: is called once each with "os8", "os4" and "os1", in this order; gives float32 [T, h, w].
    Returns:
        float32 [T, h, w], alpha in 0..1.
    """
    if options.guidance == "mask":
        uncertain = os8_weight(masks, options.width_os8, options.sides)
    else:
        subject = masks > 0
        uncertain = subject.flatten(1).any(dim=1)[:, None, None]
        if options.clear_outside_box:
            uncertain = _short_span(subject.any(dim=2))[:, :, None] & _short_span(subject.any(dim=1))[:, None]
    alpha = torch.where(uncertain, read("os8"), masks)
    alpha = torch.where(unknown_area(alpha, options.width_os4, options.sides), read("os4"), alpha)
    return torch.where(unknown_area(alpha, options.width_os1, options.sides), read("os1"), alpha)


def _short_span(filled: Tensor) -> Tensor:
    """From the first True of each row of bool [T, n] to the one before its last."""
    counts = filled.cumsum(dim=1)
    return (counts > 0) & (counts < counts[:, -1:])


def os8_weight(mask: np.ndarray | Tensor, width_px: int, sides: str) -> np.ndarray | Tensor:
    """Where os8 replaces the mask in guidance "mask".

    Args:
        mask: float, an array [H, W] or a tensor [..., H, W] in 0..1; values between 0 and 1 are never certain.
    Returns:
        bool, of the same kind and shape: True except surely inside (one side: the mask itself; two sides: the eroded
        mask) and surely outside (the eroded complement).
    """
    # 1 - mask == 1 in float32, which a mask of less than half a rounding step satisfies as 0 does.
    near = dilated(1.0 - mask != 1, _size(width_px))
    inside = mask == 1 if sides == "one" else eroded(mask == 1, _size(width_px))
    return near & ~inside


def unknown_area(alpha: np.ndarray | Tensor, width_px: int, sides: str) -> np.ndarray | Tensor:
    """Where the next finer scale replaces alpha.

    Args:
        alpha: float, an array [H, W] or a tensor [..., H, W] in 0..1.
    Returns:
        bool, of the same kind and shape. One side: around everything that is not surely background, less what is surely
        subject. Two sides: around the values between 0 and 1.
    """
    if sides == "one":
        return dilated(alpha >= _LEVEL, _size(width_px)) & (alpha <= 1 - _LEVEL)
    return dilated((alpha >= _LEVEL) & (alpha <= 1 - _LEVEL), _size(width_px))


def _size(width_px: int) -> int:
    return max(1, width_px // 2)


def _inside_box(mask: np.ndarray) -> np.ndarray:
    """The mask's bounding box less its last row and column, where the released system keeps the mask itself."""
    inside = np.zeros(mask.shape, dtype=bool)
    box = Window.around(mask > 0)
    inside[box.top : box.bottom - 1, box.left : box.right - 1] = True
    return inside


def reach(mask: np.ndarray, options: MergeOptions = PUBLISHED_MERGE) -> Window | None:
    """The rectangle outside which the matte is 0 whatever the network says; None for an empty mask.

    Args:
        mask: float [H, W] in 0..1, the post mask of the whole picture.
    """
    box = Window.around(mask > 0)
    return box and reach_of_box(box, mask.shape[0], mask.shape[1], options)


def reach_of_box(box: Window, height: int, width: int, options: MergeOptions = PUBLISHED_MERGE) -> Window:
    """`reach` for a mask that lies in a box of a picture of `height` x `width` pixels."""
    if options.guidance == "alpha" and not options.clear_outside_box:
        return Window.whole(height, width)
    return box.grown(_reach_px(options), height, width)


def _reach_px(options: MergeOptions) -> int:
    """How far from the mask's edge alpha can be changed, as an ellipse of n pixels carries a value n // 2 at most."""
    return sum(_size(width_px) // 2 for width_px in (options.width_os8, options.width_os4, options.width_os1))
