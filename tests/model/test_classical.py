"""What the engine without weights promises: the prompted subject, a soft edge where there is one, and no surprises."""

from __future__ import annotations

import importlib.util

import cv2
import numpy as np
import pytest
import torch

from mam_model.classical import PyMattingMissing, matte_without_models
from mam_model.prompt import Prompt, PromptError, Scribble
from mam_model.scribble import prompt_from_trimap

with_pymatting = pytest.mark.skipif(importlib.util.find_spec("pymatting") is None, reason="PyMatting is not installed")


def ellipse(height: int, width: int, box: tuple[float, float, float, float], softness: float = 1.5) -> torch.Tensor:
    """The soft matte of the ellipse that fills a box."""
    x0, y0, x1, y1 = box
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    away = (((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2).sqrt()
    return ((1 - away) * min(x1 - x0, y1 - y0) / 2 / softness + 0.5).clamp(0, 1)


def scene(*boxes, height: int = 96, width: int = 128, softness: float = 1.5) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Orange ellipses on a bluish ground, both slightly grainy, and the matte of each."""
    grain = torch.Generator().manual_seed(0)
    picture = torch.tensor([0.15, 0.3, 0.5]) + 0.06 * torch.rand(height, width, 3, generator=grain)
    mattes = [ellipse(height, width, box, softness) for box in boxes]
    for matte in mattes:
        front = torch.tensor([0.85, 0.45, 0.1]) + 0.06 * torch.rand(height, width, 3, generator=grain)
        picture = picture + matte[..., None] * (front - picture)
    return picture, mattes


BOX = (40.0, 20.0, 92.0, 78.0)
METHODS = ["refiner", "none", *(pytest.param(method, marks=with_pymatting) for method in ("closed-form", "knn"))]


def error(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found - true).abs().mean())


@pytest.mark.parametrize("method", METHODS)
def test_a_box_finds_the_subject_inside_it(method):
    picture, (true,) = scene(BOX)
    found = matte_without_models(picture, Prompt(box_xyxy_px=(36, 16, 96, 82)), method=method)
    assert found.shape == (96, 128) and found.dtype == torch.float32
    assert error(found, true) < 0.008


@pytest.mark.parametrize("method", METHODS)
def test_a_rough_mask_taken_as_guidance_gets_the_soft_edge_of_the_picture(method):
    picture, (true,) = scene(BOX, softness=6)
    hard = (true > 0.5).float()
    found = matte_without_models(picture, Prompt(mask=hard, mask_is_guidance=True), method=method, band=3)
    assert error(found, true) < 0.7 * error(hard, true)
    assert ((found > 0.1) & (found < 0.9)).sum() > 100


def test_a_mask_taken_as_guidance_is_not_decided_again():
    picture, (left, right) = scene((10, 20, 50, 70), (70, 20, 110, 70))
    both = matte_without_models(picture, Prompt(mask=left + right, mask_is_guidance=True), method="none")
    assert error(both, left + right) < 0.01
    flat = torch.full((96, 128, 3), 0.5)
    kept = matte_without_models(flat, Prompt(mask=(left > 0.5).float(), mask_is_guidance=True), method="none")
    assert kept[45, 30] == 1 and kept[45, 90] == 0


def test_a_rough_mask_as_a_hint_snaps_to_the_edge_of_the_subject():
    picture, (true,) = scene(BOX)
    rough = ellipse(96, 128, (46, 24, 98, 82), 1).round()
    assert error(rough, true) > 0.03
    assert error(matte_without_models(picture, Prompt(mask=rough), method="none"), true) < 0.01


def area(height: int, width: int, *places: tuple) -> torch.Tensor:
    mask = torch.zeros(height, width)
    for place in places:
        mask[place] = 1
    return mask


@pytest.mark.parametrize("method", ["refiner", "none"])
@pytest.mark.parametrize(
    "places",
    [
        [np.s_[180:190, 200:260]],
        [np.s_[185, 190:270]],
        [np.s_[180, 230]],
        [np.s_[178:182, 228:232]],
        [np.s_[184:188, 200:260], np.s_[160:210, 228:232]],
    ],
    ids=["a strip", "a line", "a pixel", "a dot", "a cross"],
)
def test_a_thin_mask_stands_for_the_thing_it_lies_on(places, method):
    picture, (true,) = scene((140, 90, 320, 280), height=360, width=480)
    found = matte_without_models(picture, Prompt(mask=area(360, 480, *places)), method=method)
    assert error(found, true) < 0.005


@pytest.mark.parametrize("method", ["refiner", "none"])
def test_a_thin_mask_at_the_border_stands_for_the_thing_it_lies_on(method):
    picture, (true,) = scene((140, 200, 320, 440), height=360, width=480)
    found = matte_without_models(picture, Prompt(mask=area(360, 480, np.s_[-8:, 180:280])), method=method)
    assert error(found, true) < 0.005


def test_a_mask_too_thin_to_be_seen_at_grabcuts_size_is_seen_all_the_same():
    picture, (true,) = scene((0, 400, 2400, 1300), height=1500, width=2400)
    found = matte_without_models(picture, Prompt(mask=area(1500, 2400, np.s_[850:853, 100:2300])), method="none")
    assert error(found, true) < 0.005


def test_a_thin_mask_that_covers_a_thin_thing_stands_for_it_alone():
    picture, (pole, _) = scene((60, 170, 300, 178), (310, 90, 420, 280), height=360, width=480)
    rough = area(360, 480, np.s_[169:179, 64:296])
    assert error(matte_without_models(picture, Prompt(mask=rough), method="none"), pole) < 0.003


def test_a_point_takes_the_thing_under_it_and_not_its_like_elsewhere():
    picture, (left, right) = scene((8, 20, 54, 76), (72, 20, 118, 76))
    found = matte_without_models(picture, Prompt(points_px=((30, 48),), labels=(1,)), method="none")
    assert error(found, left) < 0.01
    assert found[right > 0].max() == 0


def test_two_points_take_two_parts():
    picture, (left, right) = scene((8, 20, 54, 76), (72, 20, 118, 76))
    found = matte_without_models(picture, Prompt(points_px=((30, 48), (95, 48)), labels=(1, 1)), method="none")
    assert error(found, left + right) < 0.01


def test_a_negative_point_takes_a_thing_out_of_the_box():
    picture, (left, right) = scene((30, 30, 60, 70), (64, 30, 94, 70))
    box = (28.0, 28.0, 96.0, 72.0)
    both = matte_without_models(picture, Prompt(box_xyxy_px=box), method="none")
    assert error(both, left + right) < 0.01
    prompt = Prompt(box_xyxy_px=box, points_px=((45, 50), (79, 50)), labels=(1, 0))
    assert error(matte_without_models(picture, prompt, method="none"), left) < 0.01


def test_strokes_say_what_belongs_and_what_does_not():
    picture, (left, right) = scene((8, 20, 54, 76), (72, 20, 118, 76))
    strokes = torch.zeros(96, 128, dtype=torch.uint8)
    strokes[46:50, 20:45] = Scribble.FOREGROUND
    strokes[46:50, 80:110] = Scribble.BACKGROUND
    strokes[4:7, :] = Scribble.BACKGROUND
    assert error(matte_without_models(picture, Prompt(scribbles=strokes), method="none"), left) < 0.01


@with_pymatting
def test_an_unknown_stroke_is_solved_as_an_edge():
    picture, (true,) = scene(BOX)
    picture[44:48, 92:116] = picture[48, 66] + (picture[44:48, 92:116] - picture[48, 66]) * 0.45
    strokes = torch.zeros(96, 128, dtype=torch.uint8)
    strokes[42:50, 88:118] = Scribble.UNKNOWN
    plain = Prompt(mask=(true > 0.5).float(), mask_is_guidance=True)
    stroked = Prompt(mask=(true > 0.5).float(), mask_is_guidance=True, scribbles=strokes)
    strand = (slice(44, 48), slice(98, 110))
    assert matte_without_models(picture, plain)[strand].max() == 0
    assert 0.3 < matte_without_models(picture, stroked)[strand].mean() < 0.8


def test_a_negative_point_takes_out_all_of_what_it_is_put_on():
    picture, (left, right) = scene((30, 30, 60, 70), (64, 30, 94, 70))
    prompt = Prompt(box_xyxy_px=(28, 28, 96, 72), points_px=((79, 50),), labels=(0,))
    assert matte_without_models(picture, prompt, method="none")[right > 0].mean() < 0.02


def test_a_point_brings_in_a_part_that_has_the_colours_of_the_background():
    picture, (true,) = scene(BOX)
    ground, _ = scene()
    part = ellipse(96, 128, (52, 34, 80, 64)) > 0.5
    picture[part] = ground[part]
    box = (36.0, 16.0, 96.0, 82.0)
    prompt = Prompt(box_xyxy_px=box, points_px=((66, 49),), labels=(1,))
    assert matte_without_models(picture, Prompt(box_xyxy_px=box), method="none")[part].mean() < 0.5
    assert error(matte_without_models(picture, prompt, method="none"), true) < 0.01


def test_a_small_hole_in_the_subject_is_closed():
    picture, (true,) = scene(BOX)
    picture[46:51, 60:65] = torch.tensor([0.15, 0.3, 0.5])
    found = matte_without_models(picture, Prompt(box_xyxy_px=(36, 16, 96, 82)), method="none")
    assert found[46:51, 60:65].min() > 0.95


def test_a_speck_beside_the_subject_is_dropped():
    picture, (true,) = scene(BOX)
    picture[17:25, 86:94] = torch.tensor([0.85, 0.45, 0.1])
    found = matte_without_models(picture, Prompt(box_xyxy_px=(36, 16, 96, 82)), method="none")
    assert found[17:25, 86:94].max() < 0.05


def test_a_subject_thinner_than_the_band_gets_a_soft_edge_too():
    picture, (true,) = scene((20, 44, 110, 53), softness=4)
    hard = (true > 0.5).float()
    found = matte_without_models(picture, Prompt(mask=hard, mask_is_guidance=True), method="none", band=4)
    assert error(found, true) < 0.8 * error(hard, true)


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(),
        Prompt(mask=torch.zeros(96, 128)),
        Prompt(mask=torch.zeros(96, 128), mask_is_guidance=True),
        Prompt(points_px=((20.0, 20.0),), labels=(0,)),
    ],
    ids=["nothing", "an empty mask", "an empty mask as guidance", "only a negative point"],
)
def test_a_prompt_that_names_no_subject_gives_an_empty_matte(prompt):
    picture, _ = scene(BOX)
    assert torch.equal(matte_without_models(picture, prompt, method="none"), torch.zeros(96, 128))


def test_a_prompt_that_does_not_fit_the_picture_is_refused():
    picture, _ = scene(BOX)
    with pytest.raises(PromptError, match="outside the picture"):
        matte_without_models(picture, Prompt(points_px=((500, 20),), labels=(1,)), method="none")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("height", "width", "prompt"),
    [
        (1, 1, Prompt(box_xyxy_px=(0, 0, 1, 1))),
        (2, 2, Prompt(points_px=((2, 2),), labels=(1,))),
        (1, 300, Prompt(box_xyxy_px=(100, 0, 200, 1))),
        (16, 2000, Prompt(box_xyxy_px=(300, 2, 900, 14))),
        (60, 80, Prompt(box_xyxy_px=(0, 0, 80, 60))),
        (60, 80, Prompt(box_xyxy_px=(10.2, 10.2, 10.4, 10.4))),
        (60, 80, Prompt(mask=torch.ones(60, 80), mask_is_guidance=True)),
        (60, 80, Prompt(mask=torch.ones(60, 80))),
        (60, 80, Prompt(points_px=((80, 60), (0, 0)), labels=(1, 0))),
    ],
    ids=["1x1", "2x2", "one row", "a strip", "the whole frame", "a speck", "full guidance", "full hint", "corners"],
)
@pytest.mark.parametrize("grain", [0.0, 1.0], ids=["one colour", "noise"])
def test_odd_pictures_and_prompts_give_a_finite_matte(method, height, width, prompt, grain):
    noise = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(1))
    found = matte_without_models(0.5 + grain * (noise - 0.5), prompt, method=method)
    assert found.shape == (height, width)
    assert found.isfinite().all() and found.min() >= 0 and found.max() <= 1


def test_a_full_mask_as_guidance_stays_full():
    full = Prompt(mask=torch.ones(60, 80), mask_is_guidance=True)
    assert torch.equal(matte_without_models(torch.rand(60, 80, 3), full, method="none"), torch.ones(60, 80))


def test_a_large_picture_is_matted_at_its_own_size_with_an_edge_as_sharp_as_its_own():
    box = (600.0, 300.0, 1900.0, 1200.0)
    picture, (true,) = scene(box, height=1500, width=2400, softness=2)
    found = matte_without_models(picture, Prompt(box_xyxy_px=(580, 280, 1920, 1220)), method="none", matte_size_px=400)
    assert found.shape == (1500, 2400)
    assert error(found, true) < 0.002
    soft = ((found > 0.1) & (found < 0.9)).sum() / ((true > 0.1) & (true < 0.9)).sum()
    assert soft < 6, "an edge merely enlarged from 400 pixels would be smeared over many times its width"
    assert found.min() >= 0 and found.max() <= 1 and (found[:200] == 0).all()


def test_the_same_input_gives_the_same_matte_whatever_opencv_did_before():
    picture, _ = scene(BOX)
    prompt = Prompt(box_xyxy_px=(36, 16, 96, 82))
    cv2.setRNGSeed(1)
    first = matte_without_models(picture, prompt, method="none")
    cv2.setRNGSeed(2)
    assert torch.equal(matte_without_models(picture, prompt, method="none"), first)


def test_opencvs_random_numbers_go_on_undisturbed():
    picture, _ = scene(BOX)
    cv2.setRNGSeed(7)
    expected = cv2.randu(np.zeros(8, np.uint8), 0, 255).ravel()
    cv2.setRNGSeed(7)
    matte_without_models(picture, Prompt(box_xyxy_px=(36, 16, 96, 82)), method="none")
    assert (cv2.randu(np.zeros(8, np.uint8), 0, 255).ravel() == expected).all()


def test_the_picture_and_the_prompt_are_left_alone():
    picture, (true,) = scene(BOX)
    before = picture.clone(), true.clone()
    found = matte_without_models(picture, Prompt(mask=true, mask_is_guidance=True), method="none")
    found += 1
    assert torch.equal(picture, before[0]) and torch.equal(true, before[1])


def test_a_picture_of_one_colour_is_not_cut_for_minutes(monkeypatch):
    monkeypatch.setattr(cv2, "grabCut", lambda *_: pytest.fail("OpenCV was asked to cut where there is nothing to see"))
    alpha = matte_without_models(torch.ones(96, 128, 3), Prompt(box_xyxy_px=BOX), method="none")
    assert alpha[49, 66] == 1 and alpha[:10].max() == 0 and alpha[:, :30].max() == 0


def test_a_picture_with_alpha_is_matted_by_its_colours():
    picture, _ = scene(BOX)
    prompt = Prompt(box_xyxy_px=(36, 16, 96, 82))
    rgba = torch.cat((picture, torch.rand(96, 128, 1)), dim=-1)
    by_colors = matte_without_models(picture, prompt, method="none")
    assert torch.equal(matte_without_models(rgba, prompt, method="none"), by_colors)


@pytest.mark.parametrize("as_guidance", [True, False])
@pytest.mark.parametrize("kind", ["with gradients", "bfloat16", "whole numbers"])
def test_a_mask_of_any_kind_is_taken_for_what_it_shows(kind, as_guidance):
    picture, (true,) = scene(BOX)
    hard = (true > 0.5).float()
    mask = {"with gradients": hard.clone().requires_grad_(), "bfloat16": hard.bfloat16(), "whole numbers": hard.byte()}
    expected, found = (
        matte_without_models(picture, Prompt(mask=given, mask_is_guidance=as_guidance), method="none")
        for given in (hard, mask[kind])
    )
    assert torch.equal(found, expected)
    assert not found.requires_grad


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("broken", ["NaN", "grey", "8 bits"])
def test_what_is_no_picture_is_refused_in_words(broken, method):
    picture, _ = scene(BOX)
    pictures = {"NaN": picture.clone(), "grey": picture[..., :1], "8 bits": (picture * 255).byte()}
    pictures["NaN"][30, 50, 1] = float("nan")
    for prompt in (Prompt(box_xyxy_px=BOX), Prompt(mask=ellipse(96, 128, BOX), mask_is_guidance=True)):
        with pytest.raises(ValueError, match="[Pp]icture (holds NaN|has the shape|are floating-point)"):
            matte_without_models(pictures[broken], prompt, method=method)


@pytest.mark.parametrize("wrong", [{"band": -1}, {"band": float("nan")}, {"matte_size_px": 0}, {"segment_size_px": -4}])
def test_sizes_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        matte_without_models(torch.rand(8, 8, 3), Prompt(), method="none", **wrong)


def test_without_pymatting_the_error_names_the_command_and_the_way_around(monkeypatch):
    monkeypatch.setattr("mam_model.classical.importlib.util.find_spec", lambda name: None)
    picture, (true,) = scene(BOX)
    with pytest.raises(PyMattingMissing, match="pip install pymatting.*'none'"):
        matte_without_models(picture, Prompt(box_xyxy_px=BOX))
    assert error(matte_without_models(picture, Prompt(box_xyxy_px=(36, 16, 96, 82)), method="none"), true) < 0.01


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="closed-form, knn, none"):
        matte_without_models(torch.rand(8, 8, 3), Prompt(), method="magic")


@pytest.mark.parametrize("matte_size_px", [1024, 50])
def test_what_a_trimap_is_sure_of_stays_at_the_pictures_own_size(matte_size_px):
    picture, (true,) = scene(BOX, softness=8)
    trimap = torch.where((true > 0) & (true < 1), 0.5, true)
    trimap[:6] = 0.5
    found = matte_without_models(picture, prompt_from_trimap(trimap), method="none", matte_size_px=matte_size_px)
    assert torch.equal(found[trimap != 0.5], trimap[trimap != 0.5])
    assert ((found > 0.1) & (found < 0.9)).sum() > 50


@with_pymatting
def test_soft_values_of_a_guiding_mask_are_solved_from_the_picture():
    picture, (true,) = scene(BOX, softness=20)
    soft = true.clone()
    soft[(true > 0.05) & (true < 0.95)] = 0.6
    found = matte_without_models(picture, Prompt(mask=soft, mask_is_guidance=True))
    cut = matte_without_models(picture, Prompt(mask=(soft > 0.5).float(), mask_is_guidance=True))
    assert error(found, true) < 0.5 * error(cut, true)


def test_a_mask_without_any_sure_value_is_cut_at_its_middle():
    picture, (true,) = scene(BOX)
    faint, plain = (Prompt(mask=factor * true, mask_is_guidance=True) for factor in (0.9, 1.0))
    assert error(matte_without_models(picture, faint), matte_without_models(picture, plain)) < 0.005
