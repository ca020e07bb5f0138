"""Training pictures drawn by the computer, with exactly known alpha.

A subject is drawn over a background so that, before the camera's effects,
picture = alpha * foreground + (1 - alpha) * background holds for the sRGB values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .rendering.camera import exposed
from .rendering.layers import Layer, blurred
from .rendering.subjects import BUILDERS, Stage, Subject
from .rendering.textures import background as _background

KINDS: tuple[str, ...] = tuple(BUILDERS)
"""What can be rendered."""

SMALLEST_PX = 16


@dataclass(frozen=True)
class Rendered:
    """A picture with its truth. All are float32, 0..1; colours are sRGB.

    Attributes:
        picture: [H, W, 3], what the camera hands over.
        alpha: [H, W].
        foreground: [H, W, 3], straight colours; where alpha is 0 the nearest ones go on.
        background: [H, W, 3], what is seen behind the subject; behind glass that is its bent image.
        kind: one of KINDS.
    """

    picture: np.ndarray
    alpha: np.ndarray
    foreground: np.ndarray
    background: np.ndarray
    kind: str


def render(
    seed: int,
    height: int = 512,
    width: int = 512,
    *,
    kind: str | None = None,
    backgrounds: Sequence[np.ndarray] = (),
    foreground_textures: Sequence[np.ndarray] = (),
    camera: bool = True,
) -> Rendered:
    """Draws one picture; the same seed and arguments give the same one.

    Args:
        seed: 0 or more.
        height, width: in pixels, 16 or more.
        kind: one of KINDS; None draws one, each as often as it helps a network that refines mattes of photos.
        backgrounds: photos [H, W, 3], float 0..1, any sizes, of which three of four backgrounds are cut. Others, and
            all where none is given, are drawn.
        foreground_textures: photos of the same form, of which half the subjects take their colours.
        camera: False leaves out exposure, noise, sharpening and JPEG.

    Raises:
        ValueError: for a size below 16 pixels, an unknown kind, or a photo of another form, where it is drawn with.
    """
    if height < SMALLEST_PX or width < SMALLEST_PX:
        raise ValueError(f"A picture of {width} x {height} pixels is too small. Render {SMALLEST_PX} x 16 or more.")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"'{kind}' cannot be rendered. Choose one of: {', '.join(KINDS)}.")
    rng = np.random.default_rng(seed)
    if kind is None:
        shares = np.array([share for _, share in BUILDERS.values()])
        kind = KINDS[rng.choice(len(KINDS), p=shares / shares.sum())]
    behind = _background(rng, height, width, backgrounds)
    subject = _subject(rng, height, width, kind, foreground_textures)
    # No lens is perfectly sharp; its spread belongs to the true alpha as well.
    layer = subject.layer.softened(rng.lognormal(-0.75, 0.45))
    alpha = np.clip(layer.alpha, 0, 1).astype(np.float32)
    foreground = _in_the_scene(rng, layer, behind)
    if subject.bend is not None:
        behind = _bent(behind, subject.bend)
    composite = behind + alpha[..., None] * (foreground - behind)
    picture = exposed(rng, composite) if camera else composite
    return Rendered(picture, alpha, foreground, behind, kind)


def _subject(rng: np.random.Generator, height: int, width: int, kind: str, photos: Sequence[np.ndarray]) -> Subject:
    """One subject of the kind, at times a second, smaller one behind it."""
    build, _ = BUILDERS[kind]
    subject = build(rng, _stage(rng, height, width, photos, 0.2, 1.2))
    if rng.random() < 0.15:
        second = build(rng, _stage(rng, height, width, photos, 0.2, 0.6))
        bends = [one.bend for one in (subject, second) if one.bend is not None]
        return Subject(subject.layer.over(second.layer), sum(bends) if bends else None)
    return subject


def _stage(rng, height, width, photos, smallest, largest) -> Stage:
    side = min(height, width)
    share = smallest + (largest - smallest) * rng.beta(2.2, 1.1)
    slack = 0.5 * max(0.15, 1 - 0.75 * share)
    x, y = width / 2 + width * slack * rng.uniform(-0.8, 0.8), height / 2 + height * slack * rng.uniform(-0.8, 0.8)
    return Stage(height, width, x, y, side * share / 2, photos)


def _in_the_scene(rng: np.random.Generator, layer: Layer, behind: np.ndarray) -> np.ndarray:
    """The layer's straight colours under the scene's light, with the background's light spilling over its edges."""
    colors = layer.straight()
    weight = layer.alpha[..., None]
    mean = (colors * weight).sum(axis=(0, 1)) / max(float(weight.sum()), 1e-6)
    scene = behind.mean(axis=(0, 1))
    if rng.random() < 0.25:
        # The hardest case for a matte: a subject in the colours of what is behind it.
        colors = colors + rng.uniform(0.2, 0.85) * (scene - mean)
    colors = colors * rng.uniform(0.8, 1.15) * (1 + rng.uniform(0, 0.4) * (scene / max(float(scene.mean()), 0.05) - 1))
    if rng.random() < 0.5:
        reach = rng.uniform(0.01, 0.06) * min(behind.shape[:2]) + 1
        light = blurred(behind, reach)
        near = 1 - blurred(layer.alpha, reach)
        colors = colors + (rng.uniform(0, 0.4) * near)[..., None] * (light - colors)
    return np.clip(colors, 0, 1).astype(np.float32)


def _bent(picture: np.ndarray, bend: np.ndarray) -> np.ndarray:
    import cv2

    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]].astype(np.float32)
    return np.clip(
        cv2.remap(picture, x + bend[..., 0], y + bend[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101),
        0,
        1,
    )
