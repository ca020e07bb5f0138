"""Nodes for the edge of a matte and for the colour in it: no network runs, so every change is quick."""

from __future__ import annotations

from functools import partial

import comfy.model_management
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..mam_model.edge import EdgeOptions, adjust_edge
from ..mam_model.trimap import trimap_adaptive, trimap_from_mask
from . import sockets
from .batch import (
    check_frame,
    check_same_size,
    frame_of,
    in_steps,
    in_steps_of_parts,
    masks,
    pair_count,
    pictures,
    room_for,
)
from .models import on_device_or_processor
from .previews import show, show_alphas


class EdgeAdjust(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_EdgeAdjust",
            display_name="Adjust Matte Edge",
            category=sockets.CATEGORY,
            description=(
                "Shifts, feathers and steepens the edge of a matte, sets its black and white point, fills holes and "
                "removes specks. In this order: specks, holes, points, shift, feather, contrast."
            ),
            search_aliases=[
                "shift edge",
                "feather",
                "grow mask",
                "shrink mask",
                "choke",
                "levels",
                "fill holes",
                "despeckle",
            ],
            has_intermediate_output=True,
            inputs=[
                io.Mask.Input("alpha", tooltip="The matte, or any soft or hard mask."),
                io.Float.Input(
                    "shift_px",
                    default=0.0,
                    optional=True,
                    min=-100.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Moves the edge: above 0 outwards, below 0 inwards. Soft edges stay soft.",
                ),
                io.Float.Input(
                    "feather_px",
                    default=0.0,
                    optional=True,
                    min=0.0,
                    max=200.0,
                    step=0.1,
                    tooltip="Softens the edge by a Gaussian blur of this standard deviation, in pixels.",
                ),
                io.Float.Input(
                    "contrast",
                    default=0.0,
                    optional=True,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="Steepens the edge about its middle; 1 makes it hard.",
                ),
                io.Float.Input(
                    "black_point",
                    default=0.0,
                    optional=True,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="Alpha up to here becomes 0: takes a faint haze away.",
                ),
                io.Float.Input(
                    "white_point",
                    default=1.0,
                    optional=True,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="Alpha from here on becomes 1: makes a body solid that shines through.",
                ),
                io.Int.Input(
                    "fill_holes_px",
                    default=0,
                    optional=True,
                    min=0,
                    max=10_000_000,
                    tooltip="Holes inside the subject of up to this area, in pixels, become solid. 0 fills none.",
                ),
                io.Int.Input(
                    "remove_specks_px",
                    default=0,
                    optional=True,
                    min=0,
                    max=10_000_000,
                    tooltip="Islands of up to this area, in pixels, disappear. 0 removes none.",
                ),
            ],
            outputs=[io.Mask.Output("alpha", tooltip="The adjusted matte.")],
        )

    @classmethod
    def execute(cls, alpha: Tensor, **settings) -> io.NodeOutput:
        options = EdgeOptions(**settings)
        alpha = masks(alpha)
        # Filled in place, here and below: a list of the frames and their stack would need twice the memory.
        adjusted = room_for(*alpha.shape)
        for index, tell in in_steps_of_parts(len(alpha)):
            adjusted[index] = adjust_edge(alpha[index], options, tell)
        return io.NodeOutput(adjusted, ui=show_alphas(adjusted))


class Trimap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_Trimap",
            display_name="Make Trimap",
            category=sockets.CATEGORY,
            description=(
                "Turns a mask or a matte into a trimap: 1 is surely subject, 0 surely background, 0.5 an unknown band "
                "that a matting method is to solve."
            ),
            search_aliases=["trimap", "unknown band", "trimap generator", "erode dilate"],
            has_intermediate_output=True,
            inputs=[
                io.Mask.Input("mask", tooltip="A hard mask or a matte."),
                io.Combo.Input(
                    "band",
                    options=["even", "adaptive"],
                    default="even",
                    optional=True,
                    tooltip=(
                        "even: the same width everywhere, along the mask's middle. adaptive: everything soft in the "
                        "matte is unknown, and the band is wide in hair and a quarter as wide along hard edges."
                    ),
                ),
                io.Float.Input(
                    "inner",
                    default=10.0,
                    optional=True,
                    min=0.0,
                    max=1000.0,
                    step=0.5,
                    tooltip="How far the band reaches into the subject.",
                ),
                io.Float.Input(
                    "outer",
                    default=10.0,
                    optional=True,
                    min=0.0,
                    max=1000.0,
                    step=0.5,
                    tooltip="How far the band reaches into the background.",
                ),
                io.Combo.Input(
                    "unit",
                    options=["pixels", "per cent"],
                    default="pixels",
                    optional=True,
                    tooltip="per cent: of the picture's longer side, so that one setting serves pictures of all sizes.",
                ),
            ],
            outputs=[io.Mask.Output("trimap", tooltip="1 subject, 0 background, 0.5 unknown.")],
        )

    @classmethod
    def execute(
        cls, mask: Tensor, band: str = "even", inner: float = 10.0, outer: float = 10.0, unit: str = "pixels"
    ) -> io.NodeOutput:
        mask = masks(mask)
        if unit == "per cent":
            inner, outer = (share / 100 * max(mask.shape[1:]) for share in (inner, outer))
        make = trimap_adaptive if band == "adaptive" else trimap_from_mask
        trimaps = room_for(*mask.shape)
        for index in in_steps(len(mask)):
            trimaps[index] = make(mask[index].float(), inner, outer)
        return io.NodeOutput(trimaps, ui=show_alphas(trimaps))


class RefineWithTrimap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_RefineWithTrimap",
            display_name="Refine with Trimap",
            category=sockets.CATEGORY,
            description=(
                "Solves the unknown band of a trimap from the picture's own pixels at full resolution, in tiles, by "
                "closed-form or KNN matting. No weights are needed; PyMatting is."
            ),
            search_aliases=["closed form matting", "knn matting", "trimap matting", "hair refinement", "pymatting"],
            has_intermediate_output=True,
            inputs=[
                io.Image.Input("image", tooltip="The picture."),
                io.Mask.Input("trimap", tooltip="From Make Trimap, or painted: 1 subject, 0 background, else unknown."),
                io.Combo.Input(
                    "method",
                    options=["closed-form", "knn"],
                    default="closed-form",
                    optional=True,
                    tooltip="closed-form: smooth, for hair and fur. knn: for holes, such as lace and leaves; slower.",
                ),
            ],
            outputs=[io.Mask.Output("alpha", tooltip="The matte; outside the unknown band it is the trimap.")],
        )

    @classmethod
    def execute(cls, image: Tensor, trimap: Tensor, method: str = "closed-form") -> io.NodeOutput:
        from ..mam_model.trimap_matting import TrimapError, solve_trimap

        image, trimap = pictures(image), masks(trimap)
        check_same_size(image, trimap, "trimap")
        count = pair_count(image=image, trimap=trimap)
        alphas = room_for(count, *trimap.shape[1:])
        for index in in_steps(count):
            try:
                alphas[index] = solve_trimap(
                    frame_of(image, index),
                    frame_of(trimap, index),
                    method=method,
                    before_tile=comfy.model_management.throw_exception_if_processing_interrupted,
                )
            except TrimapError as error:
                raise ValueError(f"Frame {index}: {error}" if count > 1 else str(error)) from None
        return io.NodeOutput(alphas, ui=show_alphas(alphas))


class ForegroundColor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_ForegroundColor",
            display_name="Foreground Color",
            category=sockets.CATEGORY,
            description=(
                "Works out the subject's own colour where the matte is soft, so that hair and glass lose the old "
                "background's colour. Also gives the background without the subject's colour."
            ),
            search_aliases=[
                "decontaminate",
                "despill",
                "remove halo",
                "color fringe",
                "foreground estimation",
                "defringe",
            ],
            has_intermediate_output=True,
            inputs=[
                io.Image.Input("image", tooltip="The picture as photographed."),
                io.Mask.Input("alpha", tooltip="Its matte, 1 = subject."),
                io.Image.Input(
                    "background",
                    optional=True,
                    tooltip="The same view without the subject, if you have it; the estimate is then much better.",
                ),
                io.Combo.Input(
                    "where_clear",
                    options=["estimated", "black", "neutral grey"],
                    default="estimated",
                    optional=True,
                    tooltip=(
                        "Colour where alpha is 0. estimated: the subject's colours go on, best for compositing and "
                        "resizing. black or neutral grey: nothing of the old picture stays; grey for relighting."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output("foreground", tooltip="The subject's own colours, straight, same size."),
                io.Image.Output("background", tooltip="The colours behind the subject, guessed where it covers them."),
            ],
        )

    @classmethod
    def execute(
        cls, image: Tensor, alpha: Tensor, background: Tensor | None = None, where_clear: str = "estimated"
    ) -> io.NodeOutput:
        from ..mam_model.foreground import CLEAR_COLORS, estimate_foreground, fill_where_clear, foreground_bytes

        image, alpha = pictures(image), masks(alpha)
        check_same_size(image, alpha, "alpha")
        batches = {"image": image, "alpha": alpha}
        if background is not None:
            batches["background"] = pictures(background)
            check_same_size(image, batches["background"], "background")

        def estimate(index: int, device: torch.device) -> tuple[Tensor, Tensor]:
            matte = frame_of(alpha, index).to(device, torch.float32).clamp(0, 1)
            known = frame_of(batches["background"], index).to(matte) if background is not None else None
            picture = frame_of(image, index).to(matte)
            subject, behind = estimate_foreground(picture, matte, known, return_background=True)
            if where_clear in CLEAR_COLORS:
                subject = fill_where_clear(subject, matte, CLEAR_COLORS[where_clear])
            return subject, behind

        count = pair_count(**batches)
        height, width = image.shape[1:3]
        # Of each pixel there are the colour, the alpha and the known background, in float32.
        memory_bytes = foreground_bytes(height, width) + 28 * height * width
        foregrounds, backgrounds = (room_for(count, *image.shape[1:]) for _ in range(2))
        for index in in_steps(count):
            for name in batches.keys() - {"alpha"}:
                check_frame(batches[name], index)
            foregrounds[index], backgrounds[index] = on_device_or_processor(
                partial(estimate, index), memory_bytes, "Foreground Color"
            )
        return io.NodeOutput(foregrounds, backgrounds, ui=show(foregrounds))


NODES = [EdgeAdjust, Trimap, RefineWithTrimap, ForegroundColor]
