"""Rough masks and coarse mattes become fine ones: by the network that comes with the pack, and by native detail."""

from __future__ import annotations

import pytest
import torch

from .graphs import (
    boxes,
    count_calls,
    disc,
    disc_picture,
    loaders,
    models_in_memory,
    node,
    pictures,
    points,
    steps,
    whole,
    without_models,
)

TRUE = disc(90, 120, 62, 44, 24)
HARD = (TRUE > 0.5).float()[None]
SHOWN = {"shown": node("MaskPreview", mask=("alpha", 0))}


@pytest.fixture
def refined(comfy, tensors):
    """`refined(image, mask, ...)` -> the run of Refine Mask on [B, H, W, 3] and [B, H, W]."""

    def run(image: torch.Tensor, mask: torch.Tensor, interrupt_after: int | None = None, **settings):
        links = {"image": ("image", 0), "mask": ("mask", 0)}
        graph = {
            "image": node(tensors(image)),
            "mask": node(tensors(mask)),
            "alpha": node("MAM_RefineMask", **links, **settings),
        }
        return comfy.run(graph | SHOWN, interrupt_after=interrupt_after)

    return run


def alpha_of(run) -> torch.Tensor:
    assert run.ok, run.error
    return run.output("alpha").clone()


def error(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found - true).abs().mean())


def test_a_hard_mask_gets_the_soft_edge_of_the_picture(refined):
    soft = torch.nn.functional.avg_pool2d(TRUE[None, None], 7, 1, 3)[0, 0]
    hard = (soft > 0.5).float()
    alpha = alpha_of(refined(disc_picture(soft), hard[None]))
    assert alpha.shape == (1, 90, 120)
    assert error(alpha[0], soft) < 0.7 * error(hard, soft)


def test_a_mask_that_is_some_pixels_off_is_moved_to_the_edge_of_the_picture(refined):
    shifted = HARD.roll((3, -4), (1, 2))
    alpha = alpha_of(refined(disc_picture(TRUE), shifted))
    assert error(alpha[0], TRUE) < 0.5 * error(shifted[0], TRUE)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_empty_or_full_mask_comes_back_as_it_is(refined, value):
    even = torch.full((1, 40, 50), value)
    assert torch.equal(alpha_of(refined(pictures(1, 40, 50), even)), even)


def test_one_mask_serves_every_picture_and_the_frames_keep_their_order(refined):
    image = torch.cat((disc_picture(TRUE), pictures(1, 90, 120), disc_picture(TRUE)))
    alphas = alpha_of(refined(image, HARD))
    assert alphas.shape == (3, 90, 120)
    assert torch.equal(alphas[0], alphas[2]) and not torch.equal(alphas[0], alphas[1])
    assert torch.equal(alphas[1:2], alpha_of(refined(image[1:2], HARD)))


def test_one_picture_serves_every_mask(refined):
    masks = torch.cat((torch.zeros_like(HARD), HARD))
    alphas = alpha_of(refined(disc_picture(TRUE), masks))
    assert len(alphas) == 2 and not alphas[0].any() and alphas[1].any()


@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (17, 5)])
def test_tiny_pictures_have_mattes_too(refined, height, width):
    mask = torch.zeros(1, height, width)
    mask[:, : height // 2 + 1, : width // 2 + 1] = 1
    alpha = alpha_of(refined(pictures(1, height, width), mask))
    assert alpha.shape == mask.shape and torch.isfinite(alpha).all()


def test_within_its_reach_the_matte_may_differ_and_beyond_it_is_the_mask(refined):
    shifted = HARD.roll((6, -8), (1, 2))
    near, free = (alpha_of(refined(disc_picture(TRUE), shifted, reach=reach))[0] for reach in (2, 0))
    inside, outside = disc(90, 120, 54, 50, 24 - 4) == 1, disc(90, 120, 54, 50, 24 + 4) == 0
    assert (near[inside] == 1).all() and (near[outside] == 0).all()
    assert error(free, TRUE) < error(near, TRUE)


def test_a_mask_of_another_size_is_refused_with_both_sizes(refined):
    run = refined(torch.rand(1, 40, 50, 3), torch.rand(1, 30, 20))
    assert not run.ok and "20 x 30" in run.error and "50 x 40" in run.error


def test_batches_that_do_not_fit_are_refused_with_both_counts(refined):
    run = refined(torch.rand(3, 20, 20, 3), torch.rand(2, 20, 20))
    assert not run.ok and "3 frames of image but 2 of mask" in run.error


def test_a_picture_with_values_that_are_no_numbers_is_refused(refined):
    image = disc_picture(TRUE)
    image[0, 40, 60] = torch.nan
    run = refined(image, HARD)
    assert run.failed_node == "alpha" and "not numbers" in run.error


def test_a_large_picture_shows_progress_tile_by_tile_and_can_be_cancelled_between_them(refined, comfy, monkeypatch):
    monkeypatch.setattr(comfy.module("mam_model.refiner"), "TILE_PX", 64)
    true = disc(200, 260, 130, 100, 70)
    run = refined(disc_picture(true), (true > 0.5).float()[None])
    assert run.ok, run.error
    values = [value for step, value, _ in run.progress if step == "alpha"]
    assert len(values) > 8 and values == sorted(values) and values[-1] == 100
    run = refined(disc_picture(true) * 0.9, (true > 0.5).float()[None], interrupt_after=2)
    assert run.interrupted and run.failed_node == "alpha"


def test_without_sam_the_refiner_is_cancelled_between_the_tiles_of_a_picture(comfy, tensors, monkeypatch):
    refiner = comfy.module("mam_model.refiner")
    monkeypatch.setattr(refiner, "TILE_PX", 64)
    forward, tiles = refiner.MaskRefiner.forward, []

    def cancelled_in_the_first(self, *args):
        tiles.append(1)
        comfy._nodes.interrupt_processing()
        return forward(self, *args)

    monkeypatch.setattr(refiner.MaskRefiner, "forward", cancelled_in_the_first)
    true = disc(200, 260, 130, 100, 70)
    graph = {
        "image": node(tensors(disc_picture(true))),
        "mask": node(tensors((true > 0.5).float()[None])),
        "alpha": node("MAM_MatteWithoutModels", image=("image", 0), mask=("mask", 0), method="refiner"),
    }
    run = comfy.run(graph | SHOWN)
    assert run.interrupted and run.failed_node == "alpha" and len(tiles) == 1


def test_when_the_memory_is_full_smaller_tiles_are_tried(refined, comfy, monkeypatch):
    refiner = comfy.module("mam_model.refiner")
    refine, sides = refiner.refine_mask, []

    def short_of_memory(*args, tile_px, **options):
        sides.append(tile_px)
        if tile_px > 256:
            raise torch.OutOfMemoryError("no memory")
        return refine(*args, tile_px=tile_px, **options)

    monkeypatch.setattr(refiner, "refine_mask", short_of_memory)
    alpha = alpha_of(refined(disc_picture(TRUE), HARD))
    assert sides == [1024, 512, 256] and alpha.any()


def test_without_its_weights_one_sentence_says_what_to_do(refined, comfy, monkeypatch, tmp_path):
    monkeypatch.setattr(comfy.module("mam_model.refiner"), "SHIPPED_WEIGHTS", tmp_path / "refiner.safetensors")
    run = refined(disc_picture(TRUE), HARD)
    assert run.failed_node == "alpha"
    assert run.error.count("\n") == 0 and "Install the pack anew" in run.error


def test_all_nodes_of_a_workflow_share_one_network_that_comfyui_manages(comfy, tensors, monkeypatch):
    loads = count_calls(monkeypatch, comfy.module("mam_model.refiner"), "load_refiner")
    refiner = comfy.module("nodes.models").shared_refiner()
    links = {"image": ("image", 0), "mask": ("mask", 0)}
    graph = {
        "image": node(tensors(disc_picture(TRUE))),
        "mask": node(tensors(HARD)),
        "alpha": node("MAM_RefineMask", **links),
        "near": node("MAM_RefineMask", **links, reach=3),
        "mattes": node("MAM_MatteWithoutModels", **links, method="refiner"),
        "shown near": node("MaskPreview", mask=("near", 0)),
        "shown mattes": node("MaskPreview", mask=("mattes", 0)),
    }
    run = comfy.run(graph | SHOWN)
    assert run.ok, run.error
    assert len(loads) == 1 and models_in_memory(comfy) == [refiner]
    assert refiner.patcher in [loaded.model for loaded in comfy._mm.current_loaded_models]


def test_the_node_shows_its_mattes(refined):
    run = refined(disc_picture(TRUE).expand(3, -1, -1, -1), HARD)
    assert run.ok, run.error
    assert len(run.ui["alpha"]["images"]) == 3


@pytest.mark.parametrize(
    "prompt",
    [boxes("34 16 90 72"), points("62 44", "10 10\n110 80"), node("MAM_PromptMask", mask=("rough", 0))],
    ids=["box", "points", "mask"],
)
def test_the_refiner_finds_the_edge_of_what_was_cut_out_without_models(comfy, tensors, prompt):
    graph = {"image": node(tensors(disc_picture(TRUE))), "prompt": prompt, "rough": node(tensors(HARD))}
    run = comfy.run({**graph, **without_models("refiner", prompt=("prompt", 0))})
    assert run.ok, run.error
    assert error(run.output("mattes")[0], TRUE) < 0.02


WIDE = pictures(2, 40, 1300)


def in_detail(detail: str, warm_models, whole_node: bool) -> dict:
    sam, m2m = (model.name for model in warm_models)
    graph = {**loaders(sam, m2m), "prompt": boxes("300 4 900 36")}
    if whole_node:
        return {**graph, **whole(detail=detail)}
    return {**graph, **steps(detail=detail, image=("image", 0))}


def test_native_detail_changes_large_pictures_alone_and_both_ways_agree(comfy, tensors, warm_models):
    found = {}
    for size, image in (("large", WIDE), ("small", WIDE[:, :, ::2])):
        for detail in ("1024", "native"):
            image_node = {"image": node(tensors(image))}
            run = comfy.run(image_node | in_detail(detail, warm_models, whole_node=True))
            assert run.ok, run.error
            found[size, detail] = run.output("mattes").clone()
            run = comfy.run(image_node | in_detail(detail, warm_models, whole_node=False))
            assert run.ok, run.error
            assert (run.output("merged") - found[size, detail]).abs().mean() < 1e-3
    assert torch.equal(found["small", "native"], found["small", "1024"])
    assert not torch.equal(found["large", "native"], found["large", "1024"])
    assert found["large", "native"].shape == (2, 40, 1300)


def test_each_frame_gains_the_detail_of_its_own_picture(comfy, tensors, warm_models, monkeypatch):
    seen = []

    def sharpen(picture, alphas, prompts, **_):
        seen.append(picture)
        return alphas

    monkeypatch.setattr(comfy.module("nodes.mattes"), "sharpen_targets", sharpen)
    run = comfy.run({"image": node(tensors(WIDE))} | in_detail("native", warm_models, whole_node=True))
    assert run.ok, run.error
    assert [torch.equal(picture, frame) for picture, frame in zip(seen, WIDE)] == [True, True]


def test_native_detail_without_the_picture_says_what_to_connect(comfy, tensors, warm_models):
    graph = {"image": node(tensors(WIDE))} | in_detail("native", warm_models, whole_node=False)
    del graph["merged"]["inputs"]["image"]
    run = comfy.run(graph)
    assert run.failed_node == "merged" and "connect the image" in run.error


def test_native_detail_from_another_picture_is_refused_with_both_sizes(comfy, tensors, warm_models):
    graph = {"image": node(tensors(WIDE))} | in_detail("native", warm_models, whole_node=False)
    graph["other"] = node(tensors(pictures(1, 30, 50)))
    graph["merged"]["inputs"]["image"] = ("other", 0)
    run = comfy.run(graph)
    assert run.failed_node == "merged" and "1300 x 40" in run.error and "50 x 30" in run.error
