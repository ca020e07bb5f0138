"""The errors that papers report, against slow implementations made another way and against answers found by hand."""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import astuple

import numpy as np
import pytest
import torch

from mam_model.metrics import (
    EmptyBandError,
    InstanceQuality,
    connectivity_error,
    gradient_error,
    instance_matting_quality,
    mad,
    match_instances,
    mse,
    pooled_quality,
    sad,
    score_matte,
)

METRICS = (sad, mse, mad, gradient_error, connectivity_error)
by_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)
by_seed = pytest.mark.parametrize("seed", range(4))

# What a step edge's Grad is a pixel of its length, per pixel that it moves (see the test): (sum g)^2 / sum g^2 over
# the nine samples g of a Gaussian of sigma 1.4. For an endless Gaussian it would be 2 * 1.4 * sqrt(pi) = 4.963.
STEP_ENERGY = sum(math.exp(-(v**2) / 3.92) for v in range(-4, 5)) ** 2 / sum(
    math.exp(-(v**2) / 1.96) for v in range(-4, 5)
)


def soft_picture(rng: np.random.Generator, rows: int = 23, columns: int = 31) -> np.ndarray:
    """An alpha with several soft blobs, with plain 0 and plain 1."""
    y, x = np.mgrid[:rows, :columns]
    height = np.full((rows, columns), -0.6)
    for _ in range(7):
        center_y, center_x, radius = rng.uniform(0, rows), rng.uniform(0, columns), rng.uniform(1.5, 5)
        height += 1.8 * np.exp(-((y - center_y) ** 2 + (x - center_x) ** 2) / (2 * radius**2))
    return height.clip(0, 1)


def soft_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A true alpha, and one that misses some of it, moves some of it and adds noise and a stray blob."""
    rng = np.random.default_rng(seed)
    truth = soft_picture(rng)
    predicted = np.roll(truth, 1, axis=1) * 0.9 + 0.15 * soft_picture(rng) + rng.normal(0, 0.04, truth.shape)
    predicted[5:9, :] *= rng.uniform(0, 1, truth.shape[1])
    return np.where(predicted < 0.05, 0, predicted).clip(0, 1), truth


def random_trimap(seed: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(100 + seed).choice([0.0, 0.5, 1.0], shape)


def slow_gradient_map(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Two full 9 x 9 kernels, one product at a time, over a picture whose border was repeated beforehand."""
    gauss = [math.exp(-(v**2) / (2 * 1.4**2)) / (1.4 * math.sqrt(2 * math.pi)) for v in range(-4, 5)]
    slope = [-v * g / 1.4**2 for v, g in zip(range(-4, 5), gauss)]
    kernel = np.array([[g * s for s in slope] for g in gauss])
    kernel /= math.sqrt(float((kernel * kernel).sum()))
    magnitudes = []
    for alpha in (predicted, truth):
        wide = np.pad(alpha, 4, mode="edge")
        across, down = np.zeros(alpha.shape), np.zeros(alpha.shape)
        for row, column in itertools.product(range(9), range(9)):
            seen = wide[row : row + alpha.shape[0], column : column + alpha.shape[1]]
            across += kernel[8 - row, 8 - column] * seen
            down += kernel.T[8 - row, 8 - column] * seen
        magnitudes.append((across**2 + down**2) ** 0.5)
    return (magnitudes[0] - magnitudes[1]) ** 2


def slow_largest_region(inside: np.ndarray) -> set[tuple[int, int]]:
    """By flooding from every pixel in reading order."""
    unseen = {(int(row), int(column)) for row, column in zip(*np.nonzero(inside))}
    largest: set[tuple[int, int]] = set()
    while unseen:
        start = min(unseen)
        unseen.remove(start)
        region, edge = {start}, deque([start])
        while edge:
            row, column = edge.popleft()
            for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if near in unseen:
                    unseen.remove(near)
                    region.add(near)
                    edge.append(near)
        if len(region) > len(largest):
            largest = region
    return largest


def slow_connectivity_map(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pixel by pixel: the level before the first one at which the pixel is not in the body."""
    bodies = [slow_largest_region((predicted >= i / 10) & (truth >= i / 10)) for i in range(1, 11)]
    error = np.zeros(truth.shape)
    for pixel in np.ndindex(truth.shape):
        level = next((i / 10 for i, body in enumerate(bodies) if pixel not in body), 1.0)
        connectedness = []
        for alpha in (predicted, truth):
            excess = alpha[pixel] - level
            connectedness.append(1 - excess if excess >= 0.15 else 1)
        error[pixel] = abs(connectedness[0] - connectedness[1])
    return error


def slow_errors(predicted: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> dict:
    total, squares, count = 0.0, 0.0, 0
    for p, t, counts in zip(predicted.flat, truth.flat, counted.flat):
        if counts:
            total += abs(float(p) - float(t))
            squares += (float(p) - float(t)) ** 2
            count += 1
    return {
        sad: total,
        mse: squares / count,
        mad: total / count,
        gradient_error: float((slow_gradient_map(predicted, truth) * counted).sum()),
        connectivity_error: float((slow_connectivity_map(predicted, truth) * counted).sum()),
    }


@by_seed
def test_every_error_agrees_with_a_slow_implementation_over_the_whole_picture(seed):
    predicted, truth = soft_pair(seed)
    for metric, expected in slow_errors(predicted, truth, np.ones(truth.shape)).items():
        assert expected > 0
        assert metric(predicted, truth) == pytest.approx(expected, rel=1e-9, abs=1e-9), metric.__name__


@by_seed
def test_every_error_agrees_with_a_slow_implementation_over_the_band(seed):
    predicted, truth = soft_pair(seed)
    trimap = random_trimap(seed, truth.shape)
    for metric, expected in slow_errors(predicted, truth, trimap == 0.5).items():
        assert metric(predicted, truth, trimap) == pytest.approx(expected, rel=1e-9, abs=1e-9), metric.__name__
        assert expected < metric(predicted, truth) or metric in (mse, mad)


def test_the_scores_are_the_errors_in_the_units_of_papers():
    predicted, truth = soft_pair(0)
    trimap = random_trimap(0, truth.shape)
    scales = (1e-3, 1e3, 1e3, 1e-3, 1e-3)
    everywhere, band = score_matte(predicted, truth, trimap)
    assert astuple(everywhere) == pytest.approx(
        [scale * metric(predicted, truth) for scale, metric in zip(scales, METRICS)]
    )
    assert astuple(band) == pytest.approx(
        [scale * metric(predicted, truth, trimap) for scale, metric in zip(scales, METRICS)]
    )


def test_without_a_trimap_there_is_no_score_of_a_band():
    predicted, truth = soft_pair(0)
    assert score_matte(predicted, truth)[1] is None


@by_metric
def test_a_perfect_matte_has_no_error(metric):
    _, truth = soft_pair(1)
    assert metric(truth, truth.copy()) == 0


def test_a_tenth_too_much_on_every_one_of_600_pixels():
    everywhere, _ = score_matte(torch.full((20, 30), 0.5), torch.full((20, 30), 0.4))
    # 60 pixels in all; 0.1 and 0.01 each; flat pictures have no gradient; both are connected up to 0.4.
    assert astuple(everywhere) == pytest.approx((0.06, 10.0, 100.0, 0.0, 0.0), abs=1e-5)


@by_metric
def test_the_band_is_all_that_is_counted(metric):
    truth = np.zeros((20, 40))
    truth[:, 20:] = 1
    predicted = truth.copy()
    predicted[:4, :4] = 0.7
    trimap = truth.copy()
    trimap[:, 18:22] = 0.5
    assert metric(predicted, truth) > 0
    assert metric(predicted, truth, trimap) == 0


def test_the_mean_over_a_band_is_a_mean_over_its_pixels():
    truth, predicted, trimap = np.zeros((10, 10)), np.zeros((10, 10)), np.ones((10, 10))
    predicted[0, :2] = 0.5
    trimap[0, :4] = 0.5
    assert (sad(predicted, truth, trimap), mad(predicted, truth, trimap), mse(predicted, truth, trimap)) == (
        1,
        0.25,
        0.125,
    )


@pytest.mark.parametrize("unknown", [127 / 255, 128 / 255, 0.3, 0.7])
def test_what_is_nearer_to_the_middle_than_to_the_ends_is_unknown(unknown):
    truth, predicted = np.zeros((6, 6)), np.full((6, 6), 0.25)
    trimap = np.array([[0.0, 0.2, unknown, unknown, 0.8, 1.0]] * 6)
    assert sad(predicted, truth, trimap) == 12 * 0.25


@pytest.mark.parametrize("contrast", [1.0, 0.4])
@pytest.mark.parametrize("turned", [False, True])
def test_a_step_edge_moved_by_one_pixel(contrast, turned):
    # Across the edge the gradient is the running sum of the slope kernel, so moving it by a pixel changes it by the
    # slope kernel itself, whose squares add up to 1; along the edge the smoothing multiplies it by sum g / |g|.
    truth, predicted = np.zeros((18, 30)), np.zeros((18, 30))
    truth[:, 15:], predicted[:, 14:] = contrast, contrast
    if turned:
        truth, predicted = truth.T, predicted.T
    assert 4.93 < STEP_ENERGY < 4.97
    assert gradient_error(predicted, truth) == pytest.approx(18 * contrast**2 * STEP_ENERGY, rel=1e-12)


def test_a_step_edge_moved_by_one_pixel_in_a_band_of_five_rows():
    truth, predicted, trimap = np.zeros((18, 30)), np.zeros((18, 30)), np.zeros((18, 30))
    truth[:, 15:], predicted[:, 14:], trimap[6:11] = 1, 1, 0.5
    assert gradient_error(predicted, truth, trimap) == pytest.approx(5 * STEP_ENERGY, rel=1e-12)


def test_gradients_do_not_care_how_bright_a_matte_is_or_which_side_is_the_subject():
    predicted, truth = soft_pair(2)
    error = gradient_error(predicted, truth)
    assert gradient_error(1 - predicted, 1 - truth) == pytest.approx(error, rel=1e-9)
    assert gradient_error(0.5 * predicted + 0.3, 0.5 * truth + 0.2) == pytest.approx(0.25 * error, rel=1e-9)


def body_and_island() -> tuple[np.ndarray, np.ndarray]:
    """A body of 6 x 6 and an island of 2 x 3, a pixel apart, both 1."""
    truth = np.zeros((12, 16))
    truth[2:8, 2:8] = 1
    truth[4:6, 9:12] = 1
    return truth.copy(), truth


def test_an_island_that_is_not_there_costs_each_of_its_pixels():
    predicted, truth = body_and_island()
    truth[4:6, 9:12] = 0
    assert connectivity_error(predicted, truth) == 6


def test_a_slight_error_on_the_body_is_free_and_on_an_island_is_not():
    predicted, truth = body_and_island()
    predicted *= 0.9
    assert sad(predicted, truth) == pytest.approx(4.2)
    assert connectivity_error(predicted, truth) == pytest.approx(6 * 0.1)


def test_a_faint_bridge_ties_an_island_to_the_body_up_to_its_own_level():
    predicted, truth = body_and_island()
    predicted[4, 8], truth[4, 8] = 0.72, 0.75
    predicted[4:6, 9:12] = 0.8
    # Of the island 0.7 is connected: the true 1 lies 0.3 above, the predicted 0.8 only 0.1, which is free.
    assert connectivity_error(predicted, truth) == pytest.approx(6 * 0.3)


def test_a_torn_bridge_costs_only_itself_where_the_island_is_right():
    predicted, truth = body_and_island()
    truth[4, 8] = 1
    assert connectivity_error(predicted, truth) == 1


def test_parts_that_touch_at_a_corner_are_not_connected():
    truth = np.zeros((12, 12))
    truth[2:6, 2:6] = 1
    truth[6:8, 6:8] = 1
    assert connectivity_error(0.9 * truth, truth) == pytest.approx(4 * 0.1)


def test_a_body_that_is_only_faint_outlives_a_smaller_opaque_island():
    truth = np.zeros((12, 16))
    truth[2:8, 2:8] = 0.55
    truth[4:6, 9:12] = 1
    predicted = truth.copy()
    predicted[4:6, 9:12] = 0.9
    # Above 0.5 the island is the largest region, but it was not in the body below.
    assert connectivity_error(predicted, truth) == pytest.approx(6 * 0.1)


def test_of_two_regions_of_one_size_the_first_in_reading_order_is_the_body():
    truth = np.zeros((12, 12))
    truth[1:3, 8:10] = 1
    truth[8:10, 1:3] = 1
    lower_left_faint, upper_right_faint = truth.copy(), truth.copy()
    lower_left_faint[8:10, 1:3] = 0.9
    upper_right_faint[1:3, 8:10] = 0.9
    assert connectivity_error(upper_right_faint, truth) == 0
    assert connectivity_error(lower_left_faint, truth) == pytest.approx(4 * 0.1)


def test_the_background_is_never_the_body():
    truth, predicted = np.zeros((40, 40)), np.zeros((40, 40))
    truth[10:14, 10:14], predicted[10:14, 10:14] = 0.9, 1.0
    assert connectivity_error(predicted, truth) == 0


def test_an_empty_matte_loses_all_of_the_subject():
    truth = np.zeros((10, 10))
    truth[3:6, 3:6] = 0.5
    truth[4, 4] = 0.1
    # A true alpha below 0.15 is free.
    assert connectivity_error(np.zeros((10, 10)), truth) == pytest.approx(8 * 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8])
def test_a_matte_exactly_at_a_level_reaches_it_in_any_precision(level, dtype):
    truth = torch.full((4, 5), level, dtype=dtype)
    assert connectivity_error(torch.full((4, 5), level + 0.14, dtype=dtype), truth) == 0
    assert connectivity_error(torch.full((4, 5), level + 0.15, dtype=dtype), truth) == pytest.approx(
        20 * 0.15, rel=1e-5
    )


def test_8_bit_mattes_are_counted_as_with_whole_numbers():
    rng = np.random.default_rng(5)
    stripes = rng.choice([51, 102, 153, 204, 255, 0, 76, 77, 178, 179], (2, 16, 16))
    predicted, truth = np.repeat(stripes, 2, axis=2)
    bodies = [slow_largest_region((10 * predicted >= 255 * i) & (10 * truth >= 255 * i)) for i in range(1, 11)]
    expected = 0
    for pixel in np.ndindex(truth.shape):
        level = next((i for i, body in enumerate(bodies) if pixel not in body), 10)
        # In units of 1 / 5100: alpha k / 255 is 20 k, a level i / 10 is 510 i, theta is 765.
        excesses = [20 * int(matte[pixel]) - 510 * level for matte in (predicted, truth)]
        kept = [excess if excess >= 765 else 0 for excess in excesses]
        expected += abs(kept[0] - kept[1])
    assert expected > 0
    for dtype in (np.float32, np.float64):
        result = connectivity_error((predicted / 255).astype(dtype), (truth / 255).astype(dtype))
        assert result == pytest.approx(expected / 5100, rel=1e-6)


@by_metric
def test_an_error_does_not_depend_on_which_of_the_two_is_the_truth(metric):
    predicted, truth = soft_pair(3)
    assert metric(predicted, truth) == pytest.approx(metric(truth, predicted), rel=1e-12)


@by_metric
@pytest.mark.parametrize("turn", [np.fliplr, np.flipud, np.rot90, np.transpose], ids=lambda turn: turn.__name__)
def test_an_error_does_not_depend_on_how_the_picture_is_turned(metric, turn):
    predicted, truth = soft_pair(3)
    assert metric(turn(predicted).copy(), turn(truth).copy()) == pytest.approx(metric(predicted, truth), rel=1e-9)


@by_metric
def test_an_error_is_the_same_for_every_type_of_number_and_leaves_its_arguments_alone(metric):
    predicted, truth = soft_pair(0)
    halves = torch.from_numpy(predicted).round(decimals=1).float(), torch.from_numpy(truth > 0.5)
    before = halves[0].clone(), halves[1].clone()
    expected = metric(halves[0].double().numpy(), halves[1].double().numpy())
    assert metric(halves[0], halves[1]) == pytest.approx(expected, rel=1e-6)
    assert metric(halves[0].clone().requires_grad_(), halves[1]) == pytest.approx(expected, rel=1e-6)
    assert torch.equal(halves[0], before[0]) and torch.equal(halves[1], before[1])


def test_an_array_may_lie_in_memory_as_it_likes():
    predicted, truth = soft_pair(0)
    expected = score_matte(predicted, truth)
    read_only = predicted.copy()
    read_only.flags.writeable = False
    for same in (np.ascontiguousarray(predicted[::-1, ::-1])[::-1, ::-1], predicted.astype(">f8"), read_only):
        assert score_matte(same, truth) == expected
    upside_down = match_instances(predicted[None, ::-1], truth[None, ::-1])
    assert upside_down == match_instances(predicted[None], truth[None])


def test_more_background_around_a_subject_leaves_sums_alone_and_thins_means():
    predicted, truth = (np.pad(alpha, 5) for alpha in soft_pair(1))
    wide_predicted, wide_truth = np.pad(predicted, 7), np.pad(truth, 7)
    thinner = truth.size / wide_truth.size
    for metric in METRICS:
        scale = thinner if metric in (mse, mad) else 1
        assert metric(wide_predicted, wide_truth) == pytest.approx(scale * metric(predicted, truth), rel=1e-9)


def test_sizes_that_differ_are_both_named():
    for metric in (*METRICS, score_matte):
        with pytest.raises(ValueError, match=r"\(4 x 5\).*\(4 x 6\).*Resize"):
            metric(torch.zeros(4, 5), torch.zeros(4, 6))
    with pytest.raises(ValueError, match=r"trimap \(4 x 6\).*\(4 x 5\).*Resize"):
        score_matte(torch.zeros(4, 5), torch.zeros(4, 5), torch.full((4, 6), 0.5))


def test_a_batch_is_not_a_matte_and_a_matte_is_not_a_batch():
    with pytest.raises(ValueError, match=r"\(1 x 4 x 5\).*must both be \[height, width\]"):
        sad(torch.zeros(1, 4, 5), torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"\(4 x 5\) must both be \[instances, height, width\]"):
        instance_matting_quality(torch.zeros(1, 4, 5), torch.zeros(4, 5))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_numbers_are_refused(value):
    broken = torch.zeros(4, 5)
    broken[2, 3] = value
    with pytest.raises(ValueError, match="predicted matte holds values that are not numbers"):
        score_matte(broken, torch.zeros(4, 5))
    with pytest.raises(ValueError, match="true matte holds values that are not numbers"):
        score_matte(torch.zeros(4, 5), broken)
    with pytest.raises(ValueError, match="trimap holds values that are not numbers"):
        score_matte(torch.zeros(4, 5), torch.zeros(4, 5), broken)


def test_values_of_another_scale_are_refused_and_slight_overshoot_is_not():
    truth = torch.zeros(4, 5)
    with pytest.raises(ValueError, match="predicted matte has values from 0 to 255.*Divide"):
        sad(torch.full((4, 5), 255), truth)
    with pytest.raises(ValueError, match="true matte has values from -0.5 to 0"):
        sad(truth, torch.full((4, 5), -0.5))
    assert sad(torch.full((4, 5), -1e-6), truth) == pytest.approx(20e-6)
    assert sad(torch.full((4, 5), 1 + 1e-6), truth) == pytest.approx(20 + 20e-6)


@by_metric
def test_a_trimap_without_a_band_is_said_so(metric):
    with pytest.raises(EmptyBandError, match="no unknown pixel.*no band"):
        metric(torch.zeros(4, 5), torch.zeros(4, 5), torch.ones(4, 5))


def slow_quality(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, ...]:
    """IMQ by trying every way to pair the instances up."""
    n, m = len(predicted), len(truth)

    def iou(i: int, j: int) -> float:
        both = either = 0
        for p, t in zip(predicted[i].flat, truth[j].flat):
            both += p > 0 and t > 0
            either += p > 0 or t > 0
        return both / either if either else 0.0

    table = {(i, j): iou(i, j) for i in range(n) for j in range(m)}
    if n <= m:
        ways = [list(zip(range(n), chosen)) for chosen in itertools.permutations(range(m), n)]
    else:
        ways = [list(zip(chosen, range(m))) for chosen in itertools.permutations(range(n), m)]
    best = max(ways, key=lambda way: sum(table[pair] for pair in way))
    matched = [pair for pair in best if table[pair] >= 0.5]
    sums = [0.0] * 4
    for i, j in matched:
        maps = (
            abs(predicted[i] - truth[j]),
            (predicted[i] - truth[j]) ** 2,
            slow_gradient_map(predicted[i], truth[j]),
            slow_connectivity_map(predicted[i], truth[j]),
        )
        union = [pixel for pixel in np.ndindex(truth[j].shape) if predicted[i][pixel] > 0 or truth[j][pixel] > 0]
        for kind, error in enumerate(maps):
            sums[kind] += max(0.0, 1 - 10 * sum(error[pixel] for pixel in union) / len(union))
    tp, fp, fn = len(matched), n - len(matched), m - len(matched)
    return (*(total / (tp + fp / 2 + fn / 2) for total in sums), tp, fp, fn)


def soft_instances(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four true instances; three predicted in another order, one of them moved, and two that are nothing true."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:24, :32]

    def disc(center_y: float, center_x: float, radius: float) -> np.ndarray:
        return (radius - np.hypot(y - center_y, x - center_x)).clip(0, 2) / 2

    truth = np.stack([disc(6, 6, 5), disc(7, 13, 6), disc(16, 22, 7), disc(18, 6, 4)])
    predicted = np.stack(
        [
            (disc(16, 22, 7) * rng.uniform(0.95, 1, y.shape)).clip(0, 1),
            disc(5, 26, 3),
            disc(6, 6 + rng.uniform(0.1, 0.4), 5),
            disc(18, 9, 2),
            disc(7, 14, 6.2),
        ]
    )
    return predicted, truth


@by_seed
def test_instance_quality_agrees_with_a_slow_implementation(seed):
    predicted, truth = soft_instances(seed)
    for mine, theirs in ((predicted, truth), (predicted[:2], truth), (predicted, truth[2:])):
        expected = slow_quality(mine, theirs)
        assert any(0 < kind < 1 for kind in expected[:4])
        assert astuple(instance_matting_quality(mine, theirs)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def squares(*columns: int) -> torch.Tensor:
    """Instances of 4 x 4 pixels, one for each left column."""
    instances = torch.zeros(len(columns), 10, 40)
    for instance, column in zip(instances, columns):
        instance[3:7, column : column + 4] = 1
    return instances


def test_perfect_instances_have_quality_1():
    assert instance_matting_quality(squares(2, 12, 30), squares(2, 12, 30)) == InstanceQuality(1, 1, 1, 1, 3, 0, 0)


def test_the_order_of_the_instances_does_not_matter():
    predicted, truth = soft_instances(0)
    expected = astuple(instance_matting_quality(predicted, truth))
    for order in ((4, 3, 2, 1, 0), (2, 0, 4, 1, 3)):
        shuffled = instance_matting_quality(predicted[list(order)], truth[[1, 3, 0, 2]])
        assert astuple(shuffled) == pytest.approx(expected, rel=1e-12)


def test_one_of_two_instances_missing_or_one_too_many():
    # 1 / (1 + 1 / 2)
    missing = instance_matting_quality(squares(12), squares(2, 12))
    invented = instance_matting_quality(squares(2, 12), squares(12))
    assert (missing.tp, missing.fp, missing.fn) == (1, 0, 1)
    assert (invented.tp, invented.fp, invented.fn) == (1, 1, 0)
    assert astuple(missing)[:4] == astuple(invented)[:4] == pytest.approx([2 / 3] * 4)


def test_a_matte_that_is_a_twentieth_too_faint():
    quality = instance_matting_quality(0.95 * squares(12), squares(12))
    # MAD 0.05 and MSE 0.0025 over the 16 pixels; 0.05 is within what connectivity forgives.
    assert (quality.mad, quality.mse, quality.conn) == pytest.approx((0.5, 0.975, 1.0), abs=1e-5)


def test_an_error_of_a_tenth_or_more_is_worth_nothing_but_never_less():
    quality = instance_matting_quality(0.5 * squares(12), squares(12))
    assert (quality.mad, quality.mse, quality.tp) == (0, 0, 1)


def test_half_of_the_union_is_a_match_and_less_is_not():
    half = squares(12)
    half[:, :, 14:] = 0
    assert match_instances(half, squares(12)) == [(0, 0)]
    half[0, 3, 12] = 0
    assert match_instances(half, squares(12)) == []
    assert instance_matting_quality(half, squares(12)) == InstanceQuality(0, 0, 0, 0, 0, 1, 1)


def test_instances_are_assigned_for_the_best_total_and_not_each_to_its_nearest():
    predicted, truth = torch.zeros(2, 1, 10), torch.zeros(2, 1, 10)
    predicted[0, :, :10], predicted[1, :, :6] = 1, 1
    truth[0, :, :8], truth[1, :, 3:] = 1, 1
    # IoU: 0.8 and 0.7 for the first, 0.75 and 0.3 for the second.
    assert match_instances(predicted, truth) == [(0, 1), (1, 0)]


def test_what_an_instance_covers_begins_just_above_0_unless_told_otherwise():
    faint = squares(12)
    faint[faint == 0] = 0.001
    assert match_instances(faint, squares(12)) == []
    assert match_instances(faint, squares(12), support_above=0.5 / 255) == [(0, 0)]
    assert instance_matting_quality(faint, squares(12)).tp == 0
    quality = instance_matting_quality(faint, squares(12), support_above=0.5 / 255)
    assert (quality.mad, quality.tp) == (1, 1)


def test_an_empty_matte_counts_as_an_instance_that_is_not_there():
    nothing = torch.zeros(1, 10, 40)
    quality = instance_matting_quality(torch.cat((squares(12), nothing)), torch.cat((squares(12), nothing)))
    assert quality == InstanceQuality(0.5, 0.5, 0.5, 0.5, 1, 1, 1)


def test_no_instances_on_one_side_or_on_both():
    assert instance_matting_quality(squares(), squares(2, 12)) == InstanceQuality(0, 0, 0, 0, 0, 0, 2)
    assert instance_matting_quality(squares(2, 12, 22), squares()) == InstanceQuality(0, 0, 0, 0, 0, 3, 0)
    assert instance_matting_quality(squares(), squares()) == InstanceQuality(1, 1, 1, 1, 0, 0, 0)


def test_the_quality_of_a_test_set_adds_up_instances_and_not_pictures():
    perfect = instance_matting_quality(squares(2, 12, 22), squares(2, 12, 22))
    missed = instance_matting_quality(squares(), squares(2))
    blank = instance_matting_quality(squares(), squares())
    invented = instance_matting_quality(squares(2, 12, 22), squares())
    # Similarities of 3 over TP 3 + FN 1 / 2, and over TP 3 + FP 3 / 2 + FN 1 / 2.
    assert astuple(pooled_quality([perfect, missed, blank])) == pytest.approx((*[3 / 3.5] * 4, 3, 0, 1))
    assert astuple(pooled_quality([perfect, invented, missed])) == pytest.approx((*[3 / 5] * 4, 3, 3, 1))
    assert pooled_quality([blank, blank]) == blank
    kinds = InstanceQuality(0.1, 0.2, 0.3, 0.4, 1, 2, 4)
    assert astuple(pooled_quality([kinds])) == pytest.approx(astuple(kinds))


def test_instances_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(2 x 10 x 40\).*\(1 x 10 x 41\).*Resize"):
        instance_matting_quality(squares(2, 12), torch.zeros(1, 10, 41))
