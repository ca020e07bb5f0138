"""The gallery in the README: one row per shared workflow, whose picture, nodes and models are those of the workflow."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

import comfyui_server
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
WEIGHTS = (".safetensors", ".ckpt", ".pth")
# Model folders are named without such an ending; these are the loaders that take one.
FOLDER_LOADERS = ("MAM_LoadTextDetector",)
# Published nowhere that a program can download from.
BY_HAND = ("in_context_matting.ckpt",)
WIDEST_PX, LARGEST_BYTES = 1280, 120_000
ROW = re.compile(
    r'^\| <img src="workflows/(?P<picture>[^"]+)\.jpg" width="\d+" alt="[^"]+"> '
    r"\| \[\*\*(?P<title>[^]]+)\*\*\]\(workflows/(?P<file>[^)]+)\.json\)<br>(?P<purpose>[^|]+) "
    r"\| (?P<nodes>[^|]+) \| (?P<models>[^|]+) \|$",
    re.MULTILINE,
)


def rows() -> list[dict[str, str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [{key: unquote(value) for key, value in row.groupdict().items()} for row in ROW.finditer(text)]


def row_of(name: str) -> dict[str, str]:
    return next(row for row in rows() if row["title"] == name)


def nodes_of(name: str) -> list[dict]:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))["nodes"]


def model_files(name: str) -> set[str]:
    """The weights that a workflow loads, by their names in its loaders."""
    found = set()
    for node in nodes_of(name):
        for value in node.get("widgets_values") or ():
            if isinstance(value, str) and (value.endswith(WEIGHTS) or node["type"] in FOLDER_LOADERS):
                found.add(value)
    return found


def needs_pymatting(name: str) -> bool:
    widgets = [value for node in nodes_of(name) for value in node.get("widgets_values") or ()]
    return "closed-form" in widgets or "knn" in widgets


def note_of(name: str) -> str:
    return "\n".join(node["widgets_values"][0] for node in nodes_of(name) if node["type"] == "MarkdownNote")


@pytest.fixture(scope="module")
def facts(server) -> dict:
    return server.get("/api/object_info")


def test_the_gallery_shows_every_workflow_once():
    assert sorted(row["title"] for row in rows()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_row_leads_to_its_workflow_and_picture(name):
    row = row_of(name)
    assert row["file"] == row["picture"] == name


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_light_enough_for_the_template_browser(name):
    file = WORKFLOWS / f"{name}.jpg"
    with Image.open(file) as picture:
        assert picture.format == "JPEG" and max(picture.size) <= WIDEST_PX
    assert file.stat().st_size <= LARGEST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_a_row_names_the_nodes_of_this_pack_in_their_order(facts, name):
    pack = f"custom_nodes.{comfyui_server.PACK_FOLDER}"
    types = [node["type"] for node in sorted(nodes_of(name), key=lambda node: node["order"])]
    ours = [facts[kind]["display_name"] for kind in types if kind in facts and facts[kind]["python_module"] == pack]
    assert row_of(name)["nodes"].split(", ") == list(dict.fromkeys(ours))


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_needs_no_other_pack_and_no_node_that_is_going_away(facts, name):
    for node in nodes_of(name):
        if node["type"] == "MarkdownNote":
            continue
        home = facts[node["type"]]["python_module"]
        assert home.startswith(("nodes", "comfy_extras.", f"custom_nodes.{comfyui_server.PACK_FOLDER}")), node["type"]
        assert not facts[node["type"]].get("deprecated"), node["type"]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_names_the_models_with_their_sizes(name):
    listed = re.findall(r"`([^`]+)` \([\d.]+ [MG]B[^)]*\)", row_of(name)["models"])
    assert sorted(listed) == sorted(model_files(name))
    assert listed or row_of(name)["models"] == "none"


@pytest.mark.parametrize("name", NAMES)
def test_a_loader_offers_the_download_of_its_weights(name):
    for node in nodes_of(name):
        names = {value for value in node.get("widgets_values") or () if str(value).endswith(WEIGHTS)} - {*BY_HAND}
        offered = node["properties"].get("models", [])
        assert {model["name"] for model in offered} == names, node["type"]
        for model in offered:
            assert model["url"].startswith("https://") and model["url"].endswith(f"/{model['name']}")
            assert model["directory"]


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_says_what_it_is_and_what_to_change(name):
    (note,) = (node for node in nodes_of(name) if node["type"] == "MarkdownNote")
    assert note["widgets_values"][0].startswith("## ")
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    assert all(group["title"] for group in workflow["groups"]) and len(workflow["groups"]) >= 2


def test_a_workflow_that_needs_pymatting_says_so_and_no_other():
    needed = [name for name in NAMES if needs_pymatting(name)]
    said = [name for name in NAMES if re.search(r"PyMatting( is)?\.", note_of(name))]
    assert said == needed
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"(?:\w+) of them PyMatting: ([^.]+)\.", " ".join(readme.split()))
    assert sorted(re.findall(r"\*([^*]+)\*", sentence)) == needed
