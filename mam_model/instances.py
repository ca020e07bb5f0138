"""Instances as first-class results: which matte belongs to which target of which frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .prompt import Prompt


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

    def found_in(self, frame: int) -> bool:
        """True when any target was found in this frame."""
        return any(entry.found for entry in self.entries if entry.frame == frame)


def describe(frame: int, prompts: tuple[Prompt, ...], scores: tuple[float, ...], alphas: Tensor) -> list[Instance]:
    """The index entries of one frame; a single entry that says "not found" where the frame has no target.

    Args:
        prompts, scores: of the frame's T targets.
        alphas: float [T, H, W], their mattes.
    """
    if not prompts:
        return [Instance(frame, 0, "", 0.0, False, None)]
    entries = []
    for index, (prompt, score, alpha) in enumerate(zip(prompts, scores, alphas)):
        box = bounding_box(alpha)
        entries.append(Instance(frame, index, prompt.label, score, bool((alpha > 0).any()), box))
    return entries


def bounding_box(alpha: Tensor, threshold: float = 0.5) -> tuple[int, int, int, int] | None:
    """(x0, y0, x1, y1) in pixels around all that is above the threshold, x1 and y1 outside; None where nothing is."""
    inside = alpha > threshold
    rows = torch.nonzero(inside.any(dim=1)).flatten()
    columns = torch.nonzero(inside.any(dim=0)).flatten()
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
