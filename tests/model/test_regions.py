"""Mattes computed only where they are seen: rectangles of a picture, and the network in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mam_model import partial
from mam_model.frame import Frame
from mam_model.m2m import FoldedMaskToMatte
from mam_model.matting import matte_targets, merge_targets, predict_pyramid
from mam_model.merge import MergeOptions
from mam_model.partial import PartialPyramid
from mam_model.prompt import Prompt, Scribble
from mam_model.regions import Window, cover, strips
from mam_model.sam import Embedding, Guidance
from tests.references import chain

SIDE = 256
# Measured 1.1e-5 at the worst pixel, with weights that amplify more than trained ones.
ROUNDING = 2e-5
SCALES = ("os8", "os4", "os1")
MODES = [
    MergeOptions(guidance, sides, clear_outside_box=clear)
    for guidance, clear in (("mask", True), ("alpha", True), ("alpha", False))
    for sides in ("one", "two")
]
MODE_NAMES = [f"{mode.guidance}-{mode.sides}-{'box' if mode.clear_outside_box else 'open'}" for mode in MODES]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with chain.single_thread(), torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def m2m() -> FoldedMaskToMatte:
    return chain.reference_m2m().fold()


def embedding_of(height: int, width: int, side: int = SIDE) -> Embedding:
    generator = torch.Generator().manual_seed(height * width)
    frame = Frame(height, width, side)
    size = (frame.content_height, frame.content_width, 3)
    content = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    return Embedding(torch.randn(1, 256, side // 16, side // 16, generator=generator), content, frame)


def ellipse(height: int, width: int, y: float, x: float, radius_y: float, radius_x: float) -> torch.Tensor:
    """A mask; centre and radii in parts of the picture."""
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    return (((rows - y) / radius_y) ** 2 + ((columns - x) / radius_x) ** 2 < 1).float()


def foliage(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A mask whose edge is everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return (F.interpolate(torch.rand(1, 1, 12, 12, generator=generator), (height, width), mode="bicubic") > 0.5)[
        0, 0
    ].float()


def guidance_of(frame: Frame, *masks: torch.Tensor, given: bool = False) -> Guidance:
    """As if SAM had found these masks; with `given`, as if the user had drawn them."""
    prompt = Prompt(points_px=((0, 0),), labels=(1,))
    prompts = tuple(Prompt(mask=mask, mask_is_guidance=True) if given else prompt for mask in masks)
    logits = torch.cat([(frame.mask_to_network(mask) * 2 - 1).expand(1, 3, -1, -1) * 10 for mask in masks])
    count = len(masks)
    return Guidance(prompts, logits, torch.ones(count, 3), torch.zeros(count, dtype=torch.int64), frame)


def subjects(height: int, width: int) -> list[torch.Tensor]:
    return [
        ellipse(height, width, 0.4, 0.3, 0.1, 0.1),
        ellipse(height, width, 0.6, 0.5, 0.35, 0.2),
        ellipse(height, width, 0.5, 0.5, 0.55, 0.55),
        ellipse(height, width, 1.0, 0.0, 0.3, 0.3),
        foliage(height, width),
        torch.ones(height, width),
        torch.zeros(height, width),
    ]


def assert_same_mattes(ours: torch.Tensor, dense: torch.Tensor) -> None:
    """Up to rounding, but for single pixels that it carries over a threshold of the merge."""
    differ = (ours - dense).abs() > ROUNDING
    assert ours.shape == dense.shape
    assert int(differ.sum()) <= 1e-5 * dense.numel(), (int(differ.sum()), float((ours - dense).abs().max()))


def test_a_window_round_nothing_is_none():
    assert Window.around(np.zeros((4, 5), dtype=bool)) is None
    assert Window.around(np.eye(4, 5, 1, dtype=bool)) == Window(0, 1, 4, 5)


def test_a_window_on_a_coarser_grid_holds_every_pixel_of_the_finer_one():
    random = np.random.default_rng(0)
    for _ in range(50):
        top, left, height, width = random.integers(0, 40, 4).tolist()
        window = Window(top, left, top + height + 1, left + width + 1)
        coarse = window.coarser(4)
        back = coarse.finer(4)
        assert back.top <= window.top and back.left <= window.left
        assert back.bottom >= window.bottom and back.right >= window.right
        assert back.height < window.height + 8 and back.width < window.width + 8
        inside = window.within(back)
        assert (inside.moved(back.top, back.left), inside.area) == (window, window.area)


def ring(size: int) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - size // 2
    away = np.hypot(rows, columns)
    return (away < 0.45 * size) & (away > 0.42 * size)


def test_strips_hold_everything_once_and_leave_out_what_is_far_from_it():
    random = np.random.default_rng(0)
    for needed in (ring(600), random.random((300, 401)) > 0.9999, np.ones((200, 30), dtype=bool)):
        times = np.zeros(needed.shape, dtype=int)
        for window in strips(needed, 32):
            assert window.height <= 32
            window.of(times)[:] += 1
        assert times.max() == 1 and times[needed].all()
    assert sum(window.area for window in strips(ring(600), 32)) < 0.2 * 600**2
    assert strips(np.zeros((5, 7), dtype=bool)) == []


@pytest.mark.parametrize("most_cells", [1, 50, 10**6])
@pytest.mark.parametrize("halo", [0, 3, 6])
def test_a_cover_holds_everything_once_and_keeps_to_the_largest_size(halo, most_cells):
    random = np.random.default_rng(halo)
    for needed in (ring(64), random.random((40, 61)) > 0.99, np.ones((30, 30), dtype=bool)):
        windows = cover(needed, halo, most_cells)
        times = np.zeros(needed.shape, dtype=int)
        for window in windows:
            window.of(times)[:] += 1
            assert window.area <= most_cells
        assert times.max() == 1
        assert times[needed].min() == 1


def test_nothing_is_covered_by_nothing():
    assert cover(np.zeros((20, 30), dtype=bool), 3, 100) == []


def test_the_middle_of_a_large_ring_is_left_out_and_a_small_one_is_taken_whole():
    large = cover(ring(256), 3, 10**6)
    assert sum(window.grown(3, 256, 256).area for window in large) < 0.7 * 256**2
    assert cover(ring(40), 3, 10**6) == [Window.around(ring(40))]


SIZES = [(256, 256), (256, 170), (90, 140), (300, 500), (2000, 30), (7, 7), (1, 900)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_window_of_the_picture_is_drawn_as_in_the_whole(height, width):
    random = np.random.default_rng(height)
    frame = Frame(height, width, SIDE)
    square = torch.randn(1, 2, SIDE, SIDE)
    logits = torch.randn(1, 2, SIDE // 4, SIDE // 4)
    for _ in range(5):
        top, left = random.integers(height), random.integers(width)
        window = Window(top, left, random.integers(top, height) + 1, random.integers(left, width) + 1)
        for draw, given in ((frame.crop_to_original, square), (frame.logits_to_original, logits)):
            assert (draw(given, window) - window.of(draw(given))).abs().max() < 2e-6


@pytest.mark.parametrize("cell", [4, 8])
@pytest.mark.parametrize("interpolated", [True, False])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_no_cell_behind_a_pixel_is_missed(height, width, cell, interpolated):
    """A change in any other cell does not reach the pixels."""
    random = np.random.default_rng(width)
    frame = Frame(height, width, SIDE)
    for _ in range(4):
        needed = random.random((height, width)) > 1 - 3 / (height * width)
        box = Window.around(needed)
        if box is None:
            continue
        window = box.grown(int(random.integers(0, 9)), height, width)
        cells = torch.from_numpy(frame.cells_behind(window.of(needed), window, cell, interpolated))
        elsewhere = (~cells).float()[None, None]
        mode = "bilinear" if interpolated else "nearest"
        drawn = frame.crop_to_original(F.interpolate(elsewhere, (SIDE, SIDE), mode=mode))[0, 0]
        assert drawn[torch.from_numpy(needed)].max() == 0
        assert cells.sum() <= 25 * needed.sum() * max(1, SIDE / max(height, width)) ** 2


@pytest.mark.parametrize(("height", "width"), [(256, 192), (150, 256), (400, 300)])
@pytest.mark.parametrize("most_cells", [(10**6, 10**6), (150, 100)], ids=["whole", "in pieces"])
def test_each_scale_is_that_of_the_whole_square_where_it_is_asked_for(m2m, monkeypatch, height, width, most_cells):
    monkeypatch.setattr(partial, "_MOST_CELLS", most_cells)
    # What was not computed must not be read.
    monkeypatch.setattr(torch, "empty", lambda *shape, **form: torch.Tensor.fill_(empty(*shape, **form), torch.nan))
    random = np.random.default_rng(height)
    embedding = embedding_of(height, width)
    frame = embedding.frame
    for mask in subjects(height, width)[:5]:
        guidance = guidance_of(frame, mask)
        dense = predict_pyramid(m2m, embedding, guidance)
        window = Window.around(mask.numpy() > 0).grown(int(random.integers(0, 20)), height, width)
        pyramid = PartialPyramid(m2m, m2m.look_at(embedding), guidance.network_mask, frame, window)
        for scale in SCALES:
            where = random.random((window.height, window.width)) > 0.999
            where[random.integers(window.height), random.integers(window.width)] = True
            ours = pyramid.read(scale, where)
            whole = window.of(frame.crop_to_original(getattr(dense, scale))[0, 0]).numpy()
            assert np.abs(ours - whole)[where].max() < ROUNDING


empty = torch.empty


def test_os1_can_be_asked_for_beyond_what_os4_has_prepared(m2m):
    embedding = embedding_of(256, 256)
    mask = ellipse(256, 256, 0.5, 0.5, 0.3, 0.3)
    guidance = guidance_of(embedding.frame, mask)
    dense = predict_pyramid(m2m, embedding, guidance)
    pyramid = PartialPyramid(
        m2m, m2m.look_at(embedding), guidance.network_mask, embedding.frame, Window.whole(256, 256)
    )
    corner, everything = np.zeros((256, 256), dtype=bool), np.ones((256, 256), dtype=bool)
    corner[:9, :9] = True
    pyramid.read("os4", corner)
    assert np.abs(pyramid.read("os1", everything) - dense.os1[0, 0].numpy()).max() < ROUNDING


@pytest.mark.parametrize("mode", MODES, ids=MODE_NAMES)
@pytest.mark.parametrize(("height", "width"), [(256, 192), (90, 140), (310, 420)])
def test_a_matte_is_the_one_merged_from_the_whole_pyramid(m2m, mode, height, width):
    embedding = embedding_of(height, width)
    random = np.random.default_rng(width + MODES.index(mode))
    guidance = guidance_of(embedding.frame, *subjects(height, width), given=bool(random.integers(2)))
    pyramid = predict_pyramid(m2m, embedding, guidance)
    widths = random.choice([0, 1, 5, 10, 20, 41], 3).tolist()
    options = replace(mode, width_os8=widths[0], width_os4=widths[1], width_os1=widths[2])
    assert_same_mattes(matte_targets(m2m, embedding, guidance, options), merge_targets(pyramid, guidance, options))


def test_a_kept_picture_gives_the_matte_that_the_embedding_gives(m2m):
    embedding = embedding_of(200, 256)
    guidance = guidance_of(embedding.frame, *subjects(200, 256))
    kept = m2m.look_at(embedding)
    mattes = matte_targets(m2m, embedding, guidance)
    assert mattes.any()
    assert torch.equal(matte_targets(m2m, kept, guidance), mattes)
    assert torch.equal(matte_targets(m2m, kept, guidance), mattes), "asking must not change what is kept"


def test_what_is_kept_of_a_picture_is_small(m2m):
    kept = m2m.look_at(embedding_of(256, 256))
    cells = (SIDE // 16) ** 2
    # 20 MB for the published square of 1024 pixels.
    assert kept.nbytes * (64 * 64 / cells) < 22e6


def test_targets_without_an_edge_in_the_picture_do_not_run_the_network(m2m, monkeypatch):
    embedding = embedding_of(100, 120)
    monkeypatch.setattr(FoldedMaskToMatte, "look_at", None)
    guidance = guidance_of(embedding.frame, torch.zeros(100, 120))
    assert matte_targets(m2m, embedding, guidance).max() == 0
    # Positive only in the padding, which is no part of the picture.
    guidance.logits[..., 60:, :] = 5
    assert matte_targets(m2m, embedding, guidance).max() == 0


def test_no_target_gives_no_matte(m2m):
    embedding = embedding_of(100, 120)
    none = guidance_of(embedding.frame, torch.zeros(100, 120))
    none = Guidance((), none.logits[:0], none.predicted_iou[:0], none.chosen[:0], none.frame)
    assert matte_targets(m2m, embedding, none).shape == (0, 100, 120)


def test_strokes_are_certain_in_the_matte_also_far_from_the_mask(m2m):
    embedding = embedding_of(200, 256)
    guidance = guidance_of(embedding.frame, ellipse(200, 256, 0.3, 0.3, 0.15, 0.15))
    strokes = torch.zeros(200, 256, dtype=torch.uint8)
    strokes[180:190, 200:240] = Scribble.FOREGROUND
    strokes[50:60, 60:80] = Scribble.BACKGROUND
    strokes[100:110, 100:160] = Scribble.UNKNOWN
    prompts = (replace(guidance.prompts[0], scribbles=strokes),)
    guidance = replace(guidance, prompts=prompts)
    alpha = matte_targets(m2m, embedding, guidance)
    assert_same_mattes(alpha, merge_targets(predict_pyramid(m2m, embedding, guidance), guidance))
    assert alpha[0, 180:190, 200:240].min() == 1
    assert alpha[0, 50:60, 60:80].max() == 0


def test_a_picture_and_the_guidance_for_another_one_do_not_go_together(m2m):
    embedding = embedding_of(100, 120)
    guidance = guidance_of(Frame(120, 100, SIDE), torch.ones(120, 100))
    for picture in (embedding, m2m.look_at(embedding)):
        with pytest.raises(ValueError, match="120 x 100 pixels, the guidance of one of 100 x 120"):
            matte_targets(m2m, picture, guidance)


def test_half_precision_gives_nearly_the_same_matte(m2m):
    """bfloat16 has 8 bits of precision; measured 0.004 on average in the soft part."""
    embedding = embedding_of(200, 256)
    guidance = guidance_of(embedding.frame, ellipse(200, 256, 0.5, 0.5, 0.3, 0.3))
    half = chain.reference_m2m().fold().to(torch.bfloat16)
    whole, rounded = matte_targets(m2m, embedding, guidance), matte_targets(half, embedding, guidance)
    assert rounded.dtype == torch.float32
    assert 0 < (whole - rounded).abs().mean() < 0.01
    assert_same_mattes(matte_targets(half, m2m.look_at(embedding), guidance)[:, :5], whole[:, :5])


def test_a_preview_of_a_large_photo_is_its_matte_at_the_size_the_network_sees(m2m):
    height, width = 768, 1024
    embedding = embedding_of(height, width)
    mask = ellipse(height, width, 0.5, 0.5, 0.3, 0.3)
    for given in (False, True):
        guidance = guidance_of(embedding.frame, mask, given=given)
        options = MergeOptions(width_os8=12, width_os4=24, width_os1=12)
        small = guidance.at_content_size()
        assert small.frame == Frame(192, 256, SIDE)
        preview = matte_targets(m2m, m2m.look_at(embedding), small, options.scaled(256 / 1024))
        full = matte_targets(m2m, embedding, guidance, options)
        assert preview.shape == (1, 192, 256)
        shrunk = F.interpolate(full[None], (192, 256), mode="area")[0]
        assert (preview - shrunk).abs().mean() < 0.02
        assert full[0, ::4, ::4].std() > 0.3


def test_a_picture_that_is_already_small_is_its_own_preview():
    guidance = guidance_of(Frame(200, 256, SIDE), torch.ones(200, 256))
    assert guidance.at_content_size() is guidance
    assert Frame(90, 40, SIDE).at_content_size == Frame(90, 40, SIDE)


def test_what_the_user_said_shrinks_with_the_picture():
    frame = Frame(768, 1024, SIDE)
    guidance = guidance_of(frame, ellipse(768, 1024, 0.5, 0.5, 0.3, 0.3), given=True)
    strokes = torch.zeros(768, 1024, dtype=torch.uint8)
    strokes[400:408, 500:600] = Scribble.BACKGROUND
    box = (100.0, 200.0, 900.0, 600.0)
    prompt = replace(guidance.prompts[0], scribbles=strokes, box_xyxy_px=box, points_px=((512, 384),), labels=(1,))
    small = replace(guidance, prompts=(prompt,)).at_content_size()
    assert small.prompts[0].points_px == ((128, 96),)
    assert small.prompts[0].box_xyxy_px == (25, 50, 225, 150)
    assert small.prompts[0].mask.shape == (192, 256)
    assert (small.prompts[0].scribbles == Scribble.BACKGROUND).sum() == 2 * 25
    assert small.scores == guidance.scores


def test_scaled_bands_keep_their_share_of_the_picture():
    assert MergeOptions(width_os8=10, width_os4=20, width_os1=30, sides="two").scaled(0.5) == MergeOptions(
        width_os8=5, width_os4=10, width_os1=15, sides="two"
    )
    assert MergeOptions().scaled(1) == MergeOptions()


def test_the_matte_of_a_small_subject_computes_a_small_part(m2m, monkeypatch):
    """Counted in pixels that go through the last head, which is most of the dense network's work."""
    seen = []
    head = m2m.refine_OS1
    monkeypatch.setattr(type(head), "forward", _counting(type(head).forward, head, seen))
    embedding = embedding_of(1024, 768, side=1024)
    matte_targets(m2m, embedding, guidance_of(embedding.frame, ellipse(1024, 768, 0.5, 0.5, 0.05, 0.05)))
    assert 0 < sum(seen) < 0.06 * 1024**2


def _counting(forward, head, seen):
    def counted(self, x, *trim):
        if self is head:
            seen.append(x.shape[-2] * x.shape[-1])
        return forward(self, x, *trim)

    return counted
