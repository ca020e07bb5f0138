"""Pictures of any size get into the square, and mattes get back to where they were."""

from __future__ import annotations

import pytest
import torch

from mam_model.in_context.fit import Fit, Square
from tests.references.in_context import hashed

SIZES = [(192, 192), (300, 200), (97, 411), (768, 1024), (20, 31)]


def soft_disc(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return (1.5 - 2 * (x**2 + y**2).sqrt()).clamp(0, 1)


@pytest.mark.parametrize("fit", Fit)
@pytest.mark.parametrize("height, width", SIZES)
def test_a_picture_fills_the_square_and_a_matte_comes_back_at_its_size(fit, height, width):
    square = Square(height, width, fit, 192)
    picture = square.picture(hashed("picture", height, width, 3).clamp(0, 1))
    assert picture.shape == (192, 192, 3)
    assert 0 <= picture.min() and picture.max() <= 1
    assert square.mask(torch.ones(height, width)).shape == (192, 192)
    assert square.back(torch.ones(192, 192)).shape == (height, width)


@pytest.mark.parametrize("fit", [Fit.PAD, Fit.STRETCH])
@pytest.mark.parametrize("height, width", [(300, 200), (97, 211), (160, 180)])
def test_a_soft_mask_comes_back_where_it_was(fit, height, width):
    square, mask = Square(height, width, fit, 192), soft_disc(height, width)
    difference = (square.back(square.mask(mask)) - mask).abs()
    assert difference.mean() < 0.01
    assert difference.max() < 0.1


@pytest.mark.parametrize("fit", Fit)
def test_a_square_picture_of_the_networks_size_is_not_touched(fit):
    square, picture = Square(192, 192, fit, 192), torch.rand(192, 192, 3)
    assert torch.equal(square.picture(picture), picture)
    assert torch.equal(square.back(picture[..., 0]), picture[..., 0])


def test_padding_keeps_proportions_and_is_grey_for_pictures_and_empty_for_masks():
    square = Square(100, 200, Fit.PAD, 192)
    assert square.content == (0, 48, 192, 144)
    picture, mask = square.picture(torch.ones(100, 200, 3)), square.mask(torch.ones(100, 200))
    assert torch.all(picture[:48] == 0.5) and torch.all(picture[144:] == 0.5) and picture[48:144].min() > 0.999
    assert torch.all(mask[:48] == 0) and torch.all(mask[144:] == 0) and mask[48:144].min() > 0.999


@pytest.mark.parametrize("fit", Fit)
@pytest.mark.parametrize("height, width", [(192, 192), (100, 260)])
def test_colours_beyond_black_and_white_are_seen_as_black_and_white(fit, height, width):
    square, picture = Square(height, width, fit, 192), hashed("picture", height, width, 3)
    assert picture.min() < -0.5 and picture.max() > 1.5
    assert torch.equal(square.picture(picture), square.picture(picture.clamp(0, 1)))


def test_what_the_network_paints_into_the_bars_is_not_in_the_matte():
    square = Square(100, 200, Fit.PAD, 192)
    matte = torch.ones(192, 192)
    matte[48:144] = 0
    assert square.back(matte).max() == 0


def test_a_crop_shows_the_middle_square_and_leaves_the_rest_without_a_matte():
    square = Square(100, 200, Fit.CROP, 192)
    assert square.window == (50, 0, 150, 100)
    matte = square.back(torch.ones(192, 192))
    assert matte[:, 50:150].min() > 0.999
    assert torch.all(matte[:, :50] == 0) and torch.all(matte[:, 150:] == 0)
    upright = Square(200, 100, Fit.CROP, 192)
    assert upright.window == (0, 50, 100, 150)
    assert torch.allclose(upright.back(torch.ones(192, 192)), matte.t())


def test_a_strip_of_one_pixel_does_not_vanish():
    square = Square(1, 5000, Fit.PAD, 192)
    left, top, right, bottom = square.content
    assert (right - left, bottom - top) == (192, 1)
    assert square.back(square.mask(torch.ones(1, 5000))).min() > 0.999


@pytest.mark.parametrize("fit", Fit)
@pytest.mark.parametrize("height, width", [(300, 200), (97, 211)])
def test_a_point_lands_where_the_mask_of_its_pixel_lands(fit, height, width):
    square = Square(height, width, fit, 192)
    y, x = height // 2 + 7, width // 2 - 11
    mask = torch.zeros(height, width)
    mask[y - 1 : y + 2, x - 1 : x + 2] = 1
    rows, columns = (square.mask(mask) > 0.2).nonzero().float().add(0.5).mean(0)
    (found,) = square.points(torch.tensor([[x + 0.5, y + 0.5]]))
    assert torch.allclose(found, torch.stack((columns, rows)), atol=1.0)


def test_points_beside_the_middle_square_are_left_out_of_a_crop():
    square = Square(100, 200, Fit.CROP, 192)
    points = torch.tensor([[10.0, 50.0], [100.0, 50.0], [190.0, 50.0], [50.0, 0.0], [150.0, 100.0]])
    assert square.points(points).tolist() == [[96, 96], [0, 0], [192, 192]]
