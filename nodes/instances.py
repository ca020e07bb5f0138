"""Nodes for many subjects: choose among their mattes, join them, or matte them all as one."""

from __future__ import annotations

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..mam_model import instances as choose
from ..mam_model.instances import Instances
from . import sockets
from .batch import frame_of, in_steps, masks, pair_count
from .embeddings import Embeddings
from .mattes import MERGE_INPUTS, MatteBatch, merge_options
from .models import SharedM2M
from .previews import show_alphas

_INSTANCE_INPUTS = [
    io.Mask.Input("instance_alphas", tooltip="One matte per target, from a matting node."),
    sockets.Instances.Input("instances", tooltip="Their index, from the same node."),
]


class SelectInstances(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        option = io.DynamicCombo.Option
        return io.Schema(
            node_id="MAM_SelectInstances",
            display_name="Select Instances",
            category=sockets.CATEGORY,
            description=(
                "Keeps some of the subjects: by number, name, score, size, place, or a point on them. A frame in which "
                "none is left gives an empty matte; no frame is lost."
            ),
            search_aliases=["pick subject", "filter masks", "choose instance", "mask by index", "largest subject"],
            has_intermediate_output=True,
            inputs=[
                *_INSTANCE_INPUTS,
                io.DynamicCombo.Input(
                    "by",
                    options=[
                        option(
                            "position",
                            [
                                io.Combo.Input(
                                    "position",
                                    options=list(choose.POSITIONS),
                                    default="largest",
                                    tooltip="In which order the subjects of a frame are taken.",
                                ),
                                io.Int.Input("count", default=1, min=1, max=64, tooltip="How many are kept per frame."),
                            ],
                        ),
                        option(
                            "index",
                            [
                                io.String.Input(
                                    "index",
                                    default="0",
                                    tooltip='Numbers within the frame, from 0: "0", "0, 2", "1-3".',
                                )
                            ],
                        ),
                        option(
                            "label",
                            [
                                io.String.Input(
                                    "label", default="", tooltip="Names, separated by commas; capitals do not matter."
                                )
                            ],
                        ),
                        option(
                            "score",
                            [
                                io.Float.Input(
                                    "lowest_score",
                                    default=0.8,
                                    min=0.0,
                                    max=1.0,
                                    step=0.01,
                                    tooltip="Kept from here on.",
                                )
                            ],
                        ),
                        option(
                            "area",
                            [
                                io.Float.Input(
                                    "smallest_percent",
                                    default=1.0,
                                    min=0.0,
                                    max=100.0,
                                    step=0.1,
                                    tooltip="Share of the picture that a subject must cover at least, in per cent.",
                                ),
                                io.Float.Input(
                                    "largest_percent",
                                    default=100.0,
                                    min=0.0,
                                    max=100.0,
                                    step=0.1,
                                    tooltip="Share of the picture that a subject may cover at most, in per cent.",
                                ),
                            ],
                        ),
                        option(
                            "point",
                            [
                                io.Int.Input("x", default=0, min=0, max=1 << 20, tooltip="Pixels from the left."),
                                io.Int.Input("y", default=0, min=0, max=1 << 20, tooltip="Pixels from the top."),
                            ],
                        ),
                    ],
                    tooltip="What decides which subjects are kept.",
                ),
                io.Boolean.Input(
                    "invert",
                    default=False,
                    optional=True,
                    tooltip="Keep the subjects that would have been dropped, and the other way round.",
                ),
            ],
            outputs=[
                io.Mask.Output("alpha", tooltip="One matte per frame, the kept subjects together."),
                io.Mask.Output("instance_alphas", tooltip="The kept mattes, one per subject."),
                sockets.Instances.Output("instances", tooltip="Their index; frame and number are as before."),
            ],
        )

    @classmethod
    def execute(
        cls, instance_alphas: Tensor, instances: Instances, by: dict | str | None = None, invert: bool = False
    ) -> io.NodeOutput:
        # ComfyUI leaves the input out where an API prompt names none of its choices, and gives what another node wrote
        # there without the inputs of that choice.
        if not isinstance(by, dict):
            raise ValueError('"by" is chosen on the node and is one of: position, index, label, score, area, point.')
        alphas = masks(instance_alphas)
        instances.check(alphas)
        chosen = _chosen(instances, alphas, by)
        if invert:
            chosen = [entry.found and not wanted for entry, wanted in zip(instances.entries, chosen)]
        kept, mattes = choose.keep(instances, alphas, chosen)
        frames = choose.merge_frames(kept, mattes, throw_exception_if_processing_interrupted)
        # With one matte per frame both outputs are one tensor, because ComfyUI keeps every output in memory.
        if len(mattes) == kept.frame_count:
            mattes = frames
        return io.NodeOutput(frames, mattes, kept, ui=show_alphas(mattes))


def _chosen(instances: Instances, alphas: Tensor, by: dict) -> list[bool]:
    if by["by"] == "index":
        return choose.with_index(instances, by["index"])
    if by["by"] == "label":
        return choose.with_label(instances, by["label"])
    if by["by"] == "score":
        return choose.with_score(instances, by["lowest_score"])
    if by["by"] == "area":
        lowest, highest = by["smallest_percent"] / 100, by["largest_percent"] / 100
        return choose.with_area(alphas, lowest, highest, throw_exception_if_processing_interrupted)
    if by["by"] == "point":
        return choose.at_point(alphas, by["x"], by["y"])
    position, count = by["position"], by["count"]
    return choose.at_position(instances, alphas, position, count, throw_exception_if_processing_interrupted)


class MergeInstances(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_MergeInstances",
            display_name="Merge Instances",
            category=sockets.CATEGORY,
            description="Joins the subjects of a frame into one matte, or those of one name into one each.",
            search_aliases=["union of masks", "combine masks", "one mask per frame", "group by label"],
            has_intermediate_output=True,
            inputs=[
                *_INSTANCE_INPUTS,
                io.Combo.Input(
                    "merge",
                    options=["all of a frame", "same label"],
                    default="all of a frame",
                    tooltip="Which subjects become one. Where they shared a pixel, their shares add up again.",
                ),
            ],
            outputs=[
                io.Mask.Output("alpha", tooltip="One matte per frame, all subjects together."),
                io.Mask.Output("instance_alphas", tooltip="One matte per merged group."),
                sockets.Instances.Output("instances", tooltip="The index of the merged groups."),
            ],
        )

    @classmethod
    def execute(cls, instance_alphas: Tensor, instances: Instances, merge: str) -> io.NodeOutput:
        alphas = masks(instance_alphas)
        instances.check(alphas)
        by_label = instances if merge == "same label" else choose.without_labels(instances)
        merged, mattes = choose.merge_by_label(by_label, alphas, throw_exception_if_processing_interrupted)
        # With one group per frame both outputs are one tensor, because ComfyUI keeps every output in memory.
        frames = mattes
        if len(mattes) != merged.frame_count:
            frames = choose.merge_frames(merged, mattes, throw_exception_if_processing_interrupted)
        return io.NodeOutput(frames, mattes, merged, ui=show_alphas(mattes))


class SemanticMatte(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_SemanticMatte",
            display_name="Semantic Matte",
            category=sockets.CATEGORY,
            description=(
                "Mattes all targets as one foreground: SAM's masks are united before Mask-to-Matte sees them, so that "
                "no edge is drawn between subjects that touch."
            ),
            search_aliases=["semantic matting", "all people", "foreground matte", "union matte"],
            has_intermediate_output=True,
            inputs=[
                sockets.M2M.Input("m2m", tooltip="From Load Mask-to-Matte; trained for the SAM in use."),
                sockets.Embedding.Input("embedding", tooltip="From Encode Image."),
                sockets.Guidance.Input("guidance", tooltip="From Segment, with any number of targets."),
                *MERGE_INPUTS,
            ],
            outputs=[io.Mask.Output("alpha", tooltip="The matte, one per frame, of all targets as one.")],
        )

    @classmethod
    def execute(cls, m2m: SharedM2M, embedding: Embeddings, guidance: list, **merge_settings) -> io.NodeOutput:
        options = merge_options(**merge_settings)
        count = pair_count(embedding=embedding, guidance=guidance)
        mattes = MatteBatch([1] * count)
        frame = embedding[0].frame
        m2m.load(m2m.matting_bytes(frame.height, frame.width))
        for index in in_steps(count):
            united = frame_of(guidance, index).united()
            alphas = m2m.matte(frame_of(embedding, index).embedding, united, options)
            mattes.add(united.prompts, united.scores, alphas)
        frames = mattes.frames
        return io.NodeOutput(frames, ui=show_alphas(frames))


NODES = [SelectInstances, MergeInstances, SemanticMatte]
