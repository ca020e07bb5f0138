"""The workflows in ComfyUI's real front end, in both renderers. Skipped where playwright or Chromium is missing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import comfyui_server
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

import check_workflows  # noqa: E402

FILES = check_workflows.workflow_files()
SPOILED = "Cut out with Matting Anything"
SAVED = sorted((ROOT / "tests" / "saved_workflows").glob("*/*.json"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        pytest.exit("Set COMFYUI_PATH to a ComfyUI folder, or run scripts/run_tests.py, which provides one.", 2)
    base = tmp_path_factory.mktemp("server")
    check_workflows.put_pictures(base / "input")
    check_workflows.put_checkpoints(base / "models")
    with comfyui_server.ComfyUIServer(Path(comfyui).resolve(), base, ROOT, cpu=True) as server:
        try:
            with check_workflows.front_end(server.address) as front_end:
                yield front_end
        except check_workflows.NoBrowser as missing:
            pytest.skip(str(missing))


@pytest.fixture(scope="module", params=check_workflows.RENDERERS)
def renderer(browser, request):
    browser.start(check_workflows.RENDERERS[request.param])
    return browser


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_workflow_opens_as_it_was_saved_and_its_twin_says_the_same(renderer, file):
    opened = renderer.open(json.loads(file.read_text(encoding="utf-8")))
    assert not [*opened.problems, *check_workflows.twin_problems(file, opened.api), *renderer.layout_after_a_run()]


@pytest.mark.slow
@pytest.mark.parametrize("file", SAVED, ids=lambda file: f"{file.parent.name} {file.stem}")
def test_a_workflow_of_this_or_an_earlier_version_opens_with_all_it_was_saved_with(renderer, file):
    opened = renderer.open(json.loads(file.read_text(encoding="utf-8")))
    # A node may have gained inputs since; it may not have lost any, nor read a value as that of another.
    assert not [problem for problem in opened.problems if not problem.startswith("changed ")]
    then = json.loads((file.parent / "api" / file.name).read_text(encoding="utf-8"))
    assert then.keys() == opened.api.keys()
    for node_id, node in then.items():
        assert node["inputs"].items() <= opened.api[node_id]["inputs"].items()


def _unknown_node(workflow):
    workflow["nodes"][-1]["type"] = "MAM_NoSuchNode"


def _other_slot(workflow):
    workflow["links"][0][4] += 1


def _dead_choice(workflow):
    _node(workflow, "MAM_Composite")["widgets_values"][1] = "squeeze"


def _over_another(workflow):
    first, second = (node for node in workflow["nodes"] if node["type"] == "SaveImage" and node["id"] % 2 == 0)
    first["pos"] = second["pos"]


def _half_out_of_its_group(workflow):
    _node(workflow, "MAM_PreviewMatte")["pos"][0] -= 60


def _link_over_a_title(workflow):
    loader = _node(workflow, "LoadImage")
    (x, y), (width, _) = loader["pos"], loader["size"]
    workflow["groups"].append({"title": "Over its output", "bounding": [x + width, y - 5, 300, 200]})


def _node(workflow, kind):
    return next(node for node in workflow["nodes"] if node["type"] == kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_unknown_node, "unknown node"),
        (_other_slot, "link"),
        (_dead_choice, "choice that is not offered"),
        (_over_another, "overlap"),
        (_half_out_of_its_group, "half out of the group"),
        (_link_over_a_title, "crossed title"),
    ],
)
def test_a_spoiled_workflow_is_noticed(renderer, spoil, complaint):
    workflow = json.loads((check_workflows.WORKFLOWS / f"{SPOILED}.json").read_text(encoding="utf-8"))
    spoil(workflow)
    assert any(complaint in problem for problem in renderer.open(workflow).problems)


@pytest.mark.slow
def test_a_node_whose_picture_would_lie_over_the_next_one_is_noticed(renderer):
    workflow = json.loads((check_workflows.WORKFLOWS / f"{SPOILED}.json").read_text(encoding="utf-8"))
    preview, composite = (_node(workflow, kind) for kind in ("MAM_PreviewMatte", "MAM_Composite"))
    preview["size"][1] = 160
    composite["pos"][1] = preview["pos"][1] + 300
    assert renderer.open(workflow).problems == ()
    assert any("after a run: overlap" in problem for problem in renderer.layout_after_a_run())


# The classic renderer cuts a title where it would come within this of its node's right end.
_CUT_TITLES = """() => {
  const { ctx } = app.canvas;
  return Object.keys(LiteGraph.registered_node_types).filter((type) => /^(MAM|ICM)_/.test(type)).filter((type) => {
    const node = LiteGraph.createNode(type);
    ctx.font = node.titleFontStyle;
    return ctx.measureText(node.getTitle()).width > node.size[0] - 2 * LiteGraph.NODE_TITLE_HEIGHT;
  });
}"""


@pytest.mark.slow
def test_a_new_node_shows_its_whole_title(renderer):
    assert renderer.page.evaluate(_CUT_TITLES) == []


@pytest.mark.slow
def test_a_node_that_was_saved_narrow_stays_so(renderer):
    workflow = json.loads((check_workflows.WORKFLOWS / "The method step by step.json").read_text(encoding="utf-8"))
    _node(workflow, "MAM_MaskToMatte")["size"][0] = 195
    renderer.open(workflow)
    width = "() => app.rootGraph.nodes.find((node) => node.type === 'MAM_MaskToMatte').size[0]"
    # 225 is the least that Nodes 2.0 itself allows.
    least = 225 if renderer.page.evaluate("() => LiteGraph.vueNodesMode") else 195
    assert renderer.page.evaluate(width) == least


# Combine Prompts with four prompts and Select Instances by area, all of whose inputs somebody named; then opened anew.
_NAMED = """async () => {
  app.graph.clear();
  const add = (type) => { const node = LiteGraph.createNode(type); app.graph.add(node); return node; };
  const combine = add("MAM_CombinePrompts"), select = add("MAM_SelectInstances");
  for (let i = 0; i < 4; i++)
    add("MAM_PromptPoints").connect(0, combine, combine.inputs.findIndex(({ name }) => name === `prompts.prompt${i}`));
  select.widgets.find(({ name }) => name === "by").value = "area";
  for (const node of [combine, select])
    for (const input of node.inputs) {
      input.label = `my ${input.name}`;
      const widget = node.widgets.find(({ name }) => name === input.widget?.name);
      if (widget) widget.label = input.label;
    }
  const file = JSON.parse(JSON.stringify(app.rootGraph.serialize()));
  await app.loadGraphData(file, true, true, null);
  await new Promise((done) => setTimeout(done, 900));
  const named = ({ inputs, widgets }) => [...inputs, ...widgets].map(({ name, label }) => [name, label]);
  const shown = [combine, select].map(({ id }) => app.rootGraph.getNodeById(id)).map(named).flat();
  const text = [combine, select].map(({ id }) => document.querySelector(`[data-node-id="${id}"]`)?.innerText);
  return [shown, LiteGraph.vueNodesMode ? text.join("\\n").split("\\n") : null];
}"""


@pytest.mark.slow
def test_names_that_a_user_gave_to_inputs_that_come_and_go_are_there_when_the_workflow_is_opened_again(renderer):
    given, drawn = renderer.page.evaluate(_NAMED)
    names = [name for name, _ in given]
    assert {"prompts.prompt0", "prompts.prompt4", "by", "by.largest_percent"} <= set(names)
    assert [label for _, label in given] == [f"my {name}" for name in names]
    assert drawn is None or {f"my {name}" for name in names} <= set(drawn)


# Combine Prompts with five prompts and Select Instances with a number from outside, as they were; then copied, or put
# into a subgraph and taken out of it again.
_COPIED = """async (way) => {
  const { execute } = app.extensionManager.command;
  await execute("Comfy.NewBlankWorkflow");
  const pause = () => new Promise((done) => setTimeout(done, 100));
  const add = (type) => { const node = LiteGraph.createNode(type); app.graph.add(node); return node; };
  const into = (type, node, name) => {
    const from = add(type);
    from.title = `for ${name}`;
    from.connect(0, node, node.inputs.findIndex((input) => input.name === name));
  };
  const combine = add("MAM_CombinePrompts"), select = add("MAM_SelectInstances");
  for (let i = 0; i < 5; i++) into("MAM_PromptPoints", combine, `prompts.prompt${i}`);
  into("PrimitiveInt", select, "by.count");
  const linked = ({ graph, inputs }) => inputs.filter(({ link }) => link != null).map(({ name, link }) =>
    [name, graph.getNodeById(graph.getLink(link).origin_id).title]);
  const before = [combine, select].map(linked);
  const { canvas } = app;
  canvas.selectItems(way === "pasted with its links" ? [combine, select] : app.graph.nodes);
  if (way === "unpacked") {
    await execute("Comfy.Graph.ConvertToSubgraph");
    await pause();
    canvas.selectItems(app.graph.nodes);
    await execute("Comfy.Graph.UnpackSubgraph");
  } else {
    canvas.copyToClipboard();
    canvas.pasteFromClipboard({ connectInputs: way === "pasted with its links" });
  }
  await pause();
  const last = (type) => app.graph.nodes.findLast((node) => node.type === type);
  return [before, [last(combine.type), last(select.type)].map(linked)];
}"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["pasted", "pasted with its links", "unpacked"])
def test_no_link_to_inputs_that_come_and_go_is_lost_when_a_node_is(renderer, way):
    before, after = renderer.page.evaluate(_COPIED, way)
    assert after == before
    assert [name for name, _ in before[0]] == [f"prompts.prompt{number}" for number in range(5)]
    assert before[1] == [["by.count", "for by.count"]]


_ALONE = """(type) => {
  app.graph.clear();
  const node = LiteGraph.createNode(type);
  node.pos = [300, 300];
  app.graph.add(node);
  app.canvas.selectNode(node);
}"""


@pytest.mark.slow
def test_the_help_page_of_a_node_is_shown_in_the_user_s_language(renderer):
    page, nodes_2 = renderer.page, renderer.page.evaluate("() => LiteGraph.vueNodesMode")
    called = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))["MAM_Trimap"]
    renderer.start(nodes_2, "zh")
    try:
        page.evaluate(_ALONE, "MAM_Trimap")
        page.get_by_test_id("info-button").click()
        page.get_by_role("heading", name=called["display_name"], exact=True).wait_for()
        assert page.get_by_role("cell", name=called["inputs"]["band"]["name"], exact=True).is_visible()
    finally:
        renderer.start(nodes_2)


def test_every_node_has_a_help_page():
    nodes = {part.split('"')[1] for file in (ROOT / "nodes").glob("*.py") for part in _schema_lines(file)}
    assert nodes == {page.stem for page in (ROOT / "web" / "docs").glob("*.md")}


def _schema_lines(file):
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip().startswith("node_id=")]
