"""Live mattes while somebody draws: sessions of one picture each, answered by one thread beside ComfyUI's queue.

A node opens a session while ComfyUI runs it; from then on mattes are made on copies of the small networks that belong
to this file alone, because ComfyUI's memory management may be used by its own thread only.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
import statistics
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from ..mam_model.frame import Frame
from ..mam_model.merge import MergeOptions
from ..mam_model.prompt import Prompt
from .drawing import DrawnPrompt, size_of_coordinates
from .embeddings import PictureEmbedding
from .models import SharedM2M, SharedModel, SharedSam

if TYPE_CHECKING:
    from ..mam_model.m2m import FoldedMaskToMatte, PictureFeatures
    from ..mam_model.sam import Embedding, Guidance, Sam

STAGES = ("mask", "matte")

_MOST_SESSIONS = 16
_SHOWN_PX = 1024
# GrabCut's time grows with the pixels; at this size it follows the hand.
_CLASSICAL_PX = 512
_SEGMENT_PX = {"mask": 160, "matte": 256}


class SessionGone(LookupError):
    """The session, or the embedding it needs, is no longer in memory; a live job opens it again."""


class Superseded(Exception):
    """A newer question of the same session took this one's place."""


@dataclass(frozen=True)
class LiveMatte:
    """A matte on its way to the page.

    Attributes:
        png: 8-bit grey, the rectangle of the matte that is not 0; one black pixel when all of it is 0.
        region: x, y, width and height of the rectangle, in pixels of the matte.
        size: width and height of the matte.
        score: SAM's predicted IoU of the mask, 1 without SAM, 0 for an empty prompt.
        timing: milliseconds per step.
    """

    png: bytes
    region: tuple[int, int, int, int]
    size: tuple[int, int]
    score: float
    timing: dict[str, float]


class Timing(dict):
    """Milliseconds per step."""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self[name] = round((time.perf_counter() - began) * 1000, 2)


class ModelsEngine:
    """SAM and Mask-to-Matte on one picture.

    Args:
        frame: how the picture lies in SAM's square.
        embedding: of the picture, or None when it was not encoded: then the session only shows the picture.
    """

    name = "sam"

    def __init__(
        self, sam: SharedSam, m2m: SharedM2M, frame: Frame, embedding: PictureEmbedding | None, options: MergeOptions
    ):
        self.device = str(sam.device)
        self.key = ("sam", sam.file, str(sam.dtype), m2m.file, str(m2m.dtype), options)
        self.matte_size = frame.at_content_size.width, frame.at_content_size.height
        self._options = options
        self._shared = weakref.ref(sam), weakref.ref(m2m)
        # The live thread must not be the last to hold what ComfyUI manages, so it knows the copies alone. They are made
        # here and not in that thread, because meanwhile ComfyUI may be moving the weights.
        self._copies = weakref.ref(_copied(sam, _copy_of_sam)), weakref.ref(_copied(m2m, _copy_of_m2m))
        # What Mask-to-Matte makes of the picture, at most one; it goes with the embedding and is three times its size.
        self._looked: list[PictureFeatures] = []
        # SAM's last answer: the matte follows the mask of the same prompt.
        self._decoded: tuple[Prompt, Guidance] | None = None
        self._embedding = _nothing
        if embedding is not None:
            self._embedding = weakref.ref(embedding, partial(_forget, self._looked))

    def matte(self, prompt: Prompt, stage: str, timing: Timing) -> tuple[Tensor, float]:
        """On the CPU, with the copies that belong to the live thread.

        Args:
            prompt: in pixels of a picture of `matte_size`. Asked again with the same object, SAM is not asked again.
            stage: one of STAGES.
        Returns:
            float32 [height, width] of `matte_size`, and SAM's predicted IoU.
        Raises:
            SessionGone: when models or embedding left the memory.
        """
        from ..mam_model.matting import matte_targets

        sam, m2m = (copy() for copy in self._copies)
        picture = self._embedding()
        if sam is None or m2m is None or picture is None:
            raise SessionGone
        embedding = picture.embedding
        with timing.step("decode"):
            if self._decoded is None or self._decoded[0] is not prompt:
                self._decoded = prompt, _guidance(sam, embedding, prompt)
            guidance = self._decoded[1]
        if stage == "mask":
            return guidance.post_mask(0).cpu(), guidance.scores[0]
        with timing.step("m2m"):
            if not self._looked:
                _keep_none_but(self._looked)
                self._looked.append(m2m.look_at(embedding))
            return self._merged(partial(matte_targets, m2m), self._looked[0], guidance), guidance.scores[0]

    def matte_on_device(self, prompt: Prompt, timing: Timing) -> tuple[Tensor, float]:
        """The same with the networks as ComfyUI has loaded them. Only inside a node's execute, after loading them."""
        sam, m2m = (shared() for shared in self._shared)
        embedding = self._embedding().embedding
        with timing.step("decode"):
            guidance = _guidance(sam, embedding, prompt)
        with timing.step("m2m"):
            return self._merged(m2m.matte, embedding, guidance), guidance.scores[0]

    def can_stand_for(self, newer: ModelsEngine) -> bool:
        """Whether all is still there that the other engine of the same key has, so that nothing is made twice."""
        embedding = self._embedding()
        is_whole = embedding is not None and None not in [copy() for copy in self._copies]
        return (
            is_whole
            and self._shared == newer._shared
            and (newer._embedding() is None or newer._embedding() is embedding)
        )

    def _merged(self, matte: Callable[..., Tensor], picture: Embedding | PictureFeatures, guidance: Guidance) -> Tensor:
        factor = max(self.matte_size) / max(picture.frame.width, picture.frame.height)
        return matte(picture, guidance, self._options.scaled(factor))[0]


class ClassicalEngine:
    """GrabCut on a small copy of one picture, float [H, W, 3] in 0..1."""

    name = "classical"
    device = "cpu"
    key = ("classical",)

    def __init__(self, picture: Tensor):
        self._picture = shrunk(picture, _CLASSICAL_PX).float() / 255
        self.matte_size = self._picture.shape[1], self._picture.shape[0]

    def matte(self, prompt: Prompt, stage: str, timing: Timing) -> tuple[Tensor, float]:
        from ..mam_model.classical import matte_without_models

        with timing.step("decode"):
            size_px = _SEGMENT_PX[stage]
            alpha = matte_without_models(self._picture, prompt, method="none", segment_size_px=size_px)
        return alpha, float(not prompt.is_empty)

    def matte_on_device(self, prompt: Prompt, timing: Timing) -> tuple[Tensor, float]:
        return self.matte(prompt, "matte", timing)

    def can_stand_for(self, newer: ClassicalEngine) -> bool:
        return True


def shrunk(picture: Tensor, longest_px: int = _SHOWN_PX) -> Tensor:
    """A picture, float [H, W, 3], as uint8 [h, w, 3] whose longer side is at most that many pixels."""
    height, width = picture.shape[:2]
    return Frame(height, width, min(longest_px, max(height, width))).shrink(picture)


class Session:
    """One picture with the engine that mattes it.

    Attributes:
        id: 32 hexadecimal digits; the same picture, models and settings have the same.
        size: width and height of the picture.
        jpeg: the picture as the editor shows it, at most 1024 pixels on its longer side.
        engine: ModelsEngine or ClassicalEngine.
    """

    def __init__(self, id: str, size: tuple[int, int], jpeg: bytes, engine: ModelsEngine | ClassicalEngine):
        self.id = id
        self.size = size
        self.jpeg = jpeg
        self.engine = engine
        self._busy = False
        self._waiting: asyncio.Future | None = None
        self._last: tuple[tuple, Prompt] | None = None
        # The matte that was begun before it was asked for, and the prompt it is of.
        self._ahead: tuple[tuple, asyncio.Future] | None = None

    async def ask(
        self, drawn: DrawnPrompt, drawn_on: tuple[float, float], stage: str, ahead: bool = False
    ) -> LiveMatte:
        """The matte of a prompt, made in the live thread. Only in the server's event loop.

        While one question is answered, one may wait; a newer one takes its place.

        Args:
            drawn_on: width and height of the picture it was drawn on; (0, 0) when it is this one.
            stage: "mask" for the hard mask alone, which is quick, or "matte".
            ahead: the matte of the same prompt will be asked for next, and is begun while the mask travels and is
                painted.
        Raises:
            Superseded: when a newer question came.
            SessionGone: when the embedding left the memory.
            PromptError: when the prompt does not fit the picture.
        """
        loop = asyncio.get_running_loop()
        asked = time.perf_counter()
        begun, self._ahead = self._ahead, None
        if begun is not None:
            if stage == "matte" and begun[0] == (drawn, drawn_on):
                return await begun[1]
            begun[1].cancel()
        if self._busy:
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_exception(Superseded())
            self._waiting = turn = loop.create_future()
            try:
                await turn
            except asyncio.CancelledError:
                # Whoever asked went away just when it was their turn, unless a newer question had taken that.
                if not turn.cancelled() and turn.exception() is None:
                    self._let_next_one_begin()
                raise
        self._busy = True
        try:
            answer = await loop.run_in_executor(_thread, self._answer, drawn, drawn_on, stage, asked)
        finally:
            self._let_next_one_begin()
        if ahead and not self._busy:
            matte = loop.run_in_executor(_thread, self._answer, drawn, drawn_on, "matte", time.perf_counter())
            # Nobody may come for it, nor for what went wrong with it.
            matte.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._ahead = (drawn, drawn_on), matte
        return answer

    def _let_next_one_begin(self) -> None:
        turn, self._waiting = self._waiting, None
        self._busy = turn is not None and not turn.done()
        if self._busy:
            turn.set_result(None)

    @torch.inference_mode()
    def _answer(self, drawn: DrawnPrompt, drawn_on: tuple[float, float], stage: str, asked: float) -> LiveMatte:
        began = time.perf_counter()
        timing = Timing(wait=round((began - asked) * 1000, 2))
        answer = self._matte(drawn, drawn_on, lambda prompt: self.engine.matte(prompt, stage, timing), timing)
        if stage == "matte":
            _recent_ms[self.engine.name].append((time.perf_counter() - began) * 1000)
        return answer

    def matte_on_device(self, drawn: DrawnPrompt, drawn_on: tuple[float, float]) -> LiveMatte:
        """The matte of a prompt on ComfyUI's device. Only inside a node's execute, after loading the models."""
        timing = Timing(wait=0.0)
        return self._matte(drawn, drawn_on, lambda prompt: self.engine.matte_on_device(prompt, timing), timing)

    def _matte(
        self,
        drawn: DrawnPrompt,
        drawn_on: tuple[float, float],
        make: Callable[[Prompt], tuple[Tensor, float]],
        timing: Timing,
    ) -> LiveMatte:
        size = self.engine.matte_size
        # The same prompt stays the same object, by which the engine knows it.
        last = self._last
        if last is None or last[0] != (drawn, drawn_on):
            prompt = drawn.prompt(size_of_coordinates(drawn_on, self.size), size)
            last = self._last = (drawn, drawn_on), prompt
        alpha, score = make(last[1])
        with timing.step("pack"):
            png, region = _packed(alpha)
        return LiveMatte(png, region, size, score, dict(timing))


def open_session(content: Tensor, size: tuple[int, int], engine: ModelsEngine | ClassicalEngine) -> Session:
    """The session of a picture with an engine; the least recently used one gives way when there are too many.

    Args:
        content: uint8 [h, w, 3], the picture as it is shown.
        size: width and height of the picture itself.
    """
    pixels = content.numpy()
    digest = hashlib.blake2b(pixels.data, digest_size=16, key=_secret)
    digest.update(repr((size, engine.key)).encode())
    id = digest.hexdigest()
    known = _sessions.get(id)
    if known is None:
        session = Session(id, size, _jpeg(pixels), engine)
    elif known.engine.can_stand_for(engine):
        session = known
    else:
        session = Session(id, size, known.jpeg, engine)
    with _lock:
        _sessions[id] = session
        _sessions.move_to_end(id)
        while len(_sessions) > _MOST_SESSIONS:
            _sessions.popitem(last=False)
    return session


def session_of(id: str) -> Session:
    """The session of that id, which becomes the most recently used one.

    Raises:
        SessionGone: when there is none.
    """
    with _lock:
        if id not in _sessions:
            raise SessionGone
        _sessions.move_to_end(id)
        return _sessions[id]


def answer(session: Session, frame: int, frames: int, target: int = -1, matte: LiveMatte | None = None) -> dict:
    """What a node tells the page about a session that it opened, with the matte of a target if it made one."""
    # A list at once: the live thread may add to it at any moment.
    recent_ms = list(_recent_ms[session.engine.name])
    return dict(
        session=session.id,
        width=session.size[0],
        height=session.size[1],
        frame=frame,
        frames=frames,
        engine=session.engine.name,
        device=session.engine.device,
        queue_ms=None if matte is None else round(sum(matte.timing.values()), 2),
        worker_ms=round(statistics.median(recent_ms), 2) if recent_ms else None,
        matte=None if matte is None else _told(matte, target),
    )


def _told(matte: LiveMatte, target: int) -> dict:
    names = ("x", "y", "width", "height", "of_width", "of_height")
    place = dict(zip(names, (*matte.region, *matte.size)))
    png = base64.b64encode(matte.png).decode()
    return dict(**place, png=png, score=matte.score, target=target, timing=matte.timing)


_lock = threading.Lock()
_sessions: OrderedDict[str, Session] = OrderedDict()
# Who does not know it cannot tell the session of a picture that somebody else works on.
_secret = secrets.token_bytes(16)
# One: torch's own threads serve the whole process, and a running job needs them too.
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="matting-anything-live")
_recent_ms: dict[str, deque[float]] = {engine.name: deque(maxlen=9) for engine in (ModelsEngine, ClassicalEngine)}
_all_looked: list[list[PictureFeatures]] = []
# Goes with the shared model it was copied from.
_copies: weakref.WeakKeyDictionary[SharedModel, nn.Module] = weakref.WeakKeyDictionary()


def _guidance(sam: Sam | SharedSam, embedding: Embedding, prompt: Prompt) -> Guidance:
    """SAM's answer to a prompt in pixels of the picture at content size."""
    return sam.decode(replace(embedding, frame=embedding.frame.at_content_size), [prompt])


def _nothing() -> None:
    """Stands in for a reference to an embedding that there never was."""


def _forget(looked: list[PictureFeatures], _) -> None:
    looked.clear()


def _keep_none_but(looked: list[PictureFeatures]) -> None:
    """Of all sessions only the one that was asked last keeps what Mask-to-Matte makes of its picture."""
    while _all_looked:
        _all_looked.pop().clear()
    _all_looked.append(looked)


def _copied(shared: SharedModel, copy: Callable[[nn.Module], nn.Module]) -> nn.Module:
    if shared not in _copies:
        _copies[shared] = copy(shared.network)
    return _copies[shared]


def _copy_of_sam(network: Sam) -> Sam:
    """SAM without its encoder, in float32 on the CPU."""
    from ..mam_model.sam import Sam

    with torch.device("meta"):
        copy = Sam(network.config)
    copy.image_encoder = nn.Identity()
    return _with_weights_of(network, copy)


def _copy_of_m2m(network: FoldedMaskToMatte) -> FoldedMaskToMatte:
    from ..mam_model.m2m import MaskToMatte

    with torch.device("meta"):
        copy = MaskToMatte().fold()
    return _with_weights_of(network, copy)


def _with_weights_of(network: nn.Module, copy: nn.Module) -> nn.Module:
    wanted = copy.state_dict().keys()
    weights = {
        name: tensor.detach().to("cpu", torch.float32, copy=True)
        for name, tensor in network.state_dict().items()
        if name in wanted
    }
    copy.requires_grad_(False).eval()
    copy.load_state_dict(weights, assign=True)
    return copy


def _jpeg(content) -> bytes:
    file = BytesIO()
    Image.fromarray(content).save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue()


def _packed(alpha: Tensor) -> tuple[bytes, tuple[int, int, int, int]]:
    """Of float [h, w] the rectangle that is not 0 as a PNG, and its x, y, width and height."""
    levels = (alpha * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    rows, columns = levels.any(axis=1).nonzero()[0], levels.any(axis=0).nonzero()[0]
    x, y, width, height = 0, 0, 1, 1
    if len(rows):
        x, y = int(columns[0]), int(rows[0])
        width, height = int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
    file = BytesIO()
    # The page asks many times a second, mostly over the machine's own loop: speed counts more than bytes.
    Image.fromarray(levels[y : y + height, x : x + width]).save(file, "PNG", compress_level=1)
    return file.getvalue(), (x, y, width, height)
