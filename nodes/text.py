"""Text nodes: a detector by its folder, and what it finds for some words becomes MAM_PROMPT."""

from __future__ import annotations

from comfy_api.v0_0_2 import io
from torch import Tensor

from ..mam_model import detections as boxes
from ..mam_model import view
from ..mam_model.prompt import PromptError, PromptSet
from . import sockets
from .batch import in_steps, pictures
from .previews import show
from .text_detectors import (
    SharedTextDetector,
    check_text_detector,
    shared_text_detector,
    text_detector_choices,
    text_detector_fingerprint,
)


class LoadTextDetector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_LoadTextDetector",
            display_name="Load Text Detector",
            category=sockets.CATEGORY,
            description=(
                "Loads Grounding DINO from a folder in models/grounding-dino. It finds what a text describes, and "
                "Prompt: Text turns that into boxes. Workflows that name the same folder share one copy in memory."
            ),
            search_aliases=["grounding dino", "text prompt", "open vocabulary", "groundingdino", "referring"],
            inputs=[
                io.Combo.Input(
                    "detector_name",
                    options=text_detector_choices(),
                    tooltip=(
                        "A folder in models/grounding-dino with the files of Grounding DINO. A published one that is "
                        "not there yet is downloaded when the node runs and checked against its sha256: tiny 690 MB, "
                        "base 934 MB."
                    ),
                ),
            ],
            outputs=[
                sockets.TextDetector.Output(
                    "detector", display_name="detector", tooltip="The text detector, for Prompt: Text."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, detector_name: str | None = None) -> bool | str:
        return check_text_detector(detector_name)

    @classmethod
    def fingerprint_inputs(cls, detector_name: str | None = None) -> str:
        return text_detector_fingerprint(detector_name)

    @classmethod
    def execute(cls, detector_name: str) -> io.NodeOutput:
        return io.NodeOutput(shared_text_detector(detector_name))


class PromptText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_PromptText",
            display_name="Prompt: Text",
            category=sockets.CATEGORY,
            description=(
                'Finds what a text describes and puts a box around it: "girl, umbrella", "second dog from the left". '
                "The node shows every box with its number; in a frame without a match nothing is cut out."
            ),
            search_aliases=["text prompt", "grounding dino", "referring", "find by name", "open vocabulary"],
            has_intermediate_output=True,
            inputs=[
                sockets.TextDetector.Input("detector", tooltip="From Load Text Detector."),
                io.Image.Input("image", tooltip="One picture or a batch; each frame is searched by itself."),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip=(
                        'What to look for, in English; commas or dots part several things. Words such as "on the left" '
                        'or "largest" choose among several boxes; quotes switch that off: "left hand".'
                    ),
                ),
                io.String.Input(
                    "pick",
                    default="",
                    optional=True,
                    tooltip=(
                        'Which of the numbered boxes to take: "2", "1, 3", or a place such as "second from the left". '
                        "Empty: as the text says."
                    ),
                ),
                io.Float.Input(
                    "box_threshold",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="How certain a box must be. Lower it when something is missed, raise it when too much is.",
                ),
                io.Int.Input(
                    "at_most",
                    default=10,
                    min=1,
                    max=100,
                    optional=True,
                    tooltip="How many boxes of each thing are taken, the first in the chosen order.",
                ),
                io.Combo.Input(
                    "sort_by",
                    options=list(boxes.SORTED_BY),
                    default="score",
                    optional=True,
                    tooltip="How the boxes are numbered: the most certain first, the largest first, or by position.",
                ),
                io.Combo.Input(
                    "each_box_is",
                    options=list(boxes.TARGETS),
                    default="a target of its own",
                    optional=True,
                    tooltip=(
                        "Whether each box is cut out by itself, or the boxes of a phrase, or all of them, form one "
                        "target inside the box that spans them."
                    ),
                ),
                io.Float.Input(
                    "text_threshold",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="How well a word of the thing must fit a box for the box to count as that thing.",
                ),
                io.Float.Input(
                    "overlap",
                    default=0.7,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Of boxes that overlap more than this (intersection over union) only the surest stays.",
                ),
            ],
            outputs=[
                sockets.Prompt.Output(
                    "prompt",
                    display_name="prompt",
                    tooltip="The boxes of each frame with phrase and score, for the matting nodes.",
                ),
                io.Boolean.Output("found", tooltip="Whether anything was found in any frame."),
            ],
        )

    @classmethod
    def execute(
        cls,
        detector: SharedTextDetector,
        image: Tensor,
        text: str,
        pick: str = "",
        box_threshold: float = 0.25,
        at_most: int = 10,
        sort_by: str = "score",
        each_box_is: str = "a target of its own",
        text_threshold: float = 0.25,
        overlap: float = 0.7,
    ) -> io.NodeOutput:
        image = pictures(image)
        phrases, picked = boxes.read_phrases(text), boxes.read_pick(pick)
        subjects = boxes.subjects_of(phrases)
        detector.network.check(subjects)
        detector.load(detector.detecting_bytes)
        height, width = image.shape[1:3]
        found, choices = [], []
        for index in in_steps(len(image)):
            raw = detector.detect(image[index], subjects, box_threshold, text_threshold)
            found.append(boxes.in_order(boxes.without_overlaps(raw, overlap), sort_by))
            choices.append(boxes.chosen(found[-1], phrases, picked, at_most, width, height))
        missed = boxes.highest_number_missed(picked, [len(frame) for frame in found])
        if missed is not None:
            raise PromptError(
                f'"pick" asks for box {missed}, but at most {max(map(len, found))} were found. Choose among the '
                "numbers in the node's picture, or lower box_threshold."
            )
        prompts = tuple(boxes.prompts_of(frame, choice, each_box_is) for frame, choice in zip(found, choices))
        sheets = (
            view.numbered_boxes(picture, frame, choice, subjects)
            for picture, frame, choice in zip(image, found, choices)
        )
        return io.NodeOutput(PromptSet(prompts), any(prompts), ui=show(sheets))


NODES = [LoadTextDetector, PromptText]
