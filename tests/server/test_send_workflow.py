"""The program that sends a workflow to a running server, as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import comfyui_server
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "send_workflow.py"
WORKFLOW = ROOT / "workflows" / "api" / "Cut out without models.json"
WIDTH, HEIGHT = 120, 90


@pytest.fixture
def photo(tmp_path) -> Path:
    """A bright rectangle, from 30, 20 to 90, 70, on a dark ground."""
    pixels = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
    pixels[20:70, 30:90] = (230, 180, 60)
    Image.fromarray(pixels).save(tmp_path / "my photo.png")
    return tmp_path / "my photo.png"


@pytest.fixture
def send(server, tmp_path):
    """`send(*arguments)` -> the finished process; its results lie in tmp_path/out."""

    def run(*arguments, address: str = server.address) -> subprocess.CompletedProcess:
        command = [sys.executable, "-I", SCRIPT, *arguments, "--server", address, "--output", tmp_path / "out"]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)

    return run


def on_rectangle() -> list[str]:
    return ["--set", "Prompt: Boxes.boxes=[[28, 18, 92, 72]]", "--set", "3.positive=60 45"]


def saved(tmp_path: Path, kind: str) -> np.ndarray:
    (file,) = (tmp_path / "out").glob(f"{kind}*.png")
    return np.array(Image.open(file))


def written(tmp_path: Path, workflow: dict) -> Path:
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps(workflow), encoding="utf-8")
    return file


def test_a_photo_is_uploaded_cut_out_and_saved_here(send, photo, tmp_path):
    done = send(WORKFLOW, "--picture", photo, *on_rectangle(), "--set", "Composite Matte.color=#0000ff")
    assert done.returncode == 0, done.stderr
    files = sorted(Path(line) for line in done.stdout.splitlines()[1:])
    assert files == sorted((tmp_path / "out").iterdir()) and len(files) == 3
    matte, composite = saved(tmp_path, "matte")[..., 0], saved(tmp_path, "composite")
    assert matte.shape == (HEIGHT, WIDTH)
    assert matte[45, 60] > 250 and matte[5, 5] < 5
    assert tuple(composite[5, 5]) == (0, 0, 255)


def test_results_that_are_here_already_are_kept_and_previews_come_when_asked_for(send, photo, tmp_path):
    (tmp_path / "out").mkdir()
    for more, count in (([], 3), (["--previews"], 5)):
        before = set((tmp_path / "out").iterdir())
        done = send(WORKFLOW, "--picture", photo, *on_rectangle(), *more)
        assert done.returncode == 0, done.stderr
        files = {Path(line) for line in done.stdout.splitlines()[1:]}
        assert len(files) == count and not files & before
        assert set((tmp_path / "out").iterdir()) == files | before


def test_a_workflow_that_saves_nothing_says_how_to_get_what_it_shows(send, photo, tmp_path):
    shows = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    for node in shows.values():
        if node["class_type"] == "SaveImage":
            node.update(class_type="PreviewImage", inputs={"images": node["inputs"]["images"]})
    done = send(written(tmp_path, shows), "--picture", photo, *on_rectangle())
    assert done.returncode == 0 and not (tmp_path / "out").exists()
    assert done.stderr == "Nothing was saved. Pictures that the workflow only shows come with --previews.\n"


def test_a_node_is_called_by_number_title_or_type_and_an_unknown_one_is_named(send, photo):
    for name in ("99", "Composit", "MAM_Nothing"):
        done = send(WORKFLOW, "--picture", photo, "--set", f"{name}.color=#ffffff")
        assert done.returncode == 1
        assert done.stderr.startswith(f"The workflow has no node {name}; it has") and "Composite Matte" in done.stderr
    done = send(WORKFLOW, "--picture", photo, "--set", "SaveImage.filename_prefix=x")
    assert "3 nodes are called SaveImage; say which by number: 10, 11, 12." in done.stderr
    done = send(WORKFLOW, "--picture", photo, "--set", "MAM_Composite.colour=#ffffff")
    assert "Node MAM_Composite has no input colour in this workflow; it has color, fit" in done.stderr
    done = send(WORKFLOW, "--set", "MAM_Composite.color")
    assert 'Write --set "NODE.INPUT=VALUE"' in done.stderr


def test_a_picture_or_workflow_that_is_not_there_is_named(send, photo, tmp_path):
    done = send(WORKFLOW, "--picture", tmp_path / "holiday.jpg")
    assert (done.returncode, done.stderr.strip()) == (1, f"There is no picture {tmp_path / 'holiday.jpg'}.")
    done = send(tmp_path / "none.json")
    assert done.returncode == 1 and "cannot be read: No such file" in done.stderr
    done = send(WORKFLOW, "--picture", f"Composite Matte={photo}")
    assert "Node Composite Matte loads no picture; it is a MAM_Composite." in done.stderr
    done = send(ROOT / "workflows" / "api" / "In-context matting.json", "--picture", photo)
    assert "loads 2 pictures: Example, Target. Write --picture NODE=FILE." in done.stderr


def test_a_workflow_in_the_browsers_format_is_told_from_one_that_can_be_sent(send, tmp_path):
    done = send(ROOT / "workflows" / "Cut out without models.json")
    assert done.returncode == 1 and "as the browser saves it" in done.stderr and "Export (API)" in done.stderr
    (tmp_path / "text.json").write_text("hello", encoding="utf-8")
    assert "holds no JSON" in send(tmp_path / "text.json").stderr
    for content in ({}, [], {"1": {"inputs": {}}}, {"1": "node"}):
        assert "is no workflow in the API format" in send(written(tmp_path, content)).stderr


def test_a_workflow_that_a_windows_editor_saved_is_read(send, tmp_path):
    text = json.dumps({"1": {"class_type": "MAM_FromTheFuture", "inputs": {}}}, indent=1).replace("\n", "\r\n")
    (tmp_path / "workflow.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert "MAM_FromTheFuture" in send(tmp_path / "workflow.json").stderr


def test_results_whose_names_the_output_cannot_spell_are_named_all_the_same(server, photo, tmp_path):
    """As where Windows writes into a file: a letter that its code page lacks must not end the program."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    for node in workflow.values():
        if node["class_type"] == "SaveImage":
            node["inputs"]["filename_prefix"] = "\u0141\u00f3d\u017a"
    command = [sys.executable, SCRIPT, written(tmp_path, workflow), "--picture", photo, *on_rectangle()]
    command += ["--server", server.address, "--output", tmp_path / "out"]
    spelling = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(list(map(str, command)), capture_output=True, encoding="cp1252", env=spelling, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + len(list((tmp_path / "out").glob("\u0141*"))) == 4


def test_a_server_that_is_not_there_is_named(send):
    address = f"http://127.0.0.1:{comfyui_server.free_port()}"
    done = send(WORKFLOW, address=address)
    assert done.returncode == 1 and f"No ComfyUI answers at {address}" in done.stderr and "--server" in done.stderr
    assert "is no address of a server" in send(WORKFLOW, address="file:///etc/passwd").stderr


def test_a_node_that_the_server_has_not_is_named(send, tmp_path):
    graph = {"1": {"class_type": "MAM_FromTheFuture", "inputs": {}, "_meta": {"title": "Future Matte"}}}
    done = send(written(tmp_path, graph))
    assert done.returncode == 1
    assert "Future Matte" in done.stderr and "Install the pack" in done.stderr


def test_an_input_that_the_server_refuses_is_named_with_its_node(send, photo):
    done = send(WORKFLOW, "--picture", photo, *on_rectangle(), "--set", "MAM_Composite.fit=squeeze")
    assert done.returncode == 1
    assert "Composite Matte (node 9): Value not in list" in done.stderr and "squeeze" in done.stderr


def test_a_node_that_fails_is_named_with_its_message(send, photo):
    done = send(WORKFLOW, "--picture", photo, "--set", "MAM_PromptBoxes.boxes=[[900, 900, 990, 990]]")
    assert done.returncode == 1
    assert "failed:" in done.stderr and "outside the picture, which is 120 x 90 pixels" in done.stderr


def test_a_workflow_that_takes_too_long_is_stopped_on_the_server(send, photo, server):
    done = send(WORKFLOW, "--picture", photo, *on_rectangle(), "--set", "6.band=0.9", "--timeout", "0")
    assert done.returncode == 1 and "was not done after 0 s and was stopped" in done.stderr
    after = server.get("/queue")
    assert not after["queue_pending"]
