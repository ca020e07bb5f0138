"""What makes the mattes that are measured: the networks, the paper's baseline, and the ways without networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..cutout import classical_engine, networks_engine
from ..merge import MergeOptions
from ..prompt import Prompt
from ..published import sha256_of
from ..weights import Pair
from .protocol import Settings, by_box, by_point, by_text


@dataclass(frozen=True, eq=False)
class Task:
    """A picture and all that an engine may know of its T targets.

    Attributes:
        image: float32 [H, W, 3], sRGB 0..1.
        prompts: one for each target.
        truths: float32 [T, H, W], the true mattes, for engines that start from a true mask.
        trimaps: float32 [T, H, W] of 0, 0.5 and 1; only for "closed-form", else None.
        masks: float32 [T, H, W], the masks that come with the set, or None.
    """

    image: Tensor
    prompts: tuple[Prompt, ...]
    truths: Tensor
    trimaps: Tensor | None = None
    masks: Tensor | None = None


# The mattes of a task's targets, float [T, H, W], 0..1.
Engine = Callable[[Task], Tensor]


@dataclass(frozen=True)
class Files:
    """Where the networks of an engine are, and where they run.

    Attributes:
        pair: SAM and Mask-to-Matte; of "sam-mask" and of masks by SAM only the first is used.
        detector: the folder of Grounding DINO.
        device: of PyTorch.
    """

    pair: Pair | None = None
    detector: Path | None = None
    device: str = "cpu"


def weights_of(settings: Settings, files: Files) -> tuple[tuple[str, str], ...]:
    """Name and sha256 of each file of weights that these settings use.

    Raises:
        OSError: a file cannot be read.
    """
    used = []
    if settings.needs_sam:
        used.append(files.pair.sam)
    if settings.engine == "mam" and files.pair.m2m != files.pair.sam:
        used.append(files.pair.m2m)
    if settings.uses_refiner:
        from ..refiner import SHIPPED_WEIGHTS

        used.append(SHIPPED_WEIGHTS)
    if settings.needs_detector:
        used += sorted(files.detector.glob("*.safetensors"))
    return tuple((path.name, sha256_of(path)) for path in used)


def build_engine(settings: Settings, files: Files | None = None) -> Engine:
    """The engine of these settings.

    Args:
        files: needed by engines with networks.
    Raises:
        CheckpointError: a file is not what it should be.
    """
    files = files or Files()
    device = torch.device(files.device)
    if settings.engine == "mam":
        merging = MergeOptions(settings.guidance, settings.sides, *settings.widths)
        matte = networks_engine(files.pair, device, settings.precision, merging)
        return lambda task: matte(task.image, task.prompts)
    if settings.engine == "sam-mask":
        return sam_mask_engine(files.pair.sam, device, settings.precision)
    if settings.engine == "classical":
        cut = classical_engine(settings.method)
        return lambda task: cut(task.image, task.prompts)
    if settings.engine == "closed-form":
        return closed_form_engine
    return refiner_engine(settings, files)


def build_pointer(settings: Settings, files: Files | None = None):
    """What points at the targets; see `protocol.Pointer`.

    Raises:
        CheckpointError, TransformersMissing: the text detector cannot be used.
    """
    if settings.needs_detector:
        from ..text import load_text_detector

        return by_text(load_text_detector(files.detector).to(files.device))
    return by_point if settings.prompt == "point" else by_box


def sam_mask_engine(sam_file: Path, device: torch.device, precision: str) -> Engine:
    """SAM's mask of the highest predicted IoU as the matte, the paper's baseline.

    Args:
        precision: of the image encoder, "fp32", "fp16" or "bf16".
    """
    from ..checkpoint import load_sam

    sam = load_sam(sam_file)
    sam.image_encoder.to({"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision])
    sam.to(device)

    @torch.inference_mode()
    def masks(task: Task) -> Tensor:
        guidance = sam.decode(sam.encode(task.image), task.prompts)
        return torch.stack([guidance.post_mask(target).float().cpu() for target in range(len(guidance))])

    return masks


def closed_form_engine(task: Task) -> Tensor:
    """Closed-form matting (Levin, Lischinski, Weiss 2008) in the trimap's band: what is possible once it is known
    where the edge is."""
    from ..trimap_matting import solve_trimap

    return torch.stack([solve_trimap(task.image, trimap) for trimap in task.trimaps])


def refiner_engine(settings: Settings, files: Files) -> Engine:
    """The shipped refiner on a hard mask: the true alpha above 0.5, SAM's, or the one that comes with the set."""
    from ..refiner import load_refiner, refine_mask

    refiner = load_refiner().to(files.device)
    by_sam = None
    if settings.mask == "sam":
        by_sam = sam_mask_engine(files.pair.sam, torch.device(files.device), settings.precision)

    def masks(task: Task) -> Tensor:
        if by_sam:
            return by_sam(task)
        return ((task.truths if settings.mask == "truth" else task.masks) > 0.5).float()

    return lambda task: torch.stack([refine_mask(refiner, task.image, mask) for mask in masks(task)])
