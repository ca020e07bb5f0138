"""Matrix products on a processor, by the fastest exact way that PyTorch has.

In float32 PyTorch multiplies with MKL, which runs at half speed on some processors that are not Intel's, and convolves
with oneDNN, which is fast on all of them and rounds no more. So x weight' is taken as a 1 x 1 convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_STEPS = ([0, 0], [1, 1], [1, 1], 1)  # padding, stride, dilation, groups of a 1 x 1 convolution
# What `keeps_order` found out. No functools.cache: torch.compile traces what such a cache wraps, and not its answer.
_order_is_kept: bool | None = None


class Factor:
    """The second factor of products x weight' + bias, of which several follow one another.

    oneDNN wants weights in an order of its own, into which a convolution brings them anew each time. Here it is done
    once, at the cost of a copy that lives as long as the factor: keep it for a loop, not for the life of a network.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, rows: int):
        """
        Args:
            weight: [m, C].
            bias: [m].
            rows: how many rows x has in most of the products. The order is the fastest for that number alone, and can
                be five times as slow for another.
        """
        self._weight, self._bias, self._rows = weight, bias, rows
        self._ordered = _ordered(weight, rows) if _convolves(weight) and keeps_order() else None

    def __call__(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., m]"""
        picture = _as_picture(x)
        if self._ordered is None or picture.shape[2] != self._rows:
            return product(x, self._weight, self._bias)
        answer = _convolved(picture, self._ordered, self._bias)
        return _of_picture(answer, x.shape[:-1])


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x weight' + bias for [..., C] and [m, C]."""
    if not _convolves(weight):
        return F.linear(x, weight, bias)
    return _of_picture(F.conv2d(_as_picture(x), weight[:, :, None, None], bias), x.shape[:-1])


def _convolves(weight: Tensor) -> bool:
    """Whether products are taken as convolutions. In other precisions than float32 PyTorch multiplies with oneDNN."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    )


def _as_picture(x: Tensor) -> Tensor:
    """[..., C] as a picture of n x 1 pixels, [1, C, n, 1], channels last."""
    return x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)


def _of_picture(answer: Tensor, shape: torch.Size) -> Tensor:
    """[1, m, n, 1] -> [..., m]"""
    return answer.permute(0, 2, 3, 1).reshape(*shape, answer.shape[1])


def _ordered(weight: Tensor, rows: int) -> Tensor:
    size = [1, weight.shape[1], rows, 1]
    return torch.ops.mkldnn._reorder_convolution_weight(weight[:, :, None, None], *_STEPS, size)


def _convolved(picture: Tensor, ordered: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(picture, ordered, bias, *_STEPS, "none", [], "")


def keeps_order() -> bool:
    """Whether this PyTorch has the operators for ordered weights, which is tried once. Before compiling, ask for it."""
    global _order_is_kept
    if _order_is_kept is None:
        _order_is_kept = _can_keep_order()
    return _order_is_kept


def _can_keep_order() -> bool:
    """The operators are those into which torch.compile turns convolutions, and belong to no public interface."""
    x, weight, bias = torch.ones(3, 2), torch.tensor([[1.0, 2.0]]), torch.tensor([0.5])
    try:
        answer = _convolved(_as_picture(x), _ordered(weight, len(x)), bias)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return answer.flatten().tolist() == [3.5, 3.5, 3.5]
