"""Stands in for Stable Diffusion where only the way through it matters: fixed projections instead of a network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mam_model.in_context.matching import Networks
from mam_model.in_context.taps import ATTENTION_BLOCKS, FEATURE_BLOCKS, Capture

from .in_context import CONFIG, hashed, reference_decoder

HEADS = 2
# In the order in which a UNet reaches them.
BLOCKS = [("input", 4), ("input", 5), ("input", 7), ("input", 8), *(("output", number) for number in range(3, 9))]


class ToyDiffusion:
    """A VAE and a UNet for `reference_decoder`, which remember what they were asked for.

    Attributes:
        encoded: how many pictures were encoded.
        batches: size of each batch that the UNet was given.
        blocks: the blocks that the UNet reached in its last pass.
        broken: "vae" or "unet" for one that gives NaN, with " of another model" for one of another shape, or None.
    """

    def __init__(self, *, broken: str | None = None):
        self.encoded = 0
        self.batches: list[int] = []
        self.blocks: list[tuple[str, int]] = []
        self.broken = broken

    def networks(self) -> Networks:
        return Networks(CONFIG.side, self.encode, self.unet, reference_decoder().matte)

    def encode(self, squares: Tensor) -> Tensor:
        self.encoded += len(squares)
        small = F.avg_pool2d(squares.movedim(-1, 1) * 2 - 1, 8)
        channels = 16 if self.broken == "vae of another model" else 4
        latents = torch.einsum("oc,nchw->nohw", hashed("vae", channels, 3), small)
        return latents * float("nan") if self.broken == "vae" else latents

    def unet(self, noisy: Tensor, capture: Capture) -> None:
        self.batches.append(len(noisy))
        self.blocks = []
        for block in BLOCKS:
            if self.broken == "unet of another model" and block[0] == "output":
                return
            self.blocks.append(block)
            if block in FEATURE_BLOCKS:
                capture.features(block, self.features(noisy, FEATURE_BLOCKS[block]))
            grid = self.features(noisy, ATTENTION_BLOCKS[block]).flatten(2).transpose(1, 2)
            q, k = (grid @ hashed(f"{block} {name}", grid.shape[-1], 8 * HEADS) for name in "qk")
            capture.attention(block, q, k, HEADS)

    def features(self, noisy: Tensor, grid: str) -> Tensor:
        small = F.avg_pool2d(noisy, 2 if grid == "fine" else 4)
        features = torch.einsum("oc,nchw->nohw", hashed(grid, CONFIG.feature_channels, 4), small)
        return features * float("nan") if self.broken == "unet" else features
