"""The published weights: what exists, how large it is, under which licence, where it comes from, and its download.

Everything here works without PyTorch. A file has a `url` only when its sha256 is known as well, because a download that
cannot be verified is not made.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_CHUNK_BYTES = 1 << 20
# How long pieces of a chunk are gathered on a slow connection.
_LONGEST_CHUNK_S = 0.5
_TIMEOUT_S = 30


class DownloadError(RuntimeError):
    """A download that did not end in a verified file. Its sentence names the URL and the folder for the file."""


class DownloadCancelled(DownloadError):
    """The user stopped the download. What has arrived is kept and continued by the next attempt."""


@dataclass(frozen=True)
class PublishedFile:
    """One file of weights that its authors published.

    Attributes:
        name: the file's name, as published.
        purpose: what it is for, in a few words.
        folder: ComfyUI's model folder that it belongs into: "sams", "mam", "in_context_matting" or "checkpoints".
        size_bytes: its size; exact when `size_is_exact`, else what its contents add up to.
        licence: the licence of the weights (SPDX where it has a name there).
        page: the page on which a person finds it.
        url: where a program gets it, or None.
        sha256: hex digest of the whole file, or None where nobody published one.
        size_is_exact: whether `size_bytes` may be compared with the file.
    """

    name: str
    purpose: str
    folder: str
    size_bytes: int
    licence: str
    page: str
    url: str | None = None
    sha256: str | None = None
    size_is_exact: bool = True

    @property
    def size(self) -> str:
        """The size for people: "375 MB", "1.2 GB", "about 33 MB"."""
        words = f"{self.size_bytes / 1e9:.1f} GB" if self.size_bytes >= 1e9 else f"{self.size_bytes / 1e6:.0f} MB"
        return words if self.size_is_exact else f"about {words}"


_SAM_PAGE = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
_SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
_MAM_PAGE = "https://huggingface.co/shi-labs/Matting-Anything"
_MAM_DRIVE = "https://drive.google.com/drive/folders/1Bor2jRE0U-U6PIYaCm6SZY7qu_c1GYfq"

# The hex in the names of the SAM files is the beginning of their MD5, not of their sha256.
PUBLISHED = (
    PublishedFile(
        name="sam_vit_b_01ec64.pth",
        purpose="SAM ViT-B: finds the target; the smallest and fastest",
        folder="sams",
        size_bytes=375_042_383,
        licence="Apache-2.0",
        page=_SAM_PAGE,
        url=_SAM_URL + "sam_vit_b_01ec64.pth",
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    PublishedFile(
        name="sam_vit_l_0b3195.pth",
        purpose="SAM ViT-L: finds the target",
        folder="sams",
        size_bytes=1_249_524_607,
        licence="Apache-2.0",
        page=_SAM_PAGE,
        url=_SAM_URL + "sam_vit_l_0b3195.pth",
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    PublishedFile(
        name="sam_vit_h_4b8939.pth",
        purpose="SAM ViT-H: finds the target; the largest",
        folder="sams",
        size_bytes=2_564_550_879,
        licence="Apache-2.0",
        page=_SAM_PAGE,
        url=_SAM_URL + "sam_vit_h_4b8939.pth",
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    PublishedFile(
        name="mam_sam_vitb.pth",
        purpose="Mask-to-Matte for SAM ViT-B, and that SAM beside it in the same file",
        folder="mam",
        size_bytes=408_000_000,
        licence="MIT",
        page=_MAM_PAGE,
        url=_MAM_PAGE + "/resolve/main/checkpoints/mam_sam_vitb.pth",
        sha256="b7d0781aa6edeab7b0d8195edf5b894402f9fa5b7220759825ff750c75450f08",
        size_is_exact=False,
    ),
    PublishedFile(
        name="mam_vitb.pth",
        purpose="Mask-to-Matte for SAM ViT-B",
        folder="mam",
        size_bytes=33_000_000,
        licence="MIT",
        page=_MAM_DRIVE,
        size_is_exact=False,
    ),
    PublishedFile(
        name="mam_vitl.pth",
        purpose="Mask-to-Matte for SAM ViT-L",
        folder="mam",
        size_bytes=33_000_000,
        licence="MIT",
        page=_MAM_DRIVE,
        size_is_exact=False,
    ),
    PublishedFile(
        name="mam_vith.pth",
        purpose="Mask-to-Matte for SAM ViT-H",
        folder="mam",
        size_bytes=33_000_000,
        licence="MIT",
        page=_MAM_DRIVE,
        size_is_exact=False,
    ),
    PublishedFile(
        # The authors' page links a folder of Baidu Pan without naming the file, so this name is ours. The licence is
        # that of their code; the size is that of the weights alone.
        name="in_context_matting.ckpt",
        purpose=(
            "decoder of In-Context Matting (IconMatting), under any name; only on Baidu Pan, by a link on the page "
            "that has broken more than once"
        ),
        folder="in_context_matting",
        size_bytes=84_400_000,
        licence="MIT",
        page="https://github.com/tiny-smart/in-context-matting",
        size_is_exact=False,
    ),
    PublishedFile(
        name="v2-1_768-ema-pruned.safetensors",
        purpose="Stable Diffusion 2.1 (768 v): UNet, VAE and text encoder for In-Context Matting",
        folder="checkpoints",
        size_bytes=5_214_604_494,
        licence="CreativeML Open RAIL++-M",
        page="https://huggingface.co/Comfy-Org/stable_diffusion_2.1_repackaged",
        url="https://huggingface.co/Comfy-Org/stable_diffusion_2.1_repackaged/resolve/"
        "8d27621fb498ec792a967f0a0a189e6565276f4a/v2-1_768-ema-pruned.safetensors",
        sha256="dcd690123cfc64383981a31d955694f6acf2072a80537fdb612c8e58ec87a8ac",
    ),
    PublishedFile(
        name="v2-1_768-ema-pruned-fp16.safetensors",
        purpose="the same in half precision, half the size",
        folder="checkpoints",
        size_bytes=2_610_000_000,
        licence="CreativeML Open RAIL++-M",
        page="https://huggingface.co/webui/stable-diffusion-2-1",
        size_is_exact=False,
    ),
)


@dataclass(frozen=True)
class PublishedFolder:
    """A model that its authors published as several files, which have to lie together in a folder.

    Attributes:
        name: the folder's name.
        purpose: what it is for, in a few words.
        folder: ComfyUI's model folder that the folder belongs into.
        page: the page on which a person finds the files.
        files: all that is needed, the weights last; each with a `url` and a sha256.
    """

    name: str
    purpose: str
    folder: str
    page: str
    files: tuple[PublishedFile, ...]

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def size(self) -> str:
        """The size for people: "690 MB"."""
        return f"{self.size_bytes / 1e6:.0f} MB"


def _grounding_dino(
    name: str, purpose: str, revision: str, config: tuple[int, str], weights: tuple[int, str]
) -> PublishedFolder:
    """Both published sizes differ in configuration and weights (bytes, sha256) alone."""
    page = f"https://huggingface.co/IDEA-Research/{name}"
    hashes = {
        "config.json": config,
        "preprocessor_config.json": (457, "8454179ba95e2ad22947835aad7b45862a601fc0055ab88bf1ee70892d3aea60"),
        "tokenizer_config.json": (1_237, "d40ab645b68211910b9170d22433d43186a6ec8ee6fd10ba170524b25bf4fb56"),
        "vocab.txt": (231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
        "model.safetensors": weights,
    }
    files = tuple(
        PublishedFile(
            name=file,
            purpose=purpose,
            folder=f"grounding-dino/{name}",
            size_bytes=size_bytes,
            licence="Apache-2.0",
            page=page,
            url=f"{page}/resolve/{revision}/{file}",
            sha256=sha256,
        )
        for file, (size_bytes, sha256) in hashes.items()
    )
    return PublishedFolder(name, purpose, "grounding-dino", page, files)


TEXT_DETECTORS = (
    _grounding_dino(
        "grounding-dino-tiny",
        "Grounding DINO with Swin-T: finds what a text describes; the smallest and fastest",
        "a2bb814dd30d776dcf7e30523b00659f4f141c71",
        config=(1_644, "eec82c5ab66e16df12a9a212e68ac011779927c2536cf9078658e35d85f0c67a"),
        weights=(689_359_096, "1a2412ef99bd74bcd3c2a246fa1e48581f8889a1300c9051974741314fc042f3"),
    ),
    _grounding_dino(
        "grounding-dino-base",
        "Grounding DINO with Swin-B: finds what a text describes",
        "12bdfa3120f3e7ec7b434d90674b3396eccf88eb",
        config=(1_737, "eda416dae6f49419ff831b1c190ec430a060b19aae688dbaf2425a075b650608"),
        weights=(933_400_872, "5548f844c928c4b6f411fa8cbcc2bfa8dbbba437cb1d513975519f93c2a9ed21"),
    ),
)


def text_detector_sources() -> str:
    """A sentence that says which text detectors were published and where a person gets them."""
    offers = [f"{model.name} ({model.size}) from {model.page}" for model in TEXT_DETECTORS]
    names = ", ".join(file.name for file in TEXT_DETECTORS[0].files)
    return f"Get {' or '.join(offers)}, and put {names} into a folder of its own in ComfyUI's models/grounding-dino."


def published_file(name: str) -> PublishedFile:
    """The published file of that name.

    Raises:
        LookupError: when no published file has it.
    """
    for file in PUBLISHED:
        if file.name == name:
            return file
    known = ", ".join(file.name for file in PUBLISHED)
    raise LookupError(f"No published file is called {name!r}. There are {known}.")


def sources(folder: str) -> str:
    """A sentence that says which published files belong into a model folder and where a person gets them.

    Args:
        folder: "sams", "mam", "in_context_matting" or "checkpoints".
    """
    offers = []
    for page, files in groupby((file for file in PUBLISHED if file.folder == folder), key=lambda file: file.page):
        offers.append(", ".join(f"{file.name} ({file.size})" for file in files) + f" from {page}")
    return f"Get {'; or '.join(offers)}, and put it into ComfyUI's folder models/{folder}."


def sha256_of(path: str | os.PathLike) -> str:
    """The sha256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def download(
    file: PublishedFile,
    folder: str | os.PathLike,
    progress: Callable[[int, int], None] | None = None,
    *,
    cancelled: Callable[[], bool] | None = None,
    opener: urllib.request.OpenerDirector | None = None,
) -> Path:
    """Brings a published file into a folder: verified, or not at all.

    The bytes arrive in `<name>.part` and get their name only when size and sha256 are right. What an interrupted
    download leaves is continued by the next one. A file that already has the name is returned if it is the published
    one, and is never replaced.

    Args:
        file: what to download.
        folder: where to; made if it does not exist.
        progress: called with (bytes so far, bytes in all) after each piece, and once at the end. An exception that it
            raises stops the download like a cancellation.
        cancelled: asked before each piece; True stops the download.
        opener: how to reach the network; by default urllib's, which honours HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
    Returns:
        The path of the file.
    Raises:
        DownloadCancelled: `cancelled` said so.
        DownloadError: no URL, no network, an answer of the server other than the file, wrong bytes, no space, no
            permission, another process at the same download, or another file under the same name.
    """
    folder = Path(folder).absolute()
    target = folder / file.name
    if target.exists():
        return _published_one(file, target)
    if file.url is None:
        raise DownloadError(
            f"{file.name} cannot be downloaded by a program. Download it in a browser from {file.page} "
            f"and put it into {folder}."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(file, folder):
            if target.exists():
                return _published_one(file, target)
            part = folder / f"{file.name}.part"
            if not _is_complete(file, part):
                _fetch(file, part, progress, cancelled, opener or urllib.request.build_opener())
                _verify(file, part)
            os.replace(part, target)
    except OSError as error:
        raise _failure(file, folder, f"{folder} cannot be written ({error.strerror or error})") from error
    if progress is not None:
        size = target.stat().st_size
        progress(size, size)
    return target


def _failure(file: PublishedFile, folder: Path, reason: str) -> DownloadError:
    return DownloadError(
        f"{file.name} could not be downloaded from {file.url}: {reason}. You can also download it in a browser "
        f"and put it into {folder}."
    )


def _published_one(file: PublishedFile, target: Path) -> Path:
    """`target` if it can be the published file. An exact size is evidence enough; without one the sha256 decides."""
    if not target.is_file():
        raise DownloadError(f"{target} is not a file. Move it away, then {file.name} can be downloaded.")
    size = target.stat().st_size
    if file.size_is_exact:
        if size == file.size_bytes:
            return target
        difference = f"it has {size:,} bytes instead of {file.size_bytes:,}"
    else:
        sha256 = sha256_of(target)
        if file.sha256 in (None, sha256):
            return target
        difference = f"its sha256 is {sha256} instead of {file.sha256}"
    raise DownloadError(
        f"{target} is not the published {file.name}: {difference}. It was left as it is; delete it or move it away, "
        "then the published file can be downloaded."
    )


@contextmanager
def _alone(file: PublishedFile, folder: Path) -> Iterator[None]:
    """Holds the download of a file for one process. The lock dies with its process, so none can be left behind."""
    lock = folder / f".{file.name}.lock"
    with open(lock, "ab") as handle:
        if not (_locked(handle) and _is_at(handle, lock)):
            raise _failure(file, folder, "another process is downloading it right now; wait for it and try again")
        try:
            yield
        finally:
            # Removed while it is held, so that a process which waits for it sees that it is gone. Windows refuses to
            # remove an open file; there the empty file stays.
            if sys.platform != "win32":
                lock.unlink()


def _locked(handle: BinaryIO) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network drives know no locks. There the sha256 alone has to guard the result.
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def _is_at(handle: BinaryIO, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(handle.fileno()), path.stat())


def _is_complete(file: PublishedFile, part: Path) -> bool:
    """Whether an earlier attempt had everything but the name."""
    if not part.exists() or (file.size_is_exact and part.stat().st_size != file.size_bytes):
        return False
    return sha256_of(part) == file.sha256


def _fetch(
    file: PublishedFile,
    part: Path,
    progress: Callable[[int, int], None] | None,
    cancelled: Callable[[], bool] | None,
    opener: urllib.request.OpenerDirector,
) -> None:
    """Appends to `part` what it lacks."""
    folder = part.parent
    done = part.stat().st_size if part.exists() else 0
    if file.size_is_exact and done >= file.size_bytes:
        done = 0
    missing = file.size_bytes - done
    free = shutil.disk_usage(folder).free
    if free < missing:
        shortage = f"it needs {missing / 1e6:,.0f} MB, and the drive of that folder has {free / 1e6:,.0f} MB free"
        raise _failure(file, folder, shortage)
    with _answer(file, folder, done, opener) as response:
        if response.status != http.client.PARTIAL_CONTENT:
            done = 0
        length = response.headers.get("Content-Length")
        total = file.size_bytes if length is None else done + int(length)
        if response.headers.get_content_type() == "text/html":
            raise _failure(file, folder, "the server answered with a web page instead of the file")
        if file.size_is_exact and total != file.size_bytes:
            offer = f"the server offers {total:,} bytes, the published file has {file.size_bytes:,}"
            raise _failure(file, folder, offer)
        with open(part, "r+b" if part.exists() else "w+b") as stream:
            stream.truncate(done)
            stream.seek(done)
            # Up to Python 3.12 `read1` would wait for more behind the last byte, where the server does not hang up.
            while (length is None or done < total) and (chunk := _next_chunk(file, folder, response, cancelled)):
                try:
                    stream.write(chunk)
                    stream.flush()
                except OSError as error:
                    raise _failure(file, folder, f"{part} cannot be written ({error.strerror or error})") from error
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
            os.fsync(stream.fileno())
    if done < total and (length is not None or file.size_is_exact):
        arrived = f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
        raise _failure(file, folder, f"the connection broke off after {arrived}; the next attempt continues there")


def _answer(
    file: PublishedFile, folder: Path, start: int, opener: urllib.request.OpenerDirector
) -> http.client.HTTPResponse:
    """The server's answer to a request for the file from byte `start` on: 206 from there, or 200 from the beginning."""
    request = urllib.request.Request(file.url, headers={"User-Agent": "mam_model"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = opener.open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _answer(file, folder, 0, opener)
        raise _failure(file, folder, f"the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _failure(file, folder, f"no connection ({getattr(error, 'reason', None) or error})") from error
    if start and response.status == http.client.PARTIAL_CONTENT:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            response.close()
            return _answer(file, folder, 0, opener)
    return response


def _next_chunk(
    file: PublishedFile, folder: Path, response: http.client.HTTPResponse, cancelled: Callable[[], bool] | None
) -> bytes:
    if cancelled is not None and cancelled():
        raise DownloadCancelled(
            f"The download of {file.name} was stopped. What arrived stays in {folder}; the next attempt continues it."
        )
    chunk, began = bytearray(), time.monotonic()
    try:
        # A slow connection takes minutes for a whole chunk, and would not be cancelled before.
        while piece := response.read1(_CHUNK_BYTES - len(chunk)):
            chunk += piece
            if len(chunk) == _CHUNK_BYTES or time.monotonic() >= began + _LONGEST_CHUNK_S:
                break
        return bytes(chunk)
    except (OSError, http.client.HTTPException) as error:
        raise _failure(file, folder, f"the connection broke off ({error}); the next attempt continues there") from error


def _verify(file: PublishedFile, part: Path) -> None:
    sha256 = sha256_of(part)
    if sha256 != file.sha256:
        part.unlink()
        difference = f"what arrived is not the published file (sha256 {sha256} instead of {file.sha256})"
        raise _failure(file, part.parent, difference)
