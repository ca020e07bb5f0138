"""What a run of training is told, as a TOML file says it. Every number that is not given is the paper's."""

from __future__ import annotations

import difflib
import math
import types
import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path

from ..places import reason

# The sizes that the recipe states in pixels are those of a square of this side.
PUBLISHED_SIDE_PX = 1024


class TrainingError(ValueError):
    """Something in the way of training, with what to do about it, in words for the person who started it."""


@dataclass(frozen=True)
class Foregrounds:
    """A data set of subjects that are laid over backgrounds.

    Attributes:
        pictures: folder of the subjects' pictures, searched with its subfolders.
        alphas: folder of their alphas under the same names; without it the pictures' own transparency is taken.
        share: how often samples come from here, in proportion to the other sources' shares.
        second_subject: the share of samples in which another subject of the set is laid under the first.
    """

    pictures: Path
    alphas: Path | None = None
    share: float = 1.0
    second_subject: float = 0.5

    def __post_init__(self):
        _check_share(self.share)
        _check_between("second_subject", self.second_subject, 0, 1)


@dataclass(frozen=True)
class Composed:
    """A data set of finished pictures with their alphas, which are cropped and otherwise used as they are."""

    pictures: Path
    alphas: Path
    share: float = 1.0

    def __post_init__(self):
        _check_share(self.share)


@dataclass(frozen=True)
class Rendering:
    """Pictures drawn by the computer (render.py); `kinds` limits what is drawn."""

    share: float = 1.0
    kinds: tuple[str, ...] = ()

    def __post_init__(self):
        _check_share(self.share)
        if self.kinds:
            from .render import KINDS

            for kind in self.kinds:
                _check_known("a kind of picture that can be rendered", kind, KINDS)


@dataclass(frozen=True)
class Backgrounds:
    """A folder of photos without the subjects, searched with its subfolders."""

    pictures: Path
    share: float = 1.0

    def __post_init__(self):
        _check_share(self.share)


@dataclass(frozen=True)
class Augmentation:
    """How far foregrounds are varied.

    Attributes:
        rotation_deg: turned by up to this angle, either way.
        scale: the least and the greatest factor of size.
        shear_deg: sheared by up to this angle, either way.
        flip: the share of samples that is mirrored.
        hue_deg: hues turned by up to this angle, either way.
        saturation, value: moved by up to this share of what is left above the subject's mean, either way.
    """

    rotation_deg: float = 30.0
    scale: tuple[float, float] = (0.8, 1.5)
    shear_deg: float = 10.0
    flip: float = 0.5
    hue_deg: float = 40.0
    saturation: float = 0.1
    value: float = 0.1

    def __post_init__(self):
        _check_between("rotation_deg", self.rotation_deg, 0, 180)
        _check_between("shear_deg", self.shear_deg, 0, 60)
        _check_between("hue_deg", self.hue_deg, 0, 180)
        for name in ("flip", "saturation", "value"):
            _check_between(name, getattr(self, name), 0, 1)
        if not 0 < self.scale[0] <= self.scale[1] < 100:
            raise TrainingError(f"scale is a least and a greatest factor, such as [0.8, 1.5], not {list(self.scale)}.")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast the network learns, and from which pixels.

    Attributes:
        steps: of the optimiser.
        batch: samples a step, of all processes together.
        learning_rate: the highest, reached after `warm_up` steps.
        betas: of Adam. The released configuration's; the paper prints 0.5 and 0.99.
        warm_up: steps of linear growth, after which a cosine falls to 0; a fifth of all steps when not given.
        ones_until: up to this step every pixel counts at every scale; a fifth of all steps when not given.
        trimap_until: from there to this step half the steps count the trimap's band alone at the two finer scales;
            afterwards the other half counts the bands that the network itself is unsure of. Three fifths of all steps
            when not given.
        gradient_average: how slowly the average follows the gradient's norm, at twice which gradients are clipped.
    """

    steps: int = 20_000
    batch: int = 80
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)
    warm_up: int | None = None
    ones_until: int | None = None
    trimap_until: int | None = None
    gradient_average: float = 0.999

    def __post_init__(self):
        for name, share in (("warm_up", 1), ("ones_until", 1), ("trimap_until", 3)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, share * self.steps // 5)
        for name, least in (("steps", 1), ("batch", 1), ("warm_up", 0), ("ones_until", 0), ("trimap_until", 0)):
            _check_between(name, getattr(self, name), least, 10**9)
        if not 0 < self.learning_rate < 1:
            raise TrainingError(f"learning_rate lies above 0 and below 1; {self.learning_rate:g} does not.")
        for name, value in (("betas", self.betas[0]), ("betas", self.betas[1])):
            _check_between(name, value, 0, 0.999999)
        _check_between("gradient_average", self.gradient_average, 0, 1)
        if self.ones_until > self.trimap_until:
            raise TrainingError(
                f"ones_until ({self.ones_until}) comes before trimap_until ({self.trimap_until}). Exchange them."
            )

    def learning_rate_at(self, step: int) -> float:
        """The rate of the step of that number; the first is 0."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        progress = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Validation:
    """Pictures that are never trained on, matted from time to time.

    Attributes:
        every: steps between two rounds; 0 for none.
        rendered: how many drawn pictures to matte.
        pictures, alphas: folders of finished pictures and their alphas, matted too, all of them.
        kinds: what is drawn; by default what is trained on, or everything.
        shown: how many of the pictures each sheet shows.
        guidance: "mask" or "alpha", what the scales are merged from; see `MergeOptions`.
    """

    every: int = 1000
    rendered: int = 8
    pictures: Path | None = None
    alphas: Path | None = None
    kinds: tuple[str, ...] = ()
    shown: int = 8
    guidance: str = "mask"

    def __post_init__(self):
        for name in ("every", "rendered", "shown"):
            _check_between(name, getattr(self, name), 0, 10**9)
        if (self.pictures is None) != (self.alphas is None):
            raise TrainingError("Validation needs both of pictures and alphas, or neither.")
        _check_known("a guidance", self.guidance, ("mask", "alpha"))
        Rendering(kinds=self.kinds)


@dataclass(frozen=True)
class Config:
    """A run of training.

    Attributes:
        folder: where checkpoints, the loss curve and pictures go. A run that was interrupted goes on from there.
        sam: SAM's weights, a path or the name of a published file; the network is trained for this SAM alone.
        start_from: weights of a Mask-to-Matte to begin with; random ones when not given.
        prompt: "box", the paper's: SAM makes the mask that guides the network from the subject's tight box; or "mask":
            a rough mask of the subject guides it itself, for a network that is to refine masks from elsewhere.
        seed: another one gives other samples and other first weights.
        distinct: how many different samples there are; 0 for a new one each time.
        embedding_cache: folder that keeps SAM's embeddings of the `distinct` samples, in half precision.
        device: "auto", "cpu", "cuda" or "mps".
        precision: "bf16", "fp32", or "auto", which is bf16 on CUDA.
        workers: processes that prepare samples, for each process that trains.
        save_every: steps between two checkpoints.
        say_every: steps between two lines of progress.
        tensorboard: whether TensorBoard's log is written, if that is installed.
    """

    folder: Path
    sam: str
    start_from: Path | None = None
    prompt: str = "box"
    seed: int = 0
    distinct: int = 0
    embedding_cache: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    workers: int = 2
    save_every: int = 500
    say_every: int = 20
    tensorboard: bool = True
    foregrounds: tuple[Foregrounds, ...] = ()
    composed: tuple[Composed, ...] = ()
    rendered: Rendering | None = None
    backgrounds: tuple[Backgrounds, ...] = ()
    augmentation: Augmentation = field(default_factory=Augmentation)
    schedule: Schedule = field(default_factory=Schedule)
    validation: Validation = field(default_factory=Validation)

    def __post_init__(self):
        for name, least in (("seed", 0), ("distinct", 0), ("workers", 0), ("save_every", 1), ("say_every", 1)):
            _check_between(name, getattr(self, name), least, 2**62)
        _check_known("a device", self.device, ("auto", "cpu", "cuda", "mps"))
        _check_known("a prompt", self.prompt, ("box", "mask"))
        _check_known("a precision", self.precision, ("auto", "fp32", "bf16"))
        if not (self.foregrounds or self.composed or self.rendered):
            raise TrainingError(
                "The config names nothing to train on. Add [[foregrounds]] or [[composed]] with folders, or [rendered]."
            )
        if self.foregrounds and not self.backgrounds:
            raise TrainingError("Foregrounds need something to be laid over. Add [[backgrounds]] with a folder.")
        if not sum(source.share for source in self.sources):
            raise TrainingError("All shares are 0, so there is nothing to train on. Give one source a share above 0.")
        if self.backgrounds and not sum(source.share for source in self.backgrounds):
            raise TrainingError("All shares of the backgrounds are 0. Give one of them a share above 0.")
        if self.embedding_cache and not self.distinct:
            raise TrainingError(
                "An embedding_cache is of use only where samples come again: say with `distinct` how many there are."
            )

    @property
    def sources(self) -> tuple[Foregrounds | Composed | Rendering, ...]:
        """Everything that samples are taken from."""
        return (*self.foregrounds, *self.composed, *((self.rendered,) if self.rendered else ()))


def read_config(path: Path) -> Config:
    """Reads a run's TOML file. Paths in it are relative to the file's folder.

    Raises:
        TrainingError: no such file, not TOML, an unknown key, a value of another type or out of its range; it says
            which.
    """
    try:
        import tomllib
    except ImportError:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise TrainingError("Python 3.10 needs a reader for the config. Install it: pip install tomli") from error
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise TrainingError(f"The config {path} cannot be read: there is no such file.") from error
    except OSError as error:
        raise TrainingError(f"The config {path} cannot be read: {reason(error)}.") from error
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path.name} is not a TOML file: it is no text.") from error
    except tomllib.TOMLDecodeError as error:
        raise TrainingError(f"{path.name} is not a TOML file: {error}.") from error
    base = path.resolve().parent
    try:
        config = _filled(Config, given, "", base)
        beside = _path(config.sam, "sam", base)
    except TrainingError as error:
        raise TrainingError(f"{path.name}: {error}") from None
    return replace(config, sam=str(beside)) if beside.is_file() else config


def _filled(kind: type, given: dict, where: str, base: Path):
    hints = typing.get_type_hints(kind)
    for key in given:
        if key not in hints:
            place = f"[{where}]" if where else "the top level"
            near = difflib.get_close_matches(key, hints, n=1)
            advice = f"Did you mean {near[0]}?" if near else f"Known there are {', '.join(hints)}."
            raise TrainingError(f"There is no key {key} in {place}. {advice}")
    for wanted in fields(kind):
        if wanted.name not in given and wanted.default is MISSING and wanted.default_factory is MISSING:
            raise TrainingError(f"{_named(wanted.name, where)} is missing.")
    values = {key: _value(hints[key], value, _named(key, where), base) for key, value in given.items()}
    try:
        return kind(**values)
    except TrainingError as error:
        raise TrainingError(f"[{where}] {error}" if where else str(error)) from None


def _named(key: str, where: str) -> str:
    return f"{where}.{key}" if where else key


def _value(kind, given, name: str, base: Path):
    """`given`, as TOML has it, in the type that a field is declared with."""
    if isinstance(kind, types.UnionType):
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) is tuple:
        element, *rest = typing.get_args(kind)
        if not isinstance(given, list) or (rest != [...] and len(given) != 1 + len(rest)):
            form = f"[[{name}]] tables" if is_dataclass(element) else "a list"
            count = f" of {1 + len(rest)} values" if rest != [...] else ""
            raise TrainingError(f"{name} is written as {form}{count}, not as {given!r}.")
        if is_dataclass(element) and not all(isinstance(item, dict) for item in given):
            raise TrainingError(f"{name} is written as [[{name}]] tables, not as {given!r}.")
        return tuple(_value(element, item, name, base) for item in given)
    if is_dataclass(kind):
        if not isinstance(given, dict):
            raise TrainingError(f"{name} is a table, written as [{name}], not {given!r}.")
        return _filled(kind, given, name, base)
    if kind is Path and isinstance(given, str) and given:
        return _path(given, name, base)
    # A bool is an int to Python, and a whole number is a fine float.
    wanted = {Path: str, float: (int, float)}.get(kind, kind)
    if isinstance(given, wanted) and isinstance(given, bool) == (kind is bool) and given != "":
        return float(given) if kind is float else given
    form = {Path: "a path", float: "a number", int: "a whole number", bool: "true or false", str: "a text"}[kind]
    raise TrainingError(f"{name} is {form}, not {given!r}.")


def _path(given: str, name: str, base: Path) -> Path:
    try:
        return base / Path(given).expanduser()
    except RuntimeError as error:
        raise TrainingError(f"{name} is {given}, but there is no such user's folder here.") from error


def _check_between(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise TrainingError(f"{name} goes from {least:g} to {most:g}; {value:g} does not.")


def _check_share(share: float) -> None:
    if not (share >= 0 and math.isfinite(share)):
        raise TrainingError(f"A share is 0 or more; {share:g} is not.")


def _check_known(what: str, name: str, known) -> None:
    if name not in known:
        raise TrainingError(f"{name} is not {what}. Choose one of {', '.join(known)}.")
