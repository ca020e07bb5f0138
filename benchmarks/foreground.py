"""How exact and how fast `estimate_foreground` is, next to PyMatting's `estimate_foreground_ml`.

    python benchmarks/foreground.py [FOLDER] [--sizes 512 1024] [--runs 7] [--threads 1] [--device cpu]

Without a folder, layers are rendered: a subject with soft strands and slow changes of colour over a textured picture,
so that the true foreground is known. A folder holds one folder per picture with image.png and alpha.png, and
foreground.png where the true foreground is known; without it only the times and the two results' difference are given.

Both run in turn in this process, after a warm-up. A line gives our median time and the median and quartiles of the
ratios of each pair: how many times as long PyMatting takes, so that below 1 it is the faster one. Errors are the mean
of |F - true F| x alpha over the pixels that are soft (0.02 < alpha < 0.98), in thousandths: what a new composite shows
of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import timing  # noqa: E402 - needs the line above
from mam_model.foreground import estimate_foreground  # noqa: E402


@dataclass(frozen=True)
class Case:
    """A picture float32 [H, W, 3], its matte [H, W], and its true foreground [H, W, 3] where that is known."""

    name: str
    image: np.ndarray
    alpha: np.ndarray
    foreground: np.ndarray | None


def rendered(size: int) -> Case:
    """A composite of exact layers, `size` pixels high and a third wider."""
    height, width = size, size * 4 // 3
    y, x = np.mgrid[:height, :width].astype(np.float32) / size
    front = np.stack((0.7 + 0.2 * np.sin(3 * x), 0.5 + 0.2 * np.sin(6 * y), 0.25 + 0.1 * np.cos(4 * x + y)), axis=-1)
    texture = np.sin(40 * x) * np.sin(33 * y) * 0.1
    back = np.stack((0.2 + 0.1 * y + texture, 0.4 + 0.2 * x - texture, 0.6 + 0.2 * np.cos(5 * x)), axis=-1)
    angle, away = np.arctan2(y - 0.5, x - 2 / 3), np.hypot(y - 0.5, x - 2 / 3)
    strands = 0.25 + 0.06 * np.sin(60 * angle) + 0.02 * np.sin(171 * angle)
    alpha = ((strands - away) / 0.04 + 0.5).clip(0, 1)
    image = alpha[..., None] * front + (1 - alpha[..., None]) * back
    return Case(f"rendered {width} x {height}", *(layer.astype(np.float32) for layer in (image, alpha, front)))


def read(folder: Path) -> Iterator[Case]:
    for file in sorted(folder.glob("*/image.png")):
        true = file.with_name("foreground.png")
        yield Case(
            file.parent.name,
            _picture(file, "RGB"),
            _picture(file.with_name("alpha.png"), "L"),
            _picture(true, "RGB") if true.exists() else None,
        )


def _picture(file: Path, mode: str) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(file).convert(mode), dtype=np.float32) / 255


def measure(case: Case, runs: int, device: torch.device) -> timing.Line:
    import pymatting

    image, alpha = torch.from_numpy(case.image).to(device), torch.from_numpy(case.alpha).to(device)
    exact = case.image.astype(np.float64), case.alpha.astype(np.float64)

    def ours() -> np.ndarray:
        return estimate_foreground(image, alpha).cpu().numpy()

    def theirs() -> np.ndarray:
        return pymatting.estimate_foreground_ml(*exact)

    results = ours(), theirs()
    if case.foreground is None:
        apart = f"they differ by {_error(results[0], results[1], case.alpha):.3f}"
    else:
        mine, other = (_error(result, case.foreground, case.alpha) for result in results)
        apart = f"error {mine:.3f}, PyMatting's {other:.3f}: x {mine / other:.3f}"
    times = timing.in_turn((ours, theirs), runs, device, warm_up=0)
    return timing.compared(f"foreground colour, {case.name}", times, ["PyMatting"], apart=apart)


def _error(foreground: np.ndarray, true: np.ndarray, alpha: np.ndarray) -> float:
    soft = (alpha > 0.02) & (alpha < 0.98)
    return 1000 * float((np.abs(foreground - true).mean(axis=-1) * alpha)[soft].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, nargs="?", help="pictures to measure instead of rendered ones")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024], help="heights of rendered pictures")
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each (default: 7)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads; PyMatting has one (default: 1)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="where ours runs: cpu, cuda")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = read(options.folder) if options.folder else map(rendered, options.sizes)
    print(timing.table([measure(case, options.runs, options.device) for case in cases]))


if __name__ == "__main__":
    main()
