"""Going on with less when a device's memory is full."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

# What back ends say that have no exception of their own for it and raise a bare RuntimeError: Apple's, whose buffers
# have a largest size too, DirectML, Intel's driver, and CUDA's library for matrix products.
_SAYINGS = (
    "MPS backend out of memory",
    "Invalid buffer size",
    "not enough GPU video memory",
    "OUT_OF_DEVICE_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
# PyTorch's on the processor, and OpenCV's.
_PROCESSOR_SAYINGS = ("DefaultCPUAllocator", "Insufficient memory")


def halving(
    work: Callable[[int], T],
    at_once: int,
    is_out_of_memory: Callable[[Exception], bool],
    tell: Callable[[int], None] = lambda at_once: None,
) -> T:
    """What `work(at_once)` gives, or with half as many at once, and half of that, when the memory does not suffice.

    Args:
        work: called with how many things to work on at once, until it returns. Its result must not depend on that.
        is_out_of_memory: whether what `work` raised says that the memory is full.
        tell: called with the new number before `work` is called again.
    Raises:
        whatever `work` raises with one thing at a time, and at once what is not for want of memory.
    """
    while True:
        try:
            return work(at_once)
        except Exception as error:
            if at_once <= 1 or not is_out_of_memory(error):
                raise
        # Only here is the error gone, whose traceback kept alive everything that the attempt had made.
        at_once //= 2
        tell(at_once)


def says_memory_is_full(error: Exception) -> bool:
    """Whether an error without a class of its own means that a device's memory did not suffice."""
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)


def is_device_full(error: Exception) -> bool:
    """Whether the memory of a device other than the processor did not suffice."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or says_memory_is_full(error)


def is_processor_full(error: Exception) -> bool:
    """Whether the processor's memory did not suffice: Python's, PyTorch's or OpenCV's, which have no class for it."""
    return isinstance(error, MemoryError) or any(saying in str(error) for saying in _PROCESSOR_SAYINGS)
