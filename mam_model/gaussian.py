"""A Gaussian blur of any width, whose time on a processor hardly grows with the width.

Along one axis a filter is a product with a matrix: each row holds the kernel at one place. OpenCV's filter multiplies
fewer numbers, and is the faster one for narrow kernels; on a matrix a processor works several times as fast.
"""
# OpenCV is imported where it is used, so that importing the library costs ComfyUI no start-up time.

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

# Kernels that reach farther than this are multiplied as matrices, so many rows at a time: from there on that gains on
# two cores at rest, with one thread as with two.
_NARROW_PX = 40
_ROWS = 128


def blurred(picture: Tensor, sigma_px: float, reach_px: int) -> Tensor:
    """A picture under a Gaussian; at the border its last row or column goes on.

    Args:
        picture: [H, W] or [H, W, C] on any device; not changed.
        sigma_px: standard deviation, above 0.
        reach_px: how many neighbours count on each side.

    Returns:
        a tensor of the same kind, a new one. It is computed in float32.
    """
    kernel = np.exp(-0.5 * (np.arange(-reach_px, reach_px + 1) / sigma_px) ** 2)
    kernel /= kernel.sum()
    planes = picture.float().reshape(*picture.shape[:2], -1)
    if picture.device.type != "cpu":
        found = _convolved(planes, kernel)
    elif reach_px <= _NARROW_PX:
        found = _in_arrays(planes, kernel)
    else:
        found = _multiplied(planes, kernel)
    return found.reshape(picture.shape).to(picture)


def _in_arrays(planes: Tensor, kernel: np.ndarray) -> Tensor:
    """float32 [H, W, C] filtered by float64 [2 r + 1] along its columns and its rows, by OpenCV."""
    import cv2

    return torch.from_numpy(cv2.sepFilter2D(planes.numpy(), -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE))


def _convolved(planes: Tensor, kernel: np.ndarray) -> Tensor:
    """The same on any device, by PyTorch's convolution."""
    planes, reach = planes.movedim(-1, 0)[None], len(kernel) // 2
    channels = planes.shape[1]
    for shape, padding in (((1, -1), (reach, reach, 0, 0)), ((-1, 1), (0, 0, reach, reach))):
        weight = torch.from_numpy(kernel).float().to(planes.device).view(1, 1, *shape)
        planes = F.conv2d(
            F.pad(planes, padding, mode="replicate"), weight.expand(channels, -1, -1, -1), groups=channels
        )
    return planes[0].movedim(0, -1)


def _multiplied(planes: Tensor, kernel: np.ndarray) -> Tensor:
    """The same on a processor, by matrix products."""
    for _ in range(2):
        # Turned over twice, it lies as before.
        planes = _along_columns(planes, kernel).movedim(0, 1)
    return planes


def _along_columns(planes: Tensor, kernel: np.ndarray) -> Tensor:
    """float32 [H, W, C] filtered by float64 [2 r + 1] along its columns."""
    height = len(planes)
    lines = planes.reshape(height, -1)
    kernel = _shortened(kernel, height)
    reach, rows = len(kernel) // 2, min(_ROWS, height)
    # Of each of some rows that follow one another, the weights of what lies from `reach` above the first one on.
    weights = sliding_window_view(np.pad(kernel, rows - 1), rows + 2 * reach)[::-1]
    filtered = torch.empty_like(lines)
    for top in range(0, height, rows):
        block = filtered[top : top + rows]
        first, last = max(0, top - reach), min(height, top + len(block) + reach)
        above, below = first - (top - reach), last - (top - reach)
        seen = weights[: len(block), above:below].astype(np.float32)
        seen[:, 0] += weights[: len(block), :above].sum(axis=1)
        seen[:, -1] += weights[: len(block), below:].sum(axis=1)
        torch.mm(torch.from_numpy(seen), lines[first:last], out=block)
    return filtered.reshape(planes.shape)


def _shortened(kernel: np.ndarray, length: int) -> np.ndarray:
    """A kernel that does the same to `length` pixels in a row and reaches no farther than just beyond their ends."""
    beyond = len(kernel) // 2 - length
    if beyond <= 0:
        return kernel
    shorter = kernel[beyond:-beyond].copy()
    shorter[0] += kernel[:beyond].sum()
    shorter[-1] += kernel[-beyond:].sum()
    return shorter
