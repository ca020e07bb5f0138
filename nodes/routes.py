"""What the page asks the server for while somebody draws: live mattes, and the picture they belong to."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import Any

from aiohttp import web

from ..mam_model.prompt import PromptError
from . import live
from .drawing import DrawnPrompt, read_json, read_size

_MOST_BYTES = 1_000_000
_READING_S = 10
# Bodies that are being read at the same time: what a flood of requests can make the server hold.
_READERS = 16
_LIVE_NODE = "MAM_LivePicture"
_LISTS_OF_JOBS = ("/api/jobs", "/history", "/api/history")


class _Refusal(Exception):
    """An answer other than 200: a sentence for the user and a state for the page.

    Attributes:
        code, values: of a refusal that a user may come to see, what the page needs to say it in the user's language.
    """

    def __init__(self, status: int, state: str, sentence: str, code: str = "", **values: str | float):
        super().__init__(sentence)
        self.status = status
        self.state = state
        self.code = code
        self.values = values


def register(server: Any, pack_folder: str) -> None:
    """Adds the routes to ComfyUI's server, once.

    Args:
        server: ComfyUI's PromptServer, or None when there is none.
        pack_folder: name of this pack's folder, under which ComfyUI serves its web files.
    """
    if server is None or any(getattr(route, "path", None) == "/mam/live" for route in server.routes):
        return
    server.routes.post("/mam/live")(_answering(_matte))
    server.routes.get("/mam/live/picture")(_answering(_picture))

    async def revalidate_modules(request: web.Request, response: web.StreamResponse) -> None:
        # ComfyUI does so for .js files alone, and a page with modules of two versions would break after an update.
        if request.path.endswith(".mjs") and pack_folder in request.path.split("/"):
            response.headers.setdefault("Cache-Control", "no-cache")

    server.app.on_response_prepare.append(revalidate_modules)

    @web.middleware
    async def without_live_jobs(request: web.Request, handler) -> web.StreamResponse:
        # Every page of ComfyUI announces what it finds there as a job that its user has waited for.
        if request.method == "GET" and request.path in _LISTS_OF_JOBS:
            _drop_live_jobs(server)
        return await handler(request)

    server.app.middlewares.append(without_live_jobs)


def _drop_live_jobs(server: Any) -> None:
    """Takes live jobs that are over out of ComfyUI's history.

    One whose page has no websocket stays: that page reads the answer there, and drops the job itself.
    """
    # As they are, and not copied: only what they were started with is looked at.
    for prompt_id, entry in server.prompt_queue.get_history(map_function=lambda entry: entry).items():
        # Versions of ComfyUI differ in what follows these.
        nodes, extra_data, targets = entry["prompt"][2:5]
        is_live = [nodes.get(target, {}).get("class_type") for target in targets] == [_LIVE_NODE]
        if is_live and str(extra_data.get("client_id")) in server.sockets:
            server.prompt_queue.delete_history_item(prompt_id)


def _answering(handler):
    """The handler, with every refusal and failure as {"error": sentence, "state": word, "code": word, "values": {}}."""

    async def answer(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except _Refusal as error:
            refusal = error
        except PromptError as error:
            refusal = _Refusal(400, "bad", str(error))
        except live.SessionGone:
            refusal = _Refusal(404, "gone", "The picture is no longer in memory. It has to be encoded again.")
        except live.Superseded:
            refusal = _Refusal(409, "superseded", "A newer prompt took the place of this one.")
        except Exception as error:
            logging.exception("Matting Anything: the live matte failed.")
            reason = str(error) or type(error).__name__
            if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(reason):
                sentence = "There is not enough memory. Use a smaller picture, or free some memory first."
                refusal = _Refusal(500, "failed", sentence, code="out_of_memory")
            else:
                refusal = _Refusal(500, "failed", f"The live matte failed: {reason}", code="failed", reason=reason)
        told = dict(error=str(refusal), state=refusal.state, code=refusal.code, values=refusal.values)
        return web.json_response(told, status=refusal.status, headers=_NOT_KEPT)

    return answer


# PyTorch and OpenCV have no error of their own for it on the processor.
_OUT_OF_MEMORY = re.compile(r"DefaultCPUAllocator|Insufficient memory")
_NOT_KEPT = {"Cache-Control": "no-store"}
_readers = asyncio.Semaphore(_READERS)


async def _matte(request: web.Request) -> web.Response:
    question = await _json_of(request)
    stage = question.get("stage")
    if stage not in live.STAGES:
        raise _Refusal(400, "bad", '"stage" is "mask" or "matte".')
    ahead = question.get("ahead", False)
    if not isinstance(ahead, bool):
        raise _Refusal(400, "bad", '"ahead" is true or false.')
    session = live.session_of(_session_id(question.get("session")))
    drawn = DrawnPrompt.read(question.get("prompt"))
    matte = await session.ask(drawn, read_size(question), stage, ahead)
    headers = {
        "X-Mam-Region": " ".join(str(number) for number in (*matte.region, *matte.size)),
        "X-Mam-Score": f"{matte.score:.4f}",
        "X-Mam-Engine": session.engine.name,
        "X-Mam-Timing": json.dumps(matte.timing),
    }
    return web.Response(body=matte.png, content_type="image/png", headers={**_NOT_KEPT, **headers})


async def _picture(request: web.Request) -> web.Response:
    session = live.session_of(_session_id(request.query.get("session")))
    return web.Response(body=session.jpeg, content_type="image/jpeg", headers=_NOT_KEPT)


def _session_id(given: Any) -> str:
    if not isinstance(given, str):
        raise _Refusal(400, "bad", '"session" is the text that a run of the editor gave.')
    return given


async def _json_of(request: web.Request) -> dict[str, Any]:
    """The body of a request as a JSON object, never more of it in memory than may be.

    ComfyUI itself would take bodies of 100 MB.
    """
    if request.content_type != "application/json":
        raise _Refusal(415, "bad", "Send JSON, with Content-Type: application/json.")
    too_large = _Refusal(
        413,
        "bad",
        f"The request is larger than {_MOST_BYTES:,} bytes. Erase some strokes.",
        code="too_large",
        limit=_MOST_BYTES,
    )
    if (request.content_length or 0) > _MOST_BYTES:
        raise too_large
    async with _readers:
        try:
            body = await asyncio.wait_for(_read(request), _READING_S)
        except asyncio.TimeoutError:
            raise _Refusal(
                400,
                "bad",
                f"The request did not arrive within {_READING_S} seconds.",
                code="late",
                seconds=_READING_S,
            ) from None
        except ConnectionError:
            # Nobody hears this: the page was closed or loaded anew meanwhile, which is no failure for the log.
            raise _Refusal(400, "bad", "The request broke off.") from None
    if body is None:
        raise too_large
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise _Refusal(400, "bad", "The request is not UTF-8.") from None
    question = read_json(text, "The request")
    if not isinstance(question, dict):
        raise _Refusal(400, "bad", "The request is a JSON object.")
    return question


async def _read(request: web.Request) -> bytes | None:
    """The whole body, or None when it is too large."""
    body = bytearray()
    async for part in request.content.iter_any():
        body += part
        if len(body) > _MOST_BYTES:
            return None
    return bytes(body)
