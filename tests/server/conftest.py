"""A real ComfyUI server, spoken to over HTTP and websocket as a browser does.

Fixtures: `server` (one for the whole session), `tiny_sam`, `tiny_m2m` (names of tiny checkpoints in its models folder),
`models_of` (the same checkpoints under the names that a workflow loads).
"""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import comfyui_server
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


class TestedServer(comfyui_server.ComfyUIServer):
    """`run(prompt)`, `get`, `post`, `view`, `free`, `interrupt` of `ComfyUIServer`, and pictures as arrays."""

    __test__ = False

    @property
    def input_dir(self) -> Path:
        return self.base / "input"

    @property
    def models_dir(self) -> Path:
        return self.base / "models"

    def save_picture(self, name: str, pixels) -> str:
        """Writes [H, W], [H, W, 3] or [H, W, 4] (uint8, or float 0..1) into input/; returns the name for LoadImage."""
        pixels = np.asarray(pixels)
        if pixels.dtype != np.uint8:
            pixels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(self.input_dir / name)
        return name

    def pictures(self, finished: comfyui_server.Finished, node_id: str) -> list[np.ndarray]:
        """uint8 [H, W, C] of each picture that a SaveImage or preview node wrote."""
        return [np.array(Image.open(io.BytesIO(content))) for content in self.images(finished, node_id)]


@pytest.fixture(scope="session")
def server(tmp_path_factory, request) -> TestedServer:
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        pytest.exit("Set COMFYUI_PATH to a ComfyUI folder, or run scripts/run_tests.py, which provides one.", 2)
    base = tmp_path_factory.mktemp("server")
    cpu = not request.config.getoption("--gpu")
    with TestedServer(Path(comfyui).resolve(), base, ROOT, cpu=cpu) as running:
        yield running


@pytest.fixture
def tiny_sam(server, place, tiny_sam_file) -> str:
    """Name of a tiny SAM in models/sams, for MAM_LoadSAM."""
    return place(tiny_sam_file, server.models_dir / "sams").name


@pytest.fixture
def tiny_m2m(server, place, tiny_m2m_file) -> str:
    """Name of a tiny Mask-to-Matte in models/mam, for MAM_LoadM2M."""
    return place(tiny_m2m_file, server.models_dir / "mam").name


# A loader -> its input that names a file, the folder of that file in models/, the fixture that gives a tiny one.
LOADERS = {
    "MAM_LoadSAM": ("sam_name", "sams", "tiny_sam_file"),
    "MAM_LoadM2M": ("m2m_name", "mam", "tiny_m2m_file"),
    "CheckpointLoaderSimple": ("ckpt_name", "checkpoints", "tiny_diffusion_file"),
    "ICM_LoadModel": ("decoder_name", "in_context_matting", "tiny_in_context_file"),
    "MAM_LoadTextDetector": ("detector_name", "grounding-dino", "tiny_text_detector_folder"),
}


@pytest.fixture(scope="module")
def models_of(server, request):
    """`models_of(workflow)`: puts tiny checkpoints where the loaders of that API-format workflow look for theirs."""
    placed = set()

    def put(workflow: dict) -> None:
        for node in workflow.values():
            if node["class_type"] not in LOADERS:
                continue
            name, folder, fixture = LOADERS[node["class_type"]]
            target = server.models_dir / folder / node["inputs"][name]
            target.parent.mkdir(exist_ok=True)
            _remove(target)
            # Links: most of the diffusion checkpoint is a hole in its file, which a copy would fill.
            source = request.getfixturevalue(fixture)
            if source.is_dir():
                shutil.copytree(source, target, copy_function=os.link)
            else:
                os.link(source, target)
            placed.add(target)

    yield put
    for target in placed:
        _remove(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
