"""What a trimap promises: certain inside, certain outside, an even band between."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from mam_model.trimap import mask_from_trimap, trimap_adaptive, trimap_from_alpha, trimap_from_mask


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


def test_distances_that_opencv_rounds_up_make_no_other_trimap(monkeypatch):
    mask = torch.zeros(9, 90)
    mask[:, :45] = 1
    soft = torch.tensor([0.0] * 30 + [0.5] * 10 + [1.0] * 50).expand(9, 90)
    trimap = trimap_from_mask(mask, 30, 15)

    def made() -> list[torch.Tensor]:
        return [trimap_from_mask(mask, 30, 15), trimap_adaptive(soft, 20, 10), mask_from_trimap(trimap)]

    expected, exact = made(), cv2.distanceTransform
    monkeypatch.setattr(cv2, "distanceTransform", lambda *given: np.nextafter(exact(*given), np.float32(np.inf)))
    assert all(map(torch.equal, made(), expected))


def test_every_mask_of_a_batch_gets_its_own_trimap():
    masks = torch.stack((disc(40, 5), torch.zeros(40, 40), torch.ones(40, 40), disc(40, 15)))
    together = trimap_from_mask(masks.reshape(2, 2, 40, 40), 2, 3)
    alone = torch.stack([trimap_from_mask(mask, 2, 3) for mask in masks])
    assert torch.equal(together, alone.reshape(2, 2, 40, 40))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(torch.bool, torch.float32), (torch.uint8, torch.float32), (torch.float16,) * 2, (torch.float64,) * 2],
)
def test_what_is_made_has_the_float_type_of_what_is_given_which_stays_as_it_is(given, wanted):
    mask = disc(40, 10).to(given)
    before = mask.clone()
    trimaps = [trimap_from_mask(mask, 2, 2), trimap_from_alpha(mask, widen_px=2), trimap_adaptive(mask, 8, 8)]
    for trimap in trimaps:
        assert trimap.dtype == wanted
        assert set(trimap.unique().tolist()) == {0.0, 0.5, 1.0}
    assert mask_from_trimap(mask).dtype == wanted
    assert torch.equal(mask, before)


def test_the_limits_themselves_are_certain_and_one_half_is_no_subject():
    assert trimap_from_mask(torch.tensor([[0.0, 0.5, 0.501, 1.0]]), 0, 0).tolist() == [[0, 0, 1, 1]]
    assert trimap_from_alpha(torch.tensor([[0.25, 0.26, 0.74, 0.75]]), 0.25, 0.75).tolist() == [[0, 0.5, 0.5, 1]]
    assert trimap_from_alpha(torch.tensor([[0.0, 0.01, 0.99, 1.0]]), 0, 1).tolist() == [[0, 0.5, 0.5, 1]]
    assert trimap_adaptive(torch.tensor([[0.05, 0.06, 0.94, 0.95]]), 0, 0).tolist() == [[0, 0.5, 0.5, 1]]
    assert mask_from_trimap(torch.tensor([[0.05, 0.06, 0.94, 0.95]])).tolist() == [[0, 0, 1, 1]]


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


@pytest.mark.parametrize("width", [float("nan"), float("inf")])
def test_a_width_that_is_no_number_is_refused(width):
    mask = torch.zeros(4, 4)
    for made in (
        lambda: trimap_from_mask(mask, width, 1),
        lambda: trimap_from_mask(mask, 1, width),
        lambda: trimap_adaptive(mask, width, 1),
        lambda: trimap_from_alpha(mask, widen_px=width),
    ):
        with pytest.raises(ValueError, match=f"from 0 upwards.*{width:g}"):
            made()


def test_a_negative_width_and_crossed_limits_are_refused():
    with pytest.raises(ValueError, match="from 0 upwards"):
        trimap_from_mask(torch.zeros(4, 4), -1, 2)
    with pytest.raises(ValueError, match="from 0 upwards"):
        trimap_adaptive(torch.zeros(4, 4), 1, -2)
    for low, high in ((0.9, 0.1), (0.5, 0.5), (-0.1, 0.9), (0.1, 1.1)):
        with pytest.raises(ValueError, match="low"):
            trimap_from_alpha(torch.zeros(4, 4), low, high)
    with pytest.raises(ValueError, match="from 0 upwards"):
        trimap_from_alpha(torch.zeros(4, 4), widen_px=-1)


def hard_and_soft(soft_px: int = 20) -> torch.Tensor:
    """A subject on the right: a hard edge in the upper half, a soft one of this thickness in the lower."""
    hard = [0.0] * 40 + [1.0] * 40
    soft = [0.0] * (40 - soft_px // 2) + [0.5] * soft_px + [1.0] * (40 - soft_px // 2)
    return torch.tensor([hard] * 60 + [soft] * 60)


def test_the_adaptive_band_has_its_full_width_around_thick_softness_and_a_quarter_along_a_hard_edge():
    trimap = trimap_adaptive(hard_and_soft(), inner_px=8, outer_px=12)
    assert trimap[5].tolist() == [0] * 37 + [0.5] * 5 + [1] * 38
    assert trimap[-5].tolist() == [0] * 18 + [0.5] * 40 + [1] * 22


def test_the_adaptive_band_grows_with_the_softness_of_the_edge():
    widths = [int((trimap_adaptive(hard_and_soft(px), 16, 16)[-5] == 0.5).sum()) - px for px in (2, 8, 12, 16, 20)]
    assert widths == [2 * 4, 2 * 8, 2 * 12, 2 * 16, 2 * 16]
    # The larger width says what is thick.
    uneven = [int((trimap_adaptive(hard_and_soft(8), *px)[-5] == 0.5).sum()) - 8 for px in ((16, 4), (4, 16))]
    assert uneven == [8 + 2, 2 + 8]


def test_gaps_between_strands_do_not_make_hair_thin():
    strands = torch.zeros(80, 80)
    strands[:, 50:] = 1
    strands[:, 30:50:2] = 0.5
    lone = torch.zeros(80, 80)
    lone[:, 30] = 0.5
    first = [int((trimap_adaptive(hair, 8, 8)[40] == 0.5).nonzero().min()) for hair in (strands, lone)]
    assert first == [30 - 4, 30 - 2]


def test_everything_soft_is_unknown_in_an_adaptive_trimap_however_narrow_its_band():
    alpha = disc(60, 10) * 0.6 + disc(60, 4) * 0.4
    trimap = trimap_adaptive(alpha, 0, 0)
    assert torch.equal(trimap == 0.5, (alpha > 0.05) & (alpha < 0.95))


def test_an_adaptive_band_leaves_a_sure_core_of_a_thin_subject():
    assert (trimap_adaptive(disc(60, 4), 50, 5) == 1).any()
    assert (trimap_adaptive(1 - disc(60, 4), 5, 50) == 0).any()


@pytest.mark.parametrize("shape", [(10, 300), (300, 10), (1, 1)])
def test_an_adaptive_band_far_wider_than_the_picture_looks_no_farther_than_its_border(monkeypatch, shape):
    """OpenCV would take memory for each row of the window: 23 GB for 1000 per cent of 10 x 12,000 pixels."""
    import cv2

    windows, blur = [], cv2.blur
    monkeypatch.setattr(cv2, "blur", lambda image, window, **how: windows.append(window) or blur(image, window, **how))
    alpha = torch.linspace(0, 1, shape[0] * shape[1]).reshape(shape)
    wide, wider = (trimap_adaptive(alpha, width, width) for width in (10 * max(shape), 100 * max(shape)))
    assert torch.equal(wide, wider)
    assert windows == 2 * [(2 * shape[1] + 1, 2 * shape[0] + 1)]


def test_an_adaptive_band_reaches_half_as_deep_as_a_side_is():
    alpha = torch.tensor([0.0] * 100 + [0.5] * 60 + [1.0] * 40).expand(5, 200)
    assert trimap_adaptive(alpha, 30, 30)[2].tolist() == [0] * 70 + [0.5] * 110 + [1] * 20
    assert trimap_adaptive(1 - alpha, 30, 30)[2].tolist() == [1] * 70 + [0.5] * 110 + [0] * 20


def test_adaptive_trimaps_of_a_batch_are_those_of_its_mattes_and_leave_them_alone():
    alphas = torch.stack((hard_and_soft(), hard_and_soft(4), torch.zeros(120, 80), torch.ones(120, 80)))
    before = alphas.clone()
    together = trimap_adaptive(alphas, 6, 9)
    assert torch.equal(together, torch.stack([trimap_adaptive(alpha, 6, 9) for alpha in alphas]))
    assert torch.equal(alphas, before) and torch.equal(together[2:], alphas[2:])


def test_a_mask_from_a_trimap_gives_the_unknown_to_the_nearer_side():
    trimap = torch.tensor([1.0, 0.5, 0.5, 0.5, 0.5, 0.0]).expand(4, 6)
    assert mask_from_trimap(trimap)[0].tolist() == [1, 1, 1, 0, 0, 0]


def test_a_mask_comes_back_from_its_own_trimap():
    mask = disc(80, 25)
    assert torch.equal(mask_from_trimap(trimap_from_mask(mask, 0, 0)), mask)
    assert (mask_from_trimap(trimap_from_mask(mask, 5, 5)) - mask).abs().sum() < 0.1 * mask.sum()


def test_a_trimap_with_one_side_or_none_gives_a_mask_all_the_same():
    half = torch.full((6, 6), 0.5)
    assert torch.equal(mask_from_trimap(half), torch.zeros(6, 6))
    for side in (0.0, 1.0):
        known = half.clone()
        known[2, 3] = side
        assert torch.equal(mask_from_trimap(known), torch.full((6, 6), side))


def test_128_of_an_8_bit_trimap_is_unknown():
    trimap = torch.tensor([[250, 128, 128, 128, 5]]) / 255
    assert mask_from_trimap(trimap).tolist() == [[1, 1, 1, 0, 0]]
