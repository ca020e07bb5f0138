"""Nodes that put a subject and its matte to use, or on show."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..mam_model import view as looks
from ..mam_model.composite import (
    FIT_MODES,
    fit_picture,
    over,
    parse_color,
    place,
    premultiplied,
    solid_color,
    with_alpha,
)
from ..mam_model.composite import light_wrap as wrap_light
from ..mam_model.instances import Instance, Instances
from . import sockets
from .batch import as_output, check_frame, check_same_size, frame_of, in_steps, masks, pair_count, pictures, room_for
from .models import on_device_or_processor
from .previews import show


class Composite(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_Composite",
            display_name="Composite Matte",
            category=sockets.CATEGORY,
            description=(
                "Puts the matted subject over a colour or another picture, and gives the cut-out as RGBA with straight "
                "alpha. The old background's colour is taken out of hair and glass first."
            ),
            search_aliases=["replace background", "cutout", "rgba", "transparent png", "green screen", "green spill"],
            inputs=[
                io.Image.Input("image", tooltip="The picture the subject comes from."),
                io.Mask.Input("alpha", tooltip="Its matte, 1 = subject."),
                io.Image.Input(
                    "background",
                    optional=True,
                    tooltip="What to put behind the subject, one picture or one per frame. Without it, the colour.",
                ),
                io.Color.Input(
                    "color",
                    default="#00b140",
                    optional=True,
                    tooltip=(
                        "Colour behind the subject without a background, around one that does not fill, and through "
                        "one that is transparent."
                    ),
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FIT_MODES),
                    default="cover",
                    optional=True,
                    tooltip=(
                        "How a background of another size is fitted. cover: fills all, cut at the sides. contain: all "
                        "of it visible. stretch: proportions ignored. center: not scaled."
                    ),
                ),
                io.Combo.Input(
                    "edge_color",
                    options=["estimated", "as photographed"],
                    default="estimated",
                    optional=True,
                    tooltip=(
                        "estimated: the subject's own colour is worked out where the matte is soft, so that no rim of "
                        "the old background stays. as photographed: the picture's pixels unchanged."
                    ),
                ),
                io.Combo.Input(
                    "blend",
                    options=["sRGB", "linear light"],
                    default="sRGB",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "sRGB blends as most picture editors do. linear light blends as a lens would: better for "
                        "motion blur and bright backgrounds."
                    ),
                ),
                io.Combo.Input(
                    "canvas",
                    options=["image", "background"],
                    default="image",
                    optional=True,
                    tooltip=(
                        "Whose size the result has. image: the background is fitted to it. background: the subject is "
                        "placed on it, by x, y and scale."
                    ),
                    advanced=True,
                ),
                io.Float.Input(
                    "x",
                    default=0.5,
                    min=-2.0,
                    max=3.0,
                    step=0.01,
                    optional=True,
                    tooltip="With canvas background: where the image's middle lies, 0 = left side, 1 = right side.",
                    advanced=True,
                ),
                io.Float.Input(
                    "y",
                    default=0.5,
                    min=-2.0,
                    max=3.0,
                    step=0.01,
                    optional=True,
                    tooltip="With canvas background: where the image's middle lies, 0 = top, 1 = bottom.",
                    advanced=True,
                ),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=0.01,
                    max=16.0,
                    step=0.01,
                    optional=True,
                    tooltip="With canvas background: size of the subject as a factor on its own pixels.",
                    advanced=True,
                ),
                io.Float.Input(
                    "light_wrap",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="How much of the background's light spills over the edge, to seat it in the scene.",
                    advanced=True,
                ),
                io.Float.Input(
                    "light_wrap_px",
                    default=12.0,
                    min=1.0,
                    max=200.0,
                    step=0.5,
                    optional=True,
                    tooltip="How far that light reaches into the subject, in pixels.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "cutout_alpha",
                    options=["straight", "premultiplied"],
                    default="straight",
                    optional=True,
                    tooltip=(
                        "straight: what PNG and image editors expect. premultiplied: colours already multiplied by "
                        "alpha, for video tools that ask for it; as PNG it looks dark-edged."
                    ),
                    advanced=True,
                ),
            ],
            outputs=[
                io.Image.Output("composite", tooltip="The subject over the new background."),
                io.Image.Output(
                    "cutout", tooltip="RGBA with straight alpha, ready for Save Image; no mask inversion needed."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, color: str | None = "#00b140") -> bool | str:
        # None where another node will give it.
        if color is None:
            return True
        try:
            parse_color(color)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        image: Tensor,
        alpha: Tensor,
        background: Tensor | None = None,
        color: str = "#00b140",
        fit: str = "cover",
        edge_color: str = "estimated",
        blend: str = "sRGB",
        canvas: str = "image",
        x: float = 0.5,
        y: float = 0.5,
        scale: float = 1.0,
        light_wrap: float = 0.0,
        light_wrap_px: float = 12.0,
        cutout_alpha: str = "straight",
    ) -> io.NodeOutput:
        from ..mam_model.foreground import estimate_foreground

        image, alpha = pictures(image), masks(alpha)
        check_same_size(image, alpha, "alpha")
        batches = {"image": image, "alpha": alpha}
        if background is not None:
            pictures(background)
            # Another cut-out has colours where nothing of it is to be seen.
            batches["background"] = background[..., :4]
        elif canvas == "background":
            raise ValueError('Connect a background: with canvas "background" it gives the result its size.')
        height, width = batches[canvas].shape[1:3]
        plain = solid_color(color, height, width)
        count = pair_count(**batches)
        known = None

        def own_colors(picture: Tensor, matte: Tensor) -> Tensor:
            nonlocal known
            if known is not None:
                return known.to(matte)
            subject = estimate_foreground(picture, matte)
            if count > len(image) == len(alpha):
                # One subject before many backgrounds. Kept beside the picture, not on the device.
                known = subject.to(image.device)
            return subject

        def compose(index: int, device: torch.device) -> tuple[Tensor, Tensor]:
            matte = frame_of(alpha, index).to(device, torch.float32).clamp(0, 1)
            subject = frame_of(image, index).to(matte)
            if edge_color == "estimated":
                subject = own_colors(subject, matte)
            cutout = with_alpha(subject, matte)
            if canvas == "background":
                cutout = place(cutout, height, width, x, y, scale)
            if background is None:
                behind = plain.to(matte)
            else:
                # Without a name of its own: at its own size it is not needed any more once it is fitted.
                behind = fit_picture(
                    _opaque(frame_of(batches["background"], index).to(matte), color, blend == "linear light"),
                    height,
                    width,
                    fit,
                    parse_color(color),
                )
            subject, matte = cutout[..., :3], cutout[..., 3]
            composite = over(subject, matte, behind, linear_light=blend == "linear light")
            composite = wrap_light(composite, matte, behind, light_wrap_px, light_wrap)
            return composite, premultiplied(cutout) if cutout_alpha == "premultiplied" else cutout

        memory_bytes = _composing_bytes(
            image.shape[1:3],
            (height, width),
            batches["background"].shape[1:] if background is not None else (0, 0, 3),
            scale=scale if canvas == "background" else 0,
            estimates=edge_color == "estimated",
            linear_light=blend == "linear light",
            wrap_px=light_wrap_px if light_wrap else 0,
            premultiplies=cutout_alpha == "premultiplied",
        )
        # Filled in place: lists of the frames and their stacks would need twice the memory of the result.
        composites, cutouts = (room_for(count, height, width, channels) for channels in (3, 4))
        for index in in_steps(count):
            for name in batches.keys() - {"alpha"}:
                check_frame(batches[name], index)
            composites[index], cutouts[index] = on_device_or_processor(
                partial(compose, index), memory_bytes, "Composite"
            )
        return io.NodeOutput(composites, cutouts)


def _opaque(picture: Tensor, color: str, linear_light: bool) -> Tensor:
    """A background [H, W, 3 or 4] over the colour that shows where it is transparent, [H, W, 3]."""
    if picture.shape[-1] == 3:
        return picture
    colors, alpha = picture[..., :3], picture[..., 3].clamp(0, 1)
    return over(colors, alpha, picture.new_tensor(parse_color(color)), linear_light=linear_light)


def _composing_bytes(
    image: Sequence[int],
    canvas: Sequence[int],
    background: Sequence[int],
    *,
    scale: float,
    estimates: bool,
    linear_light: bool,
    wrap_px: float,
    premultiplies: bool,
) -> int:
    """What one frame takes at most on a GPU, its result among it.

    Counted were the tensors that live at once, step by step; the hungriest step decides.

    Args:
        image, canvas: height and width in pixels.
        background: the same with its channels; 0, 0 and 3 for none.
        scale: with which the subject is placed, or 0.
        estimates: whether the subject's own colours are worked out.
        linear_light: whether light is blended.
        wrap_px: how far the background's light reaches into the subject; 0 for no light wrap.
        premultiplies: whether the cut-out's colours are multiplied by alpha.
    """
    from ..mam_model.foreground import foreground_bytes

    image_px, canvas_px, background_px = (height * width for height, width, *_ in (image, canvas, background))
    placed_px = scale**2 * image_px
    estimating = foreground_bytes(*image) + 16 * image_px if estimates else 0
    # Matte, subject and cut-out. An estimated subject lies in one tensor with the estimated background.
    subject = (44 if estimates else 32) * image_px
    placing = subject + max(32 * image_px, 32 * placed_px, 16 * placed_px + 44 * canvas_px) if scale else 0
    placed = 16 * canvas_px if scale else 0
    covering = (95 if linear_light else 44) * background_px if background[2] > 3 else 0
    fitting = subject + placed + max(covering, 12 * background_px + 24 * canvas_px)
    # From here on there is the cut-out and what lies behind, which can be a part of the background that keeps it whole.
    both = 16 * canvas_px + 12 * max(canvas_px, background_px)
    blending = (75 if linear_light else 24) * canvas_px
    # Beside the picture that came out. The light is softened in a frame of its own, first widened, then heightened.
    wrapping = 64 * canvas_px + 36 * wrap_px * max(canvas) if wrap_px else 0
    multiplying = 40 * canvas_px if premultiplies else 0
    return int(max(estimating, placing, fitting, both + max(blending, wrapping, multiplying)))


_VIEWS = ["checker", "black", "white", "color", "alpha", "onion skin", "overlay", "side by side"]


class PreviewMatte(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_PreviewMatte",
            display_name="Preview Matte",
            category=sockets.CATEGORY,
            description="Shows a matte in the way that best reveals its faults, and passes the picture on.",
            search_aliases=["show mask", "checkerboard", "onion skin", "view alpha", "preview mask", "compare"],
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The picture the matte belongs to."),
                io.Mask.Input("alpha", tooltip="The matte, 1 = subject."),
                io.Combo.Input(
                    "view",
                    options=_VIEWS,
                    default="checker",
                    optional=True,
                    tooltip=(
                        "checker, black, white, color: the subject over that. alpha: the matte in grey. onion skin: "
                        "the surroundings faded. overlay: the subject tinted. side by side: photo, alpha, checker."
                    ),
                ),
                io.Color.Input(
                    "color",
                    default="#00b140",
                    optional=True,
                    tooltip="What the view named color puts behind the subject.",
                ),
                sockets.Instances.Input(
                    "instances",
                    optional=True,
                    tooltip="With instance_alphas as alpha: pairs each matte with its picture and captions it.",
                ),
                io.Combo.Input(
                    "layout",
                    options=["one by one", "contact sheet"],
                    default="one by one",
                    optional=True,
                    tooltip="contact sheet: all frames or instances in one picture, with captions.",
                    advanced=True,
                ),
            ],
            outputs=[io.Image.Output("preview", tooltip="What the node shows, for saving or comparing.")],
        )

    @classmethod
    def validate_inputs(cls, color: str | None = "#00b140") -> bool | str:
        return Composite.validate_inputs(color)

    @classmethod
    def execute(
        cls,
        image: Tensor,
        alpha: Tensor,
        view: str = "checker",
        color: str = "#00b140",
        instances: Instances | None = None,
        layout: str = "one by one",
    ) -> io.NodeOutput:
        image, alpha = pictures(image), masks(alpha)
        check_same_size(image, alpha, "alpha")
        if instances is not None:
            instances.check(alpha)
            pair_count(image=image, instances=range(instances.frame_count))
            frames = [entry.frame for entry in instances.entries]
            captions = [_caption(entry) for entry in instances.entries]
        else:
            frames = range(pair_count(image=image, alpha=alpha))
            captions = [f"frame {index}" for index in frames]

        def seen(index: int) -> Tensor:
            matte = frame_of(alpha, index).float().clamp(0, 1)
            return as_output(_seen(frame_of(image, frames[index]).to(matte), matte, view, color))

        views = (seen(index) for index in in_steps(len(frames)))
        if layout == "contact sheet":
            shown = as_output(looks.contact_sheet(views, captions))[None]
        else:
            shown = None
            for index, picture in enumerate(views):
                if shown is None:
                    # Filled in place: a list of the views and their stack would need twice the memory of the result.
                    shown = picture.new_empty(len(frames), *picture.shape)
                shown[index] = picture
        return io.NodeOutput(shown, ui=show(shown))


def _caption(entry: Instance) -> str:
    name = " ".join(part for part in (f"frame {entry.frame}, no. {entry.index}", entry.label) if part)
    return f"{name}, {entry.score:.2f}" if entry.found else f"{name}: not found"


def _seen(image: Tensor, alpha: Tensor, way: str, color: str) -> Tensor:
    if way == "checker":
        return looks.over_checker(image, alpha)
    if way in ("black", "white", "color"):
        return over(image, alpha, solid_color(color if way == "color" else way, *alpha.shape).to(image))
    if way == "alpha":
        return looks.grey(alpha)
    if way == "onion skin":
        return looks.onion_skin(image, alpha)
    if way == "overlay":
        return looks.tinted(image, alpha)
    return looks.side_by_side([image, looks.grey(alpha), looks.over_checker(image, alpha)])


NODES = [Composite, PreviewMatte]
