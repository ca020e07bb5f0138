"""What the refiner learns from: rendered pictures and cut-outs, laid over others, and spoilt masks."""

import errno
import os
import signal

import numpy as np
import pytest
from PIL import Image

from mam_model.training import gallery as gallery_of
from mam_model.training.degraded_masks import degraded_mask
from mam_model.training.gallery import Gallery, fill_gallery, read_texture
from mam_model.training.render import render


@pytest.fixture
def small_pictures(monkeypatch):
    monkeypatch.setattr(gallery_of, "GALLERY_PX", 128)


def test_rendering_goes_on_where_it_stopped(small_pictures, tmp_path):
    fill_gallery(tmp_path, (), seed=5, count=1)
    kept = (tmp_path / "00000.npy").stat().st_mtime_ns
    fill_gallery(tmp_path, (), seed=5, count=2)
    assert (tmp_path / "00000.npy").stat().st_mtime_ns == kept
    assert np.load(tmp_path / "00001.npy").shape == (128, 128, 10)


def test_a_photo_of_16_bits_serves_in_its_own_levels_and_upright(tmp_path):
    ramp = np.linspace(0, 65535, 60 * 90).reshape(60, 90).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert np.abs(read_texture(tmp_path / "ramp.png") - (ramp / 257)[..., None]).max() <= 0.51
    turned = Image.new("RGB", (90, 60))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_texture(tmp_path / "turned.jpg").shape == (90, 60, 3)


def test_true_pictures_and_photos_take_part(small_pictures, tmp_path):
    fill_gallery(tmp_path, (), seed=5, count=2)
    subject = np.zeros((200, 180, 4), np.uint8)
    subject[..., 0] = 255
    subject[60:140, 60:120, 3] = 255
    photo = np.full((150, 150, 3), (0, 255, 0), np.uint8)
    gallery = Gallery(tmp_path, [photo], [subject], true_share=1.0)
    gallery.refresh()
    samples = [gallery.sample(np.random.default_rng(number), 64) for number in range(8)]
    assert any(sample.alpha.max() == 1 and sample.alpha.min() == 0 for sample in samples)
    assert all(sample.picture.shape == (64, 64, 3) and sample.mask.shape == (64, 64) for sample in samples)


def test_a_full_disk_ends_the_rendering_with_a_sentence(tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(gallery_of, "write_atomically", full)
    monkeypatch.setattr(gallery_of, "GALLERY_PX", 32)
    monkeypatch.setattr(gallery_of, "end_with_parent", lambda: None)
    monkeypatch.setattr(os, "nice", lambda steps: None, raising=False)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    with pytest.raises(SystemExit, match="No more pictures could be rendered into .*gallery: No space left on device"):
        gallery_of.fill_aside(tmp_path / "gallery", (), 5, 4)


def test_masks_are_spoilt_but_stay_masks():
    alpha = render(3, 160, 160, kind="fur").alpha
    masks = [degraded_mask(np.random.default_rng(seed), alpha) for seed in range(120)]
    assert all(mask.shape == alpha.shape and mask.dtype == np.float32 for mask in masks)
    assert all(mask.min() >= 0 and mask.max() <= 1 for mask in masks)
    exact = sum(np.array_equal(mask, alpha > 0.5) for mask in masks)
    assert 20 < exact < 80


def test_the_same_seed_draws_the_same_sample(tmp_path):
    np.save(tmp_path / "00000.npy", np.random.default_rng(1).integers(0, 256, (200, 200, 10), dtype=np.uint8))
    gallery = Gallery(tmp_path, [], [], true_share=0.0)
    gallery.refresh()
    first, second = (gallery.sample(np.random.default_rng(4), 64) for _ in range(2))
    assert all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ("picture", "alpha", "mask"))


@pytest.mark.parametrize("seed", range(6))
def test_a_hidden_subject_has_the_colours_of_what_is_behind_it(seed):
    rng = np.random.default_rng(seed)
    behind = np.full((64, 64, 3), (20, 120, 40), np.float32) + rng.normal(0, 3, (64, 64, 3)).astype(np.float32)
    front = np.full((64, 64, 3), (220, 60, 90), np.float32)
    hidden = gallery_of._hidden(rng, front, behind, behind.clip(0, 255).astype(np.uint8))
    assert np.abs(hidden - behind).mean() < 0.65 * np.abs(front - behind).mean()


def test_the_light_of_the_background_falls_on_the_rim_and_not_on_the_middle():
    y, x = np.mgrid[:96, :96]
    alpha = (np.hypot(y - 48, x - 48) < 40).astype(np.float32)
    front, behind = np.zeros((96, 96, 3), np.float32), np.full((96, 96, 3), 255, np.float32)
    spilt = gallery_of._spilt(np.random.default_rng(3), front, behind, alpha)
    assert spilt[48, 88].min() > spilt[48, 48].max() + 5
    assert spilt[48, 48].max() < 1
