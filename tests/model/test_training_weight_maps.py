"""Which pixels count in training: the schedule by steps, the trimap's band, and the bands the network leaves unsure."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mam_model.m2m import AlphaPyramid
from mam_model.training.config import Schedule
from mam_model.training.weight_maps import generator, random_trimap, unsure_band, weight_maps

SIDE = 1024
SCHEDULE = Schedule(steps=20_000)


def disc(diameter: int) -> np.ndarray:
    """OpenCV's elliptical structuring element, by its definition: rows of an ellipse, rounded."""
    radius = diameter // 2
    element = np.zeros((diameter, diameter), dtype=bool)
    for row in range(diameter):
        offset = row - radius
        if abs(offset) <= radius:
            reach = round(radius * math.sqrt((radius**2 - offset**2) / radius**2)) if radius else 0
            element[row, max(0, radius - reach) : radius + reach + 1] = True
    return element


def slowly_dilated(area: np.ndarray, diameter: int) -> np.ndarray:
    """Each pixel looks at every place of the disc around it, those beyond the picture's border being empty."""
    element, radius = disc(diameter), diameter // 2
    wide = np.pad(area, diameter)
    result = np.zeros_like(area)
    for row, column in np.argwhere(element):
        top, left = diameter + row - radius, diameter + column - radius
        result |= wide[top : top + area.shape[0], left : left + area.shape[1]]
    return result


def soft_disc(side: int = 96, radius: float = 20.0, softness: float = 5.0) -> np.ndarray:
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return ((radius - np.hypot(x, y)) / softness + 0.5).clip(0, 1).astype(np.float32)


def predicted(count: int = 2, side: int = 96) -> AlphaPyramid:
    """os8 soft over a wide band, os4 over a narrow one, os1 hard."""
    scales = (soft_disc(side, 20, 9), soft_disc(side, 20, 3), soft_disc(side, 20, 0.01))
    return AlphaPyramid(*(torch.from_numpy(scale)[None, None].repeat(count, 1, 1, 1) for scale in scales))


def some_band(count: int = 2, side: int = 96) -> torch.Tensor:
    band = torch.zeros(count, 1, side, side, dtype=torch.bool)
    band[..., :7] = True
    return band


def kinds_of_weights(steps: range) -> dict[int, str]:
    """For each step: whether os4 and os1 learn everywhere, from the trimap's band, or from what a coarser one leaves.

    At 96 pixels a side the discs are of up to 3 pixels for os4, and of one, which widens nothing, for os1.
    """
    pyramid, band = predicted(), some_band()
    left_by_os8, left_by_os4 = (((alpha - 0.5).abs() <= 0.5 - 1 / 255).float() for alpha in (pyramid.os8, pyramid.os4))
    widest = F.max_pool2d(left_by_os8, 3, stride=1, padding=1)
    found = {}
    for step in steps:
        weights = weight_maps(SCHEDULE, 0, step, [2 * step, 2 * step + 1], band, pyramid)
        assert bool((weights.os8 == 1).all())
        if bool((weights.os1 == 1).all()) and bool((weights.os4 == 1).all()):
            found[step] = "everywhere"
        elif torch.equal(weights.os1, band.float()) and torch.equal(weights.os4, band.float()):
            found[step] = "trimap"
        elif torch.equal(weights.os1, left_by_os4) and bool((weights.os4 >= left_by_os8).all()):
            assert bool((weights.os4 <= widest).all())
            found[step] = "unsure"
        else:
            found[step] = "something else"
    return found


def share(found: dict[int, str], kind: str) -> float:
    return sum(value == kind for value in found.values()) / len(found)


def test_every_pixel_counts_in_the_first_fifth_of_the_steps():
    assert set(kinds_of_weights(range(3900, 4000)).values()) == {"everywhere"}


def test_then_half_of_the_steps_learn_from_the_trimaps_band_alone():
    found = kinds_of_weights(range(4000, 4200))
    assert set(found.values()) == {"everywhere", "trimap"}
    assert share(found, "trimap") == pytest.approx(0.5, abs=0.12)
    assert set(kinds_of_weights(range(11_990, 12_000)).values()) == {"everywhere", "trimap"}


def test_at_last_the_other_half_learns_from_what_the_network_is_unsure_of():
    found = kinds_of_weights(range(12_000, 12_200))
    assert set(found.values()) == {"trimap", "unsure"}
    assert share(found, "unsure") == pytest.approx(0.5, abs=0.12)


def test_the_stages_scale_with_the_number_of_steps_unless_they_are_given():
    assert (SCHEDULE.warm_up, SCHEDULE.ones_until, SCHEDULE.trimap_until) == (4000, 4000, 12_000)
    short = Schedule(steps=100, trimap_until=30)
    assert (short.warm_up, short.ones_until, short.trimap_until) == (20, 20, 30)


@pytest.mark.parametrize("scale, widest_px", [("os4", 29), ("os1", 14)])
def test_the_unsure_band_is_what_lies_between_0_and_1_widened_by_a_disc_of_random_width(scale, widest_px):
    # A strip of the published square is enough; the width is scaled by the length of its rows.
    alpha = np.zeros((72, SIDE), np.float32)
    alpha[30:40, 100:900] = 1
    alpha[28:30, 100:900] = 0.4
    alpha[40, 300:310] = 1 / 255 - 1e-5
    unsure = (alpha >= 1 / 255) & (alpha <= 1 - 1 / 255)
    drawn = set()
    for number in range(12):
        band = unsure_band(torch.from_numpy(alpha)[None, None], widest_px, 5, scale, [number])[0, 0].numpy() > 0
        diameter = int(generator(5, scale, number).integers(1, widest_px + 1))
        assert np.array_equal(band, slowly_dilated(unsure, diameter))
        drawn.add(diameter)
    assert len(drawn) > 5
    assert drawn <= set(range(1, widest_px + 1))


def test_the_band_of_a_sample_does_not_depend_on_its_place_in_the_batch():
    alpha = torch.from_numpy(np.stack([soft_disc(256, radius) for radius in (30, 50, 70)]))[:, None]
    together = unsure_band(alpha, 29, 0, "os4", [7, 8, 9])
    alone = torch.cat([unsure_band(alpha[i : i + 1], 29, 0, "os4", [7 + i]) for i in range(3)])
    assert torch.equal(together, alone)


def test_weights_carry_no_gradient():
    pyramid = predicted()
    pyramid.os8.requires_grad_()
    pyramid.os4.requires_grad_()
    for step in range(12_000, 12_006):
        weights = weight_maps(SCHEDULE, 0, step, [0, 1], some_band(), pyramid)
        assert not (weights.os8.requires_grad or weights.os4.requires_grad or weights.os1.requires_grad)


@pytest.mark.parametrize("seed", range(5))
def test_a_random_trimap_leaves_unknown_what_a_disc_of_its_width_reaches_from_the_edge(seed):
    alpha = np.zeros((60, SIDE), np.float32)
    alpha[:, 400:] = 1
    alpha[:, 398:400] = 0.5
    trimap = random_trimap(np.random.default_rng(seed), alpha)
    rng = np.random.default_rng(seed)
    inner, outer = (int(rng.integers(1, int(max(1, round(30 * 60 / 1024))) + 1)) for _ in range(2))
    sure_subject = ~slowly_dilated(alpha < 1, inner)
    sure_background = ~slowly_dilated(alpha > 0, outer)
    # A disc of an even diameter is not symmetric: erosion sees it mirrored.
    assert abs(int((trimap == 1).sum()) - int(sure_subject.sum())) <= 60
    assert abs(int((trimap == 0).sum()) - int(sure_background.sum())) <= 60
    assert set(np.unique(trimap)) == {0, 0.5, 1}


def test_soft_alpha_is_always_unknown_and_the_pictures_border_is_no_edge():
    alpha = soft_disc(1024, 300, 40)
    for seed in range(4):
        trimap = random_trimap(np.random.default_rng(seed), alpha)
        assert bool((trimap[(alpha > 0.01) & (alpha < 0.99)] == 0.5).all())
        assert trimap[0].max() == 0
        assert random_trimap(np.random.default_rng(seed), np.ones((1024, 64), np.float32)).min() == 1


def test_trimaps_differ_in_width():
    alpha = soft_disc(1024, 300, 2)
    areas = {int((random_trimap(np.random.default_rng(seed), alpha) == 0.5).sum()) for seed in range(8)}
    assert len(areas) > 5


@pytest.mark.parametrize(("side", "unknown_px"), [(512, 14), (1024, 29), (2000, 29), (2560, 36)])
def test_the_widest_disc_has_30_pixels_at_1024_to_2048_and_grows_beyond(side, unknown_px):
    """15, 30 and 37 pixels: an even disc takes n / 2 from one side and one less from the other, an odd one n // 2."""

    class Widest:
        def integers(self, low: int, high: int) -> int:
            return high - 1

    alpha = np.zeros((side, side), np.float32)
    alpha[:, side // 2 :] = 1
    assert (random_trimap(Widest(), alpha)[side // 2] == 0.5).sum() == unknown_px


def test_a_level_of_8_bits_is_no_edge():
    """Rounding and JPEG leave it in alphas that are 0 or 1."""
    alpha = np.zeros((256, 256), np.float32)
    alpha[100:150, 100:150] = 1
    noisy = np.abs(alpha - (np.random.default_rng(0).integers(0, 2, alpha.shape) / 255).astype(np.float32))
    for seed in range(4):
        trimaps = [random_trimap(np.random.default_rng(seed), one) for one in (alpha, noisy)]
        assert np.array_equal(*trimaps)
    noisy[20, 20] = 2 / 255
    assert random_trimap(np.random.default_rng(0), noisy)[20, 20] == 0.5
