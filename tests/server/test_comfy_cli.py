"""The workflows in comfy-cli, the command line of ComfyUI's makers, which turns them into the API format by itself.

comfy-cli is no part of the tests' environment: with what it requires it takes a third of a gigabyte. Give it one of
its own (`python3 -m venv cli && cli/bin/pip install comfy-cli`) and name that Python in the variable COMFY_CLI_PYTHON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
FILES = sorted(WORKFLOWS.glob("*.json"))
# Widgets that only show something; the front end sends them, comfy-cli does not, and the server reads neither.
VIEWS = {"ImageCompare": "compare_view", "LoadVideo": "video-preview"}
_CONVERT = """
import json, sys
from comfy_cli.workflow_to_api import convert_ui_to_api
given = json.load(sys.stdin)
json.dump({name: convert_ui_to_api(file, given["schemas"]) for name, file in given["workflows"].items()}, sys.stdout)
"""


@pytest.fixture(scope="module")
def converted(server) -> dict[str, dict]:
    """Name of a workflow -> what comfy-cli makes of it."""
    python = os.environ.get("COMFY_CLI_PYTHON", sys.executable)
    has_it = subprocess.run([python, "-c", "import comfy_cli.workflow_to_api"], capture_output=True)
    if has_it.returncode:
        pytest.skip("comfy-cli is not installed; COMFY_CLI_PYTHON names a Python that has it.")
    workflows = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in FILES}
    given = json.dumps({"schemas": server.get("/object_info"), "workflows": workflows})
    done = subprocess.run([python, "-c", _CONVERT], input=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_comfy_cli_makes_the_same_of_a_workflow_as_the_front_end(converted, file):
    front_end = without_views(json.loads((WORKFLOWS / "api" / file.name).read_text(encoding="utf-8")))
    comfy_cli = without_views(converted[file.stem])
    pairs = {key: (comfy_cli.get(key), front_end.get(key)) for key in {**front_end, **comfy_cli}}
    assert not {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def without_views(workflow: dict) -> dict:
    for node in workflow.values():
        node["inputs"].pop(VIEWS.get(node["class_type"]), None)
    return workflow
