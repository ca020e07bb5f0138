"""The prompt editor's drawing: read from its JSON text, and turned into prompts for a picture of any size."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..mam_model.prompt import Prompt, PromptError, PromptSet, Scribble

VERSION = 1
MOST_CHARACTERS = 1_000_000
MOST_TARGETS = 64
MOST_FRAME_KEYS = 512
MOST_POINTS = 1_000
MOST_STROKES = 2_000
MOST_PATH_NUMBERS = 20_000
MOST_PATH_NUMBERS_IN_ALL = 200_000
LARGEST_NUMBER = 1e6
WIDEST_STROKE_PX = 2_000
DEEPEST_NESTING = 8
LONGEST_NAME = 100

_ALL_FRAMES = "all"
_KINDS = {
    "foreground": Scribble.FOREGROUND,
    "background": Scribble.BACKGROUND,
    "unknown": Scribble.UNKNOWN,
    "eraser": Scribble.NONE,
}
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
# Two sizes of one picture differ in aspect by the rounding of their shorter side.
_ASPECT_TOLERANCE = 0.02
# OpenCV takes coordinates in this many parts of a pixel, as a power of two, and thickness up to 32,767.
_SUBPIXEL_BITS = 4
_THICKEST = 32_767


@dataclass(frozen=True, eq=False)
class Stroke:
    """One stroke of the brush, with round ends.

    Attributes:
        kind: what it says; `Scribble.NONE` takes away earlier strokes.
        width_px: the brush's diameter.
        path: float64 [N, 2], x and y of each of the N > 0 places it went through.
    """

    kind: Scribble
    width_px: float
    path: np.ndarray

    def __eq__(self, other: object) -> bool:
        # The page sends the same strokes again with every question, and the live thread has to know them again.
        return isinstance(other, Stroke) and (
            (self.kind, self.width_px) == (other.kind, other.width_px) and np.array_equal(self.path, other.path)
        )


@dataclass(frozen=True)
class DrawnPrompt:
    """What was drawn for one target, in pixels of the picture it was drawn on.

    Attributes:
        points: (x, y) of each point.
        labels: one per point; 1 on the subject, 0 beside it.
        box_xyxy_px: left, top, right, bottom, or None.
        strokes: in the order in which they were painted.
    """

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box_xyxy_px: tuple[float, float, float, float] | None = None
    strokes: tuple[Stroke, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True when nothing was drawn; strokes that were all erased again still count as drawn."""
        return not (self.points or self.box_xyxy_px or self.strokes)

    @classmethod
    def read(cls, value: Any, where: str = "The prompt") -> DrawnPrompt:
        """Reads the JSON object of one target's prompt: {"points": [...], "box": {...}, "strokes": [...]}.

        Args:
            where: of what the sentences speak.
        Raises:
            PromptError: when a part is malformed or larger than the bounds at the top of this file.
        """
        return _read_prompt(value, where, _Budget())

    def prompt(self, drawn_on: tuple[float, float], size: tuple[int, int], label: str = "") -> Prompt:
        """The library's prompt for a picture of another size.

        Args:
            drawn_on: width and height to which the coordinates refer; see `size_of_coordinates`.
            size: width and height of the picture that is to be matted.
        """
        return Prompt(
            points_px=tuple(_scaled(point, drawn_on, size) for point in self.points),
            labels=self.labels,
            box_xyxy_px=self.box_xyxy_px
            and _scaled(self.box_xyxy_px[:2], drawn_on, size) + _scaled(self.box_xyxy_px[2:], drawn_on, size),
            scribbles=self._scribbles(drawn_on, size),
            label=label,
        )

    def _scribbles(self, drawn_on: tuple[float, float], size: tuple[int, int]) -> Tensor | None:
        """uint8 [H, W] of `Scribble` values: the strokes painted one over the other; None when nothing shows."""
        if not self.strokes:
            return None
        import cv2

        width, height = size
        painted = np.zeros((height, width), dtype=np.uint8)
        scale = math.sqrt(width * height / (drawn_on[0] * drawn_on[1]))
        parts = 1 << _SUBPIXEL_BITS
        for stroke in self.strokes:
            # The editor's pixel centres lie at halves, OpenCV's at whole numbers.
            places = stroke.path * (width / drawn_on[0], height / drawn_on[1]) - 0.5
            places = (places.clip(-LARGEST_NUMBER, LARGEST_NUMBER) * parts).round().astype(np.int32)
            # A path of a single place is drawn as a line from it to itself, which is its two round ends.
            line = places if len(places) > 1 else places.repeat(2, axis=0)
            thickness = min(max(1, round(stroke.width_px * scale)), _THICKEST)
            cv2.polylines(painted, [line], False, int(stroke.kind), thickness, cv2.LINE_8, _SUBPIXEL_BITS)
        return torch.from_numpy(painted) if painted.any() else None


@dataclass(frozen=True)
class Target:
    """One target of a drawing.

    Attributes:
        name: what it is called; "" when nobody named it.
        hidden: neither shown nor matted.
        for_all: its prompt in every frame that has none of its own.
        for_frame: frame index -> the prompt that stands in place of `for_all` in this frame.
    """

    name: str = ""
    hidden: bool = False
    for_all: DrawnPrompt = DrawnPrompt()
    for_frame: Mapping[int, DrawnPrompt] = field(default_factory=dict)

    def drawn_in(self, frame: int) -> DrawnPrompt:
        return self.for_frame.get(frame, self.for_all)

    @property
    def is_empty(self) -> bool:
        return self.for_all.is_empty and all(drawn.is_empty for drawn in self.for_frame.values())


@dataclass(frozen=True)
class Drawing:
    """Everything that was drawn in the prompt editor.

    Attributes:
        width, height: of the picture it was drawn on, in pixels; 0 when unknown.
        targets: in the order of the editor's list, hidden ones too.
    """

    width: float = 0
    height: float = 0
    targets: tuple[Target, ...] = ()

    @classmethod
    def read(cls, text: str) -> Drawing:
        """Reads the editor's value. An empty text is an empty drawing.

        Raises:
            PromptError: when the text is no drawing, was made by a newer version, or exceeds the bounds at the top of
                this file.
        """
        if not isinstance(text, str):
            raise PromptError(f"The drawing is a text of JSON, not {_kind_of(text)}.")
        if len(text) > MOST_CHARACTERS:
            raise PromptError(f"The drawing has {len(text):,} characters; the most is {MOST_CHARACTERS:,}. Clear some.")
        if not text.strip():
            return cls()
        value = read_json(text, "The drawing", " Copy it whole, or clear it and draw anew.")
        value = _object(value, "The drawing")
        version = _given(value, "version", VERSION)
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise PromptError(f"The drawing's version is a whole number from 1, not {_kind_of(version)}.")
        if version > VERSION:
            raise PromptError(
                f"The drawing was made by a newer version of Matting Anything (its format is {version}, this one reads "
                f"up to {VERSION}). Update Matting Anything to use it."
            )
        width, height = read_size(value)
        _check_places(value, "The drawing")
        targets = _list(value.get("targets"), "The drawing's targets")
        _check_count(len(targets), MOST_TARGETS, "targets", "The drawing")
        budget = _Budget()
        return cls(width, height, tuple(_read_target(item, n, budget) for n, item in enumerate(targets, 1)))

    @property
    def shown(self) -> tuple[Target, ...]:
        """The targets that are matted: not hidden, and with something drawn in one frame at least."""
        return tuple(target for target in self.targets if not (target.hidden or target.is_empty))

    def prompts(self, frame_count: int, width: int, height: int) -> PromptSet:
        """The shown targets as prompts for a batch of pictures of one size.

        A target keeps its place in every frame; where nothing is drawn for it its prompt is empty. What was drawn for
        frames that the batch does not have is left out.

        Returns:
            One entry that speaks for every frame when nothing was drawn for single frames, else `frame_count` entries.
        Raises:
            PromptError: see `size_of_coordinates`.
        """
        targets = self.shown
        if not targets:
            return PromptSet()
        drawn_on = size_of_coordinates((self.width, self.height), (width, height))
        count = frame_count if any(target.for_frame for target in targets) else 1
        made = {}

        def prompt_of(target: Target, frame: int) -> Prompt:
            # Frames that share what was drawn share its scribble map, which is as large as the picture.
            drawn = target.drawn_in(frame)
            key = id(target), id(drawn)
            if key not in made:
                made[key] = drawn.prompt(drawn_on, (width, height), target.name)
            return made[key]

        return PromptSet(tuple(tuple(prompt_of(target, frame) for target in targets) for frame in range(count)))


def read_json(text: str, where: str, advice: str = "") -> Any:
    """Parses JSON of bounded depth.

    Args:
        where: what it is called.
        advice: a sentence for whoever wrote it, after a blank.
    Raises:
        PromptError: when it is no JSON, or nested deeper than `DEEPEST_NESTING`.
    """
    try:
        value = json.loads(text)
    # ValueError also stands for a whole number of thousands of digits, which Python refuses to read.
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where} cannot be read as JSON ({error}).{advice}") from None
    if _is_deeper(value, DEEPEST_NESTING):
        raise PromptError(f"{where} is nested more than {DEEPEST_NESTING} levels deep, which no drawing is.")
    return value


def read_size(value: Mapping[str, Any]) -> tuple[float, float]:
    """ "width" and "height" of an object: the size of the picture that was drawn on, (0, 0) when one is unknown.

    Raises:
        PromptError: when one of them is no size.
    """
    sizes = [_number(_given(value, name, 0), f"The {name} of the picture that was drawn on") for name in _SIZE]
    if min(sizes) < 0:
        raise PromptError("The width and height of the picture that was drawn on cannot be negative.")
    if any(0 < size < 1 for size in sizes):
        raise PromptError("The picture that was drawn on has at least one pixel, or a width and height of 0: unknown.")
    return (sizes[0], sizes[1]) if min(sizes) > 0 else (0.0, 0.0)


_SIZE = ("width", "height")


def size_of_coordinates(drawn_on: tuple[float, float], picture: tuple[int, int]) -> tuple[float, float]:
    """Width and height to which the coordinates of a drawing refer.

    Args:
        drawn_on: width and height that the drawing names; (0, 0) when unknown, then it is the picture's own.
        picture: width and height of the picture that is to be matted.
    Raises:
        PromptError: when both are known and differ in shape, because then it is another picture.
    """
    if 0 in drawn_on:
        return picture
    across, down = picture[0] / drawn_on[0], picture[1] / drawn_on[1]
    if abs(across - down) > _ASPECT_TOLERANCE * max(across, down):
        raise PromptError(
            f"The prompts were drawn on a picture of {drawn_on[0]:g} x {drawn_on[1]:g} pixels, but this one is "
            f"{picture[0]} x {picture[1]}. Connect the picture you drew on, or clear the prompts and draw them anew."
        )
    return drawn_on


def _scaled(place: tuple[float, float], drawn_on: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
    if drawn_on == size:
        return place
    # In this order the border of the one picture comes out as exactly the border of the other.
    return place[0] * size[0] / drawn_on[0], place[1] * size[1] / drawn_on[1]


@dataclass
class _Budget:
    """What may still follow in one drawing."""

    frame_keys: int = MOST_FRAME_KEYS
    path_numbers: int = MOST_PATH_NUMBERS_IN_ALL


def _read_target(value: Any, number: int, budget: _Budget) -> Target:
    where = f"Target {number} of the drawing"
    value = _object(value, where)
    _check_places(value, where)
    name = _given(value, "name", "")
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        raise PromptError(f"{where} needs a name of at most {LONGEST_NAME} characters.")
    color = value.get("color")
    if color is not None and not (isinstance(color, str) and _COLOR.fullmatch(color)):
        raise PromptError(f'{where} has a colour that is not written like "#ff8800".')
    hidden = _given(value, "hidden", False)
    if not isinstance(hidden, bool):
        raise PromptError(f'{where}: "hidden" is true or false, not {_kind_of(hidden)}.')
    prompts = _object(_given(value, "prompts", {}), f"{where}: its prompts")
    budget.frame_keys -= len(prompts.keys() - {_ALL_FRAMES})
    if budget.frame_keys < 0:
        raise PromptError(f"The drawing has prompts for more than {MOST_FRAME_KEYS} frames in all. Delete some.")
    for_all, for_frame = DrawnPrompt(), {}
    for key, item in prompts.items():
        drawn = _read_prompt(item, f'{where}, frame "{key[:20]}"', budget)
        if key == _ALL_FRAMES:
            for_all = drawn
        else:
            for_frame[_frame_index(key, where)] = drawn
    return Target(name, hidden, for_all, for_frame)


def _check_places(value: Mapping[str, Any], where: str) -> None:
    """Refuses a prompt outside of its target's "prompts": it would say nothing, and the matte would be empty.

    Other keys are passed over, because later versions may have more of them.
    """
    for key in ("points", "box", "strokes"):
        if value.get(key):
            raise PromptError(
                f'{where} holds "{key}" itself. '
                f'It is written {{"targets": [{{"prompts": {{"all": {{"{key}": …}}}}}}]}}.'
            )


def _frame_index(key: str, where: str) -> int:
    # No leading zeros: two keys for one frame would contradict each other.
    if not re.fullmatch(r"0|[1-9][0-9]{0,8}", key):
        raise PromptError(f'{where}: "{key[:20]}" is neither "all" nor the number of a frame, counted from 0.')
    return int(key)


def _read_prompt(value: Any, where: str, budget: _Budget) -> DrawnPrompt:
    value = _object(value, where)
    points = _list(value.get("points"), f"{where}: its points")
    _check_count(len(points), MOST_POINTS, "points", where)
    strokes = _list(value.get("strokes"), f"{where}: its strokes")
    _check_count(len(strokes), MOST_STROKES, "strokes", where)
    places, labels = [], []
    for number, item in enumerate(points, 1):
        point = _object(item, f"{where}, point {number}")
        places.append(_numbers(point, ("x", "y"), f"{where}, point {number}"))
        label = _given(point, "label", 1)
        if isinstance(label, bool) or label not in (0, 1):
            raise PromptError(f"{where}, point {number}: its label is 1 (on the subject) or 0 (beside it).")
        labels.append(int(label))
    box = value.get("box")
    if box is not None:
        x, y, width, height = _numbers(_object(box, f"{where}: its box"), ("x", "y", *_SIZE), f"{where}: its box")
        if min(width, height) < 0:
            raise PromptError(f"{where}: the width and height of its box cannot be negative.")
        box = (x, y, x + width, y + height)
    read = tuple(_read_stroke(item, f"{where}, stroke {n}", budget) for n, item in enumerate(strokes, 1))
    return DrawnPrompt(tuple(places), tuple(labels), box, read)


def _read_stroke(value: Any, where: str, budget: _Budget) -> Stroke:
    value = _object(value, where)
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise PromptError(f"{where}: its kind is one of {', '.join(_KINDS)}.")
    width_px = _number(value.get("width"), f"{where}: its width")
    if not 1 <= width_px <= WIDEST_STROKE_PX:
        raise PromptError(f"{where}: its width is {width_px:g}; it can be 1 to {WIDEST_STROKE_PX} pixels.")
    path = _list(value.get("path"), f"{where}: its path")
    if not path or len(path) % 2:
        raise PromptError(f"{where}: its path is x and y in turn, at least one of each.")
    _check_count(len(path), MOST_PATH_NUMBERS, "numbers", where)
    budget.path_numbers -= len(path)
    if budget.path_numbers < 0:
        raise PromptError(
            f"The strokes of the drawing have more than {MOST_PATH_NUMBERS_IN_ALL:,} numbers in all. Erase some."
        )
    return Stroke(_KINDS[kind], width_px, _numbers_of_path(path, where).reshape(-1, 2))


def _numbers_of_path(path: list, where: str) -> np.ndarray:
    # One by one they would hold up the server, which reads every live prompt between two other answers.
    if set(map(type, path)) <= {int, float} and -LARGEST_NUMBER <= min(path) and max(path) <= LARGEST_NUMBER:
        numbers = np.array(path, dtype=np.float64)
        if not np.isnan(numbers).any():
            return numbers
    return np.array([_number(number, f"{where}: a number of its path") for number in path])


def _given(value: Mapping[str, Any], name: str, default: Any) -> Any:
    """What an object holds under a name; null is as good as nothing."""
    found = value.get(name)
    return default if found is None else found


def _numbers(value: Mapping[str, Any], names: tuple[str, ...], where: str) -> tuple[float, ...]:
    return tuple(_number(value.get(name), f'{where}: "{name}"') for name in names)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PromptError(f"{what} is a number, not {_kind_of(value)}.")
    if not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        raise PromptError(f"{what} is a number of pixels between -1,000,000 and 1,000,000.")
    return float(value)


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PromptError(f"{what} is a JSON object, not {_kind_of(value)}.")
    return value


def _list(value: Any, what: str) -> list:
    if value is None:
        return []
    if not isinstance(value, list):
        raise PromptError(f"{what} are a JSON list, not {_kind_of(value)}.")
    return value


def _check_count(count: int, most: int, things: str, where: str) -> None:
    if count > most:
        raise PromptError(f"{where} has {count:,} {things}; the most is {most:,}.")


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    children = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(child, levels - 1) for child in children if isinstance(child, (dict, list)))


def _kind_of(value: Any) -> str:
    names = {type(None): "nothing", bool: "true or false", str: "a text", dict: "an object", list: "a list"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
