"""Live mattes over HTTP: what the prompt editor's page asks, and what anybody else might send."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import time
import urllib.error
import urllib.request

import comfyui_server
import numpy as np
import psutil
import pytest
from PIL import Image

BOX = {"box": {"x": 24, "y": 8, "width": 48, "height": 48}}
SIZE = {"width": 96, "height": 64}
ENGINES = pytest.mark.parametrize("engine", ["sam", "classical"])


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def disc_picture(height: int = 64, width: int = 96) -> np.ndarray:
    """uint8 [height, width, 3]: an orange disc on blue, with some texture."""
    rows, columns = np.mgrid[:height, :width]
    inside = ((rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (height / 3) ** 2)[..., None]
    picture = np.where(inside, (240, 140, 20), (20, 60, 150)) + 8 * np.sin(columns / 3)[..., None]
    return picture.clip(0, 255).astype(np.uint8)


def drawing(*prompts: dict) -> str:
    targets = [{"name": "Disc", "color": "#ff8800", "hidden": False, "prompts": {"all": p}} for p in prompts]
    return json.dumps({"version": 1, **SIZE, "targets": targets})


class Answer:
    """What the server said to one request."""

    def __init__(self, status: int, headers, body: bytes):
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def pixels(self) -> np.ndarray:
        return np.array(Image.open(io.BytesIO(self.body)))


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def request(server, path: str, body: bytes | None = None, **headers: str) -> Answer:
    asked = urllib.request.Request(
        server.address + path, body, {name.replace("_", "-"): value for name, value in headers.items()}
    )
    try:
        with _direct.open(asked, timeout=60) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.headers, error.read())


def ask(server, question, path: str = "/mam/live", **headers: str) -> Answer:
    body = question if isinstance(question, bytes) else json.dumps(question).encode()
    return request(server, path, body, **{"Content_Type": "application/json", **headers})


def run_alone(server, graph: dict, *targets: str) -> dict:
    """Runs single nodes of a workflow as the page does for a live job; returns its entry of the history."""
    prompt_id = server.post("/prompt", {"prompt": graph, "partial_execution_targets": targets})["prompt_id"]
    until = time.monotonic() + 120
    while time.monotonic() < until:
        history = server.get(f"/history/{prompt_id}")
        if prompt_id in history:
            assert history[prompt_id]["status"]["completed"], history[prompt_id]["status"]
            return history[prompt_id]
        time.sleep(0.05)
    raise AssertionError(f"the live job did not end:\n{server.log_tail(20)}")


@pytest.fixture
def graph(server, tiny_sam, tiny_m2m):
    """`graph(engine)`: a workflow with the editor, and the node "live" that the page adds to it."""

    def build(engine: str, **live) -> dict:
        nodes = {"image": node("LoadImage", image=server.save_picture("disc.png", disc_picture()))}
        links = {"image": ["image", 0]}
        if engine == "sam":
            nodes |= {"sam": node("MAM_LoadSAM", sam_name=tiny_sam), "m2m": node("MAM_LoadM2M", m2m_name=tiny_m2m)}
            links |= {"sam": ["sam", 0], "m2m": ["m2m", 0]}
        nodes["editor"] = node("MAM_PromptEditor", **links, prompts=drawing(BOX))
        nodes["live"] = node("MAM_LivePicture", **links, prompts=drawing(BOX), **live)
        return nodes

    return build


@pytest.fixture
def session(server, graph):
    """`session(engine)`: the id of a session that a live job opened."""

    def open_(engine: str) -> str:
        (told,) = run_alone(server, graph(engine), "live")["outputs"]["live"]["mam_live"]
        assert told["engine"] == engine
        return told["session"]

    return open_


# ---- what is answered


@ENGINES
@pytest.mark.parametrize("stage", ["mask", "matte"])
def test_a_prompt_is_answered_with_the_part_of_the_matte_that_is_not_empty(server, session, engine, stage):
    answer = ask(server, {"session": session(engine), "stage": stage, "prompt": BOX, **SIZE})
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == "image/png" and answer.headers["Cache-Control"] == "no-store"
    x, y, width, height, of_width, of_height = (int(n) for n in answer.headers["X-Mam-Region"].split())
    part = answer.pixels
    assert part.dtype == np.uint8 and part.shape == (height, width)
    assert 0 <= x < x + width <= of_width and 0 <= y < y + height <= of_height
    assert all(edge.any() for edge in (part[0], part[-1], part[:, 0], part[:, -1]))
    assert answer.headers["X-Mam-Engine"] == engine
    assert float(answer.headers["X-Mam-Score"]) <= 1
    timing = json.loads(answer.headers["X-Mam-Timing"])
    assert {"wait", "decode", "pack"} <= set(timing) and all(ms >= 0 for ms in timing.values())


def test_the_classical_engine_finds_the_disc(server, session):
    answer = ask(server, {"session": session("classical"), "stage": "matte", "prompt": BOX, **SIZE})
    x, y, width, height, of_width, of_height = (int(n) for n in answer.headers["X-Mam-Region"].split())
    assert (of_width, of_height) == (96, 64)
    matte = np.zeros((64, 96))
    matte[y : y + height, x : x + width] = answer.pixels / 255
    rows, columns = np.mgrid[:64, :96]
    inside = (rows - 32) ** 2 + (columns - 48) ** 2 < (64 / 3) ** 2
    assert np.abs(matte - inside).mean() < 0.05


def test_both_addresses_of_a_route_work(server, session):
    question = {"session": session("sam"), "stage": "mask", "prompt": BOX}
    assert ask(server, question, "/api/mam/live").body == ask(server, question).body
    path = f"/mam/live/picture?session={question['session']}"
    assert request(server, "/api" + path).body == request(server, path).body


@ENGINES
def test_the_picture_of_a_session_is_shown(server, session, engine):
    answer = request(server, f"/mam/live/picture?session={session(engine)}")
    assert answer.status == 200 and answer.headers["Content-Type"] == "image/jpeg"
    shown = np.array(Image.open(io.BytesIO(answer.body)).resize((96, 64)))
    assert np.abs(shown.astype(int) - disc_picture()).mean() < 8


def test_an_empty_prompt_is_answered_with_one_black_pixel(server, session):
    for engine in ("sam", "classical"):
        answer = ask(server, {"session": session(engine), "stage": "matte", "prompt": {}})
        assert answer.pixels.tolist() == [[0]] and answer.headers["X-Mam-Region"].startswith("0 0 1 1 ")


# ---- what is refused


def nested(levels: int):
    return [] if levels == 1 else [nested(levels - 1)]


BAD = {
    "no JSON": (b"{", "cannot be read as JSON"),
    "no UTF-8": (b'{"session": "\xff"}', "is not UTF-8"),
    "nothing": (b"", "cannot be read as JSON"),
    "only brackets": (b"[" * 500_000, "cannot be read as JSON"),
    "a list": (b"[]", "is a JSON object"),
    "too deep": ({"prompt": nested(8)}, "more than 8 levels deep"),
    "no stage": ({"stage": None}, '"stage" is "mask" or "matte"'),
    "another stage": ({"stage": "trimap"}, '"stage" is "mask" or "matte"'),
    "a stage that is a list": ({"stage": []}, '"stage" is "mask" or "matte"'),
    "no session": ({"session": None}, '"session" is the text'),
    "a session that is a number": ({"session": 5}, '"session" is the text'),
    "a session that is an object": ({"session": {}}, '"session" is the text'),
    "no prompt": ({"prompt": None}, "The prompt is a JSON object, not nothing"),
    "a prompt as text": ({"prompt": "1 2"}, "The prompt is a JSON object, not a text"),
    "points as text": ({"prompt": {"points": "1 2"}}, "its points are a JSON list"),
    "a point labelled 2": ({"prompt": {"points": [{"x": 1, "y": 2, "label": 2}]}}, "label is 1"),
    "a point that is no number": ({"prompt": {"points": [{"x": float("nan"), "y": 2, "label": 1}]}}, "between -1,000"),
    "a point beside the picture": ({"prompt": {"points": [{"x": 97, "y": 2, "label": 1}]}}, "lies outside the picture"),
    "a box without area": ({"prompt": {"box": {"x": 1, "y": 2, "width": 0, "height": 5}}}, "has no area"),
    "a stroke of another kind": ({"prompt": {"strokes": [{"kind": "spray"}]}}, "its kind is one of"),
    "1,001 points": ({"prompt": {"points": [{"x": 1, "y": 2, "label": 1}] * 1001}}, "the most is 1,000"),
    "a text for yes or no": ({"ahead": "yes"}, "true or false"),
    "a width of text": ({"width": "96"}, "is a number, not a text"),
    "a negative height": ({"height": -64}, "cannot be negative"),
    "a picture of another shape": ({"width": 64, "height": 96}, "64 x 96 pixels, but this one is 96 x 64"),
}


@pytest.mark.parametrize(("change", "says"), BAD.values(), ids=BAD)
def test_a_bad_question_is_refused_with_400_and_a_sentence(server, session, change, says):
    question = change
    if isinstance(change, dict):
        question = {"session": session("classical"), "stage": "mask", "prompt": BOX, **SIZE, **change}
    answer = ask(server, question)
    assert answer.status == 400 and answer.json["state"] == "bad"
    assert says in answer.json["error"] and "\n" not in answer.json["error"]


def test_an_unknown_session_is_gone(server):
    for session in ("0" * 32, "", "../../etc/passwd", "x" * 100_000):
        answer = ask(server, {"session": session, "stage": "mask", "prompt": BOX})
        assert answer.status == 404 and answer.json["state"] == "gone"
    for query in ("?session=00", "?session=..%2F..%2Fetc%2Fpasswd"):
        answer = request(server, "/mam/live/picture" + query)
        assert answer.status == 404 and answer.json["state"] == "gone"
    assert request(server, "/mam/live/picture").status == 400


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_a_form_of_another_page_could_send_is_refused(server, content_type):
    answer = ask(server, {"session": "0", "stage": "mask", "prompt": BOX}, Content_Type=content_type)
    assert answer.status == 415 and answer.json["state"] == "bad"


def test_a_question_of_more_than_a_megabyte_is_refused_whether_it_tells_its_length_or_not(server):
    import aiohttp

    body = b'{"prompt": "' + b"x" * 1_500_000 + b'"}'

    async def pieces():
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    async def post(data) -> tuple[int, dict]:
        async with aiohttp.ClientSession() as client:
            headers = {"Content-Type": "application/json"}
            async with client.post(server.address + "/mam/live", data=data, headers=headers) as answer:
                return answer.status, await answer.json()

    for data in (body, pieces()):
        status, told = asyncio.run(post(data))
        assert status == 413 and told["state"] == "bad" and "1,000,000 bytes" in told["error"]
        assert told["code"] == "too_large" and told["values"] == {"limit": 1_000_000}


@pytest.mark.parametrize(
    "headers", [{"Sec_Fetch_Site": "cross-site"}, {"Origin": "https://example.com"}], ids=["cross-site", "origin"]
)
def test_another_site_is_refused(server, session, headers):
    question = {"session": session("classical"), "stage": "mask", "prompt": BOX}
    assert ask(server, question, **headers).status == 403
    assert request(server, f"/mam/live/picture?session={question['session']}", **headers).status == 403
    assert ask(server, question).status == 200


# ---- beside the queue


def test_a_live_job_leaves_the_results_of_the_other_nodes_alone(server, graph):
    nodes = graph("sam", target=0)
    live = {"live": nodes.pop("live")}
    nodes["other"] = node("ImageInvert", image=["editor", 1])
    nodes["saved"] = node("PreviewImage", images=["other", 0])
    first = server.run(nodes)
    assert first.ok, first.error
    job = run_alone(server, {**nodes, **live}, "live")
    (told,) = job["outputs"]["live"]["mam_live"]
    assert told["matte"]["target"] == 0 and told["session"] == first.outputs["editor"]["mam_live"][0]["session"]
    again = server.run(nodes)
    assert again.ok and set(again.executed) <= set(again.cached)
    assert {"image", "sam", "m2m", "editor", "other", "saved"} <= set(again.cached)


def test_a_live_job_runs_nothing_but_what_the_editor_needs(server, graph):
    nodes = graph("classical")
    nodes["other"] = node("ImageInvert", image=["image", 0])
    nodes["saved"] = node("SaveImage", images=["other", 0], filename_prefix="must_not_be_saved")
    job = run_alone(server, nodes, "live")
    assert set(job["outputs"]) == {"live"}
    assert not list((server.base / "output").glob("must_not_be_saved*"))


def lists_of_jobs(server) -> list[set[str]]:
    """Ids of the jobs that are over, as ComfyUI's pages and programs are told them."""
    return [{job["id"] for job in server.get("/api/jobs?status=completed,failed")["jobs"]}, set(server.get("/history"))]


async def run_for_page(server, graph: dict, target: str) -> str:
    """Runs a node for a page that listens on its websocket, until all is said; returns the job's id."""
    import aiohttp

    async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.address}/ws?clientId=page") as socket:
        job = {"prompt": graph, "partial_execution_targets": [target], "client_id": "page"}
        async with session.post(f"{server.address}/prompt", json=job) as answer:
            prompt_id = (await answer.json())["prompt_id"]
        while True:
            message = await socket.receive(timeout=120)
            data = json.loads(message.data)["data"] if message.type == aiohttp.WSMsgType.TEXT else {}
            if data.get("prompt_id") == prompt_id and data.get("node", "") is None:
                assert all(prompt_id not in ids for ids in lists_of_jobs(server)) == (target == "live")
                return prompt_id


@pytest.mark.parametrize("target", ["live", "editor"])
def test_no_page_is_told_of_a_live_job_as_of_one_that_its_user_waits_for(server, graph, target):
    prompt_id = asyncio.run(run_for_page(server, graph("classical"), target))
    assert (prompt_id in server.get(f"/history/{prompt_id}")) == (target == "editor")


def test_a_live_job_of_a_page_without_a_websocket_can_be_read_until_that_page_drops_it(server, graph):
    prompt_id = run_alone(server, graph("classical"), "live")["prompt"][1]
    assert all(prompt_id in ids for ids in lists_of_jobs(server))
    assert prompt_id in server.get(f"/history/{prompt_id}")


def test_live_mattes_are_answered_while_a_workflow_runs(server, session, graph):
    question = {"session": session("classical"), "stage": "mask", "prompt": BOX}
    nodes = graph("sam")
    nodes["many"] = node("RepeatImageBatch", image=["image", 0], amount=40)
    nodes["editor"]["inputs"]["image"] = ["many", 0]
    del nodes["live"]
    answered = []

    def meanwhile(kind, data):
        if kind == "progress_state" and not answered and data["nodes"].get("editor", {}).get("value", 0) >= 1:
            answered.append(ask(server, question).status)

    finished = server.run(nodes, on_event=meanwhile)
    assert finished.ok and answered == [200]


def test_after_free_a_session_with_models_is_gone_until_the_next_live_job(server, session):
    question = {"session": session("sam"), "stage": "mask", "prompt": BOX}
    assert ask(server, question).status == 200
    server.free()
    until = time.monotonic() + 60
    while (answer := ask(server, question)).status == 200 and time.monotonic() < until:
        time.sleep(0.1)
    assert answer.status == 404 and answer.json["state"] == "gone"
    assert request(server, f"/mam/live/picture?session={question['session']}").status == 200
    assert ask(server, {**question, "session": session("sam")}).status == 200


# ---- many questions


def all_at_once(server, bodies: list[bytes]) -> list[tuple[int, str]]:
    """Status and state ("" for a matte) of each request, sent over as many connections as there are requests."""
    import aiohttp

    async def post(client, body):
        headers = {"Content-Type": "application/json"}
        async with client.post(server.address + "/mam/live", data=body, headers=headers) as answer:
            content = await answer.read()
            return answer.status, "" if answer.status == 200 else json.loads(content)["state"]

    async def post_all():
        timeout = aiohttp.ClientTimeout(total=300)
        connector = aiohttp.TCPConnector(limit=200)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
            return await asyncio.gather(*(post(client, body) for body in bodies))

    return asyncio.run(post_all())


@ENGINES
def test_of_questions_that_come_at_once_the_first_and_the_newest_are_answered(server, session, engine):
    question = json.dumps({"session": session(engine), "stage": "matte", "prompt": BOX, **SIZE}).encode()
    answers = all_at_once(server, [question] * 60)
    assert set(answers) == {(200, ""), (409, "superseded")}
    assert answers.count((200, "")) >= 2


def test_a_flood_of_a_thousand_questions_leaves_the_server_answering_and_its_memory_as_it_was(server, graph):
    # In one workflow: ComfyUI drops the models of a workflow when another one runs.
    nodes = {**graph("sam"), "classical": graph("classical")["live"]}
    outputs = run_alone(server, nodes, "live", "classical")["outputs"]
    ids = [outputs[name]["mam_live"][0]["session"] for name in ("live", "classical")]
    good = [json.dumps({"session": id, "stage": "mask", "prompt": BOX, **SIZE}).encode() for id in ids]
    strokes = [{"kind": "foreground", "width": 9, "path": [1.5] * 20_000}] * 8
    large = json.dumps({"session": ids[0], "stage": "mask", "prompt": {"strokes": strokes}, **SIZE}).encode()
    bad = [b"{", b"[" * 900_000, b'{"session": "0", "stage": "mask", "prompt": {}}']
    flood = [*good, *good, large, *bad] * 125
    process = psutil.Process(server._process.pid)
    # Once before, and as many: what the first flood makes the allocator take stays with the process.
    all_at_once(server, flood)
    before = process.memory_info().rss
    answers = all_at_once(server, flood)
    assert len(answers) == 1000
    assert set(answers) <= {(200, ""), (409, "superseded"), (400, "bad"), (404, "gone")}
    assert {status for status, _ in answers} >= {200, 409, 400, 404}
    assert process.memory_info().rss - before < 150 * 1024**2
    for body in good:
        assert ask(server, body).status == 200
    assert server.get("/queue")["queue_running"] == []


def test_the_log_holds_no_failure_of_the_live_thread(server, session):
    assert ask(server, {"session": session("sam"), "stage": "matte", "prompt": BOX}).status == 200
    assert "the live matte failed" not in server.log_text()


@pytest.mark.parametrize("file", ["matting.js", "editor/editor.mjs", "editor/live.mjs"])
def test_a_browser_asks_after_an_update_for_every_module_of_the_page(server, file):
    address = f"{server.address}/extensions/{comfyui_server.PACK_FOLDER}/js/{file}"
    with _direct.open(address) as answer:
        assert answer.headers["Cache-Control"].split(",")[0] in ("no-cache", "no-store")


def test_a_page_that_is_closed_while_it_asks_is_no_failure_for_the_log(server):
    head = "POST /mam/live HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    before = len(server.log_text())
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port)) as page:
            page.sendall(head.encode())
            # Answered only after the server has begun to read the request above.
            server.get("/queue")
        server.get("/queue")
    assert "live matte failed" not in server.log_text()[before:]
