"""The matte inside a trimap's unknown band, from the picture's own pixels at full resolution; no weights are needed."""
# OpenCV and PyMatting are imported where they are used, so that importing the library costs ComfyUI no start-up time.

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .picture import check_picture
from .trimap import SURE_BACKGROUND, SURE_SUBJECT

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

METHODS = ("closed-form", "knn")

# How strongly a tile's pixels hold to the coarser matte, in its middle and at its border, where most is unseen. The
# Laplacian's diagonal is about 1: smooth changes across a tile have eigenvalues below this, strands of hair far above.
_HOLD = 1e-6
_HOLD_AT_BORDER = 1e-3
_ACCURACY = 1e-5
_MOST_STEPS = 2000
# A plain area's windows are singular without this; larger values smear the matte across weak edges.
_EPSILON = 1e-7
# How many pixels of like colour near by, and of like colour anywhere, KNN matting compares a pixel with.
_NEIGHBOURS = (20, 10)
# At smaller shifts the incomplete factor fails on plain areas, and PyMatting prints that it did.
_SHIFTS = (1e-3, 1e-2, 1e-1, 1.0)
# Entries of the factor per pixel; without a limit PyMatting reserves 4 GB.
_FACTOR_ENTRIES = 200


class PyMattingMissing(ImportError):
    """PyMatting is not installed, but the chosen method needs it."""


class TrimapError(ValueError):
    """A trimap from which no matte can be found, said in words its author understands."""


def solve_trimap(
    image: Tensor,
    trimap: Tensor,
    *,
    method: str = "closed-form",
    tile_px: int = 768,
    overlap_px: int = 96,
    before_tile: Callable[[], None] | None = None,
) -> Tensor:
    """The matte of a trimap's unknown pixels at the picture's own resolution.

    Closed-form matting (Levin, Lischinski, Weiss 2008) or KNN matting (Chen, Li, Tang 2013), as PyMatting has them:
    with L the matting Laplacian, U the unknown and K the known pixels, L_UU x = -L_UK t. A picture that fits into one
    tile is solved as a whole. A larger one is first solved at half its size, in the same way; then tile by tile, each
    holding weakly to that coarser matte c: (L_UU + mu I) x = -L_UK t + mu c. So what no single tile can see comes from
    the coarser matte, and the detail from the picture's pixels. Tiles overlap and are blended by weights that fall
    smoothly to 0 at a tile's border, where mu is largest. Only tiles with unknown pixels are solved. Beyond some
    planes of the picture's size, memory depends on the size of the tile alone.

    Args:
        image: [H, W, 3], sRGB 0..1; not changed.
        trimap: [H, W]. From 0.95 on a pixel is surely subject, up to 0.05 surely background, otherwise unknown; so
            128 of 255 is unknown, and a matte serves as the trimap that has all its soft pixels unknown.
        method: "closed-form" or "knn".
        tile_px: side of a tile. For 768 pixels closed-form needs 0.2 GB, and 2 GB if all of them are unknown; KNN 2 GB.
        overlap_px: how far neighbouring tiles overlap at least.
        before_tile: called before each tile is solved; what it raises (a cancelled run) ends the work.

    Returns:
        float32 [H, W], 0..1, on the image's device: exactly 0 or 1 where the trimap is sure. Without any unknown pixel
        that is all.

    Raises:
        TrimapError: when there are unknown pixels, but no sure subject or no sure background to tell them by.
        PyMattingMissing: when PyMatting is not installed.
        ValueError: for an unknown method, sizes that differ, tiles that do not exceed their overlap, or what is no
            picture; see `check_picture`.
    """
    if method not in METHODS:
        raise ValueError(f"'{method}' is no matting method for trimaps. Choose one of: {', '.join(METHODS)}.")
    if image.shape[:2] != trimap.shape:
        raise ValueError(
            f"The trimap is {trimap.shape[1]} x {trimap.shape[0]} pixels but the picture is {image.shape[1]} x "
            f"{image.shape[0]}. Resize the trimap to the picture's size."
        )
    check_picture(image)
    if not 0 < overlap_px < tile_px:
        raise ValueError(f"Tiles of {tile_px} pixels cannot overlap by {overlap_px}; choose something between.")
    known = _sides(trimap.detach().to("cpu", torch.float32).numpy())
    unknown = known == 0.5
    if not unknown.any():
        return torch.from_numpy(known).to(image.device)
    _check_both_sides(known)
    color = image[..., :3].detach().to("cpu", torch.float32).numpy()
    tiling = _Tiling(tile_px, overlap_px, before_tile or (lambda: None))
    return torch.from_numpy(_at_level(color, known, method, tiling)).to(image.device)


def solve_view(
    color: np.ndarray,
    known: np.ndarray,
    method: str,
    prior: np.ndarray | None = None,
    hold: np.ndarray | None = None,
) -> np.ndarray:
    """The matte of one picture solved as a whole.

    Args:
        color: float [H, W, 3], 0..1.
        known: float [H, W] of 0, 0.5 (unknown) and 1, with unknown pixels; without a prior also with both others.
        method: "closed-form" or "knn".
        prior: float [H, W], a matte that unknown pixels hold to.
        hold: float [H, W], how strongly they do: mu of `solve_trimap`. Needed with a prior.

    Returns:
        float32 [H, W], 0..1.

    Raises:
        PyMattingMissing: when PyMatting is not installed.
    """
    if importlib.util.find_spec("pymatting") is None:
        raise PyMattingMissing(
            f"The method '{method}' needs PyMatting, which is not installed: run `pip install pymatting`."
        )
    if method == "closed-form" and min(known.shape) < 3:
        # Closed-form matting sees nothing but whole 3 x 3 windows; a frame gives a strip some.
        framed = (None if plane is None else np.pad(plane, 1, mode="edge") for plane in (known, prior, hold))
        known, prior, hold = framed
        color = np.pad(color, ((1, 1), (1, 1), (0, 0)), mode="edge")
        return solve_view(color, known, method, prior, hold)[1:-1, 1:-1]
    alpha = known.astype(np.float32)
    # Closed-form windows are 3 x 3, so that a pixel knows of others up to 2 away; what lies farther is cut off.
    part = _around(known == 0.5, 2) if method == "closed-form" else np.s_[:, :]
    color = color[part].clip(0, 1).astype(np.float64)
    unknown = known[part] == 0.5
    laplacian = _laplacian(color, unknown, method)[unknown.ravel()]
    system = laplacian[:, unknown.ravel()]
    right = -laplacian[:, (known[part] == 1).ravel()].sum(axis=1).A1
    start = None
    if prior is not None:
        import scipy.sparse

        start = prior[part][unknown].astype(np.float64)
        strength = hold[part][unknown].astype(np.float64)
        system = system + scipy.sparse.diags(strength, format="csr")
        right = right + strength * start
    alpha[part][unknown] = _solution(system, right, start, method).clip(0, 1)
    return alpha


def _sides(trimap: np.ndarray) -> np.ndarray:
    """The trimap as float32 of exactly 0, 0.5 and 1."""
    known = np.full(trimap.shape, 0.5, dtype=np.float32)
    known[trimap <= SURE_BACKGROUND] = 0
    known[trimap >= SURE_SUBJECT] = 1
    return known


def _check_both_sides(known: np.ndarray) -> None:
    subject, background = (known == 1).any(), (known == 0).any()
    if subject and background:
        return
    if subject:
        fault = "no sure background (black, 0). Make its unknown band narrower on the outside"
    elif background:
        fault = "no sure subject (white, 1). Make its unknown band narrower on the inside"
    else:
        fault = "neither sure subject (white, 1) nor sure background (black, 0). Make its unknown band narrower"
    raise TrimapError(
        f"The trimap has {fault}, or paint some: the matte is found by comparing unknown pixels with sure ones."
    )


@dataclass(frozen=True)
class _Tiling:
    """How a picture is cut: `tile_px`, `overlap_px` and `before_tile` of `solve_trimap`."""

    tile_px: int
    overlap_px: int
    before_tile: Callable[[], None]

    def spans(self, length: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Evenly placed tiles along one side, and their weights: 1, and falling to 0 towards a neighbouring tile."""
        tile = min(self.tile_px, length)
        count = max(1, math.ceil((length - self.overlap_px) / (self.tile_px - self.overlap_px)))
        for index in range(count):
            start = round(index * (length - tile) / max(1, count - 1))
            place = np.arange(tile) + 0.5
            inside = np.ones(tile)
            if start > 0:
                inside = np.minimum(inside, place / self.overlap_px)
            if start + tile < length:
                inside = np.minimum(inside, (tile - place) / self.overlap_px)
            yield slice(start, start + tile), (inside * inside * (3 - 2 * inside)).astype(np.float32)


def _at_level(color: np.ndarray, known: np.ndarray, method: str, tiling: _Tiling) -> np.ndarray:
    """`solve_trimap` on a trimap with both sides, as float32 [H, W]."""
    height, width = known.shape
    if max(height, width) <= tiling.tile_px:
        tiling.before_tile()
        return solve_view(color, known, method)
    import cv2

    half = ((width + 1) // 2, (height + 1) // 2)
    coarse = _at_level(cv2.resize(color, half, interpolation=cv2.INTER_AREA), _halved(known, half), method, tiling)
    prior = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    total = np.zeros(known.shape, dtype=np.float32)
    weights = np.zeros(known.shape, dtype=np.float32)
    for rows, row_weight in tiling.spans(height):
        for columns, column_weight in tiling.spans(width):
            tile = np.s_[rows, columns]
            if not (known[tile] == 0.5).any():
                continue
            tiling.before_tile()
            weight = row_weight[:, None] * column_weight
            hold = _HOLD + _HOLD_AT_BORDER * (1 - weight)
            total[tile] += weight * solve_view(color[tile], known[tile], method, prior[tile], hold)
            weights[tile] += weight
    unknown = known == 0.5
    alpha = known.copy()
    alpha[unknown] = total[unknown] / weights[unknown]
    return alpha


def _halved(known: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The trimap at (columns, rows): sure where all that a pixel covers is."""
    import cv2

    small = np.full(size[::-1], 0.5, dtype=np.float32)
    for value in (0, 1):
        share = cv2.resize((known == value).astype(np.float32), size, interpolation=cv2.INTER_AREA)
        sure = share > 0.999
        # A subject of single sure pixels stays: without it nothing could be solved.
        small[sure if sure.any() else share == share.max()] = value
    return small


def _around(area: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Rows and columns that bool [H, W] occupies, wider by a margin."""
    bounds = []
    for axis in (1, 0):
        places = np.flatnonzero(area.any(axis=axis))
        bounds.append(slice(max(0, int(places[0]) - margin), int(places[-1]) + margin + 1))
    return tuple(bounds)


def _pymatting() -> ModuleType:
    """PyMatting, which as it is imported makes PyTorch compute in as many threads as Numba: one for each logical core.

    That is more than a processor has of its own, or than the user asked for, so PyTorch gets its own number back.
    """
    threads = torch.get_num_threads()
    import pymatting

    torch.set_num_threads(threads)
    return pymatting


def _laplacian(color: np.ndarray, unknown: np.ndarray, method: str) -> csr_matrix:
    pymatting = _pymatting()
    if method == "closed-form":
        return pymatting.cf_laplacian(color, epsilon=_EPSILON, is_known=~unknown)
    neighbours = [min(count, unknown.size) for count in _NEIGHBOURS]
    return pymatting.knn_laplacian(color, n_neighbors=neighbours).tocsr()


def _solution(system: csr_matrix, right: np.ndarray, start: np.ndarray | None, method: str) -> np.ndarray:
    """x of system x = right by conjugate gradients, or what they have reached after many steps."""
    pymatting = _pymatting()
    if not right.any():
        # No pixel hears of any subject, and PyMatting would divide 0 by 0.
        return right
    if method == "closed-form":
        entries = _FACTOR_ENTRIES * len(right)
        precondition = pymatting.ichol(system.tocsc(), shifts=_SHIFTS, max_nnz=entries)
    else:
        precondition = pymatting.jacobi(system)
    reached = np.zeros_like(right) if start is None else start

    def keep(_system, x, *_):
        nonlocal reached
        if not np.isfinite(x).all():
            raise _BrokenDown
        # PyMatting goes on writing into x.
        reached = x.copy()

    try:
        # Pixels that are near in colour to no sure one leave the system singular, and a step may then divide by 0.
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = {"rtol": _ACCURACY, "maxiter": _MOST_STEPS, "callback": keep}
            return pymatting.cg(system, right, x0=start, M=precondition, **steps)
    except (ValueError, _BrokenDown):
        # PyMatting gives up without its result; what was reached by then is a matte of lower accuracy.
        return reached


class _BrokenDown(ArithmeticError):
    """Conjugate gradients came upon a direction in which the system is flat."""
