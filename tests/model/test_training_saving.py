"""Checkpoints: the published format, nothing half-written, and no unpickling."""

from __future__ import annotations

import errno
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch

from mam_model.checkpoint import load_m2m
from mam_model.m2m import MaskToMatte
from mam_model.training.config import TrainingError
from mam_model.training.saving import read_checkpoint, remove_parts, restore, save_checkpoint, write_atomically


@pytest.fixture(scope="module")
def trained():
    """A network and its optimiser after one step."""
    torch.manual_seed(0)
    network = MaskToMatte()
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=0.01, betas=(0.5, 0.999))
    for parameter in learned:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return network, optimizer


def save(path: Path, trained, step: int = 7) -> None:
    save_checkpoint(path, *trained, step=step, loss=0.25, progress={"last_epoch": step})


@pytest.fixture
def files_of_a_megabyte_at_most():
    """A stand-in for a full disk: the system refuses to write more."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_has_the_published_keys_and_loads_strictly(tmp_path, trained):
    save(tmp_path / "m2m.pth", trained)
    saved = torch.load(tmp_path / "m2m.pth", weights_only=True)
    assert list(saved) == ["iter", "loss", "state_dict", "opt_state_dict", "lr_state_dict"]
    assert (saved["iter"], saved["loss"]) == (7, 0.25)
    loaded = load_m2m(tmp_path / "m2m.pth")
    for name, tensor in trained[0].state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_what_was_saved_is_restored_to_the_bit(tmp_path, trained):
    save(tmp_path / "m2m.pth", trained)
    network = MaskToMatte()
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned)
    restore(network, optimizer, read_checkpoint(tmp_path / "m2m.pth"), tmp_path / "m2m.pth")
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), trained[0].parameters()))
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.999)
    for ours, theirs in zip(optimizer.state_dict()["state"].values(), trained[1].state_dict()["state"].values()):
        assert all(torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key])) for key in theirs)


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(tmp_path, trained, files_of_a_megabyte_at_most):
    path = tmp_path / "latest.pth"
    path.write_bytes(b"the last good one")
    with pytest.raises(OSError):
        save(path, trained)
    assert path.read_bytes() == b"the last good one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere folders are not synced")
def test_a_network_share_that_syncs_no_folders_takes_the_file(tmp_path, monkeypatch):
    sync = os.fsync

    def of_files_alone(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(handle)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    write_atomically(tmp_path / "weights", b"new")
    assert (tmp_path / "weights").read_bytes() == b"new"


def test_a_write_that_ends_before_the_file_has_its_name_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def cut(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(OSError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    (tmp_path / "latest.pth").write_bytes(b"good")
    (tmp_path / "latest.pth.123.part").write_bytes(b"ha")
    (tmp_path / "other.part").write_bytes(b"not ours")
    remove_parts(tmp_path / "latest.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.pth", "other.part"]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_damaged_checkpoint_is_refused_with_a_sentence(tmp_path, trained, share):
    path = tmp_path / "latest.pth"
    save(path, trained)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(TrainingError, match="latest.pth is damaged.*start_from"):
        read_checkpoint(path)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("run",)


def test_nothing_in_a_checkpoint_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"iter": Malicious()}, "latest.pth", pickle_module=pickle)
    with pytest.raises(TrainingError, match="damaged"):
        read_checkpoint(tmp_path / "latest.pth")
    assert not (tmp_path / "run").exists()


def test_weights_alone_are_no_run_to_go_on_from(tmp_path, trained):
    torch.save({"state_dict": trained[0].state_dict()}, tmp_path / "m2m.pth")
    with pytest.raises(TrainingError, match="no checkpoint of a run"):
        read_checkpoint(tmp_path / "m2m.pth")


def test_another_networks_checkpoint_is_refused(tmp_path, trained):
    save(tmp_path / "m2m.pth", trained)
    saved = read_checkpoint(tmp_path / "m2m.pth")
    saved["state_dict"].pop("bn1.weight")
    with pytest.raises(TrainingError, match="another network"):
        restore(*trained, saved, tmp_path / "m2m.pth")
