"""Prompt nodes: points, boxes, masks and strokes become MAM_PROMPT."""

from __future__ import annotations

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..mam_model.prompt import Prompt, PromptError, PromptSet, Scribble
from . import sockets
from .batch import frame_of, masks, pair_count
from .dialects import read_box_text, read_boxes, read_points

_LABEL = io.String.Input(
    "label",
    default="",
    optional=True,
    tooltip="What the subject is called. It stays with its matte and is shown in previews.",
    advanced=True,
)
_PROMPT_OUTPUT = sockets.Prompt.Output(
    "prompt", display_name="prompt", tooltip="What to matte, for the matting nodes and for Combine Prompts."
)


class PromptPoints(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_PromptPoints",
            display_name="Prompt: Points",
            category=sockets.CATEGORY,
            description="Points on the subject, and points that are not on it, in pixels of the picture.",
            search_aliases=["click", "coordinates", "positive negative points", "point prompt", "sam points"],
            inputs=[
                io.String.Input(
                    "positive",
                    default="",
                    multiline=True,
                    tooltip='Points on the subject: "x y" per line, or JSON such as [{"x": 120, "y": 80}].',
                ),
                io.String.Input(
                    "negative",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Points that do not belong to the subject, written in the same way.",
                ),
                io.Combo.Input(
                    "each_point_is",
                    options=["part of one target", "a target of its own"],
                    default="part of one target",
                    optional=True,
                    tooltip=(
                        "Whether all positive points lie on one subject, or each on another one. Negative points "
                        "count for every target."
                    ),
                ),
                _LABEL,
            ],
            outputs=[_PROMPT_OUTPUT],
        )

    @classmethod
    def execute(
        cls, positive: str, negative: str = "", each_point_is: str = "part of one target", label: str = ""
    ) -> io.NodeOutput:
        on, off = read_points(positive), read_points(negative)
        targets = [[point] for point in on] if each_point_is == "a target of its own" else [on]
        prompts = tuple(
            Prompt(points_px=(*target, *off), labels=(1,) * len(target) + (0,) * len(off), label=label)
            for target in targets
        )
        return io.NodeOutput(PromptSet((prompts,)))


class PromptBoxes(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_PromptBoxes",
            display_name="Prompt: Boxes",
            category=sockets.CATEGORY,
            description="A box around each subject, typed in pixels or from any node that gives BOUNDING_BOX.",
            search_aliases=["bbox", "bounding box", "rectangle", "box prompt", "detector boxes"],
            inputs=[
                io.String.Input(
                    "boxes",
                    default="",
                    multiline=True,
                    tooltip=(
                        'Left, top, right and bottom in pixels, "10 20 300 400" per line, or JSON. One target per box. '
                        "A list of lists gives each frame its own boxes."
                    ),
                ),
                sockets.BoundingBoxes.Input(
                    "bounding_boxes",
                    optional=True,
                    tooltip="Boxes of a detector, such as RT-DETR or SAM3 Detect, added to the typed ones.",
                    extra_dict={"forceInput": True},
                ),
                _LABEL,
            ],
            outputs=[_PROMPT_OUTPUT],
        )

    @classmethod
    def execute(cls, boxes: str, bounding_boxes: object = None, label: str = "") -> io.NodeOutput:
        written = [read_box_text(boxes)]
        if bounding_boxes is not None:
            written.append(read_boxes(bounding_boxes))
        prompts = PromptSet()
        for frames in written:
            targets = tuple(
                tuple(Prompt(box_xyxy_px=box.xyxy_px, label=label or box.label, score=box.score) for box in frame)
                for frame in frames
            )
            prompts = prompts.joined_with(PromptSet(targets))
        return io.NodeOutput(prompts)


class PromptMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_PromptMask",
            display_name="Prompt: Mask or Strokes",
            category=sockets.CATEGORY,
            description=(
                "A rough mask, or brush strokes on the subject and beside it, as MASK of the picture's size. A batch "
                "of masks gives each frame its own."
            ),
            search_aliases=["mask prompt", "scribble", "brush", "rough mask", "mask to matte", "refine mask"],
            inputs=[
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="1 = subject. From the mask editor, SAM3 Detect, Remove Background, or any other node.",
                ),
                io.Combo.Input(
                    "use_mask_as",
                    options=["guidance", "hint"],
                    default="guidance",
                    optional=True,
                    tooltip=(
                        "guidance: this is the subject, only its edge is matted; soft values count as edge. hint: SAM "
                        "decides anew, with the mask beside points and boxes."
                    ),
                ),
                io.Mask.Input("foreground_strokes", optional=True, tooltip="Strokes on the subject, as a mask."),
                io.Mask.Input("background_strokes", optional=True, tooltip="Strokes beside the subject, as a mask."),
                _LABEL,
            ],
            outputs=[_PROMPT_OUTPUT],
        )

    @classmethod
    def execute(
        cls,
        mask: Tensor | None = None,
        use_mask_as: str = "guidance",
        foreground_strokes: Tensor | None = None,
        background_strokes: Tensor | None = None,
        label: str = "",
    ) -> io.NodeOutput:
        given = {"mask": mask, "foreground strokes": foreground_strokes, "background strokes": background_strokes}
        batches = {name: masks(batch).float().cpu() for name, batch in given.items() if batch is not None}
        if not batches:
            raise PromptError("Connect a mask or strokes: this prompt says nothing yet.")
        prompts = []
        for index in range(pair_count(**batches)):
            frame = {name: frame_of(batch, index) for name, batch in batches.items()}
            prompts.append(
                Prompt(
                    mask=frame.get("mask"),
                    mask_is_guidance=use_mask_as == "guidance",
                    scribbles=_strokes(frame.get("foreground strokes"), frame.get("background strokes")),
                    label=label,
                )
            )
        return io.NodeOutput(PromptSet(tuple((prompt,) for prompt in prompts)))


def _strokes(foreground: Tensor | None, background: Tensor | None) -> Tensor | None:
    drawn = None
    # Where strokes cross, the one on the subject counts, because it was drawn with more care.
    for strokes, value in ((background, Scribble.BACKGROUND), (foreground, Scribble.FOREGROUND)):
        if strokes is None or not (strokes > 0.5).any():
            continue
        if drawn is None:
            drawn = torch.zeros(strokes.shape, dtype=torch.uint8)
        if drawn.shape != strokes.shape:
            sizes = [f"{area.shape[1]} x {area.shape[0]}" for area in (drawn, strokes)]
            raise PromptError(f"The strokes differ in size: {sizes[0]} and {sizes[1]} pixels.")
        drawn[strokes > 0.5] = value
    return drawn


class CombinePrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_CombinePrompts",
            display_name="Combine Prompts",
            category=sockets.CATEGORY,
            description="Joins prompts: as further targets side by side, or merged so that they speak of one target.",
            search_aliases=["merge prompts", "join prompts", "points and box", "several subjects"],
            inputs=[
                io.Autogrow.Input(
                    "prompts",
                    template=io.Autogrow.TemplatePrefix(
                        sockets.Prompt.Input("prompt", tooltip="A prompt; a further socket appears for the next one."),
                        prefix="prompt",
                        min=2,
                        max=16,
                    ),
                ),
                io.Combo.Input(
                    "combine_as",
                    options=["the same target", "further targets"],
                    default="the same target",
                    tooltip=(
                        "the same target: first with first, second with second, so that a box gets its points. "
                        "further targets: every prompt keeps its own targets."
                    ),
                ),
            ],
            outputs=[_PROMPT_OUTPUT],
        )

    @classmethod
    def execute(cls, prompts: dict[str, PromptSet], combine_as: str) -> io.NodeOutput:
        first, *others = prompts.values()
        for other in others:
            first = first.merged_with(other) if combine_as == "the same target" else first.joined_with(other)
        return io.NodeOutput(first)


NODES = [PromptPoints, PromptBoxes, PromptMask, CombinePrompts]
