"""Points and boxes are understood in every way in which people and other packs write them."""

from __future__ import annotations

import json
import time
from collections import namedtuple

import numpy as np
import pytest
import torch

from .graphs import node


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
        "120\u00a080\n30\u300040.5",
        "１２０ ８０\n30 40.5",
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
        ("120 80 ← her nose", '"120 80 ← her nose"'),
        ("\u2212120 80", '"\u2212120 80"'),
        ("目の下", '"目の下"'),
        ("😀", '"😀"'),
        ("x=12 y=80", '"x=12 y=80"'),
        ("12-80", '"12-80"'),
        ("12.80.5", '"12.80.5"'),
        ('[{"x": 1, "y": 2, "label": 0.5}]', "'label': 0.5"),
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
        ('{"positive": 5}', "'positive': 5"),
        ('{"positive": {"x": 1, "y": 2}}', '"positive" and "negative" are lists of points'),
        ('{"points": [[1, 2]], "labels": [1e999]}', "[1, 2]"),
        ('[{"x": 1, "y": 2, "label": Infinity}]', "'label': inf"),
        (f"[[1{'0' * 400}, 2]]", "[100000"),
        (f"[[1{'0' * 5000}, 2]]", "[[10000"),
        ("[[[1, 2], [3, 4]], 5]", "[[1, 2], [3, 4]]"),
        ("[[1, 2], [[3, 4]]]", "[[3, 4]]"),
        ('{"x": 1, "z": 2}', "'z': 2"),
        ("[null]", "None"),
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


def test_brackets_that_do_not_close_are_told_how_to_be_written(dialects, prompt_error):
    with pytest.raises(prompt_error, match=r'bracket.*"\[10, 20, 300, 400"\. .*one box per line'):
        dialects.read_boxes("[10, 20, 300, 400")
    with pytest.raises(prompt_error, match=r'comma.*"\[\[120 80\]\]"\. .*one point per line'):
        dialects.read_points("[[120 80]]", label=1)


def test_what_is_quoted_can_be_written_to_a_log(dialects, prompt_error):
    """Half of an emoji, as a text that was cut holds it, cannot: ComfyUI's worker would end over the message."""
    for read in (lambda text: dialects.read_points(text, label=1), dialects.read_boxes):
        with pytest.raises(prompt_error) as refusal:
            read("here \ud83d")
        assert b"here \\ud83d" in str(refusal.value).encode("utf-8")


@pytest.mark.parametrize(
    "written",
    [
        "[[[120, 80], [30, 40]], [], [[5, 6]]]",
        [[[120, 80], [30, 40]], [], [[5, 6]]],
        '[{"points": [[120, 80], [30, 40]], "labels": [1, 1]}, [], {"positive": [{"x": 5, "y": 6}]}]',
        '[{"positive": [[120, 80]], "negative": [[30, 40]]}, {"negative": []}, {"negative": [[5, 6]]}]',
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


@pytest.mark.parametrize("number", [np.float32, np.int64, torch.tensor])
def test_boxes_may_be_lists_of_another_librarys_numbers(dialects, number):
    """What a detector's loop over its results gives."""
    box = [number(value) for value in (1, 2, 3, 4)]
    for written in (box, tuple(box), [box], [tuple(box)], [[box]]):
        ((read,),) = dialects.read_boxes(written)
        assert read.xyxy == (1, 2, 3, 4)


def test_frames_may_hold_arrays_of_boxes(dialects):
    frames = dialects.read_boxes([np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.zeros((0, 4)), torch.ones(1, 4)])
    assert [[box.xyxy for box in frame] for frame in frames] == [[(1, 2, 3, 4), (5, 6, 7, 8)], [], [(1, 1, 1, 1)]]
    assert dialects.read_boxes(np.zeros((0, 4))) == [[]]


def test_boxes_of_cores_editor_carry_metadata_that_does_not_disturb(dialects):
    written = {"x": 10, "y": 20, "width": 30, "height": 40, "metadata": {"color": "#ff0000"}, "label": "cat"}
    for form in (written, [written], [[written]], json.dumps([written])):
        ((box,),) = dialects.read_boxes(form)
        assert (box.xyxy, box.label) == ((10, 20, 40, 60), "cat")


SEG = namedtuple(
    "SEG",
    ["cropped_image", "cropped_mask", "confidence", "crop_region", "bbox", "label", "control_net_wrapper"],
    defaults=[None],
)


def seg(bbox=(1, 2, 3, 4), label="face", confidence=0.5) -> SEG:
    """As the Impact Pack's detectors make it, with the picture and the mask of the crop beside the box."""
    return SEG(None, np.zeros((4, 4), np.float32), confidence, (0, 0, 8, 8), bbox, label)


@pytest.mark.parametrize("bbox", [(1, 2, 3, 4), [1, 2, 3, 4], np.array([1, 2, 3, 4]), torch.tensor([1.0, 2, 3, 4])])
@pytest.mark.parametrize("confidence", [0.5, np.float32(0.5), np.array([0.5], dtype=np.float32), torch.tensor(0.5)])
def test_segs_of_the_impact_pack_are_boxes_with_label_and_confidence(dialects, bbox, confidence):
    ((box,),) = dialects.read_boxes(((60, 80), [seg(bbox, "face", confidence)]))
    assert (box.xyxy, box.label, box.score) == ((1, 2, 3, 4), "face", 0.5)


def test_segs_may_be_none_and_say_no_more_than_where_they_are(dialects):
    assert dialects.read_boxes(((60, 80), [])) == [[]]
    assert dialects.read_boxes((torch.zeros(1, 60, 80, 3).shape[1:3], ())) == [[]]
    ((box,),) = dialects.read_boxes(((60, 80), (seg(label=None, confidence=None),)))
    assert (box.label, box.score) == ("", 1.0)


def test_segs_mean_corners_even_where_bare_numbers_mean_corner_and_size(dialects):
    ((box,),) = dialects.read_boxes(((60, 80), [seg()]), corners=False)
    assert box.xyxy == (1, 2, 3, 4)


@pytest.mark.parametrize("confidence", [np.array([]), np.array([0.5, 0.6]), "high"])
def test_a_confidence_that_is_not_one_number_is_quoted(dialects, prompt_error, confidence):
    with pytest.raises(prompt_error, match="The confidence of a SEG is one number, not"):
        dialects.read_boxes(((60, 80), [seg(confidence=confidence)]))


def test_a_seg_without_a_proper_box_is_quoted(dialects, prompt_error):
    with pytest.raises(prompt_error, match=r'"\[1, 2, 3\]" is not a box'):
        dialects.read_boxes(((60, 80), [seg(bbox=(1, 2, 3))]))


@pytest.mark.parametrize(
    ("written", "corners"),
    [
        ([(10, 20, 40, 60), (1, 2, 3, 5)], True),
        ([(10, 20, 30, 40), (1, 2, 2, 3)], False),
        ([[[10, 20, 40, 60], [1, 2, 3, 5]]], True),
        ([[[10, 20, 30, 40], [1, 2, 2, 3]]], False),
        ("10 20 30 40\n1 2 2 3", False),
    ],
)
def test_bbox_of_other_packs_is_read_as_corners_or_as_corner_and_size(dialects, written, corners):
    (frame,) = dialects.read_boxes(written, corners=corners)
    assert [box.xyxy for box in frame] == [(10, 20, 40, 60), (1, 2, 3, 5)]


SOCKETS = {
    "BOUNDING_BOX": [{"x": 10, "y": 20, "width": 30, "height": 40}],
    "BBOX": [(10, 20, 40, 60)],
    "BBOXES": [[10, 20, 40, 60]],
    "BOX": [10, 20, 40, 60],
    "SEGS": ((60, 80), [seg(bbox=np.array([10, 20, 40, 60]))]),
}


@pytest.mark.parametrize("socket", SOCKETS)
def test_a_box_of_any_pack_can_be_connected(comfy, socket):
    from comfy_api.latest import io

    class Detector(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            outputs = [io.Custom(socket).Output("boxes")]
            return io.Schema(node_id=f"Test_{socket}", category="tests", inputs=[], outputs=outputs)

        @classmethod
        def execute(cls):
            return io.NodeOutput(SOCKETS[socket])

    node_id = comfy.add_node(Detector)
    run = comfy.run(
        {
            "detector": node(node_id),
            "prompt": node("MAM_PromptBoxes", boxes="", bounding_boxes=("detector", 0)),
            "seen": node("PreviewAny", source=("prompt", 0)),
        }
    )
    comfy.remove_node(node_id)
    assert run.ok, run.error
    (targets,) = run.output("prompt").frames
    assert [target.box_xyxy_px for target in targets] == [(10, 20, 40, 60)]


@pytest.mark.parametrize("quote", ['"', "'"])
def test_points_of_kjnodes_editor_are_read_from_both_of_its_texts(dialects, quote):
    positive = '[{"x": 120, "y": 80}, {"x": 30, "y": 40}]'.replace('"', quote)
    assert places(dialects.read_points(positive, label=1)) == [[(120, 80), (30, 40)]]
    stored = '{"positive": [{"x": 120, "y": 80}], "negative": [{"x": 0, "y": 0}]}'.replace('"', quote)
    (frame,) = dialects.read_points(stored, label=1)
    assert [(point.x, point.y, point.label) for point in frame] == [(120, 80, 1), (0, 0, 0)]
    assert dialects.read_points('{"positive": [], "negative": null}', label=1) == [[]]


def test_points_of_sam3_packs_are_shares_of_the_picture(comfyui):
    prompt_points = comfyui.node("MAM_PromptPoints")
    written = '{"points": [[0.25, 0.5], [1.0, 0.0]], "labels": [1, 0]}'
    output = prompt_points.execute(written, coordinates="0 to 1", image=torch.zeros(1, 40, 80, 3))
    (((prompt,),),) = (prompts.frames for prompts in output.args)
    assert prompt.points_px == ((20, 20), (80, 0)) and prompt.labels == (1, 0)


def test_labels_may_be_true_and_false(dialects):
    (frame,) = dialects.read_points('{"points": [[1, 2], [3, 4]], "labels": [true, false]}', label=0)
    assert [point.label for point in frame] == [1, 0]


@pytest.mark.parametrize("text", ["[[], []]", '[{"points": [], "labels": []}, {"positive": []}]'])
def test_frames_may_be_empty(dialects, text):
    assert dialects.read_points(text, label=1) == [[], []]


def test_frames_of_boxes_may_be_empty(dialects):
    assert dialects.read_boxes("[[], []]") == [[], []]
    assert dialects.read_boxes([[], [[1, 2, 3, 4]], []])[0::2] == [[], []]


MEGABYTE = 1_000_000
HOSTILE = {
    "nested lists": "[" * MEGABYTE,
    "nested and closed": "[" * 900 + "]" * 900 + " " * MEGABYTE,
    "nested objects": '{"positive":' * (MEGABYTE // 12),
    "one long number": "1" * MEGABYTE,
    "one long list": "[" + "[1,2]," * (MEGABYTE // 6) + "[1]]",
    "one long line": "1 " * (MEGABYTE // 2),
    "one long word": "[{'x" + "'" * MEGABYTE,
    "signs": "+-" * (MEGABYTE // 2),
    "half a number": "1e" * (MEGABYTE // 2),
    "brackets": "()" * (MEGABYTE // 2),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("read", ["read_points", "read_boxes"])
def test_a_megabyte_of_nonsense_is_refused_quickly_with_one_sentence(dialects, prompt_error, read, text):
    arguments = {"label": 1} if read == "read_points" else {}
    start = time.process_time()
    with pytest.raises(prompt_error) as refusal:
        getattr(dialects, read)(text, **arguments)
    assert time.process_time() - start < 5
    assert len(str(refusal.value)) < 500


def test_a_long_but_sound_list_is_read(dialects):
    (frame,) = dialects.read_points("[" + ",".join(["[1,2]"] * 20_000) + "]", label=1)
    assert len(frame) == 20_000


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


def test_other_packs_get_no_box_of_negative_size(dialects):
    assert dialects.write_box((30, 25, 6, 5), "", 1.0) == dialects.write_box((6, 5, 30, 25), "", 1.0)
    assert dialects.write_box((30, 25, 6, 5), "", 1.0)["width"] == 24


def test_label_and_score_of_a_detector_stay_with_the_box(dialects):
    ((box,),) = dialects.read_boxes([{"x": 1, "y": 2, "width": 2, "height": 2, "label": "dog", "score": 0.75}])
    assert (box.label, box.score) == ("dog", 0.75)
    ((silent,),) = dialects.read_boxes([{"x": 1, "y": 2, "width": 2, "height": 2, "label": None}])
    assert (silent.label, silent.score) == ("", 1.0)
    ((unsure,),) = dialects.read_boxes([{"x": 1, "y": 2, "width": 2, "height": 2, "score": None, "label": "女孩 😀"}])
    assert (unsure.label, unsure.score) == ("女孩 😀", 1.0)


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
        ([[10, 20], []], "[10, 20]"),
        ([[1, 2, 3, 4], []], "[]"),
        ([[[1, 2, 3, 4]], [5, 6, 7, 8]], "[[1, 2, 3, 4]]"),
        ({"boxes": [[0.5, 0.5, 0.2, 0.2]], "labels": [True]}, "'boxes': [[0.5"),
        ({"points": [[1, 2]], "labels": [1]}, "'points': [[1, 2]]"),
        ([[1, 2, 3, 10**400]], "10000"),
        ([{"x": 1, "y": 2, "width": 3, "height": 4, "score": "high"}], "'score': 'hi"),
        (None, '"None"'),
        (b"1 2 3 4", "b'1 2 3 4'"),
        (torch.zeros(4, 3), "[0.0, 0.0, 0.0]"),
    ],
)
def test_boxes_that_cannot_be_read_are_quoted(dialects, prompt_error, value, quoted):
    with pytest.raises(prompt_error) as refusal:
        dialects.read_boxes(value)
    assert quoted in str(refusal.value)
    assert "left, top, right and bottom" in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "10 20 30",
        "10 20 30 40 50",
        "10 20-300 400",
        "a box",
        "[[10, 20, 30, 40]",
        "10 20 30 40 dog",
        "犬",
        "10 20 30 40 🐕",
    ],
)
def test_box_text_that_cannot_be_read_is_quoted(dialects, prompt_error, text):
    with pytest.raises(prompt_error) as refusal:
        dialects.read_boxes(text)
    assert text in str(refusal.value)


def test_a_text_of_several_lines_is_quoted_on_one(dialects, prompt_error):
    for read, written in ((dialects.read_boxes, "[\n  [1, 2,\n  3]\n]"), (dialects.read_boxes, [np.zeros((2, 3))])):
        with pytest.raises(prompt_error) as refusal:
            read(written)
        assert "\n" not in str(refusal.value)
    with pytest.raises(prompt_error, match=r'"\[ \[1, 2" cannot be read|as such .*"\[ \[1, 2"'):
        dialects.read_boxes("[\n  [1, 2")


def test_a_long_text_is_not_repeated_in_full(dialects, prompt_error):
    with pytest.raises(prompt_error) as refusal:
        dialects.read_points("far " * 1000, label=1)
    assert "far far" in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    "text", ["nan 5 9 9", "1 2 inf 4", "[[1, 2, NaN, 4]]", "[[-Infinity, 2, 3, 4]]", "1 2 3 1e999"]
)
def test_a_box_of_what_is_not_a_number_reaches_the_check_that_names_it(dialects, prompt_error, comfyui, text):
    ((box,),) = dialects.read_boxes(text)
    with pytest.raises(prompt_error, match=r"The box \(.*(nan|inf).*\) holds something that is not a number"):
        comfyui.module("mam_model.prompt").Prompt(box_xyxy_px=box.xyxy).checked(100, 100)


@pytest.mark.parametrize("text", ["nan 5", "5 inf", "[[NaN, 5]]", "[[5, 1e999]]", "5 -inf"])
def test_what_is_not_a_number_reaches_the_check_that_names_it(dialects, prompt_error, comfyui, text):
    ((x_and_y,),) = places(dialects.read_points(text, label=1))
    prompt = comfyui.module("mam_model.prompt").Prompt(points_px=(x_and_y,), labels=(1,))
    with pytest.raises(prompt_error, match=r"The point \(.*(nan|inf).*\) is not a number"):
        prompt.checked(100, 100)
