"""What a run says about itself: lines on the terminal, tables in its folder, and TensorBoard's log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .config import TrainingError
from .saving import write_atomically

LOSS_COLUMNS = ("step", "loss", "learning_rate", "gradient_norm")
VALIDATION_COLUMNS = ("step", "mad", "mse", "mask_mad", "mask_mse")


class Table:
    """A CSV file of numbers, one line a step, written as they come.

    Numbers are written so that they read back as the same ones. What was written after the step from which an
    interrupted run goes on is taken out, so that the file ends up as if there had been no interruption.

    Raises:
        TrainingError: the file was changed since, and is no table of numbers any more.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], first: int):
        kept = [",".join(columns)]
        try:
            if path.is_file():
                # What follows the last line's end is the beginning of a line, whose step may be cut off: 12 of 1234.
                lines = path.read_text(encoding="utf-8").split("\n")[1:-1]
                steps = [line.split(",")[0] for line in lines]
                kept += [line for line, step in zip(lines, steps) if step.isdecimal() and int(step) <= first]
            self.rows = [
                tuple(float(cell) for _, cell in zip(columns, line.split(","), strict=True)) for line in kept[1:]
            ]
        except ValueError as error:
            raise TrainingError(f"{path} is no longer the run's table of numbers. Move it away to go on.") from error
        write_atomically(path, ("\n".join(kept) + "\n").encode())
        self._stream = open(path, "a", encoding="utf-8", newline="\n")

    def add(self, step: int, *values: float) -> None:
        self.rows.append((step, *values))
        self._stream.write(",".join([str(step), *(repr(float(value)) for value in values)]) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


class Progress:
    """Keeps count of a run in the process that leads it.

    Args:
        folder: of the run.
        first: how many steps were made before.
        say: takes sentences for the user.
        tensorboard: whether to write its log; without the package a sentence says so.
    Attributes:
        validated_from: the step after which the rounds of validation can be compared with those to come.
    """

    def __init__(self, folder: Path, first: int, steps: int, say: Callable[[str], None], tensorboard: bool):
        self.losses = Table(folder / "losses.csv", LOSS_COLUMNS, first)
        self.validations = Table(folder / "validation.csv", VALIDATION_COLUMNS, first)
        self.validated_from = 0
        self.skipped: Counter[str] = Counter()
        self._say = say
        self._steps = steps
        self._first = first
        self._began = time.monotonic()
        self._said = first
        self._board = _tensorboard(folder / "tensorboard", first, say) if tensorboard else None

    def step_done(self, step: int, loss: float, learning_rate: float, gradient_norm: float, say_every: int) -> None:
        """Notes a step; `step` counts from 1."""
        self.losses.add(step, loss, learning_rate, gradient_norm)
        if self._board:
            for name, value in (("loss", loss), ("learning rate", learning_rate), ("gradient norm", gradient_norm)):
                self._board.add_scalar(name, value, step)
        if step % say_every == 0 or step == self._steps:
            recent = [row[1] for row in self.losses.rows[-(step - self._said) :]]
            self._said = step
            per_step = (time.monotonic() - self._began) / (step - self._first)
            self._say(
                f"[{step}/{self._steps}] loss {sum(recent) / len(recent):.4f}, {per_step:.2f} s a step, "
                f"{_spoken_time((self._steps - step) * per_step)} to go{self._spoken_skips()}"
            )

    def skip(self, sentence: str) -> None:
        """Notes a file that could not be used; each is named the first time."""
        self.skipped[sentence] += 1
        if self.skipped[sentence] == 1:
            self._say(f"Skipped: {sentence}")

    def validated(self, step: int, mad: float, mse: float, mask_mad: float, mask_mse: float, sheet: np.ndarray) -> bool:
        """Notes a round of validation. Returns whether its mean absolute difference is the lowest so far."""
        comparable = (row[1] for row in self.validations.rows if row[0] > self.validated_from)
        best = min(comparable, default=float("inf"))
        self.validations.add(step, mad, mse, mask_mad, mask_mse)
        self._say(
            f"[{step}/{self._steps}] unseen pictures: MAD {1000 * mad:.2f}, MSE {1000 * mse:.2f} "
            f"(the mask alone: {1000 * mask_mad:.2f}, {1000 * mask_mse:.2f}), in thousandths"
        )
        if self._board:
            self._board.add_scalar("unseen pictures/MAD", mad, step)
            self._board.add_scalar("unseen pictures/MSE", mse, step)
            if sheet.size:
                self._board.add_image("unseen pictures", sheet, step, dataformats="HWC")
        return mad < best

    def close(self) -> None:
        if self.skipped:
            self._say(
                f"{len(self.skipped)} files could not be used; they were drawn {self.skipped.total()} times and "
                "replaced by others each time."
            )
        self.losses.close()
        self.validations.close()
        if self._board:
            self._board.close()

    def _spoken_skips(self) -> str:
        return f", {len(self.skipped)} files skipped" if self.skipped else ""


def _tensorboard(folder: Path, first: int, say: Callable[[str], None]):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say(
            "TensorBoard is not installed, so the run is logged in losses.csv and validation.csv alone. "
            "`pip install tensorboard` adds it; `tensorboard = false` in the config silences this."
        )
        return None
    return SummaryWriter(str(folder), purge_step=first + 1)


def _spoken_time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
