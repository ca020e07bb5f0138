"""Prompt nodes: points, boxes, masks and strokes become MAM_PROMPT."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..mam_model.prompt import Prompt, PromptError, PromptSet, Scribble, covered_area
from ..mam_model.scribble import prompt_from_trimap
from . import sockets
from .batch import as_output, frame_of, in_steps, masks, pair_count
from .dialects import Point, in_pixels, read_boxes, read_points, write_box, write_points

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
                io.Combo.Input(
                    "coordinates",
                    options=["pixels", "0 to 1"],
                    default="pixels",
                    optional=True,
                    advanced=True,
                    tooltip="0 to 1: shares of width and height, as some editors write. Connect the image then.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip='Only needed for coordinates "0 to 1": the picture they belong to.'
                ),
            ],
            outputs=[_PROMPT_OUTPUT],
        )

    @classmethod
    def execute(
        cls,
        positive: str,
        negative: str = "",
        each_point_is: str = "part of one target",
        label: str = "",
        coordinates: str = "pixels",
        image: Tensor | None = None,
    ) -> io.NodeOutput:
        on, off = read_points(positive, label=1), read_points(negative, label=0)
        if coordinates == "0 to 1":
            if image is None:
                raise PromptError('Connect the image: coordinates "0 to 1" are shares of its width and height.')
            on, off = (in_pixels(frames, image.shape[2], image.shape[1]) for frames in (on, off))
        frames = []
        for index in range(pair_count(positive=on, negative=off)):
            points = frame_of(on, index) + frame_of(off, index)
            clicked = [point for point in points if point.label == 1]
            others = [point for point in points if point.label != 1]
            targets = [[point] for point in clicked] if each_point_is == "a target of its own" else [clicked]
            frames.append(tuple(_prompt_of(target + others, label) for target in targets))
        return io.NodeOutput(PromptSet(tuple(frames)))


def _prompt_of(points: list[Point], label: str) -> Prompt:
    return Prompt(tuple((point.x, point.y) for point in points), tuple(point.label for point in points), label=label)


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
                sockets.AnyBoxes.Input(
                    "bounding_boxes",
                    optional=True,
                    tooltip=(
                        "Boxes of a detector, added to the typed ones: core's BOUNDING_BOX (RT-DETR, SAM3 Detect), "
                        "BBOX, BBOXES and BOX of other packs, or SEGS of the Impact Pack."
                    ),
                    extra_dict={"forceInput": True},
                ),
                _LABEL,
                io.Combo.Input(
                    "four_numbers_are",
                    options=["corners", "corner and size"],
                    default="corners",
                    optional=True,
                    advanced=True,
                    tooltip="How bare numbers are meant: left, top, right, bottom, or left, top, width, height.",
                ),
            ],
            outputs=[_PROMPT_OUTPUT],
        )

    @classmethod
    def execute(
        cls,
        boxes: str,
        bounding_boxes: object = None,
        label: str = "",
        four_numbers_are: str = "corners",
    ) -> io.NodeOutput:
        prompts = PromptSet()
        for written in (boxes, bounding_boxes):
            if written is None:
                continue
            frames = read_boxes(written, corners=four_numbers_are == "corners")
            targets = (
                tuple(Prompt(box_xyxy_px=box.xyxy, label=label or box.label, score=box.score) for box in frame)
                for frame in frames
            )
            prompts = prompts.joined_with(PromptSet(tuple(targets)))
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
                        "(or GrabCut) decides anew where the subject is, and the mask is one clue among others."
                    ),
                ),
                io.Mask.Input("foreground_strokes", optional=True, tooltip="Strokes on the subject, as a mask."),
                io.Mask.Input("background_strokes", optional=True, tooltip="Strokes beside the subject, as a mask."),
                _LABEL,
                io.Mask.Input(
                    "unknown_strokes",
                    optional=True,
                    tooltip="Strokes over parts that are neither, such as flying hair: only matting decides there.",
                ),
                io.Mask.Input(
                    "trimap",
                    optional=True,
                    tooltip="Instead of a mask: 1 surely subject, 0 surely not, anything between is to be matted.",
                ),
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
        unknown_strokes: Tensor | None = None,
        trimap: Tensor | None = None,
    ) -> io.NodeOutput:
        if mask is not None and trimap is not None:
            raise PromptError("Connect a mask or a trimap, not both: each says where the subject is.")
        # Where strokes cross, the one on the subject counts, because it was drawn with more care.
        given = {
            "mask": mask,
            "trimap": trimap,
            Scribble.BACKGROUND: background_strokes,
            Scribble.UNKNOWN: unknown_strokes,
            Scribble.FOREGROUND: foreground_strokes,
        }
        batches = {name: masks(batch) for name, batch in given.items() if batch is not None}
        if not batches:
            raise PromptError("Connect a mask, strokes or a trimap: this prompt says nothing yet.")
        if mask is not None:
            # Kept by the prompts, which share the only one of a batch. Strokes and trimaps are used frame by frame.
            batches["mask"] = batches["mask"].float().cpu()
        prompts = []
        for index in in_steps(pair_count(**{_spoken(name): batch for name, batch in batches.items()})):
            frame = {name: frame_of(batch, index).float().cpu() for name, batch in batches.items()}
            strokes = _drawn({name: area for name, area in frame.items() if isinstance(name, Scribble)})
            if trimap is None:
                # A blank mask says nothing, whatever its size: Load Image gives one for a picture without transparency.
                rough = frame["mask"] if "mask" in frame and frame["mask"].any() else None
                is_guidance = rough is not None and use_mask_as == "guidance"
                prompt = Prompt(mask=rough, mask_is_guidance=is_guidance, scribbles=strokes)
            else:
                prompt = prompt_from_trimap(frame["trimap"], strokes)
            prompts.append((replace(prompt, label=label),))
        return io.NodeOutput(PromptSet(tuple(prompts)))


def _spoken(name: str | Scribble) -> str:
    return f"{name.name.lower()}_strokes" if isinstance(name, Scribble) else name


def _drawn(strokes: dict[Scribble, Tensor]) -> Tensor | None:
    """One scribble map from a mask per kind of stroke; where they cross, the later kind counts."""
    drawn = None
    for value, area in strokes.items():
        if not (area > 0.5).any():
            continue
        if drawn is None:
            drawn = torch.zeros(area.shape, dtype=torch.uint8)
        if drawn.shape != area.shape:
            sizes = [f"{part.shape[1]} x {part.shape[0]}" for part in (drawn, area)]
            raise PromptError(f"The strokes differ in size: {sizes[0]} and {sizes[1]} pixels.")
        drawn[area > 0.5] = value
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
                        # Optional, so that a prompt may be bypassed or muted; `min` is how many sockets are shown.
                        sockets.Prompt.Input(
                            "prompt", optional=True, tooltip="A prompt; a further socket appears for the next one."
                        ),
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
        # An API prompt may name a socket and give it nothing, as it may leave it out.
        given = [prompt for prompt in prompts.values() if prompt is not None]
        if not given:
            raise PromptError("Connect a prompt: there is nothing to combine.")
        first, *others = given
        for other in others:
            first = first.merged_with(other) if combine_as == "the same target" else first.joined_with(other)
        return io.NodeOutput(first)


class PromptInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_PromptInfo",
            display_name="Prompt to Core Types",
            category=sockets.CATEGORY,
            description=(
                "Gives a prompt back in ComfyUI's own types, so that it can also drive SAM3 Detect, Draw BBoxes, the "
                "nodes of KJNodes, and others."
            ),
            search_aliases=["prompt to bbox", "bounding box out", "points json", "convert prompt"],
            inputs=[
                sockets.Prompt.Input("prompt", tooltip="Any prompt."),
                io.Int.Input(
                    "frame",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Which frame's points and mask to give, from 0; a prompt for all frames has only frame 0.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="The picture: gives the mask its size, and fills boxes into it."
                ),
            ],
            outputs=[
                io.Custom("BOUNDING_BOX").Output(
                    "bounding_boxes", tooltip="The boxes in core's form: a list for all frames, or a list per frame."
                ),
                io.String.Output("positive", tooltip='Points on the subjects as JSON: [{"x": 120, "y": 80}].'),
                io.String.Output("negative", tooltip="Points that are not on them, in the same form."),
                io.Mask.Output(
                    "mask", tooltip="The prompt's masks, foreground strokes and boxes as one mask; empty without any."
                ),
            ],
        )

    @classmethod
    def execute(cls, prompt: PromptSet, frame: int, image: Tensor | None = None) -> io.NodeOutput:
        if frame >= len(prompt.frames):
            raise PromptError(
                f"The prompt speaks of {len(prompt.frames)} frame(s), counted from 0; there is no {frame}."
            )
        boxes = [
            [write_box(target.box_xyxy_px, target.label, target.score) for target in targets if target.box_xyxy_px]
            for targets in prompt.frames
        ]
        targets = prompt.frames[frame]
        for target in targets:
            # Such points would be left out of both lists, or be no JSON.
            target.check_points()
        on, off = (
            [p for target in targets for p, own in zip(target.points_px, target.labels) if own == label]
            for label in (1, 0)
        )
        area = covered_area(targets, None if image is None else tuple(image.shape[1:3]))
        if area is None:
            # What Load Image gives for "no mask".
            area = torch.zeros(64, 64)
        for_all_or_each = boxes[0] if len(boxes) == 1 else boxes
        return io.NodeOutput(for_all_or_each, write_points(on), write_points(off), as_output(masks(area).clamp(0, 1)))


NODES = [PromptPoints, PromptBoxes, PromptMask, CombinePrompts, PromptInfo]
