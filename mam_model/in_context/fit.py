"""Brings pictures of any size into the network's square, and mattes back out of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from ..averaging import averaged
from .errors import InContextError

# Pixels of the square under one cell of the fine grid, and under one number of a latent.
CELL_PX = 16
LATENT_PX = 8
# Mid-grey, which is 0 where the network looks at it.
_PADDING = 0.5


class Fit(str, Enum):
    """How a picture that is not square gets into the square.

    PAD shows all of it with its own proportions, between grey bars. STRETCH shows all of it, distorted. CROP shows the
    square in its middle, as in training and in the published evaluation; what is outside gets no matte.
    """

    PAD = "pad"
    STRETCH = "stretch"
    CROP = "crop"

    @classmethod
    def _missing_(cls, value: object):
        raise InContextError(f'A fit is "pad", "stretch" or "crop", not "{value}".')


@dataclass(frozen=True)
class Square:
    """How a picture of `height` x `width` pixels lies in a square of `side` x `side`."""

    height: int
    width: int
    fit: Fit = Fit.PAD
    side: int = 768

    @property
    def window(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the part of the picture that is shown, in its own pixels."""
        if self.fit is not Fit.CROP:
            return 0, 0, self.width, self.height
        shown = min(self.height, self.width)
        left, top = (self.width - shown) // 2, (self.height - shown) // 2
        return left, top, left + shown, top + shown

    @property
    def content(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the part of the square that shows the picture, in pixels of the square."""
        if self.fit is not Fit.PAD:
            return 0, 0, self.side, self.side
        scale = self.side / max(self.height, self.width)
        # A strip of 12,000 x 1 pixels would otherwise vanish.
        width, height = (max(1, round(length * scale)) for length in (self.width, self.height))
        left, top = (self.side - width) // 2, (self.side - height) // 2
        return left, top, left + width, top + height

    def picture(self, image: Tensor) -> Tensor:
        """The picture in the square: float [H, W, 3], sRGB 0..1 -> float32 [side, side, 3] with grey bars."""
        return self._placed(image.float().movedim(-1, 0).clamp(0, 1), _PADDING).movedim(0, -1)

    def mask(self, mask: Tensor) -> Tensor:
        """A mask of the picture in the square: float [H, W], 0..1 -> float32 [side, side], 0 in the bars."""
        return self._placed(mask.float()[None], 0.0)[0]

    def points(self, points_px: Tensor) -> Tensor:
        """Pixels of the picture, [P, 2] as (x, y) -> pixels of the square; those that it does not show are left out."""
        left, top, right, bottom = self.window
        x0, y0, x1, y1 = self.content
        origin, size = points_px.new_tensor((left, top)), points_px.new_tensor((right - left, bottom - top))
        share = (points_px - origin) / size
        share = share[((share >= 0) & (share <= 1)).all(-1)]
        return share * points_px.new_tensor((x1 - x0, y1 - y0)) + points_px.new_tensor((x0, y0))

    def back(self, square: Tensor) -> Tensor:
        """A matte of the square at the size of the picture: float [side, side] -> [H, W], 0 where nothing was shown."""
        x0, y0, x1, y1 = self.content
        left, top, right, bottom = self.window
        shown = _resized(square[None, y0:y1, x0:x1], bottom - top, right - left)[0]
        return F.pad(shown, (left, self.width - right, top, self.height - bottom))

    def _placed(self, planes: Tensor, padding: float) -> Tensor:
        left, top, right, bottom = self.window
        x0, y0, x1, y1 = self.content
        shown = _resized(planes[:, top:bottom, left:right], y1 - y0, x1 - x0)
        return F.pad(shown, (x0, self.side - x1, y0, self.side - y1), value=padding)


def _resized(planes: Tensor, height: int, width: int) -> Tensor:
    """[C, h, w] -> [C, height, width]."""
    if planes.shape[1:] == torch.Size((height, width)):
        return planes
    # The filter's weights add up to 1 but for rounding, which may lead out of 0..1.
    return averaged(planes[None], (height, width))[0].clamp(0, 1)
