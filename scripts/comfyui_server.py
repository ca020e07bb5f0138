"""A real ComfyUI server as a child process: started headless on a free port, spoken to over HTTP, always stopped.

`quickstart.py` and the tests in tests/server use it. Standard library only, except for the websocket, for which it uses
the aiohttp that ComfyUI itself requires; it must therefore run under the Python that ComfyUI runs under.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PACK_FOLDER = "matting-anything"

# The server is on this machine: a proxy that the environment names for the outside world must not be asked for it.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerError(RuntimeError):
    """ComfyUI did not start, or did not take our nodes; the message holds the lines of its log that say why."""


class PromptRefused(RuntimeError):
    """The server refused a workflow before running it.

    Attributes:
        node_errors: node id -> sentences, as ComfyUI's validation gave them.
    """

    def __init__(self, message: str, node_errors: dict[str, list[str]]):
        super().__init__(message)
        self.node_errors = node_errors


@dataclass(frozen=True)
class Finished:
    """What became of one workflow.

    Attributes:
        ok: True when every node ran or had run.
        error: the message of the node that failed, or validation's sentences; "" when all went well.
        failed_node: id of the node that raised, or None.
        node_errors: node id -> sentences, for the parts of the workflow that validation refused while others ran.
        outputs: node id -> what the node showed in the interface, e.g. {"images": [{"filename", "subfolder", "type"}]}.
        executed: ids of the nodes that ran, in order; cached ones are not among them.
        cached: ids of the nodes whose earlier results were used.
        progress: (node id, value, maximum) of every step that a node reported.
    """

    ok: bool
    error: str
    failed_node: str | None
    node_errors: dict[str, list[str]]
    outputs: dict[str, dict]
    executed: tuple[str, ...]
    cached: tuple[str, ...]
    progress: tuple[tuple[str, float, float], ...] = field(repr=False, default=())


def put_pack_in_place(repository: Path, custom_nodes: Path, name: str = PACK_FOLDER) -> Path:
    """Makes `custom_nodes/<name>` lead to the repository: a link where possible (edits show at once), else a copy.

    Returns:
        The folder inside `custom_nodes`.
    """
    custom_nodes.mkdir(parents=True, exist_ok=True)
    place = custom_nodes / name
    if os.path.lexists(place):
        if place.is_dir() and place.resolve() == repository.resolve():
            return place
        _remove(place)
    try:
        place.symlink_to(repository.resolve(), target_is_directory=True)
        return place
    except OSError:
        # Windows grants symbolic links to administrators and developers only; a junction needs no right.
        if os.name == "nt" and _junction(place, repository.resolve()):
            return place
    shutil.copytree(repository, place, ignore=shutil.ignore_patterns(".git", "output", "__pycache__", ".*_cache"))
    return place


def _junction(place: Path, target: Path) -> bool:
    return subprocess.run(["cmd", "/c", "mklink", "/J", str(place), str(target)], capture_output=True).returncode == 0


def _remove(place: Path) -> None:
    if place.is_symlink():
        place.unlink()
        return
    try:
        # Removes a junction without what it leads to; refuses a folder with files in it.
        place.rmdir()
    except OSError:
        shutil.rmtree(place)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ComfyUIServer:
    """One ComfyUI with this pack and no other, living in a base directory of its own.

    Attributes:
        address: e.g. "http://127.0.0.1:8188"; valid after `start`.
        base: folder with input/, output/, models/ and custom_nodes/.
        log: file that holds everything the server said.
    """

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        repository: Path,
        *,
        cpu: bool,
        port: int | None = None,
        extra_model_paths: Path | None = None,
        arguments: Sequence[str] = (),
    ):
        self.comfyui = comfyui
        self.base = base
        self.repository = repository
        self.cpu = cpu
        self.port = port
        self.extra_model_paths = extra_model_paths
        self.arguments = tuple(arguments)
        self.log = base / "server.log"
        self._process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ComfyUIServer:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self, timeout_s: float = 180, waiting: Callable[[float], None] | None = None) -> None:
        """Starts the server and returns once it lists the nodes of this pack.

        Args:
            waiting: called about once a second with the seconds passed.
        Raises:
            ServerError: when it ends early, does not answer in time, or could not load the pack.
        """
        for folder in ("input", "output", "models/sams", "models/mam", "user"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        pack = put_pack_in_place(self.repository, self.base / "custom_nodes")
        self.port = self.port or free_port()
        command = [sys.executable, str(self.comfyui / "main.py"), "--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        command += ["--disable-auto-launch", "--disable-api-nodes"]
        command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", pack.name]
        if self.cpu:
            command.append("--cpu")
        if self.extra_model_paths:
            command += ["--extra-model-paths-config", str(self.extra_model_paths)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        # Whatever the caller put on its own path must not reach ComfyUI, whose modules share names with ours.
        environment.pop("PYTHONPATH", None)
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [*command, *self.arguments],
                cwd=self.comfyui,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the parent, which then stops the server in an orderly way.
                **_own_process_group(),
            )
        try:
            self._wait_until_ready(pack, timeout_s, waiting)
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self, pack: Path, timeout_s: float, waiting: Callable[[float], None] | None) -> None:
        began = time.monotonic()
        told = 0
        while True:
            passed = time.monotonic() - began
            if self._process.poll() is not None:
                raise ServerError(f"ComfyUI ended while starting. The last lines of its log:\n{self.log_tail(30)}")
            if passed > timeout_s:
                raise ServerError(f"ComfyUI did not answer within {timeout_s:.0f} s. Its log:\n{self.log_tail(30)}")
            try:
                nodes = self.get("/object_info", timeout_s=30)
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError, socket.timeout):
                pass
            if waiting and passed >= told + 1:
                told = int(passed)
                waiting(passed)
            time.sleep(0.2)
        ours = [node for node, facts in nodes.items() if facts["python_module"] == f"custom_nodes.{pack.name}"]
        if not ours:
            raise ServerError(f"ComfyUI runs, but could not load this pack. Its log says:\n{self._import_trouble()}")

    def _import_trouble(self) -> str:
        lines = self.log_text().splitlines()
        wanted = ("Traceback", "Cannot import", "comfy_entrypoint")
        hits = [i for i, line in enumerate(lines) if any(word in line for word in wanted)]
        return "\n".join(lines[hits[0] : hits[-1] + 1][-60:]) if hits else self.log_tail(30)

    def stop(self) -> None:
        """Ends the server: asked first, then made to. Does nothing when it has ended already."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(timeout=8)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log_text(self) -> str:
        """Everything the server said, without the colours of a terminal."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(encoding="utf-8", errors="replace"))

    def log_tail(self, lines: int) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:])

    def get(self, path: str, timeout_s: float = 60):
        """The JSON answer to GET `path`."""
        with _direct.open(self.address + path, timeout=timeout_s) as answer:
            return json.load(answer)

    def post(self, path: str, content: dict, timeout_s: float = 60):
        """The JSON answer to POST `path` (None when it is empty)."""
        request = urllib.request.Request(
            self.address + path, json.dumps(content).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        with _direct.open(request, timeout=timeout_s) as answer:
            return json.loads(answer.read() or b"null")

    def view(self, image: dict) -> bytes:
        """The bytes of a picture that a node's output names by filename, subfolder and type."""
        query = urllib.parse.urlencode({key: image[key] for key in ("filename", "subfolder", "type")})
        with _direct.open(f"{self.address}/view?{query}", timeout=60) as answer:
            return answer.read()

    def images(self, finished: Finished, node_id: str) -> list[bytes]:
        """The PNG files that a SaveImage or PreviewImage node wrote."""
        return [self.view(image) for image in finished.outputs[str(node_id)]["images"]]

    def free(self) -> None:
        """Asks the server to forget all results and unload all models before the next workflow."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def run(
        self, prompt: dict, *, timeout_s: float = 600, on_event: Callable[[str, dict], None] | None = None
    ) -> Finished:
        """Runs an API-format workflow to its end.

        Args:
            on_event: called with each message of the server as it arrives: ("executing", {"node": "3", ...}),
                ("progress_state", ...), ("executed", ...) and so on.
        Raises:
            PromptRefused: when validation fails.
            ServerError: when the server dies or is silent for `timeout_s`.
        """
        return asyncio.run(self._run(prompt, timeout_s, on_event))

    async def _run(self, prompt: dict, timeout_s: float, on_event) -> Finished:
        import aiohttp

        client = uuid.uuid4().hex
        executed, cached, progress, seen = [], [], [], {}
        error, failed_node, over = "", None, False
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"{self.address}/ws?clientId={client}", max_msg_size=0) as socket_:
                body = {"prompt": prompt, "client_id": client}
                async with session.post(f"{self.address}/prompt", json=body) as answer:
                    content = await answer.json()
                    if answer.status != 200:
                        raise _refusal(content, prompt)
                    refused = _refusal(content, prompt)
                prompt_id = content["prompt_id"]
                while not over:
                    try:
                        message = await socket_.receive(timeout=timeout_s)
                    except asyncio.TimeoutError:
                        raise ServerError(f"ComfyUI said nothing for {timeout_s:.0f} s.\n{self.log_tail(20)}") from None
                    if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.ERROR):
                        raise ServerError(f"ComfyUI ended in the middle of the workflow.\n{self.log_tail(30)}")
                    if message.type != aiohttp.WSMsgType.TEXT:
                        continue
                    event = json.loads(message.data)
                    kind, data = event["type"], event.get("data") or {}
                    if data.get("prompt_id") != prompt_id:
                        continue
                    if on_event:
                        on_event(kind, data)
                    if kind == "executing" and data["node"] is not None:
                        executed.append(data["node"])
                    elif kind == "execution_cached":
                        cached += data["nodes"]
                    elif kind == "progress_state":
                        progress += new_steps(data, seen)
                    elif kind == "execution_error":
                        error, failed_node = data["exception_message"].strip(), data["node_id"]
                    elif kind == "execution_interrupted":
                        error, failed_node = "interrupted", data["node_id"]
                    over = kind == "executing" and data["node"] is None
        # The worker writes the history before its last message, so it is there.
        history = self.get(f"/history/{prompt_id}")[prompt_id]
        return Finished(
            ok=history["status"]["completed"] and not refused.node_errors,
            error=error or str(refused),
            failed_node=failed_node,
            node_errors=refused.node_errors,
            outputs=history["outputs"],
            executed=tuple(executed),
            cached=tuple(cached),
            progress=tuple(progress),
        )


def new_steps(data: dict, seen: dict[str, tuple[float, float]]) -> list[tuple[str, float, float]]:
    """The steps in a `progress_state` message that were not in the ones before; `seen` is brought up to date.

    ComfyUI opens every node with 0 of 1 and closes it with its maximum; only what the node reported itself counts.
    """
    steps = []
    for node, state in data["nodes"].items():
        step = (state["value"], state["max"])
        if state["state"] == "running" and state["value"] > 0 and seen.get(node) != step:
            seen[node] = step
            steps.append((node, *step))
    return steps


def _refusal(content: dict, prompt: dict) -> PromptRefused:
    node_errors = {
        node: [" - ".join(filter(None, (reason["message"], reason["details"]))) for reason in facts["errors"]]
        for node, facts in (content.get("node_errors") or {}).items()
    }
    lines = [f"{prompt[node]['class_type']} ({node}): {text}" for node, texts in node_errors.items() for text in texts]
    error = content.get("error")
    said = error.get("message", "") if isinstance(error, dict) else error
    return PromptRefused("\n".join(filter(None, [said, *lines])), node_errors)


def _own_process_group() -> dict:
    if os.name == "nt":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}
