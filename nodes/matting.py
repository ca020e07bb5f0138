"""Whole matting nodes: a picture and a prompt in, mattes out."""

from __future__ import annotations

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..mam_model.prompt import Prompt, PromptError, PromptSet
from . import sockets
from .batch import (
    check_frame,
    check_same_size,
    frame_of,
    in_steps,
    in_steps_of_targets,
    masks,
    pair_count,
    pictures,
)
from .embeddings import embeddings_of
from .mattes import DETAIL_INPUT, MATTE_OUTPUTS, MERGE_INPUTS, MatteBatch, in_detail, merge_options
from .models import SharedM2M, SharedSam, load_together, loaded_refine


class MattingAnything(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_MattingAnything",
            display_name="Matting Anything",
            category=sockets.CATEGORY,
            description=(
                "Cuts out what the prompt points at, with soft hair, fur and motion blur: SAM finds it, Mask-to-Matte "
                "predicts its alpha. One matte per frame, and one per target."
            ),
            search_aliases=["cut out", "matting", "remove background", "alpha matte", "background removal", "mam"],
            has_intermediate_output=True,
            inputs=[
                sockets.Sam.Input("sam", tooltip="From Load SAM."),
                sockets.M2M.Input("m2m", tooltip="From Load Mask-to-Matte; trained for this size of SAM."),
                io.Image.Input("image", tooltip="One picture or a batch. It is encoded once; a new prompt is quick."),
                sockets.Prompt.Input("prompt", tooltip="What to matte, for one frame (used for all) or for each."),
                *MERGE_INPUTS,
                DETAIL_INPUT,
            ],
            outputs=MATTE_OUTPUTS,
        )

    @classmethod
    def execute(
        cls,
        sam: SharedSam,
        m2m: SharedM2M,
        image: Tensor,
        prompt: PromptSet,
        detail: str = "1024",
        **merge_settings,
    ) -> io.NodeOutput:
        image = pictures(image)
        options = merge_options(**merge_settings)
        load_together([sam, m2m], max(sam.encoding_bytes, m2m.matting_bytes(*image.shape[1:3])))
        count = pair_count(image=image, prompt=prompt.frames)
        mattes = MatteBatch([len(frame_of(prompt.frames, index)) for index in range(count)])
        embeddings = embeddings_of(image, sam, [m2m])
        for index in in_steps(count):
            # A single picture serves all frames.
            if index < len(image):
                picture = next(embeddings)
            guidance = sam.decode(picture.embedding, frame_of(prompt.frames, index))
            alphas = m2m.matte(picture.embedding, guidance, options)
            alphas = in_detail(frame_of(image, index), alphas, guidance.prompts, detail)
            mattes.add(guidance.prompts, guidance.scores, alphas)
        return mattes.output()


class MatteWithoutModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_MatteWithoutModels",
            display_name="Matte without Models",
            category=sockets.CATEGORY,
            description=(
                "Cuts out what the prompt or a rough mask points at, nothing to download: GrabCut finds the subject; a "
                "small network that comes with this pack, closed-form or KNN matting solves its edge. Best when "
                "colours differ."
            ),
            search_aliases=["cut out", "grabcut", "closed form matting", "knn matting", "offline matting", "no model"],
            has_intermediate_output=True,
            inputs=[
                io.Image.Input("image", tooltip="One picture or a batch."),
                sockets.Prompt.Input(
                    "prompt", optional=True, tooltip="Box, points or strokes on the subject; for one frame or for each."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="A rough mask of the subject instead of a prompt; with a prompt, its mask.",
                ),
                io.Combo.Input(
                    "method",
                    options=["refiner", "closed-form", "knn", "none"],
                    default="refiner",
                    optional=True,
                    tooltip=(
                        "How the edge is solved. refiner: by the small network that comes with this pack. closed-form: "
                        "smooth, for hair and fur. knn: for holes such as lace and leaves. none: a soft edge along the "
                        "picture's colours, fastest. closed-form and knn need PyMatting."
                    ),
                ),
                io.Float.Input(
                    "band",
                    default=1.0,
                    min=0.1,
                    max=8.0,
                    step=0.1,
                    optional=True,
                    tooltip="Width of the unsure band along the edge. Raise it for long hair, lower it for hard edges.",
                ),
            ],
            outputs=MATTE_OUTPUTS,
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        prompt: PromptSet | None = None,
        mask: Tensor | None = None,
        method: str = "refiner",
        band: float = 1.0,
    ) -> io.NodeOutput:
        from ..mam_model.classical import matte_without_models

        image = pictures(image)
        if mask is not None:
            rough = _rough_masks(image, mask)
            prompt = rough if prompt is None else prompt.merged_with(rough)
        if prompt is None:
            raise PromptError("Connect a prompt or a mask: this node needs to know what to cut out.")
        count = pair_count(image=image, prompt=prompt.frames)
        frames = [frame_of(prompt.frames, index) for index in range(count)]
        mattes = MatteBatch([len(targets) for targets in frames])
        refine = loaded_refine() if method == "refiner" else None
        for index, in_turn in in_steps_of_targets(frames):
            picture, targets = frame_of(image, index), frames[index]
            check_frame(image, index)
            alphas = torch.zeros(len(targets), *picture.shape[:2])
            for number, target in enumerate(in_turn):
                alphas[number] = matte_without_models(picture, target, method=method, band=band, refine=refine)
            mattes.add(targets, tuple(target.score for target in targets), alphas)
        return mattes.output()


def _rough_masks(image: Tensor, mask: Tensor) -> PromptSet:
    mask = masks(mask).cpu()
    # Half precision stays: a copy of a whole clip would take twice its memory as long as the node runs.
    mask = mask if mask.is_floating_point() else mask.float()
    if mask.any():
        check_same_size(image, mask)
    pair_count(image=image, mask=mask)
    return PromptSet(tuple((Prompt(mask=frame if frame.any() else None),) for frame in mask))


NODES = [MattingAnything, MatteWithoutModels]
