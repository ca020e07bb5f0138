"""Processes that work ahead, and whose death is noticed.

Each of them writes into a pipe of its own, whose writing end nobody else holds. So the pipe of one that was killed
ends, even in the middle of an answer. PyTorch's loader has a queue for all of them, whose writing end the reader holds
too; outside of Python's main thread the rest of that answer would be waited for for ever.
"""
# OpenCV is imported where it is used, so that importing the library costs ComfyUI no start-up time.

from __future__ import annotations

import multiprocessing
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing.connection import Connection
from typing import TypeVar

import torch

from ..interrupts import end_with_parent, unheard_by_children

Job = TypeVar("Job")
Answer = TypeVar("Answer")


class WorkerLost(Exception):
    """A process was killed before it gave its answers."""


class _ThereError(Exception):
    """Where in its process an error came from, as text: tracebacks cannot be sent."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True)
class _Failure:
    error: Exception
    there: _ThereError


def worked_ahead(work: Callable[[Job], Answer], jobs: Sequence[Job], workers: int) -> Iterator[Answer]:
    """What `work` makes of each of the jobs, in their order; up to three for each process are ready or in the making.

    Args:
        work: is sent to the processes, as are the jobs.
        workers: how many processes, at least 1. They end when the iterator is closed.
    Raises:
        WorkerLost: a process was killed, most likely because memory ran out.
        whatever `work` raises.
    """
    # Forked from a process that had trained before, workers were seen to wait for ever: a fork inherits the state
    # of its libraries' threads, but not the threads.
    context = multiprocessing.get_context("spawn")
    processes, receivers = [], []
    try:
        with unheard_by_children():
            for number in range(min(workers, len(jobs))):
                receiver, sender = context.Pipe(duplex=False)
                receivers.append(receiver)
                with sender:
                    process = context.Process(target=_work, args=(work, jobs[number::workers], sender), daemon=True)
                    process.start()
                processes.append(process)
        for receiver in islice(cycle(receivers), len(jobs)):
            try:
                answer = receiver.recv()
            except (EOFError, OSError) as error:
                raise WorkerLost("A process that works ahead was killed.") from error
            if isinstance(answer, _Failure):
                raise answer.error from answer.there
            yield answer
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        for receiver in receivers:
            receiver.close()


def _work(work: Callable[[Job], Answer], jobs: Sequence[Job], answers: Connection) -> None:
    import cv2

    # Ctrl-C reaches all processes of a terminal, and SIGTERM those that torchrun, Slurm or systemd end together. The
    # one that reads decides what becomes of it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    # There are as many workers as are wanted; each with threads of its own would be too many.
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    ready = queue.Queue(maxsize=1)
    threading.Thread(target=_send, args=(ready, answers), daemon=True).start()
    for job in jobs:
        try:
            ready.put(work(job))
        # Whatever it is, the process that reads has to say it.
        except Exception as error:
            ready.put(_Failure(error, _ThereError(traceback.format_exc())))
            break
    # PyTorch sends where a tensor is in this process's memory. The one that reads ends it when it has all.
    multiprocessing.parent_process().join()


def _send(ready: queue.Queue, answers: Connection) -> None:
    # Where nobody reads any more, this process is ended too.
    with answers, suppress(BrokenPipeError):
        while True:
            answers.send(ready.get())
