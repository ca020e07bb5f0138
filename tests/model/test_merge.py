"""Merging three scales into one matte.

`plain_merge` below is the method as it is described, over the whole picture, in NumPy without OpenCV's morphology; the
library does the same on the rectangle that can change.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import mam_model.merge
from mam_model.frame import Frame
from mam_model.m2m import AlphaPyramid
from mam_model.merge import MergeOptions, merge, merge_scales, merge_together, os8_weight, unknown_area

MODES = [
    MergeOptions(guidance, sides, clear_outside_box=clear)
    for guidance, clear in (("mask", True), ("alpha", True), ("alpha", False))
    for sides in ("one", "two")
]
MODE_NAMES = [f"{mode.guidance}-{mode.sides}-{'box' if mode.clear_outside_box else 'open'}" for mode in MODES]
each_mode = pytest.mark.parametrize("mode", MODES, ids=MODE_NAMES)


def extreme(pixels: np.ndarray, width_px: int, outermost) -> np.ndarray:
    """The minimum or maximum over an elliptical neighbourhood, pixels beyond the edge left out."""
    size = width_px // 2
    if size < 2:
        return pixels
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    height, width = pixels.shape
    result = pixels.copy()
    for row, column in np.argwhere(kernel) - size // 2:
        here = (slice(max(0, -row), min(height, height - row)), slice(max(0, -column), min(width, width - column)))
        there = tuple(slice(part.start + step, part.stop + step) for part, step in zip(here, (row, column)))
        if here[0].start < here[0].stop and here[1].start < here[1].stop:
            result[here] = outermost(result[here], pixels[there])
    return result


def eroded(pixels: np.ndarray, width_px: int) -> np.ndarray:
    return extreme(pixels, width_px, np.minimum)


def plain_unknown(alpha: np.ndarray, width_px: int, sides: str) -> np.ndarray:
    low, high = 1 / 255, 1 - 1 / 255
    if sides == "two":
        return extreme((alpha >= low) & (alpha <= high), width_px, np.logical_or)
    unknown = extreme(alpha >= low, width_px, np.logical_or)
    unknown[alpha > high] = False
    return unknown


def plain_merge(os8: np.ndarray, os4: np.ndarray, os1: np.ndarray, mask: np.ndarray, options: MergeOptions):
    if not mask.any():
        return np.zeros_like(mask)
    if options.guidance == "mask":
        sure = mask == 1 if options.sides == "one" else eroded(mask, options.width_os8) == 1
        sure = sure | (eroded(1 - mask, options.width_os8) == 1)
        alpha = np.where(sure, mask, os8)
    else:
        alpha = os8.copy()
        if options.clear_outside_box:
            rows, columns = np.nonzero(mask)
            alpha = mask.copy()
            box = (slice(rows.min(), rows.max()), slice(columns.min(), columns.max()))
            alpha[box] = os8[box]
    alpha = np.where(plain_unknown(alpha, options.width_os4, options.sides), os4, alpha)
    return np.where(plain_unknown(alpha, options.width_os1, options.sides), os1, alpha)


def random_mask(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Nothing, everything, one pixel, or rectangles and ellipses that may lie over the edge."""
    kind = random.integers(0, 8)
    mask = np.zeros((height, width), dtype=np.float32)
    if kind == 0:
        return mask
    if kind == 1:
        return mask + 1
    if kind == 2:
        mask[random.integers(height), random.integers(width)] = 1
        return mask
    rows, columns = np.mgrid[:height, :width]
    for _ in range(random.integers(1, 4)):
        y, x = random.uniform(0, height), random.uniform(0, width)
        radius_y, radius_x = random.uniform(1, height / 3), random.uniform(1, width / 3)
        away_y, away_x = abs(rows - y) / radius_y, abs(columns - x) / radius_x
        mask[np.maximum(away_y, away_x) < 1 if random.random() < 0.5 else away_y**2 + away_x**2 < 1] = 1
    if kind == 3:
        # A mask given by the user may have soft edges.
        mask = cv2.GaussianBlur(mask, (5, 5), 0).clip(0, 1)
    return mask


def random_alpha(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Every pixel on its own: sure, unsure, or on one of the thresholds."""
    levels = np.array([0, 1, 0.5, 1 / 255, 0.9 / 255, 1 - 1 / 255, 1 - 0.9 / 255, 0.03], dtype=np.float32)
    alpha = levels[random.integers(0, len(levels), (height, width))]
    # Patches of one value, without which every pixel would have an unsure neighbour.
    for _ in range(3):
        y, x = random.integers(height), random.integers(width)
        alpha[y : y + height // 2, x : x + width // 2] = random.integers(0, 2)
    return alpha


def pyramid_of(*scales: np.ndarray, side: int) -> AlphaPyramid:
    squares = []
    for scale in scales:
        # What lies in the padding must not matter.
        square = torch.full((1, 1, side, side), 0.5)
        square[0, 0, : scale.shape[0], : scale.shape[1]] = torch.from_numpy(scale)
        squares.append(square)
    return AlphaPyramid(*squares)


@each_mode
@pytest.mark.parametrize("seed", range(6))
def test_it_gives_what_the_method_gives_on_the_whole_picture(mode, seed):
    """Also where the matte is restricted to the surroundings of the mask, and at the picture's edges."""
    random = np.random.default_rng(seed)
    for _ in range(10):
        height, width = random.integers(1, 70, 2).tolist()
        side = max(height, width)
        widths = random.choice([0, 1, 2, 3, 4, 5, 7, 10, 11, 20, 29], 3).tolist()
        options = replace(mode, width_os8=widths[0], width_os4=widths[1], width_os1=widths[2])
        mask = random_mask(random, height, width)
        scales = [random_alpha(random, height, width) for _ in range(3)]
        ours = merge(pyramid_of(*scales, side=side), torch.from_numpy(mask), Frame(height, width, side), options)
        assert np.array_equal(ours.numpy(), plain_merge(*scales, mask, options)), options


@each_mode
def test_on_a_gpu_several_targets_are_merged_bit_for_bit_as_one_after_the_other_by_opencv(mode):
    """Tensors take the way of a GPU wherever they lie."""
    random = np.random.default_rng(MODES.index(mode))
    for width in range(1, 61):
        height, across = random.integers(3, 60, 2).tolist()
        options = replace(mode, width_os8=width, width_os4=61 - width, width_os1=int(random.integers(0, 61)))
        masks = np.stack([random_mask(random, height, across) for _ in range(3)])
        scales = {
            name: np.stack([random_alpha(random, height, across) for _ in masks]) for name in ("os8", "os4", "os1")
        }
        ours = merge_together(torch.from_numpy(masks), lambda name, s=scales: torch.from_numpy(s[name]), options)
        for target, mask in enumerate(masks):
            single = mask.copy()
            if mask.any():
                merge_scales(single, lambda name, _, s=scales, t=target: s[name][t], options)
            assert np.array_equal(ours[target].numpy(), single), (options, target)


@each_mode
def test_what_lies_on_a_gpu_is_merged_to_the_same_matte(mode, monkeypatch):
    random = np.random.default_rng(5)
    frame = Frame(height=90, width=130, side=64)
    squares = AlphaPyramid(*(torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(5)) for _ in range(3)))
    masks = [torch.from_numpy(random_mask(random, 90, 130)) for _ in range(8)]
    usual = [merge(squares, mask, frame, mode) for mask in masks]
    monkeypatch.setattr(mam_model.merge, "merges_in_arrays", lambda device: False)
    for mask, alpha in zip(masks, usual):
        assert torch.equal(merge(squares, mask, frame, mode), alpha)


@each_mode
def test_a_small_target_in_a_large_picture_is_merged_as_if_the_picture_were_looked_at_whole(mode):
    """The scales are unsure everywhere, so that the bands spread as far as they can."""
    random = np.random.default_rng(1)
    mask = np.zeros((150, 180), dtype=np.float32)
    mask[70:76, 80:90] = 1
    for widths in ((10, 20, 10), (29, 1, 0), (0, 60, 0), (2, 0, 58), (20, 40, 20)):
        options = replace(mode, width_os8=widths[0], width_os4=widths[1], width_os1=widths[2])
        scales = [random.uniform(0.1, 0.9, mask.shape).astype(np.float32) for _ in range(3)]
        ours = merge(pyramid_of(*scales, side=180), torch.from_numpy(mask), Frame(150, 180, 180), options)
        assert np.array_equal(ours.numpy(), plain_merge(*scales, mask, options)), options


@each_mode
@pytest.mark.parametrize("widths", [(10, 20, 10), (1, 0, 1), (29, 150, 60)])
def test_a_large_target_is_merged_along_its_edge_as_if_it_were_looked_at_everywhere(mode, widths):
    """Edges on and beside the borders of the blocks in which edges are looked for."""
    random = np.random.default_rng(sum(widths))
    options = replace(mode, width_os8=widths[0], width_os4=widths[1], width_os1=widths[2])
    for _ in range(3):
        mask = random_mask(random, 420, 330)
        top, left, bottom, right = random.choice([0, 63, 64, 65, 127, 128, 191, 193, 330], 4)
        mask[min(top, bottom) : max(top, bottom), min(left, right) : max(left, right)] = 1
        scales = [random_alpha(random, *mask.shape) for _ in range(3)]
        ours = merge(pyramid_of(*scales, side=420), torch.from_numpy(mask), Frame(*mask.shape, 420), options)
        assert np.array_equal(ours.numpy(), plain_merge(*scales, mask, options)), options


def test_what_lies_far_from_the_edge_is_not_looked_at(monkeypatch):
    looked, dilate = [], mam_model.merge.dilated

    def watched(area: np.ndarray, size: int) -> np.ndarray:
        looked.append(area.size)
        return dilate(area, size)

    monkeypatch.setattr(mam_model.merge, "dilated", watched)
    alpha = np.zeros((2000, 2000), dtype=np.float32)
    alpha[100:1900, 200:1800] = 1
    merge_scales(alpha, lambda scale, where: np.full(where.shape, 0.5, dtype=np.float32))
    assert (alpha == 0.5).any() and alpha[1000, 1000] == 1
    # Three bands along an edge of 6,800 pixels.
    assert sum(looked) < 0.5 * 3 * alpha.size


@each_mode
def test_scales_are_brought_to_the_pictures_size_before_they_are_merged(mode):
    generator = torch.Generator().manual_seed(3)
    frame = Frame(height=90, width=130, side=64)
    squares = [torch.rand(1, 1, 64, 64, generator=generator) for _ in range(3)]
    mask = np.zeros((90, 130), dtype=np.float32)
    mask[20:60, 30:100] = 1
    scales = []
    for square in squares:
        content = square[..., : frame.content_height, : frame.content_width]
        scales.append(torch.nn.functional.interpolate(content, (90, 130), mode="bilinear")[0, 0].numpy())
    ours = merge(AlphaPyramid(*squares), torch.from_numpy(mask), frame, mode)
    assert np.abs(ours.numpy() - plain_merge(*scales, mask, mode)).max() < 1e-6


@each_mode
@pytest.mark.parametrize("size", [(40, 60), (1, 1), (16, 5000)])
def test_an_empty_mask_gives_an_empty_matte(mode, size):
    squares = [torch.full((1, 1, 64, 64), 0.7) for _ in range(3)]
    alpha = merge(AlphaPyramid(*squares), torch.zeros(size), Frame(*size, side=64), mode)
    assert alpha.shape == size
    assert torch.all(alpha == 0)


@each_mode
def test_a_picture_of_one_pixel_is_merged(mode):
    squares = [torch.full((1, 1, 64, 64), value) for value in (0.25, 0.5, 0.75)]
    alpha = merge(AlphaPyramid(*squares), torch.ones(1, 1), Frame(1, 1, side=64), mode)
    # One pixel has no inside: only an open start from alpha is unsure of it; elsewhere the mask stands.
    assert alpha.item() == (0.75 if mode.guidance == "alpha" and not mode.clear_outside_box else 1)


def test_other_instances_stay_out_when_the_mask_guides():
    """The network sees a second subject far from the mask."""
    alpha = np.zeros((60, 120), dtype=np.float32)
    alpha[20:40, 10:30] = alpha[20:40, 80:100] = 1
    mask = np.zeros_like(alpha)
    mask[20:40, 10:30] = 1
    pyramid = pyramid_of(alpha, alpha, alpha, side=120)
    frame = Frame(60, 120, side=120)
    guided_by_mask = merge(pyramid, torch.from_numpy(mask), frame, MergeOptions("mask"))
    guided_by_alpha = merge(pyramid, torch.from_numpy(mask), frame, MergeOptions("alpha", clear_outside_box=False))
    assert guided_by_mask[:, 60:].max() == 0
    assert torch.all(guided_by_mask[20:40, 10:30] == 1)
    assert torch.all(guided_by_alpha[20:40, 80:100] == 1)


def test_the_finest_scale_draws_the_edge_and_the_mask_the_inside():
    mask = np.zeros((80, 80), dtype=np.float32)
    mask[20:60, 20:60] = 1
    half = [np.full_like(mask, value) for value in (0.2, 0.4, 0.6)]
    alpha = merge(pyramid_of(*half, side=80), torch.from_numpy(mask), Frame(80, 80, side=80)).numpy()
    assert np.all(alpha[20:60, 20:60] == 1)
    assert np.all(alpha[0] == 0)
    assert np.all(alpha[15:19, 20:60] == np.float32(0.6))


def test_two_sided_merging_doubts_the_inside_of_the_edge_too():
    mask = np.zeros((80, 80), dtype=np.float32)
    mask[20:60, 20:60] = 1
    half = [np.full_like(mask, 0.5)] * 3
    one = merge(pyramid_of(*half, side=80), torch.from_numpy(mask), Frame(80, 80, side=80), MergeOptions(sides="one"))
    two = merge(pyramid_of(*half, side=80), torch.from_numpy(mask), Frame(80, 80, side=80), MergeOptions(sides="two"))
    assert one[20, 40] == 1
    assert two[20, 40] == 0.5
    assert two[40, 40] == 1


def test_a_soft_mask_is_never_sure_of_its_soft_pixels():
    mask = np.full((9, 9), 0.5, dtype=np.float32)
    assert os8_weight(mask, 0, "one").all()
    assert os8_weight(mask, 10, "two").all()
    assert not os8_weight(1e-9 * mask, 10, "two").any(), "what float32 cannot tell from 0 beside 1 is background"


def test_without_width_a_band_is_what_is_unsure_itself():
    alpha = np.array([[0, 0.5 / 255, 1 / 255, 0.5, 1 - 1.01 / 255, 1 - 0.5 / 255, 1]], dtype=np.float32)
    for width_px in (0, 1):
        for sides in ("one", "two"):
            assert unknown_area(alpha, width_px, sides).tolist() == [[False, False, True, True, True, False, False]]


@each_mode
def test_what_is_still_being_trained_can_be_merged(mode):
    generator = torch.Generator().manual_seed(4)
    squares = [torch.rand(1, 1, 32, 32, generator=generator) for _ in range(3)]
    mask = (torch.rand(32, 32, generator=generator) > 0.7).float()
    frame = Frame(32, 32, side=32)
    expected = merge(AlphaPyramid(*squares), mask, frame, mode)
    trained = AlphaPyramid(*(square.clone().requires_grad_() for square in squares))
    found = merge(trained, mask.clone().requires_grad_(), frame, mode)
    assert torch.equal(found, expected)
    assert not found.requires_grad


@each_mode
def test_merging_changes_neither_pyramid_nor_mask(mode):
    generator = torch.Generator().manual_seed(4)
    squares = [torch.rand(1, 1, 32, 32, generator=generator) for _ in range(3)]
    mask = (torch.rand(32, 32, generator=generator) > 0.7).float()
    before = [tensor.clone() for tensor in (*squares, mask)]
    merge(AlphaPyramid(*squares), mask, Frame(32, 32, side=32), mode)
    for tensor, copy in zip((*squares, mask), before):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"guidance": "trimap"}, '"mask" or "alpha", not "trimap"'),
        ({"sides": "three"}, '"one" or "two", not "three"'),
        ({"width_os8": -1}, "cannot be negative"),
        ({"width_os4": -1}, "cannot be negative"),
        ({"width_os1": -1}, "cannot be negative"),
        ({"width_os8": 65_537}, "65,536 at most"),
        ({"width_os4": 65_537}, "65,536 at most"),
        ({"width_os1": 65_537}, "65,536 at most"),
    ],
)
def test_options_that_do_not_exist_are_refused(wrong, said):
    MergeOptions(width_os8=65_536, width_os4=0, width_os1=65_536)
    with pytest.raises(ValueError) as refusal:
        MergeOptions(**wrong)
    assert said in str(refusal.value)
