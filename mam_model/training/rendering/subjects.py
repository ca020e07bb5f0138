"""What stands in front: one function for each kind of subject, from fur to glass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .camera import disc_kernel, motion_kernel
from .layers import Canvas, Layer, blurred, coverage, painted, stacked
from .silhouettes import (
    Body,
    blob,
    ellipse,
    lit,
    person,
    relief,
    solid_body,
    superellipse,
    toy,
    tube,
)
from .strands import coat, gathered, grow, locks, sampled
from .textures import Photos, color, hsv, noise, surface


@dataclass(frozen=True)
class Stage:
    """The frame, and the circle in it that the subject fills: its middle and radius in pixels, at times beyond it."""

    height: int
    width: int
    x: float
    y: float
    radius: float
    photos: Photos = ()

    @property
    def hair_px(self) -> float:
        """How much thicker a hair is than in a picture of 512 pixels."""
        return max(0.4, min(self.height, self.width) / 512)


@dataclass(frozen=True)
class Subject:
    """layer: what is seen of it. bend: by how many pixels [H, W, 2] (x, y) the background behind it is displaced."""

    layer: Layer
    bend: np.ndarray | None = None


Build = Callable[[np.random.Generator, Stage], Subject]


def _skin(rng, stage, mask, gloss=None) -> np.ndarray:
    """A lit surface for a body [H, W]."""
    colors = surface(rng, stage.height, stage.width, stage.photos, rng.uniform(0.08, 0.5) * stage.radius + 4)
    round_px = rng.uniform(0.1, 0.5) * stage.radius + 3
    return lit(rng, colors, relief(mask, round_px), round_px, rng.uniform(0, 0.7) ** 2 if gloss is None else gloss)


def _solid_layer(rng, stage, body: Body, gloss=None, soft_px: float | None = None) -> Layer:
    mask = coverage(body, stage.height, stage.width)
    layer = painted(mask, _skin(rng, stage, mask, gloss))
    return layer.softened(rng.uniform(0, 0.9) if soft_px is None else soft_px)


def solid(rng: np.random.Generator, stage: Stage) -> Subject:
    return Subject(_solid_layer(rng, stage, solid_body(rng, stage.x, stage.y, stage.radius)))


def _tones(rng, base: np.ndarray, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Colours of roots and tips [S, 3] around those of the coat [S, 3]: shaded roots, lighter or darker tips."""
    own = base * np.exp(rng.normal(0, spread, (len(base), 1))) + rng.normal(0, 0.02, base.shape)
    return own * rng.uniform(0.5, 0.95), own * rng.uniform(0.95, 1.3) + rng.uniform(0, 0.05)


def _fur_coat(rng, stage, body: Body, length_px: float, dense: float = 1.0) -> Layer:
    """A body under fur: solid core, a dense short coat, long hairs and a few stray ones."""
    mask = coverage(body, stage.height, stage.width)
    round_px = 0.3 * stage.radius + 3
    colors = surface(rng, stage.height, stage.width, stage.photos, rng.uniform(0.1, 0.6) * stage.radius + 4)
    colors = lit(rng, colors, relief(mask, round_px), round_px, 0.0)
    area = float((mask > 0.5).sum())
    thin = stage.hair_px
    combed, spread = rng.uniform(0, 0.75), rng.uniform(0.06, 0.25)
    curl, gravity = rng.uniform(0.1, 0.9), rng.uniform(0, 0.5) * rng.integers(2)
    waves, wave = rng.uniform(0.5, 3), rng.choice([0.0, 0.0, rng.uniform(0.1, 1.2)])
    pull, lock_px = rng.uniform(0, 0.6), rng.uniform(0.3, 1) * length_px + 3
    base_width = thin * rng.uniform(0.5, 1.5)
    # Long fur stands in patches: here longer, there shorter.
    patch = np.exp(0.3 * noise(rng, stage.height, stage.width, stage.radius * rng.uniform(0.3, 1.2) + 8, 2))

    def hairs(count, longer, thicker, edge_share, stray=0.0):
        canvas = Canvas(stage.height, stage.width)
        held = coat(rng, mask, int(count), 0.6 * length_px + 2, combed, edge_share)
        count = len(held.root)
        if not count:
            return canvas.layer()
        length = length_px * longer * rng.lognormal(0, 0.35, count) * sampled(patch, held.root)
        angle = held.angle + rng.normal(0, 0.2 + stray, count)
        points = grow(rng, held.root, angle, length, 7, curl + stray, wave, waves, gravity)
        if stray < 0.3:
            lock, leader = locks(rng, held.root, lock_px)
            points = gathered(points, lock, leader, pull * rng.uniform(0.2, 1, count))
        root, tip = _tones(rng, sampled(colors, held.root), spread)
        canvas.strands(points, root, tip, base_width * thicker * rng.lognormal(0, 0.35, count))
        return canvas.layer()

    cover = dense * np.clip(area / (length_px * thin * 2.2 + 2), 60, 2400)
    thick_rim = rng.uniform(0.15, 1)
    core_soft = rng.uniform(0.05, 0.25) * length_px + 0.5
    core = painted(mask, colors * rng.uniform(0.5, 0.9)).softened(core_soft)
    # Hairs too fine to be resolved are a haze around the coat.
    haze = hairs(0.3 * cover, 0.9, 2.0, 0.9).softened(rng.uniform(0.8, 3) * thin).faded(rng.uniform(0.1, 0.6))
    under = hairs(0.9 * thick_rim * cover, 0.55, 2.4, 0.4).softened(rng.uniform(0.3, 1) * thin)
    main = hairs((0.5 + thick_rim) * cover, 1.0, 1.0, 0.55).faded(rng.uniform(0.6, 1))
    fine = hairs(0.7 * cover, 1.2, 0.5, 0.85, 0.2).faded(rng.uniform(0.25, 0.85))
    stray = hairs(rng.uniform(10, 150), rng.uniform(1.2, 2.2), 0.6, 1.0, 0.5).faded(rng.uniform(0.2, 0.8))
    return stacked(stray, fine, main, under, haze, core)


def fur(rng: np.random.Generator, stage: Stage) -> Subject:
    """An animal-like or shapeless furry thing; hairs of 3 to 60 pixels."""
    body = toy if rng.random() < 0.5 else solid_body
    length = min(stage.radius * 0.5, stage.hair_px * np.exp(rng.uniform(np.log(6), np.log(60))))
    return Subject(_fur_coat(rng, stage, body(rng, stage.x, stage.y, 0.85 * stage.radius), length))


def plush(rng: np.random.Generator, stage: Stage) -> Subject:
    """A toy with parts of cloth, of short and of long fur, and eyes."""
    parts = toy(rng, stage.x, stage.y, 0.9 * stage.radius)
    rng.shuffle(parts)
    cut = rng.integers(1, len(parts))
    length = min(0.3 * stage.radius, stage.hair_px * rng.uniform(3, 14))
    layers = [_fur_coat(rng, stage, parts[:cut], length), _solid_layer(rng, stage, parts[cut:], 0.05, 0.6)]
    if rng.random() < 0.5:
        long = min(0.5 * stage.radius, stage.hair_px * rng.uniform(15, 50))
        layers.insert(0, _fur_coat(rng, stage, parts[: rng.integers(1, 3)], long, dense=0.6))
    if rng.random() < 0.5:
        layers.reverse()
    eye, dark = rng.uniform(0.02, 0.06) * stage.radius, color(rng) * 0.2
    spots = [ellipse(stage.x + side * 0.15 * stage.radius, stage.y - 0.6 * stage.radius, eye, eye) for side in (-1, 1)]
    pile = stacked(*layers)
    eyes = painted(coverage(spots, stage.height, stage.width) * pile.alpha, dark)
    return Subject(eyes.over(pile))


def hair(rng: np.random.Generator, stage: Stage) -> Subject:
    """A head and shoulders with hair: straight, wavy or curly, tied by locks, with flyaway hairs."""
    body, (x, y, head) = person(rng, stage.x, stage.y, stage.radius)
    skin = hsv(rng.normal(0.06, 0.02), rng.uniform(0.25, 0.6), rng.uniform(0.3, 0.95))
    shade = np.broadcast_to(skin, (stage.height, stage.width, 3))
    trunk = _solid_layer(rng, stage, body[:1])
    mask = coverage(body[1:], stage.height, stage.width)
    face = painted(mask, lit(rng, shade, relief(mask, head * 0.7), head * 0.7, 0.1, 0.01)).softened(0.6)
    tones = (hsv(rng.uniform(0.04, 0.12), rng.uniform(0.2, 0.7), rng.beta(1.2, 1.8)), color(rng))
    base = tones[0] if rng.random() < 0.75 else tones[1]
    thin = stage.hair_px * rng.uniform(0.6, 1.6)
    wave, waves = rng.choice([0.05, 0.35, 1.0, 1.6]), rng.uniform(0.7, 4)
    long = head * np.exp(rng.uniform(np.log(0.3), np.log(3.2)))
    gravity, spread = rng.uniform(0.1, 1), rng.uniform(0.1, 0.35)
    wind = rng.normal(0, 0.7)
    lock_px, pull = rng.uniform(0.08, 0.35) * head, rng.uniform(0.1, 0.75)
    pinned = rng.uniform(-np.pi, np.pi)

    def hairs(count, around, longer, thicker, stray):
        canvas, count = Canvas(stage.height, stage.width), int(count)
        turn = -np.pi / 2 + rng.uniform(-around, around, count)
        out = np.sqrt(rng.uniform(0.3, 1, count))
        root = np.stack([x + 0.8 * head * out * np.cos(turn), y + head * out * np.sin(turn)], -1)
        lock, leader = locks(rng, root, lock_px)
        phase = pinned + rng.uniform(-1, 1, len(leader))[lock] * 2 + rng.normal(0, 0.3 + stray, count)
        bend = wind + rng.normal(0, 0.25 + stray, len(leader))[lock] + rng.normal(0, 0.1 + stray, count)
        length = long * longer * rng.lognormal(-0.05, 0.35, count)
        angle = turn + rng.normal(0, 0.2 + stray, count)
        points = grow(rng, root, angle, length, 16, bend, wave, waves, gravity, phase)
        points = gathered(points, lock, leader, pull * rng.uniform(0.3, 1, count) * (stray < 0.3))
        streak = base * np.exp(rng.normal(0, spread, (len(leader), 1)))[lock]
        root_tone, tip_tone = _tones(rng, streak, 0.15)
        canvas.strands(points, root_tone, tip_tone, thin * thicker * rng.lognormal(0, 0.3, count), 0.5)
        return canvas.layer()

    back = hairs(rng.uniform(400, 1100), 2.3, 0.9, 1.9, 0.08).softened(rng.uniform(0.3, 1) * thin)
    front = hairs(rng.uniform(500, 1100), 1.5, rng.uniform(0.5, 1), 1.0, 0.1).faded(rng.uniform(0.6, 1))
    fine = hairs(700, 2.1, 1.15, 0.5, 0.2).faded(rng.uniform(0.25, 0.8))
    haze = hairs(200, 2.1, 1.05, 1.6, 0.2).softened(rng.uniform(0.8, 3) * thin).faded(rng.uniform(0.1, 0.5))
    stray = hairs(rng.uniform(20, 250), 2.2, rng.uniform(0.7, 1.4), 0.5, 0.45).faded(rng.uniform(0.2, 0.8))
    shown = [stray, fine, front, face, back, haze]
    if rng.random() < 0.3:
        shown = [stray, fine, front, back, face, haze]
    shown.insert(-2 if rng.random() < 0.5 else 3, trunk)
    return Subject(stacked(*shown))


def tuft(rng: np.random.Generator, stage: Stage) -> Subject:
    """Strands from one place: a brush, a dandelion, a pompom, a tail."""
    thin, spread = stage.hair_px, rng.choice([0.3, 0.8, 3.2])
    base, main = color(rng), rng.uniform(0, 2 * np.pi) if rng.random() < 0.3 else rng.normal(-np.pi / 2, 0.4)
    core = rng.uniform(0.03, 0.3) * stage.radius
    layers = []
    for thicker, opacity in ((1.2, 1.0), (0.6, rng.uniform(0.6, 1)), (0.5, rng.uniform(0.2, 0.8))):
        canvas, count = Canvas(stage.height, stage.width), int(rng.uniform(150, 900))
        angle = main + rng.uniform(-spread, spread, count)
        start = np.sqrt(rng.uniform(0, 1, count)) * core
        root = np.stack([stage.x + start * np.cos(angle), stage.y + start * np.sin(angle)], -1)
        length = stage.radius * rng.uniform(0.6, 1.05) * rng.lognormal(-0.1, 0.15, count)
        points = grow(rng, root, angle, length, 10, rng.uniform(0.1, 0.8), rng.uniform(0, 0.5), 1.5, 0.25)
        lock, leader = locks(rng, points[:, 5], rng.uniform(0.05, 0.3) * stage.radius)
        points = gathered(points, lock, leader, rng.uniform(0, 0.8))
        root_tone, tip_tone = _tones(rng, np.broadcast_to(base, (count, 3)), 0.2)
        canvas.strands(points, root_tone, tip_tone, thin * thicker * rng.lognormal(0, 0.25, count))
        layers.insert(0, canvas.layer().faded(opacity))
    centre = _solid_layer(rng, stage, [ellipse(stage.x, stage.y, core, core * rng.uniform(0.7, 1.3))])
    handle = np.array([-np.cos(main), -np.sin(main)]) * stage.radius
    stick = tube((stage.x, stage.y) + handle * np.linspace(0, 1.2, 8)[:, None], np.full(8, core * 0.7 + 1))
    return Subject(stacked(*layers, centre, _solid_layer(rng, stage, [stick])))


def _feather_layer(rng, stage, root: np.ndarray, angle: float, length_px: float, base: np.ndarray) -> Layer:
    thin = stage.hair_px
    shaft = grow(rng, root[None], np.array([angle]), np.array([length_px]), 40, rng.uniform(0.1, 0.7))[0]
    along = np.gradient(shaft, axis=0)
    heading = np.arctan2(along[:, 1], along[:, 0])
    broad = rng.uniform(0.1, 0.28) * length_px
    canvas = Canvas(stage.height, stage.width)
    count = int(np.clip(length_px * rng.uniform(1.5, 3), 80, 900))
    at = np.sort(rng.uniform(0.08, 1, count))
    place = at * 39
    low = np.floor(place).astype(int).clip(0, 38)
    start = shaft[low] + (place - low)[:, None] * (shaft[low + 1] - shaft[low])
    side = rng.choice([-1, 1], count)
    # A vane splits into a few groups of barbs that hold together.
    groups = np.floor(at * rng.integers(4, 22) + 0.13 * side).astype(int)
    tilt = rng.normal(0, rng.uniform(0.02, 0.22), groups.max() - groups.min() + 1)[groups - groups.min()]
    lean = rng.uniform(0.5, 1.1)
    profile = np.sqrt(np.clip(np.sin(np.pi * (0.1 + 0.9 * at) ** rng.uniform(0.7, 1.3)), 0.02, 1))
    reach = broad * profile * rng.lognormal(0, 0.05, count)
    downy = at < rng.uniform(0.1, 0.35)
    turn = heading[low] + side * (lean + tilt + downy * rng.normal(0, 0.5, count))
    bend = -side * rng.uniform(0.1, 0.7) + downy * rng.normal(0, 1.2, count)
    points = grow(rng, start, turn, reach, 7, bend, 0.25 * downy, 1.0)
    bars = 0.5 + 0.5 * np.tanh(3 * np.sin(at * rng.uniform(8, 50) + rng.uniform(0, 6)))[:, None]
    tone = base + rng.choice([0, 1]) * bars * (color(rng) - base) + rng.normal(0, 0.03, (count, 1))
    root_tone, tip_tone = _tones(rng, np.clip(tone, 0, 1), 0.08)
    widths = np.where(downy, 0.5, rng.uniform(0.8, 2.2)) * thin * np.ones(count)
    canvas.strands(points, root_tone, tip_tone, widths, 0.6)
    vane = canvas.layer().faded(rng.uniform(0.75, 1) if rng.random() < 0.5 else 1.0)
    quill = Canvas(stage.height, stage.width)
    width = np.linspace(rng.uniform(1.2, 4), 0.6, 40) * thin
    quill.polygons([tube(shaft, width)], np.clip(base * 1.2 + 0.1, 0, 1)[None])
    return quill.layer().over(vane)


def feather(rng: np.random.Generator, stage: Stage) -> Subject:
    """One to six feathers with split vanes and down at the quill."""
    count = rng.choice([1, 1, 2, 3, 6])
    base = color(rng)
    layers = []
    main = rng.uniform(0, 2 * np.pi)
    for number in range(count):
        angle = main + (number - (count - 1) / 2) * rng.uniform(0.15, 0.6) + rng.normal(0, 0.1)
        length = stage.radius * rng.uniform(1.2, 1.9)
        start = np.array([stage.x, stage.y]) - 0.5 * length * np.array([np.cos(main), np.sin(main)])
        tone = np.clip(base + rng.normal(0, 0.06, 3), 0, 1)
        layers.append(_feather_layer(rng, stage, start, angle, length, tone))
    return Subject(stacked(*layers))


def _leaf(rng, root, angle, length, slim, droop) -> tuple[np.ndarray, np.ndarray]:
    """A leaf's two halves [2, N, 2] and its midrib [M, 2]."""
    rib = grow(rng, root[None], np.array([angle]), np.array([length]), 12, np.array([droop]))[0]
    along = np.gradient(rib, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-6
    side = np.stack([-along[:, 1], along[:, 0]], -1)
    t = np.linspace(0, 1, 12)
    width = (slim * length * np.sin(np.pi * t**0.8) * (1 + 0.04 * rng.normal(size=12)))[:, None]
    fold = rng.uniform(0.3, 1)
    left, right = rib + side * width, rib - side * width * fold
    return np.stack([np.concatenate([left, rib[::-1]]), np.concatenate([right, rib[::-1]])]), rib


def _green(rng) -> np.ndarray:
    if rng.random() < 0.75:
        return hsv(rng.normal(0.27, 0.06), rng.uniform(0.25, 0.85), rng.uniform(0.2, 0.8))
    return color(rng)


def leaves(rng: np.random.Generator, stage: Stage) -> Subject:
    """A plant: stems with leaves, from needles to broad ones, sky between them; a pot at times."""
    canvas = Canvas(stage.height, stage.width)
    thin, base = stage.hair_px, _green(rng)
    stems = rng.integers(1, 9)
    foot = np.array([stage.x, stage.y + 0.95 * stage.radius])
    slim, size = rng.choice([0.04, 0.1, 0.18, 0.3]), rng.uniform(0.08, 0.4) * stage.radius
    each = int(rng.uniform(8, 28))
    lean = rng.uniform(0.2, 0.9)
    for _ in range(stems):
        start = foot + (rng.normal(0, 0.08 * stage.radius), 0)
        angle = -np.pi / 2 + rng.uniform(-lean, lean)
        tall = stage.radius * rng.uniform(0.9, 1.9)
        stem = grow(rng, start[None], np.array([angle]), np.array([tall]), 30, 0.5, 0.15, 1.5)[0]
        thick = np.linspace(rng.uniform(1.5, 7), 0.8, 30) * thin
        bark = base * rng.uniform(0.4, 0.9) if rng.random() < 0.6 else color(rng) * 0.6
        canvas.polygons([tube(stem, thick)], bark[None])
        along = np.gradient(stem, axis=0)
        heading = np.arctan2(along[:, 1], along[:, 0])
        for number, at in enumerate(np.sort(rng.uniform(0.15, 1, each))):
            place = int(at * 29)
            side = -1 if number % 2 else 1
            turn = heading[place] + side * rng.uniform(0.3, 1.3)
            length = size * rng.lognormal(0, 0.25) * (1.15 - 0.5 * at)
            halves, rib = _leaf(
                rng, stem[place], turn, length, slim * rng.uniform(0.7, 1.3), side * rng.normal(0.3, 0.5)
            )
            light = np.exp(rng.normal(0, 0.25))
            tone = np.clip(base * light + rng.normal(0, 0.025, 3), 0, 1)
            canvas.polygons(list(halves), np.stack([tone, tone * rng.uniform(0.65, 1.1)]))
            if slim > 0.05:
                rib_tone = np.clip(tone * rng.uniform(0.7, 1.4) + 0.03, 0, 1)[None]
                canvas.strands(rib[None], rib_tone, rib_tone, np.array([0.7 * thin]))
    layer = canvas.layer()
    light = 1 + rng.uniform(0.05, 0.2) * noise(rng, stage.height, stage.width, 0.5 * stage.radius + 8, 5)
    layer = painted(layer.alpha, layer.straight() * np.clip(light, 0.5, 1.5)[..., None])
    # Thin leaves let a little light through.
    layer = layer.faded(rng.uniform(0.85, 1) if rng.random() < 0.15 else 1.0).softened(rng.uniform(0, 0.7))
    if rng.random() < 0.3:
        pot = superellipse(foot[0], foot[1] + 0.25 * stage.radius, 0.35 * stage.radius, 0.3 * stage.radius, 0, 5)
        layer = stacked(layer, _solid_layer(rng, stage, [pot]))
    return Subject(layer)


def twigs(rng: np.random.Generator, stage: Stage) -> Subject:
    """Bare branches that fork down to hair-thin twigs, with buds or small leaves at times."""
    canvas = Canvas(stage.height, stage.width)
    bark, thin = color(rng) * rng.uniform(0.3, 1), stage.hair_px
    fork, wide = rng.uniform(0.25, 0.8), rng.uniform(2, 11) * thin
    budding, bud = rng.random() < 0.5, color(rng)
    tips = []

    def branch(root, angle, length, width, depth):
        line = grow(rng, root[None], np.array([angle]), np.array([length]), 12, 0.4, 0.12, 2.0)[0]
        canvas.polygons([tube(line, np.linspace(width, 0.5 * width, 12))], bark[None] * np.exp(rng.normal(0, 0.15)))
        lit_side = line - (0.2 * width, 0.1 * width)
        if width > 3:
            pale = np.clip(bark * 1.6 + 0.05, 0, 1)[None]
            canvas.strands(lit_side[None], pale, pale, np.array([0.3 * width]))
        tips.append(line[-1])
        if depth and width > 0.3:
            for _ in range(rng.integers(2, 5)):
                at = rng.integers(4, 12)
                branch(line[at], angle + rng.normal(0, fork), length * rng.uniform(0.45, 0.85), 0.5 * width, depth - 1)

    start = np.array([stage.x, stage.y + stage.radius])
    for _ in range(rng.integers(1, 4)):
        branch(start, -np.pi / 2 + rng.normal(0, 0.35), stage.radius * rng.uniform(0.5, 0.9), wide, 4)
    if budding:
        ends = np.array(tips)
        canvas.discs(ends, rng.uniform(0.8, 5) * thin * rng.lognormal(0, 0.3, len(ends)), np.tile(bud, (len(ends), 1)))
    return Subject(canvas.layer().softened(rng.uniform(0, 0.6)))


def grass(rng: np.random.Generator, stage: Stage) -> Subject:
    """Blades and ears from a clump or from the whole lower edge."""
    thin, base = stage.hair_px, _green(rng)
    canvas = Canvas(stage.height, stage.width)
    count = int(rng.uniform(80, 500))
    broad = stage.radius * rng.choice([0.15, 0.6, 1.5])
    root = np.stack(
        [stage.x + rng.normal(0, broad, count), stage.y + stage.radius * (0.9 + 0.1 * rng.normal(size=count))], -1
    )
    length = stage.radius * rng.uniform(0.8, 1.8) * rng.lognormal(-0.2, 0.35, count)
    angle = -np.pi / 2 + rng.normal(0, rng.uniform(0.1, 0.5), count)
    points = grow(rng, root, angle, length, 12, rng.uniform(0.3, 1.3))
    width = thin * np.exp(rng.uniform(np.log(0.5), np.log(6))) * rng.lognormal(0, 0.4, count)
    profile = np.clip(1.15 - np.linspace(0, 1, 12) ** 2, 0.05, 1)
    tone = base * np.exp(rng.normal(0, 0.25, (count, 1))) + rng.normal(0, 0.03, (count, 3))
    for line, wide, paint in zip(points, width, np.clip(tone, 0, 1)):
        outline = tube(line, wide * profile)
        canvas.polygons([outline], paint[None])
        if wide > 2.5:
            half = np.concatenate([outline[:12], line[::-1]])
            canvas.polygons([half], paint[None] * 0.75)
    if rng.random() < 0.4:
        ears = rng.choice(count, min(count, 25), replace=False)
        seed = np.clip(color(rng), 0.1, 0.9)
        for line in points[ears]:
            many = 30
            at = rng.integers(8, 12, many)
            turn = np.arctan2(*(line[-1] - line[-3])[::-1]) + rng.choice([-1, 1], many) * rng.uniform(0.2, 0.6, many)
            awn = grow(rng, line[at], turn, rng.uniform(0.03, 0.12) * stage.radius * np.ones(many), 5, 0.2)
            pale = np.tile(seed, (many, 1)) * rng.uniform(0.7, 1.2, (many, 1))
            canvas.strands(awn, pale, pale, rng.uniform(0.5, 2) * thin * np.ones(many))
    layer = canvas.layer()
    shade = np.clip(1 + 0.15 * noise(rng, stage.height, stage.width, 0.3 * stage.radius + 8, 3), 0.5, 1.5)
    return Subject(painted(layer.alpha, layer.straight() * shade[..., None]).softened(rng.uniform(0, 0.7)))


def net(rng: np.random.Generator, stage: Stage) -> Subject:
    """A hanging net: threads in two directions with knots, stretched and sagging, at times around a solid thing."""
    canvas = Canvas(stage.height, stage.width)
    thin, base = stage.hair_px, color(rng)
    rows = rng.integers(7, 34)
    columns = rng.integers(7, 34)
    v, u = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    if rng.random() < 0.5:
        turn = np.pi / 4
        u, v = u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)
    turn = rng.normal(0, 0.4)
    wobble = rng.normal(0, rng.uniform(0.02, 0.12), (2, 6))
    x = (
        u * (1 + 0.2 * wobble[0, 0] * v)
        + wobble[0, 1] * 2 * np.sin(2 * v + 6 * wobble[0, 2])
        + wobble[0, 3] * np.sin(5 * u)
    )
    y = v + wobble[1, 1] * 3 * np.cos(1.5 * u) + wobble[1, 3] * np.sin(4 * v + 5 * u)
    jitter = rng.uniform(0, 0.25) * 2 / max(rows, columns)
    x, y = x + rng.normal(0, jitter, x.shape), y + rng.normal(0, jitter, x.shape)
    grid = np.dstack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)]) * stage.radius
    grid += (stage.x, stage.y)
    width = thin * np.exp(rng.uniform(np.log(0.5), np.log(4)))
    lines = [*grid, *grid.transpose(1, 0, 2)]
    shade = np.exp(rng.normal(0, 0.15, (len(lines), 1)))
    for line, light in zip(lines, shade):
        tone = np.clip(base * light, 0, 1)[None]
        canvas.strands(line[None], tone, tone, np.array([width]), 1.0)
    if width > 0.8:
        knots = grid.reshape(-1, 2)
        canvas.discs(knots, np.full(len(knots), width * rng.uniform(0.5, 1.3)), np.tile(base * 0.9, (len(knots), 1)))
    layer = canvas.layer().faded(rng.uniform(0.6, 1))
    light = np.clip(1 + 0.2 * noise(rng, stage.height, stage.width, 0.4 * stage.radius + 8, 3), 0.4, 1.6)
    layer = painted(layer.alpha, layer.straight() * light[..., None])
    if rng.random() < 0.4:
        inner = solid_body(rng, stage.x, stage.y, 0.6 * stage.radius)
        layer = layer.over(_solid_layer(rng, stage, inner))
    return Subject(layer)


def lace(rng: np.random.Generator, stage: Stage) -> Subject:
    """Cloth with a pattern of holes: lace, tulle, mesh, perforated plastic; folds make it denser."""
    import cv2

    rows, columns = 2 * stage.height, 2 * stage.width
    body = [blob(rng, stage.x, stage.y, stage.radius * 0.85, 0.2)]
    if rng.random() < 0.5:
        wide, tall = stage.radius * rng.uniform(0.5, 1, 2)
        body = [superellipse(stage.x, stage.y, wide, tall, rng.normal(0, 0.5), rng.uniform(2, 8))]
    mask = coverage(body, stage.height, stage.width)
    y, x = np.mgrid[:rows, :columns].astype(np.float32) / 2
    fold = noise(rng, rows, columns, stage.radius * rng.uniform(0.5, 2) + 16, 2)
    period = stage.hair_px * np.exp(rng.uniform(np.log(5), np.log(40)))
    turn = rng.uniform(0, np.pi)
    swell = rng.uniform(0, 0.6) * period * fold
    k = 2 * np.pi / period
    u, v = k * (x * np.cos(turn) + y * np.sin(turn) + swell), k * (y * np.cos(turn) - x * np.sin(turn) + swell)
    motif = rng.integers(4)
    if motif == 0:
        pattern = np.maximum(np.cos(u), np.cos(v)) - rng.uniform(0.4, 0.97)
    elif motif == 1:
        w = np.float32(np.sqrt(3) / 2)
        pattern = rng.uniform(0.2, 1.2) - (np.cos(u) + np.cos(0.5 * u + w * v) + np.cos(0.5 * u - w * v))
    elif motif == 2:
        flower = np.cos(u) * np.cos(v) + 0.5 * np.cos(3 * u + np.sin(v)) * np.cos(3 * v) + 0.3 * np.cos(6 * u)
        pattern = rng.uniform(0.05, 0.35) - np.abs(flower - rng.uniform(-0.2, 0.3))
    else:
        pattern = noise(rng, rows, columns, period, 2) * 0.5 + 0.4 * np.cos(u) * np.cos(v) + rng.uniform(-0.3, 0.3)
    slope = np.abs(cv2.Sobel(pattern, -1, 1, 0, scale=0.125)) + np.abs(cv2.Sobel(pattern, -1, 0, 1, scale=0.125))
    threads = np.clip(pattern / (slope + 1e-3) + 0.5, 0, 1)
    threads = cv2.resize(threads, (stage.width, stage.height), interpolation=cv2.INTER_AREA)
    small_fold = cv2.resize(fold, (stage.width, stage.height), interpolation=cv2.INTER_AREA)
    veil = rng.choice([0.0, 0.0, rng.uniform(0.05, 0.5)])
    veil = np.clip(veil * (1 + 0.4 * small_fold), 0, 1)
    cloth = veil + (1 - veil) * threads * rng.uniform(0.7, 1)
    colors = surface(rng, stage.height, stage.width, stage.photos) if rng.random() < 0.3 else color(rng)
    shade = np.clip(1 + rng.uniform(0.05, 0.25) * small_fold, 0.3, 1.7)[..., None]
    layer = painted(mask * cloth, np.clip(colors * shade, 0, 1)).softened(rng.uniform(0, 0.6))
    if rng.random() < 0.5:
        hem = Canvas(stage.height, stage.width)
        ring = np.concatenate([body[0], body[0][:1]])
        tone = np.clip(color(rng), 0, 1)[None]
        hem.strands(ring[None], tone, tone, np.array([rng.uniform(1, 6) * stage.hair_px]), 1.0)
        layer = hem.layer().over(layer)
    return Subject(layer)


def smoke(rng: np.random.Generator, stage: Stage) -> Subject:
    """Swirls of smoke or steam: soft alpha everywhere."""
    import cv2

    rows, columns = stage.height, stage.width
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    big = stage.radius * rng.uniform(0.5, 1.2) + 16
    sway = rng.uniform(0.1, 0.5) * stage.radius
    warp_x, warp_y = (sway * noise(rng, rows, columns, big, 3) for _ in range(2))
    thick = noise(rng, rows, columns, big * 0.7, 6, rng.uniform(0.4, 0.6))
    thick = cv2.remap(thick, x + warp_x, y + warp_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    if rng.random() < 0.5:
        thick = 1.2 - np.abs(thick) * 1.6
    away = np.hypot(x + 0.5 * warp_x - stage.x, y + 0.5 * warp_y - stage.y) / stage.radius
    density = np.clip(thick + 0.7, 0, None) * np.clip(1.15 - away, 0, 1) * rng.uniform(0.8, 4)
    alpha = 1 - np.exp(-density)
    tone = hsv(rng.uniform(0, 1), rng.uniform(0, 0.15), rng.uniform(0.3, 1)) if rng.random() < 0.8 else color(rng)
    light = np.clip(1 + 0.15 * thick, 0.5, 1.4)[..., None]
    return Subject(painted(alpha, tone * light))


def glass(rng: np.random.Generator, stage: Stage) -> Subject:
    """A clear thing: rim and highlights are opaque, the middle is tinted, what lies behind is bent."""
    import cv2

    body = solid_body(rng, stage.x, stage.y, stage.radius * 0.8)
    mask = coverage(body, stage.height, stage.width)
    round_px = rng.uniform(0.15, 0.5) * stage.radius + 4
    height_map = relief(mask, round_px)
    facing = np.clip(height_map, 0, 1)
    rim = (1 - facing) ** rng.uniform(1.5, 5)
    clear = rng.uniform(0.05, 0.5)
    alpha = clear + (rng.uniform(0.5, 1) - clear) * rim
    tint = np.clip(color(rng) * rng.uniform(0.6, 1.6), 0, 1)
    room = blurred(surface(rng, stage.height, stage.width, stage.photos), 0.05 * stage.radius + 2)
    colors = lit(rng, tint * 0.6 + 0.4 * room, height_map, round_px, 0.0)
    shine = lit(rng, np.zeros_like(colors), height_map, round_px, 1.0, 0.008).max(axis=2)
    glints = np.clip(noise(rng, stage.height, stage.width, 0.3 * stage.radius + 6, 3) - 1.3, 0, 1) * 2 * (1 - facing)
    shine = np.clip(shine + glints, 0, 1)
    alpha = np.clip(alpha + (1 - alpha) * shine, 0, 1)
    colors = colors + shine[..., None] * (1 - colors)
    strength = rng.uniform(0, 0.25) * round_px
    slope = blurred(height_map, 2.0)
    bend = np.dstack([cv2.Sobel(slope, -1, 1, 0), cv2.Sobel(slope, -1, 0, 1)]) * strength * mask[..., None]
    return Subject(painted(mask * alpha, colors).softened(0.5), bend.astype(np.float32))


def plastic(rng: np.random.Generator, stage: Stage) -> Subject:
    """A crumpled translucent bag or foil: creases, white glints, low alpha between them."""
    body = [blob(rng, stage.x, stage.y, stage.radius * 0.85, 0.3)]
    mask = coverage(body, stage.height, stage.width)
    crumple = noise(rng, stage.height, stage.width, stage.radius * rng.uniform(0.3, 0.8) + 8, 5, 0.6)
    crease = np.exp(-np.abs(crumple) * rng.uniform(4, 14))
    other = np.abs(noise(rng, stage.height, stage.width, stage.radius * 0.4 + 8, 4))
    round_px = 0.12 * stage.radius + 2
    rim = (1 - relief(mask, round_px)) ** 2
    film = rng.uniform(0.08, 0.6)
    alpha = np.clip(film + 0.12 * crumple + rng.uniform(0.1, 0.6) * crease + rng.uniform(0.1, 0.5) * rim, 0.03, 1)
    glint = np.clip(crease * other - 0.55, 0, 1) * 2.2
    tone = color(rng) if rng.random() < 0.5 else hsv(0.6, rng.uniform(0, 0.1), rng.uniform(0.6, 1))
    colors = tone * np.clip(0.85 + 0.2 * crumple, 0.2, 1.3)[..., None]
    alpha = np.clip(alpha + glint, 0, 1)
    colors = colors + np.clip(glint, 0, 1)[..., None] * (1 - colors)
    layer = painted(mask * alpha, colors).softened(rng.uniform(0.2, 0.8))
    if rng.random() < 0.4:
        layer = layer.over(_solid_layer(rng, stage, solid_body(rng, stage.x, stage.y, 0.45 * stage.radius)))
    return Subject(layer)


def _any_sharp(rng, stage) -> Subject:
    return rng.choice([solid, solid, fur, hair, leaves, twigs, feather, plush])(rng, stage)


def motion_blur(rng: np.random.Generator, stage: Stage) -> Subject:
    """Another subject, moving while the shutter is open."""
    kernel = motion_kernel(rng, stage.hair_px * np.exp(rng.uniform(np.log(4), np.log(45))))
    return Subject(_any_sharp(rng, stage).layer.filtered(kernel))


def defocus(rng: np.random.Generator, stage: Stage) -> Subject:
    """Another subject, out of focus as a whole or towards one side."""
    layer = _any_sharp(rng, stage).layer
    blurred = layer.filtered(disc_kernel(stage.hair_px * np.exp(rng.uniform(np.log(1.5), np.log(14)))))
    if rng.random() < 0.5:
        return Subject(blurred)
    y, x = np.mgrid[: stage.height, : stage.width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = ((x - stage.x) * np.cos(angle) + (y - stage.y) * np.sin(angle)) / stage.radius
    share = np.clip(0.5 + along * 0.8, 0, 1)
    mixed = Layer(
        layer.color + share[..., None] * (blurred.color - layer.color),
        layer.alpha + share * (blurred.alpha - layer.alpha),
    )
    return Subject(mixed)


BUILDERS: dict[str, tuple[Build, float]] = {
    "fur": (fur, 0.2),
    "plush toy": (plush, 0.11),
    "hair": (hair, 0.13),
    "tuft": (tuft, 0.05),
    "feather": (feather, 0.06),
    "leaves": (leaves, 0.1),
    "grass": (grass, 0.04),
    "twigs": (twigs, 0.05),
    "net": (net, 0.05),
    "lace": (lace, 0.03),
    "smoke": (smoke, 0.01),
    "glass": (glass, 0.02),
    "plastic": (plastic, 0.03),
    "motion blur": (motion_blur, 0.02),
    "defocus": (defocus, 0.04),
    "solid": (solid, 0.06),
}
"""Each kind's builder, and its share among pictures of any kind."""
