"""Many subjects: chosen, joined, or matted as one; each keeps its frame and number, and no frame is lost."""

from __future__ import annotations

import pytest
import torch

from .graphs import boxes, disc, disc_picture, loaders, node, pictures, steps

HEIGHT, WIDTH = 48, 96
LEFT, RIGHT = (24, 24, 12), (70, 24, 18)


@pytest.fixture
def two_discs(tensors):
    """Nodes up to "mattes": two frames; the first holds a small disc on the left and a large one on the right, the
    second only the large one. Their boxes carry the labels "small" and "large"."""
    small, large = (disc(HEIGHT, WIDTH, *where) for where in (LEFT, RIGHT))
    frames = torch.cat([disc_picture(torch.maximum(small, large)), disc_picture(large)])

    def box(x, y, radius, label, score):
        reach = radius + 4
        return {"x": x - reach, "y": y - reach, "width": 2 * reach, "height": 2 * reach, "label": label, "score": score}

    written = [[box(*LEFT, "small", 0.6), box(*RIGHT, "large", 0.9)], [box(*RIGHT, "large", 0.9)]]
    return {
        "image": node(tensors(frames)),
        "prompt": boxes(str(written)),
        "mattes": node("MAM_MatteWithoutModels", image=("image", 0), prompt=("prompt", 0), method="none"),
    }


def select(by: str, invert: bool = False, **settings) -> dict:
    """Node "kept" on the node "mattes", and "shown"."""
    inputs = {"by": by, **{f"by.{name}": value for name, value in settings.items()}, "invert": invert}
    return {
        "kept": node("MAM_SelectInstances", instance_alphas=("mattes", 1), instances=("mattes", 2), **inputs),
        "shown": node("MaskPreview", mask=("kept", 0)),
    }


def kept_in(run) -> list[tuple[int, int, bool]]:
    """(frame, index, found) of each kept instance."""
    return [(entry.frame, entry.index, entry.found) for entry in run.output("kept", 2).entries]


@pytest.mark.parametrize(
    "by, settings, expected",
    [
        ("index", {"index": "1"}, [(0, 1, True), (1, 0, False)]),
        ("index", {"index": "0-1"}, [(0, 0, True), (0, 1, True), (1, 0, True)]),
        ("label", {"label": "LARGE"}, [(0, 1, True), (1, 0, True)]),
        ("score", {"lowest_score": 0.8}, [(0, 1, True), (1, 0, True)]),
        ("area", {"smallest_percent": 0.0, "largest_percent": 15.0}, [(0, 0, True), (1, 0, False)]),
        ("point", {"x": LEFT[0], "y": LEFT[1]}, [(0, 0, True), (1, 0, False)]),
        ("position", {"position": "left", "count": 1}, [(0, 0, True), (1, 0, True)]),
        ("position", {"position": "largest", "count": 1}, [(0, 1, True), (1, 0, True)]),
        ("position", {"position": "right", "count": 2}, [(0, 0, True), (0, 1, True), (1, 0, True)]),
    ],
)
def test_subjects_are_chosen_by_what_the_user_says_and_keep_frame_and_number(comfy, two_discs, by, settings, expected):
    run = comfy.run({**two_discs, **select(by, **settings)})
    assert run.ok, run.error
    assert kept_in(run) == expected
    alphas = run.output("kept", 1)
    assert len(alphas) == len(expected)
    for alpha, (_, _, found) in zip(alphas, expected):
        assert bool((alpha > 0).any()) == found


def test_inverting_keeps_the_others(comfy, two_discs):
    run = comfy.run({**two_discs, **select("label", invert=True, label="large")})
    assert kept_in(run) == [(0, 0, True), (1, 0, False)]


def test_one_matte_per_frame_comes_out_however_many_are_kept(comfy, two_discs):
    run = comfy.run({**two_discs, **select("index", index="0, 1")})
    frames, alphas = run.output("kept", 0), run.output("kept", 1)
    assert frames.shape == (2, HEIGHT, WIDTH)
    torch.testing.assert_close(frames[0], alphas[0] + alphas[1])


def test_both_outputs_are_one_tensor_where_one_matte_per_frame_is_kept(comfy, two_discs):
    """ComfyUI keeps every output in memory."""
    for position, count in (("largest", 1), ("right", 2)):
        run = comfy.run({**two_discs, **select("position", position=position, count=count)})
        assert (run.output("kept", 0) is run.output("kept", 1)) == (count == 1)
        assert torch.equal(run.output("kept", 0)[1], run.output("kept", 1)[-1])


def test_words_where_numbers_belong_are_named_in_the_error(comfy, two_discs):
    run = comfy.run({**two_discs, **select("index", index="first")})
    assert not run.ok and '"first"' in run.error


def test_crossed_areas_are_refused_instead_of_keeping_nothing(comfy, two_discs):
    run = comfy.run({**two_discs, **select("area", smallest_percent=20.0, largest_percent=10.0)})
    assert run.failed_node == "kept"
    assert "20 per cent of the picture, is above the largest, 10 per cent" in run.error


def test_a_way_of_choosing_that_there_is_not_is_told_which_there_are(comfy, two_discs):
    run = comfy.run({**two_discs, **select("colour")})
    assert not run.ok and "position, index, label, score, area, point" in run.error


def test_a_way_of_choosing_that_another_node_writes_is_refused_in_words(comfy, two_discs):
    graph = {**two_discs, "way": node("PrimitiveString", value="label"), **select("label", label="dog")}
    graph["kept"]["inputs"]["by"] = ["way", 0]
    run = comfy.run(graph)
    assert not run.ok and "chosen on the node" in run.error


@pytest.mark.parametrize(
    "node_id, name, settings",
    [
        ("MAM_SelectInstances", "instance_alphas", {"by": "index", "by.index": "0"}),
        ("MAM_MergeInstances", "instance_alphas", {"merge": "same label"}),
        ("MAM_PreviewMatte", "alpha", {"image": ("image", 0)}),
    ],
)
def test_mattes_that_do_not_belong_to_the_index_are_refused(comfy, two_discs, node_id, name, settings):
    result = node(node_id, **{name: ("mattes", 0)}, instances=("mattes", 2), **settings)
    run = comfy.run({**two_discs, "result": result, "see": node("PreviewAny", source=("result", 0))})
    assert not run.ok and "2 mattes" in run.error and "3 instances" in run.error


@pytest.mark.parametrize(
    "merge, expected", [("all of a frame", [(0, 0), (1, 0)]), ("same label", [(0, 0), (0, 1), (1, 0)])]
)
def test_merging_joins_a_frame_or_a_name(comfy, two_discs, merge, expected):
    merged = node("MAM_MergeInstances", instance_alphas=("mattes", 1), instances=("mattes", 2), merge=merge)
    run = comfy.run({**two_discs, "merged": merged, "shown": node("MaskPreview", mask=("merged", 0))})
    assert run.ok, run.error
    assert [(entry.frame, entry.index) for entry in run.output("merged", 2).entries] == expected
    torch.testing.assert_close(run.output("merged", 0), run.output("mattes", 0))


def test_a_contact_sheet_captions_every_instance(comfy, two_discs):
    sheet = node(
        "MAM_PreviewMatte",
        image=("image", 0),
        alpha=("mattes", 1),
        instances=("mattes", 2),
        layout="contact sheet",
    )
    run = comfy.run({**two_discs, "sheet": sheet})
    assert run.ok, run.error
    shown = run.output("sheet")
    assert len(shown) == 1
    # Three cells with their captions are taller and wider than one picture.
    assert shown.shape[1] > HEIGHT + 16 and shown.shape[2] >= WIDTH


@pytest.mark.parametrize("guidance_mode", ["mask", "alpha"])
def test_the_semantic_matte_of_one_target_is_its_matte(comfy, tensors, tiny_sam, tiny_m2m, guidance_mode):
    graph = {
        "image": node(tensors(pictures(2))),
        "prompt": boxes("6 5 40 30"),
        **loaders(tiny_sam, tiny_m2m),
        **steps(guidance_mode=guidance_mode),
        "semantic": node(
            "MAM_SemanticMatte",
            m2m=("m2m", 0),
            embedding=("embedding", 0),
            guidance=("guidance", 0),
            guidance_mode=guidance_mode,
        ),
        "seen": node("MaskPreview", mask=("semantic", 0)),
    }
    run = comfy.run(graph)
    assert run.ok, run.error
    torch.testing.assert_close(run.output("semantic"), run.output("merged"), atol=2e-5, rtol=0)


def test_the_semantic_matte_shows_mask_to_matte_the_united_masks(comfy, tensors, tiny_sam, tiny_m2m, monkeypatch):
    matting = comfy.module("mam_model.matting")
    seen = []
    matte = matting.matte_targets
    monkeypatch.setattr(matting, "matte_targets", lambda m, e, g, *rest: seen.append(g) or matte(m, e, g, *rest))
    graph = {
        "image": node(tensors(pictures(1))),
        "prompt": boxes("2 2 20 40\n30 5 60 40"),
        **loaders(tiny_sam, tiny_m2m),
        **steps(),
        "semantic": node("MAM_SemanticMatte", m2m=("m2m", 0), embedding=("embedding", 0), guidance=("guidance", 0)),
        "seen": node("MaskPreview", mask=("semantic", 0)),
    }
    run = comfy.run(graph)
    assert run.ok, run.error
    apart = run.output("guidance", 0)[0]
    assert len(apart) == 2 and len(seen) == 1 and len(seen[0]) == 1
    assert torch.equal(seen[0].network_mask[0], apart.network_mask.amax(dim=0))
    assert run.output("semantic").shape == (1, 48, 64)
