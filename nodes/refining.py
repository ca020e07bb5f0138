"""A rough mask into a matte, by the network that comes with the pack."""

from __future__ import annotations

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..mam_model.trimap import trimap_from_mask
from . import sockets
from .batch import check_same_size, frame_of, in_steps_of_parts, masks, pair_count, pictures, room_for
from .models import shared_refiner
from .previews import show_alphas


class RefineMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_RefineMask",
            display_name="Refine Mask",
            category=sockets.CATEGORY,
            description=(
                "Turns any mask of the subject, from SAM, a background remover or a brush, into a matte with soft hair "
                "and fur. A small network does it that comes with this pack: there is nothing to download."
            ),
            search_aliases=[
                "mask to alpha",
                "mask to matte",
                "refine edge",
                "hair refinement",
                "soft mask",
                "no model",
            ],
            has_intermediate_output=True,
            inputs=[
                io.Image.Input("image", tooltip="One picture or a batch."),
                io.Mask.Input(
                    "mask", tooltip="Where the subject is, roughly: hard or soft, a few pixels off, even blocky."
                ),
                io.Int.Input(
                    "reach",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    tooltip=(
                        "Pixels on either side of the mask's edge in which the matte may differ from the mask. Lower "
                        "it where background comes along. 0: as far as the network goes."
                    ),
                ),
            ],
            outputs=[io.Mask.Output("alpha", tooltip="The matte. 1 = subject.")],
        )

    @classmethod
    def execute(cls, image: Tensor, mask: Tensor, reach: int = 0) -> io.NodeOutput:
        image, mask = pictures(image), masks(mask)
        check_same_size(image, mask)
        count = pair_count(image=image, mask=mask)
        refiner = shared_refiner()
        refiner.load(refiner.refining_bytes)
        # Filled in place: a list of the frames and their stack would need twice the memory.
        alphas = room_for(count, *mask.shape[1:])
        for index, tell in in_steps_of_parts(count):
            picture, rough = frame_of(image, index), frame_of(mask, index).float().cpu().clamp(0, 1)
            alpha = refiner.refine(picture, rough, tell)
            if reach:
                alpha = torch.where(trimap_from_mask(rough, reach, reach) == 0.5, alpha, rough)
            alphas[index] = alpha
        return io.NodeOutput(alphas, ui=show_alphas(alphas))


NODES = [RefineMask]
