"""How good mattes of groups of pictures are: the means of each group's errors, as In-Context Matting is judged.

Two layouts of the true mattes are understood. That of ICM-57, the test set of the paper:

    ICM57/alpha/NAME.png    a true matte for each picture
    ICM57/image, trimap     not looked at
    ICM57.json              {NAME: {"class": ..., "sub_class": ..., "HalfOrFull": ...}}, beside the folder or in it

where a group is all that agrees in those three; without the JSON the group is the name up to its last number, so that
dog_00 and dog_01 are of the group dog. And one folder for each group:

    FOLDER/GROUP/alpha/NAME.png

In both the folder alpha may be called mask. The mattes to be judged lie in one folder, in the second layout in one
folder for each group, under the names of the true ones and with any suffix of a picture.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..metrics import score_matte
from ..photo import PhotoError, read_mask

_TRUE_MATTES = ("alpha", "mask")
_SUFFIXES = (".png", ".tif", ".tiff", ".webp", ".jpg", ".jpeg", ".bmp")
_LARGEST_GROUPS_FILE = 64_000_000
_WHAT_MAKES_A_GROUP = ("class", "sub_class", "HalfOrFull")


class GroupsError(ValueError):
    """A test set that cannot be read or measured, said in words for the person who chose it."""


@dataclass(frozen=True)
class Judged:
    """A picture's matte and what it should be.

    Attributes:
        name: of the picture, without suffix.
        group: that it belongs to.
        predicted: file of the matte to be judged, or None where there is none.
        truth: file of the true matte.
    """

    name: str
    group: str
    predicted: Path | None
    truth: Path


@dataclass(frozen=True)
class GroupScores:
    """Mean errors of the mattes of a group, in the units of the paper; 0 is perfect.

    Attributes:
        group: its name.
        pictures: how many were measured.
        mse: mean squared difference, 0..1.
        sad: sum of absolute differences, in thousands of pixels.
        grad: gradient error, in thousands.
        conn: connectivity error, in thousands.
    """

    group: str
    pictures: int
    mse: float
    sad: float
    grad: float
    conn: float


def judged_in(folder: Path, predictions: Path, groups_file: Path | None = None) -> list[Judged]:
    """The pictures of a test set, in the order of their groups and names.

    Args:
        folder: of the true mattes, see above.
        predictions: folder of the mattes to be judged.
        groups_file: the JSON that says the groups; by default the one beside the folder or in it, if any.
    Raises:
        GroupsError: a folder of another layout, two files for one picture, a JSON that cannot be read or lacks a
            picture.
    """
    for place in (folder, predictions):
        if not place.is_dir():
            raise GroupsError(f"There is no folder {place}.")
    inside = _true_mattes(folder)
    if inside is None:
        parts = [(part, _true_mattes(part)) for part in sorted(folder.iterdir())]
        found = [
            Judged(name, part.name, _pictures(predictions / part.name).get(name), truth)
            for part, mattes in parts
            if mattes is not None
            for name, truth in _pictures(mattes).items()
        ]
    else:
        truths, predicted = _pictures(inside), _pictures(predictions)
        groups = _groups(sorted(truths), groups_file or _groups_beside(folder))
        found = [Judged(name, groups[name], predicted.get(name), truth) for name, truth in truths.items()]
    if not found:
        raise GroupsError(
            f"There are no true mattes in {folder}. Expected is {folder / 'alpha' / 'NAME.png'}, as in ICM-57, or "
            f"{folder / 'GROUP' / 'alpha' / 'NAME.png'}."
        )
    if not any(picture.predicted for picture in found):
        raise GroupsError(
            f"No matte in {predictions} has the name of one in {folder}. They need the same names, whatever their "
            f"suffix; the first one expected is {found[0].name}.png."
        )
    return sorted(found, key=lambda picture: (picture.group, picture.name))


def score_groups(pictures: Sequence[Judged], done: Callable[[Judged], object] = lambda _: None) -> list[GroupScores]:
    """The mean errors of each group, of the groups that have any matte to judge.

    Args:
        pictures: from `judged_in`; those without a matte to be judged are left out.
        done: called after each picture.
    Raises:
        GroupsError: a matte that cannot be read, or is of another size than the true one.
    """
    errors: dict[str, list[tuple[float, ...]]] = {}
    for picture in pictures:
        if picture.predicted is not None:
            errors.setdefault(picture.group, []).append(_errors(picture))
            done(picture)
    return [
        GroupScores(group, len(rows), *(sum(column) / len(rows) for column in zip(*rows)))
        for group, rows in errors.items()
    ]


def mean_of_groups(groups: Sequence[GroupScores]) -> GroupScores:
    """The mean over groups, in which a group of two pictures weighs as much as one of ten."""
    return _mean("mean of groups", groups, [1] * len(groups))


def mean_of_pictures(groups: Sequence[GroupScores]) -> GroupScores:
    """The mean over all pictures."""
    return _mean("mean of pictures", groups, [group.pictures for group in groups])


def table(groups: Sequence[GroupScores]) -> str:
    """A line for each group and two for the means, for a terminal."""
    rows = [*groups, mean_of_groups(groups), mean_of_pictures(groups)]
    wide = max(len(row.group) for row in rows)
    lines = [f"{'group':{wide}}  pictures     MSE      SAD     Grad     Conn"]
    lines += [
        f"{row.group:{wide}}  {row.pictures:8d}  {row.mse:.4f}  {row.sad:7.2f}  {row.grad:7.2f}  {row.conn:7.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def _mean(name: str, groups: Sequence[GroupScores], weights: Sequence[int]) -> GroupScores:
    def mean(kind: str) -> float:
        return sum(getattr(group, kind) * weight for group, weight in zip(groups, weights)) / sum(weights)

    pictures = sum(group.pictures for group in groups)
    return GroupScores(name, pictures, mean("mse"), mean("sad"), mean("grad"), mean("conn"))


def _errors(picture: Judged) -> tuple[float, ...]:
    try:
        scores, _ = score_matte(read_mask(picture.predicted), read_mask(picture.truth))
    except PhotoError as error:
        raise GroupsError(str(error)) from error
    except ValueError as error:
        raise GroupsError(f"{picture.predicted}: {error}") from error
    # The papers on this task write the mean squared error as it is, not in thousandths.
    return scores.mse / 1000, scores.sad, scores.grad, scores.conn


def _true_mattes(folder: Path) -> Path | None:
    return next((folder / name for name in _TRUE_MATTES if (folder / name).is_dir()), None)


def _pictures(folder: Path) -> dict[str, Path]:
    """The pictures in a folder by their name without suffix; none if there is no such folder."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() not in _SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise GroupsError(f"{found[path.stem]} and {path.name} are two files for one picture. Keep one of them.")
        found[path.stem] = path
    return found


def _groups_beside(folder: Path) -> Path | None:
    name = f"{folder.resolve().name}.json"
    # "." has something beside it only as a whole path. Of a link, the link's place counts.
    places = (Path(os.path.abspath(folder)).parent / name, folder / name)
    return next((place for place in places if place.is_file()), None)


def _groups(names: Sequence[str], file: Path | None) -> dict[str, str]:
    """The group of each name."""
    if file is None:
        return {name: re.sub(r"[ _-]*\d+$", "", name) or name for name in names}
    try:
        if file.stat().st_size > _LARGEST_GROUPS_FILE:
            raise GroupsError(f"{file} is too large for a list of groups.")
        # Windows' editors begin a text with a mark.
        facts = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise GroupsError(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise GroupsError(f"{file} is no text. Give the .json that says the groups of the pictures.") from error
    except (ValueError, RecursionError) as error:
        raise GroupsError(f"{file} is not JSON: {error}.") from error
    if not isinstance(facts, dict):
        raise GroupsError(f'{file} does not say groups. Expected is {{"NAME": {{"class": "dog"}}, ...}}.')
    groups = {}
    for name in names:
        entry = facts.get(name)
        if not isinstance(entry, dict) or entry.get("class") is None:
            raise GroupsError(f'{file} does not say the group of {name}. Expected is "{name}": {{"class": "dog"}}.')
        groups[name] = "-".join(str(entry[part]) for part in _WHAT_MAKES_A_GROUP if entry.get(part) is not None)
    return groups
