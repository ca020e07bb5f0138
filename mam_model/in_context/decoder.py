"""The trained part of In-Context Matting: everything after the diffusion model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .detail import DetailDecoder
from .errors import InContextError
from .fit import CELL_PX, LATENT_PX
from .fusion import InContextFusion
from .taps import Taps


@dataclass(frozen=True)
class DecoderConfig:
    """The size of a decoder; the defaults are the published one's.

    Attributes:
        feature_channels: channels of the UNet's features.
        coarse_cells: cells along a side of the coarse grid; the fine grid has twice as many.
        guidance_channels: channels of what was found of the reference.
        fused_channels: channels after the fusion.
        detail_channels: channels of the detail decoder's four stages.
    """

    feature_channels: int = 1280
    coarse_cells: int = 24
    guidance_channels: int = 256
    fused_channels: int = 320
    detail_channels: tuple[int, ...] = (256, 128, 64, 32)

    @property
    def fine_cells(self) -> int:
        return 2 * self.coarse_cells

    @property
    def side(self) -> int:
        """Pixels along a side of the square that the network looks at."""
        return CELL_PX * self.fine_cells

    @property
    def latent_side(self) -> int:
        return self.side // LATENT_PX

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> DecoderConfig:
        """Reads the size off the weights' shapes.

        Args:
            state_dict: keys as in the published checkpoint, without "in_context_decoder.".
        Raises:
            KeyError: when a tensor is missing that tells a size.
            ValueError: when the shapes are of no decoder.
        """
        propagate = state_dict["in_context_fusion.attn_module_list.0.conv.weight"]
        embed = state_dict["in_context_fusion.ft_module_list.0.conv.weight"]
        stages = [f"detail_decoder.fusion_blks.{stage}.conv.conv.weight" for stage in range(4)]
        shapes = [tuple(weight.shape) for weight in (propagate, embed, *(state_dict[key] for key in stages))]
        if any(len(shape) != 4 for shape in shapes):
            raise ValueError("its convolutions have other dimensions")
        (guidance, tokens, *_), (fused, features, *_), *detail = shapes
        cells = math.isqrt(tokens)
        if cells * cells != tokens:
            raise ValueError(f"{tokens} tokens make no square grid")
        return cls(features, cells, guidance, fused, tuple(channels for channels, *_ in detail))


class InContextDecoder(nn.Module):
    """Taps of a target and tokens of a reference -> alpha. Published: 21,101,585 parameters in 89 entries."""

    def __init__(self, config: DecoderConfig | None = None):
        super().__init__()
        self.config = config or DecoderConfig()
        self.in_context_fusion = InContextFusion(
            self.config.feature_channels,
            self.config.coarse_cells,
            self.config.fine_cells,
            self.config.guidance_channels,
            self.config.fused_channels,
        )
        self.detail_decoder = DetailDecoder(self.config.fused_channels, self.config.detail_channels)

    def forward(self, taps: Taps, image: Tensor, similarity: Tensor) -> Tensor:
        """
        Args:
            taps: of N targets, as wanted of a target.
            image: [N, 3, side, side], RGB, -1..1.
            similarity: [N, fine_cells, fine_cells], see `similarity`.
        Returns:
            alpha [N, 1, side, side], 0..1.
        """
        fused = self.in_context_fusion(
            (taps.coarse, taps.fine), (taps.coarse_attention, taps.fine_attention), similarity
        )
        return self.detail_decoder(fused, image)

    def similarity(self, taps: Taps, references: Sequence[Tensor]) -> Tensor:
        """Where the references' tokens are found. See `InterSimilarity`."""
        return self.in_context_fusion.attn_module(taps.fine, references)

    @torch.inference_mode()
    def matte(self, taps: Taps, squares: Tensor, references: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Alpha of N targets. Everything is brought to the device of the weights first.

        Args:
            taps: of the targets, as wanted of a target.
            squares: [N, side, side, 3], sRGB 0..1, what the taps were taken of.
            references: for each reference picture [K, feature_channels], the features in its region of interest.
        Returns:
            alpha float32 [N, side, side], 0..1, and the similarity float32 [N, fine_cells, fine_cells].
        Raises:
            InContextError: when the taps, the picture or the references are not of this decoder's size.
        """
        self._check(taps, squares, references)
        device = self.in_context_fusion.attn_module.norm.weight.device
        taps = Taps(*(tap.to(device) for tap in (taps.fine, taps.coarse, taps.fine_attention, taps.coarse_attention)))
        similarity = self.similarity(taps, [tokens.to(device) for tokens in references])
        image = squares.to(device).float().movedim(-1, 1) * 2 - 1
        return self(taps, image, similarity)[:, 0], similarity

    def _check(self, taps: Taps, squares: Tensor, references: Sequence[Tensor]) -> None:
        config, count = self.config, len(squares)
        coarse, fine = config.coarse_cells, config.fine_cells
        expected = {
            "the picture": (squares, (count, config.side, config.side, 3)),
            "the fine features": (taps.fine, (count, config.feature_channels, fine, fine)),
            "the coarse features": (taps.coarse, (count, config.feature_channels, coarse, coarse)),
            "the fine self-attention": (taps.fine_attention, (count, fine**2, fine**2)),
            "the coarse self-attention": (taps.coarse_attention, (count, coarse**2, coarse**2)),
        }
        for name, (tensor, shape) in expected.items():
            found = None if tensor is None else tuple(tensor.shape)
            if found != shape:
                raise InContextError(
                    f"The matting decoder needs {name} as {list(shape)}, but the diffusion model's side gives "
                    f"{'none' if found is None else list(found)}. Load Stable Diffusion 2.1 with the decoder that was "
                    "trained on it."
                )
        if not references or any(len(tokens) == 0 for tokens in references):
            raise InContextError("The reference has no region of interest. Mark the subject in the reference picture.")
        if any(tokens.shape[1:] != (config.feature_channels,) for tokens in references):
            raise InContextError(
                "The reference was made with another diffusion model than the decoder's. Make it again with this one."
            )
