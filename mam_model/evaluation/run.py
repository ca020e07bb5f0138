"""An evaluation from the folder of a test set to its figures: resumable, in several processes, and safe to stop.

Into the output folder go scores.csv (a line for each picture, at once), mattes/ (what was measured), summary.md and
worst.png. Making mattes with networks is done here, one picture after the other; measuring, and making mattes without
networks, is done in worker processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..interrupts import end_with_parent, unheard_by_children
from ..out_of_memory import is_device_full, is_processor_full
from ..photo import write_picture
from ..places import sentence
from .engines import Files, build_engine, build_pointer
from .layouts import EvaluationError, Sample, TestSet
from .protocol import Settings, check_samples
from .record import Record, goes_on, write_whole
from .report import summary, worst_first, worst_sheet
from .scoring import Row, found_mattes, make_mattes, matte_files, score_sample

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

# Below this many pictures, starting processes takes longer than they save.
_FEWEST_FOR_WORKERS = 8
_MOST_WORKERS = 4


@dataclass(frozen=True)
class Failed:
    """A sample that could not be measured, and why."""

    sentence: str


@dataclass(frozen=True)
class Outcome:
    """What an evaluation came to.

    Attributes:
        summary: in Markdown, as in summary.md.
        rows: the measured pictures, by name.
        failed: what was wrong with the others, by name.
    """

    summary: str
    rows: dict[str, Row]
    failed: dict[str, str]


@dataclass(frozen=True)
class Job:
    """All that a worker process needs to know to measure samples.

    Attributes:
        settings: of the run.
        instances: whether the set is judged by instance matting quality.
        mattes: folder of the mattes.
        makes_mattes: whether the worker makes them, too.
        reuses: whether mattes that are there are used.
    """

    settings: Settings
    instances: bool
    mattes: Path
    makes_mattes: bool
    reuses: bool


def evaluate(
    test_set: TestSet,
    settings: Settings,
    output: Path,
    *,
    files: Files | None = None,
    workers: int = 0,
    limit: int | None = None,
    worst: int = 12,
    overwrite: bool = False,
    done: Callable[[int, int, str, Row | Failed], object] = lambda *_: None,
    stopping: Callable[[], object] = lambda: None,
) -> Outcome:
    """Measures a test set, or goes on where an interrupted run with the same settings was.

    Args:
        output: folder for the results; made if it is not there.
        files: of the networks, for engines that have any.
        workers: processes; 1 does everything in this one, 0 takes as many as seem good.
        limit: only that many samples, the first by name.
        worst: how many cases the sheet shows; 0 makes none.
        overwrite: measure all anew, whatever is in the output folder.
        done: told after each sample: how many are done, of how many, the sample's name, and its figures or failure.
        stopping: told when the user wants to stop, and the pictures that are in the making are waited for.
    Raises:
        EvaluationError: settings for which the set has not got what is needed; an output folder of other settings; a
            worker that was killed. What was measured before is kept.
        KeyboardInterrupt: after what was in the making was kept.
    """
    check_samples(test_set, settings)
    samples = {sample.name: sample for sample in test_set.samples[:limit]}
    judges = settings.engine == "predictions"
    mattes = Path(settings.predictions) if judges else output / "mattes"
    scores = output / "scores.csv"
    resumes, instances = goes_on(scores, overwrite), test_set.layout.instances
    job = Job(settings, instances, mattes, not (judges or settings.has_networks), resumes)
    # A record names the weights, so that wrong ones would keep their place for good.
    prepare = _matter(job, files) if settings.has_networks and not resumes else None
    if not judges and not resumes:
        _clear(mattes, test_set.samples, scores, overwrite)
    record = Record(scores, settings.facts(), overwrite)
    if resumes:
        # Those beyond the limit, too: the record speaks of a later time as soon as anything is added.
        _forget_changed(record, test_set.samples, job)
    todo = [sample for name, sample in samples.items() if name not in record.rows]
    failed: dict[str, str] = {}
    count = 0

    def finished(sample: Sample, result: Row | Failed) -> None:
        nonlocal count
        count += 1
        if isinstance(result, Failed):
            failed[sample.name] = result.sentence
        else:
            record.add(result)
        done(count, len(todo), sample.name, result)

    if todo:
        if settings.has_networks and prepare is None:
            prepare = _matter(job, files)
        if workers < 1:
            few = len(todo) < _FEWEST_FOR_WORKERS
            workers = 1 if few else max(1, min(_MOST_WORKERS, (os.cpu_count() or 2) - 1))
        _measure(todo, prepare, job, min(workers, len(todo)), finished, stopping)
    rows = {name: record.rows[name] for name in samples if name in record.rows}
    text = summary(test_set, settings, list(rows.values()), failed)
    write_whole(output / "summary.md", text)
    by_error = ((row, _left_of(samples[str(row["name"])], job)) for row in worst_first(rows.values(), instances))
    chosen = list(islice(((row, left) for row, left in by_error if left is not None), worst))
    if chosen:
        shown = {str(row["name"]): left for row, left in chosen}
        write_picture(output / "worst.png", worst_sheet(samples, [row for row, _ in chosen], shown))
    return Outcome(text, rows, failed)


def _clear(mattes: Path, samples: Sequence[Sample], scores: Path, overwrite: bool) -> None:
    """Takes away mattes of which no record says how they were made, so that a resumed run never measures them.

    Raises:
        EvaluationError: there are any and they may not be overwritten.
    """
    old = [path for sample in samples for path in matte_files(mattes, sample) if path.exists()]
    if old and not overwrite:
        raise EvaluationError(
            f"There are mattes in {mattes} already, but no {scores} that says how they were made. Judge them with "
            f"--predictions {mattes}, choose another output folder, or --overwrite to make them anew."
        )
    scores.unlink(missing_ok=True)
    for path in old:
        path.unlink()


def _forget_changed(record: Record, samples: Sequence[Sample], job: Job) -> None:
    """Forgets the figures of pictures whose files were changed since, and the mattes that were made of them."""
    judges = job.settings.engine == "predictions"
    changed = []
    for sample in samples:
        given = (_left_of(sample, job) or ()) if judges else (sample.picture, sample.mask)
        files = (*sample.truths, sample.trimap, *given)
        if any(_changed_ns(file, judges) >= record.written_ns for file in files if file):
            changed.append(sample)
    if not judges:
        # First, since the record then speaks of a later time, and mattes that stayed would be measured.
        for path in (path for sample in changed for path in matte_files(job.mattes, sample)):
            path.unlink(missing_ok=True)
    record.forget(sample.name for sample in changed)


def _changed_ns(file: Path, moved: bool) -> int:
    """When a file was last written, or, with `moved`, last put where it is with the time that it had elsewhere."""
    stat = file.stat()
    return max(stat.st_mtime_ns, stat.st_ctime_ns) if moved else stat.st_mtime_ns


def _measure(
    samples: Sequence[Sample],
    prepare: Callable[[Sample], Failed | None] | None,
    job: Job,
    workers: int,
    finished: Callable[[Sample, Row | Failed], None],
    stopping: Callable[[], object],
) -> None:
    """Prepares each sample here, measures it in a worker, and hands over each result as it comes."""
    if workers <= 1:
        for sample in samples:
            finished(sample, (prepare and prepare(sample)) or _work(job, sample))
        return
    # Forking a process in which PyTorch has threads may leave the child waiting for ever.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(stop,))
    waiting: dict[Future, Sample] = {}

    def collect(futures: Sequence[Future]) -> None:
        for future in futures:
            sample = waiting.pop(future)
            finished(sample, future.result())

    try:
        for sample in samples:
            if prepare and (failure := prepare(sample)):
                finished(sample, failure)
                continue
            with unheard_by_children():
                future = pool.submit(_work_unless_stopped, job, sample)
            waiting[future] = sample
            # No more than this in advance, so that mattes do not pile up when measuring is what takes long.
            collect(list(wait(waiting, None if len(waiting) >= 2 * workers else 0, FIRST_COMPLETED).done))
        while waiting:
            collect(list(wait(waiting, None, FIRST_COMPLETED).done))
    except BrokenProcessPool as error:
        raise EvaluationError(
            "A worker process was killed, most likely because memory ran out. What was measured is kept: repeat the "
            "command with fewer --workers."
        ) from error
    except KeyboardInterrupt:
        stop.set()
        stopping()
        pool.shutdown(wait=True, cancel_futures=True)
        ended = [future for future in waiting if not future.cancelled() and future.exception() is None]
        collect([future for future in ended if future.result() is not None])
        raise
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


# Set in the workers once no further picture is to be begun; the pool hands out some in advance.
_stop: Event | None = None


def _begin_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    # Ctrl-C reaches every process of a terminal; what to do then is decided in the first one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    torch.set_num_threads(1)


def _work_unless_stopped(job: Job, sample: Sample) -> Row | Failed | None:
    return None if _stop.is_set() else _work(job, sample)


def _work(job: Job, sample: Sample) -> Row | Failed:
    """Measures a sample, in a worker or here; makes its mattes first where that is the worker's part."""

    def measured() -> Row:
        if job.makes_mattes and not _is_there(sample, job):
            make_mattes(sample, job.mattes, _engine(job.settings), build_pointer(job.settings), job.settings)
        return score_sample(sample, _mattes_of(sample, job), job.instances, job.settings)

    return _tried(measured)


def _matter(job: Job, files: Files | None) -> Callable[[Sample], Failed | None]:
    """Makes the mattes of a sample in this process."""
    engine, pointer = build_engine(job.settings, files), build_pointer(job.settings, files)

    def prepare(sample: Sample) -> Failed | None:
        if _is_there(sample, job):
            return None
        return _tried(lambda: make_mattes(sample, job.mattes, engine, pointer, job.settings))

    return prepare


def _tried(work: Callable):
    """What the work returns, or the failure of this sample, which leaves the others as they are."""
    try:
        return work()
    except OSError as error:
        return Failed(sentence(error))
    except (MemoryError, RuntimeError) as error:
        if not (is_processor_full(error) or is_device_full(error)):
            raise
        return Failed("There is not enough memory for this picture.")
    except ValueError as error:
        return Failed(str(error))


def _is_there(sample: Sample, job: Job) -> bool:
    """Whether an interrupted run with these settings has left the sample's mattes."""
    return job.reuses and all(path.is_file() for path in matte_files(job.mattes, sample))


def _mattes_of(sample: Sample, job: Job) -> tuple[Path, ...]:
    if job.settings.engine == "predictions":
        return found_mattes(job.mattes, sample, job.instances)
    return matte_files(job.mattes, sample)


def _left_of(sample: Sample, job: Job) -> tuple[Path, ...] | None:
    """The mattes of a measured sample; None if they were taken away since."""
    try:
        mattes = _mattes_of(sample, job)
    except EvaluationError:
        return None
    return mattes if all(path.is_file() for path in mattes) else None


@lru_cache(maxsize=1)
def _engine(settings: Settings):
    return build_engine(settings)
