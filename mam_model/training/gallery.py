"""What the refiner learns from: rendered pictures and cut-outs, piece by piece, each with a mask.

The gallery is a folder of pictures drawn by `render`, one file each, which one process goes on filling while another
trains on what is there. A sample is a piece of one of them (or of a photograph with true alpha), at times laid over
another background, with a mask that was made from its alpha and then spoilt in the ways in which masks are.
"""
# OpenCV is imported where it is used, so that importing the library costs ComfyUI no start-up time.

from __future__ import annotations

import io
import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..interrupts import end_with_parent
from ..photo import PhotoError, read_photo
from .config import TrainingError
from .degraded_masks import degraded_mask
from .folders import Pair, PictureFiles, read_pair
from .saving import write_atomically

GALLERY_PX = 512
# Pieces are cut with as much around them, so that their masks are moved in from there.
_MARGIN_PX = 24


@dataclass(frozen=True)
class Sample:
    """A piece to learn from: picture uint8 [H, W, 3], alpha float32 [H, W] and mask float32 [H, W] in 0..1."""

    picture: np.ndarray
    alpha: np.ndarray
    mask: np.ndarray


class Gallery:
    """The pictures that are there to be trained on: rendered ones and those with true alpha."""

    def __init__(self, folder: Path, photos: Sequence[np.ndarray], true: Sequence[np.ndarray], true_share: float):
        """
        Args:
            folder: of the rendered pictures, see `fill_gallery`.
            photos: uint8 [H, W, 3], laid behind subjects.
            true: uint8 [H, W, 4], straight colours and true alpha.
            true_share: the share of samples that come from these, if there are any.
        """
        self._folder, self._photos, self._true, self._true_share = folder, photos, true, true_share
        self._opened: list[np.ndarray] = []

    def refresh(self) -> int:
        """Takes in what was rendered since, and says how much there is.

        Raises:
            TrainingError: a file is damaged.
        """
        while (file := _gallery_file(self._folder, len(self._opened))).exists():
            try:
                self._opened.append(np.load(file, mmap_mode="r"))
            except (ValueError, EOFError) as error:
                raise TrainingError(f"{file} is damaged. Remove it; the next run renders it anew.") from error
        return len(self._opened)

    def sample(self, rng: np.random.Generator, crop_px: int) -> Sample:
        """A piece of `crop_px` a side, with its mask."""
        share = rng.random()
        if self._true and share < self._true_share:
            subject = self._true[rng.integers(len(self._true))]
            colors, alpha, picture = subject[..., :3], subject[..., 3], None
            if share < 0.3 * self._true_share:
                colors = None
        else:
            drawn = self._opened[rng.integers(len(self._opened))]
            picture, alpha, colors = drawn[..., :3], drawn[..., 3], drawn[..., 4:7]
            if rng.random() < 0.5:
                picture = None
        side = crop_px + 2 * _MARGIN_PX
        scale = float(np.exp(rng.uniform(math.log(0.7), math.log(1.5))))
        if picture is None and colors is not None and max(alpha.shape) > 900:
            scale *= rng.uniform(0.4, 1)
        warp = _warp(rng, alpha, side, scale)
        cut_alpha = _cut(alpha, warp, side).astype(np.float32) / 255
        if picture is None:
            source = self._source(rng)
            behind = _background(rng, source, side)
            if colors is None:
                front = _background(rng, self._source(rng), side)
            else:
                front = _cut(colors, warp, side).astype(np.float32)
            if rng.random() < 0.35:
                front = _hidden(rng, front, behind, source)
            if rng.random() < 0.4:
                front = _spilt(rng, front, behind, cut_alpha)
            mixed = behind + cut_alpha[..., None] * (front - behind)
            cut = _photographed(rng, np.clip(mixed + 0.5, 0, 255).astype(np.uint8))
        else:
            cut = _cut(picture, warp, side)
        if rng.random() < 0.5:
            cut = _colored(rng, cut)
        mask = degraded_mask(rng, cut_alpha)
        inner = slice(_MARGIN_PX, _MARGIN_PX + crop_px)
        return Sample(cut[inner, inner], cut_alpha[inner, inner], mask[inner, inner])

    def _source(self, rng: np.random.Generator) -> np.ndarray:
        if self._photos and rng.random() < 0.7:
            return self._photos[rng.integers(len(self._photos))]
        return self._opened[rng.integers(len(self._opened))][..., 7:10]


def _background(rng: np.random.Generator, source: np.ndarray, side: int, sharp: bool = False) -> np.ndarray:
    """float32 [side, side, 3] in 0..255: a piece of a photo, out of focus at times unless it has to be sharp."""
    import cv2

    scale = float(np.exp(rng.uniform(math.log(0.5), math.log(2.0))))
    scale = max(scale, side / min(source.shape[:2]))
    span = min(int(side / scale), *source.shape[:2])
    top, left = (int(rng.integers(0, size - span + 1)) for size in source.shape[:2])
    piece = np.ascontiguousarray(source[top : top + span, left : left + span])
    piece = cv2.resize(piece, (side, side), interpolation=cv2.INTER_AREA if span > side else cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    if not sharp and rng.random() < 0.4:
        piece = cv2.GaussianBlur(piece, (0, 0), rng.uniform(0.6, 8))
    return piece.astype(np.float32)


def _hidden(rng: np.random.Generator, front: np.ndarray, behind: np.ndarray, source: np.ndarray) -> np.ndarray:
    """A subject in the colours of what is behind it: from the same photo, or its own brought near to those around."""
    import cv2

    if rng.random() < 0.5:
        other = _background(rng, source, len(front), sharp=True)
        return other + rng.uniform(0, 0.4) * (front - other)
    reach = rng.uniform(0.05, 0.3) * len(front)
    return front + rng.uniform(0.4, 1) * cv2.GaussianBlur(behind - front, (0, 0), reach)


def _spilt(rng: np.random.Generator, front: np.ndarray, behind: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The subject's colours with the light of the background on its rim."""
    import cv2

    reach = rng.uniform(2, 14)
    light = cv2.GaussianBlur(behind, (0, 0), reach)
    rim = rng.uniform(0, 0.5) * (1 - cv2.GaussianBlur(alpha, (0, 0), reach))
    return front + rim[..., None] * (light - front)


def _warp(rng: np.random.Generator, alpha: np.ndarray, side: int, scale: float) -> np.ndarray:
    """The affine map [2, 3] from a piece of `side` pixels to the whole, centred near an edge in 9 of 10 cases."""
    height, width = alpha.shape
    center = rng.uniform(0, width), rng.uniform(0, height)
    if rng.random() < 0.9:
        coarse = alpha[::4, ::4]
        inside = coarse > 127
        edge = (coarse > 12) & (coarse < 243)
        edge[:, 1:] |= inside[:, 1:] != inside[:, :-1]
        edge[1:] |= inside[1:] != inside[:-1]
        found = np.flatnonzero(edge)
        if len(found):
            row, column = divmod(int(found[rng.integers(len(found))]), coarse.shape[1])
            aside = rng.uniform(-0.35, 0.35, 2) * side / scale
            center = 4 * column + aside[0], 4 * row + aside[1]
    turn = rng.uniform(-math.pi, math.pi) if rng.random() < 0.2 else rng.normal(0, 0.15)
    mirror = -1 if rng.random() < 0.5 else 1
    stretch = math.exp(rng.normal(0, 0.06))
    cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
    linear = np.array([[mirror * cos * stretch, -sin], [mirror * sin * stretch, cos]])
    # A piece that hangs over the border shows the border's pixels drawn out, which no photo does.
    reach = 0.5 * side / scale
    x = np.clip(center[0], min(reach, width / 2), max(width - reach, width / 2))
    y = np.clip(center[1], min(reach, height / 2), max(height - reach, height / 2))
    offset = np.array([x, y]) - linear @ np.array([side / 2, side / 2])
    return np.column_stack([linear, offset])


def _cut(whole: np.ndarray, warp: np.ndarray, side: int) -> np.ndarray:
    """The piece that `warp` shows, by linear interpolation, averaged where it makes the whole smaller."""
    import cv2

    corners = warp @ np.array([[0, side, 0, side], [0, 0, side, side], [1, 1, 1, 1]], dtype=np.float64)
    low, high = np.floor(corners.min(1)).astype(int) - 4, np.ceil(corners.max(1)).astype(int) + 4
    left, top = max(0, low[0]), max(0, low[1])
    part = np.ascontiguousarray(whole[top : max(high[1], top + 1), left : max(high[0], left + 1)])
    shrinking = math.sqrt(abs(np.linalg.det(warp[:, :2])))
    if shrinking > 1.3:
        part = cv2.GaussianBlur(part, (0, 0), 0.4 * shrinking)
    moved = warp.copy()
    moved[:, 2] -= (left, top)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(part, moved, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def _photographed(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Noise and JPEG, as a camera adds them."""
    import cv2

    if rng.random() < 0.6:
        noise = rng.standard_normal(picture.shape).astype(np.float32) * rng.uniform(0.5, 6)
        picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        _, coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 98))])
        picture = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    return picture


def _colored(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Another exposure, white balance and saturation."""
    colors = (picture.astype(np.float32) / 255) ** rng.uniform(0.7, 1.4)
    colors = colors * rng.uniform(0.8, 1.15) * rng.uniform(0.88, 1.12, 3).astype(np.float32)
    grey = colors.mean(axis=2, keepdims=True)
    colors = grey + (colors - grey) * (0.0 if rng.random() < 0.06 else rng.uniform(0.5, 1.4))
    return (np.clip(colors, 0, 1) * 255 + 0.5).astype(np.uint8)


def _gallery_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npy"


def fill_gallery(
    folder: Path, photos: Sequence[Path], seed: int, count: int, worker: int = 0, workers: int = 1
) -> None:
    """Renders picture after picture into a folder until it holds `count`; goes on where it stopped.

    A file holds uint8 [H, W, 10]: picture, alpha, foreground and background.

    Args:
        photos: serve as backgrounds and as textures.
        seed: of the run.
        worker, workers: which of how many that share the work this is.
    Raises:
        OSError: a picture cannot be written.
    """
    from .render import render

    folder.mkdir(parents=True, exist_ok=True)
    shown = PictureFiles(photos, lambda file: read_texture(file).astype(np.float32) / 255)
    for number in range(worker, count, workers):
        file = _gallery_file(folder, number)
        if file.exists():
            continue
        # Seeds of different runs do not meet: a run has room for a million pictures.
        drawn = render(seed * 1_000_000 + number, GALLERY_PX, GALLERY_PX, backgrounds=shown, foreground_textures=shown)
        parts = (drawn.picture, drawn.alpha[..., None], drawn.foreground, drawn.background)
        stack = (np.concatenate(parts, axis=2).clip(0, 1) * 255 + 0.5).astype(np.uint8)
        encoded = io.BytesIO()
        np.save(encoded, stack)
        write_atomically(file, encoded.getvalue())


def fill_aside(folder: Path, *arguments) -> None:
    """`fill_gallery` in a process of its own, which ends with the one that began it."""
    # Ctrl-C reaches every process of a terminal; the one that trains ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if hasattr(os, "nice"):
        # The steps are what the run waits for.
        os.nice(5)
    try:
        fill_gallery(folder, *arguments)
    except OSError as error:
        raise SystemExit(f"No more pictures could be rendered into {folder}: {error.strerror or error}.") from error


def usable(files: Sequence[Path], read: Callable[[Path], np.ndarray], skip: Callable[[str], None]) -> tuple[Path, ...]:
    """Those of the files that can be read; `skip` is told of each of the others.

    Raises:
        TrainingError: none of them can be.
    """
    found = []
    for file in files:
        try:
            read(file)
        except PhotoError as error:
            skip(str(error))
        else:
            found.append(file)
    if files and not found:
        raise TrainingError(f"None of the {len(files)} pictures beside {files[0].name} can be used.")
    return tuple(found)


def read_texture(file: Path, longest_px: int = 1400) -> np.ndarray:
    """A photo as uint8 [H, W, 3], not larger than a training picture can make use of. Raises what `read_photo` does."""
    from PIL import Image

    photo = Image.fromarray(_levels(read_photo(file).image.numpy()))
    photo.thumbnail((longest_px, longest_px))
    return np.array(photo)


def read_cut_out(file: Path) -> np.ndarray:
    """uint8 [H, W, 4], straight colours and alpha.

    Raises:
        PhotoError: the file cannot be read, or its transparency tells no subject from what is around it.
    """
    colors, alpha = read_pair(Pair(file.stem, file, None))
    if alpha.min() == 1:
        raise PhotoError(f"{file} is opaque everywhere, so its transparency is no alpha.")
    return _levels(np.dstack([colors, alpha]))


def _levels(values: np.ndarray) -> np.ndarray:
    return (values * 255).round().astype(np.uint8)
