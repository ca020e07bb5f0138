"""One command, one table: every stage and the whole, next to the published way, with spread, memory and growth.

    python benchmarks/run.py [--quick] [--sizes b,l,h] [--device cuda] [--dtype fp16] [--only whole,targets]

The table is Markdown, for benchmarks/README.md. On the CPU everything is float32; with `--device cuda` the encoders and
Mask-to-Matte are in half precision, and times are the GPU's own. The parts:

    encoder     SAM's image encoder next to segment-anything's, for each of --sizes
    whole       from picture to matte, and a click on a known picture, next to the published way; with its memory
    subjects    the matte of a known picture by its subject: rectangle and edge, small to everywhere
    targets     1 to 16 targets on one picture
    pictures    the same subject in pictures of 0.2 to 24 megapixels
    parts       the picture's part of Mask-to-Matte, SAM's decoder, mask and merging alone
    startup     what the pack adds to ComfyUI's start (with COMFYUI_PATH), and the first click after loading
    click       where the time of a click goes, a table of its own
    foreground  foreground colour next to PyMatting's (only when named)
    in_context  In-Context Matting's work per target (only when named; with COMFYUI_PATH)
    live        a click in the editor, in a browser (only when named; with COMFYUI_PATH and Chromium)
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import click, encoder, foreground, matte, startup, timing  # noqa: E402 - needs the line above
from benchmarks.networks import CONFIGS, StockPath, person_finder, stock_sam, trained_m2m  # noqa: E402
from mam_model.matting import MattingAnything  # noqa: E402
from mam_model.prompt import Prompt  # noqa: E402

USUAL = ("encoder", "whole", "subjects", "targets", "pictures", "parts", "startup", "click")
MORE = ("foreground", "in_context", "live")
TARGETS = (1, 2, 4, 8, 16)
# Targets of the line from picture to several mattes.
SEVERAL = 8


def both_paths(size: str, dtype: torch.dtype, device: torch.device) -> tuple[MattingAnything, StockPath]:
    """Ours and the published one, with the same weights."""
    sam = person_finder(CONFIGS[size])
    stock = stock_sam(size, {name: weight.clone() for name, weight in sam.state_dict().items()})
    for network in (sam, stock):
        network.image_encoder.to(dtype)
        network.to(device)
    ours = MattingAnything(sam, trained_m2m().fold().to(device, dtype))
    return ours, StockPath(stock, trained_m2m().to(device, dtype))


def _picture() -> tuple[torch.Tensor, tuple[float, float]]:
    """A picture, and where the person is on it."""
    return torch.rand(1024, 768, 3, generator=torch.Generator().manual_seed(0)), (384.0, 512.0)


def whole(options: argparse.Namespace, size: str) -> list[timing.Line]:
    """From picture to matte and to several, and a click on a picture that is known already, which the published way
    encodes again each time."""
    what = (size, options.dtype, options.device)
    ours, stock = both_paths(*what)
    both, known = _ways(ours, stock), _ways_of_a_click(ours)
    difference = (both[0]() - both[1]()).abs()
    apart = memory = clicked = ""
    if options.dtype == torch.float32:
        apart = f"{float(difference.max()):.1e}, {int((difference > 1e-5).sum())} pixels"
    times = timing.in_turn(both, options.long_runs, options.device, warm_up=0)
    several = timing.in_turn([partial(both[0], SEVERAL)], options.long_runs, options.device, warm_up=0).median()
    clicks = timing.in_turn(known, options.runs, options.device)
    if not options.quick:
        memory = timing.peaks(ways, what, (0, 1), options.device)
        clicked = timing.peaks(ways_of_a_click, what, (0,), options.device)
    name, here = f"ViT-{size.upper()}, 1024 x 768", timing.duration(clicks.median())
    again = "published, which encodes again"
    return [
        timing.compared(f"{name}: picture to matte", times, ["published"], memory, apart),
        timing.Line(
            f"{name}: picture to {SEVERAL} mattes",
            timing.duration(several),
            f"{again} for each: x {SEVERAL * times.median(1) / several:.1f} (of medians)",
        ),
        timing.Line(
            f"{name}: click on a known picture",
            here,
            f"{again}: x {times.median(1) / clicks.median():.1f} (of medians)",
            clicked,
        ),
    ]


def ways(size: str, dtype: torch.dtype, device: torch.device) -> list[Callable[[], torch.Tensor]]:
    """From a picture to the matte of what a click lies on: ours, also of several clicks, and the published way."""
    return _ways(*both_paths(size, dtype, device))


def _ways(ours: MattingAnything, stock: StockPath) -> list[Callable[[], torch.Tensor]]:
    image, point = _picture()
    prompt = Prompt(points_px=(point,), labels=(1,))
    return [lambda count=1: ours.matte(image, [prompt] * count)[0], lambda: stock.matte(stock.encode(image), point)]


def ways_of_a_click(size: str, dtype: torch.dtype, device: torch.device) -> list[Callable[[], torch.Tensor]]:
    """From a click to its matte once the picture is encoded: ours."""
    return _ways_of_a_click(both_paths(size, dtype, device)[0])


def _ways_of_a_click(ours: MattingAnything) -> list[Callable[[], torch.Tensor]]:
    image, point = _picture()
    prompts = [Prompt(points_px=(point,), labels=(1,))]
    embedding = ours.embed(image)
    picture = ours.m2m.look_at(embedding)
    return [lambda: ours.matte_targets(picture, ours.segment(embedding, prompts))[0]]


def encoders(options: argparse.Namespace, size: str) -> list[timing.Line]:
    return encoder.lines(size, options.precision, options.device, options.long_runs, not options.quick)


def mattes(options: argparse.Namespace, part: str) -> list[timing.Line]:
    measured = matte.Measured(options.dtype, options.device, not options.quick)
    if part == "pictures":
        return matte.by_picture(measured, options.long_runs, matte.SIZES)
    if part == "subjects":
        found = matte.by_subject(measured, options.long_runs, ("person",) if options.quick else tuple(matte.SUBJECTS))
        return [*found, matte.by_new_subject(measured, 2 * options.runs)]
    if part == "targets":
        return matte.by_targets(measured, options.runs, TARGETS[:2] if options.quick else TARGETS)
    return matte.by_part(measured, options.runs)


def starts(options: argparse.Namespace, comfyui: Path | None) -> list[timing.Line]:
    return startup.lines(comfyui, [] if options.quick else options.sizes[:1], options.runs, options.threads)


def colours(options: argparse.Namespace) -> list[timing.Line]:
    if importlib.util.find_spec("pymatting") is None:
        return []
    return [foreground.measure(foreground.rendered(size), options.runs, options.device) for size in (256, 512, 1024)]


def machine(options: argparse.Namespace) -> str:
    """A sentence on what was measured where and when."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].strip() if models else name
    place = f"{name}, {options.threads} threads"
    if options.device.type == "cuda":
        place = f"{torch.cuda.get_device_name(options.device)}, {place}"
    return f"{place}; PyTorch {torch.__version__}; {options.precision}; {date.today().isoformat()}."


def report(name: str, lines: Callable[[], list[timing.Line]]) -> list[timing.Line]:
    print(f"{name} ...", file=sys.stderr, flush=True)
    return lines()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="b", help="sizes of SAM's ViT: b, l, h, or several as b,l,h (default: b)")
    parser.add_argument("--dtype", choices=tuple(timing.DTYPES), help="precision (default: fp32, on a GPU fp16)")
    parser.add_argument("--only", help=f"these parts alone, as a,b: {', '.join(USUAL + MORE)}")
    timing.add_arguments(parser, runs=5)
    options = parser.parse_args()
    options.sizes = options.sizes.split(",")
    parts = options.only.split(",") if options.only else list(USUAL)
    if not set(options.sizes) <= set(CONFIGS) or not set(parts) <= {*USUAL, *MORE}:
        parser.error(f"The sizes are {', '.join(CONFIGS)}, the parts {', '.join(USUAL + MORE)}.")
    options.precision = options.dtype or ("fp16" if options.device.type == "cuda" else "fp32")
    options.dtype = timing.DTYPES[options.precision]
    if options.quick:
        options.runs = 1
        # It takes the longest of what is known without it.
        parts = [part for part in parts if part != "pictures" or options.only]
    # What takes many seconds a run says enough in three.
    options.long_runs = min(3, options.runs)
    torch.set_num_threads(options.threads)
    comfyui = os.environ.get("COMFYUI_PATH")
    found: list[timing.Line] = []
    with torch.inference_mode():
        for size in options.sizes:
            if "encoder" in parts:
                found += report(f"encoder {size}", lambda size=size: encoders(options, size))
            if "whole" in parts:
                found += report(f"whole {size}", lambda size=size: whole(options, size))
        for part in ("subjects", "targets", "pictures", "parts"):
            if part in parts:
                found += report(part, lambda part=part: mattes(options, part))
        if "startup" in parts and options.device.type == "cpu":
            found += report("startup", lambda: starts(options, Path(comfyui).resolve() if comfyui else None))
        if "foreground" in parts:
            found += report("foreground", lambda: colours(options))
    print(machine(options), end="\n\n")
    print(timing.table(found))
    for size in options.sizes if "click" in parts else []:
        print(f"\nA click, ViT-{size.upper()}, 1024 x 768:\n")
        print(click.table(*click.profile(size, (1024, 768), options.long_runs, options.dtype, options.device)))
    for part, script in (("in_context", "in_context.py"), ("live", "live_matte.py")):
        if part in parts:
            print(f"\n{part}:\n", flush=True)
            subprocess.run([sys.executable, str(ROOT / "benchmarks" / script)], check=True)


if __name__ == "__main__":
    main()
