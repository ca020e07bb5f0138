"""Strokes as points for a network that knows only points, as certain parts of a mask, and as what a trimap says."""
# OpenCV is imported where it is used, so that importing the library costs ComfyUI no start-up time.

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .prompt import Prompt, PromptError, Scribble
from .trimap import mask_from_trimap


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
        count, components, _, centres = cv2.connectedComponentsWithStats((strokes == value).astype(np.uint8))
        for index in range(1, count):
            rows, columns = np.nonzero(components == index)
            nearest = np.argmin((columns - centres[index, 0]) ** 2 + (rows - centres[index, 1]) ** 2)
            points.append(((float(columns[nearest]), float(rows[nearest])), label))
    return points


def with_scribbles(mask: Tensor, scribbles: Tensor) -> Tensor:
    """A mask [H, W] with the strokes taken for certain: 1, 0, and 0.5 where they say "unknown". A new tensor."""
    strokes = scribbles.to(mask.device)
    mask = mask.masked_fill(strokes == Scribble.FOREGROUND, 1.0)
    mask = mask.masked_fill(strokes == Scribble.BACKGROUND, 0.0)
    return mask.masked_fill(strokes == Scribble.UNKNOWN, 0.5)


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
    scribbles = torch.full(trimap.shape, int(Scribble.UNKNOWN), dtype=torch.uint8)
    scribbles[trimap >= 0.95] = Scribble.FOREGROUND
    scribbles[trimap <= 0.05] = Scribble.BACKGROUND
    if strokes is not None:
        if strokes.shape != trimap.shape:
            sizes = [f"{area.shape[1]} x {area.shape[0]}" for area in (trimap, strokes)]
            raise PromptError(f"The trimap is {sizes[0]} pixels, the strokes are {sizes[1]}.")
        scribbles = torch.where(strokes != Scribble.NONE, strokes, scribbles)
    return Prompt(mask=mask_from_trimap(trimap), mask_is_guidance=True, scribbles=scribbles)
