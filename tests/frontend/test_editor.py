"""The prompt editor in ComfyUI's real front end, drawn on with the mouse, in both renderers.

A real server with tiny checkpoints answers. Skipped, saying so, where playwright or Chromium is missing.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
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

pytestmark = pytest.mark.slow

WIDTH, HEIGHT = 512, 384
# What the editor leaves free around a fitted picture, in CSS pixels.
FIT_MARGIN_PX = 6

_BUILD = """async ([file, models]) => {
  await app.loadGraphData({ id: crypto.randomUUID(), version: 0.4, last_node_id: 0, last_link_id: 0, nodes: [],
    links: [], groups: [], config: {}, extra: {} }, true, false, null);
  const add = (type, x, y, values = {}) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    for (const widget of node.widgets ?? []) if (widget.name in values) widget.value = values[widget.name];
    app.rootGraph.add(node);
    return node;
  };
  const load = add("LoadImage", 0, 60, { image: file });
  const editor = add("MAM_PromptEditor", 420, 60);
  load.connect(0, editor, editor.findInputSlot("image"));
  if (models) {
    const sam = add("MAM_LoadSAM", 0, 480, { sam_name: models[0] });
    const m2m = add("MAM_LoadM2M", 0, 640, { m2m_name: models[1] });
    sam.connect(0, editor, editor.findInputSlot("sam"));
    m2m.connect(0, editor, editor.findInputSlot("m2m"));
  }
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [40, 40];
  app.canvas.setDirty(true, true);
  app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();
}"""

# The editor nodes of the graph that is open, in their order.
_EDITORS = 'app.canvas.graph.nodes.filter((node) => node.comfyClass === "MAM_PromptEditor")'


# The editor asks the queue, and then the history, what has run, to know what its session was made from.
_TELL_WHEN_ASKED_WHAT_RAN = """() => {
  const { api } = window.comfyAPI.api;
  const { fetchApi } = api;
  window.askedWhatRan = false;
  api.fetchApi = async (path, ...options) => {
    const response = await fetchApi.call(api, path, ...options);
    const isTold = path === "/queue" && (await response.clone().json()).queue_running?.length > 0;
    if (isTold || (path.startsWith("/history/") && response.ok)) {
      api.fetchApi = fetchApi;
      window.askedWhatRan = true;
    }
    return response;
  };
}"""

_LOADER = 'app.rootGraph.nodes.find((node) => node.type === "LoadImage")'


def _run_the_graph(bench) -> None:
    """Runs all of it, until the page has asked what ran."""
    bench.page.evaluate(_TELL_WHEN_ASKED_WHAT_RAN)
    bench.page.evaluate("() => app.queuePrompt(0, 1)")
    bench.wait_run()
    bench.page.wait_for_function("window.askedWhatRan")


def _show_a_batch_of_two(bench) -> None:
    """Two frames before the editor, of which a run brought the first."""
    bench.page.evaluate(
        f"""() => {{
          const editor = {_EDITORS}[0], load = {_LOADER};
          const second = LiteGraph.createNode("LoadImage"), batch = LiteGraph.createNode("ImageBatch");
          app.rootGraph.add(second); app.rootGraph.add(batch);
          second.widgets[0].value = "sub/b.png";
          load.connect(0, batch, 0); second.connect(0, batch, 1);
          batch.connect(0, editor, editor.findInputSlot("image"));
        }}"""
    )
    bench.wait_state("idle", "Run once")
    bench.page.evaluate("() => app.queuePrompt(0, 1)")
    bench.wait_for_picture()
    bench.page.wait_for_function("document.querySelector('.mam-frames')?.offsetHeight > 0")


def _show_frame(bench, number: int) -> None:
    """The frame beside the one that is shown, by its button."""
    bench.page.locator(".mam-frames button").nth(number - 1).click()
    bench.page.mouse.move(1500, 900)
    bench.page.wait_for_function(f"document.querySelector('.mam-frames input[type=range]').value === '{number}'")


def _inner(pixels: np.ndarray) -> np.ndarray:
    """Signed integers: the surface without its border and the notes at it."""
    return pixels[60:-60, 60:-60].astype(int)


def _is_grey(pixels: np.ndarray) -> bool:
    """Whether the surface shows a matte alone, which has no colour but that of a point on it."""
    return (np.ptp(_inner(pixels), axis=-1) > 12).mean() < 0.02


class Bench:
    """A page with a Load Image, two models and a Prompt Editor, and everything the page has asked the server."""

    def __init__(self, front_end, server, errors):
        self.page = front_end.page
        self.server = server
        self.errors = errors
        self.asked: list[tuple[str, dict]] = []
        self.page.on("request", self._note)

    def _note(self, request):
        path = request.url.replace(self.server.address, "").partition("?")[0]
        if request.method == "POST" and path in ("/api/mam/live", "/api/prompt"):
            self.asked.append((path, json.loads(request.post_data)))

    def build(self, file="a.png", models=("tiny_sam.pth", "tiny_m2m.pth")):
        self.page.unroute_all(behavior="ignoreErrors")
        # The mouse would hover over what comes.
        self.page.mouse.move(1500, 900)
        self.server.post("/history", {"clear": True})
        self.page.evaluate(_BUILD, [file, models])
        self.settle()
        self.wait_for_picture()
        del self.asked[:], self.errors[:]

    def wait_for_picture(self):
        """Until the editor shows a picture: it has a zoom then."""
        zooms = "[...document.querySelectorAll('.mam-status > button')]"
        self.page.wait_for_function(f"{zooms}.some((button) => !button.hidden && /%/.test(button.textContent))")
        self.settle()

    def settle(self):
        """Until the page has laid itself out and painted twice."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def settle_graph(self):
        """Until the graph was not loaded anew for two seconds, as ComfyUI does some time after a change of language."""
        still = """() => new Promise((done) => {
            let editor = null, since = 0;
            const look = () => {
                const shown = document.querySelector('.mam-editor');
                if (shown !== editor) {
                    editor = shown;
                    since = performance.now();
                }
                return performance.now() - since > 2000 ? done() : setTimeout(look, 50);
            };
            look();
        })"""
        self.page.evaluate(still)

    # ------------------------------------------------------------------------------------------------------ what is

    @property
    def stage(self) -> dict:
        """The box of the picture's surface on the page."""
        return self.page.locator(".mam-stage").first.bounding_box()

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the picture lies on the page, while the picture is fitted."""
        box = self.stage
        margins = 2 * FIT_MARGIN_PX * self.page.evaluate("app.canvas.ds.scale")
        scale = min((box["width"] - margins) / WIDTH, (box["height"] - margins) / HEIGHT)
        return (
            box["x"] + box["width"] / 2 + (x - WIDTH / 2) * scale,
            box["y"] + box["height"] / 2 + (y - HEIGHT / 2) * scale,
        )

    def value(self, index: int = 0) -> dict:
        text = self.page.evaluate(f"{_EDITORS}[{index}].widgets.at(-1).value")
        return json.loads(text) if text else {"targets": []}

    def prompt(self, index: int = 0) -> dict:
        """What is drawn for the first target on all frames."""
        return self.value(index)["targets"][0]["prompts"]["all"]

    def points(self, index: int = 0) -> list[tuple[float, float, int]]:
        targets = self.value(index)["targets"]
        prompt = targets[0]["prompts"].get("all", {}) if targets else {}
        return [(point["x"], point["y"], point["label"]) for point in prompt.get("points", [])]

    @property
    def status(self) -> str:
        return self.page.locator(".mam-said").first.inner_text()

    def jobs(self) -> list[dict]:
        return [body for path, body in self.asked if path == "/api/prompt"]

    def questions(self, stage=None) -> list[dict]:
        return [body for path, body in self.asked if path == "/api/mam/live" and stage in (None, body["stage"])]

    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3]: the picture's surface as painted."""
        self.settle()
        return np.array(Image.open(io.BytesIO(self.page.screenshot(clip=self.stage))).convert("RGB"))

    def pixels_once(self, condition) -> np.ndarray:
        """The surface as soon as it fulfils a condition; fails when it does not come to that."""
        for _ in range(60):
            pixels = self.pixels()
            if condition(pixels):
                return pixels
            self.page.wait_for_timeout(50)
        raise AssertionError("the picture's surface did not come to look as was waited for")

    # ----------------------------------------------------------------------------------------------------- what is done

    def click(self, x: float, y: float, **how):
        self.page.mouse.click(*self.at(x, y), **how)
        self.page.mouse.move(1500, 900)

    def drag(self, *path: tuple[float, float]):
        self.page.mouse.move(*self.at(*path[0]))
        self.page.mouse.down()
        for place in path[1:]:
            self.page.mouse.move(*self.at(*place), steps=4)
        self.page.mouse.up()
        self.page.mouse.move(1500, 900)

    def press(self, key: str):
        """With the focus where it is."""
        self.page.keyboard.press(key)
        self.settle()

    def arrows(self, shift: bool = False, **presses: int):
        for direction, count in presses.items():
            for _ in range(count):
                self.page.keyboard.press(f"{'Shift+' if shift else ''}Arrow{direction}")
        self.settle()

    def leave(self):
        """Takes the focus to the empty graph."""
        self.page.mouse.click(1300, 700)
        self.settle()

    def wait_ready(self):
        self.wait_state("ready")

    def wait_state(self, state: str, text: str = ""):
        """Until the live preview of the first editor is in this state, with this in its sentence."""
        found = "const line = document.querySelector('.mam-status'); "
        found += "return line?.dataset.state === state && line.querySelector('.mam-said').innerText.includes(text);"
        # What was done just before is to have reached the editor.
        self.settle()
        self.page.wait_for_function(f"([state, text]) => {{ {found} }}", arg=[state, text], timeout=30_000)

    def wait_value(self, count: int, index: int = 0):
        """Until so many points are drawn."""
        counting = (
            f"(count) => {{ const text = {_EDITORS}[{index}]?.widgets.at(-1).value;"
            " const targets = text ? JSON.parse(text).targets : [];"
            " return (targets[0]?.prompts.all?.points.length ?? 0) === count; }"
        )
        self.page.wait_for_function(counting, arg=count)

    def wait_run(self):
        """Until the history holds a run of the editor node itself."""
        self.wait_server("/api/history", "(all) => Object.values(all).some(({ outputs }) => outputs['2'])")

    def wait_server(self, path: str, condition: str):
        """Until the server's answer to GET `path` fulfils a condition, a function in JavaScript."""
        self.page.evaluate(
            f"""async (path) => {{
              for (let left = 400; left > 0; left -= 1) {{
                if (({condition})(await (await fetch(path)).json())) return;
                await new Promise((done) => setTimeout(done, 50));
              }}
              throw new Error(`${{path}} did not come to what was waited for`);
            }}""",
            path,
        )

    def command(self, command: str):
        self.page.evaluate("(id) => app.extensionManager.command.execute(id)", command)
        self.settle()

    def set(self, **settings):
        for name, value in settings.items():
            self.page.evaluate(
                "([id, value]) => app.extensionManager.setting.set(id, value)",
                [name if "." in name else f"MattingAnything.{name}", value],
            )
        self.settle()

    def upload(self, file: str, picture: np.ndarray):
        """Puts a picture in ComfyUI's input folder, in the place of one of the same name."""
        png = io.BytesIO()
        Image.fromarray(picture).save(png, "PNG")
        part = {"name": file, "mimeType": "image/png", "buffer": png.getvalue()}
        answer = self.page.request.post(
            f"{self.server.address}/upload/image", multipart={"image": part, "overwrite": "true"}
        )
        assert answer.ok

    def choose_picture(self, file: str):
        self.page.evaluate(f"(file) => {{ {_LOADER}.widgets[0].value = file; }}", file)


def gradient(height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]: a disc before a gradient, which the classical engine can part."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([x * 200 // width, y * 200 // height, 200 - x * 200 // width], -1).astype(np.uint8)
    picture[(x - width * 0.4) ** 2 + (y - height * 0.5) ** 2 < (height * 0.3) ** 2] = (250, 220, 40)
    return picture


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_sam_file, tiny_m2m_file):
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        pytest.exit("Set COMFYUI_PATH to a ComfyUI folder, or run scripts/run_tests.py, which provides one.", 2)
    base = tmp_path_factory.mktemp("server")
    (base / "input" / "sub").mkdir(parents=True)
    Image.fromarray(gradient(HEIGHT, WIDTH)).save(base / "input" / "a.png")
    Image.fromarray(255 - gradient(HEIGHT, WIDTH)).save(base / "input" / "sub" / "b.png")
    Image.fromarray(gradient(100, 300)).save(base / "input" / "wide.png")
    # Larger than what editors out of sight may keep.
    Image.new("1", (9000, 7600)).save(base / "input" / "large.png")
    for file, folder in ((tiny_sam_file, "sams"), (tiny_m2m_file, "mam")):
        (base / "models" / folder).mkdir(parents=True)
        shutil.copy(file, base / "models" / folder / file.name)
    with comfyui_server.ComfyUIServer(Path(comfyui).resolve(), base, ROOT, cpu=True) as server:
        try:
            with check_workflows.front_end(server.address) as front_end:
                yield server, front_end
        except check_workflows.NoBrowser as missing:
            pytest.skip(str(missing))


@pytest.fixture(scope="module", params=check_workflows.RENDERERS)
def opened(place, request):
    server, front_end = place
    front_end.start(check_workflows.RENDERERS[request.param])
    return Bench(front_end, server, front_end._errors)


@pytest.fixture
def bench(opened):
    opened.build()
    yield opened
    opened.page.unroute_all(behavior="ignoreErrors")
    assert opened.errors == []


def near(place, expected, px=1.5):
    return all(abs(a - b) <= px for a, b in zip(place, expected))


class TestDrawing:
    def test_a_click_is_a_point_and_a_right_click_one_beside_the_subject(self, bench):
        bench.click(200, 190)
        bench.click(450, 60, button="right")
        first, second = bench.points()
        assert near(first[:2], (200, 190)) and first[2] == 1
        assert near(second[:2], (450, 60)) and second[2] == 0
        assert (bench.value()["width"], bench.value()["height"]) == (WIDTH, HEIGHT)

    @pytest.mark.parametrize("zoom", [0.6, 1.3])
    def test_a_click_lands_where_it_is_seen_at_any_zoom_of_the_graph(self, bench, zoom):
        bench.page.evaluate("(scale) => { Object.assign(app.canvas.ds, { scale, offset: [-300, 40] }); }", zoom)
        bench.page.evaluate("() => app.canvas.setDirty(true, true)")
        bench.settle()
        bench.click(200, 190)
        assert near(bench.points()[0][:2], (200, 190), 3)

    def test_delete_takes_the_point_and_not_the_node(self, bench):
        bench.click(200, 190)
        bench.press("Delete")
        bench.press("Delete")
        assert bench.points() == []
        assert bench.page.evaluate(f"{_EDITORS}.length") == 1

    def test_delete_and_arrows_during_a_drag_take_neither_the_node_nor_what_is_not_drawn_yet(self, bench):
        bench.page.mouse.move(*bench.at(100, 100))
        bench.page.mouse.down()
        bench.page.mouse.move(*bench.at(140, 190))
        bench.press("ArrowLeft")
        assert near(bench.points()[0][:2], (140, 190))
        bench.press("Delete")
        bench.page.mouse.up()
        assert bench.page.evaluate(f"{_EDITORS}.length") == 1
        assert bench.value()["targets"] == []

    def test_delete_gives_up_a_box_that_is_drawn_by_keys(self, bench):
        bench.page.locator(".mam-editor").first.focus()
        bench.press("b")
        bench.arrows(Right=1)
        for key, towards in (("Delete", ("Right", "Down")), ("Shift+C", ("Left", "Up"))):
            bench.press("Enter")
            bench.arrows(shift=True, **dict.fromkeys(towards, 4))
            assert bench.prompt()["box"]["width"] > 10
            bench.press(key)
            assert bench.value()["targets"] == []
        assert bench.page.evaluate(f"{_EDITORS}.length") == 1

    def test_delete_after_a_double_click_takes_no_other_point(self, bench):
        for x in (100, 200, 300):
            bench.click(x, 190)
        bench.page.mouse.dblclick(*bench.at(100, 190))
        bench.press("Delete")
        assert [x for x, _, _ in bench.points()] == pytest.approx([200, 300], abs=1.5)

    def test_a_drag_is_a_box(self, bench):
        bench.click(10, 10)
        bench.press("b")
        bench.drag((100, 80), (300, 300))
        box = bench.prompt()["box"]
        assert near((box["x"], box["y"], box["width"], box["height"]), (100, 80, 200, 220), 3)

    def test_the_brush_paints_the_subject_what_is_beside_it_and_what_is_unknown_and_the_eraser_takes_away(self, bench):
        bench.click(10, 10)
        bench.press("p")
        bench.drag((150, 190), (250, 190))
        bench.page.keyboard.down("Shift")
        bench.drag((20, 350), (480, 350))
        bench.page.keyboard.up("Shift")
        bench.press("u")
        bench.drag((60, 100), (60, 300))
        bench.press("e")
        bench.drag((200, 150), (200, 230))
        strokes = bench.prompt()["strokes"]
        assert [stroke["kind"] for stroke in strokes] == ["foreground", "background", "unknown", "eraser"]
        assert near(strokes[0]["path"][:2], (150, 190)) and near(strokes[0]["path"][-2:], (250, 190))

    def test_a_box_is_drawn_by_keys_and_the_mask_follows_the_corner(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        bench.press("Escape")
        bench.page.mouse.move(*bench.at(100, 80))
        bench.press("b")
        bench.arrows(Right=1, Left=1)
        bench.press("Enter")
        bench.arrows(Right=5)
        with bench.page.expect_response("**/mam/live") as answered:
            bench.arrows(Down=4, shift=True)
        assert answered.value.ok and bench.questions("matte") == []
        while_drawn = bench.prompt()["box"]
        assert while_drawn["width"] > 10 and while_drawn["height"] > 100
        bench.press("Enter")
        bench.wait_ready()
        assert bench.prompt()["box"] == while_drawn
        assert near((while_drawn["x"], while_drawn["y"]), (100, 80), 3)
        assert bench.questions("matte")[-1]["prompt"] == bench.prompt()
        bench.press("Control+z")
        assert bench.prompt()["box"] is None and len(bench.points()) == 1

    def test_a_stroke_is_painted_by_keys_and_escape_gives_it_up(self, bench):
        bench.click(10, 10)
        bench.press("p")
        bench.press("Escape")
        bench.arrows(Right=1)
        bench.press("Enter")
        bench.arrows(Right=3, Down=2, shift=True)
        bench.press("Enter")
        (stroke,) = bench.prompt()["strokes"]
        (x0, y0), (x1, y1) = stroke["path"][:2], stroke["path"][-2:]
        assert x1 - x0 > 50 and y1 - y0 > 30
        bench.arrows(Left=2)
        bench.press("Enter")
        bench.arrows(Left=3, shift=True)
        assert len(bench.prompt()["strokes"]) == 2
        bench.press("Escape")
        assert bench.prompt()["strokes"] == [stroke]

    def test_keys_reach_what_the_zoomed_picture_hides(self, bench):
        bench.click(10, 10)
        bench.press("Escape")
        for _ in range(6):
            bench.press("+")
        bench.press("b")
        bench.arrows(Right=1)
        bench.press("Enter")
        bench.arrows(Right=25, Down=25, shift=True)
        bench.press("Enter")
        box = bench.prompt()["box"]
        assert near((box["x"] + box["width"], box["y"] + box["height"]), (WIDTH, HEIGHT), 0.5)

    def test_the_matte_appears_over_the_subject(self, bench):
        before = bench.pixels()
        bench.click(200, 190)
        bench.wait_ready()
        after = bench.pixels()
        changed = (np.abs(after.astype(int) - before).max(-1) > 8).mean()
        # The point itself covers less than one percent.
        assert changed > 0.1

    def test_every_edit_is_answered_by_a_mask_and_then_by_a_matte(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        assert [job["partial_execution_targets"] for job in bench.jobs()] == [["2-live"]]
        assert bench.questions() == []
        bench.click(300, 100)
        bench.wait_ready()
        assert [question["stage"] for question in bench.questions()] == ["mask", "matte"]
        sent = bench.questions("matte")[0]
        assert sent["prompt"] == bench.prompt()
        assert (sent["width"], sent["height"]) == (WIDTH, HEIGHT)
        assert len(bench.jobs()) == 1

    def test_a_point_that_is_dragged_takes_the_mask_along(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        bench.page.mouse.move(*bench.at(200, 190))
        bench.page.mouse.down()
        bench.page.mouse.move(*bench.at(260, 210), steps=5)
        with bench.page.expect_response("**/mam/live") as answered:
            bench.page.mouse.move(*bench.at(300, 230), steps=5)
        assert answered.value.ok
        assert bench.questions("matte") == []
        bench.page.mouse.up()
        bench.wait_ready()
        assert near(bench.points()[0][:2], (300, 230), 3)
        assert bench.questions("matte")[-1]["prompt"] == bench.prompt()

    @pytest.mark.parametrize(("key", "part"), [("b", "box"), ("p", "strokes")])
    def test_the_mask_follows_a_box_and_a_brush_while_they_are_dragged(self, bench, key, part):
        bench.click(200, 190)
        bench.wait_ready()
        bench.press(key)
        bench.page.mouse.move(*bench.at(100, 100))
        bench.page.mouse.down()
        with bench.page.expect_response("**/mam/live"):
            bench.page.mouse.move(*bench.at(180, 200), steps=5)
        # The mask of the drag is painted once the next is asked for.
        with bench.page.expect_response("**/mam/live"):
            bench.page.mouse.move(*bench.at(260, 290), steps=5)
        asked = bench.questions()
        assert {question["stage"] for question in asked} == {"mask"}
        assert asked[0]["prompt"][part] and asked[0]["prompt"][part] != asked[-1]["prompt"][part]
        bench.page.mouse.up()
        bench.page.mouse.move(1500, 900)
        bench.wait_ready()
        assert bench.questions("matte")[-1]["prompt"] == bench.prompt()
        assert len(bench.questions("matte")) == 1

    def test_a_pen_draws_and_its_barrel_button_and_its_other_end_do_what_they_say(self, bench):
        pen = bench.page.context.new_cdp_session(bench.page)

        def draw(button: str, buttons: int, *path: tuple[float, float]):
            common = {"pointerType": "pen", "button": button, "clickCount": 1, "force": 0.5}
            places = [dict(zip("xy", bench.at(*place))) for place in path]
            pen.send("Input.dispatchMouseEvent", {"type": "mousePressed", "buttons": buttons, **common, **places[0]})
            for place in places[1:]:
                moved = {"type": "mouseMoved", "buttons": buttons, **common, **place}
                pen.send("Input.dispatchMouseEvent", moved)
            pen.send("Input.dispatchMouseEvent", {"type": "mouseReleased", "buttons": 0, **common, **places[-1]})
            bench.settle()

        seen = "window.pens = []; document.querySelector('.mam-stage').addEventListener('pointerdown', (event) => "
        seen += "window.pens.push([event.pointerType, event.button, event.buttons]), true);"
        bench.page.evaluate(f"() => {{ {seen} }}")
        draw("left", 1, (200, 190))
        draw("right", 2, (450, 60))
        assert [label for _, _, label in bench.points()] == [1, 0]
        bench.press("p")
        draw("left", 1, (150, 190), (200, 200), (250, 190))
        draw("right", 2, (20, 350), (200, 340), (480, 350))
        assert [stroke["kind"] for stroke in bench.prompt()["strokes"]] == ["foreground", "background"]
        assert bench.page.evaluate("window.pens") == [["pen", 0, 1], ["pen", 2, 2]] * 2
        # The browser's own tools press no eraser. The events it makes of one, by the pointer that it knows:
        bench.page.evaluate(
            """(path) => path.forEach(([x, y], index) => {
              const type = index === 0 ? "pointerdown" : index < path.length - 1 ? "pointermove" : "pointerup";
              const [button, buttons] = { pointerdown: [5, 32], pointermove: [-1, 32], pointerup: [5, 0] }[type];
              const about = { pointerType: "pen", pointerId: 1, isPrimary: true, bubbles: true };
              const event = new PointerEvent(type, { ...about, button, buttons, clientX: x, clientY: y });
              document.elementFromPoint(x, y).dispatchEvent(event);
            })""",
            [bench.at(*place) for place in ((200, 150), (200, 190), (200, 230), (200, 230))],
        )
        bench.settle()
        strokes = bench.prompt()["strokes"]
        assert [stroke["kind"] for stroke in strokes] == ["foreground", "background", "eraser"]
        assert near(strokes[-1]["path"][:2], (200, 150)) and near(strokes[-1]["path"][-2:], (200, 230))

    def test_a_palm_neither_keeps_the_pen_from_drawing_nor_takes_its_stroke_away(self, bench):
        bench.click(10, 10)
        bench.press("p")
        input = bench.page.context.new_cdp_session(bench.page)
        palm = dict(zip("xy", bench.at(400, 300)))

        def touch(kind: str, *points: dict):
            input.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

        def pen(kind: str, buttons: int, x: float, y: float):
            about = {"pointerType": "pen", "button": "left", "buttons": buttons, "clickCount": 1}
            input.send("Input.dispatchMouseEvent", {"type": kind, **about, **dict(zip("xy", bench.at(x, y)))})

        for first in ("palm", "pen"):
            if first == "palm":
                touch("touchStart", palm)
            pen("mousePressed", 1, 150, 190)
            if first == "pen":
                touch("touchStart", palm)
            pen("mouseMoved", 1, 200, 200)
            touch("touchCancel")
            pen("mouseMoved", 1, 250, 190)
            pen("mouseReleased", 0, 250, 190)
            bench.settle()
            (stroke,) = bench.prompt()["strokes"]
            assert near(stroke["path"][:2], (150, 190)) and near(stroke["path"][-2:], (250, 190))
            bench.press("Control+z")

    def test_without_models_the_classical_engine_answers(self, opened):
        opened.build(models=None)
        opened.click(200, 190)
        opened.press("b")
        opened.drag((60, 60), (350, 330))
        opened.wait_ready()
        assert "Without models" in opened.status


class TestUndo:
    def test_undo_and_redo_in_the_editor_step_through_what_was_drawn(self, bench):
        for x in (100, 200, 300):
            bench.click(x, 190)
        nodes = bench.page.evaluate_handle(f"{_EDITORS}[0]")
        bench.press("Control+z")
        bench.press("Control+z")
        assert len(bench.points()) == 1
        bench.press("Control+y")
        assert len(bench.points()) == 2
        # The graph was not loaded anew for it.
        assert bench.page.evaluate(f"(node) => node === {_EDITORS}[0]", nodes)

    def test_undo_after_a_press_of_a_button_stays_in_the_editor(self, bench):
        bench.click(100, 190)
        bench.click(200, 190)
        node = bench.page.evaluate_handle(f"{_EDITORS}[0]")
        bench.page.locator(".mam-tool").first.click()
        bench.press("Control+z")
        assert len(bench.points()) == 1
        assert bench.page.evaluate(f"(node) => node === {_EDITORS}[0]", node)

    def test_the_graph_undoes_drawing_too_and_loses_neither_picture_nor_matte_nor_history(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        bench.click(300, 100)
        bench.wait_ready()
        two = bench.pixels()
        bench.leave()
        bench.press("Control+z")
        bench.wait_value(1)
        bench.press("Control+y")
        bench.wait_value(2)
        bench.wait_ready()
        assert np.abs(bench.pixels().astype(int) - two).mean() < 3
        assert len(bench.jobs()) == 1, "the picture was encoded again"
        bench.page.locator(".mam-stage").first.focus()
        bench.page.locator(".mam-editor").first.focus()
        bench.press("Control+z")
        assert len(bench.points()) == 1

    def test_a_deleted_editor_comes_back_with_its_drawing(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        bench.leave()
        bench.page.evaluate(f"() => app.canvas.selectNode({_EDITORS}[0])")
        bench.command("Comfy.Canvas.DeleteSelectedItems")
        bench.page.wait_for_function(f"{_EDITORS}.length === 0")
        bench.command("Comfy.Undo")
        bench.wait_value(1)
        bench.wait_for_picture()
        assert len(bench.jobs()) == 1


class TestLife:
    def test_a_deleted_editor_that_nobody_came_back_for_gives_up_its_pixels(self, bench):
        canvas = bench.page.evaluate_handle("document.querySelector('.mam-stage canvas')")
        assert bench.page.evaluate("(canvas) => canvas.width", canvas) > 0
        # As many as are kept for an undo.
        bench.page.evaluate(
            f"""async () => {{
              app.rootGraph.remove({_EDITORS}[0]);
              for (let count = 0; count < 48; count += 1) {{
                const node = LiteGraph.createNode("MAM_PromptEditor");
                app.rootGraph.add(node);
                await new Promise((done) => setTimeout(done));
                app.rootGraph.remove(node);
              }}
            }}"""
        )
        bench.page.wait_for_function("(canvas) => canvas.width === 0", arg=canvas)

    def test_a_reloaded_page_shows_the_drawing_and_runs_nothing(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        workflow = bench.page.evaluate("JSON.stringify(app.rootGraph.serialize())")
        drawn = bench.value()
        bench.page.reload()
        bench.page.wait_for_function("window.app?.rootGraph && document.querySelector('#graph-canvas')", timeout=90_000)
        del bench.asked[:]
        bench.page.evaluate("(text) => app.loadGraphData(JSON.parse(text), true, true, null)", workflow)
        bench.wait_for_picture()
        assert bench.value() == drawn
        assert bench.asked == []

    def test_an_editor_that_was_saved_collapsed_opens_in_its_least_size(self, bench):
        bench.page.evaluate(f"{_EDITORS}[0].collapse()")
        bench.page.wait_for_function("!document.querySelector('.mam-stage')?.offsetHeight")
        bench.settle()
        workflow = bench.page.evaluate("JSON.stringify(app.rootGraph.serialize())")
        bench.page.evaluate("(text) => app.loadGraphData(JSON.parse(text), true, true, null)", workflow)
        bench.page.wait_for_function(f"{_EDITORS}[0].flags.collapsed")
        bench.settle()
        bench.page.evaluate(f"{_EDITORS}[0].collapse()")
        bench.page.wait_for_function("document.querySelector('.mam-stage')?.offsetHeight > 0")
        bench.settle()
        width, height = bench.page.evaluate(f"[...{_EDITORS}[0].size]")
        assert width >= 420 and height >= 640
        assert bench.stage["width"] > 350 and bench.stage["height"] > 200

    def test_in_app_mode_the_editor_is_high_enough_to_draw_in(self, bench):
        app = """async (workflow) => {
          workflow.extra.linearMode = true;
          workflow.extra.linearData = { inputs: [["2", "prompts"]], outputs: ["2"] };
          await app.loadGraphData(workflow, true, true, null);
        }"""
        bench.page.evaluate(app, bench.page.evaluate("app.rootGraph.serialize()"))
        bench.page.wait_for_selector("[data-testid=app-mode-widget-item] .mam-stage")
        bench.settle()
        assert bench.stage["height"] > 300
        bench.page.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")
        bench.page.wait_for_selector("[data-testid=app-mode-widget-item]", state="detached")

    def test_a_copy_has_a_drawing_of_its_own(self, bench):
        bench.click(200, 190)
        bench.leave()
        bench.page.evaluate(f"() => {{ app.canvas.selectNode({_EDITORS}[0]); app.canvas.copyToClipboard(); }}")
        bench.page.evaluate("() => { app.canvas.graph_mouse = [900, 100]; app.canvas.pasteFromClipboard(); }")
        bench.page.wait_for_function(f"{_EDITORS}.length === 2")
        bench.wait_value(1, index=1)
        bench.click(300, 100)
        assert len(bench.points(0)) + len(bench.points(1)) == 3

    def test_another_workflow_in_between_costs_nothing(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        before = bench.pixels()
        bench.command("Comfy.NewBlankWorkflow")
        bench.page.wait_for_function(f"{_EDITORS}.length === 0")
        bench.command("Workspace.PreviousOpenedWorkflow")
        bench.wait_value(1)
        bench.wait_for_picture()
        bench.wait_ready()
        bench.page.mouse.move(1500, 900)
        assert np.abs(bench.pixels().astype(int) - before).mean() < 3
        assert len(bench.jobs()) == 1

    def test_a_large_picture_out_of_sight_gives_its_memory_back_and_is_loaded_again(self, opened):
        fetched = []
        # The Load Image node shows the file too, as an image of the page.
        opened.page.on("request", lambda asked: asked.resource_type == "fetch" and fetched.append(asked.url))
        opened.set(Live=False)
        try:
            opened.build("large.png", models=None)
            loaded = [url for url in fetched if "large.png" in url]
            for x in (200, 300):
                opened.page.mouse.click(opened.stage["x"] + x, opened.stage["y"] + 200)
            opened.press("Escape")
            opened.press("+")
            opened.settle()
            drawn, zoom = opened.value(), opened.page.locator(".mam-fit").first.inner_text()
            canvas = opened.page.evaluate_handle("document.querySelector('.mam-stage canvas')")
            opened.command("Comfy.NewBlankWorkflow")
            opened.page.wait_for_function("(canvas) => canvas.width === 0", arg=canvas)
            assert [url for url in fetched if "large.png" in url] == loaded
            opened.command("Workspace.PreviousOpenedWorkflow")
            opened.page.wait_for_function("(canvas) => canvas.isConnected && canvas.width > 0", arg=canvas)
            opened.wait_for_picture()
            opened.page.wait_for_function("document.querySelector('.mam-empty')?.offsetHeight === 0")
            assert [url for url in fetched if "large.png" in url] == 2 * loaded
            assert opened.value() == drawn and len(opened.points()) == 2
            assert opened.page.locator(".mam-fit").first.inner_text() == zoom
            opened.page.locator(".mam-editor").first.focus()
            opened.press("Control+z")
            assert len(opened.points()) == 1
        finally:
            # Out of sight again, so that nobody mattes it.
            opened.command("Comfy.NewBlankWorkflow")
            opened.page.wait_for_function(f"{_EDITORS}.length === 0")
            opened.set(Live=True)

    def test_a_large_picture_in_a_subgraph_is_loaded_when_the_subgraph_is_opened(self, opened):
        fetched = []
        opened.page.on("request", lambda asked: asked.resource_type == "fetch" and fetched.append(asked.url))
        opened.set(Live=False)
        try:
            opened.build("large.png", models=None)
            opened.page.mouse.click(opened.stage["x"] + 200, opened.stage["y"] + 200)
            drawn = opened.value()
            opened.page.evaluate(f"() => app.canvas.selectNode({_EDITORS}[0])")
            opened.command("Comfy.Graph.ConvertToSubgraph")
            opened.page.wait_for_function("app.rootGraph.nodes.some((node) => node.isSubgraphNode?.())")
            inside = "[...app.rootGraph.subgraphs.values()][0].nodes[0].widgets.at(-1).element"
            emptied = f"[...{inside}.querySelectorAll('canvas')].every((canvas) => canvas.width === 0)"
            opened.page.wait_for_function(emptied)
            before = len([url for url in fetched if "large.png" in url])
            opened.page.evaluate(
                "() => { const node = app.rootGraph.nodes.find((node) => node.isSubgraphNode?.());"
                " app.canvas.openSubgraph(node.subgraph, node); }"
            )
            opened.page.wait_for_function(f"!{emptied}")
            opened.wait_for_picture()
            opened.page.wait_for_function("document.querySelector('.mam-empty')?.offsetHeight === 0")
            assert len([url for url in fetched if "large.png" in url]) == before + 1
            assert opened.value() == drawn and len(opened.points()) == 1
        finally:
            # Out of sight again, so that nobody mattes it.
            opened.command("Comfy.NewBlankWorkflow")
            opened.page.wait_for_function(f"{_EDITORS}.length === 0")
            opened.set(Live=True)

    def test_the_other_renderer_takes_over_what_is_drawn(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        now = bench.page.evaluate("LiteGraph.vueNodesMode")
        try:
            bench.set(**{"Comfy.VueNodes.Enabled": not now})
            bench.page.wait_for_function("(mode) => LiteGraph.vueNodesMode === mode", arg=not now)
            bench.wait_for_picture()
            bench.page.wait_for_function("document.querySelector('.mam-stage')?.clientHeight > 100")
            bench.settle()
            bench.click(300, 100)
            bench.wait_value(2)
            assert near(bench.points()[1][:2], (300, 100), 3)
            bench.wait_ready()
            assert len(bench.jobs()) == 1
        finally:
            bench.set(**{"Comfy.VueNodes.Enabled": now})
            bench.page.wait_for_function("(mode) => LiteGraph.vueNodesMode === mode", arg=now)

    def test_in_a_subgraph_it_draws_mattes_and_runs(self, bench):
        bench.page.evaluate(f"() => app.canvas.selectNode({_EDITORS}[0])")
        bench.command("Comfy.Graph.ConvertToSubgraph")
        bench.page.wait_for_function("app.rootGraph.nodes.some((node) => node.isSubgraphNode?.())")
        bench.page.evaluate(
            "() => { const node = app.rootGraph.nodes.find((node) => node.isSubgraphNode?.());"
            " app.canvas.openSubgraph(node.subgraph, node); }"
        )
        bench.page.wait_for_function("document.querySelector('.mam-stage')?.clientHeight > 100")
        bench.page.evaluate(
            f"() => {{ const {{ ds }} = app.canvas; ds.scale = 1; const [x, y] = {_EDITORS}[0].pos;"
            " ds.offset = [420 - x, 120 - y]; app.canvas.setDirty(true, true); }"
        )
        bench.wait_for_picture()
        bench.click(200, 190)
        bench.wait_ready()
        assert near(bench.points()[0][:2], (200, 190), 3)
        (job,) = bench.jobs()
        assert job["partial_execution_targets"][0].endswith("-live") and ":" in job["partial_execution_targets"][0]

    def test_in_the_panel_of_properties_it_is_not_shown_a_second_time(self, bench):
        bench.page.evaluate(f"() => app.canvas.selectNode({_EDITORS}[0])")
        panel = bench.page.get_by_role("button", name="Toggle properties panel")
        panel.click()
        bench.page.get_by_text("Advanced Inputs").last.wait_for()
        bench.settle()
        assert bench.page.locator(".mam-editor").count() == 1
        assert bench.stage["width"] > 300
        panel.or_(bench.page.get_by_role("button", name="Close")).first.click()


class TestSource:
    @pytest.mark.parametrize("file", ["sub/b.png", "sub/b.png [input]"])
    def test_a_picture_in_a_folder_is_shown_before_anything_has_run(self, opened, file):
        opened.build(file)
        assert opened.jobs() == []
        # The disc of the second picture is blue.
        middle = opened.pixels()[int(opened.stage["height"] / 2), int(opened.stage["width"] * 0.4)]
        assert middle[2] > 150 and middle[0] < 90

    def test_it_is_found_through_a_reroute_and_past_a_bypassed_node(self, bench):
        bench.page.evaluate(
            f"""() => {{
              const editor = {_EDITORS}[0], load = app.rootGraph.nodes.find((node) => node.type === "LoadImage");
              const between = LiteGraph.createNode("ImageInvert"), reroute = LiteGraph.createNode("Reroute");
              app.rootGraph.add(between); app.rootGraph.add(reroute);
              load.connect(0, between, 0); between.connect(0, reroute, 0);
              reroute.connect(0, editor, editor.findInputSlot("image"));
              between.mode = 4;
            }}"""
        )
        bench.wait_for_picture()
        bench.click(200, 190)
        bench.wait_ready()
        assert len(bench.points()) == 1

    def test_another_picture_is_shown_at_once_and_encoded_with_the_next_edit(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        before = bench.pixels()
        bench.choose_picture("sub/b.png")
        bench.page.wait_for_function("document.querySelector('.mam-status').dataset.state === 'idle'")
        bench.settle()
        assert np.abs(bench.pixels().astype(int) - before).mean() > 20
        assert len(bench.jobs()) == 1
        bench.click(300, 100)
        bench.wait_ready()
        assert len(bench.jobs()) == 2
        assert bench.jobs()[1]["prompt"]["1"]["inputs"]["image"] == "sub/b.png"

    def test_a_changed_setting_of_the_node_is_encoded_with_the_next_edit(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        bench.page.evaluate(f"() => {{ {_EDITORS}[0].widgets.find(({{ name }}) => name === 'width_os8').value = 21; }}")
        bench.click(300, 100)
        bench.wait_ready()
        assert bench.jobs()[-1]["prompt"]["2-live"]["inputs"]["width_os8"] == 21

    def test_frames_of_a_batch_are_encoded_one_by_one(self, bench):
        _show_a_batch_of_two(bench)
        first = bench.pixels()
        _show_frame(bench, 2)
        bench.wait_state("idle")
        assert [job["prompt"]["2-live"]["inputs"]["frame"] for job in bench.jobs() if "2-live" in job["prompt"]] == [1]
        assert np.abs(bench.pixels().astype(int) - first).mean() > 20

    def test_where_nothing_is_drawn_another_picture_is_taken_as_it_is(self, bench):
        bench.click(200, 190)
        bench.press("Shift+C")
        bench.wait_value(0)
        fitted = bench.page.locator(".mam-fit").first.inner_text()
        bench.choose_picture("wide.png")
        bench.page.wait_for_function(
            "(fitted) => document.querySelector('.mam-fit').textContent !== fitted", arg=fitted
        )
        assert bench.page.locator(".mam-other").first.is_hidden()
        bench.page.locator(".mam-editor").first.focus()
        bench.arrows(Right=1)
        bench.press("Enter")
        assert (bench.value()["width"], bench.value()["height"]) == (300, 100) and len(bench.points()) == 1

    def test_a_file_that_was_replaced_by_one_of_the_same_name_is_shown_with_its_own_matte_after_a_run(self, opened):
        bench = opened
        bench.upload("replaced.png", gradient(HEIGHT, WIDTH))
        bench.build("replaced.png")
        bench.click(200, 190)
        bench.wait_ready()
        bench.page.locator(".mam-menu select").first.select_option("none")
        bench.page.mouse.move(1500, 900)
        before = bench.pixels()
        asked = len(bench.questions())
        bench.upload("replaced.png", 255 - gradient(HEIGHT, WIDTH))
        _run_the_graph(bench)
        bench.pixels_once(lambda pixels: np.abs(_inner(pixels) - _inner(before)).mean() > 20)
        bench.wait_ready()
        assert [question["stage"] for question in bench.questions()[asked:]] == ["mask", "matte"]

    def test_each_frame_shows_the_matte_that_is_its_own(self, bench):
        _show_a_batch_of_two(bench)
        bench.page.locator(".mam-menu select").first.select_option("alpha")
        bench.click(200, 190)
        # A ring is around the point that is selected.
        bench.press("Escape")
        bench.wait_ready()
        first = bench.pixels()
        with bench.page.expect_response("**/mam/live/picture*"):
            _show_frame(bench, 2)
        bench.wait_ready()
        # A matte is grey; without one the picture itself is shown.
        second = bench.pixels_once(_is_grey)
        with bench.page.expect_response("**/mam/live/picture*"):
            _show_frame(bench, 1)
        bench.wait_ready()
        bench.pixels_once(lambda pixels: np.abs(_inner(pixels) - _inner(first)).mean() < 1)
        assert np.abs(_inner(second) - _inner(first)).mean() > 5

    def test_a_run_that_brings_the_size_of_the_picture_shows_its_matte(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        with bench.page.expect_response("**/mam/live/picture*"):
            bench.page.evaluate(
                f"""() => {{
                  const editor = {_EDITORS}[0], scale = LiteGraph.createNode("ImageScaleBy");
                  app.rootGraph.add(scale);
                  scale.widgets.find(({{ name }}) => name === "scale_by").value = 0.5;
                  {_LOADER}.connect(0, scale, 0); scale.connect(0, editor, editor.findInputSlot("image"));
                }}"""
            )
            bench.wait_state("idle", "Run once")
            bench.page.locator(".mam-editor").first.focus()
            bench.press("l")
            bench.press("l")
        bench.page.locator(".mam-menu select").first.select_option("alpha")
        bench.wait_for_picture()
        bench.wait_ready()
        bench.pixels_once(_is_grey)

    def test_a_drawing_that_would_grow_too_long_when_it_is_stretched_stays_as_it_was(self, bench):
        stroke = {"kind": "foreground", "width": 2, "path": [9.1] * 20_000}
        target = {"prompts": {"all": {"strokes": [stroke] * 10}}}
        drawn = json.dumps({"version": 1, "width": 20, "height": 10, "targets": [target]}, separators=(",", ":"))
        bench.page.evaluate(f"(value) => {{ {_EDITORS}[0].widgets.at(-1).value = value; }}", drawn)
        bench.page.locator(".mam-other button").first.click()
        bench.page.wait_for_function("document.querySelector('.mam-said').innerText.includes('1000000 characters')")
        assert bench.value()["width"] == 20


class TestRunning:
    def test_what_runs_is_what_was_drawn(self, bench):
        bench.click(200, 190)
        bench.click(450, 60, button="right")
        bench.wait_ready()
        drawn = bench.value()
        del bench.asked[:]
        bench.page.evaluate("() => app.queuePrompt(0, 1)")
        bench.wait_run()
        (run,) = bench.jobs()
        assert json.loads(run["prompt"]["2"]["inputs"]["prompts"]) == drawn
        history = bench.server.get("/history")
        (entry,) = [entry for entry in history.values() if "2" in entry["outputs"]]
        assert entry["prompt"][2]["2"]["inputs"] == run["prompt"]["2"]["inputs"]
        assert entry["status"]["completed"]
        assert "mam_live" in entry["outputs"]["2"]

    def test_after_a_run_the_next_edit_needs_no_job(self, bench):
        bench.set(Live=False)
        bench.click(200, 190)
        _run_the_graph(bench)
        bench.settle()
        bench.set(Live=True)
        bench.wait_ready()
        bench.click(300, 100)
        bench.wait_state("ready")
        assert ["2-live" in job["prompt"] for job in bench.jobs()] == [False]

    @pytest.mark.parametrize("way", ["worker", "queue"])
    def test_drawing_on_what_a_run_made_by_chance_makes_no_other_picture(self, bench, way):
        bench.page.evaluate(
            f"""() => {{
              const editor = {_EDITORS}[0], noise = LiteGraph.createNode("ImageAddNoise");
              app.rootGraph.add(noise);
              // As a prompt of which a part is left to chance: each run gets another value.
              Object.assign(noise.widgets.at(-1), {{ dynamicPrompts: true, serializeValue: () => Math.random() }});
              {_LOADER}.connect(0, noise, 0); noise.connect(0, editor, editor.findInputSlot("image"));
            }}"""
        )
        seed = "app.rootGraph.nodes.find((node) => node.type === 'ImageAddNoise').widgets[0].value"
        before = bench.page.evaluate(seed)
        _run_the_graph(bench)
        bench.wait_for_picture()
        assert bench.page.evaluate(seed) != before
        bench.set(LiveEngine=way)
        try:
            bench.click(200, 190)
            bench.wait_ready()
            bench.click(100, 190)
            bench.wait_ready()
            ran = bench.jobs()[0]["prompt"]["5"]["inputs"]
            assert ran["seed"] == before and len(bench.jobs()) > 1
            assert all(job["prompt"]["5"]["inputs"] == ran for job in bench.jobs())
            bench.page.evaluate(f"() => {{ {seed} = 77; }}")
            bench.click(300, 100)
            bench.wait_ready()
            assert bench.jobs()[-1]["prompt"]["5"]["inputs"]["seed"] == 77
        finally:
            bench.set(LiveEngine="automatic")

    @pytest.mark.parametrize("way", ["worker", "queue"])
    def test_a_camera_that_gives_another_file_at_every_reading_is_read_anew_by_a_run_or_a_change_alone(
        self, bench, way
    ):
        bench.page.evaluate(
            f"""() => {{
              const editor = {_EDITORS}[0], camera = LiteGraph.createNode("ImageAddNoise");
              app.rootGraph.add(camera);
              window.pictures = 0;
              const [seed] = camera.widgets;
              seed.linkedWidgets = undefined;
              seed.serializeValue = async () => (window.pictures += 1);
              {_LOADER}.connect(0, camera, 0); camera.connect(0, editor, editor.findInputSlot("image"));
            }}"""
        )
        camera = "app.rootGraph.nodes.find((node) => node.type === 'ImageAddNoise')"
        _run_the_graph(bench)
        bench.wait_for_picture()
        bench.set(LiveEngine=way)
        try:
            for x in (200, 100, 300):
                bench.click(x, 190)
                bench.wait_ready()
            read = [job["prompt"]["5"]["inputs"]["seed"] for job in bench.jobs()]
            assert len(set(read)) == 1 and len(read) == (2 if way == "worker" else 4)
            bench.page.evaluate(f"() => {{ {camera}.widgets.find(({{ name }}) => name === 'strength').value = 0.25; }}")
            bench.click(400, 190)
            bench.wait_ready()
            last = bench.jobs()[-1]["prompt"]["5"]["inputs"]
            assert last["strength"] == 0.25 and last["seed"] > read[0]
        finally:
            bench.set(LiveEngine="automatic")

    def test_a_widget_that_makes_its_value_of_something_else_is_followed(self, bench):
        bench.page.evaluate(
            f"""() => {{
              const editor = {_EDITORS}[0], noise = LiteGraph.createNode("ImageAddNoise");
              app.rootGraph.add(noise);
              window.elsewhere = 5;
              Object.assign(noise.widgets[0], {{ linkedWidgets: undefined, serializeValue: () => window.elsewhere }});
              {_LOADER}.connect(0, noise, 0); noise.connect(0, editor, editor.findInputSlot("image"));
            }}"""
        )
        _run_the_graph(bench)
        bench.wait_for_picture()
        for x, value in ((200, 5), (100, 6), (300, 7)):
            bench.page.evaluate("(value) => { window.elsewhere = value; }", value)
            bench.click(x, 190)
            bench.wait_ready()
            assert bench.jobs()[-1]["prompt"]["5"]["inputs"]["seed"] == value
        # One of them the run itself.
        assert len(bench.jobs()) == 4

    def test_a_seed_at_the_border_of_a_subgraph_stays_as_it_ran(self, bench):
        bench.page.evaluate(
            f"""() => {{
              const editor = {_EDITORS}[0], noise = LiteGraph.createNode("ImageAddNoise");
              app.rootGraph.add(noise);
              {_LOADER}.connect(0, noise, 0); noise.connect(0, editor, editor.findInputSlot("image"));
              app.canvas.selectNode(noise);
            }}"""
        )
        bench.command("Comfy.Graph.ConvertToSubgraph")
        bench.page.wait_for_function("app.rootGraph.nodes.some((node) => node.isSubgraphNode?.())")
        seed = "app.rootGraph.nodes.find((node) => node.isSubgraphNode?.()).widgets[0].value"
        # Of its own: a picture that the server knows from another test needs no job.
        before = random.randrange(2**32)
        bench.page.evaluate(f"() => {{ {seed} = {before}; }}")
        _run_the_graph(bench)
        bench.wait_for_picture()
        assert bench.page.evaluate(seed) != before
        for x in (200, 100):
            bench.click(x, 190)
            bench.wait_ready()
        (id,) = [id for id, node in bench.jobs()[0]["prompt"].items() if node["class_type"] == "ImageAddNoise"]
        assert [job["prompt"][id]["inputs"]["seed"] for job in bench.jobs()] == [before, before]
        bench.page.evaluate(f"() => {{ {seed} = 77; }}")
        bench.click(300, 100)
        bench.wait_ready()
        assert bench.jobs()[-1]["prompt"][id]["inputs"]["seed"] == 77

    def test_with_the_queue_chosen_mattes_come_through_it(self, bench):
        bench.set(LiveEngine="queue")
        try:
            bench.click(200, 190)
            bench.wait_ready()
            bench.click(300, 100)
            bench.wait_ready()
        finally:
            bench.set(LiveEngine="automatic")
        first, second = bench.jobs()
        assert json.loads(second["prompt"]["2-live"]["inputs"]["prompts"]) == bench.value()
        assert second["prompt"]["2-live"]["inputs"]["target"] == 0
        assert bench.questions("matte") == []

    def test_live_jobs_leave_nothing_in_the_history_and_are_not_announced(self, bench):
        announced = bench.page.get_by_text("Job completed")
        # Announcements of earlier runs wait for their turn, and a fresh page has none.
        bench.page.reload()
        bench.page.wait_for_function("window.app?.rootGraph && document.querySelector('#graph-canvas')")
        bench.page.wait_for_timeout(1500)
        bench.build()
        bench.click(200, 190)
        bench.wait_ready()
        bench.wait_server("/api/history", "(all) => Object.keys(all).length === 0")
        bench.settle()
        assert announced.count() == 0


class TestErrors:
    def test_an_error_is_said_and_tried_again_on_request(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        failing = {"error": "Out of memory. Use a smaller picture.", "state": "failed"}
        bench.page.route("**/mam/live", lambda route: route.fulfill(status=500, json=failing))
        bench.click(300, 100)
        bench.wait_state("error", "Out of memory. Use a smaller picture.")
        bench.page.unroute_all()
        bench.page.locator(".mam-retry").first.click()
        bench.wait_ready()
        assert bench.questions("matte")[-1]["prompt"] == bench.prompt()

    def test_a_job_that_fails_is_told_in_the_editor_and_not_in_a_dialog(self, bench):
        bench.page.evaluate(f"() => {_EDITORS}[0].disconnectInput({_EDITORS}[0].findInputSlot('m2m'))")
        bench.click(200, 190)
        bench.wait_state("error", "Connect Load Mask-to-Matte too")
        assert bench.page.get_by_role("dialog").count() == 0

    def test_a_picture_the_server_forgot_is_encoded_again(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        bench.server.free()
        bench.wait_server("/api/queue", "(queue) => queue.queue_running.length === 0")
        gone = {"error": "Run a live job again.", "state": "gone"}
        bench.page.route("**/mam/live", lambda route: route.fulfill(status=404, json=gone), times=1)
        bench.click(300, 100)
        bench.wait_ready()
        assert len(bench.jobs()) == 2

    def test_a_server_without_live_mattes_is_one_sentence_and_drawing_goes_on(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        bench.page.route("**/mam/live", lambda route: route.fulfill(status=404, body="404: Not Found"))
        bench.click(300, 100)
        bench.wait_state("error", "Update Matting Anything")
        bench.click(100, 300)
        assert len(bench.points()) == 3

    def test_a_server_without_the_live_node_is_the_same_sentence(self, bench):
        missing = {"type": "missing_node_type", "message": "not found", "extra_info": {"class_type": "MAM_LivePicture"}}
        refusal = {"error": missing, "node_errors": {}}
        bench.page.route("**/api/prompt", lambda route: route.fulfill(status=400, json=refusal))
        bench.click(200, 190)
        bench.wait_state("error", "Update Matting Anything")
        assert len(bench.points()) == 1

    def test_nothing_connected_is_said(self, bench):
        bench.page.evaluate(f"() => {_EDITORS}[0].disconnectInput({_EDITORS}[0].findInputSlot('image'))")
        bench.wait_state("idle", "Connect an image")


class TestControls:
    def test_the_overlay_takes_its_colour_from_the_settings(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        before = bench.pixels()
        with contextlib.ExitStack() as restoring:
            restoring.callback(bench.set, OverlayColor="e69f00", OverlayOpacity=0.5)
            bench.set(OverlayColor="0000ff", OverlayOpacity=1)
            assert np.abs(bench.pixels().astype(int) - before).mean() > 10

    def test_the_commands_reach_the_selected_editor_without_its_having_the_focus(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        bench.leave()
        bench.page.evaluate(f"() => app.canvas.selectNode({_EDITORS}[0])")
        before = bench.pixels()
        bench.press("Shift+M")
        assert np.abs(bench.pixels().astype(int) - before).mean() > 5
        bench.press("Shift+L")
        bench.wait_state("idle", "off")
        bench.press("Shift+L")
        bench.press("Shift+C")
        bench.wait_value(0)

    def test_what_is_drawn_is_cleared_in_an_editor_that_is_selected_alone(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        bench.leave()
        bench.page.evaluate("() => app.canvas.deselectAll()")
        bench.page.keyboard.press("Shift+C")
        bench.page.get_by_text("Select a Prompt Editor first.").first.wait_for()
        bench.page.evaluate(f"() => app.canvas.selectNode({_LOADER})")
        bench.press("Shift+C")
        assert len(bench.points()) == 1
        # What takes nothing away is meant for the one used last.
        bench.press("Shift+L")
        bench.wait_state("idle", "off")
        bench.press("Shift+L")
        bench.wait_ready()

    def test_no_command_reaches_an_editor_in_a_subgraph_that_is_not_open(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        bench.page.evaluate(f"() => app.canvas.selectNode({_EDITORS}[0])")
        bench.command("Comfy.Graph.ConvertToSubgraph")
        bench.page.wait_for_function("app.rootGraph.nodes.some((node) => node.isSubgraphNode?.())")
        bench.page.wait_for_function("!document.querySelector('.mam-stage')?.clientHeight")
        inside = "[...app.rootGraph.subgraphs.values()][0].nodes.find((node) => node.comfyClass === 'MAM_PromptEditor')"
        drawn = bench.page.evaluate(f"{inside}.widgets.at(-1).value")
        asked = bench.page.get_by_text("Select a Prompt Editor first.")
        for command in ("MattingAnything.ToggleLive", "MattingAnything.ClearPrompts"):
            asked.first.wait_for(state="hidden")
            bench.command(command)
            asked.first.wait_for()
        assert bench.page.evaluate(f"{inside}.widgets.at(-1).value") == drawn and '"x":' in drawn

    def test_the_wheel_moves_the_graph_until_the_editor_has_the_focus(self, bench):
        scale = "() => app.canvas.ds.scale"
        bench.leave()
        bench.page.mouse.move(*bench.at(200, 190))
        bench.page.mouse.wheel(0, -200)
        bench.page.wait_for_function("app.canvas.ds.scale !== 1")
        bench.page.evaluate("() => { Object.assign(app.canvas.ds, { scale: 1, offset: [40, 40] }); }")
        bench.page.evaluate("() => app.canvas.setDirty(true, true)")
        bench.settle()
        bench.click(200, 190)
        before, zoom = bench.page.evaluate(scale), bench.page.locator(".mam-status > button").last.inner_text()
        bench.page.mouse.move(*bench.at(200, 190))
        bench.page.mouse.wheel(0, -200)
        bench.page.wait_for_function(
            "(before) => [...document.querySelectorAll('.mam-status > button')].at(-1).innerText !== before", arg=zoom
        )
        assert bench.page.evaluate(scale) == before

    def test_the_wheel_scrolls_a_long_list_of_targets_while_the_editor_has_the_focus(self, bench):
        bench.click(200, 190)
        for _ in range(9):
            bench.press("n")
        place = bench.page.locator(".mam-targets ul").first.bounding_box()
        bench.page.mouse.move(place["x"] + 60, place["y"] + 40)
        bench.page.mouse.wheel(0, -400)
        bench.page.wait_for_function("document.querySelector('.mam-targets ul').scrollTop === 0")
        assert bench.page.evaluate("app.canvas.ds.scale") == 1

    def test_two_fingers_on_the_picture_zoom_it_and_not_the_graph(self, bench):
        bench.click(10, 10)
        drawn, fitted = bench.value(), bench.page.locator(".mam-fit").first.inner_text()
        view = "JSON.stringify([app.canvas.ds.scale, [...app.canvas.ds.offset]])"
        graph = bench.page.evaluate(view)
        (x, y), touching = bench.at(250, 200), bench.page.context.new_cdp_session(bench.page)

        def touch(kind: str, *apart_px: float):
            points = [{"x": x + place, "y": y, "id": number} for number, place in enumerate(apart_px)]
            touching.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", -20)
        touch("touchStart", -20, 20)
        for apart_px in range(24, 61, 4):
            touch("touchMove", -apart_px, apart_px)
        touch("touchEnd")
        bench.page.wait_for_function(
            "(fitted) => document.querySelector('.mam-fit').textContent !== fitted", arg=fitted
        )
        bench.settle()
        zoomed = bench.page.locator(".mam-fit").first.inner_text()
        assert int(zoomed.rstrip(" %")) == pytest.approx(3 * int(fitted.rstrip(" %")), rel=0.05)
        assert bench.page.evaluate(view) == graph and bench.value() == drawn

    def test_a_language_that_is_chosen_reaches_the_editors_that_are_open(self, bench):
        bench.click(200, 190)
        bench.wait_ready()
        french = {"fr": {"mattingAnything": {"engineSam": "Détourage"}}}
        bench.page.route("**/api/i18n", lambda route: route.fulfill(json=french))
        try:
            bench.set(**{"Comfy.Locale": "fr"})
            bench.wait_state("ready", "Détourage")
            assert near(bench.points()[0][:2], (200, 190))
        finally:
            bench.page.unroute_all()
            bench.set(**{"Comfy.Locale": "en"})
            bench.wait_state("ready", "Matting Anything")

    def test_a_language_that_is_chosen_leaves_the_view_and_a_drawing_that_cannot_be_read(self, bench):
        newer = '{"version": 9, "targets": []}'
        bench.page.evaluate(f"(value) => {{ {_EDITORS}[0].widgets.at(-1).value = value; }}", newer)
        # ComfyUI loads the graph anew for another language, as it recorded it last.
        bench.page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
        bench.page.locator(".mam-editor").first.focus()
        bench.press("m")
        renewed = bench.page.evaluate_handle("document.querySelector('.mam-editor')")
        try:
            bench.set(**{"Comfy.Locale": "fr"})
            bench.page.wait_for_function("(former) => document.querySelector('.mam-editor') !== former", arg=renewed)
            assert bench.page.evaluate(f"{_EDITORS}[0].widgets.at(-1).value") == newer
            assert bench.page.locator(".mam-menu select").first.input_value() == "checker"
        finally:
            # What cannot be read is not left to the next test.
            bench.page.evaluate(f"() => {{ {_EDITORS}[0].widgets.at(-1).value = ''; }}")
            bench.page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
            renewed = bench.page.evaluate_handle("document.querySelector('.mam-editor')")
            bench.set(**{"Comfy.Locale": "en"})
            bench.page.wait_for_function("(former) => document.querySelector('.mam-editor') !== former", arg=renewed)
            bench.settle_graph()

    def test_the_target_that_is_drawn_for_stays_when_one_before_it_is_deleted(self, bench):
        bench.click(100, 100)
        for place in ((200, 190), (300, 300)):
            bench.press("n")
            bench.click(*place)
        # As a screen reader presses it: without a pointer.
        bench.page.evaluate("document.querySelector('.mam-targets li').lastElementChild.click()")
        bench.click(300, 100)
        targets = [target["prompts"]["all"]["points"] for target in bench.value()["targets"]]
        assert [len(points) for points in targets] == [1, 2]

    def test_the_toolbar_is_reached_by_tab_after_its_button_has_become_useless(self, bench):
        bench.click(200, 190)
        undo = bench.page.get_by_role("button", name="Undo (Ctrl+Z)").first
        undo.focus()
        bench.press("Enter")
        assert undo.is_disabled()
        bench.press("Tab")
        assert bench.page.evaluate("document.activeElement.closest('.mam-toolbar') !== null")

    def test_matte_this_image_makes_a_chain_that_runs(self, bench):
        bench.page.evaluate(f"() => app.canvas.selectNode({_LOADER})")
        count = bench.page.evaluate("app.rootGraph.nodes.length")
        bench.command("MattingAnything.MatteThisImage")
        bench.page.wait_for_function("(count) => app.rootGraph.nodes.length === count + 5", arg=count)
        output = bench.page.evaluate("app.graphToPrompt().then(({ output }) => JSON.stringify(output))")
        prompt = json.loads(output)
        by_class = {node["class_type"]: (id, node["inputs"]) for id, node in prompt.items() if int(id) > count}
        editor, inputs = by_class["MAM_PromptEditor"]
        assert inputs["image"] == ["1", 0]
        assert prompt[inputs["sam"][0]]["inputs"]["sam_name"] == "tiny_sam.pth"
        assert prompt[inputs["m2m"][0]]["inputs"]["m2m_name"] == "tiny_m2m.pth"
        _, composite = by_class["MAM_Composite"]
        assert composite["image"] == [editor, 1] and composite["alpha"] == [editor, 2]
        assert by_class["PreviewImage"][1]["images"][0] == by_class["MAM_Composite"][0]
        # The browser has an event loop in this thread.
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(bench.server.run, prompt).result().ok

    def test_without_model_files_the_chain_has_no_loaders(self, bench):
        bench.page.route("**/api/models/*", lambda route: route.fulfill(json=[]))
        count = bench.page.evaluate("app.rootGraph.nodes.length")
        bench.page.evaluate(f"() => app.canvas.selectNode({_LOADER})")
        bench.command("MattingAnything.MatteThisImage")
        bench.page.wait_for_function("(count) => app.rootGraph.nodes.length === count + 3", arg=count)
        kinds = bench.page.evaluate("app.rootGraph.nodes.slice(-3).map((node) => node.type)")
        assert kinds == ["MAM_PromptEditor", "MAM_Composite", "PreviewImage"]

    def test_the_menu_of_a_node_with_an_image_offers_it(self, bench):
        offered = (
            "(type) => { const node = app.rootGraph.nodes.find((node) => node.type === type);"
            " return app.canvas.getNodeMenuOptions(node).some((item) => item?.content === 'Matte this image'); }"
        )
        assert bench.page.evaluate(offered, "LoadImage")
        assert not bench.page.evaluate(offered, "MAM_LoadSAM")
