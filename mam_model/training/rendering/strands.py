"""Where hairs grow and how they lie: roots, directions, curves in locks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .layers import blurred
from .textures import noise


@dataclass(frozen=True)
class Coat:
    """Roots of strands: position [S, 2] px, the direction [S] (radians) in which they leave, the distance [S] px from
    the body's outline."""

    root: np.ndarray
    angle: np.ndarray
    depth: np.ndarray


def coat(
    rng: np.random.Generator, mask: np.ndarray, count: int, reach_px: float, combed: float, edge_share: float = 0.4
) -> Coat:
    """Roots on a body [H, W] 0..1: `edge_share` of them within `reach_px` of its outline, the others all over.

    At the outline strands point outwards, inside along a combed field of directions; `combed` 0..1 says how far that
    field bends those at the outline too. An empty body has no strands.
    """
    import cv2

    body = (mask > 0.5).astype(np.uint8)
    inside = cv2.distanceTransform(np.pad(body, 1, mode="edge"), cv2.DIST_L2, 5)[1:-1, 1:-1]
    everywhere = np.flatnonzero(body)
    if not len(everywhere):
        return Coat(np.zeros((0, 2)), np.zeros(0), np.zeros(0))
    near = np.flatnonzero((inside > 0) & (inside < reach_px))
    at_edge = int(count * edge_share) if len(near) else 0
    chosen = everywhere[rng.integers(len(everywhere), size=count - at_edge)]
    if at_edge:
        chosen = np.concatenate([chosen, near[rng.integers(len(near), size=at_edge)]])
    rng.shuffle(chosen)
    y, x = np.divmod(chosen, mask.shape[1])
    smooth = blurred(mask.astype(np.float32), max(2.0, reach_px * 0.6))
    dx = -cv2.Sobel(smooth, -1, 1, 0)
    dy = -cv2.Sobel(smooth, -1, 0, 1)
    depth = inside[y, x]
    outward = np.exp(-((depth / max(reach_px, 1)) ** 2)) * (1 - combed)
    swirl = noise(rng, *mask.shape, max(mask.shape) / rng.uniform(1.5, 6), 2)
    comb = rng.normal(np.pi / 2, 0.8) + 0.7 * swirl[y, x]
    norm = np.hypot(dx[y, x], dy[y, x]) + 1e-6
    u = outward * dx[y, x] / norm + (1 - outward) * np.cos(comb)
    v = outward * dy[y, x] / norm + (1 - outward) * np.sin(comb)
    root = np.stack([x, y], -1) + rng.uniform(-0.5, 0.5, (len(chosen), 2))
    return Coat(root, np.arctan2(v, u), depth)


def grow(
    rng: np.random.Generator,
    root: np.ndarray,
    angle: np.ndarray,
    length_px: np.ndarray,
    steps: int = 8,
    bend: float | np.ndarray = 0.4,
    wave: float | np.ndarray = 0.0,
    waves: float | np.ndarray = 1.0,
    gravity: float = 0.0,
    phase: np.ndarray | None = None,
) -> np.ndarray:
    """Curves [S, steps, 2] from roots [S, 2].

    bend: turn in radians over the whole length (deviation over the strands, or one value each). wave: deflection in
    radians, `waves` times over the length, from `phase` [S]. gravity: how far the direction turns downwards by the
    tip, 0..1.
    """
    count = len(root)
    t = np.linspace(0, 1, steps)
    turn = rng.normal(0, 1, count) * bend if np.isscalar(bend) else bend
    phase = rng.uniform(0, 2 * np.pi, count) if phase is None else phase
    wave, waves = np.broadcast_to(wave, count)[:, None], np.broadcast_to(waves, count)[:, None]
    heading = angle[:, None] + np.asarray(turn)[:, None] * t + wave * np.sin(2 * np.pi * waves * t + phase[:, None])
    u, v = np.cos(heading), np.sin(heading)
    if gravity:
        fall = np.clip(gravity * 1.6 * t, 0, 1)
        u, v = u * (1 - fall), v * (1 - fall) + fall
    stride = (length_px / (steps - 1))[:, None]
    x = root[:, :1] + np.cumsum(u * stride, axis=1) - u[:, :1] * stride
    y = root[:, 1:] + np.cumsum(v * stride, axis=1) - v[:, :1] * stride
    return np.dstack([x, y])


def locks(rng: np.random.Generator, root: np.ndarray, size_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Into which lock each strand [S] falls, and the index [L] of the strand that leads each lock."""
    jitter = rng.uniform(0, size_px, 2) + rng.normal(0, 0.2 * size_px, root.shape)
    cell = np.floor((root + jitter) / max(size_px, 1)).astype(np.int64)
    _, leader, lock = np.unique(cell[:, 0] * 100_003 + cell[:, 1], return_index=True, return_inverse=True)
    return lock.reshape(-1), leader


def gathered(points: np.ndarray, lock: np.ndarray, leader: np.ndarray, strength: float | np.ndarray) -> np.ndarray:
    """Curves [S, N, 2] whose tips draw near the tip of their lock's leader: 0 not at all, 1 all the way."""
    t = np.linspace(0, 1, points.shape[1])[None, :, None]
    pull = np.asarray(strength, np.float64).reshape(-1, 1, 1) * t**1.5
    return points + pull * (points[leader[lock]] - points)


def sampled(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The colours [S, 3] of a picture under points [S, 2]; beyond its border those at the border."""
    x = np.clip(points[:, 0].round().astype(int), 0, picture.shape[1] - 1)
    y = np.clip(points[:, 1].round().astype(int), 0, picture.shape[0] - 1)
    return picture[y, x]
