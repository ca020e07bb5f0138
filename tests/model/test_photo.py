"""Picture files: read as a viewer shows them, refused with a sentence, written whole and to the nearest level."""

from __future__ import annotations

import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from mam_model import photo as photo_module
from mam_model.photo import PhotoError, check_writable, read_mask, read_photo, write_picture

RED, GREEN = (255, 0, 0), (0, 255, 0)


def two_pixels(left, right, mode="RGB") -> Image.Image:
    picture = Image.new(mode, (2, 1), left)
    picture.putpixel((1, 0), right)
    return picture


def test_a_photo_is_turned_upright_by_its_exif_tag(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the left; a viewer turns it to the right
    two_pixels(RED, GREEN).save(tmp_path / "turned.png", exif=exif)
    image = read_photo(tmp_path / "turned.png").image
    assert image.tolist() == [[[1, 0, 0]], [[0, 1, 0]]]


def test_sixteen_bits_of_grey_keep_their_levels(tmp_path):
    Image.fromarray(np.array([[0, 257, 30000, 65535]], np.uint16)).save(tmp_path / "grey.png")
    image = read_photo(tmp_path / "grey.png").image
    assert image.shape == (1, 4, 3)
    torch.testing.assert_close(image[0, :, 1], torch.tensor([0, 257, 30000, 65535]) / 65535)


def test_grey_beyond_16_bits_is_cut_off(tmp_path):
    Image.fromarray(np.array([[-7, 0, 13_107, 65_535, 70_000]], np.int32)).save(tmp_path / "grey.tif")
    assert read_mask(tmp_path / "grey.tif").tolist() == [[0, 0, pytest.approx(0.2), 1, 1]]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGB"])
def test_white_is_white_in_every_mode(tmp_path, mode):
    name = "white.jpg" if mode == "CMYK" else "white.png"
    Image.new("RGB", (16, 16), "white").convert(mode).save(tmp_path / name)
    photo = read_photo(tmp_path / name)
    assert photo.image.shape == (16, 16, 3)
    assert photo.image.min() == 1
    assert photo.alpha is None


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_arrives_as_alpha_beside_the_colours(tmp_path, mode):
    if mode == "P":
        picture, words = two_pixels(RED, GREEN).convert("P", palette=Image.Palette.ADAPTIVE), {}
        words["transparency"] = picture.getpixel((1, 0))
    else:
        picture, words = two_pixels((255, 255, 255, 255), (255, 255, 255, 0), "RGBA").convert(mode), {}
    picture.save(tmp_path / "seen.png", **words)
    photo = read_photo(tmp_path / "seen.png")
    assert photo.image.shape == (1, 2, 3)
    assert photo.image[0, 0, 0] == 1
    assert photo.alpha.tolist() == [[1, 0]]


def profile_with_red_and_green_exchanged() -> bytes:
    """sRGB with its primaries of red and green exchanged, under another name."""
    exchanged = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"????"), (b"gXYZ", b"rXYZ"), (b"????", b"gXYZ")):
        exchanged = exchanged.replace(old, new)
    return exchanged.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))


def test_colours_of_another_profile_are_converted(tmp_path):
    exchanged = profile_with_red_and_green_exchanged()
    Image.new("RGBA", (2, 2), (200, 0, 0, 128)).save(tmp_path / "exchanged.png", icc_profile=exchanged)
    photo = read_photo(tmp_path / "exchanged.png")
    torch.testing.assert_close(photo.image[0, 0], torch.tensor([0, 200, 0]) / 255, rtol=0, atol=2 / 255)
    assert photo.alpha[0, 0] == 128 / 255


def test_the_colours_of_a_palette_are_converted_by_its_profile(tmp_path):
    exchanged = profile_with_red_and_green_exchanged()
    picture = Image.new("RGB", (2, 2), (200, 0, 0)).convert("P")
    picture.save(tmp_path / "opaque.png", icc_profile=exchanged)
    picture.save(tmp_path / "clear.png", icc_profile=exchanged, transparency=255)
    for name in ("opaque.png", "clear.png"):
        color = read_photo(tmp_path / name).image[0, 0]
        torch.testing.assert_close(color, torch.tensor([0, 200, 0]) / 255, rtol=0, atol=4 / 255)


def test_the_profile_srgb_changes_nothing_and_a_broken_one_is_passed_over(tmp_path):
    picture = Image.new("RGB", (2, 2), (90, 150, 30))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    picture.save(tmp_path / "srgb.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # A profile for other channels than the picture has, and bytes that are no profile.
    picture.save(tmp_path / "lab.png", icc_profile=lab)
    picture.save(tmp_path / "noise.png", icc_profile=b"no profile")
    for name in ("srgb.png", "lab.png", "noise.png"):
        assert (read_photo(tmp_path / name).image[0, 0] * 255).round().tolist() == [90, 150, 30]


def test_a_mask_is_its_alpha_where_that_says_something_else_its_brightness(tmp_path):
    two_pixels((0, 0, 0, 255), (0, 0, 0, 0), "RGBA").save(tmp_path / "alpha.png")
    two_pixels((255, 255, 255, 255), (0, 0, 0, 255), "RGBA").save(tmp_path / "brightness.png")
    assert read_mask(tmp_path / "alpha.png").tolist() == [[1, 0]]
    assert read_mask(tmp_path / "brightness.png").tolist() == [[1, 0]]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_the_levels_of_a_mask_are_its_own_whatever_its_colour_profile(tmp_path, mode):
    brighter = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Another exponent than sRGB's, under another name: 128 becomes 153 in a photo.
    brighter = brighter.replace(struct.pack(">i", round(2.4 * 65536)), struct.pack(">i", round(1.8 * 65536)))
    brighter = brighter.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    Image.new("RGB", (1, 1), (128,) * 3).convert(mode).save(tmp_path / "mask.png", icc_profile=brighter)
    if mode != "L":
        assert read_photo(tmp_path / "mask.png").image[0, 0, 0] > 150 / 255
    assert read_mask(tmp_path / "mask.png").tolist() == [[pytest.approx(128 / 255)]]


def damaged(tmp_path, suffix: str):
    whole = tmp_path / f"whole{suffix}"
    Image.effect_noise((64, 64), 90).save(whole)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole.read_bytes()[:-800])
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_a_damaged_picture_is_refused_by_name(tmp_path, suffix):
    path = damaged(tmp_path, suffix)
    with pytest.raises(PhotoError, match=f"cut{suffix}"):
        read_photo(path)


def test_what_is_no_picture_is_refused_by_name(tmp_path):
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    for name, complaint in (
        ("page.jpg", "not a picture"),
        ("empty.png", "not a picture"),
        ("float.tif", "floating-point"),
        ("absent.png", "no file"),
    ):
        with pytest.raises(PhotoError, match=f"(?s){complaint}") as refusal:
            read_photo(tmp_path / name)
        assert name in str(refusal.value)


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    Image.new("1", (1900, 2000)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photo(tmp_path / "large.png").image.shape == (2000, 1900, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_500_000)
    with pytest.raises(PhotoError, match="more than 3 million pixels.*Make it smaller"):
        read_photo(tmp_path / "large.png")


def test_each_value_is_written_as_its_nearest_level(tmp_path):
    values = torch.tensor([[-1.0, 0.0, 0.49 / 255, 0.51 / 255, 254.51 / 255, 1.0, 2.0]])
    write_picture(tmp_path / "grey.png", values)
    assert np.asarray(Image.open(tmp_path / "grey.png")).tolist() == [[0, 0, 0, 1, 255, 255, 255]]


def test_a_matte_of_16_bits_comes_back_to_half_a_level(tmp_path):
    matte = torch.rand(8, 9, generator=torch.Generator().manual_seed(0))
    for name in ("matte.png", "matte.tif"):
        write_picture(tmp_path / name, matte, bits=16)
        torch.testing.assert_close(read_mask(tmp_path / name), matte, rtol=0, atol=0.5 / 65535 + 1e-7)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_a_cut_out_comes_back_with_its_alpha(tmp_path, suffix):
    picture = torch.randint(0, 256, (5, 6, 4), generator=torch.Generator().manual_seed(0)) / 255
    picture[..., 3].clamp_(min=1 / 255)  # WebP forgets colours that nobody can see
    write_picture(tmp_path / f"cut{suffix}", picture)
    photo = read_photo(tmp_path / f"cut{suffix}")
    torch.testing.assert_close(torch.cat((photo.image, photo.alpha[..., None]), dim=-1), picture)


@pytest.mark.parametrize(
    ("name", "needs", "complaint"),
    [
        ("cut.jpg", {"with_alpha": True}, "transparency"),
        ("matte.jpg", {"bits": 16}, "16 bits"),
        ("cut.xyz", {}, "suffix"),
        ("cut", {}, "suffix"),
    ],
)
def test_a_name_that_cannot_hold_the_picture_is_refused(tmp_path, name, needs, complaint):
    with pytest.raises(PhotoError, match=complaint):
        check_writable(name, **needs)
    picture = torch.zeros(4, 5, 4) if "with_alpha" in needs else torch.zeros(4, 5)
    with pytest.raises(PhotoError, match=complaint):
        write_picture(tmp_path / name, picture, bits=needs.get("bits", 8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shape", "bits", "complaint"),
    [
        ((4, 5, 3), 16, "16 bits.*grey"),
        ((4, 5), 12, "12 bits"),
        ((4, 5, 1), 8, "4 x 5 x 1"),
        ((2, 4, 5, 3), 8, "2 x 4 x 5 x 3"),
        ((0, 5), 8, "0 x 5"),
    ],
)
def test_what_no_file_can_hold_is_refused_in_words(tmp_path, shape, bits, complaint):
    with pytest.raises(PhotoError, match=complaint):
        write_picture(tmp_path / "some.png", torch.zeros(shape), bits=bits)
    assert not list(tmp_path.iterdir())


def test_8_bit_levels_are_refused_instead_of_written_as_white(tmp_path):
    with pytest.raises(PhotoError, match="uint8.*255"):
        write_picture(tmp_path / "some.png", torch.full((4, 5, 3), 100, dtype=torch.uint8))
    write_picture(tmp_path / "mask.png", torch.eye(3, dtype=torch.bool))
    assert torch.equal(read_mask(tmp_path / "mask.png"), torch.eye(3))


def test_values_that_are_no_numbers_are_not_written(tmp_path):
    picture = torch.rand(4, 5)
    picture[2, 3] = float("nan")
    with pytest.raises(PhotoError, match="NaN"):
        write_picture(tmp_path / "some.png", picture)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("suffix", "width"), [(".webp", 16_384), (".jpg", 65_536)])
def test_a_picture_too_large_for_its_format_is_refused_with_another(tmp_path, suffix, width):
    with pytest.raises(PhotoError, match=rf"large{suffix}.*png"):
        write_picture(tmp_path / f"large{suffix}", torch.zeros(1, width))
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "cut.png"
    write_picture(target, torch.ones(2, 2))

    def interrupted(source, _):
        assert source.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(photo_module.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_picture(target, torch.zeros(2, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["cut.png"]
    assert read_mask(target).min() == 1
