"""What compositing promises: straight alpha, float colours, backgrounds that fit."""

from __future__ import annotations

import pytest
import torch

from mam_model.composite import (
    ColorError,
    fit_picture,
    linear_to_srgb,
    over,
    parse_color,
    solid_color,
    srgb_to_linear,
    with_alpha,
)


def test_alpha_one_shows_the_subject_and_alpha_zero_the_background():
    front, back = torch.rand(6, 8, 3), torch.rand(6, 8, 3)
    torch.testing.assert_close(over(front, torch.ones(6, 8), back), front)
    torch.testing.assert_close(over(front, torch.zeros(6, 8), back), back)


def test_half_alpha_mixes_both_halves_without_rounding_to_eight_bits():
    mixed = over(torch.full((1, 1, 3), 0.1001), torch.full((1, 1), 0.5), torch.zeros(3))
    torch.testing.assert_close(mixed, torch.full((1, 1, 3), 0.05005), rtol=0, atol=1e-7)


def test_one_background_and_one_matte_serve_a_batch_of_subjects():
    fronts, alpha, back = torch.rand(4, 6, 8, 3), torch.rand(6, 8), torch.rand(6, 8, 3)
    together = over(fronts, alpha, back)
    assert together.shape == (4, 6, 8, 3)
    torch.testing.assert_close(together[2], over(fronts[2], alpha, back))


def test_one_subject_serves_a_batch_of_mattes():
    front, alphas = torch.rand(6, 8, 3), torch.rand(4, 6, 8)
    assert over(front, alphas, torch.rand(3)).shape == (4, 6, 8, 3)


def test_pictures_of_different_sizes_are_refused_with_their_sizes():
    with pytest.raises(ValueError, match="6 x 8"):
        over(torch.rand(6, 8, 3), torch.rand(6, 9), torch.rand(6, 8, 3))
    with pytest.raises(ValueError, match="6 x 9"):
        with_alpha(torch.rand(6, 8, 3), torch.rand(6, 9))


def test_linear_light_mixes_black_and_white_to_a_brighter_grey():
    grey = over(torch.ones(1, 1, 3), torch.full((1, 1), 0.5), torch.zeros(3), linear_light=True)
    torch.testing.assert_close(grey, torch.full((1, 1, 3), 0.7353569), rtol=0, atol=1e-5)


def test_the_srgb_curve_and_its_inverse_undo_each_other():
    values = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(values)), values, rtol=0, atol=1e-7)
    known = srgb_to_linear(torch.tensor([0.0, 0.04045, 0.5, 1.0], dtype=torch.float64))
    expected = torch.tensor([0.0, 0.04045 / 12.92, 0.21404114, 1.0], dtype=torch.float64)
    torch.testing.assert_close(known, expected, rtol=0, atol=1e-7)


def test_rgba_keeps_the_colours_untouched_where_alpha_is_zero():
    image, alpha = torch.rand(6, 8, 3), torch.zeros(6, 8)
    rgba = with_alpha(image, alpha)
    assert torch.equal(rgba[..., :3], image)
    assert torch.equal(rgba[..., 3], alpha)


def test_one_picture_with_a_batch_of_mattes_gives_a_batch_of_rgba():
    assert with_alpha(torch.rand(6, 8, 3), torch.rand(4, 6, 8)).shape == (4, 6, 8, 4)


@pytest.mark.parametrize("text", ["#00b140", "00B140", " #00b140 "])
def test_a_colour_is_read_as_six_hexadecimal_digits(text):
    assert parse_color(text) == (0.0, 0xB1 / 255, 0x40 / 255)


def test_a_colour_may_be_three_digits_or_a_name():
    assert parse_color("#fa0") == parse_color("#ffaa00")
    assert parse_color("White") == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("text", ["", "#12345", "#12345g", "greeen", "#00b14080", "rgb(1,2,3)"])
def test_what_is_no_colour_is_refused_with_an_example(text):
    with pytest.raises(ColorError, match="is not a colour.*#00b140"):
        parse_color(text)


def test_a_solid_colour_fills_the_whole_size():
    picture = solid_color("#ff8000", 3, 5)
    assert picture.shape == (3, 5, 3)
    torch.testing.assert_close(picture[2, 4], torch.tensor([1.0, 128 / 255, 0.0]))


def two_halves(height: int, width: int) -> torch.Tensor:
    """Red on the left, blue on the right."""
    picture = torch.zeros(height, width, 3)
    picture[:, : width // 2, 0] = 1
    picture[:, width // 2 :, 2] = 1
    return picture


def test_cover_leaves_nothing_bare_and_keeps_the_middle():
    fitted = fit_picture(two_halves(20, 80), 30, 30, "cover")
    assert fitted.shape == (30, 30, 3)
    torch.testing.assert_close(fitted.sum(dim=-1), torch.ones(30, 30))
    assert fitted[15, 10].tolist() == [1, 0, 0] and fitted[15, 19].tolist() == [0, 0, 1]


def test_contain_shows_all_of_the_background_and_fills_the_rest():
    fitted = fit_picture(two_halves(20, 80), 40, 40, "contain", fill=(0, 1, 0))
    assert (fitted[:15] == torch.tensor([0.0, 1.0, 0.0])).all()
    assert (fitted[25:] == torch.tensor([0.0, 1.0, 0.0])).all()
    assert fitted[20, 0].tolist() == [1, 0, 0] and fitted[20, 39].tolist() == [0, 0, 1]


def test_stretch_uses_all_of_the_background_everywhere():
    fitted = fit_picture(two_halves(20, 80), 40, 10, "stretch")
    assert fitted[0, 0].tolist() == [1, 0, 0] and fitted[39, 9].tolist() == [0, 0, 1]


def test_center_keeps_the_pixels_as_they_are():
    background = torch.rand(6, 8, 3)
    assert torch.equal(fit_picture(background, 4, 4, "center"), background[1:5, 2:6])
    larger = fit_picture(background, 10, 12, "center", fill=(1, 0, 0))
    assert torch.equal(larger[2:8, 2:10], background)
    assert larger[0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("mode", ["cover", "contain", "stretch", "center"])
@pytest.mark.parametrize("size", [(1, 1), (5, 300), (300, 5)])
def test_every_shape_of_background_comes_out_at_the_wanted_size(mode, size):
    assert fit_picture(torch.rand(2, *size, 3), 16, 23, mode).shape == (2, 16, 23, 3)


def test_an_unknown_way_to_fit_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="cover, contain, stretch, center"):
        fit_picture(torch.rand(4, 4, 3), 4, 4, "tile")
