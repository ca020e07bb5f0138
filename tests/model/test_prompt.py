"""What may be pointed at, and what is said when it may not."""

from __future__ import annotations

import pytest
import torch

from mam_model.prompt import Prompt, PromptError, PromptSet, Scribble

WIDTH, HEIGHT = 60, 40
NAN, INFINITE = float("nan"), float("inf")


def test_a_sound_prompt_passes_unchanged():
    mask = torch.rand(HEIGHT, WIDTH)
    points = ((1.5, 2.0), (60, 40), (0, 0))
    prompt = Prompt(points, (1, 0, 1), (3, 4, 50, 30), mask, candidate=2, label="girl", score=0.5)
    checked = prompt.checked(WIDTH, HEIGHT)
    assert checked.points_px == prompt.points_px
    assert checked.labels == prompt.labels
    assert checked.box_xyxy_px == (3, 4, 50, 30)
    assert checked.mask is mask
    assert (checked.label, checked.candidate, checked.score) == ("girl", 2, 0.5)


def test_a_prompt_that_says_nothing_is_sound_and_empty():
    assert Prompt().checked(WIDTH, HEIGHT).is_empty
    assert Prompt(mask=torch.zeros(HEIGHT, WIDTH), scribbles=torch.zeros(HEIGHT, WIDTH)).is_empty


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(points_px=((1, 1),), labels=(0,)),
        Prompt(box_xyxy_px=(0, 0, 1, 1)),
        Prompt(mask=torch.ones(HEIGHT, WIDTH)),
        Prompt(scribbles=torch.full((HEIGHT, WIDTH), Scribble.FOREGROUND.value)),
    ],
    ids=["point", "box", "mask", "scribbles"],
)
def test_a_prompt_that_says_anything_is_not_empty(prompt):
    assert not prompt.is_empty


@pytest.mark.parametrize("box", [(50, 30, 3, 4), (50, 4, 3, 30), (3, 30, 50, 4)])
def test_a_box_drawn_the_wrong_way_is_turned_round(box):
    assert Prompt(box_xyxy_px=box).checked(WIDTH, HEIGHT).box_xyxy_px == (3, 4, 50, 30)


def test_a_box_over_the_edge_is_cut_at_the_edge():
    assert Prompt(box_xyxy_px=(-5, -7.5, 70, 50)).checked(WIDTH, HEIGHT).box_xyxy_px == (0, 0, WIDTH, HEIGHT)
    assert Prompt(box_xyxy_px=(30, -7.5, 70, 20)).checked(WIDTH, HEIGHT).box_xyxy_px == (30, 0, WIDTH, 20)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (Prompt(points_px=((NAN, 3),), labels=(1,)), "not a number"),
        (Prompt(points_px=((3, NAN),), labels=(1,)), "not a number"),
        (Prompt(points_px=((3, INFINITE),), labels=(1,)), "not a number"),
        (Prompt(points_px=((61, 3),), labels=(1,)), "(61, 3) lies outside the picture, which is 60 x 40"),
        (Prompt(points_px=((3, 41),), labels=(1,)), "(3, 41) lies outside the picture, which is 60 x 40"),
        (Prompt(points_px=((-1, 3),), labels=(1,)), "(-1, 3) lies outside"),
        (Prompt(points_px=((3, 3), (4, 4)), labels=(1,)), "2 points but 1 label"),
        (Prompt(points_px=((3, 3),), labels=()), "1 points but 0 labels"),
        (Prompt(points_px=(), labels=(1,)), "0 points but 1 labels"),
        (Prompt(points_px=((3, 3),), labels=(2,)), "label 2"),
        (Prompt(box_xyxy_px=(1, 2, NAN, 4)), "not a number"),
        (Prompt(box_xyxy_px=(1, -INFINITE, 3, 4)), "not a number"),
        (Prompt(box_xyxy_px=(5, 5, 5, 20)), "no area"),
        (Prompt(box_xyxy_px=(5, 20, 9, 20)), "no area"),
        (Prompt(box_xyxy_px=(60, 0, 80, 20)), "(60, 0, 80, 20) lies outside the picture, which is 60 x 40"),
        (Prompt(box_xyxy_px=(0, 40, 20, 50)), "lies outside"),
        (Prompt(box_xyxy_px=(-9, 0, 0, 20)), "lies outside"),
        (Prompt(box_xyxy_px=(0, -9, 20, -1)), "lies outside"),
        (Prompt(candidate=3), "no candidate 3"),
        (Prompt(candidate=-1), "no candidate -1"),
        (Prompt(mask=torch.full((HEIGHT, WIDTH), NAN)), "mask holds NaN"),
    ],
)
def test_what_has_no_meaning_is_refused_in_words(prompt, said):
    with pytest.raises(PromptError) as refusal:
        prompt.checked(WIDTH, HEIGHT)
    assert said in str(refusal.value)


@pytest.mark.parametrize("field", ["mask", "scribbles"])
def test_a_mask_of_another_size_is_refused_naming_both_sizes(field):
    with pytest.raises(PromptError) as refusal:
        Prompt(**{field: torch.ones(64, 128)}).checked(WIDTH, HEIGHT)
    assert "128 x 64" in str(refusal.value)
    assert "60 x 40" in str(refusal.value)


@pytest.mark.parametrize("field", ["mask", "scribbles"])
def test_a_blank_mask_says_nothing_whatever_its_size(field):
    """ComfyUI's LoadImage gives a mask of 64 x 64 zeros when a picture has no transparency."""
    checked = Prompt(box_xyxy_px=(1, 1, 9, 9), **{field: torch.zeros(64, 64)}).checked(WIDTH, HEIGHT)
    assert getattr(checked, field) is None
    assert checked.box_xyxy_px == (1, 1, 9, 9)


def test_two_prompts_about_one_target_add_up():
    left, right = torch.zeros(HEIGHT, WIDTH), torch.zeros(HEIGHT, WIDTH)
    left[:, :20], right[:, 40:] = 0.5, 1
    one = Prompt(((1, 2),), (1,), (10, 10, 20, 20), left, label="girl", score=0.4)
    other = Prompt(((3, 4),), (0,), (15, 5, 30, 18), right, candidate=1, label="dog", score=0.6)
    both = one.merged_with(other)
    assert both.points_px == ((1, 2), (3, 4))
    assert both.labels == (1, 0)
    assert both.box_xyxy_px == (10, 5, 30, 20)
    assert torch.equal(both.mask, left + right)
    assert (both.candidate, both.label, both.score) == (1, "girl", 0.6)
    assert Prompt().merged_with(other).box_xyxy_px == other.box_xyxy_px
    assert other.merged_with(Prompt()).mask is right


def test_masks_of_two_sizes_cannot_speak_about_one_target():
    with pytest.raises(PromptError, match="60 x 40 and 64 x 32"):
        Prompt(mask=torch.ones(40, 60)).merged_with(Prompt(mask=torch.ones(32, 64)))


def test_a_prompts_own_candidate_comes_before_a_general_one():
    assert Prompt(candidate=0).or_candidate(2).candidate == 0
    assert Prompt().or_candidate(2).candidate == 2
    assert Prompt().or_candidate(None).candidate is None


def test_prompts_for_one_frame_speak_for_every_frame():
    one = Prompt(label="one")
    assert PromptSet(((one,),)).for_batch(3) == ((one,), (one,), (one,))
    assert PromptSet().for_batch(2) == ((), ())


def test_prompts_for_each_frame_keep_their_order():
    frames = ((Prompt(label="a"),), (), (Prompt(label="b"), Prompt(label="c")))
    assert PromptSet(frames).for_batch(3) == frames


@pytest.mark.parametrize("pictures", [1, 2, 7])
def test_prompts_for_another_number_of_frames_are_refused_naming_both(pictures):
    with pytest.raises(PromptError) as refusal:
        PromptSet(((), (), ())).for_batch(pictures)
    assert f"3 frames but {pictures} picture" in str(refusal.value)
