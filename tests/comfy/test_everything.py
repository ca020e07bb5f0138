"""Matte Everything: whatever is found without a prompt, the batch contract holds, and a search can be watched and
stopped."""

from __future__ import annotations

import pytest
import torch
from live_memory import LiveMemory

from .graphs import count_calls, loaders, node, pictures

# The tiny SAM thinks nothing of its masks, which are noise all over the picture: only by these settings does it find
# several things.
FIND_NOISE = {
    "lowest_predicted_iou": 0.0,
    "lowest_stability": 0.0,
    "smallest_percent": 0.0,
    "largest_percent": 100.0,
    "leave_out_background": False,
    "box_nms": 1.0,
    "mask_nms": 0.9,
    "nested": "both",
    "points_per_side": 3,
    "most": 4,
}


@pytest.fixture
def graph(tiny_sam, tiny_m2m, tensors):
    """`graph(pictures, ...)`: a workflow whose node "mattes" is Matte Everything."""

    def build(images: torch.Tensor, **settings) -> dict:
        links = {name: (name, 0) for name in ("sam", "m2m", "image")}
        return {
            **loaders(tiny_sam, tiny_m2m),
            "image": node(tensors(images)),
            "mattes": node("MAM_MatteEverything", **{**links, **settings}),
            "shown": node("MaskPreview", mask=("mattes", 0)),
        }

    return build


def results(run) -> tuple:
    """alpha, instance_alphas, instances."""
    assert run.ok, run.error
    return tuple(run.output("mattes", slot) for slot in range(3))


def test_every_picture_gets_one_matte_and_its_instances_share_the_pixels(comfy, graph):
    alpha, mattes, index = results(comfy.run(graph(pictures(2, 32, 48), **FIND_NOISE)))
    assert alpha.shape == (2, 32, 48)
    assert [(entry.frame, entry.index) for entry in index.entries] == [(f, i) for f in range(2) for i in range(4)]
    assert index.frame_count == 2 and mattes.shape == (8, 32, 48)
    total = mattes.reshape(2, 4, 32, 48).sum(dim=1)
    assert total.max() <= 1 + 1e-5
    torch.testing.assert_close(alpha, total.clamp(0, 1), atol=1e-5, rtol=0)
    assert alpha.amax(dim=(1, 2)).min() > 0


def test_a_picture_of_a_batch_gets_what_it_would_get_alone(comfy, graph):
    images = pictures(3, 32, 48, seed=3)
    alpha = results(comfy.run(graph(images, **FIND_NOISE)))[0].clone()
    alone = results(comfy.run(graph(images[1:2].clone(), **FIND_NOISE)))[0]
    assert torch.equal(alpha[1], alone[0])
    assert not torch.equal(alpha[1], alpha[0])


def test_the_same_picture_gives_the_same_mattes_again(comfy, graph):
    images = pictures(1, 32, 48)
    first = results(comfy.run(graph(images, **FIND_NOISE)))[1].clone()
    comfy.reset()
    assert torch.equal(results(comfy.run(graph(images, **FIND_NOISE)))[1], first)


def test_a_frame_in_which_nothing_is_found_is_an_empty_matte_and_never_dropped(comfy, graph):
    for mode in ("instances", "semantic"):
        alpha, mattes, index = results(comfy.run(graph(pictures(2, 32, 48), mode=mode)))
        assert alpha.shape == mattes.shape == (2, 32, 48)
        assert alpha.max() == mattes.max() == 0
        assert [(entry.frame, entry.found) for entry in index.entries] == [(0, False), (1, False)]


def test_as_one_foreground_there_is_one_matte_per_frame(comfy, graph):
    alpha, mattes, index = results(comfy.run(graph(pictures(2, 32, 48), **FIND_NOISE, mode="semantic")))
    assert alpha.shape == (2, 32, 48)
    assert torch.equal(mattes, alpha)
    assert [(entry.frame, entry.index, entry.found) for entry in index.entries] == [(0, 0, True), (1, 0, True)]


@pytest.fixture
def made_up(comfy, warm_models, monkeypatch):
    """`made_up(targets)`: a function that mattes some frames of 320 x 480, in each of which so many things are found.

    To count within the networks takes long: what they find is worked out before, and the mattes are made up.
    """
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", None)
    for module in ("everything", "previews"):
        monkeypatch.setattr(comfy.module(f"nodes.{module}"), "MOST_FRAMES", 0)
    node, (sam, m2m) = comfy.node("MAM_MatteEverything"), warm_models
    one, prompt = pictures(1, 320, 480), comfy.module("mam_model.prompt").Prompt
    embedding = comfy.node("MAM_EncodeImage").execute(sam, one).result[0][0].embedding

    def build(targets: int):
        found = sam.decode(embedding, [prompt(box_xyxy_px=(20, 20, 300 - 30 * n, 200)) for n in range(targets)])
        monkeypatch.setattr(comfy.module("mam_model.everything"), "find_everything", lambda *args, **settings: found)
        monkeypatch.setattr(m2m, "look_at", lambda embedding: None)
        monkeypatch.setattr(m2m, "matte", lambda picture, target, options: torch.full((len(target), 320, 480), 0.4))
        return lambda count, **settings: (
            node.execute(sam, m2m, one.expand(count, -1, -1, -1), **{**FIND_NOISE, **settings}).result
        )

    return build


@pytest.mark.parametrize("settings", [{"mode": "semantic"}, {"most": 1}])
def test_where_a_frame_has_one_matte_a_clip_takes_the_memory_of_the_result_alone(made_up, settings):
    matte = made_up(1)

    def peak(count: int) -> int:
        with torch.inference_mode(), LiveMemory() as memory:
            alpha, mattes, _ = matte(count, **settings)
        assert alpha is mattes and len(alpha) == count
        return memory.peak_bytes

    peak(1)
    assert peak(9) - peak(1) < 1.3 * 8 * 320 * 480 * 4


def test_mattes_that_wait_for_their_number_do_so_in_the_precision_of_the_result(made_up, monkeypatch):
    monkeypatch.setattr("comfy.model_management.intermediate_dtype", lambda: torch.float16)
    matte = made_up(3)

    def peak(count: int) -> int:
        with torch.inference_mode(), LiveMemory() as memory:
            alpha, mattes, _ = matte(count)
        assert mattes.dtype == torch.float16 and (len(alpha), len(mattes)) == (count, 3 * count)
        return memory.peak_bytes

    peak(1)
    # Three that wait, as many in the result, and the frame's.
    assert peak(9) - peak(1) < 1.1 * 8 * 7 * 320 * 480 * 2


def test_no_more_things_are_matted_than_asked_for(comfy, graph, monkeypatch):
    matted = count_calls(monkeypatch, comfy.module("mam_model.matting"), "matte_targets")
    for most in (1, 3):
        matted.clear()
        _, mattes, index = results(comfy.run(graph(pictures(1, 32, 48), **{**FIND_NOISE, "most": most})))
        assert len(matted) == len(mattes) == len(index.entries) == most


def test_the_surest_thing_comes_first_when_asked_for(comfy, graph):
    settings = {**FIND_NOISE, "order": "score"}
    entries = results(comfy.run(graph(pictures(1, 32, 48), **settings)))[2].entries
    scores = [entry.score for entry in entries if entry.found]
    assert len(scores) >= 2 and scores == sorted(scores, reverse=True)


def test_a_picture_is_encoded_once_whatever_is_looked_for_in_it(comfy, graph, monkeypatch):
    encoded = count_calls(monkeypatch, comfy.module("mam_model.sam").Sam, "encode_content")
    images = pictures(1, 32, 48)
    for settings in ({}, {"mode": "semantic"}, {"most": 2}, {"points_per_side": 2}):
        assert comfy.run(graph(images, **{**FIND_NOISE, **settings})).ok
    assert len(encoded) == 1


def test_the_bar_moves_over_points_and_mattes_to_its_end(comfy, graph, monkeypatch):
    reached = []
    bar = comfy.module("nodes.everything").comfy.utils.ProgressBar
    monkeypatch.setattr(bar, "update_absolute", lambda self, value: reached.append((value, self.total)))
    assert comfy.run(graph(pictures(2, 32, 48), **{**FIND_NOISE, "points_per_side": 6})).ok
    values = [value for value, _ in reached]
    assert values == sorted(values)
    assert {total for _, total in reached} == {values[-1]}
    # Three steps of at most 16 points and four mattes for each of two frames.
    assert len(set(values) - {0}) == 2 * (3 + 4)


def test_a_search_stops_within_one_step_when_the_user_cancels(comfy, graph, monkeypatch):
    sam = comfy.module("mam_model.sam").Sam
    decoded, original = [], sam.decode

    def decode(self, embedding, prompts):
        decoded.append(len(prompts))
        if len(decoded) == 2:
            comfy._nodes.interrupt_processing()
        return original(self, embedding, prompts)

    monkeypatch.setattr(sam, "decode", decode)
    run = comfy.run(graph(pictures(3, 32, 48), **{**FIND_NOISE, "points_per_side": 16}))
    assert run.interrupted and run.failed_node == "mattes"
    assert decoded == [16, 16]
    monkeypatch.undo()
    assert comfy.run(graph(pictures(1, 32, 48), **FIND_NOISE)).ok


def test_mattes_stop_within_one_when_the_user_cancels(comfy, graph, monkeypatch):
    matting = comfy.module("mam_model.matting")
    matted, original = [], matting.matte_targets

    def matte(*args):
        matted.append(1)
        comfy._nodes.interrupt_processing()
        return original(*args)

    monkeypatch.setattr(matting, "matte_targets", matte)
    run = comfy.run(graph(pictures(1, 32, 48), **FIND_NOISE))
    assert run.interrupted and len(matted) == 1


@pytest.mark.parametrize("height, width", [(1, 1), (1, 90), (70, 2), (3, 3)])
def test_a_tiny_picture_or_a_strip_is_searched_too(comfy, graph, height, width):
    alpha, mattes, _ = results(comfy.run(graph(pictures(1, height, width), **FIND_NOISE)))
    assert alpha.shape == (1, height, width) and mattes.shape[1:] == (height, width)
    assert torch.isfinite(alpha).all() and alpha.min() >= 0 and alpha.max() <= 1


@pytest.mark.parametrize("nested", ["whole", "parts", "both"])
def test_whatever_is_kept_of_nested_things_no_pixel_is_given_away_twice(comfy, graph, nested):
    settings = {**FIND_NOISE, "nested": nested, "most": 8}
    mattes = results(comfy.run(graph(pictures(1, 32, 48), **settings)))[1]
    assert len(mattes) >= 1 and mattes.sum(dim=0).max() <= 1 + 1e-5


def test_the_node_shows_the_numbered_picture_of_each_frame(comfy, graph):
    run = comfy.run(graph(pictures(2, 32, 48), **FIND_NOISE))
    assert len(run.ui["mattes"]["images"]) == 2


def test_of_a_long_clip_only_the_first_frames_are_shown_and_all_are_matted(comfy, graph):
    settings = {**FIND_NOISE, "points_per_side": 1, "most": 1}
    run = comfy.run(graph(pictures(18, 8, 8), **settings))
    assert len(results(run)[0]) == 18
    assert len(run.ui["mattes"]["images"]) == comfy.module("nodes.previews").MOST_FRAMES == 16


def test_every_setting_reaches_the_search(comfy, graph, monkeypatch):
    everything = comfy.module("mam_model.everything")
    searched, find = [], everything.find_everything
    monkeypatch.setattr(
        everything, "find_everything", lambda *args, **more: searched.append(args[2]) or find(*args, **more)
    )
    asked = {
        "points_per_side": 2,
        "lowest_predicted_iou": 0.11,
        "lowest_stability": 0.22,
        "leave_out_background": False,
        "box_nms": 0.33,
        "mask_nms": 0.44,
        "nested": "parts",
        "order": "score",
        "most": 7,
    }
    run = comfy.run(graph(pictures(1, 8, 8), **asked, smallest_percent=5.0, largest_percent=60.0))
    assert run.ok, run.error
    assert [vars(options) for options in searched] == [{**asked, "smallest_area": 0.05, "largest_area": 0.6}]


def test_areas_that_leave_nothing_are_refused_in_words(comfy, graph):
    run = comfy.run(graph(pictures(1, 32, 48), smallest_percent=50.0, largest_percent=10.0))
    assert run.failed_node == "mattes"
    assert "50" in run.error and "10" in run.error and "nothing could be found" in run.error


def test_a_batch_without_pictures_is_refused(comfy, graph):
    run = comfy.run(graph(torch.zeros(0, 32, 48, 3)))
    assert not run.ok and "at least one picture" in run.error
