"""Workflows as users saved them with this and earlier versions: every one has to be accepted and to run.

tests/saved_workflows/<version>/ holds the workflows as that version shared them, and in its api/ what the front end of
then made of them. They are never edited afterwards. Here they run on a photo of a quarter of the size.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

ROOT = Path(__file__).resolve().parents[2]
SAVED = ROOT / "tests" / "saved_workflows"
WORKFLOWS = sorted(SAVED.glob("*/*.json"))
API = sorted(SAVED.glob("*/api/*.json"))
SHRINK = 4
WIDGET_TYPES = ("STRING", "INT", "FLOAT", "BOOLEAN", "COMBO", "COLOR", "COMFY_DYNAMICCOMBO_V3")


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def name_of(file: Path) -> str:
    return str(file.relative_to(SAVED).with_suffix(""))


def shrunk(workflow: dict, photo: str) -> dict:
    """The workflow with another photo, and with points and boxes brought to that photo's size.

    One that brings its photos to a size of its own stays as it is.
    """
    if any(node["class_type"] == "ResizeAndPadImage" for node in workflow.values()):
        return workflow
    for node in workflow.values():
        inputs = node["inputs"]
        if node["class_type"] == "LoadImage":
            inputs["image"] = photo
        for name in ("boxes", "positive", "negative"):
            if isinstance(inputs.get(name), str):
                inputs[name] = re.sub(r"\d+(\.\d+)?", lambda number: f"{float(number[0]) / SHRINK:g}", inputs[name])
    return workflow


@pytest.fixture(scope="module")
def photo(server, workflow_inputs) -> str:
    size = 512 // SHRINK
    small = Image.fromarray(data.astronaut()).resize((size, size), Image.Resampling.LANCZOS)
    return server.save_picture("small-astronaut.png", np.array(small))


@pytest.fixture(scope="module")
def schemas(server) -> dict:
    return server.get("/api/object_info")


@pytest.mark.parametrize("file", API, ids=name_of)
def test_a_saved_workflow_runs(server, models_of, made_quick, photo, file):
    workflow = made_quick(shrunk(read(file), photo))
    models_of(workflow)
    finished = server.run(workflow)
    assert finished.ok, finished.error
    saving = {node_id for node_id, node in workflow.items() if node["class_type"] == "SaveImage"}
    assert finished.outputs and saving <= set(finished.outputs)


@pytest.mark.parametrize("file", WORKFLOWS, ids=name_of)
def test_the_nodes_of_a_saved_workflow_still_have_its_sockets(schemas, file):
    for node in our_nodes(read(file)):
        schema = schemas[node["type"]]
        slots = [(slot["name"], slot["type"]) for slot in node["outputs"]]
        assert slots == list(zip(schema["output_name"], schema["output"]))[: len(slots)], node["type"]
        for slot in node["inputs"]:
            # An autogrow input and the fields of a dynamic choice are saved as "group.field".
            assert slot["name"].split(".")[0] in inputs_of(schema), (node["type"], slot["name"])


@pytest.mark.parametrize("file", WORKFLOWS, ids=name_of)
def test_a_widget_of_a_saved_workflow_still_stands_where_its_value_is(schemas, file):
    # Workflows hold the values of widgets as a list without names, so a new widget may only follow the old ones.
    for node in our_nodes(read(file)):
        before = [slot["name"] for slot in node["inputs"] if "widget" in slot and "." not in slot["name"]]
        now = [name for name, (kind, *_) in inputs_of(schemas[node["type"]]).items() if is_widget(kind)]
        assert before == now[: len(before)], node["type"]


def our_nodes(workflow: dict) -> list[dict]:
    return [node for node in workflow["nodes"] if node["type"].startswith(("MAM_", "ICM_"))]


def inputs_of(schema: dict) -> dict:
    return {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}


def is_widget(kind: str | list) -> bool:
    return isinstance(kind, list) or kind in WIDGET_TYPES


def test_the_shared_workflows_of_this_version_are_kept():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    shared = sorted((ROOT / "workflows").rglob("*.json"))
    assert shared
    for file in shared:
        copy = SAVED / version / file.relative_to(ROOT / "workflows")
        assert copy.is_file() and read(copy) == read(file), (
            f"Copy workflows/ to tests/saved_workflows/{version} if that version was not released yet; else raise the "
            "version and copy them under the new one."
        )
