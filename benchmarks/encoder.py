"""How fast, how exact and how lean SAM's image encoder is, next to segment-anything's own.

    python benchmarks/encoder.py [--sizes b] [--device cpu] [--dtype fp32] [--runs 5] [--threads 2] [--quick]

Both have the same random weights and run in turn in this process, after a run that does not count. Given are the median
of our times, the median and quartiles of each pair's ratio, and how far the features are apart, of which the standard
deviation is 1. Memory is what a run takes beside weights and picture: on the CPU what the resident memory of a process
that does nothing else grows by at most (on Linux alone), on a GPU what PyTorch allocates.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import timing  # noqa: E402 - needs the line above
from benchmarks.networks import CONFIGS, stock_sam  # noqa: E402
from mam_model.image_encoder import ImageEncoder  # noqa: E402

WAYS = ("ours", "stock")
SIDE = 1024


def encoder(way: str, size: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    network = stock_sam(size).image_encoder
    if way == "ours":
        config, stock = CONFIGS[size], network
        # Without weights of its own: freed memory is taken again, and would not be counted.
        with torch.device("meta"):
            network = ImageEncoder(
                image_size=SIDE,
                patch_size=config.patch_size,
                embed_dim=config.embed_dim,
                depth=config.depth,
                num_heads=config.num_heads,
                out_channels=config.prompt_dim,
                window_size=config.window_size,
                global_attention=config.global_attention,
            )
        network.load_state_dict(stock.state_dict(), assign=True)
    return network.eval().to(device, dtype)


def picture(dtype: torch.dtype, device: torch.device, count: int = 1) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def ways(size: str, dtype: torch.dtype, device: torch.device) -> list[Callable[[], Tensor]]:
    """Ours and segment-anything's, of the same picture."""
    square = picture(dtype, device)
    return [partial(encoder(way, size, dtype, device), square) for way in WAYS]


def lines(size: str, dtype: str, device: torch.device, runs: int, memory: bool = True) -> list[timing.Line]:
    both = ways(size, timing.DTYPES[dtype], device)
    ours, stock = (way().float() for way in both)
    apart = ours - stock
    times = timing.in_turn(both, runs, device, warm_up=0)
    peaks = timing.peaks(ways, (size, timing.DTYPES[dtype], device), (0, 1), device) if memory else ""
    distance = f"{float(apart.abs().max()):.1e}, rms {float(apart.square().mean().sqrt()):.1e}"
    found = [timing.compared(f"SAM ViT-{size.upper()} encoder, {dtype}", times, ["segment-anything"], peaks, distance)]
    if device.type == "cuda":
        network, four = both[0].func, picture(timing.DTYPES[dtype], device, 4)
        together = timing.in_turn([lambda: network(four), lambda: [network(x[None]) for x in four]], runs, device)
        found.append(timing.compared(f"the same, 4 pictures together, {dtype}", together, ["one after the other"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sizes", default="b", help="sizes of the ViT: b, l, h, or several as b,l,h (default: b)")
    parser.add_argument("--dtype", choices=tuple(timing.DTYPES), default="fp32", help="precision (default: fp32)")
    timing.add_arguments(parser, runs=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs = 1 if options.quick else options.runs
    print(f"{options.device}, {options.threads} threads")
    with torch.inference_mode():
        for size in options.sizes.split(","):
            print(timing.table(lines(size, options.dtype, options.device, runs)), flush=True)


if __name__ == "__main__":
    main()
