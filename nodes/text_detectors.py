"""Text detectors: folders in models/grounding-dino -> networks, downloaded and verified where that is possible."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ..mam_model.detections import Detection
from ..mam_model.published import TEXT_DETECTORS, PublishedFolder, download, text_detector_sources
from .models import TEXT_DETECTOR_FOLDER, SharedModel, identity_of, register_model_folders, shared_models

_ARRIVING = ".part"


class SharedTextDetector(SharedModel):
    """Grounding DINO. It stays in float32: in half precision transformers' own code mixes the two and fails."""

    # One picture of 800 x 1333 pixels with a long text; measured with Swin-T: 2.3 GB.
    detecting_bytes = 2400 * 1024**2

    def detect(
        self, picture: Tensor, subjects: Sequence[str], box_threshold: float, text_threshold: float
    ) -> list[Detection]:
        """The boxes of a picture, after `load`. See `TextDetector.detect`."""
        return self.within_memory(
            lambda _: self.network.detect(picture, subjects, box_threshold, text_threshold), at_once=1
        )


def shared_text_detector(name: str) -> SharedTextDetector:
    """The text detector of a folder: the one that some graph already holds, or a new one."""
    from ..mam_model.text import load_text_detector

    folder = text_detector_folder(name)
    identity = _identity_of_folder(folder)
    shared = shared_models.get((SharedTextDetector, identity))
    if shared is None:
        shared = SharedTextDetector(name, identity, load_text_detector(folder), torch.float32)
        shared_models[SharedTextDetector, identity] = shared
    return shared


def text_detector_choices() -> list[str]:
    """What the loader of text detectors offers: the folders that are there, then the published ones that are not."""
    present = sorted(_text_detector_folders())
    return present + [model.name for model in TEXT_DETECTORS if model.name not in present]


def check_text_detector(name: str | None) -> bool | str:
    """True, or the sentence that validation shows for a folder that is neither there nor published.

    Args:
        name: None where another node will give it.
    """
    if name is None or name in text_detector_choices():
        return True
    return f'There is no folder "{name}" in models/{TEXT_DETECTOR_FOLDER}. {text_detector_sources()}'


def text_detector_fingerprint(name: str | None) -> str:
    """Changes when a file of the detector is replaced, deleted or comes back.

    Args:
        name: None where another node will give it; then every detector counts.
    """
    folders = _text_detector_folders()
    chosen = folders.values() if name is None else [folders.get(name)]
    return repr([folder and _identity_of_folder(folder) for folder in chosen])


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
            f'In models/{TEXT_DETECTOR_FOLDER} is no folder "{name}" with anything in it. {text_detector_sources()}'
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
    return os.path.realpath(folder), tuple(identity_of(path) for path in files if os.path.isfile(path))
