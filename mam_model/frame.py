"""The one place that maps the original picture to SAM's padded square and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

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
        content = F.interpolate(
            mask[None, None].float(), (self.content_height, self.content_width), mode="bilinear", antialias=True
        )
        return F.avg_pool2d(self._padded(content), 4)

    def crop_to_original(self, square: Tensor) -> Tensor:
        """Takes the padding off and resizes to the original picture (bilinear, align_corners=False).

        Args:
            square: float [N, C, side, side].
        Returns:
            float [N, C, H, W].
        """
        content = square[..., : self.content_height, : self.content_width]
        return F.interpolate(content, (self.height, self.width), mode="bilinear", align_corners=False)

    def logits_to_original(self, logits: Tensor) -> Tensor:
        """SAM's mask logits [N, C, side / 4, side / 4] at the size of the original picture, [N, C, H, W]."""
        square = F.interpolate(logits, (self.side, self.side), mode="bilinear", align_corners=False)
        return self.crop_to_original(square)

    def _padded(self, content: Tensor) -> Tensor:
        height, width = content.shape[-2:]
        return F.pad(content, (0, self.side - width, 0, self.side - height))
