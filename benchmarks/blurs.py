"""How fast light is wrapped around a subject and an edge feathered on a processor, next to the same blur by PyTorch's
convolution, as on a GPU, and by OpenCV's filter.

    python benchmarks/blurs.py [--size 1080 1920] [--light-wraps 3 12 50 200] [--feathers 10 50 200] [--runs 5]
                               [--threads 2]

All run in turn in this process. A line gives our median time, the median and quartiles of the ratios of each pair, and
the largest difference of the results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import cv2
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import timing  # noqa: E402 - needs the line above
from mam_model import composite, edge, gaussian  # noqa: E402

# The other ways by the names that the table gives them.
OTHERS = {"convolution": "_convolved", "OpenCV": "_in_arrays"}


def measure(stage: str, ours: Callable[[], torch.Tensor], others: dict[str, str], runs: int) -> timing.Line:
    def taking(way: str) -> Callable[[], torch.Tensor]:
        def work() -> torch.Tensor:
            blur = getattr(gaussian, way)
            with mock.patch.multiple(gaussian, _in_arrays=blur, _multiplied=blur):
                return ours()

        return work

    ways = (ours, *map(taking, others.values()))
    made, *by_others = (way() for way in ways)
    apart = max((made - other).abs().max() for other in by_others)
    times = timing.in_turn(ways, runs, warm_up=0)
    return timing.compared(stage, times, list(others), apart=f"{apart:.1e}")


def light_wrap(height: int, width: int, width_px: float, runs: int) -> timing.Line:
    random = torch.Generator().manual_seed(0)
    picture, background = (torch.rand(height, width, 3, generator=random) for _ in range(2))
    alpha = torch.rand(height, width, generator=random)
    stage = f"light wrap of {width_px:g} px, {width} x {height}"
    return measure(stage, lambda: composite.light_wrap(picture, alpha, background, width_px, 0.5), OTHERS, runs)


def feather(height: int, width: int, sigma_px: float, runs: int) -> timing.Line:
    alpha = torch.rand(height, width, generator=torch.Generator().manual_seed(0))
    options = edge.EdgeOptions(feather_px=sigma_px)
    stage = f"feather of {sigma_px:g} px, {width} x {height}"
    # PyTorch's convolution takes half a minute for the widest.
    return measure(stage, lambda: edge.adjust_edge(alpha, options), {"OpenCV": OTHERS["OpenCV"]}, runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--size", type=int, nargs=2, default=[1080, 1920], help="height and width in pixels")
    parser.add_argument("--light-wraps", type=float, nargs="*", default=[3, 12, 50, 200], help="how far light reaches")
    parser.add_argument("--feathers", type=float, nargs="*", default=[10, 50, 200], help="standard deviations")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch and of OpenCV (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    lines = [light_wrap(*options.size, width_px, options.runs) for width_px in options.light_wraps]
    lines += [feather(*options.size, sigma_px, options.runs) for sigma_px in options.feathers]
    print(timing.table(lines))


if __name__ == "__main__":
    main()
