"""The command line: `python -m mam_model --help`."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import PROGRAM, parser
from .places import sentence as sentence_on
from .published import PUBLISHED, DownloadError, download, published_file

if TYPE_CHECKING:
    from .cutout import Engine, Finish, Job, Pointing
    from .evaluation.engines import Files
    from .evaluation.layouts import Layout
    from .evaluation.protocol import Settings
    from .weights import Pair

DONE, FAILED, STOPPED = 0, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code; wrong usage leaves through SystemExit(2), as argparse does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name may hold letters that a Windows console or a redirected stdout cannot.
        sys.stdout.reconfigure(errors="backslashreplace")
    options = parser().parse_args(argv)
    commands = {"matte": _matte, "convert": _convert, "list": _list_models, "download": _download}
    commands |= {"groups": _groups, "evaluate": _evaluate, "render": _render}
    commands |= {"train-refiner": _train_refiner, "train": _train}
    try:
        return commands[options.command](options)
    except KeyboardInterrupt as stopped:
        # A command that can be gone on with says so.
        _say(str(stopped) or "Stopped.")
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


def _evaluate(options: argparse.Namespace) -> int:
    for name, least in (("workers", 0), ("worst", 0), ("band", 0), ("limit", 1)):
        value = getattr(options, name)
        if value is not None and not value >= least:
            options.refuse(f"--{name} goes from {least} upwards")
    if options.band == math.inf:
        options.refuse("--band is a number of pixels")
    from .evaluation.layouts import open_test_set
    from .evaluation.run import Failed, evaluate

    test_set = open_test_set(options.data, options.benchmark)
    layout = test_set.layout
    settings, files = _evaluation_settings(options, layout)
    if not options.quiet:
        _say(f"{layout.title}: {len(test_set.samples)} found, engine {settings.engine}.")

    def done(count: int, of: int, name: str, result) -> None:
        if isinstance(result, Failed):
            _say(f"[{count}/{of}] {name} failed: {result.sentence}")
        elif not options.quiet:
            judged = f"IMQ {100 * result['imq_mad']:.1f}" if layout.instances else f"SAD {result['sad']:.2f}"
            _say(f"[{count}/{of}] {name}  {judged}")

    try:
        outcome = evaluate(
            test_set,
            settings,
            options.output,
            files=files,
            workers=options.workers,
            limit=options.limit,
            worst=options.worst,
            overwrite=options.overwrite,
            done=done,
            stopping=lambda: _say("Stopping when the pictures that are in the making are done."),
        )
    except KeyboardInterrupt as stopped:
        sentence = "Stopped. What was measured is kept. Give the same command again to go on."
        raise KeyboardInterrupt(sentence) from stopped
    print(outcome.summary, end="")
    return FAILED if outcome.failed else DONE


def _evaluation_settings(options: argparse.Namespace, layout: Layout) -> tuple[Settings, Files]:
    from .cutout import chosen_device
    from .evaluation.engines import Files, weights_of
    from .evaluation.protocol import Settings
    from .merge import MergeOptions

    pair, detector, device = None, None, "cpu"
    engine = "predictions" if options.predictions else options.engine
    settings = Settings(
        benchmark=layout.name,
        data=str(options.data.resolve()),
        engine=engine,
        predictions=str(options.predictions.resolve()) if options.predictions else "",
        prompt=options.prompt,
        guidance=options.guidance or layout.guidance,
        sides=options.sides,
        widths=tuple(options.widths),
        method=options.method,
        mask=options.mask,
        band_px=options.band,
        levels=options.levels or layout.levels,
        quick=options.quick,
    )
    try:
        MergeOptions(settings.guidance, settings.sides, *settings.widths)
    except ValueError as error:
        options.refuse(str(error))
    if options.predictions and not options.predictions.is_dir():
        raise NotADirectoryError(f"There is no folder {options.predictions}.")
    if settings.has_networks:
        try:
            device = chosen_device(options.device).type
        except ValueError as error:
            options.refuse(str(error))
    if settings.needs_sam:
        pair = _evaluation_pair(options, settings)
    if settings.needs_detector:
        if options.detector is None:
            options.refuse("--prompt text needs a --detector, the folder of Grounding DINO")
        if not options.detector.is_dir():
            raise NotADirectoryError(f"There is no folder {options.detector}. --detector is that of Grounding DINO.")
        detector = options.detector
    precision = options.precision
    if precision == "auto":
        precision = "fp16" if device == "cuda" else "fp32"
    files = Files(pair, detector, device)
    return replace(settings, precision=precision, weights=weights_of(settings, files)), files


def _evaluation_pair(options: argparse.Namespace, settings: Settings) -> Pair:
    from .checkpoint import CheckpointError
    from .weights import Pair, find_file, find_pair, model_folders

    folders = model_folders(options.models)
    if settings.engine != "mam" and options.sam:
        sam = find_file(options.sam, "sams", folders)
        return Pair(sam, sam)
    pair = find_pair(options.sam, options.m2m, folders)
    if pair is None:
        raise CheckpointError(
            f"No weights of SAM with its Mask-to-Matte were found. `{PROGRAM} models` lists them; --models, --sam and "
            "--m2m say where they are. Where SAM's mask is all that is needed, --sam is enough."
        )
    if settings.engine == "mam" and not pair.fits:
        _say(f"Warning: {pair.m2m.name} was trained for another SAM than {pair.sam.name}; expect bad mattes.")
    return pair


def _render(options: argparse.Namespace) -> int:
    if options.count < 1:
        options.refuse("--count must be 1 or more")
    if options.seed < 0:
        options.refuse("--seed must be 0 or more")
    from .training.rendering.files import SHEET, SHEET_TILES, check, contact_sheet, render_into, tile
    from .training.saving import write_atomically

    try:
        check(options.size, options.kind)
    except ValueError as error:
        options.refuse(str(error))
    photos = _backgrounds(options.backgrounds) if options.backgrounds else ()
    sheet = options.folder / SHEET
    if options.sheet and sheet.exists() and not options.overwrite:
        raise FileExistsError(f"{sheet} exists already. Give another folder, or --overwrite to replace it.")
    tiles = []
    drawn = render_into(
        options.folder,
        options.count,
        options.seed,
        options.size,
        kind=options.kind,
        backgrounds=photos,
        overwrite=options.overwrite,
    )
    for number, rendered in enumerate(drawn, start=1):
        if options.sheet and number <= SHEET_TILES:
            tiles.append(tile(rendered))
        if not options.quiet:
            _say(f"[{number}/{options.count}] {rendered.kind}")
    if options.sheet:
        write_atomically(sheet, contact_sheet(tiles))
    return DONE


def _train_refiner(options: argparse.Namespace) -> int:
    for name, least in (("minutes", 0), ("steps", 0), ("seed", 0), ("gallery", 1), ("renderers", 0), ("threads", 0)):
        if not getattr(options, name) >= least:
            options.refuse(f"--{name} goes from {least} upwards")
    if options.seed > 2**62:
        options.refuse(f"--seed goes up to {2**62}")
    if not options.minutes < math.inf:
        options.refuse("--minutes is a number of minutes, so that the training has an end")
    if not 0 < options.learning_rate < math.inf:
        options.refuse("--learning-rate is a number above 0")
    if not (options.steps or options.minutes):
        options.refuse("give --minutes or --steps, so that the training has an end")
    import torch

    from .training.folders import find_pictures
    from .training.refining import Recipe, train_refiner

    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = Recipe(
        seed=options.seed,
        steps=options.steps,
        minutes=options.minutes,
        gallery=options.gallery,
        learning_rate=options.learning_rate,
    )
    photos = find_pictures(options.photos) if options.photos else ()
    true = find_pictures(options.true) if options.true else ()
    costs: list[float] = []
    skipped: list[str] = []

    def skip(sentence: str) -> None:
        skipped.append(sentence)
        _say(f"Skipped: {sentence}")

    def on_step(step: int, cost: float, done: float) -> None:
        costs.append(cost)
        if len(costs) == 25:
            _say(f"step {step}  {100 * done:.0f} %  loss {sum(costs) / len(costs):.4f}")
            costs.clear()

    steps = train_refiner(
        options.output,
        options.work,
        recipe,
        photos=photos,
        true=true,
        start=options.start,
        renderers=options.renderers,
        skip=skip,
        on_step=None if options.quiet else on_step,
    )
    if skipped:
        _say(f"{len(skipped)} of {len(photos) + len(true)} photos and cut-outs could not be used.")
    print(f"{options.output}: {steps} steps")
    return DONE


def _backgrounds(folder: Path) -> Sequence:
    """The photos of a folder as NumPy arrays, brought down to at most 1600 pixels. What cannot be read is named and
    left out."""
    from .cutout import photos_in
    from .photo import read_photo
    from .training.folders import PictureFiles
    from .training.rendering.textures import scaled_down

    if not folder.exists():
        raise NotADirectoryError(f"There is no folder {folder}. --backgrounds is one of photos.")
    photos = PictureFiles(
        photos_in([folder]),
        lambda file: scaled_down(read_photo(file).image.numpy(), 1600),
        skip=lambda sentence: _say(f"Skipped: {sentence}"),
    )
    # That none can be used should not first be found out when a picture needs one.
    photos[0]
    return photos


def _train(options: argparse.Namespace) -> int:
    from .training.config import read_config
    from .training.loop import train

    config = read_config(options.config)
    checkpoint = train(config, (lambda sentence: None) if options.quiet else _say)
    if os.environ.get("RANK", "0") == "0":
        print(checkpoint)
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
    if isinstance(error, OSError):
        return sentence_on(error)
    if isinstance(error, (ImportError, DownloadError)):
        return str(error)
    from .out_of_memory import is_device_full, is_processor_full

    if is_processor_full(error):
        return "There is not enough memory for this. Make the picture smaller, or close other programs first."
    if is_device_full(error):
        return "The graphics card has not enough memory for this. Try --precision fp16 or --device cpu."

    from .checkpoint import CheckpointError
    from .composite import ColorError
    from .evaluation.layouts import EvaluationError
    from .in_context.groups import GroupsError
    from .photo import PhotoError
    from .prompt import PromptError
    from .text import TransformersMissing
    from .training.config import TrainingError

    ours = (CheckpointError, ColorError, EvaluationError, GroupsError, PhotoError, PromptError, TransformersMissing)
    ours += (TrainingError,)
    return str(error) if isinstance(error, ours) else None


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
