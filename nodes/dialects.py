"""Every way in which people and other packs write points and boxes, read into pixels of the original picture."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..mam_model.prompt import PromptError

_POINTS_HELP = (
    'Write x and y, one point per line ("120 80"), or as JSON: [{"x": 120, "y": 80}], [[120, 80]], or '
    '{"points": [[120, 80]], "labels": [1]}. A list of such lists gives each frame its own points.'
)
_BOXES_HELP = (
    'Write left, top, right and bottom, one box per line ("10 20 300 400"), or as JSON: [[10, 20, 300, 400]] or '
    '[{"x": 10, "y": 20, "width": 290, "height": 380}]. A list of such lists gives each frame its own boxes.'
)
# Not right behind another number: "12-80" and "12.80.5" are no points.
_NUMBER = re.compile(r"(?<![\d.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|[-+]?inf", re.IGNORECASE)


@dataclass(frozen=True)
class Point:
    """One point as somebody wrote it; `label` is 1 on the target, 0 beside it."""

    x: float
    y: float
    label: int


@dataclass(frozen=True)
class Box:
    """One box as somebody wrote it: (x0, y0, x1, y1), with a label and a score if it had them."""

    xyxy: tuple[float, float, float, float]
    label: str = ""
    score: float = 1.0


def read_points(written: Any, label: int) -> list[list[Point]]:
    """Points per frame, from text or from another pack's socket.

    Args:
        written: "120 80" lines; core's and KJNodes' [{"x", "y"}, ...], as text with single quotes too; [[x, y], ...];
            {"points": [[x, y], ...], "labels": [1, 0, ...]} of SAM3 packs; {"positive": [...], "negative": [...]} of
            KJNodes' editor; one point alone; or a list of such lists, one per frame.
        label: of points that do not say themselves.
    Returns:
        One list of points per frame; a single list stands for all frames.
    Raises:
        PromptError: when it is none of these, quoting what could not be read.
    """
    if isinstance(written, str):
        lines = _lines_unless_json(written)
        if lines is not None:
            return [[Point(*_numbers(line, 2, _POINTS_HELP), label) for line in lines]]
        written = _json(written, _POINTS_HELP)
    if isinstance(written, dict) or _is_pair(written):
        return [_points_of_frame(written, label)]
    if not isinstance(written, (list, tuple)):
        raise PromptError(f"{_quoted(written)} is not a list of points. {_POINTS_HELP}")
    if written and all(_is_frame_of_points(item) for item in written):
        return [_points_of_frame(frame, label) for frame in written]
    return [_points_of_frame(written, label)]


def read_boxes(written: Any, corners: bool = True) -> list[list[Box]]:
    """Boxes per frame, from text or from another pack's socket.

    Args:
        written: "10 20 300 400" lines; core's BOUNDING_BOX, as a dict {"x", "y", "width", "height"} with optional
            "label" and "score", a list of them, or a list of lists per frame; lists of four numbers (BBOX of KJNodes
            and others, BBOXES and BOX of LayerStyle), nested per frame or not; SEGS of the Impact Pack; or the JSON
            of any of these.
        corners: four bare numbers are left, top, right, bottom; otherwise left, top, width, height.
    Returns:
        One list of boxes per frame; a single list stands for all frames.
    Raises:
        PromptError: when it is none of these, quoting what could not be read.
    """
    if isinstance(written, str):
        lines = _lines_unless_json(written)
        if lines is not None:
            return [[_box(_numbers(line, 4, _BOXES_HELP), corners) for line in lines]]
        written = _json(written, _BOXES_HELP)
    if _is_segs(written):
        return [[_box_of_seg(seg) for seg in written[1]]]
    if isinstance(written, dict) or _is_numbers(written, 4):
        return [[_box(written, corners)]]
    written = _as_list(written)
    if not isinstance(written, list):
        raise PromptError(f"{_quoted(written)} is not a list of boxes. {_BOXES_HELP}")
    if written and all(not isinstance(item, dict) and not _is_numbers(item, 4) for item in written):
        frames = [_as_list(item) for item in written]
        if all(isinstance(frame, list) and not _holds_numbers(frame) for frame in frames):
            return [[_box(item, corners) for item in frame] for frame in frames]
    return [[_box(item, corners) for item in written]]


def in_pixels(frames: list[list[Point]], width: int, height: int) -> list[list[Point]]:
    """Points whose coordinates go from 0 to 1, in pixels of a picture of that size.

    Raises:
        PromptError: when a coordinate lies outside 0..1, because then it is probably in pixels already.
    """
    for frame in frames:
        for point in frame:
            if not (0 <= point.x <= 1 and 0 <= point.y <= 1):
                raise PromptError(
                    f"The point ({point.x:g}, {point.y:g}) is not between 0 and 1. If your points are in pixels, set "
                    '"coordinates" to "pixels".'
                )
    return [[Point(p.x * width, p.y * height, p.label) for p in frame] for frame in frames]


def write_points(points: list[tuple[float, float]]) -> str:
    """Points in the form that core's SAM3 Detect and KJNodes read: [{"x": 120, "y": 80}, ...]."""
    return json.dumps([{"x": _plain(x), "y": _plain(y)} for x, y in points])


def write_box(xyxy_px: tuple[float, float, float, float], label: str, score: float) -> dict[str, Any]:
    """A box in core's form: {"x", "y", "width", "height"} in pixels, with its label and score.

    One drawn from right to left is turned round: other nodes know no negative width.
    """
    x0, x1 = sorted((xyxy_px[0], xyxy_px[2]))
    y0, y1 = sorted((xyxy_px[1], xyxy_px[3]))
    sides = {"x": _plain(x0), "y": _plain(y0), "width": _plain(x1 - x0), "height": _plain(y1 - y0)}
    return {**sides, "label": label, "score": score}


def _lines_unless_json(text: str) -> list[str] | None:
    if text.strip().startswith(("[", "{")):
        return None
    return [line for line in re.split(r"[\n;]", text) if line.strip()]


def _json(text: str, help_text: str) -> Any:
    try:
        # KJNodes and the nodes that read it also write single quotes.
        return json.loads(text if '"' in text else text.replace("'", '"'))
    # ValueError also stands for a whole number of thousands of digits, which Python refuses to read.
    except (ValueError, RecursionError):
        raise PromptError(
            f"This starts like JSON but cannot be read as such (is a bracket left open, or a comma missing?): "
            f"{_quoted(text)}. {help_text}"
        ) from None


def _numbers(line: str, count: int, help_text: str) -> tuple[float, ...]:
    rest = _NUMBER.sub(" ", line)
    numbers = tuple(float(number) for number in _NUMBER.findall(line))
    # Text from a web page separates numbers by spaces that only look like one.
    if len(numbers) != count or "".join(rest.split()).strip(",()[]"):
        raise PromptError(f"{_quoted(line.strip())} cannot be read. {help_text}")
    return numbers


def _is_numbers(item: Any, count: int) -> bool:
    items = _as_list(item)
    # Detectors also give plain lists of NumPy's numbers.
    return isinstance(items, list) and len(items) == count and all(_is_number(item) for item in items)


def _is_number(item: Any) -> bool:
    return isinstance(_as_list(item), (int, float))


def _is_pair(item: Any) -> bool:
    return _is_numbers(item, 2)


def _is_frame_of_points(item: Any) -> bool:
    """A list of points, as opposed to one point that is itself a list of two numbers."""
    if isinstance(item, dict):
        return bool({"points", "positive", "negative"} & item.keys())
    return isinstance(item, (list, tuple)) and not _holds_numbers(item)


def _holds_numbers(items: list | tuple) -> bool:
    """Whether this is meant to be one point or one box, even if it has the wrong count."""
    return any(_is_number(item) for item in items)


def _points_of_frame(written: Any, label: int) -> list[Point]:
    if isinstance(written, dict) and "points" in written:
        items, labels = written["points"], written.get("labels")
        if not (isinstance(items, list) and isinstance(labels, list)) or len(labels) != len(items):
            raise PromptError(f'"points" needs "labels", one per point (1 on the subject, 0 not): {_quoted(written)}')
        return [_point(item, own) for item, own in zip(items, labels)]
    if isinstance(written, dict) and ("positive" in written or "negative" in written):
        sides = ((_as_list(written.get("positive")) or [], 1), (_as_list(written.get("negative")) or [], 0))
        if not all(isinstance(items, list) for items, _ in sides):
            raise PromptError(f'"positive" and "negative" are lists of points: {_quoted(written)}')
        return [_point(item, own) for items, own in sides for item in items]
    if isinstance(written, dict) or _is_pair(written):
        return [_point(written, label)]
    return [_point(item, label) for item in written]


def _point(item: Any, label: Any) -> Point:
    try:
        if isinstance(item, str):
            raise TypeError("a text of two digits would unpack into two numbers")
        x, y = (item["x"], item["y"]) if isinstance(item, dict) else item
        # MEC writes the label into the point.
        own = item.get("label") if isinstance(item, dict) else None
        meant = float(label if own is None else own)
        if not meant.is_integer():
            raise ValueError("a label between 1 and 0 means neither")
        return Point(float(x), float(y), int(meant))
    except (TypeError, ValueError, KeyError, OverflowError):
        raise PromptError(f"{_quoted(item)} is not a point. {_POINTS_HELP}") from None


def _box(item: Any, corners: bool) -> Box:
    try:
        if isinstance(item, dict):
            x, y, width, height = (float(item[key]) for key in ("x", "y", "width", "height"))
            return Box((x, y, x + width, y + height), str(item.get("label") or ""), _score(item.get("score")))
        if isinstance(item, str):
            raise TypeError("a text of four digits would unpack into four numbers")
        x, y, right_or_width, bottom_or_height = (float(number) for number in item)
    except (TypeError, ValueError, KeyError, OverflowError):
        raise PromptError(f"{_quoted(item)} is not a box. {_BOXES_HELP}") from None
    if corners:
        return Box((x, y, right_or_width, bottom_or_height))
    return Box((x, y, x + right_or_width, y + bottom_or_height))


def _is_segs(written: Any) -> bool:
    """SEGS is a tuple ((height, width), [SEG, ...]), each SEG a named tuple with bbox, label and confidence."""
    return (
        isinstance(written, tuple)
        and len(written) == 2
        and _is_pair(written[0])
        and isinstance(written[1], (list, tuple))
        and all(hasattr(seg, "bbox") for seg in written[1])
    )


def _box_of_seg(seg: Any) -> Box:
    box = _box(_as_list(seg.bbox), corners=True)
    try:
        score = _score(getattr(seg, "confidence", None))
    except (TypeError, ValueError):
        raise PromptError(f"The confidence of a SEG is one number, not {_quoted(seg.confidence)}.") from None
    return Box(box.xyxy, str(getattr(seg, "label", "") or ""), score)


def _score(given: Any) -> float:
    # Detectors put it into an array of one.
    number = _as_list(given)
    if isinstance(number, list) and len(number) == 1:
        number = number[0]
    return 1.0 if number is None else float(number)


def _as_list(item: Any) -> Any:
    """Tuples, arrays and tensors as plain lists; anything else as it is."""
    to_list: Callable[[], Any] | None = getattr(item, "tolist", None)
    if to_list is not None:
        return to_list()
    return list(item) if isinstance(item, tuple) else item


def _plain(number: float) -> int | float:
    """Whole pixels without a decimal point, as the nodes that read them write them."""
    return int(number) if float(number).is_integer() else float(number)


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    # On one line: the interface shows an error as one sentence.
    text = " ".join(text[:200].split())
    return f'"{text[:60]}…"' if len(text) > 60 else f'"{text}"'
