"""Widening areas: the way for tensors gives, bit for bit, what OpenCV gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mam_model.morphology import dilated, ellipse, eroded, outline

SIZES = range(1, 61)


def random_areas(seed: int, height: int, width: int) -> np.ndarray:
    """Bool [4, height, width]: single pixels, noise, a block over a corner, and all but a few pixels."""
    random = np.random.default_rng(seed)
    areas = random.random((4, height, width)) > np.array([0.99, 0.7, 2, 0.01])[:, None, None]
    areas[0, random.integers(height), random.integers(width)] = True
    areas[2, : 1 + random.integers(height), : 1 + random.integers(width)] = True
    return areas


def plain_dilated(area: np.ndarray, size: int) -> np.ndarray:
    """By definition: is there anything in the ellipse around a pixel?"""
    height, width = area.shape
    before = size // 2
    padded = np.pad(area, (before, size))
    shifted = [padded[row : row + height, column : column + width] for row, column in np.argwhere(ellipse(size))]
    return np.logical_or.reduce(shifted)


@pytest.mark.parametrize("widen", [dilated, eroded])
def test_tensors_are_widened_as_opencv_widens_arrays(widen):
    """Also where the ellipse is larger than the picture."""
    for size in SIZES:
        height, width = 5 + 7 * size % 44, 1 + 11 * size % 53
        areas = random_areas(size, height, width)
        together = widen(torch.from_numpy(areas), size)
        assert together.dtype == torch.bool
        for area, ours in zip(areas, together):
            assert np.array_equal(ours.numpy(), widen(area, size)), size


def test_both_do_what_widening_is():
    for size in (1, 2, 3, 6, 10, 13, 29):
        for area in random_areas(size, 23, 31):
            assert np.array_equal(dilated(area, size), plain_dilated(area, size))
            assert np.array_equal(eroded(area, size), ~plain_dilated(~area, size))


def test_an_even_ellipse_reaches_further_to_the_right_and_down():
    """A pixel is found by those from 4 before it to 5 behind it: the ellipse of 10 covers -5 to +4."""
    for kind in (lambda area: area, torch.from_numpy):
        area = np.zeros((21, 21), dtype=bool)
        area[10, 10] = True
        rows, columns = np.nonzero(np.asarray(dilated(kind(area), 10)))
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 15, 6, 15)


@pytest.mark.parametrize("size", [2, 7, 10, 31])
def test_what_is_widened_holds_the_area_and_two_areas_widen_as_their_union(size):
    one, other = (torch.from_numpy(random_areas(seed, 40, 50)) for seed in (1, 2))
    assert torch.all(dilated(one, size) | ~one)
    assert torch.equal(dilated(one | other, size), dilated(one, size) | dilated(other, size))
    assert not (eroded(one, size) & ~one).any()


@pytest.mark.parametrize("size", [2, 7, 10, 31])
def test_where_the_area_lies_does_not_matter(size):
    area = torch.zeros(90, 100, dtype=torch.bool)
    area[35:45, 35:50] = torch.from_numpy(random_areas(3, 10, 15)[1])
    moved = area.roll((5, -3), dims=(0, 1))
    assert torch.equal(dilated(moved, size), dilated(area, size).roll((5, -3), dims=(0, 1)))


def test_nothing_stays_nothing_and_everything_everything():
    for size in (1, 10, 60):
        for kind in (np.zeros((7, 9), dtype=bool), torch.zeros(2, 7, 9, dtype=torch.bool)):
            assert not dilated(kind, size).any() and not eroded(kind, size).any()
            assert dilated(~kind, size).all() and eroded(~kind, size).all()


def test_the_area_itself_is_left_alone():
    area = torch.from_numpy(random_areas(0, 20, 20))
    before = area.clone()
    dilated(area, 1).logical_not_()
    dilated(area, 9)
    eroded(area, 9)
    assert torch.equal(area, before)


def test_the_outline_is_both_sides_of_every_change_and_never_the_pictures_border():
    for area in random_areas(0, 17, 23):
        padded = np.pad(area, 1, mode="edge")
        seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(*area.shape, 9)
        assert np.array_equal(outline(area), seen.any(axis=-1) & ~seen.all(axis=-1))
    assert not outline(np.ones((5, 1), bool)).any()
