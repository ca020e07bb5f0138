"""What the user points at reaches the network as it was meant; what cannot be meant is named in the refusal."""

from __future__ import annotations

import pytest
import torch

from .graphs import boxes, loaders, node, pictures, points, steps, without_models


def look(*ids) -> dict:
    """Nodes that make ComfyUI run the nodes of these ids, whatever they put out."""
    return {f"see {name}": node("PreviewAny", source=(name, 0)) for name in ids}


@pytest.fixture
def prompt_of(comfy):
    """`prompt_of(graph)`: the prompts per frame that the node "prompt" of a graph gives."""

    def run(graph: dict):
        finished = comfy.run({**graph, **look("prompt")})
        assert finished.ok, finished.error
        return finished.output("prompt").frames

    return run


@pytest.fixture
def refusal_of(comfy, tensors, tiny_sam, tiny_m2m):
    """`refusal_of(prompt)`: what SAM's and the classical node say to a prompt on a picture of 48 x 32 pixels."""

    def run(prompt: dict, **others) -> list[str]:
        base = {"image": node(tensors(pictures(1, 32, 48))), "prompt": prompt, **others}
        graphs = (
            {**base, **loaders(tiny_sam, tiny_m2m), **steps()},
            {**base, **without_models(prompt=("prompt", 0))},
        )
        runs = [comfy.run(graph) for graph in graphs]
        assert not any(finished.ok for finished in runs)
        return [finished.error for finished in runs]

    return run


def test_positive_and_negative_points_make_one_target(prompt_of):
    ((prompt,),) = prompt_of({"prompt": points("1 2\n3 4", "5 6", label="cat")})
    assert prompt.points_px == ((1, 2), (3, 4), (5, 6))
    assert prompt.labels == (1, 1, 0)
    assert prompt.label == "cat"


def test_each_point_can_be_a_target_of_its_own_and_negative_points_count_for_all(prompt_of):
    (targets,) = prompt_of({"prompt": points("1 2\n3 4", "5 6", each_point_is="a target of its own")})
    assert [target.points_px for target in targets] == [((1, 2), (5, 6)), ((3, 4), (5, 6))]
    assert [target.labels for target in targets] == [(1, 0), (1, 0)]


def test_one_positive_point_serves_every_frame_that_has_negative_points_of_its_own(prompt_of):
    frames = prompt_of({"prompt": points("1 2", "[[[3, 4]], [[5, 6]]]")})
    assert [target.points_px for (target,) in frames] == [((1, 2), (3, 4)), ((1, 2), (5, 6))]


def test_every_box_is_a_target_and_the_nodes_label_overrules_the_detectors(prompt_of):
    found = '[{"x": 1, "y": 2, "width": 3, "height": 4, "label": "dog", "score": 0.5}, [5, 6, 7, 8]]'
    (targets,) = prompt_of({"prompt": boxes(found)})
    assert [target.box_xyxy_px for target in targets] == [(1, 2, 4, 6), (5, 6, 7, 8)]
    assert [(target.label, target.score) for target in targets] == [("dog", 0.5), ("", 1.0)]
    (targets,) = prompt_of({"prompt": boxes(found, label="pet")})
    assert [target.label for target in targets] == ["pet", "pet"]


@pytest.fixture
def detector(comfy):
    """Registers a node with a BOUNDING_BOX output; `detector(value)` gives the node that puts the value out."""
    from comfy_api.latest import io

    given = {}

    class Detector(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(
                node_id="Test_Detector", category="tests", inputs=[], outputs=[io.BoundingBox.Output("boxes")]
            )

        @classmethod
        def execute(cls):
            return io.NodeOutput(given["value"])

    comfy.add_node(Detector)

    def give(value):
        given["value"] = value
        comfy.reset()
        return node("Test_Detector")

    yield give
    comfy.remove_node("Test_Detector")


def test_boxes_of_a_detector_join_the_typed_ones(prompt_of, detector):
    graph = {"detector": detector({"x": 1, "y": 2, "width": 3, "height": 4, "score": 0.5})}
    (targets,) = prompt_of({**graph, "prompt": boxes("5 6 7 8", bounding_boxes=("detector", 0))})
    assert [target.box_xyxy_px for target in targets] == [(5, 6, 7, 8), (1, 2, 4, 6)]


def test_a_detector_gives_every_frame_its_own_boxes(prompt_of, detector):
    box = {"x": 1, "y": 2, "width": 3, "height": 4}
    graph = {"detector": detector([[box], [], [box, box]]), "prompt": boxes("", bounding_boxes=("detector", 0))}
    assert [len(frame) for frame in prompt_of(graph)] == [1, 0, 2]
    typed = {**graph, "prompt": boxes("5 6 7 8", bounding_boxes=("detector", 0))}
    assert [len(frame) for frame in prompt_of(typed)] == [2, 1, 3]


def test_what_a_detector_gives_that_is_no_box_is_named(comfy, detector):
    graph = {"detector": detector([{"x": 1, "y": 2}]), "prompt": boxes("", bounding_boxes=("detector", 0))}
    run = comfy.run({**graph, **look("prompt")})
    assert run.failed_node == "prompt" and "{'x': 1, 'y': 2}" in run.error and "is not a box" in run.error


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (points("abc"), '"abc" cannot be read'),
        (boxes("1 2 3"), '"1 2 3" cannot be read'),
        (points("nan 5"), "The point (nan, 5.0) is not a number"),
        (boxes("1 2 nan 4"), "The box (1, 2, nan, 4) holds something that is not a number"),
        (points("10 10\n60 5"), "The point (60, 5) lies outside the picture, which is 48 x 32 pixels"),
        (points("10 10", "5 -1"), "The point (5, -1) lies outside the picture, which is 48 x 32 pixels"),
        (boxes("50 40 90 80"), "The box (50, 40, 90, 80) lies outside the picture, which is 48 x 32 pixels"),
        (boxes("-9 2 -1 8"), "lies outside the picture"),
        (boxes("10 5 10 20"), "The box (10, 5, 10, 20) has no area"),
    ],
)
def test_a_prompt_that_cannot_be_meant_is_named_in_the_refusal(refusal_of, prompt, says):
    for error in refusal_of(prompt):
        assert says in error


def test_an_inverted_box_is_turned_round_and_a_box_over_the_edge_is_cut(comfy, tensors, tiny_sam, tiny_m2m):
    base = {"image": node(tensors(pictures(1, 32, 48))), **loaders(tiny_sam, tiny_m2m), **steps()}
    inverted = comfy.run({**base, "prompt": boxes("30 25 6 5")}).output("merged").clone()
    assert torch.equal(inverted, comfy.run({**base, "prompt": boxes("6 5 30 25")}).output("merged"))
    over = comfy.run({**base, "prompt": boxes("6 5 900 25")}).output("merged").clone()
    assert torch.equal(over, comfy.run({**base, "prompt": boxes("6 5 48 25")}).output("merged"))
    assert over.max() > 0.1


@pytest.mark.parametrize("prompt", [points(""), points("", each_point_is="a target of its own"), boxes("")])
def test_a_prompt_that_says_nothing_gives_an_empty_matte(comfy, tensors, tiny_sam, tiny_m2m, prompt):
    base = {"image": node(tensors(pictures(1, 32, 48))), "prompt": prompt}
    for graph, name in (
        ({**base, **loaders(tiny_sam, tiny_m2m), **steps()}, "merged"),
        ({**base, **without_models(prompt=("prompt", 0))}, "mattes"),
    ):
        run = comfy.run(graph)
        assert run.ok, run.error
        assert run.output(name).shape == (1, 32, 48) and run.output(name).max() == 0
        assert [entry.found for entry in run.output(name, 2).entries] == [False]


def test_prompts_merge_into_the_same_target(prompt_of):
    graph = {
        "box": boxes("1 2 30 40"),
        "points": points("5 6", "7 8"),
        "prompt": node(
            "MAM_CombinePrompts",
            **{"prompts.prompt0": ("box", 0), "prompts.prompt1": ("points", 0), "combine_as": "the same target"},
        ),
    }
    ((target,),) = prompt_of(graph)
    assert target.box_xyxy_px == (1, 2, 30, 40)
    assert target.points_px == ((5, 6), (7, 8)) and target.labels == (1, 0)


def test_prompts_stand_side_by_side_as_further_targets(prompt_of):
    graph = {
        "box": boxes("1 2 30 40"),
        "points": points("5 6", "7 8"),
        "more": boxes("3 3 9 9\n4 4 8 8"),
        "prompt": node(
            "MAM_CombinePrompts",
            **{f"prompts.prompt{i}": (name, 0) for i, name in enumerate(("box", "points", "more"))},
            combine_as="further targets",
        ),
    }
    (targets,) = prompt_of(graph)
    assert [target.box_xyxy_px for target in targets] == [(1, 2, 30, 40), None, (3, 3, 9, 9), (4, 4, 8, 8)]
    assert targets[1].points_px == ((5, 6), (7, 8))


@pytest.mark.parametrize("socket", ["prompts.prompt0", "prompts.prompt1"])
@pytest.mark.parametrize("combine_as", ["the same target", "further targets"])
def test_without_a_bypassed_or_muted_prompt_the_others_are_combined(prompt_of, socket, combine_as):
    """The front end leaves the links of such nodes out."""
    graph = {
        "box": boxes("1 2 30 40"),
        "prompt": node("MAM_CombinePrompts", **{socket: ("box", 0)}, combine_as=combine_as),
    }
    ((target,),) = prompt_of(graph)
    assert target.box_xyxy_px == (1, 2, 30, 40)


@pytest.mark.parametrize("combine_as", ["the same target", "further targets"])
def test_a_socket_that_is_given_nothing_counts_as_not_connected(prompt_of, combine_as):
    sockets = {"prompts.prompt0": None, "prompts.prompt1": ("box", 0), "prompts.prompt2": None}
    graph = {"box": boxes("1 2 30 40"), "prompt": node("MAM_CombinePrompts", **sockets, combine_as=combine_as)}
    ((target,),) = prompt_of(graph)
    assert target.box_xyxy_px == (1, 2, 30, 40)


@pytest.mark.parametrize("sockets", [{}, {"prompts.prompt0": None}], ids=["no socket", "an empty socket"])
def test_combining_nothing_is_refused(comfy, sockets):
    combine = node("MAM_CombinePrompts", **sockets, combine_as="the same target")
    run = comfy.run({"prompt": combine, **look("prompt")})
    assert run.failed_node == "prompt" and "Connect a prompt" in run.error


@pytest.fixture
def strokes(tensors):
    """Two strokes of 8 pixels that cross in (20..23, 12..15), on a picture of 48 x 32 pixels."""
    on, off = torch.zeros(1, 32, 48), torch.zeros(1, 32, 48)
    on[:, 12:16, 10:34] = 1
    off[:, 2:28, 20:24] = 1
    return {"on": node(tensors(on)), "off": node(tensors(off))}


def test_where_strokes_cross_the_one_on_the_subject_counts(prompt_of, strokes):
    graph = {**strokes, "prompt": node("MAM_PromptMask", foreground_strokes=("on", 0), background_strokes=("off", 0))}
    ((prompt,),) = prompt_of(graph)
    assert prompt.scribbles[13, 21] == 1 and prompt.scribbles[13, 12] == 1
    assert prompt.scribbles[4, 21] == 2 and prompt.scribbles[4, 4] == 0
    assert prompt.mask is None


def test_a_mask_guides_or_hints(prompt_of, tensors):
    soft = torch.linspace(0, 1, 32 * 48).reshape(1, 32, 48)
    for use, is_guidance in (("guidance", True), ("hint", False)):
        graph = {
            "mask": node(tensors(soft)),
            "prompt": node("MAM_PromptMask", mask=("mask", 0), use_mask_as=use, label="cat"),
        }
        ((prompt,),) = prompt_of(graph)
        assert prompt.label == "cat"
        assert prompt.mask_is_guidance is is_guidance
        assert torch.equal(prompt.mask, soft[0])


def test_strokes_do_not_turn_another_prompts_hint_into_guidance(prompt_of, strokes, tensors):
    mask = torch.zeros(1, 32, 48)
    mask[:, 8:24, 10:30] = 1
    graph = {
        **strokes,
        "mask": node(tensors(mask)),
        "stroke": node("MAM_PromptMask", foreground_strokes=("on", 0)),
        "hint": node("MAM_PromptMask", mask=("mask", 0), use_mask_as="hint"),
    }
    for order in (("stroke", "hint"), ("hint", "stroke")):
        links = {f"prompts.prompt{i}": (name, 0) for i, name in enumerate(order)}
        graph["prompt"] = node("MAM_CombinePrompts", **links, combine_as="the same target")
        ((prompt,),) = prompt_of(graph)
        assert not prompt.mask_is_guidance
        assert prompt.has_mask and prompt.has_scribbles


def test_a_mask_prompt_without_mask_and_strokes_is_refused(comfy):
    run = comfy.run({"prompt": node("MAM_PromptMask"), **look("prompt")})
    assert run.failed_node == "prompt" and "this prompt says nothing yet" in run.error


def test_blank_strokes_say_nothing_whatever_their_size(prompt_of, strokes, tensors):
    """Load Image gives such a mask for a picture without transparency."""
    graph = {**strokes, "blank": node(tensors(torch.zeros(1, 64, 64)))}
    for on, expected in (("on", {0, 1}), ("blank", None)):
        graph["prompt"] = node("MAM_PromptMask", foreground_strokes=(on, 0), background_strokes=("blank", 0))
        ((prompt,),) = prompt_of(graph)
        assert (prompt.scribbles if expected is None else set(prompt.scribbles.unique().tolist())) == expected


def test_strokes_of_different_sizes_are_refused_with_both_sizes(comfy, strokes, tensors):
    strokes["off"] = node(tensors(torch.ones(1, 10, 20)))
    graph = {**strokes, "prompt": node("MAM_PromptMask", foreground_strokes=("on", 0), background_strokes=("off", 0))}
    run = comfy.run({**graph, **look("prompt")})
    assert run.failed_node == "prompt" and "20 x 10" in run.error and "48 x 32" in run.error


def test_masks_and_strokes_for_different_numbers_of_frames_are_refused(comfy, strokes, tensors):
    graph = {"masks": node(tensors(torch.ones(2, 32, 48))), "many": node(tensors(torch.ones(3, 32, 48)))}
    graph["prompt"] = node("MAM_PromptMask", mask=("masks", 0), foreground_strokes=("many", 0))
    run = comfy.run({**graph, **look("prompt")})
    assert run.failed_node == "prompt"
    assert "3 frames of foreground_strokes but 2 of mask" in run.error


@pytest.mark.parametrize("use", ["guidance", "hint"])
def test_an_empty_mask_gives_an_empty_matte(comfy, tensors, tiny_sam, tiny_m2m, use):
    base = {
        "image": node(tensors(pictures(1, 32, 48))),
        "mask": node(tensors(torch.zeros(1, 32, 48))),
        "prompt": node("MAM_PromptMask", mask=("mask", 0), use_mask_as=use),
    }
    for graph, name in (
        ({**base, **loaders(tiny_sam, tiny_m2m), **steps()}, "merged"),
        ({**base, **without_models(prompt=("prompt", 0))}, "mattes"),
        ({**base, **without_models(mask=("mask", 0))}, "mattes"),
    ):
        run = comfy.run(graph)
        assert run.ok, run.error
        assert run.output(name).max() == 0 and not run.output(name, 2).entries[0].found


@pytest.fixture
def load_image(comfy) -> dict:
    """Nodes "image" and "prompt" on a picture without transparency, for which Load Image gives a mask of 64 x 64."""
    comfy.save_picture("opaque.png", pictures(1, 32, 48)[0])
    return {
        "image": node("LoadImage", image="opaque.png"),
        "prompt": node("MAM_PromptMask", mask=("image", 1)),
    }


def test_load_images_blank_64_x_64_mask_says_nothing(comfy, load_image, tiny_sam, tiny_m2m):
    run = comfy.run({**load_image, **loaders(tiny_sam, tiny_m2m), **steps()})
    assert run.ok, run.error
    assert run.output("image", 1).shape == (1, 64, 64)
    assert run.output("merged").shape == (1, 32, 48) and run.output("merged").max() == 0
    run = comfy.run({**load_image, **without_models(mask=("image", 1))})
    assert run.ok, run.error
    assert run.output("mattes").shape == (1, 32, 48) and run.output("mattes").max() == 0


def test_load_images_blank_mask_says_nothing_beside_a_prompt_either(comfy, load_image, tensors):
    mask = torch.zeros(1, 32, 48)
    mask[:, 8:24, 10:30] = 1
    load_image |= {"drawn": node(tensors(mask)), "prompt": node("MAM_PromptMask", mask=("drawn", 0))}
    alone = comfy.run({**load_image, **without_models(prompt=("prompt", 0))}).output("mattes").clone()
    run = comfy.run({**load_image, **without_models(prompt=("prompt", 0), mask=("image", 1))})
    assert run.ok, run.error
    assert alone.max() > 0.9 and torch.equal(run.output("mattes"), alone)


def test_a_mask_of_another_size_is_refused_with_both_sizes(refusal_of, comfy, tensors):
    for use in ("guidance", "hint"):
        prompt = node("MAM_PromptMask", mask=("mask", 0), use_mask_as=use)
        for error in refusal_of(prompt, mask=node(tensors(torch.ones(1, 64, 64)))):
            assert "64 x 64" in error and "48 x 32" in error
    graph = {"image": node(tensors(pictures(1, 32, 48))), "mask": node(tensors(torch.ones(1, 64, 64)))}
    run = comfy.run({**graph, **without_models(mask=("mask", 0))})
    assert run.failed_node == "mattes" and "64 x 64" in run.error and "48 x 32" in run.error


def test_a_mask_with_nan_is_refused(refusal_of, tensors):
    mask = torch.ones(1, 32, 48)
    mask[0, 3, 3] = float("nan")
    for error in refusal_of(node("MAM_PromptMask", mask=("mask", 0)), mask=node(tensors(mask))):
        assert "NaN" in error


def test_a_soft_mask_as_guidance_keeps_its_inside_and_its_outside(comfy, tensors, tiny_sam, tiny_m2m):
    mask = torch.zeros(1, 64, 96)
    mask[:, 8:56, 10:86] = 1
    graph = {"image": node(tensors(pictures(1, 64, 96))), "mask": node(tensors(mask)), **loaders(tiny_sam, tiny_m2m)}
    graph |= {"prompt": node("MAM_PromptMask", mask=("mask", 0)), **steps(width_os8=2, width_os4=2, width_os1=2)}
    alpha = comfy.run(graph).output("merged")[0]
    assert (alpha[20:44, 25:70] == 1).all()
    assert (alpha[:4] == 0).all() and (alpha[:, :5] == 0).all()
