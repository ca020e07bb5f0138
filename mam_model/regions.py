"""Rectangles of a picture, and which of them a network has to compute so that certain pixels come out exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# What starting a network on one more rectangle costs, in cells that could be computed in that time.
_START_COST = 300
# Narrower rectangles are not cut any further.
_SHORTEST_CUT = 24


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels or of cells of a coarser grid; bottom and right are the first row and column outside."""

    top: int
    left: int
    bottom: int
    right: int

    @classmethod
    def whole(cls, height: int, width: int) -> Window:
        return cls(0, 0, height, width)

    @classmethod
    def around(cls, needed: np.ndarray) -> Window | None:
        """The smallest window that holds every True of a bool [h, w]; None if there is none."""
        rows, columns = np.flatnonzero(needed.any(axis=1)), np.flatnonzero(needed.any(axis=0))
        if not len(rows):
            return None
        return cls(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)

    @classmethod
    def around_each(cls, needed: Tensor) -> list[Window | None]:
        """`around` of each of bool [N, h, w] on any device, which is waited for once."""
        firsts, lengths = [], []
        # On the processor the largest byte is found twenty times as fast as any True.
        levels = needed.view(torch.uint8)
        for filled in (levels.amax(dim=2), levels.amax(dim=1)):
            # As many as lie between the first and the last True, these included.
            counts = filled.cumsum(dim=1)
            firsts.append((counts == 0).sum(dim=1))
            lengths.append(((counts > 0) & (counts < counts[:, -1:])).sum(dim=1) + 1)
        found = torch.stack([*firsts, *lengths], dim=1).tolist()
        whole = needed.shape[1]
        return [
            None if top == whole else cls(top, left, top + height, left + width) for top, left, height, width in found
        ]

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def area(self) -> int:
        return self.height * self.width

    @property
    def rows(self) -> slice:
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.right)

    def grown(self, margin: int, height: int, width: int) -> Window:
        """Wider by `margin` on every side, as far as an area of `height` x `width` goes."""
        return Window(
            max(0, self.top - margin),
            max(0, self.left - margin),
            min(height, self.bottom + margin),
            min(width, self.right + margin),
        )

    def trimmed(self, margin: int, outer: Window) -> Window:
        """Narrower by `margin` on every side that does not lie on the edge of `outer`."""
        return Window(
            self.top + margin * (self.top > outer.top),
            self.left + margin * (self.left > outer.left),
            self.bottom - margin * (self.bottom < outer.bottom),
            self.right - margin * (self.right < outer.right),
        )

    def finer(self, factor: int) -> Window:
        """The same rectangle on a grid of `factor` times as many cells a side."""
        return Window(self.top * factor, self.left * factor, self.bottom * factor, self.right * factor)

    def coarser(self, factor: int) -> Window:
        """The cells of a grid of `factor` times fewer cells a side that this rectangle touches."""
        return Window(self.top // factor, self.left // factor, -(-self.bottom // factor), -(-self.right // factor))

    def within(self, outer: Window) -> Window:
        """The same rectangle counted from the top left corner of `outer`, in which it lies."""
        return Window(self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left)

    def shared_with(self, other: Window) -> Window | None:
        """What lies in both; None if nothing does."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom, right = min(self.bottom, other.bottom), min(self.right, other.right)
        return Window(top, left, bottom, right) if top < bottom and left < right else None

    def moved(self, rows: int, columns: int) -> Window:
        return Window(self.top + rows, self.left + columns, self.bottom + rows, self.right + columns)

    def of(self, array):
        """That part of an array or tensor [..., h, w], without a copy."""
        return array[..., self.top : self.bottom, self.left : self.right]


def in_one_size(windows: Sequence[Window], height: int, width: int) -> list[Window]:
    """Windows as high as the highest and as wide as the widest, each of which holds one of the given.

    Args:
        windows: lie in an area of `height` x `width`, as those do that come out.
    """
    high, wide = max(window.height for window in windows), max(window.width for window in windows)
    corners = [(min(window.top, height - high), min(window.left, width - wide)) for window in windows]
    return [Window(top, left, top + high, left + wide) for top, left in corners]


def strips(needed: np.ndarray, across: int = 128) -> list[Window]:
    """Disjoint windows that hold every True of a picture, where little is computed around each.

    Rows are taken `across` at a time, and their columns where there is nothing for that long are left out.

    Args:
        needed: bool [h, w].
    """
    found = []
    for top in range(0, len(needed), across):
        columns = np.flatnonzero(needed[top : top + across].any(axis=0))
        ends = np.flatnonzero(np.diff(columns) > across) + 1
        for run in np.split(columns, ends) if len(columns) else []:
            part = Window(top, int(run[0]), min(top + across, len(needed)), int(run[-1]) + 1)
            found.append(Window.around(part.of(needed)).moved(part.top, part.left))
    return found


def cover(needed: np.ndarray, halo: int, most_cells: int) -> list[Window]:
    """Disjoint windows that hold every True, chosen so that computing them with their surroundings costs little.

    A band along an edge leaves most of its bounding rectangle out, but each rectangle is computed with a halo. The
    bounding rectangle is cut in halves, each shrunk to what is needed in it, as long as that costs less.

    Args:
        needed: bool [h, w].
        halo: cells around a window that are computed with it.
        most_cells: larger windows are cut in any case, so that their tensors stay small.
    """

    def cheapest(window: Window) -> tuple[int, list[Window]]:
        shrunk = Window.around(window.of(needed))
        if shrunk is None:
            return 0, []
        window = shrunk.moved(window.top, window.left)
        whole = window.grown(halo, *needed.shape).area + _START_COST
        if max(window.height, window.width) < 2 * _SHORTEST_CUT and window.area <= most_cells:
            return whole, [window]
        halves = [cheapest(half) for half in _halves(window)]
        apart = sum(cost for cost, _ in halves)
        if apart < whole or window.area > most_cells:
            return apart, [part for _, parts in halves for part in parts]
        return whole, [window]

    return cheapest(Window.whole(*needed.shape))[1]


def _halves(window: Window) -> tuple[Window, Window]:
    if window.height >= window.width:
        middle = window.top + window.height // 2
        return (
            Window(window.top, window.left, middle, window.right),
            Window(middle, window.left, window.bottom, window.right),
        )
    middle = window.left + window.width // 2
    return (
        Window(window.top, window.left, window.bottom, middle),
        Window(window.top, middle, window.bottom, window.right),
    )
