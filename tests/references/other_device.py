"""A device that is not the processor, where there is none: what a graphics card would refuse is refused here too.

A tensor on it holds one of the processor, which is computed with, and calls itself "meta", so that code which asks for
the device takes the ways of a GPU. Refused are operations on tensors of two devices and, as on a Mac, float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_PROCESSOR = torch.device("cpu")
# These may be given an index, or a source, from the processor.
_ACROSS = ("aten.copy_", "aten._to_copy", "aten.index", "aten._index_put_impl_", "aten._unsafe_index")


class _There(Tensor):
    # Unlike PyTorch's own on that device it has values.
    is_meta = False

    @staticmethod
    def __new__(cls, here: Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=DEVICE
        )
        made.here = here
        return made

    def tolist(self) -> list:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of `other_device`.")


@contextmanager
def other_device() -> Iterator[OtherDevice]:
    """Inside it "meta" is such a device."""
    with OtherDevice() as device, _Making():
        yield device


class OtherDevice(TorchDispatchMode):
    """What `other_device` gives.

    Attributes:
        waits: how often the processor waited for a number or a tensor from there.
        done: operation -> how often it was done there.
        lacks: operations that it cannot do, as an older PyTorch's Mac.
    """

    def __init__(self):
        super().__init__()
        self.waits = 0
        self.done: Counter[str] = Counter()
        self.lacks: set[str] = set()

    def take(self, network: nn.Module) -> nn.Module:
        """Brings a network there, in place."""
        for module in network.modules():
            for tensors in (module._parameters, module._buffers):
                tensors.update({name: _There(x.detach()) for name, x in tensors.items() if x is not None})
        return network

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        # In inference mode an operation comes here before it is taken apart.
        if func._can_decompose() and not str(func).startswith("aten.lift_fresh"):
            with self:
                answer = func.decompose(*args, **kwargs)
            if answer is not NotImplemented:
                return answer
        name = str(func)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = any(isinstance(x, _There) for x in given)
        self._refuse_two_devices(name, args, given, there)
        if there and name in self.lacks:
            raise NotImplementedError(f"The operator '{name}' is not currently implemented for the device.")
        if there:
            self.done[name] += 1
        wanted = kwargs.get("device")
        stays = there if wanted is None else torch.device(wanted) == DEVICE
        self.waits += there and (not stays or name == "aten._local_scalar_dense.default")
        if wanted is not None:
            kwargs["device"] = _PROCESSOR
        args_here, kwargs_here = tree_map(_here, (args, kwargs))
        answer = func(*args_here, **kwargs_here)
        if isinstance(answer, Tensor):
            # What was changed in place stays the tensor that it was.
            for before in given:
                if answer is _here(before):
                    return before
            if name == "aten.copy_.default":
                return args[0]
        return tree_map(_taken, answer) if stays else answer

    def _refuse_two_devices(self, name: str, args: tuple, given: list[Tensor], there: bool) -> None:
        here = [x for x in given if not isinstance(x, _There) and x.ndim]
        across = name.startswith(_ACROSS) and (not name.startswith("aten.index") or isinstance(args[0], _There))
        if there and here and not across:
            raise RuntimeError(f"{name}: all tensors have to be on one device; {len(here)} are on the processor.")


class _Making(TorchFunctionMode):
    """Tensors from numbers, which PyTorch makes without asking a dispatch mode."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return torch.tensor(*args, **kwargs).to(device)
        if func is Tensor.new_tensor and isinstance(args[0], _There):
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(DEVICE)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], _There):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(torch.tensor(x) if isinstance(x, list) else x for x in places), *args[2:])
        return func(*args, **kwargs)


def _here(x):
    return x.here if isinstance(x, _There) else x


def _taken(x):
    if not isinstance(x, Tensor) or isinstance(x, _There):
        return x
    if x.dtype == torch.float64:
        raise TypeError("A Mac's graphics chip knows no float64.")
    return _There(x)
