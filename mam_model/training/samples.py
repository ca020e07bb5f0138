"""The samples of a run: subjects on backgrounds, varied at random, each cut to SAM's square with its box.

Li, Jain, Shi: "Matting Anything", arXiv 2306.05399. Sample i of a run depends on the run's seed and on i
alone, so an interrupted run goes on with the samples it would have had, however many processes there are.
"""
# OpenCV is imported where it is used, so that importing the library costs ComfyUI no start-up time.

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..interrupts import unheard_by_children
from ..morphology import outline
from ..photo import PhotoError, read_photo
from ..prompt import Prompt
from .config import Augmentation, Backgrounds, Composed, Config, Foregrounds, Rendering, TrainingError
from .folders import Pair, find_pairs, find_pictures, read_pair
from .weight_maps import generator, plain, random_trimap, scaled

# So many draws in a row without a sample mean that the data is of no use, not that the draws were unlucky.
_MOST_DRAWS = 30
# A box of fewer pixels than this a side says nothing about its subject.
_LEAST_BOX_SHARE = 1 / 64
# A picture longer than so many times its short side is cut before it is enlarged, of which nothing but its shape would
# set the cost: 8000 x 200 pixels would become 40960 x 1024.
_LONGEST = 4
# At 1024 pixels, the greatest diameter of the disc by which a rough mask is too large or too small.
_WIDEST_ROUGHNESS_PX = 30


@dataclass(frozen=True, eq=False)
class Sample:
    """What the network learns from, cut to SAM's square.

    Attributes:
        number: which sample of the run it is.
        picture: uint8 [side, side, 3], sRGB.
        alpha: float32 [side, side], 0..1.
        band: bool [side, side], the unknown band of a random trimap.
        prompt: what SAM is asked, see `prompt_for`.
        skipped: a sentence for each file that could not be used on the way.
    """

    number: int
    picture: np.ndarray
    alpha: np.ndarray
    band: np.ndarray
    prompt: Prompt
    skipped: tuple[str, ...] = ()


class Samples:
    """Sample i of a run, for any i; a map-style data set of PyTorch's loader.

    Args:
        side: of SAM's square in pixels.
    Raises:
        TrainingError: a folder is missing or empty, or nothing in it belongs together.
    """

    def __init__(self, config: Config, side: int):
        self.config = config
        self.side = side
        self.left_out: tuple[str, ...] = ()
        self._pairs: list[tuple[Pair, ...]] = []
        for source in config.sources:
            pairs = ()
            if not isinstance(source, Rendering):
                pairs, left_out = find_pairs(source.pictures, source.alphas)
                self.left_out += left_out
            self._pairs.append(pairs)
        self._backgrounds = [find_pictures(folder.pictures) for folder in config.backgrounds]

    def __len__(self) -> int:
        return self.config.schedule.steps * self.config.schedule.batch

    @property
    def fingerprint(self) -> str:
        """Changes when the names of the files change, and so which sample is drawn from which of them."""
        names = hashlib.sha256()
        for pairs in self._pairs:
            names.update("\n".join(pair.name for pair in pairs).encode() + b"\0")
        for folder, files in zip(self.config.backgrounds, self._backgrounds):
            names.update("\n".join(file.relative_to(folder.pictures).as_posix() for file in files).encode() + b"\0")
        return names.hexdigest()

    def __getitem__(self, number: int) -> Sample:
        """
        Raises:
            TrainingError: draw after draw gave nothing that can be used.
        """
        drawn = number % self.config.distinct if self.config.distinct else number
        skipped = []
        for attempt in range(_MOST_DRAWS):
            rng = generator(self.config.seed, "sample", drawn, attempt)
            try:
                picture, alpha = self._drawn(rng)
            except PhotoError as error:
                skipped.append(str(error))
                continue
            box = tight_box(alpha)
            if box is not None and min(box[2] - box[0], box[3] - box[1]) >= _LEAST_BOX_SHARE * self.side:
                band = random_trimap(rng, alpha) == 0.5
                levels = (picture.clip(0, 1) * 255).round().astype(np.uint8)
                prompt = prompt_for(rng, alpha, self.config.prompt)
                return Sample(number, levels, alpha, band, prompt, tuple(skipped))
        last = f" The last file that could not be used: {skipped[-1]}" if skipped else ""
        raise TrainingError(
            f"{_MOST_DRAWS} draws in a row gave no sample with a subject in it. Look through the data's folders.{last}"
        )

    def _drawn(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """float32 [side, side, 3] and [side, side], from a source drawn by the shares."""
        which = _by_share(rng, self.config.sources)
        source, pairs = self.config.sources[which], self._pairs[which]
        if isinstance(source, Rendering):
            return self._rendered(rng, source)
        if isinstance(source, Composed):
            picture, alpha = read_pair(pairs[rng.integers(len(pairs))])
            return cropped(rng, picture, alpha, self.side)
        foreground, alpha = read_pair(pairs[rng.integers(len(pairs))])
        if rng.random() < source.second_subject:
            second = read_pair(pairs[rng.integers(len(pairs))])
            foreground, alpha = laid_over(foreground, alpha, *_resized_pair(rng, *second, *alpha.shape))
        variation = self.config.augmentation
        foreground, alpha = moved(rng, foreground, alpha, variation)
        foreground, alpha = cropped(rng, foreground, alpha, self.side)
        foreground = recoloured(rng, foreground, alpha, variation)
        return composed(foreground, alpha, self._background(rng)), alpha

    def _rendered(self, rng: np.random.Generator, source: Rendering) -> tuple[np.ndarray, np.ndarray]:
        from .render import render

        kind = source.kinds[rng.integers(len(source.kinds))] if source.kinds else None
        photos = [self._background(rng)] if self.config.backgrounds else []
        rendered = render(int(rng.integers(2**62)), self.side, self.side, kind=kind, backgrounds=photos)
        return rendered.picture, rendered.alpha

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """float32 [side, side, 3], a random part of a random photo."""
        files = self._backgrounds[_by_share(rng, self.config.backgrounds)]
        photo = read_photo(files[rng.integers(len(files))]).image.numpy()
        height, width = photo.shape[:2]
        if _is_cut_first(height, width, self.side):
            height = width = min(height, width)
            photo = photo[_square_anywhere(rng, *photo.shape[:2], height)]
        factor = self.side / min(height, width)
        rows, columns = max(self.side, round(height * factor)), max(self.side, round(width * factor))
        photo = _resized(rng, photo, rows, columns)
        photo = photo[_square_anywhere(rng, rows, columns, self.side)]
        return np.ascontiguousarray(photo[:, ::-1] if rng.random() < 0.5 else photo)


def batches(samples: Samples, first: int, process: int = 0, processes: int = 1) -> Iterator[list[Sample]]:
    """One process's part of every step's samples, from the step `first` on, prepared ahead by the config's workers.

    Raises:
        TrainingError: see `Samples.__getitem__`.
    """
    batch = samples.config.schedule.batch
    part = batch // processes
    starts = range(first * batch + process * part, len(samples), batch)
    loader = torch.utils.data.DataLoader(
        _Answers(samples),
        batch_sampler=[range(start, start + part) for start in starts],
        num_workers=samples.config.workers,
        collate_fn=list,
        worker_init_fn=_begin_worker,
        # Forked from a process that had trained before, workers were seen to wait for ever: a fork inherits the state
        # of its libraries' threads, but not the threads.
        multiprocessing_context="spawn" if samples.config.workers else None,
    )
    with unheard_by_children():
        prepared = iter(loader)
    try:
        for answers in prepared:
            for answer in answers:
                if isinstance(answer, TrainingError):
                    raise answer
            yield answers
    finally:
        # An error holds what was known where it was raised. Workers that nobody tells to end would be waited for.
        del prepared


class _Answers(torch.utils.data.Dataset):
    """Samples, or what is wrong: an exception that a worker raised would come out with its traceback as text."""

    def __init__(self, samples: Samples):
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> Sample | TrainingError:
        try:
            return self._samples[number]
        except TrainingError as error:
            return error


def _begin_worker(_: int) -> None:
    import signal

    import cv2

    # Ctrl-C reaches all processes of a terminal, and SIGTERM those that torchrun, Slurm or systemd end together. The
    # one that trains decides what becomes of it; when it is gone, its workers see that and end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # There are as many workers as the config wants; each with threads of its own would be too many.
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def tight_box(alpha: np.ndarray) -> tuple[float, float, float, float] | None:
    """(x0, y0, x1, y1) around alpha above 0.5, x1 and y1 beyond the last pixel; None when there is none."""
    rows, columns = np.flatnonzero((alpha > 0.5).any(axis=1)), np.flatnonzero((alpha > 0.5).any(axis=0))
    if not rows.size:
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def prompt_for(rng: np.random.Generator, alpha: np.ndarray, kind: str) -> Prompt:
    """What says which subject is meant.

    Args:
        alpha: float [H, W], above 0.5 somewhere.
        kind: "box", the tight box of alpha above 0.5, or "mask", a rough mask that is to guide the network itself.
    """
    if kind == "box":
        return Prompt(box_xyxy_px=tight_box(alpha))
    return Prompt(mask=torch.from_numpy(rough_mask(rng, alpha)), mask_is_guidance=True)


def rough_mask(rng: np.random.Generator, alpha: np.ndarray) -> np.ndarray:
    """A mask as segmentation networks give it: in blocks of four pixels, somewhat too large or too small.

    Args:
        alpha: float [H, W], above 0.5 somewhere.
    Returns:
        float32 [H, W] of {0, 1}, not empty.
    """
    import cv2

    height, width = alpha.shape
    disc = [int(rng.integers(1, scaled(_WIDEST_ROUGHNESS_PX, min(height, width)) + 1))] * 2
    change = (cv2.erode, cv2.dilate)[rng.integers(2)]
    mask = change((alpha > 0.5).astype(np.float32), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, disc))
    blocks = cv2.resize(mask, (-(-width // 4), -(-height // 4)), interpolation=cv2.INTER_AREA) > 0.5
    mask = blocks.repeat(4, axis=0).repeat(4, axis=1)[:height, :width].astype(np.float32)
    # Of a thin subject the blocks may show nothing.
    return mask if mask.any() else (alpha > 0.5).astype(np.float32)


def composed(foreground: np.ndarray, alpha: np.ndarray, background: np.ndarray) -> np.ndarray:
    """alpha F + (1 - alpha) B. [H, W, 3], [H, W], [H, W, 3] -> [H, W, 3]"""
    return background + alpha[..., None] * (foreground - background)


def laid_over(
    foreground: np.ndarray, alpha: np.ndarray, second: np.ndarray, second_alpha: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A subject over another as one foreground: alpha = 1 - (1 - a) (1 - a2), colours straight.

    Where both leave the background alone, the first one's colour stays.

    Args:
        foreground, second: float [H, W, 3].
        alpha, second_alpha: float [H, W].
    """
    shown = second_alpha * (1 - alpha)
    total = alpha + shown
    share = np.divide(alpha, total, out=np.ones_like(alpha), where=total > 0)
    return composed(foreground, share, second), total


def moved(
    rng: np.random.Generator, foreground: np.ndarray, alpha: np.ndarray, variation: Augmentation
) -> tuple[np.ndarray, np.ndarray]:
    """Turned, scaled, sheared and mirrored about the centre, at the same size. Beyond the picture alpha is 0."""
    import cv2

    height, width = alpha.shape
    angle = np.deg2rad(rng.uniform(-variation.rotation_deg, variation.rotation_deg))
    shear = np.tan(np.deg2rad(rng.uniform(-variation.shear_deg, variation.shear_deg)))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rng.uniform(*variation.scale) * turn @ np.array([[1, shear], [0, 1]])
    if rng.random() < variation.flip:
        matrix = matrix @ np.diag([-1.0, 1.0])
    center = np.array([(width - 1) / 2, (height - 1) / 2])
    whole = np.column_stack([matrix, center - matrix @ center])
    kernel = _kernel(rng, (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4))
    size = (width, height)
    foreground = cv2.warpAffine(foreground, whole, size, flags=kernel, borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.warpAffine(alpha, whole, size, flags=kernel, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return foreground.clip(0, 1), alpha.clip(0, 1)


def cropped(
    rng: np.random.Generator, picture: np.ndarray, alpha: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """A square around a random pixel of a random trimap's unknown band, as far as the picture allows.

    A picture that is smaller is enlarged first; of a long one that is smaller, the square alone.

    Returns:
        [side, side, 3] and [side, side].
    """
    height, width = alpha.shape
    if _is_cut_first(height, width, side):
        height = width = min(height, width)
        # Not a trimap's band: as thin as it is before the picture is enlarged, it can be less than a pixel wide.
        square = _square_around(rng, _edge(alpha), height)
        picture, alpha = picture[square], alpha[square]
    if min(height, width) < side:
        factor = side / min(height, width)
        height, width = max(side, round(height * factor)), max(side, round(width * factor))
        picture, alpha = _resized_pair(rng, picture, alpha, height, width)
    square = _square_around(rng, random_trimap(rng, alpha) == 0.5, side)
    return picture[square], alpha[square].copy()


def recoloured(
    rng: np.random.Generator, foreground: np.ndarray, alpha: np.ndarray, variation: Augmentation
) -> np.ndarray:
    """Hue turned, saturation and value moved, each by one random amount for the whole subject.

    Args:
        foreground: float32 [H, W, 3].
        alpha: float32 [H, W]; the means of saturation and value are taken where it is above 0.
    """
    import cv2

    colors = cv2.cvtColor(np.ascontiguousarray(foreground), cv2.COLOR_RGB2HSV)
    colors[..., 0] = (colors[..., 0] + rng.uniform(-variation.hue_deg, variation.hue_deg)) % 360
    subject = alpha > 0
    for channel, most in ((1, variation.saturation), (2, variation.value)):
        mean = float(colors[..., channel][subject].mean()) if subject.any() else 0.0
        # A little is left to move even a subject of pure colour, or of white.
        colors[..., channel] += rng.uniform(-most, most) * (1.1 - mean)
    colors[..., 1:] = colors[..., 1:].clip(0, 1)
    return cv2.cvtColor(colors, cv2.COLOR_HSV2RGB).clip(0, 1)


def _by_share(rng: np.random.Generator, sources: Sequence[Foregrounds | Composed | Rendering | Backgrounds]) -> int:
    shares = np.array([source.share for source in sources])
    return int(rng.choice(len(shares), p=shares / shares.sum()))


def _is_cut_first(height: int, width: int, side: int) -> bool:
    return min(height, width) < side and max(height, width) > _LONGEST * min(height, width)


def _edge(alpha: np.ndarray) -> np.ndarray:
    """bool [H, W], where alpha is soft, and on both sides of where it changes from 0 to 1."""
    transparent, opaque = plain(alpha)
    return ~(transparent | opaque) | outline(opaque)


def _square_around(rng: np.random.Generator, wanted: np.ndarray, side: int) -> tuple[slice, slice]:
    """A square of `side` pixels around a random one of the wanted pixels, or of all if there are none, moved into the
    picture."""
    height, width = wanted.shape
    found = np.flatnonzero(wanted)
    place = found[rng.integers(found.size)] if found.size else rng.integers(wanted.size)
    row, column = divmod(int(place), width)
    top = min(max(0, row - side // 2), height - side)
    left = min(max(0, column - side // 2), width - side)
    return slice(top, top + side), slice(left, left + side)


def _square_anywhere(rng: np.random.Generator, height: int, width: int, side: int) -> tuple[slice, slice]:
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    return slice(top, top + side), slice(left, left + side)


def _kernel(rng: np.random.Generator, kernels: Sequence[int]) -> int:
    return kernels[rng.integers(len(kernels))]


def _resized(rng: np.random.Generator, picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture at another size, by a random one of OpenCV's kernels, so that the network relies on none."""
    import cv2

    kernel = _kernel(rng, (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4))
    return cv2.resize(picture, (width, height), interpolation=kernel).clip(0, 1)


def _resized_pair(rng, picture, alpha, height, width) -> tuple[np.ndarray, np.ndarray]:
    # As one array, so that both go through the same kernel.
    both = _resized(rng, np.dstack([picture, alpha]), height, width)
    return both[..., :3], np.ascontiguousarray(both[..., 3])
