"""How the refiner that ships with the package was trained, on the samples of `gallery`: loss, steps, state, weights."""

from __future__ import annotations

import hashlib
import io
import json
import math
import multiprocessing
import pickle
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..interrupts import stop_noted, unheard_by_children
from ..m2m import AlphaPyramid
from ..refiner import MaskRefiner, read_weights
from .config import TrainingError
from .folders import PictureFiles
from .gallery import Gallery, Sample, fill_aside, read_cut_out, read_texture, usable
from .losses import laplacian_loss
from .saving import remove_parts, write_atomically

# Far enough from both ends of float16.
_LARGEST_VARIANCE = 1024.0
# A mean error of a mask beside which it is of no use to ask whether the network's is larger.
_NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class Recipe:
    """The numbers of a run. The defaults are those of the first of the three runs behind the shipped weights.

    Attributes:
        seed: of everything that is drawn.
        steps: how many steps are made; 0 lets `minutes` decide.
        minutes: how long the run takes, the learning rate falling to 0 with the clock.
        batch: pieces a step.
        crop_px, late_crop_px, late: the side of the pieces, and what it becomes in the last share `late` of the run:
            small ones teach edges at less cost, large ones what lies farther around them.
        learning_rate, warm_up_steps, weight_decay: of AdamW, with a cosine after the warm-up.
        average: decay of the moving average of the weights, which is what is kept.
        gallery: how many pictures are drawn at most; the oldest stay.
        true_share: the share of samples that come from pictures with true alpha, if there are any.
    """

    seed: int = 1
    steps: int = 0
    minutes: float = 62.6
    batch: int = 8
    crop_px: int = 192
    late_crop_px: int = 256
    late: float = 0.25
    learning_rate: float = 2e-3
    warm_up_steps: int = 100
    weight_decay: float = 1e-4
    average: float = 0.998
    gallery: int = 4000
    true_share: float = 0.15


def refining_loss(
    predicted: AlphaPyramid, alpha: Tensor, mask: Tensor, *, band_px: int = 21, focus: bool = True
) -> Tensor:
    """What a pyramid costs: absolute and squared difference at every scale, and the Laplacian pyramid's at os1.

    The surroundings of what is soft or wrong in the mask count most, for the finer scales even more so, as the merging
    asks them hardly anywhere else. What the mask had right and the network spoils counts once more, and so does, in a
    piece that ends up farther from the truth than its mask was, by how much it does.

    Args:
        alpha, mask: float [N, 1, H, W] in 0..1.
        band_px: how far the surroundings go, both sides together.
        focus: False lets every pixel count alike at every scale.
    """
    unsure = ((alpha > 0.01) & (alpha < 0.99)) | ((mask > 0.5) != (alpha > 0.5))
    near = F.max_pool2d(unsure.float(), (band_px, 1), 1, (band_px // 2, 0))
    near = F.max_pool2d(near, (1, band_px), 1, (0, band_px // 2))
    total = alpha.new_zeros(())
    for scale, outside, share in (("os8", 0.5, 0.5), ("os4", 0.3, 0.5), ("os1", 0.3, 1.0)):
        weight = near * (1 - outside) + outside if focus else torch.ones_like(near)
        found = getattr(predicted, scale)
        error, given = (found - alpha).abs(), (mask - alpha).abs()
        # Squares are cheapest halfway between two alphas that are both likely, a haze; so they count for little.
        total = total + share * _mean(error + 0.5 * error.square() + F.relu(error - given), weight)
    for power in (1, 2):
        ours, theirs = (((side - alpha).abs() ** power).mean((1, 2, 3)) for side in (predicted.os1, mask))
        total = total + 0.2 * F.relu((ours - 0.9 * theirs) / (theirs + _NEGLIGIBLE)).mean()
    return total + 0.5 * laplacian_loss(predicted.os1, alpha, torch.ones_like(near))


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / (weight.sum() + 1e-8)


def _batch(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    picture = torch.from_numpy(np.stack([sample.picture for sample in samples])).permute(0, 3, 1, 2).float() / 255
    alpha = torch.from_numpy(np.stack([sample.alpha for sample in samples]))[:, None]
    mask = torch.from_numpy(np.stack([sample.mask for sample in samples]))[:, None]
    return picture, alpha.float(), mask.float()


class _Prefetched:
    """Batches made in a thread of their own. Sample i of a run is drawn from (seed, i)."""

    def __init__(self, gallery: Gallery, recipe: Recipe, first_step: int):
        self._gallery, self._recipe = gallery, recipe
        self.crop_px = recipe.crop_px
        self._ready: queue.Queue = queue.Queue(maxsize=4)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(first_step,), daemon=True)
        self._thread.start()

    def _work(self, step: int) -> None:
        try:
            while not self._stopped.is_set():
                self._gallery.refresh()
                # Once for all of a batch: it may be changed at any moment.
                crop_px = self.crop_px
                samples = [
                    self._gallery.sample(np.random.default_rng((self._recipe.seed, step, number)), crop_px)
                    for number in range(self._recipe.batch)
                ]
                step += 1
                self._put(_batch(samples))
        except BaseException as error:
            self._put(error)

    def _put(self, item) -> None:
        while not self._stopped.is_set():
            try:
                return self._ready.put(item, timeout=0.5)
            except queue.Full:
                continue

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()


def train_refiner(
    output: Path,
    work: Path,
    recipe: Recipe,
    *,
    photos: Sequence[Path] = (),
    true: Sequence[Path] = (),
    start: Path | None = None,
    renderers: int = 1,
    skip: Callable[[str], None] = lambda sentence: None,
    on_step: Callable[[int, float, float], None] | None = None,
    save_every_s: float = 300.0,
) -> int:
    """Trains a refiner and writes its averaged weights; goes on from `work` where an earlier run stopped.

    Ctrl-C and SIGTERM end the run after the step that is being made, with its state and its weights.

    Args:
        output: the weights, float16 safetensors. A file that is there is replaced by the run that wrote it alone.
        work: folder of the rendered pictures and of the state from which a run goes on.
        photos: pictures that serve as backgrounds and as textures.
        true: pictures whose transparency is their true alpha.
        start: weights of an earlier run to begin with; None begins with random ones.
        renderers: processes that go on rendering meanwhile; with 0 the folder has to hold pictures already.
        skip: is told of each photo or cut-out that cannot be used. The run does without it.
        on_step: is told the step, its loss and which share of the run is done.
    Returns:
        How many steps the weights have seen.
    Raises:
        TrainingError: `output` is a folder, no safetensors or there already, too few rendered pictures and nobody to
            render more, a rendered picture that is damaged, no photo or no cut-out that can be used, or a state to go
            on from that is damaged or of other settings.
        CheckpointError: `start` is missing, damaged or holds another network.
        OSError: a folder cannot be made, or a file not be written.
        KeyboardInterrupt: the run was stopped, after its state was saved; the text says how to go on.
    """
    # The first weights are written after minutes, which would be lost on a place that takes none.
    if output.is_dir():
        raise TrainingError(f"{output} is a folder. Name the file of weights: {output / 'refiner.safetensors'}, say.")
    if output.suffix.lower() != ".safetensors":
        raise TrainingError(f"{output.name} has to end in .safetensors, because that is what will be written.")
    state_file = work / "state.pt"
    saved = _saved_state(state_file) if state_file.exists() else None
    if output.exists() and (saved is None or _run_of(output) != saved["run"]):
        raise TrainingError(
            f"{output} exists already, and not from the run in {work}. Name another file, or the --work folder of the "
            "run that wrote it to go on with that."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    network, before = MaskRefiner(), None
    if start is not None:
        network.load_state_dict(read_weights(start), strict=False)
        before = _lineage(start)
    textures, cut_outs = usable(photos, read_texture, skip), usable(true, read_cut_out, skip)
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (*textures, *cut_outs)}
    run = _Run(network, recipe, hashes, before)
    if saved is not None:
        run.go_on_from(saved, state_file)
    work.mkdir(parents=True, exist_ok=True)
    for file in (state_file, output):
        remove_parts(file)
    folder = work / "gallery"
    to_draw = folder, textures, recipe.seed, recipe.gallery
    context = multiprocessing.get_context("spawn")
    drawing = [
        context.Process(target=fill_aside, args=(*to_draw, number, renderers), daemon=True)
        for number in range(renderers)
    ]
    try:
        with unheard_by_children():
            for process in drawing:
                process.start()
        shown, subjects = PictureFiles(textures, read_texture), PictureFiles(cut_outs, read_cut_out)
        gallery = Gallery(folder, shown, subjects, recipe.true_share)
        while gallery.refresh() < min(32, recipe.gallery):
            if not any(process.is_alive() for process in drawing):
                advice = "" if drawing else " Give --renderers 1 or more."
                raise TrainingError(
                    f"{folder} holds fewer than {min(32, recipe.gallery)} rendered pictures, and nobody renders more."
                    f"{advice}"
                )
            time.sleep(0.5)
        return _fit(run, output, state_file, gallery, on_step, save_every_s)
    finally:
        for process in drawing:
            if process.pid is None:
                continue
            process.terminate()
            process.join()
            for part in folder.glob(f"*.{process.pid}.part"):
                part.unlink(missing_ok=True)


class _Run:
    """A network in training, and all that the run which goes on with it has to know.

    Attributes:
        averaged: the moving average of the network's state.
        name: stands in the state and in the weights, so that no other run replaces them.
        step: how many were made.
        spent_s: the time that they took.
    """

    def __init__(
        self, network: MaskRefiner, recipe: Recipe, hashes: dict[str, str], before: dict[str, str] | None
    ) -> None:
        self.network = network.to(memory_format=torch.channels_last)
        self.averaged = {name: value.clone().float() for name, value in network.state_dict().items()}
        decayed = [value for value in network.parameters() if value.ndim > 1]
        plain = [value for value in network.parameters() if value.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.99))
        self.recipe, self.hashes, self.before = recipe, hashes, before
        self.name = secrets.token_hex(8)
        self.step, self.spent_s = 0, 0.0

    @property
    def done(self) -> float:
        """Which share of the run is made; 1 or more at its end."""
        return self.step / self.recipe.steps if self.recipe.steps else self.spent_s / (60 * self.recipe.minutes)

    def go_on_from(self, saved: dict, state_file: Path) -> None:
        """Takes over what `save` kept.

        Raises:
            TrainingError: it is of another network or of other settings.
        """
        try:
            self.network.load_state_dict(saved["network"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.averaged, self.step, self.spent_s = saved["averaged"], saved["step"], saved["spent"]
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise _unusable(state_file) from error
        self.name = saved["run"]
        settings = _settings(self.recipe, self.hashes, self.before)
        # States of earlier versions do not say.
        begun_with = saved.get("settings", settings)
        changed = [name for name, value in settings.items() if begun_with.get(name) != value]
        if changed:
            raise TrainingError(
                f"The run in {state_file.parent} was begun with another {' and another '.join(changed)}. Give the same "
                "command as before, or give the new run a file and a --work folder of its own."
            )

    def save(self, state_file: Path, output: Path) -> None:
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"averaged": self.averaged, "step": self.step, "spent": self.spent_s, "run": self.name}
        encoded = io.BytesIO()
        torch.save({**state, "settings": _settings(self.recipe, self.hashes, self.before)}, encoded)
        write_atomically(state_file, encoded.getvalue())
        _write_weights(output, self.averaged, self.recipe, self.step, self.hashes, self.before, self.name)


def _saved_state(state_file: Path) -> dict:
    """What `_Run.save` kept, read without running anything.

    Raises:
        TrainingError: the file is damaged or holds something else.
    """
    try:
        saved = torch.load(state_file, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        raise _unusable(state_file) from error
    if not isinstance(saved, dict):
        raise _unusable(state_file)
    # Runs of earlier versions have no name, nor have their weights.
    return {"run": "", **saved}


def _unusable(state_file: Path) -> TrainingError:
    return TrainingError(
        f"{state_file} is damaged or belongs to another network, so the run cannot go on from it. Move it away to "
        "begin anew."
    )


def _run_of(weights: Path) -> str | None:
    """The name of the run that wrote a file; None where the file is not of any."""
    from safetensors import SafetensorError

    try:
        return _lineage(weights).get("run", "")
    except (OSError, SafetensorError):
        return None


def _fit(
    run: _Run,
    output: Path,
    state_file: Path,
    gallery: Gallery,
    on_step: Callable[[int, float, float], None] | None,
    save_every_s: float,
) -> int:
    network, recipe = run.network, run.recipe
    bfloat16 = _has_fast_bfloat16()
    began = saved_at = time.monotonic()
    spent_before_s = run.spent_s
    with closing(_Prefetched(gallery, recipe, run.step)) as batches, stop_noted() as stop_asked:
        network.train()
        while (done := run.done) < 1 and not stop_asked():
            rate = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
            rate *= min(1, (run.step + 1) / recipe.warm_up_steps)
            for group in run.optimizer.param_groups:
                group["lr"] = rate
            batches.crop_px = recipe.crop_px if done < 1 - recipe.late else recipe.late_crop_px
            picture, alpha, mask = batches.next()
            picture = picture.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                pyramid = network(picture, mask)
            focus = run.before is not None or done > 0.05
            loss = refining_loss(pyramid, alpha, mask, band_px=(11, 21, 41)[run.step % 3], focus=focus)
            run.optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            if torch.isfinite(norm):
                run.optimizer.step()
            run.step += 1
            decay = min(recipe.average, (run.step + 1) / (run.step + 10))
            with torch.no_grad():
                for name, value in network.state_dict().items():
                    run.averaged[name].lerp_(value.float(), 1 - decay)
            now = time.monotonic()
            run.spent_s = spent_before_s + now - began
            if on_step:
                on_step(run.step, loss.item(), done)
            if now - saved_at > save_every_s:
                saved_at = now
                run.save(state_file, output)
        run.save(state_file, output)
        if run.done < 1:
            raise KeyboardInterrupt(f"Stopped after step {run.step}. The same command goes on from there.")
    return run.step


def _settings(recipe: Recipe, hashes: dict[str, str], before: dict[str, str] | None) -> dict[str, str]:
    """What a run has to have in common with the one that it goes on from. It may be made longer."""
    return {
        "seed": str(recipe.seed),
        "learning rate": repr(recipe.learning_rate),
        "set of photos and cut-outs": json.dumps(hashes, sort_keys=True),
        "file to begin with": before["sha256"] if before else "",
    }


def _has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _lineage(file: Path) -> dict[str, str]:
    """What a file of weights says of the run it comes from, with its sha256."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return {**(opened.metadata() or {}), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def _scaled_down(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network with no variance larger than float16 can hold, which ends at 65,504.

    Of a convolution before a normalisation the scale does not matter, so that it can grow. It is divided by a power of
    2, and with it mean and variance of its answers: what changes is the share of the normalisation's epsilon alone.
    """
    scaled = dict(state)
    for name, variance in state.items():
        block, end, _ = name.rpartition("norm.running_var")
        if end and (largest := float(variance.max())) > _LARGEST_VARIANCE:
            factor = 2.0 ** -math.ceil(math.log2(largest / _LARGEST_VARIANCE) / 2)
            scaled[name] = variance * factor**2
            for part in ("conv.weight", "norm.running_mean"):
                scaled[block + part] = state[block + part] * factor
    return scaled


def _write_weights(
    output: Path,
    averaged: dict[str, Tensor],
    recipe: Recipe,
    step: int,
    hashes: dict[str, str],
    before: dict[str, str] | None,
    run: str,
) -> None:
    from safetensors.torch import save

    weights = {
        name: value.half().contiguous()
        for name, value in _scaled_down(averaged).items()
        if not name.endswith("num_batches_tracked")
    }
    listed = json.dumps(hashes)
    metadata = {
        "recipe": json.dumps(asdict(recipe)),
        "steps": str(step),
        "seed": str(recipe.seed),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "pictures": listed,
        "pictures_sha256": hashlib.sha256(listed.encode()).hexdigest(),
    }
    if before is not None:
        metadata["before"] = json.dumps(before)
    if run:
        metadata["run"] = run
    write_atomically(output, save(weights, metadata))
