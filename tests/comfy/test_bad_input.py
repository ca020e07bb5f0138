"""Pictures as they come: strange sizes and channels are matted, what is no picture is refused, inputs stay as is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from .graphs import boxes, loaders, node, pictures, points, steps, whole, without_models

HELP_PAGES = Path(__file__).resolve().parents[2] / "web" / "docs"


@pytest.fixture
def graphs(tiny_sam, tiny_m2m, tensors):
    """`graphs(image, prompt)`: workflows with the all-in-one node, with the steps, and with the engine without models;
    compositing and preview stand behind the first."""

    def build(image: torch.Tensor, prompt: dict) -> dict[str, dict]:
        base = {"image": node(tensors(image)), "prompt": prompt}
        models = loaders(tiny_sam, tiny_m2m)
        made = {
            "mattes": {**base, **models, **whole()},
            "merged": {**base, **models, **steps()},
            "classical": {**base, **without_models(prompt=("prompt", 0))},
        }
        made["mattes"] |= {
            "composite": node("MAM_Composite", image=("image", 0), alpha=("mattes", 0)),
            "preview": node("MAM_PreviewMatte", image=("composite", 0), alpha=("mattes", 0), view="side by side"),
        }
        return made

    return build


def result_of(name: str) -> str:
    return "merged" if name == "merged" else "mattes"


def check_outputs(run, name: str, count: int, height: int, width: int) -> None:
    """Of workflows with one target per frame."""
    check_frames(run, name, count, height, width)
    assert torch.equal(run.output(result_of(name), 1), run.output(result_of(name), 0))


def check_frames(run, name: str, count: int, height: int, width: int, dtype=torch.float32) -> None:
    assert run.ok, run.error
    alphas = run.output(result_of(name))
    assert alphas.shape == (count, height, width)
    assert alphas.dtype == dtype and alphas.device.type == "cpu"
    assert torch.isfinite(alphas).all() and alphas.min() >= 0 and alphas.max() <= 1
    for slot, channels in ((0, 3), (1, 4)) if name == "mattes" else ():
        picture = run.output("composite", slot)
        assert picture.shape == (count, height, width, channels)
        assert picture.dtype == dtype
        assert torch.isfinite(picture).all() and picture.min() >= 0 and picture.max() <= 1


SIZES = {
    "1x1": (1, 1, points("0 0")),
    "1 row": (1, 40, boxes("5 0 20 1")),
    "1 column": (40, 1, boxes("0 5 1 20")),
    "2x3": (2, 3, boxes("0 0 2 2")),
    "16x5000": (16, 5000, boxes("100 2 900 14")),
    "5000x16": (5000, 16, boxes("2 100 14 900")),
}


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_of_any_size_is_matted(comfy, graphs, size):
    height, width, prompt = SIZES[size]
    for name, graph in graphs(pictures(1, height, width), prompt).items():
        check_outputs(comfy.run(graph), name, 1, height, width)


@pytest.mark.slow
def test_a_picture_12000_pixels_wide_is_matted(comfy, graphs):
    for name, graph in graphs(pictures(1, 300, 12000), boxes("2000 20 5000 280")).items():
        check_outputs(comfy.run(graph), name, 1, 300, 12000)
        comfy.reset()


def test_the_fourth_channel_of_an_rgba_picture_does_not_disturb(comfy, graphs):
    image = pictures(2, 32, 48)
    rgba = torch.cat((image, torch.rand(2, 32, 48, 1)), dim=-1)
    plain, more = graphs(image, boxes("6 5 30 25")), graphs(rgba, boxes("6 5 30 25"))
    for name in plain:
        expected = comfy.run(plain[name]).output(result_of(name)).clone()
        run = comfy.run(more[name])
        check_outputs(run, name, 2, 32, 48)
        assert torch.equal(run.output(result_of(name)), expected)


def test_a_grey_picture_in_three_channels_is_matted(comfy, graphs):
    grey = pictures(1, 32, 48)[..., :1].repeat(1, 1, 1, 3)
    for name, graph in graphs(grey, boxes("6 5 30 25")).items():
        check_outputs(comfy.run(graph), name, 1, 32, 48)


def test_a_grey_file_is_matted(comfy, tiny_sam, tiny_m2m):
    comfy.save_picture("grey.png", pictures(1, 32, 48)[0, ..., 0])
    graph = {"image": node("LoadImage", image="grey.png"), "prompt": boxes("6 5 30 25")}
    run = comfy.run({**graph, **loaders(tiny_sam, tiny_m2m), **whole()})
    assert run.ok and run.output("mattes").shape == (1, 32, 48)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (torch.rand(1, 32, 48, 1), "1 x 32 x 48 x 1"),
        (torch.rand(1, 32, 48, 2), "1 x 32 x 48 x 2"),
        (torch.rand(1, 0, 48, 3), "1 x 0 x 48 x 3"),
    ],
)
def test_what_is_no_colour_picture_is_refused_with_its_shape(comfy, graphs, image, says):
    for name, graph in graphs(image, boxes("6 5 30 25")).items():
        run = comfy.run(graph)
        assert run.failed_node == ("embedding" if name == "merged" else "mattes")
        assert says in run.error and "red, green and blue" in run.error


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_picture_with_nan_is_refused(comfy, graphs, value):
    image = pictures(2, 32, 48)
    image[1, 3, 4, 1] = value
    for name, graph in graphs(image, boxes("6 5 30 25")).items():
        run = comfy.run(graph)
        assert run.failed_node == ("embedding" if name == "merged" else "mattes")
        assert "NaN or infinite" in run.error


@pytest.mark.parametrize(
    ("node_id", "mask", "where"),
    [
        ("MAM_Composite", "alpha", "image"),
        ("MAM_Composite", "alpha", "background"),
        ("MAM_ForegroundColor", "alpha", "image"),
        ("MAM_ForegroundColor", "alpha", "background"),
        ("MAM_RefineWithTrimap", "trimap", "image"),
    ],
)
def test_a_node_that_works_on_colours_refuses_nan_before_it_spreads(comfy, tensors, node_id, mask, where):
    whole, broken = pictures(2, 32, 48), pictures(2, 32, 48)
    broken[1, 3, 4, 1] = float("nan")
    matte = torch.linspace(0, 1, 48).expand(1, 32, 48).contiguous()
    graph = {
        "whole": node(tensors(whole)),
        "broken": node(tensors(broken)),
        "matte": node(tensors(matte)),
        "result": node(node_id, **{"image": ("whole", 0), mask: ("matte", 0), where: ("broken", 0)}),
        "see": node("PreviewAny", source=("result", 0)),
    }
    run = comfy.run(graph)
    assert run.failed_node == "result" and "NaN or infinite" in run.error


OF_ANOTHER_SIZE = [
    ("MAM_Composite", "alpha"),
    ("MAM_PreviewMatte", "alpha"),
    ("MAM_ForegroundColor", "alpha"),
    ("MAM_ForegroundColor", "background"),
    ("MAM_RefineWithTrimap", "trimap"),
    ("MAM_RefineMask", "mask"),
    ("MAM_MatteWithoutModels", "mask"),
]


@pytest.mark.parametrize(("node_id", "name"), OF_ANOTHER_SIZE)
def test_the_help_page_quotes_what_the_node_says_of_an_input_of_another_size(comfy, tensors, node_id, name):
    given = {"image": pictures(1, 32, 48), "alpha": torch.ones(1, 32, 48)}
    given[name] = pictures(1, 30, 20) if name == "background" else torch.full((1, 30, 20), 0.4)
    if name in ("trimap", "mask"):
        del given["alpha"]
    graph = {input_name: node(tensors(value)) for input_name, value in given.items()}
    graph["result"] = node(node_id, **{input_name: (input_name, 0) for input_name in given})
    graph["see"] = node("PreviewAny", source=("result", 0))
    run = comfy.run(graph)
    assert run.failed_node == "result"
    assert run.error.strip().startswith(f"The {name} is 20 x 30 pixels but the picture is 48 x 32.")
    assert "64 x 64" not in run.error, "only Load Image gives such a mask"
    page = (HELP_PAGES / f"{node_id}.md").read_text(encoding="utf-8")
    quoted = [re.escape(sentence).replace("…", ".*") for sentence in re.findall(r'\*\*"([^"]+)"\*\*', page)]
    assert any(re.match(sentence, run.error.strip()) for sentence in quoted)


@pytest.fixture
def of_matte(comfy, tensors):
    """`of_matte(node_id, name, image, matte)`: the run of a node that works on a picture and its matte `name`."""

    def run(node_id: str, name: str, image: torch.Tensor, matte: torch.Tensor):
        given = {"image": image, name: matte}
        graph = {input_name: node(tensors(value)) for input_name, value in given.items()}
        graph["result"] = node(node_id, **{input_name: (input_name, 0) for input_name in given})
        return comfy.run({**graph, "see": node("PreviewAny", source=("result", 0))})

    return run


WORK_ON_A_MATTE = [case for case in OF_ANOTHER_SIZE if case[1] != "background"]
SLOPE = torch.linspace(0, 1, 48).expand(1, 32, 48).contiguous()


@pytest.mark.parametrize(("node_id", "name"), WORK_ON_A_MATTE)
def test_nan_in_a_mask_is_refused_before_it_spreads(of_matte, node_id, name):
    matte = SLOPE.clone()
    matte[0, 3, 4] = float("nan")
    run = of_matte(node_id, name, pictures(1, 32, 48), matte)
    assert run.failed_node == "result" and "The mask holds NaN" in run.error


@pytest.mark.parametrize(("node_id", "name"), WORK_ON_A_MATTE)
def test_a_mask_that_leaves_0_to_1_works_as_if_cut_there(of_matte, node_id, name):
    image, matte = pictures(1, 32, 48), 2 * SLOPE - 0.5
    expected = of_matte(node_id, name, image, matte.clamp(0, 1)).output("result").clone()
    assert torch.equal(of_matte(node_id, name, image, matte).output("result"), expected)


@pytest.mark.parametrize(("node_id", "name"), WORK_ON_A_MATTE)
def test_of_an_rgba_picture_every_node_takes_the_colours_alone(of_matte, node_id, name):
    image = pictures(1, 32, 48)
    expected = of_matte(node_id, name, image, SLOPE).output("result").clone()
    rgba = torch.cat((image, torch.rand(1, 32, 48, 1)), dim=-1)
    assert torch.equal(of_matte(node_id, name, rgba, SLOPE).output("result"), expected)


@pytest.mark.parametrize(("node_id", "name"), WORK_ON_A_MATTE)
def test_every_node_takes_and_gives_half_precision(of_matte, monkeypatch, node_id, name):
    """ComfyUI's --fp16-intermediates."""
    image, matte = pictures(1, 32, 48).half(), SLOPE.half()
    expected = of_matte(node_id, name, image.float(), matte.float()).output("result").half()
    monkeypatch.setattr("comfy.model_management.intermediate_dtype", lambda: torch.float16)
    run = of_matte(node_id, name, image, matte)
    assert run.ok, run.error
    torch.testing.assert_close(run.output("result"), expected, atol=2e-3, rtol=0)


def test_the_mask_that_load_image_gives_without_transparency_is_recognised(comfy, tensors):
    graph = {
        "image": node(tensors(pictures(1, 32, 48))),
        "blank": node(tensors(torch.zeros(1, 64, 64))),
        "result": node("MAM_RefineMask", image=("image", 0), mask=("blank", 0)),
        "shown": node("MaskPreview", mask=("result", 0)),
    }
    assert "Load Image gives a 64 x 64 mask for a picture without transparency" in comfy.run(graph).error


def test_a_picture_that_leaves_0_to_1_is_matted_as_if_cut_there(comfy, graphs):
    image = pictures(1, 32, 48) * 2 - 0.5
    for name, graph in graphs(image, boxes("6 5 30 25")).items():
        if name != "classical":
            alpha = comfy.run(graph).output(result_of(name)).clone()
            cut = comfy.run(graphs(image.clamp(0, 1), boxes("6 5 30 25"))[name])
            assert torch.equal(alpha, cut.output(result_of(name)))


def test_a_picture_of_one_colour_is_matted(comfy, graphs):
    for value in (0.0, 1.0):
        for name, graph in graphs(torch.full((1, 32, 48, 3), value), boxes("6 5 30 25")).items():
            check_outputs(comfy.run(graph), name, 1, 32, 48)


def test_half_precision_between_nodes_is_taken_and_given(comfy, graphs, monkeypatch):
    """ComfyUI's --fp16-intermediates."""
    monkeypatch.setattr("comfy.model_management.intermediate_dtype", lambda: torch.float16)
    for name, graph in graphs(pictures(2, 32, 48).half(), boxes("6 5 30 25\n20 4 46 30")).items():
        run = comfy.run(graph)
        assert run.ok, run.error
        per_target = run.output(result_of(name), 1)
        assert per_target.shape == (4, 32, 48) and per_target.dtype == torch.float16
        assert per_target.float().reshape(2, 2, 32, 48).sum(dim=1).max() <= 1 + 1e-3
        check_frames(run, name, 2, 32, 48, torch.float16)


def test_inputs_stay_as_they_were(comfy, graphs, tensors):
    image, mask = pictures(2, 32, 48), torch.rand(2, 32, 48)
    copies = image.clone(), mask.clone()
    prompt = node("MAM_PromptMask", mask=("mask", 0), foreground_strokes=("mask", 0))
    for graph in graphs(image, prompt).values():
        run = comfy.run({**graph, "mask": node(tensors(mask))})
        assert run.ok, run.error
    background = {
        "image": node(tensors(image)),
        "mask": node(tensors(mask)),
        "composite": node("MAM_Composite", image=("image", 0), alpha=("mask", 0), background=("image", 0)),
        "preview": node("MAM_PreviewMatte", image=("composite", 0), alpha=("mask", 0), view="overlay"),
    }
    assert comfy.run(background).ok
    assert torch.equal(image, copies[0]) and torch.equal(mask, copies[1])


def test_a_matte_node_may_not_change_what_another_node_still_reads(comfy, tensors, tiny_sam, tiny_m2m):
    """alpha and instance_alphas are one tensor when every frame has one target."""
    graph = {"image": node(tensors(pictures(2, 32, 48))), "prompt": boxes("6 5 30 25")}
    graph |= {**loaders(tiny_sam, tiny_m2m), **whole()}
    run = comfy.run(graph)
    assert run.output("mattes", 0).data_ptr() == run.output("mattes", 1).data_ptr()
    before = run.output("mattes", 0).clone()
    graph["composite"] = node("MAM_Composite", image=("image", 0), alpha=("mattes", 1))
    graph["preview"] = node("MAM_PreviewMatte", image=("composite", 0), alpha=("mattes", 0))
    run = comfy.run(graph)
    assert torch.equal(run.output("mattes", 0), before)
