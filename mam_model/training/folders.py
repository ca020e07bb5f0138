"""Finding and reading the pictures of a data set: which belong together, and what is wrong with those that do not."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..photo import PHOTO_SUFFIXES, PhotoError, read_mask, read_photo
from .config import TrainingError

_KEPT_BYTES = 2**29


@dataclass(frozen=True)
class Pair:
    """A picture and its alpha.

    Attributes:
        name: path below the folder of pictures, without suffix.
        alpha: file of the alpha; None when it is the picture's own transparency.
    """

    name: str
    picture: Path
    alpha: Path | None


def find_pictures(folder: Path) -> tuple[Path, ...]:
    """All picture files below a folder, in the order of their names.

    Raises:
        TrainingError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise TrainingError(f"There is no folder {folder}.")
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]
    if not found:
        raise TrainingError(f"There are no pictures in {folder} ({', '.join(PHOTO_SUFFIXES)}).")
    # By parts, because "a/b" and "a b" compare otherwise where folders are separated by backslashes.
    return tuple(sorted(found, key=lambda path: path.relative_to(folder).parts))


def find_pairs(pictures: Path, alphas: Path | None) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """Pairs pictures and alphas by their paths below the two folders, suffixes aside.

    Args:
        alphas: None when the pictures' own transparency is their alpha.
    Returns:
        The pairs in the order of their names, and a sentence for each kind of file that was left out.
    Raises:
        TrainingError: a folder is missing or empty, or nothing in them belongs together.
    """
    files = _by_name(pictures)
    partners = {name: [None] for name in files} if alphas is None else _by_name(alphas)
    both = sorted(files.keys() & partners.keys(), key=lambda name: name.split("/"))
    pairs = tuple(
        Pair(name, files[name][0], partners[name][0])
        for name in both
        if len(files[name]) == 1 and len(partners[name]) == 1
    )
    ambiguous = [name for name in both if len(files[name]) > 1 or len(partners[name]) > 1]
    left_out = tuple(
        f"{len(names)} {what} and are left out: {_listed(names)}."
        for names, what in (
            (files.keys() - partners.keys(), f"pictures have no alpha of the same name in {alphas}"),
            (partners.keys() - files.keys(), f"alphas have no picture of the same name in {pictures}"),
            (ambiguous, "names are those of several files"),
        )
        if names
    )
    if not pairs:
        raise TrainingError(f"Nothing in {pictures} and {alphas} belongs together. {' '.join(left_out)}")
    return pairs, left_out


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Reads a picture and its alpha, upright, whatever the depth of their levels.

    Returns:
        float32 [H, W, 3], sRGB 0..1, and float32 [H, W], 0..1.
    Raises:
        PhotoError: a file is missing, damaged or none of ours, the two differ in size, or the alpha holds no subject.
    """
    photo = read_photo(pair.picture)
    if pair.alpha is None:
        alpha, file = photo.alpha, pair.picture
        if alpha is None:
            raise PhotoError(f"{pair.picture} has no transparency, which was to be its alpha.")
    else:
        alpha, file = read_mask(pair.alpha), pair.alpha
    height, width = photo.image.shape[:2]
    if tuple(alpha.shape) != (height, width):
        raise PhotoError(
            f"{pair.picture} is {width} x {height} pixels, upright as a viewer shows it, but its alpha "
            f"{file.name} is {alpha.shape[1]} x {alpha.shape[0]}."
        )
    if not bool((alpha > 0.5).any()):
        raise PhotoError(f"{file} is an empty alpha: nowhere is it above 0.5.")
    return photo.image.numpy(), alpha.numpy()


class PictureFiles(Sequence[np.ndarray]):
    """The pictures in some files, of which there may be more than memory holds.

    Each is read when it is asked for, and those asked for last are kept, 512 MB of them. In the place of one that
    cannot be read there is the next that can.
    """

    def __init__(
        self,
        files: Sequence[Path],
        read: Callable[[Path], np.ndarray],
        skip: Callable[[str], object] = lambda sentence: None,
    ):
        """
        Args:
            read: what is in a file; it raises PhotoError for one that is of no use.
            skip: is told of each of those, once.
        """
        self._files, self._read, self._skip = files, read, skip
        self._useless: set[Path] = set()
        self._kept: OrderedDict[Path, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> np.ndarray:
        """
        Raises:
            PhotoError: not one of the files is of use.
        """
        if not 0 <= number < len(self):
            raise IndexError(number)
        for further in range(len(self)):
            file = self._files[(number + further) % len(self)]
            if file not in self._useless and (picture := self._picture(file)) is not None:
                return picture
        raise PhotoError(f"None of the {len(self)} pictures beside {self._files[0]} can be used.")

    def _picture(self, file: Path) -> np.ndarray | None:
        if file in self._kept:
            self._kept.move_to_end(file)
            return self._kept[file]
        try:
            picture = self._kept[file] = self._read(file)
        except PhotoError as error:
            self._useless.add(file)
            self._skip(str(error))
            return None
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)
        return picture


def _by_name(folder: Path) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for path in find_pictures(folder):
        found[path.relative_to(folder).with_suffix("").as_posix()].append(path)
    return found


def _listed(names, most: int = 5) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
