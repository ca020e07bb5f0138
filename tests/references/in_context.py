"""A small in-context decoder with hashed weights and inputs, and the numbers that it gives.

    python -m tests.references.in_context [GOLDEN]

writes in_context.safetensors beside this file. GOLDEN is a folder with the numbers of the released code (its README
explains them); nothing is written unless this library agrees with them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mam_model.in_context.decoder import DecoderConfig, InContextDecoder
from mam_model.in_context.taps import Taps

from .chain import fingerprint, single_thread
from .hashed_weights import hashed_uniform

STORED = Path(__file__).with_suffix(".safetensors")
GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "iconmatting"
CONFIG = DecoderConfig(
    feature_channels=48, coarse_cells=6, guidance_channels=12, fused_channels=16, detail_channels=(16, 12, 8, 8)
)


def reference_decoder() -> InContextDecoder:
    decoder = InContextDecoder(CONFIG).eval()
    decoder.load_state_dict(hashed_decoder(decoder.state_dict()))
    return decoder


def hashed_decoder(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for an `InContextDecoder`; of `state_dict` only names and shapes are looked at."""
    weights = {}
    for name, tensor in state_dict.items():
        shape = tuple(tensor.shape)
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(1)
        elif name.endswith("running_var"):
            weights[name] = hashed(name, *shape) * 0.2 + 1
        elif name.endswith("matting_convs.3.weight"):
            # Strong, so that alpha reaches 0 and 1.
            weights[name] = hashed(name, *shape) * 3
        elif name.endswith("matting_convs.3.bias"):
            # Centres alpha between background and subject.
            weights[name] = torch.full(shape, -1.2)
        elif len(shape) == 4:
            weights[name] = hashed(name, *shape) * math.sqrt(2 / math.prod(shape[1:]))
        else:
            weights[name] = hashed(name, *shape) * 0.2 + float(name.endswith("weight"))
    return weights


def hashed(name: str, *shape: int) -> Tensor:
    """float32 of `shape`, mean 0 and standard deviation 1, from the name alone."""
    return torch.from_numpy(hashed_uniform(name, math.prod(shape)).reshape(shape) * math.sqrt(3)).float()


def reference_inputs() -> tuple[Taps, Tensor, list[Tensor]]:
    """Taps and squares of two targets, and the tokens of two references."""
    channels, coarse, fine, side = CONFIG.feature_channels, CONFIG.coarse_cells, CONFIG.fine_cells, CONFIG.side
    taps = Taps(
        fine=hashed("fine", 2, channels, fine, fine),
        coarse=hashed("coarse", 2, channels, coarse, coarse),
        fine_attention=(hashed("fine attention", 2, fine**2, fine**2) * 2).softmax(-1),
        coarse_attention=(hashed("coarse attention", 2, coarse**2, coarse**2) * 2).softmax(-1),
    )
    squares = (hashed("squares", 2, side, side, 3) / 4 + 0.5).clamp(0, 1)
    # The first reference looks like a place in the first target, the second like nothing in particular.
    return taps, squares, [taps.fine[0, :, 2:7, 3:9].flatten(1).t(), hashed("reference", 12, channels)]


def numbers() -> dict[str, Tensor]:
    decoder = reference_decoder()
    taps, squares, references = reference_inputs()
    alpha, similarity = decoder.matte(taps, squares, references)
    return {"similarity": similarity, "alpha": alpha[:, ::4, ::4].contiguous(), "row": alpha[:, CONFIG.side // 2]}


def golden_decoder(golden: Path, name: str = "decoder_tiny.safetensors") -> InContextDecoder:
    weights = {key.removeprefix("in_context_decoder."): value for key, value in load_file(golden / name).items()}
    decoder = InContextDecoder(DecoderConfig.from_state_dict(weights)).eval()
    decoder.load_state_dict(weights)
    return decoder


def golden_taps(stored: Mapping[str, Tensor]) -> Taps:
    return Taps(stored["f48"], stored["f24"], stored["a48"].flatten(1, 2), stored["a24"].flatten(1, 2))


def _agrees(golden: Path) -> float:
    """How far this library's alpha is from the released code's."""
    stored = load_file(golden / "tiny_io.safetensors")
    region = -torch.nn.functional.max_pool2d(-stored["mask"].float(), 16)[0, 0] == 1
    decoder, taps = golden_decoder(golden), golden_taps(stored)
    similarity = decoder.similarity(taps, [stored["ref48"][0][:, region].t()])
    return float((decoder(taps, stored["image"].float(), similarity) - stored["alpha"]).abs().max())


if __name__ == "__main__":
    with single_thread(), torch.inference_mode():
        difference = _agrees(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN)
        print(f"alpha differs by {difference:.2g}")
        if difference > 1e-5:
            sys.exit("That is further than 1e-05 from the released code: nothing was written.")
        marks = {"weights": fingerprint(reference_decoder().state_dict())}
        save_file({name: value.clone() for name, value in numbers().items()}, STORED, marks)
