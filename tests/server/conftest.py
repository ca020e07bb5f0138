"""A real ComfyUI server, spoken to over HTTP and websocket as a browser does.

Fixtures: `server` (one for the whole session), `tiny_sam`, `tiny_m2m` (names of tiny checkpoints in its models folder),
`models_of` (the same checkpoints under the names that a workflow loads), `made_quick` (fewer steps, smaller pictures),
`workflow_inputs` (the pictures and the video that the shared workflows load).
"""

from __future__ import annotations

import io
import os
import re
import shutil
from pathlib import Path

import comfyui_server
import numpy as np
import pytest
from PIL import Image
from skimage import data

ROOT = Path(__file__).resolve().parents[2]
SMALL_SAM3 = Path(__file__).resolve().parent / "small_sam3"
VIDEO_FRAMES = 3


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
        (self.input_dir / name).parent.mkdir(exist_ok=True)
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
    other = comfyui_server.put_pack_in_place(SMALL_SAM3, base / "custom_nodes", SMALL_SAM3.name)
    packs = ("--whitelist-custom-nodes", comfyui_server.PACK_FOLDER, other.name)
    with TestedServer(Path(comfyui).resolve(), base, ROOT, cpu=cpu, arguments=packs) as running:
        yield running


@pytest.fixture(scope="session")
def workflow_inputs(server) -> None:
    """Puts into the input folder what the shared workflows load: photos, a scene with its alpha, a folder, a video."""
    import av

    server.save_picture("astronaut.png", data.astronaut())
    server.save_picture("background.png", data.coffee())
    scene, alpha = disc(128, 128)
    server.save_picture("scene.png", scene)
    server.save_picture("scene-alpha.png", alpha)
    server.save_picture("products/one.png", disc(120, 90)[0])
    server.save_picture("products/two.png", disc(100, 128)[0])
    with av.open(str(server.input_dir / "clip.mp4"), "w") as video:
        stream = video.add_stream("h264", rate=8, width=96, height=64, pix_fmt="yuv420p")
        for _ in range(VIDEO_FRAMES):
            picture = (255 * disc(64, 96)[0]).astype(np.uint8)
            video.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        video.mux(stream.encode(None))


def disc(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A red disc with a soft edge before grey, [height, width, 3], and its alpha, both float 0..1."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height / 2, columns - width / 2)
    alpha = np.clip((0.32 * min(height, width) - distance) / 4 + 0.5, 0, 1)
    return alpha[..., None] * (0.8, 0.2, 0.1) + (1 - alpha[..., None]) * (0.7, 0.7, 0.72), alpha


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
# `made_quick` has a node of SMALL_SAM3 instead of the loader of this one.
SAM3 = "sam3.1_multiplex_fp16.safetensors"
# Checkpoints that another tiny one stands in for than that of their loader.
SPECIAL = {
    "sd_xl_base_1.0.safetensors": "tiny_stable_diffusion_1_file",
    "512-inpainting-ema.safetensors": "tiny_inpainting_file",
    "instruct-pix2pix-00-22000.safetensors": "tiny_instruct_pix2pix_file",
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
            file = node["inputs"][name]
            if file == SAM3:
                continue
            fixture = SPECIAL.get(file, fixture)
            target = server.models_dir / folder / file
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


@pytest.fixture(scope="session")
def made_quick():
    """`made_quick(workflow)`: the API-format workflow, changed: few steps and small pictures, and a small SAM 3.1."""

    def change(workflow: dict) -> dict:
        samplers = [node for node in workflow.values() if node["class_type"] == "KSampler"]
        for node in samplers:
            node["inputs"]["steps"] = 2
        for node in workflow.values() if samplers else ():
            if node["class_type"] == "ImageScaleToTotalPixels":
                node["inputs"]["megapixels"] = 0.02
        for node in workflow.values():
            if node["inputs"].get("ckpt_name") == SAM3:
                node.update(class_type="SmallSAM3", inputs={})
        if any(node["class_type"] == "ResizeAndPadImage" for node in workflow.values()):
            _shrink_products(workflow)
        return workflow

    return change


def _shrink_products(workflow: dict, factor: int = 4) -> None:
    """Pictures that are brought to one size, and the box for all of them, become smaller."""
    for node in workflow.values():
        inputs = node["inputs"]
        if node["class_type"] == "ResizeAndPadImage":
            inputs["target_width"] //= factor
            inputs["target_height"] //= factor
        elif node["class_type"] == "MAM_PromptBoxes":
            inputs["boxes"] = re.sub(r"\d+", lambda number: f"{int(number[0]) / factor:g}", inputs["boxes"])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
