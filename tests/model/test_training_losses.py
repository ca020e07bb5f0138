"""The training losses, against loops over single pixels and against answers found by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mam_model.m2m import AlphaPyramid
from mam_model.training.losses import l1_loss, laplacian_loss, pyramid_loss

BINOMIAL = (1, 4, 6, 4, 1)


def maps(seed: int, count: int = 2, height: int = 41, width: int = 36) -> list[torch.Tensor]:
    """Predicted alpha, true alpha and a weight with holes."""
    rng = torch.Generator().manual_seed(seed)
    predicted, true = (torch.rand(count, 1, height, width, generator=rng) for _ in range(2))
    return [predicted, true, (torch.rand(count, 1, height, width, generator=rng) - 0.4).clamp(min=0)]


def mirrored(index: int, extent: int) -> int:
    """The cell that stands for one beyond the border: the border is the mirror and is not repeated."""
    if index < 0:
        return -index
    return index if index < extent else 2 * (extent - 1) - index


def slow_filtered(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape
    filtered = np.zeros_like(picture)
    for row in range(height):
        for column in range(width):
            for i, down in enumerate(BINOMIAL):
                for j, across in enumerate(BINOMIAL):
                    value = picture[mirrored(row + i - 2, height), mirrored(column + j - 2, width)]
                    filtered[row, column] += down * across * value / 256
    return filtered


def slow_pyramid(picture: np.ndarray) -> list[np.ndarray]:
    levels = []
    for _ in range(5):
        coarser = slow_filtered(picture)[::2, ::2]
        spread = np.zeros_like(picture)
        spread[::2, ::2] = coarser
        levels.append(picture - 4 * slow_filtered(spread))
        picture = coarser
    return levels


def slow_mean(errors: list[np.ndarray], weights: list[np.ndarray]) -> float:
    total = sum(float((error * weight).sum()) for error, weight in zip(errors, weights))
    return total / (sum(float(weight.sum()) for weight in weights) + 1e-8)


def planes(batch: torch.Tensor) -> list[np.ndarray]:
    return [plane[0].double().numpy() for plane in batch]


def test_l1_is_the_mean_difference_under_the_weight():
    predicted, true, weight = maps(0)
    errors = [abs(p - t) for p, t in zip(planes(predicted), planes(true))]
    assert l1_loss(predicted, true, weight).item() == pytest.approx(slow_mean(errors, planes(weight)), rel=1e-5)


@pytest.mark.parametrize("seed, height, width", [(0, 41, 36), (1, 33, 50), (2, 48, 64)])
def test_the_laplacian_loss_equals_pyramids_built_pixel_by_pixel(seed, height, width):
    predicted, true, weight = maps(seed, 2, height, width)
    pyramids = [(slow_pyramid(p), slow_pyramid(t)) for p, t in zip(planes(predicted), planes(true))]
    expected = 0.0
    for level in range(5):
        errors = [abs(of_predicted[level] - of_true[level]) for of_predicted, of_true in pyramids]
        expected += 2**level * slow_mean(errors, [w[:: 2**level, :: 2**level] for w in planes(weight)])
    assert laplacian_loss(predicted, true, weight).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [l1_loss, laplacian_loss])
def test_the_true_alpha_costs_nothing(loss):
    _, true, weight = maps(3)
    assert loss(true, true.clone(), weight).item() == 0


@pytest.mark.parametrize("loss", [l1_loss, laplacian_loss])
def test_an_error_without_weight_costs_nothing_and_an_empty_weight_is_no_division_by_zero(loss):
    predicted, true, _ = maps(4)
    nowhere = torch.zeros_like(true)
    assert loss(predicted, true, nowhere).item() == 0


def test_a_pixel_without_weight_gets_no_gradient_from_l1():
    predicted, true, weight = maps(5)
    predicted.requires_grad_()
    l1_loss(predicted, true, weight).backward()
    assert bool(((predicted.grad != 0) == (weight > 0)).all())


def test_an_even_offset_costs_its_size_in_l1_and_nothing_in_the_laplacian():
    true = torch.full((1, 1, 64, 64), 0.25)
    everywhere = torch.ones_like(true)
    assert l1_loss(true + 0.5, true, everywhere).item() == pytest.approx(0.5)
    assert laplacian_loss(true + 0.5, true, everywhere).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("loss", [l1_loss, laplacian_loss])
def test_a_scaled_weight_changes_nothing(loss):
    predicted, true, weight = maps(6)
    assert loss(predicted, true, 7 * weight).item() == pytest.approx(loss(predicted, true, weight).item(), rel=1e-5)


@pytest.mark.parametrize("loss", [l1_loss, laplacian_loss])
def test_half_precision_predictions_are_compared_in_float32(loss):
    predicted, true, weight = maps(7)
    answer = loss(predicted.bfloat16(), true, weight)
    assert answer.dtype == torch.float32
    assert answer.item() == pytest.approx(loss(predicted.bfloat16().float(), true, weight).item())


def test_gradients_of_the_laplacian_loss_are_those_of_finite_differences():
    predicted, true, weight = (tensor.double() for tensor in maps(8, 1, 33, 33))
    predicted.requires_grad_()
    laplacian_loss(predicted, true, weight).backward()
    # A step that crosses no kink of the absolute values in a random picture, yet is far above float32's rounding.
    step = 1e-3
    for row, column in ((0, 0), (16, 7), (32, 32)):
        losses = []
        for sign in (1, -1):
            moved = predicted.detach().clone()
            moved[0, 0, row, column] += sign * step
            losses.append(laplacian_loss(moved, true, weight).item())
        slope = (losses[0] - losses[1]) / (2 * step)
        assert predicted.grad[0, 0, row, column].item() == pytest.approx(slope, abs=5e-4)


@pytest.mark.parametrize(("scale", "share"), [("os8", 1 / 5), ("os4", 1 / 5), ("os1", 2 / 5)])
def test_each_scale_costs_its_share_of_both_losses_under_its_own_weight(scale, share):
    predicted, true, weight = maps(10)
    everywhere = torch.ones_like(true)
    expected = share * (l1_loss(predicted, true, weight) + laplacian_loss(predicted, true, weight)).item()
    scales = replace(AlphaPyramid(true, true, true), **{scale: predicted})
    weights = replace(AlphaPyramid(everywhere, everywhere, everywhere), **{scale: weight})
    assert pyramid_loss(scales, true, weights).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("height", "width"), [(32, 40), (40, 32)])
def test_pictures_too_small_for_five_levels_are_refused_with_a_sentence(height, width):
    small = torch.zeros(1, 1, height, width)
    with pytest.raises(ValueError, match=f"at least 33 pixels a side, not {width} x {height}"):
        laplacian_loss(small, small, small)


@pytest.mark.parametrize("loss", [l1_loss, laplacian_loss])
def test_the_mean_loss_of_two_processes_is_that_of_their_whole_batch(loss):
    predicted, true, weight = maps(9)
    weight[1] *= 0.1
    expected = loss(predicted, true, weight).item()
    wholes = [weight[..., :: 2**level, :: 2**level].sum() for level in range(5)]
    losses = []
    for part in (slice(0, 1), slice(1, 2)):
        answers = iter([whole / 2 for whole in wholes])
        losses.append(loss(predicted[part], true[part], weight[part], lambda _, answers=answers: next(answers)).item())
    assert sum(losses) / 2 == pytest.approx(expected, rel=1e-5)
