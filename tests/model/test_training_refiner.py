"""Training the refiner: runs that are stopped and go on, what they write, and what they refuse."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from mam_model.__main__ import main
from mam_model.checkpoint import CheckpointError
from mam_model.m2m import AlphaPyramid
from mam_model.refiner import SHIPPED_WEIGHTS, MaskRefiner, load_refiner, read_weights
from mam_model.training import refining
from mam_model.training.config import TrainingError
from mam_model.training.gallery import Gallery, fill_gallery
from mam_model.training.refining import Recipe, refining_loss, train_refiner


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mam_model.training.gallery.GALLERY_PX", 128)
        fill_gallery(folder / "gallery", (), seed=5, count=4)
    return folder


def test_a_short_run_lowers_the_loss(rendered, tmp_path):
    """Measured where it cannot be luck: the same samples before and after."""
    work = copied(rendered, tmp_path)
    train_refiner(tmp_path / "refiner.safetensors", work, small_recipe(steps=120), renderers=0)
    gallery = Gallery(work / "gallery", [], [], true_share=0.0)
    gallery.refresh()
    samples = [gallery.sample(np.random.default_rng((9, number)), 64) for number in range(12)]
    picture, alpha, mask = refining._batch(samples)

    def loss(network) -> float:
        with torch.no_grad():
            return refining_loss(network(picture, mask), alpha, mask, focus=False).item()

    assert loss(load_refiner(tmp_path / "refiner.safetensors")) < loss(MaskRefiner().eval())


def test_a_run_goes_on_where_it_was_stopped(rendered, tmp_path):
    work, seen = copied(rendered, tmp_path), []
    output = tmp_path / "refiner.safetensors"

    def told(step: int, cost: float, done: float) -> None:
        seen.append(step)
        if seen == [1, 2, 3]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_refiner(output, work, small_recipe(steps=5), renderers=0, on_step=told, save_every_s=0)
    assert train_refiner(output, work, small_recipe(steps=5), renderers=0, on_step=told) == 5
    assert seen == [1, 2, 3, 3, 4, 5]
    with safe_open(output, "pt") as file:
        assert file.metadata()["steps"] == "5"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_was_learned_and_says_how_to_go_on(rendered, tmp_path, number):
    work, output, seen = copied(rendered, tmp_path), tmp_path / "refiner.safetensors", []

    def told(step: int, cost: float, done: float) -> None:
        seen.append(step)
        if seen == [1, 2]:
            os.kill(os.getpid(), number)

    given = {"renderers": 0, "on_step": told}
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="^Stopped after step 2. The same command goes on from there.$"):
        train_refiner(output, work, small_recipe(steps=4), **given)
    assert signal.getsignal(number) == before
    assert train_refiner(output, work, small_recipe(steps=4), **given) == 4
    assert seen == [1, 2, 3, 4]


def test_ctrl_c_in_the_last_step_ends_a_run_that_is_done(rendered, tmp_path):
    def told(step: int, cost: float, done: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    given = {"renderers": 0, "on_step": told}
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    assert train_refiner(output, work, small_recipe(steps=1), **given) == 1


@pytest.mark.parametrize("written", ["state.pt", "refiner.safetensors"])
def test_a_second_ctrl_c_while_the_state_is_saved_leaves_the_last_one_whole(rendered, tmp_path, monkeypatch, written):
    work, output, seen = copied(rendered, tmp_path), tmp_path / "refiner.safetensors", []
    replace = os.replace

    def told(step: int, cost: float, done: float) -> None:
        seen.append(step)
        if seen == [1, 2]:
            os.kill(os.getpid(), signal.SIGINT)

    def impatient(part, whole):
        if seen == [1, 2] and Path(whole).name == written:
            os.kill(os.getpid(), signal.SIGINT)
        replace(part, whole)

    monkeypatch.setattr(os, "replace", impatient)
    given = {"renderers": 0, "on_step": told, "save_every_s": 0}
    with pytest.raises(KeyboardInterrupt):
        train_refiner(output, work, small_recipe(steps=3), **given)
    assert not [*tmp_path.rglob("*.part")]
    assert train_refiner(output, work, small_recipe(steps=3), **given) == 3
    assert load_refiner(output)


def test_weights_of_another_run_or_other_files_are_never_replaced(rendered, tmp_path, monkeypatch):
    """And that is said before anything is read, rendered or trained."""
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    train_refiner(output, work, small_recipe(steps=1), renderers=0)
    copied(rendered, tmp_path / "new")
    shutil.copytree(rendered, tmp_path / "other" / "work")
    another = tmp_path / "another.safetensors"
    train_refiner(another, tmp_path / "other" / "work", small_recipe(steps=1), renderers=0)
    text = tmp_path / "text.safetensors"
    text.write_text("mine")
    monkeypatch.setattr(refining, "usable", None)
    for file, folder in (
        (output, tmp_path / "new" / "work"),
        (output, tmp_path / "nowhere"),
        (another, work),
        (text, work),
    ):
        kept = file.read_bytes()
        with pytest.raises(TrainingError, match=f"{file.name} exists already.*Name another file"):
            train_refiner(file, folder, small_recipe(steps=2), renderers=0)
        assert file.read_bytes() == kept
        assert not (tmp_path / "nowhere").exists()


def test_the_run_that_wrote_its_weights_replaces_them_and_may_write_others(rendered, tmp_path):
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    for steps in (1, 2):
        assert train_refiner(output, work, small_recipe(steps=steps), renderers=0) == steps
    assert train_refiner(tmp_path / "b.safetensors", work, small_recipe(steps=3), renderers=0) == 3
    with safe_open(output, "pt") as file:
        assert file.metadata()["steps"] == "2"


def test_a_run_of_an_earlier_version_which_had_no_name_goes_on(rendered, tmp_path):
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    train_refiner(output, work, small_recipe(steps=1), renderers=0)
    state = torch.load(work / "state.pt", weights_only=True)
    del state["run"]
    torch.save(state, work / "state.pt")
    with safe_open(output, "pt") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != "run"}
    weights = {name: value.half() for name, value in read_weights(output).items()}
    save_file(weights, output, metadata)
    for steps in (2, 3):
        assert train_refiner(output, work, small_recipe(steps=steps), renderers=0) == steps


def test_a_run_of_other_settings_renders_nothing_into_the_folder_of_the_first(rendered, tmp_path):
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    train_refiner(output, work, small_recipe(steps=1), renderers=0)
    (work / "gallery" / "00003.npy").unlink()
    with pytest.raises(TrainingError, match="begun with another seed"):
        train_refiner(output, work, small_recipe(steps=2, seed=6), renderers=1)
    assert not (work / "gallery" / "00003.npy").exists()


def test_weights_are_written_as_safetensors_alone(tmp_path):
    with pytest.raises(TrainingError, match="holiday.png has to end in .safetensors"):
        train_refiner(tmp_path / "holiday.png", tmp_path / "work", small_recipe(steps=1), renderers=0)


def test_a_run_goes_on_only_with_the_settings_it_was_begun_with(rendered, tmp_path):
    """Or the file would speak of a seed, of photos and of a beginning that are not those of its weights."""
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    train_refiner(output, work, small_recipe(steps=1), renderers=0)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (200, 200), "teal").save(photo)
    for changed, what in (
        ((small_recipe(steps=2, seed=6), {}), "another seed"),
        ((small_recipe(steps=2, learning_rate=2e-3), {}), "another learning rate"),
        ((small_recipe(steps=2), {"photos": [photo]}), "another set of photos"),
        ((small_recipe(steps=2), {"start": SHIPPED_WEIGHTS}), "another file to begin with"),
    ):
        with pytest.raises(TrainingError, match=f"begun with {what}.*--work folder of its own"):
            train_refiner(output, work, changed[0], renderers=0, **changed[1])
    with safe_open(output, "pt") as file:
        assert file.metadata()["steps"] == "1"
    assert train_refiner(output, work, small_recipe(steps=2), renderers=0) == 2


def test_a_run_begins_with_the_weights_of_an_earlier_one_and_names_it(rendered, tmp_path):
    output = tmp_path / "refiner.safetensors"
    gentle = small_recipe(steps=1, learning_rate=1e-9, average=0.0)
    train_refiner(output, copied(rendered, tmp_path), gentle, start=SHIPPED_WEIGHTS, renderers=0)
    begun, given = read_weights(output), read_weights()
    for name, weight in given.items():
        if "running" not in name:
            # Before a normalisation the scale may be another, and the smallest numbers of float16 are 2 ** -24 apart.
            scale = float(weight.abs().max() / begun[name].abs().max()) if name.endswith("conv.weight") else 1.0
            assert (begun[name] * scale - weight).abs().max() <= (scale > 1) * scale * 2.0**-24, name
    with safe_open(output, "pt") as file:
        before = json.loads(file.metadata()["before"])
    with safe_open(SHIPPED_WEIGHTS, "pt") as file:
        assert before == {**file.metadata(), "sha256": hashlib.sha256(SHIPPED_WEIGHTS.read_bytes()).hexdigest()}


def test_variances_that_float16_cannot_hold_are_written_all_the_same(tmp_path):
    """A convolution before a normalisation may have grown to any scale."""
    torch.manual_seed(0)
    network = MaskRefiner()
    network.load_state_dict(read_weights(), strict=False)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    for block in ("down2.0", "up8.first", "detail"):
        state[f"{block}.conv.weight"] *= 1000
        state[f"{block}.norm.running_mean"] *= 1000
        state[f"{block}.norm.running_var"] *= 1e6
    assert state["up8.first.norm.running_var"].max() > 65504
    refining._write_weights(tmp_path / "large.safetensors", state, Recipe(), 1, (), None, "")
    picture, mask = torch.rand(1, 3, 64, 64), (torch.rand(1, 1, 64, 64) > 0.5).float()
    with torch.inference_mode():
        expected, found = network.fold()(picture, mask), load_refiner(tmp_path / "large.safetensors")(picture, mask)
    assert expected.os1.std() > 0.1
    for scale in ("os8", "os4", "os1"):
        assert (getattr(found, scale) - getattr(expected, scale)).abs().mean() < 2e-3


def test_weights_to_begin_with_that_are_missing_are_named(rendered, tmp_path):
    nothing = tmp_path / "nothing.safetensors"
    with pytest.raises(CheckpointError, match="there is no .*nothing.safetensors"):
        train_refiner(tmp_path / "refiner.safetensors", tmp_path / "work", small_recipe(), start=nothing)


@pytest.mark.parametrize("content", [b"", b"no state at all", "other", "list"])
def test_a_state_that_cannot_be_gone_on_from_is_refused_in_a_sentence(rendered, tmp_path, content):
    work = copied(rendered, tmp_path)
    if content == "other":
        torch.save({"network": {"conv.weight": torch.rand(3)}}, work / "state.pt")
    elif content == "list":
        torch.save([1, 2], work / "state.pt")
    else:
        (work / "state.pt").write_bytes(content)
    with pytest.raises(TrainingError, match="Move it away"):
        train_refiner(tmp_path / "refiner.safetensors", work, small_recipe(steps=1), renderers=0)


def test_too_few_pictures_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(TrainingError, match="fewer than 4 rendered pictures"):
        train_refiner(tmp_path / "refiner.safetensors", tmp_path / "work", small_recipe(steps=1), renderers=0)


@pytest.mark.parametrize("named, sentence", [("empty", "There are no pictures in"), ("nowhere", "There is no folder")])
def test_a_folder_without_pictures_is_refused_in_a_sentence(tmp_path, capsys, named, sentence):
    (tmp_path / "empty").mkdir()
    folders = ("--work", str(tmp_path / "work"), "--photos", str(tmp_path / named))
    assert main(["train-refiner", str(tmp_path / "refiner.safetensors"), *folders, "--steps", "1"]) == 1
    assert f"{sentence} {tmp_path / named}" in capsys.readouterr().err


def test_photos_of_every_kind_that_is_read_are_used(rendered, tmp_path):
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    (tmp_path / "photos").mkdir()
    for name in ("one.webp", "two.tif", "three.bmp", ".hidden.png"):
        Image.new("RGB", (200, 200), "teal").save(tmp_path / "photos" / name)
    folders = ("--work", str(work), "--photos", str(tmp_path / "photos"))
    numbers = ("--steps", "1", "--gallery", "4", "--renderers", "0", "--quiet")
    assert main(["train-refiner", str(output), *folders, *numbers]) == 0
    with safe_open(output, "pt") as file:
        assert json.loads(file.metadata()["pictures"]).keys() == {"one.webp", "two.tif", "three.bmp"}


@pytest.mark.parametrize("content", [b"", b"no picture at all", "half"])
def test_a_rendered_picture_that_is_damaged_is_named(rendered, tmp_path, content):
    work = copied(rendered, tmp_path)
    file = work / "gallery" / "00001.npy"
    file.write_bytes(file.read_bytes()[:9000] if content == "half" else content)
    with pytest.raises(TrainingError, match="00001.npy is damaged. Remove it"):
        train_refiner(tmp_path / "refiner.safetensors", work, small_recipe(steps=1), renderers=0)


def test_a_place_that_takes_no_weights_is_refused_before_the_training(rendered, tmp_path):
    work = copied(rendered, tmp_path)
    (tmp_path / "file").touch()
    for output, error, sentence in (
        (tmp_path, TrainingError, "is a folder. Name the file"),
        (tmp_path / "file" / "refiner.safetensors", OSError, "file"),
    ):
        with pytest.raises(error, match=sentence):
            train_refiner(output, work, small_recipe(steps=1), renderers=0)
        assert not (work / "state.pt").exists()


def test_photos_and_cut_outs_that_cannot_be_used_are_skipped_counted_and_named(rendered, tmp_path, capsys):
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    photos, true = tmp_path / "photos", tmp_path / "true"
    for folder in (photos, true):
        folder.mkdir()
    colors = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    alpha = np.zeros((90, 120, 1), np.uint8)
    alpha[20:70, 30:90] = 255
    Image.fromarray(colors).save(photos / "whole.png")
    (photos / "half.png").write_bytes((photos / "whole.png").read_bytes()[:9000])
    Image.fromarray(np.dstack([colors, alpha])).save(true / "subject.png")
    Image.fromarray(np.dstack([colors, 0 * alpha])).save(true / "nothing.png")
    Image.fromarray(np.dstack([colors, 0 * alpha + 255])).save(true / "all.png")
    Image.fromarray(colors).save(true / "photo.jpg")
    folders = ("--photos", str(photos), "--true", str(true))
    numbers = ("--steps", "1", "--gallery", "4", "--renderers", "0", "--quiet")
    assert main(["train-refiner", str(output), "--work", str(work), *folders, *numbers]) == 0
    said = capsys.readouterr().err
    for name, what in (("half", "damaged"), ("nothing", "empty"), ("all", "opaque"), ("photo", "no transparency")):
        assert any(name in line and what in line for line in said.splitlines()), name
    assert "4 of 6 photos and cut-outs could not be used." in said
    with safe_open(output, "pt") as file:
        assert json.loads(file.metadata()["pictures"]).keys() == {"whole.png", "subject.png"}
    (true / "subject.png").unlink()
    assert main(["train-refiner", str(output), "--work", str(work), *folders, *numbers]) == 1
    assert "None of the 3 pictures" in capsys.readouterr().err


def test_the_command_line_trains(rendered, tmp_path, capsys):
    work, output = copied(rendered, tmp_path), tmp_path / "refiner.safetensors"
    numbers = ("--steps", "1", "--gallery", "4", "--renderers", "0", "--quiet")
    assert main(["train-refiner", str(output), "--work", str(work), *numbers]) == 0
    assert "1 steps" in capsys.readouterr().out
    assert isinstance(load_refiner(output), MaskRefiner)


@pytest.mark.parametrize(
    "wrong",
    [("--minutes", "-1"), ("--minutes", "nan"), ("--seed", "-1"), ("--gallery", "0"), ("--minutes", "0")]
    + [("--minutes", "inf"), ("--seed", "1" + 20 * "0")]
    + [("--learning-rate", rate) for rate in ("0", "-1", "nan", "inf")],
)
def test_numbers_that_mean_nothing_are_wrong_usage(tmp_path, wrong):
    with pytest.raises(SystemExit) as left:
        main(["train-refiner", str(tmp_path / "refiner.safetensors"), "--work", str(tmp_path), *wrong])
    assert left.value.code == 2


def test_pieces_that_become_larger_meanwhile_never_share_a_batch_with_smaller_ones(rendered):
    recipe = small_recipe(batch=2)
    gallery = Gallery(rendered / "gallery", [], [], true_share=0.0)
    begun, changed = threading.Event(), threading.Event()

    def sample(rng, crop_px):
        begun.set()
        changed.wait(10)
        return Gallery.sample(gallery, rng, crop_px)

    gallery.sample = sample
    batches = refining._Prefetched(gallery, recipe, 0)
    try:
        begun.wait(10)
        batches.crop_px = 64
        changed.set()
        sides = [batches.next()[0].shape[-1] for _ in range(2)]
    finally:
        batches.close()
    assert sides == [48, 64]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C of a terminal is sent to a group of processes")
@pytest.mark.parametrize("ended_by", ["Ctrl-C", "kill"])
def test_the_processes_that_render_end_with_the_run_and_say_nothing(tmp_path, ended_by):
    gallery = tmp_path / "work" / "gallery"

    def drawn() -> int:
        return len(list(gallery.glob("*.npy")))

    words = (
        sys.executable,
        "-m",
        "mam_model",
        "train-refiner",
        tmp_path / "r.safetensors",
        "--work",
        tmp_path / "work",
    )
    run = subprocess.Popen(
        words,
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while run.poll() is None and not drawn():
        time.sleep(0.05)
    if ended_by == "Ctrl-C":
        os.killpg(run.pid, signal.SIGINT)
        assert run.communicate()[1] == "Stopped.\n"
        assert not list(gallery.glob("*.part"))
    else:
        run.kill()
        run.wait()
        run.stderr.close()
    time.sleep(2)
    left = drawn()
    time.sleep(4)
    assert drawn() == left


def small_recipe(**changed) -> Recipe:
    numbers = {"batch": 4, "crop_px": 48, "late_crop_px": 48, "learning_rate": 1e-3, "warm_up_steps": 5}
    numbers |= {"gallery": 4, "seed": 5}
    return Recipe(**{**numbers, **changed})


def disc() -> torch.Tensor:
    """float32 [1, 1, 96, 96]"""
    y, x = np.mgrid[:96, :96]
    return torch.from_numpy((np.hypot(y - 48, x - 48) < 24).astype(np.float32))[None, None]


def copied(work: Path, into: Path) -> Path:
    return Path(shutil.copytree(work, into / "work"))


def test_the_loss_is_nothing_for_the_truth_and_counts_the_edge_more_than_the_rest():
    alpha = disc()
    mask = alpha.clone()
    assert refining_loss(AlphaPyramid(alpha, alpha, alpha), alpha, mask).item() == pytest.approx(0, abs=1e-6)
    at_edge, far = alpha.clone(), alpha.clone()
    mask[..., 48, 70] = 0
    at_edge[..., 48, 74:76] += 0.5
    far[..., 20, 20:22] += 0.5
    losses = [refining_loss(AlphaPyramid(a, a, a), alpha, mask).item() for a in (at_edge, far)]
    assert losses[0] > losses[1] > 0


def test_a_right_mask_costs_more_to_spoil_than_a_wrong_one_to_leave_half_wrong():
    alpha = disc()
    wrong = alpha.clone()
    wrong[..., 44:52, 70:78] = 1 - wrong[..., 44:52, 70:78]
    half = (alpha + wrong) / 2

    def loss(mask) -> float:
        return refining_loss(AlphaPyramid(half, half, half), alpha, mask, focus=False).item()

    assert loss(alpha) > 1.5 * loss(wrong)
