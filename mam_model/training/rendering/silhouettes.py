"""Outlines of things, and the light on them. An outline is [N, 2], x and y in pixels; a body is a list of outlines."""

from __future__ import annotations

import numpy as np

from .layers import blurred
from .textures import noise

Body = list[np.ndarray]


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0, corners: int = 64) -> np.ndarray:
    return superellipse(x, y, rx, ry, turn, 2.0, corners)


def superellipse(x, y, rx, ry, turn=0.0, power=2.0, corners=96) -> np.ndarray:
    """power 2 is an ellipse, larger powers come close to a rectangle with round corners."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    c, s = np.cos(angle), np.sin(angle)
    u, v = rx * np.sign(c) * np.abs(c) ** (2 / power), ry * np.sign(s) * np.abs(s) ** (2 / power)
    return np.stack([x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)], -1)


def blob(rng: np.random.Generator, x: float, y: float, radius: float, roughness: float = 0.25) -> np.ndarray:
    """A closed smooth curve around (x, y)."""
    angle = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    reach = np.ones_like(angle)
    for wave in range(1, 9):
        strength = roughness * rng.normal() / wave**1.2
        reach += strength * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    reach = radius * np.clip(reach, 0.3, 2)
    stretch = rng.uniform(0.75, 1.3)
    return np.stack([x + reach * np.cos(angle) * stretch, y + reach * np.sin(angle) / stretch], -1)


def tube(points: np.ndarray, width_px: np.ndarray) -> np.ndarray:
    """The outline of a limb along points [N, 2], width_px [N] wide."""
    along = np.gradient(points, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-6
    side = np.stack([-along[:, 1], along[:, 0]], -1) * (width_px / 2)[:, None]
    return np.concatenate([points + side, (points - side)[::-1]])


def _product(rng, x, y, radius) -> Body:
    """A turned thing: a bottle, a vase, a lamp, a skittle."""
    knots = rng.uniform(0.15, 0.75, rng.integers(3, 7))
    t = np.linspace(0, 1, 80)
    at = np.linspace(0, 1, len(knots))
    smooth = rng.random() < 0.6
    width = np.interp(t, at, knots)
    if smooth:
        width = np.convolve(np.pad(width, 8, mode="edge"), np.hanning(17) / np.hanning(17).sum(), mode="valid")
    width = width * np.sqrt(np.clip(np.minimum(t, 1 - t) * 25, 0, 1))
    turn = rng.normal(0, 0.25)
    line = np.stack([np.zeros_like(t), (t - 0.5) * 2.2 * radius], -1)
    outline = tube(line, 2 * radius * width)
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    parts = [outline @ spin.T + (x, y)]
    if rng.random() < 0.35:
        side = rng.choice([-1, 1])
        angle = np.linspace(-1.3, 1.3, 24)
        handle = np.stack([side * np.cos(angle) * 0.55, np.sin(angle) * 0.5], -1) * radius
        handle[:, 0] += side * 0.25 * radius
        parts.append(tube(handle @ spin.T + (x, y), np.full(24, rng.uniform(0.08, 0.18) * radius)))
    return parts


def toy(rng: np.random.Generator, x: float, y: float, radius: float) -> Body:
    """Body, head, ears, arms and legs, and at times a tail: a bear, a hare, a doll, a cat."""
    r = radius
    plump, lean = rng.uniform(0.38, 0.6), rng.normal(0, 0.12)
    head_x, head_y = x + lean * r, y - rng.uniform(0.55, 0.75) * r
    head = rng.uniform(0.28, 0.45) * r
    parts = [
        ellipse(x, y + 0.15 * r, plump * r, rng.uniform(0.5, 0.65) * r, rng.normal(0, 0.15)),
        ellipse(head_x, head_y, head * rng.uniform(0.9, 1.2), head, rng.normal(0, 0.2)),
    ]
    long_ears, ear = rng.uniform(0.2, 1.3), rng.uniform(0.12, 0.4) * head
    for side in (-1, 1):
        angle = rng.normal(0.75, 0.25)
        reach = head * (0.85 + 0.35 * long_ears)
        centre = (head_x + side * np.sin(angle) * reach, head_y - np.cos(angle) * reach)
        parts.append(ellipse(*centre, ear, max(ear, head * long_ears * 0.55), side * angle))
        for start, end, thick in (((0.35, -0.2), (0.95, 0.3), 0.24), ((0.3, 0.5), (0.65, 1.1), 0.3)):
            swing = rng.normal(0, 0.2, 2)
            a = np.array([x + side * start[0] * r, y + start[1] * r])
            b = np.array([x + side * (end[0] + swing[0]) * r, y + (end[1] + swing[1]) * r])
            t = np.linspace(0, 1, 20)[:, None]
            bend = np.array([rng.normal(0, 0.15), rng.normal(0, 0.15)]) * r * np.sin(np.pi * t)
            width = thick * r * rng.uniform(0.7, 1.3) * np.sqrt(np.clip((1.02 - t[:, 0]) * 6, 0, 1))
            parts.append(tube(a + (b - a) * t + bend, width))
    if rng.random() < 0.4:
        side = rng.choice([-1, 1])
        t = np.linspace(0, 1, 24)
        curl = np.stack([x + side * (0.4 + 0.7 * t) * r, y + (0.5 - 0.9 * t * t + 0.3 * np.sin(4 * t)) * r], -1)
        parts.append(tube(curl, rng.uniform(0.1, 0.25) * r * np.sqrt(np.clip((1 - t) * 5, 0, 1))))
    return parts


def person(rng: np.random.Generator, x: float, y: float, radius: float) -> tuple[Body, tuple[float, float, float]]:
    """Head, neck and shoulders that go on below, and (x, y, radius) of the head."""
    head = radius * rng.uniform(0.36, 0.5)
    head_y = y - 0.35 * radius
    tilt = rng.normal(0, 0.12)
    face = ellipse(x, head_y, head * 0.8, head * 1.05, tilt)
    neck = superellipse(x - tilt * head, head_y + head * 1.1, head * 0.38, head * 0.7, 0, 3)
    wide, tall = rng.uniform(1.5, 2.3) * head, rng.uniform(1.8, 2.6) * head
    shoulders = head_y + rng.uniform(1.25, 1.55) * head
    trunk = superellipse(x - 2 * tilt * head, shoulders + tall, wide, tall, 0, rng.uniform(2.2, 3.2))
    return [trunk, neck, face], (x, head_y, head)


def solid_body(rng: np.random.Generator, x: float, y: float, radius: float) -> Body:
    """Any solid thing: a blob, a stone with corners, a box, a bottle, a toy, a few things joined."""
    kind = rng.integers(7)
    if kind == 0:
        return [blob(rng, x, y, radius * 0.8, rng.uniform(0.05, 0.45))]
    if kind == 1:
        angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 10)))
        reach = radius * rng.uniform(0.6, 1.1, len(angle))
        return [np.stack([x + reach * np.cos(angle), y + reach * np.sin(angle)], -1)]
    if kind == 2:
        wide, tall = radius * rng.uniform(0.35, 0.95, 2)
        return [superellipse(x, y, wide, tall, rng.normal(0, 0.4), rng.uniform(2, 9))]
    if kind == 3:
        return _product(rng, x, y, radius)
    if kind == 4:
        return toy(rng, x, y, radius)
    if kind == 5:
        return person(rng, x, y, radius)[0]
    parts = []
    for _ in range(rng.integers(2, 6)):
        at = (x, y) + rng.normal(0, 0.4, 2) * radius
        parts.append(blob(rng, *at, radius * rng.uniform(0.2, 0.55), 0.3))
        t = np.linspace(0, 1, 24)[:, None]
        bend = rng.normal(0, 0.3, 2) * radius * np.sin(np.pi * t)
        limb = (x, y) + (at - (x, y)) * t * rng.uniform(0.8, 1.8) + bend
        parts.append(tube(limb, np.linspace(rng.uniform(0.08, 0.3), rng.uniform(0.02, 0.2), 24) * radius))
    return parts


def relief(mask: np.ndarray, round_px: float) -> np.ndarray:
    """A rounded height [H, W], 0..1, over a mask [H, W] 0..1: 0 at the outline, 1 from `round_px` inside."""
    import cv2

    inside = cv2.distanceTransform((mask > 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    t = np.clip(inside / max(round_px, 1), 0, 1)
    return blurred(np.sqrt(t * (2 - t)), max(1.0, round_px / 12))


def lit(
    rng: np.random.Generator,
    color: np.ndarray,
    height_map: np.ndarray,
    round_px: float,
    gloss: float,
    rough: float = 0.06,
) -> np.ndarray:
    """Colours [H, W, 3] under one lamp from above: ambient, Lambert and a highlight of strength `gloss` 0..1.

    height_map [H, W] is in units of round_px; `rough` is the greatest height of bumps on it.
    """
    import cv2

    rows, columns = height_map.shape
    bumps = rng.uniform(0, rough) * noise(rng, rows, columns, rng.uniform(8, 60), 3)
    field = (height_map + bumps) * round_px
    dx, dy = cv2.Sobel(field, -1, 1, 0, scale=0.125), cv2.Sobel(field, -1, 0, 1, scale=0.125)
    length = np.sqrt(dx * dx + dy * dy + 1)
    lamp = np.array([rng.normal(0, 0.6), -rng.uniform(0.1, 1), rng.uniform(0.5, 1.2)])
    lamp /= np.linalg.norm(lamp)
    facing = (-dx * lamp[0] - dy * lamp[1] + lamp[2]) / length
    ambient = rng.uniform(0.35, 0.75)
    shade = ambient + (1.25 - ambient) * np.clip(facing, 0, 1)
    half = lamp + (0, 0, 1)
    half /= np.linalg.norm(half)
    mirror = np.clip((-dx * half[0] - dy * half[1] + half[2]) / length, 0, 1) ** rng.uniform(20, 90)
    return np.clip(color * shade[..., None] + gloss * mirror[..., None], 0, 1).astype(np.float32)
