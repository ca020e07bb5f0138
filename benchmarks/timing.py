"""What the benchmarks have in common: ways that run in turn, ratios with their spread, peaks of memory, tables.

Seconds depend on the machine and on what else it does; ratios of two ways that run in turn in one process carry over.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Times:
    """Seconds of several ways, one row for each run in which all of them had their turn."""

    rows: list[tuple[float, ...]]

    def median(self, way: int = 0) -> float:
        return statistics.median(row[way] for row in self.rows)

    def ratio(self, way: int = 1) -> tuple[float, float, float]:
        """How many times as long as the first a way takes: lower quartile, median, upper quartile over the runs."""
        ratios = [row[way] / row[0] for row in self.rows]
        if len(ratios) < 2:
            return ratios[0], ratios[0], ratios[0]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, middle, high


def seconds(way: Callable[[], object], device: torch.device = CPU) -> float:
    """How long a call takes; on a GPU from its first to its last kernel, by the GPU's own clock."""
    if device.type != "cuda":
        start = time.perf_counter()
        way()
        return time.perf_counter() - start
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    way()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1000


def in_turn(
    ways: Sequence[Callable[[], object]], runs: int, device: torch.device = CPU, warm_up: int | None = None
) -> Times:
    """Times every way in every run.

    Args:
        warm_up: calls of each that do not count; None is one on a processor and three on a GPU, whose libraries choose
            among their kernels first.
    """
    for _ in range((3 if device.type == "cuda" else 1) if warm_up is None else warm_up):
        for way in ways:
            seconds(way, device)
    return Times([tuple(seconds(way, device) for way in ways) for _ in range(runs)])


# What makes the ways of a stage from some arguments, which a process can be handed.
Build = Callable[..., Sequence[Callable[[], object]]]


def peaks(build: Build, arguments: Sequence, ways: Sequence[int], device: torch.device = CPU) -> str:
    """What some of the ways that `build(*arguments)` makes take at most, each in a process of its own, in words.

    Args:
        build: a function of some module.
    """
    threads = torch.get_num_threads()
    return megabytes(*(in_a_process(_peak_of_way, build, arguments, way, device, threads) for way in ways))


def _peak_of_way(build: Build, arguments: Sequence, way: int, device: torch.device, threads: int) -> float:
    torch.set_num_threads(threads)
    with torch.inference_mode():
        return peak_mb(build(*arguments)[way], device)


def in_a_process(work: Callable, *arguments):
    """What a function of some module returns in a fresh process that does nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def peak_mb(work: Callable[[], object], device: torch.device = CPU) -> float:
    """By how much memory grows at most while a function runs, in 10^6 bytes.

    On a GPU it is what PyTorch allocates, in a second run. On a processor it is the process's resident memory, which
    means something in its first run alone, because freed memory is taken again; Linux alone says it.
    """
    if device.type == "cuda":
        work()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return float("nan")
    _give_back()
    # A 5 lets the peak begin anew.
    clear.write_text("5")
    before = _resident_mb("VmRSS")
    work()
    return _resident_mb("VmHWM") - before


def peak_bytes() -> float:
    """The most of this process's memory that was resident so far; NaN on Windows, where Python cannot say it."""
    try:
        import resource
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS alone counts in bytes.
    return float(peak if sys.platform == "darwin" else 1024 * peak)


def _give_back() -> None:
    """Freed memory that the C library keeps would be taken again, and not be counted."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        gc.collect()
        trim(0)


def _resident_mb(which: str) -> float:
    """Resident memory of this process, now (VmRSS) or at its peak (VmHWM). Linux counts in units of 1024 bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{which}:")[1].split()[0]) * 1024 / 1e6


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        stage: what was done.
        here: how long it took here, or what else was measured.
        beside: what it is compared with, and how many times as long that takes.
        memory: how much memory both take at most.
        apart: how far the results are apart at most.
    """

    stage: str
    here: str
    beside: str = ""
    memory: str = ""
    apart: str = ""


def compared(stage: str, times: Times, others: Sequence[str], memory: str = "", apart: str = "") -> Line:
    """The line of a stage whose ways are ours and, in this order, those of `others`."""
    beside = []
    for way, name in enumerate(others, start=1):
        low, middle, high = times.ratio(way)
        beside.append(f"{name}: x {middle:.2f} ({low:.2f} to {high:.2f})")
    return Line(stage, duration(times.median()), "; ".join(beside), memory, apart)


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def megabytes(*peaks: float) -> str:
    """ "82 MB, beside it 2,475 MB"; nothing where it could not be measured."""
    if any(peak != peak for peak in peaks):
        return ""
    return ", beside it ".join(f"{max(0, peak):,.0f} MB" for peak in peaks)


def table(lines: Sequence[Line]) -> str:
    """Markdown."""
    rows = [("Stage", "Here", "Beside it, in times as long (quartiles)", "Peak memory", "Apart"), ("---",) * 5]
    rows += [(line.stage, line.here, line.beside, line.memory, line.apart) for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def add_arguments(parser: argparse.ArgumentParser, runs: int) -> None:
    """What every benchmark of networks can be told: --device, --runs, --threads, --quick."""
    parser.add_argument("--device", type=torch.device, default=CPU, help="cpu or cuda (default: cpu)")
    parser.add_argument("--runs", type=int, default=runs, help=f"timed runs of each (default: {runs})")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's threads (default: 2)")
    parser.add_argument("--quick", action="store_true", help="as few runs as say anything")
