"""The main job itself, run as a user runs it, with a home folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "quickstart.py"
sys.path.append(str(ROOT / "scripts"))

import contact_sheet  # noqa: E402
import quickstart as script  # noqa: E402


@pytest.fixture
def quickstart(tmp_path):
    """`quickstart(*arguments)` -> the finished process; its models lie in home/models and its results in home/out."""
    if not os.environ.get("COMFYUI_PATH"):
        pytest.exit("Set COMFYUI_PATH to a ComfyUI folder, or run scripts/run_tests.py, which provides one.", 2)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(SCRIPT), "--output", str(tmp_path / "out"), *arguments],
            env={**os.environ, "MATTING_ANYTHING_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def result(folder: Path, name: str) -> np.ndarray:
    return np.array(Image.open(folder / "out" / name))


def test_without_weights_the_classical_engine_cuts_out_the_astronaut(quickstart, tmp_path):
    done = quickstart("--engine", "classical")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the classical engine" in done.stdout
    matte = result(tmp_path, "astronaut-matte.png")[..., 0]
    # Face, suit and helmet are hers; wall, flag and rocket are not.
    assert all(matte[y, x] > 250 for x, y in ((225, 110), (270, 280), (390, 430)))
    assert all(matte[y, x] < 5 for x, y in ((330, 60), (40, 60), (430, 120)))
    cutout = result(tmp_path, "astronaut-cutout.png")
    assert cutout.shape == (512, 512, 4)
    assert result(tmp_path, "astronaut-composite.png").shape == (512, 512, 3)
    sheet = result(tmp_path, "astronaut-contact-sheet.png")
    assert sheet.shape[1] > 4 * 400


def test_the_sheet_shows_points_on_the_subject_and_beside_it():
    photo = Image.new("RGB", (420, 420), "white")
    sheet = contact_sheet.contact_sheet(photo, {}, "", [], [[100, 200]], [[300, 200]])
    left, top = contact_sheet.MARGIN_PX, contact_sheet.MARGIN_PX + contact_sheet.TITLE_PX
    assert sheet.getpixel((left + 100, top + 200)) == contact_sheet.PROMPT_COLOUR
    assert sheet.getpixel((left + 300, top + 200)) == contact_sheet.NEGATIVE_COLOUR


def test_with_weights_in_its_models_folder_the_networks_run_on_the_users_photo(
    quickstart, tmp_path, place, tiny_sam_file, tiny_m2m_file
):
    place(tiny_sam_file, tmp_path / "models" / "sams", "my_sam_vit_b.pth")
    place(tiny_m2m_file, tmp_path / "models" / "mam", "my_mam_vitb.pth")
    Image.fromarray(data.coffee()).save(tmp_path / "coffee.jpg")
    where = ("--box", "100", "20", "480", "390", "--point", "290", "120")
    done = quickstart("--engine", "sam", "--photo", str(tmp_path / "coffee.jpg"), *where)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "my_sam_vit_b.pth and my_mam_vitb.pth" in done.stdout
    assert result(tmp_path, "coffee-matte.png").shape[:2] == (400, 600)


def test_a_node_that_fails_ends_the_run_with_its_message(quickstart):
    done = quickstart("--engine", "classical", "--box", "9000", "9000", "9100", "9100")
    assert done.returncode == 1
    assert "outside the picture, which is 512 x 512 pixels" in done.stderr


def test_a_photo_that_does_not_exist_is_named(quickstart, tmp_path):
    done = quickstart("--photo", str(tmp_path / "holiday.jpg"))
    assert done.returncode == 1
    assert done.stderr.strip() == f"There is no file {tmp_path / 'holiday.jpg'}."


def test_a_folder_is_no_photo(quickstart, tmp_path):
    done = quickstart("--photo", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.strip() == f"{tmp_path} cannot be read: {tmp_path} is a folder, and a file is needed there."


def test_where_results_cannot_lie_is_said_before_the_work_begins(quickstart, tmp_path):
    (tmp_path / "out").touch()
    done = quickstart("--engine", "classical")
    assert done.returncode == 1
    assert done.stderr.strip() == f"{tmp_path / 'out'} is a file, and a folder is needed there. Choose another place."
    assert "Starting ComfyUI" not in done.stdout


def test_a_port_that_does_not_exist_is_refused_before_the_work_begins(quickstart):
    done = quickstart("--port", "99999")
    assert done.returncode == 2
    assert "argument --port: ports go from 1 to 65535" in done.stderr


def test_a_grey_photo_of_16_bits_is_as_bright_for_comfyui_as_for_a_viewer(tmp_path):
    grey = data.camera()
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey.png")
    (tmp_path / "input").mkdir()
    stem, picture = script._photo(str(tmp_path / "grey.png"), tmp_path / "input")
    assert np.array_equal(np.array(picture), grey[..., None].repeat(3, 2))
    assert np.array_equal(np.array(Image.open(tmp_path / "input" / f"{stem}.png")), np.array(picture))
