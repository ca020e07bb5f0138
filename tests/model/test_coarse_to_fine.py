"""What a smaller size of a picture says about a mask of the larger one."""

import numpy as np
import pytest
import torch

from mam_model import coarse_to_fine
from mam_model.coarse_to_fine import corrected, halved


def disc(side: int, radius_px: float, softness_px: float = 0.0) -> torch.Tensor:
    y, x = np.mgrid[:side, :side] + 0.5 - side / 2
    distance = radius_px - np.hypot(x, y)
    alpha = (distance / softness_px + 0.5).clip(0, 1) if softness_px else distance > 0
    return torch.from_numpy(alpha.astype(np.float32))


def test_cells_are_means_and_those_at_the_border_of_what_there_is():
    plane = torch.arange(15.0).reshape(3, 5)
    assert halved(plane).tolist() == [[3, 5, 6.5], [10.5, 12.5, 14]]


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 4, 3), (6, 9), (600, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_halving_keeps_the_form_and_counts_in_float32(shape, dtype):
    plane = torch.rand(shape).to(dtype)
    cells = halved(plane)
    assert cells.shape == ((shape[0] + 1) // 2, (shape[1] + 1) // 2, *shape[2:]) and cells.dtype == torch.float32
    torch.testing.assert_close(cells[0, 0], plane[:2, :2].float().mean(dim=(0, 1)))


def test_a_hard_mask_that_the_smaller_size_agrees_with_stays_as_it_is():
    mask = disc(200, 60)
    small = halved(mask)
    assert torch.equal(corrected(mask, small, small), mask)
    # Hair that is half there, as a hard mask can only say on average.
    assert torch.equal(corrected(mask, small, (small + 0.2).clamp(0, 1)), mask)


def test_a_mask_no_finer_than_the_smaller_size_is_replaced_along_its_edge():
    mask = disc(200, 60, softness_px=24)
    small = halved(mask)
    found = halved(disc(200, 60, softness_px=4))
    moved = corrected(mask, small, found)
    assert (moved - disc(200, 60, softness_px=4)).abs().max() < 0.15
    assert moved[0, 0] == 0 and moved[100, 100] == 1


def test_a_hard_mask_that_is_off_is_moved_to_where_the_smaller_size_saw_the_edge():
    mask, true = disc(200, 50), disc(200, 70)
    moved = corrected(mask, halved(mask), halved(true))
    assert (moved - true).abs().mean() < 0.2 * (mask - true).abs().mean()


@pytest.mark.parametrize("height, width", [(1, 1), (1, 30), (31, 1), (77, 53), (130, 64)])
def test_strips_give_what_the_whole_gives(monkeypatch, height, width):
    torch.manual_seed(0)
    mask = torch.rand(height, width)
    small = halved(mask)
    found = torch.rand(small.shape)
    whole = corrected(mask, small, found)
    monkeypatch.setattr(coarse_to_fine, "_STRIP_PX", 16)
    assert torch.equal(halved(mask), small)
    torch.testing.assert_close(corrected(mask, small, found), whole, atol=1e-6, rtol=0)
    assert whole.shape == mask.shape and whole.min() >= 0 and whole.max() <= 1


def test_the_given_planes_are_left_alone():
    given = disc(50, 20), halved(disc(50, 20)), torch.rand(25, 25)
    kept = [plane.clone() for plane in given]
    corrected(*given)
    assert all(torch.equal(*pair) for pair in zip(given, kept))


@pytest.mark.parametrize("side", [301, 400])
def test_looking_only_around_what_differs_changes_nothing(side):
    mask = torch.zeros(side, side)
    mask[40:120, 60:140] = disc(80, 30, softness_px=12)
    mask[-3:, -3:] = 1
    small = halved(mask)
    found = small.clone()
    found[70:80, 90:99] = 0.7
    contrast = coarse_to_fine._largest(small) + coarse_to_fine._largest(-small)
    whole = coarse_to_fine._moved(mask, small, found, contrast)
    assert not torch.equal(whole, mask)
    assert torch.equal(corrected(mask, small, found), whole)


def test_a_mask_without_an_edge_stays_as_it_is():
    mask = torch.full((60, 40), 0.3)
    assert torch.equal(corrected(mask, halved(mask), halved(mask)), mask)
