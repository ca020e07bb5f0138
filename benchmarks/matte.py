"""How long a matte takes once the picture is encoded, next to the whole pyramid of every target.

    python benchmarks/matte.py [--quick] [--size 1024 768] [--targets 1 2 4 8] [--runs 5] [--threads 2] [--device cpu]

Compared are `matte_targets` with the picture's part kept, `predict_pyramid` and `merge_targets` with the folded
network, and the same with the network in the form in which it is trained. Networks have the published sizes and the
weights of tests/references, subjects are drawn. All run in turn in this process, after a warm-up. A line gives medians
of the times, the medians of each run's ratios, how far the mattes are apart at most, and how many pixels are apart by
more than 1e-5: rounding can carry a pixel over a threshold of the merge. The last lines are the picture's part alone
and SAM's decoder next to segment-anything's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mam_model.frame import Frame  # noqa: E402 - needs the line above
from mam_model.mask_decoder import decode_masks  # noqa: E402
from mam_model.matting import matte_targets, merge_targets, predict_pyramid  # noqa: E402
from mam_model.prompt import Prompt  # noqa: E402
from mam_model.sam import Embedding, Guidance, Sam, SamConfig  # noqa: E402
from tests.references import chain  # noqa: E402

SIDE = 1024
GRID = SIDE // 4


def blob(y: float, x: float, radius_y: float, radius_x: float, waves: int = 23) -> Tensor:
    """A subject with a wavy outline; centre and radii in parts of the picture. Float [256, 256], above 0 inside."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, GRID), torch.linspace(0, 1, GRID), indexing="ij")
    down, right = (rows - y) / radius_y, (columns - x) / radius_x
    return 1 + 0.04 * torch.sin(waves * torch.atan2(down, right)) - torch.hypot(down, right)


def foliage() -> Tensor:
    """A subject whose edge is everywhere."""
    noise = torch.randn(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, (GRID, GRID), mode="bicubic")[0, 0]


SUBJECTS = {
    "small": lambda: blob(0.4, 0.4, 0.11, 0.15),
    "person": lambda: torch.maximum(blob(0.3, 0.52, 0.12, 0.13), blob(0.74, 0.52, 0.33, 0.25)),
    "frame-filling": lambda: blob(0.5, 0.5, 0.49, 0.48),
    "foliage": foliage,
}


def guidance_of(frame: Frame, subject: Tensor, targets: int) -> Guidance:
    """As if SAM had found the subject `targets` times, each a little further to the right."""
    height, width = frame.content_height // 4, frame.content_width // 4
    content = F.interpolate(subject[None, None], (height, width), mode="bilinear")
    square = F.pad(content, (0, GRID - width, 0, GRID - height), value=-1)[0]
    logits = torch.stack([20 * square.roll(3 * target, dims=-1).expand(3, -1, -1) for target in range(targets)])
    prompts = (Prompt(points_px=((0, 0),), labels=(1,)),) * targets
    return Guidance(prompts, logits, torch.ones(targets, 3), torch.zeros(targets, dtype=torch.int64), frame)


def times_in_turn(ways: Sequence[Callable], runs: int, device: torch.device) -> list[tuple[float, ...]]:
    """Seconds of each way in each run, after one run that does not count."""

    def seconds(way: Callable) -> float:
        start = time.perf_counter()
        way()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for way in ways:
        seconds(way)
    return [tuple(seconds(way) for way in ways) for _ in range(runs)]


def report(name: str, times: list[tuple[float, ...]], remark: str = "") -> None:
    """One line: the median time of each way, and how many times as long as the first the others take."""
    medians = [statistics.median(column) for column in zip(*times)]
    ratios = [statistics.median(run[way] / run[0] for run in times) for way in range(1, len(medians))]
    spent = "".join(f"{1000 * median:9.1f} ms" for median in medians)
    print(f"{name:26}{spent}{'':{12 * (3 - len(medians))}}  " + "".join(f" x{ratio:6.2f}" for ratio in ratios) + remark)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one target and two runs of each")
    parser.add_argument("--size", type=int, nargs=2, default=[1024, 768], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--targets", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's threads (default: 2)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    options = parser.parse_args()
    targets, runs = ([1], 2) if options.quick else (options.targets, options.runs)
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        compare_mattes(Frame(*options.size, SIDE), targets, runs, options.device)
        compare_decoders(runs, options.device)


def compare_mattes(frame: Frame, targets: Sequence[int], runs: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 256, SIDE // 16, SIDE // 16, generator=generator)
    size = (frame.content_height, frame.content_width, 3)
    embedding = Embedding(features, torch.randint(0, 256, size, generator=generator, dtype=torch.uint8), frame)
    trained = chain.reference_m2m()
    folded = trained.fold().to(device)
    trained.to(device)
    picture = folded.look_at(embedding)
    print(f"{frame.height} x {frame.width}: {picture.nbytes / 1e6:.0f} MB are kept of the picture")
    print(f"{'':26}{'mattes':>12}{'whole':>12}{'trained':>12}   whole trained   furthest  apart")
    for name, subject in SUBJECTS.items():
        for count in targets:
            guidance = guidance_of(frame, subject(), count)
            guidance = Guidance(
                guidance.prompts, guidance.logits.to(device), guidance.predicted_iou, guidance.chosen, frame
            )

            def seen(guidance: Guidance = guidance) -> Tensor:
                return matte_targets(folded, picture, guidance)

            def whole(network=folded, guidance: Guidance = guidance) -> Tensor:
                return merge_targets(predict_pyramid(network, embedding, guidance), guidance)

            apart = (seen() - whole()).abs()
            times = times_in_turn((seen, whole, lambda: whole(trained)), runs, device)  # noqa: B023 - called at once
            remark = f"   {float(apart.max()):8.1e} {int((apart > 1e-5).sum()):6d}"
            report(f"{name}, {count} target{'s' if count > 1 else ''}", times, remark)
    report("the picture's part", times_in_turn((lambda: folded.look_at(embedding),), runs, device))


def compare_decoders(runs: int, device: torch.device) -> None:
    config = SamConfig(depth=1, embed_dim=64, num_heads=2, global_attention=(0,), image_size=SIDE)
    sam = Sam(config).eval().to(device)
    features = torch.randn(1, 256, SIDE // 16, SIDE // 16, device=device)
    positions = sam.prompt_encoder.get_dense_pe()
    point = (torch.full((1, 1, 2), 500.0, device=device), torch.ones(1, 1, dtype=torch.int32, device=device))
    sparse, dense = sam.prompt_encoder(point, None, None)

    def ours() -> tuple[Tensor, Tensor]:
        return decode_masks(sam.mask_decoder, features, positions, sparse, dense)

    def theirs() -> tuple[Tensor, Tensor]:
        return sam.mask_decoder(features, positions, sparse, dense, multimask_output=True)

    apart = max(float((mine - other).abs().max()) for mine, other in zip(ours(), theirs()))
    report("decoder", times_in_turn((ours, theirs), runs, device), f"           {apart:8.1e}")


if __name__ == "__main__":
    main()
