"""How near a matte made at 1024 pixels comes to the true one of a larger picture, by each way of enlarging it.

    python benchmarks/native_detail.py [--quick] [--sizes 2048 4096] [--pictures 16] [--photos FOLDER] [--slow]
    python benchmarks/native_detail.py --memory 12000

Pictures are rendered, one of each kind in turn, so that their mattes are known exactly; `--photos` gives them
photographs as backgrounds and textures. Of each, the square of a quarter of its pixels' worth with most soft pixels is
judged. Its matte at 1024 pixels is the true one averaged down ("exact", the best a network could do) or that blurred by
a pixel and with grain of 0.05 in its soft parts ("worse"). It is enlarged bilinearly, which is what everything else is
compared with. A line gives the medians, over the pictures, of SAD and Grad relative to that, the worst of each, and the
median of the time for a square.

`--slow` adds closed-form matting of the soft band that holds to the enlarged matte, which takes minutes.

`--memory` gives time and peak memory of `sharpen_edges` on a picture of that side, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import timing  # noqa: E402 - needs the line above
from mam_model.metrics import gradient_error, sad  # noqa: E402
from mam_model.native_detail import DETAIL_PX, sharpen_edges  # noqa: E402

# (picture [n, n, 3], enlarged matte [n, n], the matte as it was made [m, m]) -> matte [n, n]
Way = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def bicubic(picture: np.ndarray, matte: np.ndarray, made: np.ndarray) -> np.ndarray:
    return cv2.resize(made, matte.shape[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)


def guided(picture: np.ndarray, matte: np.ndarray, made: np.ndarray, radius: int = 1, eps: float = 1e-4) -> np.ndarray:
    """He, Sun, "Fast Guided Filter", 2015: alpha as a linear function of colour, fitted at the small size."""
    size = (2 * radius + 1, 2 * radius + 1)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, size, borderType=cv2.BORDER_REFLECT)

    color = cv2.resize(picture, made.shape[::-1], interpolation=cv2.INTER_AREA).astype(np.float64)
    value = made.astype(np.float64)
    products = np.dstack([color * color[..., i : i + 1] for i in range(3)])
    spread = np.dstack([mean(products[..., 3 * i : 3 * i + 3]) for i in range(3)]).reshape(*value.shape, 3, 3)
    spread -= mean(color)[..., :, None] * mean(color)[..., None, :]
    joint = mean(color * value[..., None]) - mean(color) * mean(value)[..., None]
    slope = np.linalg.solve(spread + eps * np.eye(3), joint[..., None])[..., 0]
    offset = mean(value) - (slope * mean(color)).sum(axis=-1)
    slope, offset = (
        cv2.resize(mean(part).astype(np.float32), matte.shape[::-1], interpolation=cv2.INTER_LINEAR)
        for part in (slope, offset)
    )
    around = np.ones((3, 3), np.uint8)
    lowest, highest = (
        cv2.resize(limit(made, around), matte.shape[::-1], interpolation=cv2.INTER_LINEAR)
        for limit in (cv2.erode, cv2.dilate)
    )
    return ((slope * picture).sum(axis=-1) + offset).clip(lowest, highest)


def closed_form(picture: np.ndarray, matte: np.ndarray, made: np.ndarray) -> np.ndarray:
    from mam_model.trimap_matting import solve_view

    soft = cv2.dilate(((matte > 0.02) & (matte < 0.98)).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    known = np.where(soft, np.float32(0.5), (matte > 0.5).astype(np.float32))
    return solve_view(picture, known, "closed-form", matte, np.full(matte.shape, 1e-2, np.float32))


def sharpened(picture: np.ndarray, matte: np.ndarray, made: np.ndarray) -> np.ndarray:
    return sharpen_edges(torch.from_numpy(picture), torch.from_numpy(matte), detail_px=len(made)).numpy()


def refined() -> Way:
    from mam_model.refiner import load_refiner, refine_mask

    network = load_refiner()
    return lambda picture, matte, made: refine_mask(network, torch.from_numpy(picture), torch.from_numpy(matte)).numpy()


def ways(slow: bool) -> dict[str, Way]:
    refine = refined()
    found = {
        "bilinear": lambda picture, matte, made: matte,
        "bicubic": bicubic,
        "guided filter": guided,
        "refiner": refine,
        "refiner on sharpen_edges": lambda *given: refine(given[0], sharpened(*given), given[2]),
        "sharpen_edges": sharpened,
    }
    return found | {"closed-form": closed_form} if slow else found


def squares(size: int, count: int, photos: list[np.ndarray], side: int):
    """Squares of rendered pictures of `size`, float32 [side, side, 3], with their true mattes [side, side]."""
    from mam_model.training.render import KINDS, render

    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        drawn = render(100 + number, size, size, kind=kind, backgrounds=photos, foreground_textures=photos)
        soft = ((drawn.alpha > 0.02) & (drawn.alpha < 0.98)).astype(np.float32)
        middle = np.unravel_index(cv2.blur(soft, (side, side)).argmax(), soft.shape)
        top, left = (int(min(max(0, place - side // 2), size - side)) for place in middle)
        square = np.s_[top : top + side, left : left + side]
        yield kind, np.ascontiguousarray(drawn.picture[square]), np.ascontiguousarray(drawn.alpha[square])


def mattes_at(small: int, true: np.ndarray) -> dict[str, np.ndarray]:
    """Mattes as made at a small size, [small, small]."""
    exact = cv2.resize(true, (small, small), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(exact, (0, 0), 1.0)
    grain = cv2.GaussianBlur(np.random.default_rng(0).standard_normal(exact.shape).astype(np.float32), (0, 0), 1.0)
    soft = (blurred > 0.02) & (blurred < 0.98)
    worse = (blurred + 0.05 * soft * grain / grain.std()).clip(0, 1)
    return {"exact": exact, "worse": worse}


def compare(size: int, options: argparse.Namespace, photos: list[np.ndarray]) -> None:
    side = min(options.square, size // 2)
    small = round(side * DETAIL_PX / size)
    scores: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    compared = ways(options.slow)
    for kind, picture, true in squares(size, options.pictures, photos, side):
        for quality, made in mattes_at(small, true).items():
            matte = cv2.resize(made, true.shape[::-1], interpolation=cv2.INTER_LINEAR)
            first = None
            for name, way in compared.items():
                began = time.perf_counter()
                found = way(picture, matte, made)
                seconds = time.perf_counter() - began
                errors = sad(found, true), gradient_error(found, true)
                first = first or errors
                scores.setdefault((quality, name), []).append((errors[0] / first[0], errors[1] / first[1], seconds))
        print(f"  {kind}", file=sys.stderr, flush=True)
    print(f"{size} pixels, {options.pictures} pictures, squares of {side}")
    for (quality, name), found in scores.items():
        sads, grads, seconds = zip(*found)
        print(
            f"  {quality:6} {name:25} SAD x {statistics.median(sads):.2f} (worst {max(sads):.2f})   "
            f"Grad x {statistics.median(grads):.2f} (worst {max(grads):.2f})   {statistics.median(seconds):6.2f} s"
        )


def measure_memory(side: int) -> None:
    """Prints time and peak memory of `sharpen_edges` alone, on a picture whose edge is long."""
    rows, columns = np.ogrid[:side, :side]
    rows, columns = rows.astype(np.float32), columns.astype(np.float32)
    waves = 0.04 * side * np.sin(40 * np.arctan2(rows - side / 2, columns - side / 2))
    alpha = (0.35 * side + waves - np.hypot(rows - side / 2, columns - side / 2)) / (4 * side / DETAIL_PX)
    del waves
    alpha = torch.from_numpy((alpha + 0.5).clip(0, 1).astype(np.float32))
    picture = torch.empty(side, side, 3)
    for top in range(0, side, 256):
        picture[top : top + 256] = (
            0.5 * torch.rand(min(256, side - top), side, 3) + 0.4 * alpha[top : top + 256, :, None]
        )
    before = timing.peak_bytes()
    began = time.perf_counter()
    sharpen_edges(picture, alpha)
    seconds = time.perf_counter() - began
    peak = timing.peak_bytes()
    print(json.dumps({"seconds": seconds, "peak_gb": peak / 1e9, "before_gb": before / 1e9}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two small pictures, to see that it works")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--square", type=int, default=1024, help="side of the square that is judged")
    parser.add_argument("--photos", type=Path, help="a folder of photographs for backgrounds and textures")
    parser.add_argument("--slow", action="store_true", help="closed-form matting too")
    parser.add_argument("--memory", type=int, metavar="SIDE", help="time and peak memory at this size instead")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory and options.in_process:
        measure_memory(options.memory)
        return
    if options.memory:
        command = [sys.executable, __file__, "--memory", str(options.memory), "--in-process"]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"{options.memory} x {options.memory} pixels: {told['seconds']:.1f} s, peak {told['peak_gb']:.2f} GB, "
            f"{told['before_gb']:.2f} GB before the call"
        )
        return
    if options.quick:
        options.sizes, options.pictures, options.square = [1536], 2, 384
    photos = []
    if options.photos:
        from mam_model.cutout import photos_in
        from mam_model.photo import read_photo

        photos = [read_photo(path).image.numpy() for path in photos_in([options.photos])]
    for size in options.sizes:
        compare(size, options, photos)


if __name__ == "__main__":
    main()
