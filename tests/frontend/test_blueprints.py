"""The subgraph blueprints of subgraphs/ as a user takes them: found by search, placed, connected, run."""

from __future__ import annotations

import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import comfyui_server
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

import check_workflows  # noqa: E402

WIDTH, HEIGHT = 160, 120
EMPTY_PLACE_PX = (700, 300)
SEARCH = "input[aria-controls=results-list]"
EMPTY_GRAPH = {"version": 0.4, "nodes": [], "links": [], "groups": [], "config": {}, "extra": {}}
EMPTY_GRAPH |= {"last_node_id": 0, "last_link_id": 0}

# The names of the node's widgets, and of those among them that its renderer draws.
_WIDGETS = """() => {
  const [node] = app.rootGraph.nodes;
  const texts = document.querySelector(`[data-node-id="${node.id}"]`)?.innerText.split("\\n");
  const drawn = (widget) => LiteGraph.vueNodesMode ? texts.includes(widget.name) : node.isWidgetVisible(widget);
  const names = (widgets) => widgets.map(({ name }) => name);
  return [names(node.widgets), names(node.widgets.filter(drawn))];
}"""

_PLACED = "() => app.rootGraph.nodes.length === 1 && app.rootGraph.nodes[0].isSubgraphNode()"

# From the pictures to the one node's inputs, and from its outputs to nodes that show them; as the user would draw it.
_CONNECT = """async ([files, shown, values]) => {
  const graph = app.rootGraph;
  const [blueprint] = graph.nodes;
  const add = (type) => { const node = LiteGraph.createNode(type); graph.add(node); return node; };
  for (const [name, file] of Object.entries(files)) {
    const slot = blueprint.inputs.findIndex((input) => input.name === name);
    const isMask = blueprint.inputs[slot].type === "MASK";
    const loader = add(isMask ? "LoadImageMask" : "LoadImage");
    loader.widgets.find((widget) => widget.name === "image").value = file;
    if (isMask) loader.widgets.find((widget) => widget.name === "channel").value = "red";
    loader.connect(0, blueprint, slot);
  }
  const ids = {};
  for (const name of shown) {
    const slot = blueprint.outputs.findIndex((output) => output.name === name);
    const viewer = add(blueprint.outputs[slot].type === "MASK" ? "MaskPreview" : "PreviewImage");
    blueprint.connect(slot, viewer, 0);
    ids[name] = String(viewer.id);
  }
  for (const [name, value] of Object.entries(values))
    blueprint.widgets.find((widget) => widget.name === name).value = value;
  const { output } = await app.graphToPrompt();
  return JSON.stringify([output, ids]);
}"""


def photo() -> np.ndarray:
    """A picture uint8 [HEIGHT, WIDTH, 3]: a bright disc on a dark ground."""
    pixels = np.full((HEIGHT, WIDTH, 3), (30, 60, 90), np.uint8)
    pixels[distance() < 35] = (230, 200, 170)
    return pixels


def distance() -> np.ndarray:
    """Of every pixel from the middle, in pixels."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.hypot(rows - HEIGHT / 2, columns - WIDTH / 2)


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_sam_file, tiny_m2m_file, tiny_text_detector_folder):
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        pytest.exit("Set COMFYUI_PATH to a ComfyUI folder, or run scripts/run_tests.py, which provides one.", 2)
    base = tmp_path_factory.mktemp("server")
    for folder in ("input", "models/sams", "models/mam", "models/grounding-dino"):
        (base / folder).mkdir(parents=True)
    (base / "models/sams/sam_vit_b_01ec64.pth").symlink_to(tiny_sam_file)
    (base / "models/mam/mam_sam_vitb.pth").symlink_to(tiny_m2m_file)
    (base / "models/grounding-dino/grounding-dino-tiny").symlink_to(tiny_text_detector_folder)
    Image.fromarray(photo()).save(base / "input" / "photo.png")
    Image.fromarray((255 * (distance() < 35)).astype(np.uint8)).save(base / "input" / "matte.png")
    Image.new("RGB", (WIDTH, HEIGHT), (200, 40, 90)).save(base / "input" / "background.png")
    with comfyui_server.ComfyUIServer(Path(comfyui).resolve(), base, ROOT, cpu=True) as running:
        yield running


@pytest.fixture(scope="module")
def browser(server):
    try:
        with check_workflows.front_end(server.address) as front_end:
            yield front_end
    except check_workflows.NoBrowser as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module", params=check_workflows.RENDERERS)
def renderer(browser, request):
    browser.start(check_workflows.RENDERERS[request.param])
    return browser


@pytest.fixture
def place(renderer):
    """`place(name)`: the page with a blueprint as the only node of its graph, found by ComfyUI's search."""

    def find_and_place(name: str):
        page = renderer.page
        page.evaluate("(graph) => app.loadGraphData(graph, true, true, null)", EMPTY_GRAPH)
        page.wait_for_function("() => app.rootGraph.nodes.length === 0")
        page.mouse.move(*EMPTY_PLACE_PX)
        # What a double click does, without its half second.
        page.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
        page.locator(SEARCH).fill(name)
        page.get_by_test_id("result-item").filter(has_text="Subgraph Blueprints / Matting").first.click()
        page.wait_for_function(_PLACED)
        # While it fades, the dialog would take the click that lets go of the node.
        page.locator(SEARCH).wait_for(state="detached")
        page.mouse.click(*EMPTY_PLACE_PX)
        page.wait_for_function("() => !app.rootGraph.nodes[0].flags.ghost")
        return page

    return find_and_place


@pytest.fixture
def run(place, server):
    """`run(name, files, shown, **values)`: output name -> picture [H, W, C] of a blueprint on these files."""

    def place_and_run(name: str, files: dict[str, str], shown: list[str], **values) -> dict[str, np.ndarray]:
        page = place(name)
        api, ids = json.loads(page.evaluate(_CONNECT, [files, shown, values]))
        # Playwright keeps this thread's event loop to itself.
        with ThreadPoolExecutor(1) as thread:
            finished = thread.submit(server.run, api).result()
        assert finished.ok, finished.error
        pictures = {}
        for output, node_id in ids.items():
            (content,) = server.images(finished, node_id)
            pictures[output] = np.array(Image.open(io.BytesIO(content))).astype(int)
        return pictures

    return place_and_run


@pytest.mark.slow
def test_replace_background_puts_the_subject_over_the_other_picture(run):
    files = {"image": "photo.png", "alpha": "matte.png", "background": "background.png"}
    shown = run("Replace background", files, ["composite", "cutout"], light_wrap=0.0)
    inside, outside = distance() < 30, distance() > 40
    assert np.abs(shown["composite"][inside] - photo()[inside]).max() <= 2
    assert np.abs(shown["composite"][outside] - (200, 40, 90)).max() <= 1
    assert np.array_equal(shown["cutout"][..., 3] > 127, distance() < 35)


@pytest.mark.slow
def test_matte_to_inpaint_mask_gives_the_subject_and_its_surroundings_both_grown(run):
    shown = run("Matte to inpaint mask", {"alpha": "matte.png"}, ["around the subject", "the subject"])
    around, subject = (shown[name][..., 0] for name in ("around the subject", "the subject"))
    assert around[distance() > 35].min() > 250 and around[distance() < 20].max() < 5
    assert subject[distance() < 35].min() > 250 and subject[distance() > 52].max() < 5


@pytest.mark.slow
def test_cut_out_subject_goes_from_words_to_a_cut_out_of_the_photos_size(run):
    shown = run("Cut out subject", {"image": "photo.png"}, ["cutout", "alpha"], text="astronaut", box_threshold=0.0)
    assert shown["cutout"].shape == (HEIGHT, WIDTH, 4)
    np.testing.assert_array_equal(shown["cutout"][..., 3], shown["alpha"][..., 0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Cut out subject", "Matte to inpaint mask", "Replace background"])
def test_every_widget_of_a_blueprint_is_shown(place, name):
    page = place(name)
    page.wait_for_function(f"() => !LiteGraph.vueNodesMode || ({_WIDGETS})()[1].length > 0")
    there, drawn = page.evaluate(_WIDGETS)
    assert there and drawn == there
