"""Three rendered product photos for the workflow "Product batch": a mug, a lamp and a vase before light grey.

Each is a distance function that rays are walked along, so that no photo of anybody's product is needed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

HEIGHT_PX, WIDTH_PX = 720, 600
# Rays a side per pixel, so that edges are as soft as a lens makes them.
RAYS_PER_PIXEL = 2
CAMERA = np.array((0.0, 1.7, 6.0))
LOOKS_AT = np.array((0.0, 0.85, 0.0))
FIELD_OF_VIEW = 0.4
LIGHT = np.array((-0.5, 0.75, 0.6))
NEAR, FAR, STEPS, CLOSE = 4.5, 8.0, 90, 1e-3
BACKDROP = np.array((0.83, 0.825, 0.81))
NOISE = 0.006

# A distance function takes points [N, 3] and gives, for each, the distance to every differently coloured part.
Parts = dict[tuple[float, float, float], np.ndarray]
RED, CREAM, YELLOW, BLACK, BLUE = (0.75, 0.16, 0.1), (0.85, 0.8, 0.7), (0.95, 0.68, 0.1), (0.04,) * 3, (0.05, 0.3, 0.6)


def product_photos() -> dict[str, np.ndarray]:
    """Name -> uint8 [720, 600, 3]."""
    return {name: _photo(parts) for name, parts in (("mug", _mug), ("lamp", _lamp), ("vase", _vase))}


def _mug(points: np.ndarray) -> Parts:
    x, y, z = points.T
    outside = _cylinder(points, radius=0.5, bottom=0.0, top=1.15)
    wall = np.maximum(outside, -_cylinder(points, radius=0.44, bottom=0.08, top=2.0))
    ring = np.hypot(np.hypot(x - 0.52, y - 0.6) - 0.28, z) - 0.065
    handle = np.maximum(ring, 0.46 - np.hypot(x, z))
    body = np.minimum(wall, handle)
    in_band = np.abs(y - 0.55) < 0.16
    return {RED: np.where(in_band, np.inf, body), CREAM: np.where(in_band, body, np.inf)}


def _lamp(points: np.ndarray) -> Parts:
    x, y, z = points.T
    radius = np.interp(y, (0.9, 1.7), (0.58, 0.34))
    # A cone leans, so the distance to it is shorter than the one along the radius.
    shade = np.maximum(np.abs(np.hypot(x, z) - radius) * 0.95 - 0.012, np.abs(y - 1.3) - 0.4)
    rod = _cylinder(points, radius=0.04, bottom=0.05, top=1.5)
    foot = _cylinder(points, radius=0.32, bottom=0.0, top=0.1)
    return {YELLOW: shade, BLACK: np.minimum(rod, foot)}


def _vase(points: np.ndarray) -> Parts:
    x, y, z = points.T
    height = y.clip(0, 1.75)
    radius = 0.14 + 0.41 * np.exp(-(((height - 0.55) / 0.45) ** 2)) + 0.03 * (height / 1.75) ** 8
    body = np.maximum((np.hypot(x, z) - radius) * 0.6, np.abs(y - 0.875) - 0.875)
    opening = _cylinder(points, radius=0.11, bottom=1.4, top=2.0)
    return {BLUE: np.maximum(body, -opening)}


def _cylinder(points: np.ndarray, radius: float, bottom: float, top: float, rounding: float = 0.02) -> np.ndarray:
    x, y, z = points.T
    across = np.hypot(x, z) - radius + rounding
    along = np.abs(y - (bottom + top) / 2) - (top - bottom) / 2 + rounding
    return np.hypot(across.clip(0), along.clip(0)) + np.maximum(across, along).clip(max=0) - rounding


def _photo(parts: Callable[[np.ndarray], Parts]) -> np.ndarray:
    rays, rows = _rays()
    colors = BACKDROP * (1.04 - 0.1 * rows[:, None])
    depth, going = np.full(len(rays), NEAR), np.arange(len(rays))
    for _ in range(STEPS):
        step = _nearest(parts(CAMERA + depth[going, None] * rays[going]))
        depth[going] += step
        going = going[(step > CLOSE) & (depth[going] < FAR)]
    hit = np.flatnonzero(depth < FAR)
    points = CAMERA + depth[hit, None] * rays[hit]
    colors[hit] = _shaded(parts, points, rays[hit])
    fine = colors.reshape(HEIGHT_PX, RAYS_PER_PIXEL, WIDTH_PX, RAYS_PER_PIXEL, 3).mean((1, 3))
    noise = np.random.default_rng(0).normal(0, NOISE, fine.shape)
    return ((fine + noise).clip(0, 1) * 255).round().astype(np.uint8)


def _rays() -> tuple[np.ndarray, np.ndarray]:
    """Directions [N, 3], row after row, and how far down the photo each lies, 0..1."""
    rows, columns = HEIGHT_PX * RAYS_PER_PIXEL, WIDTH_PX * RAYS_PER_PIXEL
    down, right = np.mgrid[:rows, :columns].reshape(2, -1) + 0.5
    ahead = _unit(LOOKS_AT - CAMERA)
    sideways = _unit(np.cross(ahead, (0, 1, 0)))
    upwards = np.cross(sideways, ahead)
    ray = FIELD_OF_VIEW / rows
    to_the_right, up = ray * (right - columns / 2)[:, None], ray * (rows / 2 - down)[:, None]
    return _unit(ahead + to_the_right * sideways + up * upwards), down / rows


def _shaded(parts: Callable[[np.ndarray], Parts], points: np.ndarray, rays: np.ndarray) -> np.ndarray:
    distances = parts(points)
    own = np.array(list(distances))[np.argmin(list(distances.values()), axis=0)]
    ahead = np.eye(3) * 1e-3
    slope = [_nearest(parts(points + step)) - _nearest(parts(points - step)) for step in ahead]
    normal, light = _unit(np.stack(slope, axis=1)), _unit(LIGHT)
    diffuse = (normal @ light).clip(0)
    gloss = (normal * _unit(light - rays)).sum(1).clip(0) ** 40
    return own * (0.35 + 0.75 * diffuse[:, None]) + 0.35 * gloss[:, None]


def _nearest(distances: Parts) -> np.ndarray:
    return np.minimum.reduce(list(distances.values()))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
