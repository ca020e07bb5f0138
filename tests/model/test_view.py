"""Pictures for people: of the size they promise, within 0 to 1, and showing what they are meant to show."""

from __future__ import annotations

import pytest
import torch

from mam_model.frame import Frame
from mam_model.m2m import AlphaPyramid
from mam_model.prompt import Prompt, Scribble
from mam_model.sam import Embedding, Guidance
from mam_model.view import (
    TARGET_COLORS,
    checkerboard,
    contact_sheet,
    features_as_colors,
    grey,
    onion_skin,
    over_checker,
    prompts_and_masks,
    reduced,
    side_by_side,
    text_table,
    three_scales,
    tinted,
)

SIDE = 64


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def in_range(picture: torch.Tensor) -> bool:
    return bool(torch.isfinite(picture).all() and picture.min() >= 0 and picture.max() <= 1)


def test_a_checkerboard_alternates_between_two_greys_in_squares_of_the_size_given():
    board = checkerboard(12, 20, square_px=4)
    assert board.shape == (12, 20, 3)
    assert board.unique().tolist() == pytest.approx([0.6, 0.8])
    assert torch.equal(board[:4, :4], board[4:8, 4:8])
    assert not (board[:4, :4] == board[:4, 4:8]).any()
    assert torch.equal(board[..., 0], board[..., 2])


def test_the_squares_of_a_checkerboard_grow_with_the_picture_but_are_never_too_small_to_see():
    def first_square(height: int, width: int) -> int:
        row = checkerboard(height, width)[0, :, 0]
        return int((row != row[0]).nonzero()[0])

    assert first_square(10, 40) == 4
    assert first_square(480, 960) == 20
    assert checkerboard(1, 1).shape == (1, 1, 3)


def test_over_the_checkerboard_the_subject_stays_and_the_rest_is_pattern():
    image = noise(2, 16, 24, 3)
    alpha = torch.zeros(2, 16, 24)
    alpha[:, :, :12] = 1
    shown = over_checker(image, alpha)
    torch.testing.assert_close(shown[:, :, :12], image[:, :, :12])
    torch.testing.assert_close(shown[:, :, 12:], checkerboard(16, 24)[:, 12:].expand(2, -1, -1, -1))


def test_an_onion_skin_fades_all_but_the_subject():
    image = noise(16, 24, 3)
    alpha = torch.zeros(16, 24)
    alpha[:, :12] = 1
    shown = onion_skin(image, alpha, opacity=0.75)
    torch.testing.assert_close(shown[:, :12], image[:, :12])
    faded = 0.25 * image[:, 12:] + 0.75 * checkerboard(16, 24)[:, 12:]
    torch.testing.assert_close(shown[:, 12:], faded)
    torch.testing.assert_close(onion_skin(image, alpha, opacity=0.0), image)


def test_a_tint_covers_the_subject_half_and_nothing_else():
    image, alpha = noise(5, 6, 3), torch.zeros(5, 6)
    alpha[2] = 1
    shown = tinted(image, alpha, TARGET_COLORS[4])
    torch.testing.assert_close(shown[2], 0.5 * image[2] + 0.5 * torch.tensor(TARGET_COLORS[4]))
    assert torch.equal(shown[:2], image[:2]) and torch.equal(shown[3:], image[3:])


def test_grey_shows_alpha_in_all_three_channels():
    alpha = noise(2, 5, 6)
    assert grey(alpha).shape == (2, 5, 6, 3)
    assert all(torch.equal(grey(alpha)[..., channel], alpha) for channel in range(3))


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [((40, 80), 20, (10, 20)), ((80, 40), 20, (20, 10)), ((1, 5000), 100, (1, 100)), ((3000, 2), 10, (10, 1))],
)
def test_a_large_picture_is_reduced_to_its_longest_side(size, longest, expected):
    small = reduced(noise(*size, 3), longest)
    assert small.shape == (*expected, 3)
    assert in_range(small)


@pytest.mark.parametrize("size", [(1, 1), (20, 10), (10, 20)])
def test_a_picture_that_is_small_enough_stays_as_it_is(size):
    picture = noise(*size, 3)
    assert reduced(picture, 20) is picture


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_picture_of_any_precision_is_reduced_in_it(dtype):
    picture = noise(30, 40, 3)
    small = reduced(picture.to(dtype), 20)
    assert small.dtype == dtype
    torch.testing.assert_close(small.float(), reduced(picture, 20), rtol=0, atol=0.01)


def test_reducing_averages_and_does_not_skip():
    lines = torch.zeros(8, 64, 3)
    lines[:, ::2] = 1
    assert (reduced(lines, 16) - 0.5).abs().max() < 0.1


def test_side_by_side_parts_the_pictures_by_white():
    left, right = noise(5, 7, 3), noise(5, 9, 3, seed=1)
    row = side_by_side([left, right.half()], gap_px=3)
    assert row.shape == (5, 7 + 3 + 9, 3) and row.dtype == torch.float32
    assert torch.equal(row[:, :7], left) and (row[:, 7:10] == 1).all()
    torch.testing.assert_close(row[:, 10:], right, atol=1e-3, rtol=0)
    assert torch.equal(side_by_side([left]), left)


def embedding_of(height: int, width: int, features: torch.Tensor | None = None) -> Embedding:
    frame = Frame(height, width, SIDE)
    features = noise(1, 256, SIDE // 16, SIDE // 16) if features is None else features
    return Embedding(features, frame.shrink(noise(height, width, 3)), frame)


SIZES = [(1, 1), (1, 40), (40, 1), (2, 3), (16, 5000), (90, 140)]


@pytest.mark.parametrize("size", SIZES)
def test_features_of_a_picture_of_any_size_become_colours(size):
    embedding = embedding_of(*size)
    colors = features_as_colors(embedding)
    assert colors.shape == (embedding.frame.content_height, embedding.frame.content_width, 3)
    assert in_range(colors)


@pytest.mark.parametrize("size", SIZES)
def test_features_that_are_alike_everywhere_become_colours_too(size):
    alike = noise(1, 256, 1, 1).expand(1, 256, SIDE // 16, SIDE // 16)
    assert in_range(features_as_colors(embedding_of(*size, alike)))


def test_places_with_other_features_get_other_colours():
    features = noise(1, 256, 4, 4) * 0.01
    features[..., 2:] += noise(1, 256, 1, 1, seed=1)
    colors = features_as_colors(embedding_of(SIDE, SIDE, features))
    left, right = colors[:, : SIDE // 4, 0], colors[:, -SIDE // 4 :, 0]
    assert (left.mean() - right.mean()).abs() > 0.8


def guidance_of(height: int, width: int, *prompts: Prompt) -> Guidance:
    """Every target's mask is the left half of the picture."""
    frame = Frame(height, width, SIDE)
    logits = torch.full((len(prompts), 3, SIDE // 4, SIDE // 4), -8.0)
    logits[..., : max(1, round(frame.content_width / 8))] = 8
    chosen = torch.zeros(len(prompts), dtype=torch.int64)
    return Guidance(prompts, logits, torch.ones(len(prompts), 3), chosen, frame)


@pytest.mark.parametrize("size", SIZES)
def test_prompts_are_drawn_on_the_picture_the_network_saw(size):
    height, width = size
    embedding = embedding_of(height, width)
    strokes = torch.zeros(height, width, dtype=torch.uint8)
    strokes[0, 0] = Scribble.FOREGROUND
    prompts = (
        Prompt(points_px=((0, 0), (width, height)), labels=(1, 0), label="Mädchen 女孩 😀"),
        Prompt(box_xyxy_px=(0, 0, width, height), scribbles=strokes),
    )
    shown = prompts_and_masks(embedding, guidance_of(height, width, *prompts))
    assert shown.shape == embedding.content.shape
    assert in_range(shown)


def test_without_targets_the_picture_is_shown_as_it_is():
    embedding = embedding_of(32, SIDE)
    assert torch.equal(prompts_and_masks(embedding, guidance_of(32, SIDE)), embedding.content.float() / 255)


def drawn_pixels(*prompts: Prompt) -> torch.Tensor:
    """bool [64, 64]: where the drawing of the prompts differs from the bare masks."""
    embedding = embedding_of(SIDE, SIDE)
    bare = prompts_and_masks(embedding, guidance_of(SIDE, SIDE, *(Prompt() for _ in prompts)))
    shown = prompts_and_masks(embedding, guidance_of(SIDE, SIDE, *prompts))
    return ((shown - bare).abs() > 0.02).any(dim=-1)


def test_points_boxes_and_strokes_are_drawn_where_they_are():
    point = drawn_pixels(Prompt(points_px=((48, 16),), labels=(1,)))
    assert point[16, 48] and not point[:, :40].any() and not point[24:].any()
    box = drawn_pixels(Prompt(box_xyxy_px=(40, 8, 60, 56)))
    assert box[30, 40] and box[8, 50] and box[30, 60] and not box[30, 50] and not box[:, :38].any()
    strokes = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    strokes[50:54, 34:60] = Scribble.UNKNOWN
    stroke = drawn_pixels(Prompt(scribbles=strokes))
    assert stroke[50:54, 34:60].any(dim=0).all() and not stroke[:48].any()


def test_a_trimap_does_not_hide_the_picture():
    trimap = torch.full((SIDE, SIDE), int(Scribble.BACKGROUND), dtype=torch.uint8)
    trimap[20:40, 20:40] = Scribble.UNKNOWN
    assert not drawn_pixels(Prompt(scribbles=trimap)).any()


def test_a_positive_and_a_negative_point_look_different():
    on = prompts_and_masks(embedding_of(SIDE, SIDE), guidance_of(SIDE, SIDE, Prompt(((50, 50),), (1,))))
    off = prompts_and_masks(embedding_of(SIDE, SIDE), guidance_of(SIDE, SIDE, Prompt(((50, 50),), (0,))))
    assert (on - off).abs().max() > 0.3


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_a_contact_sheet_shows_every_picture_in_its_order(count):
    shades = [0.1 + 0.8 * number / max(1, count - 1) for number in range(count)]
    sheet = contact_sheet([torch.full((48, 64, 3), shade) for shade in shades], ["caption"] * count)
    assert in_range(sheet)
    assert 0.5 < sheet.shape[1] / sheet.shape[0] < 2.5
    # Every 48 x 64 area of one shade is one of the pictures; they come line by line.
    found = []
    for top in range(8, sheet.shape[0] - 48):
        for left in range(8, sheet.shape[1] - 64, 8):
            cell = sheet[top : top + 48, left : left + 64]
            if cell[0, 0, 0] < 0.95 and (cell == cell[0, 0]).all():
                found.append(round(float(cell[0, 0, 0]), 1))
    assert found == [round(shade, 1) for shade in shades]


def test_captions_are_written_under_their_pictures_and_may_be_in_any_script():
    pictures = [torch.full((40, 120, 3), 0.5)] * 2
    plain = contact_sheet(pictures, ["", ""])
    named = contact_sheet(pictures, ["girl", "girl"])
    assert named.shape == plain.shape and (named - plain).abs().max() > 0.5
    changed = (named - plain).abs().amax(dim=-1)
    assert changed[:48].max() == 0, "nothing is written over the first picture"
    assert in_range(contact_sheet(pictures, ["女孩 😀 Ünïcode", "two\nlines"]))


@pytest.mark.parametrize("size", [(96, 54), (300, 10), (384, 216)])
def test_a_caption_longer_than_its_picture_is_wide_runs_into_no_other(size):
    caption = "frame 10, no. 2 second girl from the left, 0.93"
    sheet = contact_sheet([torch.full((*size, 3), 0.5)] * 2, [caption] * 2)
    pictured = (sheet[20, :, 0] == sheet[20, 10, 0]).nonzero().flatten()
    second = int(pictured[size[1]])
    # Of the gap of 8 pixels the last belongs to letters that begin a little before their place.
    assert (sheet[:, second - 7 : second - 2] == 1).all()
    assert (sheet[:, -4:] == 1).all() and (sheet[-4:] == 1).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (500, 400)])
def test_pictures_of_any_shape_fit_on_a_contact_sheet(size):
    sheet = contact_sheet([noise(*size, 3), noise(*size, 3).half()], ["one", "two"], cell_px=100)
    assert in_range(sheet)
    assert max(sheet.shape[:2]) < 4 * 100


def test_a_table_grows_with_its_rows_columns_and_letters():
    small = text_table([("", "SAD"), ("frame 0", "1.234")])
    assert in_range(small) and small.shape[-1] == 3
    assert small.min() < 0.3 and (small[0] == 1).all() and (small[:, 0] == 1).all()
    longer = text_table([("", "SAD"), ("frame 0", "1.234"), ("frame 1", "2.345")])
    assert longer.shape[0] > small.shape[0] and longer.shape[1] == small.shape[1]
    wider = text_table([("", "SAD", "MSE"), ("frame 0", "1.234", "5.678")])
    assert wider.shape[1] > small.shape[1]
    larger = text_table([("", "SAD"), ("frame 0", "1.234")], text_height_px=40)
    assert larger.shape[0] > small.shape[0] and larger.shape[1] > small.shape[1]


def test_numbers_in_a_table_end_on_one_line():
    def last_dark_column(rows) -> int:
        return int((text_table(rows) < 0.5).any(dim=-1).any(dim=0).nonzero()[-1])

    table = [("name", "1.0"), ("name", "1000.0")]
    short, long = text_table(table)[:32], text_table(table)[32:]
    ends = [int((part < 0.5).any(dim=-1).any(dim=0).nonzero()[-1]) for part in (short, long)]
    assert abs(ends[0] - ends[1]) <= 1
    assert last_dark_column(table) < text_table(table).shape[1] - 10


def test_a_table_may_have_rows_of_different_lengths_and_a_single_cell():
    assert in_range(text_table([("a", "b", "c"), ("only",)]))
    assert in_range(text_table([("",)]))


@pytest.mark.parametrize("size", SIZES)
def test_three_scales_are_shown_from_coarse_to_fine_without_the_padding(size):
    frame = Frame(*size, SIDE)
    shades = (0.2, 0.5, 0.9)
    pyramid = AlphaPyramid(*(torch.full((2, 1, SIDE, SIDE), shade) for shade in shades))
    pyramid.os1[1] = 0.1
    shown = three_scales(pyramid, frame)
    width = frame.content_width
    assert shown.shape == (frame.content_height, 3 * width + 8, 3)
    for number, shade in enumerate(shades):
        part = shown[:, number * (width + 4) : number * (width + 4) + width]
        torch.testing.assert_close(part, torch.full_like(part, shade))
