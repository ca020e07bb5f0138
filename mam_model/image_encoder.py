"""SAM's image encoder at inference: the function of segment-anything's `ImageEncoderViT`, with its weights, in less
time and a fraction of its memory.

A vision transformer with windowed and a few global attention blocks (Li et al., "Exploring Plain Vision Transformer
Backbones for Object Detection", 2022; Kirillov et al., "Segment Anything", 2023, appendix A). The picture's tokens lie
on a grid of g x g places with C channels. No score matrix is ever whole: a global block is attended to by a few rows of
queries at a time, a windowed one by a few windows. A score is summed up in the published order, and rounds alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .products import Factor, keeps_order, product

_EPSILON = 1e-6
# Tokens that are worked on at once: a processor is fastest on what its cache holds, a GPU wants to be filled.
_CPU_TOKENS, _GPU_TOKENS = 512, 2048
# Queries of a global block that are answered at once; a row of scores has a column for every token of the picture.
_QUERIES = 512


class ImageEncoder(nn.Module):
    """A square picture becomes features that prompts can be asked on.

    Args:
        image_size: side of the square in pixels.
        patch_size: side of a token in pixels; g = image_size / patch_size.
        embed_dim: channels C of a token.
        depth: number of blocks.
        num_heads: attention heads of each block.
        out_channels: channels of the features.
        window_size: side of a window in tokens.
        global_attention: indices of the blocks whose tokens see the whole picture.
    Attributes:
        compiled: whether the blocks go through torch.compile, which compiles at the first picture, and anew for another
            number of pictures, precision or device.
        can_compile: False once that has failed, say for want of a C++ compiler; `compiled` has no effect then.
    """

    compiled = False
    can_compile = True

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        out_channels: int,
        window_size: int,
        global_attention: tuple[int, ...],
    ):
        super().__init__()
        # segment-anything's predictors ask for the size under this name.
        self.img_size = image_size
        grid = image_size // patch_size
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, embed_dim))
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, grid, None if i in global_attention else window_size) for i in range(depth)
        )
        # Channels lie last here, where segment-anything's LayerNorm2d is a plain one.
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, out_channels, kernel_size=1, bias=False),
            nn.LayerNorm(out_channels, eps=_EPSILON),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.LayerNorm(out_channels, eps=_EPSILON),
        )

    def working_bytes(self, itemsize: int) -> int:
        """What encoding takes for each picture beside the weights, at most.

        Measured at 1024 pixels, a GPU's way on the CPU. Without a fused attention the scores of all heads exist for
        a moment, in float32, and their addend twice: 440 MiB (ViT-B) and 590 MiB (ViT-H) in float32, 370 and 525 MiB in
        bfloat16. With a fused one it is 160 to 430 MiB; the CPU's own way takes 30 to 150 MiB.

        Args:
            itemsize: bytes of a number in the precision in which it works.
        """
        _, grid, _, dim = self.pos_embed.shape
        heads = self.blocks[0].attn.num_heads
        return grid**2 * (16 * heads * _QUERIES + 6 * dim * itemsize)

    @torch.no_grad()
    def forward(self, images: Tensor, check: Callable[[], None] | None = None) -> Tensor:
        """The features of normalised pictures.

        Args:
            images: [B, 3, image_size, image_size] in the weights' precision.
            check: called before each block; what it raises ends the work.
        Returns:
            [B, out_channels, g, g] in the weights' precision.
        """
        if images.device.type == "cpu":
            # Its cache holds the pieces of one picture.
            return torch.cat([self._encode(image[None], check) for image in images])
        return self._encode(images, check)

    def _encode(self, images: Tensor, check: Callable[[], None] | None) -> Tensor:
        features = self._encode_compiled(images, check) if self.compiled and self.can_compile else None
        return self._encode_by(Block.apply_to, images, check) if features is None else features

    def _encode_compiled(self, images: Tensor, check: Callable[[], None] | None) -> Tensor | None:
        """None when compiling failed: tokens may then be half replaced, and the pictures are to be begun anew."""
        # Not at the top of the file: its import takes seconds.
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._encode_by(_compiled_apply_to(), images, check)
        except TorchDynamoException as error:
            self.can_compile = False
            # Its first paragraph; more is for those who work on torch.compile.
            reason = " ".join(str(error).strip().partition("\n\n")[0].split())
        logging.warning("Matting Anything: torch.compile failed, SAM goes on without it. %s", reason)
        return None

    def _encode_by(
        self, apply_to: Callable[[Block, Tensor], None], images: Tensor, check: Callable[[], None] | None
    ) -> Tensor:
        x = self.patch_embed(images)
        x += self.pos_embed
        for block in self.blocks:
            if check is not None:
                check()
            apply_to(block, x)
        to_features, first_norm, smooth, last_norm = self.neck
        features = first_norm(product(x, to_features.weight.flatten(1)))
        # Channels first: with channels last oneDNN rounds three times as coarsely in this one convolution.
        features = smooth(features.permute(0, 3, 1, 2).contiguous())
        # The channels of a place stay side by side, as decoder and Mask-to-Matte want them.
        return last_norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    """Every square of patch_size x patch_size pixels becomes a token."""

    def __init__(self, patch_size: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, side, side] -> [B, g, g, C]"""
        return self.proj(images).permute(0, 2, 3, 1).contiguous()


class Block(nn.Module):
    """A transformer block, whose tokens see their window or, where `window_size` is None, the whole grid."""

    def __init__(self, dim: int, num_heads: int, grid: int, window_size: int | None):
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(dim, eps=_EPSILON)
        self.attn = Attention(dim, num_heads, window_size or grid)
        self.norm2 = nn.LayerNorm(dim, eps=_EPSILON)
        self.mlp = Mlp(dim, 4 * dim)

    def apply_to(self, x: Tensor) -> None:
        """Replaces the tokens [B, g, g, C] by the block's answer."""
        if self.window_size is None:
            self._add_global_attention(x)
        else:
            self._add_windowed_attention(x, self.window_size)
        self._add_feed_forward(x)

    def _add_feed_forward(self, x: Tensor) -> None:
        tokens_at_once = _tokens_at_once(x)
        feed_forward = self.mlp.for_pieces(tokens_at_once)
        for rows in _row_slices(x.shape[1], tokens_at_once):
            tokens = x[:, rows]
            tokens += feed_forward(self.norm2(tokens))

    def _add_global_attention(self, x: Tensor) -> None:
        count, grid, _, _ = x.shape
        attention = self.attn
        # Each head in one piece. Three tensors and not one: on a processor, memory of more than 32 MiB is mapped anew
        # each time, which takes longer than filling it.
        q, k, v = (x.new_empty(count, attention.num_heads, grid, grid, attention.head_dim) for _ in range(3))
        tokens_at_once = _tokens_at_once(x)
        all_rows = list(_row_slices(grid, tokens_at_once))
        to_qkv, from_answers = attention.qkv.factor(tokens_at_once), attention.proj.factor(tokens_at_once)
        for rows in all_rows:
            answer = to_qkv(self.norm1(x[:, rows])).unflatten(-1, (3, attention.num_heads, -1))
            for whole, part in zip((q, k, v), answer.permute(3, 0, 4, 1, 2, 5)):
                whole[:, :, rows] = part
        attend = attention.attend_by_head if x.device.type == "cpu" else attention.attend_by_rows
        # The answer takes the place of the queries, each of which is needed once.
        attend(q, k.flatten(2, 3), v.flatten(2, 3))
        for rows in all_rows:
            x[:, rows] += from_answers(q[:, :, rows].permute(0, 2, 3, 1, 4).flatten(3))

    def _add_windowed_attention(self, x: Tensor, size: int) -> None:
        pictures, grid, _, dim = x.shape
        attention = self.attn
        across = -(-grid // size)
        down = max(1, _tokens_at_once(x) // (size * grid))
        # The published network pads with zeros before the product: the places beyond the picture are attended to, and
        # what they say is the bias.
        padded = x.new_empty(pictures, down * size, across * size, 3 * dim)
        attend, tables = attention.for_windows(pictures * down * across, size, x), attention.tables(size)
        tokens_at_once = down * size * grid
        to_qkv, from_answers = attention.qkv.factor(tokens_at_once), attention.proj.factor(tokens_at_once)
        for top in range(0, grid, down * size):
            rows = x[:, top : top + down * size]
            height = rows.shape[1]
            count = -(-height // size)
            part = padded[:, : count * size]
            part[:] = attention.qkv.bias
            part[:, :height, :grid] = to_qkv(self.norm1(rows))
            # [B, down, size, across, size, 3, heads, d] -> [3, B, down, across, heads, size, size, d]
            windows = part.view(pictures, count, size, across, size, 3, attention.num_heads, -1)
            windows = windows.permute(5, 0, 1, 3, 6, 2, 4, 7)
            q, k, v = windows.reshape(3, pictures * count * across, attention.num_heads, size, size, -1)
            answer = attend(q, k.flatten(2, 3), v.flatten(2, 3), *attention.positions(q, *tables))
            answer = answer.unflatten(0, (pictures, count, across)).permute(0, 1, 4, 2, 5, 3, 6)
            answer = answer.reshape(pictures, count * size, across * size, dim)[:, :height, :grid]
            rows += from_answers(answer)


class Mlp(nn.Module):
    """Two layers with an exact GELU between them, applied piece by piece."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.lin1 = Linear(dim, hidden_dim)
        self.lin2 = Linear(hidden_dim, dim)

    def for_pieces(self, tokens: int) -> Callable[[Tensor], Tensor]:
        """[..., C] -> [..., C], for pieces of about that many tokens."""
        first, second = self.lin1.factor(tokens), self.lin2.factor(tokens)
        return lambda x: second(F.gelu(first(x)))


class Attention(nn.Module):
    """Attention with the decomposed relative position of "MViTv2" (Li et al., 2022), equation 4.

    The score of a query at (y, x) and a key at (y', x') is q k' / sqrt(d) + q h[y - y'] + q w[x - x'].
    """

    def __init__(self, dim: int, num_heads: int, side: int):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, self.head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, self.head_dim))

    def tables(self, side: int) -> tuple[Tensor, Tensor]:
        """The h and the w of each query's row or column and each key's, both [side, side, d]."""
        places = torch.arange(side, device=self.rel_pos_h.device)
        distances = places[:, None] - places + side - 1
        return self.rel_pos_h[distances], self.rel_pos_w[distances]

    def positions(self, q: Tensor, by_row: Tensor, by_column: Tensor) -> tuple[Tensor, Tensor]:
        """What the place of a key adds to its score for queries [..., side, side, d], from the two `tables`.

        Returns:
            [..., side, side, side], by the row of the key; the same by its column.
        """
        vertical = torch.einsum("...yxd,ykd->...yxk", q, by_row)
        return vertical, torch.einsum("...yxd,xkd->...yxk", q, by_column)

    def for_windows(self, most: int, side: int, like: Tensor) -> Callable[..., Tensor]:
        """`attend_fused` for up to so many windows a time, in the way that is fastest where the tensor `like` is."""
        if like.device.type != "cpu":
            return self.attend_fused
        # Memory that was there before is faster than fresh one.
        return partial(self.attend, like.new_empty(2, most, self.num_heads, side**2, side**2))

    def attend(self, room: Tensor, q: Tensor, k: Tensor, v: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
        """`attend_fused` of n windows, one step after the other.

        Args:
            room: [2, n or more, heads, side * side, side * side], to write to.
        """
        scores, weights = room[:, : len(q)]
        queries = q.flatten(2, 3) * self.head_dim**-0.5
        torch.bmm(queries.flatten(0, 1), k.flatten(0, 1).mT, out=scores.flatten(0, 1))
        _add_positions(scores, vertical, horizontal)
        torch.softmax(scores, -1, out=weights)
        return (weights @ v).view_as(q)

    def attend_fused(self, q: Tensor, k: Tensor, v: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
        """The answers to some rows of queries in one step, which is how a GPU is fastest; some are without ever holding
        the scores.

        Args:
            q: [n, heads, r, side, d], the queries of n windows or pictures, of all rows or a few.
            k: [n, heads, side * side, d].
            v: [n, heads, side * side, d].
            vertical: [n, heads, r, side, side], of these queries' `positions`.
            horizontal: [n, heads, r, side, side], likewise.
        Returns:
            [n, heads, r, side, d].
        """
        bias = (vertical[..., None] + horizontal[..., None, :]).flatten(4).flatten(2, 3)
        return F.scaled_dot_product_attention(q.flatten(2, 3), k, v, attn_mask=bias).view_as(q)

    def attend_by_rows(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Replaces each query [n, heads, g, g, d] by its answer: all heads together, some rows of the pictures at a
        time.

        Args:
            k: [n, heads, g * g, d].
            v: [n, heads, g * g, d].
        """
        vertical, horizontal = self.positions(q, *self.tables(q.shape[-2]))
        for rows in _row_slices(q.shape[2], _QUERIES):
            part = q[:, :, rows]
            part.copy_(self.attend_fused(part, k, v, vertical[:, :, rows], horizontal[:, :, rows]))

    def attend_by_head(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """What `attend_by_rows` does, on a processor: its cache holds some rows of one head."""
        grid = q.shape[2]
        tables = self.tables(grid)
        probabilities = q.new_empty(max(_QUERIES, grid), grid * grid)
        for queries, keys, values in zip(chain(*q), chain(*k), chain(*v)):
            vertical, horizontal = self.positions(queries, *tables)
            by_keys, by_values = Factor(keys, rows=_QUERIES), Factor(values.t().contiguous(), rows=_QUERIES)
            for rows in _row_slices(grid, _QUERIES):
                part = queries[rows]
                scores = by_keys(part.flatten(0, 1) * self.head_dim**-0.5)
                _add_positions(scores, vertical[rows], horizontal[rows])
                weights = torch.softmax(scores, -1, out=probabilities[: len(scores)])
                part.copy_(by_values(weights).view_as(part))


class Linear(nn.Linear):
    """`nn.Linear` that is applied piece by piece."""

    def factor(self, tokens: int) -> Factor:
        """This layer, [..., C] -> [..., m], for pieces of about that many tokens."""
        return Factor(self.weight, self.bias, rows=tokens)


@cache
def _compiled_apply_to() -> Callable[[Block, Tensor], None]:
    """`Block.apply_to` by torch.compile: what it makes of one block serves all of that form.

    Raises:
        TorchDynamoException: when it does not know this Python or this system. So does the function, at a block.
    """
    from torch._dynamo.exc import TorchDynamoException

    keeps_order()
    try:
        return torch.compile(Block.apply_to, dynamic=False)
    except RuntimeError as error:
        raise TorchDynamoException(str(error)) from error


def _tokens_at_once(x: Tensor) -> int:
    """Of each picture [B, g, g, C], in whole rows."""
    most, grid = _CPU_TOKENS if x.device.type == "cpu" else _GPU_TOKENS, x.shape[2]
    return max(1, most // grid) * grid


def _row_slices(grid: int, tokens: int) -> Iterator[slice]:
    """The rows of a grid, so many at a time that they hold about that number of tokens."""
    step = max(1, tokens // grid)
    return (slice(top, top + step) for top in range(0, grid, step))


def _add_positions(scores: Tensor, vertical: Tensor, horizontal: Tensor) -> None:
    """Adds both parts [..., r, side, side] of `Attention.positions` to scores [..., r * side, side * side]."""
    by_place = scores.view(*vertical.shape, -1)
    by_place += vertical[..., None]
    by_place += horizontal[..., None, :]
