"""Trimaps: what is certainly the subject, what certainly is not, and the band between that a matting method solves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


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
        ValueError: for a negative width.
    """
    if inner_px < 0 or outer_px < 0:
        raise ValueError(f"The widths of a trimap's band go from 0 upwards; {inner_px:g} and {outer_px:g} were given.")
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
        ValueError: when low is not below high, or for a negative width.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"A trimap needs 0 <= low < high <= 1; low {low:g} and high {high:g} were given.")
    if widen_px < 0:
        raise ValueError(f"The width by which a trimap's band grows goes from 0 upwards; {widen_px:g} was given.")
    return _trimap(alpha >= high, alpha <= low, widen_px, widen_px, alpha)


def _trimap(subject: Tensor, background: Tensor, inner_px: float, outer_px: float, like: Tensor) -> Tensor:
    """1 where `subject` is deeper than `inner_px`, 0 where `background` is deeper than `outer_px`, else 0.5."""
    dtype = like.dtype if like.is_floating_point() else torch.float32
    trimap = torch.full(like.shape, 0.5, dtype=dtype, device=like.device)
    trimap.masked_fill_(_deeper_than(background, outer_px), 0.0)
    return trimap.masked_fill_(_deeper_than(subject, inner_px), 1.0)


def _deeper_than(region: Tensor, width_px: float) -> Tensor:
    """Where a pixel of `region` [..., H, W] is farther than `width_px` from every pixel outside the region."""
    if width_px == 0 or region.numel() == 0:
        return region
    import cv2

    planes = region.reshape(-1, *region.shape[-2:]).cpu().numpy().astype(np.uint8)
    deep = np.ones(planes.shape, dtype=bool)
    for plane, result in zip(planes, deep, strict=True):
        # Without any pixel outside, the distance is infinite; OpenCV would return an arbitrary large number.
        if not plane.all():
            result[:] = cv2.distanceTransform(plane, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) > width_px
    return torch.from_numpy(deep).reshape(region.shape).to(region.device)
