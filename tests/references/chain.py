"""The small chain behind the reference numbers: networks with hashed weights, four prompts, every intermediate."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from mam_model.m2m import AlphaPyramid, MaskToMatte
from mam_model.matting import merge_targets, predict_pyramid
from mam_model.merge import MergeOptions
from mam_model.prompt import Prompt
from mam_model.sam import Embedding, Guidance, Sam, SamConfig

from .hashed_weights import hashed_m2m, hashed_sam

CONFIG = SamConfig(
    depth=2, embed_dim=64, num_heads=2, global_attention=(1,), image_size=256, window_size=7, decoder_mlp_dim=128
)
MERGING = {
    "mask_one": MergeOptions("mask", "one"),
    "mask_two": MergeOptions("mask", "two", 4, 12, 6),
    "alpha_one": MergeOptions("alpha", "one", 4, 12, 6),
    "alpha_two": MergeOptions("alpha", "two", clear_outside_box=False),
}


@contextmanager
def in_float64() -> Iterator[None]:
    """Lets a network of float64 weights compute without any rounding to float32 on its way."""
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread, because several sum up in an order of their own, which costs the last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def furthest(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two tensors of one shape."""
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).abs().max())


def reference_sam() -> Sam:
    sam = Sam(CONFIG).eval()
    sam.load_state_dict(hashed_sam(sam.state_dict()))
    return sam


def reference_m2m() -> MaskToMatte:
    m2m = MaskToMatte().eval()
    m2m.load_state_dict(hashed_m2m(m2m.state_dict()))
    return m2m


def fingerprint(state_dict: dict[str, Tensor]) -> str:
    """sha256 over all weights but the u and v of the spectral normalisation, which go through matrix products."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        if not name.endswith(("weight_u", "weight_v")):
            digest.update(name.encode() + state_dict[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def reference_prompts(height: int, width: int) -> list[Prompt]:
    """A box; three points, one of them negative; a box and a point; a mask hint and a point."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ellipse = ((columns / width - 0.46) / 0.24) ** 2 + ((rows / height - 0.53) / 0.37) ** 2 < 1
    box = (0.22 * width, 0.15 * height, 0.7 * width, 0.92 * height)
    middle = (0.45 * width, 0.5 * height)
    return [
        Prompt(box_xyxy_px=box),
        Prompt(points_px=(middle, (0.5 * width, 0.3 * height), (0.85 * width, 0.12 * height)), labels=(1, 1, 0)),
        Prompt(points_px=(middle,), labels=(1,), box_xyxy_px=box),
        Prompt(points_px=(middle,), labels=(1,), mask=ellipse.float()),
    ]


def guidance_numbers(embedding: Embedding, guidance: Guidance) -> dict[str, Tensor]:
    """What SAM said, thinned out. The masks at the picture's size are packed, 8 pixels a byte."""
    masks = torch.stack([guidance.post_mask(target) for target in range(len(guidance))])
    return {
        "features": embedding.features[:, ::16],
        "logits": guidance.logits[..., ::4, ::4],
        "predicted_iou": guidance.predicted_iou,
        "post_masks": torch.from_numpy(np.packbits(masks.numpy().astype(bool))),
    }


def matte_targets(guidance: Guidance) -> Guidance:
    """The first and the last target: two are enough for the slow network."""
    keep = [0, len(guidance) - 1]
    prompts = tuple(guidance.prompts[target] for target in keep)
    return Guidance(prompts, guidance.logits[keep], guidance.predicted_iou[keep], guidance.chosen[keep], guidance.frame)


def exact_pyramid(m2m: MaskToMatte, embedding: Embedding, guidance: Guidance) -> AlphaPyramid:
    """The trained network computed in float64 and rounded to float32 at the end."""
    with in_float64():
        return predict_pyramid(copy.deepcopy(m2m).double(), embedding, guidance)


def pyramid_numbers(pyramid: AlphaPyramid, guidance: Guidance) -> dict[str, Tensor]:
    """The three scales, every fourth pixel of the rows that show the picture, and the mattes merged from them."""
    rows = guidance.frame.content_height
    numbers = {name: getattr(pyramid, name)[..., :rows:4, ::4] for name in ("os8", "os4", "os1")}
    for name, options in MERGING.items():
        numbers[name] = merge_targets(pyramid, guidance, options)[:, ::2, ::2]
    return numbers
