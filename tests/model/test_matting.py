"""From a picture and prompts to mattes."""

from __future__ import annotations

import pytest
import torch

from mam_model.everything import find_everything
from mam_model.instances import share_pixels
from mam_model.matting import MattingAnything
from mam_model.merge import MergeOptions
from mam_model.picture import check_picture
from mam_model.prompt import Prompt
from tests.references import chain

HEIGHT, WIDTH = 90, 140


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with chain.single_thread():
        yield


@pytest.fixture(scope="module")
def matting() -> MattingAnything:
    return MattingAnything(chain.reference_sam(), chain.reference_m2m())


def picture(height: int = HEIGHT, width: int = WIDTH, channels: int = 3) -> torch.Tensor:
    return torch.rand(height, width, channels, generator=torch.Generator().manual_seed(0))


def disc(x: float, y: float, radius: float) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return ((columns - x) ** 2 + (rows - y) ** 2 < radius**2).float()


TARGETS = [
    Prompt(box_xyxy_px=(20, 10, 90, 80)),
    Prompt(),
    Prompt(points_px=((60, 40), (100, 20)), labels=(1, 0)),
    Prompt(mask=disc(40, 40, 15), mask_is_guidance=True),
    Prompt(mask=disc(100, 50, 20), mask_is_guidance=True),
]


@pytest.fixture(scope="module")
def embedding(matting):
    return matting.embed(picture())


@pytest.fixture(scope="module")
def guidance(matting, embedding):
    return matting.segment(embedding, TARGETS)


@pytest.fixture(scope="module")
def pyramid(matting, embedding, guidance):
    return matting.predict(embedding, guidance)


def test_every_target_gets_one_matte_of_the_pictures_size(matting):
    alphas = matting.matte(picture(), TARGETS)
    assert alphas.shape == (len(TARGETS), HEIGHT, WIDTH)
    assert alphas.dtype == torch.float32
    assert alphas.min() >= 0
    assert alphas.max() <= 1
    assert [bool(alpha.any()) for alpha in alphas] == [True, False, True, True, True]


def test_all_at_once_gives_what_the_four_steps_give(matting, embedding, guidance, pyramid):
    options = MergeOptions("alpha", "two", 4, 12, 6)
    stepwise = matting.merge(pyramid, guidance, options)
    assert torch.allclose(matting.matte(picture(), TARGETS, options), stepwise, atol=1e-5, rtol=0)


def test_a_matte_keeps_to_the_surroundings_of_its_mask(matting, guidance, pyramid):
    alphas = matting.merge(pyramid, guidance)
    assert torch.all(alphas[3][disc(40, 40, 15) == 1] == 1)
    assert torch.all(alphas[4][disc(100, 50, 20) == 1] == 1)
    assert alphas[3][disc(40, 40, 30) == 0].max() == 0
    assert alphas[4][disc(100, 50, 35) == 0].max() == 0


@pytest.mark.parametrize("targets_per_step", [2, 3, 5, 50])
def test_how_many_targets_go_through_the_network_together_does_not_matter(
    matting, embedding, guidance, pyramid, targets_per_step
):
    together = matting.predict(embedding, guidance, targets_per_step)
    assert len(together) == len(TARGETS)
    for scale in ("os8", "os4", "os1"):
        assert torch.allclose(getattr(together, scale), getattr(pyramid, scale), atol=2e-5, rtol=0)


@pytest.mark.parametrize("at_once", [0, -1])
def test_less_than_one_at_once_is_refused_instead_of_computing_nothing(matting, embedding, guidance, at_once):
    for work in (
        lambda: matting.predict(embedding, guidance, at_once),
        lambda: matting.sam.decode(embedding, TARGETS, at_once),
        lambda: find_everything(matting.sam, embedding, points_per_step=at_once),
    ):
        with pytest.raises(ValueError, match=rf"_per_step is at least 1, not {at_once}"):
            work()


def test_mattes_come_in_the_order_of_their_prompts(matting, embedding):
    backwards = matting.segment(embedding, TARGETS[::-1])
    alphas = matting.merge(matting.predict(embedding, backwards), backwards)
    assert torch.allclose(alphas.flip(0), matting.matte(picture(), TARGETS), atol=1e-4, rtol=0)


def test_no_target_gives_no_matte(matting, embedding):
    guidance = matting.segment(embedding, [])
    pyramid = matting.predict(embedding, guidance)
    assert len(pyramid) == 0
    assert matting.merge(pyramid, guidance).shape == (0, HEIGHT, WIDTH)
    assert matting.matte(picture(), []).shape == (0, HEIGHT, WIDTH)


@pytest.mark.parametrize("guidance_mode", ["mask", "alpha"])
@pytest.mark.parametrize("clear_outside_box", [True, False])
def test_an_empty_prompt_gives_an_empty_matte(matting, guidance, pyramid, guidance_mode, clear_outside_box):
    options = MergeOptions(guidance_mode, clear_outside_box=clear_outside_box)
    assert torch.all(matting.merge(pyramid, guidance, options)[1] == 0)


@pytest.mark.parametrize("size", [(1, 1), (16, 5000), (5000, 16), (9, 12000), (12000, 1)])
def test_pictures_of_any_shape_get_a_matte(matting, size):
    height, width = size
    whole = Prompt(mask=torch.ones(size), mask_is_guidance=True)
    prompts = [Prompt(box_xyxy_px=(0, 0, width, height)), whole, Prompt()]
    alphas = matting.matte(picture(height, width), prompts)
    assert alphas.shape == (3, height, width)
    assert torch.all(alphas[1] == 1)
    assert torch.all(alphas[2] == 0)
    assert alphas.isfinite().all()


@pytest.mark.parametrize("guidance_mode", ["mask", "alpha"])
def test_a_guiding_mask_that_overshoots_gives_the_matte_of_the_mask_cut_off_at_0_and_1(matting, guidance_mode):
    mask = disc(70, 45, 30) * 1.2 - 0.1
    options = MergeOptions(guidance_mode)
    overshooting, cut_off = (
        matting.matte(picture(), [Prompt(mask=given, mask_is_guidance=True)], options)
        for given in (mask, mask.clamp(0, 1))
    )
    assert torch.equal(overshooting, cut_off)
    assert overshooting.min() >= 0


def test_a_picture_of_8_bit_numbers_is_refused_instead_of_taken_for_white(matting):
    with pytest.raises(ValueError, match="Divide"):
        matting.embed((picture() * 255).to(torch.uint8))


def test_the_alpha_channel_of_a_picture_is_not_looked_at(matting, embedding):
    rgba = torch.cat([picture(), torch.zeros(HEIGHT, WIDTH, 1)], dim=-1)
    assert torch.equal(matting.embed(rgba).features, embedding.features)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_picture_with_a_pixel_that_is_no_number_is_refused(matting, value):
    broken = picture()
    broken[3, 4, 1] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        matting.embed(broken)


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 1), (1, HEIGHT, WIDTH, 3), (0, 5, 3), (5, 0, 3)])
def test_what_is_no_picture_is_refused_naming_its_shape(shape):
    with pytest.raises(ValueError) as refusal:
        check_picture(torch.zeros(shape))
    assert " x ".join(str(n) for n in shape) in str(refusal.value)


def test_an_array_is_no_picture_and_what_makes_one_of_it_is_said():
    with pytest.raises(ValueError, match=r"a PyTorch tensor, not a ndarray. torch.from_numpy"):
        check_picture(picture().numpy())


def test_no_step_changes_what_it_was_given(matting):
    image = picture()
    before = image.clone()
    embedding = matting.embed(image)
    guidance = matting.segment(embedding, TARGETS)
    pyramid = matting.predict(embedding, guidance)
    given = [embedding.features, guidance.logits, guidance.predicted_iou, pyramid.os8, pyramid.os4, pyramid.os1]
    copies = [tensor.clone() for tensor in given]
    matting.predict(embedding, guidance, 3)
    for options in (MergeOptions("mask"), MergeOptions("alpha")):
        matting.merge(pyramid, guidance, options)
    assert torch.equal(image, before)
    for tensor, copy in zip(given, copies):
        assert torch.equal(tensor, copy)


def test_a_step_can_be_fed_with_a_changed_result_of_the_one_before(matting, embedding, guidance):
    """A sharper matte from another mask, without running SAM again."""
    other = matting.segment(embedding, [Prompt(mask=disc(70, 45, 25), mask_is_guidance=True)])
    alphas = matting.merge(matting.predict(embedding, other), other)
    assert torch.all(alphas[0][disc(70, 45, 25) == 1] == 1)


def test_a_trained_and_an_already_folded_network_give_one_matte(matting):
    folded = MattingAnything(matting.sam, chain.reference_m2m().fold())
    assert torch.equal(folded.matte(picture(), TARGETS[:1]), matting.matte(picture(), TARGETS[:1]))


def test_published_files_give_a_matting(tiny_sam_file, tiny_m2m_file):
    matting = MattingAnything.from_files(tiny_sam_file, tiny_m2m_file)
    alphas = matting.matte(picture(), TARGETS)
    assert alphas.shape == (len(TARGETS), HEIGHT, WIDTH)
    assert alphas[0].any()
    assert not alphas.requires_grad


def random_claims(count: int = 4) -> torch.Tensor:
    """Alphas of `count` instances; about half of the pixels are claimed more than once."""
    generator = torch.Generator().manual_seed(count)
    claims = torch.rand(count, 50, 60, generator=generator)
    return claims * (torch.rand(count, 50, 60, generator=generator) > 0.6)


def test_shared_pixels_are_given_away_once():
    claims = random_claims()
    assert (claims.sum(dim=0) > 1).float().mean() > 0.1
    shares = share_pixels(claims)
    assert shares.min() >= 0
    assert shares.sum(dim=0).max() <= 1 + 1e-6
    # No background shows through where instances claimed the whole pixel.
    assert torch.allclose(shares.sum(dim=0), claims.sum(dim=0).clamp(max=1), atol=1e-6)


def test_where_the_claims_fit_nothing_changes():
    claims = random_claims()
    fit = claims.sum(dim=0) <= 1
    assert fit.any()
    assert torch.allclose(share_pixels(claims)[:, fit], claims[:, fit], atol=1e-6)


def test_the_order_of_the_instances_does_not_matter():
    claims = random_claims()
    order = [2, 0, 3, 1]
    assert torch.allclose(share_pixels(claims[order]), share_pixels(claims)[order], atol=1e-6)


def test_hair_that_falls_over_somebody_behind_stays_whole():
    nearer, behind = torch.zeros(6, 4), torch.zeros(6, 4)
    nearer[2:6, :2] = 1.0
    nearer[2:6, 2] = 0.5
    behind[0:4] = 1.0
    for order in ([nearer, behind], [behind, nearer]):
        shares = share_pixels(torch.stack(order))
        front, back = shares if order[0] is nearer else shares.flip(0)
        assert torch.equal(front, nearer)
        assert back[3, 2] == 0.5
        assert back[3, 0] == 0
        assert torch.equal(back[:2], behind[:2])


def test_sharing_leaves_its_input_alone_and_bears_no_instance_or_one():
    claims = random_claims()
    before = claims.clone()
    share_pixels(claims)
    assert torch.equal(claims, before)
    assert share_pixels(torch.zeros(0, 5, 6)).shape == (0, 5, 6)
    assert torch.equal(share_pixels(claims[:1]), claims[:1])
