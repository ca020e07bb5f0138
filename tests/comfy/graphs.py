"""Workflows and pictures for the tests of this folder.

Node ids are words, so that a test can say `run.output("mattes")`; links are (id, slot).
"""

from __future__ import annotations

import gc

import torch
from torch import Tensor


def node(class_type: str, **inputs) -> dict:
    """One node of an API-format workflow."""
    return {"class_type": class_type, "inputs": inputs}


def loaders(sam: str, m2m: str) -> dict:
    """Nodes "sam" and "m2m"."""
    return {"sam": node("MAM_LoadSAM", sam_name=sam), "m2m": node("MAM_LoadM2M", m2m_name=m2m)}


def whole(**settings) -> dict:
    """Node "mattes": Matting Anything on the nodes "image" and "prompt"; "shown" makes ComfyUI run it."""
    links = {name: (name, 0) for name in ("sam", "m2m", "image", "prompt")}
    return {
        "mattes": node("MAM_MattingAnything", **{**links, **settings}),
        "shown": node("MaskPreview", mask=("mattes", 0)),
    }


def steps(candidate: str = "best", **merge_settings) -> dict:
    """Nodes "embedding", "guidance", "pyramid" and "merged" on the nodes "image" and "prompt"; and "shown"."""
    return {
        "embedding": node("MAM_EncodeImage", sam=("sam", 0), image=("image", 0)),
        "guidance": node(
            "MAM_Segment", sam=("sam", 0), embedding=("embedding", 0), prompt=("prompt", 0), candidate=candidate
        ),
        "pyramid": node("MAM_MaskToMatte", m2m=("m2m", 0), embedding=("embedding", 0), guidance=("guidance", 0)),
        "merged": node("MAM_RefineMerge", alphas=("pyramid", 0), **merge_settings),
        "shown": node("MaskPreview", mask=("merged", 0)),
    }


def without_models(method: str = "none", **inputs) -> dict:
    """Node "mattes": Matte without Models on the node "image"; "shown" makes ComfyUI run it."""
    return {
        "mattes": node("MAM_MatteWithoutModels", image=("image", 0), method=method, **inputs),
        "shown": node("MaskPreview", mask=("mattes", 0)),
    }


def named_by_another_node(name: str) -> dict:
    """Node "name", which gives a name to a loader: a switch, because ComfyUI takes no plain text for a list."""
    return {
        "text": node("PrimitiveString", value=name),
        "name": node("ComfySwitchNode", switch=True, on_true=("text", 0), on_false=("text", 0)),
    }


def boxes(text: str, **inputs) -> dict:
    return node("MAM_PromptBoxes", boxes=text, **inputs)


def points(positive: str, negative: str = "", **inputs) -> dict:
    return node("MAM_PromptPoints", positive=positive, negative=negative, **inputs)


def pictures(count: int = 1, height: int = 48, width: int = 64, *, seed: int = 0) -> Tensor:
    """Float [count, height, width, 3] in 0..1: smooth coloured blots, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    blots = torch.rand(count, 3, 5, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(blots, (height, width), mode="bilinear", align_corners=False)
    return smooth.movedim(1, -1).contiguous()


def disc(height: int, width: int, x_px: float, y_px: float, radius_px: float) -> Tensor:
    """The exact matte of a disc, float [height, width]: coverage of each pixel, anti-aliased over one pixel."""
    rows = torch.arange(height)[:, None] + 0.5
    columns = torch.arange(width)[None] + 0.5
    distance = ((columns - x_px) ** 2 + (rows - y_px) ** 2).sqrt()
    return (radius_px + 0.5 - distance).clamp(0, 1)


def disc_picture(alpha: Tensor) -> Tensor:
    """Float [1, H, W, 3]: an orange subject with this matte on blue, both gently shaded as lit things are."""
    height, width = alpha.shape
    shade = 0.9 + 0.1 * torch.linspace(0, 1, width).expand(height, width)[..., None]
    subject = torch.tensor((0.95, 0.55, 0.10)) * shade
    behind = torch.tensor((0.10, 0.25, 0.60)) * shade
    return (behind + alpha[..., None] * (subject - behind))[None]


def count_calls(monkeypatch, owner, name: str, calls: list | None = None) -> list:
    """Lets `owner.name` work as before; one entry is added per call to the returned list, `calls` if that is given."""
    calls = [] if calls is None else calls
    original = getattr(owner, name)

    def counted(*args, **kwargs):
        calls.append(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


def models_in_memory(comfy) -> list:
    """The models that some graph holds at this moment."""
    gc.collect()
    return list(comfy.module("nodes.models").shared_models.values())


def embeddings_in_memory(comfy) -> list:
    """The embeddings that anything still holds."""
    gc.collect()
    return list(comfy.module("nodes.embeddings")._known.values())
