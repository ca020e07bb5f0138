"""What the user points at: prompts for one target, and sets of prompts for a batch of frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor


class PromptError(ValueError):
    """A prompt that cannot be used, said in words its author understands."""

    def __init__(self, sentence: str):
        # Half of an emoji, as a text that was cut may hold it, could not be written to a log, nor sent to a page.
        super().__init__(sentence.encode("utf-8", "backslashreplace").decode())


class Scribble(IntEnum):
    """Values of a scribble map: which stroke, if any, covers a pixel."""

    NONE = 0
    FOREGROUND = 1
    BACKGROUND = 2
    UNKNOWN = 3


@dataclass(frozen=True, eq=False)
class Prompt:
    """Everything the user said about one target, in pixels of the original picture.

    Attributes:
        points_px: (x, y) of each point; (0, 0) is the top left pixel.
        labels: one per point; 1 = on the target, 0 = not on the target.
        box_xyxy_px: (x0, y0, x1, y1) around the target, or None.
        mask: float [H, W] in 0..1, 1 = target, or None.
        mask_is_guidance: True: the mask is the target and SAM does not decide again;
            False: the mask is a hint that SAM's decoder weighs beside points and box.
        scribbles: uint8 [H, W] of `Scribble` values, or None.
        candidate: which of SAM's three masks to take (0, 1, 2); None takes the best by predicted IoU.
        label: what the target is called ("girl", "left dog"); free text.
        score: confidence of whoever found the target, 0..1.
    """

    points_px: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box_xyxy_px: tuple[float, float, float, float] | None = None
    mask: Tensor | None = None
    mask_is_guidance: bool = False
    scribbles: Tensor | None = None
    candidate: int | None = None
    label: str = ""
    score: float = 1.0

    @property
    def is_empty(self) -> bool:
        """True when nothing was said at all, or when every given mask and scribble map is blank."""
        return not (self.points_px or self.box_xyxy_px or self.has_mask or self.has_scribbles)

    @property
    def has_mask(self) -> bool:
        return self.mask is not None and bool((self.mask > 0.5).any())

    @property
    def has_scribbles(self) -> bool:
        return self.scribbles is not None and bool((self.scribbles != Scribble.NONE).any())

    def or_candidate(self, candidate: int | None) -> Prompt:
        """This prompt, with `candidate` as its choice of mask if it has none of its own."""
        return self if self.candidate is not None else replace(self, candidate=candidate)

    def merged_with(self, other: Prompt) -> Prompt:
        """One target that both prompts speak about: points add up, masks and strokes unite, boxes span both.

        Raises:
            PromptError: when masks or scribble maps of different sizes meet.
        """
        return replace(
            self,
            points_px=self.points_px + other.points_px,
            labels=self.labels + other.labels,
            box_xyxy_px=_spanning(self.box_xyxy_px, other.box_xyxy_px),
            mask=_united(self.mask, other.mask, "masks"),
            mask_is_guidance=self.mask_is_guidance or other.mask_is_guidance,
            scribbles=_united(self.scribbles, other.scribbles, "masks of strokes"),
            candidate=self.candidate if self.candidate is not None else other.candidate,
            label=self.label or other.label,
            score=max(self.score, other.score),
        )

    def check_points(self) -> None:
        """Refuses points that have no meaning in any picture.

        Raises:
            PromptError: for NaN or infinite coordinates, labels other than 0 and 1 or not one per point.
        """
        if len(self.labels) != len(self.points_px):
            raise PromptError(
                f"There are {len(self.points_px)} points but {len(self.labels)} labels; each point needs one."
            )
        for (x, y), label in zip(self.points_px, self.labels):
            if not (math.isfinite(x) and math.isfinite(y)):
                raise PromptError(f"The point ({x}, {y}) is not a number. Give x and y in pixels of the picture.")
            if label not in (0, 1):
                raise PromptError(
                    f"The point ({x:g}, {y:g}) has the label {label}; 1 means on the subject, 0 means not."
                )

    def checked(self, width: int, height: int) -> Prompt:
        """This prompt, tidied for a picture of `width` x `height` pixels.

        A box drawn from right to left is turned round, a box that reaches over the edge is cut at the edge, and a mask
        that overshoots is cut off at 0 and 1, because each has one obvious meaning. Whatever has none is refused.

        Raises:
            PromptError: for NaN or infinite coordinates, a point or a whole box outside the picture, a box without
                area, labels other than 0 and 1 or not one per point, a mask of another size or of 8-bit levels, a
                scribble map with other values than those of `Scribble`, a candidate other than 0, 1 and 2.
        """
        self.check_points()
        for x, y in self.points_px:
            if not (0 <= x <= width and 0 <= y <= height):
                raise PromptError(
                    f"The point ({x:g}, {y:g}) lies outside the picture, which is {width} x {height} pixels. "
                    "Coordinates are pixels of the original picture, x from the left and y from the top."
                )
        if self.candidate not in (None, 0, 1, 2):
            raise PromptError(f"SAM offers the candidates 0, 1 and 2; there is no candidate {self.candidate}.")
        box = self.box_xyxy_px and _checked_box(self.box_xyxy_px, width, height)
        for name, area in (("mask", self.mask), ("trimap or mask of strokes", self.scribbles)):
            if not isinstance(area, (Tensor, type(None))):
                raise PromptError(
                    f"The {name} is a PyTorch tensor, not a {type(area).__name__}. torch.from_numpy(...) makes one of "
                    "an array."
                )
            # A blank mask of another size is what LoadImage gives for a picture without alpha: it says nothing.
            if area is not None and tuple(area.shape) != (height, width) and bool((area > 0.5).any()):
                raise PromptError(
                    f"The {name} is {' x '.join(str(n) for n in reversed(area.shape))} pixels but the picture is "
                    f"{width} x {height}. Resize it to the picture's size."
                )
        if self.mask is not None and not torch.isfinite(self.mask).all():
            raise PromptError("The mask holds NaN or infinite values. Mask values go from 0 to 1.")
        return replace(
            self,
            box_xyxy_px=box,
            mask=_checked_mask(self.mask) if self.has_mask else None,
            scribbles=_checked_scribbles(self.scribbles) if self.has_scribbles else None,
        )


def _spanning(a, b):
    if a is None or b is None:
        return a or b
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _united(a: Tensor | None, b: Tensor | None, name: str) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    if a.shape != b.shape:
        sizes = [f"{area.shape[-1]} x {area.shape[-2]}" for area in (a, b)]
        raise PromptError(f"The {name} of one target differ in size: {sizes[0]} and {sizes[1]} pixels.")
    return torch.maximum(a, b)


def _upright(box_xyxy_px) -> tuple[float, float, float, float]:
    if not all(math.isfinite(v) for v in box_xyxy_px):
        raise PromptError(f"The box {_spoken(box_xyxy_px)} holds something that is not a number.")
    x0, x1 = sorted((box_xyxy_px[0], box_xyxy_px[2]))
    y0, y1 = sorted((box_xyxy_px[1], box_xyxy_px[3]))
    return x0, y0, x1, y1


def _checked_box(box_xyxy_px, width: int, height: int) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = _upright(box_xyxy_px)
    if x1 - x0 <= 0 or y1 - y0 <= 0:
        raise PromptError(f"The box {_spoken(box_xyxy_px)} has no area. Draw it around the whole subject.")
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        raise PromptError(
            f"The box {_spoken(box_xyxy_px)} lies outside the picture, which is {width} x {height} pixels. "
            "A box is given as left, top, right, bottom in pixels of the original picture."
        )
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))


def _checked_mask(mask: Tensor) -> Tensor:
    highest = float(mask.detach().amax())
    if not mask.is_floating_point() and highest > 1:
        raise PromptError(
            f"The mask holds whole numbers up to {highest:g}. Mask values go from 0 to 1: divide an 8-bit one by 255."
        )
    return mask if highest <= 1 and mask.amin() >= 0 else mask.clamp(0, 1)


def _checked_scribbles(scribbles: Tensor) -> Tensor:
    highest = float(scribbles.amax())
    if highest > Scribble.UNKNOWN:
        raise PromptError(
            f"The mask of strokes holds the value {highest:g}. It holds 0 where there is no stroke, 1 on the subject, "
            "2 beside it, and 3 where an edge is to be solved."
        )
    return scribbles


def _spoken(box_xyxy_px) -> str:
    return "(" + ", ".join(f"{v:g}" for v in box_xyxy_px) + ")"


@dataclass(frozen=True, eq=False)
class PromptSet:
    """The targets of a batch: for each frame, one `Prompt` per target.

    Attributes:
        frames: one tuple of prompts per frame; a single entry speaks for every frame of any batch. An empty tuple is
            a frame in which nothing was found.
    """

    frames: tuple[tuple[Prompt, ...], ...] = ((),)

    def for_batch(self, frame_count: int) -> tuple[tuple[Prompt, ...], ...]:
        """One tuple of prompts for each of `frame_count` frames.

        Raises:
            PromptError: when there are several frames of prompts, but not as many as pictures.
        """
        if len(self.frames) == 1:
            return self.frames * frame_count
        if len(self.frames) != frame_count:
            raise PromptError(
                f"There are prompts for {len(self.frames)} frames but {frame_count} pictures. "
                "Give prompts for one frame (they are used for all) or for each picture."
            )
        return self.frames

    def joined_with(self, other: PromptSet) -> PromptSet:
        """The targets of both sets, side by side in every frame.

        Raises:
            PromptError: when both sets speak of several frames, but not of as many.
        """
        return self._zipped(other, lambda mine, yours: mine + yours)

    def merged_with(self, other: PromptSet) -> PromptSet:
        """Each target of this set together with the target of the same number in the other set.

        A set with a single target adds to every target of the other one; a target without a partner stays as it is.

        Raises:
            PromptError: see `joined_with` and `Prompt.merged_with`.
        """

        def merge(mine: tuple[Prompt, ...], yours: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
            if not mine or not yours:
                return mine or yours
            count = max(len(mine), len(yours))
            mine, yours = (side * count if len(side) == 1 else side for side in (mine, yours))
            paired = tuple(a.merged_with(b) for a, b in zip(mine, yours))
            return paired + mine[len(paired) :] + yours[len(paired) :]

        return self._zipped(other, merge)

    def _zipped(self, other: PromptSet, combine) -> PromptSet:
        count = max(len(self.frames), len(other.frames))
        if {len(self.frames), len(other.frames)} - {1, count}:
            raise PromptError(
                f"One prompt speaks of {len(self.frames)} frames, the other of {len(other.frames)}. "
                "Give both for the same frames, or one of them for a single frame that stands for all."
            )
        return PromptSet(tuple(combine(a, b) for a, b in zip(self.for_batch(count), other.for_batch(count))))


def covered_area(targets: Sequence[Prompt], size: tuple[int, int] | None = None) -> Tensor | None:
    """The masks, foreground strokes and boxes of several prompts as one mask.

    Args:
        size: height and width of the picture, needed to draw boxes when no prompt brings a mask or strokes.
    Returns:
        float32 [H, W] in 0..1, a mask as it is, a box 1 inside; None when neither `size` nor a mask gives a size.
    Raises:
        PromptError: when masks differ in size, from each other or from the picture, or a box is not made of numbers.
    """
    areas = [target.mask.float() for target in targets if target.has_mask]
    areas += [(target.scribbles == Scribble.FOREGROUND).float() for target in targets if target.has_scribbles]
    if size is None and not areas:
        return None
    area = torch.zeros(size or areas[0].shape)
    for part in areas:
        if part.shape != area.shape:
            sizes = [f"{mask.shape[1]} x {mask.shape[0]}" for mask in (area, part)]
            if size is not None:
                raise PromptError(
                    f"The prompt has a mask of {sizes[1]} pixels but the picture is {sizes[0]}. Connect the picture "
                    "that the prompt belongs to, or resize the mask."
                )
            raise PromptError(f"The masks of a prompt differ in size: {sizes[0]} and {sizes[1]} pixels.")
        area = torch.maximum(area, part.to(area))
    for target in targets:
        if target.box_xyxy_px:
            x0, y0, x1, y1 = (max(0, round(value)) for value in _upright(target.box_xyxy_px))
            area[y0:y1, x0:x1] = 1
    return area
