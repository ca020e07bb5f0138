"""The engine without weights: on a picture whose matte is known, every kind of prompt leads to it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from .graphs import boxes, disc, disc_picture, node, pictures, points, without_models

TRUE = disc(90, 120, 62, 44, 24)


def strokes(x0: int, y0: int, x1: int, y1: int) -> torch.Tensor:
    drawn = torch.zeros(1, 90, 120)
    drawn[:, y0:y1, x0:x1] = 1
    return drawn


@pytest.fixture
def error_of(comfy, tensors):
    """`error_of(prompt, masks, settings)`: mean absolute error of the disc's matte."""

    def run(prompt: dict | None = None, masks: dict | None = None, **settings) -> float:
        graph = {"image": node(tensors(disc_picture(TRUE)))}
        graph |= {name: node(tensors(mask)) for name, mask in (masks or {}).items()}
        if prompt:
            graph["prompt"] = prompt
            settings["prompt"] = ("prompt", 0)
        finished = comfy.run({**graph, **without_models(**settings)})
        assert finished.ok, finished.error
        alpha = finished.output("mattes")
        assert alpha.shape == (1, 90, 120)
        return float((alpha[0] - TRUE).abs().mean())

    return run


ROUGH = (TRUE > 0.5).float().roll((2, -3), (0, 1))[None]
PROMPTS = {
    "a box": (boxes("34 16 90 72"), {}),
    "points": (points("62 44", "10 10\n110 80"), {}),
    "strokes": (
        node("MAM_PromptMask", foreground_strokes=("on", 0), background_strokes=("off", 0)),
        {"on": strokes(50, 40, 74, 46), "off": strokes(4, 4, 116, 10)},
    ),
    "a mask": (node("MAM_PromptMask", mask=("rough", 0), use_mask_as="hint"), {"rough": ROUGH}),
}


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("method", ["closed-form", "knn", "none"])
def test_every_prompt_leads_to_the_known_matte(error_of, prompt, method):
    asked, masks = PROMPTS[prompt]
    assert error_of(asked, masks, method=method) < 0.02


def test_the_error_of_a_wrong_matte_would_be_seen():
    assert TRUE.mean() > 0.1
    assert (TRUE - TRUE.roll(6, 1)).abs().mean() > 0.02


def test_a_rough_mask_needs_no_prompt_node(error_of):
    assert error_of(masks={"rough": ROUGH}, mask=("rough", 0)) < 0.02


def test_a_mask_beside_strokes_stays_a_rough_one(error_of):
    """The picture decides where the mask is wrong, also when strokes come along."""
    far_off = (TRUE > 0.5).float().roll((4, -6), (0, 1))[None]
    asked = node("MAM_PromptMask", foreground_strokes=("on", 0))
    masks = {"on": strokes(50, 40, 74, 46), "rough": far_off}
    assert error_of(asked, masks, mask=("rough", 0)) < 0.02


def test_a_wider_band_makes_a_wider_edge(comfy, tensors):
    noise = torch.rand(1, 90, 120, 3, generator=torch.Generator().manual_seed(0))
    soft = (0.7 * disc_picture(disc(90, 120, 62, 44, 24)) + 0.3 * noise).clamp(0, 1)

    def unsure(band: float) -> int:
        graph = {"image": node(tensors(soft)), "mask": node(tensors((TRUE > 0.5).float()[None]))}
        graph["prompt"] = node("MAM_PromptMask", mask=("mask", 0))
        run = comfy.run({**graph, **without_models(prompt=("prompt", 0), band=band)})
        alpha = run.output("mattes")
        return int(((alpha > 0.02) & (alpha < 0.98)).sum())

    assert unsure(4.0) > 1.5 * unsure(0.5)


def test_neither_prompt_nor_mask_is_refused(comfy, tensors):
    run = comfy.run({"image": node(tensors(pictures())), **without_models()})
    assert run.failed_node == "mattes"
    assert "Connect a prompt or a mask" in run.error


@pytest.mark.parametrize("method", ["closed-form", "knn"])
def test_without_pymatting_one_sentence_says_what_to_do(comfy, tensors, monkeypatch, method):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "pymatting" else find_spec(name, *args)
    )
    graph = {"image": node(tensors(disc_picture(TRUE))), "prompt": boxes("34 16 90 72")}
    run = comfy.run({**graph, **without_models(method, prompt=("prompt", 0))})
    assert run.failed_node == "mattes"
    assert run.error.count("\n") == 0 and "needs PyMatting" in run.error
    assert "pip install pymatting" in run.error and "'none'" in run.error
    assert comfy.run({**graph, **without_models("none", prompt=("prompt", 0))}).ok


def test_the_same_input_gives_the_same_matte(comfy, tensors):
    picture = tensors(pictures(1, 60, 80))
    graph = {"image": node(picture), "prompt": boxes("10 10 60 50"), **without_models(prompt=("prompt", 0))}
    first = comfy.run(graph).output("mattes").numpy().copy()
    comfy.reset()
    np.testing.assert_array_equal(comfy.run(graph).output("mattes").numpy(), first)
