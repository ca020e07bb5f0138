"""Samples: composition as matting defines it, augmentation within its bounds, and an order that nothing disturbs."""

from __future__ import annotations

import multiprocessing
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mam_model.training.config import (
    Augmentation,
    Backgrounds,
    Composed,
    Config,
    Foregrounds,
    Rendering,
    Schedule,
    TrainingError,
)
from mam_model.training.samples import (
    Samples,
    batches,
    composed,
    cropped,
    laid_over,
    moved,
    recoloured,
    rough_mask,
    tight_box,
)

SIDE = 64
STILL = Augmentation(rotation_deg=0, scale=(1, 1), shear_deg=0, flip=0, hue_deg=0, saturation=0, value=0)


def disc(side: int = 96, radius: float = 24.0, softness: float = 6.0) -> np.ndarray:
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return ((radius - np.hypot(x, y)) / softness + 0.5).clip(0, 1).astype(np.float32)


def write(path: Path, levels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.asarray(levels) * 255).round().astype(np.uint8)).save(path)


@pytest.fixture
def data(tmp_path) -> Path:
    """Red discs of several sizes to lay over blue backgrounds, and one finished picture of a green disc."""
    for number in range(5):
        alpha = disc(96, 14 + 5 * number)
        write(tmp_path / "fg" / f"{number}.png", np.ones((96, 96, 3)) * (0.8, 0.1, 0.1))
        write(tmp_path / "alpha" / f"{number}.png", alpha)
        write(tmp_path / "bg" / f"{number}.png", np.ones((70, 90, 3)) * (0.1, 0.1, 0.5 + 0.1 * number))
    green, grey = np.ones((96, 96, 3)) * (0, 0.6, 0), np.full((96, 96, 3), 0.5)
    write(tmp_path / "images" / "one.png", composed(green, disc(), grey))
    write(tmp_path / "mattes" / "one.png", disc())
    return tmp_path


def config(data: Path, **changes) -> Config:
    return replace(
        Config(
            folder=data / "run",
            sam="none",
            workers=0,
            foregrounds=(Foregrounds(data / "fg", data / "alpha"),),
            backgrounds=(Backgrounds(data / "bg"),),
            schedule=Schedule(steps=10, batch=2),
        ),
        **changes,
    )


def same(a, b) -> bool:
    return (
        np.array_equal(a.picture, b.picture)
        and np.array_equal(a.alpha, b.alpha)
        and np.array_equal(a.band, b.band)
        and a.prompt.box_xyxy_px == b.prompt.box_xyxy_px
    )


def test_a_composite_is_the_mixture_by_alpha():
    rng = np.random.default_rng(0)
    foreground, background, alpha = rng.random((4, 5, 3)), rng.random((4, 5, 3)), rng.random((4, 5))
    picture = composed(foreground, alpha, background)
    for row in range(4):
        for column in range(5):
            a = alpha[row, column]
            mixture = a * foreground[row, column] + (1 - a) * background[row, column]
            assert picture[row, column] == pytest.approx(mixture)


def test_two_subjects_as_one_foreground_give_the_picture_of_laying_one_after_the_other():
    rng = np.random.default_rng(1)
    first, second, background = (rng.random((6, 7, 3)) for _ in range(3))
    alpha, second_alpha = (rng.random((6, 7)).round(1) for _ in range(2))
    foreground, total = laid_over(first, alpha, second, second_alpha)
    assert total == pytest.approx(1 - (1 - alpha) * (1 - second_alpha))
    one_after_the_other = composed(first, alpha, composed(second, second_alpha, background))
    assert composed(foreground, total, background) == pytest.approx(one_after_the_other)


def test_the_tight_box_holds_all_that_is_more_than_half_there():
    alpha = np.zeros((40, 50), np.float32)
    alpha[10:20, 5:30] = 0.6
    alpha[8, 8] = 0.4
    assert tight_box(alpha) == (5, 10, 30, 20)
    assert tight_box(np.full((9, 9), 0.5)) is None


def test_a_subject_that_is_neither_turned_nor_scaled_stays_as_it_is():
    alpha = disc()
    picture = np.random.default_rng(2).random((96, 96, 3)).astype(np.float32)
    moved_picture, moved_alpha = moved(np.random.default_rng(3), picture, alpha, STILL)
    assert moved_alpha == pytest.approx(alpha, abs=1e-3)
    assert moved_picture == pytest.approx(picture, abs=1e-3)
    mirrored, _ = moved(np.random.default_rng(3), picture, alpha, replace(STILL, flip=1))
    assert mirrored == pytest.approx(picture[:, ::-1], abs=1e-3)


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_a_scaled_subject_has_its_area_times_the_square(factor):
    alpha = disc(128, 20)
    picture = np.zeros((128, 128, 3), np.float32)
    _, larger = moved(np.random.default_rng(0), picture, alpha, replace(STILL, scale=(factor, factor)))
    assert larger.sum() == pytest.approx(alpha.sum() * factor**2, rel=0.03)


def test_moved_alphas_stay_within_0_and_1_and_subjects_differ_from_draw_to_draw():
    alpha, picture = disc(), np.ones((96, 96, 3), np.float32)
    drawn = [moved(np.random.default_rng(seed), picture, alpha, Augmentation())[1] for seed in range(6)]
    assert all(0 <= one.min() and one.max() <= 1 for one in drawn)
    assert len({one.tobytes() for one in drawn}) == 6


@pytest.mark.parametrize("seed", range(5))
def test_a_crop_shows_some_of_the_subjects_edge(seed):
    alpha = np.zeros((400, 500), np.float32)
    alpha[300:, 380:] = 1
    picture = np.repeat(alpha[..., None], 3, axis=2)
    part, part_alpha = cropped(np.random.default_rng(seed), picture, alpha, SIDE)
    assert part.shape == (SIDE, SIDE, 3)
    assert part_alpha.shape == (SIDE, SIDE)
    assert np.array_equal(part[..., 0], part_alpha)
    assert 0 < part_alpha.mean() < 1


@pytest.mark.parametrize("height, width", [(400, 500), (20, 2_000)])
def test_noise_of_a_level_draws_no_crop_away_from_the_edge(height, width):
    alpha = np.zeros((height, width), np.float32)
    alpha[height * 3 // 4 :, width // 2 :] = 1
    noise = np.random.default_rng(0).integers(0, 2, alpha.shape) / 255
    noisy = np.abs(alpha - noise).astype(np.float32)
    picture = np.repeat(noisy[..., None], 3, axis=2)
    for seed in range(12):
        _, part = cropped(np.random.default_rng(seed), picture, noisy, SIDE)
        assert 0 < (part > 0.5).mean() < 1


@pytest.mark.parametrize("height, width", [(64, 64), (10, 200), (63, 65), (1, 1)])
def test_pictures_smaller_than_the_square_are_enlarged(height, width):
    picture, alpha = np.full((height, width, 3), 0.5, np.float32), np.ones((height, width), np.float32)
    part, part_alpha = cropped(np.random.default_rng(0), picture, alpha, SIDE)
    assert part.shape == (SIDE, SIDE, 3)
    assert part_alpha.shape == (SIDE, SIDE)
    assert part == pytest.approx(0.5, abs=1e-5)


def test_a_long_picture_is_enlarged_where_it_is_cut_and_not_in_all_its_length():
    alpha = np.zeros((20, 20_000), np.float32)
    alpha[5:, 100:400] = alpha[:15, 18_000:18_300] = 1
    picture = np.repeat(alpha[..., None], 3, axis=2)
    tracemalloc.start()
    parts = [cropped(np.random.default_rng(seed), picture, alpha, SIDE) for seed in range(20)]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 16e6, "64 x 64,000 pixels of four channels take 65 MB"
    shown = [part_alpha for _, part_alpha in parts]
    assert all(part_alpha.shape == (SIDE, SIDE) and 0 < part_alpha.mean() < 1 for part_alpha in shown)
    assert all(part == pytest.approx(np.dstack([part_alpha] * 3)) for part, part_alpha in parts)
    # The first subject reaches the lower border, the second the upper one.
    lower = sum(part_alpha[-1].any() and not part_alpha[0].any() for part_alpha in shown)
    assert 4 <= lower <= 16


def test_a_long_background_is_enlarged_where_it_is_cut(data):
    for file in (data / "bg").iterdir():
        write(file, np.linspace((0, 0, 0.1), (0, 0, 1), 20_000)[None].repeat(20, axis=0))
    samples = Samples(config(data), SIDE)
    tracemalloc.start()
    shown = [samples[number] for number in range(8)]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 30e6, "64 x 64,000 pixels of three channels take 49 MB, and are clipped into as many again"
    blues = [sample.picture[sample.alpha == 0][:, 2].mean() for sample in shown]
    assert np.ptp(blues) > 60, "from all of its length"


def test_colours_change_within_bounds_and_one_change_holds_for_the_whole_subject():
    picture = np.zeros((8, 8, 3), np.float32)
    picture[:, :4], picture[:, 4:] = (0.6, 0.2, 0.2), (0.2, 0.2, 0.6)
    alpha = np.ones((8, 8), np.float32)
    assert recoloured(np.random.default_rng(0), picture, alpha, STILL) == pytest.approx(picture, abs=1e-4)
    for seed in range(10):
        changed = recoloured(np.random.default_rng(seed), picture, alpha, Augmentation(saturation=0, value=0))
        assert changed.max(axis=2) == pytest.approx(picture.max(axis=2), abs=1e-4)
        # A hue that turns by less than 60 degrees leaves the strongest channel what it is.
        assert (changed.argmax(axis=2) == picture.argmax(axis=2)).all()
    many = [recoloured(np.random.default_rng(seed), picture, alpha, Augmentation())[0, 0] for seed in range(5)]
    assert len({tuple(color) for color in many}) == 5


def test_a_rough_mask_is_hard_near_the_subject_and_never_empty():
    alpha = disc(SIDE, 18)
    for seed in range(10):
        mask = rough_mask(np.random.default_rng(seed), alpha)
        assert set(np.unique(mask)) <= {0, 1}
        assert 0 < np.abs(mask - alpha).mean() < 0.15
    thin = np.zeros((SIDE, SIDE), np.float32)
    thin[:, 30] = 1
    assert rough_mask(np.random.default_rng(0), thin).any()


def test_a_sample_shows_its_subject_on_a_background_with_the_box_around_it(data):
    for number in range(6):
        sample = Samples(config(data), SIDE)[number]
        assert sample.picture.shape == (SIDE, SIDE, 3)
        assert sample.picture.dtype == np.uint8
        assert sample.prompt.box_xyxy_px == tight_box(sample.alpha)
        # What is neither plain subject nor plain background is unknown in every trimap.
        assert bool(sample.band[(sample.alpha > 0.01) & (sample.alpha < 0.99)].all())
        outside, inside = sample.picture[sample.alpha == 0], sample.picture[sample.alpha == 1]
        assert (outside[:, 2] > outside[:, 0]).all()
        # Hues turn by 40 degrees at most: red stays the strongest channel.
        assert (inside[:, 0] > inside[:, 2]).all()


def test_finished_pictures_are_used_as_they_are(data):
    only = config(data, foregrounds=(), backgrounds=(), composed=(Composed(data / "images", data / "mattes"),))
    whole = composed(np.ones((96, 96, 3)) * (0, 0.6, 0), disc(), np.full((96, 96, 3), 0.5))
    sample = Samples(only, SIDE)[0]
    places = [(y, x) for y in range(33) for x in range(33)]
    differences = [np.abs(whole[y : y + SIDE, x : x + SIDE] - sample.picture / 255).max() for y, x in places]
    assert min(differences) < 0.01


def test_rendered_pictures_are_samples_too(data):
    drawn = Samples(config(data, foregrounds=(), rendered=Rendering(kinds=("solid",))), SIDE)[0]
    assert drawn.picture.shape == (SIDE, SIDE, 3)
    assert 0 < drawn.alpha.mean() < 1


def test_every_source_gets_its_share(data):
    both = config(
        data,
        foregrounds=(Foregrounds(data / "fg", data / "alpha", share=3),),
        composed=(Composed(data / "images", data / "mattes", share=1),),
    )
    samples = Samples(both, SIDE)
    # The finished picture alone lies on grey.
    grey = [
        bool((np.ptp(sample.picture[sample.alpha == 0].astype(int), axis=1) < 8).all())
        for sample in map(samples.__getitem__, range(80))
    ]
    assert 8 < sum(grey) < 34


def test_a_sample_depends_on_the_seed_and_its_number_alone(data):
    samples, again = Samples(config(data), SIDE), Samples(config(data), SIDE)
    forwards = [samples[number] for number in range(6)]
    backwards = [again[number] for number in reversed(range(6))][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards))
    other = Samples(config(data, seed=1), SIDE)
    assert not any(same(a, other[number]) for number, a in enumerate(forwards))
    assert not same(forwards[0], forwards[1])


def test_with_a_limited_number_of_samples_they_come_again(data):
    samples = Samples(config(data, distinct=3), SIDE)
    assert same(samples[1], samples[4])
    assert samples[4].number == 4


def numbers(config: Config, first: int, process: int = 0, processes: int = 1) -> list[list[int]]:
    found = batches(Samples(config, SIDE), first, process, processes)
    return [[sample.number for sample in samples] for samples in found]


def test_each_step_has_its_samples_whatever_the_processes_and_wherever_it_begins(data):
    whole = config(data, schedule=Schedule(steps=3, batch=4))
    assert numbers(whole, 0) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert numbers(whole, 2) == [[8, 9, 10, 11]]
    assert numbers(whole, 1, process=0, processes=2) == [[4, 5], [8, 9]]
    assert numbers(whole, 1, process=1, processes=2) == [[6, 7], [10, 11]]


def test_workers_prepare_the_same_samples_in_the_same_order(data):
    alone = config(data, schedule=Schedule(steps=4, batch=2))
    with_workers = replace(alone, workers=2)
    for left, right in zip(batches(Samples(alone, SIDE), 0), batches(Samples(with_workers, SIDE), 0)):
        assert all(same(a, b) for a, b in zip(left, right))


def test_a_file_that_cannot_be_read_is_replaced_by_another_and_named(data):
    for number in range(3):
        (data / "fg" / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    samples = Samples(config(data), SIDE)
    taken = [samples[number] for number in range(8)]
    told = {sentence for sample in taken for sentence in sample.skipped}
    assert told
    assert all("fg" in sentence for sentence in told)
    assert all(sample.alpha.max() > 0.5 for sample in taken)


def test_a_background_that_cannot_be_read_is_replaced_and_named(data):
    for number in range(4):
        (data / "bg" / f"{number}.png").write_bytes(b"no picture")
    told = {sentence for number in range(5) for sentence in Samples(config(data), SIDE)[number].skipped}
    assert told
    assert all("bg" in sentence for sentence in told)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_of_which_nothing_can_be_used_ends_the_run_with_a_sentence(data, workers):
    for file in (data / "alpha").iterdir():
        write(file, np.zeros((96, 96)))
    with pytest.raises(TrainingError, match="^30 draws in a row gave no sample.*empty alpha.*above 0.5.$"):
        list(batches(Samples(config(data, workers=workers), SIDE), 0))
    # A worker that stayed would hear no SIGTERM, and this process would wait for it at its end.
    deadline = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


def test_another_set_of_files_has_another_fingerprint(data):
    before = Samples(config(data), SIDE).fingerprint
    assert Samples(config(data), SIDE).fingerprint == before
    write(data / "fg" / "new.png", np.zeros((9, 9, 3)))
    write(data / "alpha" / "new.png", np.ones((9, 9)))
    assert Samples(config(data), SIDE).fingerprint != before
