"""What the pack adds to ComfyUI's start, and what the first click costs beside encoding the picture.

    COMFYUI_PATH=... python benchmarks/startup.py [--runs 7] [--threads 2] [--size b] [--quick]

Start: in a fresh process in which ComfyUI's own modules are imported already, the pack is imported and its nodes are
listed, as ComfyUI does it. Python has compiled the pack before, as from the second start on. Given are medians; the
process's own time is what a busy machine does not change.

First click: in a fresh process that has loaded the networks, the first picture is encoded and the first target of it
matted, next to encoding alone once everything is warm. Several processes, because each has only one first click.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import timing  # noqa: E402 - needs the line above
from benchmarks.networks import CONFIGS, person_finder, trained_m2m  # noqa: E402
from mam_model.matting import MattingAnything  # noqa: E402
from mam_model.prompt import Prompt  # noqa: E402

START = """
import asyncio, importlib.util, json, sys, time
sys.path.insert(0, sys.argv[1])
folder = sys.argv[2]
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import execution, nodes, server
loop = asyncio.new_event_loop()
loop.run_until_complete(nodes.init_builtin_extra_nodes())
began, busy = time.perf_counter(), time.process_time()
spec = importlib.util.spec_from_file_location("the_pack", folder + "/__init__.py", submodule_search_locations=[folder])
pack = importlib.util.module_from_spec(spec)
sys.modules["the_pack"] = pack
spec.loader.exec_module(pack)
extension = loop.run_until_complete(pack.comfy_entrypoint())
listed = loop.run_until_complete(extension.get_node_list())
print(json.dumps([time.perf_counter() - began, time.process_time() - busy, len(listed)]))
"""


def start(comfyui: Path, runs: int) -> timing.Line:
    with tempfile.TemporaryDirectory() as compiled:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = compiled
        command = [sys.executable, "-c", START, str(comfyui), str(ROOT)]
        found = []
        for _ in range(runs + 1):
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=comfyui, env=environment)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    # The first one compiles.
    wall, busy, (nodes, *_) = zip(*found[1:])
    here = f"{timing.duration(statistics.median(wall))}, of the process {timing.duration(statistics.median(busy))}"
    return timing.Line(f"start of ComfyUI: import of the pack, {nodes} nodes", here)


def first_click(size: str, threads: int) -> tuple[float, float]:
    """In a process of its own: seconds of encoding alone when all is warm, and from picture to matte the first time."""
    torch.set_num_threads(threads)
    matting = MattingAnything(person_finder(CONFIGS[size]), trained_m2m())
    image = torch.rand(1024, 768, 3, generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    matting.matte(image, [Prompt(points_px=((400.0, 600.0),), labels=(1,))])
    first = time.perf_counter() - began
    return timing.in_turn([lambda: matting.embed(image)], 3, warm_up=0).median(), first


def first(size: str, threads: int, runs: int) -> timing.Line:
    times = timing.Times([timing.in_a_process(first_click, size, threads) for _ in range(runs)])
    low, middle, high = (ratio - 1 for ratio in times.ratio(1))
    return timing.Line(
        f"first click after loading, ViT-{size.upper()}, 1024 x 768",
        timing.duration(times.median(1)),
        f"encoding alone: {timing.duration(times.median())}; the first click takes {middle:+.0%} "
        f"({low:+.0%} to {high:+.0%})",
    )


def lines(comfyui: Path | None, sizes: list[str], runs: int, threads: int) -> list[timing.Line]:
    found = [] if comfyui is None else [start(comfyui, runs)]
    return found + [first(size, threads, min(5, runs)) for size in sizes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=7, help="starts (default: 7)")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's threads (default: 2)")
    parser.add_argument("--size", choices=tuple(CONFIGS), default="b", help="size of SAM's ViT (default: b)")
    parser.add_argument("--quick", action="store_true", help="a single start")
    options = parser.parse_args()
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        parser.error("COMFYUI_PATH has to name a ComfyUI folder.")
    runs = 1 if options.quick else options.runs
    print(timing.table(lines(Path(comfyui).resolve(), [options.size], runs, options.threads)))


if __name__ == "__main__":
    main()
