"""Mattes of groups of pictures are measured group by group, and nothing is silently left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mam_model.__main__ import main
from mam_model.in_context.groups import (
    GroupScores,
    GroupsError,
    judged_in,
    mean_of_groups,
    mean_of_pictures,
    score_groups,
    table,
)
from mam_model.metrics import score_matte
from mam_model.photo import read_mask


def save(path: Path, level: int = 255, size: tuple[int, int] = (40, 30)) -> Path:
    """A square of one grey level on black, 40 x 30 pixels."""
    matte = np.zeros(size[::-1], np.uint8)
    matte[8:20, 10:25] = level
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(matte).save(path)
    return path


@pytest.fixture
def icm(tmp_path) -> Path:
    """Two dogs and three cups in the layout of ICM-57, perfect mattes for all but one."""
    for name in ("dog_00", "dog_01", "cup_00", "cup_01", "cup_02"):
        save(tmp_path / "ICM57" / "alpha" / f"{name}.png")
        save(tmp_path / "results" / f"{name}.png", 128 if name == "dog_01" else 255)
    return tmp_path / "ICM57"


def test_a_perfect_matte_has_no_error_and_a_group_is_judged_by_its_mean(icm, tmp_path):
    cup, dog = score_groups(judged_in(icm, tmp_path / "results"))
    assert (cup.group, cup.pictures, dog.group, dog.pictures) == ("cup", 3, "dog", 2)
    assert (cup.mse, cup.sad, cup.grad, cup.conn) == (0, 0, 0, 0)
    truth, poor = read_mask(icm / "alpha" / "dog_01.png"), read_mask(tmp_path / "results" / "dog_01.png")
    scores, _ = score_matte(poor, truth)
    expected = (scores.mse / 1000, scores.sad, scores.grad, scores.conn)
    assert (dog.mse, dog.sad, dog.grad, dog.conn) == pytest.approx([error / 2 for error in expected])
    assert dog.mse == pytest.approx(180 * (127 / 255) ** 2 / 1200 / 2)


def test_the_json_of_icm_57_says_the_groups(icm, tmp_path):
    facts = {
        "dog_00": {"class": "animal", "sub_class": "dog", "HalfOrFull": None},
        "dog_01": {"class": "animal", "sub_class": "dog", "HalfOrFull": "half"},
        **{f"cup_0{number}": {"class": "cup", "sub_class": None} for number in range(3)},
    }
    for place in (tmp_path / "ICM57.json", icm / "ICM57.json", tmp_path / "mine.json"):
        place.write_text(json.dumps(facts))
        given = place if place.name == "mine.json" else None
        groups = {picture.name: picture.group for picture in judged_in(icm, tmp_path / "results", given)}
        assert groups == {
            "dog_00": "animal-dog",
            "dog_01": "animal-dog-half",
            "cup_00": "cup",
            "cup_01": "cup",
            "cup_02": "cup",
        }
        place.unlink()


@pytest.mark.parametrize("true_mattes", ["alpha", "mask"])
def test_one_folder_for_each_group_is_understood(tmp_path, true_mattes):
    for group in ("dog", "cup"):
        save(tmp_path / "set" / group / true_mattes / "1.png")
        save(tmp_path / "set" / group / "image" / "1.png")
        save(tmp_path / "results" / group / "1.webp")
    scores = score_groups(judged_in(tmp_path / "set", tmp_path / "results"))
    assert [(row.group, row.pictures) for row in scores] == [("cup", 1), ("dog", 1)]


def test_what_lies_beside_the_folders_of_the_groups_is_passed_over(tmp_path):
    save(tmp_path / "set" / "dog" / "alpha" / "1.png")
    save(tmp_path / "set" / "previews" / "1.png")
    (tmp_path / "set" / "readme.txt").touch()
    save(tmp_path / "results" / "dog" / "1.png")
    assert [picture.group for picture in judged_in(tmp_path / "set", tmp_path / "results")] == ["dog"]


def test_mattes_may_have_any_suffix_of_a_picture_and_hidden_files_are_none(icm, tmp_path):
    suffixes = (".tif", ".TIFF", ".jpg", ".jpeg", ".bmp")
    for path, suffix in zip(sorted((tmp_path / "results").iterdir()), suffixes, strict=True):
        save(path.with_suffix(suffix))
        path.unlink()
    # As macOS writes them beside a file on a disk of another system.
    (icm / "alpha" / "._dog_00.png").write_bytes(b"no picture")
    found = judged_in(icm, tmp_path / "results")
    assert {picture.predicted.suffix for picture in found} == set(suffixes)


def test_without_a_json_a_name_of_digits_alone_is_its_own_group(tmp_path):
    for name in ("0001", "0002", "dog 1", "dog-2"):
        save(tmp_path / "set" / "alpha" / f"{name}.png")
    groups = [picture.group for picture in judged_in(tmp_path / "set", tmp_path / "set" / "alpha")]
    assert groups == ["0001", "0002", "dog", "dog"]


def test_the_json_is_found_from_inside_the_folder_of_the_test_set_too(icm, tmp_path, monkeypatch):
    facts = {path.stem: {"class": "thing"} for path in (icm / "alpha").iterdir()}
    (tmp_path / "ICM57.json").write_text(json.dumps(facts))
    monkeypatch.chdir(icm)
    assert {picture.group for picture in judged_in(Path(), tmp_path / "results")} == {"thing"}


def test_means_over_groups_and_over_pictures_weigh_differently():
    groups = [GroupScores("a", 1, 0.4, 4, 40, 400), GroupScores("b", 3, 0, 0, 0, 0)]
    assert mean_of_groups(groups) == GroupScores("mean of groups", 4, 0.2, 2, 20, 200)
    assert mean_of_pictures(groups) == GroupScores("mean of pictures", 4, 0.1, 1, 10, 100)
    lines = table(groups).splitlines()
    assert len(lines) == 5
    # The figures stand below their names.
    assert len({len(line) for line in lines}) == 1


def test_the_command_prints_a_line_for_each_group_and_names_what_is_missing(icm, tmp_path, capsys):
    (tmp_path / "results" / "cup_02.png").unlink()
    assert main(["groups", str(icm), str(tmp_path / "results")]) == 0
    said = capsys.readouterr()
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[0] == ["group", "pictures", "MSE", "SAD", "Grad", "Conn"]
    assert lines[1][:4] == ["cup", "2", "0.0000", "0.00"]
    assert lines[2][:2] == ["dog", "2"]
    assert lines[4][:4] == ["mean", "of", "pictures", "4"]
    assert "1 of 5 pictures have no matte to judge: cup_02." in said.err
    assert "[4/4]" in said.err
    assert main(["groups", str(icm), str(tmp_path / "results"), "--quiet"]) == 0
    assert "[4/4]" not in capsys.readouterr().err


def refusal(folder: Path, predictions: Path, groups_file: Path | None = None) -> str:
    with pytest.raises(GroupsError) as caught:
        score_groups(judged_in(folder, predictions, groups_file))
    return str(caught.value)


def test_missing_folders_and_other_layouts_are_said(icm, tmp_path):
    assert "no folder" in refusal(tmp_path / "nowhere", tmp_path / "results")
    assert "no folder" in refusal(icm, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "as in ICM-57" in refusal(tmp_path / "empty", tmp_path / "results")
    assert "the first one expected is cup_00.png" in refusal(icm, tmp_path / "empty")


def test_two_files_for_one_picture_are_refused(icm, tmp_path):
    save(tmp_path / "results" / "dog_00.webp")
    assert "dog_00.webp are two files for one picture" in refusal(icm, tmp_path / "results")


def test_a_matte_of_another_size_and_a_damaged_one_are_named(icm, tmp_path):
    save(tmp_path / "results" / "dog_00.png", size=(41, 30))
    said = refusal(icm, tmp_path / "results")
    assert "dog_00.png" in said and "differ in size" in said
    (tmp_path / "results" / "dog_00.png").write_bytes(b"not a picture")
    assert "dog_00.png" in refusal(icm, tmp_path / "results")


@pytest.mark.parametrize(
    "text, words",
    [
        ("[1, 2]", "does not say groups"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"cup_00": {"class": "cup"}}', "group of cup_01"),
        ('{"cup_00": {"class": null}}', "group of cup_00"),
        ('{"cup_00": "cup"}', "group of cup_00"),
    ],
)
def test_a_json_that_does_not_say_the_groups_is_refused(icm, tmp_path, text, words):
    (tmp_path / "ICM57.json").write_text(text)
    assert words in refusal(icm, tmp_path / "results")


def test_a_json_that_a_windows_editor_saved_says_the_groups(icm, tmp_path):
    groups = {
        name: {"class": "animal" if name == "dog_00" else "thing"}
        for name in ("dog_00", "dog_01", "cup_00", "cup_01", "cup_02")
    }
    text = json.dumps(groups, indent=1).replace("\n", "\r\n")
    (tmp_path / "ICM57.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [score.group for score in score_groups(judged_in(icm, tmp_path / "results"))] == ["animal", "thing"]


def test_a_picture_in_the_place_of_the_json_is_refused_in_plain_words(icm, tmp_path):
    picture = next(icm.rglob("*.png"))
    assert f"{picture} is no text. Give the .json" in refusal(icm, tmp_path / "results", picture)


def test_a_json_of_many_megabytes_is_not_read(icm, tmp_path):
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(64_000_001)
    assert "huge.json is too large" in refusal(icm, tmp_path / "results", tmp_path / "huge.json")


def test_a_json_that_is_not_there_is_named(icm, tmp_path):
    assert "cannot be read" in refusal(icm, tmp_path / "results", tmp_path / "nowhere.json")


def test_the_command_answers_with_a_sentence(tmp_path, capsys):
    assert main(["groups", str(tmp_path / "nowhere"), str(tmp_path)]) == 1
    assert capsys.readouterr().err.strip() == f"There is no folder {tmp_path / 'nowhere'}."
