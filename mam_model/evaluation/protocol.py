"""How a target of a test set is pointed at, and everything else on which the figures of an evaluation depend.

The published protocol (arXiv 2306.05399 and the released evaluation): the prompt is the tight box of the true alpha
above 0.5, or the centre of that box as one point, or the most certain box that Grounding DINO finds for the text.
Semantic sets (PPM-100, AM-2k, PM-10k, RWP-636) start the merge from the coarse alpha, sets with several targets (HIM2K,
RefMatte-RW100) from SAM's mask. Bands are widened by 10, 20 and 10 pixels, on one side. Mattes are stored in 8 bits,
rounded down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..metrics import KINDS, QUALITY_KINDS
from ..prompt import Prompt
from ..text import TextDetector
from ..trimap import SURE_BACKGROUND, SURE_SUBJECT, trimap_from_alpha
from .layouts import EvaluationError, Sample, TestSet

ENGINES = ("mam", "sam-mask", "classical", "closed-form", "refiner")
PROMPTS = ("box", "point", "text")
MASKS = ("truth", "sam", "file")
LEVELS = ("down", "nearest", "16-bit")

BOX_THRESHOLD = 0.25
_SLOW_KINDS = ("grad", "conn")
# What would change figures that were measured before is to raise this.
_VERSION = 1


@dataclass(frozen=True)
class Settings:
    """All that figures depend on. Two runs with the same settings on the same pictures give the same figures.

    Attributes:
        benchmark: the layout's name.
        data: the folder of the test set.
        engine: of ENGINES, or "predictions" where mattes on disk are judged.
        predictions: their folder, or "".
        prompt: of PROMPTS.
        guidance, sides, widths: of "mam", see `MergeOptions`; widths are (os8, os4, os1) in pixels.
        precision: of the networks: "fp32", "fp16" or "bf16".
        method: of "classical" (see `classical.METHODS`).
        mask: of MASKS, what "refiner" starts from.
        weights: (name, sha256) of each file of weights that is used.
        band_px: by how much the soft part of a true matte is widened where the set has no trimap.
        levels: "down" or "nearest": to which of 8-bit levels a matte is rounded; "16-bit" to the nearest of those.
        quick: Grad and Conn are left out.
    """

    benchmark: str
    data: str
    engine: str
    predictions: str = ""
    prompt: str = "box"
    guidance: str = "mask"
    sides: str = "one"
    widths: tuple[int, int, int] = (10, 20, 10)
    precision: str = "fp32"
    method: str = "closed-form"
    mask: str = "truth"
    weights: tuple[tuple[str, str], ...] = ()
    band_px: float = 10.0
    levels: str = "nearest"
    quick: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The errors that are measured."""
        return tuple(kind for kind in KINDS if not (self.quick and kind in _SLOW_KINDS))

    @property
    def quality_kinds(self) -> tuple[str, ...]:
        """The errors with which instance matting quality is measured."""
        return tuple(kind for kind in QUALITY_KINDS if kind in self.kinds)

    @property
    def needs_prompts(self) -> bool:
        return self.needs_sam or self.engine == "classical"

    @property
    def needs_sam(self) -> bool:
        return self.engine in ("mam", "sam-mask") or (self.engine, self.mask) == ("refiner", "sam")

    @property
    def uses_refiner(self) -> bool:
        return self.engine == "refiner" or (self.engine, self.method) == ("classical", "refiner")

    @property
    def needs_detector(self) -> bool:
        return self.needs_prompts and self.prompt == "text"

    @property
    def has_networks(self) -> bool:
        return self.needs_sam or self.needs_detector or self.engine == "refiner"

    def facts(self) -> dict[str, object]:
        """The settings that matter to this engine, by name; what figures may be compared by."""
        always = ("benchmark", "data", "engine", "band_px", "quick")
        of_engine = {
            "mam": ("guidance", "sides", "widths", "weights", "levels"),
            "sam-mask": ("weights", "levels"),
            "classical": ("method", "levels", *(("weights",) if self.uses_refiner else ())),
            "closed-form": ("levels",),
            "refiner": ("mask", "weights", "levels"),
            "predictions": ("predictions",),
        }[self.engine]
        if self.needs_prompts:
            of_engine += ("prompt", "weights") if self.prompt == "text" else ("prompt",)
        if self.needs_sam:
            of_engine += ("precision",)
        every = asdict(self)
        return {"version": _VERSION, **{name: every[name] for name in dict.fromkeys(always + of_engine)}}


# (the sample, its picture [H, W, 3], its true mattes [T, H, W]) -> a prompt for each target.
Pointer = Callable[[Sample, Tensor, Tensor], tuple[Prompt, ...]]


def check_samples(test_set: TestSet, settings: Settings) -> None:
    """Refuses settings that the test set has not got what is needed for.

    Raises:
        EvaluationError
    """
    if settings.needs_detector:
        without = [sample.name for sample in test_set.samples if not sample.text]
        if without:
            raise EvaluationError(
                f"{len(without)} of {len(test_set.samples)} targets have no text, first {without[0]}. RefMatte-RW100 "
                "has texts in refmatte_rw100_label.json; for pictures of your own write them into text.json as "
                '{"NAME": "the dog on the left"}.'
            )
    if (settings.engine, settings.mask) == ("refiner", "file"):
        without = [sample.name for sample in test_set.samples if not sample.mask]
        if without:
            raise EvaluationError(
                f"{len(without)} of {len(test_set.samples)} pictures have no mask beside them, first {without[0]}. Use "
                "--mask truth or --mask sam."
            )


def by_box(sample: Sample, image: Tensor, truths: Tensor) -> tuple[Prompt, ...]:
    """The tight box of each target."""
    boxes = [tight_box(truth) for truth in truths]
    return tuple(Prompt() if box is None else Prompt(box_xyxy_px=box) for box in boxes)


def by_point(sample: Sample, image: Tensor, truths: Tensor) -> tuple[Prompt, ...]:
    """The centre of each target's tight box, as one point on the target, which it need not be."""
    boxes = [tight_box(truth) for truth in truths]
    return tuple(
        Prompt() if box is None else Prompt(points_px=(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2),), labels=(1,))
        for box in boxes
    )


def by_text(detector: TextDetector) -> Pointer:
    """The most certain box that the detector finds for the sample's text; an empty prompt if it finds none.

    Every box counts from a confidence of 0.25 on. The text threshold of the released evaluation (0.5) only settles
    which words belong to a box, which plays no part here.
    """

    def pointer(sample: Sample, image: Tensor, truths: Tensor) -> tuple[Prompt, ...]:
        subject = " ".join(sample.text.lower().replace(".", " ").split())
        found = detector.detect(image, [subject], BOX_THRESHOLD, 0.0)
        return (Prompt(box_xyxy_px=found[0].box_xyxy_px, label=subject, score=found[0].score) if found else Prompt(),)

    return pointer


def tight_box(truth: Tensor) -> tuple[float, float, float, float] | None:
    """From the first to the last column and row in which a true matte [H, W] is above 0.5, as (x0, y0, x1, y1).

    As in the released evaluation, x1 and y1 are the last column and row themselves; a target of one column or row
    gets one more. A matte that is nowhere above 0.5 is boxed where it is above 0; None where that is nowhere.
    """
    subject = truth > 0.5
    if not subject.any():
        subject = truth > 0
    rows, columns = subject.any(dim=1).nonzero().flatten(), subject.any(dim=0).nonzero().flatten()
    if not len(rows):
        return None
    x0, y0, x1, y1 = (float(side) for side in (columns[0], rows[0], columns[-1], rows[-1]))
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def band_of(truth: Tensor, band_px: float) -> Tensor:
    """The trimap [H, W] of a true matte where the set has none: its soft pixels, widened, are unknown.

    Soft is what lies between 0.05 and 0.95: true mattes that were stored as JPEG, or drawn by a network, are hardly
    anywhere exactly 0 or 1.
    """
    return trimap_from_alpha(truth, SURE_BACKGROUND, SURE_SUBJECT, band_px)


def stored(alpha: Tensor, levels: str) -> Tensor:
    """Alpha [H, W] as the file will hold it: rounded to its levels, still 0..1."""
    if levels == "down":
        # In float32, as the released evaluation multiplies.
        return torch.floor(alpha.float().clamp(0, 1) * 255) / 255
    top = 65535 if levels == "16-bit" else 255
    return torch.round(alpha.double().clamp(0, 1) * top) / top
