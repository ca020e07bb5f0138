"""ComfyUI inside the test process: real validation, real executor, real caches, tensors instead of pictures on disk.

Fixtures: `comfyui` (session: the running ComfyUI), `comfy` (the same, emptied after each test), `tiny_sam`, `tiny_m2m`
(names of tiny checkpoints as the loader nodes list them), `warm_models` (tiny networks for a module of tests).
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import shutil
import sys
import uuid
from pathlib import Path

import comfyui_server
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


class Run:
    """What became of one workflow.

    Attributes:
        ok: True when every node ran or had run.
        error: what the user is told: the failed node's message, or validation's sentences; "" when all went well.
        failed_node: id of the node that raised, or None.
        node_errors: node id -> sentences, for what validation refused (all of the workflow, or parts while others ran).
        interrupted: True when it was cancelled.
        ui: node id -> what the node showed in the interface.
        executed: ids of the nodes that ran, in order.
        cached: ids of the nodes whose earlier results were used.
        progress: (node id, value, maximum) of every step that a node reported.
        events: every (name, data) that the interface would have received.
    """

    def __init__(self, comfyui: InProcessComfyUI):
        self._comfyui = comfyui
        self.ok = False
        self.error = ""
        self.failed_node: str | None = None
        self.node_errors: dict[str, list[str]] = {}
        self.interrupted = False
        self.ui: dict[str, dict] = {}
        self.executed: list[str] = []
        self.cached: list[str] = []
        self.progress: list[tuple[str, float, float]] = []
        self.events: list[tuple[str, object]] = []

    def output(self, node_id: str, slot: int = 0):
        """What a node put out. It belongs to ComfyUI's cache: ask before the next workflow runs."""
        values = self.output_list(node_id, slot)
        assert len(values) == 1, f"node {node_id} put out a list of {len(values)} at slot {slot}; use output_list"
        return values[0]

    def output_list(self, node_id: str, slot: int = 0) -> list:
        """What a node put out, once per item of a list output."""
        assert self._comfyui.latest is self, "another workflow ran since; read the outputs of this one before"
        entry = self._comfyui.executor.caches.outputs.get_local(str(node_id))
        assert entry is not None, f"node {node_id} did not run: {self.error or self.executed}"
        return list(entry.outputs[slot])

    def __repr__(self) -> str:
        return f"<Run ok={self.ok} executed={self.executed} cached={self.cached} error={self.error!r}>"


class Interface:
    """What the executor takes for the server: it keeps what a browser would have been sent."""

    def __init__(self, run: Run, interrupt_after: int | None, interrupt):
        self.client_id = None
        self.last_node_id = None
        self.last_prompt_id = None
        self.sockets_metadata = {}
        self._run = run
        self._interrupt_after = interrupt_after
        self._interrupt = interrupt
        self._seen = {}

    def send_sync(self, event, data, sid=None):
        run = self._run
        run.events.append((event, data))
        if event == "executing" and data["node"] is not None:
            run.executed.append(data["node"])
        elif event == "progress_state":
            run.progress += comfyui_server.new_steps(data, self._seen)
            if self._interrupt_after is not None and len(run.progress) >= self._interrupt_after:
                self._interrupt_after = None
                self._interrupt()

    def send_progress_text(self, text, node_id, sid=None):
        self._run.events.append(("progress_text", (node_id, text)))


class InProcessComfyUI:
    """One ComfyUI in this process, with this pack loaded from a custom_nodes folder as ComfyUI loads it.

    Attributes:
        base, input_dir, output_dir, models_dir: its folders.
        pack: the loaded pack (the root __init__.py as a module).
        executor: ComfyUI's PromptExecutor.
        latest: the last `Run`.
    """

    def __init__(self, comfyui: Path, base: Path, *, cpu: bool):
        self.base = base
        self.input_dir = base / "input"
        self.output_dir = base / "output"
        self.models_dir = base / "models"
        for folder in (self.input_dir, self.output_dir, self.models_dir / "sams", self.models_dir / "mam"):
            folder.mkdir(parents=True)
        self.latest: Run | None = None
        self._start(comfyui, cpu)
        self._load_pack()
        # What ComfyUI itself keeps for ever need not be looked through after every test.
        gc.collect()
        gc.freeze()
        self.executor = self._new_executor()

    def _start(self, comfyui: Path, cpu: bool) -> None:
        # `python -m pytest` puts the current folder first, where `nodes` would be ours instead of ComfyUI's.
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
        sys.path.insert(0, str(comfyui))
        arguments = sys.argv
        sys.argv = ["main.py", "--base-directory", str(self.base), "--disable-api-nodes"] + (["--cpu"] if cpu else [])
        try:
            import comfy.options

            comfy.options.enable_args_parsing()
            import comfy.cli_args  # noqa: F401 - reads sys.argv when imported
        finally:
            sys.argv = arguments
        import comfy.model_management
        import comfy.utils
        import execution
        import nodes
        import server
        from comfy_execution.progress import get_progress_state
        from comfy_execution.utils import get_executing_context

        self._execution, self._nodes, self._mm = execution, nodes, comfy.model_management
        self._loop = asyncio.new_event_loop()
        self.server = server.PromptServer(self._loop)
        self._loop.run_until_complete(nodes.init_public_apis())
        self._loop.run_until_complete(nodes.init_builtin_extra_nodes())

        def report_step(value, total, preview, prompt_id=None, node_id=None):
            comfy.model_management.throw_exception_if_processing_interrupted()
            context = get_executing_context()
            node_id = node_id or (context and context.node_id)
            # A node that a test calls by itself belongs to no run.
            if node_id:
                get_progress_state().update_progress(node_id, value, total, preview)

        comfy.utils.set_progress_bar_global_hook(report_step)
        # Else it leaves out steps that follow the last within a tenth of a second, more of them the faster the machine.
        comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL = 0

    def _load_pack(self) -> None:
        place = comfyui_server.put_pack_in_place(ROOT, self.base / "custom_nodes")
        said = []
        listener = logging.Handler(logging.WARNING)
        listener.emit = lambda record: said.append(record.getMessage())
        logging.getLogger().addHandler(listener)
        loaded = self._loop.run_until_complete(self._nodes.load_custom_node(str(place), module_parent="custom_nodes"))
        logging.getLogger().removeHandler(listener)
        if not loaded:
            raise RuntimeError("ComfyUI could not load the pack:\n" + "\n".join(said))
        self.pack = sys.modules[str(place).replace(".", "_x_")]

    def _new_executor(self):
        # Small head rooms: on a machine short of memory results would be evicted between two runs of one test.
        return self._execution.PromptExecutor(
            None,
            cache_type=self._execution.CacheType.RAM_PRESSURE,
            cache_args={"lru": 0, "ram": 0.1, "ram_inactive": 0.1},
        )

    def module(self, name: str):
        """A module of the loaded pack, e.g. module("nodes.models") or module("mam_model.prompt")."""
        return importlib.import_module(f"{self.pack.__name__}.{name}")

    def node(self, node_id: str):
        """The class of a node, ours or ComfyUI's."""
        return self._nodes.NODE_CLASS_MAPPINGS[node_id]

    @property
    def our_nodes(self) -> dict[str, type]:
        """node id -> class of every node that this pack registered."""
        module = f"custom_nodes.{comfyui_server.PACK_FOLDER}"
        return {
            node_id: cls
            for node_id, cls in self._nodes.NODE_CLASS_MAPPINGS.items()
            if getattr(cls, "RELATIVE_PYTHON_MODULE", None) == module
        }

    def run(self, prompt: dict, *, interrupt_after: int | None = None) -> Run:
        """Validates and runs an API-format workflow, as /prompt does.

        Args:
            interrupt_after: cancel when this many progress steps have been reported (see `Run.progress`).
        """
        run = self.latest = Run(self)
        prompt = {
            str(node_id): {**node, "inputs": {name: _jsonable(value) for name, value in node["inputs"].items()}}
            for node_id, node in prompt.items()
        }
        prompt_id = str(uuid.uuid4())
        valid, error, targets, node_errors = asyncio.run(self._execution.validate_prompt(prompt_id, prompt, None))
        run.node_errors = {
            node_id: [f"{reason['message']}: {reason['details']}" for reason in facts["errors"]]
            for node_id, facts in node_errors.items()
        }
        sentences = [text for texts in run.node_errors.values() for text in texts]
        if not valid:
            run.error = "\n".join([error["message"], *sentences])
            return run
        run.error = "\n".join(sentences)
        self.executor.server = Interface(run, interrupt_after, self._nodes.interrupt_processing)
        self.executor.success = True
        self.executor.execute(prompt, prompt_id, {"client_id": "tests"}, targets)
        run.ok = self.executor.success and not run.node_errors
        run.ui = self.executor.history_result["outputs"]
        for event, data in self.executor.status_messages:
            if event == "execution_cached":
                run.cached = list(data["nodes"])
            elif event == "execution_error":
                run.error = data["exception_message"].strip()
                run.failed_node = data["node_id"]
            elif event == "execution_interrupted":
                run.interrupted = True
                run.failed_node = data["node_id"]
        run.executed = [node_id for node_id in run.executed if node_id not in run.cached]
        return run

    def reset(self) -> None:
        """What POST /free with unload_models and free_memory does: forgets all results, unloads all models."""
        self.latest = None
        self._mm.unload_all_models()
        self.executor.reset()
        self.executor.history_result = None
        self.executor.server = None
        gc.collect()
        self._mm.soft_empty_cache()

    def save_picture(self, name: str, pixels) -> str:
        """Writes [H, W], [H, W, 3] or [H, W, 4] (uint8, or float 0..1) into input/; returns the name for LoadImage."""
        from PIL import Image

        pixels = np.asarray(pixels)
        if pixels.dtype != np.uint8:
            pixels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(self.input_dir / name)
        return name

    def add_node(self, node_class) -> str:
        """Registers a V3 node class that a test defines (e.g. one that gives a tensor); returns its id."""
        node_id = node_class.GET_SCHEMA().node_id
        self._nodes.NODE_CLASS_MAPPINGS[node_id] = node_class
        return node_id

    def remove_node(self, node_id: str) -> None:
        del self._nodes.NODE_CLASS_MAPPINGS[node_id]


def _jsonable(value):
    """Links may be written as tuples; the server would have turned them into lists."""
    return list(value) if isinstance(value, tuple) else value


@pytest.fixture
def said(caplog):
    """The lines about full memory, as the user's log has them."""
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records if "memory is full" in record.getMessage()]


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory, request) -> InProcessComfyUI:
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        pytest.exit("Set COMFYUI_PATH to a ComfyUI folder, or run scripts/run_tests.py, which provides one.", 2)
    base = tmp_path_factory.mktemp("comfyui")
    return InProcessComfyUI(Path(comfyui).resolve(), base, cpu=not request.config.getoption("--gpu"))


@pytest.fixture
def comfy(comfyui) -> InProcessComfyUI:
    yield comfyui
    comfyui.reset()


@pytest.fixture
def tiny_sam(comfyui, place, tiny_sam_file) -> str:
    """Name of a tiny SAM in models/sams, for MAM_LoadSAM."""
    return place(tiny_sam_file, comfyui.models_dir / "sams").name


@pytest.fixture
def tiny_m2m(comfyui, place, tiny_m2m_file) -> str:
    """Name of a tiny Mask-to-Matte in models/mam, for MAM_LoadM2M."""
    return place(tiny_m2m_file, comfyui.models_dir / "mam").name


@pytest.fixture(scope="module")
def warm_models(comfyui, tiny_sam_file, tiny_m2m_file):
    """(SAM, Mask-to-Matte) as the loader nodes share them, loaded once for a whole module; see their `name`.

    Building the networks takes longer than running them on tiny pictures.
    """
    models = comfyui.module("nodes.models")
    files = [
        shutil.copy(tiny_sam_file, comfyui.models_dir / "sams" / "warm_sam.pth"),
        shutil.copy(tiny_m2m_file, comfyui.models_dir / "mam" / "warm_m2m.pth"),
    ]
    yield models.shared_sam("warm_sam.pth", "auto"), models.shared_m2m("warm_m2m.pth", "auto")
    for file in files:
        Path(file).unlink()


@pytest.fixture
def tensors(comfy):
    """`tensors(x)` -> id of a node class without inputs that puts out x: an IMAGE if 4-dimensional, else a MASK.

    For pictures that no PNG can hold: several frames, floats, grey with a batch, strange sizes.
    """
    from comfy_api.latest import io

    made = []

    def give(tensor) -> str:
        number = uuid.uuid4().hex[:8]
        kind = io.Image if tensor.ndim == 4 else io.Mask

        class GiveTensor(io.ComfyNode):
            @classmethod
            def define_schema(cls):
                return io.Schema(node_id=f"Test_{number}", category="tests", inputs=[], outputs=[kind.Output("tensor")])

            @classmethod
            def execute(cls):
                return io.NodeOutput(tensor)

        made.append(comfy.add_node(GiveTensor))
        return made[-1]

    yield give
    for node_id in made:
        comfy.remove_node(node_id)
