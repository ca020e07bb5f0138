"""One reference, any number of targets: each gets the matte that it would get alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mam_model.in_context.correspondence import InterSimilarity
from mam_model.in_context.errors import InContextError
from mam_model.in_context.fit import Fit
from mam_model.in_context.matching import Networks, match, take_reference
from mam_model.in_context.reference import Reference
from mam_model.in_context.taps import Taps
from mam_model.prompt import Prompt
from tests.references import in_context
from tests.references.in_context import CONFIG, hashed
from tests.references.toy_diffusion import ToyDiffusion

SIDE = CONFIG.side


def picture(name: str, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    return (hashed(name, height, width, 3) / 4 + 0.5).clamp(0, 1)


def reference_of(toy: ToyDiffusion, *names: str, **options) -> Reference:
    mask = torch.zeros(SIDE, SIDE)
    mask[32:128, 48:144] = 1
    prompts = [Prompt(mask=mask)] * len(names)
    return take_reference(toy.networks(), [picture(name) for name in names], prompts, **options)


@pytest.fixture(scope="module")
def inputs():
    return in_context.reference_inputs()


@pytest.fixture(scope="module")
def decoder():
    return in_context.reference_decoder()


def test_every_alpha_has_the_size_of_its_picture_and_lies_in_0_to_1():
    toy = ToyDiffusion()
    sizes = [(SIDE, SIDE), (100, 250), (411, 97), (30, 20)]
    found = match(toy.networks(), reference_of(toy, "r"), [picture("t", *size) for size in sizes])
    for one, size in zip(found, sizes):
        for area in (one.alpha, one.similarity):
            assert area.shape == size
            assert 0 <= area.min() and area.max() <= 1
    assert len(found) == 4


def test_a_target_gets_the_same_matte_alone_and_in_a_batch():
    toy = ToyDiffusion()
    reference, targets = reference_of(toy, "r"), [picture("a"), picture("b", 100, 250), picture("c")]
    together = match(toy.networks(), reference, targets)
    for target, expected in zip(targets, together):
        (alone,) = match(toy.networks(), reference, [target])
        assert torch.allclose(alone.alpha, expected.alpha, atol=1e-5)


def test_a_batch_tensor_is_as_good_as_a_list():
    toy = ToyDiffusion()
    batch = torch.stack([picture("a"), picture("b")])
    mask = torch.ones(SIDE, SIDE)
    reference = take_reference(toy.networks(), batch, [Prompt(mask=mask)] * 2)
    assert len(reference.tokens) == 2
    listed, stacked = (match(toy.networks(), reference, targets) for targets in (list(batch), batch))
    assert torch.equal(listed[1].alpha, stacked[1].alpha)
    assert match(toy.networks(), reference, batch[:0]) == []


def test_equal_frames_get_equal_mattes():
    """The noise belongs to the reference, not to the frame; otherwise a still video would flicker."""
    toy = ToyDiffusion()
    reference = reference_of(toy, "r")
    first, second = (match(toy.networks(), reference, [picture("t")])[0] for _ in range(2))
    assert torch.equal(first.alpha, second.alpha)
    other = match(toy.networks(), reference_of(toy, "r", seed=1), [picture("t")])[0]
    assert not torch.equal(first.alpha, other.alpha)


def test_the_reference_is_not_looked_at_again():
    toy = ToyDiffusion()
    reference = reference_of(toy, "r", "s", ensemble=3)
    assert (toy.encoded, toy.batches) == (2, [3, 3])
    match(toy.networks(), reference, [picture("a")])
    match(toy.networks(), reference, [picture("b"), picture("c")])
    assert (toy.encoded, toy.batches) == (5, [3, 3, 3, 6])


def test_no_targets_give_no_mattes():
    toy = ToyDiffusion()
    reference = reference_of(toy, "r")
    assert match(toy.networks(), reference, []) == []
    # The reference alone, with the ensemble of the published evaluation.
    assert (toy.encoded, toy.batches) == (1, [4])


@pytest.mark.parametrize("fit", Fit)
def test_targets_get_into_the_square_as_the_reference_did(fit):
    toy = ToyDiffusion()
    (found,) = match(toy.networks(), reference_of(toy, "r", fit=fit), [picture("t", 100, 300)])
    outside = found.alpha[:, :100]
    assert (outside.max() == 0) == (fit is Fit.CROP)


def test_a_fit_is_named_by_its_word():
    toy = ToyDiffusion()
    assert reference_of(toy, "r", fit="stretch").fit is Fit.STRETCH
    with pytest.raises(InContextError, match='"pad", "stretch" or "crop", not "squeeze"'):
        reference_of(toy, "r", fit="squeeze")


def test_alpha_channels_of_a_picture_are_not_looked_at():
    toy = ToyDiffusion()
    reference, target = reference_of(toy, "r"), picture("t")
    with_alpha = torch.cat((target, torch.rand(SIDE, SIDE, 1)), -1)
    (one,), (other,) = (match(toy.networks(), reference, [shown]) for shown in (target, with_alpha))
    assert torch.equal(one.alpha, other.alpha)
    prompt = Prompt(mask=torch.ones(SIDE, SIDE))
    (one,), (other,) = (take_reference(toy.networks(), [shown], [prompt]).tokens for shown in (target, with_alpha))
    assert torch.equal(one, other)


def test_the_similarity_is_a_share_of_the_strongest_place_of_each_picture_and_lies_where_that_is():
    toy = ToyDiffusion()
    found = torch.zeros(2, CONFIG.fine_cells, CONFIG.fine_cells)
    found[0, 3, 8], found[1, 2, 1] = 5, 0.5
    alphas = torch.full((2, SIDE, SIDE), 0.25)
    networks = replace(toy.networks(), decode=lambda *_: (alphas, found))
    for (row, column), one in zip(((3, 8), (2, 1)), match(networks, reference_of(toy, "r"), [picture("t")] * 2)):
        assert torch.equal(one.alpha, alphas[0])
        assert 0.9 < one.similarity.max() <= 1
        rows, columns = (one.similarity.sum(axis) / one.similarity.sum() for axis in (1, 0))
        centre = [float((share * (torch.arange(SIDE) + 0.5)).sum()) for share in (rows, columns)]
        assert centre == pytest.approx([16 * (row + 0.5), 16 * (column + 0.5)], abs=0.01)


def test_a_reference_of_another_size_is_refused():
    toy = ToyDiffusion()
    reference = reference_of(toy, "r")
    networks = Networks(2 * SIDE, toy.encode, toy.unet, toy.networks().decode)
    with pytest.raises(InContextError, match=f"squares of {SIDE} pixels, this decoder uses {2 * SIDE}"):
        match(networks, reference, [picture("t")])


def test_a_broken_unet_is_noticed_before_the_matte():
    toy = ToyDiffusion()
    reference = reference_of(toy, "r")
    toy.broken = "unet"
    with pytest.raises(InContextError, match="not numbers"):
        match(toy.networks(), reference, [picture("t")])


def test_each_token_spreads_a_weight_of_one(inputs, decoder):
    taps, _, (first, second) = inputs
    assert torch.allclose(decoder.similarity(taps, [first]).sum((1, 2)), torch.full((2,), float(len(first))))
    assert torch.allclose(decoder.similarity(taps, [second]).sum((1, 2)), torch.full((2,), float(len(second))))


def test_several_references_are_averaged_so_that_the_scale_is_that_of_one(inputs, decoder):
    taps, _, (first, second) = inputs
    both = decoder.similarity(taps, [first, second])
    mean = (decoder.similarity(taps, [first]) + decoder.similarity(taps, [second])) / 2
    assert torch.allclose(both, mean, atol=1e-6)
    assert torch.allclose(decoder.similarity(taps, [first, first]), decoder.similarity(taps, [first]), atol=1e-6)


def test_the_order_of_references_does_not_matter(inputs, decoder):
    taps, squares, (first, second) = inputs
    one, other = (decoder.matte(taps, squares, tokens)[0] for tokens in ([first, second], [second, first]))
    assert torch.allclose(one, other, atol=1e-6)


def test_more_tokens_than_are_compared_at_once_give_the_same():
    similarity = InterSimilarity(8).eval()
    features, tokens = hashed("features", 2, 8, 6, 6), hashed("tokens", 700, 8)
    keys = similarity.norm(features.flatten(2).transpose(1, 2))
    expected = (similarity.norm(tokens) @ keys.transpose(1, 2) / 8**0.5).softmax(-1).sum(1)
    assert torch.allclose(similarity(features, [tokens]).flatten(1), expected, atol=1e-4)


def test_the_similarity_is_highest_where_the_reference_was_cut_out():
    """Tokens that are taken from a target itself are found where they were taken."""
    similarity = InterSimilarity(48).eval()
    torch.nn.init.constant_(similarity.norm.weight, 2)
    target = hashed("target", 1, 48, 12, 12)
    found = similarity(target, [target[0, :, 4:7, 5:9].flatten(1).t()])[0]
    assert found[4:7, 5:9].min() > 0.9
    assert found.sum() - found[4:7, 5:9].sum() < 1


WRONG_SIZES = {
    "another backbone": ("fine", (2, 40, 12, 12), r"fine features as \[2, 48, 12, 12\].*\[2, 40, 12, 12\]"),
    "another grid": ("coarse", (2, 48, 12, 12), "coarse features"),
    "no attention": ("fine_attention", None, "fine self-attention.*none"),
    "attention of another grid": ("coarse_attention", (2, 144, 144), "coarse self-attention"),
}


@pytest.mark.parametrize("case", WRONG_SIZES)
def test_taps_of_another_network_are_refused(inputs, decoder, case):
    name, shape, words = WRONG_SIZES[case]
    taps, squares, references = inputs
    wrong = Taps(**{**vars(taps), name: None if shape is None else torch.rand(shape)})
    with pytest.raises(InContextError, match=words):
        decoder.matte(wrong, squares, references)


def test_squares_of_another_size_and_references_of_another_model_are_refused(inputs, decoder):
    taps, squares, references = inputs
    with pytest.raises(InContextError, match="the picture as"):
        decoder.matte(taps, squares[:, :-1], references)
    with pytest.raises(InContextError, match="another diffusion model"):
        decoder.matte(taps, squares, [torch.rand(5, 40)])
    for empty in ([], [references[0], torch.zeros(0, CONFIG.feature_channels)]):
        with pytest.raises(InContextError, match="no region of interest"):
            decoder.matte(taps, squares, empty)
