"""Mattes of several targets at once, as a GPU makes them. On the processor the way is slow, but open to every test."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mam_model import matting
from mam_model.batched import WindowedPyramids, bytes_per_target, matte_together
from mam_model.frame import Frame
from mam_model.m2m import AlphaPyramid, FoldedMaskToMatte
from mam_model.matting import MattingAnything, matte_in_turn, matte_targets, merge_targets, predict_pyramid
from mam_model.merge import PUBLISHED_MERGE, MergeOptions
from mam_model.prompt import Prompt, Scribble
from mam_model.regions import Window, in_one_size
from mam_model.sam import Embedding, Guidance
from tests.references import chain
from tests.references.live_memory import LiveMemory

SIDE = 256
# Measured 1e-5 at the worst pixel, with weights that amplify more than trained ones.
ROUNDING = 2e-5
MODES = [
    MergeOptions(guidance, sides, *widths, clear_outside_box=clear)
    for guidance, clear in (("mask", True), ("alpha", True), ("alpha", False))
    for sides, widths in (("one", (10, 20, 10)), ("two", (5, 41, 0)))
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


def subjects(height: int, width: int) -> list[torch.Tensor]:
    """Small ones in the middle and in corners, one with its edge everywhere, all, and nothing."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 1, 12, 12, generator=generator)
    return [
        ellipse(height, width, 0.4, 0.3, 0.06, 0.08),
        torch.zeros(height, width),
        ellipse(height, width, 1.0, 0.0, 0.12, 0.1),
        ellipse(height, width, 0.0, 1.0, 0.1, 0.1),
        ellipse(height, width, 0.6, 0.5, 0.3, 0.1),
        (F.interpolate(noise, (height, width), mode="bicubic") > 0.5)[0, 0].float(),
        torch.ones(height, width),
    ]


def guidance_of(frame: Frame, *masks: torch.Tensor, given: bool = False) -> Guidance:
    """As if SAM had found these masks; with `given`, as if the user had drawn them."""
    prompt = Prompt(points_px=((0, 0),), labels=(1,))
    prompts = tuple(Prompt(mask=mask, mask_is_guidance=True) if given else prompt for mask in masks)
    logits = torch.cat([(frame.mask_to_network(mask) * 2 - 1).expand(1, 3, -1, -1) * 10 for mask in masks])
    count = len(masks)
    return Guidance(prompts, logits, torch.ones(count, 3), torch.zeros(count, dtype=torch.int64), frame)


def assert_same_mattes(ours: torch.Tensor, others: torch.Tensor) -> None:
    """Up to rounding, but for single pixels that it carries over a threshold of the merge."""
    differ = (ours - others).abs() > ROUNDING
    assert ours.shape == others.shape
    assert int(differ.sum()) <= 1e-5 * others.numel(), (int(differ.sum()), float((ours - others).abs().max()))


@pytest.mark.parametrize("mode", MODES, ids=MODE_NAMES)
def test_mattes_made_together_are_those_of_the_whole_pyramids_and_of_one_after_the_other(m2m, mode):
    height, width = ((256, 192), (90, 140), (310, 420))[MODES.index(mode) % 3]
    embedding = embedding_of(height, width)
    guidance = guidance_of(embedding.frame, *subjects(height, width), given=height == 256)
    picture = m2m.look_at(embedding)
    together = matte_together(m2m, picture, guidance, mode, 3)
    assert [bool(alpha.any()) for alpha in together] == [mask.any() for mask in subjects(height, width)]
    assert_same_mattes(together, merge_targets(predict_pyramid(m2m, embedding, guidance), guidance, mode))
    assert_same_mattes(together, matte_in_turn(m2m, picture, guidance, mode))


@pytest.mark.parametrize("targets_per_step", [1, 2, 100])
def test_how_many_targets_go_together_does_not_matter(m2m, targets_per_step):
    embedding = embedding_of(200, 256)
    guidance = guidance_of(embedding.frame, *subjects(200, 256)[::-1])
    picture = m2m.look_at(embedding)
    usual = matte_together(m2m, picture, guidance, targets_per_step=4)
    assert_same_mattes(matte_together(m2m, picture, guidance, targets_per_step=targets_per_step), usual)


def test_small_targets_anywhere_in_a_large_square_come_out_as_in_the_whole(m2m):
    """Each is computed in a rectangle that was cut out of the square, with the edges of the square on some sides."""
    embedding = embedding_of(450, 640, side=640)
    masks = [ellipse(450, 640, y, x, 0.02, 0.02) for y, x in ((0, 0), (0.5, 0.5), (1, 1), (0.3, 0.98))]
    guidance = guidance_of(embedding.frame, *masks)
    together = matte_together(m2m, m2m.look_at(embedding), guidance, targets_per_step=4)
    assert all(alpha.any() for alpha in together)
    last = guidance_of(embedding.frame, masks[3])
    assert_same_mattes(together[3:], merge_targets(predict_pyramid(m2m, embedding, last), last))
    assert_same_mattes(together, matte_in_turn(m2m, m2m.look_at(embedding), guidance, PUBLISHED_MERGE))


def test_targets_of_one_size_go_through_the_network_in_one_batch_and_a_large_one_alone(m2m, monkeypatch):
    seen = []
    head = type(m2m.refine_OS1)
    forward = head.forward
    monkeypatch.setattr(head, "forward", lambda self, x, *trim: (seen.append(len(x)), forward(self, x, *trim))[1])
    embedding = embedding_of(512, 512, side=512)
    small = [ellipse(512, 512, 0.2 + 0.2 * n, 0.5, 0.02, 0.02) for n in range(3)]
    guidance = guidance_of(embedding.frame, *small, ellipse(512, 512, 0.5, 0.5, 0.2, 0.2))
    matte_together(m2m, m2m.look_at(embedding), guidance, targets_per_step=1)
    # Three heads each.
    assert sorted(seen) == [1, 1, 1, 3, 3, 3]


def test_the_matte_of_a_small_target_computes_a_small_part(m2m):
    embedding = embedding_of(1024, 1024, side=1024)
    guidance = guidance_of(embedding.frame, ellipse(1024, 1024, 0.5, 0.5, 0.03, 0.03))
    picture = m2m.look_at(embedding)
    with LiveMemory() as memory:
        matte_together(m2m, picture, guidance)
    assert memory.peak_bytes < 0.1 * bytes_per_target(embedding.frame, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_target_takes_no_more_memory_than_is_declared_and_not_much_less(m2m, dtype, count, monkeypatch):
    """A processor's way through the last convolution needs more, which is no matter of the GPU's."""
    monkeypatch.setattr(type(m2m.refine_OS1.conv2), "forward", nn.Conv2d.forward)
    network = chain.reference_m2m().fold().to(dtype)
    for height, width in ((256, 256), (1000, 750)):
        embedding = embedding_of(height, width)
        picture = network.look_at(embedding).to(next(network.parameters()))
        guidance = guidance_of(embedding.frame, *[torch.ones(height, width)] * count)
        with LiveMemory() as memory:
            matte_together(network, picture, guidance, MergeOptions("alpha", clear_outside_box=False), count)
        declared = count * bytes_per_target(embedding.frame, dtype.itemsize)
        assert 0.4 * declared < memory.peak_bytes < declared


def test_a_whole_matting_runs_the_way_of_a_gpu(monkeypatch):
    """From picture to mattes, the steps one by one and all at once."""
    usual = MattingAnything(chain.reference_sam(), chain.reference_m2m())
    image = torch.rand(90, 140, 3, generator=torch.Generator().manual_seed(0))
    prompts = [
        Prompt(box_xyxy_px=(20, 10, 90, 80)),
        Prompt(),
        Prompt(points_px=((60, 40), (100, 20)), labels=(1, 0)),
        Prompt(mask=ellipse(90, 140, 0.5, 0.3, 0.2, 0.2), mask_is_guidance=True),
    ]
    mattes = usual.matte(image, prompts)
    calls = mock.Mock(wraps=matte_together)
    monkeypatch.setattr(matting, "matte_together", calls)
    for module in ("matting", "merge"):
        monkeypatch.setattr(f"mam_model.{module}.merges_in_arrays", lambda device: False)
    embedding = usual.embed(image)
    guidance = usual.sam.decode(embedding, prompts, targets_per_step=3)
    assert_same_mattes(matte_targets(usual.m2m, embedding, guidance, targets_per_step=2), mattes)
    assert_same_mattes(merge_targets(predict_pyramid(usual.m2m, embedding, guidance, 4), guidance), mattes)
    assert calls.call_count == 1
    assert mattes[0].any()


def test_strokes_are_certain_in_the_matte_also_far_from_the_mask(m2m):
    embedding = embedding_of(200, 256)
    guidance = guidance_of(embedding.frame, *[ellipse(200, 256, 0.3, 0.3, 0.15, 0.15)] * 2)
    strokes = torch.zeros(200, 256, dtype=torch.uint8)
    strokes[180:190, 200:240] = Scribble.FOREGROUND
    strokes[50:60, 60:80] = Scribble.BACKGROUND
    strokes[100:110, 100:160] = Scribble.UNKNOWN
    guidance = replace(guidance, prompts=(replace(guidance.prompts[0], scribbles=strokes), guidance.prompts[1]))
    alphas = matte_together(m2m, m2m.look_at(embedding), guidance)
    assert_same_mattes(alphas, merge_targets(predict_pyramid(m2m, embedding, guidance), guidance))
    assert alphas[0, 180:190, 200:240].min() == 1
    assert alphas[0, 50:60, 60:80].max() == 0
    assert alphas[1, 180:190, 200:240].max() == 0


def test_a_preview_of_a_large_photo_is_made_at_the_size_the_network_sees(m2m):
    embedding = embedding_of(768, 1024)
    guidance = guidance_of(embedding.frame, ellipse(768, 1024, 0.5, 0.5, 0.3, 0.3)).at_content_size()
    picture = m2m.look_at(embedding)
    preview = matte_together(m2m, picture, guidance)
    assert preview.shape == (1, 192, 256)
    assert_same_mattes(preview, matte_in_turn(m2m, picture, guidance, PUBLISHED_MERGE))


def test_no_target_and_none_with_a_mask_do_not_run_the_network(m2m, monkeypatch):
    embedding = embedding_of(100, 120)
    picture = m2m.look_at(embedding)
    monkeypatch.setattr(WindowedPyramids, "__init__", None)
    empty = guidance_of(embedding.frame, torch.zeros(100, 120))
    assert matte_together(m2m, picture, empty).shape == (1, 100, 120)
    # Positive only in the padding, which is no part of the picture.
    empty.logits[..., 60:, :] = 5
    assert matte_together(m2m, picture, empty).max() == 0
    none = Guidance((), empty.logits[:0], empty.predicted_iou[:0], empty.chosen[:0], empty.frame)
    assert matte_together(m2m, picture, none).shape == (0, 100, 120)


def test_each_scale_is_that_of_the_whole_square(m2m):
    embedding = embedding_of(300, 500)
    masks = [ellipse(300, 500, 0.5, x, 0.1, 0.1) for x in (0.2, 0.7)]
    guidance = guidance_of(embedding.frame, *masks)
    dense: AlphaPyramid = predict_pyramid(m2m, embedding, guidance)
    windows = [Window(90, 60, 200, 160), Window(20, 330, 130, 430)]
    pyramids = WindowedPyramids(m2m, m2m.look_at(embedding), guidance.network_mask, embedding.frame, windows)
    for scale in ("os8", "os4", "os1"):
        whole = embedding.frame.crop_to_original(getattr(dense, scale))[:, 0]
        ours = pyramids.read(scale)
        for target, window in enumerate(windows):
            assert (ours[target] - window.of(whole[target])).abs().max() < ROUNDING


def test_windows_of_one_size_lie_in_the_area_and_hold_the_given_ones():
    random = np.random.default_rng(0)
    for _ in range(100):
        height, width = random.integers(1, 50, 2).tolist()
        given = []
        for _ in range(random.integers(1, 5)):
            top, left = random.integers(height), random.integers(width)
            given.append(Window(top, left, random.integers(top, height) + 1, random.integers(left, width) + 1))
        same = in_one_size(given, height, width)
        assert {(window.height, window.width) for window in same} == {
            (max(window.height for window in given), max(window.width for window in given))
        }
        for window, around in zip(given, same):
            assert 0 <= around.top <= window.top and window.bottom <= around.bottom <= height
            assert 0 <= around.left <= window.left and window.right <= around.right <= width


def test_windows_around_many_areas_are_those_around_each():
    random = np.random.default_rng(1)
    areas = random.random((40, 13, 17)) > random.choice([0.5, 0.99, 1], (40, 1, 1))
    areas[0, 3, :] = True
    assert Window.around_each(torch.from_numpy(areas)) == [Window.around(area) for area in areas]
    assert Window.around_each(torch.zeros(0, 4, 5, dtype=torch.bool)) == []
