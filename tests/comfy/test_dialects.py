"""Points and boxes are understood in every way in which people and other packs write them."""

from __future__ import annotations

import json
from collections import namedtuple

import numpy as np
import pytest
import torch


@pytest.fixture
def dialects(comfyui):
    return comfyui.module("nodes.dialects")


@pytest.fixture
def prompt_error(comfyui):
    return comfyui.module("mam_model.prompt").PromptError


def places(frames) -> list[list[tuple[float, float]]]:
    return [[(point.x, point.y) for point in frame] for frame in frames]


@pytest.mark.parametrize(
    "text",
    [
        "120 80\n30 40.5",
        "120, 80; 30, 40.5",
        "  120\t80 \r\n\n (30, 40.5) \n",
        "(120, 80)\n(30, 40.5)",
        '[{"x": 120, "y": 80}, {"x": 30, "y": 40.5}]',
        "[{'x': 120, 'y': 80}, {'x': 30, 'y': 40.5}]",
        "[[120, 80], [30, 40.5]]",
        '[{"x": "120", "y": "80"}, [30, 40.5]]',
        "1.2e2 80\n+30 40.5",
    ],
)
def test_points_can_be_written_in_many_ways(dialects, text):
    assert places(dialects.read_points(text, label=1)) == [[(120, 80), (30, 40.5)]]


@pytest.mark.parametrize("text", ['{"x": 120, "y": 80}', "[120, 80]", "120 80", "120,80"])
def test_one_point_needs_no_list(dialects, text):
    assert places(dialects.read_points(text, label=1)) == [[(120, 80)]]


@pytest.mark.parametrize("text", ["", "  \n ", "[]", "\n;\n"])
def test_no_text_means_no_points(dialects, text):
    assert dialects.read_points(text, label=1) == [[]]


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("12", '"12"'),
        ("1 2\n3 4 5", '"3 4 5"'),
        ("here", '"here"'),
        ("12 px 80", '"12 px 80"'),
        ("x=12 y=80", '"x=12 y=80"'),
        ('[{"x": 1}]', "{'x': 1}"),
        ("[[1, 2, 3]]", "[1, 2, 3]"),
        ("[[1, null]]", "[1, None]"),
        ('["12"]', "12"),
        ("[true]", "True"),
        ('{"points": [[1, 2]], "labels": ["on"]}', "[1, 2]"),
        ('{"points": 5, "labels": [1]}', "'points': 5"),
        ('[{"x": 1, "y": 2, "label": "on"}]', "'label': 'on'"),
        ('[{"x": 1, "y": 2}', '[{"x": 1, "y": 2}'),
        ("[" * 3000, "[[[["),
    ],
)
def test_points_that_cannot_be_read_are_quoted(dialects, prompt_error, text, quoted):
    with pytest.raises(prompt_error) as refusal:
        dialects.read_points(text, label=1)
    assert quoted in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_a_point_that_cannot_be_read_is_told_how_to_be_written(dialects, prompt_error):
    with pytest.raises(prompt_error, match='one point per line.*or as JSON: .*"x": 120'):
        dialects.read_points("somewhere left", label=1)


@pytest.mark.parametrize(
    "written",
    [
        "[[[120, 80], [30, 40]], [], [[5, 6]]]",
        [[[120, 80], [30, 40]], [], [[5, 6]]],
        '[{"points": [[120, 80], [30, 40]], "labels": [1, 1]}, [], {"positive": [{"x": 5, "y": 6}]}]',
    ],
)
def test_a_list_of_lists_gives_every_frame_its_own_points(dialects, written):
    assert places(dialects.read_points(written, label=1)) == [[(120, 80), (30, 40)], [], [(5, 6)]]


@pytest.mark.parametrize(
    "written",
    [
        {"points": [[1, 2], [3, 4]], "labels": [1, 0]},
        '{"points": [[1, 2], [3, 4]], "labels": [1, 0]}',
        {"positive": [{"x": 1, "y": 2}], "negative": [{"x": 3, "y": 4}]},
        '[{"x": 1, "y": 2, "label": 1}, {"x": 3, "y": 4, "label": 0}]',
    ],
)
@pytest.mark.parametrize("label", [0, 1])
def test_points_that_say_whether_they_are_on_the_subject_are_believed(dialects, written, label):
    (frame,) = dialects.read_points(written, label=label)
    assert [(point.x, point.y, point.label) for point in frame] == [(1, 2, 1), (3, 4, 0)]


@pytest.mark.parametrize("label", [0, 1])
def test_points_that_do_not_say_it_take_the_meaning_of_their_field(dialects, label):
    assert [point.label for point in dialects.read_points("1 2\n3 4", label=label)[0]] == [label, label]


@pytest.mark.parametrize("written", ['{"points": [[1, 2], [3, 4]]}', {"points": [[1, 2], [3, 4]], "labels": [1]}])
def test_points_with_too_few_labels_are_refused(dialects, prompt_error, written):
    with pytest.raises(prompt_error, match='needs "labels", one per point'):
        dialects.read_points(written, label=1)


@pytest.mark.parametrize(
    "text",
    [
        "10 20 300 400\n1 2 3 4",
        "10,20,300,400;1,2,3,4",
        "(10, 20, 300, 400)\n(1 2 3 4)",
        "[[10, 20, 300, 400], [1, 2, 3, 4]]",
        '[{"x": 10, "y": 20, "width": 290, "height": 380}, {"x": 1, "y": 2, "width": 2, "height": 2}]',
        "[{'x': 10, 'y': 20, 'width': 290, 'height': 380}, [1, 2, 3, 4]]",
    ],
)
def test_boxes_can_be_written_in_many_ways(dialects, text):
    (frame,) = dialects.read_boxes(text)
    assert [box.xyxy for box in frame] == [(10, 20, 300, 400), (1, 2, 3, 4)]


@pytest.mark.parametrize(
    "value",
    [
        {"x": 1, "y": 2, "width": 2, "height": 2},
        [{"x": 1, "y": 2, "width": 2, "height": 2}],
        [[{"x": 1, "y": 2, "width": 2, "height": 2}]],
        [1, 2, 3, 4],
        (1, 2, 3, 4),
        [[1, 2, 3, 4]],
        [[[1, 2, 3, 4]]],
    ],
)
def test_one_box_may_stand_alone_in_a_list_or_in_a_frame(dialects, value):
    ((box,),) = dialects.read_boxes(value)
    assert box.xyxy == (1, 2, 3, 4)


def test_a_list_of_lists_gives_every_frame_its_own_boxes(dialects):
    frames = dialects.read_boxes([[[1, 2, 3, 4], [5, 6, 7, 8]], [], [{"x": 0, "y": 0, "width": 9, "height": 9}]])
    assert [[box.xyxy for box in frame] for frame in frames] == [
        [(1, 2, 3, 4), (5, 6, 7, 8)],
        [],
        [(0, 0, 9, 9)],
    ]


@pytest.mark.parametrize("text", ["", " \n", "[]"])
def test_no_text_means_one_frame_without_boxes(dialects, text):
    assert dialects.read_boxes(text) == [[]]


def test_four_bare_numbers_may_also_be_left_top_width_and_height(dialects):
    for written in ("1 2 30 40", [1, 2, 30, 40], [[1, 2, 30, 40]], {"x": 1, "y": 2, "width": 30, "height": 40}):
        assert dialects.read_boxes(written, corners=False)[0][0].xyxy == (1, 2, 31, 42)


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_boxes_may_be_arrays_and_tensors(dialects, make):
    for shape in ([1, 2, 3, 4], [[1, 2, 3, 4]], [[[1, 2, 3, 4]]]):
        ((box,),) = dialects.read_boxes(make(shape))
        assert box.xyxy == (1, 2, 3, 4)


def test_segs_of_the_impact_pack_are_boxes_with_label_and_confidence(dialects):
    Seg = namedtuple("Seg", "bbox label confidence")
    segs = ((60, 80), [Seg((1, 2, 3, 4), "face", np.array([0.5])), Seg(np.array([5, 6, 7, 8]), None, None)])
    ((face, other),) = dialects.read_boxes(segs)
    assert (face.xyxy, face.label, face.score) == ((1, 2, 3, 4), "face", 0.5)
    assert (other.xyxy, other.label, other.score) == ((5, 6, 7, 8), "", 1.0)
    assert dialects.read_boxes(((60, 80), [])) == [[]]


def test_points_between_0_and_1_are_shares_of_the_picture(dialects, prompt_error):
    points = dialects.read_points("0.5 0.25\n0 1", label=1)
    assert places(dialects.in_pixels(points, 200, 100)) == [[(100, 25), (0, 100)]]
    with pytest.raises(prompt_error, match=r"The point \(120, 0.5\) is not between 0 and 1.*pixels"):
        dialects.in_pixels(dialects.read_points("120 0.5", label=1), 200, 100)


def test_what_is_written_for_other_packs_can_be_read_again(dialects):
    assert json.loads(dialects.write_points([(1, 2.5)])) == [{"x": 1, "y": 2.5}]
    assert places(dialects.read_points(dialects.write_points([(1, 2.5), (3, 4)]), label=1)) == [[(1, 2.5), (3, 4)]]
    ((box,),) = dialects.read_boxes(dialects.write_box((1, 2, 30.5, 40), "cat", 0.5))
    assert (box.xyxy, box.label, box.score) == ((1, 2, 30.5, 40), "cat", 0.5)


def test_label_and_score_of_a_detector_stay_with_the_box(dialects):
    ((box,),) = dialects.read_boxes([{"x": 1, "y": 2, "width": 2, "height": 2, "label": "dog", "score": 0.75}])
    assert (box.label, box.score) == ("dog", 0.75)
    ((silent,),) = dialects.read_boxes([{"x": 1, "y": 2, "width": 2, "height": 2, "label": None}])
    assert (silent.label, silent.score) == ("", 1.0)


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ([{"x": 1, "y": 2, "width": 3}], "'width': 3"),
        ([{"x": 1, "y": 2, "width": "wide", "height": 1}], "'wide'"),
        ([[1, 2, 3, 4], [1, 2, 3]], "[1, 2, 3]"),
        ([[1, 2, 3]], "[1, 2, 3]"),
        (["1234"], "1234"),
        (7, '"7"'),
        ([[1, 2, 3, 4], "5 6 7 8"], "5 6 7 8"),
    ],
)
def test_boxes_that_cannot_be_read_are_quoted(dialects, prompt_error, value, quoted):
    with pytest.raises(prompt_error) as refusal:
        dialects.read_boxes(value)
    assert quoted in str(refusal.value)
    assert "left, top, right and bottom" in str(refusal.value)


@pytest.mark.parametrize("text", ["10 20 30", "10 20 30 40 50", "a box", "[[10, 20, 30, 40]", "10 20 30 40 dog"])
def test_box_text_that_cannot_be_read_is_quoted(dialects, prompt_error, text):
    with pytest.raises(prompt_error) as refusal:
        dialects.read_boxes(text)
    assert text in str(refusal.value)


def test_a_long_text_is_not_repeated_in_full(dialects, prompt_error):
    with pytest.raises(prompt_error) as refusal:
        dialects.read_points("far " * 1000, label=1)
    assert "far far" in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("text", ["nan 5", "5 inf", "[[NaN, 5]]", "[[5, 1e999]]", "5 -inf"])
def test_what_is_not_a_number_reaches_the_check_that_names_it(dialects, prompt_error, comfyui, text):
    ((x_and_y,),) = places(dialects.read_points(text, label=1))
    prompt = comfyui.module("mam_model.prompt").Prompt(points_px=(x_and_y,), labels=(1,))
    with pytest.raises(prompt_error, match=r"The point \(.*(nan|inf).*\) is not a number"):
        prompt.checked(100, 100)
