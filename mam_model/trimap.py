"""Trimaps: what is certainly the subject, what certainly is not, and the band between that a matting method solves."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# As which side a trimap's, or a matte's, value is read; what lies between is unknown.
SURE_BACKGROUND = 0.05
SURE_SUBJECT = 0.95

# The least share of its full reach that an adaptive band has, and the steps in which the share grows.
_REACHES = (0.25, 0.5, 0.75, 1.0)
# OpenCV 4.10 measures 30 pixels as 30.000002, OpenCV 5 as 30. Distances that are this near count as one.
_ROUNDED = 1 + 1e-6


def trimap_from_mask(mask: Tensor, inner_px: float, outer_px: float) -> Tensor:
    """A trimap with an unknown band along the edge of a mask.

    Distances are Euclidean, between pixel centres, to the nearest pixel of the other side; so the band's corners are
    round, and `inner_px = outer_px = 0` gives the mask itself. The picture's border is not an edge: a subject that
    is cut off by it stays certain there. An empty mask gives all background, a full one all foreground.

    Args:
        mask: [..., H, W], 0..1 or bool, 1 = subject; above 0.5 counts as subject.
        inner_px: how far the band reaches into the subject.
        outer_px: how far it reaches into the background.

    Returns:
        [..., H, W] of 0 (background), 0.5 (unknown) and 1 (subject), on the mask's device; float32 unless the mask
        has a floating type of its own.

    Raises:
        ValueError: for a width that is negative, NaN or infinite.
    """
    _check_widths(inner_px, outer_px)
    subject = mask > 0.5
    return _trimap(subject, ~subject, inner_px, outer_px, mask)


def trimap_from_alpha(alpha: Tensor, low: float = 0.05, high: float = 0.95, widen_px: float = 0.0) -> Tensor:
    """A trimap from a matte: unknown where the matte is neither clearly 0 nor clearly 1.

    Args:
        alpha: [..., H, W], 0..1.
        low: at or below it a pixel is background.
        high: at or above it a pixel is subject.
        widen_px: how far (Euclidean) the unknown region grows into both sides. It also opens a band where subject
            and background touch without any soft pixel between them.

    Returns:
        [..., H, W] of 0, 0.5 and 1, as `trimap_from_mask`.

    Raises:
        ValueError: when low is not below high, or for a width that is negative, NaN or infinite.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"A trimap needs 0 <= low < high <= 1; low {low:g} and high {high:g} were given.")
    if not 0 <= widen_px < math.inf:
        raise ValueError(f"The width by which a trimap's band grows goes from 0 upwards; {widen_px:g} was given.")
    return _trimap(alpha >= high, alpha <= low, widen_px, widen_px, alpha)


def trimap_adaptive(alpha: Tensor, inner_px: float, outer_px: float) -> Tensor:
    """A trimap whose band is wide where the matte is soft, as in hair, and narrow along hard edges.

    Every soft pixel (alpha between 0.05 and 0.95) is unknown. From it the band reaches a share s of `inner_px` into
    the subject and of `outer_px` into the background, by Euclidean distance. s is the local thickness of the soft
    region over max(inner_px, outer_px), in steps of 1/4 and no less than 1/4 and no more than 1; the thickness is the
    soft part of the square of side 2 max(inner_px, outer_px) + 1 around the pixel, over that side. So gaps between
    strands of hair do not make the hair thin, and a binary mask gets an even band of a quarter of the widths. The band
    reaches at most half as deep into each side as that side is anywhere, so that each keeps a sure core.

    Args:
        alpha: [..., H, W], 0..1.
        inner_px: how far the band reaches into the subject where the matte is softest.
        outer_px: how far it reaches into the background there.

    Returns:
        [..., H, W] of 0, 0.5 and 1, as `trimap_from_mask`.

    Raises:
        ValueError: for a width that is negative, NaN or infinite.
    """
    _check_widths(inner_px, outer_px)
    trimap = torch.empty(alpha.shape, dtype=alpha.dtype if alpha.is_floating_point() else torch.float32)
    frames = zip(trimap.reshape(-1, *alpha.shape[-2:]), alpha.reshape(-1, *alpha.shape[-2:]))
    for result, frame in frames:
        result.copy_(torch.from_numpy(_adaptive(frame.detach().float().cpu().numpy(), inner_px, outer_px)))
    return trimap.to(alpha.device)


def mask_from_trimap(trimap: Tensor) -> Tensor:
    """A hard mask from a trimap: each unknown pixel joins the side of the nearest known pixel.

    Args:
        trimap: [..., H, W]; from 0.95 on surely subject, up to 0.05 surely background, otherwise unknown.

    Returns:
        [..., H, W] of 0 and 1, with the device and type that `trimap_from_mask` gives. Equally near sides make a pixel
        subject. With one side known all joins that; with nothing known all is 0.
    """
    to_background = _distance_to(trimap <= SURE_BACKGROUND)
    to_subject = _distance_to(trimap >= SURE_SUBJECT)
    dtype = trimap.dtype if trimap.is_floating_point() else torch.float32
    return ((to_subject <= to_background * _ROUNDED) & to_subject.isfinite()).to(trimap.device, dtype)


def _check_widths(inner_px: float, outer_px: float) -> None:
    if not (0 <= inner_px < math.inf and 0 <= outer_px < math.inf):
        raise ValueError(f"The widths of a trimap's band go from 0 upwards; {inner_px:g} and {outer_px:g} were given.")


def _adaptive(alpha: np.ndarray, inner_px: float, outer_px: float) -> np.ndarray:
    """`trimap_adaptive` of one float32 [H, W]."""
    import cv2

    subject, background = alpha >= SURE_SUBJECT, alpha <= SURE_BACKGROUND
    soft = ~(subject | background)
    radius = max(inner_px, outer_px, 0.5)
    side = 2 * round(radius) + 1
    # A larger window holds but more of the repeated border, and OpenCV keeps a row of sums for each of its rows.
    rows, columns = (min(side, 2 * length + 1) for length in alpha.shape)
    share = cv2.blur(soft.astype(np.float32), (columns, rows), borderType=cv2.BORDER_REPLICATE) * side / radius
    inner_px = _within(subject, inner_px)
    outer_px = _within(background, outer_px)
    unknown = soft.copy()
    for reach in _REACHES:
        # The narrowest band also runs where the two sides touch with nothing soft between them.
        narrowest = reach == _REACHES[0]
        softer = soft & (share >= reach)
        to_background = _plane_distance_to(~subject if narrowest else softer)
        to_subject = _plane_distance_to(~background if narrowest else softer)
        unknown |= subject & (to_background <= reach * inner_px * _ROUNDED)
        unknown |= background & (to_subject <= reach * outer_px * _ROUNDED)
    return np.where(unknown, np.float32(0.5), subject.astype(np.float32))


def _within(side: np.ndarray, width_px: float) -> float:
    """The width, or half of the greatest depth of one side of the edge, if that is less."""
    if not side.any():
        return width_px
    return min(width_px, 0.5 * float(_plane_distance_to(~side).max()))


def _trimap(subject: Tensor, background: Tensor, inner_px: float, outer_px: float, like: Tensor) -> Tensor:
    """1 where `subject` is deeper than `inner_px`, 0 where `background` is deeper than `outer_px`, else 0.5."""
    dtype = like.dtype if like.is_floating_point() else torch.float32
    trimap = torch.full(like.shape, 0.5, dtype=dtype, device=like.device)
    trimap.masked_fill_(_deeper_than(background, outer_px), 0.0)
    return trimap.masked_fill_(_deeper_than(subject, inner_px), 1.0)


def _deeper_than(region: Tensor, width_px: float) -> Tensor:
    """Where a pixel of `region` [..., H, W] is farther than `width_px` from every pixel outside the region."""
    if width_px == 0:
        return region
    return _distance_to(~region) > width_px * _ROUNDED


def _distance_to(area: Tensor) -> Tensor:
    """float32: how far each pixel of bool [..., H, W] is from the nearest one inside; infinite without any."""
    distances = torch.empty(area.shape)
    planes = area.reshape(-1, *area.shape[-2:]).cpu().numpy()
    for result, plane in zip(distances.view(-1, *area.shape[-2:]), planes):
        result.copy_(torch.from_numpy(_plane_distance_to(plane)))
    return distances.to(area.device)


def _plane_distance_to(area: np.ndarray) -> np.ndarray:
    """`_distance_to` of bool [H, W]."""
    import cv2

    # Without any pixel inside, OpenCV would return an arbitrary large number.
    if not area.any():
        return np.full(area.shape, np.inf, dtype=np.float32)
    return cv2.distanceTransform((~area).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
