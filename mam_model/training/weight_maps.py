"""From which pixels each scale learns: all of them at first, later those that the finer scales are there for.

Li, Jain, Shi: "Matting Anything", arXiv 2306.05399, after Yu et al., "Mask Guided Matting via Progressive
Refinement Network", 2021.
"""
# OpenCV is imported where it is used, so that importing the library costs ComfyUI no start-up time.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..m2m import AlphaPyramid
from ..merge import unknown_area
from .config import PUBLISHED_SIDE_PX, Schedule

# The greatest diameters, at 1024 pixels, of the discs that widen what os8 leaves to os4, and os4 to os1.
WIDEST_OS4_PX = 29
WIDEST_OS1_PX = 14
_WIDEST_TRIMAP_PX = 30
# Between one level of 8 bits and two: rounding and JPEG leave one of them in alphas that are 0 or 1.
_NOISE = 1.5 / 255


def generator(seed: int, *what: int | str) -> np.random.Generator:
    """Random numbers that depend on the run's seed and on what they are for, and on nothing else.

    So sample 1,000 is the same in a run that was interrupted before it, and in one with more processes.
    """
    words = [int.from_bytes(part.encode(), "little") if isinstance(part, str) else part for part in what]
    return np.random.default_rng([seed, *words])


def weight_maps(
    schedule: Schedule, seed: int, step: int, numbers: Sequence[int], band: Tensor, predicted: AlphaPyramid
) -> AlphaPyramid:
    """How much each pixel counts at each scale.

    os8 learns from every pixel. os4 and os1 do so in the steps before `ones_until`; until `trimap_until` one half of
    the steps, drawn at random, uses every pixel and the other the trimap's band alone; then one half uses the trimap's
    band and the other the bands that os8 and os4 leave unsure, widened by a random number of pixels.

    Args:
        seed: of the run.
        step: the first is 0.
        numbers: of the N samples in the run.
        band: bool [N, 1, side, side], the unknown band of each sample's random trimap.
        predicted: of the N samples.
    Returns:
        float32 [N, 1, side, side] of {0, 1} for each scale, without gradients.
    """
    everywhere = torch.ones_like(predicted.os1, dtype=torch.float32, requires_grad=False)
    if step < schedule.ones_until:
        return AlphaPyramid(everywhere, everywhere, everywhere)
    by_trimap = generator(seed, "weights", step).random() < 0.5
    if by_trimap:
        inside = band.to(everywhere)
        return AlphaPyramid(everywhere, inside, inside)
    if step < schedule.trimap_until:
        return AlphaPyramid(everywhere, everywhere, everywhere)
    os4 = unsure_band(predicted.os8, WIDEST_OS4_PX, seed, "os4", numbers)
    os1 = unsure_band(predicted.os4, WIDEST_OS1_PX, seed, "os1", numbers)
    return AlphaPyramid(everywhere, os4, os1)


def unsure_band(coarser: Tensor, widest_px: int, seed: int, scale: str, numbers: Sequence[int]) -> Tensor:
    """Where a prediction lies between 0 and 1, widened by a disc of random diameter, from 1 to `widest_px` pixels.

    Args:
        coarser: float [N, 1, side, side], alpha.
        widest_px: at 1024 pixels a side; as much narrower as the side is shorter.
    Returns:
        float32 [N, 1, side, side] of {0, 1}.
    """
    widest_px = scaled(widest_px, coarser.shape[-1])
    bands = []
    for number, alpha in zip(numbers, coarser.detach().float().cpu().numpy()):
        diameter = int(generator(seed, scale, number).integers(1, widest_px + 1))
        # Merging takes half of a width for the disc's diameter; in training it is drawn outright.
        bands.append(torch.from_numpy(unknown_area(alpha[0], 2 * diameter, "two")))
    return torch.stack(bands)[:, None].to(coarser.device, torch.float32)


def random_trimap(rng: np.random.Generator, alpha: np.ndarray) -> np.ndarray:
    """A trimap as a user might draw it: both sure sides taken back by discs of random diameters, drawn for each.

    Args:
        alpha: float [H, W], 0..1.
    Returns:
        float32 [H, W] of 0, 0.5 and 1. What is not plainly 0 or 1 in the alpha is always unknown.
    """
    import cv2

    transparent, opaque = plain(alpha)
    shorter = min(alpha.shape)
    widest_px = scaled(_WIDEST_TRIMAP_PX, min(shorter, PUBLISHED_SIDE_PX))
    # Discs grow with the picture where it is larger than 2048 pixels.
    widest_px = max(widest_px, int(shorter / 2048 * _WIDEST_TRIMAP_PX))
    sure = []
    for side in (opaque, transparent):
        diameter = int(rng.integers(1, widest_px + 1))
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter, diameter))
        sure.append(cv2.erode(side.view(np.uint8), disc).view(bool))
    return np.where(sure[0], np.float32(1), np.where(sure[1], np.float32(0), np.float32(0.5)))


def plain(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two bool arrays of alpha's shape: where it is plainly 0, and where it is plainly 1.

    A level of 8 bits from them it still is; otherwise a speck that nobody sees would be as much of an edge as hair is.
    """
    return alpha <= _NOISE, alpha >= 1 - _NOISE


def scaled(width_px: int, side_px: int) -> int:
    """A width that the recipe states for 1024 pixels, for pictures of another side; at least a pixel."""
    return max(1, round(width_px * side_px / PUBLISHED_SIDE_PX))
