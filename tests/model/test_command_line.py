"""The command line as its users meet it: what it writes, what it says, and with which exit code it leaves."""

from __future__ import annotations

import dataclasses
import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from PIL import Image

import mam_model
from mam_model import cutout, weights
from mam_model.__main__ import main
from mam_model.arguments import parser
from mam_model.published import PUBLISHED, DownloadError

ROOT = Path(__file__).resolve().parents[2]
BOX = ("--box", "16", "12", "48", "44")
# Neither weights nor PyMatting are needed for it.
FAST = ("--engine", "classical", "--method", "none")


@pytest.fixture(autouse=True)
def no_comfyui(monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)


@pytest.fixture
def photo(tmp_path) -> Path:
    """A red square of 24 pixels on green, 64 x 56 pixels, with a little noise."""
    return save_photo(tmp_path / "photo.png")


def save_photo(path: Path, left: int = 20, top: int = 16) -> Path:
    levels = np.zeros((56, 64, 3), np.uint8) + np.array([30, 140, 40], np.uint8)
    levels[top : top + 24, left : left + 24] = (200, 40, 30)
    levels += np.random.default_rng(0).integers(0, 12, levels.shape, dtype=np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(levels).save(path)
    return path


def levels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def refused(capsys, *arguments) -> str:
    """What is said about wrong usage, which has to leave with exit code 2."""
    with pytest.raises(SystemExit) as exit_of:
        run(*arguments)
    assert exit_of.value.code == 2
    return capsys.readouterr().err


def failed(capsys, *arguments) -> str:
    """The one sentence about work that failed, which has to leave with exit code 1."""
    assert run(*arguments) == 1
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said
    return said.splitlines()[-1]


def in_a_shell(*arguments, **environment) -> subprocess.CompletedProcess:
    words = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, env={**os.environ, **words})


def test_a_box_cuts_the_subject_out(photo, tmp_path):
    assert run("matte", photo, *BOX, *FAST, "-o", tmp_path / "cut.png", "--matte-out", tmp_path / "alpha.png") == 0
    cut, alpha = levels(tmp_path / "cut.png"), levels(tmp_path / "alpha.png")
    assert cut.shape == (56, 64, 4)
    assert (cut[..., 3] == alpha).all()
    assert alpha[20:36, 24:40].min() > 240
    assert alpha[:8].max() < 10
    assert np.abs(cut[24:32, 28:36, :3] - levels(photo)[24:32, 28:36]).max() <= 3


def test_a_point_and_a_mask_point_at_the_subject_too(photo, tmp_path):
    mask = np.zeros((56, 64), np.uint8)
    mask[14:42, 18:46] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for name, words in {
        "point": ("--point", 32, 28, "--negative", 4, 4),
        "mask": ("--mask", tmp_path / "mask.png"),
        "share": ("--box", "25%", "20%", "75%", "80%"),
    }.items():
        assert run("matte", photo, *words, *FAST, "-o", tmp_path / f"by_{name}.png") == 0
        alpha = levels(tmp_path / f"by_{name}.png")[..., 3]
        assert alpha[20:36, 24:40].min() > 240, name
        assert alpha[:6].max() < 10, name


def test_a_trusted_mask_is_the_matte_up_to_its_edge(photo, tmp_path):
    mask = np.zeros((56, 64), np.uint8)
    mask[6:50, 6:32] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = ("--mask", tmp_path / "mask.png", "--trust-mask")
    assert run("matte", photo, *words, *FAST, "-o", tmp_path / "cut.png") == 0
    alpha = levels(tmp_path / "cut.png")[..., 3]
    assert alpha[24:32, 12:16].min() > 240
    assert alpha[24:32, 40:].max() < 10


def test_a_background_makes_a_composite_without_alpha(photo, tmp_path):
    Image.new("RGB", (7, 5), (0, 0, 250)).save(tmp_path / "blue.png")
    for background in ("#0000fa", tmp_path / "blue.png"):
        words = ("--background", background, "--overwrite", "-o", tmp_path / "over.png")
        assert run("matte", photo, *BOX, *FAST, *words) == 0
        over = levels(tmp_path / "over.png")
        assert over.shape == (56, 64, 3)
        assert over[2, 2].tolist() == [0, 0, 250]
        assert over[28, 32, 0] > 180
    assert run("matte", photo, *BOX, *FAST, "--background", "white", "-o", tmp_path / "over.jpg") == 0


def test_kept_edge_colours_are_the_photo_and_what_is_cut_away_is_black(photo, tmp_path):
    assert run("matte", photo, *BOX, *FAST, "--keep-edge-color", "-o", tmp_path / "cut.png") == 0
    cut = levels(tmp_path / "cut.png")
    seen = cut[..., 3] > 0
    assert (cut[seen][:, :3] == levels(photo)[seen]).all()
    assert not seen.all()
    assert cut[~seen].max() == 0


def test_what_is_transparent_in_the_photo_stays_so(photo, tmp_path):
    picture = Image.open(photo).convert("RGBA")
    picture.putalpha(Image.fromarray(np.repeat(np.where(np.arange(64) < 30, 255, 0)[None], 56, 0).astype(np.uint8)))
    picture.save(tmp_path / "half.png")
    assert run("matte", tmp_path / "half.png", *BOX, *FAST, "-o", tmp_path / "cut.png") == 0
    alpha = levels(tmp_path / "cut.png")[..., 3]
    assert alpha[24:32, 24:28].min() > 240
    assert alpha[:, 30:].max() == 0


def test_sixteen_bits_hold_more_levels_of_the_matte(photo, tmp_path):
    words = ("--matte-out", tmp_path / "alpha.png", "--matte-bits", 16)
    assert run("matte", photo, *BOX, *FAST, "-o", tmp_path / "cut.png", *words) == 0
    assert Image.open(tmp_path / "alpha.png").mode.startswith("I")
    assert levels(tmp_path / "alpha.png").max() > 60000


def test_each_box_is_a_target_and_a_point_speaks_of_its_box():
    def px(*values):
        return tuple(cutout.Length(float(value)) for value in values)

    two = cutout.Pointing(boxes=(px(0, 0, 20, 20), px(20, 10, 60, 50)), points=((*px(5, 5), 1), (*px(30, 30), 0)))
    first, second = two.prompts(64, 56)
    assert first.points_px == ((5, 5),) and first.labels == (1,)
    assert second.points_px == ((30, 30),) and second.labels == (0,)
    (only,) = cutout.Pointing(boxes=two.boxes[:1], points=two.points).prompts(64, 56)
    assert len(only.points_px) == 2
    lost = dataclasses.replace(two, points=((*px(62, 5), 1),))
    with pytest.raises(mam_model.PromptError, match="none of the 2 boxes"):
        lost.prompts(64, 56)


def test_a_mask_for_several_boxes_is_cut_along_them(tmp_path):
    Image.new("L", (64, 56), 255).save(tmp_path / "all.png")
    corners = ((0, 0, 20, 20), (30, 10, 60, 50))
    boxes = tuple(tuple(cutout.Length(side) for side in box) for box in corners)
    prompts = cutout.Pointing(boxes, mask_file=tmp_path / "all.png").prompts(64, 56)
    assert len(prompts) == 2
    for prompt, (x0, y0, x1, y1) in zip(prompts, corners):
        assert prompt.mask.sum() == (x1 - x0) * (y1 - y0)
        assert prompt.mask[y0:y1, x0:x1].min() == 1


def test_two_boxes_give_one_cut_out_of_both(tmp_path):
    picture = np.asarray(Image.open(save_photo(tmp_path / "one.png")))
    Image.fromarray(np.concatenate((picture, picture), axis=1)).save(tmp_path / "two.png")
    words = (*BOX, "--box", 80, 12, 112, 44)
    assert run("matte", tmp_path / "two.png", *words, *FAST, "-o", tmp_path / "cut.png") == 0
    alpha = levels(tmp_path / "cut.png")[..., 3]
    assert alpha[20:36, 24:40].min() > 240
    assert alpha[20:36, 88:104].min() > 240
    assert alpha[:, 54:70].max() < 10


def test_a_folder_is_done_photo_by_photo_and_a_broken_one_is_named_counted_and_passed(tmp_path, capsys):
    for name in ("a.png", "c.png"):
        save_photo(tmp_path / "shots" / name)
    (tmp_path / "shots" / "b.jpg").write_bytes(b"\xff\xd8\xff broken")
    (tmp_path / "shots" / "notes.txt").write_text("not a photo")
    assert run("matte", tmp_path / "shots", *BOX, *FAST, "-o", tmp_path / "cuts") == 1
    said = capsys.readouterr().err
    assert "[2/3] b.jpg failed: " in said
    assert "2 of 3 photos done, 1 failed." in said
    assert sorted(path.name for path in (tmp_path / "cuts").iterdir()) == ["a.png", "c.png"]


def test_a_prompt_that_fits_only_some_of_the_photos_fails_for_the_others(tmp_path, capsys):
    large = save_photo(tmp_path / "large.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    assert run("matte", tmp_path / "small.png", large, *BOX, *FAST, "-o", tmp_path / "cuts") == 1
    assert "small.png failed: The box (16, 12, 48, 44) lies outside the picture" in capsys.readouterr().err
    assert (tmp_path / "cuts" / "large.png").exists()


def test_a_second_run_leaves_what_is_there_unless_told_to_overwrite(photo, tmp_path, capsys):
    (tmp_path / "cuts").mkdir()
    old = tmp_path / "cuts" / "photo.png"
    old.write_bytes(b"old")
    words = ("matte", photo, *BOX, *FAST, "--matte-out")
    assert "exists already" in failed(capsys, *words, tmp_path / "alpha.png", "-o", old)
    assert old.read_bytes() == b"old"
    assert not (tmp_path / "alpha.png").exists()
    # Of a batch that was stopped, the rest is done: here the matte.
    save_photo(tmp_path / "other.png")
    batch = ("matte", photo, tmp_path / "other.png", *BOX, *FAST, "-o", tmp_path / "cuts", "--matte-out")
    assert run(*batch, tmp_path / "mattes") == 0
    assert old.read_bytes() == b"old"
    assert (tmp_path / "mattes" / "photo.png").exists()
    assert run(*batch, tmp_path / "mattes", "--overwrite") == 0
    assert levels(old).shape == (56, 64, 4)


def test_photos_of_one_name_get_two_files(tmp_path):
    jobs = cutout.jobs_into([Path("x/A.jpg"), Path("x/a.webp"), Path("x/b.jpg")], tmp_path, None)
    assert [job.result.name for job in jobs] == ["A.jpg.png", "a.webp.png", "b.png"]
    with pytest.raises(mam_model.PhotoError, match="same name"):
        cutout.jobs_into([Path("x/a.jpg"), Path("y/a.jpg")], tmp_path, None)


def test_the_photo_itself_is_never_written_to(photo, tmp_path, capsys):
    before = photo.read_bytes()
    for output in (photo, tmp_path):
        said = refused(capsys, "matte", photo, *BOX, *FAST, "--overwrite", "-o", output)
        assert "the photo itself" in said
    assert photo.read_bytes() == before


def test_ctrl_c_leaves_no_half_written_file(photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mam_model.photo.os.replace", interrupted)
    assert run("matte", photo, *BOX, *FAST, "-o", tmp_path / "cuts" / "cut.png") == 130
    assert "Stopped." in capsys.readouterr().err
    assert list((tmp_path / "cuts").iterdir()) == []


def interrupted(*_):
    raise KeyboardInterrupt


def test_nothing_found_is_an_empty_matte_and_a_word_about_it(photo, tmp_path, capsys):
    Image.new("L", (64, 56)).save(tmp_path / "blank.png")
    assert run("matte", photo, "--mask", tmp_path / "blank.png", *FAST, "-o", tmp_path / "cut.png") == 0
    assert "nothing was found" in capsys.readouterr().err
    assert levels(tmp_path / "cut.png")[..., 3].max() == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("-o", "cut.png"), "--box, --point or --mask"),
        (("--negative", "1", "1", "-o", "cut.png"), "--box, --point or --mask"),
        ((*BOX, "--trust-mask", "-o", "cut.png"), "needs a --mask"),
        ((*BOX,), "-o/--output"),
        ((*BOX, "-o", "cut.jpg"), "transparency"),
        ((*BOX, "-o", "cut"), "suffix"),
        ((*BOX, "-o", "cut.png", "--matte-out", "cut.png"), "two names"),
        ((*BOX, "-o", "cut.png", "--matte-out", "a.jpg", "--matte-bits", "16"), "16 bits"),
        (("--box", "1", "2", "three", "4", "-o", "cut.png"), "'three' is neither pixels nor a percentage"),
        (("--point", "1", "-o", "cut.png"), "expected 2 arguments"),
        ((*BOX, "-o", "cut.png", "--device", "tpu"), "invalid choice"),
        ((*BOX, "-o", "photo.png/cut.png"), "photo.png is a file, and a folder is needed there."),
        ((*BOX, "-o", "photo.png/new/cut.png"), "photo.png is a file, and a folder is needed there."),
        (("other.png", *BOX, "-o", "photo.png"), "photo.png is a file, and a folder is needed there."),
        ((*BOX, "-o", "cut.png", "--matte-out", "folder.png"), "folder.png is a folder, and a file is needed there."),
        (("other.png", *BOX, "-o", "new", "--matte-out", "photo.png"), "photo.png is a file, and a folder is needed"),
    ],
)
def test_wrong_usage_is_told_before_any_work(photo, monkeypatch, capsys, words, complaint):
    monkeypatch.chdir(photo.parent)
    (photo.parent / "folder.png").mkdir()
    save_photo(photo.parent / "other.png")
    assert complaint in refused(capsys, "matte", photo, *words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--box", "nan", "0", "9", "9"), "The box (nan, 0, 9, 9) holds something that is not a number."),
        (("--box", "90", "90", "99", "99"), "lies outside the picture, which is 64 x 56 pixels"),
        (("--box", "10%", "10%", "10%", "90%"), "has no area"),
        (("--point", "70", "3"), "The point (70, 3) lies outside the picture"),
        ((*BOX, "--background", "blurple"), "'blurple' is not a colour."),
        ((*BOX, "--background", "beach.jpg"), "There is no file beach.jpg."),
        ((*BOX, "--mask", "none.png"), "There is no file none.png."),
        ((*BOX, "--mask", "folder"), "folder is a folder, and a file is needed there."),
        ((*BOX, "--background", "folder"), "folder is a folder. Name a picture in it, or a colour."),
        ((*BOX, "--engine", "auto", "--models", "nowhere"), "There is no folder nowhere."),
    ],
)
def test_failed_work_is_one_sentence(photo, tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert sentence in failed(capsys, "matte", photo, *FAST, *words, "-o", tmp_path / "cut.png")
    assert not (tmp_path / "cut.png").exists()


def test_a_photo_that_is_not_there_is_named(tmp_path, capsys):
    said = failed(capsys, "matte", tmp_path / "gone.jpg", *BOX, *FAST, "-o", tmp_path / "cut.png")
    assert said == f"There is no file {tmp_path / 'gone.jpg'}."


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("render", "file", "--count", 1), "file is a file, and a folder is needed there. Choose another place."),
        (("render", "file/new", "--count", 1), "file is a file, and a folder is needed there. Choose another place."),
        (("render", "new", "--backgrounds", "nowhere"), "There is no folder nowhere."),
        (("train-refiner", "a.safetensors", "--work", "file"), "file is a file, and a folder is needed there."),
        (("train-refiner", "file/a.safetensors", "--work", "new"), "file is a file, and a folder is needed there."),
        (("train", "nowhere.toml"), "The config nowhere.toml cannot be read: there is no such file."),
        (("train", "folder"), "The config folder cannot be read: folder is a folder, and a file is needed there."),
        (("train", "photo.png"), "photo.png is not a TOML file: it is no text."),
        (("groups", "folder", "folder", "--groups", "folder"), "There are no true mattes in folder."),
    ],
)
def test_a_wrong_place_is_named_in_a_sentence(photo, tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("something")
    assert sentence in failed(capsys, *words)
    assert not (tmp_path / "new" / "image").exists()


def test_without_pymatting_the_sentence_names_the_way_out(photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pymatting", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ("--engine", "classical", "--method", "closed-form", "-o", tmp_path / "cut.png")
    said = failed(capsys, "matte", photo, *BOX, *words)
    assert "pip install pymatting" in said


def test_a_graphics_card_that_is_not_there_and_a_width_without_bounds_are_refused(
    photo, tmp_path, tiny_sam_file, tiny_m2m_file, capsys
):
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    words = ("--sam", tiny_sam_file, "--m2m", tiny_m2m_file, "--device", absent, "-o", tmp_path / "cut.png")
    assert f"no {absent} device" in refused(capsys, "matte", photo, *BOX, *words)
    words = ("--sam", tiny_sam_file, "--m2m", tiny_m2m_file, "--widths", 10**20, 1, 1, "-o", tmp_path / "cut.png")
    assert "65,536 at most" in refused(capsys, "matte", photo, *BOX, *words)


@pytest.mark.parametrize(
    "error, sentence",
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "The graphics card has not enough memory"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)."), "The graphics card has not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), "not enough memory for this"),
        (MemoryError(), "not enough memory for this"),
    ],
    ids=["CUDA", "a Mac", "PyTorch on a processor", "Python"],
)
def test_full_memory_is_one_sentence(photo, tmp_path, monkeypatch, capsys, error, sentence):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("mam_model.classical.matte_without_models", full)
    words = ("--engine", "classical", "--method", "none", "-o", tmp_path / "cut.png")
    assert sentence in failed(capsys, "matte", photo, *BOX, *words)


def test_the_networks_give_what_the_library_gives(photo, tmp_path, tiny_sam_file, tiny_m2m_file):
    words = ("--sam", tiny_sam_file, "--m2m", tiny_m2m_file, "--device", "cpu", "--matte-out", tmp_path / "alpha.png")
    words = (*words, "--guidance", "alpha", "--widths", 4, 6, 8, "--candidate", 1)
    assert run("matte", photo, *BOX, *words, "-o", tmp_path / "cut.png", "--matte-bits", 16) == 0
    matting = mam_model.MattingAnything.from_files(tiny_sam_file, tiny_m2m_file)
    prompt = mam_model.Prompt(box_xyxy_px=(16, 12, 48, 44), candidate=1)
    options = mam_model.MergeOptions("alpha", width_os8=4, width_os4=6, width_os1=8)
    expected = matting.matte(mam_model.read_photo(photo).image, [prompt], options)[0].numpy()
    assert 0.1 < expected.mean() < 0.9
    assert np.abs(levels(tmp_path / "alpha.png") / 65535 - expected).max() < 1e-4


def test_half_precision_stays_close(photo, tmp_path, tiny_sam_file, tiny_m2m_file):
    mattes = []
    for precision in ("fp32", "bf16"):
        words = ("--sam", tiny_sam_file, "--m2m", tiny_m2m_file, "--device", "cpu", "--precision", precision)
        target = tmp_path / f"{precision}.png"
        assert run("matte", photo, *BOX, *words, "-o", target) == 0
        mattes.append(levels(target)[..., 3])
    assert (mattes[0] != mattes[1]).any()
    assert np.abs(mattes[0] - mattes[1]).mean() < 25


def test_auto_takes_the_networks_where_there_are_weights_and_else_says_that_it_does_not(
    photo, tmp_path, tiny_sam_file, tiny_m2m_file, place, monkeypatch, capsys
):
    words = ("matte", photo, *BOX, "--method", "none", "--device", "cpu", "--overwrite", "-o", tmp_path / "cut.png")
    assert run(*words) == 0
    assert "the classical engine is used" in capsys.readouterr().err
    place(tiny_sam_file, tmp_path / "comfyui" / "models" / "sams", "sam_vit_l_0b3195.pth")
    place(tiny_m2m_file, tmp_path / "comfyui" / "models" / "mam", "mam_vitl.pth")
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "comfyui"))
    assert run(*words) == 0
    assert "Matting with sam_vit_l_0b3195.pth and mam_vitl.pth on cpu." in capsys.readouterr().err
    assert run(*words, "--engine", "classical") == 0
    assert "Matting with" not in capsys.readouterr().err


def test_the_engine_sam_without_weights_is_told_where_they_are_listed(photo, tmp_path, tiny_m2m_file, capsys):
    words = ("matte", photo, *BOX, "-o", tmp_path / "cut.png")
    assert "`python -m mam_model models`" in failed(capsys, *words, "--engine", "sam")
    assert "No SAM that belongs to tiny_m2m.pth" in failed(capsys, *words, "--m2m", tiny_m2m_file)
    assert "There is no file sam_vit_b_01ec64.pth" in failed(capsys, *words, "--sam", "sam_vit_b_01ec64.pth")


def test_a_wrong_checkpoint_is_one_sentence(photo, tmp_path, tiny_sam_file, capsys):
    words = ("--sam", tiny_sam_file, "--m2m", tiny_sam_file, "--device", "cpu", "-o", tmp_path / "cut.png")
    assert "Expected is Mask-to-Matte" in failed(capsys, "matte", photo, *BOX, *words)


def test_one_file_may_hold_both_networks(photo, tmp_path, monkeypatch):
    state_dict = {f"seg_model.{key}": value for key, value in checkpoints.tiny_sam_state_dict().items()}
    state_dict |= {f"m2m.{key}": value for key, value in checkpoints.tiny_m2m_state_dict().items()}
    torch.save({"state_dict": state_dict}, tmp_path / "whole.pth")
    for words in (("--m2m", "whole.pth"), ("--sam", "whole.pth"), ("--models", tmp_path / "models")):
        if words[0] == "--models":
            (tmp_path / "models" / "mam").mkdir(parents=True)
            (tmp_path / "whole.pth").rename(tmp_path / "models" / "mam" / "whole.pth")
        monkeypatch.chdir(tmp_path)
        words = (*words, "--engine", "sam", "--device", "cpu", "--overwrite", "-o", tmp_path / "cut.png")
        assert run("matte", photo, *BOX, *words) == 0


def test_weights_that_were_trained_together_are_paired(tmp_path):
    def touch(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()

    touch("sams/sam_vit_h_4b8939.pth", "sams/sam_vit_b_01ec64.pth", "sams/a_vit_b.pth", "mam/mam_vith.pth")
    pair = weights.find_pair(None, None, [tmp_path])
    assert (pair.sam.name, pair.m2m.name) == ("sam_vit_h_4b8939.pth", "mam_vith.pth")
    touch("mam_vitb.pth")
    pair = weights.find_pair(None, None, [tmp_path])
    assert (pair.sam.name, pair.m2m.name) == ("sam_vit_b_01ec64.pth", "mam_vitb.pth")
    assert pair.fits
    pair = weights.find_pair(None, "mam_vith.pth", [tmp_path])
    assert pair.sam.name == "sam_vit_h_4b8939.pth"
    assert not weights.find_pair("sam_vit_b_01ec64.pth", "mam_vith.pth", [tmp_path]).fits


def test_convert_says_what_it_wrote(tmp_path, tiny_sam_file, capsys):
    target = tmp_path / "sam.safetensors"
    assert run("convert", tiny_sam_file, target) == 0
    said = capsys.readouterr().out
    assert "SAM with 2 blocks of 64 channels" in said
    assert re.search(r"^sha256 [0-9a-f]{64}$", said, re.MULTILINE)
    assert "exists already" in failed(capsys, "convert", tiny_sam_file, target)
    assert run("convert", tiny_sam_file, target, "--overwrite") == 0


def test_models_lists_every_published_file(capsys):
    assert run("models") == 0
    said = capsys.readouterr().out
    for file in PUBLISHED:
        for fact in (file.name, file.purpose, file.size, file.licence, file.page, f"models/{file.folder}"):
            assert fact in said
        assert file.sha256 is None or file.sha256 in said
    assert run("models", "list") == 0
    assert capsys.readouterr().out == said


def test_a_download_shows_its_progress_and_prints_the_path(tmp_path, monkeypatch, capsys):
    def download(file, folder, progress):
        for done in range(0, 1001, 10):
            progress(done, 1000)
        return folder / file.name

    monkeypatch.setattr("mam_model.__main__.download", download)
    assert run("models", "download", "sam_vit_b_01ec64.pth", "--to", tmp_path) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'sam_vit_b_01ec64.pth'}\n"
    assert [int(percent) for percent in re.findall(r"(\d+) %", said.err)] == list(range(0, 101, 10))
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert run("models", "download", "mam_sam_vitb.pth") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "models" / "mam" / "mam_sam_vitb.pth")


def test_a_download_that_cannot_be_is_one_sentence(tmp_path, monkeypatch, capsys):
    said = failed(capsys, "models", "download", "mam_vith.pth", "--to", tmp_path)
    assert "in a browser" in said and str(tmp_path) in said
    assert "There are sam_vit_b_01ec64.pth" in refused(capsys, "models", "download", "x.pth", "--to", tmp_path)
    assert "--to" in refused(capsys, "models", "download", "sam_vit_b_01ec64.pth")

    def broken(*_):
        raise DownloadError("The connection broke off.")

    monkeypatch.setattr("mam_model.__main__.download", broken)
    words = ("models", "download", "sam_vit_b_01ec64.pth", "--to", tmp_path)
    assert failed(capsys, *words) == "The connection broke off."


def test_an_error_of_ours_keeps_its_traceback(photo, tmp_path, monkeypatch):
    def wrong(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("mam_model.cutout.cut_out", wrong)
    with pytest.raises(RuntimeError, match="a bug"):
        run("matte", photo, *BOX, *FAST, "-o", tmp_path / "cut.png")


def test_the_choices_that_are_typed_are_those_of_the_library():
    from mam_model.classical import METHODS
    from mam_model.composite import FIT_MODES
    from mam_model.merge import MergeOptions

    matte = parser()._subparsers._group_actions[0].choices["matte"]
    choices = {action.dest: action.choices for action in matte._actions}
    defaults = matte.parse_args(["photo.jpg", "-o", "cut.png"])
    assert choices["method"] == METHODS
    assert choices["fit"] == FIT_MODES
    assert MergeOptions(defaults.guidance, defaults.sides, *defaults.widths) == MergeOptions()


@pytest.mark.parametrize("words", [(), ("matte",), ("convert",), ("models",), ("models", "download")])
def test_help_is_in_letters_that_every_console_has(words, capsys):
    with pytest.raises(SystemExit) as exit_of:
        run(*words, "--help")
    assert exit_of.value.code == 0
    said = capsys.readouterr().out
    assert said.isascii()
    assert "mam_model" in said


def test_the_examples_in_the_help_are_understood():
    from mam_model import arguments

    examples = re.findall(r"^  python -m mam_model (matte .*)$", arguments._EXAMPLES, re.MULTILINE)
    assert len(examples) >= 4
    for example in examples:
        options = parser().parse_args(example.split())
        assert options.box or options.point or options.mask


def test_a_name_that_the_console_cannot_show_is_no_failure(tmp_path, tiny_sam_file, monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    target = tmp_path / "\N{SNOWMAN}.safetensors"
    assert run("convert", tiny_sam_file, target) == 0
    console.flush()
    assert rb"\u2603.safetensors" in console.buffer.getvalue()
    assert target.exists()


def test_in_a_shell_it_cuts_out_a_photo_where_only_ascii_can_be_shown(tmp_path):
    photo = save_photo(tmp_path / "\N{SNOWMAN}.png")
    target = tmp_path / "\N{SNOWMAN} cut.png"
    done = in_a_shell("-m", "mam_model", "matte", photo, *BOX, *FAST, "-o", target, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert rb"\u2603 cut.png" in done.stderr
    assert levels(target).shape == (56, 64, 4)


def test_in_a_shell_wrong_usage_is_2_and_failure_is_1(tmp_path):
    done = in_a_shell("-m", "mam_model", "matte", tmp_path / "gone.jpg", *BOX, *FAST, "-o", tmp_path / "cut.png")
    assert done.returncode == 1
    assert done.stderr.decode().strip() == f"There is no file {tmp_path / 'gone.jpg'}."
    done = in_a_shell("-m", "mam_model", "matte", tmp_path / "gone.jpg")
    assert done.returncode == 2


def test_importing_the_library_imports_nothing_heavy():
    script = "import json, sys; before = set(sys.modules); import mam_model; dir(mam_model); "
    done = in_a_shell("-c", script + "print(json.dumps(sorted(set(sys.modules) - before)))")
    came = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert "mam_model" in came
    assert came.isdisjoint({"torch", "numpy", "cv2", "PIL", "segment_anything", "pymatting"})


def test_every_name_the_library_offers_is_there():
    for name in mam_model.__all__:
        assert getattr(mam_model, name).__name__ == name
        assert name in dir(mam_model)
        # Else the name would stand for the function or for the module, whichever is imported last.
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"mam_model.{name}")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mam_model.nothing  # noqa: B018


def test_each_step_can_be_looked_at_and_its_result_fed_back(photo, tmp_path, tiny_sam_file, tiny_m2m_file):
    from mam_model import MattingAnything, Prompt, estimate_foreground, read_photo, with_alpha, write_picture

    image = read_photo(photo).image
    matting = MattingAnything.from_files(tiny_sam_file, tiny_m2m_file)
    embedding = matting.embed(image)
    guidance = matting.segment(embedding, [Prompt(box_xyxy_px=(16, 12, 48, 44))])
    pyramid = matting.predict(embedding, guidance)
    alpha = matting.merge(pyramid, guidance)[0]
    write_picture(tmp_path / "cut.png", with_alpha(estimate_foreground(image, alpha), alpha))
    assert np.abs(levels(tmp_path / "cut.png")[..., 3] / 255 - alpha.numpy()).max() < 0.6 / 255

    other = dataclasses.replace(guidance, chosen=(guidance.chosen + 1) % 3)
    assert (other.post_mask(0) != guidance.post_mask(0)).any()
    changed = matting.merge(matting.predict(embedding, other), other)[0]
    assert (changed - alpha).abs().max() > 0.1
    given = Prompt(mask=guidance.post_mask(0), mask_is_guidance=True)
    fed_back = matting.segment(embedding, [given])
    assert (fed_back.post_mask(0) == guidance.post_mask(0)).all()
