"""Grey dilation and erosion by a disc: value for value what OpenCV gives for the disc as a structuring element."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mam_model import grey_morphology
from mam_model.grey_morphology import dilated_by_disc, eroded_by_disc

RADII = (*range(1, 41), 50, 63, 77, 100)


def disc(radius: int) -> np.ndarray:
    offsets = np.arange(-radius, radius + 1)
    return (offsets[:, None] ** 2 + offsets**2 <= (radius + 0.25) ** 2).astype(np.uint8)


def mattes(seed: int, height: int, width: int) -> list[np.ndarray]:
    """float32 [height, width]: noise, a soft edge, a hard one, single pixels, nothing and all."""
    random = np.random.default_rng(seed)
    noise = random.random((height, width), dtype=np.float32)
    soft = cv2.GaussianBlur((noise > 0.5).astype(np.float32), (0, 0), 3)
    spread = ((soft - 0.4) * 5).clip(0, 1)
    constants = [np.full((height, width), value, np.float32) for value in (0, 1)]
    return [noise, spread, (soft > 0.5).astype(np.float32), (noise > 0.998).astype(np.float32), *constants]


@pytest.mark.parametrize(("ours", "opencv"), [(dilated_by_disc, cv2.dilate), (eroded_by_disc, cv2.erode)])
@pytest.mark.parametrize("radius", RADII)
def test_every_radius_gives_what_opencv_gives(ours, opencv, radius):
    """Also where the disc is larger than the picture, and over the border of bands."""
    for height, width in ((1, 1), (3, 90), (90, 2), (61, 47), (2 * grey_morphology._BAND_ROWS + 5, 130)):
        for alpha in mattes(radius, height, width):
            before = alpha.copy()
            np.testing.assert_array_equal(ours(alpha, radius), opencv(alpha, disc(radius)))
            np.testing.assert_array_equal(alpha, before)


@pytest.mark.parametrize(("ours", "extreme"), [(dilated_by_disc, np.max), (eroded_by_disc, np.min)])
def test_a_disc_far_larger_than_the_picture_takes_no_more_memory_than_one_that_holds_it(ours, extreme):
    for alpha in mattes(1, 40, 70):
        assert (ours(alpha, 1_000_000) == extreme(alpha)).all()


def test_bands_are_told_and_may_be_the_end():
    alpha = np.zeros((2 * grey_morphology._BAND_ROWS + 1, 8), np.float32)
    told = []
    dilated_by_disc(alpha, 3, lambda done, parts: told.append((done, parts)))
    assert told == [(1, 3), (2, 3), (3, 3)]

    def cancel(done: int, parts: int) -> None:
        raise InterruptedError(done)

    with pytest.raises(InterruptedError, match="1"):
        eroded_by_disc(alpha, 3, cancel)
