"""Instances: described, chosen and merged without ever losing a frame or mixing up a number."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mam_model.instances import (
    POSITIONS,
    Instance,
    Instances,
    at_point,
    at_position,
    bounding_box,
    describe,
    keep,
    merge_by_label,
    merge_frames,
    with_area,
    with_index,
    with_label,
    with_score,
    without_labels,
)
from mam_model.prompt import Prompt

HEIGHT, WIDTH = 20, 40


def block(left: int, top: int, right: int, bottom: int, value: float = 1.0) -> torch.Tensor:
    alpha = torch.zeros(HEIGHT, WIDTH)
    alpha[top:bottom, left:right] = value
    return alpha


def described(*frames: list[tuple[str, float, torch.Tensor]]) -> tuple[Instances, torch.Tensor]:
    """The index and the mattes of frames that are lists of (label, score, matte)."""
    entries, alphas = [], []
    for number, targets in enumerate(frames):
        mattes = torch.stack([alpha for *_, alpha in targets]) if targets else torch.zeros(0, HEIGHT, WIDTH)
        prompts = [Prompt(label=label) for label, *_ in targets]
        entries += describe(number, prompts, [score for _, score, _ in targets], mattes)
        alphas.append(mattes if targets else torch.zeros(1, HEIGHT, WIDTH))
    return Instances(tuple(entries), len(frames)), torch.cat(alphas)


@pytest.fixture
def three_frames():
    """A small girl at the left and a large dog at the right; nothing; a dog, and a cat that was not found."""
    return described(
        [("girl", 0.6, block(2, 2, 8, 8)), ("Dog", 0.9, block(20, 4, 38, 18))],
        [],
        [("dog", 0.7, block(10, 10, 30, 20)), ("cat", 0.8, block(0, 0, 0, 0))],
    )


def test_an_instance_is_described_by_frame_number_label_score_and_box(three_frames):
    index, _ = three_frames
    assert index.entries[1] == Instance(0, 1, "Dog", 0.9, True, (20, 4, 38, 18))
    assert [(entry.frame, entry.index) for entry in index.entries] == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]


def test_a_frame_without_targets_has_one_entry_that_says_so(three_frames):
    index, _ = three_frames
    assert index.entries[2] == Instance(1, 0, "", 0.0, False, None)


def test_a_target_that_was_not_found_keeps_its_name_and_loses_its_score(three_frames):
    index, _ = three_frames
    assert index.entries[4] == Instance(2, 1, "cat", 0.0, False, None)


def test_a_faint_matte_is_found_but_has_no_box():
    index, _ = described([("ghost", 0.5, block(2, 2, 8, 8, value=0.4))])
    assert index.entries[0].found and index.entries[0].box_xyxy_px is None and index.entries[0].score == 0.5


@pytest.mark.parametrize(
    ("alpha", "box"),
    [
        (block(2, 3, 8, 9), (2, 3, 8, 9)),
        (block(0, 0, WIDTH, HEIGHT), (0, 0, WIDTH, HEIGHT)),
        (block(39, 19, 40, 20), (39, 19, 40, 20)),
        (block(2, 3, 8, 9) + block(30, 15, 31, 16), (2, 3, 31, 16)),
        (block(2, 3, 8, 9, value=0.5), None),
        (torch.zeros(HEIGHT, WIDTH), None),
    ],
)
def test_the_bounding_box_holds_all_that_is_above_one_half(alpha, box):
    assert bounding_box(alpha) == box


def test_the_bounding_box_has_a_threshold():
    assert bounding_box(block(2, 3, 8, 9, value=0.1), threshold=0) == (2, 3, 8, 9)


def test_mattes_of_another_number_than_the_index_are_refused_naming_both(three_frames):
    index, alphas = three_frames
    index.check(alphas)
    with pytest.raises(ValueError, match="There are 3 mattes but an index of 5 instances"):
        index.check(alphas[:3])


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("0", [1, 0, 1, 1, 0]),
        ("1", [0, 1, 0, 0, 1]),
        ("0, 1", [1, 1, 1, 1, 1]),
        ("0-1", [1, 1, 1, 1, 1]),
        ("1;7  0-0", [1, 1, 1, 1, 1]),
        ("7", [0, 0, 0, 0, 0]),
        ("", [0, 0, 0, 0, 0]),
        (" , ", [0, 0, 0, 0, 0]),
    ],
)
def test_instances_are_chosen_by_their_number_within_the_frame(three_frames, text, chosen):
    assert with_index(three_frames[0], text) == [bool(one) for one in chosen]


@pytest.mark.parametrize(
    ("text", "named"),
    [("first", "first"), ("0, -1", "-1"), ("1.5", "1.5"), ("1-", "1-"), ("0 1e3", "1e3")]
    # Half an emoji, which no log could be told of.
    + [("0 \ud83d", "\\ud83d")],
)
def test_what_is_no_number_of_an_instance_is_named(three_frames, text, named):
    with pytest.raises(ValueError) as refusal:
        with_index(three_frames[0], text)
    assert f'"{named}" is not a number' in str(refusal.value) and '"1-3"' in str(refusal.value)


def test_a_span_of_numbers_that_is_written_backwards_is_turned_round_in_the_refusal(three_frames):
    with pytest.raises(ValueError, match='"3-1" holds no number.*"1-3"'):
        with_index(three_frames[0], "0, 3-1")


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("dog", [0, 1, 0, 1, 0]),
        (" DOG , cat ", [0, 1, 0, 1, 1]),
        ("do", [0, 0, 0, 0, 0]),
        ("", [0, 0, 0, 0, 0]),
        (",", [0, 0, 0, 0, 0]),
    ],
)
def test_instances_are_chosen_by_name_whatever_the_case(three_frames, text, chosen):
    assert with_label(three_frames[0], text) == [bool(one) for one in chosen]


def test_case_does_not_matter_in_other_languages_either():
    index, _ = described([("Straße", 1.0, block(0, 0, 4, 4)), ("女孩", 1.0, block(5, 5, 9, 9))])
    assert with_label(index, "STRASSE") == [True, False]
    assert with_label(index, "女孩") == [False, True]


def test_instances_are_chosen_by_score_and_what_was_not_found_never_is(three_frames):
    index, _ = three_frames
    assert with_score(index, 0.7) == [False, True, False, True, False]
    assert with_score(index, 0.0) == [True, True, False, True, False]


def test_instances_are_chosen_by_the_share_of_the_picture_they_cover(three_frames):
    _, alphas = three_frames
    share = 36 / (HEIGHT * WIDTH)
    assert with_area(alphas, 0.01, 0.1) == [True, False, False, False, False]
    assert with_area(alphas, share - 1e-6, share + 1e-6) == [True, False, False, False, False]
    assert with_area(alphas, 0.1, 1.0) == [False, True, False, True, False]
    assert with_area(alphas, 0.25, 0.25) == [False, False, False, True, False]
    with pytest.raises(ValueError, match="25 per cent of the picture, is above the largest, 10 per cent"):
        with_area(alphas, 0.25, 0.1)


@pytest.mark.parametrize(
    ("x", "y", "chosen"),
    [
        (2, 2, [1, 0, 0, 0, 0]),
        (7.9, 7.9, [1, 0, 0, 0, 0]),
        (8, 8, [0, 0, 0, 0, 0]),
        (25, 15, [0, 1, 0, 1, 0]),
        (-1, 5, [0, 0, 0, 0, 0]),
        (WIDTH, 5, [0, 0, 0, 0, 0]),
        (5, HEIGHT, [0, 0, 0, 0, 0]),
    ],
)
def test_instances_are_chosen_by_a_point_on_them(three_frames, x, y, chosen):
    assert at_point(three_frames[1], x, y) == [bool(one) for one in chosen]


def test_a_point_on_half_a_pixel_counts():
    assert at_point(torch.stack([block(2, 2, 8, 8, value=0.5), block(2, 2, 8, 8, value=0.49)]), 4, 4) == [True, False]
    assert at_point(block(0, 0, 3, 3)[None], 0, 0) == [True]


# The centres lie at (19, 16), (22.5, 12.5) and (24.5, 9); the sides of the boxes come in other orders.
PLACES = {"A": block(6, 15, 32, 17), "B": block(21, 6, 24, 19), "C": block(14, 7, 35, 11)}
ORDERS = {
    "left": "ABC",
    "right": "CBA",
    "top": "CBA",
    "bottom": "ABC",
    "center": "BCA",
    "largest": "CAB",
    "smallest": "BAC",
}


def test_every_position_is_tested():
    assert sorted(ORDERS) == sorted(POSITIONS)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_the_first_instances_of_each_frame_in_the_order_of_a_position_are_chosen(position, count):
    frames = ("CAB", "BAC")
    index, alphas = described(*([(name, 1.0, PLACES[name]) for name in frame] for frame in frames))
    chosen = at_position(index, alphas, position, count)
    for number, frame in enumerate(frames):
        named = {name for name, one in zip(frame, chosen[3 * number : 3 * number + 3]) if one}
        assert named == set(ORDERS[position][:count])


def test_equals_are_chosen_by_their_number_and_the_missing_not_at_all(three_frames):
    index, alphas = described([("", 1.0, block(2, 2, 6, 6)), ("", 1.0, block(12, 2, 16, 6))])
    assert at_position(index, alphas, "largest", 1) == [True, False]
    assert at_position(index, alphas, "top", 1) == [True, False]
    assert at_position(*three_frames, "smallest", 2) == [True, True, False, True, False]


def test_a_faint_instance_has_a_place_too():
    index, alphas = described([("", 1.0, block(30, 2, 36, 8)), ("", 1.0, block(2, 2, 8, 8, value=0.3))])
    assert at_position(index, alphas, "left", 1) == [False, True]


def test_the_place_of_an_instance_is_that_of_its_solid_part():
    index, alphas = described(
        [("", 1.0, block(30, 2, 36, 8) + block(0, 2, 30, 8, value=0.3)), ("", 1.0, block(20, 2, 26, 8))]
    )
    assert at_position(index, alphas, "left", 1) == [False, True]


def test_cancelling_is_heard_before_each_matte(three_frames):
    index, alphas = three_frames
    for work, mattes in (
        (lambda heard: with_area(alphas, 0, 1, heard), 5),
        (lambda heard: at_position(index, alphas, "left", 1, heard), 3),
        (lambda heard: merge_by_label(index, alphas, heard), 5),
        (lambda heard: merge_frames(index, alphas, heard), 5),
    ):
        told = []
        work(lambda told=told: told.append(None))
        assert len(told) == mattes


def test_kept_instances_keep_frame_and_number_and_no_frame_is_lost(three_frames):
    index, alphas = three_frames
    kept, mattes = keep(index, alphas, [False, True, False, False, False])
    assert kept.frame_count == 3 and len(kept) == len(mattes) == 3
    assert kept.entries[0] == index.entries[1] and torch.equal(mattes[0], alphas[1])
    for entry, matte, frame in zip(kept.entries[1:], mattes[1:], (1, 2)):
        assert (entry.frame, entry.found) == (frame, False) and not matte.any()


def test_keeping_everything_changes_nothing(three_frames):
    index, alphas = three_frames
    kept, mattes = keep(index, alphas, [True] * 5)
    assert kept == index and torch.equal(mattes, alphas)


def numbered(index: Instances) -> list[tuple[int, int, str]]:
    return [(entry.frame, entry.index, entry.label) for entry in index.entries]


def test_mattes_of_one_name_in_a_frame_become_one():
    index, alphas = described(
        [
            ("dog", 0.4, block(2, 2, 8, 8, value=0.7)),
            ("cat", 0.5, block(20, 2, 30, 8)),
            ("dog", 0.9, block(4, 2, 12, 8)),
        ],
        [("dog", 0.3, block(2, 2, 8, 8))],
    )
    merged, mattes = merge_by_label(index, alphas)
    assert numbered(merged) == [(0, 0, "dog"), (0, 1, "cat"), (1, 0, "dog")]
    torch.testing.assert_close(mattes[0], (alphas[0] + alphas[2]).clamp(max=1))
    assert torch.equal(mattes[1], alphas[1]) and torch.equal(mattes[2], alphas[3])
    assert merged.entries[0].score == 0.9 and merged.entries[0].box_xyxy_px == (2, 2, 12, 8)
    assert merged.frame_count == 2


def test_merging_is_found_when_any_of_its_parts_is():
    """A detector may be sure of nothing, and SAM's estimate of its own mask may even fall below 0."""
    for score in (0.0, -0.1):
        index, alphas = described([("dog", 0.5, block(0, 0, 0, 0)), ("dog", score, block(2, 2, 8, 8))])
        (entry,) = merge_by_label(index, alphas)[0].entries
        assert entry.found and entry.box_xyxy_px == (2, 2, 8, 8)


def test_without_labels_all_of_a_frame_become_one(three_frames):
    index, alphas = three_frames
    merged, mattes = merge_by_label(without_labels(index), alphas)
    assert numbered(merged) == [(0, 0, ""), (1, 0, ""), (2, 0, "")]
    assert [entry.found for entry in merged.entries] == [True, False, True]
    torch.testing.assert_close(mattes, merge_frames(index, alphas))


def test_shares_of_a_pixel_add_up_and_never_exceed_1():
    index, alphas = described([("a", 1.0, block(2, 2, 8, 8, value=0.6)), ("b", 1.0, block(2, 2, 8, 8, value=0.4))])
    assert merge_frames(index, alphas)[0, 4, 4] == pytest.approx(1.0)
    assert merge_frames(index, alphas * 2).max() == 1


def test_one_matte_per_frame_comes_out_of_merging_frames(three_frames):
    index, alphas = three_frames
    frames = merge_frames(index, alphas)
    assert frames.shape == (3, HEIGHT, WIDTH)
    assert torch.equal(frames[0], alphas[0] + alphas[1]) and not frames[1].any() and torch.equal(frames[2], alphas[3])


def test_nothing_here_changes_what_it_was_given(three_frames):
    index, alphas = three_frames
    before = alphas.clone()
    keep(index, alphas, [True, False, True, False, True])
    merge_by_label(index, alphas)
    merge_frames(index, alphas)
    at_position(index, alphas, "center", 1)
    assert torch.equal(alphas, before)
    assert without_labels(index) != index and index.entries[0] == replace(index.entries[0], label="girl")
