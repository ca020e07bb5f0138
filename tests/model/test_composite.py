"""What compositing promises: straight alpha, float colours, backgrounds that fit."""

from __future__ import annotations

import pytest
import torch

from mam_model.composite import (
    ColorError,
    fit_picture,
    light_wrap,
    linear_to_srgb,
    over,
    parse_color,
    place,
    premultiplied,
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
    for picture, matte in ((torch.rand(6, 8, 3), torch.rand(6, 9)), (torch.rand(1, 1, 3), torch.rand(6, 9))):
        with pytest.raises(ValueError, match=r"alpha \(6 x 9\) differ in size"):
            with_alpha(picture, matte)


@pytest.mark.parametrize(
    ("front", "alpha", "back", "mixed"),
    # The light of sRGB 0.5 is 0.21404114: a quarter of it and three of white's make 0.80351.
    [(1.0, 0.5, 0.0, 0.7353569), (0.5, 0.25, 1.0, 0.908088)],
)
def test_linear_light_mixes_to_a_brighter_colour(front, alpha, back, mixed):
    found = over(torch.full((1, 1, 3), front), torch.full((1, 1), alpha), torch.full((3,), back), linear_light=True)
    torch.testing.assert_close(found, torch.full((1, 1, 3), mixed), rtol=0, atol=1e-5)


def test_the_srgb_curve_and_its_inverse_undo_each_other():
    values = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(values)), values, rtol=0, atol=1e-7)
    known = srgb_to_linear(torch.tensor([-0.5, 0.0, 0.04045, 0.5, 1.0], dtype=torch.float64))
    expected = torch.tensor([0.0, 0.0, 0.04045 / 12.92, 0.21404114, 1.0], dtype=torch.float64)
    torch.testing.assert_close(known, expected, rtol=0, atol=1e-7)
    assert linear_to_srgb(torch.tensor(-0.5)) == 0


def test_rgba_keeps_the_colours_untouched_where_alpha_is_zero():
    image, alpha = torch.rand(6, 8, 3), torch.zeros(6, 8)
    rgba = with_alpha(image, alpha)
    assert torch.equal(rgba[..., :3], image)
    assert torch.equal(rgba[..., 3], alpha)


def test_one_picture_with_a_batch_of_mattes_gives_a_batch_of_rgba():
    assert with_alpha(torch.rand(6, 8, 3), torch.rand(4, 6, 8)).shape == (4, 6, 8, 4)


@pytest.mark.parametrize(
    ("image", "alpha"), [((2, 6, 8, 3), (3, 6, 8)), ((6, 8, 4), (6, 8)), ((8, 6, 3), (6, 8))], ids=str
)
def test_a_picture_and_a_matte_that_do_not_fit_are_refused_with_their_shapes(image, alpha):
    with pytest.raises(ValueError) as refusal:
        with_alpha(torch.rand(image), torch.rand(alpha))
    for shape in (image, alpha):
        assert " x ".join(map(str, shape)) in str(refusal.value)


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
    assert torch.equal(fit_picture(background, 5, 7, "center"), background[:5, :7])
    larger = fit_picture(background, 10, 12, "center", fill=(1, 0, 0))
    assert torch.equal(larger[2:8, 2:10], background)
    assert larger[0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("mode", "size", "wanted", "scale", "offset"),
    [
        ("cover", (40, 60), (30, 30), 0.75, (0, -7.5)),
        ("cover", (60, 40), (30, 30), 0.75, (-7.5, 0)),
        ("cover", (40, 60), (80, 92), 2, (0, -14)),
        ("contain", (40, 60), (30, 55), 0.75, (0, 5)),
        ("contain", (60, 40), (55, 30), 0.75, (5, 0)),
        ("contain", (40, 60), (90, 120), 2, (5, 0)),
    ],
)
def test_a_background_is_scaled_alike_both_ways_and_lies_in_the_middle(mode, size, wanted, scale, offset):
    """Its colours are its own coordinates, which averaging keeps, but for its border, to a few hundredths."""
    rows, columns = torch.meshgrid(*(torch.arange(n) + 0.5 for n in size), indexing="ij")
    fitted = fit_picture(torch.stack((rows, columns, torch.ones(size)), dim=-1), *wanted, mode, fill=(-1, -1, 0))
    places = (((torch.arange(n) + 0.5 - start) / scale) for n, start in zip(wanted, offset))
    expected = torch.stack(torch.meshgrid(*places, indexing="ij"), dim=-1)
    shown = ((expected > 0) & (expected < torch.tensor(size))).all(dim=-1)
    assert torch.equal(fitted[..., 2] > 0.5, shown)
    fitted, expected = fitted[2:-2, 2:-2, :2], expected[2:-2, 2:-2]
    inside = ((expected > 2) & (expected < torch.tensor(size) - 2)).all(dim=-1)
    torch.testing.assert_close(fitted[inside], expected[inside], rtol=0, atol=0.03)


@pytest.mark.parametrize("mode", ["cover", "contain", "stretch", "center"])
@pytest.mark.parametrize("size", [(1, 1), (5, 300), (300, 5)])
@pytest.mark.parametrize("wanted", [(16, 23), (1, 40), (40, 1)])
def test_every_shape_of_background_comes_out_at_the_wanted_size(mode, size, wanted):
    assert fit_picture(torch.rand(2, *size, 3), *wanted, mode).shape == (2, *wanted, 3)


def test_an_unknown_way_to_fit_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="cover, contain, stretch, center"):
        fit_picture(torch.rand(4, 4, 3), 4, 4, "tile")


def test_premultiplied_colours_are_multiplied_by_alpha_and_alpha_stays():
    rgba = torch.rand(2, 5, 6, 4)
    made = premultiplied(rgba)
    torch.testing.assert_close(made[..., :3], rgba[..., :3] * rgba[..., 3:])
    assert torch.equal(made[..., 3], rgba[..., 3])


ORANGE = torch.tensor((1.0, 0.5, 0.25))


def cut_out(height: int, width: int, inset: int = 0) -> torch.Tensor:
    """An opaque orange rectangle, straight RGBA; what is clear around it hides a green that must never show."""
    rgba = torch.zeros(height, width, 4)
    rgba[..., 1] = 1
    rgba[inset : height - inset, inset : width - inset] = torch.cat((ORANGE, torch.ones(1)))
    return rgba


def test_an_opaque_square_is_placed_with_its_middle_where_it_was_asked_for():
    canvas = place(cut_out(4, 6), 20, 40, x=0.25, y=0.5)
    assert canvas.shape == (20, 40, 4)
    expected = torch.zeros(20, 40)
    expected[8:12, 7:13] = 1
    assert torch.equal(canvas[..., 3], expected)
    torch.testing.assert_close(canvas[8:12, 7:13, :3], ORANGE.expand(4, 6, 3))


def test_a_cut_out_that_is_neither_moved_nor_scaled_stays_as_it_is():
    rgba = torch.rand(7, 9, 4) * 0.9 + 0.1
    torch.testing.assert_close(place(rgba, 7, 9), rgba)


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
def test_what_lies_over_the_edge_of_the_canvas_is_cut_off(x, y):
    canvas = place(cut_out(10, 10), 20, 40, x=x, y=y)
    rows = slice(0, 5) if y == 0 else slice(15, 20)
    columns = slice(0, 5) if x == 0 else slice(35, 40)
    assert canvas[..., 3].sum() == 25 and (canvas[rows, columns, 3] == 1).all()


@pytest.mark.parametrize(("x", "y"), [(-2.0, 0.5), (3.0, 0.5), (0.5, -2.0), (0.5, 3.0), (3.0, 3.0)])
@pytest.mark.parametrize("size", [(10, 10), (60, 120)])
def test_a_cut_out_placed_outside_leaves_the_canvas_clear(size, x, y):
    assert not place(cut_out(*size), 20, 40, x=x, y=y).any()


def test_a_cut_out_larger_than_the_canvas_shows_its_middle():
    canvas = place(cut_out(40, 60, inset=15), 20, 20)
    assert (canvas[5:15, :, 3] == 1).all() and canvas[:5, :, 3].max() == 0 and canvas[15:, :, 3].max() == 0


@pytest.mark.parametrize("scale", [0.25, 0.37, 0.5, 1.7, 3.0])
def test_scaling_leaves_no_dark_or_green_fringe(scale):
    """Straight colours resampled as they are would mix with those that alpha 0 hides."""
    canvas = place(cut_out(40, 40, inset=7), 80, 80, scale=scale)
    seen = canvas[..., 3] > 0.01
    soft = seen & (canvas[..., 3] < 0.99)
    assert soft.any()
    assert (canvas[seen][:, :3] - ORANGE).abs().max() < 0.01
    assert canvas[..., 3].sum() == pytest.approx((26 * scale) ** 2, rel=0.15)


@pytest.mark.parametrize("scale", [0.001, 0.01, 16.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (30, 20)])
def test_placing_bears_any_size_and_scale(size, scale):
    canvas = place(cut_out(*size), 12, 17, scale=scale)
    assert canvas.shape == (12, 17, 4)
    assert torch.isfinite(canvas).all() and canvas.min() >= 0 and canvas.max() <= 1
    if scale == 0.001:
        assert canvas[..., 3].sum() == 1, "at least a pixel is left"
    assert canvas[..., 3].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pictures_of_every_precision_are_fitted_and_placed_in_it(dtype):
    picture = torch.rand(9, 14, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    for resized in (
        lambda x: fit_picture(x[..., :3], 20, 12, "cover"),
        lambda x: fit_picture(x[..., :3], 5, 12, "contain"),
        lambda x: place(x, 12, 17, scale=0.7),
    ):
        found = resized(picture)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), resized(picture.float()), rtol=0, atol=0.02)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_is_not_above_0_is_refused(scale):
    with pytest.raises(ValueError, match="scale of the subject must be above 0"):
        place(cut_out(4, 4), 8, 8, scale=scale)


def wrapped(background: torch.Tensor, width_px: float = 4.0, amount: float = 0.8) -> tuple[torch.Tensor, ...]:
    """Alpha of a soft-edged block, the composite of a grey subject with it, and the same with its light wrap."""
    alpha = torch.zeros(40, 60)
    alpha[:, 20:] = 1
    alpha[:, 19:21] = 0.5
    composite = over(torch.full((40, 60, 3), 0.3), alpha, background)
    return alpha, composite, light_wrap(composite, alpha, background, width_px, amount)


def test_light_wrap_only_adds_light_and_only_near_the_edge():
    alpha, composite, made = wrapped(torch.rand(40, 60, 3, generator=torch.Generator().manual_seed(0)))
    added = made - composite
    assert added.min() >= 0 and made.max() <= 1
    assert added[:, 21:23].min() > 0.01
    assert added[:, 26].max() > 0 and added[:, 27:].max() == 0, "it reaches one and a half times its width"
    assert added[alpha == 0].max() == 0, "the background itself is not brightened"


def test_light_wrap_fades_inwards_and_takes_the_backgrounds_colour():
    _, composite, made = wrapped(torch.tensor((0.0, 0.0, 1.0)).expand(40, 60, 3))
    added = (made - composite)[20, 21:30]
    assert (added[1:, 2] <= added[:-1, 2]).all() and added[0, 2] > added[4, 2] > 0
    assert added[:, :2].max() == 0


@pytest.mark.parametrize("turned", [False, True])
def test_a_white_wall_sheds_a_gaussians_tail_of_light_on_black(turned):
    """Of a Gaussian with a standard deviation of half the width, 4 pixels: 0.5, 4.5 and 8.5 pixels from the edge."""
    alpha = torch.zeros(40, 60)
    alpha[:, 20:] = 1
    alpha = alpha.T if turned else alpha
    composite, white = 1 - alpha[..., None].expand(*alpha.shape, 3), torch.ones(*alpha.shape, 3)
    made = light_wrap(composite, alpha, white, 8.0, 0.6)[..., 1]
    for row in (0, 20):
        added = (made.T if turned else made)[row, [20, 24, 28]]
        torch.testing.assert_close(added, 0.6 * torch.tensor([0.4503, 0.1303, 0.0168]), rtol=0, atol=0.002)


def test_a_black_background_no_amount_and_no_width_add_nothing():
    _, composite, made = wrapped(torch.zeros(40, 60, 3))
    torch.testing.assert_close(made, composite)
    for width_px, amount in ((0.0, 0.5), (5.0, 0.0)):
        _, composite, made = wrapped(torch.ones(40, 60, 3), width_px, amount)
        assert torch.equal(made, composite)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (3, 2)])
def test_light_wrap_bears_pictures_smaller_than_its_width(size):
    alpha, background = torch.rand(size), torch.rand(*size, 3)
    composite = over(torch.rand(*size, 3), alpha, background)
    made = light_wrap(composite, alpha, background, 200.0, 1.0)
    assert torch.isfinite(made).all() and made.max() <= 1 and (made >= composite - 1e-6).all()
