"""What is captured from the diffusion model does not depend on how it is captured."""

from __future__ import annotations

import pytest
import torch

from mam_model.in_context import taps
from mam_model.in_context.errors import InContextError
from mam_model.in_context.matching import take_taps
from mam_model.in_context.taps import (
    ATTENTION_BLOCKS,
    FEATURE_BLOCKS,
    AttentionMean,
    Capture,
    TapsTaken,
    Wanted,
    capture_taps,
    ensemble_noise,
    noised,
)
from tests.references.in_context import CONFIG, hashed
from tests.references.toy_diffusion import BLOCKS, ToyDiffusion


def pictures(count: int = 2) -> torch.Tensor:
    return (hashed("pictures", count, CONFIG.side, CONFIG.side, 3) / 4 + 0.5).clamp(0, 1)


def heads_of(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def whole_maps(q: torch.Tensor, k: torch.Tensor, heads: int) -> torch.Tensor:
    q, k = heads_of(q, heads), heads_of(k, heads)
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)


@pytest.mark.parametrize("maps_at_once", [1, 2, 5, 100])
def test_attention_is_the_mean_over_layers_copies_and_heads(monkeypatch, maps_at_once):
    monkeypatch.setattr(taps, "_MAPS_BYTES", maps_at_once * 4 * 36 * 36)
    mean = AttentionMean(2)
    layers = [(hashed(f"q{layer}", 6, 36, 40), hashed(f"k{layer}", 6, 36, 40), 5) for layer in range(3)]
    for layer in layers:
        mean.add(*layer)
    expected = torch.stack([whole_maps(*layer).unflatten(0, (2, 3)).mean((1, 2)) for layer in layers]).mean(0)
    assert torch.allclose(mean.mean(), expected, atol=1e-6)


def test_each_row_of_the_attention_sums_to_one():
    seen = take_taps(ToyDiffusion().networks(), pictures(), 3, 0, Wanted.TARGET)
    for attention in (seen.fine_attention, seen.coarse_attention):
        assert torch.allclose(attention.sum(-1), torch.ones(attention.shape[:2]), atol=1e-5)


def test_no_more_maps_are_held_than_asked_for(monkeypatch):
    """A whole layer of the full network would be 40 maps of 21 MB at ensemble 4."""
    monkeypatch.setattr(taps, "_MAPS_BYTES", 2 * 4 * 36 * 36)
    largest = 0
    softmax = torch.Tensor.softmax

    def watched(scores, *arguments):
        nonlocal largest
        largest = max(largest, len(scores))
        return softmax(scores, *arguments)

    monkeypatch.setattr(torch.Tensor, "softmax", watched)
    AttentionMean(1).add(hashed("q", 4, 36, 40), hashed("k", 4, 36, 40), 5)
    assert largest == 2


def test_half_precision_attention_is_summed_in_single_precision():
    q, k = hashed("q", 2, 36, 40), hashed("k", 2, 36, 40)
    mean = AttentionMean(2)
    mean.add(q.half(), k.half(), 5)
    assert mean.mean().dtype == torch.float32
    assert torch.allclose(mean.mean(), whole_maps(q.half().float(), k.half().float(), 5).mean(1), atol=1e-6)


def test_features_are_the_mean_over_the_ensemble():
    toy = ToyDiffusion()
    networks = toy.networks()
    seen = take_taps(networks, pictures(), 3, 7, Wanted.TARGET)
    noisy = noised(toy.encode(pictures()), ensemble_noise(3, CONFIG.latent_side, 7))
    expected = toy.features(noisy, "fine").unflatten(0, (2, 3)).mean(1)
    assert torch.allclose(seen.fine, expected, atol=1e-6)
    assert toy.batches == [6]


def test_pictures_of_a_batch_do_not_influence_each_other():
    networks = ToyDiffusion().networks()
    together = take_taps(networks, pictures(3), 2, 0, Wanted.TARGET)
    for number in range(3):
        alone = take_taps(networks, pictures(3)[number : number + 1], 2, 0, Wanted.TARGET)
        for name in ("fine", "coarse", "fine_attention", "coarse_attention"):
            assert torch.allclose(getattr(together, name)[number], getattr(alone, name)[0], atol=1e-5)


def test_a_picture_is_encoded_once_however_large_the_ensemble():
    toy = ToyDiffusion()
    take_taps(toy.networks(), pictures(2), 16, 0, Wanted.TARGET)
    assert toy.encoded == 2
    assert toy.batches == [32]


@pytest.mark.parametrize(
    "wanted, last", [(Wanted.TARGET, ("output", 8)), (Wanted.PROMPTED_REFERENCE, ("output", 8))], ids=str
)
def test_nothing_runs_after_the_last_wanted_tap(wanted, last):
    toy = ToyDiffusion()
    take_taps(toy.networks(), pictures(1), 1, 0, wanted)
    assert toy.blocks == BLOCKS[: BLOCKS.index(last) + 1]


def test_a_reference_without_seeds_needs_neither_attention_nor_the_last_blocks():
    toy = ToyDiffusion()
    seen = take_taps(toy.networks(), pictures(1), 1, 0, Wanted.REFERENCE)
    assert toy.blocks[-1] == ("output", 6)
    assert seen.coarse is seen.fine_attention is seen.coarse_attention is None
    assert Capture(1, Wanted.REFERENCE).attention_blocks == []


def test_all_taps_of_the_published_network_are_wanted_of_a_target():
    capture = Capture(1, Wanted.TARGET)
    assert capture.feature_blocks == list(FEATURE_BLOCKS) == [("output", 3), ("output", 6)]
    assert sorted(capture.attention_blocks) == sorted(ATTENTION_BLOCKS)
    grids = list(ATTENTION_BLOCKS.values())
    assert grids.count("fine") == grids.count("coarse") == 5


def test_a_tap_is_taken_once():
    """Stable Diffusion 2.1 has one transformer per block; a second report would shift the mean."""
    capture = Capture(1, Wanted.REFERENCE)
    with pytest.raises(TapsTaken):
        capture.features(("output", 6), torch.ones(1, 2, 3, 3))
    capture.features(("output", 6), torch.zeros(1, 2, 3, 3))
    assert capture.taps().fine.min() == 1


def test_a_unet_that_lets_nothing_through_gives_the_same():
    """ComfyUI may run the rest of its UNet; the result is that of the early exit."""
    toy = ToyDiffusion()

    def to_the_end(noisy, capture):
        try:
            toy.unet(noisy, capture)
        except TapsTaken:
            return

    noisy = noised(toy.encode(pictures()), ensemble_noise(2, CONFIG.latent_side, 0))
    one, other = (capture_taps(unet, noisy, 2, Wanted.TARGET) for unet in (toy.unet, to_the_end))
    assert torch.equal(one.fine_attention, other.fine_attention)


@pytest.mark.parametrize(
    "broken, words",
    [
        ("unet", "not numbers"),
        ("vae", "VAE gave values that are not numbers"),
        ("vae of another model", r"\[16, 24, 24\] numbers instead of \[4, 24, 24\]"),
        ("unet of another model", "not built like Stable Diffusion 2.1"),
    ],
)
def test_another_or_a_broken_diffusion_model_is_refused(broken, words):
    with pytest.raises(InContextError, match=words):
        take_taps(ToyDiffusion(broken=broken).networks(), pictures(1), 1, 0, Wanted.TARGET)


def test_the_same_seed_gives_the_same_noise_and_another_seed_another():
    assert torch.equal(ensemble_noise(4, 24, 5), ensemble_noise(4, 24, 5))
    assert not torch.equal(ensemble_noise(4, 24, 5), ensemble_noise(4, 24, 6))
    noise = ensemble_noise(16, 24, 0)
    assert noise.shape == (16, 4, 24, 24)
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02


@pytest.mark.parametrize("ensemble", [0, -1, 17])
def test_an_ensemble_has_1_to_16_copies(ensemble):
    with pytest.raises(InContextError, match="1 to 16"):
        ensemble_noise(ensemble, 24, 0)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_of_more_than_64_bits_is_refused(seed):
    with pytest.raises(InContextError, match="64 bits"):
        ensemble_noise(1, 24, seed)


def test_copies_of_a_picture_stand_together_and_share_their_noise_with_other_pictures():
    latents, noise = hashed("latents", 2, 4, 6, 6), hashed("noise", 3, 4, 6, 6)
    noisy = noised(latents, noise)
    for picture in range(2):
        for copy in range(3):
            expected = taps.LATENT_SCALE * latents[picture] + taps.NOISE_SCALE * noise[copy]
            assert torch.allclose(noisy[3 * picture + copy], expected)
