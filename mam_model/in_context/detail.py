"""Draws the alpha: coarse features take on the picture's detail, scale by scale (as in ViTMatte, arXiv 2305.15272)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .fusion import ConvBlock, UpFusion

STREAM_CHANNELS = (48, 96, 192)
_HEAD_CHANNELS = 16


class DetailDecoder(nn.Module):
    """Features at a sixteenth of the picture's size and the picture -> alpha at the picture's size.

    Submodules are called as in the published checkpoint.
    """

    def __init__(self, in_channels: int, fusion_channels: Sequence[int]):
        super().__init__()
        stream = (3, *STREAM_CHANNELS)
        self.convstream = nn.Module()
        self.convstream.convs = nn.ModuleList(ConvBlock(a, b, stride=2) for a, b in zip(stream, stream[1:]))
        self.fusion_blks = nn.ModuleList(
            UpFusion(before, detail, after)
            for before, detail, after in zip((in_channels, *fusion_channels), reversed(stream), fusion_channels)
        )
        self.matting_head = nn.Module()
        self.matting_head.matting_convs = nn.Sequential(
            nn.Conv2d(fusion_channels[-1], _HEAD_CHANNELS, 3, padding=1),
            nn.BatchNorm2d(_HEAD_CHANNELS),
            nn.ReLU(),
            nn.Conv2d(_HEAD_CHANNELS, 1, 1),
        )

    def forward(self, features: Tensor, image: Tensor) -> Tensor:
        """
        Args:
            features: [N, in_channels, side / 16, side / 16].
            image: [N, 3, side, side], RGB, -1..1.
        Returns:
            alpha [N, 1, side, side], 0..1.
        """
        details = [image]
        for conv in self.convstream.convs:
            details.append(conv(details[-1]))
        for fuse, detail in zip(self.fusion_blks, reversed(details)):
            features = fuse(features, detail)
        return self.matting_head.matting_convs(features).sigmoid()
