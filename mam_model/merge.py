"""Merging the three scales into one matte, coarse where it is certain and fine where it is not.

Li, Jain, Shi: "Matting Anything", arXiv 2306.05399, section 3.3 ("iterative refinement"), as the released
system does it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .frame import Frame
from .m2m import AlphaPyramid
from .morphology import dilated, eroded
from .regions import Window

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

    def scaled(self, factor: float) -> MergeOptions:
        """The same bands on a picture that is `factor` times as large."""
        widths = (round(width_px * factor) for width_px in (self.width_os8, self.width_os4, self.width_os1))
        return replace(self, **dict(zip(("width_os8", "width_os4", "width_os1"), widths)))


PUBLISHED_MERGE = MergeOptions()


# (scale, bool [h, w] where it is wanted) -> alpha at the size of the picture, float32 [h, w], right where wanted.
ReadScale = Callable[[str, np.ndarray], np.ndarray]


def merge(pyramid: AlphaPyramid, post_mask: Tensor, frame: Frame, options: MergeOptions = PUBLISHED_MERGE) -> Tensor:
    """Merges the pyramid of one target.

    Args:
        pyramid: of one target (N = 1).
        post_mask: float [H, W] in 0..1, SAM's mask at the size of the original picture.
    Returns:
        float32 [H, W] on the CPU, alpha in 0..1. An empty mask gives an empty matte.
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

    if merges_in_arrays(device):
        merged = merge_scales(window.of(mask).numpy(), lambda scale, _: read(scale)[0].numpy(), options)
        window.of(alpha)[:] = torch.from_numpy(merged)
    else:
        window.of(alpha)[:] = merge_together(window.of(mask)[None], read, options)[0].cpu()
    return alpha


def merges_in_arrays(device: torch.device) -> bool:
    """Whether targets on this device are matted one by one and merged in arrays, by OpenCV.

    On the processor that is by far the fastest way. On a GPU several go together, and what is there is merged there.
    """
    return device.type == "cpu"


def merge_scales(mask: np.ndarray, read: ReadScale, options: MergeOptions = PUBLISHED_MERGE) -> np.ndarray:
    """Merges what `read` gives, asking only for what can be seen in the result, from the coarsest scale to the finest.

    Args:
        mask: float32 [h, w] in 0..1, SAM's mask in the window of the picture that `reach` gives.
        read: is called with "os8", "os4" and "os1" at most once each, in this order, and with where they are needed.
    Returns:
        float32 [h, w], alpha in 0..1.
    """
    if options.guidance == "mask":
        uncertain = os8_weight(mask, options.width_os8, options.sides)
    elif options.clear_outside_box:
        uncertain = _inside_box(mask)
    else:
        uncertain = np.ones(mask.shape, dtype=bool)
    alpha = _replaced(mask.astype(np.float32), "os8", uncertain, read)
    alpha = _replaced(alpha, "os4", unknown_area(alpha, options.width_os4, options.sides), read)
    return _replaced(alpha, "os1", unknown_area(alpha, options.width_os1, options.sides), read)


def _replaced(alpha: np.ndarray, scale: str, where: np.ndarray, read: ReadScale) -> np.ndarray:
    """`alpha`, in which a scale has replaced certain pixels."""
    if where.any():
        np.copyto(alpha, read(scale, where), where=where)
    return alpha


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
    # A structuring element of n pixels carries a value n // 2 pixels at most.
    widths = (options.width_os8, options.width_os4, options.width_os1)
    return box.grown(sum(_size(width_px) // 2 for width_px in widths), height, width)
