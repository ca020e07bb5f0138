"""Strokes as points for a network that knows only points, as certain parts of a mask, and as what a trimap says."""
# OpenCV is imported where it is used, so that importing the library costs ComfyUI no start-up time.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .prompt import Prompt, PromptError, Scribble
from .trimap import SURE_BACKGROUND, SURE_SUBJECT, mask_from_trimap


def points_from_scribbles(scribbles: Tensor) -> list[tuple[tuple[float, float], int]]:
    """One point per connected stroke, on the stroke and nearest to its centre.

    The original demo of Matting Anything takes the centre itself, which lies beside a stroke that is bent.

    Args:
        scribbles: uint8 [H, W] of `Scribble` values.
    Returns:
        ((x, y), label) per stroke, top to bottom; label 1 = foreground, 0 = background.
    """
    import cv2

    strokes = scribbles.cpu().numpy()
    points = []
    for value, label in ((Scribble.FOREGROUND, 1), (Scribble.BACKGROUND, 0)):
        count, components, facts, centres = cv2.connectedComponentsWithStats((strokes == value).astype(np.uint8))
        for index in range(1, count):
            # Each in its own rectangle: hundreds of dots on a large picture would otherwise take minutes.
            left, top, wide, high, _ = facts[index]
            rows, columns = np.nonzero(components[top : top + high, left : left + wide] == index)
            rows, columns = rows + top, columns + left
            nearest = np.argmin((columns - centres[index, 0]) ** 2 + (rows - centres[index, 1]) ** 2)
            points.append(((float(columns[nearest]), float(rows[nearest])), label))
    return points


def with_certain_strokes(mask: Tensor, scribbles: Tensor) -> Tensor:
    """A mask or matte [H, W] that is 1 on the strokes on the subject and 0 on those beside it. A new tensor."""
    strokes = scribbles.to(mask.device)
    return mask.masked_fill(strokes == Scribble.FOREGROUND, 1.0).masked_fill(strokes == Scribble.BACKGROUND, 0.0)


def with_scribbles(mask: Tensor, scribbles: Tensor) -> Tensor:
    """A mask [H, W] with the strokes taken for certain: 1, 0, and 0.5 where they say "unknown". A new tensor."""
    return with_certain_strokes(mask, scribbles).masked_fill(scribbles.to(mask.device) == Scribble.UNKNOWN, 0.5)


def strokes_on_all(maps: Sequence[Tensor | None]) -> Tensor | None:
    """The strokes of several targets as those of one: on the subject if on any of them, beside it if beside each.

    Args:
        maps: uint8 [H, W] of `Scribble` values per target, None for a target without strokes.
    Returns:
        uint8 [H, W] of `Scribble.NONE`, FOREGROUND and BACKGROUND; None when no target has strokes.
    """
    drawn = [strokes for strokes in maps if strokes is not None]
    if not drawn:
        return None
    united = torch.zeros_like(drawn[0])
    if len(drawn) == len(maps):
        united[torch.stack([strokes == Scribble.BACKGROUND for strokes in drawn]).all(dim=0)] = Scribble.BACKGROUND
    united[torch.stack([strokes == Scribble.FOREGROUND for strokes in drawn]).any(dim=0)] = Scribble.FOREGROUND
    return united


def prompt_from_trimap(trimap: Tensor, strokes: Tensor | None = None) -> Prompt:
    """A trimap as a prompt: its mask is the target, all it says is certain, and only its unknown part is matted.

    Args:
        trimap: float [H, W]; from 0.95 on it is foreground, up to 0.05 background, between them unknown.
        strokes: uint8 [H, W] of `Scribble` values that count where they differ, or None.
    Returns:
        A prompt with a mask, in which each unknown pixel goes to the nearer side, and a scribble map of all pixels.
    Raises:
        PromptError: when trimap and strokes differ in size.
    """
    scribbles = torch.full(trimap.shape, int(Scribble.UNKNOWN), dtype=torch.uint8, device=trimap.device)
    scribbles[trimap >= SURE_SUBJECT] = Scribble.FOREGROUND
    scribbles[trimap <= SURE_BACKGROUND] = Scribble.BACKGROUND
    if strokes is not None:
        if strokes.shape != trimap.shape:
            sizes = [f"{area.shape[1]} x {area.shape[0]}" for area in (trimap, strokes)]
            raise PromptError(f"The trimap is {sizes[0]} pixels, the strokes are {sizes[1]}.")
        strokes = strokes.to(scribbles.device)
        scribbles = torch.where(strokes != Scribble.NONE, strokes, scribbles)
    return Prompt(mask=mask_from_trimap(trimap), mask_is_guidance=True, scribbles=scribbles)
