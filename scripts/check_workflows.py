"""Opens every workflow of workflows/ in ComfyUI's real front end: `python3 scripts/check_workflows.py`

Each is opened in both renderers (classic, and Nodes 2.0) and has to come out as it went in: no unknown node, no lost
or impossible link, no widget with another value, no choice that is not offered, no node over another, every node inside
the group it belongs to, no link across a group's title, also when a run has put pictures into the nodes, which makes
them grow. Then the front end itself turns it into the API format; the result has to equal its twin in workflows/api,
which the main job and the tests send to the server.

    --write               writes the twins instead of comparing with them
    --screenshots FOLDER  keeps a picture of every graph in every renderer

It needs Chromium (`apt-get install chromium`, or `playwright install chromium`) and, for the Python in use, playwright
(`pip install playwright`), beside what the tests need. The variable CHROMIUM names another browser.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import environment

WORKFLOWS = environment.REPOSITORY / "workflows"
# What the workflows load from ComfyUI's input folder.
PICTURES = ("astronaut.png", "background.png", "products/one.png", "products/two.png", "scene.png", "scene-alpha.png")
VIDEOS = ("clip.mp4",)
# Weights for ComfyUI's own loaders, which offer only what is there; ours offer what was published.
CHECKPOINTS = (
    "v2-1_768-ema-pruned.safetensors",
    "sd_xl_base_1.0.safetensors",
    "512-inpainting-ema.safetensors",
    "instruct-pix2pix-00-22000.safetensors",
    "sam3.1_multiplex_fp16.safetensors",
)
RENDERERS = {"classic": False, "Nodes 2.0": True}
VIEWPORT_PX = {"width": 1680, "height": 1000}
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

_OPEN = """async (text) => {
  await app.loadGraphData(JSON.parse(text), true, true, null);
  await new Promise((done) => setTimeout(done, 900));
}"""

_EXAMINE = """async (text) => {
  const file = JSON.parse(text);
  const graph = app.rootGraph;
  const same = (a, b) => JSON.stringify(a ?? null) === JSON.stringify(b ?? null);
  const label = (node) => `${node.id} ${node.type}`;
  const problems = [];
  for (const node of graph.nodes)
    if (!(node.type in LiteGraph.registered_node_types)) problems.push(`unknown node: ${label(node)}`);

  const links = new Map([...graph.links.values()].map((link) => [link.id, link]));
  for (const [id, from, fromSlot, to, toSlot] of file.links) {
    const link = links.get(id);
    const kept = link && link.origin_id == from && link.target_id == to;
    if (!kept || link.origin_slot !== fromSlot || link.target_slot !== toSlot)
      problems.push(`lost link: ${id} from node ${from} to node ${to}`);
  }
  for (const link of links.values()) {
    const output = graph.getNodeById(link.origin_id)?.outputs?.[link.origin_slot];
    const input = graph.getNodeById(link.target_id)?.inputs?.[link.target_slot];
    if (!output || !input || input.link !== link.id || !LiteGraph.isValidConnection(output.type, input.type))
      problems.push(`impossible link: ${link.id} from node ${link.origin_id} to node ${link.target_id}`);
  }

  const now = new Map(graph.serialize().nodes.map((node) => [node.id, node]));
  const slots = (list) => (list ?? []).map((slot) => [slot.name, slot.type]);
  for (const before of file.nodes) {
    const after = now.get(before.id);
    if (!after) continue;
    if (!same(before.widgets_values, after.widgets_values))
      problems.push(`changed widgets: ${label(before)}: ${JSON.stringify(after.widgets_values)}`);
    if (!same(slots(before.inputs), slots(after.inputs)) || !same(slots(before.outputs), slots(after.outputs)))
      problems.push(`changed sockets: ${label(before)}`);
  }
  for (const node of graph.nodes)
    for (const widget of node.widgets ?? [])
      if (widget.type === "combo" && Array.isArray(widget.options?.values) &&
          !widget.options.values.includes(widget.value))
        problems.push(`choice that is not offered: ${label(node)}.${widget.name} = ${widget.value}`);

  let api = {};
  try {
    api = (await app.graphToPrompt()).output;
  } catch (error) {
    problems.push(`cannot be sent to the server: ${error}`);
  }
  return JSON.stringify({ problems, api });
}"""

# Nodes 2.0 lays nodes out in the page, so their true size there is that of their element.
_LAYOUT = """() => {
  const graph = app.rootGraph;
  const title = LiteGraph.NODE_TITLE_HEIGHT;
  const problems = [];
  const boxes = graph.nodes.map((node) => {
    const element = LiteGraph.vueNodesMode && document.querySelector(`[data-node-id="${node.id}"]`);
    const [x, y] = node.pos;
    const height = element ? element.offsetHeight - title : node.size[1];
    const width = element ? element.offsetWidth : node.size[0];
    return { name: `${node.id} ${node.type}`, x0: x, y0: y - title, x1: x + width, y1: y + height };
  });
  boxes.forEach((a, i) => {
    for (const b of boxes.slice(i + 1))
      if (a.x0 < b.x1 && b.x0 < a.x1 && a.y0 < b.y1 && b.y0 < a.y1) problems.push(`overlap: ${a.name}, ${b.name}`);
  });
  const groups = (graph.groups ?? []).map((group) => {
    const [x, y] = group.pos, [width, height] = group.size;
    return { name: group.title, x0: x, y0: y, x1: x + width, y1: y + height };
  });
  for (const box of boxes)
    for (const group of groups) {
      const touches = box.x0 < group.x1 && group.x0 < box.x1 && box.y0 < group.y1 && group.y0 < box.y1;
      const inside = box.x0 >= group.x0 && box.x1 <= group.x1 && box.y0 >= group.y0 && box.y1 <= group.y1;
      if (touches && !inside)
        problems.push(`half out of the group "${group.name}": ${box.name} ` +
          JSON.stringify([box, group].map(({ x0, y0, x1, y1 }) => [x0, y0, x1, y1].map(Math.round))));
    }

  // Where the front end writes a group's title. Of every link it keeps the path that it drew.
  const { GROUP_FONT, GROUP_TEXT_SIZE: size, NODE_TITLE_HEIGHT: bar } = LiteGraph;
  app.canvas.draw(true, true);
  const brush = document.createElement("canvas").getContext("2d");
  brush.font = `${size}px ${GROUP_FONT}`;
  brush.lineWidth = app.canvas.connections_width;
  const meets = (path, x0, y0, width) => {
    for (let x = x0; x <= x0 + width; x += 2)
      for (let y = y0; y <= y0 + size; y += 2) if (brush.isPointInStroke(path, x, y)) return true;
    return false;
  };
  for (const { title, pos: [x, y] } of graph.groups ?? [])
    for (const { path, id, origin_id, target_id } of graph.links.values())
      if (meets(path, x + size / 2, y + (bar - size) / 2, brush.measureText(title).width))
        problems.push(`crossed title: of "${title}", by link ${id} from node ${origin_id} to node ${target_id}`);
  return JSON.stringify(problems);
}"""

# What the server says of each node that shows pictures of its work, when a run has come to its end. Measure Matte is
# left out, whose table is not as high as a picture.
_SHOW_PICTURES = """async (filename) => {
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const showing = app.rootGraph.nodes.filter((node) => {
    const { name, has_intermediate_output } = LiteGraph.registered_node_types[node.type]?.nodeData ?? {};
    const ours = /^(MAM|ICM)_/.test(name) && has_intermediate_output;
    return ours || ["MAM_PreviewMatte", "SaveImage", "PreviewImage", "MaskPreview"].includes(name);
  });
  const images = [{ filename, subfolder: "", type: "input" }];
  for (const { id } of showing)
    app.api.dispatchCustomEvent("executed", { node: id, display_node: id, output: { images } });
  const loaded = ({ id, imgs }) =>
    LiteGraph.vueNodesMode ? document.querySelector(`[data-node-id="${id}"] img`)?.naturalWidth : imgs?.length;
  for (let tries = 0; tries < 50 && !showing.every(loaded); tries++) await pause(100);
  // A classic node grows when it is drawn with its picture.
  app.canvas.setDirty(true, true);
  await pause(300);
}"""

# All of the graph on the screen, beside ComfyUI's own bars.
_FIT = """async () => {
  const boxes = [...app.rootGraph.nodes, ...app.rootGraph.groups].map((item) => item.boundingRect ?? item._bounding);
  const x0 = Math.min(...boxes.map((b) => b[0])), y0 = Math.min(...boxes.map((b) => b[1]));
  const x1 = Math.max(...boxes.map((b) => b[0] + b[2])), y1 = Math.max(...boxes.map((b) => b[1] + b[3]));
  const room = { x: 70, y: 100, width: innerWidth - 90, height: innerHeight - 170 };
  const scale = Math.min(room.width / (x1 - x0), room.height / (y1 - y0), 1);
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset[0] = room.x / scale - x0 + (room.width / scale - (x1 - x0)) / 2;
  app.canvas.ds.offset[1] = room.y / scale - y0;
  app.canvas.setDirty(true, true);
  await new Promise((done) => setTimeout(done, 700));
}"""


class NoBrowser(RuntimeError):
    """playwright or Chromium is not there; the message says what to install."""


@dataclass(frozen=True)
class Opened:
    """What became of one workflow in the front end.

    Attributes:
        problems: sentences, empty when all is well.
        api: the workflow in the API format, as the front end would send it.
    """

    problems: tuple[str, ...]
    api: dict


class FrontEnd:
    """ComfyUI's front end in a headless Chromium, in one of its two renderers."""

    def __init__(self, page, address: str, errors: list[str]):
        self.page = page
        self._address = address
        self._errors = errors

    def start(self, nodes_2: bool, language: str = "en") -> None:
        """Loads the front end anew with classic nodes or Nodes 2.0."""
        settings = {
            "Comfy.Locale": language,
            "Comfy.VueNodes.Enabled": nodes_2,
            "Comfy.TutorialCompleted": True,
            "Comfy.UseNewMenu": "Top",
            "Comfy.Workflow.Persist": False,
            "Comfy.Validation.Workflows": True,
            "Comfy.Workflow.ShowMissingModelsWarning": False,
        }
        answer = self.page.request.post(f"{self._address}/api/settings", data=settings)
        assert answer.ok, f"the server did not take the settings: {answer.status}"
        self.page.goto(self._address)
        self.page.wait_for_function("window.app?.rootGraph && document.querySelector('#graph-canvas')", timeout=90_000)
        self.page.wait_for_timeout(1500)

    def open(self, workflow: dict) -> Opened:
        """Opens a workflow (UI format), examines it and turns it into the API format."""
        del self._errors[:]
        text = json.dumps(workflow)
        self.page.evaluate(_OPEN, text)
        seen = json.loads(self.page.evaluate(_EXAMINE, text))
        self.page.evaluate(_FIT)
        problems = seen["problems"] + json.loads(self.page.evaluate(_LAYOUT)) + self._errors
        return Opened(tuple(problems), seen["api"])

    def layout_after_a_run(self) -> tuple[str, ...]:
        """What is wrong with the places of the open workflow's nodes once they show pictures; sentences."""
        self.page.evaluate(_SHOW_PICTURES, PICTURES[0])
        return tuple(f"after a run: {problem}" for problem in json.loads(self.page.evaluate(_LAYOUT)))

    def screenshot(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(file))


@contextlib.contextmanager
def front_end(address: str) -> Iterator[FrontEnd]:
    """A browser on the server at `address`.

    Raises:
        NoBrowser: when playwright or Chromium is missing.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise NoBrowser(f"playwright is missing; install it with: {sys.executable} -m pip install playwright") from None
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=CHROMIUM_ARGUMENTS)
        except Error as error:
            raise NoBrowser(f"Chromium cannot be started; install it, or name one in CHROMIUM. {error}") from None
        page = browser.new_page(viewport=VIEWPORT_PX)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(f"error in the page: {error}"))
        yield FrontEnd(page, address, errors)
        browser.close()


def put_pictures(folder: Path) -> None:
    """Writes stand-ins for the pictures and videos that the workflows load; it needs ComfyUI's packages."""
    import av
    from PIL import Image

    picture = Image.new("RGB", (512, 512), (120, 140, 160))
    for name in PICTURES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name)
    for name in VIDEOS:
        with av.open(str(folder / name), "w") as video:
            stream = video.add_stream("h264", rate=8, width=512, height=512, pix_fmt="yuv420p")
            for _ in range(3):
                video.mux(stream.encode(av.VideoFrame.from_image(picture)))
            video.mux(stream.encode(None))


def put_checkpoints(models: Path) -> None:
    """Makes ComfyUI offer the checkpoints that the workflows load; the files are empty."""
    folder = models / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for name in CHECKPOINTS:
        (folder / name).touch()


def workflow_files() -> list[Path]:
    return sorted(WORKFLOWS.glob("*.json"))


def twin_of(file: Path) -> Path:
    """The API-format file that belongs to a workflow."""
    return file.parent / "api" / file.name


def as_twin(api: dict) -> str:
    return json.dumps(api, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    options = _arguments()
    place = environment.enter(__file__, for_tests=True)
    from comfyui_server import ComfyUIServer

    with tempfile.TemporaryDirectory(prefix="matting-anything-", ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        put_pictures(base / "input")
        put_checkpoints(base / "models")
        with ComfyUIServer(place.comfyui, base, environment.REPOSITORY, cpu=True) as server:
            try:
                with front_end(server.address) as browser:
                    trouble = _check_all(browser, options)
            except NoBrowser as missing:
                print(missing, file=sys.stderr)
                return 1
    print("Every workflow opens as it was saved." if not trouble else f"{trouble} problems.")
    return 1 if trouble else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write workflows/api instead of comparing with it")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="keep pictures of the graphs here")
    return parser.parse_args()


def _check_all(browser: FrontEnd, options: argparse.Namespace) -> int:
    trouble = 0
    for renderer, nodes_2 in RENDERERS.items():
        browser.start(nodes_2)
        for file in workflow_files():
            opened = browser.open(json.loads(file.read_text(encoding="utf-8")))
            if options.screenshots:
                browser.screenshot(options.screenshots / f"{file.stem} ({renderer}).png")
            problems = [*opened.problems, *browser.layout_after_a_run()]
            # The classic renderer is the one that decides; Nodes 2.0 has to agree with it.
            if options.write and not nodes_2:
                twin_of(file).parent.mkdir(exist_ok=True)
                twin_of(file).write_text(as_twin(opened.api), encoding="utf-8")
            problems += twin_problems(file, opened.api)
            print(f"{renderer:>9}: {file.stem}: {len(opened.api)} nodes, {len(problems) or 'no'} problems", flush=True)
            for problem in problems:
                print(f"           {problem}")
            trouble += len(problems)
    return trouble


def twin_problems(file: Path, api: dict) -> list[str]:
    """What is wrong with the API twin of a workflow, given what the front end makes of the workflow."""
    twin = twin_of(file)
    if not twin.is_file():
        return [f"there is no api/{twin.name}; make it with --write"]
    if json.loads(twin.read_text(encoding="utf-8")) != api:
        return [f"api/{twin.name} is not what the front end makes of it; renew it with --write"]
    return []


if __name__ == "__main__":
    sys.exit(main())
