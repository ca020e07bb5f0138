"""Colours: noise, surfaces of things, and what stands behind them. Pictures are float32 [H, W, 3], sRGB 0..1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .layers import Canvas, blurred

Photos = Sequence[np.ndarray]


def noise(rng: np.random.Generator, height: int, width: int, grain_px: float, octaves: int = 4, gain: float = 0.5):
    """Smooth random field [H, W] of mean 0 and deviation 1: `octaves` of value noise, the coarsest `grain_px` wide."""
    import cv2

    total = np.zeros((height, width), np.float32)
    weight = 1.0
    for _ in range(octaves):
        if grain_px < 1:
            break
        rows, columns = int(height / grain_px) + 3, int(width / grain_px) + 3
        grid = rng.standard_normal((rows, columns), np.float32)
        large = cv2.resize(
            grid, (round(columns * grain_px) + 1, round(rows * grain_px) + 1), interpolation=cv2.INTER_CUBIC
        )
        y, x = rng.integers(0, large.shape[0] - height + 1), rng.integers(0, large.shape[1] - width + 1)
        total += weight * large[y : y + height, x : x + width]
        weight *= gain
        grain_px /= 2.1
    return (total - total.mean()) / (total.std() + 1e-6)


def color(rng: np.random.Generator) -> np.ndarray:
    """One colour [3] as things have it: seldom pure, often greyish or earthen, of any brightness."""
    hue, value = rng.uniform(0, 1), rng.beta(1.8, 1.2)
    saturation = rng.beta(1.2, 2.8)
    if rng.random() < 0.4:
        hue = rng.normal(0.08, 0.05) % 1
    return hsv(hue, saturation, 0.04 + 0.94 * value)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    sector = np.array([5.0, 3.0, 1.0]) + 6 * (hue % 1)
    k = sector % 6
    return (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)


def photo_crop(rng: np.random.Generator, height: int, width: int, photos: Photos) -> np.ndarray:
    """A random part of one of the photos [H, W, 3], scaled to the size, flipped, its colours shifted.

    Raises:
        ValueError: that photo is of another form.
    """
    import cv2

    number = rng.integers(len(photos))
    photo = photos[number]
    _check(number, photo)
    rows, columns = photo.shape[:2]
    share = rng.uniform(0.35, 1)
    fit = min(rows / height, columns / width)
    cut_rows, cut_columns = max(1, int(height * fit * share)), max(1, int(width * fit * share))
    y, x = rng.integers(0, rows - cut_rows + 1), rng.integers(0, columns - cut_columns + 1)
    cut = photo[y : y + cut_rows, x : x + cut_columns].astype(np.float32)
    cut = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA if cut_rows > height else cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        cut = cut[:, ::-1]
    mean = cut.mean(axis=(0, 1))
    cut = (cut - mean) * rng.uniform(0.7, 1.2) + mean
    cut = cut * rng.uniform(0.75, 1.25) * rng.normal(1, 0.06, 3)
    return np.clip(cut, 0, 1).astype(np.float32)


def _check(number: int, photo: np.ndarray) -> None:
    shape = np.shape(photo)
    if len(shape) != 3 or shape[2] != 3 or min(shape) < 1 or not np.issubdtype(photo.dtype, np.floating):
        spoken = " x ".join(map(str, shape)) or "a single number"
        raise ValueError(
            f"Photo {number + 1} is {spoken} of type {getattr(photo, 'dtype', type(photo).__name__)}. "
            "Give float arrays of height x width x 3 with values from 0 to 1."
        )


def scaled_down(photo: np.ndarray, most_px: int) -> np.ndarray:
    """A photo [H, W, 3] whose longer side is at most `most_px`, so that many fit into memory."""
    import cv2

    scale = most_px / max(photo.shape[:2])
    if scale >= 1:
        return photo
    size = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA)


def surface(rng: np.random.Generator, height: int, width: int, photos: Photos = (), grain_px: float = 60) -> np.ndarray:
    """What a thing is coloured with: a crop of a photo, or one to three colours in spots, stripes, checks or clouds."""
    if len(photos) and rng.random() < 0.5:
        return photo_crop(rng, height, width, photos)
    first, second, third = color(rng), color(rng), color(rng)
    if rng.random() < 0.5:
        second = np.clip(first + rng.normal(0, 0.12, 3), 0, 1)
    pattern = rng.integers(5)
    clouds = noise(rng, height, width, grain_px)
    if pattern == 0:
        share = 1 / (1 + np.exp(-6 * clouds))
    elif pattern == 1:
        y, x = np.mgrid[:height, :width].astype(np.float32)
        angle, period = rng.uniform(0, np.pi), rng.uniform(0.15, 1.2) * grain_px
        phase = (x * np.cos(angle) + y * np.sin(angle)) / period + 0.3 * clouds
        share = 0.5 + 0.5 * np.tanh(rng.uniform(1, 6) * np.sin(2 * np.pi * phase))
    elif pattern == 2:
        share = np.clip(0.5 + 0.35 * clouds, 0, 1)
    elif pattern == 3:
        y, x = np.mgrid[:height, :width].astype(np.float32)
        period = rng.uniform(0.2, 1) * grain_px
        share = 0.5 + 0.5 * np.tanh(4 * np.sin(x * 6.28 / period + clouds) * np.sin(y * 6.28 / period + clouds))
    else:
        share = np.zeros((height, width), np.float32)
    picture = first + share[..., None] * (second - first)
    if rng.random() < 0.3:
        blotches = np.clip(noise(rng, height, width, grain_px * 0.6) - 0.8, 0, 0.4)[..., None] * 2.5
        picture = picture + blotches * (third - picture)
    grain = noise(rng, height, width, rng.uniform(2, 9), 2)[..., None]
    return np.clip(picture * (1 + rng.uniform(0, 0.12) * grain), 0, 1).astype(np.float32)


def background(rng: np.random.Generator, height: int, width: int, photos: Photos = ()) -> np.ndarray:
    """What stands behind the subject, [H, W, 3]; three of four are photos where photos are given."""
    if len(photos) and rng.random() < 0.75:
        picture = photo_crop(rng, height, width, photos)
    else:
        build = list(_BACKGROUND_SHARES)[rng.choice(len(_BACKGROUND_SHARES), p=list(_BACKGROUND_SHARES.values()))]
        picture = np.clip(build(rng, height, width), 0, 1).astype(np.float32)
    if rng.random() < 0.45:
        picture = blurred(picture, rng.uniform(0.5, 0.015 * min(height, width) + 1))
    if rng.random() < 0.4:
        light = 1 + rng.uniform(0.05, 0.3) * noise(rng, height, width, max(height, width) / 1.5, 1)
        picture = picture * np.clip(light, 0.3, 1.7)[..., None]
    return np.clip(picture, 0, 1).astype(np.float32)


def _gradient(rng, height, width):
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = (x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle)
    if rng.random() < 0.5:
        along = np.hypot(x / width - rng.uniform(0.2, 0.8), y / height - rng.uniform(0.2, 0.8)) - 0.5
    share = np.clip(along + 0.5, 0, 1)[..., None]
    return (1 - share) * color(rng) + share * color(rng)


def _clouds(rng, height, width):
    gain = rng.uniform(0.4, 0.75)
    first = noise(rng, height, width, rng.uniform(30, 300), 7, gain)
    second = noise(rng, height, width, rng.uniform(30, 300), 7, gain)
    base, one, two = color(rng), rng.normal(0, 0.12) + rng.normal(0, 0.04, 3), rng.normal(0, 0.05, 3)
    return base + first[..., None] * one + second[..., None] * two


def _bokeh(rng, height, width):
    import cv2

    picture = _gradient(rng, height, width) * rng.uniform(0.2, 0.8)
    large = rng.uniform(0.02, 0.09) * min(height, width)
    palette = np.array([color(rng) for _ in range(4)])
    picture = np.ascontiguousarray(picture, np.float32)
    for _ in range(rng.integers(20, 90)):
        disc = np.zeros((height, width), np.uint8)
        centre = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        cv2.circle(disc, centre, max(2, int(large * rng.uniform(0.6, 1.1))), 255, -1, cv2.LINE_AA)
        strength = rng.uniform(0.1, 0.7)
        y, x, reach = centre[1], centre[0], int(large * 1.2) + 3
        part = np.s_[max(0, y - reach) : y + reach, max(0, x - reach) : x + reach]
        cover = (strength / 255 * disc[part].astype(np.float32))[..., None]
        picture[part] += cover * (np.clip(palette[rng.integers(4)] * 1.4, 0, 1) - picture[part])
    return picture


def _bricks(rng, height, width):
    y, x = np.mgrid[:height, :width].astype(np.float32)
    wobble = noise(rng, height, width, 12, 2)
    tall, wide = rng.uniform(14, 50), rng.uniform(30, 120)
    joint = rng.uniform(1, 4)
    row = np.floor((y + 0.4 * wobble) / tall).astype(int)
    shifted = x + 0.4 * wobble + (row % 2) * wide / 2
    column = np.floor(shifted / wide).astype(int)
    edge = np.minimum.reduce([y % tall, tall - y % tall, shifted % wide, wide - shifted % wide])
    tones = rng.normal(1, 0.15, (row.max() + 2, column.max() + 2))
    stone = color(rng) * (tones[row, column] * (1 + 0.12 * noise(rng, height, width, 8, 3)))[..., None]
    mortar = np.clip((joint + 0.8 * wobble - edge) / 2 + 0.5, 0, 1)[..., None]
    return stone + mortar * (color(rng) * (1 + 0.08 * wobble[..., None]) - stone)


def _stripes(rng, height, width):
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(6), np.log(120)))
    bend = noise(rng, height, width, 200, 2) * rng.uniform(0, 1)
    phase = (x * np.cos(angle) + y * np.sin(angle)) / period + bend
    share = 0.5 + 0.5 * np.tanh(rng.uniform(0.5, 8) * np.sin(2 * np.pi * phase))
    return color(rng) + share[..., None] * (color(rng) - color(rng) * 0.3)


def _fabric(rng, height, width):
    y, x = np.mgrid[:height, :width].astype(np.float32)
    period = rng.uniform(3, 9)
    fold = noise(rng, height, width, rng.uniform(60, 200), 3)
    warp, weft = np.sin(2 * np.pi * (x + 3 * fold) / period), np.sin(2 * np.pi * (y + 3 * fold) / period)
    over = np.where(np.sin(np.pi * (x + 3 * fold) / period) * np.sin(np.pi * (y + 3 * fold) / period) > 0, warp, weft)
    base = surface(rng, height, width, grain_px=rng.uniform(60, 250))
    return base * (0.85 + 0.12 * over + 0.14 * fold)[..., None]


def _dead_leaves(rng, height, width):
    """Occluding discs and blocks whose sizes follow a power law: the statistics of natural pictures.

    Lee, Mumford, Huang 2001, "Occlusion models for natural images".
    """
    import cv2

    # A place has its own light and few colours; without them the discs look like confetti.
    key, unity = color(rng), rng.uniform(0.3, 0.8)
    textures = [surface(rng, height, width, grain_px=rng.uniform(20, 120)) for _ in range(4)]
    textures = [np.ascontiguousarray((one + unity * (key - one)) * 255, np.float32) for one in textures]
    picture = textures[0].copy()
    side = min(height, width)
    count, smallest = rng.integers(50, 220), rng.uniform(0.02, 0.08)
    radii = side * smallest / np.sqrt(rng.uniform((smallest / 0.5) ** 2, 0.8, count))
    for radius in np.sort(radii)[::-1]:
        corners = rng.integers(3, 9)
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners)) if corners < 7 else np.linspace(0, 6.28, 24)
        spread = np.stack([np.cos(angles), np.sin(angles)], -1) * (radius * rng.uniform(0.5, 1.3, 2))
        centre = rng.uniform((0, 0), (width, height))
        low = np.clip(np.floor(centre + spread.min(0)).astype(int), 0, (width, height))
        high = np.clip(np.ceil(centre + spread.max(0)).astype(int) + 1, 0, (width, height))
        if (high - low).min() < 1:
            continue
        part = np.s_[low[1] : high[1], low[0] : high[0]]
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        cv2.fillPoly(mask, [np.round((centre + spread - low) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        paint = textures[rng.integers(4)][part] * rng.uniform(0.6, 1.2) + rng.normal(0, 6, 3)
        paint *= np.linspace(rng.uniform(0.6, 1), rng.uniform(0.9, 1.2), paint.shape[0])[:, None, None]
        picture[part] += mask[..., None] / np.float32(255) * (paint - picture[part])
    return picture / np.float32(255)


def _foliage(rng, height, width):
    """Blades, leaves or straw in all directions."""
    canvas = Canvas(height, width, 1)
    count = 900
    roots = rng.uniform((-20, -20), (width + 20, height + 20), (count, 2))
    main, spread = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 3)
    angle = rng.normal(main, spread, count)
    length = rng.uniform(0.05, 0.2, count) * min(height, width)
    steps = np.linspace(0, 1, 5)
    turn = angle[:, None] + rng.normal(0, 0.7, count)[:, None] * steps
    points = roots[:, None] + length[:, None, None] * steps[None, :, None] * np.dstack([np.cos(turn), np.sin(turn)])
    base, other = color(rng), color(rng)
    tint = base + rng.uniform(0, 1, (count, 1)) * (other - base)
    tint = tint * rng.uniform(0.3, 1.2, (count, 1)) * np.linspace(0.35, 1, count)[:, None]
    width_px = rng.uniform(1, 7) * rng.uniform(0.5, 1.5, count)
    canvas.strands(points, tint * 0.7, tint, width_px)
    drawn = canvas.layer()
    return drawn.color + (1 - drawn.alpha[..., None]) * base * 0.25


def _landscape(rng, height, width):
    """A sky and ridges of hills, walls or furniture that come out of the haze."""
    y = np.mgrid[:height, :width][0].astype(np.float32) / height
    sky, haze, near = color(rng), color(rng), color(rng) * rng.uniform(0.2, 0.8)
    horizon = rng.uniform(0.15, 0.7)
    share = np.clip(y / horizon, 0, 1)[..., None]
    picture = sky + share * (haze - sky) + 0.04 * noise(rng, height, width, 0.4 * width, 5)[..., None]
    ridges = rng.integers(2, 7)
    square = rng.random() < 0.4
    for number in range(ridges):
        depth = (number + 1) / ridges
        line = noise(rng, 2, width, width * rng.uniform(0.1, 0.6) + 8, 7, 0.55)[0]
        if square:
            line = np.round(line * 2) / 2
        top = horizon + (1 - horizon) * (depth - 0.6 / ridges) - 0.06 * line
        cover = np.clip((y - top) * height + 0.5, 0, 1)[..., None]
        rough = 1 + rng.uniform(0.05, 0.35) * noise(rng, height, width, rng.uniform(4, 60), 5, 0.6)[..., None]
        tone = (haze + depth * (near + rng.normal(0, 0.06, 3) - haze)) * rough
        picture = picture + cover * (tone - picture)
    return picture


_Builder = Callable[[np.random.Generator, int, int], np.ndarray]
_BACKGROUND_SHARES: dict[_Builder, float] = {
    _gradient: 0.07,
    _clouds: 0.13,
    _bokeh: 0.1,
    _bricks: 0.08,
    _stripes: 0.05,
    _fabric: 0.11,
    _dead_leaves: 0.22,
    _foliage: 0.12,
    _landscape: 0.12,
}
