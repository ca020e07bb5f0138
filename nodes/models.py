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

from ..mam_model.published import PUBLISHED, PublishedFile, download, published_file, sha256_of, sources

SAM_FOLDER = "sams"
M2M_FOLDER = "mam"
TEXT_DETECTOR_FOLDER = "grounding-dino"
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
    return "absent" if path is None else repr(identity_of(path))


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


def _published(name: str, folder: str) -> PublishedFile | None:
    try:
        file = published_file(name)
    except LookupError:
        return None
    return file if file.folder == folder else None


def identity_of(path: str) -> tuple[str, int, int]:
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
        """What encoding one picture needs beside the weights."""
        return self.network.image_encoder.working_bytes

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


shared_models: weakref.WeakValueDictionary[tuple, SharedModel] = weakref.WeakValueDictionary()


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


def _share(
    kind: type[SharedModel],
    name: str,
    folder: str,
    precision: str,
    build: Callable[[str, torch.dtype], torch.nn.Module],
) -> SharedModel:
    path = model_file(name, folder)
    dtype = _dtype(precision)
    file = identity_of(path)
    shared = shared_models.get((kind, file, dtype))
    if shared is None:
        shared = shared_models[kind, file, dtype] = kind(name, file, build(path, dtype), dtype)
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
