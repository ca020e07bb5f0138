"""Joins the target's features with what was found of the reference in it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .correspondence import InterSimilarity, IntraPropagation


class ConvBlock(nn.Module):
    """Convolution 3 x 3, batch normalisation, ReLU. [N, in_channels, h, w] -> [N, out_channels, h, w] / stride"""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class UpFusion(nn.Module):
    """Doubles a picture's size and joins it with a detailed one.

    [N, in_channels, h, w] and [N, detail_channels, 2 h, 2 w] -> [N, out_channels, 2 h, 2 w]
    """

    def __init__(self, in_channels: int, detail_channels: int, out_channels: int):
        super().__init__()
        self.conv = ConvBlock(in_channels + detail_channels, out_channels)

    def forward(self, x: Tensor, detail: Tensor) -> Tensor:
        doubled = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.conv(torch.cat((detail, doubled), dim=1))


class InContextFusion(nn.Module):
    """Features and attention on two grids, and the reference's tokens -> one map of features on the fine grid.

    Submodules are called as in the published checkpoint; entry 0 of each list is the coarse grid, 1 the fine one.
    """

    def __init__(self, channels: int, coarse_cells: int, fine_cells: int, guidance_channels: int, out_channels: int):
        super().__init__()
        grids = (coarse_cells, fine_cells)
        self.attn_module = InterSimilarity(channels)
        self.attn_module_list = nn.ModuleList(IntraPropagation(cells, guidance_channels) for cells in grids)
        self.ft_module_list = nn.ModuleList(ConvBlock(channels, out_channels) for _ in grids)
        self.ft_attn_module_list = nn.ModuleList(
            ConvBlock(guidance_channels + out_channels, out_channels) for _ in grids
        )
        self.fusion = nn.Module()
        self.fusion.module_list = nn.ModuleList([UpFusion(out_channels, out_channels, out_channels)])

    def forward(self, features: tuple[Tensor, Tensor], attention: tuple[Tensor, Tensor], similarity: Tensor) -> Tensor:
        """
        Args:
            features: coarse [N, C, f / 2, f / 2] and fine [N, C, f, f].
            attention: coarse [N, f^2 / 4, f^2 / 4] and fine [N, f^2, f^2].
            similarity: [N, f, f] from `attn_module`.
        Returns:
            [N, out_channels, f, f].
        """
        coarse, fine = (
            joined(torch.cat((embed(feature), propagate(attended, similarity)), dim=1))
            for feature, attended, embed, propagate, joined in zip(
                features, attention, self.ft_module_list, self.attn_module_list, self.ft_attn_module_list
            )
        )
        return self.fusion.module_list[0](coarse, fine)
