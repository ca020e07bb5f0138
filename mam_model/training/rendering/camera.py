"""What a camera adds: defocus and motion kernels for a layer; tone, noise, sharpening and JPEG for a picture."""

from __future__ import annotations

import numpy as np


def disc_kernel(radius_px: float) -> np.ndarray:
    """Defocus: a disc with an antialiased rim, sum 1."""
    reach = int(np.ceil(radius_px)) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = np.clip(radius_px + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    return kernel / kernel.sum()


def motion_kernel(rng: np.random.Generator, length_px: float) -> np.ndarray:
    """A slightly curved path of the hand or the subject, sum 1."""
    import cv2

    t = np.linspace(-0.5, 0.5, 24)
    angle = rng.uniform(0, np.pi) + rng.normal(0, 0.5) * t
    path = np.stack([np.cos(angle), np.sin(angle)], -1) * (t * length_px)[:, None]
    reach = int(np.ceil(length_px / 2)) + 3
    drawn = np.zeros((2 * reach + 1, 2 * reach + 1), np.uint8)
    fixed = ((path + reach) * 16).round().astype(np.int32)
    cv2.polylines(drawn, [fixed], False, 255, 1, cv2.LINE_AA, 4)
    kernel = drawn.astype(np.float32)
    return kernel / kernel.sum()


def exposed(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """The picture [H, W, 3] 0..1 as a camera would hand it over: toned, noisy, sharpened, compressed."""
    import cv2

    picture = picture * rng.uniform(0.85, 1.15) * rng.normal(1, 0.025, 3)
    picture = np.clip(picture, 0, 1) ** np.exp(rng.normal(0, 0.12))
    if rng.random() < 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 0.6))
    picture = picture.astype(np.float32)
    if rng.random() < 0.8:
        read, shot = rng.uniform(0.001, 0.015), rng.uniform(0, 0.025)
        speckle = rng.standard_normal(picture.shape, np.float32)
        if rng.random() < 0.4:
            # Demosaicing and noise reduction leave grain of more than a pixel.
            speckle = cv2.GaussianBlur(speckle, (0, 0), 0.7) * 1.8
        picture = picture + speckle * np.sqrt(read**2 + shot**2 * np.clip(picture, 0, 1))
    if rng.random() < 0.5:
        soft = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.6, 1.5))
        picture = picture + rng.uniform(0.1, 0.7) * (picture - soft)
    picture = np.clip(picture, 0, 1)
    if rng.random() < 0.7:
        levels = (picture[..., ::-1] * 255).round().astype(np.uint8)
        quality = int(rng.integers(60, 99))
        _, packed = cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, quality])
        picture = cv2.imdecode(packed, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32) / 255
    return np.ascontiguousarray(picture, np.float32)
