"""The subject's own colours: what a soft edge would look like without the old background shining through."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Colours for where nothing of the subject is, by the names that the nodes offer.
CLEAR_COLORS = {"black": (0.0, 0.0, 0.0), "neutral grey": (0.5, 0.5, 0.5)}

_SMALL_PX = 32
# Few enough pixels for a CPU's cache; a GPU wants many at once.
_STRIP_PX = 1 << 17
_GPU_STRIP_PX = 1 << 22
_SMALL_ITERATIONS, _BIG_ITERATIONS = 10, 2
# What rounds to 0 in an 8-bit file.
_CLEAR = 0.5 / 255


def estimate_foreground(
    image: Tensor,
    alpha: Tensor,
    background: Tensor | None = None,
    *,
    regularization: float = 1e-5,
    gradient_weight: float = 1.0,
    small_iterations: int = _SMALL_ITERATIONS,
    big_iterations: int = _BIG_ITERATIONS,
    return_background: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The foreground F of image = alpha * F + (1 - alpha) * B, smooth where the matte is.

    Fast multi-level estimation (Germer, Uelwer, Conrad, Harmeling, "Fast Multi-Level Foreground Estimation", 2020):
    from one pixel up to the picture's size, each level starts from the coarser one and minimises, per pixel, the
    error of the compositing equation plus the difference of F and B to the four neighbours, weighted by
    regularization + gradient_weight * |difference of alpha|. A level is relaxed in a checkerboard's two halves, each
    at once. Large levels are worked in strips, so memory beyond the results stays small.

    Args:
        image: [H, W, 3] or [B, H, W, 3], 0..1.
        alpha: [H, W] or [B, H, W], 0..1. A single picture or matte serves a whole batch.
        background: the true background, as image, where it is known; then only F is estimated.
        regularization, gradient_weight: as above.
        small_iterations: relaxations at levels up to 32 pixels.
        big_iterations: relaxations at larger levels.
        return_background: also return B.

    Returns:
        F, float32 [H, W, 3] or [B, H, W, 3], 0..1, or (F, B). Where alpha is 0, F continues the subject's colours
        smoothly.

    Raises:
        ValueError: when the sizes or the lengths of batches differ, or a picture has fewer than three channels.
    """
    height, width = alpha.shape[-2:]
    for picture in (image,) if background is None else (image, background):
        if picture.shape[-3:-1] != (height, width):
            raise ValueError(
                f"To estimate the foreground, pictures and alpha must have one size; {picture.shape[-2]} x "
                f"{picture.shape[-3]} and {width} x {height} pixels were given. Resize them first."
            )
        if picture.shape[-1] < 3:
            shape = " x ".join(str(n) for n in picture.shape)
            raise ValueError(f"To estimate the foreground, pictures need three channels; this one is {shape}.")
    single = image.dim() == 3 and alpha.dim() == 2 and (background is None or background.dim() == 3)
    picture = _planes(image)
    matte = alpha.reshape(-1, 1, height, width).to(picture)
    known = None if background is None else _planes(background).to(picture)
    counts = {"pictures": len(picture), "mattes": len(matte)}
    if known is not None:
        counts["backgrounds"] = len(known)
    count = max(counts.values())
    if set(counts.values()) - {1, count}:
        given = " and ".join(f"{number} {name}" for name, number in counts.items() if number != 1)
        raise ValueError(f"Give as many pictures as mattes, or one that serves all; {given} were given.")
    picture = picture.expand(count, -1, -1, -1)
    matte = matte.expand(count, -1, -1, -1)

    colors = torch.cat((_mean_color(picture, matte), _mean_color(picture, 1 - matte)), dim=1)
    levels = math.ceil(math.log2(max(height, width, 2)))
    # A level of a single pixel keeps its mean colours: it has no neighbours to agree with.
    for level in range(levels + 1):
        rows = round(height ** (level / levels))
        columns = round(width ** (level / levels))
        if rows * columns == 1:
            continue
        iterations = small_iterations if max(rows, columns) <= _SMALL_PX else big_iterations
        finer = colors.new_empty(count, 6, rows, columns)
        # A change travels one pixel in each half of an iteration, so this overlap makes strips exact.
        overlap = 2 * iterations
        # Strips begin at even rows, so that the checkerboard of each is the picture's.
        step = 2 * max(1, (_STRIP_PX if picture.device.type == "cpu" else _GPU_STRIP_PX) // (2 * columns))
        for top in range(0, rows, step):
            bottom = min(rows, top + step)
            first, last = max(0, top - overlap), min(rows, bottom + overlap)
            strip = slice(first, last)
            start = _nearest(colors, strip, rows, columns)
            view = _nearest(picture, strip, rows, columns)
            cover = _nearest(matte, strip, rows, columns)
            if known is not None:
                start[:, 3:] = _nearest(known, strip, rows, columns)
            relaxed = _relaxed(start, view, cover, iterations, regularization, gradient_weight, known is not None)
            finer[:, :, top:bottom] = relaxed[:, :, top - first : bottom - first, :columns]
        colors = finer
    front, behind = colors.movedim(1, -1).split(3, dim=-1)
    if single:
        front, behind = front[0], behind[0]
    return (front, behind) if return_background else front


def foreground_bytes(height: int, width: int) -> int:
    """What `estimate_foreground` takes at most on a GPU for one picture, its results among it but not what it is given.

    Counted, the tensors that live at once are 229 bytes for each pixel of a picture that is worked in one strip; of a
    larger one 30 for each pixel and 237 for each pixel of a strip with its overlap.
    """
    pixels = height * width
    return 30 * pixels + 240 * min(pixels, _GPU_STRIP_PX + 4 * _BIG_ITERATIONS * width)


def fill_where_clear(foreground: Tensor, alpha: Tensor, color: tuple[float, float, float]) -> Tensor:
    """The foreground with one colour where the matte is clear, so that nothing of the old picture stays there.

    Args:
        foreground: [H, W, 3] or [B, H, W, 3], 0..1; not changed.
        alpha: [H, W] or [B, H, W], 0..1. Below half a step of 8 bits it counts as clear, as it does in a saved file.
        color: red, green and blue, 0..1, such as one of `CLEAR_COLORS`.

    Returns:
        As the foreground, or [B, H, W, 3] when either argument is a batch.
    """
    return torch.where(alpha.unsqueeze(-1) < _CLEAR, foreground.new_tensor(color), foreground)


def _planes(image: Tensor) -> Tensor:
    """[H, W, 3+] or [B, H, W, 3+] as float32 [B, 3, H, W]."""
    return image[..., :3].float().reshape(-1, *image.shape[-3:-1], 3).movedim(-1, 1)


def _mean_color(picture: Tensor, weight: Tensor) -> Tensor:
    """[B, 3, 1, 1]: mean of [B, 3, H, W], weighted by [B, 1, H, W]; 0 where the weight is 0 everywhere."""
    # The fourth power counts pixels that are nearly pure far above mixed ones.
    weight = weight.square().square()
    return (picture * weight).sum(dim=(-2, -1), keepdim=True) / weight.sum(dim=(-2, -1), keepdim=True).clamp(min=1e-6)


def _nearest(planes: Tensor, strip: slice, rows: int, columns: int) -> Tensor:
    """Rows `strip` of [B, C, H, W] resized to [B, C, rows, columns] by nearest neighbour."""
    height, width = planes.shape[-2:]
    y = torch.arange(strip.start, strip.stop, device=planes.device) * height // rows
    x = torch.arange(columns, device=planes.device) * width // columns
    if width >= columns:
        chosen = planes.index_select(2, y)
        return chosen if width == columns else chosen.index_select(3, x)
    # Columns are slow to pick; this way each row is widened once, before it is repeated.
    top = strip.start * height // rows
    bottom = (strip.stop - 1) * height // rows + 1
    return planes[:, :, top:bottom].index_select(3, x).index_select(2, y - top)


def _relaxed(
    colors: Tensor,
    view: Tensor,
    cover: Tensor,
    iterations: int,
    regularization: float,
    gradient_weight: float,
    background_known: bool,
) -> Tensor:
    """F and B of one level [B, 6, h, w] after red-black relaxation; a column may be added to make w even.

    With weights w of the four neighbours and v = (alpha, 1 - alpha), the two colours that minimise a pixel's cost are
    m + v (I - v . m) / (sum w + |v|^2), where m holds the neighbours' weighted means.
    """
    weights = _weights(cover, regularization, gradient_weight)
    if cover.shape[-1] % 2:
        colors, view, cover, weights = (
            torch.nn.functional.pad(planes, (0, 1)) for planes in (colors, view, cover, weights)
        )
    # Only the added column has no neighbours.
    total = weights.sum(dim=1, keepdim=True).clamp(min=1e-30)
    behind = 1 - cover
    norm = total + cover**2 if background_known else total + cover**2 + behind**2
    shares = torch.cat((weights / total, cover, behind, cover / norm, behind / norm), dim=1)
    red, black = _halves(colors)
    facts = tuple(zip(_halves(shares), _halves(view)))
    for _ in range(iterations):
        _relax(red, black, *facts[0], 0, background_known)
        _relax(black, red, *facts[1], 1, background_known)
    return _joined(red, black)


def _weights(cover: Tensor, regularization: float, gradient_weight: float) -> Tensor:
    """[B, 4, h, w]: how much a pixel of [B, 1, h, w] listens to its neighbour above, below, left, right; 0 without."""
    weights = cover.new_zeros(len(cover), 4, *cover.shape[-2:])
    down = regularization + gradient_weight * (cover[:, 0, 1:] - cover[:, 0, :-1]).abs()
    across = regularization + gradient_weight * (cover[:, 0, :, 1:] - cover[:, 0, :, :-1]).abs()
    weights[:, 0, 1:] = down
    weights[:, 1, :-1] = down
    weights[:, 2, :, 1:] = across
    weights[:, 3, :, :-1] = across
    return weights


def _halves(planes: Tensor) -> tuple[Tensor, Tensor]:
    """The checkerboard's two colours of [B, C, h, w], each [B, C, h, w / 2]; the first holds the corner (0, 0)."""
    even, odd = planes[..., 0::2], planes[..., 1::2]
    first, second = even.contiguous(), odd.contiguous()
    first[:, :, 1::2] = odd[:, :, 1::2]
    second[:, :, 1::2] = even[:, :, 1::2]
    return first, second


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """What `_halves` took apart."""
    planes = first.new_empty(*first.shape[:-1], 2 * first.shape[-1])
    planes[:, :, 0::2, 0::2] = first[:, :, 0::2]
    planes[:, :, 1::2, 1::2] = first[:, :, 1::2]
    planes[:, :, 0::2, 1::2] = second[:, :, 0::2]
    planes[:, :, 1::2, 0::2] = second[:, :, 1::2]
    return planes


def _relax(half: Tensor, other: Tensor, shares: Tensor, view: Tensor, parity: int, background_known: bool) -> None:
    """Moves one half [B, 6, h, w / 2] to the best colours given the other, in place.

    Of the two neighbours beside a pixel one has the pixel's own index in the other half; the second has the index
    before in the rows of that parity, and the index after in the others.
    """
    above, below, left, right, front, behind, front_gain, behind_gain = shares.split(1, dim=1)
    source = other[:, :3] if background_known else other
    before, after = slice(parity, None, 2), slice(1 - parity, None, 2)
    same = left.clone()
    same[:, :, before] = right[:, :, before]
    mean = source * same
    mean[:, :, 1:].addcmul_(source[:, :, :-1], above[:, :, 1:])
    mean[:, :, :-1].addcmul_(source[:, :, 1:], below[:, :, :-1])
    mean[:, :, before, 1:].addcmul_(source[:, :, before, :-1], left[:, :, before, 1:])
    mean[:, :, after, :-1].addcmul_(source[:, :, after, 1:], right[:, :, after, :-1])
    old_behind = half[:, 3:] if background_known else mean[:, 3:]
    error = torch.addcmul(view, front, mean[:, :3], value=-1).addcmul_(behind, old_behind, value=-1)
    half[:, :3] = mean[:, :3].addcmul_(front_gain, error).clamp_(0, 1)
    if not background_known:
        half[:, 3:] = mean[:, 3:].addcmul_(behind_gain, error).clamp_(0, 1)
