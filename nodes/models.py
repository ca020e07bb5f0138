"""Model files -> networks, one copy per process, moved and evicted by ComfyUI's memory management."""

from __future__ import annotations

import logging
import os
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch

from ..mam_model.published import (
    PUBLISHED,
    TEXT_DETECTORS,
    PublishedFile,
    PublishedFolder,
    download,
    published_file,
    sha256_of,
    sources,
    text_detector_sources,
)

SAM_FOLDER = "sams"
M2M_FOLDER = "mam"
TEXT_DETECTOR_FOLDER = "grounding-dino"
_ARRIVING = ".part"
IN_CONTEXT_FOLDER = "in_context_matting"
_SUFFIXES = {".safetensors", ".pth", ".pt", ".ckpt"}

PRECISIONS = ["auto", "fp32", "fp16", "bf16"]
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Embeddings of this many pictures stay with the SAM that made them, 7 MB each: a changed prompt need not encode again.
_RECENT_PICTURES = 8


def register_model_folders() -> None:
    """Makes the pack's folders below models/ known, and every place that extra_model_paths.yaml adds to them.

    Other packs assign models/sams anew when they load, so the loaders call this each time they list files.
    """
    for name in (SAM_FOLDER, M2M_FOLDER, TEXT_DETECTOR_FOLDER, IN_CONTEXT_FOLDER):
        folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
        paths, suffixes = folder_paths.folder_names_and_paths[name]
        # A folder that was unknown before is listed with every kind of file in it.
        if not _SUFFIXES <= set(suffixes):
            folder_paths.folder_names_and_paths[name] = (paths, set(suffixes) | _SUFFIXES)


def file_choices(folder: str) -> list[str]:
    """What a loader offers: the files that are there, then the published ones that are not."""
    register_model_folders()
    present = sorted(folder_paths.get_filename_list(folder))
    offered = [file.name for file in PUBLISHED if file.folder == folder and file.name not in present]
    return present + offered


def check_choice(name: str, folder: str) -> bool | str:
    """True, or the sentence that validation shows for a file that is neither there nor published."""
    register_model_folders()
    if folder_paths.get_full_path(folder, name) or _published(name, folder):
        return True
    return f'There is no "{name}" in models/{folder}. {sources(folder)}'


def file_fingerprint(name: str, folder: str) -> str:
    """Changes when the file behind a name is replaced, deleted or comes back."""
    register_model_folders()
    path = folder_paths.get_full_path(folder, name)
    return "absent" if path is None else repr(_identity_of(path))


def model_file(name: str, folder: str) -> str:
    """The path of a model file; a published one that is absent is downloaded and verified first.

    Raises:
        FileNotFoundError: the file is not there and cannot be downloaded; the message says where to get it.
        DownloadError: the download did not end in a verified file.
    """
    register_model_folders()
    path = folder_paths.get_full_path(folder, name)
    if path is not None:
        return path
    published = _published(name, folder)
    if published is None:
        raise FileNotFoundError(f'"{name}" is no longer in models/{folder}. {sources(folder)}')
    logging.info("Matting Anything: downloading %s (%s) into models/%s", name, published.size, folder)
    bar = comfy.utils.ProgressBar(published.size_bytes)

    def show(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return str(download(published, folder_paths.get_folder_paths(folder)[0], show))


def text_detector_choices() -> list[str]:
    """What the loader of text detectors offers: the folders that are there, then the published ones that are not."""
    present = sorted(_text_detector_folders())
    return present + [model.name for model in TEXT_DETECTORS if model.name not in present]


def check_text_detector(name: str) -> bool | str:
    """True, or the sentence that validation shows for a folder that is neither there nor published."""
    if name in text_detector_choices():
        return True
    return f'There is no folder "{name}" in models/{TEXT_DETECTOR_FOLDER}. {text_detector_sources()}'


def text_detector_fingerprint(name: str) -> str:
    """Changes when a file of the detector is replaced, deleted or comes back."""
    folder = _text_detector_folders().get(name)
    return "absent" if folder is None else repr(_identity_of_folder(folder))


def text_detector_folder(name: str) -> Path:
    """The folder of a text detector; a published one that is absent is downloaded and verified first.

    Raises:
        FileNotFoundError: the folder is not there and cannot be downloaded; the message says where to get it.
        DownloadError: the download did not end in verified files.
    """
    folder = _text_detector_folders().get(name)
    if folder is not None and any(folder.iterdir()):
        return folder
    published = next((model for model in TEXT_DETECTORS if model.name == name), None)
    if published is None:
        raise FileNotFoundError(
            f'The folder "{name}" is no longer in models/{TEXT_DETECTOR_FOLDER}. {text_detector_sources()}'
        )
    return _download_folder(published)


def _download_folder(model: PublishedFolder) -> Path:
    logging.info("Matting Anything: downloading %s (%s) into models/%s", model.name, model.size, model.folder)
    bar = comfy.utils.ProgressBar(model.size_bytes)
    target = Path(folder_paths.get_folder_paths(model.folder)[0], model.name)
    # Complete or not there: a folder that lacks a file would be taken for one that its user filled.
    arriving = target.with_name(model.name + _ARRIVING)
    before = 0
    for file in model.files:

        def show(done: int, total: int, before: int = before) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(before + done, model.size_bytes)

        download(file, arriving, show)
        before += file.size_bytes
    if target.is_dir():
        target.rmdir()
    return arriving.rename(target)


def _text_detector_folders() -> dict[str, Path]:
    """Every folder in models/grounding-dino that may be a detector, under the name that the loader shows.

    A name is one level deep, or two where the hub's "owner/model" was kept. In a copy of the hub's cache the files lie
    in a snapshot. "." is models/grounding-dino itself, for those who put the files there.
    """
    register_model_folders()
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(TEXT_DETECTOR_FOLDER)):
        if (root / "config.json").is_file():
            found.setdefault(".", root)
        for folder in _folders_in(root):
            inner = _folders_in(folder)
            if any((place / "config.json").is_file() for place in inner) and not (folder / "config.json").is_file():
                for place in inner:
                    found.setdefault(f"{folder.name}/{place.name}", place)
            else:
                found.setdefault(folder.name, _snapshot_in(folder))
    return found


def _folders_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    names = [name for name in os.listdir(folder) if not name.startswith(".") and not name.endswith(_ARRIVING)]
    return sorted(folder / name for name in names if (folder / name).is_dir())


def _snapshot_in(folder: Path) -> Path:
    snapshots = _folders_in(folder / "snapshots")
    return max(snapshots, key=lambda place: place.stat().st_mtime_ns) if snapshots else folder


def _identity_of_folder(folder: Path) -> tuple:
    files = sorted(str(path) for path in folder.iterdir() if path.suffix in (".json", ".txt", ".safetensors"))
    return os.path.realpath(folder), tuple(_identity_of(path) for path in files if os.path.isfile(path))


def _published(name: str, folder: str) -> PublishedFile | None:
    try:
        file = published_file(name)
    except LookupError:
        return None
    return file if file.folder == folder else None


def _identity_of(path: str) -> tuple[str, int, int]:
    status = os.stat(path)
    return os.path.realpath(path), status.st_mtime_ns, status.st_size


class SharedModel:
    """A network in ComfyUI's memory management. Whoever holds this object keeps the network alive.

    Attributes:
        name: the file's name.
        file: path, time of change and size: which weights these are, whatever their precision.
        network: the torch module; on the device only after `load`.
        dtype: in which it computes.
        patcher: ComfyUI's handle on it. ComfyUI recognises the model by this attribute.
    """

    def __init__(self, name: str, file: tuple, network: torch.nn.Module, dtype: torch.dtype):
        self.name = name
        self.file = file
        self.network = network
        self.dtype = dtype
        self.device = comfy.model_management.get_torch_device()
        # Looked up at call time: ComfyUI puts another class here when dynamic memory management is on.
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            network, load_device=self.device, offload_device=comfy.model_management.unet_offload_device()
        )

    def load(self, memory_bytes: int) -> None:
        """Moves the network to its device and asks for `memory_bytes` beside it. Only inside a node's execute."""
        comfy.model_management.load_models_gpu([self.patcher], memory_required=memory_bytes)


class SharedSam(SharedModel):
    """SAM, with the embeddings it made last."""

    def __init__(self, name: str, file: tuple, network: torch.nn.Module, dtype: torch.dtype):
        super().__init__(name, file, network, dtype)
        self.recent_embeddings = deque(maxlen=_RECENT_PICTURES)

    @property
    def encoding_bytes(self) -> int:
        """What encoding one picture needs beside the weights: the score matrices of a global attention block."""
        config = self.network.config
        tokens = (config.image_size // config.patch_size) ** 2
        # Measured with the segment-anything encoder: scores, scores with position, softmax, and a fifth for the rest.
        return int(3.2 * config.num_heads * tokens**2 * self.dtype.itemsize)

    # Decoding one picture's targets; measured, hardly depends on their number.
    decoding_bytes = 200 * 1024**2


class SharedM2M(SharedModel):
    """Mask-to-Matte, folded for inference."""

    @property
    def predicting_bytes(self) -> int:
        """What one target needs beside the weights (measured: 416 MB in float32 at 1024 pixels)."""
        return 104 * 1024**2 * self.dtype.itemsize


class SharedInContextDecoder(SharedModel):
    """The decoder of In-Context Matting; the diffusion model that it works on is ComfyUI's own."""

    def decoding_bytes(self, pictures: int) -> int:
        """What decoding needs beside the weights (measured at 768 pixels: 428 MB of tensors, 603 MB on a CPU)."""
        return int(610 * 1024**2 * pictures * (self.network.config.side / 768) ** 2)


class SharedTextDetector(SharedModel):
    """Grounding DINO. It stays in float32: in half precision transformers' own code mixes the two and fails."""

    # One picture of 800 x 1333 pixels with a long text; measured with Swin-T: 2.3 GB.
    detecting_bytes = 2400 * 1024**2


_shared: weakref.WeakValueDictionary[tuple, SharedModel] = weakref.WeakValueDictionary()


def shared_sam(name: str, precision: str) -> SharedSam:
    """The SAM of a file: the one that some graph already holds, or a new one."""

    def build(path: str, dtype: torch.dtype):
        from ..mam_model.checkpoint import load_sam

        network = load_sam(path)
        # Prompt encoder and mask decoder stay in float32: they are small, and half precision moves thresholds.
        network.image_encoder.to(dtype)
        return network

    return _share(SharedSam, name, SAM_FOLDER, precision, build)


def shared_m2m(name: str, precision: str) -> SharedM2M:
    """The Mask-to-Matte network of a file: the one that some graph already holds, or a new one."""

    def build(path: str, dtype: torch.dtype):
        from ..mam_model.checkpoint import load_m2m

        return load_m2m(path).fold().to(dtype)

    return _share(SharedM2M, name, M2M_FOLDER, precision, build)


def shared_in_context_decoder(name: str) -> SharedInContextDecoder:
    """The In-Context Matting decoder of a file: the one that some graph already holds, or a new one."""

    def build(path: str, dtype: torch.dtype):
        from ..mam_model.checkpoint import load_in_context_decoder

        return load_in_context_decoder(path)

    # Always float32: 84 MB, and half precision moves its alpha by more than the whole diffusion model does.
    return _share(SharedInContextDecoder, name, IN_CONTEXT_FOLDER, "fp32", build)


def shared_text_detector(name: str) -> SharedTextDetector:
    """The text detector of a folder: the one that some graph already holds, or a new one."""
    from ..mam_model.text import load_text_detector

    folder = text_detector_folder(name)
    identity = _identity_of_folder(folder)
    shared = _shared.get((SharedTextDetector, identity))
    if shared is None:
        shared = SharedTextDetector(name, identity, load_text_detector(folder), torch.float32)
        _shared[SharedTextDetector, identity] = shared
    return shared


def _share(
    kind: type[SharedModel],
    name: str,
    folder: str,
    precision: str,
    build: Callable[[str, torch.dtype], torch.nn.Module],
) -> SharedModel:
    path = model_file(name, folder)
    dtype = _dtype(precision)
    file = _identity_of(path)
    shared = _shared.get((kind, file, dtype))
    if shared is None:
        shared = _shared[kind, file, dtype] = kind(name, file, build(path, dtype), dtype)
        published = _published(Path(path).name, folder)
        if published is None or published.sha256 is None:
            # Nobody published a hash to compare with, so the user is shown the one of the file.
            logging.info("Matting Anything: loaded %s, sha256 %s", name, sha256_of(path))
    return shared


def _dtype(precision: str) -> torch.dtype:
    if precision != "auto":
        return _DTYPES[precision]
    device = comfy.model_management.get_torch_device()
    return torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32
