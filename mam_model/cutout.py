"""From photo files to cut-out files: what the command `matte` does, one photo after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .composite import ColorError, fit_picture, over, parse_color, with_alpha
from .foreground import estimate_foreground
from .instances import share_pixels
from .matting import MattingAnything
from .merge import MergeOptions
from .photo import PHOTO_SUFFIXES, PhotoError, check_writable, read_mask, read_photo, write_picture
from .places import obstacle
from .prompt import Prompt, PromptError
from .weights import Pair

# A picture [H, W, 3] and its prompts -> mattes [T, H, W].
Engine = Callable[[Tensor, Sequence[Prompt]], Tensor]


@dataclass(frozen=True)
class Length:
    """A coordinate as it was typed: pixels, or percent of the photo's width or height."""

    value: float
    is_percent: bool = False

    def of(self, extent_px: int) -> float:
        return self.value * extent_px / 100 if self.is_percent else self.value


@dataclass(frozen=True)
class Pointing:
    """What to cut out, before it is known how large the photos are.

    Attributes:
        boxes: (x0, y0, x1, y1) each; every box is a target of its own.
        points: (x, y, label) each; label 1 = on the subject, 0 = not.
        mask_file: a picture in which the subject is white, or None.
        trust_mask: the mask is the subject, and only its edge is to be solved.
        candidate: which of SAM's three masks to take; None takes the best.
    """

    boxes: tuple[tuple[Length, Length, Length, Length], ...] = ()
    points: tuple[tuple[Length, Length, int], ...] = ()
    mask_file: Path | None = None
    trust_mask: bool = False
    candidate: int | None = None

    def prompts(self, width: int, height: int) -> tuple[Prompt, ...]:
        """One prompt per target for a photo of that size.

        Without a box or with a single one, everything speaks of one target. With several boxes, a point speaks of
        every target in whose box it lies, and a mask is cut along the boxes.

        Raises:
            PromptError: when something does not fit the photo, or a point lies in none of several boxes.
            PhotoError: when the mask cannot be read.
        """
        extent = (width, height)
        points = [((x.of(width), y.of(height)), label) for x, y, label in self.points]
        boxes = [tuple(side.of(extent[i % 2]) for i, side in enumerate(box)) for box in self.boxes]
        mask = read_mask(self.mask_file) if self.mask_file else None
        prompts = []
        for box in boxes or [None]:
            prompt = Prompt(box_xyxy_px=box, mask=mask, mask_is_guidance=self.trust_mask, candidate=self.candidate)
            prompt = prompt.checked(width, height)
            mine = points if len(boxes) < 2 else [point for point in points if _lies_in(prompt.box_xyxy_px, point[0])]
            prompts.append(prompt.merged_with(Prompt(tuple(p for p, _ in mine), tuple(label for _, label in mine))))
        if len(boxes) > 1:
            for place, _ in points:
                if not any(_lies_in(prompt.box_xyxy_px, place) for prompt in prompts):
                    raise PromptError(
                        f"The point ({place[0]:g}, {place[1]:g}) lies in none of the {len(boxes)} boxes. "
                        "With several boxes a point speaks of those in which it lies."
                    )
            prompts = [_with_mask_in_box(prompt) for prompt in prompts]
        return tuple(prompt.checked(width, height) for prompt in prompts)


@dataclass(frozen=True)
class Finish:
    """What becomes of a photo and its matte.

    Attributes:
        background: a colour or a picture file to lay the subject over; None keeps the subject with its alpha.
        fit: how a background picture is fitted, see `composite.fit_picture`.
        keep_edge_color: leave the colours as they are instead of taking the old background out of soft edges.
        matte_bits: 8 or 16, for the file that holds the matte.
    """

    background: str | None = None
    fit: str = "cover"
    keep_edge_color: bool = False
    matte_bits: int = 8

    def picture(self, image: Tensor, alpha: Tensor) -> Tensor:
        """[H, W, 4], or [H, W, 3] over the background.

        Raises:
            ColorError, PhotoError: the background is neither a colour nor a picture.
        """
        subject = image if self.keep_edge_color else estimate_foreground(image, alpha)
        if self.background is not None:
            return over(subject, alpha, self.behind(*alpha.shape))
        if self.keep_edge_color:
            # Otherwise the whole photo would lie hidden in its cut-out.
            subject = subject * (alpha * 255 >= 0.5)[..., None]
        return with_alpha(subject, alpha)

    def behind(self, height: int, width: int) -> Tensor:
        """The background, [height, width, 3] or one colour [3]."""
        path = Path(self.background)
        if path.is_file() or path.suffix.lower() in PHOTO_SUFFIXES:
            return fit_picture(read_photo(path).image, height, width, self.fit)
        if path.is_dir():
            raise ColorError(f"{path} is a folder. Name a picture in it, or a colour.")
        return torch.tensor(parse_color(self.background))


@dataclass(frozen=True)
class Job:
    """One photo and the files that are to come of it.

    Attributes:
        photo: the file to read.
        result: where the cut-out or composite goes.
        matte: where the matte goes, or None.
    """

    photo: Path
    result: Path
    matte: Path | None = None

    @property
    def outputs(self) -> tuple[Path, ...]:
        return (self.result,) if self.matte is None else (self.result, self.matte)

    def check(self, finish: Finish) -> None:
        """Refuses names that cannot be written, or that would destroy the photo.

        Raises:
            PhotoError
        """
        check_writable(self.result, with_alpha=finish.background is None)
        if self.matte is not None:
            check_writable(self.matte, bits=finish.matte_bits)
            if self.matte.resolve() == self.result.resolve():
                raise PhotoError(f"Cut-out and matte would both be written to {self.result}. Give two names.")
        for output in self.outputs:
            if taken := obstacle(output):
                raise PhotoError(f"{taken}. Choose another place.")
            if output.resolve() == self.photo.resolve():
                raise PhotoError(f"{output} is the photo itself, which is never overwritten. Choose another name.")


def photos_in(inputs: Sequence[Path]) -> list[Path]:
    """The photos named, and those that lie directly in the folders named.

    Raises:
        PhotoError: for a folder without photos.
    """
    photos = []
    for path in inputs:
        if not path.is_dir():
            photos.append(path)
            continue
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in PHOTO_SUFFIXES and not p.name.startswith("."))
        if not found:
            raise PhotoError(f"There is no photo in the folder {path}.")
        photos += found
    return list(dict.fromkeys(photos))


def jobs_into(photos: Sequence[Path], folder: Path, matte_folder: Path | None) -> list[Job]:
    """One job per photo: holiday.jpg becomes holiday.png in the folder, or holiday.jpg.png beside a holiday.webp."""
    # Windows and macOS hold A.png and a.png for the same file.
    stems = [photo.stem.casefold() for photo in photos]
    names = [f"{p.stem if stems.count(s) == 1 else p.name}.png" for p, s in zip(photos, stems)]
    if len({name.casefold() for name in names}) < len(names):
        raise PhotoError("Some of the photos have the same name in different folders. Give them one folder at a time.")
    return [Job(p, folder / name, matte_folder and matte_folder / name) for p, name in zip(photos, names)]


def cut_out(job: Job, engine: Engine, pointing: Pointing, finish: Finish, overwrite: bool) -> bool:
    """Does one job, and of its files those that do not exist yet, unless `overwrite`.

    Where the photo is transparent already it stays so.

    Returns:
        Whether anything was found.
    Raises:
        PhotoError, PromptError, ColorError, OSError
    """
    photo = read_photo(job.photo)
    height, width = photo.image.shape[:2]
    alphas = engine(photo.image, pointing.prompts(width, height))
    alpha = share_pixels(alphas).sum(dim=0).clamp(0, 1) if len(alphas) > 1 else alphas[0]
    if photo.alpha is not None:
        alpha = torch.minimum(alpha, photo.alpha)
    for output in job.outputs:
        output.parent.mkdir(parents=True, exist_ok=True)
    if overwrite or not job.result.exists():
        write_picture(job.result, finish.picture(photo.image, alpha))
    if job.matte is not None and (overwrite or not job.matte.exists()):
        write_picture(job.matte, alpha, bits=finish.matte_bits)
    return bool((alpha > 0.5).any())


def classical_engine(method: str) -> Engine:
    """The engine that needs no weights but the refiner's. See `classical.matte_without_models`."""
    from .classical import matte_without_models
    from .refiner import load_refiner, refine_mask

    # Loaded once for all photos.
    refine = partial(refine_mask, load_refiner()) if method == "refiner" else None

    def mattes(image: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.stack([matte_without_models(image, prompt, method=method, refine=refine) for prompt in prompts])

    return mattes


def networks_engine(pair: Pair, device: torch.device, precision: str, options: MergeOptions) -> Engine:
    """SAM and Mask-to-Matte.

    Args:
        precision: "fp32", "fp16", "bf16", or "auto": fp16 on CUDA and fp32 elsewhere.
    Raises:
        CheckpointError: a file is not what it should be.
    """
    from .checkpoint import load_m2m, load_sam

    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    dtype = dtypes.get(precision, torch.float16 if device.type == "cuda" else torch.float32)
    sam = load_sam(pair.sam)
    # Prompt encoder and mask decoder stay in float32: they are small, and half precision moves thresholds.
    sam.image_encoder.to(dtype)
    m2m = load_m2m(pair.m2m).fold().to(dtype)
    matting = MattingAnything(sam.to(device), m2m.to(device))
    return lambda image, prompts: matting.matte(image, prompts, options)


def chosen_device(name: str) -> torch.device:
    """The device of that name; "auto" takes the fastest there is.

    Raises:
        ValueError: when this machine or this PyTorch has no such device.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, is_there in there.items() if is_there)
    if not there[name]:
        raise ValueError(f"PyTorch finds no {name} device here. Use --device auto or --device cpu.")
    return torch.device(name)


def _lies_in(box_xyxy_px: tuple[float, float, float, float], place: tuple[float, float]) -> bool:
    x0, y0, x1, y1 = box_xyxy_px
    return x0 <= place[0] <= x1 and y0 <= place[1] <= y1


def _with_mask_in_box(prompt: Prompt) -> Prompt:
    """The prompt with its mask emptied outside its box."""
    if prompt.mask is None:
        return prompt
    x0, y0, x1, y1 = (round(side) for side in prompt.box_xyxy_px)
    inside = torch.zeros_like(prompt.mask)
    inside[y0:y1, x0:x1] = prompt.mask[y0:y1, x0:x1]
    return replace(prompt, mask=inside)
