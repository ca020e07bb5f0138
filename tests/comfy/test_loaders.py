"""Loaders take the right file, say what a wrong one is, and fetch a published one that is absent, verified or not."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import urllib.request
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import checkpoints
import pytest
import torch

from .graphs import boxes, loaders, models_in_memory, named_by_another_node, node, pictures, whole

SAM = SimpleNamespace(
    node="MAM_LoadSAM", name="sam_name", folder="sams", expected="Expected is SAM (ViT-B", get="sam_vit_b"
)
M2M = SimpleNamespace(
    node="MAM_LoadM2M", name="m2m_name", folder="mam", expected="Expected is Mask-to-Matte", get="mam_sam_vitb.pth"
)
LOADERS = pytest.mark.parametrize("loader", [SAM, M2M], ids=["SAM", "M2M"])


def load(comfy, loader, name: str):
    loading = node(loader.node, **{loader.name: name})
    return comfy.run({"loader": loading, "see": node("PreviewAny", source=("loader", 0))})


@pytest.fixture
def model_file(comfy):
    """`model_file(loader, name)`: a path in the loader's folder; whatever a test puts there is removed again."""
    made = []

    def path(loader, name: str):
        made.append(comfy.models_dir / loader.folder / name)
        return made[-1]

    yield path
    for file in made:
        for trace in file.parent.glob(f"*{file.name}*"):
            trace.unlink()


class Boom:
    """A pickle of it runs a program when it is opened carelessly."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def empty_file(path):
    path.write_bytes(b"")


def web_page(path):
    path.write_bytes(b"<!DOCTYPE html>\n<html><body>Sign in to download</body></html>")


def half_a_sam(path):
    whole_file = checkpoints.save_tiny_sam(path)
    content = whole_file.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def stable_diffusion(path):
    weights = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2), "cond_stage_model.x": torch.zeros(2)}
    torch.save({"state_dict": weights}, path)


def something_else(path):
    torch.save({"encoder.weight": torch.zeros(2)}, path)


def sam_without_a_block(path):
    weights = checkpoints.tiny_sam_state_dict()
    torch.save({key: value for key, value in weights.items() if not key.startswith("image_encoder.neck")}, path)


def m2m_without_a_scale(path):
    weights = checkpoints.tiny_m2m_state_dict()
    weights.pop("layer3.0.conv1.module.weight_bar")
    torch.save(weights, path)


WRONG_FILES = [
    (SAM, checkpoints.save_tiny_m2m, "is Mask-to-Matte, the matting network"),
    (M2M, checkpoints.save_tiny_sam, "is SAM with 2 blocks"),
    *(
        (loader, write, says)
        for loader in (SAM, M2M)
        for write, says in (
            (empty_file, "is empty"),
            (web_page, "is a web page, not a checkpoint"),
            (half_a_sam, "is incomplete or damaged"),
            (stable_diffusion, "is a Stable Diffusion checkpoint"),
            (something_else, "is a model that is not known here"),
        )
    ),
]


@pytest.mark.parametrize(("loader", "write", "says"), WRONG_FILES)
def test_a_wrong_file_is_refused_with_what_it_is_what_was_expected_and_where_to_get_it(
    comfy, model_file, loader, write, says
):
    write(model_file(loader, "wrong.pth"))
    run = load(comfy, loader, "wrong.pth")
    assert run.failed_node == "loader"
    assert f"wrong.pth {says}" in run.error
    assert loader.expected in run.error
    assert loader.get in run.error and f"models/{loader.folder}" in run.error
    assert models_in_memory(comfy) == []


@pytest.mark.parametrize(("loader", "write"), [(SAM, sam_without_a_block), (M2M, m2m_without_a_scale)])
def test_a_file_with_some_weights_missing_is_refused(comfy, model_file, loader, write):
    write(model_file(loader, "partial.pth"))
    run = load(comfy, loader, "partial.pth")
    assert run.failed_node == "loader"
    assert "partial.pth" in run.error and "image_encoder.neck" in run.error or "layer3.0.conv1" in run.error


@LOADERS
def test_a_hostile_file_is_refused_and_nothing_in_it_is_run(comfy, model_file, loader, tmp_path):
    trace = tmp_path / "was_run"
    for name, save in (("plain.pth", lambda content, file: pickle.dump(content, file, 2)), ("zip.pth", torch.save)):
        with open(model_file(loader, name), "wb") as file:
            save({"state_dict": Boom(trace)}, file)
        run = load(comfy, loader, name)
        assert run.failed_node == "loader"
        assert name in run.error and "nothing of it was run" in run.error
        assert not trace.exists()
    # The trap is a real one: opened carelessly it snaps.
    torch.load(comfy.models_dir / loader.folder / "zip.pth", weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".ckpt"])
def test_both_loaders_list_and_load_every_kind_of_file(comfy, model_file, suffix):
    for loader, save in ((SAM, checkpoints.save_tiny_sam), (M2M, checkpoints.save_tiny_m2m)):
        save(model_file(loader, f"mine{suffix}"))
        options = comfy.node(loader.node).GET_NODE_INFO_V1()["input"]["required"][loader.name][1]["options"]
        assert f"mine{suffix}" in options
        assert load(comfy, loader, f"mine{suffix}").ok


def test_a_file_in_a_sub_folder_is_listed_and_loaded(comfy, place, tiny_sam_file):
    place(tiny_sam_file, comfy.models_dir / "sams" / "tiny")
    name = os.path.join("tiny", tiny_sam_file.name)
    assert name in comfy.module("nodes.models").file_choices("sams")
    assert load(comfy, SAM, name).ok


def test_other_files_in_the_folder_are_not_offered(comfy, model_file):
    model_file(SAM, "notes.txt").write_text("ours")
    model_file(SAM, "half.pth.part").write_bytes(b"x")
    choices = comfy.module("nodes.models").file_choices("sams")
    assert not {"notes.txt", "half.pth.part"} & set(choices)


def test_our_folder_stays_when_another_pack_takes_the_name_sams(comfy, monkeypatch, tmp_path, tiny_sam_file, place):
    """Packs are known that assign models/sams anew, with suffixes of their own, after we were loaded."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "filename_list_cache", {})

    elsewhere = tmp_path / "their sams"
    place(tiny_sam_file, elsewhere, "theirs.safetensors")
    place(tiny_sam_file, elsewhere, "theirs.pth")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "sams", ([str(elsewhere)], {".pth"}))
    place(tiny_sam_file, comfy.models_dir / "sams", "ours.pth")
    assert {"theirs.pth", "theirs.safetensors", "ours.pth"} <= set(comfy.module("nodes.models").file_choices("sams"))


@LOADERS
def test_a_name_that_nobody_has_is_refused_before_anything_runs(comfy, loader):
    run = load(comfy, loader, "no_such.pth")
    assert not run.ok and run.executed == []
    assert f'There is no "no_such.pth" in models/{loader.folder}' in run.error
    assert loader.get in run.error


@LOADERS
def test_a_published_file_of_another_folder_is_refused_instead_of_downloaded(comfy, loader):
    published = comfy.module("mam_model.published").PUBLISHED
    name = next(file.name for file in published if file.folder in ("sams", "mam") and file.folder != loader.folder)
    run = load(comfy, loader, name)
    assert not run.ok and run.executed == []
    assert f'There is no "{name}" in models/{loader.folder}' in run.error


@LOADERS
def test_the_name_may_come_from_another_node(comfy, loader, model_file, tiny_sam_file, tiny_m2m_file):
    source = {"sams": tiny_sam_file, "mam": tiny_m2m_file}[loader.folder]
    model_file(loader, "chosen.pth").write_bytes(source.read_bytes())
    graph = {
        **named_by_another_node("chosen.pth"),
        "loader": node(loader.node, **{loader.name: ("name", 0)}),
        "see": node("PreviewAny", source=("loader", 0)),
    }
    run = comfy.run(graph)
    assert run.ok and run.output("loader").name == "chosen.pth", run.error
    assert comfy.run(graph).executed == []
    model_file(loader, "chosen.pth").touch()
    assert "loader" in comfy.run(graph).executed
    run = comfy.run({**graph, **named_by_another_node("no_such.pth")})
    assert run.failed_node == "loader"
    assert f'There is no "no_such.pth" in models/{loader.folder}' in run.error and loader.get in run.error


@LOADERS
@pytest.mark.parametrize("name", [None, 7, True, {"file": "mine.pth"}], ids=["nothing", "a number", "yes", "an object"])
def test_what_is_no_text_in_place_of_a_name_is_refused_in_a_sentence(comfy, loader, name):
    run = load(comfy, loader, name)
    assert not run.ok and f'There is no "{name}" in models/{loader.folder}' in run.error and loader.get in run.error


@LOADERS
def test_a_name_cannot_lead_out_of_the_model_folder(comfy, loader, tiny_sam_file):
    path = comfy.models_dir.parent / "outside.pth"
    path.write_bytes(tiny_sam_file.read_bytes())
    run = load(comfy, loader, "../../outside.pth")
    path.unlink()
    assert not run.ok and run.executed == []


@LOADERS
def test_a_file_that_was_deleted_between_two_runs_is_missed_by_name_and_folder(
    comfy, loader, tiny_sam, tiny_m2m, tensors
):
    picture = tensors(pictures())
    workflow = {"image": node(picture), "prompt": boxes("5 5 40 40"), **loaders(tiny_sam, tiny_m2m), **whole()}
    assert comfy.run(workflow).ok
    name = {"sams": tiny_sam, "mam": tiny_m2m}[loader.folder]
    file = comfy.models_dir / loader.folder / name
    content = file.read_bytes()
    file.unlink()
    run = comfy.run(workflow)
    assert not run.ok
    assert name in run.error and f"models/{loader.folder}" in run.error and loader.get in run.error
    file.write_bytes(content)
    assert comfy.run(workflow).ok


@LOADERS
def test_a_file_that_vanishes_after_validation_is_missed_by_name_and_folder(comfy, loader):
    with pytest.raises(FileNotFoundError) as refusal:
        comfy.module("nodes.models").model_file("gone.pth", loader.folder)
    assert '"gone.pth"' in str(refusal.value) and f"models/{loader.folder}" in str(refusal.value)
    assert loader.get in str(refusal.value)


@LOADERS
def test_published_files_that_are_absent_are_offered_after_those_that_are_there(comfy, loader, model_file):
    checkpoints.save_tiny_sam(model_file(loader, "zebra.pth"))
    published = [f.name for f in comfy.module("mam_model.published").PUBLISHED if f.folder == loader.folder]
    choices = comfy.module("nodes.models").file_choices(loader.folder)
    assert choices[0] == "zebra.pth" and choices[1:] == published
    model_file(loader, published[-1]).write_bytes(b"x")
    choices = comfy.module("nodes.models").file_choices(loader.folder)
    assert sorted(choices) == sorted(["zebra.pth", *published])


class WeightServer(ThreadingHTTPServer):
    """Serves one file in pieces under every path and keeps the ranges that were asked for."""

    content = b""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ranges = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pth"

    def handle_error(self, request, client_address):
        """A client that stops listening is what one of the tests is about."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        content = self.server.content
        self.send_response(206 if asked else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(content) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def published_sam(comfy, monkeypatch, tiny_sam_file, model_file):
    """The published SAM ViT-B as if its authors had published the tiny one, on a server of this machine."""
    server = WeightServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.content = tiny_sam_file.read_bytes()
    module = comfy.module("mam_model.published")
    real = module.published_file("sam_vit_b_01ec64.pth")
    file = replace(
        real, url=server.url, size_bytes=len(server.content), sha256=hashlib.sha256(server.content).hexdigest()
    )
    offered = tuple(file if other is real else other for other in module.PUBLISHED)
    monkeypatch.setattr(module, "PUBLISHED", offered)
    monkeypatch.setattr(comfy.module("nodes.models"), "PUBLISHED", offered)
    # Whatever proxy the environment names must not be asked for this machine.
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(module, "_CHUNK_BYTES", len(server.content) // 8)
    yield SimpleNamespace(name=file.name, path=model_file(SAM, file.name), server=server, size=file.size_bytes)
    server.shutdown()
    server.server_close()


def test_picking_an_absent_published_file_downloads_it_with_progress_and_loads_it(comfy, published_sam):
    run = load(comfy, SAM, published_sam.name)
    assert run.ok, run.error
    assert published_sam.path.read_bytes() == published_sam.server.content
    steps = [(value, total) for node_id, value, total in run.progress if node_id == "loader"]
    assert len(steps) >= 8
    assert [value for value, _ in steps] == sorted(value for value, _ in steps)
    assert {total for _, total in steps} == {published_sam.size}
    assert [path.name for path in published_sam.path.parent.glob(f"*{published_sam.name}*.part")] == []


def test_a_downloaded_file_is_not_downloaded_again(comfy, published_sam):
    assert load(comfy, SAM, published_sam.name).ok
    comfy.reset()
    assert load(comfy, SAM, published_sam.name).ok
    assert len(published_sam.server.ranges) == 1


def test_a_download_with_another_hash_leaves_nothing_behind(comfy, published_sam):
    content = bytearray(published_sam.server.content)
    content[1000] ^= 1
    published_sam.server.content = bytes(content)
    run = load(comfy, SAM, published_sam.name)
    assert run.failed_node == "loader"
    assert published_sam.name in run.error and "is not the published file" in run.error
    assert str(published_sam.path.parent) in run.error
    assert list(published_sam.path.parent.glob(f"*{published_sam.name}*")) == []


def test_a_cancelled_download_keeps_what_arrived_and_the_next_run_continues_it(comfy, published_sam):
    run = comfy.run(
        {"loader": node(SAM.node, sam_name=published_sam.name), "see": node("PreviewAny", source=("loader", 0))},
        interrupt_after=3,
    )
    assert run.interrupted and run.failed_node == "loader"
    assert not published_sam.path.exists()
    part = published_sam.path.with_name(published_sam.name + ".part")
    arrived = part.stat().st_size
    assert 0 < arrived < published_sam.size
    assert load(comfy, SAM, published_sam.name).ok
    assert published_sam.server.ranges == [None, f"bytes={arrived}-"]
    assert published_sam.path.read_bytes() == published_sam.server.content
    assert not part.exists()


def test_a_server_that_is_not_there_is_named_with_the_folder_for_the_file(comfy, published_sam):
    published_sam.server.shutdown()
    published_sam.server.server_close()
    run = load(comfy, SAM, published_sam.name)
    assert run.failed_node == "loader"
    assert published_sam.server.url in run.error and str(published_sam.path.parent) in run.error


def test_a_file_that_only_a_person_can_download_is_refused_with_its_page_and_folder(comfy):
    run = load(comfy, M2M, "mam_vitl.pth")
    assert run.failed_node == "loader"
    page = comfy.module("mam_model.published").published_file("mam_vitl.pth").page
    assert page in run.error and str(comfy.models_dir / "mam") in run.error
