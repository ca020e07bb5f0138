"""Edge controls: each does what its name says, to soft edges too, and the defaults do nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mam_model.edge import EdgeOptions, adjust_edge


def disc(radius: float, size: int = 64, softness: float = 4.0) -> torch.Tensor:
    """A soft disc in the middle of a square picture: alpha falls from 1 to 0 over `softness` pixels at `radius`."""
    grid = torch.arange(size) - (size - 1) / 2
    distance = (grid[:, None] ** 2 + grid**2).sqrt()
    return ((radius - distance) / softness + 0.5).clamp(0, 1)


def edge_radius(alpha: torch.Tensor) -> float:
    """Where the disc's edge crosses one half, measured by the area above it."""
    return float(((alpha > 0.5).sum() / np.pi).sqrt())


def test_defaults_leave_a_matte_alone():
    alpha = torch.zeros(20, 30)
    # Every level, single pixels among them.
    alpha[2:18:4, 2:28:4] = torch.linspace(0, 1, 28).reshape(4, 7)
    for matte in (alpha, 1 - alpha):
        assert torch.equal(adjust_edge(matte, EdgeOptions()), matte)


def test_the_input_is_not_modified():
    alpha = disc(20)
    before = alpha.clone()
    adjust_edge(alpha, EdgeOptions(shift_px=2, feather_px=1, black_point=0.2, contrast=0.5, fill_holes_px=9))
    assert torch.equal(alpha, before)


@pytest.mark.parametrize("shift_px", [-6, -3, 2, 5])
def test_shifting_moves_the_edge_by_that_many_pixels(shift_px):
    moved = adjust_edge(disc(18), EdgeOptions(shift_px=shift_px))
    assert edge_radius(moved) == pytest.approx(18 + shift_px, abs=0.6)


def test_shifting_keeps_a_soft_edge_soft():
    moved = adjust_edge(disc(18), EdgeOptions(shift_px=3))
    soft = ((moved > 0.05) & (moved < 0.95)).sum()
    assert soft > 200


@pytest.mark.parametrize(("less", "share"), [(0, 0.5), (2, 0.25)])
@pytest.mark.parametrize("way", [1, -1])
def test_a_part_of_a_pixel_of_shift_lies_between_whole_ones(way, less, share):
    near, between, far = (
        adjust_edge(disc(18), EdgeOptions(shift_px=way * shift_px)) for shift_px in (less, less + share, less + 1)
    )
    assert torch.allclose(between, near + share * (far - near), atol=1e-6)


@pytest.mark.parametrize("shift_px", [-7.25, -0.5, 0.75, 3, 12.1])
def test_the_parts_of_a_shift_are_counted_to_the_end(shift_px):
    told = []
    adjust_edge(disc(18, size=600), EdgeOptions(shift_px=shift_px), lambda *part: told.append(part))
    parts = told[-1][1]
    assert [done for done, _ in told][-1] == parts and len(told) >= 3
    assert all(before < after for before, after in zip(told, told[1:])) and {parts} == {most for _, most in told}


def test_feathering_softens_and_keeps_a_cut_off_subject_solid_at_the_border():
    alpha = torch.zeros(40, 40)
    alpha[:, :20] = 1
    soft = adjust_edge(alpha, EdgeOptions(feather_px=3))
    assert soft[20, 0] == pytest.approx(1, abs=1e-4)
    assert 0.2 < soft[20, 21] < 0.5
    assert torch.all(soft[:, :-1] >= soft[:, 1:] - 1e-6)


@pytest.mark.parametrize("feather_px", [0.05, 0.1, 0.4, 1.7, 12.3, 30.0, 200.0])
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (300, 200)])
def test_feathering_is_opencvs_blur_of_any_width(feather_px, size):
    import cv2

    alpha = torch.rand(size)
    expected = cv2.GaussianBlur(alpha.double().numpy(), (0, 0), feather_px, borderType=cv2.BORDER_REPLICATE)
    soft = adjust_edge(alpha, EdgeOptions(feather_px=feather_px))
    torch.testing.assert_close(soft.double(), torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_black_and_white_point_stretch_what_lies_between():
    alpha = torch.tensor([[0.0, 0.2, 0.5, 0.8, 1.0]])
    expected = torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0]])
    assert torch.allclose(adjust_edge(alpha, EdgeOptions(black_point=0.2, white_point=0.8)), expected, atol=1e-6)


def test_contrast_steepens_about_the_middle_and_full_contrast_is_hard():
    alpha = torch.tensor([[0.3, 0.5, 0.6]])
    assert torch.allclose(adjust_edge(alpha, EdgeOptions(contrast=0.5)), torch.tensor([[0.1, 0.5, 0.7]]), atol=1e-6)
    assert adjust_edge(alpha, EdgeOptions(contrast=1)).tolist() == [[0, 1, 1]]


def test_small_holes_are_filled_with_their_soft_rim_and_large_ones_stay():
    alpha = torch.ones(60, 60)
    alpha[10:14, 10:14] = 0
    alpha[9, 10:14] = 0.5
    alpha[30:50, 30:50] = 0
    filled = adjust_edge(alpha, EdgeOptions(fill_holes_px=25))
    assert torch.all(filled[5:20, 5:20] == 1)
    assert torch.all(filled[30:50, 30:50] == 0)


@pytest.mark.parametrize("gap", [np.s_[:3, 5:8], np.s_[-3:, 5:8], np.s_[5:8, :3], np.s_[5:8, -3:]])
def test_a_gap_at_the_picture_border_is_no_hole(gap):
    alpha = torch.ones(20, 30)
    alpha[gap] = 0
    assert torch.equal(adjust_edge(alpha, EdgeOptions(fill_holes_px=100)), alpha)


def test_specks_and_holes_of_exactly_the_area_go_up_to_a_pixel_from_the_border_and_no_larger_ones():
    alpha = torch.zeros(20, 30)
    alpha[1:4, 1:3] = 1
    assert not adjust_edge(alpha, EdgeOptions(remove_specks_px=6)).any()
    assert adjust_edge(1 - alpha, EdgeOptions(fill_holes_px=6)).all()
    assert torch.equal(adjust_edge(alpha, EdgeOptions(remove_specks_px=5)), alpha)
    assert torch.equal(adjust_edge(1 - alpha, EdgeOptions(fill_holes_px=5)), 1 - alpha)


def test_specks_disappear_and_the_subject_stays():
    alpha = disc(15)
    speckled = alpha.clone()
    speckled[2:4, 2:4] = 0.7
    assert torch.equal(adjust_edge(speckled, EdgeOptions(remove_specks_px=6)), alpha)


def test_a_veil_of_less_than_a_level_neither_joins_a_speck_to_the_subject_nor_disappears_with_it():
    alpha = torch.full((20, 30), 0.9 / 255)
    alpha[5:15, 3:13] = 1
    alpha[9, 20] = 0.7
    cleaned = alpha.clone()
    cleaned[9, 20] = 0
    assert torch.equal(adjust_edge(alpha, EdgeOptions(remove_specks_px=5)), cleaned)
    assert torch.equal(adjust_edge(1 - alpha, EdgeOptions(fill_holes_px=5)), 1 - cleaned)
    # A level and a little more does join it.
    alpha[9, 13:20] = 1.05 / 255
    assert torch.equal(adjust_edge(alpha, EdgeOptions(remove_specks_px=5)), alpha)
    assert torch.equal(adjust_edge(1 - alpha, EdgeOptions(fill_holes_px=5)), 1 - alpha)


def test_frames_of_a_batch_are_adjusted_one_by_one():
    batch = torch.stack([disc(10), disc(20)])
    options = EdgeOptions(shift_px=2, feather_px=1.5, remove_specks_px=3)
    together = adjust_edge(batch, options)
    assert torch.equal(together, torch.stack([adjust_edge(frame, options) for frame in batch]))


def test_a_batch_of_no_frames_stays_one():
    assert adjust_edge(torch.zeros(0, 5, 7), EdgeOptions(shift_px=2)).shape == (0, 5, 7)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (16, 16)])
def test_an_empty_or_full_matte_of_any_size_stays_as_it_is(value, size):
    alpha = torch.full(size, value)
    options = EdgeOptions(
        remove_specks_px=0, fill_holes_px=9, shift_px=-2 if value == 0 else 2, feather_px=2, contrast=0.3
    )
    assert torch.allclose(adjust_edge(alpha, options), alpha, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"black_point": 0.6, "white_point": 0.6},
        {"white_point": 1.2},
        {"feather_px": -1},
        {"contrast": 1.5},
        {"fill_holes_px": -2},
        {"remove_specks_px": -2},
        {"feather_px": float("nan")},
        {"feather_px": float("inf")},
        {"shift_px": float("nan")},
        {"shift_px": float("-inf")},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="point|negative|[Cc]ontrast|finite"):
        EdgeOptions(**wrong)
