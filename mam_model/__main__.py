"""The command line: `python -m mam_model --help`."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import PROGRAM, parser
from .published import PUBLISHED, DownloadError, download, published_file

if TYPE_CHECKING:
    from .cutout import Engine, Finish, Job, Pointing

DONE, FAILED, STOPPED = 0, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code; wrong usage leaves through SystemExit(2), as argparse does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name may hold letters that a Windows console or a redirected stdout cannot.
        sys.stdout.reconfigure(errors="backslashreplace")
    options = parser().parse_args(argv)
    commands = {"matte": _matte, "convert": _convert, "list": _list_models, "download": _download, "groups": _groups}
    try:
        return commands[options.command](options)
    except KeyboardInterrupt:
        _say("Stopped.")
        return STOPPED
    except Exception as error:
        if sentence := _sentence(error):
            _say(sentence)
            return FAILED
        raise


def _matte(options: argparse.Namespace) -> int:
    if not (options.box or options.point or options.mask):
        options.refuse("say what to cut out with --box, --point or --mask")
    if options.trust_mask and not options.mask:
        options.refuse("--trust-mask needs a --mask")
    from .cutout import Finish, Pointing
    from .photo import PhotoError
    from .prompt import PromptError

    pointing = Pointing(
        boxes=tuple(map(tuple, options.box)),
        points=(*((x, y, 1) for x, y in options.point), *((x, y, 0) for x, y in options.negative)),
        mask_file=options.mask,
        trust_mask=options.trust_mask,
        candidate=options.candidate,
    )
    finish = Finish(options.background, options.fit, options.keep_edge_color, options.matte_bits)
    several = len(options.photos) > 1 or options.photos[0].is_dir()
    try:
        jobs = _jobs(options, finish, several)
    except PhotoError as error:
        options.refuse(str(error))
    if not several:
        _refuse_existing(jobs[0], options.overwrite)
    if finish.background is not None:
        # A wrong colour or file should not first be found out after the matting.
        finish.behind(1, 1)
    engine = _engine(options)
    failed = 0
    for number, job in enumerate(jobs, start=1):
        counter = f"[{number}/{len(jobs)}] " if several else ""
        try:
            _cut_out(job, engine, pointing, finish, options, counter)
        except (PhotoError, PromptError, OSError, MemoryError) as error:
            if not several:
                raise
            failed += 1
            _say(f"{counter}{job.photo.name} failed: {_sentence(error)}")
    if several and (failed or not options.quiet):
        _say(f"{len(jobs) - failed} of {len(jobs)} photos done, {failed} failed.")
    return FAILED if failed else DONE


def _jobs(options: argparse.Namespace, finish: Finish, several: bool) -> list[Job]:
    from .cutout import Job, jobs_into, photos_in

    if several or options.output.is_dir():
        jobs = jobs_into(photos_in(options.photos), options.output, options.matte_out)
    else:
        jobs = [Job(options.photos[0], options.output, options.matte_out)]
    for job in jobs:
        job.check(finish)
    return jobs


def _refuse_existing(job: Job, overwrite: bool) -> None:
    for output in job.outputs:
        if output.exists() and not overwrite:
            raise FileExistsError(f"{output} exists already. Give another name, or --overwrite to replace it.")


def _cut_out(
    job: Job, engine: Engine, pointing: Pointing, finish: Finish, options: argparse.Namespace, counter: str
) -> None:
    from .cutout import cut_out

    if not options.overwrite and all(output.exists() for output in job.outputs):
        if not options.quiet:
            _say(f"{counter}{job.photo.name}: {job.result} exists already and was left as it is.")
        return
    began = time.monotonic()
    found = cut_out(job, engine, pointing, finish, options.overwrite)
    if not options.quiet:
        _say(f"{counter}{job.photo.name} -> {job.result} ({time.monotonic() - began:.1f} s)")
    if not found:
        _say(f"{job.photo.name}: nothing was found there, so the matte is empty. Point at the subject more closely.")


def _engine(options: argparse.Namespace) -> Engine:
    from .checkpoint import CheckpointError
    from .cutout import chosen_device, classical_engine, networks_engine
    from .merge import MergeOptions
    from .weights import find_pair, model_folders

    if options.engine == "classical":
        return classical_engine(options.method)
    pair = find_pair(options.sam, options.m2m, model_folders(options.models))
    named = options.sam or options.m2m
    where = f"`{PROGRAM} models` lists them; --models, --sam and --m2m say where they are."
    if pair is None and named:
        partner = "Mask-to-Matte" if options.sam else "SAM"
        raise CheckpointError(f"No {partner} that belongs to {Path(named).name} was found among the weights. {where}")
    if pair is None and options.engine == "sam":
        raise CheckpointError(f"No weights of SAM with its Mask-to-Matte were found. {where}")
    if pair is None:
        if not options.quiet:
            _say(f"No weights of SAM with its Mask-to-Matte were found, so the classical engine is used. {where}")
        return classical_engine(options.method)
    if not pair.fits:
        _say(f"Warning: {pair.m2m.name} was trained for another SAM than {pair.sam.name}; expect bad mattes.")
    try:
        device = chosen_device(options.device)
        merging = MergeOptions(options.guidance, options.sides, *options.widths)
    except ValueError as error:
        options.refuse(str(error))
    if not options.quiet:
        files = pair.sam.name if pair.sam == pair.m2m else f"{pair.sam.name} and {pair.m2m.name}"
        _say(f"Matting with {files} on {device}.")
    return networks_engine(pair, device, options.precision, merging)


def _convert(options: argparse.Namespace) -> int:
    from .checkpoint import convert, identify, read_state_dict

    sha256 = convert(options.source, options.target, overwrite=options.overwrite)
    print(f"{options.target}: {identify(read_state_dict(options.target)).name}")
    print(f"sha256 {sha256}")
    return DONE


def _list_models(options: argparse.Namespace) -> int:
    for file in PUBLISHED:
        how = f"{PROGRAM} models download {file.name} --to FOLDER" if file.url else "by hand, from the page"
        print(f"{file.name}\n  {file.purpose}\n  {file.size}, licence {file.licence}, into models/{file.folder}")
        print(f"  page      {file.page}\n  download  {how}\n  sha256    {file.sha256 or 'not published'}\n")
    return DONE


def _download(options: argparse.Namespace) -> int:
    try:
        file = published_file(options.name)
    except LookupError as error:
        options.refuse(error.args[0])
    comfyui = os.environ.get("COMFYUI_PATH")
    if options.to is None and not comfyui:
        options.refuse("say with --to into which folder")
    folder = options.to or Path(comfyui) / "models" / file.folder
    _say(f"{file.name}: {file.purpose}; {file.size}, licence {file.licence}")
    print(download(file, folder, _progress_bar()))
    return DONE


def _groups(options: argparse.Namespace) -> int:
    from .in_context.groups import judged_in, score_groups, table

    pictures = judged_in(options.folder, options.predictions, options.groups)
    judged = [picture for picture in pictures if picture.predicted]
    left_out = [picture.name for picture in pictures if not picture.predicted]
    counted = 0

    def done(picture) -> None:
        nonlocal counted
        counted += 1
        if not options.quiet:
            _say(f"[{counted}/{len(judged)}] {picture.name}")

    scores = score_groups(judged, done)
    if left_out:
        _say(f"{len(left_out)} of {len(pictures)} pictures have no matte to judge: {', '.join(left_out)}.")
    print(table(scores))
    return DONE


def _progress_bar() -> Callable[[int, int], None]:
    """Draws on one line of a terminal; into a file or pipe it writes a line for every tenth."""
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(total, 1)
        step = percent if sys.stderr.isatty() else percent // 10
        if step == shown:
            return
        shown = step
        if sys.stderr.isatty():
            bar = "#" * (percent * 30 // 100)
            print(f"\r[{bar:.<30}] {percent:3d} % of {total / 1e6:,.0f} MB", end="", file=sys.stderr, flush=True)
            if percent == 100:
                print(file=sys.stderr)
        else:
            _say(f"{percent:3d} % of {total / 1e6:,.0f} MB")

    return show


def _sentence(error: Exception) -> str | None:
    """What to tell the user; None for an error that is nobody's but ours."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    if isinstance(error, (OSError, ImportError, DownloadError)):
        return str(error)
    if isinstance(error, MemoryError):
        return "There is not enough memory for this picture. Make it smaller."
    import torch

    from .checkpoint import CheckpointError
    from .composite import ColorError
    from .in_context.groups import GroupsError
    from .photo import PhotoError
    from .prompt import PromptError

    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "The graphics card has not enough memory for this. Try --precision fp16 or --device cpu."
    ours = (CheckpointError, ColorError, GroupsError, PhotoError, PromptError)
    return str(error) if isinstance(error, ours) else None


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
