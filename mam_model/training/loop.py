"""The loop that trains Mask-to-Matte beside a frozen SAM: `python -m mam_model train config.toml`.

Li, Jain, Shi: "Matting Anything", arXiv 2306.05399, with the released system's settings. All that is drawn
at random depends on the run's seed and the number of the step or sample, so a run that was killed goes on as if it had
not been: on the CPU, with as many threads, to the last bit of its loss curve.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from ..checkpoint import load_m2m, load_sam
from ..interrupts import stop_noted
from ..m2m import MaskToMatte
from ..out_of_memory import is_device_full, is_processor_full
from ..places import obstacle, reason
from ..sam import Sam
from ..weights import find_file, model_folders
from .config import Config, TrainingError
from .guidance import FrozenSam
from .losses import pyramid_loss
from .processes import Place, joined, with_shared_statistics
from .progress import Progress
from .samples import Samples, batches
from .saving import read_checkpoint, remove_parts, restore, save_checkpoint, write_atomically
from .validation import Read, unseen_pictures, validate
from .weight_maps import weight_maps

LATEST, BEST = "latest.pth", "best.pth"
# What may be changed while a run is interrupted; everything else decides what it learns.
_FREE = {
    "folder",
    "sam",
    "start_from",
    "embedding_cache",
    "device",
    "precision",
    "workers",
    "save_every",
    "say_every",
    "tensorboard",
    "validation",
}


def train(config: Config, say: Callable[[str], None] = print) -> Path:
    """Trains until the config's last step, from the last checkpoint in its folder if there is one.

    The folder gets `latest.pth` and, with validation, `best.pth`, the one with the least error, both as `load_m2m`
    reads them; `losses.csv`, `validation.csv` and `pictures/`. Ctrl-C and SIGTERM end the run after the step that is
    being made, with a checkpoint.

    With workers, call it from the main thread: elsewhere PyTorch's loader does not hear of one that is killed while it
    hands over a sample, and waits for the rest.

    Args:
        say: is given sentences on how the run goes.
    Returns:
        The last checkpoint.
    Raises:
        TrainingError: something is in the way; the text says what to do.
        CheckpointError: SAM's weights, or those to start from, cannot be used.
        FileNotFoundError: SAM's weights are nowhere.
        KeyboardInterrupt: the run was stopped, after its checkpoint was written; the text says how to go on.
    """
    with joined(config.device) as place:
        run = _Run(config, place, say if place.leads else _silent)
        try:
            return run.to_the_end()
        except (MemoryError, RuntimeError) as error:
            if is_device_full(error) or is_processor_full(error):
                full = "The graphics card" if is_device_full(error) else "This machine"
                raise TrainingError(
                    f"{full} has not enough memory. {run.what_is_left()} Give the config a smaller "
                    "schedule.batch, which makes it a run of a folder of its own."
                ) from error
            if lost := place.lost_others(error):
                raise TrainingError(lost) from error
            # PyTorch has no class of its own for it.
            if not str(error).startswith("DataLoader worker"):
                raise
            raise TrainingError(
                "A process that prepares samples was killed, most likely because memory ran out. "
                f"{run.what_is_left()} Give the config fewer workers and start the same command again."
            ) from error
        except OSError as error:
            raise TrainingError(
                f"Writing {error.filename or f'into {config.folder}'} failed: {reason(error)}. "
                f"{run.what_is_left()} Mend that and start the same command again."
            ) from error


class _Run:
    """A run between two interruptions."""

    def __init__(self, config: Config, place: Place, say: Callable[[str], None]):
        if config.schedule.batch % place.world:
            raise TrainingError(
                f"A batch of {config.schedule.batch} samples cannot be divided among {place.world} processes. Set "
                "schedule.batch to a multiple of their number."
            )
        self.config, self.place, self.say = config, place, say
        self.latest = config.folder / LATEST
        self.saved_step: int | None = None
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and place.device.type == "cuda")
        sam_file = find_file(config.sam, "sams", model_folders())
        self.sam = _frozen(load_sam(sam_file), place.device, self.bf16)
        self.samples = Samples(config, self.sam.config.image_size)
        for sentence in self.samples.left_out:
            say(sentence)
        self.network = _first_network(config).to(place.device)
        if place.world > 1:
            self.network = with_shared_statistics(self.network, place.device)
        self.learned = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.learned, lr=config.schedule.learning_rate, betas=config.schedule.betas)
        self.settings = _settings(config, sam_file.name, self.samples.fingerprint)
        self.step, self.loss, self.average_norm = 0, math.nan, 0.0
        self.validation, self.validated_from = _compared(config), 0
        for name in (LATEST, BEST):
            # The first checkpoint is written after hours, which would be lost.
            if found := obstacle(config.folder / name):
                raise TrainingError(f"{found}. Move it away, or give the config another folder.")
        if self.latest.is_file():
            self._go_on()

    def _go_on(self) -> None:
        saved = read_checkpoint(self.latest)
        progress = saved["lr_state_dict"]
        before = json.loads(progress.get("settings", "{}"))
        changed = [name for name, value in self.settings.items() if before.get(name) != value]
        if changed:
            name, was, now = _difference(changed[0], before.get(changed[0]), self.settings[changed[0]])
            raise TrainingError(
                f"The run in {self.config.folder} was begun with other settings: {name} was {json.dumps(was)} and is "
                f"now {json.dumps(now)}. Set it back, or give the new run a folder of its own."
            )
        restore(self.network, self.optimizer, saved, self.latest)
        self.step, self.loss = saved["iter"], saved["loss"]
        self.average_norm = progress["average_gradient_norm"]
        self.saved_step = self.step
        # Checkpoints of earlier versions do not say.
        self.validated_from = progress.get("validated_from", 0)
        if progress.get("validation", self.validation) != self.validation:
            self.validated_from = self.step
            self.say(f"The validation is another than before, so {BEST} will be the best from here on.")

    def to_the_end(self) -> Path:
        config, steps = self.config, self.config.schedule.steps
        if self.step >= steps:
            self.say(f"The run in {config.folder} has made all its {steps} steps already.")
            return self.latest
        if self.step:
            self.say(f"Going on after step {self.step}.")
        if not self.place.leads:
            self._learn(None, [])
            return self.latest
        for name in (LATEST, BEST):
            remove_parts(config.folder / name)
        with closing(Progress(config.folder, self.step, steps, self.say, config.tensorboard)) as progress:
            progress.validated_from = self.validated_from
            unseen = []
            if config.validation.every:
                unseen = unseen_pictures(config, self.sam.config.image_size, self.say, progress.skip)
            self._learn(progress, unseen)
        return self.latest

    def _learn(self, progress: Progress | None, unseen: list[Read]) -> None:
        config, schedule, place = self.config, self.config.schedule, self.place
        guide = FrozenSam(self.sam, config.embedding_cache)
        model = place.wrapped(self.network.train())
        lower = torch.autocast(place.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()
        with stop_noted() as stop_asked:
            for samples in batches(self.samples, self.step, place.rank, place.world):
                features, pictures, masks = guide.inputs(samples)
                true = _stacked([sample.alpha for sample in samples], place)
                band = _stacked([sample.band for sample in samples], place)
                with lower:
                    predicted = model(features, pictures, masks)
                numbers = [sample.number for sample in samples]
                weights = weight_maps(schedule, config.seed, self.step, numbers, band, predicted)
                loss = pyramid_loss(predicted, true, weights, place.mean_weight)
                self.optimizer.zero_grad()
                loss.backward()
                slowness = schedule.gradient_average
                norm, self.average_norm = clip_gradients(self.learned, self.average_norm, slowness)
                self.loss, stop = place.mean(loss.item(), float(stop_asked()))
                if not (math.isfinite(self.loss) and math.isfinite(norm)):
                    raise TrainingError(
                        f"The loss is no longer a number at step {self.step + 1}. {self.what_is_left()} Begin a run in "
                        'a folder of its own with a lower learning_rate or precision = "fp32"; its start_from may '
                        "name that checkpoint."
                    )
                rate = schedule.learning_rate_at(self.step)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                self.optimizer.step()
                self.step += 1
                if progress:
                    for sample in samples:
                        for sentence in sample.skipped:
                            progress.skip(sentence)
                    progress.step_done(self.step, self.loss, rate, norm, config.say_every)
                    self._look_back(progress, unseen, stop > 0)
                if stop:
                    raise KeyboardInterrupt(f"Stopped after step {self.step}. The same command goes on from there.")

    def _look_back(self, progress: Progress, unseen: list[Read], stop: bool) -> None:
        """Validates and saves where it is time to, in the process that leads."""
        config, last = self.config, self.step == self.config.schedule.steps
        every = config.validation.every
        validated = None
        if unseen and (last or self.step % every == 0):
            validated = validate(self.network, self.sam, unseen, config.validation, progress.skip)
        if validated:
            errors = (validated.mad, validated.mse, validated.mask_mad, validated.mask_mse)
            if validated.sheet.size:
                encoded = io.BytesIO()
                Image.fromarray(validated.sheet).save(encoded, "PNG")
                write_atomically(config.folder / "pictures" / f"step_{self.step:06d}.png", encoded.getvalue())
            if progress.validated(self.step, *errors, validated.sheet):
                self._save(config.folder / BEST)
        if stop or last or self.step % config.save_every == 0:
            self._save(self.latest)
            self.saved_step = self.step

    def _save(self, path: Path) -> None:
        progress = {
            "last_epoch": self.step,
            "average_gradient_norm": self.average_norm,
            "settings": json.dumps(self.settings),
            "validation": self.validation,
            "validated_from": self.validated_from,
        }
        save_checkpoint(path, self.network, self.optimizer, step=self.step, loss=self.loss, progress=progress)

    def what_is_left(self) -> str:
        """A sentence on the last good checkpoint."""
        if self.saved_step is None:
            return "No checkpoint was written yet."
        return f"{self.latest}, of step {self.saved_step}, is whole."


def clip_gradients(parameters: Sequence[nn.Parameter], average_norm: float, slowness: float) -> tuple[float, float]:
    """Scales the gradients down to twice the average of their norm so far, if they are longer than that.

    Args:
        average_norm: of the steps before, in which each counts less by `slowness` with every step; 0 before the first.
    Returns:
        The norm before scaling, and the average with it.
    """
    limit = 2 * average_norm if average_norm else math.inf
    norm = float(nn.utils.clip_grad_norm_(parameters, limit))
    return norm, slowness * average_norm + (1 - slowness) * norm if average_norm else norm


def _frozen(sam: Sam, device: torch.device, lower_precision: bool) -> Sam:
    sam = sam.to(device)
    if lower_precision and device.type == "cuda":
        # As at inference, where half precision is nearer to full than bfloat16 is.
        sam.image_encoder.half()
    return sam


def _first_network(config: Config) -> MaskToMatte:
    if config.start_from:
        network = load_m2m(config.start_from)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = MaskToMatte()
    for name, parameter in network.named_parameters():
        # The vectors of the power iteration follow the weights; no gradient does.
        parameter.requires_grad_(not name.endswith((".weight_u", ".weight_v")))
    return network


def _settings(config: Config, sam_name: str, fingerprint: str) -> dict:
    """What an interrupted run has to have in common with the one that goes on, as JSON gives it back."""
    kept = {name: value for name, value in asdict(config).items() if name not in _FREE}
    for name in ("foregrounds", "composed", "backgrounds"):
        # A folder may be moved as long as what is in it stays.
        kept[name] = [
            {key: v for key, v in source.items() if key not in ("pictures", "alphas")} for source in kept[name]
        ]
    return json.loads(json.dumps({**kept, "sam": sam_name, "names of the data's files": fingerprint}))


def _compared(config: Config) -> str:
    """What two rounds of validation have to have in common for their errors to be compared."""
    wanted = config.validation
    folders = [folder and folder.name for folder in (wanted.pictures, wanted.alphas)]
    return json.dumps([wanted.rendered, wanted.kinds, wanted.guidance, folders])


def _difference(name: str, was: object, now: object) -> tuple[str, object, object]:
    """The first setting that differs: of two tables, the key in them."""
    if isinstance(was, dict) and isinstance(now, dict):
        key = next(key for key in {**was, **now} if was.get(key) != now.get(key))
        return _difference(f"{name}.{key}", was.get(key), now.get(key))
    return name, was, now


def _stacked(planes: list, place: Place) -> torch.Tensor:
    """[N, 1, side, side] of N arrays [side, side]."""
    return torch.stack([torch.from_numpy(plane) for plane in planes])[:, None].to(place.device)


def _silent(sentence: str) -> None:
    pass
