"""What every suite shares: the rule that each runs in a process of its own, and the tiny checkpoints."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent


def _make_importable(name: str, file: Path) -> None:
    """Let every suite write `import name` for one file, without its folder on sys.path.

    A folder holding directories called `comfy` and `server` on sys.path would hide ComfyUI's modules of those names.
    """
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


_make_importable("checkpoints", TESTS / "checkpoints.py")
_make_importable("diffusion_checkpoints", TESTS / "diffusion_checkpoints.py")
_make_importable("grounding_dino", TESTS / "grounding_dino.py")
_make_importable("live_memory", TESTS / "references" / "live_memory.py")
_make_importable("comfyui_server", TESTS.parent / "scripts" / "comfyui_server.py")


def pytest_addoption(parser):
    parser.addoption("--fast", action="store_true", help="leave out the tests marked slow")
    parser.addoption("--gpu", action="store_true", help="let ComfyUI use the GPU (by default it runs on the CPU)")


def pytest_configure(config):
    """Lets Ctrl-C be heard, which a shell has everything ignore that it starts in the background: tests press it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Seeds PyTorch before each test and its fixtures: one that draws weights of its own draws the same in any run."""
    import torch

    torch.manual_seed(0)


def pytest_collection_modifyitems(config, items):
    suites = {item.path.relative_to(TESTS).parts[0] for item in items}
    if len(suites) > 1:
        raise pytest.UsageError(
            f"The suites {', '.join(sorted(suites))} cannot share one process: ComfyUI and this repository both have "
            "modules called nodes and tests. Run scripts/run_tests.py, or pytest with one suite, e.g. tests/comfy."
        )
    if config.getoption("--fast"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture(scope="session")
def tiny_sam_file(tmp_path_factory) -> Path:
    """A SAM checkpoint of a few MB in the published format, with seeded random weights."""
    import checkpoints

    return checkpoints.save_tiny_sam(tmp_path_factory.mktemp("tiny") / "tiny_sam.pth")


@pytest.fixture(scope="session")
def tiny_m2m_file(tmp_path_factory) -> Path:
    """A Mask-to-Matte checkpoint in the trainer's format, with seeded random weights."""
    import checkpoints

    return checkpoints.save_tiny_m2m(tmp_path_factory.mktemp("tiny") / "tiny_m2m.pth")


@pytest.fixture(scope="session")
def tiny_diffusion_file(tmp_path_factory) -> Path:
    """A small Stable Diffusion 2.1 in one file, with seeded random weights. Link to it: copying fills its holes."""
    import diffusion_checkpoints

    return diffusion_checkpoints.save_diffusion_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny_sd21.safetensors")


@pytest.fixture(scope="session")
def tiny_stable_diffusion_1_file(tmp_path_factory) -> Path:
    """A small Stable Diffusion 1.5, likewise."""
    import diffusion_checkpoints

    return diffusion_checkpoints.save_stable_diffusion_1_checkpoint(
        tmp_path_factory.mktemp("tiny") / "sd15.safetensors"
    )


@pytest.fixture(scope="session")
def tiny_inpainting_file(tmp_path_factory) -> Path:
    """A small inpainting model of its kind; it also sees a mask and the masked picture."""
    import diffusion_checkpoints

    path = tmp_path_factory.mktemp("tiny") / "inpainting.safetensors"
    return diffusion_checkpoints.save_stable_diffusion_1_checkpoint(path, in_channels=9)


@pytest.fixture(scope="session")
def tiny_instruct_pix2pix_file(tmp_path_factory) -> Path:
    """A small InstructPix2Pix; it also sees the latents of a picture."""
    import diffusion_checkpoints

    path = tmp_path_factory.mktemp("tiny") / "instruct_pix2pix.safetensors"
    return diffusion_checkpoints.save_stable_diffusion_1_checkpoint(path, in_channels=8)


@pytest.fixture(scope="session")
def tiny_in_context_file(tmp_path_factory) -> Path:
    """A decoder of In-Context Matting for `tiny_diffusion_file`, in the authors' format, with seeded random weights."""
    import diffusion_checkpoints

    return diffusion_checkpoints.save_in_context_decoder(tmp_path_factory.mktemp("tiny") / "tiny_icm.ckpt")


@pytest.fixture(scope="session")
def tiny_text_detector_folder(tmp_path_factory) -> Path:
    """A Grounding DINO in the hub's file layout, with seeded random weights."""
    import grounding_dino

    return grounding_dino.save_tiny_grounding_dino(tmp_path_factory.mktemp("detectors") / "tiny")


@pytest.fixture
def place(tmp_path_factory):
    """`place(file, folder, name=None)`: copy a file into a folder made on demand; removed again after the test."""
    placed = []

    def copy(file: Path, folder: Path, name: str | None = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(shutil.copy(file, folder / (name or file.name)))
        placed.append(target)
        return target

    yield copy
    for target in placed:
        target.unlink(missing_ok=True)
