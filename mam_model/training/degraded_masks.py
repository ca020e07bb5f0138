"""Masks as they are found beside photos: right, moved, coarse, ragged, smoothed, made from a true alpha."""
# OpenCV is imported where it is used, so that importing the library costs ComfyUI no start-up time.

from __future__ import annotations

import numpy as np

MOVED_PX = 8
"""How far a mask's edge lies beside the true one at most where it is grown, shrunk, shifted or drawn with a brush."""


def degraded_mask(rng: np.random.Generator, alpha: np.ndarray) -> np.ndarray:
    """A mask such as segmenters, brushes and thresholds make of a subject with this alpha.

    In about two of three cases it is nothing but alpha > 0.5: where a subject cannot be told from what is behind it,
    how often a mask is right is all that there is to go by.

    Args:
        alpha: float32 [H, W] in 0..1.
    Returns:
        float32 [H, W], mostly of 0 and 1.
    """
    import cv2

    height, width = alpha.shape
    threshold = 0.5 if rng.random() < 0.9 else rng.uniform(0.15, 0.85)
    mask = (alpha > threshold).astype(np.float32)
    if rng.random() < 0.65:
        return mask
    kind = rng.choice(7, p=[0.26, 0.18, 0.2, 0.12, 0.08, 0.08, 0.08])
    if kind == 0:
        mask = _morphed(mask, int(rng.integers(1, MOVED_PX + 1)), grow=rng.random() < 0.5)
    elif kind == 1:
        rows, columns = rng.integers(-MOVED_PX, MOVED_PX + 1, 2)
        mask = _shifted(mask, int(rows), int(columns))
    elif kind == 2:
        # Blocks of the size that a picture of 800 pixels has in masks of 48 to 256 pixels a side.
        block = rng.uniform(2, 16)
        cells = max(2, round(width / block)), max(2, round(height / block))
        small = cv2.resize(mask, cells, interpolation=cv2.INTER_AREA)
        how = cv2.INTER_NEAREST if rng.random() < 0.4 else cv2.INTER_LINEAR
        if rng.random() < 0.5:
            small = (small > 0.5).astype(np.float32)
        mask = cv2.resize(small, (width, height), interpolation=how)
        mask = (mask > 0.5).astype(np.float32)
    elif kind == 3:
        # SAM: a smooth outline with rounded corners, without anything thin.
        mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(1.5, 7))
        level = rng.uniform(0.35, 0.65)
        mask = (mask > level).astype(np.float32) if rng.random() < 0.7 else _sharpened(mask, level, rng.uniform(2, 8))
    elif kind == 4:
        # GrabCut: ragged where colours are alike.
        noise = cv2.GaussianBlur(rng.standard_normal(alpha.shape).astype(np.float32), (0, 0), rng.uniform(0.7, 4))
        noise *= rng.uniform(0.1, 0.5) / max(float(noise.std()), 1e-6)
        soft = cv2.GaussianBlur(mask, (0, 0), rng.uniform(1, 5))
        mask = (soft + noise * (4 * soft * (1 - soft)) > 0.5).astype(np.float32)
    elif kind == 5:
        # A brush: the outline wanders.
        reach = rng.uniform(2, MOVED_PX)
        size = max(2, height // 24), max(2, width // 24)
        flow = rng.standard_normal((*size, 2)).astype(np.float32)
        flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_CUBIC) * reach * 0.7
        y, x = np.mgrid[:height, :width].astype(np.float32)
        mask = cv2.remap(mask, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        mask = (mask > 0.5).astype(np.float32)
    else:
        mask = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.3, 4)).clip(0, 1)
    if kind < 6 and rng.random() < 0.2:
        # Gaps are filled, or what is thin is lost.
        if rng.random() < 0.6:
            mask = _closed(mask, int(rng.integers(2, 7)))
        else:
            mask = 1 - _closed(1 - mask, int(rng.integers(1, 4)))
    if kind < 6 and rng.random() < 0.12:
        _blotted(rng, mask)
    return mask


def _morphed(mask: np.ndarray, radius_px: int, *, grow: bool) -> np.ndarray:
    import cv2

    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))
    return cv2.dilate(mask, kernel) if grow else cv2.erode(mask, kernel)


def _closed(mask: np.ndarray, radius_px: int) -> np.ndarray:
    return _morphed(_morphed(mask, radius_px, grow=True), radius_px, grow=False)


def _shifted(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    import cv2

    move = np.float32([[1, 0, columns], [0, 1, rows]])
    return cv2.warpAffine(mask, move, mask.shape[::-1], flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)


def _sharpened(mask: np.ndarray, level: float, slope: float) -> np.ndarray:
    return np.clip((mask - level) * slope + 0.5, 0, 1).astype(np.float32)


def _blotted(rng: np.random.Generator, mask: np.ndarray) -> None:
    """Adds or takes a few discs near the mask's edge, in place."""
    import cv2

    rows, columns = np.nonzero(cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((9, 9), np.uint8)))
    if not len(rows):
        return
    for pick in rng.integers(0, len(rows), rng.integers(1, 4)):
        center = int(columns[pick]), int(rows[pick])
        cv2.circle(mask, center, int(rng.integers(2, 9)), float(rng.random() < 0.5), -1)
