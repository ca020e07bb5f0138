"""Training runs on a small random SAM: they learn, and no interruption, process count or bad file changes that."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import types
import weakref
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn

from mam_model.__main__ import main
from mam_model.checkpoint import load_m2m, load_sam
from mam_model.m2m import SpectralNormConv
from mam_model.sam import Sam, SamConfig
from mam_model.training import loop
from mam_model.training.config import (
    Backgrounds,
    Config,
    Foregrounds,
    Rendering,
    Schedule,
    TrainingError,
    Validation,
)
from mam_model.training.folders import read_pair
from mam_model.training.guidance import FrozenSam
from mam_model.training.loop import clip_gradients, train
from mam_model.training.losses import pyramid_loss
from mam_model.training.processes import Place, SharedBatchNorm2d, joined
from mam_model.training.progress import Table
from mam_model.training.samples import Samples
from mam_model.training.saving import read_checkpoint
from mam_model.training.validation import unseen_pictures

ROOT = Path(__file__).resolve().parents[2]
SIDE = 64
NOT_VALIDATED = Validation(every=0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums of several threads may round otherwise, and the runs in processes of their own have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sam_file(tmp_path_factory) -> Path:
    """A SAM of 64 x 64 pixels in the published format, with seeded random weights."""
    config = SamConfig(embed_dim=32, depth=2, num_heads=2, global_attention=(1,), image_size=SIDE, window_size=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state_dict = Sam(config).state_dict()
        for key in ("image_encoder.pos_embed", *(key for key in state_dict if "rel_pos" in key)):
            state_dict[key].normal_(std=0.1)
    path = tmp_path_factory.mktemp("sam") / "sam.pth"
    torch.save(state_dict, path)
    return path


@pytest.fixture
def config(tmp_path, sam_file) -> Config:
    """Four steps of two drawn pictures."""
    return Config(
        folder=tmp_path / "run",
        sam=str(sam_file),
        workers=0,
        device="cpu",
        tensorboard=False,
        rendered=Rendering(kinds=("solid",)),
        schedule=Schedule(steps=4, batch=2),
        validation=NOT_VALIDATED,
    )


class Told(list):
    """What a run said."""

    def __call__(self, sentence: str) -> None:
        self.append(sentence)

    def __contains__(self, part: str) -> bool:
        return any(part in sentence for sentence in self)


class StopAfter:
    """Presses Ctrl-C when the run says this; the step after it is the last."""

    def __init__(self, beginning: str):
        self._beginning = beginning

    def __call__(self, sentence: str) -> None:
        if sentence.startswith(f"{self._beginning} loss"):
            os.kill(os.getpid(), signal.SIGINT)


def losses(folder: Path) -> list[list[float]]:
    """Step, loss, learning rate and gradient norm of every step."""
    lines = (folder / "losses.csv").read_text().splitlines()[1:]
    return [[float(cell) for cell in line.split(",")] for line in lines]


def toml(config: Config, file: Path) -> Path:
    file.write_text(
        f'folder = "{config.folder.as_posix()}"\nsam = "{Path(config.sam).as_posix()}"\ndevice = "cpu"\nworkers = 0\n'
        f"tensorboard = false\nsave_every = {config.save_every}\nsay_every = 1\n"
        f'[rendered]\nkinds = ["solid"]\n[validation]\nevery = 0\n'
        f"[schedule]\nsteps = {config.schedule.steps}\nbatch = {config.schedule.batch}\n"
    )
    return file


def command(*arguments: object) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(config, tmp_path):
    schedule = Schedule(steps=9, batch=2, ones_until=2, trimap_until=4)
    whole = replace(config, folder=tmp_path / "whole", schedule=schedule)
    train(whole, Told())
    broken = replace(config, folder=tmp_path / "broken", schedule=Schedule(steps=9, batch=2), save_every=3)
    file = toml(broken, tmp_path / "config.toml")
    text = file.read_text() + "ones_until = 2\ntrimap_until = 4\n"
    file.write_text(text)
    curve = broken.folder / "losses.csv"
    process = command("-m", "mam_model", "train", file)
    # Beyond the first checkpoint, before the second: a step takes longer than looking.
    while process.poll() is None and not (curve.is_file() and curve.read_text().count("\n") >= 1 + 5):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    process.stderr.close()
    assert read_checkpoint(broken.folder / "latest.pth")["iter"] in (3, 6)
    assert main(["train", str(file), "--quiet"]) == 0
    assert curve.read_bytes() == (whole.folder / "losses.csv").read_bytes()
    one, other = (read_checkpoint(folder / "latest.pth") for folder in (whole.folder, broken.folder))
    assert all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in one["state_dict"])
    assert one["lr_state_dict"] == other["lr_state_dict"]


def test_a_quiet_run_that_is_stopped_says_how_to_go_on(config, tmp_path, monkeypatch, capsys):
    def interrupting(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return pyramid_loss(*arguments)

    monkeypatch.setattr(loop, "pyramid_loss", interrupting)
    assert main(["train", str(toml(config, tmp_path / "config.toml")), "--quiet"]) == 130
    assert capsys.readouterr().err == "Stopped after step 1. The same command goes on from there.\n"


def test_ctrl_c_ends_the_run_after_a_whole_step_with_a_checkpoint(config, tmp_path):
    whole = replace(config, folder=tmp_path / "whole")
    train(whole, Told())
    told = Told()

    def interrupting(sentence: str) -> None:
        told(sentence)
        if sentence.startswith("[2/4]"):
            os.kill(os.getpid(), signal.SIGINT)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt, match="^Stopped after step 3. The same command goes on from there.$"):
        train(replace(config, say_every=1), interrupting)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    # The step in which the key was pressed had been counted; the next one sees it.
    assert read_checkpoint(config.folder / "latest.pth")["iter"] == 3
    told.clear()
    train(config, told)
    assert "Going on after step 3." in told
    assert losses(config.folder) == losses(whole.folder)


@pytest.mark.skipif(os.name != "posix", reason="processes are ended otherwise elsewhere")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_reaches_the_workers_too_ends_the_run_with_a_checkpoint(config, number):
    """As a terminal sends Ctrl-C, and as torchrun, Slurm and systemd end all processes of a run together."""

    def ending(sentence: str) -> None:
        if sentence.startswith("[3/"):
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, number)
            os.kill(os.getpid(), number)

    several = replace(config, workers=1, say_every=1, schedule=Schedule(steps=2000, batch=2))
    with pytest.raises(KeyboardInterrupt):
        train(several, ending)
    assert read_checkpoint(config.folder / "latest.pth")["iter"] == len(losses(config.folder)) >= 4
    # What is still being drawn may be finished; then the workers have to be gone.
    deadline = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


def test_a_process_that_has_trained_before_trains_with_workers_and_learns_the_same(config, tmp_path):
    """Workers that were forked from such a process were seen to wait for ever."""
    train(config, Told())
    train(replace(config, folder=tmp_path / "with workers", workers=2), Told())
    assert losses(config.folder) == losses(tmp_path / "with workers")


@pytest.mark.skipif(os.name != "posix", reason="processes are killed otherwise elsewhere")
def test_a_worker_that_is_killed_ends_the_run_with_a_sentence(config):
    """As the system does when memory runs out."""

    def killing(sentence: str) -> None:
        if sentence.startswith("[3/"):
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)

    several = replace(config, workers=1, save_every=2, say_every=1, schedule=Schedule(steps=2000, batch=2))
    with pytest.raises(TrainingError, match="prepares samples was killed.*latest.pth, of step 2, is whole.*fewer work"):
        train(several, killing)


@pytest.mark.parametrize(
    "error, whose",
    [
        (torch.OutOfMemoryError("full"), "graphics card"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5.56 GB)."), "graphics card"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), "machine"),
    ],
    ids=["CUDA", "a Mac", "a processor"],
)
def test_full_memory_ends_the_run_with_a_sentence(config, monkeypatch, error, whose):
    def full(*_):
        raise error

    monkeypatch.setattr(loop, "pyramid_loss", full)
    with pytest.raises(TrainingError, match=f"{whose} has not enough memory. No checkpoint .* smaller schedule.batch"):
        train(config, Told())


def test_a_finished_run_is_not_run_again(config):
    train(config, Told())
    before = (config.folder / "losses.csv").read_bytes()
    told = Told()
    assert train(config, told) == config.folder / "latest.pth"
    assert "has made all its 4 steps already" in told
    assert (config.folder / "losses.csv").read_bytes() == before


def test_a_run_goes_on_only_with_the_settings_it_was_begun_with(config):
    train(replace(config, schedule=Schedule(steps=2, batch=2)), Told())
    with pytest.raises(TrainingError, match="settings: schedule.steps was 2 and is now 4. .*folder of its own"):
        train(config, Told())
    with pytest.raises(TrainingError, match="seed was 0 and is now 1"):
        train(replace(config, schedule=Schedule(steps=2, batch=2), seed=1), Told())


def test_the_result_is_a_published_checkpoint_whose_network_has_learned(config):
    path = train(config, Told())
    saved = torch.load(path, weights_only=True)
    assert list(saved) == ["iter", "loss", "state_dict", "opt_state_dict", "lr_state_dict"]
    assert saved["iter"] == 4
    assert saved["loss"] == losses(config.folder)[-1][1]
    network = load_m2m(path)
    torch.manual_seed(config.seed)
    first = loop.MaskToMatte().state_dict()
    # Weights by the gradient, u and v by power iteration, running statistics by the batches.
    for name in ("layer2.0.conv1.module.weight_bar", "layer2.0.conv1.module.weight_u", "bn1.running_mean"):
        assert not torch.equal(network.state_dict()[name], first[name])


def test_training_may_start_from_trained_weights(config, tmp_path):
    path = train(config, Told())
    further = replace(config, folder=tmp_path / "further", start_from=path)
    # So small a rate that the weights stay almost what they were.
    further = replace(further, schedule=Schedule(steps=1, batch=2, learning_rate=1e-8, warm_up=0))
    name = "layer4.1.conv2.module.weight_bar"
    begun, gone_on = load_m2m(path).state_dict()[name], load_m2m(train(further, Told())).state_dict()[name]
    assert torch.allclose(begun, gone_on, atol=1e-6)
    assert not torch.equal(begun, gone_on)


def test_a_full_disk_ends_the_run_with_a_sentence_and_keeps_the_last_checkpoint(config):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling(sentence: str) -> None:
        if sentence.startswith("[3/4]"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))

    try:
        with pytest.raises(TrainingError, match="Writing .*latest.pth failed.*latest.pth, of step 2, is whole"):
            train(replace(config, say_every=1, save_every=2), filling)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(config.folder.glob("*.part"))
    told = Told()
    train(replace(config, save_every=2), told)
    assert "Going on after step 2." in told
    assert [row[0] for row in losses(config.folder)] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["latest.pth", "best.pth"])
def test_a_folder_in_the_place_of_a_checkpoint_is_found_before_the_first_step(config, name):
    (config.folder / name).mkdir(parents=True)
    told = Told()
    with pytest.raises(TrainingError, match=f"{name} is a folder, and a file is needed there. Move it away"):
        train(config, told)
    assert not told


def test_where_it_is_not_the_runs_own_folder_that_cannot_be_written_the_other_is_named(config, tmp_path):
    (tmp_path / "cache").write_bytes(b"no folder")
    with pytest.raises(TrainingError, match="Writing .*cache.* failed"):
        train(replace(config, distinct=2, embedding_cache=tmp_path / "cache"), Told())


def test_a_loss_that_is_no_number_ends_the_run_and_is_not_saved(config, monkeypatch):
    real, calls = loop.pyramid_loss, []

    def broken(*maps):
        calls.append(1)
        return real(*maps) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(loop, "pyramid_loss", broken)
    with pytest.raises(TrainingError, match="no longer a number at step 3.*latest.pth, of step 2.*learning_rate"):
        train(replace(config, save_every=2), Told())
    network = load_m2m(config.folder / "latest.pth")
    assert all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values())


def test_files_that_cannot_be_used_are_skipped_counted_and_named(config, tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("fg", "alpha", "bg"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        alpha = np.zeros((80, 80), np.uint8)
        alpha[20:60, 10 + 5 * number : 60] = 255
        for folder, levels in (("fg", rng.integers(0, 256, (80, 80, 3), np.uint8)), ("alpha", alpha)):
            Image.fromarray(levels).save(tmp_path / folder / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (80, 80, 3), np.uint8)).save(tmp_path / "bg" / f"{number}.png")
    broken = tmp_path / "fg" / "2.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    Image.new("RGB", (80, 80)).save(tmp_path / "fg" / "lonely.png")
    told = Told()
    folders = replace(
        config,
        rendered=None,
        foregrounds=(Foregrounds(tmp_path / "fg", tmp_path / "alpha"),),
        backgrounds=(Backgrounds(tmp_path / "bg"),),
    )
    train(folders, told)
    assert len(losses(config.folder)) == 4
    assert "1 pictures have no alpha of the same name" in told and "lonely" in told
    assert sum(sentence.startswith("Skipped:") and "2.png" in sentence for sentence in told) == 1
    assert "1 files skipped" in told
    assert "1 files could not be used" in told


def test_validation_shows_and_measures_pictures_and_keeps_the_best(config):
    shown = replace(config, validation=Validation(every=2, rendered=3, shown=2), save_every=100)
    told = Told()
    train(shown, told)
    table = (config.folder / "validation.csv").read_text().splitlines()
    assert table[0] == "step,mad,mse,mask_mad,mask_mse"
    assert [line.split(",")[0] for line in table[1:]] == ["2", "4"]
    assert "unseen pictures: MAD" in told
    sheet = np.asarray(Image.open(config.folder / "pictures" / "step_000004.png"))
    assert sheet.shape == (2 * 256, 7 * 256, 3)
    best = min(table[1:], key=lambda line: float(line.split(",")[1])).split(",")[0]
    assert str(read_checkpoint(config.folder / "best.pth")["iter"]) == best


def test_the_best_of_another_validation_is_not_compared_with(config, tmp_path):
    """What is easier to matte would stay the best for good."""
    easy = replace(config, validation=Validation(every=1, rendered=1, shown=0), save_every=1)
    stop, told = StopAfter("[2/4]"), Told()
    with pytest.raises(KeyboardInterrupt):
        train(replace(easy, say_every=1), stop)
    # As if nothing had been wrong with the easy ones.
    table = config.folder / "validation.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *(f"{step},0.0,0.0,0.0,0.0" for step in (1, 2, 3))]) + "\n")
    train(easy, Told())
    assert read_checkpoint(config.folder / "best.pth")["iter"] < 4
    other = replace(easy, folder=tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        train(replace(other, say_every=1), stop)
    (other.folder / "validation.csv").write_text(table.read_text())
    train(replace(other, validation=Validation(every=1, rendered=2, shown=0)), told)
    assert "best.pth will be the best from here on" in told
    assert read_checkpoint(other.folder / "best.pth")["iter"] == 4


def test_what_has_no_partner_in_validation_is_named_and_not_counted_as_a_file_that_was_drawn(config, tmp_path):
    alpha = np.zeros((80, 80), np.uint8)
    alpha[20:60, 10:60] = 255
    for name in ("images", "alphas"):
        (tmp_path / name).mkdir()
        Image.fromarray(alpha).save(tmp_path / name / "whole.png")
    Image.fromarray(alpha).save(tmp_path / "images" / "lonely.png")
    (tmp_path / "images" / "damaged.png").write_bytes(b"no picture")
    Image.fromarray(alpha).save(tmp_path / "alphas" / "damaged.png")
    folders = Validation(rendered=0, pictures=tmp_path / "images", alphas=tmp_path / "alphas")
    told = Told()
    train(replace(config, validation=folders, schedule=Schedule(steps=1, batch=2)), told)
    assert any(sentence.startswith("1 pictures have no alpha") and "lonely" in sentence for sentence in told)
    assert "1 files could not be used; they were drawn 1 times" in told


def test_validation_of_which_nothing_can_be_used_ends_the_run_before_it_begins(config, tmp_path):
    for folder in ("images", "mattes"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_text("no picture")
    unseen = Validation(every=1, rendered=0, pictures=tmp_path / "images", alphas=tmp_path / "mattes")
    told = Told()
    with pytest.raises(TrainingError, match="None of the 1 pictures in .*images can be used to validate"):
        train(replace(config, validation=unseen), told)
    assert "a.png is not a picture" in told
    assert not (config.folder / "latest.pth").exists()


def pairs_to_validate(folder: Path, count: int) -> Validation:
    alpha = np.zeros((80, 80), np.uint8)
    alpha[20:60, 10:60] = 255
    for name in ("images", "mattes"):
        (folder / name).mkdir()
        for number in range(count):
            Image.fromarray(alpha).save(folder / name / f"{number}.png")
    return Validation(every=2, rendered=0, pictures=folder / "images", alphas=folder / "mattes")


def test_pictures_to_validate_are_read_for_each_round_and_not_kept_in_memory(config, tmp_path, monkeypatch):
    read = []

    def remembered(pair):
        picture, alpha = read_pair(pair)
        # Those of rounds before, and of this one's other pictures, are gone by now.
        assert sum(there() is not None for there in read) <= 1
        read.append(weakref.ref(picture))
        return picture, alpha

    monkeypatch.setattr("mam_model.training.validation.read_pair", remembered)
    train(replace(config, validation=pairs_to_validate(tmp_path, 4)), Told())
    assert len(read) == 4 * (1 + 2)


def test_pictures_that_are_gone_when_it_is_time_to_validate_are_named_and_the_run_goes_on(config, tmp_path):
    wanted, told = pairs_to_validate(tmp_path, 2), Told()

    def taking(sentence: str) -> None:
        told(sentence)
        if sentence.startswith(("[1/4]", "[3/4]")):
            (tmp_path / "images" / f"{sentence[1] == '3':d}.png").unlink()

    train(replace(config, validation=wanted, say_every=1), taking)
    assert "0.png" in told and "1.png" in told
    # Of the second round nothing was left to measure.
    table = (config.folder / "validation.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table[1:]] == ["2"]
    assert read_checkpoint(config.folder / "latest.pth")["iter"] == 4


def test_a_run_whose_folder_is_a_file_is_refused_in_a_sentence(config):
    config.folder.touch()
    with pytest.raises(TrainingError, match=f"{config.folder.name} is a file, and a folder is needed there"):
        train(config, Told())


def test_a_line_that_was_cut_off_in_its_step_is_no_earlier_step(tmp_path):
    curve = tmp_path / "losses.csv"
    curve.write_text("step,loss\n1,0.5\n2,0.25\n1234,0.125\n12")
    Table(curve, ("step", "loss"), first=100).close()
    assert curve.read_text() == "step,loss\n1,0.5\n2,0.25\n"


@pytest.mark.parametrize("line", ["2,0,25", "2,lower", "2,\xbd"], ids=["comma", "word", "sign"])
def test_a_table_that_was_written_to_is_named(tmp_path, line):
    curve = tmp_path / "losses.csv"
    content = f"step,loss\n1,0.5\n{line}\n".encode("latin-1")
    curve.write_bytes(content)
    with pytest.raises(TrainingError, match="losses.csv is no longer the run's table of numbers. Move it away"):
        Table(curve, ("step", "loss"), first=100)
    assert curve.read_bytes() == content


def test_validation_does_not_change_what_is_learned(config, tmp_path):
    train(config, Told())
    train(replace(config, folder=tmp_path / "shown", validation=Validation(every=1, rendered=1)), Told())
    assert losses(config.folder) == losses(tmp_path / "shown")


def test_without_tensorboard_a_sentence_says_so_and_the_run_goes_on(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    told = Told()
    train(replace(config, tensorboard=True), told)
    assert sum("pip install tensorboard" in sentence for sentence in told) == 1
    assert len(losses(config.folder)) == 4


def test_tensorboard_gets_losses_and_pictures(config, monkeypatch):
    scalars, pictures = [], []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            assert folder == str(config.folder / "tensorboard")

        def add_scalar(self, name, value, step):
            scalars.append((name, value, step))

        def add_image(self, name, picture, step, dataformats):
            pictures.append((picture.shape, step, dataformats))

        def close(self):
            pass

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    train(replace(config, tensorboard=True, validation=Validation(every=4, rendered=1)), Told())
    expected = [("loss", row[1], int(row[0])) for row in losses(config.folder)]
    assert [scalar for scalar in scalars if scalar[0] == "loss"] == expected
    assert pictures == [((256, 7 * 256, 3), 4, "HWC")]


def test_kept_embeddings_change_nothing_and_spare_the_encoder(config, tmp_path, monkeypatch):
    kept = replace(config, distinct=3, embedding_cache=tmp_path / "embeddings")
    train(kept, Told())
    files = list((tmp_path / "embeddings").rglob("*.safetensors"))
    assert len(files) == 3
    files[0].write_bytes(b"damaged")
    encoded = []
    real = Sam.encode_content
    monkeypatch.setattr(Sam, "encode_content", lambda *given: encoded.append(1) or real(*given))
    train(replace(kept, folder=tmp_path / "again"), Told())
    assert len(encoded) == 1
    assert losses(tmp_path / "again") == losses(config.folder)


def test_bfloat16_trains_with_nearly_the_same_losses(config, tmp_path):
    train(config, Told())
    train(replace(config, folder=tmp_path / "bf16", precision="bf16"), Told())
    full, lower = losses(config.folder), losses(tmp_path / "bf16")
    assert full != lower
    assert lower[0][1] == pytest.approx(full[0][1], rel=0.02)
    assert all(
        tensor.dtype != torch.bfloat16 for tensor in load_m2m(tmp_path / "bf16/latest.pth").state_dict().values()
    )


def test_the_power_iteration_is_not_lowered_by_autocast(monkeypatch):
    conv, lowered = SpectralNormConv(4, 4, 3).train(), []
    real = torch.Tensor.mv
    monkeypatch.setattr(
        torch.Tensor, "mv", lambda *given: lowered.append(torch.is_autocast_enabled("cpu")) or real(*given)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = conv(torch.randn(1, 4, 8, 8))
    assert answer.dtype == torch.bfloat16
    assert lowered == [False] * 3


def test_gradients_are_clipped_at_twice_the_moving_average_of_their_norm():
    weight = nn.Parameter(torch.zeros(4))
    average = 0.0
    for norm, expected_norm, expected_average in (
        (1.0, 1.0, 1.0),
        (1.5, 1.5, 1.05),
        (10.0, 2.1, 1.945),
        (2.0, 2.0, 1.9505),
    ):
        weight.grad = torch.full((4,), norm / 2)
        seen, average = clip_gradients([weight], average, 0.9)
        assert seen == pytest.approx(norm)
        assert weight.grad.norm().item() == pytest.approx(expected_norm, rel=1e-4)
        assert average == pytest.approx(expected_average)


def test_a_batch_that_the_processes_cannot_share_is_refused(config):
    with pytest.raises(TrainingError, match="batch of 2 samples cannot be divided among 3 processes"):
        loop._Run(config, Place(0, 3, torch.device("cpu")), print)


def test_wrong_settings_end_the_command_with_a_sentence(config, tmp_path, capsys):
    file = toml(config, tmp_path / "config.toml")
    file.write_text(file.read_text().replace("batch", "bach"))
    assert main(["train", str(file)]) == 1
    assert capsys.readouterr().err == "config.toml: There is no key bach in [schedule]. Did you mean batch?\n"


@pytest.mark.slow
def test_300_steps_lower_the_loss_and_the_mattes_of_unseen_pictures_beat_their_masks(config):
    """A test of the loop, not of skill. The masks are rough ones of the subjects, because those of a SAM with random
    weights are noise, which is easy to beat. Measured: MAD 99.1 and MSE 44.4 thousandths, where the masks have 107.0
    and 55.9 (with seed 1 67.5 and 31.3, 70.9 and 40.5); so few steps teach little more than soft edges, and the masks
    blurred by a pixel have 89.6 and 38.0. With half the pictures a step, and every pixel counted in the first fifth
    alone, it hung on the seed whether MAD was better than the masks'.
    """
    validation = Validation(every=300, rendered=24, shown=0)
    schedule = Schedule(steps=300, batch=4, learning_rate=3e-3, warm_up=20, ones_until=300, trimap_until=300)
    learning = replace(config, prompt="mask", rendered=Rendering(), schedule=schedule, validation=validation)
    train(learning, Told())
    curve = [row[1] for row in losses(config.folder)]
    assert sum(curve[-60:]) / 60 < 0.7 * sum(curve[:20]) / 20
    (line,) = (config.folder / "validation.csv").read_text().splitlines()[1:]
    _, mad, mse, mask_mad, mask_mse = map(float, line.split(","))
    assert mad < mask_mad
    assert mse < 0.9 * mask_mse


@pytest.mark.slow
def test_300_steps_on_solid_subjects_give_unseen_ones_better_mattes_than_any_blur_of_their_masks(config):
    """Of subjects that are opaque but for their edges so few steps teach something. Measured: MAD 36.1 thousandths,
    where the best blur, by a pixel, has 39.4 (with seed 1 31.7 and 32.3). With half the pictures a step it is a draw.
    """
    validation = Validation(every=300, rendered=24, shown=0, guidance="alpha")
    schedule = Schedule(steps=300, batch=8, learning_rate=3e-3, warm_up=20, ones_until=300, trimap_until=300)
    learning = replace(config, prompt="mask", schedule=schedule, validation=validation)
    train(learning, Told())
    (line,) = (config.folder / "validation.csv").read_text().splitlines()[1:]
    mad = float(line.split(",")[1])
    unseen = [read() for read in unseen_pictures(learning, SIDE, Told(), Told())]
    blurs = [
        np.mean([np.abs(cv2.GaussianBlur(one.prompt.mask.numpy(), (0, 0), sigma) - one.alpha).mean() for one in unseen])
        for sigma in (0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4)
    ]
    assert mad < 1000 * min(blurs)


@pytest.mark.slow
def test_the_network_learns_pictures_it_sees_again_and_again_better_than_any_blur_of_their_masks(config):
    schedule = Schedule(steps=120, batch=2, learning_rate=3e-3, warm_up=20, ones_until=120, trimap_until=120)
    again = replace(config, prompt="mask", distinct=2, rendered=Rendering(), schedule=schedule)
    network = load_m2m(train(again, Told()))
    seen = [Samples(again, SIDE)[number] for number in range(2)]
    predicted = network(*FrozenSam(load_sam(again.sam)).inputs(seen)).os1[:, 0].numpy()
    true = np.stack([sample.alpha for sample in seen])
    masks = [sample.prompt.mask.numpy() for sample in seen]
    blurs = [
        np.abs(np.stack([cv2.GaussianBlur(mask, (0, 0), sigma) for mask in masks]) - true).mean()
        for sigma in (0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4)
    ]
    assert np.abs(predicted - true).mean() < 0.7 * min(blurs)


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_processes_wait_for_the_one_that_validates_as_long_as_it_takes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = {}
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **words: said.update(words))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with joined("cpu") as place:
        assert (place.rank, place.world) == (1, 2)
    assert said["timeout"] >= timedelta(hours=1)


def test_shared_batch_statistics_of_one_process_are_plain_batch_normalisation(group):
    torch.manual_seed(0)
    plain, shared = nn.BatchNorm2d(5), SharedBatchNorm2d(5)
    x = torch.randn(3, 5, 4, 6) * 2 + 1
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    target = torch.randn_like(x)
    for norm, given in zip((plain, shared), inputs):
        with torch.no_grad():
            norm.weight.copy_(torch.arange(1.0, 6.0))
        (norm(given) * target).sum().backward()
    assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=1e-5)
    assert torch.allclose(plain.weight.grad, shared.weight.grad, atol=1e-5)
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(tensor.float(), shared.state_dict()[name].float(), atol=1e-5), name
    assert torch.allclose(plain.eval()(x), shared.eval()(x), atol=1e-5)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(config, tmp_path):
    """Gradients are averaged, batch statistics and weights shared; the third step learns from bands of uneven size.

    Sums of another order round otherwise. That changes the first step's loss by less than 1e-5 and its gradient by less
    than 1e-4. Adam enlarges it: weights that are moved by 1e-7 at random change the third loss by 1e-4.
    """
    schedule = Schedule(steps=3, batch=4, ones_until=0, trimap_until=1)
    one = replace(config, folder=tmp_path / "one", schedule=schedule)
    train(one, Told())
    two = replace(config, folder=tmp_path / "two", schedule=schedule)
    file = toml(two, tmp_path / "config.toml")
    process = command(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "mam_model", "train", file
    )
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    for (_, loss, _, norm), (_, loss_of_two, _, norm_of_two) in zip(losses(one.folder), losses(two.folder)):
        assert loss_of_two == pytest.approx(loss, rel=5e-4)
        assert norm_of_two == pytest.approx(norm, rel=5e-3)
    first_of_one, first_of_two = losses(one.folder)[0], losses(two.folder)[0]
    assert first_of_two[1] == pytest.approx(first_of_one[1], rel=1e-5)
    assert first_of_two[3] == pytest.approx(first_of_one[3], rel=1e-4)
    assert len(losses(two.folder)) == 3


@pytest.mark.slow
def test_where_one_process_ends_with_a_sentence_the_other_shows_no_traceback(config, tmp_path):
    for folder in ("images", "mattes"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_text("no picture")
    file = toml(config, tmp_path / "config.toml")
    unusable = "[validation]\nrendered = 0\npictures = 'images'\nalphas = 'mattes'\n"
    file.write_text(file.read_text().replace("[validation]\nevery = 0\n", unusable))
    process = command(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "mam_model", "train", file
    )
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "can be used to validate" in errors
    assert "[rank1]" not in errors


def test_only_what_the_network_between_processes_says_is_laid_to_another_one():
    several, alone = Place(1, 2, torch.device("cpu")), Place(0, 1, torch.device("cpu"))
    closed = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    assert "Process 1 of 2 ends" in several.lost_others(closed)
    assert several.lost_others(RuntimeError("shapes do not fit")) is None
    assert alone.lost_others(closed) is None
