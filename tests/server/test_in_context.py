"""In-Context Matting over HTTP: from the file of a diffusion model to the mattes that are saved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "api" / "In-context matting.json"


def blots(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    """A picture uint8 [height, width, 3] of soft coloured waves."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.random.default_rng(seed).uniform(0.02, 0.15, (3, 2))
    return np.stack([127 + 120 * np.sin(a * rows + b * columns) for a, b in waves], axis=-1).astype(np.uint8)


@pytest.fixture
def workflow(server, models_of) -> dict:
    """The shared workflow with small models, one noisy copy of each picture, and pictures of our own."""
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    models_of(graph)
    graph[only(graph, "ICM_Reference")]["inputs"].update(ensemble=1)
    graph[only(graph, "MAM_PromptPoints")]["inputs"].update(positive="60 40")
    example, target = ends(graph)
    graph[example]["inputs"]["image"] = server.save_picture("example.png", blots(1))
    graph[target]["inputs"]["image"] = server.save_picture("target.png", blots(2))
    return graph


def only(graph: dict, class_type: str) -> str:
    (found,) = (node_id for node_id, node in graph.items() if node["class_type"] == class_type)
    return found


def ends(graph: dict) -> tuple[str, str]:
    """The Load Image nodes of the reference picture and of the target."""
    nodes = [graph[only(graph, class_type)] for class_type in ("ICM_Reference", "ICM_Match")]
    return tuple(node["inputs"]["image"][0] for node in nodes)


def saved_matte(server, graph: dict, finished) -> np.ndarray:
    (node_id,) = (key for key, node in graph.items() if node["inputs"].get("filename_prefix") == "matting/matte")
    (pixels,) = server.pictures(finished, node_id)
    return pixels[..., 0]


def test_the_shared_workflow_goes_from_checkpoint_to_saved_mattes_and_keeps_its_reference(server, workflow):
    first = server.run(workflow)
    assert first.ok, first.error
    matte = saved_matte(server, workflow, first)
    assert matte.shape == (96, 128) and matte.std() > 2
    assert set(workflow) == set(first.executed)

    workflow[ends(workflow)[1]]["inputs"]["image"] = server.save_picture("other.png", blots(3, 60, 150))
    second = server.run(workflow)
    assert second.ok, second.error
    for class_type in ("CheckpointLoaderSimple", "ICM_LoadModel", "ICM_Reference"):
        assert only(workflow, class_type) in second.cached
    assert only(workflow, "ICM_Match") in second.executed
    assert saved_matte(server, workflow, second).shape == (60, 150)


def test_the_node_says_that_the_decoder_has_to_be_fetched_by_hand(server, workflow):
    decoder = (
        server.models_dir / "in_context_matting" / workflow[only(workflow, "ICM_LoadModel")]["inputs"]["decoder_name"]
    )
    aside = decoder.rename(decoder.with_suffix(".aside"))
    try:
        finished = server.run(workflow)
    finally:
        aside.rename(decoder)
    assert not finished.ok and finished.failed_node == only(workflow, "ICM_LoadModel")
    assert "cannot be downloaded by a program" in finished.error
    assert "models/in_context_matting" in finished.error.replace("\\", "/")
