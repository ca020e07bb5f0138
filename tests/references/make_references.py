"""Makes the reference numbers beside this file: python -m tests.references.make_references [GOLDEN]

GOLDEN is a folder with the numbers of the published system (tiny/io.safetensors and so on; its README explains them).
Nothing is written unless this library agrees with them. What is written then comes from this library with hashed
weights, for the published numbers need weights that are too big to be kept here; only merging needs none, and there
the published numbers themselves are kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mam_model.m2m import MaskToMatte
from mam_model.prompt import Prompt
from mam_model.sam import Sam, SamConfig

from . import chain
from .sparse import packed_bits, packed_sparse

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parents[2] / "shared" / "golden" / "mam"


def check_against(golden: Path) -> None:
    """Exits with a sentence unless the small golden chain comes out of this library."""
    stored = load_file(golden / "tiny" / "io.safetensors")
    weights = {name: value.float() for name, value in load_file(golden / "tiny" / "sam.safetensors").items()}
    sam = Sam(SamConfig.from_state_dict(weights)).eval()
    sam.load_state_dict(weights)
    m2m = MaskToMatte().eval()
    m2m.load_state_dict(load_file(golden / "tiny" / "m2m.safetensors"))
    embedding = sam.encode(stored["image"].float() / 255)
    prompts = {
        "box": Prompt(box_xyxy_px=tuple(stored["box"].tolist())),
        "point": Prompt(
            points_px=tuple(map(tuple, stored["points"].tolist())), labels=tuple(stored["labels"].tolist())
        ),
    }
    _agree("embedding", embedding.features, stored["embedding"], 1e-5)
    for name, prompt in prompts.items():
        guidance = sam.decode(embedding, [prompt])
        _agree(f"{name}.low_res_logits", guidance.logits, stored[f"{name}.low_res_logits"], 1e-4)
        _agree(f"{name}.iou", guidance.predicted_iou, stored[f"{name}.iou"], 1e-5)
        _agree(f"{name}.post_mask", guidance.post_mask(0), stored[f"{name}.post_mask"][0, 0], 0)
        pyramid = chain.exact_pyramid(m2m, embedding, guidance)
        for scale in ("os8", "os4", "os1"):
            # The published run itself is 2.4e-5 away from the result of float64.
            _agree(f"{name}.alpha_{scale}", getattr(pyramid, scale), stored[f"{name}.alpha_{scale}"], 3e-5)


def _agree(name: str, ours: Tensor, golden: Tensor, tolerance: float) -> None:
    difference = float((ours.float() - golden.float()).abs().max())
    print(f"{name:24} differs by {difference:.2g}")
    if difference > tolerance:
        sys.exit(f"{name} is further than {tolerance:g} from the published system: nothing was written.")


def chain_references(golden: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every intermediate of the chain with hashed weights, on golden's picture at half its size."""
    image = load_file(golden / "tiny" / "io.safetensors")["image"][::2, ::2].contiguous()
    sam, m2m = chain.reference_sam(), chain.reference_m2m()
    marks = {"sam": chain.fingerprint(sam.state_dict()), "m2m": chain.fingerprint(m2m.state_dict())}
    embedding = sam.encode(image.float() / 255)
    guidance = sam.decode(embedding, chain.reference_prompts(*image.shape[:2]))
    numbers = {"image": image, **chain.guidance_numbers(embedding, guidance)}
    matted = chain.matte_targets(guidance)
    numbers |= chain.pyramid_numbers(chain.exact_pyramid(m2m, embedding, matted), matted)
    return numbers, marks


def merging_references(golden: Path) -> dict[str, Tensor]:
    """The case "wide" of golden's merging: inputs, weight maps and a selection of the mattes, all without loss."""
    stored = load_file(golden / "tiny" / "merge.safetensors")
    rows = int(stored["wide.input_size"][0])
    numbers = {"size": stored["wide.size"], "mask": packed_bits(stored["wide.mask"][0, 0])}
    for scale in ("os8", "os4", "os1"):
        numbers |= packed_sparse(scale, stored[f"wide.{scale}"][0, 0, :rows])
    for key, value in stored.items():
        case, _, name = key.partition(".")
        mode, _, widths = name.partition(".w")
        if case != "wide" or not widths:
            continue
        if "_" not in widths:
            numbers[f"{mode}.weight{widths}"] = packed_bits(value[0, 0])
        elif widths == "10_20_10" or mode in ("mask_oneside", "alpha_twoside"):
            numbers |= packed_sparse(f"{mode}.{widths}", value[0, 0])
    return numbers


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("golden", nargs="?", type=Path, default=GOLDEN, metavar="GOLDEN")
    golden = parser.parse_args().golden
    with chain.single_thread():
        check_against(golden)
        numbers, marks = chain_references(golden)
    save_file({name: value.contiguous() for name, value in numbers.items()}, HERE / "chain.safetensors", marks)
    save_file(merging_references(golden), HERE / "merging.safetensors")


if __name__ == "__main__":
    main()
