"""Mattes and masks in few bytes and without loss: most pixels of a matte are 0."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def packed_bits(mask: Tensor) -> Tensor:
    """A mask [H, W] of {0, 1} as uint8, 8 pixels a byte, row by row."""
    return torch.from_numpy(np.packbits(mask.numpy().astype(bool)))


def unpacked_bits(packed: Tensor, height: int, width: int) -> Tensor:
    """bool [H, W] from what `packed_bits` returned."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=height * width).reshape(height, width)).bool()


def packed_sparse(name: str, matte: Tensor) -> dict[str, Tensor]:
    """A matte [H, W] as two entries: where it is not 0, and what it is there."""
    filled = matte != 0
    return {f"{name}.filled": packed_bits(filled), f"{name}.values": matte[filled]}


def unpacked_sparse(stored: Mapping[str, Tensor], name: str, height: int, width: int) -> Tensor:
    """float32 [H, W] from what `packed_sparse` returned."""
    matte = torch.zeros(height, width)
    matte[unpacked_bits(stored[f"{name}.filled"], height, width)] = stored[f"{name}.values"]
    return matte
