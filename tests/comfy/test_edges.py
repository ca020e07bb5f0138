"""The edge nodes in ComfyUI: controls, trimaps, refinement and foreground colour, for batches and with clear errors."""

from __future__ import annotations

import pytest
import torch

from .graphs import boxes, count_calls, disc, disc_picture, node, without_models

SHOWN = {"shown": node("MaskPreview", mask=("result", 0))}


@pytest.fixture
def adjusted(comfy, tensors):
    """`adjusted(alpha, **controls)` -> what Adjust Matte Edge makes of [H, W] or [B, H, W]."""

    def run(alpha: torch.Tensor, **controls) -> torch.Tensor:
        alpha = alpha if alpha.ndim == 3 else alpha[None]
        graph = {"alpha": node(tensors(alpha)), "result": node("MAM_EdgeAdjust", alpha=("alpha", 0), **controls)}
        done = comfy.run(graph | SHOWN)
        assert done.ok, done.error
        return done.output("result").clone()

    return run


@pytest.fixture
def trimap_of(comfy, tensors):
    """`trimap_of(mask, **settings)` -> what Make Trimap makes of [B, H, W]."""

    def run(mask: torch.Tensor, **settings) -> torch.Tensor:
        graph = {"mask": node(tensors(mask)), "result": node("MAM_Trimap", mask=("mask", 0), **settings)}
        done = comfy.run(graph | SHOWN)
        assert done.ok, done.error
        return done.output("result").clone()

    return run


@pytest.fixture
def refined(comfy, tensors):
    """`refined(image, trimap, ...)` -> the run of Refine with Trimap on [B, H, W, 3] and [B, H, W]."""

    def run(image: torch.Tensor, trimap: torch.Tensor, **settings):
        links = {"image": ("image", 0), "trimap": ("trimap", 0)}
        graph = {
            "image": node(tensors(image)),
            "trimap": node(tensors(trimap)),
            "result": node("MAM_RefineWithTrimap", **links, **settings),
        }
        return comfy.run(graph | SHOWN)

    return run


@pytest.fixture
def recolored(comfy, tensors):
    """`recolored(image, alpha, background=None, ...)` -> the run of Foreground Color."""

    def run(image: torch.Tensor, alpha: torch.Tensor, background: torch.Tensor | None = None, **settings):
        graph = {
            "image": node(tensors(image)),
            "alpha": node(tensors(alpha)),
            "result": node("MAM_ForegroundColor", image=("image", 0), alpha=("alpha", 0), **settings),
            "shown": node("PreviewImage", images=("result", 0)),
        }
        if background is not None:
            graph["background"] = node(tensors(background))
            graph["result"]["inputs"]["background"] = ("background", 0)
        return comfy.run(graph)

    return run


def row(*values: float, height: int = 9) -> torch.Tensor:
    """A mask whose rows all hold these values."""
    return torch.tensor(values, dtype=torch.float32).expand(height, len(values)).clone()


def test_the_defaults_change_nothing(adjusted):
    alpha = torch.rand(2, 12, 15)
    assert torch.equal(adjusted(alpha), alpha)


def test_shifting_moves_the_edge_out_or_in(adjusted):
    alpha = row(0, 0, 0, 0, 1, 1, 1, 1)
    assert torch.equal(adjusted(alpha, shift_px=2.0)[0], row(0, 0, 1, 1, 1, 1, 1, 1))
    assert torch.equal(adjusted(alpha, shift_px=-2.0)[0], row(0, 0, 0, 0, 0, 0, 1, 1))


def test_a_large_shift_is_cancelled_within_a_frame(comfy, tensors):
    alpha = torch.rand(1, 1200, 40)
    graph = {"alpha": node(tensors(alpha)), "result": node("MAM_EdgeAdjust", alpha=("alpha", 0), shift_px=50.5)}
    run = comfy.run(graph | SHOWN)
    values = [value for step, value, _ in run.progress if step == "result"]
    assert run.ok and len(values) > 2
    assert values == sorted(values) and 0 < values[0] < values[-1] == 100
    run = comfy.run(graph | SHOWN | {"alpha": node(tensors(alpha / 2))}, interrupt_after=1)
    assert run.interrupted and run.failed_node == "result"


def test_feathering_softens_the_edge_evenly(adjusted):
    edge = adjusted(row(*[0] * 10, *[1] * 10), feather_px=2.0)[0, 4]
    assert 0.3 < edge[9] < 0.5 < edge[10] < 0.7
    assert (edge.diff() >= 0).all() and edge[0] < 0.01 and edge[19] > 0.99


def test_contrast_steepens_the_edge_about_its_middle(adjusted):
    alpha = row(0, 0.2, 0.4, 0.6, 0.8, 1)
    half = adjusted(alpha, contrast=0.5)[0, 0]
    torch.testing.assert_close(half, torch.tensor([0, 0, 0.3, 0.7, 1, 1]))
    assert adjusted(alpha, contrast=1.0)[0, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_the_black_point_takes_haze_away_and_the_white_point_makes_the_body_solid(adjusted):
    alpha = row(0.1, 0.2, 0.5, 0.8, 0.9)
    points = adjusted(alpha, black_point=0.2, white_point=0.8)[0, 0]
    torch.testing.assert_close(points, torch.tensor([0, 0, 0.5, 1, 1]))


def test_holes_and_specks_up_to_the_area_given_disappear(adjusted):
    alpha = torch.zeros(30, 40)
    alpha[5:25, 5:25] = 1
    alpha[10:12, 10:12] = 0
    alpha[15:18, 15:18] = 0
    alpha[10:12, 30:32] = 1
    filled = adjusted(alpha, fill_holes_px=4)[0]
    assert filled[10, 10] == 1 and filled[16, 16] == 0 and filled[10, 30] == 1
    cleared = adjusted(alpha, remove_specks_px=4)[0]
    assert cleared[10, 30] == 0 and cleared[10, 10] == 0 and cleared[6, 6] == 1


def test_crossed_black_and_white_points_are_refused_with_both_values(comfy, tensors):
    points = node("MAM_EdgeAdjust", alpha=("alpha", 0), black_point=0.6, white_point=0.5)
    run = comfy.run({"alpha": node(tensors(torch.rand(1, 8, 8))), "result": points} | SHOWN)
    assert not run.ok and "0.6" in run.error and "0.5" in run.error


def test_another_edge_setting_runs_no_matting_again(comfy, tensors, monkeypatch):
    alpha = disc(48, 64, 32, 24, 14)
    classical = comfy.module("mam_model.classical")
    calls = count_calls(monkeypatch, classical, "matte_without_models")
    image = tensors(disc_picture(alpha))

    def graph(shift: float) -> dict:
        return {
            "image": node(image),
            "prompt": boxes("15 7 49 41"),
            **without_models(prompt=("prompt", 0)),
            "result": node("MAM_EdgeAdjust", alpha=("mattes", 0), shift_px=shift),
            "shown": node("MaskPreview", mask=("result", 0)),
        }

    first = comfy.run(graph(0.0))
    assert first.ok, first.error
    assert len(calls) == 1
    second = comfy.run(graph(3.0))
    assert second.ok, second.error
    assert len(calls) == 1 and set(second.executed) == {"result", "shown"}


def test_progress_moves_with_every_frame_however_little_there_is_to_do(comfy, tensors):
    graph = {"alpha": node(tensors(torch.rand(2, 8, 9))), "result": node("MAM_EdgeAdjust", alpha=("alpha", 0))}
    run = comfy.run(graph | SHOWN)
    assert {(value, total) for step, value, total in run.progress if step == "result"} == {(100, 200), (200, 200)}


def test_the_node_shows_a_grey_picture_of_each_frame(comfy, tensors):
    graph = {
        "alpha": node(tensors(torch.rand(3, 8, 9))),
        "result": node("MAM_EdgeAdjust", alpha=("alpha", 0), feather_px=1.0),
    }
    run = comfy.run(graph | SHOWN)
    assert run.ok, run.error
    assert len(run.ui["result"]["images"]) == 3


def test_a_trimap_has_the_widths_given_in_pixels(trimap_of):
    mask = row(*[0] * 20, *[1] * 20)[None]
    trimap = trimap_of(mask, band="even", inner=5.0, outer=3.0, unit="pixels")
    assert torch.equal(trimap[0], row(*[0] * 17, *[0.5] * 8, *[1] * 15))


def test_per_cent_are_of_the_longer_side(trimap_of):
    mask = row(*[0] * 50, *[1] * 50)[None]
    expected = row(*[0] * 40, *[0.5] * 15, *[1] * 45)
    for given, trimap in ((mask, expected), (mask.mT, expected.T)):
        made = trimap_of(given.contiguous(), band="even", inner=5.0, outer=10.0, unit="per cent")
        assert torch.equal(made[0], trimap)


def test_an_adaptive_trimap_is_wider_where_the_matte_is_softer(trimap_of):
    hard, soft = [0] * 40 + [1] * 40, [0] * 30 + [0.5] * 20 + [1] * 30
    mask = torch.cat((row(*hard, height=60), row(*soft, height=60)))[None]
    trimap = trimap_of(mask, band="adaptive", inner=8.0, outer=8.0, unit="pixels")[0]
    assert (trimap[5] == 0.5).sum() == 4, "a quarter of the width on each side of the hard edge"
    assert (trimap[-5] == 0.5).sum() == 20 + 16, "the soft region and the full width on each side"


def test_every_mask_of_a_batch_gets_its_own_trimap(trimap_of):
    masks = torch.stack((disc(30, 40, 20, 15, 8), torch.zeros(30, 40), torch.ones(30, 40)))
    trimaps = trimap_of(masks, band="even", inner=3.0, outer=3.0, unit="pixels")
    assert (trimaps[0] == 0.5).any() and torch.equal(trimaps[1:], masks[1:])


@pytest.mark.parametrize("method, error", [("closed-form", 0.02), ("knn", 0.1)])
def test_refining_finds_the_soft_edge_inside_the_band(comfy, refined, method, error):
    pytest.importorskip("pymatting", reason="PyMatting is not installed")
    truth = disc(48, 64, 32, 24, 14)
    trimap = torch.where((truth > 0) & (truth < 1), 0.5, truth)
    trimap[20:28, 44:50] = 0.5
    run = refined(disc_picture(truth), trimap[None], method=method)
    assert run.ok, run.error
    alpha = run.output("result")[0]
    band = trimap == 0.5
    assert torch.equal(alpha[~band], truth[~band])
    assert (alpha - truth)[band].abs().mean() < error < (trimap - truth)[band].abs().mean()
    solve_trimap = comfy.module("mam_model.trimap_matting").solve_trimap
    assert torch.equal(alpha, solve_trimap(disc_picture(truth)[0], trimap, method=method))


def test_one_trimap_serves_every_picture_and_the_frames_keep_their_order(refined):
    pytest.importorskip("pymatting", reason="PyMatting is not installed")
    truth = disc(40, 48, 24, 20, 12)
    trimap = torch.where((truth > 0) & (truth < 1), 0.5, truth)
    image = disc_picture(truth)
    run = refined(torch.cat((image, 1 - image, 0.5 * image)), trimap[None])
    assert run.ok, run.error
    assert (run.output("result") - truth).abs().max() < 0.05


def test_a_trimap_without_sure_subject_says_so_and_names_the_frame(refined):
    truth = disc(40, 48, 24, 20, 12)
    trimap = torch.where((truth > 0) & (truth < 1), 0.5, truth)
    swallowed = torch.where(truth > 0, 0.5, 0.0)
    run = refined(disc_picture(truth), torch.stack((torch.zeros(40, 48), swallowed, trimap)))
    assert not run.ok
    assert "Frame 1" in run.error and "no sure subject" in run.error and "narrower on the inside" in run.error


def test_a_trimap_of_another_size_is_refused_with_both_sizes(refined):
    run = refined(torch.rand(1, 40, 50, 3), torch.rand(1, 30, 20))
    assert not run.ok and "20 x 30" in run.error and "50 x 40" in run.error


def half_green() -> tuple[torch.Tensor, torch.Tensor]:
    """A white square with a rim of alpha 0.5 on a green screen, [1, 48, 48, 3], and its matte."""
    alpha = torch.zeros(1, 48, 48)
    alpha[:, 8:40, 8:40] = 0.5
    alpha[:, 14:34, 14:34] = 1
    return alpha[..., None] + (1 - alpha[..., None]) * torch.tensor([0.0, 1.0, 0.0]), alpha


def test_white_hair_on_green_comes_back_white_and_the_screen_green(recolored):
    image, alpha = half_green()
    run = recolored(image, alpha)
    assert run.ok, run.error
    assert run.output("result", 0)[alpha == 0.5].min() > 0.95
    behind = run.output("result", 1)[alpha == 0.5]
    assert behind[:, 1].min() > 0.95 and behind[:, (0, 2)].max() < 0.05


def test_a_known_background_makes_the_colour_exact(recolored):
    alpha = torch.full((1, 32, 32), 0.5)
    background = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(1))
    subject = torch.tensor([0.8, 0.3, 0.1])
    image = 0.5 * subject + 0.5 * background
    blind = recolored(image, alpha)
    assert blind.ok, blind.error
    blind_error = (blind.output("result") - subject).abs().mean()
    told = recolored(image, alpha, background)
    assert told.ok, told.error
    assert (told.output("result") - subject).abs().mean() < 0.01 < 0.1 * blind_error
    assert torch.equal(told.output("result", 1), background)


@pytest.mark.parametrize("choice, value", [("black", 0.0), ("neutral grey", 0.5)])
def test_a_chosen_colour_fills_what_is_clear_and_nothing_else(recolored, choice, value):
    image, alpha = half_green()
    estimated = recolored(image, alpha).output("result").clone()
    filled = recolored(image, alpha, where_clear=choice).output("result")
    assert (filled[alpha == 0] == value).all()
    assert torch.equal(filled[alpha > 0], estimated[alpha > 0])
    assert not (estimated[alpha == 0] == value).all()


def test_one_matte_and_one_background_serve_a_clip(recolored):
    image, alpha = half_green()
    clip = torch.cat((image, image * 0.5))
    run = recolored(clip, alpha, torch.tensor([0.0, 1.0, 0.0]).expand(1, 48, 48, 3).clone())
    assert run.ok, run.error
    assert run.output("result", 0).shape == run.output("result", 1).shape == clip.shape
    assert not torch.equal(run.output("result", 0)[0], run.output("result", 0)[1])


def test_a_matte_or_a_background_of_another_size_is_refused_with_both_sizes(recolored):
    image, alpha = half_green()
    run = recolored(image, torch.rand(1, 30, 20))
    assert not run.ok and "20 x 30" in run.error and "48 x 48" in run.error
    run = recolored(image, alpha, torch.rand(1, 30, 20, 3))
    assert not run.ok and "20 x 30" in run.error and "48 x 48" in run.error


def test_colours_that_do_not_fit_on_the_graphics_card_are_estimated_on_the_processor(
    comfy, recolored, monkeypatch, said
):
    image, alpha = torch.rand(1, 20, 30, 3), torch.rand(1, 20, 30)
    usual = recolored(image, alpha).output("result").clone()
    comfy.reset()
    foreground = comfy.module("mam_model.foreground")
    estimate, asked = foreground.estimate_foreground, []

    def full_at_first(*args, **kwargs):
        asked.append(args)
        if len(asked) == 1:
            raise torch.cuda.OutOfMemoryError("full")
        return estimate(*args, **kwargs)

    monkeypatch.setattr(foreground, "estimate_foreground", full_at_first)
    run = recolored(image, alpha)
    assert run.ok, run.error
    torch.testing.assert_close(run.output("result"), usual)
    assert len(said()) == 1 and "on the processor" in said()[0]
