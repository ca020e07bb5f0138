"""Strokes turned into points, for networks that know points but not strokes."""
# OpenCV is imported where it is used, so that importing the library costs ComfyUI no start-up time.

from __future__ import annotations

import numpy as np
from torch import Tensor

from .prompt import Scribble


def points_from_scribbles(scribbles: Tensor) -> list[tuple[tuple[float, float], int]]:
    """One point per connected stroke, on the stroke and nearest to its centre.

    The original demo of Matting Anything takes the centre itself, which lies beside a stroke that is bent.

    Args:
        scribbles: uint8 [H, W] of `Scribble` values.
    Returns:
        ((x, y), label) per stroke, top to bottom; label 1 = foreground, 0 = background.
    """
    import cv2

    strokes = scribbles.cpu().numpy()
    points = []
    for value, label in ((Scribble.FOREGROUND, 1), (Scribble.BACKGROUND, 0)):
        count, components, _, centres = cv2.connectedComponentsWithStats((strokes == value).astype(np.uint8))
        for index in range(1, count):
            rows, columns = np.nonzero(components == index)
            nearest = np.argmin((columns - centres[index, 0]) ** 2 + (rows - centres[index, 1]) ** 2)
            points.append(((float(columns[nearest]), float(rows[nearest])), label))
    return points
