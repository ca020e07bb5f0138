"""Where the reference's subject is in the target: similarity between the pictures, spread within the target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# How many of the reference's tokens are compared at once: 256 rows of 2304 numbers take 2.4 MB per target.
_TOKENS_AT_ONCE = 256


class InterSimilarity(nn.Module):
    """Similarity between the cells of a target and the tokens of a reference (section 3.4 of the paper)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, features: Tensor, references: Sequence[Tensor]) -> Tensor:
        """Each token spreads a weight of 1 over the target's cells by its likeness to them.

        The weights are summed over the tokens of a reference, as in the released code (the paper writes a mean), for
        the layers that follow were trained on that scale; over several references the mean is taken, which keeps it.

        Args:
            features: [N, C, f, f] of the targets.
            references: for each reference picture [K, C], the features in its region of interest, K > 0.
        Returns:
            float32 [N, f, f]; the sum over the cells is the mean number of tokens.
        """
        keys = self.norm(features.flatten(2).transpose(1, 2))
        found = keys.new_zeros(keys.shape[:2])
        for tokens in references:
            for some in self.norm(tokens).split(_TOKENS_AT_ONCE):
                likeness = torch.matmul(some, keys.transpose(1, 2)) * keys.shape[-1] ** -0.5
                found += likeness.softmax(-1).sum(1) / len(references)
        return found.unflatten(1, features.shape[-2:])


class IntraPropagation(nn.Module):
    """Spreads what was found along the target's own self-attention (section 3.5 of the paper).

    The cells attended to are taken as channels, so the network is bound to one grid.
    """

    def __init__(self, cells: int, out_channels: int):
        super().__init__()
        self.ln = nn.LayerNorm(cells * cells)
        self.conv = nn.Conv2d(cells * cells, out_channels, 3, padding=1, bias=False)

    def forward(self, attention: Tensor, similarity: Tensor) -> Tensor:
        """
        Args:
            attention: [N, T, T] with T = cells^2, rows are the cells that attend.
            similarity: [N, f, f]; it is resized to the grid of the attention.
        Returns:
            [N, out_channels, cells, cells].
        """
        cells = round(attention.shape[-1] ** 0.5)
        weights = F.interpolate(similarity[:, None], (cells, cells), mode="bilinear", align_corners=True)
        guided = torch.relu(self.ln(attention * weights.flatten(1)[:, None]))
        return self.conv(guided.transpose(1, 2).unflatten(2, (cells, cells)))
