"""How fast the light of a background is wrapped around a subject on a processor, next to filtering it by PyTorch's
convolution, as on a GPU.

    python benchmarks/light_wrap.py [--size 1080 1920] [--widths 3 12 50 200] [--runs 5] [--threads 2]

Both run in turn in this process. A line gives our median time, the median and quartiles of the ratios of each pair, and
the largest difference of the two results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from unittest import mock

import cv2
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import timing  # noqa: E402 - needs the line above
from mam_model import composite  # noqa: E402


def measure(height: int, width: int, width_px: float, runs: int) -> timing.Line:
    random = torch.Generator().manual_seed(0)
    picture, background = (torch.rand(height, width, 3, generator=random) for _ in range(2))
    alpha = torch.rand(height, width, generator=random)

    def ours() -> torch.Tensor:
        return composite.light_wrap(picture, alpha, background, width_px, 0.5)

    def convolved() -> torch.Tensor:
        with mock.patch.object(composite, "_filtered_in_arrays", composite._filtered_on_device):
            return ours()

    apart = (ours() - convolved()).abs().max()
    times = timing.in_turn((ours, convolved), runs, warm_up=0)
    stage = f"light wrap of {width_px:g} px, {width} x {height}"
    return timing.compared(stage, times, ["convolution"], apart=f"{apart:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--size", type=int, nargs=2, default=[1080, 1920], help="height and width in pixels")
    parser.add_argument("--widths", type=float, nargs="+", default=[3, 12, 50, 200], help="how far the light reaches")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch and of OpenCV (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    print(timing.table([measure(*options.size, width, options.runs) for width in options.widths]))


if __name__ == "__main__":
    main()
