"""What the user marked in a reference picture: the region of interest whose features are sought in other pictures."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from ..prompt import Prompt, Scribble
from .errors import InContextError
from .fit import CELL_PX, Fit, Square

# The paper extends points and scribbles by each seed's m most attended cells but gives no m. 64 of 2304 cells are a
# square of 8 x 8 around a lone point: enough to matter, and on nearly every subject not beyond it.
DEFAULT_REACH = 64


class MaskIs(str, Enum):
    """What a mask on a reference picture means: the subject's AREA itself, or STROKES somewhere on it."""

    AREA = "area"
    STROKES = "strokes"

    @classmethod
    def _missing_(cls, value: object):
        raise InContextError(f'A mask on a reference is an "area" or "strokes", not "{value}".')


@dataclass(frozen=True, eq=False)
class Reference:
    """One or more reference pictures, ready to be sought in any number of targets.

    Attributes:
        tokens: for each picture float32 [K, C], the features of the cells in its region of interest, on the CPU.
        regions: for each picture float32 [H, W] of 0 and 1, the region really used, at the picture's own size, on the
            CPU.
        side: pixels along a side of the square that the features were taken in.
        fit: how pictures get into the square; targets get there in the same way.
        ensemble: how many noised copies of each picture are averaged.
        seed: of their noise.
    """

    tokens: tuple[Tensor, ...]
    regions: tuple[Tensor, ...]
    side: int
    fit: Fit
    ensemble: int
    seed: int


@dataclass(frozen=True, eq=False)
class Marks:
    """A prompt on the fine grid of one reference picture; each attribute is bool [f, f].

    Attributes:
        area: cells that lie wholly in the marked area.
        seeds: cells that a point or stroke on the subject touches.
        excluded: cells that a point or stroke beside the subject touches, or that lie outside of the box.
    """

    area: Tensor
    seeds: Tensor
    excluded: Tensor

    @property
    def needs_attention(self) -> bool:
        return bool(self.seeds.any())

    def region(self, attention: Tensor | None = None, reach: int = DEFAULT_REACH) -> Tensor:
        """The region of interest; seeds grow to the cells that they attend to most (section 3.6 of the paper).

        Args:
            attention: [f^2, f^2], the picture's self-attention, rows are the cells that attend. Only for seeds.
            reach: how many cells each seed adds, the paper's m.
        Returns:
            bool [f, f], on the CPU. A seed itself is always in it.
        """
        grown = torch.zeros_like(self.seeds).flatten()
        if self.needs_attention and reach:
            rows = attention[self.seeds.flatten().to(attention.device)]
            grown[rows.topk(min(reach, rows.shape[1])).indices.flatten().cpu()] = True
        return (self.area | grown.view_as(self.seeds)) & ~self.excluded | self.seeds


def marks_of(prompt: Prompt, square: Square, mask_is: MaskIs = MaskIs.AREA) -> Marks:
    """What a prompt says about the cells of the fine grid.

    An area counts where it covers a cell of 16 x 16 pixels of the square wholly, as in the released code; points and
    strokes count in every cell that they touch. A box alone says nothing about which cells are the subject.

    Args:
        prompt: in pixels of the picture; its mask 0..1 is cut at 0.5.
        square: how the picture lies in the square.
        mask_is: how the prompt's mask is meant.
    Raises:
        PromptError: for coordinates and masks that do not fit the picture.
        InContextError: nothing, or nothing that counts, is marked.
    """
    prompt = prompt.checked(square.width, square.height)
    cells = square.side // CELL_PX
    area = torch.zeros(cells, cells, dtype=torch.bool)
    strokes = [torch.tensor([point for point, label in zip(prompt.points_px, prompt.labels) if label == 1])]
    beside = [torch.tensor([point for point, label in zip(prompt.points_px, prompt.labels) if label == 0])]
    if prompt.has_scribbles:
        strokes.append(_centres(prompt.scribbles == Scribble.FOREGROUND))
        beside.append(_centres(prompt.scribbles == Scribble.BACKGROUND))
    if prompt.has_mask and mask_is is MaskIs.STROKES:
        strokes.append(_centres(prompt.mask > 0.5))
    elif prompt.has_mask:
        covered = (square.mask(prompt.mask.cpu()) > 0.5).float()[None, None]
        area = F.max_pool2d(-covered, CELL_PX)[0, 0] == -1
    marked = bool(sum(len(points) for points in strokes)) or prompt.has_mask
    seeds = _touched(strokes, square)
    if not marked:
        raise InContextError(
            "nothing in it says what the subject is. Give a mask of the subject, points on it or strokes over it; "
            "a box or points beside it are not enough."
        )
    if not (area.any() or seeds.any()):
        raise InContextError(_why_nothing_counts(prompt, square, mask_is))
    excluded = _touched(beside, square)
    if prompt.box_xyxy_px is not None:
        excluded |= ~_inside(prompt.box_xyxy_px, square)
        if not (area & ~excluded | seeds).any():
            raise InContextError("the box leaves nothing of the mask. Draw it around the subject, or leave it out.")
    return Marks(area, seeds, excluded)


def region_mask(region: Tensor, square: Square) -> Tensor:
    """A region of interest [f, f] at the size of the picture: float32 [H, W] of 0 and 1."""
    cells = square.side // region.shape[-1]
    spread = region.float().repeat_interleave(cells, 0).repeat_interleave(cells, 1)
    return (square.back(spread) > 0.5).float()


def _centres(area: Tensor) -> Tensor:
    """The centres of the pixels in a bool [H, W], as float [P, 2] of (x, y)."""
    return area.nonzero().flip(-1).cpu().float() + 0.5


def _touched(points: list[Tensor], square: Square) -> Tensor:
    cells = square.side // CELL_PX
    touched = torch.zeros(cells, cells, dtype=torch.bool)
    for some in points:
        x, y = (square.points(some.view(-1, 2)) / CELL_PX).long().clamp(max=cells - 1).unbind(-1)
        touched[y, x] = True
    return touched


def _inside(box_xyxy_px: tuple[float, float, float, float], square: Square) -> Tensor:
    """The cells of whose pixels of the picture more than half lie in a box."""
    box = torch.zeros(square.height, square.width)
    x0, y0, x1, y1 = (round(edge) for edge in box_xyxy_px)
    box[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = 1
    return F.avg_pool2d(square.mask(box)[None, None], CELL_PX)[0, 0] > 0.5


def _why_nothing_counts(prompt: Prompt, square: Square, mask_is: MaskIs) -> str:
    if square.fit is Fit.CROP and not _shown(prompt, square):
        return "what is marked lies outside of the middle square that the fit 'crop' shows. Use the fit 'pad'."
    return (
        f"the marked area is too small or too thin: in the square of {square.side} pixels it covers no cell of "
        f"{CELL_PX} x {CELL_PX} wholly. Mark all of the subject, crop the picture closer around it, or say that the "
        "mask holds points or strokes."
    )


def _shown(prompt: Prompt, square: Square) -> bool:
    left, top, right, bottom = square.window
    return prompt.has_mask and bool((prompt.mask[top:bottom, left:right] > 0.5).any())
