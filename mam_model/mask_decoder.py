"""SAM's mask decoder at inference: the function of segment-anything's `MaskDecoder`, with its weights, in less time.

Kirillov et al., "Segment Anything", 2023, appendix A. A picture has thousands of places and a prompt only a handful of
tokens, so the projections between them are applied to the tokens: for a head with the projections Q and K,
(token Q) (place K)' = (token Q K') place', and the sum of the places' values is the value of their sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .products import product

# Places that are worked on at once: a processor is fastest on what its cache holds, a GPU wants to be filled.
_CPU_PLACES = 1024


def decode_masks(
    decoder: nn.Module, features: Tensor, positions: Tensor, sparse: Tensor, dense: Tensor, targets_per_step: int = 1
) -> tuple[Tensor, Tensor]:
    """The three candidate masks of each target and their predicted IoU.

    Args:
        decoder: a `segment_anything.modeling.MaskDecoder`.
        features: float32 [1, 256, g, g], SAM's embedding of the picture.
        positions: float32 [g * g, 256], the encoding of each place.
        sparse: float32 [T, n, 256], what the prompt encoder makes of points and boxes.
        dense: float32 [T, 256, g, g], what it makes of masks.
        targets_per_step: how many targets are decoded together; memory grows with it, the result does not depend on it.
            On the processor 1 is the fastest.
    Returns:
        logits float32 [T, 3, 4 g, 4 g] and predicted IoU float32 [T, 3].
    """
    # Once for all targets, and free of cost for features that have their channels last.
    picture, decode_one = features[0].flatten(1).t().contiguous(), partial(_decode_one, decoder)
    answers = []
    for start in range(0, len(sparse), targets_per_step):
        step = slice(start, start + targets_per_step)
        hints, tokens = dense[step].flatten(2).transpose(1, 2), sparse[step]
        if len(tokens) == 1:
            answers.append([answer[None] for answer in decode_one(picture, positions, hints[0], tokens[0])])
        else:
            answers.append(torch.vmap(decode_one, in_dims=(None, None, 0, 0))(picture, positions, hints, tokens))
    logits, predicted_iou = zip(*answers)
    return torch.cat(logits), torch.cat(predicted_iou)


def _decode_one(
    decoder: nn.Module, features: Tensor, positions: Tensor, hint: Tensor, sparse: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits [3, 4 g, 4 g] and predicted IoU [3] from features and hint [g * g, 256] and tokens [n, 256]."""
    tokens = prompt = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, sparse])
    places = features + hint
    for layer in decoder.transformer.layers:
        tokens = _two_way_block(layer, tokens, places, prompt, positions)
    attention = decoder.transformer.final_attn_token_to_image
    tokens = tokens + _tokens_to_places(attention, tokens + prompt, places, positions)
    tokens = decoder.transformer.norm_final_attn(tokens)

    # Token 0 predicts the IoU; the mask of token 1 is for prompts that are not ambiguous, and is not used.
    candidates = range(1, decoder.num_mask_tokens)
    filters = torch.stack([decoder.output_hypernetworks_mlps[i](tokens[1 + i]) for i in candidates])
    return _masks(decoder.output_upscaling, places, filters), decoder.iou_prediction_head(tokens[0])[1:]


def _two_way_block(layer: nn.Module, tokens: Tensor, places: Tensor, prompt: Tensor, positions: Tensor) -> Tensor:
    """One `TwoWayAttentionBlock`: tokens [n, 256] and places [g * g, 256] look at each other.

    Returns the new tokens, and replaces the places.
    """
    if layer.skip_first_layer_pe:
        tokens = layer.self_attn(tokens[None], tokens[None], tokens[None])[0]
    else:
        q = (tokens + prompt)[None]
        tokens = tokens + layer.self_attn(q, q, tokens[None])[0]
    tokens = layer.norm1(tokens)
    attention = layer.cross_attn_token_to_image
    tokens = layer.norm2(tokens + _tokens_to_places(attention, tokens + prompt, places, positions))
    tokens = layer.norm3(tokens + layer.mlp(tokens))
    look = _places_to_tokens(layer.cross_attn_image_to_token, tokens + prompt, tokens)
    for rows in _pieces(places):
        places[rows] = layer.norm4(places[rows] + look(places[rows] + positions[rows]))
    return tokens


def _pieces(places: Tensor) -> Iterator[slice]:
    """The places [m, ...], so many at a time."""
    step = _CPU_PLACES if places.device.type == "cpu" else len(places)
    return (slice(start, start + step) for start in range(0, len(places), step))


def _tokens_to_places(attention: nn.Module, q: Tensor, places: Tensor, positions: Tensor) -> Tensor:
    """`Attention` of few queries [n, 256] on all places [m, 256], keys being those with positions. Returns [n, 256]."""
    heads = attention.num_heads
    queries = _by_head(attention.q_proj(q), heads)
    # The bias of the keys adds the same to every score of a query, which the softmax does not see.
    queries = queries @ _rows_by_head(attention.k_proj.weight, heads) / math.sqrt(queries.shape[-1])
    queries = queries.flatten(0, 1)
    # A sum made anew for each piece takes less time than one of all places that is kept, in fresh memory.
    scores = torch.cat([queries @ (places[rows] + positions[rows]).t() for rows in _pieces(places)], dim=1)
    values = _rows_by_head(attention.v_proj.weight, heads).transpose(1, 2)
    seen = (torch.softmax(scores, dim=-1) @ places).view(heads, len(q), -1) @ values
    return attention.out_proj(seen.transpose(0, 1).flatten(1) + attention.v_proj.bias)


def _places_to_tokens(attention: nn.Module, k: Tensor, v: Tensor) -> Callable[[Tensor], Tensor]:
    """`Attention` on few keys and values [n, 256], of as many queries as one likes: [m, 256] -> [m, 256]."""
    heads = attention.num_heads
    keys, values = _by_head(attention.k_proj(k), heads), _by_head(attention.v_proj(v), heads)
    keys = keys / math.sqrt(keys.shape[-1])
    bias = keys @ attention.q_proj.bias.view(heads, -1, 1)
    keys = (keys @ _rows_by_head(attention.q_proj.weight, heads)).flatten(0, 1)
    values = (values @ _rows_by_head(attention.out_proj.weight.t(), heads)).flatten(0, 1)

    def look(queries: Tensor) -> Tensor:
        # [heads, n, m] and not [m, heads, n]: a softmax over a handful of neighbours in memory is slow.
        scores = (keys @ queries.t()).view(heads, len(k), -1) + bias
        weights = torch.softmax(scores, dim=1).flatten(0, 1)
        return torch.addmm(attention.out_proj.bias, weights.t(), values)

    return look


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[n, heads * c] -> [heads, n, c]"""
    return x.view(len(x), heads, -1).transpose(0, 1)


def _rows_by_head(weight: Tensor, heads: int) -> Tensor:
    """[heads * c, 256] -> [heads, c, 256]"""
    return weight.reshape(heads, -1, weight.shape[-1])


def _masks(upscaling: nn.Sequential, places: Tensor, filters: Tensor) -> Tensor:
    """Each place's answer in 4 x 4 pixels: places [g * g, 256], filters [3, 32] -> logits [3, 4 g, 4 g].

    A transposed convolution of size and stride 2 is a matrix product per pixel. Its four answers are kept side by side,
    and put in their places only in the three masks.
    """
    first, norm, activation, second, _ = upscaling
    grid = math.isqrt(len(places))
    parts = []
    for rows in _pieces(places):
        x = _each_quarter(first, places[rows])
        x = activation(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
        parts.append(filters @ activation(_each_quarter(second, x)).t())
    masks = torch.cat(parts, dim=1).view(len(filters), grid, grid, 2, 2, 2, 2)
    return masks.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(filters), 4 * grid, 4 * grid)


def _each_quarter(conv: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """[m, in] -> [m * 4, out], the four in the order top left, top right, bottom left, bottom right."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return product(x, weight, conv.bias.repeat(4)).view(-1, conv.out_channels)
