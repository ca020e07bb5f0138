"""Rendered pictures as files, and many of them on one sheet."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..render import KINDS, SMALLEST_PX, Rendered, render

SHEET = "sheet.jpg"
SHEET_TILES = 64
_FOLDERS = ("image", "alpha", "foreground")
_SHEET_BYTES = 250_000
_TILE_PX = 150
_COLUMNS = 8
_LARGEST_PX = 4096


def check(size: int, kind: str | None):
    """Refuses what `render_into` cannot draw before anything is read or written.

    Raises:
        ValueError: for a size beyond 16 to 4096 pixels, or an unknown kind.
    """
    if not SMALLEST_PX <= size <= _LARGEST_PX:
        raise ValueError(f"--size {size} is not possible. Give {SMALLEST_PX} to {_LARGEST_PX} pixels.")
    if kind not in (None, "each", *KINDS):
        raise ValueError(f"'{kind}' cannot be rendered. Give each, or one of: {', '.join(KINDS)}.")


def render_into(
    folder: Path,
    count: int,
    seed: int,
    size: int,
    *,
    kind: str | None = None,
    backgrounds: Sequence[np.ndarray] = (),
    overwrite: bool = False,
) -> Iterable[Rendered]:
    """Renders pictures of `size` x `size` pixels with the seeds from `seed` on, and gives each once it is written.

    NAME.png lies in FOLDER/image, FOLDER/alpha (16 bits) and FOLDER/foreground; the first and second are what the
    commands that measure mattes expect of a test set. With the kind "each" all kinds take turns.

    Raises:
        ValueError: see `render`.
        FileExistsError: before anything is written, when a file is there already and must not be replaced.
    """
    import torch

    from ...photo import write_picture

    kinds = [KINDS[number % len(KINDS)] if kind == "each" else kind for number in range(count)]
    names = [f"{seed + number:06d}.png" for number in range(count)]
    taken = [folder / part / name for name in names for part in _FOLDERS if (folder / part / name).exists()]
    if taken and not overwrite:
        raise FileExistsError(f"{taken[0]} exists already. Give another folder, or --overwrite to replace it.")
    for part in _FOLDERS:
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        rendered = render(
            seed + number, size, size, kind=kinds[number], backgrounds=backgrounds, foreground_textures=backgrounds
        )
        write_picture(folder / "image" / name, torch.from_numpy(rendered.picture))
        write_picture(folder / "alpha" / name, torch.from_numpy(rendered.alpha), bits=16)
        write_picture(folder / "foreground" / name, torch.from_numpy(rendered.foreground))
        yield rendered


def tile(rendered: Rendered) -> np.ndarray:
    """A picture above its alpha, small, for a sheet: uint8 [2 * 150, 150, 3]."""
    import cv2

    alpha = np.repeat(rendered.alpha[..., None], 3, axis=2)
    small = [cv2.resize(one, (_TILE_PX, _TILE_PX), interpolation=cv2.INTER_AREA) for one in (rendered.picture, alpha)]
    return (np.clip(np.concatenate(small), 0, 1) * 255).round().astype(np.uint8)


def contact_sheet(tiles: Sequence[np.ndarray]) -> bytes:
    """Tiles side by side, eight in a row, as a JPEG of at most 250 kB; of more than 64 only the first."""
    from PIL import Image

    tiles = list(tiles[:SHEET_TILES])
    columns = min(_COLUMNS, len(tiles))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    sheet = Image.fromarray(np.concatenate(rows))
    for quality in range(88, 4, -6):
        packed = io.BytesIO()
        sheet.save(packed, "JPEG", quality=quality, optimize=True)
        if packed.tell() <= _SHEET_BYTES:
            break
    return packed.getvalue()
