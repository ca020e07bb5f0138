"""Mask-to-Matte where the merge reads it: the pyramid of one target, computed piece by piece.

The network is local. A piece of the square computed with enough of its surroundings comes out as in the whole square,
so the cost of a matte grows with the length of the subject's edge and not with the picture. This is the processor's
way, which looks at each scale before it computes the next; a GPU's is in `batched`.
"""
# OpenCV is imported where it is used, so that importing the library costs ComfyUI no start-up time.

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .frame import Frame
from .m2m import FoldedMaskToMatte, PictureFeatures, Sides, alpha_of, beside, shrunk_mask
from .regions import Window, cover, strips

# How far a stage looks, in cells of its output: one for the transposed convolution and one for each 3 x 3 convolution.
_STAGE_HALO = 6
_HEAD_HALO = 2
# The last stage, the last upsampling and its head look 11 pixels of the square far, which lie in 3 cells of 4.
_FINE_HALO_PX = 11
_FINE_HALO = 3
# Rows of cells around os4 that are computed with it, because os1 will ask for them: its halo, and its wider band.
_AHEAD = _FINE_HALO + 1
# Most cells of a piece, for layer3 and for what follows it. On the CPU a tensor of more than 32 MiB is fresh memory
# each time, which is slow.
_MOST_CELLS = (128 * 128, 96 * 96)


class PartialPyramid:
    """The alpha pyramid of one target of a picture, in a window of the picture."""

    def __init__(self, m2m: FoldedMaskToMatte, picture: PictureFeatures, mask: Tensor, frame: Frame, window: Window):
        """
        Args:
            picture: on the device of the network and in its precision.
            mask: float [1, 1, side / 4, side / 4] of {0, 1}, SAM's chosen mask in the padded square.
            frame: how the picture to which the matte belongs lies in the square.
            window: the pixels of that picture of which anything will be asked.
        """
        self.m2m = m2m
        self.picture = picture
        self.mask = mask.to(picture.image_os4)
        self.frame = frame
        self.window = window
        grid = mask.shape[-1]
        # Outputs of layer2 and layer3, each with the window of its own grid that is kept.
        self.fine_window = frame.cells_read(window, 4, interpolated=True).grown(_AHEAD, grid, grid)
        self.fine = None
        self.known = np.zeros((grid, grid), dtype=bool)
        exact = self.fine_window.grown(_STAGE_HALO, grid, grid).coarser(2)
        around = exact.grown(_STAGE_HALO, grid // 2, grid // 2).coarser(2)
        self.coarse_window = around.finer(2).trimmed(_STAGE_HALO, Window.whole(grid // 2, grid // 2))
        self.coarse = self._layer2(around, grid // 4)

    def read(self, scale: str, where: np.ndarray) -> np.ndarray:
        """Alpha of a scale at the size of the picture. See `merge.ReadScale`.

        Args:
            scale: "os8", "os4" or "os1".
            where: bool [h, w] with at least one True, the pixels of the window that are wanted.
        Returns:
            float32 [h, w], alpha in 0..1 where it is wanted.
        """
        part, top, left = {"os8": self._os8, "os4": self._os4, "os1": self._os1}[scale](where)
        alpha = np.zeros(where.shape, dtype=np.float32)
        # Enlarged to a picture of many megapixels, the rectangle around an edge is mostly what nobody asked for.
        for piece in strips(where):
            drawn = self.frame.part_to_original(part, top, left, piece.moved(self.window.top, self.window.left))
            piece.of(alpha)[:] = drawn[0, 0].cpu().numpy()
        return alpha

    def _os8(self, where: np.ndarray) -> tuple[Tensor, int, int]:
        cells = self.frame.cells_behind(where, self.window, 8, interpolated=True)
        window = Window.around(cells)
        values = self._head(self.m2m.refine_OS8, self.coarse, self.coarse_window, window, len(cells))
        return self._enlarged(values, window, 8)

    def _os4(self, where: np.ndarray) -> tuple[Tensor, int, int]:
        cells = self.frame.cells_behind(where, self.window, 4, interpolated=True)
        self._need_fine(_grown(cells, _AHEAD))
        window = Window.around(cells)
        values = self.fine.new_zeros(1, 1, window.height, window.width)
        for piece in cover(cells, _HEAD_HALO, _MOST_CELLS[0]):
            answer = self._head(self.m2m.refine_OS4, self.fine, self.fine_window, piece, len(cells))
            piece.within(window).of(values)[:] = answer
        return self._enlarged(values, window, 4)

    def _os1(self, where: np.ndarray) -> tuple[Tensor, int, int]:
        cells = self.frame.cells_behind(where, self.window, 4, interpolated=False)
        self._need_fine(_grown(cells, _FINE_HALO))
        window = Window.around(cells)
        alpha = torch.zeros(1, 1, 4 * window.height, 4 * window.width, device=self.mask.device)
        for piece in cover(cells, _FINE_HALO, _MOST_CELLS[1]):
            around = piece.grown(_FINE_HALO, *cells.shape)
            x = around.within(self.fine_window).of(self.fine)
            x = beside(x, around.of(self.picture.image_os4), around.of(self.mask))
            sides = _sides_of(around, len(cells))
            for block in self.m2m.layer4:
                x = block(x, sides)
            x = self.m2m.refine_OS1(self.m2m.last_upsampling(x, sides), sides)
            seen = around.finer(4).trimmed(_FINE_HALO_PX, Window.whole(*cells.shape).finer(4))
            piece.within(window).finer(4).of(alpha)[:] = alpha_of(piece.finer(4).within(seen).of(x))
        return alpha, 4 * window.top, 4 * window.left

    def _layer2(self, around: Window, grid: int) -> Tensor:
        first, *others = self.m2m.layer2
        sides = _sides_of(around, grid)
        upsampled = around.finer(2).of(self.picture.upsampled)
        x = first.with_mask(upsampled, around.of(self.picture.shortcut), around.of(shrunk_mask(self.mask, 4)), sides)
        for block in others:
            x = block(x, sides)
        return x

    def _need_fine(self, cells: np.ndarray) -> None:
        """Runs layer3 where its output is not known yet."""
        if self.fine is None:
            shape = (1, self.m2m.layer4[0].conv1.in_channels - 4, self.fine_window.height, self.fine_window.width)
            self.fine = torch.empty(
                shape, dtype=self.mask.dtype, device=self.mask.device, memory_format=torch.channels_last
            )
            self.shown = beside(self.picture.image_os8, shrunk_mask(self.mask, 2))
        for piece in cover(cells & ~self.known, _STAGE_HALO, _MOST_CELLS[0]):
            around = piece.grown(_STAGE_HALO, *cells.shape).coarser(2)
            x = around.within(self.coarse_window).of(self.coarse)
            x = beside(x, around.of(self.shown))
            sides = _sides_of(around, len(cells) // 2)
            for block in self.m2m.layer3:
                x = block(x, sides)
            seen = around.finer(2).trimmed(_STAGE_HALO, Window.whole(*cells.shape))
            piece.within(self.fine_window).of(self.fine)[:] = piece.within(seen).of(x)
            piece.of(self.known)[:] = True

    def _head(self, head, features: Tensor, at: Window, window: Window, grid: int) -> Tensor:
        """A head's answer [1, 1, h, w] in a window, from the features that are kept of the window `at`."""
        around = window.grown(_HEAD_HALO, grid, grid)
        seen = around.trimmed(_HEAD_HALO, Window.whole(grid, grid))
        return window.within(seen).of(head(around.within(at).of(features), _sides_of(around, grid)))

    def _enlarged(self, values: Tensor, window: Window, cell: int) -> tuple[Tensor, int, int]:
        """Alpha for every pixel of the square in a window of cells, and where in the square it begins."""
        # Between the centres of the outer cells, which is where it is read, this is what enlarging the whole gives.
        pixels = F.interpolate(values.float(), scale_factor=cell, mode="bilinear", align_corners=False)
        return alpha_of(pixels), cell * window.top, cell * window.left


def _sides_of(around: Window, grid: int) -> Sides:
    return Sides(around.top == 0, around.left == 0, around.bottom == grid, around.right == grid)


def _grown(cells: np.ndarray, margin: int) -> np.ndarray:
    import cv2

    return cv2.dilate(cells.view(np.uint8), np.ones((2 * margin + 1, 2 * margin + 1), dtype=np.uint8)).view(bool)
