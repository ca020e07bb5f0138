"""The four steps of the paper as nodes: encode, segment, predict, merge. Each shows what it made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..mam_model import view
from ..mam_model.prompt import PromptSet
from . import sockets
from .batch import frame_of, in_steps, pair_count, pictures, room_for
from .embeddings import Embeddings, embeddings_of
from .mattes import DETAIL_INPUT, MATTE_OUTPUTS, MERGE_INPUTS, MatteBatch, in_detail, merge_options
from .models import SharedM2M, SharedSam
from .previews import show

if TYPE_CHECKING:
    from ..mam_model.m2m import AlphaPyramid
    from ..mam_model.sam import Guidance


@dataclass(frozen=True, eq=False)
class FramePyramid:
    """What MAM_ALPHAS carries for one frame: the pyramid of its targets and the guidance that led to it."""

    pyramid: AlphaPyramid
    guidance: Guidance


class EncodeImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_EncodeImage",
            display_name="1 Encode Image (SAM)",
            category=sockets.CATEGORY,
            description=(
                "SAM looks at the picture: the expensive step, done once per picture and kept. Any number of prompts "
                "can follow without it. The preview shows its features as colours."
            ),
            search_aliases=["sam embedding", "image embedding", "sam encode", "set image"],
            has_intermediate_output=True,
            inputs=[
                sockets.Sam.Input("sam", tooltip="From Load SAM."),
                io.Image.Input("image", tooltip="One picture or a batch; each is encoded once."),
            ],
            outputs=[sockets.Embedding.Output("embedding", tooltip="What SAM sees in each picture.")],
        )

    @classmethod
    def execute(cls, sam: SharedSam, image: Tensor) -> io.NodeOutput:
        image = pictures(image)
        found = [embedding for _, embedding in zip(in_steps(len(image)), embeddings_of(image, sam))]
        embeddings = Embeddings(found, sam.file)
        return io.NodeOutput(embeddings, ui=show(view.features_as_colors(e.embedding) for e in embeddings))


class Segment(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_Segment",
            display_name="2 Segment (SAM)",
            category=sockets.CATEGORY,
            description=(
                "SAM finds what the prompt points at: three candidate masks per target, of which the one with the best "
                "predicted IoU is used unless you choose another."
            ),
            search_aliases=["sam segment", "sam mask", "segment anything", "mask decoder"],
            has_intermediate_output=True,
            inputs=[
                sockets.Sam.Input("sam", tooltip="The SAM that encoded the picture."),
                sockets.Embedding.Input("embedding", tooltip="From Encode Image."),
                sockets.Prompt.Input("prompt", tooltip="What to find, for one frame (used for all) or for each."),
                io.Combo.Input(
                    "candidate",
                    options=["best", "1", "2", "3"],
                    default="best",
                    optional=True,
                    tooltip=(
                        "Which of the three masks to take: the best by SAM's own estimate, or 1 (often a part), "
                        "2 or 3 (often the whole). A choice made in the prompt itself comes first."
                    ),
                ),
            ],
            outputs=[
                sockets.Guidance.Output("guidance", tooltip="Masks, candidates and scores for Mask to Matte."),
                io.Mask.Output("mask", tooltip="SAM's hard mask, all targets together, one per frame."),
            ],
        )

    @classmethod
    def execute(
        cls, sam: SharedSam, embedding: Embeddings, prompt: PromptSet, candidate: str = "best"
    ) -> io.NodeOutput:
        if embedding.sam_file != sam.file:
            raise ValueError(
                f"The embedding was made by another SAM than {sam.name}. Use one Load SAM for encoding and segmenting."
            )
        choice = None if candidate == "best" else int(candidate) - 1
        sam.load(sam.decoding_bytes)
        guidances = []
        count, frame = pair_count(embedding=embedding, prompt=prompt.frames), embedding[0].frame
        # Filled in place: a list of the masks and their stack would need twice the memory of the result.
        masks = room_for(count, frame.height, frame.width)
        for index in in_steps(count):
            picture = frame_of(embedding, index).embedding
            targets = [target.or_candidate(choice) for target in frame_of(prompt.frames, index)]
            guidance = sam.decode(picture, targets)
            mask = torch.zeros(picture.frame.height, picture.frame.width)
            for target in range(len(guidance)):
                mask = torch.maximum(mask, guidance.post_mask(target).cpu())
            guidances.append(guidance.cpu())
            masks[index] = mask
        overlays = (
            view.prompts_and_masks(frame_of(embedding, index).embedding, guidance)
            for index, guidance in enumerate(guidances)
        )
        return io.NodeOutput(guidances, masks, ui=show(overlays))


class MaskToMatte(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_MaskToMatte",
            display_name="3 Mask to Matte (M2M)",
            category=sockets.CATEGORY,
            description=(
                "Predicts alpha for every target at three scales: an eighth, a quarter, and the full 1024 pixels. The "
                "preview shows them from coarse to fine, before merging."
            ),
            search_aliases=["m2m", "alpha prediction", "matte prediction", "mam"],
            has_intermediate_output=True,
            inputs=[
                sockets.M2M.Input("m2m", tooltip="From Load Mask-to-Matte; trained for the SAM in use."),
                sockets.Embedding.Input("embedding", tooltip="From Encode Image."),
                sockets.Guidance.Input("guidance", tooltip="From Segment, for the same pictures."),
            ],
            outputs=[sockets.Alphas.Output("alphas", tooltip="Alpha at three scales, for Merge Scales.")],
        )

    @classmethod
    def execute(cls, m2m: SharedM2M, embedding: Embeddings, guidance: list) -> io.NodeOutput:
        m2m.load(m2m.predicting_bytes)
        frames = []
        for index in in_steps(pair_count(embedding=embedding, guidance=guidance)):
            picture, found = frame_of(embedding, index).embedding, frame_of(guidance, index)
            frames.append(FramePyramid(m2m.predict(picture, found), found))
        scales = (view.three_scales(frame.pyramid, frame.guidance.frame) for frame in frames if len(frame.guidance))
        return io.NodeOutput(frames, ui=show(scales))


class RefineMerge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_RefineMerge",
            display_name="4 Merge Scales",
            category=sockets.CATEGORY,
            description=(
                "Merges the three scales into one matte per target at the picture's own size: coarse where it is "
                "certain, fine along the edge. Where targets overlap they share the pixel."
            ),
            search_aliases=["iterative refinement", "progressive merging", "refine alpha"],
            has_intermediate_output=True,
            inputs=[
                sockets.Alphas.Input("alphas", tooltip="From Mask to Matte."),
                *MERGE_INPUTS,
                DETAIL_INPUT,
                io.Image.Input(
                    "image", optional=True, tooltip="The pictures that were encoded; needed for native detail."
                ),
            ],
            outputs=MATTE_OUTPUTS,
        )

    @classmethod
    def execute(
        cls, alphas: list[FramePyramid], detail: str = "1024", image: Tensor | None = None, **merge_settings
    ) -> io.NodeOutput:
        from ..mam_model.matting import merge_targets

        options = merge_options(**merge_settings)
        batches = {"alphas": alphas}
        if detail == "native":
            batches["image"] = _picture_of_detail(image, alphas)
        count = pair_count(**batches)
        mattes = MatteBatch([len(frame_of(alphas, index).guidance) for index in range(count)])
        for index in in_steps(count):
            pyramid, guidance = frame_of(alphas, index).pyramid, frame_of(alphas, index).guidance
            merged = merge_targets(pyramid, guidance, options)
            if detail == "native":
                merged = in_detail(frame_of(batches["image"], index), merged, guidance.prompts, detail)
            mattes.add(guidance.prompts, guidance.scores, merged)
        return mattes.output()


def _picture_of_detail(image: Tensor | None, alphas: list[FramePyramid]) -> Tensor:
    if image is None:
        raise ValueError("Native detail comes from the picture's own pixels: connect the image, or choose detail 1024.")
    image = pictures(image)
    frame = alphas[0].guidance.frame
    if image.shape[1:3] != (frame.height, frame.width):
        raise ValueError(
            f"The mattes are of a picture of {frame.width} x {frame.height} pixels but the image is {image.shape[2]} x "
            f"{image.shape[1]}. Connect the image that was encoded."
        )
    return image


NODES = [EncodeImage, Segment, MaskToMatte, RefineMerge]
