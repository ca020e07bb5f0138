"""Mattes without a download: GrabCut finds the subject; a small network or classical matting solves its edge."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor

from .morphology import outline
from .picture import check_form
from .prompt import Prompt, Scribble
from .scribble import with_certain_strokes
from .trimap import SURE_BACKGROUND, SURE_SUBJECT, trimap_from_mask
from .trimap_matting import METHODS as SOLVERS
from .trimap_matting import PyMattingMissing, solve_view

METHODS = ("refiner", *SOLVERS, "none")

# (picture [H, W, 3], mask [H, W]) -> alpha [H, W], as `refiner.refine_mask` does it.
Refine = Callable[[Tensor, Tensor], Tensor]

# GrabCut describes each side by five Gaussians and cannot start with fewer pixels than that.
_FEWEST_SEEDS = 5
_STRIP_PX = 1 << 21
_FAR = np.float32(1e6)
_BORDER_DOUBT = 0.3
# The radius of what a click covers, as a share of the longer side.
_CLICK = 0.012
# GrabCut has found nothing in a rough mask if it leaves no more than this share of it; and along the outline of what it
# has found in a thin one, the picture is so many times as steep as elsewhere.
_LOST, _LOST_OF_THIN, _ALONG = 0.1, 0.3, 1.5
_CROSSING = 1.0
_REACH = 0.25
_DOME_RADII = (0.65, 0.8, 1.0)
_OPEN = 0.7
# The refiner looks farther than the band in which a matting method can be trusted.
_REFINER_REACH = 4


def matte_without_models(
    image: Tensor,
    prompt: Prompt,
    *,
    method: str = "closed-form",
    band: float = 1.0,
    segment_size_px: int = 400,
    matte_size_px: int = 1024,
    refine: Refine | None = None,
) -> Tensor:
    """A matte of the prompted subject, found without any weights but those that come with this package.

    The prompt seeds GrabCut (Rother, Kolmogorov, Blake 2004), whose mask opens an unknown band along the subject's
    edge; within the band the matte is found by the refiner of this package, or solved by closed-form matting (Levin,
    Lischinski, Weiss 2008) or KNN matting (Chen, Li, Tang 2013), and brought to the picture's own size by a
    colour-guided filter (He, Sun, Tang 2013). Time and memory are bounded by the two sizes and not by the picture's;
    PyMatting compiles itself on its first use, which takes some seconds once. The same input always gives the same
    matte.

    Args:
        image: [H, W, 3], sRGB 0..1; not changed.
        prompt: the target. Points, box, scribbles and mask may be mixed; a mask with `mask_is_guidance` is taken as
            it is and only its edge is solved, where its soft values count as edge; another one is a rough outline, or,
            when it is thin and the subject goes on around it, a stroke on the subject. `candidate` means nothing here.
        method: "refiner"; "closed-form" or "knn", which need PyMatting; or "none", which feathers the edge along the
            picture's colours.
        band: the width of the unknown band, as a factor on a width chosen from the subject's size, which is four times
            as wide for the refiner. Raise it for long hair and fur.
        segment_size_px: longest side at which GrabCut looks at the subject and its surroundings.
        matte_size_px: longest side at which the edge is solved.
        refine: what the method "refiner" calls; None loads the network of this package, on the processor.

    Returns:
        float32 [H, W], 0..1, on the image's device; all 0 when the prompt names no subject.

    Raises:
        PromptError: when the prompt does not fit the picture.
        PyMattingMissing: when the method needs PyMatting and it is not installed.
        CheckpointError: when the refiner is to be loaded and its file is missing or damaged.
        ValueError: for an unknown method, a size or band that is none, or what is no picture.
    """
    if method not in METHODS:
        raise ValueError(f"'{method}' is no matting method. Choose one of: {', '.join(METHODS)}.")
    if method in SOLVERS and importlib.util.find_spec("pymatting") is None:
        raise PyMattingMissing(
            f"The method '{method}' needs PyMatting, which is not installed: run `pip install pymatting`, "
            "or choose the method 'refiner' or 'none', which do without."
        )
    if not 0 <= band < math.inf:
        raise ValueError(f"band is a factor from 0 upwards, not {band:g}.")
    for name, size_px in (("segment_size_px", segment_size_px), ("matte_size_px", matte_size_px)):
        if size_px < 1:
            raise ValueError(f"{name} is at least 1, not {size_px}.")
    check_form(image)
    height, width = image.shape[:2]
    prompt = _in_arrays(prompt.checked(width, height))
    matte = np.zeros((height, width), dtype=np.float32)
    picture = image[..., :3].detach().to("cpu", torch.float32).numpy()
    if prompt.has_mask and prompt.mask_is_guidance:
        near = _Window(0, 0, width, height, max(width, height))
        prompt = _opened(prompt)
        mask = with_certain_strokes(prompt.mask, prompt.scribbles).numpy() > 0.5
    else:
        near = _surroundings(prompt, width, height, segment_size_px)
        view, seeds = near.picture(picture), _Seeds.of(prompt, near)
        _check_numbers(view)
        mask = _subject_mask(view, seeds)
        if seeds.hint is not None and _is_a_mark(view, seeds.hint, mask, _CLICK * max(width, height) * near.scale):
            prompt = _with_mask_as_stroke(prompt)
            near = _surroundings(prompt, width, height, segment_size_px)
            mask = _subject_mask(near.picture(picture), _Seeds.of(prompt, near))
    if mask.any():
        _write_matte(matte, picture, prompt, near, mask, method, band, matte_size_px, refine)
    alpha = torch.from_numpy(matte)
    if prompt.scribbles is not None:
        # A stroke ends within a pixel of the smaller picture in which the edge was solved.
        alpha = with_certain_strokes(alpha, prompt.scribbles)
    return alpha.to(image.device)


def _check_numbers(view: np.ndarray) -> None:
    """Refuses a view with NaN or infinite values: it is small, and all that it shows of the picture went into it."""
    if not np.isfinite(view).all():
        raise ValueError("The picture holds NaN or infinite values. Look at the node that made it.")


def _in_arrays(prompt: Prompt) -> Prompt:
    """The prompt with what can be taken for arrays: a float32 mask without gradients, and strokes, on the processor."""
    mask, strokes = prompt.mask, prompt.scribbles
    return replace(
        prompt,
        mask=None if mask is None else mask.detach().to("cpu", torch.float32),
        scribbles=None if strokes is None else strokes.cpu(),
    )


def _opened(prompt: Prompt) -> Prompt:
    """The prompt with the soft values of its mask as unknown strokes, where no other stroke lies."""
    mask = prompt.mask
    strokes = torch.zeros(mask.shape, dtype=torch.uint8) if prompt.scribbles is None else prompt.scribbles.clone()
    # A mask that is sure of nothing has only its middle to go by.
    if (mask >= SURE_SUBJECT).any():
        soft = (mask > SURE_BACKGROUND) & (mask < SURE_SUBJECT)
        strokes[soft & (strokes == Scribble.NONE)] = Scribble.UNKNOWN
    return replace(prompt, scribbles=strokes)


def _is_a_mark(view: np.ndarray, hint: np.ndarray, mask: np.ndarray, click_px: float) -> bool:
    """Whether a rough mask lies on its subject like a stroke, instead of covering it more or less.

    Then the subject goes on where the mask ends, and GrabCut is shown the same colours on both sides: it leaves next to
    nothing of the mask, or an outline of no more edges of the picture than any other line would cross.

    Args:
        view: float [rows, columns, 3].
        hint: bool [rows, columns], the rough mask.
        mask: bool [rows, columns], what GrabCut found by it.
        click_px: the radius of a click in seen pixels; the outline is asked only of what is nowhere thicker.
    """
    kept = (mask & hint).sum() / max(1, hint.sum())
    # What is cut off by the picture's border is no thicker than what is seen of it. Depths reach to the centre of the
    # nearest pixel outside, half a pixel farther than the edge.
    if _depth(np.pad(hint, 1)).max() - 0.5 > max(1.0, click_px):
        return kept <= _LOST
    edges = _edge_strength(view)
    return kept <= _LOST_OF_THIN or _along_edges(mask, edges) < _ALONG * edges.mean()


def _with_mask_as_stroke(prompt: Prompt) -> Prompt:
    """The prompt with its mask as strokes on the subject, where no other stroke lies."""
    strokes = torch.where(prompt.mask > 0.5, int(Scribble.FOREGROUND), int(Scribble.NONE)).to(torch.uint8)
    if prompt.scribbles is not None:
        strokes = torch.where(prompt.scribbles != Scribble.NONE, prompt.scribbles, strokes)
    return replace(prompt, mask=None, scribbles=strokes)


@dataclass(frozen=True)
class _Window:
    """A rectangle of the picture, seen at a bounded size.

    Attributes:
        left, top, width, height: the rectangle, in pixels of the picture.
        longest_px: the longest side at which it is seen; it is never enlarged.
    """

    left: int
    top: int
    width: int
    height: int
    longest_px: int

    @property
    def size(self) -> tuple[int, int]:
        """(columns, rows) at which the window is seen."""
        scale = min(1.0, self.longest_px / max(self.width, self.height))
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))

    @property
    def scale(self) -> float:
        """Seen pixels per pixel of the picture."""
        return max(self.size) / max(self.width, self.height)

    def cut(self, plane: np.ndarray) -> np.ndarray:
        """The rectangle out of [H, W, ...], at the picture's own size."""
        return plane[self.top : self.top + self.height, self.left : self.left + self.width]

    def picture(self, plane: np.ndarray) -> np.ndarray:
        """The window's view of float [H, W] or [H, W, C]: [rows, columns, ...], averaged."""
        return cv2.resize(self.cut(plane), self.size, interpolation=cv2.INTER_AREA)

    def touched(self, area: np.ndarray) -> np.ndarray:
        """bool [rows, columns]: where bool [H, W] holds anywhere within the seen pixel, so that no stroke is lost."""
        return self.picture(area.astype(np.float32)) > 0

    def place(self, x_px: float, y_px: float) -> tuple[float, float]:
        """A place of the picture in seen pixels (x, y); (0, 0) is the outer corner of the window."""
        columns, rows = self.size
        return (x_px - self.left) * columns / self.width, (y_px - self.top) * rows / self.height

    def part(self, rows: slice, columns: slice, margin_px: float, longest_px: int, picture_size) -> _Window:
        """A window on seen rows and columns of this one, wider by a margin in the picture's pixels."""
        x_scale, y_scale = self.width / self.size[0], self.height / self.size[1]
        return _window(
            self.left + columns.start * x_scale - margin_px,
            self.top + rows.start * y_scale - margin_px,
            self.left + columns.stop * x_scale + margin_px,
            self.top + rows.stop * y_scale + margin_px,
            longest_px,
            picture_size,
        )


def _window(x0: float, y0: float, x1: float, y1: float, longest_px: int, picture_size: tuple[int, int]) -> _Window:
    """The window on a box, cut at the picture's border. `picture_size` is (width, height)."""
    left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
    right, bottom = min(picture_size[0], math.ceil(x1)), min(picture_size[1], math.ceil(y1))
    return _Window(left, top, right - left, bottom - top, longest_px)


def _surroundings(prompt: Prompt, width: int, height: int, longest_px: int) -> _Window:
    """Where to look for the subject: around box or mask as far again as half their size, else everywhere."""
    bounds = None
    if prompt.box_xyxy_px is not None:
        bounds = prompt.box_xyxy_px
    elif prompt.has_mask and not prompt.has_scribbles and not prompt.points_px:
        rows, columns = _extent(prompt.mask.numpy() > 0.5)
        bounds = columns.start, rows.start, columns.stop, rows.stop
    if bounds is None:
        return _Window(0, 0, width, height, longest_px)
    x0, y0, x1, y1 = bounds
    margin = 0.5 * max(x1 - x0, y1 - y0)
    return _window(x0 - margin, y0 - margin, x1 + margin, y1 + margin, longest_px, (width, height))


def _extent(area: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that bool [H, W] occupies."""
    rows = np.flatnonzero(area.any(axis=1))
    columns = np.flatnonzero(area.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


@dataclass(frozen=True)
class _Seeds:
    """What a prompt says about each pixel of a window; bool [rows, columns] each.

    Attributes:
        subject: certainly the subject, by points and strokes.
        background: certainly not, by points and strokes.
        outside: certainly not, because box or rough mask are elsewhere.
        unknown: the user asked for this to be solved as edge.
        box: (x0, y0, x1, y1) in seen pixels, or None.
        hint: the rough mask, or None.
    """

    subject: np.ndarray
    background: np.ndarray
    outside: np.ndarray
    unknown: np.ndarray
    box: tuple[float, float, float, float] | None
    hint: np.ndarray | None

    @classmethod
    def of(cls, prompt: Prompt, window: _Window) -> _Seeds:
        columns, rows = window.size
        subject = np.zeros((rows, columns), dtype=bool)
        background = np.zeros((rows, columns), dtype=bool)
        outside = np.zeros((rows, columns), dtype=bool)
        unknown = np.zeros((rows, columns), dtype=bool)
        box = hint = None
        if prompt.box_xyxy_px is not None:
            box = (*window.place(*prompt.box_xyxy_px[:2]), *window.place(*prompt.box_xyxy_px[2:]))
            outside[:] = True
            outside[math.floor(box[1]) : math.ceil(box[3]), math.floor(box[0]) : math.ceil(box[2])] = False
        if prompt.has_mask:
            hint = window.picture(prompt.mask.numpy()) > 0.5
            size = math.sqrt(max(1, hint.sum()))
            outside |= _depth(~hint) > 0.15 * size
        if prompt.has_scribbles:
            strokes = prompt.scribbles.numpy()
            background |= window.touched(strokes == Scribble.BACKGROUND)
            subject |= window.touched(strokes == Scribble.FOREGROUND)
            unknown |= window.touched(strokes == Scribble.UNKNOWN)
        radius = max(1.0, _CLICK * max(rows, columns))
        y, x = np.mgrid[:rows, :columns] + 0.5
        for (x_px, y_px), label in zip(prompt.points_px, prompt.labels, strict=True):
            at_x, at_y = window.place(x_px, y_px)
            disc = (x - at_x) ** 2 + (y - at_y) ** 2 <= radius**2
            subject[disc] = label == 1
            background[disc] = label == 0
        subject &= ~background
        return cls(subject, background, outside & ~subject, unknown & ~subject & ~background, box, hint)


def _depth(area: np.ndarray) -> np.ndarray:
    """float32: distance of each pixel of bool [rows, columns] to the nearest one outside; infinite without any."""
    if area.all():
        return np.full(area.shape, np.inf, dtype=np.float32)
    return cv2.distanceTransform(area.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _subject_mask(view: np.ndarray, seeds: _Seeds) -> np.ndarray:
    """The subject as bool [rows, columns], by GrabCut on float [rows, columns, 3].

    What GrabCut finds in a box hangs on where in the box it starts. So it starts from several domes, and the answer
    wins that fills the box to its sides (Lempitsky et al., "Image Segmentation with a Bounding Box Prior", 2009) and
    whose outline runs along edges of the picture.
    """
    seeds, place = _grown(view, seeds)
    starts = [place] if seeds.box is None else [place + _dome(view.shape[:2], seeds.box, r) for r in _DOME_RADII]
    priors = [((odds > 0) | seeds.subject) & ~seeds.background & ~seeds.outside for odds in starts]
    usable = [prior for prior in priors if min(prior.sum(), (~prior).sum()) >= _FEWEST_SEEDS]
    if not usable:
        return priors[-1]
    # OpenCV keeps one random generator a thread: in threads of their own the results repeat themselves and the
    # caller's generator stays as it was.
    with ThreadPoolExecutor(max_workers=len(usable)) as threads:
        found = list(threads.map(lambda prior: _grab_cut(view, prior, seeds), usable))
    masks = [mask for mask in (_kept(mask, seeds) for mask in found) if mask.any()]
    if not masks:
        return priors[-1]
    if seeds.box is None:
        return masks[0]
    edges = _edge_strength(view)
    return max(masks, key=lambda mask: _fills_box(mask, seeds.box) * _along_edges(mask, edges))


def _grown(view: np.ndarray, seeds: _Seeds) -> tuple[_Seeds, np.ndarray]:
    """Seeds that cover what they were put on, and float32 [rows, columns]: odds of being subject at each place.

    A click means the thing under it, not a disc: a seed grows as far as colours stay alike and no seed of the other
    kind is nearly as close, by the geodesic distance of Criminisi, Sharp, Blake, "GeoS" (2008).
    """
    odds = np.zeros(view.shape[:2], dtype=np.float32)
    if seeds.hint is not None:
        signed = np.where(seeds.hint, _depth(seeds.hint), -_depth(~seeds.hint))
        odds += 40 * (signed / math.sqrt(max(1, seeds.hint.sum()))).clip(-0.1, 0.1)
    if not (seeds.subject.any() or seeds.background.any()):
        return seeds, odds
    smooth = cv2.GaussianBlur(view, (0, 0), 1.0)
    inner = _geodesic_distance(smooth, np.where(seeds.subject, 0, _FAR))
    outer = _geodesic_distance(smooth, np.where(seeds.background, 0, _FAR))
    subject = seeds.subject | ((inner < _REACH) & (inner < outer / 3) & ~seeds.outside)
    background = seeds.background | ((outer < _REACH) & (outer < inner / 3))
    if seeds.box is None and seeds.hint is None:
        start = np.where(seeds.background, 0, _FAR)
        # The border is background more often than not, but nobody said so.
        for border in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
            start[border] = np.minimum(start[border], _BORDER_DOUBT)
        outer = _geodesic_distance(smooth, start)
    odds += np.log((outer + 0.02) / (inner + 0.02)).clip(-1, 1)
    return replace(seeds, subject=subject & ~background, background=background), odds


def _dome(shape: tuple[int, int], box: tuple[float, float, float, float], radius: float) -> np.ndarray:
    """Odds of a box: highest in the middle, 0 where the squared distance from it is `radius` (1 at the sides).

    Where the box touches the picture's border the subject is cut off, so the dome is highest at that side.
    """
    rows, columns = shape
    x = _from_middle(columns, box[0], box[2])
    y = _from_middle(rows, box[1], box[3])
    return (3 * (radius - x[None] ** 2 - y[:, None] ** 2)).astype(np.float32)


def _from_middle(count: int, low: float, high: float) -> np.ndarray:
    """[count]: how far along one axis each pixel is from where a box's subject is likeliest; 1 on the box's side."""
    at = (np.arange(count) + 0.5 - low) / (high - low)
    touch = 0.01 * count
    if low <= touch and high >= count - touch:
        return _OPEN * (2 * at - 1)
    if low <= touch:
        return at
    if high >= count - touch:
        return 1 - at
    return 2 * at - 1


def _grab_cut(view: np.ndarray, prior: np.ndarray, seeds: _Seeds) -> np.ndarray:
    """OpenCV's GrabCut on float [rows, columns, 3], started from bool [rows, columns]; the subject as bool.

    In a picture of one colour the prior stays: no colour tells anything there, and OpenCV's cut can take minutes.
    """
    labels = np.where(prior, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[seeds.background | seeds.outside] = cv2.GC_BGD
    labels[seeds.subject] = cv2.GC_FGD
    lab = cv2.cvtColor((view * 255).round().clip(0, 255).astype(np.uint8), cv2.COLOR_RGB2LAB)
    if (lab == lab[0, 0]).all():
        return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    cv2.setRNGSeed(0)
    found, _, _ = cv2.grabCut(lab, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK)
    return (found == cv2.GC_FGD) | (found == cv2.GC_PR_FGD)


def _fills_box(mask: np.ndarray, box: tuple[float, float, float, float]) -> float:
    """Overlap (intersection over union) of the mask's own bounding box with the prompt's."""
    rows, columns = _extent(mask)
    across = max(0.0, min(columns.stop, box[2]) - max(columns.start, box[0]))
    down = max(0.0, min(rows.stop, box[3]) - max(rows.start, box[1]))
    own = (columns.stop - columns.start) * (rows.stop - rows.start)
    return across * down / (own + (box[2] - box[0]) * (box[3] - box[1]) - across * down)


def _edge_strength(view: np.ndarray) -> np.ndarray:
    """float32 [rows, columns], 0..1: the steepest change of colour within a pixel's reach, in CIE Lab."""
    lab = cv2.cvtColor(view, cv2.COLOR_RGB2LAB)
    steep = sum(cv2.Sobel(lab, cv2.CV_32F, *axis) ** 2 for axis in ((1, 0), (0, 1))).sum(axis=-1)
    return np.minimum(1, cv2.dilate(np.sqrt(steep), np.ones((3, 3), np.uint8)) / 60)


def _along_edges(mask: np.ndarray, edges: np.ndarray) -> float:
    """Mean edge strength along the mask's outline; the picture's border is no outline."""
    around = outline(mask)
    return float(edges[around].mean()) if around.any() else 0.0


def _geodesic_distance(view: np.ndarray, start: np.ndarray) -> np.ndarray:
    """float32 [rows, columns]: shortest way to a seed, where a step costs its length plus the colour it crosses."""
    distance = start.astype(np.float32)
    for _ in range(2):
        for turn in range(4):
            turned, colors = np.rot90(distance, turn), np.rot90(view, turn)
            for row in range(1, len(turned)):
                best = turned[row].copy()
                for shift in (-1, 0, 1):
                    to = slice(max(0, -shift), len(best) - max(0, shift))
                    came = slice(max(0, shift), len(best) + min(0, shift))
                    crossed = np.abs(colors[row, to] - colors[row - 1, came]).sum(axis=-1)
                    step = math.hypot(1, shift) / max(distance.shape) + _CROSSING * crossed
                    best[to] = np.minimum(best[to], turned[row - 1, came] + step)
                turned[row] = best
    return distance


def _kept(mask: np.ndarray, seeds: _Seeds) -> np.ndarray:
    """The mask smoothed, without parts that the prompt does not lead to, without specks and pinholes."""
    smooth = cv2.medianBlur(mask.astype(np.uint8), 5) > 0
    smooth = (smooth | seeds.subject) & ~seeds.background & ~seeds.outside
    count, parts, stats, _ = cv2.connectedComponentsWithStats(smooth.astype(np.uint8), connectivity=8)
    if count == 1:
        return smooth
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    keep = areas >= 0.15 * areas.max()
    if seeds.subject.any():
        keep = np.zeros(count, dtype=bool)
        keep[np.unique(parts[seeds.subject])] = True
    keep[0] = False
    subject = keep[parts]
    count, holes, stats, _ = cv2.connectedComponentsWithStats((~subject).astype(np.uint8), connectivity=4)
    rows, columns = subject.shape
    left, top, wide, high, hole_areas = stats.T
    open_to_border = (left == 0) | (top == 0) | (left + wide == columns) | (top + high == rows)
    # A gap at the picture's border may be real background seen between an arm and a body, a closed one rarely is.
    fill = hole_areas < np.where(open_to_border, 0.003, 0.015) * subject.sum()
    fill[0] = False
    fill[np.unique(holes[seeds.background])] = False
    return subject | (fill[holes] & ~seeds.outside)


def _write_matte(
    matte: np.ndarray,
    picture: np.ndarray,
    prompt: Prompt,
    near: _Window,
    mask: np.ndarray,
    method: str,
    band: float,
    longest_px: int,
    refine: Refine | None,
) -> None:
    """Solves the edge of `mask`, which is seen through `near`, and writes the matte [H, W] there."""
    reach = mask
    if prompt.has_scribbles:
        reach = mask | near.touched(prompt.scribbles.numpy() == Scribble.UNKNOWN)
    rows, columns = _extent(reach)
    size_px = math.sqrt(mask.sum()) / near.scale
    band_px = band * max(2.0 / near.scale, 0.02 * size_px)
    far = _REFINER_REACH if method == "refiner" else 1
    window = near.part(rows, columns, (2 + far) * band_px + 8, longest_px, matte.shape[::-1])
    view = window.picture(picture)
    _check_numbers(view)
    whole = np.zeros(near.size[::-1], dtype=np.float32)
    whole[:] = mask
    seen = _resampled(whole, near, window) > 0.5
    seeds = _Seeds.of(Prompt(points_px=prompt.points_px, labels=prompt.labels, scribbles=prompt.scribbles), window)
    width = max(1.0, band_px * window.scale)
    # A subject thinner than the band keeps a certain core.
    inner = min(width, 0.5 * float(_depth(seen).max()))
    reaches = (far * width, far * width) if method == "refiner" else (inner, width)
    trimap = trimap_from_mask(torch.from_numpy(seen), *reaches).numpy()
    trimap[seeds.unknown] = 0.5
    trimap[seeds.background] = 0
    trimap[seeds.subject] = 1
    if method == "refiner":
        alpha = _refined(view, np.where(seeds.unknown, np.float32(0.5), seen), trimap, refine or _shipped_refine())
    else:
        alpha = _tidied(_solved(view, seen, trimap, method, width), trimap)
    _enlarge(alpha, view, window, picture, matte)


def _resampled(plane: np.ndarray, source: _Window, target: _Window) -> np.ndarray:
    """A plane seen through one window, as another window sees it."""
    x_scale = source.size[0] / source.width
    y_scale = source.size[1] / source.height
    columns, rows = target.size
    x = (target.left + (np.arange(columns) + 0.5) * target.width / columns - source.left) * x_scale - 0.5
    y = (target.top + (np.arange(rows) + 0.5) * target.height / rows - source.top) * y_scale - 0.5
    grid = np.broadcast_arrays(x[None].astype(np.float32), y[:, None].astype(np.float32))
    return cv2.remap(plane, grid[0], grid[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _solved(view: np.ndarray, seen: np.ndarray, trimap: np.ndarray, method: str, radius: float) -> np.ndarray:
    """float32 [rows, columns]: the matte that a method finds for the trimap's unknown pixels."""
    unknown = trimap == 0.5
    if not (unknown.any() and (trimap == 0).any() and (trimap == 1).any()):
        return np.where(unknown, seen, trimap).astype(np.float32)
    if method == "none":
        # He, Sun, Tang, "Guided Image Filtering", 2013, section 4.6: a binary mask feathered along the colours.
        guided = _guided(view, np.where(unknown, seen, trimap), max(2, round(radius)), 1e-4)
        return np.where(unknown, guided, trimap).clip(0, 1)
    return solve_view(view, trimap, method)


def _shipped_refine() -> Refine:
    from .refiner import load_refiner, refine_mask

    return partial(refine_mask, load_refiner())


def _refined(view: np.ndarray, mask: np.ndarray, trimap: np.ndarray, refine: Refine) -> np.ndarray:
    """float32 [rows, columns]: what the refiner makes of a mask where the trimap is unknown."""
    alpha = refine(torch.from_numpy(view), torch.from_numpy(mask)).numpy()
    return np.where(trimap == 0.5, alpha, trimap)


def _tidied(alpha: np.ndarray, trimap: np.ndarray) -> np.ndarray:
    """The matte without the faint haze a least-squares solution leaves, and without islands off the subject."""
    alpha = ((alpha - 0.02) / 0.96).clip(0, 1)
    count, parts = cv2.connectedComponents((alpha > 0.1).astype(np.uint8), connectivity=8)
    attached = np.zeros(count, dtype=bool)
    attached[np.unique(parts[trimap == 1])] = True
    attached[0] = True
    return np.where(attached[parts], alpha, 0).astype(np.float32)


def _guided_coefficients(view: np.ndarray, plane: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """float32 [rows, columns, 4]: plane = color . first three + fourth, fitted around each pixel (guided filter)."""
    window = (2 * radius + 1, 2 * radius + 1)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, window, borderType=cv2.BORDER_REFLECT)

    color = view.astype(np.float64)
    value = plane.astype(np.float64)
    color_mean, value_mean = mean(color), mean(value)
    spread = np.stack([mean(color * color[..., i : i + 1]) for i in range(3)], axis=-1)
    spread -= color_mean[..., :, None] * color_mean[..., None, :]
    joint = mean(color * value[..., None]) - color_mean * value_mean[..., None]
    slope = np.linalg.solve(spread + eps * np.eye(3), joint[..., None])[..., 0]
    offset = value_mean - (slope * color_mean).sum(axis=-1)
    return mean(np.concatenate((slope, offset[..., None]), axis=-1)).astype(np.float32)


def _guided(view: np.ndarray, plane: np.ndarray, radius: int, eps: float) -> np.ndarray:
    fit = _guided_coefficients(view, plane, radius, eps)
    return (fit[..., :3] * view).sum(axis=-1) + fit[..., 3]


def _enlarge(alpha: np.ndarray, view: np.ndarray, window: _Window, picture: np.ndarray, matte: np.ndarray) -> None:
    """Writes the window's alpha [rows, columns] into the matte [H, W], following the picture's own edges."""
    target = window.cut(matte)
    if alpha.shape == target.shape:
        target[:] = alpha
        return
    fit = _guided_coefficients(view, alpha, 2, 1e-5)
    around = np.ones((3, 3), np.uint8)
    # A matte that is 0 (or 1) all around stays so: the filter would let the picture's texture shine through.
    planes = np.dstack((fit, cv2.erode(alpha, around), cv2.dilate(alpha, around)))
    colors = window.cut(picture)
    rows = max(1, _STRIP_PX // window.width)
    for top in range(0, window.height, rows):
        strip = slice(top, min(top + rows, window.height))
        fine = _strip_of(planes, strip, window.height, window.width)
        guided = (fine[..., :3] * colors[strip]).sum(axis=-1) + fine[..., 3]
        target[strip] = guided.clip(fine[..., 4], fine[..., 5])


def _strip_of(planes: np.ndarray, strip: slice, height: int, width: int) -> np.ndarray:
    """Rows `strip` of [rows, columns, C] enlarged bilinearly to [height, width, C], without making the rest."""
    y = (np.arange(strip.start, strip.stop) + 0.5) * len(planes) / height - 0.5
    y = y.clip(0, len(planes) - 1)
    above = np.floor(y).astype(int)
    below = np.minimum(above + 1, len(planes) - 1)
    share = (y - above).astype(np.float32)[:, None, None]
    lines = planes[above] * (1 - share) + planes[below] * share
    # OpenCV resizes at most four channels at a time.
    halves = (cv2.resize(np.ascontiguousarray(part), (width, len(y))) for part in (lines[..., :4], lines[..., 4:]))
    return np.dstack(tuple(halves))
