"""What may be pointed at, and what is said when it may not."""

from __future__ import annotations

import pytest
import torch

from mam_model.prompt import Prompt, PromptError, PromptSet, Scribble, covered_area

WIDTH, HEIGHT = 60, 40
NAN, INFINITE = float("nan"), float("inf")


def one_pixel(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """0 everywhere else."""
    mask = torch.zeros(HEIGHT, WIDTH, dtype=dtype)
    mask[20, 30] = value
    return mask


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
    assert [Prompt(candidate=choice).checked(WIDTH, HEIGHT).candidate for choice in (None, 0, 1)] == [None, 0, 1]


def test_a_prompt_that_says_nothing_is_sound_and_empty():
    assert Prompt().checked(WIDTH, HEIGHT).is_empty
    assert Prompt(mask=torch.zeros(HEIGHT, WIDTH), scribbles=torch.zeros(HEIGHT, WIDTH)).is_empty
    assert Prompt(mask=one_pixel(0.5)).is_empty and not Prompt(mask=one_pixel(0.51)).is_empty


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
        (Prompt(box_xyxy_px=(0, -9, 20, 0)), "lies outside"),
        (Prompt(candidate=3), "no candidate 3"),
        (Prompt(candidate=-1), "no candidate -1"),
        (Prompt(mask=one_pixel(NAN)), "mask holds NaN"),
        (Prompt(mask=one_pixel(255, torch.uint8)), "up to 255"),
        (Prompt(mask=one_pixel(2, torch.uint8)), "up to 2"),
        (Prompt(scribbles=one_pixel(4, torch.uint8)), "the value 4"),
        (Prompt(mask=one_pixel(1).numpy()), "The mask is a PyTorch tensor, not a ndarray"),
        (Prompt(scribbles=one_pixel(1).numpy()), "mask of strokes is a PyTorch tensor, not a ndarray"),
    ],
)
def test_what_has_no_meaning_is_refused_in_words(prompt, said):
    with pytest.raises(PromptError) as refusal:
        prompt.checked(WIDTH, HEIGHT)
    assert said in str(refusal.value)


@pytest.mark.parametrize("field", ["mask", "scribbles"])
def test_a_mask_of_another_size_is_refused_naming_both_sizes(field):
    area = torch.zeros(64, 128)
    area[50, 100] = 1
    with pytest.raises(PromptError) as refusal:
        Prompt(**{field: area}).checked(WIDTH, HEIGHT)
    assert "128 x 64" in str(refusal.value)
    assert "60 x 40" in str(refusal.value)


@pytest.mark.parametrize("field", ["mask", "scribbles"])
def test_a_blank_mask_says_nothing_whatever_its_size(field):
    """ComfyUI's LoadImage gives a mask of 64 x 64 zeros when a picture has no transparency."""
    checked = Prompt(box_xyxy_px=(1, 1, 9, 9), **{field: torch.zeros(64, 64)}).checked(WIDTH, HEIGHT)
    assert getattr(checked, field) is None
    assert checked.box_xyxy_px == (1, 1, 9, 9)


@pytest.mark.parametrize(("lowest", "highest"), [(-0.2, 1), (0, 1.4), (-0.2, 1.4)])
def test_what_a_mask_overshoots_is_cut_off_and_the_mask_given_stays_as_it_was(lowest, highest):
    """Resampling by Lanczos or a bicubic filter overshoots, and sums of masks go above 1."""
    overshooting = torch.linspace(lowest, highest, HEIGHT * WIDTH).view(HEIGHT, WIDTH)
    before = overshooting.clone()
    assert torch.equal(Prompt(mask=overshooting).checked(WIDTH, HEIGHT).mask, before.clamp(0, 1))
    assert torch.equal(overshooting, before)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_a_mask_of_whole_numbers_0_and_1_is_sound(dtype):
    mask = torch.zeros(HEIGHT, WIDTH, dtype=dtype)
    mask[5:9] = 1
    assert Prompt(mask=mask).checked(WIDTH, HEIGHT).mask is mask


def test_two_prompts_about_one_target_add_up():
    left, right = torch.zeros(HEIGHT, WIDTH), torch.zeros(HEIGHT, WIDTH)
    left[:, :20], right[:, 40:] = 0.5, 1
    one = Prompt(((1, 2),), (1,), (10, 10, 20, 20), left, label="girl", score=0.4)
    other = Prompt(((3, 4),), (0,), (15, 5, 30, 18), right, candidate=1, label="dog", score=0.6)
    both = one.merged_with(other)
    assert both.points_px == ((1, 2), (3, 4))
    assert both.labels == (1, 0)
    assert both.box_xyxy_px == other.merged_with(one).box_xyxy_px == (10, 5, 30, 20)
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


def test_a_prompt_that_merges_with_nothing_stays_as_it_was():
    mask, strokes = torch.rand(HEIGHT, WIDTH), torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    full = Prompt(((1, 2),), (0,), (3, 4, 5, 6), mask, True, strokes, 2, "girl", 0.5)
    for merged in (full.merged_with(Prompt(score=0.0)), Prompt(score=0.0).merged_with(full)):
        assert (merged.points_px, merged.labels, merged.box_xyxy_px) == (((1, 2),), (0,), (3, 4, 5, 6))
        assert merged.mask is mask and merged.scribbles is strokes and merged.mask_is_guidance
        assert (merged.candidate, merged.label, merged.score) == (2, "girl", 0.5)


def test_merged_strokes_unite_and_the_less_certain_one_wins_where_they_meet():
    one = torch.tensor([[0, 1, 1, 1, 2]], dtype=torch.uint8)
    other = torch.tensor([[0, 0, 2, 3, 3]], dtype=torch.uint8)
    assert Prompt(scribbles=one).merged_with(Prompt(scribbles=other)).scribbles.tolist() == [[0, 1, 2, 3, 3]]
    with pytest.raises(PromptError, match="masks of strokes of one target differ in size: 5 x 1 and 4 x 1"):
        Prompt(scribbles=one).merged_with(Prompt(scribbles=other[:, :4]))


def test_merging_leaves_the_masks_it_was_given_alone():
    left, right = torch.zeros(4, 6), torch.ones(4, 6)
    Prompt(mask=left).merged_with(Prompt(mask=right))
    assert not left.any() and right.all()


def labelled(*frames: str) -> PromptSet:
    """A set in which every letter is a target of that label."""
    return PromptSet(tuple(tuple(Prompt(label=letter) for letter in frame) for frame in frames))


def labels_of(prompts: PromptSet) -> list[str]:
    return ["".join(prompt.label for prompt in frame) for frame in prompts.frames]


def test_joined_sets_stand_side_by_side_in_every_frame():
    assert labels_of(labelled("ab").joined_with(labelled("c"))) == ["abc"]
    assert labels_of(labelled("ab", "", "d").joined_with(labelled("x", "y", ""))) == ["abx", "y", "d"]
    assert labels_of(PromptSet().joined_with(labelled("c"))) == ["c"]


def test_a_set_for_one_frame_joins_every_frame_of_the_other():
    assert labels_of(labelled("a").joined_with(labelled("x", "y", ""))) == ["ax", "ay", "a"]
    assert labels_of(labelled("x", "y", "").joined_with(labelled("a"))) == ["xa", "ya", "a"]


@pytest.mark.parametrize("combine", ["joined_with", "merged_with"])
def test_sets_for_different_numbers_of_frames_are_refused_naming_both(combine):
    with pytest.raises(PromptError, match="One prompt speaks of 2 frames, the other of 3"):
        getattr(labelled("a", "b"), combine)(labelled("x", "y", "z"))


def boxed(*lefts: float) -> PromptSet:
    return PromptSet((tuple(Prompt(box_xyxy_px=(left, 0, left + 5, 5)) for left in lefts),))


def pointed(*xs: float) -> PromptSet:
    return PromptSet((tuple(Prompt(points_px=((x, 1),), labels=(1,)) for x in xs),))


def test_merged_sets_pair_first_with_first_and_second_with_second():
    (targets,) = boxed(0, 10).merged_with(pointed(1, 11)).frames
    assert [(target.box_xyxy_px[0], target.points_px[0][0]) for target in targets] == [(0, 1), (10, 11)]


def test_a_single_target_adds_to_every_target_of_the_other_set():
    for merged in (boxed(0, 10, 20).merged_with(pointed(1)), pointed(1).merged_with(boxed(0, 10, 20))):
        assert [(target.box_xyxy_px[0], target.points_px) for target in merged.frames[0]] == [
            (left, ((1, 1),)) for left in (0, 10, 20)
        ]


def test_a_target_without_a_partner_stays_as_it_is():
    (targets,) = boxed(0, 10, 20).merged_with(pointed(1, 11)).frames
    assert [target.points_px for target in targets] == [((1, 1),), ((11, 1),), ()]
    assert targets[2].box_xyxy_px == (20, 0, 25, 5)
    assert labels_of(labelled("ab", "").merged_with(labelled("", "c"))) == ["ab", "c"]


def test_merging_pairs_within_each_frame():
    box = Prompt(box_xyxy_px=(0, 0, 5, 5))
    frames = PromptSet(((box,), (), (box, box))).merged_with(pointed(2)).frames
    assert [[(target.box_xyxy_px is not None, len(target.points_px)) for target in frame] for frame in frames] == [
        [(True, 1)],
        [(False, 1)],
        [(True, 1), (True, 1)],
    ]


def test_a_general_candidate_changes_nothing_else():
    prompt = Prompt(((1, 2),), (1,), (3, 4, 5, 6), label="girl", score=0.5)
    chosen = prompt.or_candidate(1)
    assert (chosen.points_px, chosen.box_xyxy_px, chosen.label, chosen.score) == (((1, 2),), (3, 4, 5, 6), "girl", 0.5)
    assert prompt.candidate is None


def test_the_covered_area_is_masks_strokes_and_boxes_together():
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[2:4, 2:4] = 0.7
    strokes = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    strokes[10, 10:20] = Scribble.FOREGROUND
    strokes[12, 10:20] = Scribble.BACKGROUND
    strokes[14, 10:20] = Scribble.UNKNOWN
    targets = [Prompt(mask=mask), Prompt(scribbles=strokes), Prompt(box_xyxy_px=(30, 20, 35, 22))]
    area = covered_area(targets)
    assert area.shape == (HEIGHT, WIDTH)
    assert area[3, 3] == pytest.approx(0.7), "a soft mask stays soft"
    assert (area[10, 10:20] == 1).all() and not area[12].any() and not area[14].any()
    assert (area[20:22, 30:35] == 1).all()
    assert area.sum() == pytest.approx(4 * 0.7 + 10 + 10)
    assert mask.max() == pytest.approx(0.7) and mask.sum() == pytest.approx(4 * 0.7), "the mask itself is unchanged"


def test_boxes_alone_need_the_size_of_the_picture():
    targets = [Prompt(box_xyxy_px=(-5, -5, 3.4, 2.6)), Prompt(box_xyxy_px=(50, 30, 900, 900))]
    assert covered_area(targets) is None
    area = covered_area(targets, (HEIGHT, WIDTH))
    assert area.sum() == 3 * 3 + 10 * 10 and area[2, 2] == 1 and area[39, 59] == 1


def test_points_cover_nothing_and_no_targets_neither():
    assert covered_area([]) is None and covered_area([Prompt(((1, 1),), (1,))]) is None
    assert not covered_area([Prompt(((1, 1),), (1,))], (4, 5)).any()
    assert not covered_area([Prompt(mask=torch.zeros(64, 64))], (4, 5)).any(), "a blank mask of any size says nothing"


def test_a_box_outside_the_picture_covers_nothing():
    for box in ((-9, -9, -2, -2), (100, 100, 120, 120), (-9, 2, -2, 5)):
        assert not covered_area([Prompt(box_xyxy_px=box)], (HEIGHT, WIDTH)).any()


def test_a_box_drawn_the_wrong_way_covers_what_the_right_one_covers():
    right = covered_area([Prompt(box_xyxy_px=(3, 4, 20, 30))], (HEIGHT, WIDTH))
    assert right.sum() == 17 * 26
    assert torch.equal(covered_area([Prompt(box_xyxy_px=(20, 30, 3, 4))], (HEIGHT, WIDTH)), right)


def test_a_box_that_is_no_number_is_named_instead_of_drawn():
    for value in (NAN, INFINITE):
        with pytest.raises(PromptError, match="holds something that is not a number"):
            covered_area([Prompt(box_xyxy_px=(1, 2, value, 4))], (HEIGHT, WIDTH))


def test_areas_of_different_sizes_are_refused_naming_both():
    with pytest.raises(PromptError, match="6 x 4 and 9 x 8"):
        covered_area([Prompt(mask=torch.ones(4, 6)), Prompt(mask=torch.ones(8, 9))])
    with pytest.raises(PromptError, match="mask of 9 x 8 pixels but the picture is 60 x 40"):
        covered_area([Prompt(mask=torch.ones(8, 9))], (HEIGHT, WIDTH))
