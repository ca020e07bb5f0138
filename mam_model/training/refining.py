"""How the refiner that ships with the package was trained: rendered pictures, degraded masks, three scales.

The gallery is a folder of pictures drawn by `render`, one file each, which one process goes on filling while another
trains on what is there. A sample is a piece of one of them (or of a photograph with true alpha), at times laid over
another background, with a mask that was made from its alpha and then spoilt in the ways in which masks are.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import multiprocessing
import os
import pickle
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..interrupts import end_with_parent, stop_noted, unheard_by_children
from ..m2m import AlphaPyramid
from ..photo import PhotoError, read_photo
from ..refiner import MaskRefiner, read_weights
from .config import TrainingError
from .folders import Pair, PictureFiles, read_pair
from .losses import laplacian_loss
from .saving import remove_parts, write_atomically

GALLERY_PX = 512
# How far masks are moved, in pixels of the picture; pieces are cut with as much around them.
MOVED_PX = 8
_MARGIN_PX = 24
# Far enough from both ends of float16.
_LARGEST_VARIANCE = 1024.0
# A mean error of a mask beside which it is of no use to ask whether the network's is larger.
_NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class Recipe:
    """The numbers of a run. The defaults are those of the first of the three runs behind the shipped weights.

    Attributes:
        seed: of everything that is drawn.
        steps: how many steps are made; 0 lets `minutes` decide.
        minutes: how long the run takes, the learning rate falling to 0 with the clock.
        batch: pieces a step.
        crop_px, late_crop_px, late: the side of the pieces, and what it becomes in the last share `late` of the run:
            small ones teach edges at less cost, large ones what lies farther around them.
        learning_rate, warm_up_steps, weight_decay: of AdamW, with a cosine after the warm-up.
        average: decay of the moving average of the weights, which is what is kept.
        gallery: how many pictures are drawn at most; the oldest stay.
        true_share: the share of samples that come from pictures with true alpha, if there are any.
    """

    seed: int = 1
    steps: int = 0
    minutes: float = 62.6
    batch: int = 8
    crop_px: int = 192
    late_crop_px: int = 256
    late: float = 0.25
    learning_rate: float = 2e-3
    warm_up_steps: int = 100
    weight_decay: float = 1e-4
    average: float = 0.998
    gallery: int = 4000
    true_share: float = 0.15


@dataclass(frozen=True)
class Sample:
    """A piece to learn from: picture uint8 [H, W, 3], alpha float32 [H, W] and mask float32 [H, W] in 0..1."""

    picture: np.ndarray
    alpha: np.ndarray
    mask: np.ndarray


def degraded_mask(rng: np.random.Generator, alpha: np.ndarray) -> np.ndarray:
    """A mask such as segmenters, brushes and thresholds make of a subject with this alpha.

    In about two of three cases it is nothing but alpha > 0.5: where a subject cannot be told from what is behind it,
    how often a mask is right is all that there is to go by.

    Args:
        alpha: float32 [H, W] in 0..1.
    Returns:
        float32 [H, W], mostly of 0 and 1.
    """
    import cv2

    height, width = alpha.shape
    threshold = 0.5 if rng.random() < 0.9 else rng.uniform(0.15, 0.85)
    mask = (alpha > threshold).astype(np.float32)
    if rng.random() < 0.65:
        return mask
    kind = rng.choice(7, p=[0.26, 0.18, 0.2, 0.12, 0.08, 0.08, 0.08])
    if kind == 0:
        mask = _morphed(mask, int(rng.integers(1, MOVED_PX + 1)), grow=rng.random() < 0.5)
    elif kind == 1:
        rows, columns = rng.integers(-MOVED_PX, MOVED_PX + 1, 2)
        mask = _shifted(mask, int(rows), int(columns))
    elif kind == 2:
        # Blocks of the size that a picture of 800 pixels has in masks of 48 to 256 pixels a side.
        block = rng.uniform(2, 16)
        cells = max(2, round(width / block)), max(2, round(height / block))
        small = cv2.resize(mask, cells, interpolation=cv2.INTER_AREA)
        how = cv2.INTER_NEAREST if rng.random() < 0.4 else cv2.INTER_LINEAR
        if rng.random() < 0.5:
            small = (small > 0.5).astype(np.float32)
        mask = cv2.resize(small, (width, height), interpolation=how)
        mask = (mask > 0.5).astype(np.float32)
    elif kind == 3:
        # SAM: a smooth outline with rounded corners, without anything thin.
        mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(1.5, 7))
        level = rng.uniform(0.35, 0.65)
        mask = (mask > level).astype(np.float32) if rng.random() < 0.7 else _sharpened(mask, level, rng.uniform(2, 8))
    elif kind == 4:
        # GrabCut: ragged where colours are alike.
        noise = cv2.GaussianBlur(rng.standard_normal(alpha.shape).astype(np.float32), (0, 0), rng.uniform(0.7, 4))
        noise *= rng.uniform(0.1, 0.5) / max(float(noise.std()), 1e-6)
        soft = cv2.GaussianBlur(mask, (0, 0), rng.uniform(1, 5))
        mask = (soft + noise * (4 * soft * (1 - soft)) > 0.5).astype(np.float32)
    elif kind == 5:
        # A brush: the outline wanders.
        reach = rng.uniform(2, MOVED_PX)
        size = max(2, height // 24), max(2, width // 24)
        flow = rng.standard_normal((*size, 2)).astype(np.float32)
        flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_CUBIC) * reach * 0.7
        y, x = np.mgrid[:height, :width].astype(np.float32)
        mask = cv2.remap(mask, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        mask = (mask > 0.5).astype(np.float32)
    else:
        mask = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.3, 4)).clip(0, 1)
    if kind < 6 and rng.random() < 0.2:
        # Gaps are filled, or what is thin is lost.
        if rng.random() < 0.6:
            mask = _closed(mask, int(rng.integers(2, 7)))
        else:
            mask = 1 - _closed(1 - mask, int(rng.integers(1, 4)))
    if kind < 6 and rng.random() < 0.12:
        _blotted(rng, mask)
    return mask


def _morphed(mask: np.ndarray, radius_px: int, *, grow: bool) -> np.ndarray:
    import cv2

    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))
    return cv2.dilate(mask, kernel) if grow else cv2.erode(mask, kernel)


def _closed(mask: np.ndarray, radius_px: int) -> np.ndarray:
    return _morphed(_morphed(mask, radius_px, grow=True), radius_px, grow=False)


def _shifted(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    import cv2

    move = np.float32([[1, 0, columns], [0, 1, rows]])
    return cv2.warpAffine(mask, move, mask.shape[::-1], flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)


def _sharpened(mask: np.ndarray, level: float, slope: float) -> np.ndarray:
    return np.clip((mask - level) * slope + 0.5, 0, 1).astype(np.float32)


def _blotted(rng: np.random.Generator, mask: np.ndarray) -> None:
    """Adds or takes a few discs near the mask's edge, in place."""
    import cv2

    rows, columns = np.nonzero(cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((9, 9), np.uint8)))
    if not len(rows):
        return
    for pick in rng.integers(0, len(rows), rng.integers(1, 4)):
        center = int(columns[pick]), int(rows[pick])
        cv2.circle(mask, center, int(rng.integers(2, 9)), float(rng.random() < 0.5), -1)


class Gallery:
    """The pictures that are there to be trained on: rendered ones and those with true alpha."""

    def __init__(self, folder: Path, photos: Sequence[np.ndarray], true: Sequence[np.ndarray], recipe: Recipe):
        """Args: photos, uint8 [H, W, 3]; true, uint8 [H, W, 4], straight colours and alpha."""
        self._folder, self._photos, self._true, self._recipe = folder, photos, true, recipe
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
        recipe = self._recipe
        share = rng.random()
        if self._true and share < recipe.true_share:
            subject = self._true[rng.integers(len(self._true))]
            colors, alpha, picture = subject[..., :3], subject[..., 3], None
            if share < 0.3 * recipe.true_share:
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


def fill_gallery(folder: Path, photos: Sequence[Path], recipe: Recipe, worker: int = 0, workers: int = 1) -> None:
    """Renders picture after picture into a folder until it holds `recipe.gallery`; goes on where it stopped.

    A file holds uint8 [H, W, 10]: picture, alpha, foreground and background.
    """
    from .render import render

    folder.mkdir(parents=True, exist_ok=True)
    shown = PictureFiles(photos, lambda file: _read_texture(file).astype(np.float32) / 255)
    for number in range(worker, recipe.gallery, workers):
        file = _gallery_file(folder, number)
        if file.exists():
            continue
        # Seeds of different runs do not meet: a run has room for a million pictures.
        seed = recipe.seed * 1_000_000 + number
        drawn = render(seed, GALLERY_PX, GALLERY_PX, backgrounds=shown, foreground_textures=shown)
        parts = (drawn.picture, drawn.alpha[..., None], drawn.foreground, drawn.background)
        stack = (np.concatenate(parts, axis=2).clip(0, 1) * 255 + 0.5).astype(np.uint8)
        encoded = io.BytesIO()
        np.save(encoded, stack)
        write_atomically(file, encoded.getvalue())


def _fill_aside(folder: Path, *arguments) -> None:
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


def _usable(files: Sequence[Path], read: Callable[[Path], np.ndarray], skip: Callable[[str], None]) -> tuple[Path, ...]:
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


def _read_texture(file: Path, longest_px: int = 1400) -> np.ndarray:
    """A photo as uint8 [H, W, 3], not larger than a training picture can make use of. Raises what `read_photo` does."""
    from PIL import Image

    photo = Image.fromarray(_levels(read_photo(file).image.numpy()))
    photo.thumbnail((longest_px, longest_px))
    return np.array(photo)


def _read_cut_out(file: Path) -> np.ndarray:
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


def refining_loss(
    predicted: AlphaPyramid, alpha: Tensor, mask: Tensor, *, band_px: int = 21, focus: bool = True
) -> Tensor:
    """What a pyramid costs: absolute and squared difference at every scale, and the Laplacian pyramid's at os1.

    The surroundings of what is soft or wrong in the mask count most, for the finer scales even more so, as the merging
    asks them hardly anywhere else. What the mask had right and the network spoils counts once more, and so does, in a
    piece that ends up farther from the truth than its mask was, by how much it does.

    Args:
        alpha, mask: float [N, 1, H, W] in 0..1.
        band_px: how far the surroundings go, both sides together.
        focus: False lets every pixel count alike at every scale.
    """
    unsure = ((alpha > 0.01) & (alpha < 0.99)) | ((mask > 0.5) != (alpha > 0.5))
    near = F.max_pool2d(unsure.float(), (band_px, 1), 1, (band_px // 2, 0))
    near = F.max_pool2d(near, (1, band_px), 1, (0, band_px // 2))
    total = alpha.new_zeros(())
    for scale, outside, share in (("os8", 0.5, 0.5), ("os4", 0.3, 0.5), ("os1", 0.3, 1.0)):
        weight = near * (1 - outside) + outside if focus else torch.ones_like(near)
        found = getattr(predicted, scale)
        error, given = (found - alpha).abs(), (mask - alpha).abs()
        # Squares are cheapest halfway between two alphas that are both likely, a haze; so they count for little.
        total = total + share * _mean(error + 0.5 * error.square() + F.relu(error - given), weight)
    for power in (1, 2):
        ours, theirs = (((side - alpha).abs() ** power).mean((1, 2, 3)) for side in (predicted.os1, mask))
        total = total + 0.2 * F.relu((ours - 0.9 * theirs) / (theirs + _NEGLIGIBLE)).mean()
    return total + 0.5 * laplacian_loss(predicted.os1, alpha, torch.ones_like(near))


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / (weight.sum() + 1e-8)


def _batch(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    picture = torch.from_numpy(np.stack([sample.picture for sample in samples])).permute(0, 3, 1, 2).float() / 255
    alpha = torch.from_numpy(np.stack([sample.alpha for sample in samples]))[:, None]
    mask = torch.from_numpy(np.stack([sample.mask for sample in samples]))[:, None]
    return picture, alpha.float(), mask.float()


class _Prefetched:
    """Batches made in a thread of their own. Sample i of a run is drawn from (seed, i)."""

    def __init__(self, gallery: Gallery, recipe: Recipe, first_step: int):
        self._gallery, self._recipe = gallery, recipe
        self.crop_px = recipe.crop_px
        self._ready: queue.Queue = queue.Queue(maxsize=4)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(first_step,), daemon=True)
        self._thread.start()

    def _work(self, step: int) -> None:
        try:
            while not self._stopped.is_set():
                self._gallery.refresh()
                # Once for all of a batch: it may be changed at any moment.
                crop_px = self.crop_px
                samples = [
                    self._gallery.sample(np.random.default_rng((self._recipe.seed, step, number)), crop_px)
                    for number in range(self._recipe.batch)
                ]
                step += 1
                self._put(_batch(samples))
        except BaseException as error:
            self._put(error)

    def _put(self, item) -> None:
        while not self._stopped.is_set():
            try:
                return self._ready.put(item, timeout=0.5)
            except queue.Full:
                continue

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()


def train_refiner(
    output: Path,
    work: Path,
    recipe: Recipe,
    *,
    photos: Sequence[Path] = (),
    true: Sequence[Path] = (),
    start: Path | None = None,
    renderers: int = 1,
    skip: Callable[[str], None] = lambda sentence: None,
    on_step: Callable[[int, float, float], None] | None = None,
    save_every_s: float = 300.0,
) -> int:
    """Trains a refiner and writes its averaged weights; goes on from `work` where an earlier run stopped.

    Ctrl-C and SIGTERM end the run after the step that is being made, with its state and its weights.

    Args:
        output: the weights, float16 safetensors. A file that is there is replaced by the run that wrote it alone.
        work: folder of the rendered pictures and of the state from which a run goes on.
        photos: pictures that serve as backgrounds and as textures.
        true: pictures whose transparency is their true alpha.
        start: weights of an earlier run to begin with; None begins with random ones.
        renderers: processes that go on rendering meanwhile; with 0 the folder has to hold pictures already.
        skip: is told of each photo or cut-out that cannot be used. The run does without it.
        on_step: is told the step, its loss and which share of the run is done.
    Returns:
        How many steps the weights have seen.
    Raises:
        TrainingError: `output` is a folder, no safetensors or there already, too few rendered pictures and nobody to
            render more, a rendered picture that is damaged, no photo or no cut-out that can be used, or a state to go
            on from that is damaged or of other settings.
        CheckpointError: `start` is missing, damaged or holds another network.
        OSError: a folder cannot be made, or a file not be written.
        KeyboardInterrupt: the run was stopped, after its state was saved; the text says how to go on.
    """
    # The first weights are written after minutes, which would be lost on a place that takes none.
    if output.is_dir():
        raise TrainingError(f"{output} is a folder. Name the file of weights: {output / 'refiner.safetensors'}, say.")
    if output.suffix.lower() != ".safetensors":
        raise TrainingError(f"{output.name} has to end in .safetensors, because that is what will be written.")
    state_file = work / "state.pt"
    saved = _saved_state(state_file) if state_file.exists() else None
    if output.exists() and (saved is None or _run_of(output) != saved["run"]):
        raise TrainingError(
            f"{output} exists already, and not from the run in {work}. Name another file, or the --work folder of the "
            "run that wrote it to go on with that."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    network, before = MaskRefiner(), None
    if start is not None:
        network.load_state_dict(read_weights(start), strict=False)
        before = _lineage(start)
    textures, cut_outs = _usable(photos, _read_texture, skip), _usable(true, _read_cut_out, skip)
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (*textures, *cut_outs)}
    run = _Run(network, recipe, hashes, before)
    if saved is not None:
        run.go_on_from(saved, state_file)
    work.mkdir(parents=True, exist_ok=True)
    for file in (state_file, output):
        remove_parts(file)
    folder = work / "gallery"
    context = multiprocessing.get_context("spawn")
    drawing = [
        context.Process(target=_fill_aside, args=(folder, textures, recipe, number, renderers), daemon=True)
        for number in range(renderers)
    ]
    try:
        with unheard_by_children():
            for process in drawing:
                process.start()
        gallery = Gallery(folder, PictureFiles(textures, _read_texture), PictureFiles(cut_outs, _read_cut_out), recipe)
        while gallery.refresh() < min(32, recipe.gallery):
            if not any(process.is_alive() for process in drawing):
                advice = "" if drawing else " Give --renderers 1 or more."
                raise TrainingError(
                    f"{folder} holds fewer than {min(32, recipe.gallery)} rendered pictures, and nobody renders more."
                    f"{advice}"
                )
            time.sleep(0.5)
        return _fit(run, output, state_file, gallery, on_step, save_every_s)
    finally:
        for process in drawing:
            if process.pid is None:
                continue
            process.terminate()
            process.join()
            for part in folder.glob(f"*.{process.pid}.part"):
                part.unlink(missing_ok=True)


class _Run:
    """A network in training, and all that the run which goes on with it has to know.

    Attributes:
        averaged: the moving average of the network's state.
        name: stands in the state and in the weights, so that no other run replaces them.
        step: how many were made.
        spent_s: the time that they took.
    """

    def __init__(
        self, network: MaskRefiner, recipe: Recipe, hashes: dict[str, str], before: dict[str, str] | None
    ) -> None:
        self.network = network.to(memory_format=torch.channels_last)
        self.averaged = {name: value.clone().float() for name, value in network.state_dict().items()}
        decayed = [value for value in network.parameters() if value.ndim > 1]
        plain = [value for value in network.parameters() if value.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.99))
        self.recipe, self.hashes, self.before = recipe, hashes, before
        self.name = secrets.token_hex(8)
        self.step, self.spent_s = 0, 0.0

    @property
    def done(self) -> float:
        """Which share of the run is made; 1 or more at its end."""
        return self.step / self.recipe.steps if self.recipe.steps else self.spent_s / (60 * self.recipe.minutes)

    def go_on_from(self, saved: dict, state_file: Path) -> None:
        """Takes over what `save` kept.

        Raises:
            TrainingError: it is of another network or of other settings.
        """
        try:
            self.network.load_state_dict(saved["network"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.averaged, self.step, self.spent_s = saved["averaged"], saved["step"], saved["spent"]
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise _unusable(state_file) from error
        self.name = saved["run"]
        settings = _settings(self.recipe, self.hashes, self.before)
        # States of earlier versions do not say.
        begun_with = saved.get("settings", settings)
        changed = [name for name, value in settings.items() if begun_with.get(name) != value]
        if changed:
            raise TrainingError(
                f"The run in {state_file.parent} was begun with another {' and another '.join(changed)}. Give the same "
                "command as before, or give the new run a file and a --work folder of its own."
            )

    def save(self, state_file: Path, output: Path) -> None:
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"averaged": self.averaged, "step": self.step, "spent": self.spent_s, "run": self.name}
        encoded = io.BytesIO()
        torch.save({**state, "settings": _settings(self.recipe, self.hashes, self.before)}, encoded)
        write_atomically(state_file, encoded.getvalue())
        _write_weights(output, self.averaged, self.recipe, self.step, self.hashes, self.before, self.name)


def _saved_state(state_file: Path) -> dict:
    """What `_Run.save` kept, read without running anything.

    Raises:
        TrainingError: the file is damaged or holds something else.
    """
    try:
        saved = torch.load(state_file, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        raise _unusable(state_file) from error
    if not isinstance(saved, dict):
        raise _unusable(state_file)
    # Runs of earlier versions have no name, nor have their weights.
    return {"run": "", **saved}


def _unusable(state_file: Path) -> TrainingError:
    return TrainingError(
        f"{state_file} is damaged or belongs to another network, so the run cannot go on from it. Move it away to "
        "begin anew."
    )


def _run_of(weights: Path) -> str | None:
    """The name of the run that wrote a file; None where the file is not of any."""
    from safetensors import SafetensorError

    try:
        return _lineage(weights).get("run", "")
    except (OSError, SafetensorError):
        return None


def _fit(
    run: _Run,
    output: Path,
    state_file: Path,
    gallery: Gallery,
    on_step: Callable[[int, float, float], None] | None,
    save_every_s: float,
) -> int:
    network, recipe = run.network, run.recipe
    bfloat16 = _has_fast_bfloat16()
    began = saved_at = time.monotonic()
    spent_before_s = run.spent_s
    with closing(_Prefetched(gallery, recipe, run.step)) as batches, stop_noted() as stop_asked:
        network.train()
        while (done := run.done) < 1 and not stop_asked():
            rate = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
            rate *= min(1, (run.step + 1) / recipe.warm_up_steps)
            for group in run.optimizer.param_groups:
                group["lr"] = rate
            batches.crop_px = recipe.crop_px if done < 1 - recipe.late else recipe.late_crop_px
            picture, alpha, mask = batches.next()
            picture = picture.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                pyramid = network(picture, mask)
            focus = run.before is not None or done > 0.05
            loss = refining_loss(pyramid, alpha, mask, band_px=(11, 21, 41)[run.step % 3], focus=focus)
            run.optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            if torch.isfinite(norm):
                run.optimizer.step()
            run.step += 1
            decay = min(recipe.average, (run.step + 1) / (run.step + 10))
            with torch.no_grad():
                for name, value in network.state_dict().items():
                    run.averaged[name].lerp_(value.float(), 1 - decay)
            now = time.monotonic()
            run.spent_s = spent_before_s + now - began
            if on_step:
                on_step(run.step, loss.item(), done)
            if now - saved_at > save_every_s:
                saved_at = now
                run.save(state_file, output)
        run.save(state_file, output)
        if run.done < 1:
            raise KeyboardInterrupt(f"Stopped after step {run.step}. The same command goes on from there.")
    return run.step


def _settings(recipe: Recipe, hashes: dict[str, str], before: dict[str, str] | None) -> dict[str, str]:
    """What a run has to have in common with the one that it goes on from. It may be made longer."""
    return {
        "seed": str(recipe.seed),
        "learning rate": repr(recipe.learning_rate),
        "set of photos and cut-outs": json.dumps(hashes, sort_keys=True),
        "file to begin with": before["sha256"] if before else "",
    }


def _has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _lineage(file: Path) -> dict[str, str]:
    """What a file of weights says of the run it comes from, with its sha256."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return {**(opened.metadata() or {}), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def _scaled_down(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network with no variance larger than float16 can hold, which ends at 65,504.

    Of a convolution before a normalisation the scale does not matter, so that it can grow. It is divided by a power of
    2, and with it mean and variance of its answers: what changes is the share of the normalisation's epsilon alone.
    """
    scaled = dict(state)
    for name, variance in state.items():
        block, end, _ = name.rpartition("norm.running_var")
        if end and (largest := float(variance.max())) > _LARGEST_VARIANCE:
            factor = 2.0 ** -math.ceil(math.log2(largest / _LARGEST_VARIANCE) / 2)
            scaled[name] = variance * factor**2
            for part in ("conv.weight", "norm.running_mean"):
                scaled[block + part] = state[block + part] * factor
    return scaled


def _write_weights(
    output: Path,
    averaged: dict[str, Tensor],
    recipe: Recipe,
    step: int,
    hashes: dict[str, str],
    before: dict[str, str] | None,
    run: str,
) -> None:
    from safetensors.torch import save

    weights = {
        name: value.half().contiguous()
        for name, value in _scaled_down(averaged).items()
        if not name.endswith("num_batches_tracked")
    }
    listed = json.dumps(hashes)
    metadata = {
        "recipe": json.dumps(asdict(recipe)),
        "steps": str(step),
        "seed": str(recipe.seed),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "pictures": listed,
        "pictures_sha256": hashlib.sha256(listed.encode()).hexdigest(),
    }
    if before is not None:
        metadata["before"] = json.dumps(before)
    if run:
        metadata["run"] = run
    write_atomically(output, save(weights, metadata))
