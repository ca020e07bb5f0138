"""What the library takes for a picture."""

from __future__ import annotations

import torch
from torch import Tensor


def check_form(image: Tensor) -> None:
    """Refuses what has not the form of a picture, without looking at its values.

    Raises:
        ValueError: unless `image` is an [H, W, C] tensor of floating-point numbers with at least one pixel and three
            channels.
    """
    if not isinstance(image, Tensor):
        raise ValueError(
            f"A picture is a PyTorch tensor, not a {type(image).__name__}. torch.from_numpy(...) makes one of an array."
        )
    if image.ndim != 3 or image.shape[-1] < 3 or 0 in image.shape:
        shape = " x ".join(str(n) for n in image.shape)
        raise ValueError(f"A picture has the shape height x width x 3 (red, green, blue); this one is {shape}.")
    if not image.is_floating_point():
        raise ValueError(
            f"The values of a picture are floating-point numbers from 0 to 1; this one holds {str(image.dtype)[6:]}. "
            "Divide 8-bit values by 255."
        )


def check_picture(image: Tensor) -> None:
    """Refuses what is not a picture.

    Raises:
        ValueError: for what `check_form` refuses, and for NaN and infinite values.
    """
    check_form(image)
    if not torch.isfinite(image).all():
        raise ValueError("The picture holds NaN or infinite values. Look at the node that made it.")
