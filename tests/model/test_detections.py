"""Which of the boxes that a detector found are meant."""

from __future__ import annotations

import pytest
import torch

from mam_model.detections import (
    ORDERS,
    Detection,
    Phrase,
    Place,
    at_place,
    chosen,
    detections_of,
    highest_number_missed,
    in_order,
    prompts_of,
    read_phrases,
    read_pick,
    subjects_of,
    without_overlaps,
)
from mam_model.prompt import PromptError
from mam_model.view import numbered_boxes

WIDTH, HEIGHT = 200, 100


def box(x: float, y: float, width: float = 10, height: float = 10, score: float = 0.5, subject: int = 0) -> Detection:
    """A box by its centre."""
    return Detection((x - width / 2, y - height / 2, x + width / 2, y + height / 2), score, subject)


def places_of(text: str) -> list[tuple[str, Place | None]]:
    return [(phrase.subject, phrase.place) for phrase in read_phrases(text)]


@pytest.mark.parametrize(
    "text",
    [
        "girl, umbrella",
        "girl. umbrella.",
        "girl; umbrella",
        "girl\numbrella",
        "  The Girl ,, an umbrella. ",
        "girl，umbrella。",
    ],
)
def test_commas_dots_and_new_lines_part_what_is_looked_for(text):
    assert subjects_of(read_phrases(text)) == ("girl", "umbrella")


def test_a_dot_between_digits_parts_nothing():
    assert subjects_of(read_phrases("3.5 inch disk. dog")) == ("3.5 inch disk", "dog")


def test_a_phrase_keeps_how_it_was_written():
    assert read_phrases("  Second  Dog from the left ") == (
        Phrase("Second Dog from the left", "dog", Place("left", 1)),
    )


def test_what_is_asked_twice_is_looked_for_once():
    phrases = read_phrases("the girl on the left, a girl on the right, girl on the left")
    assert subjects_of(phrases) == ("girl",)
    assert [phrase.place for phrase in phrases] == [Place("left"), Place("right"), Place("left")]
    assert len(read_phrases("dog, dog, dog")) == 1


SPOKEN = {
    "the girl in the middle": ("girl", Place("middle")),
    "girl in the center of the picture": ("girl", Place("middle")),
    "second dog from the left": ("dog", Place("left", 1)),
    "the dog second from the left": ("dog", Place("left", 1)),
    "3rd person from the right": ("person", Place("right", 2)),
    "the two dogs on the right": ("dogs", Place("right", 0, 2)),
    "two of the dogs on the right": ("dogs", Place("right", 0, 2)),
    "both cats at the top": ("cats", Place("top", 0, 2)),
    "5 apples at the bottom": ("apples", Place("bottom", 0, 5)),
    "leftmost cat": ("cat", Place("left")),
    "the right-most cat": ("cat", Place("right")),
    "left dog": ("dog", Place("left")),
    "dog far to the left": ("dog", Place("left")),
    "man on the left-hand side": ("man", Place("left")),
    "man on the right side of the image": ("man", Place("right")),
    "woman who is on the left": ("woman", Place("left")),
    "topmost shelf": ("shelf", Place("top")),
    "lowest shelf": ("shelf", Place("bottom")),
    "bird in the upper right": ("bird", Place("top right")),
    "bird in the bottom left corner": ("bird", Place("bottom left")),
    "top-left window": ("window", Place("top left")),
    "fish in the lower right of the frame": ("fish", Place("bottom right")),
    "the largest dog": ("dog", Place("largest")),
    "second-largest dog": ("dog", Place("largest", 1)),
    "the two biggest dogs": ("dogs", Place("largest", 0, 2)),
    "biggest two dogs": ("dogs", Place("largest", 0, 2)),
    "smallest apple": ("apple", Place("smallest")),
    "nearest car": ("car", Place("nearest")),
    "car closest to the camera": ("car", Place("nearest")),
    "person in front": ("person", Place("nearest")),
    "woman in the foreground": ("woman", Place("nearest")),
    "person in the background": ("person", Place("farthest")),
    "car furthest from the camera": ("car", Place("farthest")),
    "girl (on the left)": ("girl", Place("left")),
    "highest bird": ("bird", Place("top")),
    "uppermost bird": ("bird", Place("top")),
    "lowermost drawer": ("drawer", Place("bottom")),
    "bottommost drawer": ("drawer", Place("bottom")),
    "central figure": ("figure", Place("middle")),
    "boat in the centre": ("boat", Place("middle")),
    "tiniest fish": ("fish", Place("smallest")),
    "frontmost chair": ("chair", Place("nearest")),
    "rearmost chair": ("chair", Place("farthest")),
    "farthest hill": ("hill", Place("farthest")),
    "man in the back": ("man", Place("farthest")),
    "man at the rear": ("man", Place("farthest")),
}


@pytest.mark.parametrize("text", SPOKEN)
def test_words_for_a_place_are_taken_from_the_phrase(text):
    assert places_of(text) == [SPOKEN[text]]


def test_numbers_are_understood_in_words_and_in_digits():
    ordinals = "first second third fourth fifth sixth seventh eighth ninth tenth 11th".split()
    assert [places_of(f"{word} dog from the left") for word in ordinals] == [
        [("dog", Place("left", passed_over))] for passed_over in range(11)
    ]
    counts = "one two three four five six seven eight nine ten 11".split()
    assert [places_of(f"the {word} dogs on the left") for word in counts] == [
        [("dogs", Place("left", 0, count))] for count in range(1, 12)
    ]


@pytest.mark.parametrize(
    "words",
    [
        "the ones on the left",
        "second one from the left",
        "one of them on the left",
        "them on the left",
        "the left one",
        "left box",
    ],
)
def test_words_that_stand_for_the_thing_are_not_looked_for(words):
    (phrase,) = read_phrases(f"dogs: {words}")
    assert (phrase.subject, phrase.place.order) == ("dogs", "left")


def test_every_order_can_be_said():
    assert {place.order for _, place in SPOKEN.values()} == set(ORDERS)


@pytest.mark.parametrize(
    "text",
    [
        "dog",
        "cake with a cherry on top",
        "house on the right of the road",
        "man in the middle of the street",
        "girl in front of the house",
        "cup on the left table",
        "red t-shirt",
        "top hat",
        "two dogs",
    ],
)
def test_words_that_describe_the_subject_stay_with_it(text):
    assert places_of(text) == [(text, None)]


def test_what_stands_in_quotes_is_looked_for_as_it_is():
    assert places_of('"left hand", “dog in front”') == [("left hand", None), ("dog in front", None)]
    assert places_of("left hand") == [("hand", Place("left"))]


@pytest.mark.parametrize(
    "text", ["dogs, second from the left", "dogs: second from the left", "dogs. The second from the left!"]
)
def test_a_place_alone_speaks_of_the_thing_before_it(text):
    assert places_of(text) == [("dogs", Place("left", 1))]


def test_no_label_holds_a_comma_which_would_part_names():
    (phrase,) = read_phrases("dogs, second from the left")
    assert phrase.written == "dogs second from the left"


def test_places_after_each_other_speak_of_the_same_thing():
    assert places_of("dogs, the leftmost, the two on the right") == [
        ("dogs", Place("left")),
        ("dogs", Place("right", 0, 2)),
    ]


@pytest.mark.parametrize("text", ["on the left", "the largest one", "second from the right, dog"])
def test_a_place_of_nothing_is_refused_with_an_example(text):
    with pytest.raises(PromptError, match='does not say what to look for.*"dog on the left"'):
        read_phrases(text)


@pytest.mark.parametrize("text", ["", "  \n", ",.;", '""', '"..."'])
def test_no_text_is_answered_with_examples(text):
    with pytest.raises(PromptError, match='Write what to look for, such as "dog"'):
        read_phrases(text)


@pytest.mark.parametrize("text", ["😀", "女の子", "dog, 狗", "собака"])
def test_another_script_is_told_that_english_is_read(text):
    with pytest.raises(PromptError, match="reads English"):
        read_phrases(text)


def test_accents_are_no_other_script():
    assert subjects_of(read_phrases("café")) == ("café",)


def test_a_book_is_refused():
    with pytest.raises(PromptError, match="500,000 characters, and at most 4,000"):
        read_phrases("dog, " * 100_000)


# Three in a row, of growing size, the middle one ends lowest.
ROW = [box(20, 50, 10, 10), box(100, 60, 20, 60), box(160, 40, 30, 30)]


@pytest.mark.parametrize(
    ("order", "expected"),
    {
        "left": [0, 1, 2],
        "right": [2, 1, 0],
        "top": [2, 0, 1],
        "bottom": [1, 0, 2],
        "top left": [0, 1, 2],
        "top right": [2, 1, 0],
        "bottom left": [0, 1, 2],
        "bottom right": [2, 1, 0],
        "middle": [1, 2, 0],
        "largest": [1, 2, 0],
        "smallest": [0, 2, 1],
        "nearest": [1, 2, 0],
        "farthest": [0, 2, 1],
    }.items(),
)
def test_a_place_orders_the_boxes(order, expected):
    assert at_place(ROW, Place(order, 0, 3), WIDTH, HEIGHT) == [ROW[place] for place in expected]
    assert at_place(ROW, Place(order, 1), WIDTH, HEIGHT) == [ROW[expected[1]]]
    assert at_place(ROW[::-1], Place(order, 0, 2), WIDTH, HEIGHT) == [ROW[place] for place in expected[:2]]


def test_the_middle_of_a_row_is_the_one_with_as_many_on_either_side():
    crowd = [box(x, 50) for x in (10, 20, 30, 40, 190)]
    assert at_place(crowd, Place("middle"), WIDTH, HEIGHT) == [crowd[2]]
    shelves = [box(100 + y % 3, y) for y in (10, 20, 90)]
    assert at_place(shelves, Place("middle"), WIDTH, HEIGHT) == [shelves[1]]


def test_of_two_in_the_middle_the_one_nearer_to_the_pictures_centre_is_meant():
    pair = [box(20, 50), box(110, 50)]
    assert at_place(pair, Place("middle"), WIDTH, HEIGHT) == [pair[1]]
    pair = [box(50, 10), box(150, 40)]
    assert at_place(pair, Place("middle"), WIDTH, HEIGHT) == [pair[1]]


@pytest.mark.parametrize("order", ["top left", "top right", "bottom left", "bottom right"])
def test_the_way_to_a_corner_is_measured_in_shares_of_the_picture(order):
    """A fifth and a tenth of the sides away is nearer than a tenth and three tenths, though it is more pixels."""
    near, far = (
        box(x if "left" in order else WIDTH - x, y if "top" in order else HEIGHT - y) for x, y in ((40, 10), (20, 30))
    )
    assert at_place([far, near], Place(order), WIDTH, HEIGHT) == [near]


def test_of_boxes_that_end_at_nearly_the_same_height_the_larger_is_nearer():
    far, near = box(20, 80.5, 10, 20), box(100, 70, 30, 40)
    assert at_place([far, near], Place("nearest"), WIDTH, HEIGHT) == [near]
    assert at_place([far, near], Place("farthest"), WIDTH, HEIGHT) == [far]


def test_of_two_dogs_none_is_the_third():
    assert at_place(ROW[:2], Place("left", 2), WIDTH, HEIGHT) == []
    assert at_place(ROW[:2], Place("left", 1, 5), WIDTH, HEIGHT) == [ROW[1]]
    assert at_place([], Place("middle"), WIDTH, HEIGHT) == []


def test_boxes_that_cannot_be_told_apart_keep_their_order():
    same = [box(50, 50, score=0.9), box(50, 50, score=0.8)]
    for order in ORDERS:
        assert at_place(same, Place(order), WIDTH, HEIGHT) == [same[0]]


@pytest.mark.parametrize(
    ("by", "expected"),
    {"score": [1, 2, 0], "size": [2, 0, 1], "left to right": [1, 0, 2], "top to bottom": [0, 2, 1]}.items(),
)
def test_boxes_are_numbered_by_score_size_or_position(by, expected):
    boxes = [box(50, 20, 20, 20, 0.3), box(10, 80, 10, 10, 0.9), box(90, 50, 40, 40, 0.6)]
    assert in_order(boxes, by) == [boxes[place] for place in expected]


def test_of_boxes_that_overlap_the_most_certain_stays_whatever_it_is():
    sure, doubled, apart = box(50, 50, 40, 40, 0.9, 0), box(52, 50, 40, 40, 0.8, 1), box(120, 50, 40, 40, 0.3, 0)
    assert without_overlaps([doubled, apart, sure], 0.7) == [sure, apart]
    assert without_overlaps([doubled, apart, sure], 0.95) == [sure, doubled, apart]
    assert without_overlaps([doubled, apart, sure], 1.0) == [sure, doubled, apart]
    assert without_overlaps([], 0.7) == []


def raw(*rows: tuple[tuple[float, ...], tuple[float, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([box for box, _ in rows]), torch.tensor([scores for _, scores in rows])


# Tokens: [CLS] red dog . girl .
TOKENS = [[1, 2], [4]]


def test_a_box_belongs_to_the_thing_with_its_best_word():
    boxes, scores = raw(
        ((0.5, 0.5, 0.2, 0.4), (0, 0.1, 0.6, 0, 0.3, 0)),
        ((0.2, 0.5, 0.2, 0.4), (0, 0.2, 0.1, 0, 0.8, 0)),
    )
    assert detections_of(boxes, scores, TOKENS, WIDTH, HEIGHT, 0.25, 0.25) == [
        Detection(pytest.approx((20, 30, 60, 70)), pytest.approx(0.8), 1),
        Detection(pytest.approx((80, 30, 120, 70)), pytest.approx(0.6), 0),
    ]


def test_uncertain_boxes_are_left_out_and_the_threshold_itself_is_not_enough():
    boxes, scores = raw(*(((0.5, 0.5, 0.2, 0.2), (0, 0, score, 0, 0, 0)) for score in (0.75, 0.5, 0.25)))
    assert [d.score for d in detections_of(boxes, scores, TOKENS, WIDTH, HEIGHT, 0.5, 0)] == [0.75]
    assert [d.score for d in detections_of(boxes, scores, TOKENS, WIDTH, HEIGHT, 0.0, 0)] == [0.75, 0.5, 0.25]
    assert [d.score for d in detections_of(boxes, scores, TOKENS, WIDTH, HEIGHT, 0.0, 0.5)] == [0.75]


def test_a_box_that_fits_no_word_of_the_text_is_left_out():
    boxes, scores = raw(((0.5, 0.5, 0.2, 0.2), (0.9, 0, 0.1, 0.9, 0, 0)))
    assert detections_of(boxes, scores, TOKENS, WIDTH, HEIGHT, 0.25, 0.25) == []
    assert detections_of(boxes, scores, TOKENS, WIDTH, HEIGHT, 0.25, 0.0)[0].score == pytest.approx(0.9)


def test_boxes_are_cut_at_the_pictures_edge_and_lines_are_left_out():
    sure = (0, 0, 0.9, 0, 0, 0)
    boxes, scores = raw(
        ((0.0, 0.5, 0.2, 2.0), sure),
        ((1.5, 0.5, 0.2, 0.2), sure),
        ((0.5, 0.5, 0.004, 0.5), sure),
        ((0.5, 0.5, 0.5, 0.009), sure),
    )
    (cut,) = detections_of(boxes, scores, TOKENS, WIDTH, HEIGHT, 0.25, 0.25)
    assert cut.box_xyxy_px == pytest.approx((0, 0, 20, 100))


def test_scores_that_are_no_numbers_find_nothing():
    boxes, scores = raw(((0.5, 0.5, 0.2, 0.2), (float("nan"),) * 6))
    assert detections_of(boxes, scores, TOKENS, WIDTH, HEIGHT, 0.0, 0.0) == []


DOGS = [box(x, 50, score=score) for x, score in ((150, 0.9), (20, 0.8), (80, 0.7))]


def labels(choice) -> list[tuple[int, str]]:
    return [(place, phrase.written) for place, phrase in choice]


def choose(text: str, detections=None, pick: str = "", at_most: int = 10) -> list[tuple[int, str]]:
    boxes = DOGS if detections is None else detections
    return labels(chosen(boxes, read_phrases(text), read_pick(pick), at_most, WIDTH, HEIGHT))


def test_without_a_place_all_boxes_are_taken_up_to_the_limit():
    assert choose("dog") == [(0, "dog"), (1, "dog"), (2, "dog")]
    assert choose("dog", at_most=2) == [(0, "dog"), (1, "dog")]
    assert choose("dog", []) == []


def test_the_place_in_the_text_chooses():
    assert choose("second dog from the left") == [(2, "second dog from the left")]
    assert choose("the two dogs on the right") == [(0, "the two dogs on the right"), (2, "the two dogs on the right")]
    assert choose("dog on the left, dog on the right") == [(1, "dog on the left"), (0, "dog on the right")]


def test_a_single_box_is_meant_whatever_the_place():
    for order in ("on the left", "on the right", "in the middle", "in the background"):
        assert choose(f"dog {order}", DOGS[:1]) == [(0, f"dog {order}")]


def test_each_phrase_chooses_among_its_own_boxes():
    mixed = [box(10, 50, subject=1), box(60, 50), box(120, 50)]
    assert choose("leftmost dog, girl", mixed) == [(1, "leftmost dog"), (0, "girl")]


def test_a_picked_number_overrules_text_and_limit():
    assert choose("dog on the left", pick="1, 3", at_most=1) == [(0, "dog on the left"), (2, "dog on the left")]
    assert choose("dog", pick="2-9") == [(1, "dog"), (2, "dog")]
    assert choose("dog", pick="7") == []
    assert choose("dog", pick="second from the left") == [(2, "dog")]
    assert choose("dog", pick="the two largest") == [(0, "dog"), (1, "dog")]
    assert choose("dog on the left, dog on the right", pick="1") == [(0, "dog on the left")]


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_pick_picks_nothing(text):
    assert read_pick(text) is None


@pytest.mark.parametrize("text", ["2", " 2 ", "2, 2", "2-2"])
def test_numbers_are_picked(text):
    assert read_pick(text) == {2}


@pytest.mark.parametrize("text", ["dog", ",", "-1", "1.5", "two", "the dog on the left", "1 and 2", "9" * 5000, "😀"])
def test_a_pick_that_is_neither_numbers_nor_a_place_is_refused(text):
    with pytest.raises(PromptError, match="is no choice among the boxes") as refusal:
        read_pick(text)
    assert len(str(refusal.value)) < 250


@pytest.mark.parametrize("text", ["4-2", "1, 4-2"])
def test_a_span_of_numbers_that_runs_backwards_is_refused_with_the_right_way_round(text):
    with pytest.raises(PromptError, match='"4-2" holds no number: write the smaller one first, "2-4"'):
        read_pick(text)


def test_a_number_that_no_frame_has_is_noticed():
    assert highest_number_missed(read_pick("5, 7"), [2, 3]) == 7
    assert highest_number_missed(read_pick("1"), [2, 3]) is None
    assert highest_number_missed(read_pick("0"), [2, 3]) == 0
    assert highest_number_missed(read_pick("3"), [2, 3]) is None
    assert highest_number_missed(read_pick("3, 5"), [2, 3]) is None
    assert highest_number_missed(read_pick("5"), [0, 0]) is None
    assert highest_number_missed(read_pick("the largest"), [1]) is None
    assert highest_number_missed(None, [1]) is None


def test_boxes_of_whole_numbers_are_compared_too():
    boxes = [Detection((0, 0, 10, 10), 1), Detection((0, 0, 10, 9), 0), Detection((20, 0, 30, 10), 1)]
    assert without_overlaps(boxes, 0.5) == [boxes[0], boxes[2]]


def test_boxes_become_targets_that_keep_phrase_and_score():
    choice = chosen(DOGS, read_phrases("dog"), None, 10, WIDTH, HEIGHT)
    prompts = prompts_of(DOGS, choice, "a target of its own")
    assert [(prompt.label, prompt.score, prompt.box_xyxy_px) for prompt in prompts] == [
        ("dog", detection.score, detection.box_xyxy_px) for detection in DOGS
    ]
    assert prompts_of(DOGS, [], "a target of its own") == ()


def test_boxes_of_a_phrase_or_all_boxes_can_form_one_target():
    mixed = [box(10, 50, subject=1, score=0.3), box(60, 50, score=0.9), box(120, 50, score=0.6)]
    choice = chosen(mixed, read_phrases("dog, girl"), None, 10, WIDTH, HEIGHT)
    dogs, girl = prompts_of(mixed, choice, "part of its phrase")
    assert (dogs.label, dogs.score, dogs.box_xyxy_px) == ("dog", 0.9, (55, 45, 125, 55))
    assert (girl.label, girl.score, girl.box_xyxy_px) == ("girl", 0.3, (5, 45, 15, 55))
    (together,) = prompts_of(mixed, choice, "part of one target")
    assert (together.label, together.score, together.box_xyxy_px) == ("dog and girl", 0.9, (5, 45, 125, 55))
    for how in ("part of its phrase", "part of one target"):
        assert prompts_of(mixed, [], how) == ()


def test_the_picture_to_choose_from_shows_chosen_boxes_in_colour_and_others_in_grey():
    picture = torch.zeros(HEIGHT, WIDTH, 3)
    boxes = [box(40, 60, 40, 40), box(140, 60, 40, 40)]
    shown = numbered_boxes(picture, boxes, [(0, Phrase("dog", "dog"))], ["dog"])
    assert shown.shape == picture.shape and 0 <= shown.min() and shown.max() <= 1
    left, right = shown[60, 20], shown[60, 120]
    assert left.max() - left.min() > 0.2
    assert right.max() == right.min() > 0.4
    assert (shown[60, 40] == 0).all()


def test_a_picture_without_boxes_is_shown_as_it_is():
    picture = torch.rand(20, 30, 3)
    assert torch.allclose(numbered_boxes(picture, [], [], ["dog"]), picture, atol=0.5 / 255 + 1e-6)
