"""Pictures with coverage: layers that are laid over each other, and a canvas that draws antialiased lines into one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SHIFT = 4  # cv2 takes coordinates in 1/16 pixels
# How many pixels OpenCV's antialiased line of thickness 1 covers, and so how much wider a filled outline comes out.
_LINE = 1.35


@dataclass(frozen=True)
class Layer:
    """A picture with alpha. color is premultiplied, float32 [H, W, 3] <= alpha; alpha is float32 [H, W], 0..1."""

    color: np.ndarray
    alpha: np.ndarray

    def over(self, below: Layer) -> Layer:
        rest = 1 - self.alpha
        return Layer(self.color + rest[..., None] * below.color, self.alpha + rest * below.alpha)

    def faded(self, opacity: float | np.ndarray) -> Layer:
        """With less coverage: one factor 0..1, or one for every pixel [H, W]."""
        plane = np.asarray(opacity, np.float32)
        return Layer(self.color * (plane[..., None] if plane.ndim else plane), self.alpha * plane)

    def filtered(self, kernel: np.ndarray) -> Layer:
        """Seen through optics that spread every point as `kernel` (it sums to 1) says."""
        import cv2

        planes = cv2.filter2D(np.dstack([self.color, self.alpha]), -1, kernel, borderType=cv2.BORDER_REPLICATE)
        return Layer(planes[..., :3], planes[..., 3])

    def softened(self, sigma_px: float) -> Layer:
        if sigma_px < 0.1:
            return self
        planes = blurred(np.dstack([self.color, self.alpha]), sigma_px)
        return Layer(planes[..., :3], planes[..., 3])

    def straight(self) -> np.ndarray:
        """The colours not multiplied by alpha, [H, W, 3] 0..1; where alpha is 0 those around go on."""
        planes = np.dstack([self.color, self.alpha])
        planes += 1e-4 * blurred(planes, 3.0)
        # So faint that it counts only where nothing else is near.
        planes += 1e-6 * blurred(planes, 0.06 * max(self.alpha.shape) + 2)
        return np.clip(planes[..., :3] / np.maximum(planes[..., 3:], 1e-12), 0, 1)


def blurred(planes: np.ndarray, sigma_px: float) -> np.ndarray:
    """[H, W] or [H, W, C] under a Gaussian; the border goes on. Wide ones are computed on a smaller picture."""
    import cv2

    shrink = min(int(sigma_px / 2), min(planes.shape[:2]) // 4)
    if shrink < 2:
        return cv2.GaussianBlur(planes, (0, 0), sigma_px, borderType=cv2.BORDER_REPLICATE)
    height, width = planes.shape[:2]
    small = cv2.resize(planes, (-(-width // shrink), -(-height // shrink)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma_px / shrink, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def painted(alpha: np.ndarray, color: np.ndarray) -> Layer:
    """alpha [H, W] in straight colours, [H, W, 3] or [3]."""
    alpha = np.asarray(alpha, np.float32)
    return Layer((alpha[..., None] * np.clip(color, 0, 1)).astype(np.float32), alpha)


def stacked(*layers: Layer) -> Layer:
    """The first on top."""
    pile = layers[-1]
    for layer in reversed(layers[:-1]):
        pile = layer.over(pile)
    return pile


class Canvas:
    """Draws at `oversampling` times the size; the area average then is the coverage of each pixel.

    OpenCV blends an antialiased line into each channel as old + coverage * (new - old). With the colour
    (red, green, blue, 255) on a canvas of zeros that is exactly "over" with premultiplied colours.
    """

    def __init__(self, height: int, width: int, oversampling: int = 2):
        self.height, self.width, self.oversampling = height, width, oversampling
        self.rgba = np.zeros((height * oversampling, width * oversampling, 4), np.uint8)

    def layer(self) -> Layer:
        import cv2

        small = cv2.resize(self.rgba, (self.width, self.height), interpolation=cv2.INTER_AREA)
        planes = small.astype(np.float32) / 255
        return Layer(np.minimum(planes[..., :3], planes[..., 3:]), planes[..., 3])

    def strands(self, points: np.ndarray, root: np.ndarray, tip: np.ndarray, width_px: np.ndarray, taper: float = 0.3):
        """Curves that thin out and change colour from root to tip, in the order given.

        Args:
            points: [S, N, 2], x and y in pixels of the finished picture.
            root, tip: colours [S, 3], 0..1.
            width_px: [S]; nothing is drawn thinner than two thirds of a pixel. A faded layer is thinner than that.
            taper: the tip's width as a share of the root's.
        """
        import cv2

        inside = self._in_sight(points, float(np.max(width_px, initial=0)))
        points, root, tip, width_px = points[inside], root[inside], tip[inside], width_px[inside]
        count = points.shape[1]
        widths = width_px[:, None] * np.linspace(1, taper, count) * self.oversampling
        along = np.gradient(points, axis=1)
        along /= np.linalg.norm(along, axis=2, keepdims=True) + 1e-6
        reach = np.clip(widths - _LINE, 0, None)[..., None] / (2 * self.oversampling)
        side = np.dstack([-along[..., 1], along[..., 0]]) * reach
        middle, left, right = self._fixed(points), self._fixed(points + side), self._fixed(points - side)
        pieces = 3 if count >= 6 else 2
        cuts = np.linspace(0, count - 1, pieces + 1).round().astype(int)
        where = np.linspace(0, 1, pieces)
        colors = root[:, None] + where[None, :, None] * (tip - root)[:, None]
        colors = np.dstack([np.clip(colors, 0, 1) * 255, np.full(colors.shape[:2], 255.0)]).round().tolist()
        wide = (widths[:, cuts[:-1]] > _LINE + 0.25).tolist()
        for strand in range(len(points)):
            for piece in range(pieces):
                part = np.s_[strand, cuts[piece] : cuts[piece + 1] + 1]
                if wide[strand][piece]:
                    outline = np.concatenate([left[part], right[part][::-1]])
                    cv2.fillPoly(self.rgba, [outline], colors[strand][piece], cv2.LINE_AA, _SHIFT)
                else:
                    cv2.polylines(self.rgba, [middle[part]], False, colors[strand][piece], 1, cv2.LINE_AA, _SHIFT)

    def polygons(self, outlines: np.ndarray | list[np.ndarray], colors: np.ndarray):
        """Filled outlines [S, N, 2] (or a list of [N, 2]) in their colours [S, 3], in the order given."""
        import cv2

        paints = np.column_stack([np.clip(colors, 0, 1) * 255, np.full(len(colors), 255.0)]).round().tolist()
        for outline, paint in zip(outlines, paints):
            cv2.fillPoly(self.rgba, [self._fixed(outline)], paint, cv2.LINE_AA, _SHIFT)

    def discs(self, centres: np.ndarray, radius_px: np.ndarray, colors: np.ndarray):
        import cv2

        paints = np.column_stack([np.clip(colors, 0, 1) * 255, np.full(len(colors), 255.0)]).round().tolist()
        radii = (radius_px * self.oversampling * 2**_SHIFT).round().astype(int).tolist()
        for centre, radius, paint in zip(self._fixed(centres).tolist(), radii, paints):
            cv2.circle(self.rgba, centre, max(1, radius), paint, -1, cv2.LINE_AA, _SHIFT)

    def _fixed(self, points: np.ndarray) -> np.ndarray:
        """Pixel centres of the finished picture lie at whole numbers; so do those of the large one."""
        large = points * self.oversampling + (self.oversampling - 1) / 2
        # Far outside the frame the fixed-point numbers of OpenCV would overflow.
        return np.clip(large * 2**_SHIFT, -(2**22), 2**22).round().astype(np.int32)

    def _in_sight(self, points: np.ndarray, margin_px: float) -> np.ndarray:
        low, high = points.min(axis=1) - margin_px, points.max(axis=1) + margin_px
        return (high > 0).all(axis=1) & (low[:, 0] < self.width) & (low[:, 1] < self.height)


def coverage(outlines: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """The share of each pixel [H, W] that lies in the union of filled outlines [N, 2] (x, y)."""
    canvas = Canvas(height, width)
    canvas.polygons(outlines, np.ones((len(outlines), 3)))
    return canvas.layer().alpha
