"""From pointer-up to the new overlay on the screen: the prompt editor in a real browser on a real server.

    python benchmarks/live_matte.py [--clicks 15] [--press 0] [--renderer classic] [--device cpu]

Networks have the published sizes (SAM ViT-B, Mask-to-Matte). Their weights are set so that a click finds a person-sized
subject anywhere; every convolution and product is still computed. After one click that encodes the picture, each
further click is measured twice, for the mask and for the matte that follows it: when the request left, what the server
says of its own time, when the answer was there, and when the picture's pixels had changed. Medians, in milliseconds,
with the quartiles of the sum.

The editor asks as soon as the pointer goes down. By default it comes up at once; `--press 80` holds it down for so many
milliseconds, as a hand does.

It needs what the front-end tests need: playwright for Python, Chromium, and COMFYUI_PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "scripts")]

import check_workflows  # noqa: E402 - needs the line above
import comfyui_server  # noqa: E402

from benchmarks.networks import person_finder, trained_m2m  # noqa: E402

WIDTH_PX, HEIGHT_PX = 1024, 768
STAGES = ("mask", "matte")
STEPS = ("decode", "m2m", "pack")

BUILD = """async () => {
  await app.loadGraphData({ version: 0.4, last_node_id: 0, last_link_id: 0, nodes: [], links: [], groups: [],
    config: {}, extra: {} }, true, false, null);
  const add = (type, x, y, values = {}) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    for (const widget of node.widgets ?? []) if (widget.name in values) widget.value = values[widget.name];
    app.rootGraph.add(node);
    return node;
  };
  const editor = add("MAM_PromptEditor", 420, 60);
  add("LoadImage", 0, 60, { image: "photo.png" }).connect(0, editor, editor.findInputSlot("image"));
  add("MAM_LoadSAM", 0, 480, { sam_name: "person.pth" }).connect(0, editor, editor.findInputSlot("sam"));
  add("MAM_LoadM2M", 0, 640, { m2m_name: "m2m.pth" }).connect(0, editor, editor.findInputSlot("m2m"));
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [40, 40];
  app.canvas.setDirty(true, true);
}"""

# Remembers when the pointer went up, when each answer was there, and when the subject's pixels had changed after it.
# The canvas is read back only while a change is awaited: reading it in every frame would take the time it measures.
WATCH = """() => {
  const canvas = document.querySelector(".mam-stage canvas");
  const watched = (window.watched = { up: 0, asked: [], answered: [], painted: [] });
  const pixels = () => canvas.getContext("2d").getImageData(canvas.width * 0.2, canvas.height * 0.5,
    canvas.width * 0.6, 1).data.join();
  let before = "";
  // What is asked while the pointer is down belongs to the click too.
  addEventListener("pointerdown", () => {
    before = pixels();
    Object.assign(watched, { asked: [], answered: [], painted: [] });
  }, true);
  addEventListener("pointerup", () => (watched.up = performance.now()), true);
  const painted = (since) => {
    const now = pixels();
    if (now !== before || performance.now() - since > 2000) {
      watched.painted.push(now === before ? null : performance.now());
      before = now;
    } else requestAnimationFrame(() => painted(since));
  };
  const { fetch } = window;
  window.fetch = async (...args) => {
    const isLive = String(args[0]?.url ?? args[0]).endsWith("/mam/live");
    if (isLive) watched.asked.push(performance.now());
    const response = await fetch(...args);
    if (isLive) {
      const body = await response.clone().blob();
      watched.answered.push({ at: performance.now(), bytes: body.size, stage: JSON.parse(args[1].body).stage,
        status: response.status, timing: JSON.parse(response.headers.get("X-Mam-Timing") ?? "{}") });
      requestAnimationFrame(() => painted(performance.now()));
    }
    return response;
  };
}"""


def put_files(base: Path) -> None:
    """The photo and both models where the server looks for them."""
    for folder in ("input", "models/sams", "models/mam"):
        (base / folder).mkdir(parents=True)
    torch.save(person_finder().state_dict(), base / "models" / "sams" / "person.pth")
    weights = {f"module.{name}": value for name, value in trained_m2m().state_dict().items()}
    torch.save({"state_dict": weights, "iter": 0}, base / "models" / "mam" / "m2m.pth")
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT_PX // 8, WIDTH_PX // 8, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)
    photo.save(base / "input" / "photo.png")


def wait_until_painted(page) -> None:
    """Until the matte of the last click is on the screen."""
    page.wait_for_function(
        """() => watched.answered.at(-1)?.stage === "matte" && watched.painted.length === watched.answered.length""",
        timeout=300_000,
        polling=100,
    )


def measure(page, clicks: int, press_ms: int) -> list[dict]:
    """What was watched of each click after the first, which encodes."""
    box = page.locator(".mam-stage").first.bounding_box()
    seen = []
    for number in range(clicks + 1):
        angle = 2.4 * number
        x = box["x"] + box["width"] * (0.5 + 0.2 * np.cos(angle))
        y = box["y"] + box["height"] * (0.5 + 0.1 * np.sin(angle))
        page.mouse.click(x, y, delay=press_ms)
        if number:
            wait_until_painted(page)
            seen.append(page.evaluate("structuredClone(watched)"))
        else:
            # The job that encodes the picture answers this one.
            page.wait_for_function("/\\d ms/.test(document.querySelector('.mam-status').innerText)", timeout=300_000)
        # Undone, so that every click is the first point and has to bring the matte back.
        page.keyboard.press("Control+z")
        page.wait_for_timeout(300)
    return seen


def rows_of(seen: list[dict], stage: str) -> list[dict[str, float]]:
    """Milliseconds of every step of that stage, one row a click."""
    rows = []
    for watched in seen:
        for asked, answer, painted in zip(watched["asked"], watched["answered"], watched["painted"]):
            if answer["stage"] != stage or answer["status"] != 200 or painted is None:
                continue
            server = answer["timing"]
            row = {"until asked": asked - watched["up"], "wait": server.get("wait", 0.0)}
            row |= {step: server.get(step, 0.0) for step in STEPS}
            row["transfer"] = answer["at"] - asked - sum(server.values())
            row["paint"] = painted - answer["at"]
            row["in all"] = painted - watched["up"]
            rows.append(row)
    return rows


def report(seen: list[dict]) -> None:
    names = ("until asked", "wait", *STEPS, "transfer", "paint", "in all")
    print(f"{'':8}" + "".join(f"{name:>13}" for name in names) + "   quartiles   clicks")
    for stage in STAGES:
        rows = rows_of(seen, stage)
        if len(rows) < 2:
            print(f"{stage:8} too few clicks were answered: {len(rows)}")
            continue
        medians = "".join(f"{statistics.median(row[name] for row in rows):13.1f}" for name in names)
        low, _, high = statistics.quantiles((row["in all"] for row in rows), n=4)
        print(f"{stage:8}{medians}   {low:.0f} to {high:.0f}   {len(rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--clicks", type=int, default=15, help="measured clicks (default: 15)")
    parser.add_argument("--press", type=int, default=0, metavar="MS", help="how long a click lasts (default: 0)")
    parser.add_argument("--renderer", choices=check_workflows.RENDERERS, default="classic")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="what ComfyUI runs on")
    parser.add_argument("--json", type=Path, help="keep everything that was measured in this file")
    options = parser.parse_args()
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        parser.error("COMFYUI_PATH has to name a ComfyUI folder.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        put_files(base)
        server = comfyui_server.ComfyUIServer(Path(comfyui).resolve(), base, ROOT, cpu=options.device == "cpu")
        with server, check_workflows.front_end(server.address) as front_end:
            front_end.start(check_workflows.RENDERERS[options.renderer])
            page = front_end.page
            page.evaluate(BUILD)
            page.wait_for_selector(".mam-stage canvas")
            page.wait_for_timeout(2500)
            page.evaluate(WATCH)
            seen = measure(page, options.clicks, options.press)
    if options.json:
        options.json.write_text(json.dumps(seen, indent=1), encoding="utf-8")
    report(seen)


if __name__ == "__main__":
    main()
