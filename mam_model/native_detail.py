"""Detail from the picture's own pixels for a matte that was made at a smaller size."""
# OpenCV is imported where it is used, so that importing the library costs ComfyUI no start-up time.

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .foreground import estimate_foreground
from .picture import check_form, check_picture
from .prompt import Prompt
from .regions import Window
from .scribble import with_certain_strokes

DETAIL_PX = 1024

# How far, in pixels of the small matte, its edge may be from where the picture shows it.
_REACH = 2
# How far colours lie from the two between which they are mixed: texture, noise and what JPEG leaves behind.
_COLOR_SPREAD = 0.07
# A matte whose values differ by less than this within its reach has no edge there.
_LEVEL = 1.0 / 255.0
# How often the matte is corrected by what it loses when it is enlarged; oftener, it would ring.
_CORRECTIONS = 2


def sharpen_edges(
    picture: Tensor,
    alpha: Tensor,
    *,
    detail_px: int = DETAIL_PX,
    tile_px: int = 256,
    before_tile: Callable[[int, int], None] | None = None,
) -> Tensor:
    """A matte that was made at `detail_px` and enlarged, with the detail that the picture's own pixels show.

    At the small size the colours F of the subject and B of what is behind it are estimated; they are smooth, so they
    may be enlarged. At the picture's size each pixel's colour I then says how much of each it holds: alpha minimises
    |I - alpha F - (1 - alpha) B|^2 / s^2 + (alpha - a)^2 / t^2, where a is the enlarged matte, s the spread of colours
    and t^2 the largest variance that alpha can have between its lowest and highest value l and h near by,
    (h - a)(a - l), times (h - l)^2, so that smoke and glass, whose alpha changes little, stay as smooth as they are.
    Alpha keeps between l and h: what is certain around a pixel stays so.

    Once the small planes are there, a pixel of the result depends on nothing but itself: there are no seams between
    tiles, and beyond some planes of the small size and the result, memory depends on the size of a tile alone.

    Args:
        picture: [H, W, 3], sRGB 0..1; not changed.
        alpha: [H, W], 0..1, the matte at the picture's size; not changed.
        detail_px: the longer side at which the matte was made. A picture that is no larger gains nothing.
        tile_px: longer side of what is computed at a time.
        before_tile: is told before each tile how many are done and how many there are; what it raises (a cancelled
            run) ends the work.

    Returns:
        float32 [H, W] in 0..1 on the CPU, a new tensor; where no edge is near it is the matte that was given.

    Raises:
        ValueError: sizes that differ or are none, or what is no picture; see `check_picture`.
    """
    if picture.shape[:2] != alpha.shape:
        raise ValueError(
            f"The matte is {alpha.shape[1]} x {alpha.shape[0]} pixels but the picture is {picture.shape[1]} x "
            f"{picture.shape[0]}. Resize the matte to the picture's size."
        )
    for name, size_px in (("detail_px", detail_px), ("tile_px", tile_px)):
        if size_px < 1:
            raise ValueError(f"{name} is at least 1, not {size_px}.")
    check_form(picture)
    result = alpha.detach().to("cpu", torch.float32, copy=True).clamp_(0, 1)
    height, width = alpha.shape
    small = _small_size(height, width, detail_px)
    if small == (height, width):
        return result
    matte = _shrunk(result.numpy(), small)
    view = _shrunk(picture[..., :3].detach().to("cpu", torch.float32).numpy(), small)
    # The whole picture went into it, and would take as much memory again for every target to be looked through.
    check_picture(torch.from_numpy(view))
    planes = _planes(view, matte, height, width)
    soft = planes[..., 1] - planes[..., 0] > _LEVEL
    tiles = [tile for tile in _tiles(height, width, tile_px) if _seen(soft, tile, height, width).any()]
    for number, tile in enumerate(tiles):
        if before_tile:
            before_tile(number, len(tiles))
        shown = picture[tile.rows, tile.columns, :3].detach().to("cpu", torch.float32).numpy()
        enlarged = _enlarged(planes, tile, height, width)
        place = tile.of(result).numpy()
        np.copyto(place, _mixed(shown, enlarged), where=enlarged[..., 1] - enlarged[..., 0] > _LEVEL)
    return result


def sharpen_targets(
    picture: Tensor,
    alphas: Tensor,
    prompts: Sequence[Prompt],
    *,
    detail_px: int = DETAIL_PX,
    before_tile: Callable[[int, int], None] | None = None,
) -> Tensor:
    """`sharpen_edges` for the mattes of all targets of a picture, with the strokes of their prompts as certain.

    Args:
        alphas: [T, H, W], the mattes at the picture's size; not changed.
        prompts: of the T targets.

    Returns:
        float32 [T, H, W] in 0..1 on the CPU.
    """
    sharp = torch.zeros(alphas.shape)
    for target, prompt in enumerate(prompts):
        alpha = sharpen_edges(picture, alphas[target], detail_px=detail_px, before_tile=before_tile)
        sharp[target] = alpha if prompt.scribbles is None else with_certain_strokes(alpha, prompt.scribbles.cpu())
    return sharp


def _small_size(height: int, width: int, longest_px: int) -> tuple[int, int]:
    scale = min(1.0, longest_px / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _shrunk(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W] or [H, W, C] averaged down to (rows, columns)."""
    import cv2

    return cv2.resize(plane, size[::-1], interpolation=cv2.INTER_AREA)


def _planes(picture: np.ndarray, enlarged: np.ndarray, height: int, width: int) -> np.ndarray:
    """What is enlarged, float32 [h, w, 9]: lowest and highest alpha near by, alpha, F and B.

    Args:
        picture: [h, w, 3], shrunk from [height, width].
        enlarged: [h, w], likewise, of a matte that had been enlarged before.
    """
    import cv2

    down, across = _blur_of_resizing(height, len(enlarged)), _blur_of_resizing(width, enlarged.shape[1])
    made = np.linalg.solve(across, np.linalg.solve(down, enlarged).T).T.astype(np.float32).clip(0, 1)
    around = np.ones((2 * _REACH + 1, 2 * _REACH + 1), np.uint8)
    lowest, highest = cv2.erode(made, around), cv2.dilate(made, around)
    # Enlarged, it shall have in each small pixel the mean that was made there.
    matte = made
    for _ in range(_CORRECTIONS):
        matte = (matte + made - down @ matte @ across.T).clip(0, 1)
    colors = estimate_foreground(torch.from_numpy(picture), torch.from_numpy(made), return_background=True)
    return np.dstack((lowest, highest, matte, *(color.numpy() for color in colors)))


def _blur_of_resizing(large: int, small: int) -> np.ndarray:
    """float32 [small, small]: what `small` pixels in a row are after they were enlarged to `large` and shrunk again."""
    blur = np.zeros((small, small))
    before, after, share = _neighbours(slice(0, large), large, small)
    starts = np.arange(large) * (small / large)
    first = np.minimum(starts.astype(np.intp), small - 1)
    last = np.minimum(first + 1, small - 1)
    beyond = np.maximum(starts + small / large - first - 1, 0)
    for cell, weight in ((first, small / large - beyond), (last, beyond)):
        np.add.at(blur, (cell, before), weight * (1 - share))
        np.add.at(blur, (cell, after), weight * share)
    return blur.astype(np.float32)


def _tiles(height: int, width: int, tile_px: int) -> list[Window]:
    return [
        Window(top, left, min(top + tile_px, height), min(left + tile_px, width))
        for top in range(0, height, tile_px)
        for left in range(0, width, tile_px)
    ]


def _seen(small: np.ndarray, tile: Window, height: int, width: int) -> np.ndarray:
    """The part of [h, w, ...] between whose pixels those of a tile lie."""
    rows, columns = small.shape[:2]
    top, bottom = tile.top * rows // height, -(-tile.bottom * rows // height)
    left, right = tile.left * columns // width, -(-tile.right * columns // width)
    return small[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1]


def _enlarged(planes: np.ndarray, tile: Window, height: int, width: int) -> np.ndarray:
    """A tile of [h, w, C] enlarged bilinearly to [height, width, C], pixel for pixel as the whole would be."""
    above, below, down = _neighbours(tile.rows, height, len(planes))
    left, right, across = _neighbours(tile.columns, width, planes.shape[1])
    first = left[0]
    rows = _between(planes[:, first : right[-1] + 1], above, below, down, 0)
    return _between(rows, left - first, right - first, across, 1)


def _between(planes: np.ndarray, before: np.ndarray, after: np.ndarray, share: np.ndarray, axis: int) -> np.ndarray:
    share = share.astype(np.float32).reshape(-1, *(1,) * (planes.ndim - 1 - axis))
    low, high = planes.take(before, axis), planes.take(after, axis)
    return low + share * (high - low)


def _neighbours(wanted: slice, large: int, small: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Between which of `small` pixels those of a row of `large` lie, and the second one's share."""
    place = (np.arange(wanted.start, wanted.stop) + 0.5) * (small / large) - 0.5
    place = place.clip(0, small - 1)
    before = place.astype(np.intp)
    return before, np.minimum(before + 1, small - 1), place - before


def _mixed(picture: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """float32 [h, w]: alpha by the colours of a tile, as `sharpen_edges` says."""
    lowest, highest = planes[..., 0], planes[..., 1]
    prior = planes[..., 2].clip(lowest, highest)
    front, behind = planes[..., 3:6], planes[..., 6:9]
    apart = front - behind
    told = ((picture - behind) * apart).sum(axis=-1)
    spread = _COLOR_SPREAD**2
    variance = (highest - prior) * (prior - lowest) * (highest - lowest) ** 2
    # Both terms times the variance, which may be 0.
    alpha = (told * variance + spread * prior) / ((apart * apart).sum(axis=-1) * variance + spread)
    return alpha.clip(lowest, highest)
