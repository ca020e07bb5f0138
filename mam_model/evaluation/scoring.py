"""One picture of a test set: its mattes as files, and what they are measured at."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..metrics import KINDS, QUALITY_KINDS, EmptyBandError, instance_matting_quality, match_instances, score_matte
from ..photo import read_mask, read_photo, write_picture
from .engines import Engine, Task
from .layouts import EvaluationError, Sample, pictures_in
from .protocol import Pointer, Settings, band_of, stored

# What is measured of a picture, in the order of its line in the record.
ALL = KINDS
UNKNOWN = tuple(f"{kind}_unknown" for kind in KINDS)
IMQ = tuple(f"imq_{kind}" for kind in QUALITY_KINDS)
COUNTS = ("tp", "fp", "fn")
COLUMNS = ("name", "width", "height", "targets", "found", *ALL, *UNKNOWN, "unknown_px", *IMQ, *COUNTS)

# A line of the record: numbers under COLUMNS, and NaN for what was not measured. `found` counts the targets whose
# matte is not empty; with several targets the errors are their mean.
Row = dict[str, float | str]


def matte_files(folder: Path, sample: Sample) -> tuple[Path, ...]:
    """Where a sample's mattes are written: NAME.png, or NAME/00.png and so on in sets of instances."""
    if len(sample.truths) == 1:
        return (folder / f"{sample.name}.png",)
    return tuple(folder / sample.name / f"{truth.stem}.png" for truth in sample.truths)


def found_mattes(folder: Path, sample: Sample, instances: bool) -> tuple[Path, ...]:
    """The mattes of a sample in a folder of predictions, in the order of the targets where they have their names.

    Args:
        folder: NAME.png for each sample; in sets of instances NAME/*.png, or NAME.png for a single one.
        instances: whether there may be more or fewer of them than targets.
    Raises:
        EvaluationError: there is no matte for the sample.
    """
    inside = folder / sample.name
    if inside.is_dir() and (instances or len(sample.truths) > 1):
        found = pictures_in(inside)
        order = [truth.stem for truth in sample.truths]
        if found.keys() == set(order):
            return tuple(found[name] for name in order)
        return tuple(found.values())
    # A dot may be part of a name, so the suffix is not cut off with Path.with_suffix.
    for suffix in (".png", ".tif", ".tiff", ".webp", ".jpg", ".jpeg", ".bmp"):
        for spelled in (suffix, suffix.upper()):
            if (path := folder / f"{sample.name}{spelled}").is_file():
                return (path,)
    raise EvaluationError(f"There is no matte for it in {folder}; expected is {sample.name}.png.")


def make_mattes(sample: Sample, folder: Path, engine: Engine, pointer: Pointer, settings: Settings) -> None:
    """Makes a sample's mattes and writes them to `matte_files`.

    Raises:
        PhotoError, PromptError, TrimapError, EvaluationError: this sample cannot be done; the others can.
    """
    image = read_photo(sample.picture).image
    truths = _truths(sample, tuple(image.shape[:2]))
    prompts = pointer(sample, image, truths) if settings.needs_prompts else ()
    masks = None if sample.mask is None else _of_size(sample.mask, truths.shape[-2:])[None]
    # The others need none, and a broken trimap is no reason not to make a matte.
    trimaps = _trimaps(sample, truths, settings) if settings.engine == "closed-form" else None
    alphas = engine(Task(image, prompts, truths, trimaps, masks))
    for alpha, path in zip(alphas, matte_files(folder, sample)):
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = stored(alpha.cpu(), settings.levels)
        write_picture(path, levels, bits=16 if settings.levels == "16-bit" else 8)


def score_sample(sample: Sample, mattes: tuple[Path, ...], instances: bool, settings: Settings) -> Row:
    """What a sample's mattes are measured at.

    Args:
        mattes: files, in the order of the targets; of another number only in sets of instances, where then only
            instance matting quality is measured. Several that have not the names of the true ones are paired with them
            by what they cover, whatever their order.
        instances: whether to measure that.
    Raises:
        PhotoError: a file cannot be read.
        EvaluationError: files of different sizes.
    """
    truths = _truths(sample)
    size = tuple(truths.shape[-2:])
    predicted = torch.stack([_of_size(path, size) for path in mattes]) if mattes else truths.new_zeros(0, *size)
    row: Row = dict.fromkeys(COLUMNS, math.nan)
    row.update(name=sample.name, width=size[1], height=size[0], targets=len(truths))
    row["found"] = int((predicted > 0).flatten(1).any(dim=1).sum()) if len(predicted) else 0
    if len(predicted) == len(truths):
        named = [path.stem for path in mattes] == [path.stem for path in sample.truths]
        paired = predicted if named or len(truths) == 1 else _paired(predicted, truths)
        row.update(_errors(paired, truths, _trimaps(sample, truths, settings), settings))
    elif not instances:
        raise EvaluationError(f"There are {len(predicted)} mattes for it, and {len(truths)} targets.")
    if instances:
        quality = instance_matting_quality(predicted, truths, kinds=settings.quality_kinds)
        row.update({f"imq_{kind}": getattr(quality, kind) for kind in QUALITY_KINDS})
        row.update(tp=quality.tp, fp=quality.fp, fn=quality.fn)
    return row


def _paired(predicted: Tensor, truths: Tensor) -> Tensor:
    """The mattes in the order of the targets that they match; those that match none take the places that are left."""
    found = {target: matte for matte, target in match_instances(predicted, truths)}
    left = iter([matte for matte in range(len(predicted)) if matte not in found.values()])
    return predicted[[found[target] if target in found else next(left) for target in range(len(truths))]]


def _errors(predicted: Tensor, truths: Tensor, trimaps: Tensor, settings: Settings) -> Row:
    """The mean errors of the targets; those over the band are of the targets that have one."""
    whole, band, unknown_px = [], [], 0
    for alpha, truth, trimap in zip(predicted, truths, trimaps):
        try:
            over_all, over_band = score_matte(alpha, truth, trimap, kinds=settings.kinds)
            band.append(asdict(over_band))
            unknown_px += int(((trimap - 0.5).abs() < 0.25).sum())
        except EmptyBandError:
            over_all, _ = score_matte(alpha, truth, kinds=settings.kinds)
        whole.append(asdict(over_all))
    row: Row = {kind: _mean(errors[kind] for errors in whole) for kind in KINDS}
    row.update({f"{kind}_unknown": _mean(errors[kind] for errors in band) for kind in KINDS})
    return {**row, "unknown_px": unknown_px}


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def _truths(sample: Sample, size: tuple[int, int] | None = None) -> Tensor:
    """The true mattes of a sample, float32 [T, H, W]; of the given (rows, columns), or of one size."""
    first = read_mask(sample.truths[0])
    if size is not None and tuple(first.shape) != size:
        raise _sizes(sample.truths[0], tuple(first.shape), size)
    return torch.stack([first, *(_of_size(path, tuple(first.shape)) for path in sample.truths[1:])])


def _trimaps(sample: Sample, truths: Tensor, settings: Settings) -> Tensor:
    """The trimap of each target, float32 [T, H, W]: the set's, or the widened soft part of the true matte."""
    if sample.trimap is None:
        return torch.stack([band_of(truth, settings.band_px) for truth in truths])
    return _of_size(sample.trimap, tuple(truths.shape[-2:])).expand(len(truths), -1, -1)


def _of_size(path: Path, size: tuple[int, int]) -> Tensor:
    mask = read_mask(path)
    if tuple(mask.shape) != tuple(size):
        raise _sizes(path, tuple(mask.shape), tuple(size))
    return mask


def _sizes(path: Path, size: tuple[int, int], wanted: tuple[int, int]) -> EvaluationError:
    return EvaluationError(
        f"{path} is {size[1]} x {size[0]} pixels instead of {wanted[1]} x {wanted[0]}. What belongs to one picture has "
        "to have its size."
    )
