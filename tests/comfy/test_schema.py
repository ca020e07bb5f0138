"""What a node promises in the interface: it explains itself, and saved workflows keep opening.

node_interface.json holds the ids, inputs, choices and outputs that were released. To record additions after a release,
delete the file and run this test once: it writes the file anew.
"""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path

import pytest

INTERFACE = Path(__file__).with_name("node_interface.json")
MODEL_FILES = {"sam_name", "m2m_name"}


def interface(node_class) -> dict:
    """Everything of a node that saved workflows rely on. Inputs behind a choice are named "choice=option.input"."""
    info = node_class.GET_NODE_INFO_V1()
    return {
        "inputs": _inputs(info["input"]),
        "outputs": [[output.id, output.io_type] for output in node_class.GET_SCHEMA().outputs],
    }


def _inputs(groups: dict, path: str = "") -> dict:
    inputs = {}
    for group in ("required", "optional"):
        for name, (kind, *rest) in groups.get(group, {}).items():
            options = rest[0] if rest else {}
            facts = {"type": kind, "required": group == "required"}
            facts.update({key: options[key] for key in ("options", "default", "min", "max") if key in options})
            if "template" in options:
                facts["template"] = {key: options["template"][key] for key in ("prefix", "min", "max")}
            inputs[path + name] = facts
            if kind == "COMFY_DYNAMICCOMBO_V3":
                facts["options"] = [option["key"] for option in options["options"]]
                for option in options["options"]:
                    inputs |= _inputs(option["inputs"], f"{path}{name}={option['key']}.")
    return inputs


def broken_promises(released: dict, current: dict) -> list[str]:
    """What would break a workflow that was saved with the released nodes; additions do not."""
    broken = []
    for node_id, was in released.items():
        if node_id not in current:
            broken.append(f"{node_id} is gone")
            continue
        now = current[node_id]
        for name, facts in was["inputs"].items():
            if name not in now["inputs"]:
                broken.append(f"{node_id}.{name} is gone")
            else:
                broken += [f"{node_id}.{name}: {what}" for what in _broken_input(facts, now["inputs"][name])]
        for name, facts in now["inputs"].items():
            if name not in was["inputs"] and facts["required"]:
                broken.append(f"{node_id}.{name} is new and required")
        if widgets(now)[: len(widgets(was))] != widgets(was) and set(widgets(was)) <= set(widgets(now)):
            # Workflows of the browser hold the values of widgets by position.
            broken.append(f"{node_id}: widgets were {widgets(was)} and are {widgets(now)}; add new ones at the end")
        if now["outputs"][: len(was["outputs"])] != was["outputs"]:
            broken.append(f"{node_id}: outputs were {was['outputs']} and are {now['outputs']}")
    return broken


def widgets(facts: dict) -> list[str]:
    kinds = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "COMFY_DYNAMICCOMBO_V3"}
    return [name for name, facts in facts["inputs"].items() if facts["type"] in kinds and "=" not in name]


def _broken_input(was: dict, now: dict) -> list[str]:
    broken = []
    if not set(was["type"].split(",")) <= set(now["type"].split(",")):
        broken.append(f"was {was['type']} and is {now['type']}")
    if now["required"] and not was["required"]:
        broken.append("has become required")
    lost = [option for option in was.get("options", []) if option not in now.get("options", [])]
    if lost:
        broken.append(f"no longer offers {lost}")
    if now.get("default") != was.get("default"):
        broken.append(f"default was {was.get('default')!r} and is {now.get('default')!r}")
    if now.get("min", 0) > was.get("min", 0) or now.get("max", 0) < was.get("max", 0):
        broken.append("takes a narrower range of numbers")
    old, new = was.get("template"), now.get("template")
    if old and (not new or new["prefix"] != old["prefix"] or new["min"] > old["min"] or new["max"] < old["max"]):
        broken.append(f"grew like {old} and grows like {new}")
    return broken


RELEASED = {
    "Cut": {
        "inputs": {
            "image": {"type": "IMAGE", "required": True},
            "mode": {"type": "COMBO", "required": False, "options": ["a", "b"], "default": "a"},
            "width": {"type": "INT", "required": False, "default": 3, "min": 0, "max": 9},
            "parts": {"type": "AUTOGROW", "required": True, "template": {"prefix": "part", "min": 2, "max": 4}},
        },
        "outputs": [["alpha", "MASK"]],
    }
}


def changed(change) -> dict:
    current = copy.deepcopy(RELEASED)
    change(current)
    return current


@pytest.mark.parametrize(
    "change",
    [
        lambda nodes: nodes.update({"Slice": nodes.pop("Cut")}),
        lambda nodes: nodes["Cut"]["inputs"].pop("mode"),
        lambda nodes: nodes["Cut"]["inputs"].update({"extra": {"type": "INT", "required": True}}),
        lambda nodes: nodes["Cut"]["inputs"]["image"].update(type="MASK"),
        lambda nodes: nodes["Cut"]["inputs"]["mode"].update(required=True),
        lambda nodes: nodes["Cut"]["inputs"]["mode"].update(options=["a", "B"]),
        lambda nodes: nodes["Cut"]["inputs"]["mode"].update(default="b"),
        lambda nodes: nodes["Cut"]["inputs"]["width"].update(min=1),
        lambda nodes: nodes["Cut"]["inputs"]["width"].update(max=8),
        lambda nodes: nodes["Cut"]["inputs"]["parts"]["template"].update(prefix="piece"),
        lambda nodes: nodes["Cut"]["inputs"].update(mode=nodes["Cut"]["inputs"].pop("mode")),
        lambda nodes: nodes["Cut"].update(outputs=[["matte", "MASK"]]),
        lambda nodes: nodes["Cut"].update(outputs=[["image", "IMAGE"], ["alpha", "MASK"]]),
    ],
)
def test_a_change_that_breaks_saved_workflows_is_noticed(change):
    assert len(broken_promises(RELEASED, changed(change))) == 1


def test_new_nodes_optional_inputs_socket_types_choices_and_outputs_break_nothing():
    def add(nodes):
        nodes["Cut"]["inputs"]["image"]["type"] = "IMAGE,MASK"
        nodes["Paste"] = copy.deepcopy(RELEASED["Cut"])
        nodes["Cut"]["inputs"]["extra"] = {"type": "INT", "required": False, "default": 1}
        nodes["Cut"]["inputs"]["mode"]["options"].insert(0, "c")
        nodes["Cut"]["outputs"].append(["image", "IMAGE"])

    assert broken_promises(RELEASED, changed(add)) == []


def test_every_released_node_input_choice_and_output_is_still_there(comfyui):
    current = {node_id: interface(node_class) for node_id, node_class in sorted(comfyui.our_nodes.items())}
    if not INTERFACE.is_file():
        INTERFACE.write_text(json.dumps(current, indent=1) + "\n", encoding="utf-8")
        pytest.fail(f"{INTERFACE.name} was missing and has been written; look at it and keep it.")
    released = json.loads(INTERFACE.read_text(encoding="utf-8"))
    assert len(released) >= 14
    assert broken_promises(released, current) == []


def test_the_record_of_the_loaders_holds_only_published_files(comfyui):
    """A name of a test's own file in the record could never be kept."""
    published = {file.name for file in comfyui.module("mam_model.published").PUBLISHED}
    for facts in json.loads(INTERFACE.read_text(encoding="utf-8")).values():
        for name in MODEL_FILES & set(facts["inputs"]):
            assert set(facts["inputs"][name]["options"]) <= published


def test_every_node_explains_itself(comfyui):
    assert comfyui.our_nodes
    for node_id, node_class in comfyui.our_nodes.items():
        schema = node_class.GET_SCHEMA()
        assert node_id.startswith(("MAM_", "ICM_"))
        assert schema.display_name
        assert schema.category == "image/matting", node_id
        assert len(schema.description) > 40, node_id
        assert len(schema.search_aliases) >= 3, node_id
        assert len(set(schema.search_aliases)) == len(schema.search_aliases), node_id


def test_every_input_and_output_has_a_tooltip(comfyui):
    for node_id, node_class in comfyui.our_nodes.items():
        schema = node_class.GET_SCHEMA()
        for slot in (*schema.inputs, *schema.outputs):
            # A growing row of sockets is explained by the socket that it repeats.
            explained = slot.template.input if hasattr(slot, "template") else slot
            assert len(explained.tooltip or "") > 10, f"{node_id}.{slot.id}"


def test_the_interface_is_sent_every_tooltip(comfyui):
    for node_id, node_class in comfyui.our_nodes.items():
        info = node_class.GET_NODE_INFO_V1()
        assert info["description"]
        assert info["search_aliases"]
        assert len(info["output_tooltips"]) == len(info["output"]) and all(info["output_tooltips"]), node_id
        for group in ("required", "optional"):
            for name, (_, options) in info["input"].get(group, {}).items():
                assert options.get("tooltip") or "tooltip" in json.dumps(options["template"]), f"{node_id}.{name}"


def test_a_workflow_may_leave_out_every_optional_input(comfyui):
    """ComfyUI does not fill in defaults: a workflow that was saved before an input existed runs without it."""
    for node_id, node_class in comfyui.our_nodes.items():
        parameters = inspect.signature(node_class.execute).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for slot in node_class.GET_SCHEMA().inputs:
            if not slot.optional:
                continue
            if slot.id not in parameters:
                assert takes_all, f"{node_id}.{slot.id}"
                continue
            default = parameters[slot.id].default
            assert default is not inspect.Parameter.empty, f"{node_id}.{slot.id}"
            if hasattr(slot, "default"):
                assert default == slot.default, f"{node_id}.{slot.id}: the widget and execute() differ"
