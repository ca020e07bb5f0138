"""Model files -> networks, one copy per process, moved and evicted by ComfyUI's memory management."""
# Networks are imported where they are used, here and in every node, so that ComfyUI does not start later for them.

from __future__ import annotations

import copy
import logging
import os
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ..mam_model.frame import Frame
from ..mam_model.merge import MergeOptions
from ..mam_model.out_of_memory import halving, says_memory_is_full
from ..mam_model.prompt import Prompt
from ..mam_model.published import PUBLISHED, PublishedFile, download, published_file, sha256_of, sources

if TYPE_CHECKING:
    from ..mam_model.m2m import AlphaPyramid, PictureFeatures
    from ..mam_model.sam import Embedding, Guidance

T = TypeVar("T")

SAM_FOLDER = "sams"
M2M_FOLDER = "mam"
TEXT_DETECTOR_FOLDER = "grounding-dino"
IN_CONTEXT_FOLDER = "in_context_matting"
_SUFFIXES = {".safetensors", ".pth", ".pt", ".ckpt"}

PRECISIONS = ["auto", "fp32", "fp16", "bf16"]
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Embeddings of this many pictures stay with the SAM that made them, 7 MB each: a changed prompt need not encode again.
_RECENT_PICTURES = 8
# What a GPU works on at once, if its memory allows: more pictures or targets make it hardly faster.
_PICTURES_AT_ONCE = 4
_TARGETS_AT_ONCE = 8
# Into how many shares the side of the refiner's tiles is divided, to give some up when the memory is full.
_TILE_SHARES = 4
# Of the memory that is free: it lies in pieces, and what a convolution needs within itself can only be guessed.
_USABLE = 0.8


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


def check_choice(name: str | None, folder: str) -> bool | str:
    """True, or the sentence that validation shows for a file that is neither there nor published.

    Args:
        name: None where another node will give it.
    """
    register_model_folders()
    if name is None or _path_of(name, folder) or _published(name, folder):
        return True
    return _no_such_file(name, folder)


def file_fingerprint(name: str | None, folder: str) -> str:
    """Changes when the file behind a name is replaced, deleted or comes back.

    Args:
        name: None where another node will give it; then every file of the folder counts.
    """
    register_model_folders()
    names = folder_paths.get_filename_list(folder) if name is None else [name]
    paths = [folder_paths.get_full_path(folder, each) for each in names]
    return repr([path and identity_of(path) for path in paths])


def model_file(name: str, folder: str) -> str:
    """The path of a model file; a published one that is absent is downloaded and verified first.

    Raises:
        FileNotFoundError: the file is not there and cannot be downloaded; the message says where to get it.
        DownloadError: the download did not end in a verified file.
    """
    register_model_folders()
    path = _path_of(name, folder)
    if path is not None:
        return path
    published = _published(name, folder)
    if published is None:
        raise FileNotFoundError(_no_such_file(name, folder))
    logging.info("Matting Anything: downloading %s (%s) into models/%s", name, published.size, folder)
    bar = comfy.utils.ProgressBar(published.size_bytes)

    def show(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return str(download(published, folder_paths.get_folder_paths(folder)[0], show))


def _path_of(name: object, folder: str) -> str | None:
    # A workflow that was written by hand may name a file by anything that JSON knows.
    return folder_paths.get_full_path(folder, name) if isinstance(name, str) else None


def _no_such_file(name: object, folder: str) -> str:
    return f'There is no "{name}" in models/{folder}. {sources(folder)}'


def _published(name: object, folder: str) -> PublishedFile | None:
    try:
        file = published_file(name)
    except LookupError:
        return None
    return file if file.folder == folder else None


def identity_of(path: str) -> tuple[str, int, int]:
    status = os.stat(path)
    return os.path.realpath(path), status.st_mtime_ns, status.st_size


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device's memory did not suffice. By itself ComfyUI knows PyTorch's error and that of CUDA's driver."""
    return comfy.model_management.is_oom(error) or says_memory_is_full(error)


def with_fewer(work: Callable[[int], T], at_once: int, name: str) -> T:
    """What `work(at_once)` gives, with fewer things at once if the memory is full: see `halving`. The log says so.

    Args:
        name: of what works, for the log.
    """

    def tell(fewer: int) -> None:
        logging.warning("Matting Anything: memory is full, %s goes on with %d at a time.", name, fewer)
        comfy.model_management.soft_empty_cache()

    return halving(work, at_once, is_out_of_memory, tell)


def on_device_or_processor(work: Callable[[torch.device], T], memory_bytes: int, name: str) -> T:
    """What `work` gives on ComfyUI's device, or on the processor if the memory is full. The log says so.

    Only inside a node's execute.

    Args:
        work: without a network: what it needs is brought to the device that it is given.
        memory_bytes: what it takes there at most. If less is free, ComfyUI is asked to let models go.
        name: of what works, for the log.
    """
    management = comfy.model_management
    device = management.get_torch_device()
    if not management.is_device_cpu(device):
        needed = memory_bytes + management.extra_reserved_memory()
        # ComfyUI would look for itself, but empty PyTorch's cache too, and that for each frame of a clip.
        if management.get_free_memory(device) < needed:
            management.free_memory(needed, device)
    try:
        return work(device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Only here is the error gone, whose traceback kept alive everything that the attempt had made.
    logging.warning("Matting Anything: memory is full, %s goes on on the processor, which is slower.", name)
    management.soft_empty_cache()
    return work(torch.device("cpu"))


class SharedModel:
    """A network in ComfyUI's memory management. Whoever holds this object keeps the network alive.

    Attributes:
        name: the file's name.
        file: path, time of change and size: which weights these are, whatever their precision.
        network: the torch module; on the device only after `load`.
        dtype: in which it computes on its device.
        on_processor: whether it was too large for its device since `load`, and works on the processor, in float32.
        patcher: ComfyUI's handle on it. ComfyUI recognises the model by this attribute.
    """

    def __init__(self, name: str, file: tuple, network: torch.nn.Module, dtype: torch.dtype):
        self.name = name
        self.file = file
        self.network = network
        self.dtype = dtype
        self.part_in_dtype.to(dtype)
        self.on_processor = False
        self.device = comfy.model_management.get_torch_device()
        # Looked up at call time: ComfyUI puts another class here when dynamic memory management is on.
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            network, load_device=self.device, offload_device=comfy.model_management.unet_offload_device()
        )

    @property
    def part_in_dtype(self) -> torch.nn.Module:
        """The part of the network to which `dtype` applies; the rest is always in float32."""
        return self.network

    def load(self, memory_bytes: int) -> None:
        """Moves the network to its device and asks for `memory_bytes` beside it. See `load_together`."""
        load_together([self], memory_bytes)

    def fitting(self, each_bytes: int, most: int) -> int:
        """How many things of so many bytes fit into the device's free memory: 1 to `most`, and 1 on the processor."""
        if self.on_processor or comfy.model_management.is_device_cpu(self.device):
            return 1
        free = comfy.model_management.get_free_memory(self.device) - comfy.model_management.extra_reserved_memory()
        return max(1, min(most, int(_USABLE * free / each_bytes)))

    def within_memory(self, work: Callable[[int], T], at_once: int) -> T:
        """What `work(at_once)` gives: with fewer things at once, and at last on the processor, if the memory is full.

        Only inside a node's execute. A network that had to leave its device stays away until it is loaded again.
        """

        try:
            return with_fewer(work, at_once, self.name)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Only here is the error gone, whose traceback kept alive everything that the attempt had made.
        self.leave_device()
        return work(1)

    def leave_device(self) -> None:
        """Goes to the processor, for want of memory, until the next `load`. Only inside a node's execute."""
        logging.warning("Matting Anything: memory is full, %s goes on on the processor, which is slower.", self.name)
        comfy.model_management.unload_model_and_clones(self.patcher)
        # With --gpu-only what is unloaded stays on the device.
        self.network.to("cpu")
        # In half precision many processors are slow. `load` takes it back, and the weights are exactly what they were:
        # every number of half precision is one of float32 too.
        self.part_in_dtype.float()
        self.on_processor = True
        comfy.model_management.soft_empty_cache()


def load_together(models: Sequence[SharedModel], memory_bytes: int) -> None:
    """Moves networks to their device, where none takes another's place, and asks for `memory_bytes` beside them.

    Only inside a node's execute. If the memory does not even hold their weights, they work on the processor.
    """
    for model in models:
        model.on_processor = False
        # Whatever its own `on_processor` says: another view of the network may have taken it to the processor.
        model.part_in_dtype.to(model.dtype)
    patchers = [model.patcher for model in models]
    try:
        # Whole or not at all. Else ComfyUI may leave layers behind, which only its own kind fetch when they run.
        comfy.model_management.load_models_gpu(patchers, memory_required=memory_bytes, force_full_load=True)
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    for model in models:
        model.leave_device()


class SharedSam(SharedModel):
    """SAM, with the embeddings it made last.

    Attributes:
        compiled: whether its encoder goes through torch.compile.
    """

    def __init__(self, name: str, file: tuple, network: torch.nn.Module, dtype: torch.dtype):
        super().__init__(name, file, network, dtype)
        self.recent_embeddings = deque(maxlen=_RECENT_PICTURES)
        self.compiled = False

    def compiling(self) -> SharedSam:
        """This SAM with `compiled` set: a view of the same network, patcher and embeddings."""
        view = copy.copy(self)
        view.compiled = True
        # Loaders find the one they loaded as long as something holds it.
        view._viewed = self
        return view

    @property
    def part_in_dtype(self) -> torch.nn.Module:
        """Prompt encoder and mask decoder stay in float32: they are small, and half precision moves thresholds."""
        return self.network.image_encoder

    @property
    def pictures_at_once(self) -> int:
        """How many pictures it is worth to encode together."""
        return 1 if comfy.model_management.is_device_cpu(self.device) else _PICTURES_AT_ONCE

    @property
    def encoding_bytes(self) -> int:
        """What encoding one picture needs beside the weights on the device, whatever precision they have elsewhere."""
        return self.network.image_encoder.working_bytes(self.dtype.itemsize)

    @property
    def decoding_bytes(self) -> int:
        """What decoding one picture's targets needs beside the weights."""
        return self.network.decoding_bytes

    def encode(self, contents: Sequence[Tensor], frame: Frame) -> list[Embedding]:
        """The embeddings of pictures of one size, after `load`. See `Sam.encode_content`; it can be cancelled."""
        check = comfy.model_management.throw_exception_if_processing_interrupted

        def encode(at_once: int) -> list[Embedding]:
            # Other views share the network. One that had to go to the processor would be compiled anew, in vain.
            self.network.image_encoder.compiled = self.compiled and not self.on_processor
            embeddings = []
            for start in range(0, len(contents), at_once):
                step = contents[start : start + at_once]
                if len(step) == 1:
                    embeddings.append(self.network.encode_content(step[0], frame, check))
                else:
                    embeddings += self.network.encode_together(step, frame, check)
            return embeddings

        return self.within_memory(encode, self.fitting(self.encoding_bytes, len(contents)))

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> Guidance:
        """SAM's answer for the targets of a picture, after `load`. See `Sam.decode`."""
        at_once = self.fitting(self.decoding_bytes // _TARGETS_AT_ONCE, _TARGETS_AT_ONCE)
        return self.within_memory(lambda n: self.network.decode(embedding, prompts, n), at_once)


class SharedM2M(SharedModel):
    """Mask-to-Matte, folded for inference."""

    @property
    def predicting_bytes(self) -> int:
        """What one target needs beside the weights (measured on a processor: 416 MB in float32 at 1024 pixels)."""
        return 104 * 1024**2 * self.dtype.itemsize

    def matting_bytes(self, height: int, width: int) -> int:
        """What one target of a picture of this size needs beside the weights."""
        from ..mam_model.batched import bytes_per_target

        return bytes_per_target(Frame(height, width), self.dtype.itemsize)

    def look_at(self, embedding: Embedding) -> PictureFeatures:
        """What the network makes of a picture before it knows the target, after `load`."""
        return self.within_memory(lambda _: self.network.look_at(embedding), 1)

    def predict(self, embedding: Embedding, guidance: Guidance) -> AlphaPyramid:
        """The whole pyramid of every target, on the CPU, after `load`. See `predict_pyramid`; it can be cancelled."""
        from ..mam_model.matting import predict_pyramid

        check = comfy.model_management.throw_exception_if_processing_interrupted
        at_once = self.fitting(self.predicting_bytes, _TARGETS_AT_ONCE)
        return self.within_memory(
            lambda n: predict_pyramid(self.network, embedding, guidance, n, "cpu", check), at_once
        )

    def matte(self, picture: Embedding | PictureFeatures, guidance: Guidance, options: MergeOptions) -> Tensor:
        """The mattes of every target, float32 [T, H, W] on the CPU, after `load`; can be cancelled between them.

        See `matte_targets`.
        """
        from ..mam_model.matting import matte_targets

        check = comfy.model_management.throw_exception_if_processing_interrupted
        frame = guidance.frame
        at_once = self.fitting(self.matting_bytes(frame.height, frame.width), _TARGETS_AT_ONCE)
        return self.within_memory(lambda n: matte_targets(self.network, picture, guidance, options, n, check), at_once)


class SharedInContextDecoder(SharedModel):
    """The decoder of In-Context Matting; the diffusion model that it works on is ComfyUI's own."""

    def decoding_bytes(self, pictures: int) -> int:
        """What decoding needs beside the weights (measured at 768 pixels: 428 MB of tensors, 603 MB on a CPU)."""
        return int(610 * 1024**2 * pictures * (self.network.config.side / 768) ** 2)


class SharedRefiner(SharedModel):
    """The mask refiner, whose weights come with the pack."""

    # What refining needs beside the weights, whatever the picture's size: 540 MB measured on a processor, whole tiles.
    refining_bytes = 600 * 1024**2

    def refine(self, picture: Tensor, mask: Tensor, on_tile: Callable[[int, int], None] | None = None) -> Tensor:
        """The alpha of a rough mask, float32 [H, W] on the CPU, after `load`. See `refine_mask`."""
        from ..mam_model.refiner import TILE_PX, refine_mask

        def refine(shares: int) -> Tensor:
            tile_px = TILE_PX * shares // _TILE_SHARES
            return refine_mask(self.network, picture, mask, tile_px=tile_px, on_tile=on_tile)

        return self.within_memory(refine, _TILE_SHARES)


shared_models: weakref.WeakValueDictionary[tuple, SharedModel] = weakref.WeakValueDictionary()


def shared_sam(name: str, precision: str) -> SharedSam:
    """The SAM of a file: the one that some graph already holds, or a new one."""

    def build(path: str):
        from ..mam_model.checkpoint import load_sam

        return load_sam(path)

    return _share(SharedSam, name, SAM_FOLDER, precision, build)


def shared_m2m(name: str, precision: str) -> SharedM2M:
    """The Mask-to-Matte network of a file: the one that some graph already holds, or a new one."""

    def build(path: str):
        from ..mam_model.checkpoint import load_m2m

        return load_m2m(path).fold()

    return _share(SharedM2M, name, M2M_FOLDER, precision, build)


def shared_in_context_decoder(name: str) -> SharedInContextDecoder:
    """The In-Context Matting decoder of a file: the one that some graph already holds, or a new one."""

    def build(path: str):
        from ..mam_model.checkpoint import load_in_context_decoder

        return load_in_context_decoder(path)

    # Always float32: 84 MB, and half precision moves its alpha by more than the whole diffusion model does.
    return _share(SharedInContextDecoder, name, IN_CONTEXT_FOLDER, "fp32", build)


def shared_refiner() -> SharedRefiner:
    """The refiner that comes with the pack: the one that some graph already holds, or a new one.

    Raises:
        CheckpointError: when its file is missing or damaged.
    """
    from ..mam_model.refiner import SHIPPED_WEIGHTS, load_refiner

    # Always float32: it is quick as it is, and half precision moves pixels over the thresholds of the merge.
    shared = shared_models.get((SharedRefiner, SHIPPED_WEIGHTS, torch.float32))
    if shared is None:
        network = load_refiner()
        file = identity_of(str(SHIPPED_WEIGHTS))
        shared = SharedRefiner(SHIPPED_WEIGHTS.name, file, network, torch.float32)
        shared_models[SharedRefiner, SHIPPED_WEIGHTS, torch.float32] = shared
    return shared


def loaded_refine() -> Callable[[Tensor, Tensor], Tensor]:
    """`SharedRefiner.refine` of the refiner on its device; can be cancelled. Only inside a node's execute."""
    refiner = shared_refiner()
    refiner.load(refiner.refining_bytes)

    def on_tile(*_) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    return partial(refiner.refine, on_tile=on_tile)


def _share(
    kind: type[SharedModel],
    name: str,
    folder: str,
    precision: str,
    build: Callable[[str], torch.nn.Module],
) -> SharedModel:
    path = model_file(name, folder)
    dtype = _dtype(precision)
    file = identity_of(path)
    shared = shared_models.get((kind, file, dtype))
    if shared is None:
        shared = shared_models[kind, file, dtype] = kind(name, file, build(path), dtype)
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
