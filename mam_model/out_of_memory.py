"""Going on with less when a device's memory is full."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


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
