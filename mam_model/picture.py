"""What the library takes for a picture."""

from __future__ import annotations

import torch
from torch import Tensor


def check_picture(image: Tensor) -> None:
    """Refuses what is not a picture.

    Raises:
        ValueError: unless `image` is a finite [H, W, C] tensor with at least one pixel and three channels.
    """
    if image.ndim != 3 or image.shape[-1] < 3 or 0 in image.shape:
        shape = " x ".join(str(n) for n in image.shape)
        raise ValueError(f"A picture has the shape height x width x 3 (red, green, blue); this one is {shape}.")
    if not torch.isfinite(image).all():
        raise ValueError("The picture holds NaN or infinite values. Look at the node that made it.")
