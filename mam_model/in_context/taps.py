"""What is captured while a UNet of Stable Diffusion 2.1 looks at a picture: two features and two attention maps.

The picture's latent is noised to step 200, the prompt is empty, and the UNet is left as soon as the last of its inner
values that are wanted has been seen. Blocks are named as in the latent diffusion code: ("input", 4) is the fifth block
of the encoder, ("output", 3) the fourth of the decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from .errors import InContextError

TIMESTEP = 200
# sqrt(a) and sqrt(1 - a), a being the product of 1 - beta over the first 201 of 1000 steps; sqrt(beta) grows evenly
# from sqrt(0.00085) to sqrt(0.012).
LATENT_SCALE = 0.868154228
NOISE_SCALE = 0.496294558
LARGEST_ENSEMBLE = 16

Block = tuple[str, int]

# A decoder block's input, before the skip connection is joined to it: what the stage before gave after its upsampling.
FEATURE_BLOCKS: dict[Block, str] = {("output", 3): "coarse", ("output", 6): "fine"}
ATTENTION_BLOCKS: dict[Block, str] = {
    ("input", 4): "fine",
    ("input", 5): "fine",
    ("input", 7): "coarse",
    ("input", 8): "coarse",
    ("output", 3): "coarse",
    ("output", 4): "coarse",
    ("output", 5): "coarse",
    ("output", 6): "fine",
    ("output", 7): "fine",
    ("output", 8): "fine",
}

# How much of the heads' maps is held at once. One map of 2304 x 2304 takes 21 MB, and a layer has 20 at ensemble 2.
_MAPS_BYTES = 64_000_000


class TapsTaken(Exception):
    """Everything that was wanted has been seen, so the rest of the UNet need not run. Let it pass."""


class Wanted(Enum):
    """What a picture's pass through the UNet is for, as (features, attention maps) that it needs."""

    TARGET = (("coarse", "fine"), ("coarse", "fine"))
    REFERENCE = (("fine",), ())
    PROMPTED_REFERENCE = (("fine",), ("fine",))


@dataclass(frozen=True, eq=False)
class Taps:
    """What the UNet knows about N pictures, on the device where it ran. What was not wanted is None.

    Attributes:
        fine: float32 [N, C, f, f], features on the fine grid (48 x 48 at full size).
        coarse: float32 [N, C, f / 2, f / 2], features on the coarse grid.
        fine_attention: float32 [N, f^2, f^2], self-attention; each row is one cell's attention to all and sums to 1.
        coarse_attention: float32 [N, f^2 / 4, f^2 / 4], the same on the coarse grid.
    """

    fine: Tensor
    coarse: Tensor | None = None
    fine_attention: Tensor | None = None
    coarse_attention: Tensor | None = None


class AttentionMean:
    """The mean self-attention of each picture over layers, heads and the copies in its ensemble.

    Args:
        pictures: how many pictures are in a batch; the batch holds all copies of the first one, then of the second.
    """

    def __init__(self, pictures: int):
        self.pictures = pictures
        self.layers = 0
        self._sum: Tensor | None = None

    def add(self, q: Tensor, k: Tensor, heads: int) -> None:
        """Adds a layer.

        The softmax is taken in float32, a few heads at a time, whatever the dtype of the network.

        Args:
            q: [pictures * copies, T, heads * d], queries.
            k: the same of the keys.
            heads: number of heads.
        """
        batch, tokens, width = q.shape
        if self._sum is None:
            self._sum = torch.zeros(self.pictures, tokens, tokens, device=q.device)
        copies, channels = batch // self.pictures, width // heads
        at_once = max(1, _MAPS_BYTES // (4 * tokens * tokens))
        for picture, total in enumerate(self._sum):
            rows = slice(picture * copies, (picture + 1) * copies)
            queries, keys = (
                x[rows].reshape(copies, tokens, heads, channels).transpose(1, 2).reshape(-1, tokens, channels)
                for x in (q, k)
            )
            for some_queries, some_keys in zip(queries.split(at_once), keys.split(at_once)):
                scores = (some_queries.float() * channels**-0.5) @ some_keys.float().transpose(1, 2)
                total += scores.softmax(-1).sum(0) / (copies * heads)
        self.layers += 1

    def mean(self) -> Tensor:
        """float32 [pictures, T, T]."""
        return self._sum / self.layers


class Capture:
    """Collects the taps of one pass. The UNet's owner calls it from inside of the UNet.

    Args:
        pictures: how many pictures are in the batch; the batch holds all copies of the first one, then of the second.
        wanted: what is to be collected.
    """

    def __init__(self, pictures: int, wanted: Wanted):
        features, maps = wanted.value
        self.pictures = pictures
        self.feature_blocks = [block for block, grid in FEATURE_BLOCKS.items() if grid in features]
        self.attention_blocks = [block for block, grid in ATTENTION_BLOCKS.items() if grid in maps]
        self._missing = {("features", *block) for block in self.feature_blocks}
        self._missing |= {("attention", *block) for block in self.attention_blocks}
        self._features: dict[str, Tensor] = {}
        self._attention = {grid: AttentionMean(pictures) for grid in maps}

    def wants_features(self, block: Block) -> bool:
        return ("features", *block) in self._missing

    def wants_attention(self, block: Block) -> bool:
        return ("attention", *block) in self._missing

    def features(self, block: Block, h: Tensor) -> None:
        """Takes the input of a decoder block. Of blocks that are not wanted nothing is kept.

        Args:
            block: one of FEATURE_BLOCKS.
            h: [pictures * copies, C, f, f], before the skip connection is joined to it.
        Raises:
            TapsTaken: that was the last thing wanted.
        """
        if self.wants_features(block):
            copies = h.float().unflatten(0, (self.pictures, -1))
            self._features[FEATURE_BLOCKS[block]] = copies.mean(1)
            self._seen("features", block)

    def attention(self, block: Block, q: Tensor, k: Tensor, heads: int) -> None:
        """Takes queries and keys of a self-attention layer. Of blocks that are not wanted nothing is kept.

        Args:
            block: one of ATTENTION_BLOCKS.
            q: [pictures * copies, T, heads * d].
            k: the same.
            heads: number of heads.
        Raises:
            TapsTaken: that was the last thing wanted.
        """
        if self.wants_attention(block):
            self._attention[ATTENTION_BLOCKS[block]].add(q, k, heads)
            self._seen("attention", block)

    def _seen(self, what: str, block: Block) -> None:
        self._missing.remove((what, *block))
        if not self._missing:
            raise TapsTaken

    def taps(self) -> Taps:
        """What was collected.

        Raises:
            InContextError: something wanted was never seen, or holds values that are not numbers.
        """
        if self._missing:
            what, side, number = min(self._missing)
            raise InContextError(
                f"This diffusion model has no {what} at its {side} block {number}, so it is not built like Stable "
                "Diffusion 2.1. Load a checkpoint of Stable Diffusion 2.1 (768 v)."
            )
        taps = {**self._features, **{f"{grid}_attention": mean.mean() for grid, mean in self._attention.items()}}
        if not all(torch.isfinite(tap).all() for tap in taps.values()):
            raise InContextError(
                "The diffusion model gave values that are not numbers (NaN or infinite). Load it with another "
                "precision (fp32 or bf16 instead of fp16), and check that the picture itself has none."
            )
        return Taps(**taps)


def capture_taps(unet: Callable[[Tensor, Capture], object], noisy: Tensor, pictures: int, wanted: Wanted) -> Taps:
    """Runs a UNet as far as it is needed.

    Args:
        unet: runs the UNet on its first argument at step 200 with the empty prompt and reports to its second one. It
            may let `TapsTaken` through; what it returns does not matter.
        noisy: [pictures * copies, 4, s, s], see `noised`.
        pictures: how many pictures these are.
        wanted: what is needed of them.
    Raises:
        InContextError: see `Capture.taps`.
    """
    capture = Capture(pictures, wanted)
    try:
        unet(noisy, capture)
    except TapsTaken:
        pass
    return capture.taps()


def ensemble_noise(ensemble: int, latent_side: int, seed: int) -> Tensor:
    """Noise for each copy in an ensemble, the same for every picture, so that equal pictures give equal taps.

    Returns:
        float32 [ensemble, 4, latent_side, latent_side] on the CPU, which gives the same numbers on every machine.
    Raises:
        InContextError: an ensemble outside of 1..16, or a seed of more than 64 bits.
    """
    if not 1 <= ensemble <= LARGEST_ENSEMBLE:
        raise InContextError(f"An ensemble has 1 to {LARGEST_ENSEMBLE} copies of each picture, not {ensemble}.")
    if not -(2**63) <= seed < 2**64:
        raise InContextError(f"A seed has at most 64 bits; {seed} has more.")
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ensemble, 4, latent_side, latent_side, generator=generator)


def noised(latents: Tensor, noise: Tensor) -> Tensor:
    """Latents at diffusion step 200, one for each noise.

    Args:
        latents: [N, 4, s, s], scaled as the UNet expects them (0.18215 for Stable Diffusion).
        noise: [copies, 4, s, s].
    Returns:
        float32 [N * copies, 4, s, s] on the device of the latents: all copies of the first picture, then of the second.
    """
    latents, noise = latents.float()[:, None], noise.to(latents.device)[None]
    return (LATENT_SCALE * latents + NOISE_SCALE * noise).flatten(0, 1)
