"""Mattes of several targets at once, each computed and merged in its own rectangle of the picture.

What `partial.PartialPyramid` and `merge.merge_scales` do for one target after the other, looking at each scale before
they compute the next, this does without looking: a GPU is waited for once, to learn where the masks lie, and then told
everything that is to be done. Each network layer sees all targets of a step in one batch, which is why their rectangles
are of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .frame import Frame
from .m2m import FoldedMaskToMatte, PictureFeatures, alpha_of, beside, shrunk_mask
from .merge import PUBLISHED_MERGE, MergeOptions, merge_together, reach_of_box
from .regions import Window, in_one_size
from .sam import Guidance
from .scribble import with_certain_strokes

# How far the wrong cells reach in from the sides of a rectangle that was cut out of the picture; see `partial`.
_STAGE_HALO = 6
_FINE_HALO = 3
# Targets go together as long as each fills this share of the rectangle that it gets for the others' sake.
_LEAST_FILLED = 0.5
_USUAL_BYTES = 2 * 1024**3


def matte_together(
    m2m: FoldedMaskToMatte,
    picture: PictureFeatures,
    guidance: Guidance,
    options: MergeOptions = PUBLISHED_MERGE,
    targets_per_step: int | None = None,
    before_step: Callable[[], None] | None = None,
) -> Tensor:
    """Predicts and merges every target of a picture.

    Args:
        picture: on the network's device.
        guidance: for that picture, or `Guidance.at_content_size` of it.
        targets_per_step: how many targets that fill the picture may go through the network together; of smaller ones as
            many more as fill the same area. Memory grows with it, see `bytes_per_target`; the result does not depend on
            it. None is what 2 GiB hold.
        before_step: called before each step; what it raises (a cancelled run) ends the work.
    Returns:
        float32 [T, H, W] on the CPU in the size of the guidance's picture, 1 = target.
    """
    frame = guidance.frame
    alphas = torch.zeros(len(guidance), frame.height, frame.width)
    windows = {
        target: reach_of_box(box, frame.height, frame.width, options)
        for target, box in enumerate(guidance.mask_windows())
        if box is not None
    }
    if targets_per_step is None:
        targets_per_step = max(1, _USUAL_BYTES // bytes_per_target(frame, picture.upsampled.itemsize))
    shown = guidance.network_mask
    for targets in _steps(windows, targets_per_step * frame.height * frame.width):
        if before_step:
            before_step()
        placed = in_one_size([windows[target] for target in targets], frame.height, frame.width)
        masks = [guidance.post_mask(target, window) for target, window in zip(targets, placed)]
        masks = torch.stack(masks).to(picture.upsampled.device, torch.float32)
        pyramids = WindowedPyramids(m2m, picture, shown[targets], frame, placed)
        for target, window, alpha in zip(targets, placed, merge_together(masks, pyramids.read, options).cpu()):
            window.of(alphas[target])[:] = alpha
            strokes = guidance.prompts[target].scribbles
            if strokes is not None:
                alphas[target] = with_certain_strokes(alphas[target], strokes)
    return alphas


def bytes_per_target(frame: Frame, itemsize: int) -> int:
    """What a target that fills its picture takes at most beside the weights and what is kept of the picture.

    Counted at 1024 pixels, the tensors that live at once are 294 bytes for each pixel of the square in float32 and half
    of that in half precision, and 27 for each pixel of the picture. What a convolution needs within itself cannot be
    counted; on a processor it made a third more, and so it is taken here.

    Args:
        itemsize: bytes of a number in the network's precision.
    """
    return 100 * itemsize * frame.side**2 + 27 * frame.height * frame.width


def _steps(windows: dict[int, Window], most_pixels: int) -> list[list[int]]:
    """The targets in steps whose rectangles, in one size, hold `most_pixels` at most and are worth being so large."""
    steps: list[list[int]] = []
    for target in sorted(windows, key=lambda target: -windows[target].area):
        step = steps[-1] if steps else []
        together = [windows[other] for other in (*step, target)]
        area = max(window.height for window in together) * max(window.width for window in together)
        if step and area * len(together) <= most_pixels and windows[target].area >= _LEAST_FILLED * area:
            step.append(target)
        else:
            steps.append([target])
    return steps


class WindowedPyramids:
    """The alpha pyramids of some targets of a picture, each in its window of the picture, all windows of one size."""

    def __init__(
        self, m2m: FoldedMaskToMatte, picture: PictureFeatures, masks: Tensor, frame: Frame, windows: Sequence[Window]
    ):
        """
        Args:
            picture: on the device of the network and in its precision.
            masks: float [T, 1, side / 4, side / 4] of {0, 1}, SAM's chosen masks in the padded square.
            frame: how the picture to which the mattes belong lies in the square.
            windows: T windows of that picture, of one size.
        """
        self.m2m = m2m
        self.picture = picture
        self.masks = masks.to(picture.image_os4)
        self.frame = frame
        self.windows = windows
        grid = masks.shape[-1]
        # What is kept of the outputs of layer3 and of layer2, and what layer2 is shown, each on its own grid.
        cells = [frame.cells_read(window, 4, interpolated=True) for window in windows]
        self.fine_windows = in_one_size([window.grown(_FINE_HALO, grid, grid) for window in cells], grid, grid)
        self.coarse_windows = _looked_at(self.fine_windows, grid)
        around = _looked_at(self.coarse_windows, grid // 2)
        self.coarse = self._layer2(around)
        self.fine = None

    def read(self, scale: str) -> Tensor:
        """Alpha of "os8", "os4" or "os1", drawn in the windows at the size of the picture: float32 [T, h, w] in 0..1.

        "os4" has to be read before "os1".
        """
        if scale == "os8":
            return self._drawn(_enlarged(self.m2m.refine_OS8(self.coarse), 8), 8, self.coarse_windows)
        if scale == "os4":
            self.fine = self._layer3()
            # os1 is computed from `fine` alone, and large targets leave no memory for what nobody reads any more.
            self.coarse = None
            return self._drawn(_enlarged(self.m2m.refine_OS4(self.fine), 4), 4, self.fine_windows)
        return self._drawn(alpha_of(self._os1().float()), 4, self.fine_windows)

    def _layer2(self, around: Sequence[Window]) -> Tensor:
        first, *others = self.m2m.layer2
        x = first.with_mask(
            _cut(self.picture.upsampled, [window.finer(2) for window in around]),
            _cut(self.picture.shortcut, around),
            _cut(shrunk_mask(self.masks, 4), around),
        )
        for block in others:
            x = block(x)
        return _kept(x, around, self.coarse_windows)

    def _layer3(self) -> Tensor:
        shown = [_cut(self.picture.image_os8, self.coarse_windows)]
        shown.append(_cut(shrunk_mask(self.masks, 2), self.coarse_windows))
        x = self.m2m.layer3(beside(self.coarse, *shown))
        return _kept(x, self.coarse_windows, self.fine_windows)

    def _os1(self) -> Tensor:
        shown = [_cut(self.picture.image_os4, self.fine_windows), _cut(self.masks, self.fine_windows)]
        x = self.m2m.layer4(beside(self.fine, *shown))
        self.fine = None
        return self.m2m.refine_OS1(self.m2m.last_upsampling(x))

    def _drawn(self, pixels: Tensor, cell: int, cut: Sequence[Window]) -> Tensor:
        """The windows of the picture, [T, h, w], out of pixels [T, 1, ...] of the square, cut out along its cells."""
        drawn = [
            self.frame.part_to_original(part, cell * at.top, cell * at.left, window)
            for part, at, window in zip(pixels, cut, self.windows)
        ]
        return torch.cat(drawn)


def _looked_at(windows: Sequence[Window], grid: int) -> list[Window]:
    """What a stage has to be shown, on a grid half as fine, so that its output is right in these windows."""
    around = [window.grown(_STAGE_HALO, grid, grid).coarser(2) for window in windows]
    return in_one_size(around, grid // 2, grid // 2)


def _cut(x: Tensor, windows: Sequence[Window]) -> Tensor:
    """A window for each target, [T, C, h, w], out of [T, C, H, W] or out of what all have in common, [1, C, H, W]."""
    each = x if len(x) == len(windows) else x.expand(len(windows), -1, -1, -1)
    return torch.cat([window.of(part) for part, window in zip(each.split(1), windows)])


def _kept(x: Tensor, shown: Sequence[Window], windows: Sequence[Window]) -> Tensor:
    """Those windows of a stage's output, of which it was shown others on a grid half as fine."""
    return _cut(x, [window.within(around.finer(2)) for window, around in zip(windows, shown)])


def _enlarged(values: Tensor, cell: int) -> Tensor:
    """Alpha for every pixel of the square from a head's answers, one per cell."""
    return alpha_of(F.interpolate(values.float(), scale_factor=cell, mode="bilinear", align_corners=False))
