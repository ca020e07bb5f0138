"""Ctrl-C, which reaches every process of a terminal, is the affair of the first one alone, at a time that suits it; and
when that one is gone, so are those that it started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
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


@contextmanager
def stop_noted() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed or the process told to end, instead of ending in the middle of a step.

    A second Ctrl-C ends at once.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    # Scripts let what they start in the background ignore the Ctrl-C that is meant for what is in front.
    heard = (signal.SIGINT, signal.SIGTERM)
    before = {number: handler for number in heard if (handler := signal.getsignal(number)) != signal.SIG_IGN}

    def note(number, frame):
        asked.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Ends this process, which another one started, as soon as that one has ended, however it did.

    A process that was killed cannot end those that it started. They would work on for hours, or wait for work for ever.
    """

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
