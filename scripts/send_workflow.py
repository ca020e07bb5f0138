"""Sends a workflow to a running ComfyUI and saves what comes of it: `python3 scripts/send_workflow.py WORKFLOW`

The workflow is a file in the API format: one of workflows/api, or what ComfyUI's menu File > Export (API) writes. This
file needs nothing but Python; copy it to where you want it, or take it as an example of how a program talks to ComfyUI:
upload the pictures, post the workflow, ask until it is done, fetch the results.

examples:
  python3 scripts/send_workflow.py "workflows/api/Cut out without models.json" --picture holiday.jpg
      --set "Prompt: Boxes.boxes=[[120, 40, 610, 980]]" --set "Prompt: Points.positive="
  python3 scripts/send_workflow.py "workflows/api/In-context matting.json" --server http://192.168.1.20:8188
      --picture Example=cup.jpg --picture Target=shelf.jpg --set ICM_Match.ensemble=1 --output mattes
"""

from __future__ import annotations

import argparse
import io
import json
import mimetypes
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

LOADERS = ("LoadImage", "LoadImageMask")
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 2.0
# A request is answered at once, whatever the workflow takes; only a large upload needs more.
ANSWER_S = 60


class Trouble(RuntimeError):
    """The workflow cannot be sent, or did not run to its end; the message says why and what to do."""


class Server:
    """A running ComfyUI.

    Attributes:
        address: without a slash at its end, e.g. "http://127.0.0.1:8188".
    """

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        parts = urllib.parse.urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Trouble(f"{address} is no address of a server; write it like http://127.0.0.1:8188.")
        # A proxy for the outside world must not be asked for this machine.
        is_here = parts.hostname in ("127.0.0.1", "localhost", "::1")
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_here else []))

    def ask(self, path: str, content: bytes | None = None, kind: str = "application/json") -> bytes:
        """The answer to GET, or with content to POST.

        Raises:
            Trouble: when no server answers.
            urllib.error.HTTPError: when it answers with an error.
        """
        request = urllib.request.Request(self.address + path, content, {"Content-Type": kind} if content else {})
        try:
            with self._opener.open(request, timeout=ANSWER_S) as answer:
                return answer.read()
        except urllib.error.HTTPError:
            raise
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise Trouble(
                f"No ComfyUI answers at {self.address} ({reason}). Start it, or name another one with --server."
            ) from None

    def ask_json(self, path: str, content: dict | None = None):
        body = None if content is None else json.dumps(content).encode()
        try:
            answer = self.ask(path, body)
            return json.loads(answer or b"null")
        except urllib.error.HTTPError as error:
            raise Trouble(f"The server answered {path} with {error.code} {error.reason}.") from None
        except ValueError:
            raise Trouble(f"What answers at {self.address} is no ComfyUI.") from None


def main() -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name may hold letters that a redirected stdout on Windows cannot.
        sys.stdout.reconfigure(errors="backslashreplace")
    options = _arguments()
    try:
        return _run(options)
    except Trouble as trouble:
        print(trouble, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped waiting; the server goes on.", file=sys.stderr)
        return 130


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", type=Path, metavar="WORKFLOW", help="a file in the API format")
    parser.add_argument(
        "--picture",
        action="append",
        default=[],
        metavar="[NODE=]FILE",
        help="upload this picture for a Load Image node; with several of those, say which",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="another value for an input; NODE is the node's number, title or type",
    )
    parser.add_argument("--server", default="http://127.0.0.1:8188", metavar="ADDRESS", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("."), metavar="FOLDER", help="default: this folder")
    parser.add_argument(
        "--previews", action="store_true", help="also save what is only shown, not saved, on the server"
    )
    parser.add_argument(
        "--timeout", type=float, default=3600, metavar="SECONDS", help="give up after this (default: %(default)g)"
    )
    return parser.parse_args()


def _run(options: argparse.Namespace) -> int:
    workflow = read_workflow(options.workflow)
    pictures = [_target_of_picture(workflow, argument) for argument in options.picture]
    for argument in options.set:
        set_input(workflow, argument)
    server = Server(options.server)
    server.ask_json("/queue")
    for node_id, file in pictures:
        workflow[node_id]["inputs"]["image"] = upload(server, file)
    prompt_id, refused = send(server, workflow)
    print(f"Sent to {server.address}; waiting.", flush=True)
    history = wait(server, prompt_id, options.timeout)
    files = save_results(server, history["outputs"], options.output, options.previews)
    for file in files:
        print(file)
    if errors := list(filter(None, (refused, _error_of(history, workflow)))):
        raise Trouble("\n".join(errors))
    if not files:
        print("Nothing was saved. Pictures that the workflow only shows come with --previews.", file=sys.stderr)
    return 0


def read_workflow(file: Path) -> dict:
    """The nodes by id.

    Raises:
        Trouble: when the file is missing or holds something else.
    """
    try:
        # Windows' editors begin a text with a mark.
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise Trouble(f"The workflow {file} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise Trouble(f"{file} holds no JSON, so it is no workflow.") from None
    if isinstance(content, dict) and isinstance(content.get("nodes"), list):
        raise Trouble(
            f"{file} is a workflow as the browser saves it. Take its twin in workflows/api, or open it in ComfyUI and "
            "choose File > Export (API)."
        )
    if not isinstance(content, dict) or not content or not all(map(_is_node, content.values())):
        raise Trouble(f"{file} is no workflow in the API format.")
    return content


def _is_node(content) -> bool:
    return isinstance(content, dict) and "class_type" in content and isinstance(content.get("inputs"), dict)


def names_of(node_id: str, node: dict) -> tuple[str, ...]:
    """How a node may be called, the surest first: its number, its title, its type."""
    return tuple(filter(None, (node_id, node.get("_meta", {}).get("title"), node["class_type"])))


def find_node(workflow: dict, name: str) -> str:
    """The id of the node that is called so.

    Raises:
        Trouble: when there is none or more than one.
    """
    if name in workflow:
        return name
    found = [node_id for node_id, node in workflow.items() if name in names_of(node_id, node)]
    if len(found) == 1:
        return found[0]
    if found:
        raise Trouble(f"{len(found)} nodes are called {name}; say which by number: {', '.join(found)}.")
    known = ", ".join(f"{node_id} ({names_of(node_id, node)[1]})" for node_id, node in workflow.items())
    raise Trouble(f"The workflow has no node {name}; it has {known}.")


def _target_of_picture(workflow: dict, argument: str) -> tuple[str, Path]:
    """Load Image node and file that [NODE=]FILE speaks of; a name with "=" in it may be a file's as well."""
    node, equals, name = argument.partition("=")
    if equals and not Path(argument).is_file():
        node_id = find_node(workflow, node)
        if workflow[node_id]["class_type"] not in LOADERS:
            raise Trouble(f"Node {node} loads no picture; it is a {workflow[node_id]['class_type']}.")
    else:
        name = argument
        loaders = [node_id for node_id, node in workflow.items() if node["class_type"] in LOADERS]
        if len(loaders) != 1:
            titles = ", ".join(names_of(node_id, workflow[node_id])[1] for node_id in loaders)
            raise Trouble(
                f"The workflow loads {len(loaders)} pictures: {titles}. Write --picture NODE=FILE."
                if loaders
                else "The workflow loads no picture, so --picture has no use."
            )
        (node_id,) = loaders
    file = Path(name)
    if not file.is_file():
        raise Trouble(f"There is no picture {file}.")
    return node_id, file


def set_input(workflow: dict, argument: str) -> None:
    """Changes one input, given as NODE.INPUT=VALUE.

    Where the workflow has text, the value is text as it stands; elsewhere it is read as JSON where it is some.
    """
    place, equals, text = argument.partition("=")
    node_name, dot, name = _split_place(workflow, place)
    if not equals or not dot or not name:
        raise Trouble(f'Write --set "NODE.INPUT=VALUE", not "{argument}".')
    node_id = find_node(workflow, node_name)
    inputs = workflow[node_id]["inputs"]
    if name not in inputs:
        raise Trouble(f"Node {node_name} has no input {name} in this workflow; it has {', '.join(inputs) or 'none'}.")
    inputs[name] = text if isinstance(inputs[name], str) else _value(text)


def _split_place(workflow: dict, place: str) -> tuple[str, str, str]:
    """NODE, ".", INPUT. Titles and inputs may hold dots themselves, so the longest name of a node decides."""
    names = {name for node_id, node in workflow.items() for name in names_of(node_id, node)}
    fitting = [name for name in names if place.startswith(f"{name}.")]
    if not fitting:
        return place.partition(".")
    node = max(fitting, key=len)
    return node, ".", place[len(node) + 1 :]


def _value(text: str):
    try:
        value = json.loads(text)
    except ValueError:
        return text
    # A bare list would be a connection to another node.
    return {"__value__": value} if isinstance(value, list) else value


def upload(server: Server, file: Path) -> str:
    """Puts a picture into the server's input folder; its name there, which is another one if the name was taken."""
    boundary = uuid.uuid4().hex
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    name = file.name.replace('"', "_")
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        f"Content-Type: {kind}\r\n\r\n"
    )
    body = head.encode() + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    try:
        answer = json.loads(server.ask("/upload/image", body, f"multipart/form-data; boundary={boundary}"))
    except urllib.error.HTTPError as error:
        reason = "it is too large for it" if error.code == 413 else f"{error.code} {error.reason}"
        raise Trouble(f"The server did not take the picture {file}: {reason}.") from None
    return "/".join(filter(None, (answer.get("subfolder"), answer["name"])))


def send(server: Server, workflow: dict) -> tuple[str, str]:
    """Puts the workflow into the queue.

    Returns:
        Its id, and sentences about parts that the server refused while it runs the others ("" when there are none).
    """
    try:
        answer = json.loads(server.ask("/prompt", json.dumps({"prompt": workflow}).encode()))
    except urllib.error.HTTPError as error:
        raise Trouble(_refusal(error.read(), workflow) or f"The server answered {error.code} {error.reason}.") from None
    return answer["prompt_id"], _node_errors(answer.get("node_errors") or {}, workflow)


def _refusal(body: bytes, workflow: dict) -> str:
    try:
        content = json.loads(body)
    except ValueError:
        return ""
    error = content.get("error") or {}
    if isinstance(error, str):
        return error
    if error.get("type") == "missing_node_type":
        return f"{error['message']} Install the pack that brings it on the server, and restart the server."
    return _node_errors(content.get("node_errors") or {}, workflow) or error.get("message", "")


def _node_errors(errors: dict, workflow: dict) -> str:
    lines = []
    for node_id, found in errors.items():
        for reason in found["errors"]:
            said = ": ".join(filter(None, (reason.get("message"), reason.get("details"))))
            lines.append(f"{_title(workflow, node_id)}: {said}")
    return "\n".join(lines)


def _title(workflow: dict, node_id: str) -> str:
    node = workflow.get(node_id)
    return f"{names_of(node_id, node)[1]} (node {node_id})" if node else f"Node {node_id}"


def wait(server: Server, prompt_id: str, timeout_s: float) -> dict:
    """The server's record of the workflow, once it has ended in whatever way.

    Raises:
        Trouble: when that takes longer than `timeout_s`; the workflow is then taken off the server.
    """
    end = time.monotonic() + timeout_s
    pause = FIRST_WAIT_S
    while True:
        history = server.ask_json(f"/history/{prompt_id}")
        if prompt_id in history:
            return history[prompt_id]
        left = end - time.monotonic()
        if left <= 0:
            server.ask_json("/queue", {"delete": [prompt_id]})
            server.ask_json("/interrupt", {"prompt_id": prompt_id})
            raise Trouble(
                f"The workflow was not done after {timeout_s:g} s and was stopped; allow more with --timeout."
            )
        time.sleep(min(pause, left))
        pause = min(1.5 * pause, LONGEST_WAIT_S)


def _error_of(history: dict, workflow: dict) -> str:
    for kind, facts in history["status"].get("messages", []):
        if kind == "execution_error":
            return f"{_title(workflow, facts['node_id'])} failed: {facts['exception_message'].strip()}"
        if kind == "execution_interrupted":
            return "The workflow was stopped on the server."
    return "" if history["status"].get("completed") else "The workflow did not run to its end."


def save_results(server: Server, outputs: dict, folder: Path, previews: bool) -> list[Path]:
    """Fetches what the nodes wrote on the server into `folder`; files that are there already are kept."""
    files = []
    for shown in outputs.values():
        for entries in shown.values():
            for entry in entries if isinstance(entries, list) else ():
                if not isinstance(entry, dict) or "filename" not in entry:
                    continue
                if entry.get("type") == "output" or previews:
                    files.append(_save(server, entry, folder))
    return files


def _save(server: Server, entry: dict, folder: Path) -> Path:
    query = urllib.parse.urlencode({key: entry.get(key, "") for key in ("filename", "subfolder", "type")})
    try:
        content = server.ask(f"/view?{query}")
    except urllib.error.HTTPError as error:
        raise Trouble(f"The server has no {entry['filename']} any more ({error.code}).") from None
    # Whatever the server calls it, it is to lie in this folder.
    name = Path(entry["filename"].replace("\\", "/")).name or "result"
    folder.mkdir(parents=True, exist_ok=True)
    file, number = folder / name, 1
    while file.exists():
        number += 1
        file = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
    file.write_bytes(content)
    return file


if __name__ == "__main__":
    sys.exit(main())
