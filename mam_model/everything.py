"""Everything salient in a picture, found without a prompt: SAM is asked at a grid of points, and of all its answers one
mask per instance is kept.

Kirillov et al., "Segment Anything", arXiv 2304.02643, appendix B ("Automatic Mask Generation Details"). With the same
thresholds, `nested="both"`, `mask_nms=1` and the other filters off, the masks are those of segment-anything's
`SamAutomaticMaskGenerator` without crops. What differs: stability and boxes are measured at the size in which the
network sees the picture and not at the picture's own, so an answer very near a threshold can fall on its other side; a
box reaches to the outer edge of its last pixel; an empty mask is never an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .frame import Frame
from .instances import bounding_box
from .prompt import Prompt
from .sam import Embedding, Guidance, Sam

NESTED = ("whole", "parts", "both")
ORDERS = ("area", "score")

# How far the threshold is moved to see whether a mask is stable, in logits; segment-anything's default.
_STABILITY_OFFSET = 1.0
# A mask lies inside another one if this share of it does.
_INSIDE = 0.9
# A whole is made of its parts if they cover this share of it.
_MADE_OF_PARTS = 0.5
# SAM's masks often end a pixel before the picture does.
_BORDER_PX = 2
# Boundary connectivity from which a mask is background: a strip of sky, floor or wall has 3, somebody who stands on the
# lower border 0.6, a bust that fills the lower border 1.4 to 2.4.
_BACKGROUND_CONNECTIVITY = 2.5
# In a picture longer than this in proportion to its width nothing can keep away from its borders.
_STRIP = 8
# Bilinear enlarging looks one pixel around a mask.
_MARGIN_PX = 2
_OUTSIDE_LOGIT = -10.0
_BITS_SET = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1).astype(np.uint8)


@dataclass(frozen=True)
class EverythingOptions:
    """What is looked for, and what counts as one instance.

    Attributes:
        points_per_side: SAM is asked at points_per_side x points_per_side places, evenly spread.
        lowest_predicted_iou: answers of which SAM itself thinks no better than this are dropped, 0..1; 0 drops none.
        lowest_stability: answers are dropped whose IoU with themselves, thresholded a logit lower and a logit higher,
            is below this, 0..1.
        smallest_area, largest_area: share of the picture that an instance covers at least and at most, 0..1.
        leave_out_background: drop sky, floor and walls; see `is_background`.
        box_nms, mask_nms: of two answers whose boxes, or whose masks, have a larger IoU than this, only the one with
            the higher predicted IoU is kept, 0..1; 1 keeps both.
        nested: what is kept where a mask lies inside another one. "whole": the outer one alone. "parts": the inner
            ones, and the outer one unless they cover half of it. "both": all of them.
        order: "area", the largest first, or "score", the highest predicted IoU first.
        most: how many instances are kept at most, the first ones in that order; None for all.
    """

    points_per_side: int = 16
    lowest_predicted_iou: float = 0.88
    lowest_stability: float = 0.95
    smallest_area: float = 0.005
    largest_area: float = 0.9
    leave_out_background: bool = True
    box_nms: float = 0.7
    mask_nms: float = 0.7
    nested: str = "whole"
    order: str = "area"
    most: int | None = 10

    def __post_init__(self):
        if self.points_per_side < 1:
            raise ValueError(f"points_per_side is at least 1, not {self.points_per_side}.")
        shares = ("lowest_predicted_iou", "lowest_stability", "smallest_area", "largest_area", "box_nms", "mask_nms")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} lies between 0 and 1, not at {getattr(self, name):g}.")
        if self.nested not in NESTED:
            raise ValueError(f'nested is "whole", "parts" or "both", not "{self.nested}".')
        if self.order not in ORDERS:
            raise ValueError(f'order is "area" or "score", not "{self.order}".')
        if self.most is not None and self.most < 1:
            raise ValueError(f"most is at least 1, not {self.most}.")
        if self.smallest_area > self.largest_area:
            raise ValueError(
                f"The smallest area, {100 * self.smallest_area:.4g} per cent of the picture, is above the largest, "
                f"{100 * self.largest_area:.4g} per cent: nothing could be found."
            )


SALIENT = EverythingOptions()


@dataclass(frozen=True, eq=False)
class _Answer:
    """One mask that SAM gave for one point.

    Attributes:
        prompt: the point, and which of the three candidates this is.
        predicted_iou: SAM's own estimate.
        bits: uint8, the mask inside the picture at the resolution of SAM's logits, row by row, eight pixels a byte.
        area: how many of these pixels it covers.
        box_xyxy: around the mask, in pixels of the square.
        logits: float16, the rectangle around everything above 0, the padding included; below 0 everywhere else.
        corner: row and column of that rectangle's first pixel.
    """

    prompt: Prompt
    predicted_iou: float
    bits: np.ndarray
    area: int
    box_xyxy: tuple[int, int, int, int]
    logits: Tensor
    corner: tuple[int, int]


@torch.inference_mode()
def find_everything(
    sam: Sam,
    embedding: Embedding,
    options: EverythingOptions = SALIENT,
    *,
    points_per_step: int = 16,
    show: Callable[[int, int], None] | None = None,
) -> Guidance:
    """Finds all salient instances of a picture that is already encoded.

        embedding = matting.embed(image)
        guidance = find_everything(matting.sam, embedding)
        alphas = matting.matte_targets(embedding, guidance)     # [T, H, W]

    Answers are filtered as they come and kept as bits and the rectangle around each mask, so that memory grows with
    what is found and not with points x picture.

    Args:
        points_per_step: how many points go through the decoder together; memory grows with it, the result does not
            depend on it.
        show: called with (points done, points in all) after each step. What it raises ends the search.
    Returns:
        Guidance of T instances, in the order asked for. Each has the point that found it for its prompt and its mask
        for all three candidates; T = 0 where there is nothing.
    Raises:
        ValueError: for no point per step.
    """
    if points_per_step < 1:
        raise ValueError(f"points_per_step is at least 1, not {points_per_step}.")
    frame = embedding.frame
    points = grid_points(options.points_per_side, frame)
    answers: list[_Answer] = []
    device = embedding.features.device
    for start in range(0, len(points), points_per_step):
        prompts = [Prompt(points_px=(point,), labels=(1,)) for point in points[start : start + points_per_step]]
        guidance = sam.decode(embedding, prompts)
        device = guidance.logits.device
        answers += _good_answers(guidance, options)
        if show is not None:
            show(min(start + points_per_step, len(points)), len(points))
    kept = _without_duplicates(answers, options)
    if options.nested == "whole":
        kept = _wholes(kept)
    elif options.nested == "parts":
        kept = _parts(kept)
    kept.sort(key=lambda answer: -(answer.area if options.order == "area" else answer.predicted_iou))
    return _as_guidance(kept[: options.most], frame, device)


def grid_points(points_per_side: int, frame: Frame) -> list[tuple[float, float]]:
    """The centres of points_per_side x points_per_side equal parts of the picture, row by row, in its own pixels."""
    places = [(number + 0.5) / points_per_side for number in range(points_per_side)]
    return [(x * frame.width, y * frame.height) for y in places for x in places]


def stability_scores(logits: Tensor) -> Tensor:
    """How little each mask changes with its threshold: the IoU of logits above 1 with logits above -1.

    Args:
        logits: float [N, h, w].
    Returns:
        float32 [N] in 0..1; 0 for an empty mask.
    """
    inner = (logits > _STABILITY_OFFSET).flatten(1).sum(dim=1)
    outer = (logits > -_STABILITY_OFFSET).flatten(1).sum(dim=1)
    return inner / outer.clamp_min(1)


def is_background(masks: Tensor) -> Tensor:
    """Which masks are sky, floor or wall rather than something in front of it.

    The measure is the boundary connectivity of Zhu, Liang, Wei and Sun, "Saliency Optimization from Robust Background
    Detection", CVPR 2014, section 3: the length along which a region lies on the picture's border, divided by the root
    of its area. A mask is background if that is at least 2.5 and it lies on two sides of the picture or more. What is
    cut off by one side alone stays, however long that side, and so does everything in a picture more than eight times
    longer than wide.

    Args:
        masks: bool [N, h, w].
    Returns:
        bool [N].
    """
    height, width = masks.shape[-2:]
    if max(height, width) > _STRIP * min(height, width):
        return torch.zeros(len(masks), dtype=torch.bool, device=masks.device)
    sides = torch.stack(
        [
            masks[:, :_BORDER_PX].any(dim=1).sum(dim=1),
            masks[:, -_BORDER_PX:].any(dim=1).sum(dim=1),
            masks[:, :, :_BORDER_PX].any(dim=2).sum(dim=1),
            masks[:, :, -_BORDER_PX:].any(dim=2).sum(dim=1),
        ]
    )
    touched = (sides > 0).sum(dim=0)
    connectivity = sides.sum(dim=0) / masks.flatten(1).sum(dim=1).clamp_min(1).sqrt()
    return (touched >= 2) & (connectivity >= _BACKGROUND_CONNECTIVITY)


def parts_cut_out(guidance: Guidance) -> Guidance:
    """The same instances, each without the smaller ones that lie inside it, so that a part is not matted twice.

    Args:
        guidance: from `find_everything` with `nested` "parts" or "both".
    """
    logits = guidance.chosen_logits[:, 0]
    masks = (logits > 0).flatten(1)
    areas = masks.sum(dim=1).tolist()
    cut = logits.clone()
    for outer, outer_area in enumerate(areas):
        for inner, inner_area in enumerate(areas):
            if inner_area < outer_area and int((masks[outer] & masks[inner]).sum()) >= _INSIDE * inner_area:
                cut[outer] = torch.minimum(cut[outer], -logits[inner])
    expanded = cut[:, None].expand(-1, 3, -1, -1)
    return Guidance(guidance.prompts, expanded, guidance.predicted_iou, guidance.chosen, guidance.frame)


def one_by_one(guidance: Guidance) -> Iterator[Guidance]:
    """The guidance of each target alone, for mattes that are made one after the other."""
    for place in range(len(guidance)):
        target = slice(place, place + 1)
        yield Guidance(
            guidance.prompts[target],
            guidance.logits[target],
            guidance.predicted_iou[target],
            guidance.chosen[target],
            guidance.frame,
        )


def _good_answers(guidance: Guidance, options: EverythingOptions) -> list[_Answer]:
    frame = guidance.frame
    rows, columns = math.ceil(frame.content_height / 4), math.ceil(frame.content_width / 4)
    # SAM's estimate can come out below 0, and 0 is to drop none.
    lowest = options.lowest_predicted_iou or -math.inf
    number = torch.nonzero((guidance.predicted_iou > lowest).flatten()).flatten()
    logits = guidance.logits.flatten(0, 1)[number]
    masks = logits[:, :rows, :columns] > 0
    areas = masks.flatten(1).sum(dim=1)
    share = areas / (rows * columns)
    good = (areas > 0) & (share >= options.smallest_area) & (share <= options.largest_area)
    if options.leave_out_background:
        good &= ~is_background(masks)
    number, logits, masks, areas = number[good].tolist(), logits[good], masks[good].cpu().numpy(), areas[good].tolist()
    predicted_iou = guidance.predicted_iou.flatten().tolist()
    answers = []
    for answer, mask, area, place in zip(logits, masks, areas, number):
        # At the size in which the network saw the picture, one answer at a time.
        square = F.interpolate(answer[None, None], (frame.side, frame.side), mode="bilinear")[0]
        content = square[:, : frame.content_height, : frame.content_width]
        box = bounding_box(content[0], 0)
        if box is None or stability_scores(content) < options.lowest_stability:
            continue
        left, top, right, bottom = bounding_box(answer, 0)
        corner = max(0, top - _MARGIN_PX), max(0, left - _MARGIN_PX)
        rectangle = answer[corner[0] : bottom + _MARGIN_PX, corner[1] : right + _MARGIN_PX]
        target, candidate = divmod(place, 3)
        answers.append(
            _Answer(
                prompt=Prompt(points_px=guidance.prompts[target].points_px, labels=(1,), candidate=candidate),
                predicted_iou=predicted_iou[place],
                bits=np.packbits(mask),
                area=area,
                box_xyxy=box,
                # A copy: a view would keep the logits of the whole step alive.
                logits=rectangle.to("cpu", torch.float16, copy=True),
                corner=corner,
            )
        )
    return answers


def _without_duplicates(answers: list[_Answer], options: EverythingOptions) -> list[_Answer]:
    """Greedy non-maximum suppression by predicted IoU, on boxes and on masks at once."""
    if not answers:
        return []
    answers = sorted(answers, key=lambda answer: -answer.predicted_iou)
    boxes = np.array([answer.box_xyxy for answer in answers], dtype=np.float64)
    areas = np.array([answer.area for answer in answers], dtype=np.float64)
    bits = np.stack([answer.bits for answer in answers])
    waiting = np.arange(len(answers))
    kept = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(answers[best])
        waiting = waiting[_box_iou(boxes[best], boxes[waiting]) <= options.box_nms]
        common = _common_area(bits[best], bits[waiting])
        waiting = waiting[common <= options.mask_nms * (areas[best] + areas[waiting] - common)]
    return kept


def _box_iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = sides.clip(min=0).prod(axis=1)
    return common / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - common)


def _common_area(bits: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pixels that a mask shares with each of the others. uint8 [bytes], [N, bytes] -> int [N]"""
    return _BITS_SET[bits & others].sum(axis=-1, dtype=np.int64)


def _lies_inside(inner: _Answer, outer: _Answer) -> bool:
    return _common_area(inner.bits, outer.bits) >= _INSIDE * inner.area


def _wholes(answers: list[_Answer]) -> list[_Answer]:
    kept: list[_Answer] = []
    for answer in sorted(answers, key=lambda answer: -answer.area):
        if not any(_lies_inside(answer, outer) for outer in kept):
            kept.append(answer)
    return kept


def _parts(answers: list[_Answer]) -> list[_Answer]:
    kept: list[_Answer] = []
    for answer in sorted(answers, key=lambda answer: answer.area):
        covered = np.zeros_like(answer.bits)
        for inner in kept:
            if _lies_inside(inner, answer):
                covered |= inner.bits
        if _common_area(answer.bits, covered) < _MADE_OF_PARTS * answer.area:
            kept.append(answer)
    return kept


def _as_guidance(answers: list[_Answer], frame: Frame, device: torch.device) -> Guidance:
    side = frame.side // 4
    logits = torch.full((len(answers), 1, side, side), _OUTSIDE_LOGIT)
    for place, answer in enumerate(answers):
        (top, left), (height, width) = answer.corner, answer.logits.shape
        logits[place, 0, top : top + height, left : left + width] = answer.logits.float()
    predicted_iou = torch.tensor([answer.predicted_iou for answer in answers]).reshape(-1, 1)
    chosen = torch.tensor([answer.prompt.candidate for answer in answers], dtype=torch.int64)
    return Guidance(
        prompts=tuple(answer.prompt for answer in answers),
        logits=logits.to(device).expand(-1, 3, -1, -1),
        predicted_iou=predicted_iou.expand(-1, 3).to(device),
        chosen=chosen.to(device),
        frame=frame,
    )
