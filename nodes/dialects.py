"""Every way in which people and other packs write points and boxes, read into pixels of the original picture."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from ..mam_model.prompt import PromptError

_POINTS_HELP = (
    'Write x and y in pixels, one point per line ("120 80"), or as JSON: [{"x": 120, "y": 80}] or [[120, 80]].'
)
_BOXES_HELP = (
    'Write left, top, right and bottom in pixels, one box per line ("10 20 300 400"), or as JSON: '
    '[[10, 20, 300, 400]] or [{"x": 10, "y": 20, "width": 290, "height": 380}].'
)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|[-+]?inf", re.IGNORECASE)


@dataclass(frozen=True)
class Box:
    """One box as somebody wrote it: (x0, y0, x1, y1) in pixels, with a label and a score if it had them."""

    xyxy_px: tuple[float, float, float, float]
    label: str = ""
    score: float = 1.0


def read_points(text: str) -> list[tuple[float, float]]:
    """Points from a text field: lines of numbers, or the JSON of core and of KJNodes.

    Args:
        text: "" or "120 80" lines; [{"x": 120, "y": 80}, ...], single quotes too; [[120, 80], ...]; one point alone.
    Raises:
        PromptError: when it is none of these, quoting what could not be read.
    """
    value = _json_or_none(text)
    if value is None:
        return [_numbers(line, 2, _POINTS_HELP) for line in _lines(text)]
    if isinstance(value, dict) or (value and all(isinstance(item, (int, float)) for item in value)):
        value = [value]
    return [_point(item) for item in value]


def read_box_text(text: str) -> list[list[Box]]:
    """Boxes from a text field; see `read_boxes` for what JSON may hold. "" gives one frame without boxes.

    Raises:
        PromptError: when it cannot be read, quoting the part.
    """
    value = _json_or_none(text)
    if value is None:
        return [[Box(_numbers(line, 4, _BOXES_HELP)) for line in _lines(text)]]
    return read_boxes(value)


def read_boxes(value: object) -> list[list[Box]]:
    """Boxes per frame from core's BOUNDING_BOX or from lists of numbers.

    Args:
        value: one box, a list of boxes (for all frames), or a list of lists of boxes (per frame). A box is
            {"x", "y", "width", "height"} with an optional "label" and "score", or [x0, y0, x1, y1].
    Returns:
        One list of boxes per frame; a single list stands for all frames.
    Raises:
        PromptError: when it is none of these, quoting the part.
    """
    if _is_box(value):
        return [[_box(value)]]
    if not isinstance(value, (list, tuple)):
        raise PromptError(f"{_quoted(value)} is not a box. {_BOXES_HELP}")
    if value and all(isinstance(item, (list, tuple)) and not _is_box(item) for item in value):
        return [[_box(item) for item in frame] for frame in value]
    return [[_box(item) for item in value]]


def _json_or_none(text: str) -> dict | list | None:
    text = text.strip()
    if not text.startswith(("[", "{")):
        return None
    try:
        # KJNodes and the nodes that read it also write single quotes.
        return json.loads(text if '"' in text else text.replace("'", '"'))
    except (json.JSONDecodeError, RecursionError) as error:
        raise PromptError(f"This starts like JSON but cannot be read as such ({error}): {_quoted(text)}") from None


def _lines(text: str) -> list[str]:
    return [line for line in re.split(r"[\n;]", text) if line.strip()]


def _numbers(line: str, count: int, help_text: str) -> tuple[float, ...]:
    rest = _NUMBER.sub(" ", line)
    numbers = tuple(float(number) for number in _NUMBER.findall(line))
    if len(numbers) != count or rest.strip(" \t\r,()[]"):
        raise PromptError(f"{_quoted(line.strip())} cannot be read. {help_text}")
    return numbers


def _point(item: object) -> tuple[float, float]:
    try:
        x, y = (item["x"], item["y"]) if isinstance(item, dict) else item
        return float(x), float(y)
    except (TypeError, ValueError, KeyError):
        raise PromptError(f"{_quoted(item)} is not a point. {_POINTS_HELP}") from None


def _is_box(item: object) -> bool:
    if isinstance(item, dict):
        return True
    return isinstance(item, (list, tuple)) and len(item) == 4 and all(isinstance(n, (int, float)) for n in item)


def _box(item: object) -> Box:
    try:
        if isinstance(item, dict):
            x, y, width, height = (float(item[key]) for key in ("x", "y", "width", "height"))
            return Box((x, y, x + width, y + height), str(item.get("label") or ""), float(item.get("score", 1.0)))
        x0, y0, x1, y1 = (float(number) for number in item)
        return Box((x0, y0, x1, y1))
    except (TypeError, ValueError, KeyError):
        raise PromptError(f"{_quoted(item)} is not a box. {_BOXES_HELP}") from None


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return f'"{text[:60]}…"' if len(text) > 60 else f'"{text}"'
