"""What foreground estimation promises: the old background's colour leaves the soft edge."""

from __future__ import annotations

import pytest
import torch

from mam_model import foreground
from mam_model.foreground import CLEAR_COLORS, estimate_foreground, fill_where_clear, foreground_bytes
from tests.references.live_memory import LiveMemory


def soft_disc(height: int, width: int, softness: float) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    away = ((x - width / 2) ** 2 + (y - height / 2) ** 2).sqrt()
    return ((0.3 * min(height, width) - away) / softness + 0.5).clamp(0, 1)


def layers(height: int = 96, width: int = 120) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A subject and a background, each with slow changes of colour, a soft matte and their composite."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    front = torch.stack((0.7 + 0.2 * x, 0.5 + 0.2 * (6 * y).sin(), 0.2 + 0.1 * y), dim=-1)
    back = torch.stack((0.1 + 0.1 * y, 0.4 + 0.3 * x, 0.6 + 0.3 * (5 * x).cos()), dim=-1)
    alpha = soft_disc(height, width, 14)
    return front, back, alpha, alpha[..., None] * front + (1 - alpha[..., None]) * back


def edge_error(estimate: torch.Tensor, front: torch.Tensor, alpha: torch.Tensor) -> float:
    """Mean error of alpha * F where the matte is soft: what shows in a new composite."""
    soft = (alpha > 0.02) & (alpha < 0.98)
    return float(((estimate - front).abs().mean(dim=-1) * alpha)[soft].mean())


def test_white_at_half_alpha_on_green_comes_back_white():
    alpha = torch.zeros(48, 48)
    alpha[8:40, 8:40] = 0.5
    alpha[14:34, 14:34] = 1
    green = torch.tensor([0.0, 1.0, 0.0])
    image = alpha[..., None] + (1 - alpha[..., None]) * green
    assert image[10, 20].tolist() == [0.5, 1.0, 0.5], "the rim is greenish before"
    rim = estimate_foreground(image, alpha)[alpha == 0.5]
    assert rim.min() > 0.95


def test_the_background_that_shone_through_is_gone_from_the_soft_edge():
    front, _, alpha, image = layers()
    assert edge_error(estimate_foreground(image, alpha), front, alpha) < 0.1 * edge_error(image, front, alpha)


def test_it_is_as_exact_as_the_published_implementation():
    pymatting = pytest.importorskip("pymatting", reason="PyMatting is not installed")
    front, _, alpha, image = layers()
    published = torch.from_numpy(pymatting.estimate_foreground_ml(image.double().numpy(), alpha.double().numpy()))
    ours = estimate_foreground(image, alpha)
    assert edge_error(ours, front, alpha) <= 1.02 * edge_error(published, front, alpha)


def test_a_known_background_makes_the_estimate_better():
    front, back, alpha, image = layers()
    blind = edge_error(estimate_foreground(image, alpha), front, alpha)
    assert edge_error(estimate_foreground(image, alpha, back), front, alpha) < 0.7 * blind


def test_foreground_and_background_compose_to_the_picture_again():
    _, _, alpha, image = layers()
    front, back = estimate_foreground(image, alpha, return_background=True)
    again = alpha[..., None] * front + (1 - alpha[..., None]) * back
    assert (again - image).abs().max() < 0.02


def test_a_certain_subject_keeps_its_colours():
    _, _, alpha, image = layers()
    inside = alpha == 1
    assert (estimate_foreground(image, alpha)[inside] - image[inside]).abs().max() < 1e-3


def test_outside_the_subject_its_colours_are_continued():
    front, back, alpha, image = layers()
    estimate = estimate_foreground(image, alpha)
    ring = (alpha == 0) & (soft_disc(96, 120, 40) > 0)
    assert (estimate - front)[ring].abs().mean() < 0.3 * (back - front)[ring].abs().mean()


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_matte_gives_finite_colours(value):
    estimate = estimate_foreground(torch.rand(9, 13, 3), torch.full((9, 13), value))
    assert estimate.isfinite().all() and estimate.min() >= 0 and estimate.max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (90, 2)])
def test_pictures_of_every_shape_come_back_in_their_shape(size):
    assert estimate_foreground(torch.rand(*size, 3), torch.rand(*size)).shape == (*size, 3)


def test_each_picture_of_a_batch_is_estimated_as_if_it_were_alone():
    _, _, alpha, image = layers(40, 50)
    images = torch.stack((image, image.flip(0), torch.rand(40, 50, 3)))
    alphas = torch.stack((alpha, alpha.flip(0), alpha))
    together = estimate_foreground(images, alphas)
    assert together.shape == (3, 40, 50, 3)
    for one, picture, matte in zip(together, images, alphas, strict=True):
        torch.testing.assert_close(one, estimate_foreground(picture, matte), rtol=0, atol=1e-6)


def test_working_in_strips_changes_nothing(monkeypatch):
    _, _, alpha, image = layers(70, 40)
    whole = estimate_foreground(image, alpha)
    monkeypatch.setattr("mam_model.foreground._STRIP_PX", 40 * 9)
    torch.testing.assert_close(estimate_foreground(image, alpha), whole, rtol=0, atol=1e-6)


def test_the_picture_and_its_matte_are_left_alone():
    _, _, alpha, image = layers(40, 50)
    before = image.clone(), alpha.clone()
    estimate_foreground(image, alpha)
    assert torch.equal(image, before[0]) and torch.equal(alpha, before[1])


def test_a_matte_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match="50 x 40 and 40 x 50"):
        estimate_foreground(torch.rand(40, 50, 3), torch.rand(50, 40))


def test_batches_of_different_lengths_are_refused_with_both():
    with pytest.raises(ValueError, match="2 pictures and 3 mattes"):
        estimate_foreground(torch.rand(2, 4, 5, 3), torch.rand(3, 4, 5))
    with pytest.raises(ValueError, match="2 backgrounds"):
        estimate_foreground(torch.rand(4, 5, 3), torch.rand(3, 4, 5), torch.rand(2, 4, 5, 3))


def test_a_batch_of_no_pictures_stays_one():
    assert estimate_foreground(torch.rand(0, 4, 5, 3), torch.rand(0, 4, 5)).shape == (0, 4, 5, 3)


def test_a_picture_without_three_colours_is_refused():
    with pytest.raises(ValueError, match="4 x 5 x 1"):
        estimate_foreground(torch.rand(4, 5, 1), torch.rand(4, 5))


@pytest.mark.parametrize("name", CLEAR_COLORS)
def test_a_clear_colour_fills_what_is_clear_and_leaves_the_rest(name):
    front, _, alpha, _ = layers(40, 50)
    before = front.clone()
    filled = fill_where_clear(front, alpha, CLEAR_COLORS[name])
    assert (filled[alpha == 0] == torch.tensor(CLEAR_COLORS[name])).all()
    assert torch.equal(filled[alpha >= 1 / 255], front[alpha >= 1 / 255]) and torch.equal(front, before)


def test_alpha_that_an_8_bit_file_would_lose_counts_as_clear():
    alpha = torch.tensor([[0.0, 0.001, 0.003]])
    filled = fill_where_clear(torch.ones(1, 3, 3), alpha, (0.5, 0.5, 0.5))
    assert filled[0, :, 0].tolist() == [0.5, 0.5, 1.0]


def test_one_foreground_is_filled_for_every_matte_of_a_batch():
    alphas = torch.stack((torch.zeros(4, 5), torch.ones(4, 5)))
    filled = fill_where_clear(torch.ones(4, 5, 3), alphas, (0.0, 0.0, 0.0))
    assert torch.equal(filled, alphas[..., None].expand(2, 4, 5, 3))


@pytest.mark.parametrize("strip_px", [1 << 22, 1 << 15], ids=["one strip", "strips"])
@pytest.mark.parametrize(("height", "width"), [(300, 400), (401, 300), (600, 900)])
def test_an_estimate_takes_no_more_memory_than_is_declared_and_not_much_less(monkeypatch, strip_px, height, width):
    for name in ("_STRIP_PX", "_GPU_STRIP_PX"):
        monkeypatch.setattr(foreground, name, strip_px)
    image, alpha = torch.rand(height, width, 3), torch.rand(height, width)
    for background in (None, torch.rand(height, width, 3)):
        with torch.inference_mode(), LiveMemory() as memory:
            estimate_foreground(image, alpha, background, return_background=True)
        assert 0.7 * foreground_bytes(height, width) < memory.peak_bytes < foreground_bytes(height, width)
