"""How fast, how exact and how lean SAM's image encoder is, next to segment-anything's own.

    python benchmarks/encoder.py [--model b] [--device cpu] [--dtype fp32] [--runs 5] [--threads 2] [--quick]

Both have the same random weights and run in turn in this process, after a run that does not count. Given are the
medians of the times, the median of each pair's ratio, and how far the features are apart, of which the standard
deviation is 1. Memory is what a run takes beside weights and picture: on the CPU what the resident memory of a process
that does nothing else grows by at most (on Linux alone), on a GPU what PyTorch allocates.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mam_model.image_encoder import ImageEncoder  # noqa: E402 - needs the line above

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WAYS = ("ours", "stock")
SIDE = 1024


def encoder(way: str, model: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Random weights; tables of positions are not 0, as they are at birth."""
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    stock = sam_model_registry[f"vit_{model}"]().image_encoder
    for name, weight in stock.named_parameters():
        if "pos" in name:
            nn.init.normal_(weight, std=0.1)
    network = stock
    if way == "ours":
        # Without weights of its own: freed memory is taken again, and would not be counted.
        with torch.device("meta"):
            network = ImageEncoder(
                image_size=SIDE,
                patch_size=16,
                embed_dim=stock.pos_embed.shape[-1],
                depth=len(stock.blocks),
                num_heads=stock.blocks[0].attn.num_heads,
                out_channels=256,
                window_size=14,
                global_attention=tuple(i for i, block in enumerate(stock.blocks) if block.window_size == 0),
            )
        network.load_state_dict(stock.state_dict(), assign=True)
    return network.eval().to(device, dtype)


def picture(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def peak_mb(network: nn.Module, square: Tensor) -> float:
    """What the first run of a network takes; on the CPU it must be the first of its process."""
    if square.device.type == "cuda":
        network(square)
        torch.cuda.reset_peak_memory_stats(square.device)
        before = torch.cuda.memory_allocated(square.device)
        network(square)
        return (torch.cuda.max_memory_allocated(square.device) - before) / 1e6
    # A 5 lets the peak begin anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mb("VmRSS")
    network(square)
    return resident_mb("VmHWM") - before


def resident_mb(which: str) -> float:
    """Resident memory of this process, now (VmRSS) or at its peak (VmHWM). Linux counts in units of 1024 bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{which}:")[1].split()[0]) * 1024 / 1e6


def peak_of_a_process(way: str, options: argparse.Namespace) -> float:
    """`peak_mb` of one way in a process of its own."""
    arguments = [f"--{name}={getattr(options, name)}" for name in ("model", "dtype", "device", "threads")]
    command = [sys.executable, __file__, f"--only-memory-of={way}", *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def seconds(network: nn.Module, square: Tensor) -> float:
    start = time.perf_counter()
    network(square)
    if square.device.type == "cuda":
        torch.cuda.synchronize(square.device)
    return time.perf_counter() - start


def compare(options: argparse.Namespace) -> None:
    """Prints the table."""
    dtype = DTYPES[options.dtype]
    square = picture(dtype, options.device)
    networks = [encoder(way, options.model, dtype, options.device) for way in WAYS]
    ours, stock = (network(square).float() for network in networks)
    apart = ours - stock
    peaks = [peak_of_a_process(way, options) for way in WAYS]
    runs = 1 if options.quick else options.runs
    times = [tuple(seconds(network, square) for network in networks) for _ in range(runs)]
    print(f"ViT-{options.model.upper()}, {options.dtype}, {options.device}, {torch.get_num_threads()} threads")
    print(f"{'':10}{'seconds':>10}{'memory':>12}")
    for way, spent, peak in zip(WAYS, zip(*times), peaks):
        print(f"{way:10}{statistics.median(spent):10.3f}{peak:9.0f} MB")
    print(f"{'ratio':10}{statistics.median(theirs / mine for mine, theirs in times):10.2f}{peaks[1] / peaks[0]:12.1f}")
    print(f"apart: at most {float(apart.abs().max()):.1e}, root mean square {float(apart.square().mean().sqrt()):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", choices=("b", "l", "h"), default="b", help="size of the ViT (default: b)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="precision (default: fp32)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's threads (default: 2)")
    parser.add_argument("--quick", action="store_true", help="one timed run of each")
    parser.add_argument("--only-memory-of", choices=WAYS, help="print the memory of one of the two, nothing else")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        if options.only_memory_of is None:
            compare(options)
            return
        dtype = DTYPES[options.dtype]
        network = encoder(options.only_memory_of, options.model, dtype, options.device)
        print(peak_mb(network, picture(dtype, options.device)))


if __name__ == "__main__":
    main()
