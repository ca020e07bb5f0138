"""Weights for reference numbers: every number follows from the tensor's name and its place in it.

Nothing is stored and no random generator of any library is asked, so that the same weights come out on every machine
and with every version. They know nothing about matting, but every layer matters: the alphas they give use the whole
range from 0 to 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

# Variance that reaches each batch normalisation of Mask-to-Matte with these weights, rounded: what training would have
# stored as running_var. The key is the end of the layer's name; the first match counts.
_VARIANCES = (
    ("0.bn1", 0.5),
    ("1.bn1", 0.9),
    ("2.bn1", 1.6),
    ("bn1", 0.4),
    ("bn2", 0.5),
    ("upsample.2", 1.3),
    ("refine_OS8.1", 2.5),
    ("refine_OS4.1", 2.0),
    ("refine_OS1.1", 0.5),
)

# What centres each head's answer between background and subject, rounded.
_BIASES = {"refine_OS8.3.bias": -1.5, "refine_OS4.3.bias": 1.3, "refine_OS1.3.bias": -2.8}


def hashed_uniform(name: str, count: int) -> np.ndarray:
    """`count` float64 in [-1, 1) that depend on `name` alone.

    The place in the tensor and the first 64 bits of the name's SHA-256 go through the finaliser of MurmurHash3.
    """
    key = np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    with np.errstate(over="ignore"):
        bits = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ key
        bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
        bits = bits ^ (bits >> np.uint64(33))
    return (bits >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1.0


def _spread(name: str, shape: tuple[int, ...], deviation: float, centre: float = 0.0) -> np.ndarray:
    """float64 of `shape` with the given mean and standard deviation, evenly distributed."""
    return centre + deviation * math.sqrt(3.0) * hashed_uniform(name, math.prod(shape)).reshape(shape)


def hashed_sam(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for a `Sam`; of `state_dict` only names and shapes are looked at."""
    weights = {}
    for name, tensor in state_dict.items():
        shape = tuple(tensor.shape)
        if "rel_pos" in name:
            value = _spread(name, shape, 0.15)
        elif "pos_embed" in name:
            value = _spread(name, shape, 0.3)
        elif "gaussian_matrix" in name or "_embed" in name and name.endswith("weight") and len(shape) == 2:
            value = _spread(name, shape, 1.0)
        elif name.endswith("bias"):
            value = _spread(name, shape, 0.05)
        elif len(shape) == 1:
            value = _spread(name, shape, 0.15, centre=1.0)
        else:
            value = _spread(name, shape, 1 / math.sqrt(math.prod(shape[1:])))
        weights[name] = torch.from_numpy(value).float()
    return weights


def hashed_m2m(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for a `MaskToMatte`; of `state_dict` only names and shapes are looked at."""
    weights = {}
    for name, tensor in state_dict.items():
        shape = tuple(tensor.shape)
        layer, _, kind = name.rpartition(".")
        if kind == "num_batches_tracked":
            weights[name] = torch.tensor(1)
            continue
        if kind in ("weight_u", "weight_v"):
            matrix_name = f"{layer}.weight_bar"
            matrix_shape = tuple(state_dict[matrix_name].shape)
            matrix = _spread(matrix_name, matrix_shape, 0.05).reshape(matrix_shape[0], -1)
            # One step of power iteration: as in training the vectors are near the singular ones, but not equal to them.
            v = _unit(_spread(f"{layer}.start", (len(matrix),), 1.0) @ matrix)
            value = v if kind == "weight_v" else _unit(matrix @ v)
        elif kind == "weight_bar":
            value = _spread(name, shape, 0.05)
        elif kind == "running_mean":
            value = _spread(name, shape, 0.2)
        elif kind == "running_var":
            usual = next(variance for end, variance in _VARIANCES if layer.endswith(end))
            value = usual * _spread(name, shape, 0.2, centre=1.0)
        elif name in _BIASES:
            value = np.array([_BIASES[name]])
        elif kind == "bias":
            value = _spread(name, shape, 0.1)
        elif len(shape) == 1:
            value = _spread(name, shape, 0.15, centre=1.0)
        elif layer.endswith(".3"):
            # The last layer of a head: strong, so that alpha reaches 0 and 1.
            value = _spread(name, shape, 4 / math.sqrt(math.prod(shape[1:])))
        else:
            value = _spread(name, shape, 1 / math.sqrt(math.prod(shape[1:])))
        weights[name] = torch.from_numpy(value).float()
    return weights


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
