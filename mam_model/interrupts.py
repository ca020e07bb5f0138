"""Ctrl-C, which reaches every process of a terminal, is the affair of the first one alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def unheard_by_children() -> Iterator[None]:
    """Processes that are started in here never hear of Ctrl-C; in this one it counts as soon as they are started.

    A process that ignores it once it is at work would still end in a traceback while it imports its modules, which
    takes seconds. What is blocked when a process begins stays blocked in it. Windows knows no such thing.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Python's helper, which comes with the first process, would lift the block as it starts.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
