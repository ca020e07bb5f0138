"""Detail from the picture's own pixels: edges that the small matte had blurred come back, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mam_model.metrics import gradient_error
from mam_model.native_detail import sharpen_edges, sharpen_targets
from mam_model.prompt import Prompt, Scribble

SMALL = 96
SIZE = 3 * SMALL


def strands(size: int = SIZE, count: int = 40, seed: int = 0) -> torch.Tensor:
    """The exact matte of a disc with straight hairs of one to three pixels, float [size, size]."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    down, right = y - size / 2, x - size / 2
    matte = (0.25 * size - torch.hypot(down, right) + 0.5).clamp(0, 1)
    angles, widths_px = 6.3 * torch.rand(count, generator=generator), 1 + 2 * torch.rand(count, generator=generator)
    for angle, width_px in zip(angles, widths_px):
        along = right * angle.cos() + down * angle.sin()
        across = (down * angle.cos() - right * angle.sin()).abs()
        strand = (width_px / 2 + 0.5 - across).clamp(0, 1) * ((along > 0) & (along < 0.42 * size))
        matte = torch.maximum(matte, strand)
    return matte


def picture_of(matte: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A warm subject on a cool ground, both slightly grainy."""
    grain = 0.04 * torch.rand(2, *matte.shape, 3, generator=torch.Generator().manual_seed(seed))
    front, behind = torch.tensor([0.75, 0.45, 0.2]) + grain[0], torch.tensor([0.2, 0.35, 0.55]) + grain[1]
    return behind + matte[..., None] * (front - behind)


def enlarged(matte: torch.Tensor, small: int = SMALL) -> torch.Tensor:
    """The matte as a method gives it that sees the picture at a smaller size."""
    shrunk = F.interpolate(matte[None, None], (small, small), mode="area")
    return F.interpolate(shrunk, matte.shape, mode="bilinear", align_corners=False)[0, 0]


def error(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found - true).abs().mean())


TRUE = strands()
PICTURE = picture_of(TRUE)
BLURRED = enlarged(TRUE)


def test_hairs_that_the_small_matte_had_blurred_are_sharp_again():
    sharp = sharpen_edges(PICTURE, BLURRED, detail_px=SMALL)
    assert sharp.shape == TRUE.shape and sharp.dtype == torch.float32
    assert error(sharp, TRUE) < 0.5 * error(BLURRED, TRUE)
    assert gradient_error(sharp, TRUE) < 0.3 * gradient_error(BLURRED, TRUE)


def test_a_matte_that_is_also_a_little_wrong_gains_too():
    wrong = F.avg_pool2d(BLURRED[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
    sharp = sharpen_edges(PICTURE, wrong, detail_px=SMALL)
    assert error(sharp, TRUE) < 0.8 * error(wrong, TRUE)


def test_a_subject_of_the_colours_of_its_ground_is_not_torn():
    """Where colours tell nothing the matte stays, up to what enlarging had blurred."""
    grain = torch.rand(*TRUE.shape, 3, generator=torch.Generator().manual_seed(2))
    sharp = sharpen_edges(0.4 + 0.2 * grain, BLURRED, detail_px=SMALL)
    assert error(sharp, TRUE) < 1.1 * error(BLURRED, TRUE)


def test_tiles_leave_no_seams():
    whole = sharpen_edges(PICTURE, BLURRED, detail_px=SMALL, tile_px=SIZE)
    assert torch.equal(sharpen_edges(PICTURE, BLURRED, detail_px=SMALL, tile_px=50), whole)


def test_far_from_an_edge_the_matte_stays_as_it_is():
    sharp = sharpen_edges(PICTURE, BLURRED, detail_px=SMALL)
    middle, corner = slice(SIZE // 2 - 20, SIZE // 2 + 20), slice(0, 20)
    assert (sharp[middle, middle] == 1).all() and (sharp[corner, corner] == 0).all()


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_an_even_matte_stays_as_it_is(value):
    even = torch.full((120, 130), value)
    assert torch.equal(sharpen_edges(torch.rand(120, 130, 3), even, detail_px=40), even)


def test_a_picture_that_is_not_larger_gains_nothing_and_shares_no_memory():
    matte = torch.rand(30, 40)
    same = sharpen_edges(torch.rand(30, 40, 3), matte, detail_px=40)
    assert torch.equal(same, matte) and same.data_ptr() != matte.data_ptr()


@pytest.mark.parametrize("height, width", [(1, 300), (300, 1), (7, 301), (299, 173)])
def test_pictures_of_any_shape_give_a_matte_between_0_and_1(height, width):
    generator = torch.Generator().manual_seed(0)
    picture, matte = torch.rand(height, width, 3, generator=generator), torch.rand(height, width, generator=generator)
    sharp = sharpen_edges(picture, matte, detail_px=64)
    assert sharp.shape == (height, width) and torch.isfinite(sharp).all()
    assert sharp.min() >= 0 and sharp.max() <= 1


def test_picture_and_matte_are_left_alone():
    picture, matte = PICTURE.clone(), BLURRED.clone()
    sharpen_edges(picture, matte, detail_px=SMALL)
    assert torch.equal(picture, PICTURE) and torch.equal(matte, BLURRED)


def test_a_matte_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match="20 x 10 pixels but the picture is 40 x 30"):
        sharpen_edges(torch.rand(30, 40, 3), torch.rand(10, 20))


def test_a_picture_that_is_none_is_refused():
    picture, alpha = torch.rand(40, 60, 3), torch.rand(40, 60)
    with pytest.raises(ValueError, match="40 x 60 x 1"):
        sharpen_edges(picture[..., :1], alpha, detail_px=20)
    picture[3, 4, 1] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        sharpen_edges(picture, alpha, detail_px=20)


@pytest.mark.parametrize("wrong", [{"tile_px": 0}, {"tile_px": -8}, {"detail_px": 0}])
def test_sizes_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        sharpen_edges(torch.rand(40, 60, 3), torch.rand(40, 60), **wrong)


def test_only_tiles_with_an_edge_are_worked_on_and_the_work_can_be_stopped():
    told = []
    sharpen_edges(PICTURE, BLURRED, detail_px=SMALL, tile_px=32, before_tile=lambda *parts: told.append(parts))
    assert 4 < len(told) < (SIZE // 32) ** 2
    assert told == [(done, len(told)) for done in range(len(told))]

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sharpen_edges(PICTURE, BLURRED, detail_px=SMALL, before_tile=stop)


def test_every_target_is_sharpened_and_strokes_stay_certain():
    strokes = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    strokes[:8] = Scribble.FOREGROUND
    prompts = (Prompt(points_px=((1, 1),), labels=(1,)), Prompt(scribbles=strokes))
    both = sharpen_targets(PICTURE, torch.stack((BLURRED, BLURRED)), prompts, detail_px=SMALL)
    alone = sharpen_edges(PICTURE, BLURRED, detail_px=SMALL)
    assert torch.equal(both[0], alone)
    assert (both[1][:8] == 1).all() and torch.equal(both[1][8:], alone[8:])


def test_no_target_gives_no_matte():
    assert sharpen_targets(PICTURE, torch.zeros(0, SIZE, SIZE), ()).shape == (0, SIZE, SIZE)
