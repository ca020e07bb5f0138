"""Cancelling in the middle of a clip: the node stops before the next frame, leaves nothing behind, and runs again."""

from __future__ import annotations

import gc
import importlib
import json

import pytest
import torch
from live_memory import LiveMemory

from .graphs import boxes, disc, loaders, node, pictures, steps, whole

FRAMES = 5


def matte_nodes(class_type: str, **settings) -> dict:
    return {"work": node(class_type, image=("image", 0), alpha=("mask", 0), **settings)}


def instances_of(class_type: str, **settings) -> dict:
    two = json.dumps([[[2, 2, 20, 30], [20, 2, 46, 30]]] * FRAMES)
    return {
        "two": boxes(two),
        "found": node("MAM_MatteWithoutModels", image=("image", 0), prompt=("two", 0), method="none"),
        "work": node(class_type, instance_alphas=("found", 1), instances=("found", 2), **settings),
    }


def drawing(count: int) -> str:
    prompts = {str(frame): {"box": {"x": 6, "y": 5, "width": 24, "height": 20}} for frame in range(count)}
    return json.dumps({"width": 48, "height": 32, "targets": [{"prompts": prompts}]})


SEMANTIC = {
    "prompt": boxes(json.dumps([[[6, 5, 30, 25]]] * FRAMES)),
    **{name: step for name, step in steps().items() if name in ("embedding", "guidance")},
    "work": node("MAM_SemanticMatte", m2m=("m2m", 0), embedding=("embedding", 0), guidance=("guidance", 0)),
}
REFINE = {"work": node("MAM_RefineWithTrimap", image=("image", 0), trimap=("soft", 0))}

# Where no other test cancels between frames: the graph, an input with another value, and what works on each frame.
CASES = {
    "edge": (
        {"work": node("MAM_EdgeAdjust", alpha=("soft", 0))},
        {"feather_px": 1.0},
        ("nodes.edges", None, "adjust_edge"),
    ),
    "trimap": (
        {"work": node("MAM_Trimap", mask=("mask", 0))},
        {"inner": 4.0},
        ("nodes.edges", None, "trimap_from_mask"),
    ),
    "solved trimap": (REFINE, {"method": "knn"}, ("mam_model.trimap_matting", None, "solve_trimap")),
    "colour": (
        matte_nodes("MAM_ForegroundColor"),
        {"where_clear": "black"},
        ("mam_model.foreground", None, "estimate_foreground"),
    ),
    "contact sheet": (
        matte_nodes("MAM_PreviewMatte", layout="contact sheet"),
        {"view": "black"},
        ("nodes.compositing", None, "_seen"),
    ),
    "measured": (
        {"work": node("MAM_MatteMetrics", alpha=("soft", 0), truth=("mask", 0))},
        {"trimap": ("soft", 0)},
        ("mam_model.metrics", None, "score_matte"),
    ),
    "measured instances": (
        {"work": node("MAM_MatteMetrics", alpha=("soft", 0), truth=("mask", 0), compare="instances of one picture")},
        {"truth": ("soft", 0)},
        ("mam_model.metrics", None, "_similarities"),
    ),
    "refined": (
        {"work": node("MAM_RefineMask", image=("image", 0), mask=("mask", 0))},
        {"reach": 3},
        ("nodes.models", "SharedRefiner", "refine"),
    ),
    "semantic": (SEMANTIC, {"width_os1": 3}, ("nodes.models", "SharedM2M", "matte")),
    "drawn": (
        {"work": node("MAM_PromptEditor", image=("image", 0), prompts=drawing(FRAMES))},
        {"guidance_mode": "alpha"},
        ("nodes.editor", None, "_classical"),
    ),
    "masks as prompts": (
        {"work": node("MAM_PromptMask", mask=("mask", 0), foreground_strokes=("mask", 0))},
        {"label": "cat"},
        ("nodes.prompts", None, "_drawn"),
    ),
    "largest": (
        instances_of("MAM_SelectInstances", **{"by": "position", "by.position": "largest", "by.count": 1}),
        {"invert": True},
        ("torch", "Tensor", "sum"),
    ),
    "of some area": (
        instances_of("MAM_SelectInstances", **{"by": "area", "by.smallest_percent": 1.0, "by.largest_percent": 90.0}),
        {"invert": True},
        ("torch", "Tensor", "mean"),
    ),
    "merged": (
        instances_of("MAM_MergeInstances", merge="same label"),
        {"merge": "all of a frame"},
        ("mam_model.instances", None, "bounding_box"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_cancelled_clip_stops_before_the_next_frame_and_leaves_nothing_behind(
    comfy, tensors, tiny_sam, tiny_m2m, monkeypatch, case
):
    nodes, other, (module, owner, function) = CASES[case]
    mask = disc(32, 48, 24, 16, 10).repeat(FRAMES, 1, 1)
    graph = {
        "image": node(tensors(pictures(FRAMES, 32, 48))),
        "mask": node(tensors((mask > 0.5).float())),
        "soft": node(tensors((mask * 1.4 - 0.2).clamp(0, 1))),
        **(loaders(tiny_sam, tiny_m2m) if "embedding" in nodes else {}),
        **nodes,
        "seen": node("PreviewAny", source=("work", 0)),
    }
    # What comes before is done, and what the node needs besides is loaded.
    before = comfy.run(graph)
    assert before.ok, before.error
    graph["work"] = {**graph["work"], "inputs": {**graph["work"]["inputs"], **other}}
    owners = importlib.import_module(module) if module == "torch" else comfy.module(module)
    owners = getattr(owners, owner) if owner else owners
    work, begun = getattr(owners, function), []

    def cancelled_in_the_second_frame(*args, **kwargs):
        begun.append(1)
        if len(begun) == 2:
            comfy._nodes.interrupt_processing()
        return work(*args, **kwargs)

    shown = files_of(comfy)
    with monkeypatch.context() as patch, LiveMemory() as memory:
        patch.setattr(owners, function, cancelled_in_the_second_frame)
        run = comfy.run(graph)
    assert run.interrupted and run.failed_node == "work" and len(begun) == 2
    gc.collect()
    assert memory.alive_bytes == 0 and files_of(comfy) == shown

    again = comfy.run(graph)
    assert again.ok and "work" in again.executed
    made = result_of(again)
    comfy.reset()
    assert same(made, result_of(comfy.run(graph)))


def test_the_pictures_that_a_node_shows_are_cancelled_between_them(comfy, tensors, monkeypatch):
    graph = {
        "mask": node(tensors(disc(32, 48, 24, 16, 10).repeat(FRAMES, 1, 1))),
        "work": node("MAM_EdgeAdjust", alpha=("mask", 0)),
        "seen": node("PreviewAny", source=("work", 0)),
    }
    view, begun = comfy.module("mam_model.view"), []
    reduced = view.reduced

    def cancelled_in_the_second_picture(*args):
        begun.append(1)
        if len(begun) == 2:
            comfy._nodes.interrupt_processing()
        return reduced(*args)

    monkeypatch.setattr(view, "reduced", cancelled_in_the_second_picture)
    run = comfy.run(graph)
    assert run.interrupted and run.failed_node == "work" and len(begun) == 2


THREE_BOXES = [(2, 2, 14, 30), (16, 2, 30, 30), (32, 2, 46, 30)]
CLASSICAL = {
    "engine": {
        "prompt": boxes(json.dumps(THREE_BOXES)),
        "work": node("MAM_MatteWithoutModels", image=("image", 0), prompt=("prompt", 0), method="none"),
    },
    "editor": {
        "work": node(
            "MAM_PromptEditor",
            image=("image", 0),
            prompts=json.dumps(
                {
                    "targets": [
                        {"prompts": {"all": {"box": {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0}}}}
                        for x0, y0, x1, y1 in THREE_BOXES
                    ]
                }
            ),
        )
    },
}


@pytest.mark.parametrize("case", CLASSICAL)
def test_without_models_a_picture_of_many_targets_is_cancelled_between_them(comfy, tensors, monkeypatch, case):
    graph = {
        "image": node(tensors(pictures(1, 32, 48))),
        **CLASSICAL[case],
        "seen": node("PreviewAny", source=("work", 0)),
    }
    classical, begun = comfy.module("mam_model.classical"), []
    work = classical.matte_without_models

    def cancelled_in_the_second(*args, **kwargs):
        begun.append(1)
        if len(begun) == 2:
            comfy._nodes.interrupt_processing()
        return work(*args, **{**kwargs, "method": "none"})

    monkeypatch.setattr(classical, "matte_without_models", cancelled_in_the_second)
    run = comfy.run(graph)
    assert run.interrupted and run.failed_node == "work" and len(begun) == 2


NETWORK_PER_TARGET = {
    "whole": ("mattes", ("mam_model.partial", "PartialPyramid", "read")),
    "step": ("pyramid", ("mam_model.m2m", "FoldedMaskToMatte", "forward")),
}


@pytest.mark.parametrize("case", NETWORK_PER_TARGET)
def test_mask_to_matte_is_cancelled_between_the_targets_of_a_picture(
    comfy, tensors, tiny_sam, tiny_m2m, monkeypatch, case
):
    work, (module, owner, function) = NETWORK_PER_TARGET[case]
    graph = {
        "image": node(tensors(pictures(1, 32, 48))),
        "prompt": boxes(json.dumps(THREE_BOXES)),
        **loaders(tiny_sam, tiny_m2m),
        **(whole() if case == "whole" else steps()),
        "seen": node("PreviewAny", source=(work, 0)),
    }
    owner = getattr(comfy.module(module), owner)
    original, targets = getattr(owner, function), set()

    def cancelled(self, *args, **kwargs):
        targets.add(id(self) if case == "whole" else len(targets))
        comfy._nodes.interrupt_processing()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, function, cancelled)
    run = comfy.run(graph)
    assert run.interrupted and run.failed_node == work and len(targets) == 1


def test_without_models_every_target_is_a_step_of_progress(comfy, tensors):
    written = json.dumps([[[2, 2, 20, 30], [20, 2, 46, 30]], [], [[2, 2, 20, 30]]])
    graph = {
        "image": node(tensors(pictures(3, 32, 48))),
        "prompt": boxes(written),
        "work": node("MAM_MatteWithoutModels", image=("image", 0), prompt=("prompt", 0), method="none"),
        "seen": node("PreviewAny", source=("work", 0)),
    }
    steps = [(value, total) for name, value, total in comfy.run(graph).progress if name == "work"]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def files_of(comfy) -> set:
    return {path for folder in ("temp", "output") for path in (comfy.base / folder).rglob("*")}


def result_of(run):
    """The node's first output, or for numbers the table of all."""
    assert run.ok, run.error
    made = run.output("work", 0)
    return run.output("work", 6) if isinstance(made, float) else made


def same(a, b) -> bool:
    if hasattr(a, "frames"):
        targets = [[target for frame in prompts.frames for target in frame] for prompts in (a, b)]
        return all(
            (x.label, x.box_xyxy_px) == (y.label, y.box_xyxy_px) and same(x.mask, y.mask) for x, y in zip(*targets)
        )
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
