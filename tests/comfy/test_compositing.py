"""The subject over its new background, and the cut-out as a file that other programs open."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from live_memory import LiveMemory
from PIL import Image, ImageColor

from .graphs import count_calls, disc, disc_picture, node, pictures


@pytest.fixture
def composite(comfy, tensors):
    """`composite(image, alpha, ...)`: run of a graph with the nodes "composite" and "saved" (its cut-out)."""

    def run(image, alpha, background=None, **settings):
        graph = {"image": node(tensors(image)), "alpha": node(tensors(alpha))}
        if background is not None:
            graph["background"] = node(tensors(background))
            settings["background"] = ("background", 0)
        graph["composite"] = node("MAM_Composite", image=("image", 0), alpha=("alpha", 0), **settings)
        graph["saved"] = node("SaveImage", images=("composite", 1), filename_prefix="cutout")
        graph["shown"] = node("PreviewImage", images=("composite", 0))
        return comfy.run(graph)

    return run


def test_a_saved_cut_out_read_back_is_the_picture_with_its_matte_to_eight_bits(comfy, composite):
    image, alpha = pictures(2, 20, 30), torch.rand(2, 20, 30)
    run = composite(image, alpha, edge_color="as photographed")
    assert run.ok, run.error
    for index, saved in enumerate(run.ui["saved"]["images"]):
        with Image.open(comfy.output_dir / saved["filename"]) as picture:
            assert picture.mode == "RGBA"
            pixels = torch.from_numpy(np.array(picture)).float() / 255
        # Straight alpha: the colours are not darkened where the matte is thin. Core rounds down.
        assert (pixels[..., :3] - image[index]).abs().max() <= 1 / 255
        assert (pixels[..., 3] - alpha[index]).abs().max() <= 1 / 255


def test_a_cut_out_can_be_loaded_again_with_its_matte(comfy, composite, tensors):
    image, alpha = pictures(1, 20, 30), torch.rand(1, 20, 30)
    run = composite(image, alpha, edge_color="as photographed")
    name = run.ui["saved"]["images"][0]["filename"]
    graph = {
        "load": node("LoadImage", image=f"{name} [output]"),
        "invert": node("InvertMask", mask=("load", 1)),
        "shown": node("MaskPreview", mask=("invert", 0)),
    }
    again = comfy.run(graph)
    assert again.ok, again.error
    assert (again.output("invert") - alpha).abs().max() <= 1.01 / 255


def test_as_photographed_leaves_the_pixels_as_they_are(composite):
    image, alpha = pictures(1, 20, 30), torch.rand(1, 20, 30)
    run = composite(image, alpha, edge_color="as photographed", color="#ff0000")
    assert torch.equal(run.output("composite", 1)[..., :3], image)
    assert torch.equal(run.output("composite", 1)[..., 3], alpha)
    expected = alpha[..., None] * image + (1 - alpha[..., None]) * torch.tensor((1.0, 0.0, 0.0))
    torch.testing.assert_close(run.output("composite"), expected, atol=1e-6, rtol=0)


def test_the_colour_shows_through_a_background_that_is_transparent(composite):
    image, alpha = torch.ones(2, 8, 9, 3), torch.zeros(2, 8, 9)
    alpha[:, :2] = 1
    # A cut-out: red above, and its hidden blue below.
    behind = torch.tensor((1.0, 0.0, 0.0, 1.0)).expand(1, 8, 9, 4).clone()
    behind[:, 4:] = torch.tensor((0.0, 0.0, 1.0, 0.0))
    behind[:, 6:, :, 3] = 0.5
    run = composite(image, alpha, behind, edge_color="as photographed", color="#00ff00")
    rows = [(1, 1, 1)] * 2 + [(1, 0, 0)] * 2 + [(0, 1, 0)] * 2 + [(0, 0.5, 0.5)] * 2
    torch.testing.assert_close(run.output("composite"), torch.tensor(rows)[:, None].expand(2, 8, 9, 3))


def test_a_transparent_background_is_blended_as_the_subject_is(composite):
    image, alpha = torch.zeros(1, 8, 8, 3), torch.zeros(1, 8, 8)
    black = torch.tensor((0.0, 0.0, 0.0, 0.5)).expand(1, 8, 8, 4)
    found = composite(image, alpha, black, color="#ffffff", blend="linear light").output("composite")
    torch.testing.assert_close(found, torch.full_like(found, 0.7354), atol=1e-3, rtol=0)


def test_estimated_edge_colour_takes_the_old_background_out_of_the_rim(composite):
    alpha = disc(60, 80, 40, 30, 18)[None]
    soft = torch.nn.functional.avg_pool2d(alpha[None], 9, 1, 4)[0]
    image = disc_picture(soft[0])
    run = composite(image, soft)
    colors = run.output("composite", 1)[..., :3][(soft > 0.1) & (soft < 0.9)]
    subject = torch.tensor((0.95, 0.55, 0.10))
    photographed = image[(soft > 0.1) & (soft < 0.9)]
    assert (colors - subject).abs().mean() < 0.08 < (photographed - subject).abs().mean() / 2


def test_blending_linear_light_gives_a_brighter_edge(composite):
    image, alpha = torch.zeros(1, 8, 8, 3), torch.full((1, 8, 8), 0.5)
    settings = {"edge_color": "as photographed", "color": "#ffffff"}
    plain = composite(image, alpha, **settings).output("composite").clone()
    linear = composite(image, alpha, blend="linear light", **settings).output("composite")
    torch.testing.assert_close(plain, torch.full_like(plain, 0.5))
    torch.testing.assert_close(linear, torch.full_like(plain, 0.7354), atol=1e-3, rtol=0)


@pytest.mark.parametrize("node_id", ["MAM_Composite", "MAM_PreviewMatte"])
def test_a_colour_that_cannot_be_read_is_refused_before_anything_runs(comfy, tensors, node_id):
    graph = {
        "image": node(tensors(pictures())),
        "alpha": node(tensors(torch.rand(1, 48, 64))),
        "result": node(node_id, image=("image", 0), alpha=("alpha", 0), color="greenish"),
        "shown": node("PreviewImage", images=("result", 0)),
    }
    run = comfy.run(graph)
    assert not run.ok and run.executed == []
    assert "'greenish' is not a colour" in run.error and "#00b140" in run.error
    graph["result"]["inputs"]["color"] = "teal"
    assert comfy.run(graph).ok


@pytest.mark.parametrize("value", [None, 255, {"r": 0, "g": 177, "b": 64}], ids=["nothing", "a number", "an object"])
@pytest.mark.parametrize("node_id", ["MAM_Composite", "MAM_PreviewMatte"])
def test_what_is_no_text_in_place_of_a_colour_is_refused_in_a_sentence(comfy, tensors, node_id, value):
    graph = {
        "image": node(tensors(pictures())),
        "alpha": node(tensors(torch.rand(1, 48, 64))),
        "result": node(node_id, image=("image", 0), alpha=("alpha", 0), color=value),
        "shown": node("PreviewImage", images=("result", 0)),
    }
    if node_id == "MAM_PreviewMatte":
        graph["result"]["inputs"]["view"] = "color"
    run = comfy.run(graph)
    assert not run.ok and f"'{value}' is not a colour" in run.error


@pytest.mark.parametrize("node_id", ["MAM_Composite", "MAM_PreviewMatte"])
def test_a_colour_may_come_from_a_colour_picker(comfy, tensors, node_id):
    graph = {
        "image": node(tensors(torch.zeros(1, 8, 8, 3))),
        "alpha": node(tensors(torch.zeros(1, 8, 8))),
        "picker": node("ColorToRGBInt", color="#3366cc"),
        "result": node(node_id, image=("image", 0), alpha=("alpha", 0), color=("picker", 1)),
        "shown": node("PreviewImage", images=("result", 0)),
    }
    if node_id == "MAM_PreviewMatte":
        graph["result"]["inputs"]["view"] = "color"
    run = comfy.run(graph)
    assert run.ok, run.error
    expected = torch.tensor([0x33, 0x66, 0xCC]) / 255
    torch.testing.assert_close(run.output("result"), expected.expand(1, 8, 8, 3))


@pytest.mark.parametrize("name", ["white", "skyblue"])
def test_a_named_colour_can_be_read_again_after_pillow_has_used_it(composite, name):
    """Pillow replaces the text of a name that it was asked for by a tuple, in its own table."""
    ImageColor.getrgb(name)
    run = composite(pictures(1, 8, 8), torch.zeros(1, 8, 8), color=name)
    assert run.ok, run.error
    expected = torch.tensor(ImageColor.getrgb(name)) / 255
    torch.testing.assert_close(run.output("composite"), expected.expand(1, 8, 8, 3))


def test_one_background_serves_a_batch_and_a_batch_has_one_each(composite):
    image, alpha = pictures(3, 12, 16), torch.zeros(3, 12, 16)
    one = pictures(1, 12, 16, seed=7)
    run = composite(image, alpha, one)
    torch.testing.assert_close(run.output("composite"), one.expand(3, -1, -1, -1))
    each = pictures(3, 12, 16, seed=8)
    torch.testing.assert_close(composite(image, alpha, each).output("composite"), each)
    clip = composite(image[:1], alpha[:1], each)
    assert clip.ok and clip.output("composite").shape == (3, 12, 16, 3)
    refused = composite(image, alpha, each[:2])
    assert not refused.ok and "3 frames of" in refused.error and "2 of background" in refused.error


@pytest.mark.parametrize("canvas", ["image", "background"])
def test_one_subject_before_many_backgrounds_has_its_colours_worked_out_once(comfy, composite, monkeypatch, canvas):
    image, alpha = pictures(2, 12, 16), torch.rand(2, 12, 16)
    each = pictures(3, 12, 16, seed=8)
    alone = [composite(image[:1], alpha[:1], one[None], canvas=canvas).output("composite")[0].clone() for one in each]
    calls = count_calls(monkeypatch, comfy.module("mam_model.foreground"), "estimate_foreground")
    clip = composite(image[:1], alpha[:1], each, canvas=canvas)
    assert torch.equal(clip.output("composite"), torch.stack(alone)) and len(calls) == 1
    composite(image, alpha, each[:2], canvas=canvas)
    assert len(calls) == 1 + 2
    composite(image[:1], alpha, each[:1], canvas=canvas)
    assert len(calls) == 1 + 2 + 2


RED_AND_BLUE = torch.tensor((1.0, 0.0, 0.0)).expand(1, 10, 40, 3).clone()
RED_AND_BLUE[:, :, 20:] = torch.tensor((0.0, 0.0, 1.0))


@pytest.mark.parametrize(
    ("fit", "top", "corner_is_fill", "left", "right"),
    [
        ("cover", "picture", False, "red", "blue"),
        ("stretch", "picture", False, "red", "blue"),
        ("contain", "fill", True, "red", "blue"),
        ("center", "fill", True, "red", "blue"),
    ],
)
def test_a_background_of_another_size_is_fitted(composite, fit, top, corner_is_fill, left, right):
    image, alpha = pictures(1, 20, 20), torch.zeros(1, 20, 20)
    run = composite(image, alpha, RED_AND_BLUE, fit=fit, color="#00ff00")
    assert run.ok, run.error
    made = run.output("composite")[0]
    assert made.shape == (20, 20, 3)
    colors = {"red": (1, 0, 0), "blue": (0, 0, 1), "fill": (0, 1, 0)}
    assert torch.equal(made[10, 1], torch.tensor(colors[left], dtype=made.dtype))
    assert torch.equal(made[10, 18], torch.tensor(colors[right], dtype=made.dtype))
    assert torch.equal(made[0, 0], torch.tensor(colors["fill" if corner_is_fill else "red"], dtype=made.dtype))


def test_fits_differ_where_they_should(composite):
    image, alpha = pictures(1, 20, 20), torch.zeros(1, 20, 20)
    background = pictures(1, 30, 90, seed=2)
    made = [
        composite(image, alpha, background, fit=fit).output("composite").clone()
        for fit in ("cover", "contain", "stretch", "center")
    ]
    for i, one in enumerate(made):
        for other in made[i + 1 :]:
            assert (one - other).abs().max() > 0.05


VIEWS = ["checker", "black", "white", "color", "alpha", "onion skin", "overlay", "side by side"]


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_shows_the_matte(comfy, tensors, view):
    image, alpha = pictures(2, 24, 32), disc(24, 32, 16, 12, 8).expand(2, -1, -1).clone()
    graph = {"image": node(tensors(image)), "alpha": node(tensors(alpha))}
    graph["preview"] = node("MAM_PreviewMatte", image=("image", 0), alpha=("alpha", 0), view=view, color="#ff0000")
    run = comfy.run(graph)
    assert run.ok, run.error
    shown = run.output("preview")
    width = 32 if view != "side by side" else 3 * 32 + 2 * 4
    assert shown.shape == (2, 24, width, 3)
    assert shown.min() >= 0 and shown.max() <= 1
    assert len(run.ui["preview"]["images"]) == 2
    inside, outside = shown[:, 12, 16], shown[:, 0, 0]
    expected_inside = {"alpha": torch.ones(2, 3), "overlay": None, "side by side": image[:, 12, 16]}
    expected_outside = {
        "black": torch.zeros(2, 3),
        "white": torch.ones(2, 3),
        "color": torch.tensor((1.0, 0.0, 0.0)).expand(2, 3),
        "alpha": torch.zeros(2, 3),
        "overlay": image[:, 0, 0],
        "side by side": image[:, 0, 0],
    }
    wanted = expected_inside.get(view, image[:, 12, 16])
    if wanted is not None:
        torch.testing.assert_close(inside, wanted)
    else:
        assert (inside - image[:, 12, 16]).abs().max() > 0.05
    if view in expected_outside:
        torch.testing.assert_close(outside, expected_outside[view])
    else:
        assert (outside - image[:, 0, 0]).abs().max() > 0.05


def test_all_views_of_the_schema_are_tested(comfyui):
    (widget,) = (slot for slot in comfyui.node("MAM_PreviewMatte").GET_SCHEMA().inputs if slot.id == "view")
    assert sorted(widget.options) == sorted(VIEWS)


@pytest.mark.parametrize("node_id", ["MAM_Composite", "MAM_PreviewMatte"])
def test_a_matte_of_another_size_is_refused_with_both_sizes(comfy, tensors, node_id):
    graph = {
        "image": node(tensors(pictures(1, 32, 48))),
        "alpha": node(tensors(torch.zeros(1, 64, 64))),
        "result": node(node_id, image=("image", 0), alpha=("alpha", 0)),
        "shown": node("PreviewImage", images=("result", 0)),
    }
    run = comfy.run(graph)
    assert run.failed_node == "result"
    assert "The alpha is 64 x 64" in run.error and "48 x 32" in run.error


def test_the_cut_out_is_what_core_joins_from_foreground_and_inverted_mask(comfy, tensors):
    """Core's JoinImageWithAlpha takes 1 for transparent; with Invert Mask between it gives our straight RGBA."""
    alpha = disc(40, 50, 25, 20, 12)
    pair = {"image": ("image", 0), "alpha": ("alpha", 0)}
    graph = {
        "image": node(tensors(disc_picture(alpha))),
        "alpha": node(tensors(alpha[None])),
        "ours": node("MAM_Composite", **pair, edge_color="as photographed"),
        "inverted": node("InvertMask", mask=("alpha", 0)),
        "joined": node("JoinImageWithAlpha", image=("image", 0), alpha=("inverted", 0)),
        "seen": node("PreviewImage", images=("joined", 0)),
        "shown": node("PreviewImage", images=("ours", 1)),
    }
    run = comfy.run(graph)
    assert run.ok, run.error
    torch.testing.assert_close(run.output("joined"), run.output("ours", 1))


def test_on_the_backgrounds_canvas_the_subject_is_placed_by_its_middle(composite):
    placed = {"canvas": "background", "x": 0.25, "y": 0.5, "scale": 2.0, "edge_color": "as photographed"}
    run = composite(torch.ones(1, 10, 10, 3), torch.ones(1, 10, 10), torch.zeros(1, 60, 80, 3), **placed)
    assert run.ok, run.error
    shown = run.output("composite")
    assert shown.shape == (1, 60, 80, 3)
    inside = shown[0, ..., 0] > 0.5
    rows, columns = inside.any(dim=1).nonzero().flatten(), inside.any(dim=0).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1])) == (20, 39)
    assert (int(columns[0]), int(columns[-1])) == (10, 29)


def test_the_backgrounds_canvas_needs_a_background(composite):
    alpha = disc(20, 20, 10, 10, 5)
    run = composite(disc_picture(alpha), alpha[None], canvas="background")
    assert not run.ok and "Connect a background" in run.error


def test_light_wrap_brightens_the_rim_and_not_the_middle(composite):
    alpha = disc(64, 64, 32, 32, 24)
    without, wrapped = (
        composite(disc_picture(alpha), alpha[None], torch.ones(1, 64, 64, 3), light_wrap=amount, light_wrap_px=6.0)
        .output("composite")[0]
        .clone()
        for amount in (0.0, 1.0)
    )
    assert (wrapped - without).min() > -1e-6
    assert (wrapped[32, 10] - without[32, 10]).mean() > 0.02
    torch.testing.assert_close(wrapped[32, 32], without[32, 32], atol=1e-3, rtol=0)


def test_a_premultiplied_cut_out_has_its_colours_times_alpha(composite):
    alpha = disc(40, 50, 25, 20, 12)
    straight, premultiplied = (
        composite(disc_picture(alpha), alpha[None], cutout_alpha=kind).output("composite", 1).clone()
        for kind in ("straight", "premultiplied")
    )
    torch.testing.assert_close(premultiplied[..., :3], straight[..., :3] * straight[..., 3:])
    torch.testing.assert_close(premultiplied[..., 3], straight[..., 3])


def test_a_composite_that_does_not_fit_on_the_graphics_card_is_made_on_the_processor(
    comfy, composite, monkeypatch, said
):
    image, alpha = pictures(2, 20, 30), torch.rand(2, 20, 30)
    usual = composite(image, alpha).output("composite").clone()
    comfy.reset()
    nodes = comfy.module("nodes.compositing")
    over, asked = nodes.over, []

    def full_for_the_second(*args, **settings):
        asked.append(args)
        if len(asked) == 2:
            raise torch.cuda.OutOfMemoryError("full")
        return over(*args, **settings)

    monkeypatch.setattr(nodes, "over", full_for_the_second)
    run = composite(image, alpha)
    assert run.ok, run.error
    assert len(asked) == 3 and torch.equal(run.output("composite"), usual)
    assert len(said()) == 1 and "on the processor" in said()[0]


@pytest.fixture
def asked_and_taken(comfy, monkeypatch):
    """`asked_and_taken(node_id, ...)`: the bytes that a node asks for before a frame, and those that it takes then."""
    measured = []

    def measure(work, memory_bytes, name):
        with LiveMemory() as memory:
            made = work(torch.device("cpu"))
        measured.append((memory_bytes, memory.peak_bytes))
        return made

    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", None)
    # A processor blurs in arrays, which are not counted, and by other ways than a graphics card.
    gaussian = comfy.module("mam_model.gaussian")
    for way in ("_in_arrays", "_multiplied"):
        monkeypatch.setattr(gaussian, way, gaussian._convolved)
    for module in ("nodes.compositing", "nodes.edges"):
        monkeypatch.setattr(comfy.module(module), "on_device_or_processor", measure)

    def run(node_id, background=None, **settings) -> tuple[int, int]:
        # In half precision, so that each is copied on its way into float32 as it is on its way to a graphics card.
        image, alpha = torch.rand(1, 300, 400, 3).half(), torch.rand(1, 300, 400).half()
        if background is not None:
            size, channels = background[:2], background[2:] or (3,)
            settings["background"] = torch.rand(1, *size, *channels).half()
        with torch.inference_mode():
            comfy.node(node_id).execute(image, alpha, **settings)
        return measured[-1]

    return run


@pytest.mark.parametrize(
    ("node_id", "settings"),
    [
        ("MAM_ForegroundColor", {}),
        ("MAM_ForegroundColor", {"where_clear": "black"}),
        ("MAM_ForegroundColor", {"background": (300, 400)}),
        ("MAM_Composite", {}),
        ("MAM_Composite", {"background": (600, 800), "light_wrap": 0.5}),
    ],
)
def test_a_frame_whose_colours_are_estimated_takes_no_more_memory_than_is_asked_for_and_not_much_less(
    asked_and_taken, node_id, settings
):
    asked, taken = asked_and_taken(node_id, **settings)
    assert 0.7 * asked < taken <= asked


@pytest.mark.parametrize(
    ("background", "fit"),
    [
        (None, "cover"),
        ((150, 200), "cover"),
        ((300, 400), "stretch"),
        *(((600, 800), fit) for fit in ("cover", "contain", "stretch", "center")),
        ((100, 800), "contain"),
        ((800, 100), "center"),
        ((300, 400, 4), "cover"),
        ((600, 800, 4), "cover"),
    ],
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cutout_alpha": "premultiplied"},
        {"blend": "linear light"},
        {"light_wrap": 0.5},
        {"light_wrap": 0.5, "light_wrap_px": 200.0},
    ],
)
def test_blending_takes_no_more_memory_than_is_asked_for_and_not_much_less(asked_and_taken, background, fit, settings):
    plain = {"edge_color": "as photographed", "fit": fit, **settings}
    asked, taken = asked_and_taken("MAM_Composite", background, **plain)
    assert 0.7 * asked < taken <= asked


@pytest.mark.parametrize("background", [(30, 40), (300, 400), (600, 800)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0, 3.5, 6.0])
@pytest.mark.parametrize("edge_color", ["estimated", "as photographed"])
def test_placing_takes_no_more_memory_than_is_asked_for_and_not_much_less(
    asked_and_taken, background, scale, edge_color
):
    settings = {"canvas": "background", "scale": scale, "edge_color": edge_color}
    asked, taken = asked_and_taken("MAM_Composite", background, **settings)
    assert 0.7 * asked < taken <= asked


@pytest.mark.parametrize("node_id", ["MAM_Composite", "MAM_ForegroundColor"])
def test_a_picture_that_serves_a_clip_is_looked_through_once(comfy, monkeypatch, node_id):
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", None)
    looked_through, isfinite = [], torch.isfinite

    def counted(tensor):
        looked_through.append(tensor.shape)
        return isfinite(tensor)

    monkeypatch.setattr(torch, "isfinite", counted)
    comfy.node(node_id).execute(pictures(3, 20, 30), torch.rand(1, 20, 30), pictures(1, 20, 30, seed=1))
    assert looked_through.count((20, 30, 3)) == 4
