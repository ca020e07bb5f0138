"""How long the refiner takes, next to closed-form matting, and how far from the truth it is on pictures kept aside.

    python benchmarks/refiner.py [--quick] [--size 1024 1024] [--runs 5] [--threads 2] [--weights FILE]
    python benchmarks/refiner.py --photos FOLDER [--pictures FOLDER] [--cutouts FOLDER] [--drawn WIDTH HEIGHT]
                                 [--sheet FILE] [--quick]
    python benchmarks/refiner.py --photos FOLDER --large SIDE [--quick]

The first form times `refine_mask` on drawn subjects whose edge is short, long and everywhere, and in the same run
closed-form matting with a band of 10 pixels on both sides of the mask's edge. Medians.

The second form measures. Pictures with true alpha are NAME.png with NAME_alpha.png from --pictures; the cut-outs of
--cutouts laid over the --photos; and subjects drawn here, by another program than the one that draws for training and
in the colours of the --photos. None of these photos may have been seen in training. Each mask is alpha > 0.5 and what
becomes of it: eroded, dilated and shifted by pixels, and in blocks (64 a side). A line gives the means of the mask's
own errors and of the refined one's, and on how many pictures SAD, and MSE, is worse than the mask's.

The third form measures what refining at smaller sizes first changes in large pictures. Square ones of SIDE pixels are
rendered with the --photos, one of each kind, with other seeds than training's. Masks are exact, hard as SAM's (found at
256 pixels) and soft as a background remover's (found at 1024). A line gives the mean SAD of the mask, of what is
refined at the picture's size alone and of what is refined at smaller sizes first, the geometric mean of the ratio of
the last two with its extremes, and that of their times.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mam_model.metrics import gradient_error, mad, mse, sad  # noqa: E402 - needs the line above
from mam_model.refiner import LONGEST_PX, MaskRefiner, load_refiner, refine_mask  # noqa: E402
from mam_model.trimap import trimap_from_mask  # noqa: E402
from mam_model.trimap_matting import solve_trimap  # noqa: E402

# Drawn at this multiple of the size and averaged, so that strands thinner than a pixel cover a part of it.
FINER = 3
# (name, picture [H, W, 3], alpha [H, W]), float32 in 0..1.
Case = tuple[str, np.ndarray, np.ndarray]


def ellipse(radius_px: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))


def masks_of(alpha: np.ndarray) -> dict[str, np.ndarray]:
    mask = (alpha > 0.5).astype(np.float32)
    size = mask.shape[::-1]
    shift = np.float32([[1, 0, 8], [0, 1, 0]])
    cells = cv2.resize(mask, (64, 64), interpolation=cv2.INTER_AREA)
    return {
        "exact": mask,
        "eroded 4": cv2.erode(mask, ellipse(4)),
        "eroded 8": cv2.erode(mask, ellipse(8)),
        "dilated 4": cv2.dilate(mask, ellipse(4)),
        "dilated 8": cv2.dilate(mask, ellipse(8)),
        "shifted 8": cv2.warpAffine(mask, shift, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE),
        "blocks": (cv2.resize(cells, size, interpolation=cv2.INTER_NEAREST) > 0.5).astype(np.float32),
    }


def read(file: Path, mode: str = "RGB") -> np.ndarray:
    with Image.open(file) as opened:
        return np.asarray(opened.convert(mode)).astype(np.float32) / 255


def cropped(rng: np.random.Generator, photo: np.ndarray, height: int, width: int) -> np.ndarray:
    scale = max(height / photo.shape[0], width / photo.shape[1]) * rng.uniform(1, 1.5)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=how)
    photo = np.pad(photo, ((0, max(0, height - photo.shape[0])), (0, max(0, width - photo.shape[1])), (0, 0)), "edge")
    top, left = (int(rng.integers(0, have - want + 1)) for have, want in zip(photo.shape, (height, width)))
    return photo[top : top + height, left : left + width]


def hairy(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Ellipses with hairs along their outline. Alpha [H, W], and how bright the hairs are, [H, W]."""
    tall, wide = height * FINER, width * FINER
    body = np.zeros((tall, wide), np.uint8)
    for _ in range(rng.integers(1, 4)):
        center = int(rng.uniform(0.3, 0.7) * wide), int(rng.uniform(0.35, 0.7) * tall)
        radius = rng.uniform(0.1, 0.22) * min(tall, wide)
        cv2.ellipse(
            body, center, (int(radius), int(radius * rng.uniform(0.7, 1.3))), rng.uniform(0, 180), 0, 360, 255, -1
        )
    outline = np.concatenate(cv2.findContours(body, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0])[:, 0]
    middle = outline.mean(axis=0)
    curl, length, thickness = rng.uniform(0, 1.5), rng.uniform(8, 45) * FINER, int(rng.integers(1, 5))
    covered, bright = np.zeros_like(body), np.full_like(body, 200)
    along = np.linspace(0, 1, 9)
    for _ in range(rng.integers(300, 2500)):
        root = outline[rng.integers(len(outline))]
        away = np.arctan2(*(root - middle)[::-1]) + rng.normal(0, 0.35)
        angle = away + rng.normal(0, curl) * along
        step = length * rng.gamma(3, 0.33) / len(along)
        strand = (np.cumsum(np.stack([np.cos(angle), np.sin(angle)], axis=1) * step, axis=0) + root).astype(np.int32)
        cv2.polylines(covered, [strand], False, 255, thickness)
        cv2.polylines(bright, [strand], False, int(rng.integers(120, 256)), thickness)
    planes = (np.maximum(body, covered), bright)
    return tuple(cv2.resize(p, (width, height), interpolation=cv2.INTER_AREA) / np.float32(255) for p in planes)


def twigs(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Branches that fork and end in leaves. Alpha [H, W] and brightness [H, W]."""
    drawn = np.zeros((height * FINER, width * FINER), np.uint8)

    def grow(root: np.ndarray, angle: float, length: float, thickness: float, forks: int) -> None:
        end = root + length * np.array([np.cos(angle), np.sin(angle)])
        cv2.line(drawn, root.astype(int).tolist(), end.astype(int).tolist(), 255, max(1, int(thickness)))
        if not forks or length < 8 * FINER:
            leaf = int(rng.uniform(4, 16) * FINER), int(rng.uniform(2, 6) * FINER)
            cv2.ellipse(drawn, end.astype(int).tolist(), leaf, float(np.degrees(angle)), 0, 360, 255, -1)
            return
        for _ in range(rng.integers(2, 4)):
            grow(end, angle + rng.normal(0, 0.6), length * rng.uniform(0.55, 0.9), 0.65 * thickness, forks - 1)

    for _ in range(rng.integers(1, 4)):
        root = np.array([rng.uniform(0.3, 0.7) * drawn.shape[1], 0.98 * drawn.shape[0]])
        start = drawn.shape[0] * rng.uniform(0.15, 0.3)
        grow(root, -np.pi / 2 + rng.normal(0, 0.2), start, rng.uniform(3, 9) * FINER, 5)
    alpha = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_AREA) / np.float32(255)
    return alpha, np.ones_like(alpha)


def drawn_cases(photos: list[np.ndarray], count: int, height: int, width: int) -> Iterator[Case]:
    for number in range(count):
        rng = np.random.default_rng(1000 + number)
        colors, behind = (cropped(rng, photos[(k * number + k) % len(photos)], height, width) for k in (5, 1))
        if number % 2:
            behind = cv2.GaussianBlur(behind, (0, 0), 2)
        alpha, bright = (twigs if number % 3 == 2 else hairy)(rng, height, width)
        alpha = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.3, 1.0))
        tint = rng.uniform(0.1, 0.9, 3)
        front = np.clip((0.6 * colors + 0.4 * tint) * (0.5 + 0.5 * bright[..., None]), 0, 1)
        picture = behind + alpha[..., None] * (front - behind)
        picture += rng.normal(0, rng.uniform(0, 0.02), picture.shape)
        coded = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
        if number % 2:
            coded = cv2.imdecode(cv2.imencode(".jpg", coded, [cv2.IMWRITE_JPEG_QUALITY, 85])[1], cv2.IMREAD_COLOR)
        name = f"drawn {'twigs' if number % 3 == 2 else 'hair'} {number}"
        yield name, coded.astype(np.float32) / 255, alpha.astype(np.float32)


def photos_in(folder: Path) -> list[np.ndarray]:
    photos = [read(file) for file in sorted(folder.iterdir()) if file.suffix in (".png", ".jpg")]
    if not photos:
        raise SystemExit(f"{folder} holds no .png or .jpg.")
    return photos


def cases(options: argparse.Namespace) -> Iterator[Case]:
    photos = photos_in(options.photos)
    if options.pictures:
        for file in sorted(options.pictures.glob("*_alpha.png")):
            yield file.stem[:-6], read(file.with_name(f"{file.stem[:-6]}.png")), read(file, "L")
    if options.cutouts:
        for file in sorted(options.cutouts.glob("*.png")):
            cutout = read(file, "RGBA")
            scale = 640 / max(cutout.shape)
            cutout = cv2.resize(cutout, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).clip(0, 1)
            alpha = cutout[..., 3].copy()
            for number, photo in enumerate(photos[:2] if options.quick else photos):
                rng = np.random.default_rng(number)
                behind = cropped(rng, photo, *alpha.shape)
                if number % 3 == 2:
                    behind = cv2.GaussianBlur(behind, (0, 0), 3)
                mixed = behind + alpha[..., None] * (cutout[..., :3] - behind)
                yield f"{file.stem} {number}", mixed.clip(0, 1), alpha
    width, height = options.drawn
    yield from drawn_cases(photos, 3 if options.quick else 24, height, width)


def measure(options: argparse.Namespace, refiner: MaskRefiner) -> None:
    rows: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {}
    strips = []
    for name, picture, alpha in cases(options):
        for how, mask in masks_of(alpha).items():
            refined = refine_mask(refiner, torch.from_numpy(np.ascontiguousarray(picture)), torch.from_numpy(mask))
            errors = [errors_of(found, alpha) for found in (mask, refined.numpy())]
            rows.setdefault(how, []).append((name, *errors))
            if how == "exact":
                planes = (mask, refined.numpy(), alpha)
                over_green = picture * planes[1][..., None] + np.float32([0.1, 0.7, 0.2]) * (1 - planes[1][..., None])
                strip = [picture, *(np.repeat(plane[..., None], 3, axis=2) for plane in planes), over_green]
                strips.append(np.concatenate([cv2.resize(part, (320, 240)) for part in strip], axis=1))
    print(
        f"{len(rows['exact'])} pictures; mask -> refined: SAD (thousands), MSE and MAD (thousandths), Grad (thousands)"
    )
    for how, row in rows.items():
        before, after = (np.mean([errors[side] for errors in row], axis=0) for side in (1, 2))
        worse = [[name for name, mask, refined in row if refined[which] > mask[which]] for which in (0, 1)]
        means = "  ".join(f"{b:6.2f} -> {a:5.2f}" for b, a in zip(before, after))
        print(f"{how:10s} {means}   worse in SAD {len(worse[0])}, in MSE {len(worse[1])} {', '.join(worse[0])}")
    for name, before, after in rows["exact"]:
        print(f"  {name:20s} SAD {before[0]:.2f} -> {after[0]:.2f}  MSE {before[1]:.2f} -> {after[1]:.2f}")
    if options.sheet:
        sheet = (np.concatenate(strips).clip(0, 1) * 255 + 0.5).astype(np.uint8)
        Image.fromarray(sheet).save(options.sheet)


def masks_of_large(alpha: np.ndarray) -> dict[str, np.ndarray]:
    exact, size = (alpha > 0.5).astype(np.float32), alpha.shape[::-1]

    def found_at(side: int, blur: float) -> np.ndarray:
        small = cv2.GaussianBlur(cv2.resize(exact, (side, side), interpolation=cv2.INTER_AREA), (0, 0), blur)
        return cv2.resize(small, size, interpolation=cv2.INTER_LINEAR)

    return {"exact": exact, "hard": (found_at(256, 0.7) > 0.5).astype(np.float32), "soft": found_at(1024, 1.5)}


def measure_large(options: argparse.Namespace, refiner: MaskRefiner) -> None:
    from mam_model.training.render import KINDS, render

    photos, side = photos_in(options.photos), options.large
    rows: dict[str, list[list[float]]] = {}
    for number, kind in enumerate(KINDS[:2] if options.quick else KINDS):
        drawn = render(7000 + number, side, side, kind=kind, backgrounds=photos, foreground_textures=photos)
        for how, mask in masks_of_large(drawn.alpha).items():
            row = [sad(mask, drawn.alpha)]
            for longest_px in (side, LONGEST_PX):
                began = time.perf_counter()
                found = refine_mask(
                    refiner, torch.from_numpy(drawn.picture), torch.from_numpy(mask), longest_px=longest_px
                )
                row += [sad(found.numpy(), drawn.alpha), time.perf_counter() - began]
            rows.setdefault(how, []).append(row)
            print(f"  {kind:12s} {how:6s} SAD {row[0] / 1e3:.1f} -> {row[1] / 1e3:.1f} {row[3] / 1e3:.1f}", flush=True)
    print(
        f"{side} x {side}, one picture of each kind; SAD in thousands: mask -> its own size alone, smaller ones first"
    )
    for how, row in rows.items():
        mask, alone, alone_s, together, together_s = np.array(row).T
        ratios = together / alone
        print(
            f"{how:6s} {mask.mean() / 1e3:6.1f} -> {alone.mean() / 1e3:6.1f} {together.mean() / 1e3:6.1f}   "
            f"x {np.exp(np.log(ratios).mean()):.3f} ({ratios.min():.2f} to {ratios.max():.2f})   "
            f"time x {np.median(together_s / alone_s):.2f}"
        )


def errors_of(found: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    kinds = ((sad, 1e-3), (mse, 1e3), (mad, 1e3), (gradient_error, 1e-3))
    return np.array([unit * error(found, alpha) for error, unit in kinds])


def median_s(runs: int, work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def time_it(options: argparse.Namespace, refiner: MaskRefiner) -> None:
    width, height = (320, 256) if options.quick else options.size
    runs = 1 if options.quick else options.runs
    y, x = np.mgrid[:height, :width].astype(np.float32)
    round_one = (np.hypot((y - height / 2) / height, (x - width / 2) / width) < 0.3).astype(np.float32)
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.standard_normal((12, 12)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    subjects = {
        "small": (np.hypot(y - height / 2, x - width / 2) < 0.08 * height).astype(np.float32),
        "disc": round_one,
        "everywhere": (noise > 0).astype(np.float32),
    }
    print(f"{width} x {height}, {torch.get_num_threads()} threads, seconds")
    for name, mask in subjects.items():
        picture = np.clip(mask[..., None] * [0.7, 0.4, 0.3] + 0.2 + rng.normal(0, 0.03, (height, width, 3)), 0, 1)
        shown, marked = torch.from_numpy(picture.astype(np.float32)), torch.from_numpy(mask)
        ours = median_s(runs, partial(refine_mask, refiner, shown, marked))
        trimap = trimap_from_mask(marked[None], 10, 10)[0]
        theirs = median_s(1, partial(solve_trimap, shown, trimap))
        print(f"{name:11s} refiner {ours:6.2f}   closed-form {theirs:6.2f}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("WIDTH", "HEIGHT"))
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--weights", type=Path, help="default: those of the pack")
    options.add_argument("--photos", type=Path, help="photos that training has not seen; measures instead of timing")
    options.add_argument("--pictures", type=Path)
    options.add_argument("--cutouts", type=Path)
    options.add_argument("--drawn", type=int, nargs=2, default=(560, 480), metavar=("WIDTH", "HEIGHT"))
    options.add_argument("--sheet", type=Path, help="picture to write: what was found, one line a picture")
    options.add_argument("--large", type=int, metavar="SIDE", help="with --photos: large rendered pictures instead")
    options.add_argument("--quick", action="store_true", help="small and few, to see that it runs")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    refiner = load_refiner(chosen.weights)
    if chosen.large and not chosen.photos:
        options.error("--large needs --photos.")
    (measure_large if chosen.large else measure if chosen.photos else time_it)(chosen, refiner)


if __name__ == "__main__":
    main()
