"""How far a matte is from the true one: SAD, MSE, MAD, Grad and Conn of a matte, and IMQ of a set of instances.

Alphas run from 0 to 1. All functions compute in float64 on the CPU, whatever they are given, and change nothing.

Grad and Conn are those of Rhemann et al. 2009, "A perceptually motivated online benchmark for image matting", with the
parameters of the evaluation code that Deep Image Matting (Xu et al. 2017) handed on and that papers report since.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GRADIENT_SIGMA_PX = 1.4
GRADIENT_CUT_OFF = 1e-2
CONNECTIVITY_STEP = 0.1
CONNECTIVITY_THETA = 0.15
MATCHING_IOU = 0.5
SIMILARITY_SLOPE = 10.0

# What can be measured of a matte, and which of these IMQ exists with.
KINDS = ("sad", "mse", "mad", "grad", "conn")
QUALITY_KINDS = ("mad", "mse", "grad", "conn")

# An alpha, a trimap, or a stack of alphas.
Picture = Tensor | np.ndarray

# 0.7 is a little less than 0.7 once it was a float32; a level counts as reached from this much below it.
_ROUNDING = 1e-6
# What resampling may overshoot without being another scale of values.
_RANGE_SLACK = 1e-3


class EmptyBandError(ValueError):
    """A trimap without any unknown pixel, so that there is no band to measure in."""


@dataclass(frozen=True)
class MatteScores:
    """The errors of one matte in the units that papers print; 0 is perfect, less is better.

    Attributes:
        sad: sum of absolute differences, in thousands of pixels (sum / 1000).
        mse: mean squared difference, in thousandths (mean x 1000).
        mad: mean absolute difference, in thousandths (mean x 1000).
        grad: gradient error, `gradient_error` / 1000.
        conn: connectivity error, `connectivity_error` / 1000.
    """

    sad: float
    mse: float
    mad: float
    grad: float
    conn: float


@dataclass(frozen=True)
class InstanceQuality:
    """Instance matting quality, once for each kind of error. 0..1, more is better; papers print it x 100.

    Attributes:
        mad, mse, grad, conn: IMQ with that error.
        tp: true positives, pairs of a predicted and a true instance that were matched.
        fp: false positives, predicted instances without a true one.
        fn: false negatives, true instances that were not found.
    """

    mad: float
    mse: float
    grad: float
    conn: float
    tp: int
    fp: int
    fn: int

    @property
    def weight(self) -> float:
        """IMQ's denominator, TP + FP / 2 + FN / 2: what this picture weighs among others."""
        return self.tp + (self.fp + self.fn) / 2


def score_matte(
    predicted: Picture, truth: Picture, trimap: Picture | None = None, *, kinds: Collection[str] = KINDS
) -> tuple[MatteScores, MatteScores | None]:
    """All five errors of a matte, in the units that papers print.

    Args:
        predicted: [H, W], 0..1.
        truth: [H, W], 0..1.
        trimap: [H, W] of 0, 0.5 and 1. What is nearer to 0.5 than to 0 and 1 is the unknown band; so 128 of an 8-bit
            trimap counts as unknown.
        kinds: of KINDS, which errors are wanted; the others are NaN. Grad and Conn take most of the time.

    Returns:
        The errors over the whole picture, and those over the band, which are None without a trimap. Gradients and
        connected regions are those of the whole picture in both; the band only chooses which pixels are counted.

    Raises:
        EmptyBandError: when the trimap has no unknown pixel.
        ValueError: when the sizes differ, a value is not a number, or values lie outside of 0..1.
    """
    predicted, truth = _pair(predicted, truth)
    everywhere = np.ones(truth.shape, dtype=bool)
    band = None if trimap is None else _region(trimap, truth.shape)
    difference = np.abs(predicted - truth)
    gradient = _gradient_errors(predicted, truth) if "grad" in kinds else None
    connectivity = _connectivity_errors(predicted, truth) if "conn" in kinds else None

    def over(region: np.ndarray) -> MatteScores:
        inside = difference[region]
        return MatteScores(
            sad=float(inside.sum()) / 1000 if "sad" in kinds else math.nan,
            mse=float(np.square(inside).mean()) * 1000 if "mse" in kinds else math.nan,
            mad=float(inside.mean()) * 1000 if "mad" in kinds else math.nan,
            grad=math.nan if gradient is None else float(gradient[region].sum()) / 1000,
            conn=math.nan if connectivity is None else float(connectivity[region].sum()) / 1000,
        )

    return over(everywhere), None if band is None else over(band)


def sad(predicted: Picture, truth: Picture, trimap: Picture | None = None) -> float:
    """Sum of absolute differences, in pixels, over the picture or a trimap's band.

    Arguments and errors are those of `score_matte`; this is its `sad` before the scaling.
    """
    predicted, truth = _pair(predicted, truth)
    return float(np.abs(predicted - truth)[_region(trimap, truth.shape)].sum())


def mse(predicted: Picture, truth: Picture, trimap: Picture | None = None) -> float:
    """Mean squared difference, 0..1, over the picture or a trimap's band.

    Arguments and errors are those of `score_matte`; this is its `mse` before the scaling.
    """
    predicted, truth = _pair(predicted, truth)
    return float(np.square(predicted - truth)[_region(trimap, truth.shape)].mean())


def mad(predicted: Picture, truth: Picture, trimap: Picture | None = None) -> float:
    """Mean absolute difference, 0..1, over the picture or a trimap's band.

    Arguments and errors are those of `score_matte`; this is its `mad` before the scaling.
    """
    predicted, truth = _pair(predicted, truth)
    return float(np.abs(predicted - truth)[_region(trimap, truth.shape)].mean())


def gradient_error(predicted: Picture, truth: Picture, trimap: Picture | None = None) -> float:
    """Sum over the pixels of the squared difference of gradient magnitudes (Rhemann et al. 2009).

    The gradient is taken with first derivatives of a Gaussian of sigma 1.4 px, 9 x 9 (cut off where the Gaussian falls
    below 0.01), each kernel scaled to a Euclidean norm of 1, and the picture's border repeated. Alphas are taken as
    they are: the MATLAB evaluation of Deep Image Matting first stretches each matte to its own minimum and maximum,
    which is the same for mattes that hold both a 0 and a 1.

    Arguments and errors are those of `score_matte`; this is its `grad` before the scaling.
    """
    predicted, truth = _pair(predicted, truth)
    return float(_gradient_errors(predicted, truth)[_region(trimap, truth.shape)].sum())


def connectivity_error(predicted: Picture, truth: Picture, trimap: Picture | None = None) -> float:
    """Sum over the pixels of the difference of their connectedness to the subject's body (Rhemann et al. 2009).

    At each level 0.1, 0.2 .. 1 the body is the largest 4-connected region where both alphas reach the level; of equally
    large ones the first in reading order. l is the highest level up to which a pixel is in the body at every level, d
    its alpha - l, and its connectedness 1 - d where d >= 0.15, else 1. So a matte may differ by less than 0.15 from
    what is connected to the body at no cost, while every difference on a part torn off counts.

    The empty region stands for the body at a level that nothing reaches. Some evaluation scripts (that of the released
    Matting Anything among them) let the background compete for the largest region; where a subject covers less than
    half of the picture their figures differ from these.

    Arguments and errors are those of `score_matte`; this is its `conn` before the scaling.
    """
    predicted, truth = _pair(predicted, truth)
    return float(_connectivity_errors(predicted, truth)[_region(trimap, truth.shape)].sum())


def match_instances(predicted: Picture, truth: Picture, *, support_above: float = 0.0) -> list[tuple[int, int]]:
    """Which predicted instance is which true one: the assignment of the largest total IoU, kept from IoU 0.5 upwards.

    Args:
        predicted: [N, H, W], 0..1; N may be 0.
        truth: [M, H, W], 0..1; M may be 0.
        support_above: an instance covers the pixels whose alpha is above this. The published definition is 0, for
            mattes from 8-bit files. Mattes straight from a network are hardly anywhere exactly 0; with 0.5 / 255 they
            cover what their 8-bit file would.

    Returns:
        (index of the predicted, index of the true instance) for each match, in the order of the predicted ones.

    Raises:
        ValueError: when the sizes differ, a value is not a number, or values lie outside of 0..1.
    """
    predicted, truth = _pair(predicted, truth, instances=True)
    return _matches(predicted > support_above, truth > support_above)


def instance_matting_quality(
    predicted: Picture,
    truth: Picture,
    *,
    support_above: float = 0.0,
    kinds: Collection[str] = QUALITY_KINDS,
    before_pair: Callable[[], None] | None = None,
) -> InstanceQuality:
    """Instance matting quality (IMQ) of one picture's instances (Sun, Tang, Tai 2022, "Human Instance Matting via
    Mutual Guidance and Multi-Instance Refinement").

    Instances are matched as in `match_instances`. A matched pair has the similarity 1 - min(10 * error, 1), where the
    error is the mean per pixel, over all that either of the two covers, of the absolute or squared difference, the
    gradient error or the connectivity error. IMQ is the sum of the similarities / (TP + FP / 2 + FN / 2).

    Every matte given counts as an instance, also one that is 0 everywhere: leave out the entries of targets that were
    not found. Without instances on one side IMQ is 0; without any on both it is 1, as nothing was missed or invented.

    Arguments and errors are those of `match_instances`; of the errors in QUALITY_KINDS, those not in `kinds` are left
    out and their IMQ is NaN. `before_pair` is called before each two instances are compared; what it raises (a
    cancelled run) ends the work. For a whole test set see `pooled_quality`.
    """
    predicted, truth = _pair(predicted, truth, instances=True)
    covered, truly_covered = predicted > support_above, truth > support_above
    matches = _matches(covered, truly_covered, before_pair)
    tp, fp, fn = len(matches), len(predicted) - len(matches), len(truth) - len(matches)
    wanted = np.array([0.0 if kind in kinds else math.nan for kind in QUALITY_KINDS])
    if not len(predicted) and not len(truth):
        return InstanceQuality(*(1 + wanted).tolist(), tp, fp, fn)
    similarities = wanted
    for i, j in matches:
        if before_pair:
            before_pair()
        similarities = similarities + _similarities(predicted[i], truth[j], covered[i] | truly_covered[j], kinds)
    by_mad, by_mse, by_grad, by_conn = (similarities / (tp + (fp + fn) / 2)).tolist()
    return InstanceQuality(by_mad, by_mse, by_grad, by_conn, tp, fp, fn)


def pooled_quality(pictures: Iterable[InstanceQuality]) -> InstanceQuality:
    """IMQ of a test set, as published: similarities and counts of all pictures are summed before the division.

    It is not the mean of the pictures' IMQ: a picture with more instances weighs more, one without any nothing.
    """
    pictures = list(pictures)
    weight = sum(picture.weight for picture in pictures)

    def mean(kind: str) -> float:
        return sum(getattr(picture, kind) * picture.weight for picture in pictures) / weight if weight else 1.0

    return InstanceQuality(
        mean("mad"),
        mean("mse"),
        mean("grad"),
        mean("conn"),
        sum(picture.tp for picture in pictures),
        sum(picture.fp for picture in pictures),
        sum(picture.fn for picture in pictures),
    )


def _gradient_errors(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The squared difference of the gradients' magnitudes at each pixel, [H, W]."""
    return np.square(_gradient_magnitude(predicted) - _gradient_magnitude(truth))


def _gradient_magnitude(alpha: np.ndarray) -> np.ndarray:
    from scipy.ndimage import correlate1d

    sigma = GRADIENT_SIGMA_PX
    half = math.ceil(sigma * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * sigma * GRADIENT_CUT_OFF)))
    offsets = np.arange(-half, half + 1)
    smooth = np.exp(-(offsets**2) / (2 * sigma**2))
    slope = offsets * smooth
    # The norm of a separable kernel is the product of the norms of its two factors.
    smooth /= np.linalg.norm(smooth)
    slope /= np.linalg.norm(slope)
    across, down = (
        correlate1d(correlate1d(alpha, slope, axis, mode="nearest"), smooth, 1 - axis, mode="nearest")
        for axis in (1, 0)
    )
    return np.hypot(across, down)


def _connectivity_errors(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The absolute difference of the connectedness at each pixel, [H, W]."""
    reached = np.minimum(predicted, truth) + _ROUNDING
    in_body = np.ones(truth.shape, dtype=bool)
    level_of = np.zeros(truth.shape)
    levels = round(1 / CONNECTIVITY_STEP)
    for step in range(1, levels + 1):
        level = step / levels
        in_body &= _largest_region(reached >= level)
        level_of[in_body] = level
    return np.abs(_torn_off(predicted, level_of) - _torn_off(truth, level_of))


def _torn_off(alpha: np.ndarray, level_of: np.ndarray) -> np.ndarray:
    """1 - connectedness: by how much alpha exceeds the level of its connection, 0 below theta."""
    excess = alpha - level_of
    return np.where(excess + _ROUNDING >= CONNECTIVITY_THETA, excess, 0.0)


def _largest_region(inside: np.ndarray) -> np.ndarray:
    """The largest 4-connected region of a bool [H, W], the first in reading order of equals; empty if that is empty."""
    from scipy.ndimage import label

    regions, count = label(inside)
    if not count:
        return inside
    sizes = np.bincount(regions.ravel())
    return regions == 1 + sizes[1:].argmax()


def _matches(
    covered: np.ndarray, truly_covered: np.ndarray, before_pair: Callable[[], None] | None = None
) -> list[tuple[int, int]]:
    """`match_instances` on supports, bool [N, H, W] and [M, H, W]."""
    from scipy.optimize import linear_sum_assignment

    iou = np.zeros((len(covered), len(truly_covered)))
    for i, mine in enumerate(covered):
        for j, theirs in enumerate(truly_covered):
            if before_pair:
                before_pair()
            union = np.count_nonzero(mine | theirs)
            iou[i, j] = np.count_nonzero(mine & theirs) / union if union else 0.0
    pairs = zip(*linear_sum_assignment(iou, maximize=True))
    return [(int(i), int(j)) for i, j in pairs if iou[i, j] >= MATCHING_IOU]


def _similarities(predicted: np.ndarray, truth: np.ndarray, union: np.ndarray, kinds: Collection[str]) -> np.ndarray:
    """The similarity of two instances by each of QUALITY_KINDS, 0..1; NaN where it is not in `kinds`."""
    errors = {
        "mad": lambda: np.abs(predicted - truth),
        "mse": lambda: np.square(predicted - truth),
        "grad": lambda: _gradient_errors(predicted, truth),
        "conn": lambda: _connectivity_errors(predicted, truth),
    }

    def similarity(kind: str) -> float:
        return 1 - min(SIMILARITY_SLOPE * float(errors[kind]()[union].mean()), 1.0)

    return np.array([similarity(kind) if kind in kinds else math.nan for kind in QUALITY_KINDS])


def _region(trimap: Picture | None, shape: tuple[int, ...]) -> np.ndarray:
    """bool [H, W]: the pixels to count, all of them without a trimap."""
    if trimap is None:
        return np.ones(shape, dtype=bool)
    trimap = _float64(trimap, "trimap")
    if trimap.shape != shape:
        raise ValueError(
            f"The trimap {_spoken(trimap.shape)} and the mattes {_spoken(shape)} differ in size. Resize one."
        )
    band = np.abs(trimap - 0.5) < 0.25
    if not band.any():
        raise EmptyBandError(
            "The trimap has no unknown pixel (about 0.5, between the background's 0 and the subject's 1), so there is "
            "no band to measure in. Widen its band, or measure without a trimap."
        )
    return band


def _pair(predicted: Picture, truth: Picture, *, instances: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 arrays, checked to be mattes of one size."""
    predicted, truth = _float64(predicted, "predicted matte"), _float64(truth, "true matte")
    if instances:
        axes, wanted = 3, "[instances, height, width]"
    else:
        axes, wanted = 2, "[height, width]"
    sizes = f"The predicted matte {_spoken(predicted.shape)} and the true one {_spoken(truth.shape)}"
    if predicted.ndim != axes or truth.ndim != axes:
        raise ValueError(f"{sizes} must both be {wanted}.")
    if predicted.shape[-2:] != truth.shape[-2:]:
        raise ValueError(f"{sizes} differ in size. Resize one.")
    return predicted, truth


def _float64(matte: Picture, name: str) -> np.ndarray:
    if isinstance(matte, Tensor):
        matte = matte.detach().cpu().to(torch.float64).numpy()
    matte = np.asarray(matte, dtype=np.float64)
    if not np.isfinite(matte).all():
        raise ValueError(f"The {name} holds values that are not numbers (NaN or infinite). Make it again.")
    low, high = matte.min(initial=0), matte.max(initial=0)
    if low < -_RANGE_SLACK or high > 1 + _RANGE_SLACK:
        raise ValueError(
            f"The {name} has values from {low:g} to {high:g}; they go from 0 to 1. Divide an 8-bit one by 255, clamp "
            "one that overshoots."
        )
    return matte


def _spoken(shape: tuple[int, ...]) -> str:
    return "(" + " x ".join(str(n) for n in shape) + ")"
