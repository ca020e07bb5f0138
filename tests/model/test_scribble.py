"""Strokes turned into points."""

from __future__ import annotations

import torch

from mam_model.prompt import Scribble
from mam_model.scribble import points_from_scribbles


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
