"""Checkpoints that are either whole or not there, in the format of the published ones."""

from __future__ import annotations

import errno
import io
import os
import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import TrainingError

_KEYS = ("iter", "loss", "state_dict", "opt_state_dict", "lr_state_dict")


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that appears under its name only when all of it is on the disk; until then the old one stays.

    Raises:
        OSError: the disk is full, say; it names the file, which is as it was, and nothing else is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)
    if os.name == "posix":
        # The new name itself has to reach the disk, too.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError as error:
            # Some network shares sync files alone, and this one is there.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(folder)


def remove_parts(path: Path) -> None:
    """Removes what a process that was killed while it wrote this file left behind."""
    for part in path.parent.glob(f"{path.name}.*.part"):
        part.unlink(missing_ok=True)


def save_checkpoint(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, *, step: int, loss: float, progress: dict
) -> None:
    """Writes all that a run needs to go on as if it had never stopped.

    Args:
        network: its state dict is what `load_m2m` reads.
        step: how many steps were made; saved as `iter`.
        progress: what the loop knows beside that, numbers and texts; saved as `lr_state_dict`.
    Raises:
        OSError: see `write_atomically`.
    """
    content = (step, loss, network.state_dict(), optimizer.state_dict(), progress)
    encoded = io.BytesIO()
    torch.save(dict(zip(_KEYS, content)), encoded)
    write_atomically(path, encoded.getvalue())


def read_checkpoint(path: Path) -> dict[str, int | float | dict]:
    """What `save_checkpoint` wrote, read without running anything, on the CPU.

    Returns:
        `iter`, `loss`, `state_dict`, `opt_state_dict` and `lr_state_dict`.
    Raises:
        TrainingError: the file is damaged or holds something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise TrainingError(f"{path} is damaged, so the run cannot go on from it. {_ADVICE}") from error
    if not isinstance(content, dict) or any(key not in content for key in _KEYS):
        raise TrainingError(f"{path} is no checkpoint of a run that can go on. {_ADVICE}")
    return content


_ADVICE = "Move it away to begin anew, or name it as start_from in a run of its own folder to take over its weights."


def restore(
    network: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, int | float | dict[str, Tensor]], path: Path
) -> None:
    """Puts a checkpoint's weights and the optimiser's memory back.

    Raises:
        TrainingError: they belong to another network.
    """
    try:
        network.load_state_dict(saved["state_dict"])
        optimizer.load_state_dict(saved["opt_state_dict"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise TrainingError(f"{path} holds another network than Mask-to-Matte. {_ADVICE}") from error
