"""Published files arrive whole and verified, or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from mam_model import published
from mam_model.published import (
    PUBLISHED,
    DownloadCancelled,
    DownloadError,
    PublishedFile,
    download,
    published_file,
    sha256_of,
    sources,
)

CONTENT = bytes(range(256)) * 12_000
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class WeightServer(ThreadingHTTPServer):
    """Serves CONTENT under every path; its attributes say how badly."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = CONTENT
        self.status = 200
        self.content_type = "application/octet-stream"
        self.honours_range = True
        self.refuses_range = False
        self.break_off_after = None
        self.may_go_on = None
        self.requests = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pth"

    def handle_error(self, request, client_address):
        """A client that stops listening is what several tests are about."""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append((self.path, wanted))
        start = 0
        if server.status != 200:
            self.send_error(server.status)
            return
        if wanted and server.refuses_range:
            self.send_error(416)
            return
        if wanted and server.honours_range:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        body = server.content[start:]
        self.send_header("Content-Type", server.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.may_go_on is not None:
            self.wfile.write(body[:1000])
            server.may_go_on.wait()
            body = body[1000:]
        self.wfile.write(body[: server.break_off_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = WeightServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def weights(server) -> PublishedFile:
    return PublishedFile(
        name="weights.pth",
        purpose="a test",
        folder="mam",
        size_bytes=len(CONTENT),
        licence="MIT",
        page="https://example.org/weights",
        url=server.url,
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


def fetch(file, folder, progress=None, **options):
    return download(file, folder, progress, opener=NO_PROXY, **options)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_download_gives_the_published_bytes_in_a_new_folder(weights, tmp_path):
    seen = []
    path = fetch(weights, tmp_path / "models" / "mam", lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "models" / "mam" / "weights.pth"
    assert path.read_bytes() == CONTENT
    assert files_in(path.parent) == ["weights.pth"]
    assert seen == sorted(seen) and len(seen) > 2
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_file_that_is_there_is_not_downloaded_again(weights, server, tmp_path):
    first = fetch(weights, tmp_path)
    assert fetch(weights, tmp_path) == first
    assert len(server.requests) == 1


@pytest.mark.parametrize("size_is_exact", [True, False])
def test_another_file_under_the_name_is_left_as_it_is(weights, server, tmp_path, size_is_exact):
    mine = tmp_path / "weights.pth"
    mine.write_bytes(b"my own weights")
    with pytest.raises(DownloadError, match="left as it is"):
        fetch(replace(weights, size_is_exact=size_is_exact), tmp_path)
    assert mine.read_bytes() == b"my own weights"
    assert server.requests == []


def test_a_folder_under_the_name_is_refused(weights, tmp_path):
    (tmp_path / "weights.pth").mkdir()
    with pytest.raises(DownloadError, match="is not a file"):
        fetch(weights, tmp_path)


def test_a_connection_that_breaks_off_is_continued_where_it_stopped(weights, server, tmp_path):
    server.break_off_after = 1_500_000
    with pytest.raises(DownloadError, match="broke off after 2 of 3 MB; the next attempt continues") as caught:
        fetch(weights, tmp_path)
    assert str(tmp_path) in str(caught.value) and server.url in str(caught.value)
    assert files_in(tmp_path) == ["weights.pth.part"]
    server.break_off_after = None
    assert fetch(weights, tmp_path).read_bytes() == CONTENT
    assert server.requests[1] == ("/weights.pth", "bytes=1500000-")
    assert files_in(tmp_path) == ["weights.pth"]


@pytest.mark.parametrize("disregard", [{"honours_range": False}, {"refuses_range": True}])
def test_a_server_that_cannot_continue_begins_anew(weights, server, tmp_path, disregard):
    (tmp_path / "weights.pth.part").write_bytes(CONTENT[:1000])
    for name, value in disregard.items():
        setattr(server, name, value)
    assert fetch(weights, tmp_path).read_bytes() == CONTENT
    assert server.requests[0][1] == "bytes=1000-"


def test_a_complete_part_only_needs_its_name(weights, server, tmp_path):
    (tmp_path / "weights.pth.part").write_bytes(CONTENT)
    assert fetch(weights, tmp_path).read_bytes() == CONTENT
    assert server.requests == []


def test_a_part_longer_than_the_file_is_thrown_away(weights, server, tmp_path):
    (tmp_path / "weights.pth.part").write_bytes(CONTENT + b"more")
    assert fetch(weights, tmp_path).read_bytes() == CONTENT
    assert server.requests[0][1] is None


def test_wrong_bytes_are_deleted_and_named(weights, server, tmp_path):
    server.content = CONTENT[::-1]
    with pytest.raises(DownloadError, match="not the published file") as caught:
        fetch(weights, tmp_path)
    assert hashlib.sha256(server.content).hexdigest() in str(caught.value)
    assert files_in(tmp_path) == []


def test_a_wrong_part_does_not_spoil_the_next_attempt(weights, tmp_path):
    (tmp_path / "weights.pth.part").write_bytes(b"x" * 1000)
    with pytest.raises(DownloadError, match="not the published file"):
        fetch(weights, tmp_path)
    assert fetch(weights, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("size_is_exact", [True, False])
def test_a_login_page_does_not_replace_what_has_arrived(weights, server, tmp_path, size_is_exact):
    part = tmp_path / "weights.pth.part"
    part.write_bytes(CONTENT[:1000])
    server.content, server.content_type, server.honours_range = b"<html>log in</html>", "text/html", False
    with pytest.raises(DownloadError, match="web page"):
        fetch(replace(weights, size_is_exact=size_is_exact), tmp_path)
    assert part.read_bytes() == CONTENT[:1000]


def test_a_file_of_another_size_is_not_fetched(weights, server, tmp_path):
    server.content = CONTENT + b"!"
    with pytest.raises(DownloadError, match="3,072,001 bytes, the published file has 3,072,000"):
        fetch(weights, tmp_path)
    assert files_in(tmp_path) == []


def test_a_size_that_is_only_about_right_leaves_the_verdict_to_the_sha256(weights, server, tmp_path):
    about = replace(weights, size_bytes=3_000_000, size_is_exact=False)
    (tmp_path / "weights.pth.part").write_bytes(CONTENT[:2000])
    seen = []
    assert fetch(about, tmp_path, lambda done, total: seen.append((done, total))).read_bytes() == CONTENT
    assert server.requests == [("/weights.pth", "bytes=2000-")]
    assert {total for _, total in seen} == {len(CONTENT)}
    assert fetch(about, tmp_path) == tmp_path / "weights.pth"


@pytest.mark.parametrize("status, words", [(404, "404 Not Found"), (403, "403 Forbidden"), (503, "503 Service")])
def test_a_refusal_of_the_server_names_url_and_folder(weights, server, tmp_path, status, words):
    server.status = status
    with pytest.raises(DownloadError, match=words) as caught:
        fetch(weights, tmp_path)
    assert server.url in str(caught.value) and str(tmp_path) in str(caught.value)


def test_without_a_network_the_error_says_where_the_file_belongs(weights, tmp_path):
    nobody = replace(weights, url="http://127.0.0.1:9/weights.pth")
    with pytest.raises(DownloadError, match="no connection") as caught:
        fetch(nobody, tmp_path)
    assert nobody.url in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_cancelled_download_keeps_what_has_arrived(weights, server, tmp_path):
    done = []
    with pytest.raises(DownloadCancelled, match="the next attempt continues it"):
        fetch(weights, tmp_path, lambda so_far, _: done.append(so_far), cancelled=lambda: bool(done))
    assert (tmp_path / "weights.pth.part").read_bytes() == CONTENT[: done[0]]
    assert fetch(weights, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1][1] == f"bytes={done[0]}-"


def test_a_slow_download_is_cancelled_before_a_whole_chunk_has_arrived(weights, server, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "_LONGEST_CHUNK_S", 0)
    server.may_go_on = threading.Event()
    done = []
    # Where the whole chunk is waited for, the server goes on after this, and all of it arrives.
    threading.Timer(3, server.may_go_on.set).start()
    with pytest.raises(DownloadCancelled):
        fetch(weights, tmp_path, lambda so_far, _: done.append(so_far), cancelled=lambda: bool(done))
    server.may_go_on.set()
    assert 0 < done[0] <= 1000


def test_an_exception_of_the_progress_bar_stops_like_a_cancellation(weights, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(weights, tmp_path, interrupt)
    assert files_in(tmp_path) == ["weights.pth.part"]
    assert fetch(weights, tmp_path).read_bytes() == CONTENT


def test_too_little_space_is_noticed_before_anything_is_fetched(weights, server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(DownloadError, match="needs 3 MB, and the drive of that folder has 1 MB free"):
        fetch(weights, tmp_path)
    assert server.requests == []


def test_a_drive_that_runs_full_is_named(weights, tmp_path, monkeypatch):
    class FullDrive(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_on_full_drive(path, mode="r", *args, **kwargs):
        return FullDrive(path, "w+") if str(path).endswith(".part") else open(path, mode, *args, **kwargs)

    monkeypatch.setattr(published, "open", open_on_full_drive, raising=False)
    with pytest.raises(DownloadError, match="No space left") as caught:
        fetch(weights, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "weights.pth").exists()


def test_a_folder_that_cannot_be_made_is_named(weights, tmp_path):
    (tmp_path / "models").write_text("not a folder")
    with pytest.raises(DownloadError, match="cannot be written") as caught:
        fetch(weights, tmp_path / "models" / "mam")
    assert str(tmp_path / "models" / "mam") in str(caught.value)


def test_a_second_process_does_not_touch_a_download_that_is_running(weights, server, tmp_path):
    second = (
        "import sys, urllib.request\n"
        "from mam_model.published import PublishedFile, download\n"
        "name, url, sha256, size, folder = sys.argv[1:]\n"
        "file = PublishedFile(name, '', 'mam', int(size), 'MIT', '', url, sha256)\n"
        "download(file, folder, opener=urllib.request.build_opener(urllib.request.ProxyHandler({})))\n"
    )
    arguments = [weights.name, weights.url, weights.sha256, str(weights.size_bytes), str(tmp_path)]
    root = Path(published.__file__).parents[1]
    answers = []

    def start_second(done, total):
        if not answers:
            command = [sys.executable, "-c", second, *arguments]
            answers.append(subprocess.run(command, capture_output=True, text=True, cwd=root, check=False))

    assert fetch(weights, tmp_path, start_second).read_bytes() == CONTENT
    assert answers[0].returncode != 0 and "another process is downloading it" in answers[0].stderr
    assert len(server.requests) == 1


def test_a_file_that_another_process_finished_meanwhile_is_taken(weights, server, tmp_path, monkeypatch):
    def finish_elsewhere(handle):
        (tmp_path / "weights.pth").write_bytes(CONTENT)
        return True

    monkeypatch.setattr(published, "_locked", finish_elsewhere)
    assert fetch(weights, tmp_path).read_bytes() == CONTENT
    assert server.requests == []


def test_a_dead_process_leaves_no_lock(weights, tmp_path):
    (tmp_path / ".weights.pth.lock").touch()
    assert fetch(weights, tmp_path).read_bytes() == CONTENT


def test_a_proxy_of_the_environment_is_used(weights, server, tmp_path, monkeypatch):
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    behind = replace(weights, url="http://weights.invalid/weights.pth")
    assert download(behind, tmp_path).read_bytes() == CONTENT
    assert server.requests == [("http://weights.invalid/weights.pth", None)]


def test_a_file_without_a_url_names_its_page_and_its_folder(tmp_path):
    file = published_file("mam_vitl.pth")
    with pytest.raises(DownloadError) as caught:
        fetch(file, tmp_path)
    assert file.page in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_file_without_a_url_is_accepted_when_a_person_brought_it(tmp_path):
    (tmp_path / "mam_vitl.pth").write_bytes(b"brought by hand")
    assert fetch(published_file("mam_vitl.pth"), tmp_path) == tmp_path / "mam_vitl.pth"


def test_whatever_can_be_downloaded_can_be_verified():
    assert len({file.name for file in PUBLISHED}) == len(PUBLISHED)
    for file in PUBLISHED:
        assert file.folder in ("sams", "mam", "in_context_matting", "checkpoints")
        assert file.licence in ("Apache-2.0", "MIT", "CreativeML Open RAIL++-M")
        assert file.page.startswith("https://")
        if file.url is not None:
            assert file.url.startswith("https://") and file.url.endswith("/" + file.name)
            assert len(bytes.fromhex(file.sha256)) == 32


def test_for_each_size_of_sam_there_is_a_mask_to_matte():
    for size in "blh":
        assert any(file.name.startswith(f"sam_vit_{size}") for file in PUBLISHED)
        assert any(file.name == f"mam_vit{size}.pth" for file in PUBLISHED)


def test_a_name_that_nobody_published_is_answered_with_those_that_were():
    with pytest.raises(LookupError, match="sam_vit_b_01ec64.pth"):
        published_file("sam_vit_g.pth")


def test_sizes_are_said_for_people():
    assert published_file("sam_vit_b_01ec64.pth").size == "375 MB"
    assert published_file("sam_vit_h_4b8939.pth").size == "2.6 GB"
    assert published_file("mam_vitb.pth").size == "about 33 MB"


def test_sources_name_every_file_of_a_folder_and_where_to_put_it():
    sentence = sources("mam")
    for file in PUBLISHED:
        assert (f"{file.name} (" in sentence) == (file.folder == "mam")
        assert file.folder != "mam" or file.page in sentence
    assert "models/mam" in sentence


def test_sha256_is_that_of_the_whole_file(tmp_path):
    (tmp_path / "weights").write_bytes(CONTENT)
    assert sha256_of(tmp_path / "weights") == hashlib.sha256(CONTENT).hexdigest()
