"""Files of weights: reading them without running anything, recognising what they are, loading SAM and Mask-to-Matte."""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from .places import reason
from .published import sha256_of, sources

if TYPE_CHECKING:
    from .in_context.decoder import InContextDecoder
    from .m2m import MaskToMatte
    from .sam import Sam

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
# The limit of the safetensors format itself.
_LARGEST_SAFETENSORS_HEADER = 100_000_000
_M2M_MARKS = ("layer2.0.conv1.module.weight_bar", "refine_OS8.0.weight", "refine_OS1.3.weight")
# How the two networks are called inside a file that holds the whole of Matting Anything.
_M2M_PREFIX = "m2m."
_SAM_PREFIX = "seg_model."
# In-Context Matting's trainer saves the decoder under the first, and its frozen diffusion model, if at all, under the
# second.
_DECODER_PREFIX = "in_context_decoder."
_FROZEN_PREFIX = "feature_extractor."
# What the readers of PyTorch, pickle and zip raise for bytes that make no sense, besides errors of their own.
_DAMAGE = (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, struct.error)
# No training program is known to name nearly as many classes in a checkpoint.
_MOST_UNKNOWN_CLASSES = 100
# Downloads leave out whole blocks of the disk, never less than this.
_PAGE_BYTES = 4096


class CheckpointError(ValueError):
    """A file that cannot be used, with what it is and what to do, in words for the person who chose it."""


class Kind(Enum):
    """What a file of weights can turn out to be."""

    SAM = "SAM"
    M2M = "Mask-to-Matte"
    MATTING_ANYTHING = "Matting Anything"
    ICON_MATTING = "IconMatting"
    STABLE_DIFFUSION = "Stable Diffusion"
    SAM_2 = "SAM 2"
    SAM_3 = "SAM 3"
    SAM_HQ = "HQ-SAM"
    MOBILE_SAM = "MobileSAM"
    SAM_TRANSFORMERS = "SAM for transformers"
    GROUNDING_DINO = "Grounding DINO"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Identity:
    """What a file of weights is.

    Attributes:
        kind: what it is, for programs.
        name: what it is, for people; follows "This file is".
    """

    kind: Kind
    name: str


def read_state_dict(path: str | os.PathLike, *, allow_unknown_classes: bool = False) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint, whatever its suffix says.

    Understood are safetensors and PyTorch's files (zip and legacy). Where a training program saved more than the
    weights, they are looked for under "state_dict" and "model"; a prefix "module." that all keys share is taken off.
    No code from the file is run. PyTorch's zip files are mapped, not copied, so the tensors need the file as long as
    they live.

    Args:
        allow_unknown_classes: whether a PyTorch file may name classes that PyTorch does not know, as PyTorch
            Lightning's files do. They are neither imported nor run; whatever is made of them is left out. While such a
            file is read, the names count as known for every `torch.load` in this process, so this is for programs of
            their own. A file that calls what it names is refused all the same.
    Returns:
        Tensors by key, on the CPU, in the dtype of the file.
    Raises:
        CheckpointError: the file is missing, incomplete, not a checkpoint, or asks to run code.
    """
    path = Path(path)
    head = _head(path)
    if _is_safetensors(head):
        return _without_module_prefix(_read_safetensors(path))
    if head.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)):
        content = _read_pickle(path, head.startswith(_ZIP_MAGIC), allow_unknown_classes)
        return _without_module_prefix(_weights_in(content, path))
    raise CheckpointError(_what_it_is_instead(head, path))


def check_safetensors(path: str | os.PathLike) -> None:
    """Refuses a file that does not begin as a safetensors file does.

    Raises:
        CheckpointError: saying what the file is instead: a pickle, a web page, a git-lfs pointer, or nothing.
    """
    path = Path(path)
    head = _head(path)
    if _is_safetensors(head):
        return
    if head.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)):
        raise CheckpointError(
            f"{path.name} is a PyTorch file under a wrong name, not safetensors. Convert it with "
            f"`python -m mam_model convert {path.name} NEW.safetensors`, or get the file from its authors."
        )
    raise CheckpointError(_what_it_is_instead(head, path))


def identify(state_dict: Mapping[str, Tensor]) -> Identity:
    """Recognises a model by its keys and shapes.

    The Mask-to-Matte files for SAM ViT-B, L and H hold the same keys and shapes. Which SAM a file was trained for
    cannot be seen in it; only its name says so, or the SAM that lies beside it in the same file.
    """
    has_m2m = all(mark in _under(_M2M_PREFIX, state_dict) for mark in _M2M_MARKS)
    sam = _under(_SAM_PREFIX, state_dict)
    if "image_encoder.patch_embed.seq.0.c.weight" in sam:
        return Identity(Kind.MOBILE_SAM, "MobileSAM, a SAM with another image encoder")
    if "mask_decoder.hf_token.weight" in sam:
        return Identity(Kind.SAM_HQ, "HQ-SAM, a SAM with an enlarged mask decoder")
    if "image_encoder.pos_embed" in sam and "mask_decoder.iou_token.weight" in sam:
        if has_m2m:
            return Identity(Kind.MATTING_ANYTHING, f"Matting Anything ({_sam_name(sam)} and Mask-to-Matte in one file)")
        return Identity(Kind.SAM, _sam_name(sam))
    if has_m2m:
        return Identity(Kind.M2M, "Mask-to-Matte, the matting network of Matting Anything")
    for kind, name, marks in _OTHER_MODELS:
        if all(any(key.startswith(mark) for key in state_dict) for mark in marks):
            return Identity(kind, name)
    examples = ", ".join(sorted(state_dict)[:3])
    return Identity(Kind.UNKNOWN, f"a model that is not known here ({len(state_dict)} tensors: {examples}, ...)")


# For each: beginnings of keys that all have to occur.
_OTHER_MODELS = (
    (Kind.STABLE_DIFFUSION, "a Stable Diffusion checkpoint", ("model.diffusion_model.",)),
    (Kind.SAM_3, "SAM 3, the successor of SAM 2", ("detector.", "tracker.")),
    (Kind.SAM_2, "SAM 2, the successor of SAM", ("image_encoder.trunk.", "sam_mask_decoder.")),
    (
        Kind.SAM_TRANSFORMERS,
        "SAM under the key names of the transformers library",
        ("vision_encoder.layers.", "prompt_encoder.", "mask_decoder."),
    ),
    (Kind.GROUNDING_DINO, "Grounding DINO, a text detector", ("bert.", "transformer.", "backbone.")),
    (Kind.GROUNDING_DINO, "Grounding DINO, a text detector", ("model.text_backbone.", "model.backbone.")),
    (Kind.ICON_MATTING, "IconMatting, the decoder of In-Context Matting", (_DECODER_PREFIX,)),
    (
        Kind.ICON_MATTING,
        "IconMatting, the decoder of In-Context Matting",
        ("in_context_fusion.attn_module.", "detail_decoder."),
    ),
)


def load_sam(path: str | os.PathLike) -> Sam:
    """Builds the SAM of a file: ViT-B, L, H or any other size of the same architecture.

    A file that holds the whole of Matting Anything will do too; its SAM is taken.

    Returns:
        The network in float32 and eval mode, without gradients, on the CPU, independent of the file.
    Raises:
        CheckpointError: no SAM in the file, not all of it, or no usable numbers.
    """
    from .sam import Sam, SamConfig

    state_dict, identity = _read_one_of(path, (Kind.SAM, Kind.MATTING_ANYTHING), "SAM (ViT-B, ViT-L or ViT-H)", "sams")
    weights = _under(_SAM_PREFIX, state_dict)
    try:
        config = SamConfig.from_state_dict(weights)
    except (KeyError, ValueError) as error:
        raise CheckpointError(_incomplete(path, identity, f"its size cannot be read off ({error})", "sams")) from error
    with torch.device("meta"):
        network = Sam(config)
    return _filled(network, weights, path, identity, "sams")


def load_m2m(path: str | os.PathLike) -> MaskToMatte:
    """Builds the Mask-to-Matte network of a file, from its authors or converted, alone or beside its SAM.

    The files for SAM ViT-B, L and H cannot be told apart (see `identify`). With the features of another SAM than its
    own the network runs and gives bad mattes.

    Returns:
        The network in float32 and eval mode, without gradients, on the CPU, independent of the file.
    Raises:
        CheckpointError: no Mask-to-Matte in the file, not all of it, or no usable numbers.
    """
    from .m2m import MaskToMatte

    kinds = (Kind.M2M, Kind.MATTING_ANYTHING)
    state_dict, identity = _read_one_of(path, kinds, "Mask-to-Matte, the matting network of Matting Anything", "mam")
    with torch.device("meta"):
        network = MaskToMatte()
    return _filled(network, _under(_M2M_PREFIX, state_dict), path, identity, "mam")


def load_in_context_decoder(path: str | os.PathLike) -> InContextDecoder:
    """Builds the decoder of In-Context Matting of a file, from its authors or converted.

    Smaller decoders of the same architecture will do too. A frozen diffusion model in the file is left out.

    Returns:
        The network in float32 and eval mode, without gradients, on the CPU, independent of the file.
    Raises:
        CheckpointError: no such decoder in the file, not all of it, or no usable numbers.
    """
    from .in_context.decoder import DecoderConfig, InContextDecoder

    wanted, folder = "the decoder of In-Context Matting", "in_context_matting"
    state_dict, identity = _read_one_of(path, (Kind.ICON_MATTING,), wanted, folder)
    weights = {
        key.removeprefix(_DECODER_PREFIX): tensor
        for key, tensor in state_dict.items()
        if not key.startswith(_FROZEN_PREFIX)
    }
    try:
        config = DecoderConfig.from_state_dict(weights)
    except (KeyError, ValueError) as error:
        raise CheckpointError(_incomplete(path, identity, f"its size cannot be read off ({error})", folder)) from error
    with torch.device("meta"):
        network = InContextDecoder(config)
    return _filled(network, weights, path, identity, folder)


def convert(src: str | os.PathLike, dst: str | os.PathLike, *, overwrite: bool = False) -> str:
    """Writes the weights of a checkpoint as safetensors, in their own dtype, with a note of what they are.

    The file appears under its name only when it is complete.

    Args:
        src: any file that `read_state_dict` reads, unknown classes allowed, and `identify` knows.
        dst: the file to write, ending in .safetensors.
        overwrite: whether an existing `dst` may be replaced.
    Returns:
        The sha256 of the written file.
    Raises:
        CheckpointError: `src` cannot be read or is not known, or `dst` may not or cannot be written.
    """
    import safetensors
    import safetensors.torch

    src, dst = Path(src), Path(dst)
    if dst.suffix != ".safetensors":
        raise CheckpointError(f"{dst.name} has to end in .safetensors, because that is what will be written.")
    if dst.exists() and not overwrite:
        raise CheckpointError(f"{dst} exists already and was left as it is. Choose another name, or allow overwriting.")
    state_dict = read_state_dict(src, allow_unknown_classes=True)
    identity = identify(state_dict)
    if identity.kind is Kind.UNKNOWN:
        raise CheckpointError(f"{src.name} was not converted: it is {identity.name}.")
    metadata = {"format": "pt", "content": identity.name, "source": src.name, "source_sha256": sha256_of(src)}
    # Copies, because safetensors stores neither shared nor strided memory.
    tensors = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state_dict.items()}
    del state_dict
    part = dst.with_name(f"{dst.name}.{os.getpid()}.part")
    try:
        safetensors.torch.save_file(tensors, part, metadata)
        with open(part, "r+b") as stream:
            os.fsync(stream.fileno())
        os.replace(part, dst)
    except (OSError, safetensors.SafetensorError) as error:
        why = reason(error) if isinstance(error, OSError) else error
        raise CheckpointError(f"{dst} could not be written: {why}.") from error
    finally:
        part.unlink(missing_ok=True)
    return sha256_of(dst)


def _head(path: Path) -> bytes:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder. Choose the file of weights in it.")
    try:
        with open(path, "rb") as stream:
            return stream.read(512)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_SAFETENSORS_HEADER


def _what_it_is_instead(head: bytes, path: Path) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return f"{path.name} is empty: its download never began or was interrupted. Delete it and download it again."
    if not head.strip(b"\0"):
        return f"{path.name} holds only zeros: its download was interrupted. Delete it and download it again."
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        return (
            f"{path.name} is a web page, not a checkpoint: the download link led to a page. "
            "Open the link in a browser and download the file itself."
        )
    if text.startswith(b"version https://git-lfs"):
        return (
            f"{path.name} is a git-lfs pointer, a note that stands for the file. "
            "Run `git lfs pull` where it was cloned, or download the file itself."
        )
    beginning = head[:60].decode("utf-8", "replace").split("\n")[0].strip()
    if beginning.isprintable() and "\N{REPLACEMENT CHARACTER}" not in beginning:
        return f"{path.name} is a text file, not a checkpoint. It begins with: {beginning}"
    return f"{path.name} is neither a PyTorch nor a safetensors file (it begins with the bytes {head[:8].hex(' ')})."


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(_damaged(path, error)) from error


class _CallError(Exception):
    """A file wants the class or function of this name to be called."""


class _Uncallable(type):
    """The type of what stands for an unknown class while a file is read: it can be named, not called."""

    def __call__(cls, *args, **kwargs):
        raise _CallError(f"{cls.__module__}.{cls.__name__}")


class _Nothing:
    """An object of an unknown class. It takes whatever a file says of it and keeps nothing."""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __setstate__(self, state):
        pass


def _stand_in(name: str) -> type:
    """What a file gets when it names the class `name`, "module.Class"."""
    # PyTorch leaves the module out of what it says about builtins.
    module, _, short = name.rpartition(".") if "." in name else ("builtins", ".", name)
    return _Uncallable(short, (_Nothing,), {"__module__": module})


def _read_pickle(path: Path, is_zip: bool, allow_unknown_classes: bool) -> object:
    if is_zip:
        _check_zip(path)
    stand_ins: dict[str, type] = {}
    while True:
        try:
            with torch.serialization.safe_globals(list(stand_ins.values())) if stand_ins else nullcontext():
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except _CallError as error:
            raise CheckpointError(_refusal(path, f"asks Python to call {error}")) from error
        except pickle.UnpicklingError as error:
            found = re.search(r"\bGLOBAL (\S+)", str(error))
            if found is None and "Unsupported operand" not in str(error) and not stand_ins:
                raise CheckpointError(_damaged(path, error)) from error
            wanted = found and found[1].rstrip(".,")
            # A name that is asked for again was refused for another reason than that it is unknown.
            if allow_unknown_classes and wanted and wanted not in stand_ins and len(stand_ins) < _MOST_UNKNOWN_CLASSES:
                stand_ins[wanted] = _stand_in(wanted)
                continue
            refusal = _refusal(path, f"asks Python for {wanted}" if wanted else "holds more than numbers")
            if not allow_unknown_classes:
                refusal += (
                    f" If it only names code without calling it, `python -m mam_model convert {path.name} "
                    "NEW.safetensors` takes its weights out, still without running anything."
                )
            raise CheckpointError(refusal) from error
        except _DAMAGE as error:
            raise CheckpointError(_damaged(path, error)) from error


def _refusal(path: Path, complaint: str) -> str:
    return (
        f"{path.name} was not loaded, because it {complaint}, which weights do not need. A file that asks for code can "
        "run any program, so nothing of it was run. Get the file from its authors, as safetensors if there is such a "
        "version."
    )


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            for record in _maybe_with_a_hole(path, archive):
                with archive.open(record) as stream:
                    # Read to its end, it is compared with its CRC-32.
                    while stream.read(2**20):
                        pass
    # NotImplementedError, for a version that there is not yet, is a RuntimeError.
    except (zipfile.BadZipFile, *_DAMAGE) as error:
        raise CheckpointError(_damaged(path, error)) from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{path.name} is a TorchScript program, not a file of weights, and was not run. Get the weights instead."
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(f"{path.name} is a zip archive, not a checkpoint. Unpack it and choose the file inside.")


def _maybe_with_a_hole(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The records that may lack what a download left out: one of the file's pages begins with zeros in them.

    An interrupted download that had taken the room for the whole file in advance has its end, and so looks complete.
    To compare every record with its CRC-32, which PyTorch does not do, would take as long as the loading itself.
    """
    records = sorted(archive.infolist(), key=lambda record: record.header_offset)
    pages = path.stat().st_size // _PAGE_BYTES
    if not (records and pages):
        return []
    beginnings = np.memmap(path, np.uint64, "r", shape=(pages, _PAGE_BYTES // 8))[:, 0]
    holes = np.flatnonzero(beginnings == 0) * _PAGE_BYTES
    places = np.searchsorted([record.header_offset for record in records], holes, side="right") - 1
    suspects = (records[max(place, 0)] for place in np.unique(places))
    # Without a CRC-32, zero stands in its place: torch.serialization.set_crc32_options(False). PyTorch packs nothing.
    return [record for record in suspects if record.CRC and record.compress_type == zipfile.ZIP_STORED]


def _damaged(path: Path, error: Exception) -> str:
    # PyTorch goes on to advise loading the file with its code.
    reason = (str(error) or type(error).__name__).splitlines()[0].split("Re-running")[0].split("In PyTorch")[0].strip()
    return (
        f"{path.name} is incomplete or damaged, probably an interrupted download ({path.stat().st_size:,} bytes). "
        f"Delete it and download it again. (Reading it failed with: {reason})"
    )


def _weights_in(content: object, path: Path) -> dict[str, Tensor]:
    for name in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__} instead of weights by name.")
    weights = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError(f"{path.name} is a PyTorch file without any weights in it.")
    return weights


def _without_module_prefix(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    if not all(key.startswith("module.") for key in state_dict):
        return state_dict
    return {key[len("module.") :]: tensor for key, tensor in state_dict.items()}


def _under(prefix: str, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The entries whose keys begin with `prefix`, without it; everything if none does."""
    entries = {key[len(prefix) :]: tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    return entries or state_dict


def _sam_name(weights: Mapping[str, Tensor]) -> str:
    from .sam import SamConfig

    try:
        return SamConfig.from_state_dict(weights).name
    except (KeyError, ValueError):
        return "SAM"


def _read_one_of(
    path: str | os.PathLike, kinds: tuple[Kind, ...], wanted: str, folder: str
) -> tuple[dict[str, Tensor], Identity]:
    try:
        state_dict = read_state_dict(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error} Expected is {wanted}. {sources(folder)}") from error
    identity = identify(state_dict)
    if identity.kind not in kinds:
        raise CheckpointError(f"{Path(path).name} is {identity.name}. Expected is {wanted}. {sources(folder)}")
    return state_dict, identity


def _filled(
    network: nn.Module, weights: Mapping[str, Tensor], path: str | os.PathLike, identity: Identity, folder: str
) -> nn.Module:
    """`network` with exactly these weights, as copies in float32."""

    def refuse(keys: Iterable[str], complaint: str) -> None:
        if keys := sorted(keys):
            complaint = f"{len(keys)} of its tensors {complaint}, first {keys[0]}"
            raise CheckpointError(_incomplete(path, identity, complaint, folder))

    wanted = network.state_dict()
    refuse(wanted.keys() - weights.keys(), "are missing")
    refuse(weights.keys() - wanted.keys(), "are unknown")
    refuse((key for key in wanted if wanted[key].shape != weights[key].shape), "are of another shape")
    learned = [key for key, tensor in wanted.items() if tensor.is_floating_point()]
    # Quantised, sparse or without any numbers at all.
    refuse((key for key in learned if not _is_plain_float(weights[key])), "hold no floating-point numbers")
    copies = {
        key: tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()
        for key, tensor in weights.items()
    }
    # The network would run, and its mattes would be black or noise.
    refuse((key for key in learned if not _is_finite(copies[key])), "hold numbers that are none (NaN or infinite)")
    network.load_state_dict(copies, assign=True)
    return network.requires_grad_(False).eval()


def _is_plain_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_meta


def _is_finite(tensor: Tensor) -> bool:
    """Without a mask of the tensor's size beside it."""
    return all(extreme.isfinite() for extreme in tensor.aminmax())


def _incomplete(path: str | os.PathLike, identity: Identity, complaint: str, folder: str) -> str:
    return f"{Path(path).name} is {identity.name}, but not as published: {complaint}. {sources(folder)}"
