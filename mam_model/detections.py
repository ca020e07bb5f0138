"""Boxes that a text detector found, and the words that say which of them are meant.

A phrase such as "second dog from the left" is read as what to look for ("dog") and which of the boxes to take (the
second, counted from the left). Detectors are good at the first and poor at the second, so the place is decided here, by
the boxes alone and always in the same way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .prompt import Prompt, PromptError

SORTED_BY = ("score", "size", "left to right", "top to bottom")
TARGETS = ("a target of its own", "part of its phrase", "part of one target")

_LONGEST_TEXT = 4000


@dataclass(frozen=True)
class Detection:
    """One box that a detector found.

    Attributes:
        box_xyxy_px: (x0, y0, x1, y1) inside the picture.
        score: the detector's confidence, 0..1.
        subject: which of the things looked for it is, counted from 0.
    """

    box_xyxy_px: tuple[float, float, float, float]
    score: float
    subject: int = 0

    @property
    def center_px(self) -> tuple[float, float]:
        """(x, y) of the middle of the box."""
        x0, y0, x1, y1 = self.box_xyxy_px
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def area_px(self) -> float:
        """Width times height of the box."""
        x0, y0, x1, y1 = self.box_xyxy_px
        return (x1 - x0) * (y1 - y0)


@dataclass(frozen=True)
class Place:
    """Which of several boxes are meant: `count` of them from place `first` on, in an order.

    Attributes:
        order: a key of ORDERS, such as "left": from left to right.
        first: how many are passed over; 1 for "second".
        count: how many are taken.
    """

    order: str
    first: int = 0
    count: int = 1


@dataclass(frozen=True)
class Phrase:
    """One thing that a text asks for.

    Attributes:
        written: how the user put it; becomes the label.
        subject: what the detector is asked for: lower case, without article and without the words of `place`.
        place: which of the boxes are meant when there are several; None takes them all.
    """

    written: str
    subject: str
    place: Place | None = None


_Order = Callable[[Detection], float | tuple[float, ...]]


def _orders(detections: Sequence[Detection], width: int, height: int) -> dict[str, _Order]:
    def corner(x: int, y: int) -> _Order:
        return lambda d: math.hypot(d.center_px[0] / width - x, d.center_px[1] / height - y)

    def foot(detection: Detection) -> int:
        # Feet on the same floor line never end in quite the same row.
        return round(detection.box_xyxy_px[3] / height * 50)

    return {
        "left": lambda d: d.center_px[0],
        "right": lambda d: -d.center_px[0],
        "top": lambda d: d.center_px[1],
        "bottom": lambda d: -d.center_px[1],
        "top left": corner(0, 0),
        "top right": corner(1, 0),
        "bottom left": corner(0, 1),
        "bottom right": corner(1, 1),
        "middle": _from_the_middle(detections, width, height),
        "largest": lambda d: -d.area_px,
        "smallest": lambda d: d.area_px,
        "nearest": lambda d: (-foot(d), -d.area_px),
        "farthest": lambda d: (foot(d), d.area_px),
    }


def _from_the_middle(detections: Sequence[Detection], width: int, height: int) -> _Order:
    """The middle of a row or a column is the one with as many on either side, wherever in the picture the row is."""
    centers = [detection.center_px for detection in detections]
    spreads = [max(axis) - min(axis) if centers else 0 for axis in zip(*centers)] or [0, 0]
    axis = 0 if spreads[0] >= spreads[1] else 1
    row = sorted(centers, key=lambda center: center[axis])
    half = (len(row) - 1) / 2

    def order(detection: Detection) -> tuple[float, float]:
        x, y = detection.center_px
        return abs(row.index((x, y)) - half), math.hypot(x - width / 2, y - height / 2)

    return order


ORDERS = tuple(_orders((), 1, 1))

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_COUNT = rf"(?:{'|'.join(_NUMBERS)}|both|\d{{1,3}})"
_ORDINAL = rf"(?:{'|'.join(_ORDINALS)}|\d{{1,3}}(?:st|nd|rd|th))"
_SUPERLATIVES = {
    **dict.fromkeys(("leftmost", "left"), "left"),
    **dict.fromkeys(("rightmost", "right"), "right"),
    **dict.fromkeys(("topmost", "uppermost", "highest"), "top"),
    **dict.fromkeys(("bottommost", "lowermost", "lowest"), "bottom"),
    **dict.fromkeys(("middle", "center", "centre", "central"), "middle"),
    **dict.fromkeys(("largest", "biggest"), "largest"),
    **dict.fromkeys(("smallest", "tiniest"), "smallest"),
    **dict.fromkeys(("nearest", "closest", "frontmost"), "nearest"),
    **dict.fromkeys(("farthest", "furthest", "rearmost"), "farthest"),
}
_FIRST_WORD = f"(?:{'|'.join(_SUPERLATIVES)})"
_CORNERS = {
    f"{row} {side}": f"{'top' if row in ('top', 'upper') else 'bottom'} {side}"
    for row in ("top", "upper", "bottom", "lower")
    for side in ("left", "right")
}
_PLACES = {
    "left": "left",
    "right": "right",
    "top": "top",
    "bottom": "bottom",
    **dict.fromkeys(("middle", "center", "centre"), "middle"),
    **dict.fromkeys(("front", "foreground"), "nearest"),
    **dict.fromkeys(("back", "background", "rear"), "farthest"),
    **_CORNERS,
}
# "On top" and "in back" without an article belong to a description ("cake with a cherry on top").
_NEED_THE = "top|bottom|back|rear"
_PLACE = "|".join(sorted(_PLACES, key=len, reverse=True))
# Patterns are compiled when the first text is read, by `re`, which keeps them: ComfyUI's start need not wait for that.
_WHERE = (
    r"(?:^|[\s,]+)(?:(?:that|which|who) (?:is|are) )?"
    r"(?:(?:far|all the way|furthest|farthest) )?(?:on|at|in|to|from|towards) "
    rf"(?:the (?:far |very |extreme |outer )?|(?!(?:{_NEED_THE})$))(?P<place>{_PLACE})"
    r"(?: hand)?(?: side| edge| corner| half| end)?"
    r"(?: of the (?:picture|image|photo|photograph|frame|screen|scene|group|row))?$"
)
_HOW_FAR = (
    r"(?:^|[\s,]+)(?:the )?(?P<word>nearest|closest|farthest|furthest)"
    r"(?: (?:to|from) (?:the )?(?:camera|viewer|lens|front|us|me))?$"
)
_WHICH = (
    rf"^(?:(?:(?P<ordinal>{_ORDINAL})|(?P<count>{_COUNT})) )?(?P<word>{'|'.join(_CORNERS)}|{_FIRST_WORD})"
    rf"(?: (?P<count_after>{_COUNT}))?(?: (?P<noun>.+))?$"
)
_NUMBERED = (
    rf"^(?:(?P<ordinal>{_ORDINAL})|(?P<count>{_COUNT}))(?: (?P<noun>.+))?$|"
    rf"^(?P<noun_before>.+?) (?:the )?(?P<ordinal_after>{_ORDINAL})$"
)
_PARTS = r'"([^"]*)"|“([^”]*)”|((?:(?<=\d)\.(?=\d)|[^"“.,;:?!\n，、；：。．？！])+)'


def read_phrases(text: str) -> tuple[Phrase, ...]:
    """The things that a text asks for.

    Commas, dots, colons and the like part them, and so do new lines. Words for a place at the beginning or the end of a
    phrase say which of several boxes is meant; a phrase of such words alone speaks of the thing before it ("dogs,
    second from the left"). What stands in double quotes is looked for as it is.

    Raises:
        PromptError: when there is nothing to look for, a place without a thing, letters of no Latin script, or too
            much text.
    """
    if len(text) > _LONGEST_TEXT:
        raise PromptError(
            f"The text has {len(text):,} characters, and at most {_LONGEST_TEXT:,} are read. Name only what to cut out."
        )
    phrases: list[Phrase] = []
    for literal, curly, plain in re.findall(_PARTS, text):
        written = " ".join((literal or curly or plain).split())
        if not re.search(r"[^\W_]|[^\x00-\x7f]", written):
            continue
        if literal or curly:
            phrase = Phrase(written, _without_articles(" ".join(re.sub(r"[.?]", " ", written.lower()).split())))
        else:
            phrase = _read_phrase(written)
        if not phrase.subject:
            if not phrases:
                raise PromptError(
                    f'"{written}" does not say what to look for. Name it, such as "dog on the left", or write '
                    'what to look for here and the place into "pick".'
                )
            before = phrases[-1]
            phrase = replace(phrase, subject=before.subject, written=f"{before.written} {written}")
            if before.place is None:
                phrases.pop()
        elif not re.search("[a-zà-öø-ÿ0-9]", phrase.subject):
            raise PromptError(
                f'The detector reads English, and "{written}" is not. Describe the subject in English words, such as '
                '"girl" or "red car".'
            )
        phrases.append(phrase)
    if not phrases:
        raise PromptError('Write what to look for, such as "dog", "girl, umbrella" or "second dog from the left".')
    return tuple(dict.fromkeys(phrases))


def subjects_of(phrases: Sequence[Phrase]) -> tuple[str, ...]:
    """What the detector is asked for: each subject of the phrases once, in their order."""
    return tuple(dict.fromkeys(phrase.subject for phrase in phrases))


def _without_articles(words: str) -> str:
    return re.sub(r"^(?:(?:the|a|an|all|of)\s+)+", "", words.strip(" ,")).strip(" ,")


def _read_phrase(written: str) -> Phrase:
    words = re.sub(r"\b(left|right)-hand\b", r"\1", " ".join(re.sub(r"[()]", " ", written.lower()).split()))
    words = re.sub(r"\b(left|right|top|bottom|upper|lower)[- ]most\b", r"\1most", words)
    # Other hyphens stay, because they belong to names such as t-shirt.
    words = _without_articles(re.sub(rf"\b({_ORDINAL}|top|upper|bottom|lower)-(?={_FIRST_WORD}\b)", r"\1 ", words))
    rest, order = words, None
    if where := re.search(_WHERE, words):
        rest, order = words[: where.start()], _PLACES[where["place"]]
    elif how_far := re.search(_HOW_FAR, words):
        rest, order = words[: how_far.start()], _SUPERLATIVES[how_far["word"]]
    if order is None:
        if not (which := re.match(_WHICH, words)):
            return Phrase(written, words)
        place = _place(
            (_SUPERLATIVES | _CORNERS)[which["word"]], which["ordinal"], which["count"] or which["count_after"]
        )
        return Phrase(written, _noun(which["noun"]), place)
    rest = _without_articles(rest)
    if numbered := re.match(_NUMBERED, rest):
        noun = numbered["noun"] or numbered["noun_before"]
        place = _place(order, numbered["ordinal"] or numbered["ordinal_after"], numbered["count"])
        return Phrase(written, _noun(noun), place)
    return Phrase(written, _noun(rest), Place(order))


def _noun(words: str | None) -> str:
    noun = _without_articles(words or "")
    return "" if noun in ("one", "ones", "them", "box", "boxes") else noun


def _place(order: str, ordinal: str | None, count: str | None) -> Place:
    if ordinal:
        number = int(ordinal[:-2]) if ordinal[0].isdigit() else _ORDINALS.index(ordinal) + 1
        return Place(order, first=max(0, number - 1))
    if count:
        number = int(count) if count.isdigit() else 2 if count == "both" else _NUMBERS.index(count) + 1
        return Place(order, count=max(1, number))
    return Place(order)


def read_pick(text: str) -> frozenset[int] | Place | None:
    """What the user picked among the numbered boxes: numbers from 1 ("2", "1, 3", "2-4"), or a place in words.

    Returns:
        The numbers, the place, or None for an empty text.
    Raises:
        PromptError: when it is neither, or a span of numbers runs backwards.
    """
    if not text.strip():
        return None
    parts = [part for part in re.split(r"[\s,;]+", text) if part]
    spans = [re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", part) for part in parts]
    if parts and all(spans):
        ranges = [range(int(span[1]), int(span[2] or span[1]) + 1) for span in spans]
        for part, numbers in zip(parts, ranges):
            if not numbers:
                first, last = part.split("-")
                raise PromptError(f'"{part}" holds no number: write the smaller one first, "{last}-{first}".')
        return frozenset(number for numbers in ranges for number in numbers)
    phrase = _read_phrase(text[:200])
    if phrase.place is None or phrase.subject:
        raise PromptError(
            f'"{" ".join(text[:60].split())}" is no choice among the boxes. Write their numbers ("2", "1, 3") or a '
            'place ("second from the left", "the two largest") into "pick".'
        )
    return phrase.place


def detections_of(
    boxes_cxcywh: Tensor,
    token_scores: Tensor,
    tokens_of_subjects: Sequence[Sequence[int]],
    width: int,
    height: int,
    box_threshold: float,
    text_threshold: float,
) -> list[Detection]:
    """What a grounded detector's raw output says about a picture (Liu et al., "Grounding DINO", arXiv 2303.05499).

    A box counts when one of its token scores is above `box_threshold`; that score is its confidence. It belongs to the
    subject with the highest score among its tokens, if that score is above `text_threshold`.

    Args:
        boxes_cxcywh: float [Q, 4], centre and size of Q boxes as shares of the picture.
        token_scores: float [Q, T] in 0..1, how well each box fits each token of the text.
        tokens_of_subjects: which of the T tokens make up each subject.
        width, height: of the picture in pixels. Boxes are cut at its edge, and dropped when less than a pixel is left.
    Returns:
        By descending score.
    """
    scores = token_scores.amax(dim=1)
    likenesses = torch.stack([token_scores[:, list(tokens)].amax(dim=1) for tokens in tokens_of_subjects], dim=1)
    likeness, subjects = likenesses.max(dim=1)
    kept = torch.nonzero((scores > box_threshold) & (likeness > text_threshold)).flatten()
    center, size = boxes_cxcywh[kept].double().split(2, dim=1)
    extent = torch.tensor([width, height], dtype=torch.float64)
    low = ((center - size / 2) * extent).clamp_min(0)
    high = torch.minimum((center + size / 2) * extent, extent)
    detections = [
        Detection(tuple(box), score, subject)
        for box, score, subject in zip(
            torch.cat([low, high], dim=1).tolist(), scores[kept].tolist(), subjects[kept].tolist()
        )
        if box[2] - box[0] >= 1 and box[3] - box[1] >= 1
    ]
    return sorted(detections, key=lambda detection: -detection.score)


def without_overlaps(detections: Sequence[Detection], highest_iou: float) -> list[Detection]:
    """Non-maximum suppression: of boxes that overlap more than that, whatever their subject, the most certain stays.

    Args:
        highest_iou: intersection over union, 0..1; 1 keeps everything.
    Returns:
        By descending score.
    """
    from torchvision.ops import nms

    if not detections:
        return []
    boxes = torch.tensor([detection.box_xyxy_px for detection in detections], dtype=torch.float32)
    scores = torch.tensor([detection.score for detection in detections], dtype=torch.float32)
    return [detections[place] for place in nms(boxes, scores, highest_iou).tolist()]


def in_order(detections: Sequence[Detection], by: str) -> list[Detection]:
    """The detections sorted.

    Args:
        by: one of SORTED_BY; highest score or largest area first, or by the centres of the boxes.
    """
    keys = {
        "score": lambda d: -d.score,
        "size": lambda d: -d.area_px,
        "left to right": lambda d: d.center_px,
        "top to bottom": lambda d: d.center_px[::-1],
    }
    return sorted(detections, key=keys[by])


def at_place(detections: Sequence[Detection], place: Place, width: int, height: int) -> list[Detection]:
    """The ones that a place means. There may be fewer, or none: of two dogs, none is the third.

    left, right, top and bottom compare the centres of the boxes; a corner their distance to it; middle takes the one
    with as many on either side; largest and smallest compare areas; nearest takes the box that ends lowest in the
    picture, because things on the ground stand lower the nearer they are, then the larger one. Ties keep their order.
    """
    order = _orders(detections, width, height)[place.order]
    return sorted(detections, key=order)[place.first : place.first + place.count]


def chosen(
    detections: Sequence[Detection],
    phrases: Sequence[Phrase],
    pick: frozenset[int] | Place | None,
    at_most: int,
    width: int,
    height: int,
) -> list[tuple[int, Phrase]]:
    """Which boxes of a frame become targets.

    Args:
        detections: sorted; their numbers are 1, 2, ...
        phrases: what was asked for, see `read_phrases`.
        pick: what the user picked among the numbers; replaces places in the phrases and `at_most`. See `read_pick`.
        at_most: how many boxes of each phrase are taken, the first ones.
    Returns:
        (place in `detections`, phrase) of each, phrase by phrase.
    """
    subjects = subjects_of(phrases)
    if pick is not None:
        picked = at_place(detections, pick, width, height) if isinstance(pick, Place) else None
        owners = {subject: phrase for phrase in reversed(phrases) for subject in (phrase.subject,)}
        return [
            (number, owners[subjects[detection.subject]])
            for number, detection in enumerate(detections)
            if (number + 1 in pick if picked is None else detection in picked)
        ]
    taken = []
    for phrase in phrases:
        own = [detection for detection in detections if subjects[detection.subject] == phrase.subject]
        if phrase.place is not None:
            own = at_place(own, phrase.place, width, height)
        numbers = [number for number, detection in enumerate(detections) if detection in own]
        taken += [(number, phrase) for number in numbers[:at_most]]
    return taken


def prompts_of(
    detections: Sequence[Detection], choice: Sequence[tuple[int, Phrase]], each_box_is: str
) -> tuple[Prompt, ...]:
    """The chosen boxes of a frame as prompts that keep phrase and score.

    Args:
        choice: see `chosen`.
        each_box_is: one of TARGETS. Boxes that make up one target become the box that spans them.
    """
    boxes = [
        Prompt(box_xyxy_px=detections[place].box_xyxy_px, label=phrase.written, score=detections[place].score)
        for place, phrase in choice
    ]
    if each_box_is == "a target of its own":
        return tuple(boxes)
    groups: dict[str, Prompt] = {}
    for box in boxes:
        name = box.label if each_box_is == "part of its phrase" else ""
        groups[name] = groups[name].merged_with(box) if name in groups else box
    if each_box_is == "part of one target" and groups:
        # No comma: names are parted by commas where instances are chosen by name.
        names = " and ".join(dict.fromkeys(phrase.written for _, phrase in choice))
        return (replace(groups[""], label=names),)
    return tuple(groups.values())


def highest_number_missed(pick: frozenset[int] | Place | None, counts: Sequence[int]) -> int | None:
    """The number that was picked although no frame has so many boxes; None when some frame has a picked one.

    Args:
        counts: how many boxes each frame has.
    """
    if not isinstance(pick, frozenset) or not any(counts) or any(1 <= number <= max(counts) for number in pick):
        return None
    return max(pick)
