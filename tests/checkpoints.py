"""Small checkpoints in the published formats, with seeded random weights, for tests that need a model but no skill.

Every suite can `import checkpoints` (tests/conftest.py sees to that). The library is loaded here under a name of its
own, so that neither sys.path nor the copy of it that a running ComfyUI holds is touched.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import torch

LIBRARY = "mam_model_of_the_tests"


def library(submodule: str):
    """The module mam_model.<submodule>, from a copy of the library that belongs to the tests alone."""
    if LIBRARY not in sys.modules:
        folder = Path(__file__).resolve().parents[1] / "mam_model"
        spec = importlib.util.spec_from_file_location(
            LIBRARY, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        package = importlib.util.module_from_spec(spec)
        sys.modules[LIBRARY] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"{LIBRARY}.{submodule}")


def tiny_sam_config():
    """Two blocks (one windowed, one global) of 64 channels on 256 x 256 pixels; the decoder as published."""
    return library("sam").SamConfig(
        embed_dim=64, depth=2, num_heads=2, global_attention=(1,), image_size=256, window_size=7
    )


def tiny_sam_state_dict(seed: int = 0) -> dict[str, torch.Tensor]:
    """Published keys. Its masks are noise, but neither empty nor full, and they change with the prompt."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = library("sam").Sam(tiny_sam_config())
        state_dict = net.state_dict()
        for key in ("image_encoder.pos_embed", *(key for key in state_dict if "rel_pos" in key)):
            # Zero at birth, which would make every place in the picture alike.
            state_dict[key].normal_(std=0.1)
        return state_dict


def tiny_m2m_state_dict(seed: int = 0) -> dict[str, torch.Tensor]:
    """The 184 published entries. Its alphas are noise that uses the whole range from 0 to 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = library("m2m").MaskToMatte().train()
        with torch.no_grad():
            # Settles the vectors of the spectral normalisation and the means and variances of the batch normalisation.
            for _ in range(20):
                net(torch.randn(2, 256, 4, 4), torch.randn(2, 3, 64, 64), (torch.randn(2, 1, 16, 16) > 0).float())
            for head in (net.refine_OS8, net.refine_OS4, net.refine_OS1):
                head[3].weight *= 10
        return net.state_dict()


def save_tiny_sam(path: Path, seed: int = 0) -> Path:
    """Writes what SAM's authors publish: a plain state dict, saved by torch (.pth) or as .safetensors."""
    return _save(tiny_sam_state_dict(seed), path)


def save_tiny_m2m(path: Path, seed: int = 0, *, prefix: str = "module.") -> Path:
    """Writes what MAM's trainer saves (.pth: counters, loss and `state_dict`), or the tensors alone (.safetensors)."""
    state_dict = tiny_m2m_state_dict(seed)
    if path.suffix == ".safetensors":
        return _save(state_dict, path)
    trained = {
        "iter": 20000,
        "loss": 0.125,
        "state_dict": {prefix + key: value for key, value in state_dict.items()},
        "opt_state_dict": {},
        "lr_state_dict": {},
    }
    return _save(trained, path)


def _save(content, path: Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({key: value.detach().contiguous() for key, value in content.items()}, path)
    else:
        torch.save(content, path)
    return path
