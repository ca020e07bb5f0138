"""Instances as first-class results: which matte belongs to which target of which frame."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .prompt import Prompt, PromptError

POSITIONS = ("left", "right", "top", "bottom", "center", "largest", "smallest")


def _go_on() -> None:
    """Called before each matte where nobody cancels."""


@dataclass(frozen=True)
class Instance:
    """One target of one frame.

    Attributes:
        frame: index of the picture in its batch, from 0.
        index: number of the target within its frame, from 0.
        label: what it is called; may be empty.
        score: 0..1, how sure prompt and model are of it; 0 when nothing was found.
        found: False when there is no such target in this frame; its matte is 0 everywhere.
        box_xyxy_px: the bounding box of its matte above one half, None when there is none.
    """

    frame: int
    index: int
    label: str
    score: float
    found: bool
    box_xyxy_px: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Instances:
    """The index beside a batch of mattes: entry i describes matte i.

    Every frame has at least one entry, in the order of the frames, so that a matte batch never misses a frame.
    """

    entries: tuple[Instance, ...]
    frame_count: int

    def __len__(self) -> int:
        return len(self.entries)

    def check(self, alphas: Tensor) -> None:
        """Refuses mattes that are not the ones described.

        Raises:
            ValueError: when there are not as many mattes as entries.
        """
        if len(alphas) != len(self):
            raise ValueError(
                f"There are {len(alphas)} mattes but an index of {len(self)} instances. Connect instance_alphas and "
                "instances of the same node; the alpha output holds one matte per frame instead."
            )


def describe(frame: int, prompts: Sequence[Prompt], scores: Sequence[float], alphas: Tensor) -> list[Instance]:
    """The index entries of one frame; a single entry that says "not found" where the frame has no target.

    Args:
        prompts, scores: of the frame's T targets.
        alphas: float [T, H, W], their mattes.
    """
    if not prompts:
        return [_nothing(frame)]
    entries = []
    for index, (prompt, score, alpha) in enumerate(zip(prompts, scores, alphas)):
        found = bool((alpha > 0).any())
        entries.append(Instance(frame, index, prompt.label, score if found else 0.0, found, bounding_box(alpha)))
    return entries


def _nothing(frame: int) -> Instance:
    return Instance(frame, 0, "", 0.0, False, None)


def bounding_box(alpha: Tensor, threshold: float = 0.5) -> tuple[int, int, int, int] | None:
    """(x0, y0, x1, y1) in pixels around all that is above the threshold, x1 and y1 outside; None where nothing is."""
    inside = alpha > threshold
    rows = torch.nonzero(inside.any(dim=1)).flatten()
    columns = torch.nonzero(inside.any(dim=0)).flatten()
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def with_index(instances: Instances, text: str) -> list[bool]:
    """Which instances have one of the numbers within their frame; `text` is like "0", "0, 2" or "1-3".

    Raises:
        PromptError: when the text is not such a list.
    """
    numbers: set[int] = set()
    for part in filter(None, re.split(r"[\s,;]+", text.strip())):
        span = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        if span is None:
            raise PromptError(f'"{part}" is not a number of an instance. Write for example "0", "0, 2" or "1-3".')
        first, last = int(span[1]), int(span[2] or span[1])
        if first > last:
            raise PromptError(f'"{part}" holds no number: write the smaller one first, "{last}-{first}".')
        numbers.update(range(first, last + 1))
    return [entry.index in numbers for entry in instances.entries]


def with_label(instances: Instances, text: str) -> list[bool]:
    """Which instances are called one of the names in `text`, separated by commas; case does not matter."""
    names = {name.strip().casefold() for name in text.split(",") if name.strip()}
    return [entry.label.strip().casefold() in names for entry in instances.entries]


def with_score(instances: Instances, lowest: float) -> list[bool]:
    """Which instances were found with at least that score."""
    return [entry.found and entry.score >= lowest for entry in instances.entries]


def with_area(alphas: Tensor, lowest: float, highest: float, before_matte: Callable[[], None] = _go_on) -> list[bool]:
    """Which mattes [N, H, W] cover at least `lowest` and at most `highest` of their picture, 0..1.

    Raises:
        ValueError: when `lowest` is above `highest`, because then there can be none.
    """
    if lowest > highest:
        raise ValueError(
            f"The smallest area, {100 * lowest:.4g} per cent of the picture, is above the largest, "
            f"{100 * highest:.4g} per cent: no subject can lie between them."
        )
    chosen = []
    for alpha in alphas:
        before_matte()
        chosen.append(lowest <= float(alpha.float().mean()) <= highest)
    return chosen


def at_point(alphas: Tensor, x_px: float, y_px: float) -> list[bool]:
    """Which mattes [N, H, W] cover at least half of the pixel at (x, y). Outside the picture there is none."""
    height, width = alphas.shape[1:]
    if not (0 <= x_px < width and 0 <= y_px < height):
        return [False] * len(alphas)
    return [float(alpha[int(y_px), int(x_px)]) >= 0.5 for alpha in alphas]


def at_position(
    instances: Instances, alphas: Tensor, position: str, count: int, before_matte: Callable[[], None] = _go_on
) -> list[bool]:
    """The first `count` instances of each frame in the order that `position` names.

    Args:
        position: one of POSITIONS. Left, right, top and bottom compare the centres of the bounding boxes, center their
            distance to the picture's centre, largest and smallest the covered area. Ties go to the lower index.
        before_matte: here and below, called before each matte is looked at; what it raises (a cancelled run) ends the
            work.
    """
    height, width = alphas.shape[1:]

    def order(place: int) -> float:
        before_matte()
        if position in ("largest", "smallest"):
            area = float(alphas[place].float().sum())
            return -area if position == "largest" else area
        x0, y0, x1, y1 = instances.entries[place].box_xyxy_px or bounding_box(alphas[place], 0) or (0, 0, 0, 0)
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        towards = {"left": x, "right": -x, "top": y, "bottom": -y}
        return towards[position] if position in towards else (x - width / 2) ** 2 + (y - height / 2) ** 2

    chosen = [False] * len(instances)
    for frame in range(instances.frame_count):
        places = [i for i, entry in enumerate(instances.entries) if entry.frame == frame and entry.found]
        for place in sorted(places, key=order)[:count]:
            chosen[place] = True
    return chosen


def keep(instances: Instances, alphas: Tensor, chosen: Sequence[bool]) -> tuple[Instances, Tensor]:
    """The chosen instances and their mattes [N, H, W]; they keep frame and number.

    A frame in which none is chosen keeps one empty matte with found = False, so that no frame is lost.
    """
    entries: list[Instance] = []
    mattes: list[Tensor] = []
    nothing = torch.zeros_like(alphas[0])
    for frame in range(instances.frame_count):
        places = [i for i, entry in enumerate(instances.entries) if entry.frame == frame and chosen[i]]
        entries += [instances.entries[place] for place in places] or [_nothing(frame)]
        mattes += [alphas[place] for place in places] or [nothing]
    return Instances(tuple(entries), instances.frame_count), torch.stack(mattes)


def without_labels(instances: Instances) -> Instances:
    """The same index with all names gone, so that `merge_by_label` joins everything in a frame."""
    return replace(instances, entries=tuple(replace(entry, label="") for entry in instances.entries))


def merge_by_label(
    instances: Instances, alphas: Tensor, before_matte: Callable[[], None] = _go_on
) -> tuple[Instances, Tensor]:
    """One matte per frame and label: the sum of the mattes [N, H, W] that share it, at most 1.

    Shares of a pixel that instances settled among themselves add up again; see `share_pixels`.
    """
    groups: dict[tuple[int, str], list[int]] = {}
    for place, entry in enumerate(instances.entries):
        groups.setdefault((entry.frame, entry.label), []).append(place)
    entries = []
    mattes = alphas.new_empty(len(groups), *alphas.shape[1:])
    count_in_frame: dict[int, int] = {}
    for number, ((frame, _), places) in enumerate(groups.items()):
        before_matte()
        matte = alphas[places].sum(dim=0).clamp(0, 1)
        best = max((instances.entries[place] for place in places), key=lambda entry: (entry.found, entry.score))
        index = count_in_frame[frame] = count_in_frame.get(frame, -1) + 1
        entries.append(replace(best, index=index, box_xyxy_px=bounding_box(matte)))
        mattes[number] = matte
    return Instances(tuple(entries), instances.frame_count), mattes


def merge_frames(instances: Instances, alphas: Tensor, before_matte: Callable[[], None] = _go_on) -> Tensor:
    """One matte per frame [B, H, W]: the sum of its instances' mattes [N, H, W], at most 1."""
    frames = alphas.new_zeros(instances.frame_count, *alphas.shape[1:])
    for entry, alpha in zip(instances.entries, alphas):
        before_matte()
        frames[entry.frame] += alpha
    return frames.clamp_(0, 1)


def share_pixels(alphas: Tensor) -> Tensor:
    """Settles overlaps, so that the alphas of one frame sum to at most 1 everywhere.

    From the nearest instance to the farthest, each keeps of its claim what those before it have left over: hair that
    falls over somebody behind stays whole, and the one behind gives way. Where the claims fit, nothing changes. Which
    instance is nearer is guessed as in a photo of people on common ground: the one that reaches farther down, and of
    two that reach equally far the larger one.

    Args:
        alphas: float [T, H, W] in 0..1.
    Returns:
        float [T, H, W], a new tensor, in the order of the input.
    """
    shares = torch.empty_like(alphas)
    left_over = torch.ones_like(alphas[0]) if len(alphas) else None
    for target in _nearest_first(alphas):
        shares[target] = torch.minimum(alphas[target], left_over)
        left_over = left_over - shares[target]
    return shares


def _nearest_first(alphas: Tensor) -> list[int]:
    def nearness(target: int) -> tuple[int, float]:
        rows = torch.nonzero((alphas[target] > 0.5).any(dim=1)).flatten()
        return (int(rows[-1]) if len(rows) else -1, float(alphas[target].sum()))

    return sorted(range(len(alphas)), key=nearness, reverse=True)
