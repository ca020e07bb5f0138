"""In-Context Matting agrees with the released code, and with reference numbers that are kept here.

The numbers of the released code lie in ../shared/golden/iconmatting, when that is there; they hold random weights. What
is kept here was made by this library on the day it agreed with them. The UNet is ComfyUI's; its taps are compared
where ComfyUI is.
"""

from __future__ import annotations

import importlib.util
import json
import os

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from mam_model.in_context.decoder import DecoderConfig, InContextDecoder
from mam_model.in_context.taps import LATENT_SCALE, NOISE_SCALE, TIMESTEP, Taps
from tests.references import chain, in_context
from tests.references.chain import furthest

GOLDEN = in_context.GOLDEN
# The released run and this library add the same numbers in the same order; other processors do not.
TOLERANCE = 1e-5
# Of features, which are not limited to 0..1: 2e-5 was measured on a processor without AVX-512.
FEATURE_TOLERANCE = 5e-5

needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the released code's numbers, ../shared/golden/iconmatting, are not on this machine"
)
full_size = pytest.mark.skipif(
    os.environ.get("MATTING_ANYTHING_FULL_PARITY") != "1",
    reason="takes ten seconds; set MATTING_ANYTHING_FULL_PARITY=1 to compare at the published size too",
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with chain.single_thread(), torch.inference_mode():
        yield


def tokens_of(feature: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    region = F.max_pool2d(-mask.float(), 16)[0, 0] == -1
    return feature[0][:, region].t()


def test_the_reference_weights_are_those_that_the_numbers_were_made_with():
    with safe_open(in_context.STORED, "pt") as file:
        assert chain.fingerprint(in_context.reference_decoder().state_dict()) == file.metadata()["weights"]


def test_the_decoder_gives_the_reference_mattes():
    stored, ours = load_file(in_context.STORED), in_context.numbers()
    assert stored.keys() == ours.keys()
    # Otherwise agreement would prove little.
    assert stored["alpha"].min() < 0.05 and stored["alpha"].max() > 0.95
    for name, number in stored.items():
        assert furthest(ours[name], number) < TOLERANCE, name


def test_step_200_is_the_published_noise_schedule():
    """But for the rounding of its product in float32, which the released run has and the constants keep."""
    steps = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - steps, 0)[TIMESTEP]
    assert LATENT_SCALE == pytest.approx(float(kept**0.5), abs=1e-6)
    assert NOISE_SCALE == pytest.approx(float((1 - kept) ** 0.5), abs=1e-6)


@needs_golden
def test_every_step_of_the_released_decoder_comes_out():
    stored = load_file(GOLDEN / "tiny_io.safetensors")
    decoder, taps = in_context.golden_decoder(GOLDEN), in_context.golden_taps(stored)
    tokens = tokens_of(stored["ref48"], stored["mask"])
    similarity = decoder.similarity(taps, [tokens])
    assert furthest(similarity, stored["S"][:, 0]) < TOLERANCE
    fusion = decoder.in_context_fusion
    maps = (taps.coarse_attention, taps.fine_attention)
    for propagate, attention, name in zip(fusion.attn_module_list, maps, ("guid0", "guid1")):
        assert furthest(propagate(attention, similarity), stored[name]) < TOLERANCE
    assert furthest(fusion((taps.coarse, taps.fine), maps, similarity), stored["fused"]) < FEATURE_TOLERANCE
    assert furthest(decoder(taps, stored["image"].float(), similarity), stored["alpha"]) < TOLERANCE


@needs_golden
def test_a_matte_from_the_whole_picture_is_the_released_one():
    stored = load_file(GOLDEN / "tiny_io.safetensors")
    squares = (stored["image"].float().movedim(1, -1) + 1) / 2
    tokens = tokens_of(stored["ref48"], stored["mask"])
    alpha, similarity = in_context.golden_decoder(GOLDEN).matte(in_context.golden_taps(stored), squares, [tokens])
    assert furthest(alpha, stored["alpha"][:, 0]) < TOLERANCE
    assert furthest(similarity, stored["S"][:, 0]) < TOLERANCE


@needs_golden
def test_the_published_decoder_has_exactly_these_entries():
    published = json.loads((GOLDEN / "decoder_keys.json").read_text())
    with torch.device("meta"):
        entries = InContextDecoder().state_dict()
    ours = {f"in_context_decoder.{key}": [list(tensor.shape), str(tensor.dtype)] for key, tensor in entries.items()}
    assert ours == {key: [shape, f"torch.{dtype}"] for key, (shape, dtype) in published.items()}


@needs_golden
@full_size
def test_the_released_decoder_comes_out_at_its_full_size():
    spec = importlib.util.spec_from_file_location("golden_common", GOLDEN / "golden_common.py")
    common = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(common)
    decoder = InContextDecoder(DecoderConfig()).eval()
    entries = decoder.state_dict().items()
    decoder.load_state_dict({key: common.decoder_weight(key, tensor.shape) for key, tensor in entries})
    fine = common.rnd("full.f48", 1, 1280, 48, 48)
    taps = Taps(
        fine,
        common.rnd("full.f24", 1, 1280, 24, 24),
        common.attn_map("full.a48", 1, 2304),
        common.attn_map("full.a24", 1, 576),
    )
    reference = 0.5 * fine.roll((5, -7), (2, 3)) + 0.5 * common.rnd("full.ref48", 1, 1280, 48, 48)
    tokens = tokens_of(reference, common.blob_mask(768))
    assert len(tokens) == 491
    similarity = decoder.similarity(taps, [tokens])
    alpha = decoder(taps, common.smooth_image("full.img", 1, 768), similarity)
    stored = load_file(GOLDEN / "decoder_full_outputs.safetensors")
    assert furthest(similarity[:, None], stored["S"]) < TOLERANCE
    assert furthest(alpha[..., ::4, ::4], stored["alpha_s4"]) < TOLERANCE
    assert furthest(alpha[:, :, 384], stored["alpha_row384"]) < TOLERANCE
