"""The prompt editor: points, boxes and strokes drawn on the picture itself, with the matte that comes of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..mam_model.frame import Frame
from ..mam_model.instances import share_pixels
from ..mam_model.merge import MergeOptions
from ..mam_model.picture import check_picture
from ..mam_model.prompt import Prompt, PromptError
from . import live, sockets
from .batch import in_steps, pictures, room_for
from .drawing import Drawing
from .embeddings import embedding_of, embeddings_of
from .mattes import MERGE_INPUTS, merge_options
from .models import SharedM2M, SharedSam, load_together, loaded_refine
from .prompts import PromptInfo

_INPUTS = [
    io.Image.Input("image", tooltip="The picture to draw on, or a batch of frames."),
    sockets.Sam.Input(
        "sam",
        optional=True,
        tooltip="From Load SAM. Without sam and m2m the classical engine mattes, which needs no weights.",
    ),
    sockets.M2M.Input("m2m", optional=True, tooltip="From Load Mask-to-Matte; connect it together with sam."),
    *MERGE_INPUTS,
]
_DRAWING = io.String.Input(
    "prompts",
    default="",
    optional=True,
    socketless=True,
    extra_dict={"widgetType": "MAM_EDITOR"},
    tooltip=(
        "What you draw: click for a point on the subject, right-click for one beside it, drag a box or paint strokes. "
        "The matte follows while you draw."
    ),
)


class PromptEditor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_PromptEditor",
            display_name="Prompt Editor",
            category=sockets.CATEGORY,
            description=(
                "Draw points, boxes and brush strokes on the picture and see the matte at once. Several targets, each "
                "with its own colour, and prompts of their own for single frames of a batch."
            ),
            search_aliases=["interactive", "click to cut out", "points editor", "draw box", "scribble", "live matting"],
            is_output_node=True,
            inputs=[*_INPUTS, _DRAWING],
            outputs=[
                sockets.Prompt.Output("prompt", tooltip="What was drawn, for the matting nodes and Combine Prompts."),
                io.Image.Output("image", tooltip="The picture as it came in."),
                io.Mask.Output("alpha", tooltip="The matte, one per frame, all targets together. 1 = subject."),
                io.Custom("BOUNDING_BOX").Output(
                    "bounding_boxes", tooltip="The boxes in core's form: a list for all frames, or a list per frame."
                ),
                io.String.Output(
                    "positive", tooltip='Points on the subjects of the first frame as JSON: [{"x": 120, "y": 80}].'
                ),
                io.String.Output("negative", tooltip="Points that are not on them, in the same form."),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompts: str = "") -> bool | str:
        try:
            Drawing.read(prompts)
        except PromptError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        image: Tensor,
        sam: SharedSam | None = None,
        m2m: SharedM2M | None = None,
        prompts: str = "",
        **merge_settings,
    ) -> io.NodeOutput:
        _check_models(sam, m2m)
        batch = pictures(image)
        count, height, width = batch.shape[:3]
        prompt = Drawing.read(prompts).prompts(count, width, height)
        frames = prompt.for_batch(count)
        drawn = [index for index in range(count) if not all(target.is_empty for target in frames[index])]
        options = merge_options(**merge_settings)
        if sam is not None and drawn:
            load_together([sam, m2m], max(sam.encoding_bytes, m2m.matting_bytes(height, width)))
        alpha = room_for(count, height, width).zero_()
        # Held to the end: a long batch would otherwise push the embedding that the session needs out of memory.
        held = None
        embeddings = embeddings_of([batch[index] for index in drawn], sam, [m2m])
        refine = loaded_refine() if sam is None and drawn else None
        for step in in_steps(len(drawn)):
            index = drawn[step]
            if sam is None:
                alphas = _classical(batch[index], frames[index], refine)
            else:
                picture = next(embeddings)
                held = picture if held is None else held
                guidance = sam.decode(picture.embedding, frames[index])
                alphas = m2m.matte(picture.embedding, guidance, options)
            alpha[index] = share_pixels(alphas).sum(dim=0).clamp(0, 1)
        shown = drawn[0] if drawn else 0
        session = _session(batch[shown], sam, m2m, options, encode=bool(drawn))
        boxes, positive, negative, _ = PromptInfo.execute(prompt, 0).result
        return io.NodeOutput(
            prompt,
            image,
            alpha,
            boxes,
            positive,
            negative,
            ui={"mam_live": [live.answer(session, shown, count)]},
        )


class LivePicture(io.ComfyNode):
    """Makes one frame ready for live mattes. The page adds it to a workflow by itself, beside the editor."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_LivePicture",
            display_name="Live Picture of the Prompt Editor",
            category=sockets.CATEGORY,
            description=(
                "Used by the Prompt Editor itself: encodes one frame of the picture for live mattes, and mattes one "
                "target of it on the graphics card. There is no need to place it in a workflow."
            ),
            search_aliases=["live matting", "interactive", "live preview"],
            is_output_node=True,
            is_dev_only=True,
            inputs=[
                *_INPUTS,
                io.Int.Input(
                    "frame",
                    default=0,
                    min=0,
                    max=1_000_000,
                    optional=True,
                    tooltip="Which frame of the batch to make ready, counted from 0.",
                ),
                io.Int.Input(
                    "target",
                    default=-1,
                    min=-1,
                    max=63,
                    optional=True,
                    tooltip="Which target of the drawing to matte, counted from 0; -1 for none.",
                ),
                _DRAWING,
            ],
            outputs=[],
        )

    @classmethod
    def validate_inputs(cls, prompts: str = "") -> bool | str:
        return PromptEditor.validate_inputs(prompts)

    @classmethod
    def fingerprint_inputs(cls, **_) -> float:
        # The session has to be there afterwards, whatever ran before.
        return time.monotonic()

    @classmethod
    def execute(
        cls,
        image: Tensor,
        sam: SharedSam | None = None,
        m2m: SharedM2M | None = None,
        frame: int = 0,
        target: int = -1,
        prompts: str = "",
        **merge_settings,
    ) -> io.NodeOutput:
        _check_models(sam, m2m)
        batch = pictures(image)
        if frame >= len(batch):
            raise ValueError(f"There are {len(batch)} frames, counted from 0; there is no frame {frame}.")
        drawing = Drawing.read(prompts)
        if target >= len(drawing.targets):
            raise PromptError(f"The drawing has {len(drawing.targets)} targets, counted from 0; there is no {target}.")
        session = _session(batch[frame], sam, m2m, merge_options(**merge_settings), encode=True)
        matte = None
        if target >= 0:
            if sam is not None:
                load_together([sam, m2m], max(sam.decoding_bytes, m2m.matting_bytes(*batch.shape[1:3])))
            drawn = drawing.targets[target].drawn_in(frame)
            matte = session.matte_on_device(drawn, (drawing.width, drawing.height))
        return io.NodeOutput(ui={"mam_live": [live.answer(session, frame, len(batch), target, matte)]})


def _check_models(sam: SharedSam | None, m2m: SharedM2M | None) -> None:
    if (sam is None) != (m2m is None):
        missing = "Load SAM" if sam is None else "Load Mask-to-Matte"
        raise ValueError(f"Connect {missing} too, or neither model: without models the classical engine mattes.")


def _classical(picture: Tensor, targets: tuple[Prompt, ...], refine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """float32 [T, H, W]: mattes without models, as MAM_MatteWithoutModels makes them; can be cancelled between them."""
    from ..mam_model.classical import matte_without_models

    check_picture(picture)
    alphas = torch.zeros(len(targets), *picture.shape[:2])
    for number, target in enumerate(targets):
        throw_exception_if_processing_interrupted()
        alphas[number] = matte_without_models(picture, target, method="refiner", refine=refine)
    return alphas


def _session(
    picture: Tensor, sam: SharedSam | None, m2m: SharedM2M | None, options: MergeOptions, encode: bool
) -> live.Session:
    """A live session of one picture [H, W, 3]; without `encode` it can show the picture, but not matte it."""
    check_picture(picture)
    height, width = picture.shape[:2]
    if sam is None:
        return live.open_session(live.shrunk(picture), (width, height), live.ClassicalEngine(picture))
    frame = Frame(height, width, sam.network.config.image_size)
    embedding = embedding_of(picture, sam) if encode else None
    content = frame.shrink(picture) if embedding is None else embedding.embedding.content
    return live.open_session(content, (width, height), live.ModelsEngine(sam, m2m, frame, embedding, options))


NODES = [PromptEditor, LivePicture]
