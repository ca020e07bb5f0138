"""The mapping between a picture and SAM's padded square."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from segment_anything.utils.transforms import ResizeLongestSide

from mam_model.frame import PIXEL_MEAN, PIXEL_STD, Frame
from mam_model.regions import Window

# height, width
PICTURES = [(141, 200), (200, 141), (64, 64), (1500, 1024), (333, 2000), (7, 5), (1, 1), (16, 5000), (9, 12000)]


def picture(height: int, width: int) -> torch.Tensor:
    """Soft colours with some noise, float [H, W, 3]."""
    generator = torch.Generator().manual_seed(height * 31 + width)
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    smooth = torch.stack([rows.expand(height, width), columns.expand(height, width), rows * columns], dim=-1)
    return (0.8 * smooth + 0.2 * torch.rand(height, width, 3, generator=generator)).contiguous()


@pytest.mark.parametrize("side", [256, 1024])
def test_the_content_has_the_size_that_segment_anything_gives_it(side):
    sizes = np.random.default_rng(0).integers(1, 9000, (500, 2)).tolist()
    # The last two come out at two and a half pixels.
    for height, width in [*sizes, (5, 2 * side), (2 * side, 5)]:
        frame = Frame(height, width, side)
        theirs = ResizeLongestSide.get_preprocess_shape(height, width, side)
        assert (frame.content_height, frame.content_width) == tuple(max(1, n) for n in theirs)


@pytest.mark.parametrize("size", [size for size in PICTURES if size != (9, 12000)])
def test_the_network_sees_the_pixels_that_segment_anything_would_show_it(size):
    """Of 12000 x 9 pixels segment-anything would leave no row at a side of 256."""
    image = picture(*size)
    theirs = ResizeLongestSide(256).apply_image((image * 255).round().byte().numpy())
    assert np.array_equal(Frame(*size, side=256).shrink(image).numpy(), theirs)


def test_a_strip_too_thin_for_the_square_keeps_one_row():
    frame = Frame(height=12000, width=1, side=1024)
    assert (frame.content_height, frame.content_width) == (1024, 1)
    assert frame.shrink(picture(12000, 1)).shape == (1024, 1, 3)
    assert frame.crop_to_original(torch.rand(1, 1, 1024, 1024)).shape == (1, 1, 12000, 1)


def test_the_network_input_is_normalised_and_zero_in_the_padding():
    frame = Frame(height=100, width=200, side=64)
    content = frame.shrink(picture(100, 200))
    square = frame.network_input(content)
    assert square.shape == (1, 3, 64, 64)
    assert square.dtype == torch.float32
    assert torch.all(square[..., 32:, :] == 0)
    for channel in range(3):
        expected = (content[..., channel].double() - PIXEL_MEAN[channel]) / PIXEL_STD[channel]
        assert torch.allclose(square[0, channel, :32].double(), expected, atol=1e-6, rtol=0)


def test_colours_outside_the_range_are_cut_and_the_picture_itself_is_left_alone():
    image = torch.tensor([[[-0.5, 0.5, 1.5]]])
    before = image.clone()
    content = Frame(1, 1, side=16).shrink(image)
    assert content.unique(dim=0).reshape(-1, 3).unique(dim=0).tolist() == [[0, 128, 255]]
    assert torch.equal(image, before)


@pytest.mark.parametrize("size", PICTURES)
def test_points_and_boxes_land_where_segment_anything_puts_them(size):
    height, width = size
    points = torch.rand(50, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([width, height])
    boxes = torch.cat([points[:25], points[25:]], dim=1)
    frame, theirs = Frame(height, width), ResizeLongestSide(1024)
    expected = theirs.apply_coords(points.double().numpy(), size)
    assert np.allclose(frame.points_to_network(points).numpy(), expected, atol=1e-4, rtol=0)
    expected = theirs.apply_boxes(boxes.double().numpy(), size)
    assert np.allclose(frame.boxes_to_network(boxes).numpy(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(141, 200), (200, 141), (900, 1400), (40, 30)])
def test_a_place_marked_in_the_square_comes_back_to_the_point_that_was_sent_there(size):
    """The square shows its own coordinates; cropped to the picture it must show where each pixel's centre was sent."""
    height, width = size
    frame = Frame(height, width, side=256)
    centres = torch.arange(256) + 0.5
    square = torch.stack([centres[None].expand(256, 256), centres[:, None].expand(256, 256)])[None]
    returned = frame.crop_to_original(square)[0].permute(1, 2, 0)
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    sent = frame.points_to_network(torch.stack([columns, rows], dim=-1))
    # The outermost pixels have no neighbour to interpolate with.
    inside = (slice(10, -10), slice(10, -10))
    assert torch.allclose(returned[inside], sent[inside], atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(141, 200), (200, 141), (256, 256), (16, 5000), (1, 1), (9, 12000)])
def test_a_mask_is_zero_in_the_padding_and_full_on_the_picture(size):
    frame = Frame(*size, side=256)
    mask = frame.mask_to_network(torch.ones(size))
    assert mask.shape == (1, 1, 64, 64)
    rows, columns = frame.content_height / 4, frame.content_width / 4
    assert torch.allclose(mask[..., : int(rows), : int(columns)], torch.tensor(1.0))
    assert torch.all(mask[..., int(np.ceil(rows)) :, :] == 0)
    assert torch.all(mask[..., int(np.ceil(columns)) :] == 0)
    # What it covers, in pixels of the square, is the content.
    assert mask.sum() * 16 == pytest.approx(frame.content_height * frame.content_width)


def test_a_mask_lies_in_the_square_where_a_box_around_it_lies():
    frame = Frame(height=300, width=500, side=256)
    mask = torch.zeros(300, 500)
    mask[90:210, 50:350] = 1
    x0, y0, x1, y1 = (frame.boxes_to_network(torch.tensor([50.0, 90.0, 350.0, 210.0])) / 4).tolist()
    rows, columns = np.nonzero(frame.mask_to_network(mask)[0, 0].numpy() > 0.5)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == pytest.approx((x0, y0, x1, y1), abs=1)


def test_what_is_finer_in_a_mask_than_the_square_shows_is_averaged():
    mask = torch.zeros(1000, 1300)
    mask[:, ::2] = 1
    stripes = Frame(1000, 1300, side=256).mask_to_network(mask)[0, 0]
    # 1000 rows become 197, the last of which lie in cells that the padding shares.
    assert torch.allclose(stripes[1:48, 1:-1], torch.tensor(0.5), atol=0.02)


@pytest.mark.parametrize("size", [(141, 200), (700, 400), (60, 80)])
def test_a_mask_survives_the_way_into_the_square_and_back(size):
    height, width = size
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    mask = ((rows - 0.1) ** 2 + (columns + 0.2) ** 2 < 0.4).float()
    frame = Frame(height, width, side=256)
    returned = frame.logits_to_original(frame.mask_to_network(mask) - 0.5)[0, 0] > 0
    common = (returned & (mask > 0)).sum() / (returned | (mask > 0)).sum()
    assert returned.shape == size
    assert common > 0.96


def blots(seed: int, cells: int) -> torch.Tensor:
    """Logits of blots and of single cells, some of them 0, float [1, 1, cells, cells]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, 6, 6, generator=generator)
    logits = 20 * F.interpolate(coarse, (cells, cells), mode="bicubic")
    speckled = torch.rand(logits.shape, generator=generator)
    logits[speckled > 0.995] *= -1
    logits[speckled < 0.01] = 0
    return logits


@pytest.mark.parametrize("size", PICTURES)
def test_a_mask_is_interpolated_along_its_edge_alone_and_none_the_worse_for_it(size):
    height, width = size
    random = np.random.default_rng(height)
    frame = Frame(height, width, side=256)
    for seed in range(4):
        logits = blots(seed, 64)
        top, left = int(random.integers(height)), int(random.integers(width))
        bottom, right = int(random.integers(top, height)) + 1, int(random.integers(left, width)) + 1
        for window in (Window.whole(height, width), Window(top, left, bottom, right)):
            whole = frame.logits_to_original(logits, window)[0, 0] > 0
            assert torch.equal(frame.mask_to_original(logits, window), whole)


def test_a_masks_inside_is_not_interpolated(monkeypatch):
    frame, interpolated, draw = Frame(3000, 2000), [], Frame.logits_to_original

    def watched(frame: Frame, logits: torch.Tensor, window: Window) -> torch.Tensor:
        interpolated.append(window.area)
        return draw(frame, logits, window)

    monkeypatch.setattr(Frame, "logits_to_original", watched)
    logits = torch.full((1, 1, 256, 256), -20.0)
    logits[..., 60:200, 40:140] = 20
    mask = frame.mask_to_original(logits, Window.whole(3000, 2000))
    assert 0.2 < mask.float().mean() < 0.4
    assert 0 < sum(interpolated) < 0.2 * mask.numel()
