"""A picture without a prompt: everything salient in it is found and matted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.model_management
import comfy.utils
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..mam_model import view
from . import sockets
from .batch import pictures
from .embeddings import embeddings_of
from .mattes import MATTE_OUTPUTS, MERGE_INPUTS, MatteBatch, merge_options
from .models import SharedM2M, SharedSam, load_together
from .previews import MOST_FRAMES, show

if TYPE_CHECKING:
    from ..mam_model.sam import Embedding, Guidance

# Larger steps are no faster on a CPU and let the user wait longer for a cancelled graph to stop.
_POINTS_PER_STEP = 16
# Measured with the published decoder, in float32 at 1024 pixels.
_FINDING_BYTES_PER_POINT = 36 * 1024**2


class MatteEverything(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_MatteEverything",
            display_name="Matte Everything",
            category=sockets.CATEGORY,
            description=(
                "Finds everything salient in a picture without a prompt and mattes it: SAM is asked at a grid of "
                "points, one mask per thing is kept. The preview numbers what was found."
            ),
            search_aliases=[
                "segment everything",
                "automatic mask generator",
                "automatic matting",
                "salient object detection",
                "no prompt",
                "cut out all",
            ],
            has_intermediate_output=True,
            inputs=[
                sockets.Sam.Input("sam", tooltip="From Load SAM."),
                sockets.M2M.Input("m2m", tooltip="From Load Mask-to-Matte; trained for this size of SAM."),
                io.Image.Input("image", tooltip="One picture or a batch; each is encoded once."),
                io.Combo.Input(
                    "mode",
                    options=["instances", "semantic"],
                    default="instances",
                    optional=True,
                    tooltip=(
                        "instances: a matte for each thing. semantic: one matte of all of them as one foreground, "
                        "without edges between things that touch."
                    ),
                ),
                io.Int.Input(
                    "most",
                    default=10,
                    min=1,
                    max=100,
                    optional=True,
                    tooltip="At most so many things per frame, the first ones in the order below.",
                ),
                io.Combo.Input(
                    "order",
                    options=["area", "score"],
                    default="area",
                    optional=True,
                    tooltip="How things are numbered. area: the largest first. score: the surest first.",
                ),
                io.Combo.Input(
                    "nested",
                    options=["whole", "parts", "both"],
                    default="whole",
                    optional=True,
                    tooltip=(
                        "What is kept of a thing inside another. whole: the outer one alone, a person. parts: the "
                        "inner ones, shirt and face, without the person that they cover half of. both: all, each part "
                        "cut out of its whole."
                    ),
                ),
                io.Boolean.Input(
                    "leave_out_background",
                    default=True,
                    optional=True,
                    tooltip=(
                        "Drop sky, floor and walls: what lies on two or more borders of the picture along 2.5 times "
                        "the root of its area. Turn it off when a subject that fills the picture is missing."
                    ),
                ),
                io.Float.Input(
                    "smallest_percent",
                    default=0.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    optional=True,
                    tooltip="Share of the picture that a thing must cover at least, in per cent.",
                ),
                io.Float.Input(
                    "largest_percent",
                    default=90.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    optional=True,
                    tooltip="Share of the picture that a thing may cover at most, in per cent.",
                ),
                io.Int.Input(
                    "points_per_side",
                    default=16,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip=(
                        "SAM is asked at this many points along each side: 16 for things of half a per cent and more, "
                        "32 (four times as slow) for smaller ones."
                    ),
                ),
                io.Float.Input(
                    "lowest_predicted_iou",
                    default=0.88,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Masks that SAM itself rates no higher than this are dropped. Lower it to find more.",
                ),
                io.Float.Input(
                    "lowest_stability",
                    default=0.95,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Masks less stable than this when SAM's threshold moves are dropped; 1 is one that does not "
                        "change. Lower it to find things with vague outlines."
                    ),
                ),
                io.Float.Input(
                    "box_nms",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Of two masks whose boxes have a larger IoU than this, only the better one is kept.",
                ),
                io.Float.Input(
                    "mask_nms",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Of two masks that have a larger IoU than this, only the better one is kept.",
                ),
                *MERGE_INPUTS,
            ],
            outputs=MATTE_OUTPUTS,
        )

    @classmethod
    def execute(
        cls,
        sam: SharedSam,
        m2m: SharedM2M,
        image: Tensor,
        mode: str = "instances",
        most: int = 10,
        order: str = "area",
        nested: str = "whole",
        leave_out_background: bool = True,
        smallest_percent: float = 0.5,
        largest_percent: float = 90.0,
        points_per_side: int = 16,
        lowest_predicted_iou: float = 0.88,
        lowest_stability: float = 0.95,
        box_nms: float = 0.7,
        mask_nms: float = 0.7,
        **merge_settings,
    ) -> io.NodeOutput:
        from ..mam_model.everything import EverythingOptions, find_everything, one_by_one, parts_cut_out

        image = pictures(image)
        merging = merge_options(**merge_settings)
        options = EverythingOptions(
            points_per_side=points_per_side,
            lowest_predicted_iou=lowest_predicted_iou,
            lowest_stability=lowest_stability,
            smallest_area=smallest_percent / 100,
            largest_area=largest_percent / 100,
            leave_out_background=leave_out_background,
            box_nms=box_nms,
            mask_nms=mask_nms,
            nested=nested,
            order=order,
            most=most,
        )
        # Of one matte at most there is one per frame. Else their number is known at the end, and they wait for it.
        mattes = MatteBatch([1] * len(image)) if mode == "semantic" or most == 1 else None
        waiting, shown = [], []
        finding_bytes = _FINDING_BYTES_PER_POINT * _POINTS_PER_STEP
        load_together([sam, m2m], max(sam.encoding_bytes, m2m.matting_bytes(*image.shape[1:3]), finding_bytes))
        progress = _Progress(len(image), points_per_side**2, most if mode == "instances" else 1)
        embeddings = embeddings_of(image, sam, [m2m])
        for index in range(len(image)):
            progress.reach(index)
            embedding = next(embeddings).embedding

            def find(points_per_step: int, index: int = index, embedding: Embedding = embedding) -> Guidance:
                return find_everything(
                    sam.network,
                    embedding,
                    options,
                    points_per_step=points_per_step,
                    show=lambda done, _: progress.reach(index, points=done),
                )

            found = sam.within_memory(find, _POINTS_PER_STEP)
            if len(shown) < MOST_FRAMES:
                shown.append((embedding, found))
            if mode == "semantic":
                found = found.united()
            elif nested != "whole":
                found = parts_cut_out(found)
            alphas = torch.zeros(len(found), *image.shape[1:3])
            picture = m2m.look_at(embedding) if len(found) else None
            for number, target in enumerate(one_by_one(found)):
                alphas[number] = m2m.matte(picture, target, merging)[0]
                progress.reach(index, points_per_side**2, number + 1)
            if mattes is None:
                # In the result's own precision, so that they take no more memory than it will.
                kept = alphas.to(comfy.model_management.intermediate_dtype())
                waiting.append((found.prompts, found.scores, kept))
            else:
                mattes.add(found.prompts, found.scores, alphas)
        if mattes is None:
            mattes = MatteBatch([len(prompts) for prompts, *_ in waiting])
        while waiting:
            # Let go one by one: the result takes memory as it is filled, and does not lie beside all of them.
            prompts, scores, kept = waiting.pop(0)
            mattes.add(prompts, scores, kept.float())
        progress.reach(len(image))
        return io.NodeOutput(*mattes.results, ui=show(view.numbered_instances(*frame) for frame in shown))


class _Progress:
    """The node's bar over frames, points and mattes. Each call is also where the user's cancelling takes effect."""

    def __init__(self, frames: int, points: int, mattes: int):
        # A matte takes about as long as the decoder takes for four points.
        self._points, self._matte = points, 4
        self._frame = points + self._matte * mattes
        self._bar = comfy.utils.ProgressBar(frames * self._frame)

    def reach(self, frame: int, points: int = 0, mattes: int = 0) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._bar.update_absolute(frame * self._frame + points + mattes * self._matte)


NODES = [MatteEverything]
