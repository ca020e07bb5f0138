"""The subgraph blueprints that the pack brings, as the server offers them to the node search."""

from __future__ import annotations

import json
from pathlib import Path

import comfyui_server
import pytest

FILES = sorted((Path(__file__).resolve().parents[2] / "subgraphs").glob("*.json"))


@pytest.fixture(scope="module")
def offered(server) -> dict[str, dict]:
    """Name -> what the server tells of a blueprint of this pack, with its content."""
    entries = server.get("/global_subgraphs")
    ours = {
        entry["name"]: key
        for key, entry in entries.items()
        if entry["info"]["node_pack"] == f"custom_nodes.{comfyui_server.PACK_FOLDER}"
    }
    return {name: server.get(f"/global_subgraphs/{key}") for name, key in ours.items()}


def test_every_blueprint_is_offered_as_it_lies_in_the_folder(offered):
    assert offered.keys() == {file.stem for file in FILES} >= {"Cut out subject", "Replace background"}
    for file in FILES:
        assert json.loads(offered[file.stem]["data"]) == json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_blueprint_is_one_described_node_of_known_nodes_and_sockets(server, file):
    blueprint = json.loads(file.read_text(encoding="utf-8"))
    (outer,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert outer["type"] == subgraph["id"] and outer["title"] == subgraph["name"] == file.stem
    assert subgraph["category"] == "Matting" and len(subgraph["description"]) > 40
    assert subgraph["description"] == blueprint["extra"]["BlueprintDescription"]
    schemas = server.get("/api/object_info")
    for node in subgraph["nodes"]:
        schema = schemas[node["type"]]
        inputs = {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}
        assert [slot["name"] for slot in node["inputs"]] == list(inputs), node["type"]
        assert [slot["type"] for slot in node["outputs"]] == schema["output"], node["type"]
