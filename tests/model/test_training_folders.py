"""Data sets on disk: what belongs together, every form of picture file, and what is wrong with the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mam_model.photo import PhotoError
from mam_model.training import folders
from mam_model.training.config import TrainingError
from mam_model.training.folders import Pair, PictureFiles, find_pairs, find_pictures, read_pair

HEIGHT, WIDTH = 20, 30


def ramp(levels: int = 256) -> np.ndarray:
    """An alpha that rises from 0 to 1 from left to right, with another value in the top left corner."""
    alpha = np.linspace(0, levels - 1, WIDTH)[None].repeat(HEIGHT, axis=0).round()
    alpha[:5, :5] = levels // 2
    return alpha


def colors() -> np.ndarray:
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:10] = (200, 30, 60)
    picture[10:, 15:] = (10, 90, 250)
    return picture


def saved(path: Path, levels: np.ndarray, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path, **how)
    return path


def data_set(folder: Path, names=("a", "b", "c")) -> tuple[Path, Path]:
    for name in names:
        saved(folder / "fg" / f"{name}.png", colors())
        saved(folder / "alpha" / f"{name}.png", ramp().astype(np.uint8))
    return folder / "fg", folder / "alpha"


def read(picture: Path, alpha: Path | None):
    return read_pair(Pair("x", picture, alpha))


def test_pictures_and_alphas_of_one_name_belong_together_whatever_their_suffix(tmp_path):
    saved(tmp_path / "fg" / "dogs" / "rex.jpg", colors())
    saved(tmp_path / "alpha" / "dogs" / "rex.png", ramp().astype(np.uint8))
    pictures, alphas = data_set(tmp_path)
    pairs, left_out = find_pairs(pictures, alphas)
    assert [pair.name for pair in pairs] == ["a", "b", "c", "dogs/rex"]
    assert pairs[3].alpha == tmp_path / "alpha" / "dogs" / "rex.png"
    assert left_out == ()


def test_what_lacks_a_partner_is_left_out_and_named(tmp_path):
    pictures, alphas = data_set(tmp_path)
    saved(pictures / "lonely.png", colors())
    saved(alphas / "orphan.png", ramp().astype(np.uint8))
    saved(pictures / "b.jpg", colors())
    pairs, left_out = find_pairs(pictures, alphas)
    assert [pair.name for pair in pairs] == ["a", "c"]
    told = " ".join(left_out)
    assert "1 pictures have no alpha" in told and "lonely" in told
    assert "1 alphas have no picture" in told and "orphan" in told
    assert "1 names are those of several files and are left out: b" in told


def test_of_many_files_without_partner_a_few_are_named(tmp_path):
    pictures, alphas = data_set(tmp_path)
    for number in range(12):
        saved(pictures / f"x{number:02}.png", colors())
    _, (sentence,) = find_pairs(pictures, alphas)
    assert sentence.endswith("x00, x01, x02, x03, x04 and 7 more.")


def test_folders_in_which_nothing_belongs_together_are_refused(tmp_path):
    saved(tmp_path / "fg" / "a.png", colors())
    saved(tmp_path / "alpha" / "b.png", ramp().astype(np.uint8))
    with pytest.raises(TrainingError, match="belongs together.*no alpha of the same name.*: a"):
        find_pairs(tmp_path / "fg", tmp_path / "alpha")


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="There is no folder"):
        find_pictures(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(TrainingError, match="no pictures in"):
        find_pictures(tmp_path)


def test_alphas_of_8_and_16_bits_and_of_palettes_are_read_alike(tmp_path):
    picture = saved(tmp_path / "x.png", colors())
    eight = saved(tmp_path / "8.png", ramp().astype(np.uint8))
    sixteen = saved(tmp_path / "16.png", ramp(65536).astype(np.uint16))
    palette = tmp_path / "p.png"
    Image.fromarray(ramp().astype(np.uint8)).convert("P").save(palette)
    assert Image.open(palette).mode == "P"
    assert Image.open(sixteen).mode.startswith("I")
    _, expected = read(picture, eight)
    assert expected[10, -1] == 1 and expected[10, 0] == 0
    assert np.abs(read(picture, sixteen)[1] - ramp(65536) / 65535).max() < 1e-6
    assert np.abs(read(picture, palette)[1] - expected).max() < 1e-6


def test_a_palette_picture_has_its_colours(tmp_path):
    alpha = saved(tmp_path / "alpha.png", ramp().astype(np.uint8))
    Image.fromarray(colors()).quantize(8).save(tmp_path / "palette.png")
    picture, _ = read(tmp_path / "palette.png", alpha)
    assert np.abs(picture - colors() / 255).max() < 0.02


def test_a_picture_that_the_camera_marked_as_turned_is_turned_upright(tmp_path):
    turned = Image.fromarray(colors()).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    alpha = saved(tmp_path / "alpha.png", ramp().astype(np.uint8))
    picture, _ = read(tmp_path / "turned.png", alpha)
    assert np.abs(picture - colors() / 255).max() < 1e-6


def test_a_picture_may_bring_its_alpha_as_transparency(tmp_path):
    rgba = np.dstack([colors(), ramp().astype(np.uint8)])
    picture, alpha = read(saved(tmp_path / "x.png", rgba), None)
    assert np.abs(picture - colors() / 255).max() < 1e-6
    assert np.abs(alpha - ramp() / 255).max() < 1e-6


def test_sizes_that_differ_are_named(tmp_path):
    picture = saved(tmp_path / "x.png", colors())
    alpha = saved(tmp_path / "alpha.png", ramp().astype(np.uint8)[:, :-1])
    with pytest.raises(PhotoError, match="x.png is 30 x 20 pixels.*alpha.png is 29 x 20"):
        read(picture, alpha)


def test_an_empty_alpha_is_named(tmp_path):
    picture = saved(tmp_path / "x.png", colors())
    with pytest.raises(PhotoError, match="dark.png is an empty alpha"):
        read(picture, saved(tmp_path / "dark.png", np.full((HEIGHT, WIDTH), 100, np.uint8)))


def test_a_picture_without_transparency_cannot_be_its_own_alpha(tmp_path):
    with pytest.raises(PhotoError, match="x.png has no transparency"):
        read(saved(tmp_path / "x.png", colors()), None)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_was_cut_off_is_named(tmp_path, share):
    picture = saved(tmp_path / "x.png", np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    alpha = saved(tmp_path / "alpha.png", ramp().astype(np.uint8))
    content = picture.read_bytes()
    picture.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(PhotoError, match="x.png"):
        read(picture, alpha)


class Numbered:
    """Reads 100 bytes that hold the number in a file's name. Odd ones are no pictures."""

    def __init__(self):
        self.asked: list[int] = []

    def __call__(self, file: Path) -> np.ndarray:
        self.asked.append(number := int(file.name))
        if number % 2:
            raise PhotoError(f"{number} is no picture.")
        return np.full(100, number, np.uint8)


def numbers(*found: int) -> list[Path]:
    return [Path(str(number)) for number in found]


def test_pictures_are_read_when_they_are_asked_for_and_the_last_ones_kept(monkeypatch):
    monkeypatch.setattr(folders, "_KEPT_BYTES", 250)
    read = Numbered()
    pictures = PictureFiles(numbers(0, 2, 4, 6), read)
    assert read.asked == [] and len(pictures) == 4
    assert [pictures[number][0] for number in (0, 1, 0, 2)] == [0, 2, 0, 4]
    assert read.asked == [0, 2, 4]
    # 2 was asked for longest ago and made room for 4.
    assert [pictures[number][0] for number in (0, 2, 1)] == [0, 4, 2]
    assert read.asked == [0, 2, 4, 2]


def test_a_picture_larger_than_what_is_kept_can_be_had_too(monkeypatch):
    monkeypatch.setattr(folders, "_KEPT_BYTES", 50)
    assert [picture[0] for picture in PictureFiles(numbers(0, 2), Numbered())] == [0, 2]


def test_in_the_place_of_a_useless_file_is_the_next_one_and_it_is_named_once():
    read, skipped = Numbered(), []
    pictures = PictureFiles(numbers(0, 1, 2, 3), read, skipped.append)
    assert [picture[0] for picture in pictures] == [0, 2, 2, 0]
    assert [picture[0] for picture in pictures] == [0, 2, 2, 0]
    assert skipped == ["1 is no picture.", "3 is no picture."]
    assert read.asked == [0, 1, 2, 3]


def test_files_none_of_which_is_of_use_are_an_error():
    with pytest.raises(PhotoError, match="None of the 2 pictures beside 1 can be used."):
        PictureFiles(numbers(1, 3), Numbered())[0]
