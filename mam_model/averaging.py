"""Making pictures and masks smaller so that every pixel counts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def averaged(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Planes at another size: where they shrink, the mean of what lies under each pixel, else bilinear.

    Args:
        planes: float [N, C, H, W], on the processor not in half precision.
        size: rows and columns.
    Returns:
        [N, C, *size] on the same device; rounding may lead out of the range of values by a little.
    """
    try:
        return F.interpolate(planes, size, mode="bilinear", antialias=True)
    except NotImplementedError:
        # Before PyTorch 2.7 a Mac's graphics chip cannot do it.
        return F.interpolate(planes.cpu(), size, mode="bilinear", antialias=True).to(planes.device)
