"""What a trimap promises: certain inside, certain outside, an even band between."""

from __future__ import annotations

import pytest
import torch

from mam_model.trimap import trimap_from_alpha, trimap_from_mask


def disc(size: int, radius: float) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    return (((x - size / 2) ** 2 + (y - size / 2) ** 2) <= radius**2).float()


def test_an_empty_mask_is_background_everywhere():
    assert torch.equal(trimap_from_mask(torch.zeros(20, 30), 4, 4), torch.zeros(20, 30))


def test_a_full_mask_is_subject_up_to_the_border_of_the_picture():
    assert torch.equal(trimap_from_mask(torch.ones(20, 30), 4, 4), torch.ones(20, 30))


def test_a_subject_cut_off_by_the_picture_stays_certain_at_the_border():
    mask = torch.zeros(20, 30)
    mask[:, :15] = 1
    trimap = trimap_from_mask(mask, 3, 2)
    expected = torch.full((30,), 0.5)
    expected[:12] = 1
    expected[17:] = 0
    assert torch.equal(trimap, expected.expand(20, 30))


def test_widths_of_zero_give_the_mask_itself():
    mask = disc(40, 12)
    assert torch.equal(trimap_from_mask(mask, 0, 0), mask)


def test_the_band_around_a_corner_is_round():
    mask = torch.zeros(41, 41)
    mask[20, 20] = 1
    band = trimap_from_mask(mask, 0, 10) == 0.5
    assert band[20, 30] and band[26, 28], "pixels 10 away, straight and slanting, belong to the band"
    assert not band[28, 28], "the corner of the square around it is farther away than 10"


def test_the_inner_width_reaches_into_the_subject_and_the_outer_one_out_of_it():
    mask = disc(80, 25)
    unknown = trimap_from_mask(mask, 6, 2) == 0.5
    assert (unknown & (mask > 0)).sum() > 2 * (unknown & (mask == 0)).sum()
    assert trimap_from_mask(mask, 6, 2)[mask > 0].min() == 0.5


def test_every_mask_of_a_batch_gets_its_own_trimap():
    masks = torch.stack((disc(40, 5), torch.zeros(40, 40), torch.ones(40, 40), disc(40, 15)))
    together = trimap_from_mask(masks.reshape(2, 2, 40, 40), 2, 3)
    alone = torch.stack([trimap_from_mask(mask, 2, 3) for mask in masks])
    assert torch.equal(together, alone.reshape(2, 2, 40, 40))


def test_a_trimap_is_a_float_also_of_a_bool_mask_and_leaves_the_mask_alone():
    mask = disc(40, 10).bool()
    before = mask.clone()
    trimap = trimap_from_mask(mask, 2, 2)
    assert trimap.dtype == torch.float32
    assert set(trimap.unique().tolist()) == {0.0, 0.5, 1.0}
    assert torch.equal(mask, before)


def test_soft_alpha_is_unknown_and_hard_alpha_is_certain():
    alpha = torch.tensor([[0.0, 0.04, 0.3, 0.7, 0.96, 1.0]])
    assert trimap_from_alpha(alpha, 0.05, 0.95, 0).tolist() == [[0, 0, 0.5, 0.5, 1, 1]]


def test_widening_grows_the_soft_region_into_both_sides():
    alpha = torch.tensor([0.0] * 6 + [0.5] + [1.0] * 6).expand(5, 13)
    row = trimap_from_alpha(alpha, widen_px=2)[2]
    assert row.tolist() == [0] * 4 + [0.5] * 5 + [1] * 4


def test_widening_opens_a_hard_edge():
    alpha = torch.tensor([0.0] * 5 + [1.0] * 5).expand(4, 10)
    assert trimap_from_alpha(alpha, widen_px=1)[0].tolist() == [0] * 4 + [0.5] * 2 + [1] * 4


def test_a_negative_width_and_crossed_limits_are_refused():
    with pytest.raises(ValueError, match="from 0 upwards"):
        trimap_from_mask(torch.zeros(4, 4), -1, 2)
    with pytest.raises(ValueError, match="low"):
        trimap_from_alpha(torch.zeros(4, 4), 0.9, 0.1)
    with pytest.raises(ValueError, match="from 0 upwards"):
        trimap_from_alpha(torch.zeros(4, 4), widen_px=-1)
