"""A Gaussian blur is the same whichever way it is computed, and as wide as anybody likes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mam_model import gaussian
from mam_model.gaussian import blurred

WAYS = ("_in_arrays", "_multiplied", "_convolved")


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (60, 40), (300, 7)])
@pytest.mark.parametrize("reach", [0, 1, 6, 75, 400])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("planar", [False, True])
def test_all_ways_filter_alike(size, reach, channels, planar):
    picture = torch.rand(channels, *size).permute(1, 2, 0) if planar else torch.rand(*size, channels)
    # No Gaussian, nor the same to both sides: which weight belongs to which neighbour shows.
    kernel = np.random.default_rng(0).random(2 * reach + 1)
    kernel /= kernel.sum()
    arrays, multiplied, convolved = (getattr(gaussian, way)(picture, kernel).reshape(picture.shape) for way in WAYS)
    torch.testing.assert_close(arrays, convolved, rtol=0, atol=3e-6)
    torch.testing.assert_close(multiplied, convolved, rtol=0, atol=3e-6)


@pytest.mark.parametrize("sigma_px", [0.7, 5.0, 15.0, 40.0])
def test_a_dot_becomes_a_gaussian(sigma_px):
    dot = torch.zeros(301, 401)
    dot[150, 200] = 1
    rows, columns = ((torch.arange(length) - length // 2) / sigma_px for length in dot.shape)
    expected = torch.exp(-0.5 * (rows[:, None] ** 2 + columns**2)) / (2 * math.pi * sigma_px**2)
    # A narrow one is not sampled as finely as its area would want.
    torch.testing.assert_close(blurred(dot, sigma_px, round(6 * sigma_px)), expected, rtol=0.01, atol=1e-9)


@pytest.mark.parametrize("reach", [3, 200])
def test_the_picture_stays_as_it_is_and_its_kind_is_kept(reach):
    picture = torch.rand(30, 40, 3, dtype=torch.float16)
    before = picture.clone()
    soft = blurred(picture, 0.3 * reach, reach)
    assert soft.dtype == torch.float16 and soft.shape == picture.shape
    assert torch.equal(picture, before)


def test_a_blur_far_wider_than_the_picture_neither_rounds_nor_takes_its_time():
    """Each of the corners then covers a quarter of everything; OpenCV's sums were 0.0025 wrong, after 15 seconds."""
    picture = torch.rand(108, 192)
    corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    soft = blurred(picture, 1e5, 400_000)
    torch.testing.assert_close(soft, corners.expand(picture.shape), rtol=0, atol=1e-3)
    assert soft.std() < 1e-3
