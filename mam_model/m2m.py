"""Mask-to-Matte: the network that turns SAM's features and mask into alpha at three scales.

Li, Jain, Shi: "Matting Anything", arXiv 2306.05399, section 3.2. `MaskToMatte` is the form that is trained and stored;
`FoldedMaskToMatte` is the same function with spectral and batch normalisation multiplied into the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .frame import Frame

if TYPE_CHECKING:
    from .sam import Embedding

FEATURE_CHANNELS = 256
# The picture (3 channels) and the mask (1) are shown to every stage anew.
SHOWN_CHANNELS = 4


@dataclass(frozen=True, eq=False)
class AlphaPyramid:
    """Alpha at three scales, all drawn at the size of the padded square.

    Attributes:
        os8: float [N, 1, side, side] in 0..1, predicted at an eighth of the side.
        os4: the same, predicted at a quarter.
        os1: the same, predicted at full size.
    """

    os8: Tensor
    os4: Tensor
    os1: Tensor

    def __len__(self) -> int:
        return self.os8.shape[0]

    def __getitem__(self, targets: slice) -> AlphaPyramid:
        return AlphaPyramid(self.os8[targets], self.os4[targets], self.os1[targets])

    def cpu(self) -> AlphaPyramid:
        return AlphaPyramid(self.os8.cpu(), self.os4.cpu(), self.os1.cpu())


class SpectralNormConv(nn.Module):
    """A convolution (transposed if asked) whose weight is divided by its largest singular value.

    Miyato et al., "Spectral Normalization for Generative Adversarial Networks", 2018. While training, each forward
    makes one step of power iteration on the stored vectors u and v; at inference they are used as stored. The
    parameters sit in a submodule `module`, as in the published checkpoints.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, transposed: bool = False):
        super().__init__()
        self.transposed = transposed
        shape = (in_channels, out_channels) if transposed else (out_channels, in_channels)
        weight = torch.empty(*shape, kernel_size, kernel_size)
        nn.init.xavier_uniform_(weight)
        u = F.normalize(torch.randn(weight.shape[0]), dim=0, eps=1e-12)
        v = F.normalize(torch.randn(weight[0].numel()), dim=0, eps=1e-12)
        self.module = nn.Module()
        self.module.weight_bar = nn.Parameter(weight)
        self.module.weight_u = nn.Parameter(u, requires_grad=False)
        self.module.weight_v = nn.Parameter(v, requires_grad=False)

    def normalised_weight(self) -> Tensor:
        """weight_bar / (u . W v), W being weight_bar as a matrix with its first dimension as rows."""
        u, v = self.module.weight_u, self.module.weight_v
        matrix = self.module.weight_bar.flatten(1)
        # On a GPU, autocast would take the products in half precision; u and v are remembered from step to step.
        with torch.autocast(matrix.device.type, enabled=False):
            if self.training:
                with torch.no_grad():
                    v.copy_(F.normalize(matrix.t().mv(u), dim=0, eps=1e-12))
                    u.copy_(F.normalize(matrix.mv(v), dim=0, eps=1e-12))
            return self.module.weight_bar / u.dot(matrix.mv(v))

    def forward(self, x: Tensor) -> Tensor:
        if self.transposed:
            return F.conv_transpose2d(x, self.normalised_weight(), stride=2, padding=1)
        weight = self.normalised_weight()
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class UpBlock(nn.Module):
    """Doubles the size: transposed convolution and convolution beside a nearest-neighbour shortcut.

    [N, in_channels, h, w] -> [N, out_channels, 2 h, 2 w]
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = SpectralNormConv(in_channels, in_channels, 4, transposed=True)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = SpectralNormConv(in_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.upsample = nn.Sequential(
            nn.UpsamplingNearest2d(scale_factor=2),
            SpectralNormConv(in_channels, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.leaky_relu(self.bn1(self.conv1(x)), 0.2)))
        return F.leaky_relu(residual + self.upsample(x), 0.2)


class FlatBlock(nn.Module):
    """Two 3 x 3 convolutions beside the identity. [N, C, h, w] -> [N, C, h, w]"""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = SpectralNormConv(channels, channels, 3)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = SpectralNormConv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.leaky_relu(self.bn1(self.conv1(x)), 0.2)))
        return F.leaky_relu(residual + x, 0.2)


def _stage(in_channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    up = UpBlock(in_channels + SHOWN_CHANNELS, out_channels)
    return nn.Sequential(up, *(FlatBlock(out_channels) for _ in range(blocks - 1)))


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 1, 3, padding=1),
    )


class MaskToMatte(nn.Module):
    """The published network: 2,714,619 trainable parameters, 184 state-dict entries."""

    def __init__(self):
        super().__init__()
        self.layer2 = _stage(FEATURE_CHANNELS, 128, 3)
        self.refine_OS8 = _head(128)
        self.layer3 = _stage(128, 64, 3)
        self.refine_OS4 = _head(64)
        self.layer4 = _stage(64, 32, 2)
        self.conv1 = SpectralNormConv(32, 32, 4, transposed=True)
        self.bn1 = nn.BatchNorm2d(32)
        self.refine_OS1 = _head(32)

    def forward(self, features: Tensor, image: Tensor, mask: Tensor) -> AlphaPyramid:
        """
        Args:
            features: float [N, 256, side / 16, side / 16], SAM's embedding.
            image: float [N, 3, side, side], normalised and padded.
            mask: float [N, 1, side / 4, side / 4] of {0, 1}, SAM's chosen mask in the padded square.
        """
        return _run_stages(self, features, image, mask, lambda x: F.leaky_relu(self.bn1(self.conv1(x)), 0.2))

    def fold(self) -> FoldedMaskToMatte:
        """The same function for inference: no normalisation left, weights rounded to float32 once."""
        # The merging of its scales takes OpenCV, whose import would make the first click wait for 20 ms.
        import cv2  # noqa: F401

        return FoldedMaskToMatte(self)


@dataclass(frozen=True)
class Sides:
    """Which sides of a piece lie on the edge of the square.

    Beyond those are zeros, as for the square as a whole. At the others the piece was cut out, and a convolution answers
    only where it sees all the neighbours: its answer is a cell narrower there.
    """

    top: bool = True
    left: bool = True
    bottom: bool = True
    right: bool = True

    def narrowed(self, x: Tensor) -> Tensor:
        """[..., h, w] without the outermost cell at each side that was cut, as a view."""
        height, width = x.shape[-2:]
        return x[..., not self.top : height - (not self.bottom), not self.left : width - (not self.right)]

    def padded(self, x: Tensor) -> Tensor:
        """[..., h, w] with a cell of zeros more at each side that was not cut."""
        return x if self == INSIDE else F.pad(x, tuple(map(int, (self.left, self.right, self.top, self.bottom))))

    def convolved(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """The answer of a 3 x 3 convolution: [N, in, h, w] -> [N, out, h, w], a cell narrower at each cut side."""
        return conv(x) if self == SQUARE else F.conv2d(self.padded(x), conv.weight, conv.bias)

    def interleaved(self, answers: Tensor, others: Tensor | None = None) -> Tensor:
        """What lies between the cells of a `padded` piece, on the finer grid, a cell narrower at each cut side.

        Args:
            answers: [N, 4 C, h + 1, w + 1] if nothing was cut: for each four cells the four finer ones between them.
            others: what is added, of the shape of the result.
        Returns:
            [N, C, 2 h, 2 w] if nothing was cut.
        """
        count, channels, height, width = answers.shape
        shape = (2 * height - self.top - self.bottom, 2 * width - self.left - self.right)
        fine = answers.new_empty(count, *shape, channels // 4).permute(0, 3, 1, 2)
        quarters = answers.unflatten(1, (2, 2, -1))
        for row, (to_rows, from_rows) in enumerate(_every_other(self.top, height, self.bottom)):
            for column, (to_columns, from_columns) in enumerate(_every_other(self.left, width, self.right)):
                to, quarter = fine[..., to_rows, to_columns], quarters[:, row, column, :, from_rows, from_columns]
                if others is None:
                    to.copy_(quarter)
                else:
                    torch.add(others[..., to_rows, to_columns], quarter, out=to)
        return fine


def _every_other(begins: bool, count: int, ends: bool) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Which finer cells of a row are the first and the second of two that lie in `count` gaps, and in which gaps.

    Where the row begins or ends with the square, one of the two in the outermost gap lies outside.
    """
    return (
        (slice(int(begins), None, 2), slice(int(begins), None)),
        (slice(1 - begins, None, 2), slice(0, count - ends)),
    )


SQUARE = Sides()
INSIDE = Sides(top=False, left=False, bottom=False, right=False)


class FoldedMaskToMatte(nn.Module):
    """Mask-to-Matte with spectral and batch normalisation folded into plain convolutions.

    Takes and returns what `MaskToMatte` does in eval mode. Folding itself costs less than 1e-5; the convolutions then
    round in another order, which on random weights that amplify strongly came to 4e-5 at most and 3e-6 RMS.
    """

    def __init__(self, trained: MaskToMatte):
        super().__init__()
        for name in ("layer2", "layer3", "layer4"):
            up, *flat = getattr(trained, name)
            setattr(self, name, nn.Sequential(_FoldedUpBlock(up), *(_FoldedFlatBlock(block) for block in flat)))
        for name in ("refine_OS8", "refine_OS4", "refine_OS1"):
            setattr(self, name, _FoldedHead(getattr(trained, name)))
        self.conv1 = _folded(trained.conv1, trained.bn1)
        self.requires_grad_(False)
        self.eval()
        self.to(trained.bn1.weight.device, memory_format=torch.channels_last)

    def forward(self, features: Tensor, image: Tensor, mask: Tensor) -> AlphaPyramid:
        features = features.contiguous(memory_format=torch.channels_last)
        return _run_stages(self, features, image, mask, self.last_upsampling)

    def last_upsampling(self, x: Tensor, sides: Sides = SQUARE) -> Tensor:
        """[N, 32, h, w] -> [N, 32, 2 h, 2 w], less a cell at each side that was cut."""
        return F.leaky_relu(self.conv1(x, sides), 0.2, inplace=True)

    @torch.inference_mode()
    def look_at(self, embedding: Embedding) -> PictureFeatures:
        """What the network makes of a picture before it knows the target. Worth keeping for the next target."""
        weight = self.layer2[0].conv1.weight
        image = embedding.frame.network_input(embedding.content, weight.device).to(weight.dtype)
        features = embedding.features.to(weight)
        grid = features.shape[-1]
        images = [_resized(image, (n * grid, n * grid)) for n in (1, 2, 4)]
        upsampled, shortcut = self.layer2[0].without_mask(beside(features, images[0]))
        return PictureFeatures(upsampled, shortcut, images[1], images[2], embedding.frame)


@dataclass(frozen=True, eq=False)
class PictureFeatures:
    """What Mask-to-Matte makes of a picture before it knows the target: 20 MB in float32 at 1024 pixels.

    Attributes:
        upsampled: float [1, 260, side / 8, side / 8], the first convolution less the mask's part in it.
        shortcut: float [1, 128, side / 16, side / 16], the same of the shortcut beside it.
        image_os8: float [1, 3, side / 8, side / 8], the picture as the second stage is shown it.
        image_os4: float [1, 3, side / 4, side / 4], the picture as the third stage is shown it.
        frame: how the picture lies in the square.
    """

    upsampled: Tensor
    shortcut: Tensor
    image_os8: Tensor
    image_os4: Tensor
    frame: Frame

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.upsampled, self.shortcut, self.image_os8, self.image_os4))

    def to(self, like: Tensor) -> PictureFeatures:
        """On the device and in the precision of another tensor."""
        tensors = (self.upsampled, self.shortcut, self.image_os8, self.image_os4)
        return PictureFeatures(*(tensor.to(like) for tensor in tensors), self.frame)


class _FoldedUpBlock(nn.Module):
    def __init__(self, trained: UpBlock):
        super().__init__()
        self.conv1 = _folded(trained.conv1, trained.bn1)
        self.conv2 = _folded(trained.conv2, trained.bn2)
        self.shortcut = _folded(trained.upsample[1], trained.upsample[2])

    def forward(self, x: Tensor, sides: Sides = SQUARE) -> Tensor:
        return self._joined(self.conv1(x, sides), self.shortcut(x), sides)

    def without_mask(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What all channels but the last, the mask's, make of the first convolution and of the shortcut."""
        upsampled = F.conv_transpose2d(x, self.conv1.weight[:-1], self.conv1.bias, stride=2, padding=1)
        return upsampled, F.conv2d(x, self.shortcut.weight[:, :-1], self.shortcut.bias)

    def with_mask(self, upsampled: Tensor, shortcut: Tensor, mask: Tensor, sides: Sides = SQUARE) -> Tensor:
        """`forward` of what `without_mask` has computed and of the channel that it left out."""
        upsampled = self.conv1.of_last_channel(mask, sides.narrowed(upsampled), sides)
        return self._joined(upsampled, F.conv2d(mask, self.shortcut.weight[:, -1:]).add_(shortcut), sides)

    def _joined(self, upsampled: Tensor, shortcut: Tensor, sides: Sides) -> Tensor:
        residual = sides.convolved(self.conv2, F.leaky_relu(upsampled, 0.2, inplace=True))
        # A 1 x 1 convolution commutes with nearest upsampling: at a quarter of the pixels it costs a quarter.
        shortcut = sides.narrowed(shortcut)
        for row in (0, 1):
            for column in (0, 1):
                residual[..., row::2, column::2] += shortcut
        return F.leaky_relu(residual, 0.2, inplace=True)


class _Upsampling(nn.ConvTranspose2d):
    """A transposed convolution of size 4 and stride 2, [N, in, h, w] -> [N, out, 2 h, 2 w], a cell narrower at each cut
    side.

    Four neighbouring cells have four of the finer grid between them, which depend on no others. So a convolution of
    size 2 with four answers is the same function. For a transposed one of a size that it meets for the first time,
    oneDNN takes 1 to 5 ms to make a kernel, for a plain one less than half a millisecond; and pieces come in ever new
    sizes. The square has one size, and there the transposed one does without a second tensor as large as its answer.
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        """Args: weight, [in, out, 4, 4]; bias, [out]."""
        super().__init__(*weight.shape[:2], kernel_size=4, stride=2, padding=1)
        self.weight.data, self.bias.data = weight, bias
        # Places 2 and 3 of the kernel reach from a cell into the gap behind it, 0 and 1 into the gap before it.
        from_cells = weight.unflatten(2, (2, 2)).unflatten(4, (2, 2)).flip(2, 4).permute(3, 5, 1, 0, 2, 4)
        self.register_buffer("between", from_cells.reshape(-1, len(weight), 2, 2))

    def forward(self, x: Tensor, sides: Sides = SQUARE) -> Tensor:
        if sides == SQUARE:
            return super().forward(x)
        return sides.interleaved(F.conv2d(sides.padded(x), self.between, self.bias.repeat(4)))

    def of_last_channel(self, x: Tensor, others: Tensor, sides: Sides) -> Tensor:
        """The answer, given the last channel [N, 1, h, w] and what all the others have made, of the answer's shape."""
        if sides == SQUARE:
            return F.conv_transpose2d(x, self.weight[-1:], stride=2, padding=1).add_(others)
        # Of a single channel it is one small matrix product, for which nothing has to be made ready.
        fours = sides.padded(x).unfold(2, 2, 1).unfold(3, 2, 1).flatten(4)[:, 0]
        answers = fours @ self.between[:, -1].flatten(1).t()
        return sides.interleaved(answers.permute(0, 3, 1, 2), others)


class _FoldedFlatBlock(nn.Module):
    def __init__(self, trained: FlatBlock):
        super().__init__()
        self.conv1 = _folded(trained.conv1, trained.bn1)
        self.conv2 = _folded(trained.conv2, trained.bn2)

    def forward(self, x: Tensor, sides: Sides = SQUARE) -> Tensor:
        residual = F.leaky_relu(sides.convolved(self.conv1, x), 0.2, inplace=True)
        residual = sides.convolved(self.conv2, residual)
        residual += sides.narrowed(sides.narrowed(x))
        return F.leaky_relu(residual, 0.2, inplace=True)


class _FoldedHead(nn.Module):
    def __init__(self, trained: nn.Sequential):
        super().__init__()
        first, norm, _, last = trained
        self.conv1 = _folded(first, norm)
        self.conv2 = _LastConv(last)

    def forward(self, x: Tensor, sides: Sides = SQUARE) -> Tensor:
        x = F.leaky_relu(sides.convolved(self.conv1, x), 0.2, inplace=True)
        return sides.narrowed(self.conv2(x))


class _LastConv(nn.Conv2d):
    """The convolution that ends a head, to a single channel. [N, 32, h, w] -> [N, 1, h, w]"""

    def __init__(self, trained: nn.Conv2d):
        super().__init__(trained.in_channels, 1, 3, padding=1)
        self.load_state_dict(trained.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.itemsize < 4:
            return super().forward(x)
        # To a single channel, reading nine neighbours is all a convolution does. One matrix product for all nine
        # answers of each pixel, shifted and added, takes a quarter of the time on the CPU.
        count, channels, height, width = x.shape
        weight = self.weight.permute(2, 3, 0, 1).reshape(9, channels)
        answers = weight @ x.permute(0, 2, 3, 1).reshape(-1, channels).t()
        answers = answers.view(3, 3, count, 1, height, width)
        sum_of_nine = answers[1, 1] + self.bias
        for row in (-1, 0, 1):
            for column in (-1, 0, 1):
                if row or column:
                    to_rows, from_rows = _shifted(row, height)
                    to_columns, from_columns = _shifted(column, width)
                    answer = answers[row + 1, column + 1]
                    sum_of_nine[..., to_rows, to_columns] += answer[..., from_rows, from_columns]
        return sum_of_nine


def _shifted(step: int, extent: int) -> tuple[slice, slice]:
    """Where the cells that have a neighbour `step` cells further lie, and where those neighbours."""
    return slice(max(0, -step), extent - max(0, step)), slice(max(0, step), extent + min(0, step))


def _run_stages(net, features: Tensor, image: Tensor, mask: Tensor, last_upsampling) -> AlphaPyramid:
    def show(x: Tensor) -> Tensor:
        return torch.cat([x, _resized(image, x.shape[-2:]).to(x), _resized(mask, x.shape[-2:]).to(x)], dim=1)

    x = net.layer2(show(features))
    os8 = net.refine_OS8(x)
    x = net.layer3(show(x))
    os4 = net.refine_OS4(x)
    x = net.layer4(show(x))
    os1 = net.refine_OS1(last_upsampling(x))
    side = os1.shape[-2:]
    return AlphaPyramid(
        alpha_of(_resized(os8.float(), side)), alpha_of(_resized(os4.float(), side)), alpha_of(os1.float())
    )


def _resized(x: Tensor, size) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def beside(*parts: Tensor) -> Tensor:
    """Channels after channels: some [N, C, h, w] -> [N, all C together, h, w], with the channels last in memory.

    Convolutions take them like that; otherwise they would copy them first.
    """
    return torch.cat([part.permute(0, 2, 3, 1) for part in parts], dim=3).permute(0, 3, 1, 2)


def shrunk_mask(mask: Tensor, factor: int) -> Tensor:
    """The mask [N, 1, h, w] as a stage on a grid of `factor` times fewer cells a side is shown it."""
    return _resized(mask, (mask.shape[-2] // factor, mask.shape[-1] // factor))


def alpha_of(x: Tensor) -> Tensor:
    """What a head's answer means: 0..1, of the same shape."""
    # Of a view PyTorch asks MKL for one row at a time, each time with all threads; of what lies in one piece, once.
    return (torch.tanh(x.contiguous()) + 1) / 2


def _folded(conv: SpectralNormConv | nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d | _Upsampling:
    """One plain convolution, on the processor, for a convolution without bias and the batch normalisation behind it.

    Computed in float64 and rounded once, which keeps the cost of folding below 1e-5.
    """
    transposed = isinstance(conv, SpectralNormConv) and conv.transposed
    if isinstance(conv, SpectralNormConv):
        weight, u, v = map(_exact, (conv.module.weight_bar, conv.module.weight_u, conv.module.weight_v))
        weight = weight / u.dot(weight.flatten(1).mv(v))
    else:
        weight = _exact(conv.weight)
    gain = _exact(norm.weight) / torch.sqrt(_exact(norm.running_var) + norm.eps)
    weight = weight * (gain[None, :, None, None] if transposed else gain[:, None, None, None])
    bias = _exact(norm.bias) - _exact(norm.running_mean) * gain
    if transposed:
        return _Upsampling(weight.float(), bias.float())
    kernel_size = weight.shape[-1]
    folded = nn.Conv2d(weight.shape[1], weight.shape[0], kernel_size, padding=kernel_size // 2)
    folded.weight.data = weight.float()
    folded.bias.data = bias.float()
    return folded


def _exact(tensor: Tensor) -> Tensor:
    """In float64, and on the processor: a Mac's graphics chip knows no float64. What has only a shape stays so."""
    tensor = tensor.detach()
    return (tensor if tensor.is_meta else tensor.cpu()).double()
