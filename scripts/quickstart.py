"""Cuts a subject out of a photo with a real ComfyUI: `python3 scripts/quickstart.py`

The first run makes an environment of about 7 GB (see scripts/environment.py); later runs start in seconds. Then a
ComfyUI server is started with this node pack and no other, a workflow from workflows/ is run on a photo, and the matte,
the cut-out, the composite and a contact sheet are written into output/.

With SAM and Matting Anything weights in the models folders the workflow "Cut out with Matting Anything" runs, else "Cut
out without models", whose engine needs no weights. The folders are models/sams and models/mam inside the cache folder
that scripts/environment.py describes, and those of the ComfyUI that COMFYUI_PATH names.

examples:
  python3 scripts/quickstart.py --serve
  python3 scripts/quickstart.py --photo holiday.jpg --box 120 40 610 980
  python3 scripts/quickstart.py --photo holiday.jpg --point 300 200 --point 320 700 --negative 90 80
  python3 scripts/quickstart.py --engine sam      (downloads the weights if they are not there, about 0.8 GB)
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import environment

WORKFLOWS = environment.REPOSITORY / "workflows"
WITH_MODELS = "Cut out with Matting Anything"
WITHOUT_MODELS = "Cut out without models"
WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt")
DOWNLOADED_SAM = "sam_vit_b_01ec64.pth"
DOWNLOADED_M2M = "mam_sam_vitb.pth"
# The photo for which the workflows' own prompts are made: one of scikit-image's samples.
SAMPLE = "astronaut"
PROMPT_NODES = ("MAM_PromptBoxes", "MAM_PromptPoints", "MAM_CombinePrompts")
RESULTS = {"matte": "Matte", "cutout": "Cut-out", "composite": "Composite"}


class QuickstartTrouble(RuntimeError):
    """The run cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Pointing:
    """Where the user says the subject is, in pixels of the photo."""

    box_xyxy_px: tuple[float, ...] | None
    points_px: tuple[tuple[float, ...], ...]
    negatives_px: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Weights:
    """A SAM and the Mask-to-Matte network that was trained on it, as the loader nodes list them."""

    sam: str
    m2m: str


def main() -> int:
    options = _arguments()
    place = environment.enter(__file__)
    # Without this a `kill` would leave the server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.path.insert(0, str(environment.REPOSITORY))
    from comfyui_server import PromptRefused, ServerError

    try:
        return _run(options, place)
    except (QuickstartTrouble, ServerError, PromptRefused) as trouble:
        print(f"\n{trouble}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", metavar="FILE", help="a picture (default: scikit-image's photo of an astronaut)")
    parser.add_argument(
        "--box",
        nargs=4,
        type=float,
        metavar=("X0", "Y0", "X1", "Y1"),
        help="a box around the subject: left, top, right, bottom in pixels of the photo",
    )
    for name, meaning in (("--point", "a point on the subject"), ("--negative", "a point that is not on the subject")):
        parser.add_argument(
            name,
            nargs=2,
            type=float,
            action="append",
            default=[],
            metavar=("X", "Y"),
            help=f"{meaning}, in pixels of the photo; may be given several times",
        )
    parser.add_argument(
        "--engine",
        choices=("auto", "sam", "classical"),
        default="auto",
        help="sam: the networks; classical: no weights needed; auto (default): sam if its weights are there",
    )
    parser.add_argument(
        "--output", type=Path, default=environment.REPOSITORY / "output", metavar="DIR", help="default: output/"
    )
    parser.add_argument(
        "--serve", action="store_true", help="keep ComfyUI running afterwards, to open it in a browser; Ctrl-C ends it"
    )
    parser.add_argument("--port", type=int, help="port of the server (default: a free one)")
    options = parser.parse_args()
    if options.port is not None and not 0 < options.port < 65536:
        parser.error("argument --port: ports go from 1 to 65535")
    return options


def _run(options: argparse.Namespace, place: environment.Environment) -> int:
    from comfyui_server import ComfyUIServer

    home = environment.home()
    models = _model_folders(home)
    weights = _weights(options.engine, models)
    name = WITH_MODELS if weights else WITHOUT_MODELS
    inputs, user = home / "input", home / "user"
    for kept in (inputs, user):
        kept.mkdir(parents=True, exist_ok=True)
    results = _results_folder(options.output)
    stem, picture = _photo(options.photo, inputs)
    workflow = _workflow(name, f"{stem}.png", _pointing(options, picture), weights)
    _say_what_runs(name, weights, models)
    with tempfile.TemporaryDirectory(prefix="matting-anything-", ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        server = ComfyUIServer(
            place.comfyui,
            base,
            environment.REPOSITORY,
            cpu=not _has_gpu(),
            port=options.port,
            extra_model_paths=_write_model_paths(models, base),
            arguments=("--input-directory", str(inputs), "--user-directory", str(user)),
        )
        print("Starting ComfyUI", end="", flush=True)
        server.start(waiting=lambda _: print(".", end="", flush=True))
        try:
            print(f" it runs at {server.address}", flush=True)
            progress = Progress(workflow, server.get("/object_info"))
            began = time.monotonic()
            finished = server.run(workflow, on_event=progress)
            progress.close()
            if not finished.ok:
                failed = f"{progress.title(finished.failed_node)} failed: " if finished.failed_node else ""
                raise QuickstartTrouble(failed + finished.error)
            print(f"Done in {time.monotonic() - began:.1f} s.\n")
            _write_results(results, stem, picture, workflow, name, server, finished)
            if options.serve:
                _serve(server, name)
        finally:
            server.stop()
    return 0


def _model_folders(home: Path) -> list[Path]:
    """The folders that hold sams/ and mam/, the one that downloads go into first."""
    folders = [home / "models"]
    comfyui = environment.named_comfyui()
    if comfyui:
        folders.append(comfyui / "models")
    for kind in ("sams", "mam"):
        (folders[0] / kind).mkdir(parents=True, exist_ok=True)
    return folders


def _write_model_paths(models: list[Path], base: Path) -> Path:
    """ComfyUI's extra_model_paths.yaml. A JSON text is a YAML text, and safe for every character in a path."""
    paths = {f"folder{i}": {"base_path": str(folder), "sams": "sams", "mam": "mam"} for i, folder in enumerate(models)}
    file = base / "extra_model_paths.yaml"
    file.write_text(json.dumps(paths), encoding="utf-8")
    return file


def _weights(engine: str, models: list[Path]) -> Weights | None:
    """What the MAM graph is to load; None means the graph without models."""
    if engine == "classical":
        return None
    found = _matching([_listed(models, "sams"), _listed(models, "mam")])
    if found is None and engine == "sam":
        found = _downloaded(models[0])
    return found


def _listed(models: list[Path], kind: str) -> list[str]:
    files = [(path, folder / kind) for folder in models for path in sorted((folder / kind).rglob("*"))]
    return [str(path.relative_to(root)) for path, root in files if path.suffix.lower() in WEIGHTS]


def _matching(listed: list[list[str]]) -> Weights | None:
    """A pair trained together: the smallest SAM whose letter (B, L, H) a Mask-to-Matte file's name shares."""
    sams, m2ms = ({_size(name): name for name in reversed(names)} for names in listed)
    for size in "blh":
        if size in sams and size in m2ms:
            return Weights(sams[size], m2ms[size])
    if len(listed[0]) == len(listed[1]) == 1:
        return Weights(listed[0][0], listed[1][0])
    return None


def _size(name: str) -> str:
    found = re.search(r"vit_?([blh])(?![a-z])", Path(name).name.lower())
    return found[1] if found else name


def _downloaded(models: Path) -> Weights:
    from mam_model.published import DownloadError, download, published_file

    for file in (published_file(DOWNLOADED_SAM), published_file(DOWNLOADED_M2M)):
        print(f"Downloading {file.name} ({file.size}, {file.licence}): {file.purpose}", flush=True)
        try:
            download(file, models / file.folder, _shown_percent())
        except DownloadError as error:
            raise QuickstartTrouble(str(error)) from error
    return Weights(DOWNLOADED_SAM, DOWNLOADED_M2M)


def _shown_percent():
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // total
        if percent // 10 > shown // 10:
            print(f"  {percent} %", flush=True)
            shown = percent

    return show


def _results_folder(named: Path) -> Path:
    """The folder for the results, made before the work begins, for which there may be no place.

    Raises:
        QuickstartTrouble: when it cannot be made.
    """
    from mam_model.places import sentence

    folder = named.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QuickstartTrouble(sentence(error)) from None
    return folder


def _photo(named: str | None, inputs: Path):
    """Puts the photo into ComfyUI's input folder. Returns the stem of its name there, and the picture.

    Raises:
        QuickstartTrouble: when it cannot be read.
    """
    import torch
    from PIL import Image
    from skimage import data

    from mam_model import with_alpha
    from mam_model.photo import PhotoError, read_photo, write_picture

    if named is None:
        stem, pixels = SAMPLE, torch.from_numpy(data.astronaut()) / 255
    else:
        path = Path(named).expanduser()
        try:
            photo = read_photo(path)
        except PhotoError as error:
            raise QuickstartTrouble(str(error)) from None
        stem, pixels = path.stem, photo.image if photo.alpha is None else with_alpha(photo.image, photo.alpha)
    file = inputs / f"{stem}.png"
    write_picture(file, pixels)
    picture = Image.open(file)
    picture.load()
    return stem, picture


def _pointing(options: argparse.Namespace, picture) -> Pointing | None:
    """What to prompt with; None keeps the workflow's own prompt, which is made for the sample photo."""
    if options.box or options.point or options.negative:
        box = tuple(options.box) if options.box else None
        return Pointing(box, tuple(map(tuple, options.point)), tuple(map(tuple, options.negative)))
    if options.photo is None:
        return None
    x, y = round(picture.width * 0.05), round(picture.height * 0.05)
    print("No --box and no --point was given, so the subject is taken to fill the photo but for a margin of 5 %.")
    return Pointing((x, y, picture.width - x, picture.height - y), (), ())


def _workflow(name: str, photo: str, pointing: Pointing | None, weights: Weights | None) -> dict:
    """The API-format workflow of that name, made to use this photo, prompt and these weights."""
    workflow = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for node in workflow.values():
        inputs = node["inputs"]
        if node["class_type"] == "LoadImage":
            inputs["image"] = photo
        elif node["class_type"] == "MAM_LoadSAM":
            inputs["sam_name"] = weights.sam
        elif node["class_type"] == "MAM_LoadM2M":
            inputs["m2m_name"] = weights.m2m
    return _prompted(workflow, pointing) if pointing else workflow


def _prompted(workflow: dict, pointing: Pointing) -> dict:
    """The workflow with other prompt nodes in the place of its own."""
    own = {node_id for node_id, node in workflow.items() if node["class_type"] in PROMPT_NODES}
    new = {}
    if pointing.box_xyxy_px:
        boxes = json.dumps([list(pointing.box_xyxy_px)])
        new["box"] = {"class_type": "MAM_PromptBoxes", "inputs": {"boxes": boxes, "label": ""}}
    if pointing.points_px or pointing.negatives_px:
        positive, negative = (
            "\n".join(f"{x:g} {y:g}" for x, y in points) for points in (pointing.points_px, pointing.negatives_px)
        )
        inputs = {"positive": positive, "negative": negative, "each_point_is": "part of one target", "label": ""}
        new["points"] = {"class_type": "MAM_PromptPoints", "inputs": inputs}
    if len(new) == 2:
        both = {"prompts.prompt0": ["box", 0], "prompts.prompt1": ["points", 0]}
        new["prompt"] = {"class_type": "MAM_CombinePrompts", "inputs": {"combine_as": "the same target", **both}}
    source = list(new)[-1]
    for node_id in set(workflow) - own:
        node = workflow[node_id]
        node["inputs"] = {
            name: [source, 0] if isinstance(value, list) and value[0] in own else value
            for name, value in node["inputs"].items()
        }
        new[node_id] = node
    return new


def _prompt_inputs(workflow: dict, class_type: str, name: str) -> list[str]:
    return [node["inputs"][name] for node in workflow.values() if node["class_type"] == class_type]


def _boxes(workflow: dict) -> list[list[float]]:
    return [box for text in _prompt_inputs(workflow, "MAM_PromptBoxes", "boxes") for box in json.loads(text)]


def _points(workflow: dict, kind: str) -> list[list[float]]:
    lines = "\n".join(_prompt_inputs(workflow, "MAM_PromptPoints", kind)).splitlines()
    return [[float(number) for number in line.split()] for line in lines if line.strip()]


def _say_what_runs(name: str, weights: Weights | None, models: list[Path]) -> None:
    if weights:
        print(f"Workflow: {name}, with {weights.sam} and {weights.m2m}")
        return
    print(
        f"Workflow: {name} (the classical engine).\n"
        f"For the networks put a SAM file into {models[0] / 'sams'}\n"
        f"and its Matting Anything file into {models[0] / 'mam'}, or run with --engine sam to download them."
    )


def _has_gpu() -> bool:
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return True
    return hasattr(torch, "xpu") and torch.xpu.is_available()


class Progress:
    """Prints one line per node of the workflow: its title, its percentage, and how long it took."""

    def __init__(self, workflow: dict, nodes: dict):
        self._workflow = workflow
        self._nodes = nodes
        self._running: str | None = None
        self._began = 0.0

    def title(self, node_id: str) -> str:
        node = self._workflow[node_id]
        shown = self._nodes.get(node["class_type"], {}).get("display_name") or node["class_type"]
        return node.get("_meta", {}).get("title") or shown

    def __call__(self, event: str, data: dict) -> None:
        if event == "executing":
            self.close()
            self._running = data["node"]
            self._began = time.monotonic()
            self._show("...")
        elif event == "progress_state" and self._running in data["nodes"]:
            state = data["nodes"][self._running]
            if state["state"] == "running" and state["value"] and state["max"]:
                self._show(f"{100 * state['value'] / state['max']:.0f} %")

    def close(self) -> None:
        """Ends the line of the node that ran last."""
        if self._running is not None:
            self._show(f"{time.monotonic() - self._began:.1f} s", end="\n", always=True)
        self._running = None

    def _show(self, state: str, end: str = "", always: bool = False) -> None:
        if self._running is None or not (always or sys.stdout.isatty()):
            return
        start = "\r" if sys.stdout.isatty() else ""
        print(f"{start}  {self.title(self._running):<40} {state:>8}", end=end, flush=True)


def _write_results(folder: Path, stem: str, photo, workflow: dict, name: str, server, finished) -> None:
    import io

    from contact_sheet import contact_sheet
    from PIL import Image

    shown = {}
    for node_id, node in workflow.items():
        kind = str(node["inputs"].get("filename_prefix", "")).rsplit("/", 1)[-1]
        if node["class_type"] != "SaveImage" or kind not in RESULTS:
            continue
        content = server.images(finished, node_id)[0]
        file = folder / f"{stem}-{kind}.png"
        file.write_bytes(content)
        shown[kind] = Image.open(io.BytesIO(content))
        print(f"{RESULTS[kind] + ':':<14}{file}")
    pictures = {title: shown[kind] for kind, title in RESULTS.items() if kind in shown}
    points = [_points(workflow, kind) for kind in ("positive", "negative")]
    sheet = contact_sheet(photo, pictures, f"ComfyUI workflow: {name}", _boxes(workflow), *points)
    file = folder / f"{stem}-contact-sheet.png"
    sheet.save(file)
    print(f"{'All in one:':<14}{file}", flush=True)


def _serve(server, name: str) -> None:
    print(
        f"\nComfyUI is yours at {server.address}\n"
        f'Open "{name}" from the menu Browse Templates, or drag workflows/{name}.json into the window.\n'
        "Ctrl-C ends it.",
        flush=True,
    )
    try:
        while server.is_running():
            time.sleep(0.5)
    except KeyboardInterrupt:
        print("\nStopping ComfyUI.", flush=True)
        return
    raise QuickstartTrouble(f"ComfyUI ended by itself. The last lines of its log:\n{server.log_tail(30)}")


if __name__ == "__main__":
    sys.exit(main())
