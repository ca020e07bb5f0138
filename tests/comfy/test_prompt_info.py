"""A prompt given back in ComfyUI's own types, in the exact forms that core's nodes read."""

from __future__ import annotations

import json

import pytest
import torch

from .graphs import boxes, node, points


@pytest.fixture
def info(comfy):
    def ask(prompt: dict, **inputs):
        more = inputs.pop("more", {})
        graph = {
            "prompt": prompt,
            **more,
            "info": node("MAM_PromptInfo", **{"prompt": ("prompt", 0), "frame": 0, **inputs}),
        }
        return comfy.run({**graph, "shown": node("MaskPreview", mask=("info", 3))})

    return ask


def test_boxes_come_back_as_core_writes_them(info):
    run = info(boxes('[{"x": 10, "y": 20, "width": 30, "height": 40, "label": "cat", "score": 0.5}]'))
    assert run.ok, run.error
    assert run.output("info", 0) == [{"x": 10, "y": 20, "width": 30, "height": 40, "label": "cat", "score": 0.5}]


def test_boxes_per_frame_come_back_per_frame(info):
    run = info(boxes("[[[1, 2, 3, 5]], []]"))
    assert [len(frame) for frame in run.output("info", 0)] == [1, 0]


def test_points_come_back_as_two_texts_of_json(info):
    run = info(points("12 34\n5.5 6", "7 8"))
    assert json.loads(run.output("info", 1)) == [{"x": 12, "y": 34}, {"x": 5.5, "y": 6}]
    assert json.loads(run.output("info", 2)) == [{"x": 7, "y": 8}]
    # As Load Image gives it for a picture without transparency.
    assert torch.equal(run.output("info", 3), torch.zeros(1, 64, 64))


@pytest.mark.parametrize(
    ("given", "said"),
    [("12 nan", "is not a number"), ('[{"x": 1, "y": 2, "label": 2}]', "has the label 2")],
)
def test_points_that_mean_nothing_are_refused_instead_of_left_out(info, given, said):
    run = info(points(given))
    assert run.failed_node == "info" and said in run.error


def test_a_mask_of_another_range_comes_back_within_0_and_1(info, tensors):
    mask = torch.zeros(1, 6, 5)
    mask[0, 2:4, 1:3] = 255.0
    given = node("MAM_PromptMask", mask=("mask", 0))
    run = info(given, more={"mask": node(tensors(mask))})
    assert torch.equal(run.output("info", 3), mask / 255)
    run = info(given, more={"mask": node(tensors(mask * torch.nan))})
    assert not run.ok and "NaN" in run.error


def test_a_box_fills_the_mask_of_a_picture(info, tensors):
    picture = {"image": node(tensors(torch.zeros(1, 20, 30, 3)))}
    run = info(boxes("5 6 15 12"), more=picture, image=("image", 0))
    mask = run.output("info", 3)
    assert mask.shape == (1, 20, 30) and mask.sum() == 60 and mask[0, 6, 5] == 1


def test_a_mask_of_another_size_than_the_picture_is_told_from_the_picture(info, tensors):
    more = {"image": node(tensors(torch.zeros(1, 20, 30, 3))), "mask": node(tensors(torch.ones(1, 6, 5)))}
    run = info(node("MAM_PromptMask", mask=("mask", 0)), more=more, image=("image", 0))
    assert run.failed_node == "info"
    assert "a mask of 5 x 6 pixels but the picture is 30 x 20" in run.error


def test_core_draws_our_boxes(comfy, tensors):
    graph = {
        "image": node(tensors(torch.zeros(1, 40, 40, 3))),
        "prompt": boxes("5 6 25 32"),
        "info": node("MAM_PromptInfo", prompt=("prompt", 0), frame=0),
        "drawn": node("DrawBBoxes", image=("image", 0), bboxes=("info", 0)),
        "shown": node("PreviewImage", images=("drawn", 0)),
    }
    run = comfy.run(graph)
    assert run.ok, run.error
    assert run.output("drawn").max() > 0


def test_a_frame_that_is_not_there_is_named(info):
    run = info(boxes("1 1 9 9"), frame=3)
    assert not run.ok and "no 3" in run.error
