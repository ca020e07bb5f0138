"""What a predicted alpha costs: absolute difference and Laplacian pyramid, each weighted by a map.

Li, Jain, Shi: "Matting Anything", arXiv 2306.05399; the pyramid is that of Hou and Liu, "Context-Aware
Image Matting for Simultaneous Foreground and Alpha Estimation", 2019.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..m2m import AlphaPyramid

MeanWeight = Callable[[Tensor], Tensor]
# How much each scale's loss counts.
_OS1_SHARE, _OS4_SHARE, _OS8_SHARE = 2 / 5, 1 / 5, 1 / 5
_LEVELS = 5
# The coarsest of the levels has to have the three cells that its reflected border needs.
_LEAST_SIDE_PX = 2 * 2 ** (_LEVELS - 1) + 1
_EPSILON = 1e-8


def _alone(total_weight: Tensor) -> Tensor:
    return total_weight


def pyramid_loss(
    predicted: AlphaPyramid, true: Tensor, weights: AlphaPyramid, mean_weight: MeanWeight = _alone
) -> Tensor:
    """What the three scales cost together: L1 and Laplacian loss, 2/5 for os1 and 1/5 for each of os4 and os8.

    Args:
        true: float [N, 1, side, side], alpha in 0..1.
        weights: a map for each scale, see weight_maps.py.
        mean_weight: gives the mean of a sum of weights over all processes that share the batch. The mean of their
            losses is then the loss of the whole batch, however unevenly the weights are spread over them.
    Returns:
        float32 scalar.
    Raises:
        ValueError: for pictures below 33 pixels a side.
    """
    return sum(
        share * (l1_loss(alpha, true, weight, mean_weight) + laplacian_loss(alpha, true, weight, mean_weight))
        for share, alpha, weight in (
            (_OS1_SHARE, predicted.os1, weights.os1),
            (_OS4_SHARE, predicted.os4, weights.os4),
            (_OS8_SHARE, predicted.os8, weights.os8),
        )
    )


def l1_loss(predicted: Tensor, true: Tensor, weight: Tensor, mean_weight: MeanWeight = _alone) -> Tensor:
    """The mean absolute difference where the weight is, over the whole batch. A weight of 0 everywhere gives 0.

    Args:
        predicted, true: float [N, 1, H, W], alpha in 0..1.
        weight: float [N, 1, H, W], not negative.
        mean_weight: see `pyramid_loss`.
    Returns:
        float32 scalar.
    """
    return _weighted_mean((predicted.float() - true.float()).abs(), weight.float(), mean_weight)


def laplacian_loss(predicted: Tensor, true: Tensor, weight: Tensor, mean_weight: MeanWeight = _alone) -> Tensor:
    """The difference of the Laplacian pyramids of two alphas: five levels, the coarser the heavier (level i by 2^i).

    Each level is what a picture holds beyond its copy at half the size, by a 5 x 5 binomial filter with reflected
    borders. The weight of a level is every second value of the finer level's, unfiltered.

    Args:
        predicted, true: float [N, 1, H, W], alpha in 0..1, at least 33 pixels a side.
        weight: float [N, 1, H, W], not negative.
        mean_weight: see `pyramid_loss`.
    Returns:
        float32 scalar.
    Raises:
        ValueError: for a smaller picture.
    """
    height, width = predicted.shape[-2:]
    if min(height, width) < _LEAST_SIDE_PX:
        raise ValueError(
            f"The Laplacian loss needs pictures of at least {_LEAST_SIDE_PX} pixels a side, not {width} x {height}."
        )
    # The pyramid is linear: that of the difference is the difference of the two.
    difference = predicted.float() - true.float()
    weight = weight.float()
    kernel = _binomial_kernel(difference)
    loss = difference.new_zeros(())
    for level in range(_LEVELS):
        coarser = F.conv2d(F.pad(difference, (2, 2, 2, 2), mode="reflect"), kernel, stride=2)
        error = (difference - _enlarged(coarser, kernel, difference)).abs()
        loss = loss + 2**level * _weighted_mean(error, weight, mean_weight)
        difference, weight = coarser, weight[..., ::2, ::2]
    return loss


def _weighted_mean(error: Tensor, weight: Tensor, mean_weight: MeanWeight) -> Tensor:
    return (error * weight).sum() / (mean_weight(weight.sum()) + _EPSILON)


def _binomial_kernel(like: Tensor) -> Tensor:
    row = like.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0])
    return (torch.outer(row, row) / 256)[None, None]


def _enlarged(coarser: Tensor, kernel: Tensor, like: Tensor) -> Tensor:
    """A level brought back to the size of the finer one: zeros between its values, then the filter."""
    spread = torch.zeros_like(like)
    spread[..., ::2, ::2] = coarser
    return F.conv2d(F.pad(spread, (2, 2, 2, 2), mode="reflect"), 4 * kernel)
