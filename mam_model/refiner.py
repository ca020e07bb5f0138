"""A small network that turns a picture and any mask of its subject into alpha. Its weights are part of this package.

The three scales and the way they are merged are those of Li, Jain, Shi: "Matting Anything", arXiv 2306.05399, section
3.2 and 3.3; picture and mask take the place of SAM's features. Each scale is a correction of the one below it, the
coarsest of the mask itself, so that a mask that is right costs the network nothing. Beside picture and mask the network
is shown what linear colour models of three sizes make of them (He, Sun: "Fast Guided Filter", arXiv 1505.00996), which
saves it from having to learn that alike colours have like alphas. How it was trained stands in `training/refining.py`,
how well it does in docs/refiner-model-card.md.
"""
# OpenCV is imported where it is used, so that importing the library costs ComfyUI no start-up time.

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint import CheckpointError
from .coarse_to_fine import corrected, halved
from .m2m import AlphaPyramid, beside
from .merge import unknown_area
from .regions import Window, cover

SHIPPED_WEIGHTS = Path(__file__).with_name("refiner.safetensors")
STRIDE = 16
"""Pixels a side of the coarsest cell; tiles begin at multiples of it."""
TILE_PX = 1024
REACH_PX = 96
"""How far from the mask's edge alpha may differ from the mask, in pixels of the smallest size that is refined."""
LONGEST_PX = 1536
"""Longer side beyond which a picture is refined at half its size first. A cell of SAM's mask, of which there are 256 a
side, is 6 pixels of this; the network has learned masks that are up to 8 pixels off."""

# What is computed around a tile and thrown away, so that its own pixels see what lies around them.
_HALO_PX = 64
# Rows of a tile of which os1 is computed at a time.
_STRIP_PX = 128
# Bands in which os4 and os1 replace the coarser scale, as `MergeOptions` counts them.
_WIDTH_OS4_PX = 40
_WIDTH_OS1_PX = 20

_WIDTHS = (32, 64, 96, 128)
_DILATIONS = (1, 2, 4, 2)
_SHUFFLED = 12
_DETAIL = 16
# Cell and radius in cells of the colour models: they look 10, 24 and 64 pixels around.
_COLOR_MODELS = ((2, 5), (4, 6), (4, 16))
# Variance of a colour channel below which a colour model takes a difference for noise.
_NOISE = 1e-4
_INPUTS = 4 + len(_COLOR_MODELS)
# What lies outside 0..1 is cut off, but not without a trace: a weight that pushes there must be able to come back.
_SLOPE_OUTSIDE = 0.05


class ConvBlock(nn.Module):
    """Convolution, batch normalisation, ReLU: [N, in_channels, h, w] -> [N, out_channels, h / stride, w / stride]."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1, active: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, dilation, dilation, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu(x, inplace=True) if self.active else x

    def fold(self) -> None:
        """Multiplies the normalisation into the convolution, which is the same function at inference."""
        if isinstance(self.norm, nn.Identity):
            return
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        self.conv.weight = nn.Parameter(self.conv.weight * scale[:, None, None, None])
        self.conv.bias = nn.Parameter(self.norm.bias - self.norm.running_mean * scale)
        self.norm = nn.Identity()


class ResidualBlock(nn.Module):
    """Two convolutions beside an identity: [N, channels, h, w] -> the same."""

    def __init__(self, channels: int, dilation: int = 1):
        super().__init__()
        self.first = ConvBlock(channels, channels, dilation=dilation)
        self.second = ConvBlock(channels, channels, active=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)), inplace=True)


class MaskRefiner(nn.Module):
    """A U-Net over cells of 2, 4, 8 and 16 pixels a side with a dilated bottom that sees 200 pixels around each."""

    def __init__(self):
        super().__init__()
        at2, at4, at8, at16 = _WIDTHS
        self.down2 = nn.Sequential(ConvBlock(4 * _INPUTS, at2), ConvBlock(at2, at2))
        self.down4 = nn.Sequential(ConvBlock(at2, at4, stride=2), ResidualBlock(at4))
        self.down8 = nn.Sequential(ConvBlock(at4, at8, stride=2), ResidualBlock(at8))
        self.down16 = nn.Sequential(
            ConvBlock(at8, at16, stride=2), *(ResidualBlock(at16, dilation) for dilation in _DILATIONS)
        )
        self.narrow16, self.up8 = nn.Conv2d(at16, at8, 1), ResidualBlock(at8)
        self.narrow8, self.up4 = nn.Conv2d(at8, at4, 1), ResidualBlock(at4)
        self.narrow4, self.up2 = nn.Conv2d(at4, at2, 1), ResidualBlock(at2)
        self.os8 = nn.Conv2d(at8, 1, 3, padding=1)
        self.os4 = nn.Conv2d(at4, 1, 3, padding=1)
        self.narrow2 = nn.Conv2d(at2, 4 * _SHUFFLED, 1)
        self.detail = ConvBlock(_SHUFFLED + _INPUTS + 1, _DETAIL)
        self.os1 = nn.Conv2d(_DETAIL, 1, 3, padding=1)
        for head in (self.os8, self.os4, self.os1):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, picture: Tensor, mask: Tensor) -> AlphaPyramid:
        """Alpha at three scales.

        Args:
            picture: float [N, 3, H, W] in 0..1, sRGB; any size.
            mask: float [N, 1, H, W] in 0..1.
        Returns:
            os8, os4 and os1 as float32 [N, 1, H, W], in 0..1; while training, a little outside of it, too.
        """
        height, width = mask.shape[-2:]
        beyond = (0, -width % STRIDE, 0, -height % STRIDE)
        shown = F.pad(torch.cat([picture, mask], dim=1), beyond, mode="replicate")
        picture, mask = shown[:, :3], shown[:, 3:]
        models = [color_model(picture, mask, cell, radius) for cell, radius in _COLOR_MODELS]
        centred = (beside(shown, *models) - 0.5).to(shown.dtype)
        x2 = self.down2(F.pixel_unshuffle(centred, 2))
        x4 = self.down4(x2)
        x8 = self.down8(x4)
        x8 = self.up8(x8 + _doubled(self.narrow16(self.down16(x8))))
        x4 = self.up4(x4 + _doubled(self.narrow8(x8)))
        x2 = self.up2(x2 + _doubled(self.narrow4(x4)))
        os8 = _enlarged(F.avg_pool2d(mask, 8) + self.os8(x8).float(), 8)
        os4 = _enlarged(F.avg_pool2d(_certain(os8), 4) + self.os4(x4).float(), 4)
        os1 = self._finest(x2, centred, _certain(os4))
        return AlphaPyramid(*(self._limited(scale[..., :height, :width]) for scale in (os8, os4, os1)))

    def _finest(self, x2: Tensor, centred: Tensor, coarse: Tensor) -> Tensor:
        """os1 of a picture from the features of its cells of 2 pixels and, of each pixel, what is shown and os4."""
        height = coarse.shape[-2]
        # Here are the most pixels: a strip's tensors fit into memory that is there already, where those of the whole
        # would be fresh memory, which takes as long again. Normalising by the batch needs the whole.
        rows = height if self.training else _STRIP_PX
        strips = []
        for top in range(0, height, rows):
            # A row beyond each side for either convolution, and whole cells.
            first, last = max(0, top - 2), min(height, top + rows + 2)
            fine = F.pixel_shuffle(self.narrow2(x2[..., first // 2 : last // 2, :]), 2)
            shown, known = centred[..., first:last, :], coarse[..., first:last, :] - 0.5
            found = self.os1(self.detail(beside(fine, shown.to(fine.dtype), known.to(fine.dtype)))).float()
            strips.append(found[..., top - first : top - first + rows, :])
        return coarse + torch.cat(strips, dim=2)

    def _limited(self, alpha: Tensor) -> Tensor:
        limited = alpha.clamp(0, 1)
        return limited + _SLOPE_OUTSIDE * (alpha - limited) if self.training else limited

    def fold(self) -> MaskRefiner:
        """This network with its normalisation folded into the convolutions, in place. It cannot be trained on."""
        self.eval()
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, ConvBlock):
                    module.fold()
        return self.requires_grad_(False)


def color_model(picture: Tensor, mask: Tensor, cell_px: int, radius: int) -> Tensor:
    """The mask as the colours around each pixel explain it: alpha = a . colour + b with a and b of its neighbourhood.

    He, Sun, Tang: "Guided Image Filtering", 2013, section 3.5, with a and b found on coarser cells.

    Args:
        picture: float [N, 3, H, W] in 0..1, both sides multiples of `cell_px`.
        mask: float [N, 1, H, W].
        radius: of the square neighbourhood, in cells.
    Returns:
        float32 [N, 1, H, W] in -0.5..1.5.
    """
    picture, mask = picture.float(), mask.float()
    color, marked = F.avg_pool2d(picture, cell_px), F.avg_pool2d(mask, cell_px)
    red, green, blue = color.split(1, dim=1)
    products = (red * red, red * green, red * blue, green * green, green * blue, blue * blue)
    means = _around(torch.cat([color, marked, color * marked, *products], dim=1), radius)
    mean_color, mean_marked, mean_product = means[:, :3], means[:, 3:4], means[:, 4:7]
    red, green, blue = mean_color.split(1, dim=1)
    rr, rg, rb, gg, gb, bb = means[:, 7:].split(1, dim=1)
    rr, gg, bb = rr - red * red + _NOISE, gg - green * green + _NOISE, bb - blue * blue + _NOISE
    rg, rb, gb = rg - red * green, rb - red * blue, gb - green * blue
    # The inverse of the colours' covariance, as cofactors over the determinant.
    first, second, third = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    determinant = (rr * first + rg * second + rb * third).clamp_min(_NOISE**3)
    x, y, z = (mean_product - mean_color * mean_marked).div(determinant).split(1, dim=1)
    slope = torch.cat(
        [
            first * x + second * y + third * z,
            second * x + (rr * bb - rb * rb) * y + (rb * rg - rr * gb) * z,
            third * x + (rb * rg - rr * gb) * y + (rr * gg - rg * rg) * z,
        ],
        dim=1,
    )
    start = mean_marked - (slope * mean_color).sum(dim=1, keepdim=True)
    model = _enlarged(_around(torch.cat([slope, start], dim=1), radius), cell_px)
    return ((model[:, :3] * picture).sum(dim=1, keepdim=True) + model[:, 3:]).clamp(-0.5, 1.5)


def _around(x: Tensor, radius: int) -> Tensor:
    """Means over squares, less what of them lies outside."""
    side = 2 * radius + 1
    # With the channels last several are summed at once, in the same order; what follows takes them one by one.
    x = x.contiguous(memory_format=torch.channels_last)
    x = F.avg_pool2d(x, (side, 1), 1, (radius, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, side), 1, (0, radius), count_include_pad=False).contiguous()


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _enlarged(alpha: Tensor, factor: int) -> Tensor:
    return F.interpolate(alpha, scale_factor=factor, mode="bilinear", align_corners=False)


def _certain(alpha: Tensor) -> Tensor:
    """A coarser alpha as the finer scale takes it: as it will be used, and not to be moved for the finer one's sake."""
    return alpha.detach().clamp(0, 1)


def load_refiner(file: Path | None = None) -> MaskRefiner:
    """The trained network, folded, in float32 on the CPU.

    Args:
        file: safetensors as `train-refiner` writes them; None takes those of this package.
    Raises:
        CheckpointError: the file is missing, damaged or holds another network.
    """
    network = MaskRefiner()
    network.load_state_dict(read_weights(file), strict=False)
    return network.fold().to(memory_format=torch.channels_last)


def read_weights(file: Path | None = None) -> dict[str, Tensor]:
    """The weights of a `MaskRefiner` before folding, all of its state but the counts of batches, as float32.

    Takes and raises what `load_refiner` does.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = SHIPPED_WEIGHTS if file is None else Path(file)
    again = "Install the pack anew." if file is None else "Choose a file that `train-refiner` wrote."
    try:
        weights = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"The refiner's weights are missing: there is no {path}. {again}") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as weights of the refiner. {again}") from error
    expected = {
        name: value.shape
        for name, value in MaskRefiner().state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    if {name: value.shape for name, value in weights.items()} != expected:
        raise CheckpointError(f"{path} holds the weights of another network than the refiner. {again}")
    if not all(torch.isfinite(value).all() for value in weights.values()):
        raise CheckpointError(f"{path} holds weights that are not numbers. {again}")
    return {name: value.float() for name, value in weights.items()}


def refine_mask(
    refiner: MaskRefiner,
    picture: Tensor,
    mask: Tensor,
    *,
    longest_px: int = LONGEST_PX,
    tile_px: int = TILE_PX,
    on_tile: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The alpha of what a mask marks roughly.

    Only what lies within `REACH_PX` of the mask's edge is computed, in tiles; the rest is the mask. os8 replaces the
    mask there, os4 and os1 what is uncertain in the coarser scale and around it. A picture with a side of more than
    `longest_px` is refined at half its size first, which is again refined at half its size if it is too large itself,
    and the mask `corrected` by what was found there.

    Args:
        refiner: from `load_refiner`, on any device; the picture is moved there tile by tile.
        picture: float [H, W, 3] in 0..1, sRGB; any size.
        mask: float [H, W] in 0..1; soft values are allowed. A mask without an edge comes back as it is.
        longest_px: the longer side of a picture that is refined at its own size alone.
        tile_px: the largest side of what is computed at a time, without its surroundings of 64 pixels.
        on_tile: is told after each tile how much is done and of how much: tiles, if the picture is refined at its own
            size alone.
    Returns:
        float32 [H, W] in 0..1, on the CPU.
    Raises:
        ValueError: sizes that differ, no pixels, values that are not numbers, or a tile or a side that is too short.
    """
    _check(picture, mask, tile_px, longest_px)
    given = mask.detach().float().cpu().clamp(0, 1)
    if given.min() == given.max():
        return given.clone()
    sizes = [(picture.detach(), given)]
    while max(sizes[0][1].shape) > longest_px:
        sizes.insert(0, tuple(map(halved, sizes[0])))
    smaller = ()
    for place, (seen, marked) in enumerate(sizes):
        start = corrected(marked, *smaller) if smaller else marked
        alpha = _refined(refiner, seen, start, tile_px, _share_of(on_tile, place, len(sizes)))
        smaller = marked, alpha
    return alpha


def _share_of(on_tile: Callable[[int, int], None] | None, place: int, sizes: int) -> Callable[[int, int], None]:
    """What is told after each tile of one of several sizes, each of which counts four times as much as the smaller."""
    done, whole = (sum(4**number for number in range(count)) for count in (place, sizes))

    def tell(number: int, count: int) -> None:
        if on_tile:
            on_tile(done * count + 4**place * number, whole * count)

    return tell


def _refined(
    refiner: MaskRefiner, picture: Tensor, given: Tensor, tile_px: int, on_tile: Callable[[int, int], None]
) -> Tensor:
    """`refine_mask` at the size of the picture alone."""
    alpha = given.numpy()
    wanted = _near_edge(alpha)
    if wanted is None:
        return given.clone()
    height, width = alpha.shape
    tiles = [
        Window(tile.top, tile.left, min(tile.bottom, height), min(tile.right, width))
        for tile in (cells.finer(STRIDE) for cells in _tiles(wanted, tile_px))
    ]
    weight = next(refiner.parameters())
    merged = alpha.copy()
    for number, tile in enumerate(tiles, start=1):
        seen = tile.grown(_HALO_PX, height, width)
        piece = picture[seen.rows, seen.columns].to(weight).clamp(0, 1).permute(2, 0, 1)[None]
        marked = seen.of(given).to(weight)[None, None]
        with torch.inference_mode():
            pyramid = refiner(piece.contiguous(memory_format=torch.channels_last), marked)
        found = _merged(pyramid, seen.of(alpha), seen.of(wanted))
        tile.of(merged)[:] = tile.within(seen).of(found)
        on_tile(number, len(tiles))
    return torch.from_numpy(merged)


def _check(picture: Tensor, mask: Tensor, tile_px: int, longest_px: int) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or mask.ndim != 2:
        raise ValueError(
            f"Give one picture as height x width x 3 and one mask as height x width, not {_spoken(picture)} and "
            f"{_spoken(mask)}."
        )
    if picture.shape[:2] != mask.shape:
        raise ValueError(
            f"The picture is {picture.shape[1]} x {picture.shape[0]} pixels and the mask {mask.shape[1]} x "
            f"{mask.shape[0]}. Scale one to the size of the other."
        )
    if not mask.numel():
        raise ValueError("The picture has no pixels.")
    if tile_px < STRIDE:
        raise ValueError(f"A tile of {tile_px} pixels is too small. Choose {STRIDE} or more.")
    if longest_px < STRIDE:
        raise ValueError(f"A picture of {longest_px} pixels is too small to begin with. Choose {STRIDE} or more.")
    for name, values in (("picture", picture), ("mask", mask)):
        if not torch.isfinite(values).all():
            raise ValueError(f"The {name} holds values that are not numbers. Look at the node or file it comes from.")


def _spoken(values: Tensor) -> str:
    return " x ".join(map(str, values.shape)) or "a single number"


def _near_edge(mask: np.ndarray) -> np.ndarray | None:
    """bool [H, W], True within REACH_PX of where the mask is soft or changes; None if it does so nowhere."""
    import cv2

    edge = (mask > 0) & (mask < 1)
    changes = mask[1:] != mask[:-1]
    edge[1:] |= changes
    edge[:-1] |= changes
    changes = mask[:, 1:] != mask[:, :-1]
    edge[:, 1:] |= changes
    edge[:, :-1] |= changes
    if not edge.any():
        return None
    return cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, 5) <= REACH_PX


def _tiles(wanted: np.ndarray, tile_px: int) -> list[Window]:
    """Windows of cells of STRIDE pixels that hold everything wanted."""
    height, width = wanted.shape
    padded = np.pad(wanted, ((0, -height % STRIDE), (0, -width % STRIDE)))
    cells = padded.reshape(padded.shape[0] // STRIDE, STRIDE, -1, STRIDE).any(axis=(1, 3))
    return cover(cells, _HALO_PX // STRIDE, max(1, tile_px // STRIDE) ** 2)


def _merged(pyramid: AlphaPyramid, mask: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The merging of `merge_scales` with the mask as guidance on two sides, but os8 in all that is wanted."""
    os8, os4, os1 = (scale[0, 0].float().cpu().numpy() for scale in (pyramid.os8, pyramid.os4, pyramid.os1))
    alpha = np.where(wanted, os8, mask)
    alpha = np.where(unknown_area(alpha, _WIDTH_OS4_PX, "two") & wanted, os4, alpha)
    return np.where(unknown_area(alpha, _WIDTH_OS1_PX, "two") & wanted, os1, alpha)
