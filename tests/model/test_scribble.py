"""Strokes turned into points, into certain parts of a mask, and trimaps turned into strokes."""

from __future__ import annotations

import time

import pytest
import torch

from mam_model.prompt import PromptError, Scribble
from mam_model.scribble import (
    points_from_scribbles,
    prompt_from_trimap,
    strokes_on_all,
    with_certain_strokes,
    with_scribbles,
)


def canvas() -> torch.Tensor:
    return torch.zeros(40, 60, dtype=torch.uint8)


def test_an_empty_canvas_gives_no_point():
    assert points_from_scribbles(canvas()) == []


def test_a_straight_stroke_gives_the_point_in_its_middle():
    strokes = canvas()
    strokes[9:12, 20:41] = Scribble.FOREGROUND
    assert points_from_scribbles(strokes) == [((30.0, 10.0), 1)]


def test_a_bent_stroke_gives_a_point_on_the_stroke_and_not_in_its_hollow():
    strokes = canvas()
    strokes[5:35, 10:12] = Scribble.FOREGROUND
    strokes[33:35, 10:50] = Scribble.FOREGROUND
    strokes[5:35, 48:50] = Scribble.FOREGROUND
    (((x, y), label),) = points_from_scribbles(strokes)
    assert strokes[int(y), int(x)] == Scribble.FOREGROUND
    assert label == 1


def test_each_connected_stroke_gives_one_point_of_its_kind():
    strokes = canvas()
    strokes[2:5, 2:5] = Scribble.FOREGROUND
    strokes[20:23, 40:43] = Scribble.FOREGROUND
    strokes[30:33, 10:13] = Scribble.BACKGROUND
    strokes[10:13, 20:23] = Scribble.UNKNOWN
    assert points_from_scribbles(strokes) == [((3.0, 3.0), 1), ((41.0, 21.0), 1), ((11.0, 31.0), 0)]


def test_a_thin_diagonal_line_is_one_stroke():
    strokes = canvas()
    strokes[torch.arange(20), torch.arange(20)] = Scribble.FOREGROUND
    assert len(points_from_scribbles(strokes)) == 1


def test_strokes_of_two_kinds_that_touch_stay_two():
    strokes = canvas()
    strokes[10, 5:15] = Scribble.FOREGROUND
    strokes[10, 15:25] = Scribble.BACKGROUND
    assert [label for _, label in points_from_scribbles(strokes)] == [1, 0]


def test_strokes_in_the_corners_give_points_inside_the_picture():
    strokes = canvas()
    strokes[0, 0] = Scribble.FOREGROUND
    strokes[-1, -1] = Scribble.BACKGROUND
    assert points_from_scribbles(strokes) == [((0.0, 0.0), 1), ((59.0, 39.0), 0)]


def four_strokes() -> torch.Tensor:
    """One column of pixels for each kind of stroke, NONE, FOREGROUND, BACKGROUND and UNKNOWN, in this order."""
    return torch.arange(4, dtype=torch.uint8).expand(3, 4).clone()


def test_strokes_are_certain_parts_of_a_mask_and_unknown_ones_its_edge():
    mask = torch.full((3, 4), 0.3)
    assert with_scribbles(mask, four_strokes())[1].tolist() == pytest.approx([0.3, 1.0, 0.0, 0.5])


def test_certain_strokes_leave_what_is_unknown_to_the_matte():
    alpha = torch.full((3, 4), 0.3)
    assert with_certain_strokes(alpha, four_strokes())[1].tolist() == pytest.approx([0.3, 1.0, 0.0, 0.3])


@pytest.mark.parametrize("mark", [with_scribbles, with_certain_strokes])
def test_marking_a_mask_leaves_mask_and_strokes_alone_and_keeps_the_type(mark):
    mask, strokes = torch.full((3, 4), 0.3, dtype=torch.float16), four_strokes()
    before = mask.clone(), strokes.clone()
    assert mark(mask, strokes).dtype == torch.float16
    assert torch.equal(mask, before[0]) and torch.equal(strokes, before[1])
    assert torch.equal(mark(mask, torch.zeros_like(strokes)), mask)


def test_as_one_target_strokes_count_on_any_and_beside_each():
    on, off, unknown = (torch.zeros(2, 3, dtype=torch.uint8) for _ in range(3))
    on[0, 0] = Scribble.FOREGROUND
    on[1] = Scribble.BACKGROUND
    off[:] = Scribble.BACKGROUND
    unknown[0, 1:] = Scribble.UNKNOWN
    unknown[1, 0] = Scribble.BACKGROUND
    assert strokes_on_all([on, off]).tolist() == [[1, 0, 0], [2, 2, 2]]
    assert strokes_on_all([on, off, unknown]).tolist() == [[1, 0, 0], [2, 0, 0]]
    assert strokes_on_all([on, off, None]).tolist() == [[1, 0, 0], [0, 0, 0]], "nobody spoke about the third target"
    assert strokes_on_all([None, None]) is None and strokes_on_all([]) is None


def test_a_trimap_says_everything_and_only_its_unknown_part_is_open():
    trimap = torch.tensor([[0.0, 0.05, 0.06, 0.5, 0.94, 0.95, 1.0]]).expand(3, 7)
    prompt = prompt_from_trimap(trimap)
    off, on, unknown = Scribble.BACKGROUND, Scribble.FOREGROUND, Scribble.UNKNOWN
    assert prompt.scribbles[1].tolist() == [off, off, unknown, unknown, unknown, on, on]
    assert prompt.scribbles.dtype == torch.uint8
    assert prompt.mask_is_guidance
    assert set(prompt.mask.unique().tolist()) == {0.0, 1.0}
    assert prompt.mask[1, :2].tolist() == [0, 0] and prompt.mask[1, 5:].tolist() == [1, 1]
    assert prompt.mask[1, 2] == 0 and prompt.mask[1, 4] == 1, "the unknown goes to the nearer side"
    assert with_scribbles(prompt.mask, prompt.scribbles)[1].tolist() == [0, 0, 0.5, 0.5, 0.5, 1, 1]


def test_an_8_bit_grey_of_a_trimap_is_unknown():
    assert (prompt_from_trimap(torch.full((4, 5), 128 / 255)).scribbles == Scribble.UNKNOWN).all()


def test_strokes_count_where_they_differ_from_the_trimap():
    trimap = torch.zeros(3, 4)
    prompt = prompt_from_trimap(trimap, four_strokes())
    off, on, unknown = Scribble.BACKGROUND, Scribble.FOREGROUND, Scribble.UNKNOWN
    assert prompt.scribbles[0].tolist() == [off, on, off, unknown]
    assert torch.equal(four_strokes(), torch.arange(4, dtype=torch.uint8).expand(3, 4))


def test_a_trimap_and_strokes_of_different_sizes_are_refused_naming_both():
    with pytest.raises(PromptError, match="The trimap is 5 x 4 pixels, the strokes are 4 x 3"):
        prompt_from_trimap(torch.zeros(4, 5), four_strokes())


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_trimap_of_one_value_is_a_prompt_too(value):
    prompt = prompt_from_trimap(torch.full((4, 5), value)).checked(5, 4)
    assert prompt.has_scribbles
    assert prompt.has_mask == (value == 1)


def test_hundreds_of_dots_on_a_large_picture_are_read_in_a_moment():
    strokes = torch.zeros(3000, 4000, dtype=torch.uint8)
    strokes[50::100, 50::100] = Scribble.FOREGROUND
    began = time.perf_counter()
    points = points_from_scribbles(strokes)
    assert time.perf_counter() - began < 10
    assert points == [((float(x), float(y)), 1) for y in range(50, 3000, 100) for x in range(50, 4000, 100)]
