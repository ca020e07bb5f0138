"""Straight-alpha compositing: a subject over a colour or a picture, or kept with its alpha as RGBA."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from .averaging import averaged
from .gaussian import blurred

FIT_MODES = ("cover", "contain", "stretch", "center")


class ColorError(ValueError):
    """A colour that cannot be read, said in words its author understands."""


def srgb_to_linear(color: Tensor) -> Tensor:
    """sRGB values 0..1 to linear light 0..1 (IEC 61966-2-1); negative values count as 0."""
    color = color.clamp(min=0)
    return torch.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light: Tensor) -> Tensor:
    """Linear light 0..1 to sRGB values 0..1 (IEC 61966-2-1); negative values count as 0."""
    light = light.clamp(min=0)
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def over(foreground: Tensor, alpha: Tensor, background: Tensor, *, linear_light: bool = False) -> Tensor:
    """The foreground laid over the background: alpha * foreground + (1 - alpha) * background.

    Args:
        foreground: [H, W, 3] or [B, H, W, 3], sRGB 0..1, straight (not multiplied by alpha).
        alpha: [H, W] or [B, H, W], 0..1.
        background: [H, W, 3], [B, H, W, 3], or one colour [3]. A single picture serves a whole batch.
        linear_light: blend light instead of sRGB values, as a camera would; soft edges between a dark and a bright
            colour come out brighter. Most picture editors blend sRGB values, which is the default.

    Returns:
        [H, W, 3], or [B, H, W, 3] when any argument is a batch.

    Raises:
        ValueError: when the sizes differ.
    """
    coverage = alpha.unsqueeze(-1)
    try:
        torch.broadcast_shapes(foreground.shape, (*coverage.shape[:-1], 3), background.shape)
    except RuntimeError:
        raise ValueError(
            f"The foreground {_spoken(foreground)}, the alpha {_spoken(alpha)} and the background "
            f"{_spoken(background)} do not fit together. Bring them to one size first."
        ) from None
    if not linear_light:
        return background + coverage * (foreground - background)
    subject = srgb_to_linear(foreground)
    behind = srgb_to_linear(background)
    return linear_to_srgb(behind + coverage * (subject - behind))


def with_alpha(image: Tensor, alpha: Tensor) -> Tensor:
    """A picture and its matte as one straight-alpha RGBA picture.

    Args:
        image: [H, W, 3] or [B, H, W, 3], 0..1.
        alpha: [H, W] or [B, H, W], 0..1. A single picture or matte serves a whole batch.

    Returns:
        [H, W, 4] or [B, H, W, 4]; the colours are untouched, also where alpha is 0.

    Raises:
        ValueError: when the sizes or the lengths of two batches differ, or the picture has two channels or more than
            three. A single one is taken for grey.
    """
    if image.shape[-3:-1] != alpha.shape[-2:]:
        raise ValueError(f"The picture {_spoken(image)} and the alpha {_spoken(alpha)} differ in size. Resize one.")
    size = alpha.shape[-2:]
    try:
        *batch, _, _, _ = torch.broadcast_shapes(image.shape, (*alpha.shape[:-2], *size, 3))
    except RuntimeError:
        raise ValueError(
            f"The picture {_spoken(image)} and the alpha {_spoken(alpha)} do not fit together. Give as many of one as "
            "of the other, or one of either, and pictures with three channels."
        ) from None
    return torch.cat((image.expand(*batch, *size, 3), alpha.to(image).expand(*batch, *size).unsqueeze(-1)), dim=-1)


def premultiplied(rgba: Tensor) -> Tensor:
    """Straight RGBA [..., 4] with its colours multiplied by alpha, as video tools and some game engines want it."""
    return torch.cat((rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]), dim=-1)


def place(rgba: Tensor, height: int, width: int, x: float = 0.5, y: float = 0.5, scale: float = 1.0) -> Tensor:
    """A cut-out on a larger or smaller transparent canvas.

    Args:
        rgba: straight RGBA [H, W, 4], 0..1.
        height, width: of the canvas, in pixels.
        x, y: where the cut-out's middle comes to lie, as a share of the canvas from its left and top; it may lie
            outside, then the cut-out is cut off.
        scale: its size as a factor on its own pixels.

    Returns:
        straight RGBA [height, width, 4].

    Raises:
        ValueError: for a scale that is not above 0.
    """
    if not scale > 0:
        raise ValueError(f"The scale of the subject must be above 0; {scale:g} was given.")
    rows, columns = (max(1, round(n * scale)) for n in rgba.shape[:2])
    # Straight colours would be mixed with those under alpha 0 when they are resampled.
    scaled = _resized(premultiplied(rgba), rows, columns).clamp(0, 1)
    canvas = rgba.new_zeros(height, width, 4)
    top, left = round(y * height - rows / 2), round(x * width - columns / 2)
    seen = scaled[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    first_row, first_column = max(0, top), max(0, left)
    canvas[first_row : first_row + seen.shape[0], first_column : first_column + seen.shape[1]] = seen
    alpha = canvas[..., 3:]
    return torch.cat(((canvas[..., :3] / alpha.clamp(min=1e-6)).clamp(0, 1), alpha), dim=-1)


def light_wrap(composite: Tensor, alpha: Tensor, background: Tensor, width_px: float, amount: float) -> Tensor:
    """Lets the background's light spill over the subject's edge, as a lens and the air do.

    The background, softened over `width_px`, is screened onto the subject, strongest at the edge and fading inwards;
    light is only added, so that a dark background changes nothing.

    Args:
        composite: [H, W, 3], the subject over the background, sRGB 0..1.
        alpha: [H, W], 0..1.
        background: [H, W, 3], what lies behind, sRGB 0..1.
        width_px: how far the light reaches into the subject.
        amount: 0..1, its strength at the edge.

    Returns:
        [H, W, 3], 0..1.
    """
    if not (width_px > 0 and amount > 0):
        return composite
    light = blurred(background * (1 - alpha[..., None]), 0.5 * width_px, max(1, math.ceil(1.5 * width_px)))
    wrapped = 1 - (1 - composite) * (1 - amount * light.clamp(0, 1))
    return composite + alpha[..., None] * (wrapped - composite)


def parse_color(text: str) -> tuple[float, float, float]:
    """Red, green and blue (0..1) of "#rrggbb", "#rgb" (the # may be left out) or a CSS colour name such as "teal".

    Raises:
        ColorError: when the text is neither.
    """
    from PIL import ImageColor

    # Read from JSON, it may be anything.
    spoken = text.strip().lower() if isinstance(text, str) else ""
    if spoken in ImageColor.colormap:
        # Not the table's text: Pillow replaces it by numbers once anybody has asked for that name.
        red, green, blue = (level / 255 for level in ImageColor.getrgb(spoken))
        return red, green, blue
    digits = spoken.removeprefix("#")
    if re.fullmatch("[0-9a-f]{3}", digits):
        digits = "".join(2 * digit for digit in digits)
    if not re.fullmatch("[0-9a-f]{6}", digits):
        raise ColorError(
            f"'{text}' is not a colour. Write # and six digits from 0 to f, two each for red, green and blue "
            "(#00b140 is a green screen), or a name such as white, black, gray or skyblue."
        )
    red, green, blue = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue


def solid_color(color: str, height: int, width: int) -> Tensor:
    """A picture [height, width, 3] of one colour, given as `parse_color` reads it.

    Raises:
        ColorError: when the colour cannot be read.
    """
    return torch.tensor(parse_color(color)).expand(height, width, 3).clone()


def fit_picture(
    background: Tensor, height: int, width: int, mode: str = "cover", fill: tuple[float, float, float] = (0, 0, 0)
) -> Tensor:
    """A background brought to the size of the picture that will lie over it.

    Args:
        background: [H, W, 3] or [B, H, W, 3], 0..1.
        height, width: the wanted size in pixels.
        mode: "cover" scales until nothing is left bare and cuts what stands over; "contain" scales until all of it
            is visible and fills the rest; "stretch" ignores the proportions; "center" keeps its pixels as they are,
            in the middle, cut or filled up.
        fill: the colour of what stays bare, 0..1.

    Returns:
        [height, width, 3] or [B, height, width, 3].

    Raises:
        ValueError: for an unknown mode.
    """
    if mode not in FIT_MODES:
        raise ValueError(f"'{mode}' is no way to fit a background. Choose one of: {', '.join(FIT_MODES)}.")
    rows, columns = background.shape[-3:-1]
    if mode == "stretch":
        return _resized(background, height, width)
    if mode == "cover":
        scale = max(height / rows, width / columns)
        # Cutting before scaling keeps a huge background from being scaled as a whole.
        seen_rows = min(rows, max(1, round(height / scale)))
        seen_columns = min(columns, max(1, round(width / scale)))
        return _resized(_middle(background, seen_rows, seen_columns, fill), height, width)
    if mode == "contain":
        scale = min(height / rows, width / columns)
        background = _resized(background, max(1, round(rows * scale)), max(1, round(columns * scale)))
    return _middle(background, height, width, fill)


def _resized(picture: Tensor, height: int, width: int) -> Tensor:
    """[..., H, W, 3] to [..., height, width, 3], averaging when it shrinks."""
    if picture.shape[-3:-1] == (height, width):
        return picture
    planes = picture.reshape(-1, *picture.shape[-3:]).movedim(-1, 1)
    # On a processor PyTorch cannot average in half precision.
    planes = planes if planes.dtype == torch.float64 else planes.float()
    planes = averaged(planes, (height, width))
    return planes.to(picture.dtype).movedim(1, -1).reshape(*picture.shape[:-3], height, width, picture.shape[-1])


def _middle(picture: Tensor, height: int, width: int, fill: tuple[float, float, float]) -> Tensor:
    """The middle of [..., H, W, 3] in a frame of height x width, cut or filled up with a colour."""
    rows, columns = picture.shape[-3:-1]
    top, left = (rows - height) // 2, (columns - width) // 2
    seen = picture[..., max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width, :]
    if seen.shape[-3:-1] == (height, width):
        return seen
    frame = picture.new_tensor(fill).expand(*picture.shape[:-3], height, width, 3).clone()
    y, x = max(-top, 0), max(-left, 0)
    frame[..., y : y + seen.shape[-3], x : x + seen.shape[-2], :] = seen
    return frame


def _spoken(tensor: Tensor) -> str:
    return "(" + " x ".join(str(n) for n in tensor.shape) + ")"
