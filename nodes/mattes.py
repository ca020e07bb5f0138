"""What every node that makes mattes has in common: the merge settings it asks for and the results it gives."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..mam_model.instances import Instance, Instances, describe, share_pixels
from ..mam_model.merge import MergeOptions
from ..mam_model.native_detail import sharpen_targets
from ..mam_model.prompt import Prompt
from . import sockets
from .batch import room_for
from .previews import show_alphas

MERGE_INPUTS = [
    io.Combo.Input(
        "guidance_mode",
        options=["mask", "alpha"],
        default="mask",
        optional=True,
        tooltip=(
            "mask: start from SAM's mask, which keeps neighbours out; best with several subjects. alpha: start from "
            "the coarse alpha, which can mend SAM's mask; best for one clear subject."
        ),
    ),
    io.Combo.Input(
        "sides",
        options=["one", "two"],
        default="one",
        optional=True,
        advanced=True,
        tooltip=(
            "one: finer scales may add to the subject but leave its solid inside alone (the published setting). two: "
            "they replace everything near a soft edge, inside too."
        ),
    ),
    io.Int.Input(
        "width_os8",
        default=10,
        min=0,
        max=512,
        optional=True,
        advanced=True,
        tooltip="Pixels around SAM's mask in which the coarsest alpha counts. Raise it for long hair.",
    ),
    io.Int.Input(
        "width_os4",
        default=20,
        min=0,
        max=512,
        optional=True,
        advanced=True,
        tooltip="Pixels around the soft edge in which the middle scale counts.",
    ),
    io.Int.Input(
        "width_os1",
        default=10,
        min=0,
        max=512,
        optional=True,
        advanced=True,
        tooltip="Pixels around the soft edge in which the finest scale counts.",
    ),
]

DETAIL_INPUT = io.Combo.Input(
    "detail",
    options=["1024", "native"],
    default="1024",
    optional=True,
    tooltip=(
        "1024: the networks' own detail, enlarged to the picture. native: in a picture of more than 1024 pixels the "
        "edge gains the detail that its own pixels show, such as single hairs; takes some seconds."
    ),
)

MATTE_OUTPUTS = [
    io.Mask.Output("alpha", tooltip="The matte, one per frame, all its targets together. 1 = subject."),
    io.Mask.Output("instance_alphas", tooltip="One matte per target, frame after frame; overlaps are shared out."),
    sockets.Instances.Output(
        "instances", tooltip="For each of the instance alphas its frame, number, label, score and box."
    ),
]


def merge_options(
    guidance_mode: str = "mask", sides: str = "one", width_os8: int = 10, width_os4: int = 20, width_os1: int = 10
) -> MergeOptions:
    """The widgets of MERGE_INPUTS as the library's options."""
    return MergeOptions(guidance_mode, sides, width_os8, width_os4, width_os1)


def in_detail(picture: Tensor, alphas: Tensor, prompts: tuple[Prompt, ...], detail: str) -> Tensor:
    """The mattes [T, H, W] of a picture [H, W, 3] as the widget of DETAIL_INPUT asks for; can be cancelled."""
    if detail != "native":
        return alphas

    def before_tile(*_) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    return sharpen_targets(picture, alphas, prompts, before_tile=before_tile)


class MatteBatch:
    """The mattes of a batch as they are made, frame by frame."""

    def __init__(self, targets: Sequence[int]):
        """
        Args:
            targets: how many each of the B frames has.
        """
        # A frame without a target has an empty matte.
        self._matte_counts = [max(1, count) for count in targets]
        self._entries: list[Instance] = []
        self._frames = self._instances = torch.empty(0)
        self._frame_count = self._instance_count = 0

    def add(self, prompts: tuple[Prompt, ...], scores: tuple[float, ...], alphas: Tensor) -> None:
        """Takes the next frame.

        Args:
            prompts, scores: of the frame's T targets.
            alphas: float [T, H, W], their mattes.
        """
        if not self._frame_count:
            self._make_room(*alphas.shape[1:])
        frame, first = self._frame_count, self._instance_count
        self._frame_count += 1
        self._instance_count += self._matte_counts[frame]
        shared = share_pixels(alphas) if len(alphas) > 1 else alphas
        self._entries += describe(frame, prompts, scores, shared)
        self._instances[first : self._instance_count] = shared if len(shared) else 0
        if self._frames is not self._instances:
            self._frames[frame] = shared.sum(dim=0).clamp(0, 1)

    def _make_room(self, height: int, width: int) -> None:
        # Filled in place: lists of the mattes and their stacks would need twice the memory of the results.
        self._frames = self._instances = room_for(len(self._matte_counts), height, width)
        # Most pictures have one target: then both outputs are one tensor, because ComfyUI keeps every output in memory.
        if sum(self._matte_counts) > len(self._matte_counts):
            self._instances = room_for(sum(self._matte_counts), height, width)

    @property
    def frames(self) -> Tensor:
        """float [B, H, W], one matte per frame, all its targets together."""
        return self._frames

    @property
    def results(self) -> tuple[Tensor, Tensor, Instances]:
        """What MATTE_OUTPUTS promise."""
        return self._frames, self._instances, Instances(tuple(self._entries), self._frame_count)

    def output(self) -> io.NodeOutput:
        """The outputs of MATTE_OUTPUTS, with the mattes shown on the node."""
        results = self.results
        return io.NodeOutput(*results, ui=show_alphas(results[0]))
