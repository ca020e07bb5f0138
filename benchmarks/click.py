"""Where the time from a click to its matte goes: every stage with its arithmetic, next to the rate of a convolution.

    python benchmarks/click.py [--size b] [--picture 1024 768] [--runs 5] [--threads 2] [--device cpu] [--dtype fp32]

A stage's time is its own, without that of the stages inside it. The rate that it could have at best is taken from a 3 x
3 convolution of 256 channels, measured in the same process; "arithmetic" is how long the stage's operations (2 for each
multiplication with addition) would take at that rate. What a stage takes above that is memory traffic, small operations
and Python.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import timing  # noqa: E402 - needs the line above
from benchmarks.networks import CONFIGS, person_finder, trained_m2m  # noqa: E402
from mam_model import batched, matting, merge, partial, sam  # noqa: E402
from mam_model.frame import Frame  # noqa: E402
from mam_model.image_encoder import Block, ImageEncoder  # noqa: E402
from mam_model.m2m import FoldedMaskToMatte  # noqa: E402
from mam_model.matting import MattingAnything, matte_targets  # noqa: E402
from mam_model.prompt import Prompt  # noqa: E402
from mam_model.sam import Guidance  # noqa: E402

# What belongs to which stage, outermost first.
STAGES = (
    ("encoder: picture in, features out", ImageEncoder, "forward"),
    ("encoder: windowed attention", Block, "_add_windowed_attention"),
    ("encoder: global attention", Block, "_add_global_attention"),
    ("encoder: feed-forward layers", Block, "_add_feed_forward"),
    ("SAM's prompt encoder and decoder", sam.Sam, "decode"),
    ("Mask-to-Matte: picture's part", FoldedMaskToMatte, "look_at"),
    ("merging", matting, "matte_in_turn"),
    ("merging", matting, "matte_together"),
    ("SAM's mask at the picture's size", Guidance, "post_mask"),
    ("merging: widening", merge, "dilated"),
    ("drawing at the picture's size", Frame, "part_to_original"),
    ("Mask-to-Matte: first stage", partial.PartialPyramid, "_layer2"),
    ("Mask-to-Matte: second stage", partial.PartialPyramid, "_need_fine"),
    ("Mask-to-Matte: heads of os8 and os4", partial.PartialPyramid, "_head"),
    ("Mask-to-Matte: third stage and os1", partial.PartialPyramid, "_os1"),
    ("Mask-to-Matte: first stage", batched.WindowedPyramids, "_layer2"),
    ("Mask-to-Matte: second stage", batched.WindowedPyramids, "_layer3"),
    ("Mask-to-Matte: third stage and os1", batched.WindowedPyramids, "_os1"),
)


class Stages:
    """Seconds and operations of every stage while this is entered, each without those inside it."""

    def __init__(self, device: torch.device, operations: Callable[[], int] = lambda: 0):
        self.seconds: dict[str, float] = defaultdict(float)
        self.operations: dict[str, int] = defaultdict(int)
        self._device = device
        self._counted = operations
        # Of the stages that are running, what those inside have taken.
        self._inside: list[list[float]] = []

    @contextmanager
    def watched(self) -> Iterator[Stages]:
        with ExitStack() as patches:
            for name, owner, attribute in STAGES:
                timed = self._timed(name, getattr(owner, attribute))
                patches.enter_context(mock.patch.object(owner, attribute, timed))
            yield self

    def _timed(self, name: str, work: Callable) -> Callable:
        def timed(*args, **kwargs):
            self._inside.append([0.0, 0])
            began, counted = self._now(), self._counted()
            result = work(*args, **kwargs)
            taken = (self._now() - began, self._counted() - counted)
            inside = self._inside.pop()
            self.seconds[name] += taken[0] - inside[0]
            self.operations[name] += taken[1] - inside[1]
            if self._inside:
                self._inside[-1] = [before + now for before, now in zip(self._inside[-1], taken)]
            return result

        return timed

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def convolution_rate(dtype: torch.dtype, device: torch.device, runs: int = 9) -> float:
    """Operations a second of a 3 x 3 convolution of 256 channels on 64 x 64 places, channels last."""
    conv = nn.Conv2d(256, 256, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
    x = torch.randn(1, 256, 64, 64).to(device, dtype, memory_format=torch.channels_last)
    return 2 * 9 * 256**2 * 64**2 / timing.in_turn([lambda: conv(x)], runs, device).median()


def _products() -> dict:
    """How to count what the counter does not know: the operator that `products.Factor` multiplies with."""
    operator = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)

    def operations(picture: tuple[int, ...], *_, out_shape: tuple[int, ...], **__) -> int:
        return 2 * picture[1] * math.prod(out_shape)

    return {} if operator is None else {operator: operations}


def profile(
    size: str, picture: tuple[int, int], runs: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[tuple], float]:
    """Name, seconds and operations of every stage, and the rate of a convolution."""
    network = person_finder(CONFIGS[size])
    network.image_encoder.to(dtype)
    clicked = MattingAnything(network.to(device), trained_m2m().fold().to(device, dtype))
    image = torch.rand(*picture, 3, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt(points_px=((0.5 * picture[1], 0.5 * picture[0]),), labels=(1,))]

    def click() -> None:
        embedding = clicked.embed(image)
        guidance = clicked.segment(embedding, prompts)
        matte_targets(clicked.m2m, clicked.m2m.look_at(embedding), guidance)

    click()
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=_products()) as counter:
        counted = Stages(device, counter.get_total_flops)
        with counted.watched():
            click()
    seconds = []
    for _ in range(runs):
        with Stages(device).watched() as stages:
            click()
        seconds.append(stages.seconds)
    names = list(dict.fromkeys(name for name, *_ in STAGES if name in seconds[0]))
    found = [(name, statistics.median(run[name] for run in seconds), counted.operations[name]) for name in names]
    return found, convolution_rate(dtype, device)


def table(found: list[tuple], rate: float) -> str:
    """Markdown. Encoding comes first; the rest is what a click on a known picture costs."""
    rows = ["| Stage | Time | GFLOP | GFLOP/s | Arithmetic | Above it |", "| --- | --- | --- | --- | --- | --- |"]
    known = [line for line in found if not line[0].startswith("encoder")]
    click = [line for line in known if "picture's part" not in line[0]]
    sums = [("in all", found), ("without the encoder", known), ("click on a known picture", click)]
    for name, seconds, operations in found + [(name, *map(sum, list(zip(*lines))[1:])) for name, lines in sums]:
        least = operations / rate
        rows.append(
            f"| {name} | {timing.duration(seconds)} | {operations / 1e9:,.1f} | {operations / seconds / 1e9:,.0f} | "
            f"{timing.duration(least)} | {timing.duration(max(0.0, seconds - least))} |"
        )
    return "\n".join([*rows, "", f"A 3 x 3 convolution runs at {rate / 1e9:,.0f} GFLOP/s."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", choices=tuple(CONFIGS), default="b", help="size of SAM's ViT (default: b)")
    parser.add_argument("--picture", type=int, nargs=2, default=[1024, 768], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--dtype", choices=tuple(timing.DTYPES), default="fp32", help="precision (default: fp32)")
    timing.add_arguments(parser, runs=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs = 1 if options.quick else options.runs
    print(table(*profile(options.size, options.picture, runs, timing.DTYPES[options.dtype], options.device)))


if __name__ == "__main__":
    main()
