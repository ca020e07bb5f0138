"""What a target of In-Context Matting costs here, next to the straightforward way, on random weights.

    COMFYUI_PATH=... python benchmarks/in_context.py [--ensemble 4] [--targets 3] [--channels 64] [--side 256]
                                                     [--threads 1] [--only counted]

The straightforward way is that of the released evaluation: for each target it looks at the reference again, sends every
copy of the ensemble through the VAE, runs the UNet to its end, and holds a layer's attention maps whole.

Counted are floating-point operations (2 for each multiplication with addition) at the published size, on shapes alone.
Measured are the CPU time per target and the peak memory of a process that does nothing else, at a reduced size:
a UNet of --channels (320 is the published one) on squares of --side pixels (768), a VAE of 32 channels (128), and a
decoder in proportion. The UNet and the VAE's encoder are ComfyUI's. Ours looks at the reference once; that time is
given on its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import timing  # noqa: E402 - needs the line above
from mam_model.in_context.decoder import CELL_PX, LATENT_PX, DecoderConfig, InContextDecoder  # noqa: E402
from mam_model.in_context.matching import Networks, match, take_reference  # noqa: E402
from mam_model.in_context.taps import (  # noqa: E402
    ATTENTION_BLOCKS,
    FEATURE_BLOCKS,
    TIMESTEP,
    Block,
    Capture,
    Taps,
    TapsTaken,
    Wanted,
    ensemble_noise,
    noised,
)
from mam_model.prompt import Prompt  # noqa: E402

WAYS = ("ours", "straightforward")
CHANNELS, VAE_CHANNELS, SMALL_VAE_CHANNELS, SIDE = 320, 128, 32, 768
HEAD_CHANNELS, CONTEXT_CHANNELS, TOKENS_OF_NO_TEXT = 64, 1024, 77


class WholeCapture:
    """Takes every tap of one picture, a layer's attention maps all at once, and lets the UNet run to its end."""

    attention_blocks = tuple(ATTENTION_BLOCKS)

    def __init__(self):
        self._features: dict[str, Tensor] = {}
        self._maps: dict[str, list[Tensor]] = {"coarse": [], "fine": []}

    def features(self, block: Block, h: Tensor) -> None:
        if block in FEATURE_BLOCKS:
            self._features[FEATURE_BLOCKS[block]] = h.mean(0, keepdim=True)

    def attention(self, block: Block, q: Tensor, k: Tensor, heads: int) -> None:
        q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1) for x in (q, k))
        maps = torch.bmm(q, k.transpose(1, 2)).mul(q.shape[-1] ** -0.5).softmax(-1)
        self._maps[ATTENTION_BLOCKS[block]].append(maps.mean(0, keepdim=True))

    def taps(self) -> Taps:
        coarse, fine = (torch.stack(self._maps[grid]).mean(0) for grid in ("coarse", "fine"))
        return Taps(self._features["fine"], self._features["coarse"], fine, coarse)


@dataclass(frozen=True)
class Parts:
    """UNet, VAE encoder and decoder of one size, on the CPU or as mere shapes."""

    unet: torch.nn.Module
    vae: torch.nn.Module
    decoder: InContextDecoder
    context: Tensor

    @property
    def side(self) -> int:
        return self.decoder.config.side

    def encode(self, squares: Tensor) -> Tensor:
        return self.vae(squares.movedim(-1, 1) * 2 - 1)[:, :4] * 0.18215

    def look(self, noisy: Tensor, capture: Capture | WholeCapture) -> None:
        """Runs the UNet with ComfyUI's patches that report to `capture`."""
        from comfy.ldm.modules.attention import optimized_attention

        def features(h, skip, options):
            capture.features(options["block"], h)
            return h, skip

        def attention(q, k, v, options):
            capture.attention(options["block"], q, k, options["n_heads"])
            return optimized_attention(q, k, v, options["n_heads"])

        patches = {
            "patches": {"output_block_patch": [features]},
            "patches_replace": {"attn1": dict.fromkeys(capture.attention_blocks, attention)},
        }
        steps = torch.full((len(noisy),), TIMESTEP, device=noisy.device)
        self.unet(noisy, steps, self.context.expand(len(noisy), -1, -1), transformer_options=patches)


def decoder_config(channels: int, side: int) -> DecoderConfig:
    """The decoder's size beside a UNet of `channels`: in the same proportion as published."""
    published = DecoderConfig()

    def scaled(width: int) -> int:
        return max(1, width * channels // CHANNELS)

    return DecoderConfig(
        scaled(published.feature_channels),
        side // CELL_PX // 2,
        scaled(published.guidance_channels),
        scaled(published.fused_channels),
        tuple(map(scaled, published.detail_channels)),
    )


def parts(channels: int, vae_channels: int, side: int, device: str) -> Parts:
    from comfy.ldm.modules.diffusionmodules.model import Encoder
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.ops import disable_weight_init

    torch.manual_seed(0)
    with torch.device(device):
        unet = UNetModel(
            image_size=side // LATENT_PX,
            in_channels=4,
            out_channels=4,
            model_channels=channels,
            num_res_blocks=[2, 2, 2, 2],
            channel_mult=[1, 2, 4, 4],
            transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
            transformer_depth_middle=1,
            transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
            use_linear_in_transformer=True,
            use_spatial_transformer=True,
            context_dim=CONTEXT_CHANNELS,
            num_head_channels=HEAD_CHANNELS,
            num_heads=-1,
            legacy=False,
            operations=disable_weight_init,
        )
        vae = Encoder(
            ch=vae_channels,
            out_ch=3,
            ch_mult=[1, 2, 4, 4],
            num_res_blocks=2,
            attn_resolutions=[],
            in_channels=3,
            resolution=side,
            z_channels=4,
        )
        decoder = InContextDecoder(decoder_config(channels, side))
        context = torch.zeros(1, TOKENS_OF_NO_TEXT, CONTEXT_CHANNELS)
    networks = Parts(unet.eval(), vae.eval(), decoder.eval(), context)
    if device != "meta":
        for network in (unet, vae):
            # ComfyUI leaves what it makes for a checkpoint's weights as it was in memory.
            for parameter in network.parameters():
                torch.nn.init.normal_(parameter, std=0.02 if parameter.ndim > 1 else 0.1)
    return networks


def count(ensemble: int) -> None:
    """Prints the operations of each part at the published size, and of both ways per target."""
    whole = parts(CHANNELS, VAE_CHANNELS, SIDE, "meta")
    config = whole.decoder.config
    coarse, fine, channels = config.coarse_cells, config.fine_cells, config.feature_channels
    square = torch.zeros(1, SIDE, SIDE, 3, device="meta")
    noisy = torch.zeros(ensemble, 4, config.latent_side, config.latent_side, device="meta")
    taps = Taps(
        torch.zeros(1, channels, fine, fine, device="meta"),
        torch.zeros(1, channels, coarse, coarse, device="meta"),
        torch.zeros(1, fine**2, fine**2, device="meta"),
        torch.zeros(1, coarse**2, coarse**2, device="meta"),
    )
    tokens = [torch.zeros(500, channels, device="meta")]

    def until_taken(wanted: Wanted) -> None:
        try:
            whole.look(noisy, Capture(1, wanted))
        except TapsTaken:
            pass

    one_encoding = _operations(lambda: whole.encode(square))
    to_the_end = _operations(lambda: whole.look(noisy, WholeCapture()))
    target = _operations(lambda: until_taken(Wanted.TARGET))
    reference = _operations(lambda: until_taken(Wanted.REFERENCE))
    decoding = _operations(lambda: whole.decoder.matte(taps, square, tokens))
    straightforward = 2 * (ensemble * one_encoding + to_the_end) + decoding
    ours = one_encoding + target + decoding
    print(f"Operations at the published size, ensemble {ensemble}, in 10^9:")
    for name, operations in (
        ("VAE, one picture", one_encoding),
        ("UNet to its end, with attention maps", to_the_end),
        ("UNet for a target", target),
        ("UNet for a reference", reference),
        ("decoder", decoding),
        ("straightforward way, per target", straightforward),
        ("ours, per target", ours),
        ("ours, once for each reference", one_encoding + reference),
    ):
        print(f"  {name:38} {operations / 1e9:9,.0f}")
    print(f"  straightforward / ours                 {straightforward / ours:9.2f}")


def _operations(work: Callable[[], object]) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def measure(options: argparse.Namespace) -> None:
    """Prints one line for each way, each run in a process of its own."""
    print(f"\nMeasured: UNet of {options.channels} channels, {options.side} px, ensemble {options.ensemble}")
    seconds = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--ensemble", options.ensemble, "--targets", options.targets]
        command += ["--channels", options.channels, "--side", options.side, "--threads", options.threads]
        found = json.loads(subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout)
        seconds[way] = found["target"]
        print(
            f"  {way:16} {found['target']:7.2f} s per target, {found['reference']:6.2f} s for the reference once, "
            f"{found['peak']:6,.0f} MB at most, {found['peak'] - found['before']:6,.0f} MB over the weights"
        )
    print(f"  straightforward / ours  {seconds['straightforward'] / seconds['ours']:.2f}")


@torch.inference_mode()
def run(options: argparse.Namespace) -> None:
    """One way alone; prints what it cost as JSON."""
    networks = parts(options.channels, SMALL_VAE_CHANNELS, options.side, "cpu")
    before = timing.peak_bytes() / 2**20
    side, ensemble = networks.side, options.ensemble
    pictures = torch.rand(1 + options.targets, side, side, 3)
    mask = torch.zeros(side, side)
    mask[side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
    began = time.process_time()
    if options.way == "ours":
        ours = Networks(side, networks.encode, networks.look, networks.decoder.matte)
        reference = take_reference(ours, pictures[:1], [Prompt(mask=mask)], ensemble=ensemble)
        looked = time.process_time()
        for picture in pictures[1:]:
            match(ours, reference, [picture])
    else:
        looked = began
        noise = ensemble_noise(ensemble, networks.decoder.config.latent_side, 0)
        region = torch.nn.functional.max_pool2d(-mask[None, None], CELL_PX)[0, 0] == -1
        for picture in pictures[1:]:
            seen = []
            for square in (pictures[0], picture):
                latents = networks.encode(square.expand(ensemble, -1, -1, -1))
                capture = WholeCapture()
                networks.look(torch.cat([noised(z[None], eps[None]) for z, eps in zip(latents, noise)]), capture)
                seen.append(capture.taps())
            networks.decoder.matte(seen[1], picture[None], [seen[0].fine[0][:, region].t()])
    done = time.process_time()
    cost = {"reference": looked - began, "target": (done - looked) / options.targets}
    print(json.dumps({**cost, "before": before, "peak": timing.peak_bytes() / 2**20}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--ensemble", type=int, default=4, help="noised copies of each picture (default: 4)")
    parser.add_argument("--targets", type=int, default=3, help="targets that are timed (default: 3)")
    parser.add_argument("--channels", type=int, default=64, help="of the measured UNet, a multiple of 64 (default: 64)")
    parser.add_argument("--side", type=int, default=256, help="of the measured square, a multiple of 64 (default: 256)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads (default: 1)")
    parser.add_argument("--only", choices=("counted", "measured"), help="leave out the other half")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        parser.error("set COMFYUI_PATH to the folder of a ComfyUI, whose UNet is measured")
    sys.path.insert(0, comfyui)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    # The others ask a device for its memory, and shapes have none.
    comfy.cli_args.args.use_pytorch_cross_attention = True
    torch.set_num_threads(options.threads)
    if options.way:
        run(options)
        return
    if options.only != "measured":
        count(options.ensemble)
    if options.only != "counted":
        measure(options)


if __name__ == "__main__":
    main()
