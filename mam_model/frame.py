"""The one place that maps the original picture to SAM's padded square and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .averaging import averaged
from .morphology import outline
from .regions import Window, strips

# SAM's normalisation, on the 0..255 scale (segment-anything, build_sam.py).
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Frame:
    """How a picture of `height` x `width` pixels lies in SAM's square of `side` x `side`.

    The picture is scaled until its longer side fills the square, put into the top left corner, and the rest is padded
    with zeros after normalisation. `content_height` x `content_width` is the part of the square that shows the picture.
    """

    height: int
    width: int
    side: int = 1024

    @property
    def content_height(self) -> int:
        return self._scaled(self.height)

    @property
    def content_width(self) -> int:
        return self._scaled(self.width)

    def _scaled(self, length: int) -> int:
        scale = self.side / max(self.height, self.width)
        # A strip of 12,000 x 1 pixels would otherwise vanish.
        return max(1, int(length * scale + 0.5))

    @property
    def at_content_size(self) -> Frame:
        """The frame of the same picture no larger than the network sees it; its content lies in the same place."""
        if max(self.height, self.width) <= self.side:
            return self
        return Frame(self.content_height, self.content_width, self.side)

    def shrink(self, image: Tensor) -> Tensor:
        """The picture at the size in which the network sees it.

        The network was trained on 8-bit pictures resized by Pillow, so a float picture is rounded to 8 bits here; the
        picture itself is not changed.

        Args:
            image: float [H, W, 3], sRGB 0..1.
        Returns:
            uint8 [content_height, content_width, 3] on the CPU.
        """
        levels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        resized = Image.fromarray(levels).resize((self.content_width, self.content_height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized))

    def network_input(self, content: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Normalises and pads what `shrink` returned.

        Args:
            content: uint8 [content_height, content_width, 3].
        Returns:
            float32 [1, 3, side, side].
        """
        pixels = content.to(device).permute(2, 0, 1).float()
        mean = pixels.new_tensor(PIXEL_MEAN)[:, None, None]
        std = pixels.new_tensor(PIXEL_STD)[:, None, None]
        return self._padded(((pixels - mean) / std)[None])

    def points_to_network(self, points_px: Tensor) -> Tensor:
        """Original pixels [..., 2] as (x, y) -> pixels of the square, float32, same shape."""
        ratio = (self.content_width / self.width, self.content_height / self.height)
        return (points_px.double() * torch.tensor(ratio, dtype=torch.float64)).float()

    def boxes_to_network(self, boxes_xyxy_px: Tensor) -> Tensor:
        """Original pixels [..., 4] as x0, y0, x1, y1 -> pixels of the square, float32, same shape."""
        corners = boxes_xyxy_px.reshape(*boxes_xyxy_px.shape[:-1], 2, 2)
        return self.points_to_network(corners).reshape(boxes_xyxy_px.shape)

    def mask_to_network(self, mask: Tensor) -> Tensor:
        """A mask of the original picture at the resolution of SAM's mask logits, a quarter of the square.

        Args:
            mask: float [H, W], 0..1.
        Returns:
            float32 [1, 1, side / 4, side / 4], 0..1, zero in the padding.
        """
        content = averaged(mask[None, None].float(), (self.content_height, self.content_width))
        return F.avg_pool2d(self._padded(content), 4)

    def crop_to_original(self, square: Tensor, window: Window | None = None) -> Tensor:
        """Takes the padding off and resizes to the original picture (bilinear, align_corners=False).

        Args:
            square: float [N, C, side, side].
            window: the part of the original picture that is wanted; None takes all of it.
        Returns:
            float [N, C, H, W], or of the window's size; it may share memory with `square`.
        """
        if window is None:
            content = square[..., : self.content_height, : self.content_width]
            return F.interpolate(content, (self.height, self.width), mode="bilinear", align_corners=False)
        return self.part_to_original(square, 0, 0, window)

    def logits_to_original(self, logits: Tensor, window: Window | None = None) -> Tensor:
        """SAM's mask logits [N, C, side / 4, side / 4] at the size of the original picture, [N, C, H, W].

        Args:
            window: the part of the original picture that is wanted; None takes all of it.
        """
        if window is None:
            square = F.interpolate(logits, (self.side, self.side), mode="bilinear", align_corners=False)
            return self.crop_to_original(square)
        # What enlarging a part by a whole factor gives between the centres of its outer cells, the whole gives too.
        cells = self.cells_read(window, 4, interpolated=True)
        part = F.interpolate(cells.of(logits), scale_factor=4, mode="bilinear", align_corners=False)
        return self.part_to_original(part, 4 * cells.top, 4 * cells.left, window)

    def mask_to_original(self, logits: Tensor, window: Window) -> Tensor:
        """Where SAM's mask logits are above 0 once they are at the size of the original picture.

        Interpolation lies between its cells, so that it is needed only where neighbours differ in sign. On a GPU, for
        which one would have to wait to learn where that is, everything is interpolated.

        Args:
            logits: float [1, 1, side / 4, side / 4].
            window: the part of the original picture that is wanted.
        Returns:
            bool [h, w].
        """
        if logits.device.type != "cpu":
            return self.logits_to_original(logits, window)[0, 0] > 0
        positive = logits[0, 0] > 0
        rows, _, _ = _neighbours(window.top, window.bottom, self.height, self.content_height)
        columns, _, _ = _neighbours(window.left, window.right, self.width, self.content_width)
        mask = positive[:, columns // 4][rows // 4]
        for cells in strips(outline(positive.numpy()), across=16):
            part = self.window_over(cells.finer(4)).shared_with(window)
            if part is not None:
                part.within(window).of(mask)[:] = self.logits_to_original(logits, part)[0, 0] > 0
        return mask

    def window_over(self, content: Window) -> Window:
        """All pixels of the original picture that show something of a window of the square, and a pixel more."""
        per_row, per_column = self.height / self.content_height, self.width / self.content_width
        return Window(
            math.floor((content.top - 1) * per_row),
            math.floor((content.left - 1) * per_column),
            math.ceil((content.bottom + 1) * per_row),
            math.ceil((content.right + 1) * per_column),
        ).grown(1, self.height, self.width)

    def cells_read(self, window: Window, cell: int, interpolated: bool) -> Window:
        """The cells of a grid over the square that have to be known to draw a window of the original picture.

        Args:
            cell: pixels of the square a cell.
            interpolated: the cells hold one value each and are drawn bilinearly; otherwise one value for each pixel.
        """
        spans = []
        for start, stop, extent, content in (
            (window.top, window.bottom, self.height, self.content_height),
            (window.left, window.right, self.width, self.content_width),
        ):
            before, after, _ = _neighbours(start, stop, extent, content)
            first, last = int(before[0]), int(after[-1])
            half = cell // 2 if interpolated else 0
            spans.append((max(0, (first - half) // cell), min(self.side // cell, (last + half) // cell + 1)))
        return Window(spans[0][0], spans[1][0], spans[0][1], spans[1][1])

    def cells_behind(self, needed: np.ndarray, window: Window, cell: int, interpolated: bool) -> np.ndarray:
        """The cells that have to be known to draw some pixels of a window, and a few of their neighbours.

        Args:
            needed: bool [h, w], which pixels of the window are read.
            cell, interpolated: see `cells_read`.
        Returns:
            bool [side / cell, side / cell].
        """
        cells = np.zeros((self.side // cell, self.side // cell), dtype=bool)
        span = self.cells_read(window, cell, interpolated)
        # A pixel reads the pixels of the square next to its place, and each of these the two nearest cells a side.
        reach = 0.5 * cell + 1 + (0.5 * cell if interpolated else 0)
        scales = self.height / self.content_height, self.width / self.content_width
        rows = _pixels_near(span.top, span.bottom, cell, reach, scales[0], window.top, window.height)
        columns = _pixels_near(span.left, span.right, cell, reach, scales[1], window.left, window.width)
        near = np.stack([needed[start:stop].any(axis=0) for start, stop in rows])
        span.of(cells)[:] = np.stack([near[:, start:stop].any(axis=1) for start, stop in columns], axis=1)
        return cells

    def part_to_original(self, part: Tensor, top: int, left: int, window: Window) -> Tensor:
        """A window of the original picture out of a part of the square.

        Args:
            part: float [N, C, h, w], with the pixels of the square that the window reads.
            top, left: where in the square it begins.
        """
        # One direction after the other, each output pixel from its two neighbours: rows last, which are contiguous.
        # `index_select` brings over the same values as an index, in half the time and less.
        upper, lower, down = _neighbours(window.top, window.bottom, self.height, self.content_height)
        before, after, right = _neighbours(window.left, window.right, self.width, self.content_width)
        part = part[..., int(upper[0]) - top : int(lower[-1]) + 1 - top, :]
        if self.content_width == self.width:
            part = part[..., window.left - left : window.right - left]
        else:
            before, after, right = (x.to(part.device) for x in (before - left, after - left, right))
            # Of a table PyTorch selects columns four times as fast as of what has more dimensions.
            table = part.flatten(0, -2)
            drawn = torch.lerp(table.index_select(1, before), table.index_select(1, after), right.to(part.dtype))
            part = drawn.unflatten(0, part.shape[:-1])
        if self.content_height == self.height:
            return part[..., : window.height, :]
        upper, lower, down = (x.to(part.device) for x in (upper - upper[0], lower - upper[0], down))
        return torch.lerp(part.index_select(-2, upper), part.index_select(-2, lower), down.to(part.dtype)[:, None])

    def _padded(self, content: Tensor) -> Tensor:
        height, width = content.shape[-2:]
        return F.pad(content, (0, self.side - width, 0, self.side - height))


def _pixels_near(
    first: int, last: int, cell: int, reach: float, scale: float, start: int, extent: int
) -> list[tuple[int, int]]:
    """For each cell from the first on, which pixels of a row or column may read it: from the one to before the other.

    Args:
        cell: pixels of the square a cell.
        reach: pixels of the square from the middle of a cell to the farthest that reads it.
        scale: pixels of the picture a pixel of the square.
        start, extent: the part of the picture's row or column that is meant, from which the pixels are counted.
    """
    half = math.ceil(reach * scale) + 1
    middles = ((np.arange(first, last) + 0.5) * cell * scale - 0.5 - start).round().astype(int).clip(0, extent - 1)
    return [(max(0, middle - half), middle + half + 1) for middle in middles.tolist()]


def _neighbours(start: int, stop: int, extent: int, content: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each output pixel in start..stop, the two input pixels between which it lies, and how far along.

    For `content` pixels that become `extent`.
    """
    first, second, share = _all_neighbours(extent, content)
    return first[start:stop], second[start:stop], share[start:stop]


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _all_neighbours(extent: int, content: int) -> tuple[Tensor, Tensor, Tensor]:
    scale = float(np.float32(content) / np.float32(extent))
    # PyTorch rounds to float32 after the subtraction; so does this.
    place = ((torch.arange(extent, dtype=torch.float64) + 0.5) * scale - 0.5).float().clamp(min=0)
    first = place.long().clamp(max=content - 1)
    return first, (first + 1).clamp(max=content - 1), (place - first).clamp(0, 1)
