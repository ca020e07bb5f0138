"""What an evaluation comes to: the means beside the paper's figures, and a sheet of the worst cases to look at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..metrics import KINDS, QUALITY_KINDS, InstanceQuality, pooled_quality
from ..photo import PhotoError, read_mask, read_photo
from ..view import contact_sheet, grey, instance_color
from .layouts import Sample, TestSet
from .paper import figures
from .protocol import Settings
from .scoring import Row

_TITLES = {"sad": "SAD", "mse": "MSE", "mad": "MAD", "grad": "Grad", "conn": "Conn"}
_PANEL_PX = 240
_GAP_PX = 6


def means(rows: Iterable[Row], instances: bool) -> dict[str, float]:
    """The figures of a test set by column: the mean over its pictures, and IMQ pooled over them, x 100 as in papers.

    NaN where nothing was measured. A mean is over the pictures that have the figure; one without an unknown band, for
    example, has none over that.
    """
    rows = list(rows)
    result = {}
    for column in (*KINDS, *(f"{kind}_unknown" for kind in KINDS)):
        values = [row[column] for row in rows if not math.isnan(row[column])]
        result[column] = sum(values) / len(values) if values else math.nan
    if instances and rows:
        pooled = pooled_quality(
            InstanceQuality(
                *(row[f"imq_{kind}"] for kind in QUALITY_KINDS), *(int(row[count]) for count in ("tp", "fp", "fn"))
            )
            for row in rows
        )
        result.update({f"imq_{kind}": 100 * getattr(pooled, kind) for kind in QUALITY_KINDS})
        result.update(tp=pooled.tp, fp=pooled.fp, fn=pooled.fn)
    return result


def summary(test_set: TestSet, settings: Settings, rows: Sequence[Row], failed: Mapping[str, str]) -> str:
    """The summary of an evaluation in Markdown: settings, means beside the paper's figures, and what is missing.

    Args:
        rows: of the pictures that were measured.
        failed: by name, what was wrong with those that could not be.
    """
    layout = test_set.layout
    lines = [f"# {layout.title}", "", *_told_settings(settings), ""]
    if rows:
        lines += _table(settings, means(rows, layout.instances), layout.instances)
    else:
        lines += ["Nothing was measured."]
    lines += ["", *_counts(test_set, settings, rows)]
    if failed:
        lines += ["", f"{_pictures(len(failed))} could not be measured, and the figures are without them:", ""]
        lines += [f"- {name}: {sentence}" for name, sentence in sorted(failed.items())]
    return "\n".join(lines) + "\n"


def worst_first(rows: Iterable[Row], instances: bool) -> list[Row]:
    """By the lowest IMQ (MAD) in sets of instances, else by the largest SAD."""
    if instances:
        return sorted(rows, key=lambda row: (row["imq_mad"], row["name"]))
    return sorted(rows, key=lambda row: (-row["sad"], row["name"]))


def worst_sheet(samples: Mapping[str, Sample], rows: Sequence[Row], mattes: Mapping[str, Sequence[Path]]) -> Tensor:
    """The given cases on one sheet, each as picture, true matte, matte, and where they differ (brighter is more).

    Instances have a colour each, in the order of their files.

    Args:
        rows: at least one; the first comes first.
        mattes: the files of each sample's mattes.
    Returns:
        float32 [h, w, 3], 0..1.
    """
    cells, captions = [], []
    for row in rows:
        name = str(row["name"])
        truths = [read_mask(path) for path in samples[name].truths]
        predicted = [read_mask(path) for path in mattes[name]]
        difference = (_united(truths) - _united(predicted or [torch.zeros_like(truths[0])])).abs()
        panels = [_shown(samples[name].picture), _painted(truths, truths), _painted(predicted, truths)]
        cells.append(_row([*panels, grey(difference)]))
        quality = "" if math.isnan(row["imq_mad"]) else f"  IMQ {100 * row['imq_mad']:.1f}"
        error = "" if math.isnan(row["sad"]) else f"  SAD {row['sad']:.2f}"
        captions.append(f"{name[:60]}{error}{quality}")
    captions[0] += "  (picture, true matte, matte, difference)"
    return contact_sheet(cells, captions, cell_px=cells[0].shape[1])


def _told_settings(settings: Settings) -> list[str]:
    facts = settings.facts()
    engine = "predictions" if settings.engine == "predictions" else f"engine {settings.engine}"
    told = [engine]
    for name in ("prompt", "guidance", "sides", "widths", "precision", "method", "mask", "levels"):
        if name in facts:
            value = " ".join(map(str, facts[name])) if isinstance(facts[name], tuple) else facts[name]
            told.append(f"{name} {value}")
    weights = [f"- {name}: sha256 {digest}" for name, digest in facts.get("weights", ())]
    return [f"{', '.join(told)}.", *(["", *weights] if weights else [])]


def _table(settings: Settings, mean: Mapping[str, float], instances: bool) -> list[str]:
    paper = figures(settings.benchmark, settings.prompt)
    engines = {"mam": "MAM in the paper", "sam-mask": "SAM in the paper"}
    shown = [engine for engine in engines if engine in paper]
    header = ["", "whole picture", "unknown band", *(engines[engine] for engine in shown)]
    body = []
    for kind in KINDS:
        values = [_number(mean[kind]), _number(mean[f"{kind}_unknown"])]
        body.append([_TITLES[kind], *values, *(paper[engine].get(kind, "") for engine in shown)])
    if instances:
        for kind in QUALITY_KINDS:
            column = f"imq_{kind}"
            from_paper = (paper[engine].get(column, "") for engine in shown)
            body.append([f"IMQ ({_TITLES[kind]})", _number(mean[column]), "", *from_paper])
    body = [row for row in body if any(row[1:])]
    widths = [max(len(row[column]) for row in (header, *body)) for column in range(len(header))]
    ruled = [f"{'-' * (width - 1)}:" if column else "-" * width for column, width in enumerate(widths)]
    lines = [
        "| " + " | ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in pairs) + " |"
        for pairs in (list(enumerate(zip(row, widths))) for row in (header, ruled, *body))
    ]
    lines += ["", "SAD, Grad and Conn are in thousands, MSE and MAD in thousandths; 0 is perfect."]
    if instances:
        lines += [
            f"IMQ is x 100, 100 is perfect: {mean['tp']} instances found, {mean['fp']} invented, {mean['fn']} missed."
        ]
    return lines


def _counts(test_set: TestSet, settings: Settings, rows: Sequence[Row]) -> list[str]:
    layout, lines = test_set.layout, []
    whole = layout.pictures or len(test_set.samples)
    lines.append(f"Measured: {len(rows)} of {_pictures(whole)}.")
    if rows and len(rows) < whole and figures(settings.benchmark, settings.prompt):
        lines.append("The paper's figures are those of the whole set, so these cannot be compared with them.")
    nothing = sum(int(row["targets"] - row["found"]) for row in rows if row["targets"] > row["found"])
    if nothing:
        lines.append(f"Empty mattes: {nothing}.")
    if any(sample.trimap is None for sample in test_set.samples):
        lines.append(
            f"Where the set has no trimap, the unknown band is the true matte's soft part, {settings.band_px:g} pixels "
            "wider."
        )
    if settings.engine == "closed-form" or (settings.engine, settings.mask) == ("refiner", "truth"):
        given = "the trimap" if settings.engine == "closed-form" else "the true mask"
        lines.append(
            f"The engine was given {given}: these are no figures to hold against engines that find the subject."
        )
    if test_set.left_out:
        lines.append(
            f"Left out for want of a partner: {len(test_set.left_out)} ({', '.join(test_set.left_out[:10])}"
            f"{', ...' if len(test_set.left_out) > 10 else ''})."
        )
    return lines


def _pictures(count: int) -> str:
    return f"{count} picture{'' if count == 1 else 's'}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _shown(picture: Path) -> Tensor:
    """[H, W, 3]; a grey square for a damaged picture, which mattes that are only judged are measured without."""
    try:
        return read_photo(picture).image
    except PhotoError:
        return torch.full((1, 1, 3), 0.5)


def _united(alphas: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(alphas)).amax(dim=0)


def _painted(alphas: Sequence[Tensor], truths: Sequence[Tensor]) -> Tensor:
    """One matte in grey; several each in a colour, on black. [H, W, 3]"""
    if len(truths) == 1 and len(alphas) == 1:
        return grey(alphas[0])
    picture = torch.zeros(*truths[0].shape, 3)
    for number, alpha in enumerate(alphas):
        picture += alpha[..., None] * torch.tensor(instance_color(number))
    return picture.clamp(0, 1)


def _row(panels: Sequence[Tensor]) -> Tensor:
    """Pictures of any size side by side, each fitted to the bottom of a white square: float [_PANEL_PX, w, 3]."""
    row = torch.ones(_PANEL_PX, len(panels) * (_PANEL_PX + _GAP_PX) - _GAP_PX, 3)
    for number, panel in enumerate(panels):
        height, width = panel.shape[:2]
        scale = _PANEL_PX / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        fitted = F.interpolate(panel.permute(2, 0, 1)[None], size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
        top, left = _PANEL_PX - size[0], number * (_PANEL_PX + _GAP_PX) + (_PANEL_PX - size[1]) // 2
        row[top : top + size[0], left : left + size[1]] = fitted
    return row
