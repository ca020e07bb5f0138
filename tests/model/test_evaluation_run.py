"""Evaluations from end to end: what is written, how a stopped one goes on, and what is said when something is wrong."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mam_model import refiner
from mam_model.__main__ import main
from mam_model.arguments import parser
from mam_model.evaluation import layouts
from mam_model.evaluation.layouts import LAYOUTS, EvaluationError, Sample, open_test_set
from mam_model.evaluation.paper import FIGURES
from mam_model.evaluation.protocol import ENGINES, LEVELS, MASKS, PROMPTS, Settings
from mam_model.evaluation.record import Record
from mam_model.evaluation.report import means, summary, worst_first, worst_sheet
from mam_model.evaluation.run import evaluate
from mam_model.evaluation.scoring import COLUMNS, make_mattes
from mam_model.metrics import score_matte
from mam_model.photo import read_photo
from mam_model.published import sha256_of

FAST = ("--engine", "classical", "--method", "none")


@pytest.fixture(autouse=True)
def no_comfyui(monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    checkpoints.save_tiny_sam(folder / "sams" / "sam_vit_b_tiny.pth")
    checkpoints.save_tiny_m2m(folder / "mam" / "mam_vitb_tiny.pth")
    return folder


def save(path: Path, levels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(levels, np.uint8)).save(path)
    return path


def square(left: int, top: int = 10) -> np.ndarray:
    """The true matte of a square of 24 pixels with a soft edge, 64 x 56."""
    truth = np.zeros((56, 64))
    truth[top : top + 24, left : left + 24] = 128
    truth[top + 1 : top + 23, left + 1 : left + 23] = 255
    return truth


def photo(truth: np.ndarray) -> np.ndarray:
    alpha = truth[..., None] / 255
    levels = alpha * np.array([200, 40, 30]) + (1 - alpha) * np.array([30, 140, 40])
    return levels + np.random.default_rng(0).integers(0, 12, levels.shape)


def own_pictures(folder: Path, count: int = 3) -> Path:
    for number in range(count):
        truth = square(8 + 6 * number)
        save(folder / "image" / f"{number}.png", photo(truth))
        save(folder / "alpha" / f"{number}.png", truth)
    return folder


def people(folder: Path) -> Path:
    first, second = square(4), square(36)
    save(folder / "images" / "natural" / "pair.png", photo(np.maximum(first, second)))
    save(folder / "alphas" / "natural" / "pair" / "00.png", first)
    save(folder / "alphas" / "natural" / "pair" / "01.png", second)
    return folder


def run(*arguments) -> int:
    return main(["evaluate", *(str(argument) for argument in arguments)])


def read_scores(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "scores.csv").read_text(encoding="utf-8").splitlines()[1:]))


def levels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def settings_of(data: Path, **changed) -> Settings:
    return Settings("pictures", str(data), "classical", method="none", **changed)


def test_own_pictures_are_measured_without_any_weights(tmp_path, capsys):
    data = own_pictures(tmp_path / "mine")
    assert run("--data", data, "-o", tmp_path / "out", *FAST) == 0
    said = capsys.readouterr()
    assert said.out == (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert "SAD" in said.out and "Measured: 3 of 3 pictures" in said.out
    assert "[3/3] 2  SAD" in said.err
    rows = read_scores(tmp_path / "out")
    assert [row["name"] for row in rows] == ["0", "1", "2"]
    for row in rows:
        matte, truth = levels(tmp_path / "out" / "mattes" / f"{row['name']}.png"), square(8 + 6 * int(row["name"]))
        expected, _ = score_matte(matte / 255, truth / 255)
        assert float(row["sad"]) == pytest.approx(expected.sad, abs=1e-6)
        assert float(row["conn"]) == pytest.approx(expected.conn, abs=1e-6)
        # The square is easy to cut out, so the prompt has reached the engine and the matte its own picture.
        assert float(row["mad"]) < 20
    sheet = levels(tmp_path / "out" / "worst.png")
    assert sheet.shape[2] == 3 and sheet.std() > 10
    assert not list((tmp_path / "out").glob(".*"))


def test_matting_anything_and_sams_mask_are_measured_with_their_own_weights(tmp_path, weights, capsys):
    data = own_pictures(tmp_path / "PPM-100", 2)
    (data / "alpha").rename(data / "matte")
    for engine in ("mam", "sam-mask"):
        assert (
            run("--data", data, "-o", tmp_path / engine, "--engine", engine, "--models", weights, "--device", "cpu")
            == 0
        )
    mam, mask = ((tmp_path / engine / "summary.md").read_text(encoding="utf-8") for engine in ("mam", "sam-mask"))
    assert "# PPM-100" in mam and "guidance alpha" in mam and "levels down" in mam
    assert "sam_vit_b_tiny.pth: sha256" in mam and "mam_vitb_tiny.pth: sha256" in mam
    assert "mam_vitb_tiny.pth" not in mask
    assert "| MAM in the paper" in mam and "4.6" in mam
    assert "cannot be compared" in mam
    hard = levels(tmp_path / "sam-mask" / "mattes" / "0.png")
    assert set(np.unique(hard)) == {0, 255}
    assert len(np.unique(levels(tmp_path / "mam" / "mattes" / "0.png"))) > 2


def test_the_guidance_and_the_prompt_reach_the_networks(tmp_path, weights):
    data = own_pictures(tmp_path / "mine", 1)
    mattes = {}
    for name, words in {
        "mask": ("--guidance", "mask"),
        "alpha": ("--guidance", "alpha"),
        "point": ("--guidance", "alpha", "--prompt", "point"),
        "widths": ("--guidance", "alpha", "--widths", 0, 0, 0),
    }.items():
        words += ("--models", weights, "--device", "cpu", "--quick", "--worst", 0, "--quiet")
        assert run("--data", data, "-o", tmp_path / name, *words) == 0
        mattes[name] = levels(tmp_path / name / "mattes" / "0.png").tobytes()
    assert len(set(mattes.values())) == 4
    assert not (tmp_path / "mask" / "worst.png").exists()


def test_instances_are_judged_by_their_quality(tmp_path, weights, capsys):
    data = people(tmp_path / "HIM2K")
    assert run("--data", data, "-o", tmp_path / "out", "--models", weights, "--device", "cpu") == 0
    (row,) = read_scores(tmp_path / "out")
    assert int(row["tp"]) + int(row["fn"]) == 2 == float(row["targets"])
    assert sorted(path.name for path in (tmp_path / "out" / "mattes" / "pair").iterdir()) == ["00.png", "01.png"]
    said = capsys.readouterr().out
    assert "# HIM2K, natural" in said and "IMQ (MAD)" in said and "68.8…" in said and "guidance mask" in said


def test_perfect_instances_on_disk_have_full_quality_and_a_sheet_in_colours(tmp_path, capsys):
    data = people(tmp_path / "HIM2K")
    assert run("--data", data, "-o", tmp_path / "out", "--predictions", data / "alphas" / "natural") == 0
    (row,) = read_scores(tmp_path / "out")
    assert (float(row["imq_mad"]), float(row["imq_grad"]), row["tp"], row["sad"]) == (1, 1, "2", "0.0")
    assert "2 instances found, 0 invented, 0 missed" in capsys.readouterr().out
    sheet = levels(tmp_path / "out" / "worst.png").astype(int)
    assert np.abs(sheet[..., 0] - sheet[..., 2]).max() > 100


def test_closed_form_knows_the_trimap_and_needs_no_prompt(tmp_path):
    pytest.importorskip("pymatting")
    truth = square(20)
    save(tmp_path / "am" / "input_training_lowres" / "GT01.png", photo(truth))
    save(tmp_path / "am" / "gt_training_lowres" / "GT01.png", truth)
    trimap = np.where(square(17, 7) + square(23, 13) > 0, 128, 0)
    trimap[14:30, 24:40] = 255
    save(tmp_path / "am" / "trimap_training_lowres" / "Trimap1" / "GT01.png", trimap)
    assert run("--data", tmp_path / "am", "-o", tmp_path / "out", "--engine", "closed-form", "--quiet") == 0
    matte = levels(tmp_path / "out" / "mattes" / "GT01.png")
    assert (matte[trimap == 0] == 0).all() and (matte[trimap == 255] == 255).all()
    (row,) = read_scores(tmp_path / "out")
    assert float(row["unknown_px"]) == (trimap == 128).sum()
    assert float(row["mad_unknown"]) < 60
    assert "prompt" not in json.loads((tmp_path / "out" / "scores.csv").read_text().splitlines()[0][2:])


def test_the_refiner_starts_from_the_true_mask_or_a_given_one_or_sams(tmp_path, weights, monkeypatch, capsys):
    # Untrained: which mask it is given shows all the same.
    torch.manual_seed(0)
    network = refiner.MaskRefiner()
    named = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file(named, tmp_path / "refiner.safetensors")
    monkeypatch.setattr(refiner, "SHIPPED_WEIGHTS", tmp_path / "refiner.safetensors")
    data = own_pictures(tmp_path / "mine", 1)
    save(data / "mask" / "0.png", np.zeros((56, 64)))
    words = ("--data", data, "--engine", "refiner", "--device", "cpu", "--quick", "--levels", "nearest")
    sam = ("--mask", "sam", "--models", weights)
    for name, more in {"truth": (), "file": ("--mask", "file"), "sam": sam}.items():
        assert run(*words, "-o", tmp_path / name, *more) == 0
        assert ("The engine was given the true mask" in capsys.readouterr().out) == (name == "truth")
    by_truth, by_file, by_sam = (levels(tmp_path / name / "mattes" / "0.png") for name in ("truth", "file", "sam"))
    image, mask = read_photo(data / "image" / "0.png").image, torch.from_numpy(square(8) > 127.5).float()
    expected = refiner.refine_mask(refiner.load_refiner(), image, mask)
    assert np.array_equal(by_truth, (expected * 255).round().numpy())
    assert by_truth.any() and not by_file.any()
    assert not np.array_equal(by_sam, by_truth)
    assert "refiner.safetensors: sha256" in (tmp_path / "truth" / "summary.md").read_text(encoding="utf-8")


def test_the_engine_without_models_is_measured_as_the_nodes_use_it_too(tmp_path):
    data = own_pictures(tmp_path / "mine", 1)
    assert run("--data", data, "-o", tmp_path / "out", "--engine", "classical", "--method", "refiner") == 0
    facts = json.loads((tmp_path / "out" / "scores.csv").read_text().splitlines()[0].removeprefix("# "))
    assert facts["method"] == "refiner"
    assert facts["weights"] == [[refiner.SHIPPED_WEIGHTS.name, sha256_of(refiner.SHIPPED_WEIGHTS)]]
    # Records of the others say what they always said.
    assert "weights" not in settings_of(data).facts()


def test_a_text_finds_the_target_through_the_detector(tmp_path, weights, tiny_text_detector_folder, monkeypatch):
    data = own_pictures(tmp_path / "mine", 1)
    (data / "text.json").write_text(json.dumps({"0": "The red dog."}))
    words = ("--models", weights, "--device", "cpu", "--quick", "--detector", tiny_text_detector_folder)
    assert run("--data", data, "-o", tmp_path / "some", "--prompt", "text", *words) == 0
    assert levels(tmp_path / "some" / "mattes" / "0.png").any()
    monkeypatch.setattr("mam_model.evaluation.protocol.BOX_THRESHOLD", 1.0)
    assert run("--data", data, "-o", tmp_path / "none", "--prompt", "text", *words) == 0
    assert not levels(tmp_path / "none" / "mattes" / "0.png").any()
    assert "Empty mattes: 1." in (tmp_path / "none" / "summary.md").read_text(encoding="utf-8")
    facts = json.loads((tmp_path / "some" / "scores.csv").read_text().splitlines()[0][2:])
    assert facts["prompt"] == "text" and "model.safetensors" in [name for name, _ in facts["weights"]]


def test_mattes_on_disk_are_judged_and_a_missing_one_is_named(tmp_path, capsys):
    data = own_pictures(tmp_path / "mine")
    for number in (0, 2):
        save(tmp_path / "theirs" / f"{number}.png", square(8 + 6 * number))
    assert run("--data", data, "-o", tmp_path / "out", "--predictions", tmp_path / "theirs") == 1
    said = capsys.readouterr()
    assert "1 failed: There is no matte for it" in said.err and "expected is 1.png" in said.err
    assert "1 picture could not be measured" in said.out
    assert [(row["name"], row["sad"]) for row in read_scores(tmp_path / "out")] == [("0", "0.0"), ("2", "0.0")]
    assert not (tmp_path / "out" / "mattes").exists()
    # Once it is there, only it is measured.
    save(tmp_path / "theirs" / "1.png", square(14))
    assert run("--data", data, "-o", tmp_path / "out", "--predictions", tmp_path / "theirs") == 0
    assert "[1/1] 1  SAD 0.00" in capsys.readouterr().err


def test_a_damaged_picture_is_named_and_the_others_are_measured(tmp_path, capsys):
    data = own_pictures(tmp_path / "mine", 4)
    (data / "image" / "1.png").write_bytes((data / "image" / "1.png").read_bytes()[:200])
    save(data / "alpha" / "2.png", np.zeros((9, 9)))
    assert run("--data", data, "-o", tmp_path / "out", *FAST) == 1
    said = capsys.readouterr()
    assert "1.png is damaged" in said.err and "2.png is 9 x 9 pixels instead of 64 x 56" in said.err
    assert "2 pictures could not be measured" in said.out and "Measured: 2 of 4" in said.out
    assert [row["name"] for row in read_scores(tmp_path / "out")] == ["0", "3"]
    assert "Traceback" not in said.err


@pytest.mark.parametrize("said", ["MPS backend out of memory (MPS allocated: 5 GB).", "DefaultCPUAllocator: full"])
def test_a_picture_for_which_memory_does_not_suffice_leaves_the_others(tmp_path, monkeypatch, capsys, said):
    data = own_pictures(tmp_path / "mine", 2)

    def full(sample, *rest):
        if sample.name == "0":
            raise RuntimeError(said)
        return make_mattes(sample, *rest)

    monkeypatch.setattr("mam_model.evaluation.run.make_mattes", full)
    assert run("--data", data, "-o", tmp_path / "out", *FAST) == 1
    assert "There is not enough memory for this picture." in capsys.readouterr().err
    assert [row["name"] for row in read_scores(tmp_path / "out")] == ["1"]


def test_mattes_on_disk_are_judged_and_shown_without_their_damaged_picture(tmp_path, capsys):
    data = own_pictures(tmp_path / "mine", 2)
    (data / "image" / "1.png").write_bytes((data / "image" / "1.png").read_bytes()[:200])
    assert run("--data", data, "-o", tmp_path / "out", "--predictions", data / "alpha") == 0
    assert "Measured: 2 of 2" in capsys.readouterr().out
    assert (tmp_path / "out" / "worst.png").is_file()


def test_a_set_of_which_nothing_can_be_measured_says_so(tmp_path, capsys):
    data = own_pictures(tmp_path / "mine", 1)
    (data / "alpha" / "0.png").write_bytes(b"")
    assert run("--data", data, "-o", tmp_path / "out", *FAST) == 1
    assert "Nothing was measured." in capsys.readouterr().out
    assert not (tmp_path / "out" / "worst.png").exists()


class StopAfter:
    """Presses Ctrl-C after a number of pictures."""

    def __init__(self, count: int):
        self.count = count

    def __call__(self, count, *_):
        if count == self.count:
            raise KeyboardInterrupt


def test_a_stopped_run_goes_on_and_comes_to_the_same(tmp_path):
    test_set = open_test_set(own_pictures(tmp_path / "mine", 4))
    settings = settings_of(tmp_path / "mine")
    whole = evaluate(test_set, settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        evaluate(test_set, settings, tmp_path / "out", done=StopAfter(2))
    assert len(read_scores(tmp_path / "out")) == 2
    assert not (tmp_path / "out" / "summary.md").exists()
    measured = []
    resumed = evaluate(
        test_set, settings, tmp_path / "out", done=lambda count, of, name, _: measured.append((of, name))
    )
    assert measured == [(2, "2"), (2, "3")]
    assert resumed.summary == whole.summary
    assert (tmp_path / "out" / "scores.csv").read_bytes() == (tmp_path / "whole" / "scores.csv").read_bytes()


def test_the_command_leaves_with_130_when_stopped(tmp_path, monkeypatch, capsys):
    data = own_pictures(tmp_path / "mine")

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mam_model.evaluation.run.score_sample", stopped)
    assert run("--data", data, "-o", tmp_path / "out", *FAST) == 130
    assert "Give the same command again to go on." in capsys.readouterr().err


@pytest.mark.slow
def test_workers_find_the_same_and_keep_what_they_had_begun_when_stopped(tmp_path):
    test_set = open_test_set(own_pictures(tmp_path / "mine", 5))
    settings = settings_of(tmp_path / "mine")
    alone = evaluate(test_set, settings, tmp_path / "alone", workers=1)
    with pytest.raises(KeyboardInterrupt):
        evaluate(test_set, settings, tmp_path / "out", workers=2, done=StopAfter(1))
    kept = {row["name"] for row in read_scores(tmp_path / "out")}
    assert kept
    together = evaluate(test_set, settings, tmp_path / "out", workers=2)
    assert together.summary == alone.summary
    assert together.rows.keys() == alone.rows.keys() >= kept
    by_name = [sorted((tmp_path / name / "scores.csv").read_text().splitlines()) for name in ("out", "alone")]
    assert by_name[0] == by_name[1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="processes are listed otherwise elsewhere")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_run_that_is_killed(tmp_path, number):
    """They would wait for work for ever, each with PyTorch in memory."""
    data = own_pictures(tmp_path / "mine", 200)
    words = ("-m", "mam_model", "evaluate", "--data", data, "-o", tmp_path / "out", "--workers", 2, *FAST)
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=Path(__file__).parents[2], stderr=subprocess.PIPE
    )
    # The first line says what was found, the second is the first picture's.
    assert len([process.stderr.readline() for _ in range(2)]) == 2
    workers = children_of(process.pid)
    assert len(workers) >= 2
    process.send_signal(number)
    process.wait()
    process.stderr.close()
    deadline = time.monotonic() + 20
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, workers))


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie, whose new parent has not looked for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_mattes_of_a_stopped_run_are_not_made_again(tmp_path, monkeypatch):
    test_set = open_test_set(own_pictures(tmp_path / "mine", 2))
    settings = settings_of(tmp_path / "mine")
    evaluate(test_set, settings, tmp_path / "out")
    scores = tmp_path / "out" / "scores.csv"
    scores.write_bytes(scores.read_bytes()[: scores.read_bytes().rindex(b"\n1,") + 1])

    def never(*_):
        raise AssertionError("a matte was made again")

    monkeypatch.setattr("mam_model.evaluation.run.make_mattes", never)
    assert set(evaluate(test_set, settings, tmp_path / "out").rows) == {"0", "1"}


def changed_later(file: Path, levels: np.ndarray, scores: Path) -> None:
    """Saves the file anew, a second after the record was written, whatever the grain of the system's clock."""
    save(file, levels)
    later = scores.stat().st_mtime_ns + 10**9
    os.utime(file, ns=(later, later))


def test_mattes_to_judge_that_were_made_anew_are_measured_again_and_the_others_are_not(tmp_path, capsys):
    data, theirs = own_pictures(tmp_path / "mine"), tmp_path / "theirs"
    for number in range(3):
        save(theirs / f"{number}.png", square(8 + 6 * number) * 0.5)
    order = ("--data", data, "-o", tmp_path / "out", "--predictions", theirs)
    assert run(*order) == 0
    before = (tmp_path / "out" / "scores.csv").read_text().splitlines()
    changed_later(theirs / "1.png", square(14), tmp_path / "out" / "scores.csv")
    capsys.readouterr()
    assert run(*order) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "SAD" in line] == ["[1/1] 1  SAD 0.00"]
    after = (tmp_path / "out" / "scores.csv").read_text().splitlines()
    assert after[:-1] == [line for line in before if not line.startswith("1,")]
    assert [row["sad"] for row in read_scores(tmp_path / "out")][-1] == "0.0"


@pytest.mark.parametrize("part", ["image", "alpha"])
def test_a_picture_that_was_changed_is_matted_and_measured_again(tmp_path, part):
    data = own_pictures(tmp_path / "mine")
    scores = tmp_path / "out" / "scores.csv"
    assert run("--data", data, "-o", tmp_path / "out", *FAST) == 0
    moved = square(30, 20)
    changed_later(data / part / "1.png", photo(moved) if part == "image" else moved, scores)
    assert run("--data", data, "-o", tmp_path / "out", *FAST) == 0
    assert run("--data", data, "-o", tmp_path / "anew", *FAST) == 0
    rows = [{row["name"]: row["sad"] for row in read_scores(tmp_path / name)} for name in ("out", "anew")]
    assert rows[0] == rows[1]
    assert (levels(tmp_path / "out" / "mattes" / "1.png") == levels(tmp_path / "anew" / "mattes" / "1.png")).all()


def test_mattes_that_were_taken_away_since_are_not_shown_and_their_figures_stay(tmp_path, capsys):
    data = own_pictures(tmp_path / "mine", 2)
    assert run("--data", data, "-o", tmp_path / "out", *FAST) == 0
    summary = capsys.readouterr().out
    for name in ("1.png", "0.png"):
        (tmp_path / "out" / "mattes" / name).unlink()
        assert run("--data", data, "-o", tmp_path / "out", *FAST) == 0
        assert capsys.readouterr().out == summary


def test_half_a_line_that_a_power_failure_left_is_measured_again(tmp_path):
    test_set = open_test_set(own_pictures(tmp_path / "mine", 2))
    settings = settings_of(tmp_path / "mine")
    evaluate(test_set, settings, tmp_path / "out")
    scores = tmp_path / "out" / "scores.csv"
    whole = scores.read_bytes()
    scores.write_bytes(whole[:-20])
    evaluate(test_set, settings, tmp_path / "out")
    assert scores.read_bytes() == whole


def test_a_disk_that_fills_up_leaves_whole_lines_alone(tmp_path):
    """The system takes the part of a line for which there is room, and complains only of the next."""
    resource = pytest.importorskip("resource")
    record = Record(tmp_path / "scores.csv", {})
    row = {column: 0.0 for column in COLUMNS}
    record.add({**row, "name": "a"})
    whole, before = record.path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, before[1]))
    try:
        with pytest.raises(OSError, match="scores.csv"):
            record.add({**row, "name": "b"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert record.path.read_bytes() == whole
    record.add({**row, "name": "c"})
    assert Record(record.path, {}).rows.keys() == {"a", "c"}


def test_other_settings_are_refused_with_what_differs(tmp_path, capsys):
    data = own_pictures(tmp_path / "mine", 1)
    assert run("--data", data, "-o", tmp_path / "out", *FAST) == 0
    assert run("--data", data, "-o", tmp_path / "out", *FAST, "--prompt", "point", "--band", 3) == 1
    said = capsys.readouterr().err
    assert "measured with other settings" in said
    assert "prompt was box, is point" in said and "band_px was 10, is 3" in said
    before = (tmp_path / "out" / "scores.csv").read_text()
    # What an engine does not look at is no other setting.
    assert run("--data", data, "-o", tmp_path / "out", *FAST, "--guidance", "alpha") == 0
    assert (tmp_path / "out" / "scores.csv").read_text() == before
    assert run("--data", data, "-o", tmp_path / "out", *FAST, "--prompt", "point", "--overwrite") == 0
    assert "prompt point" in (tmp_path / "out" / "summary.md").read_text()


def test_of_weights_the_beginning_of_the_hash_tells_what_differs(tmp_path):
    def facts(digit: str) -> dict[str, object]:
        return {"weights": (("sam.pth", digit * 64),), "data": "z" * 64}

    Record(tmp_path / "scores.csv", {**facts("a"), "prompt": "box"})
    with pytest.raises(EvaluationError) as refusal:
        Record(tmp_path / "scores.csv", {**facts("0"), "data": "y" * 64})
    differences = f"weights was sam.pth {'a' * 12}, is sam.pth {'0' * 12}; data was {'z' * 64}, is {'y' * 64}; "
    assert f"other settings: {differences}prompt was box, is not said. Repeat" in str(refusal.value)


def test_other_weights_under_the_same_name_are_other_settings(tmp_path, weights, capsys):
    data = own_pictures(tmp_path / "mine", 1)
    words = ("--data", data, "-o", tmp_path / "out", "--engine", "sam-mask", "--device", "cpu", "--sam")
    assert run(*words, weights / "sams" / "sam_vit_b_tiny.pth") == 0
    other = tmp_path / "sam_vit_b_tiny.pth"
    other.write_bytes((weights / "sams" / "sam_vit_b_tiny.pth").read_bytes() + b" ")
    assert run(*words, other) == 1
    assert "weights was sam_vit_b_tiny.pth" in capsys.readouterr().err


def test_mattes_of_unknown_origin_are_neither_measured_nor_overwritten(tmp_path, capsys):
    data = own_pictures(tmp_path / "mine", 2)
    painted = save(tmp_path / "out" / "mattes" / "1.png", np.full((56, 64), 77))
    assert run("--data", data, "-o", tmp_path / "out", *FAST) == 1
    assert "--predictions" in capsys.readouterr().err
    assert (levels(painted) == 77).all()
    assert run("--data", data, "-o", tmp_path / "out", *FAST, "--overwrite") == 0
    assert not (levels(painted) == 77).all()


def test_overwriting_never_measures_mattes_of_the_run_before(tmp_path):
    test_set = open_test_set(own_pictures(tmp_path / "mine", 2))
    evaluate(test_set, settings_of(tmp_path / "mine"), tmp_path / "out")
    for path in (tmp_path / "out" / "mattes").iterdir():
        save(path, np.zeros((56, 64)))
    with pytest.raises(KeyboardInterrupt):
        evaluate(test_set, settings_of(tmp_path / "mine"), tmp_path / "out", overwrite=True, done=StopAfter(1))
    rows = evaluate(test_set, settings_of(tmp_path / "mine"), tmp_path / "out").rows
    assert all(row["found"] == 1 for row in rows.values())


COLUMNS_LINE = ",".join(COLUMNS).encode() + b"\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"name,sad\n",
        b"# {}\nname,sad\n",
        b"# {}\nname,sad\n1,2\n",
        b"# {}\n" + COLUMNS_LINE + b"a,1\n",
        b"{}\n" + COLUMNS_LINE,
        b"# []\n" + COLUMNS_LINE,
        b"# [\n\n",
        b"\xff\xfe\n",
        b"# {}",
    ],
)
def test_a_file_that_is_no_record_is_refused_and_left_alone(content, tmp_path):
    (tmp_path / "scores.csv").write_bytes(content)
    with pytest.raises(EvaluationError, match="is no record of an evaluation"):
        Record(tmp_path / "scores.csv", {})
    assert (tmp_path / "scores.csv").read_bytes() == content


def test_names_and_figures_come_back_from_the_record_as_they_were(tmp_path):
    record = Record(tmp_path / "scores.csv", {"widths": (1, 2)})
    rows = {}
    for number, name in enumerate(('a, "b"', "ü ☃", "#1", "b\udcff")):
        rows[name] = {**dict.fromkeys(COLUMNS, math.nan), "name": name, "sad": number / 3, "tp": number}
        record.add(rows[name])
    read = Record(tmp_path / "scores.csv", {"widths": [1, 2]})
    assert read.is_resumed
    assert str(read.rows) == str({name: {**row, "tp": float(row["tp"])} for name, row in rows.items()})


def test_a_record_that_is_begun_anew_holds_nothing_of_the_one_before(tmp_path):
    Record(tmp_path / "scores.csv", {"prompt": "box"}).add({**dict.fromkeys(COLUMNS, 0.0), "name": "a"})
    record = Record(tmp_path / "scores.csv", {"prompt": "point"}, overwrite=True)
    assert not record.is_resumed and not record.rows
    record.add({**dict.fromkeys(COLUMNS, 0.0), "name": "b"})
    assert Record(tmp_path / "scores.csv", {"prompt": "point"}).rows.keys() == {"b"}


def test_the_means_of_a_set_weigh_pictures_alike_and_instances_alike():
    nothing = dict.fromkeys(COLUMNS, math.nan)
    one = {
        **nothing,
        "name": "a",
        "sad": 1.0,
        "sad_unknown": 4.0,
        "imq_mad": 1.0,
        "imq_mse": 1.0,
        "tp": 3,
        "fp": 0,
        "fn": 0,
    }
    two = {**nothing, "name": "b", "sad": 2.0, "imq_mad": 0.0, "imq_mse": 0.5, "tp": 0, "fp": 0, "fn": 2}
    mean = means([one, two], instances=True)
    assert (mean["sad"], mean["sad_unknown"]) == (1.5, 4.0)
    assert (mean["imq_mad"], mean["imq_mse"]) == (75.0, 87.5)
    assert math.isnan(mean["imq_grad"]) and math.isnan(mean["mse"])
    assert (mean["tp"], mean["fn"]) == (3, 2)
    assert [row["name"] for row in worst_first([one, two], instances=True)] == ["b", "a"]
    assert [row["name"] for row in worst_first([one, two], instances=False)] == ["b", "a"]


def test_texts_masks_and_weights_that_are_missing_are_asked_for(tmp_path, weights, capsys):
    data = own_pictures(tmp_path / "mine", 1)
    out = ("--data", data, "-o", tmp_path / "out")
    assert run(*out) == 1
    assert "No weights of SAM with its Mask-to-Matte were found" in capsys.readouterr().err
    with pytest.raises(EvaluationError, match="1 of 1 targets have no text, first 0"):
        evaluate(open_test_set(data), settings_of(data, prompt="text"), tmp_path / "out")
    with pytest.raises(EvaluationError, match="1 of 1 pictures have no mask"):
        evaluate(open_test_set(data), Settings("pictures", str(data), "refiner", mask="file"), tmp_path / "out")
    with pytest.raises(SystemExit):
        run(*out, "--prompt", "text", "--models", weights)
    assert "needs a --detector" in capsys.readouterr().err
    for words in (
        ("--workers", -1),
        ("--band", "nan"),
        ("--band", "inf"),
        ("--limit", 0),
        ("--widths", -1, 2, 3),
        ("--widths", 10**20, 2, 3),
    ):
        with pytest.raises(SystemExit) as left:
            run(*out, *FAST, *words)
        assert left.value.code == 2
    assert not (tmp_path / "out").exists()


def test_weights_that_cannot_be_used_leave_the_output_folder_to_the_right_ones(tmp_path, weights, capsys):
    data, wrong = own_pictures(tmp_path / "mine", 1), tmp_path / "wrong.pth"
    wrong.write_text("no weights")
    out, fine = ("--data", data, "-o", tmp_path / "out", "--engine", "sam-mask"), ("--models", weights)
    (tmp_path / "detector").mkdir()
    (data / "text.json").write_text('{"0": "square"}')
    assert run(*out, "--sam", wrong) == 1
    assert "not a checkpoint" in capsys.readouterr().err
    for detector, sentence in (
        ("nowhere", "There is no folder"),
        ("detector", "In the folder detector there is no config"),
    ):
        assert run(*out, *fine, "--prompt", "text", "--detector", tmp_path / detector) == 1
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(*out, *fine) == 0
    kept = (tmp_path / "out" / "scores.csv").read_bytes()
    assert run(*out, "--sam", wrong, "--overwrite") == 1
    assert (tmp_path / "out" / "scores.csv").read_bytes() == kept
    assert (tmp_path / "out" / "mattes" / "0.png").exists()


@pytest.mark.parametrize("taken", ["", "summary.md", "worst.png"])
def test_a_place_where_results_cannot_be_written_is_named(tmp_path, capsys, taken):
    out = tmp_path / "out"
    if taken:
        (out / taken).mkdir(parents=True)
    else:
        out.touch()
    assert run("--data", own_pictures(tmp_path / "mine", 1), "-o", out, *FAST, "--quick") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    what = f"{out / taken} is a folder, and a file" if taken else f"{out} is a file, and a folder"
    assert said == f"{what} is needed there. Choose another place."


def test_a_limit_measures_the_first_and_can_be_raised_later(tmp_path, capsys):
    data = own_pictures(tmp_path / "mine")
    assert run("--data", data, "-o", tmp_path / "out", *FAST, "--limit", 1) == 0
    assert "Measured: 1 of 3" in capsys.readouterr().out
    assert run("--data", data, "-o", tmp_path / "out", *FAST) == 0
    assert "[2/2] 2  SAD" in capsys.readouterr().err
    assert len(read_scores(tmp_path / "out")) == 3


def test_a_summary_says_what_was_measured_and_what_was_left_out():
    layout = next(layout for layout in LAYOUTS if layout.name == "pictures")
    samples = tuple(Sample(name, Path(f"{name}.jpg"), (Path(f"{name}.png"),), Path("trimap.png")) for name in "abc")
    rows = [dict.fromkeys(COLUMNS, math.nan) | {"name": name, "targets": 1, "found": 1} for name in "ab"]
    rows[0].update(sad=1.0, sad_unknown=0.125, mse=3.0)
    rows[1].update(sad=2.0, mse=4.0)
    left_out = tuple(f"p{number}" for number in range(11))
    settings = Settings("pictures", "data", "classical")
    told = summary(layouts.TestSet(layout, samples, left_out), settings, rows, {"c": "It is damaged."}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in told if line.startswith("|")]
    assert cells[0] == ["", "whole picture", "unknown band"]
    assert cells[2:] == [["SAD", "1.50", "0.12"], ["MSE", "3.50", ""]]
    assert told[-6:] == [
        "Measured: 2 of 3 pictures.",
        f"Left out for want of a partner: 11 ({', '.join(left_out[:10])}, ...).",
        "",
        "1 picture could not be measured, and the figures are without them:",
        "",
        "- c: It is damaged.",
    ]
    told = summary(layouts.TestSet(layout, samples[:1], left_out[:10]), settings, rows[:1], {}).splitlines()
    assert told[-2:] == [
        "Measured: 1 of 1 picture.",
        f"Left out for want of a partner: 10 ({', '.join(left_out[:10])}).",
    ]
    assert summary(layouts.TestSet(layout, samples[:1]), settings, rows[:1], {}).endswith(
        "\nMeasured: 1 of 1 picture.\n"
    )


def test_the_papers_figures_stand_beside_ones_own_in_even_columns():
    layout = next(layout for layout in LAYOUTS if layout.name == "am-2k")
    test_set = layouts.TestSet(layout, (Sample("a", Path("a.jpg"), (Path("a.png"),), Path("trimap.png")),))
    row = dict.fromkeys(COLUMNS, math.nan) | {"name": "a", "targets": 1, "found": 1, "sad": 1.0, "mse": 20.0}
    told = summary(test_set, Settings("am-2k", "data", "mam"), [row], {}).splitlines()
    table = [line for line in told if line.startswith("|")]
    assert len({len(line) for line in table}) == 1
    header, ruled, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    assert header == ["", "whole picture", "unknown band", "MAM in the paper", "SAM in the paper"]
    # Names to the left, figures to the right.
    assert [cell.strip("-") for cell in ruled] == ["", ":", ":", ":", ":"]
    assert body == [["SAD", "1.00", "", "17.30", "25.00"], ["MSE", "20.00", "", "", ""]]
    assert told[-2] == "Measured: 1 of 200 pictures." and "cannot be compared" in told[-1]


def test_the_sheet_shows_picture_true_matte_matte_and_difference_side_by_side(tmp_path):
    """Of a subject on the left half of a red picture the matte has the upper half."""
    truth = np.zeros((60, 120))
    truth[:, :60] = 255
    matte = np.vstack((truth[:30], np.zeros((30, 120))))
    picture = save(tmp_path / "image.png", np.full((60, 120, 3), (255, 0, 0)))
    sample = Sample("a", picture, (save(tmp_path / "truth.png", truth),))
    row = dict.fromkeys(COLUMNS, math.nan) | {"name": "a", "sad": 1.0}
    sheet = worst_sheet({"a": sample}, [row], {"a": [save(tmp_path / "matte.png", matte)]})
    red, white, black = torch.eye(3)[0], torch.ones(3), torch.zeros(3)
    # Squares of 240 pixels, 6 apart, with a margin of 8.
    for number, (upper_left, lower_left, right) in enumerate(
        ((red, red, red), (white, white, black), (white, black, black), (black, white, black))
    ):
        left = 8 + 246 * number
        panel = sheet[8:248, left : left + 240]
        assert torch.all(panel[:120] == 1) and torch.all(sheet[8:248, left + 240 : left + 246] == 1)
        assert torch.all(panel[120:178, :118] == upper_left) and torch.all(panel[182:, :118] == lower_left)
        assert torch.all(panel[120:, 122:] == right)
    upright = save(tmp_path / "upright.png", np.full((120, 60, 3), (255, 0, 0)))
    truth = save(tmp_path / "upright_truth.png", np.full((120, 60), 255))
    panel = worst_sheet({"a": Sample("a", upright, (truth,))}, [row], {"a": [truth]})[8:248, 8:248]
    assert torch.all(panel[:, 60:180] == red) and torch.all(panel[:, :60] == 1) and torch.all(panel[:, 180:] == 1)


def test_the_paper_and_the_command_speak_of_what_there_is():
    assert {benchmark for benchmark, _ in FIGURES} <= {layout.name for layout in LAYOUTS}
    assert {prompt for _, prompt in FIGURES} == set(PROMPTS)
    for by_engine in FIGURES.values():
        assert set(by_engine) <= set(ENGINES)
        assert all(set(figures) <= set(COLUMNS) for figures in by_engine.values())
    words = ["evaluate", "--data", "d", "-o", "o"]
    for option, choices in {"engine": ENGINES, "prompt": PROMPTS, "mask": MASKS, "levels": LEVELS}.items():
        for choice in choices:
            assert getattr(parser().parse_args([*words, f"--{option}", choice]), option) == choice
    assert "evaluate" in parser().format_help()
