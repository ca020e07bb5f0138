"""Matting Anything from end to end: encode -> segment -> predict -> merge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .batched import matte_together
from .frame import Frame
from .m2m import AlphaPyramid, FoldedMaskToMatte, MaskToMatte, PictureFeatures
from .merge import PUBLISHED_MERGE, MergeOptions, merge, merge_scales, merges_in_arrays, reach, reach_of_box
from .partial import PartialPyramid
from .picture import check_picture
from .prompt import Prompt
from .sam import Embedding, Guidance, Sam
from .scribble import with_certain_strokes


class MattingAnything:
    """SAM and Mask-to-Matte, and the four steps between a picture and its mattes.

    Each step's result can be looked at and handed to the next one changed:

        matting = MattingAnything.from_files("sam_vit_b_01ec64.pth", "mam_vitb.pth")
        embedding = matting.embed(image)                       # once per picture
        guidance = matting.segment(embedding, prompts)         # T targets, three candidates each
        pyramid = matting.predict(embedding, guidance)         # alpha at three scales
        alphas = matting.merge(pyramid, guidance)              # [T, H, W]

    The last two in one compute only what is seen in the mattes, and a kept picture is quick for target after target:

        picture = matting.m2m.look_at(embedding)
        alphas = matting.matte_targets(picture, guidance)
    """

    def __init__(self, sam: Sam, m2m: MaskToMatte | FoldedMaskToMatte):
        self.sam = sam
        self.m2m = m2m.fold() if isinstance(m2m, MaskToMatte) else m2m

    @classmethod
    def from_files(cls, sam_path: str | Path, m2m_path: str | Path, device: str = "cpu") -> MattingAnything:
        """Loads both networks from their published or converted files.

        Raises:
            CheckpointError: when a file is not what it should be; it says what it is instead.
        """
        from .checkpoint import load_m2m, load_sam

        return cls(load_sam(sam_path).to(device), load_m2m(m2m_path).fold().to(device))

    @torch.inference_mode()
    def embed(self, image: Tensor) -> Embedding:
        """Runs SAM's image encoder on a picture, float [H, W, 3], sRGB 0..1."""
        check_picture(image)
        return self.sam.encode(image[..., :3])

    @torch.inference_mode()
    def segment(self, embedding: Embedding, prompts: Sequence[Prompt]) -> Guidance:
        """Finds the T targets that the prompts point at. See `Sam.decode`."""
        return self.sam.decode(embedding, prompts)

    @torch.inference_mode()
    def predict(self, embedding: Embedding, guidance: Guidance, targets_per_step: int = 1) -> AlphaPyramid:
        """Predicts alpha at three scales for every target. See `predict_pyramid`."""
        return predict_pyramid(self.m2m, embedding, guidance, targets_per_step)

    @torch.inference_mode()
    def merge(self, pyramid: AlphaPyramid, guidance: Guidance, options: MergeOptions = PUBLISHED_MERGE) -> Tensor:
        """Merges every target's pyramid. Returns float32 [T, H, W] on the CPU."""
        return merge_targets(pyramid, guidance, options)

    def matte(self, image: Tensor, prompts: Sequence[Prompt], options: MergeOptions = PUBLISHED_MERGE) -> Tensor:
        """From picture to mattes at once.

        Args:
            image: float [H, W, 3], sRGB 0..1; further channels are ignored.
            prompts: one per target, in pixels of the picture.
        Returns:
            float32 [T, H, W], 1 = target. An empty prompt gives an empty matte.
        """
        embedding = self.embed(image)
        guidance = self.segment(embedding, prompts)
        return self.matte_targets(embedding, guidance, options)

    def matte_targets(
        self, picture: Embedding | PictureFeatures, guidance: Guidance, options: MergeOptions = PUBLISHED_MERGE
    ) -> Tensor:
        """`predict` and `merge` in one, computing only what is seen in the mattes. See `matte_targets`."""
        return matte_targets(self.m2m, picture, guidance, options)


def predict_pyramid(
    m2m: FoldedMaskToMatte,
    embedding: Embedding,
    guidance: Guidance,
    targets_per_step: int = 1,
    device: torch.device | str | None = None,
    before_step: Callable[[], None] | None = None,
) -> AlphaPyramid:
    """Runs Mask-to-Matte for every target of a picture.

    Args:
        targets_per_step: how many targets go through the network together; memory grows with it, the result does not
            depend on it.
        device: where the pyramid is put together; None is the network's. Each target takes 12 MB at 1024 pixels.
        before_step: called before each step; what it raises (a cancelled run) ends the work.
    Returns:
        pyramid of T entries on that device, in the order of the targets.
    Raises:
        ValueError: when embedding and guidance are of pictures of different sizes, or for no target per step.
    """
    if targets_per_step < 1:
        raise ValueError(f"targets_per_step is at least 1, not {targets_per_step}.")
    weight = next(m2m.parameters())
    frame = embedding.frame
    _check_same_picture(frame, guidance.frame, (frame,))
    features = embedding.features.to(weight)
    image = frame.network_input(embedding.content, weight.device).to(weight.dtype)
    masks = guidance.network_mask.to(weight)
    shape = (len(guidance), 1, frame.side, frame.side)
    scales = tuple(torch.zeros(shape, device=device or weight.device) for _ in range(3))
    for start in range(0, len(guidance), targets_per_step):
        if before_step:
            before_step()
        part = slice(start, start + targets_per_step)
        count = len(masks[part])
        pyramid = m2m(features.expand(count, -1, -1, -1), image.expand(count, -1, -1, -1), masks[part])
        for whole, piece in zip(scales, (pyramid.os8, pyramid.os4, pyramid.os1)):
            whole[part] = piece
    return AlphaPyramid(*scales)


@torch.inference_mode()
def matte_targets(
    m2m: FoldedMaskToMatte,
    picture: Embedding | PictureFeatures,
    guidance: Guidance,
    options: MergeOptions = PUBLISHED_MERGE,
    targets_per_step: int | None = None,
    before_step: Callable[[], None] | None = None,
) -> Tensor:
    """Predicts and merges every target of a picture, computing only what is seen in the mattes.

    The result is that of `merge_targets(predict_pyramid(...))` up to rounding, which at single pixels can carry a value
    over a threshold of the merge. The time grows with the length of the target's edge, not with the picture; on a GPU
    with the rectangle around the target.

    Args:
        picture: what SAM knows of the picture; or what `m2m.look_at` made of it, which saves a part of the work for
            every target, and which a caller who will ask again keeps.
        guidance: for that picture, or `Guidance.at_content_size` of it.
        targets_per_step: on a GPU, how many targets that fill the picture may go together; see `matte_together`. A
            processor is fastest with one after the other.
        before_step: called before each target, or on a GPU before those that go together; what it raises (a cancelled
            run) ends the work.
    Returns:
        float32 [T, H, W] on the CPU in the size of the guidance's picture, 1 = target.
    Raises:
        ValueError: when picture and guidance are of pictures of different sizes.
    """
    _check_same_picture(picture.frame, guidance.frame, (picture.frame, picture.frame.at_content_size))
    weight = next(m2m.parameters())
    if merges_in_arrays(weight.device):
        return matte_in_turn(m2m, picture, guidance, options, before_step)
    if not isinstance(picture, PictureFeatures):
        picture = m2m.look_at(picture)
    return matte_together(m2m, picture.to(weight), guidance, options, targets_per_step, before_step)


def matte_in_turn(
    m2m: FoldedMaskToMatte,
    picture: Embedding | PictureFeatures,
    guidance: Guidance,
    options: MergeOptions,
    before_step: Callable[[], None] | None = None,
) -> Tensor:
    """`matte_targets` on a processor: one target after the other, each piece by piece."""
    frame = guidance.frame
    alphas = torch.zeros(len(guidance), frame.height, frame.width)
    for target, box in enumerate(guidance.mask_windows()):
        if box is None:
            continue
        if before_step:
            before_step()
        # The mask is drawn in its rectangle alone; a rectangle of pixels that turn out to be 0 costs time, no more.
        around = reach_of_box(box, frame.height, frame.width, options)
        mask = guidance.post_mask(target, around).cpu()
        within = reach(mask.numpy(), options)
        if within is None:
            continue
        if not isinstance(picture, PictureFeatures):
            picture = m2m.look_at(picture)
        picture = picture.to(next(m2m.parameters()))
        window = within.moved(around.top, around.left)
        pyramid = PartialPyramid(m2m, picture, guidance.network_mask[target : target + 1], frame, window)
        alpha = window.of(alphas[target])
        alpha[:] = within.of(mask)
        merge_scales(alpha.numpy(), pyramid.read, options)
        strokes = guidance.prompts[target].scribbles
        if strokes is not None:
            alphas[target] = with_certain_strokes(alphas[target], strokes)
    return alphas


def _check_same_picture(picture: Frame, guidance: Frame, allowed: Sequence[Frame]) -> None:
    if guidance not in allowed:
        raise ValueError(
            f"The embedding is of a picture of {picture.width} x {picture.height} pixels, the guidance of one of "
            f"{guidance.width} x {guidance.height}. Both have to come from one picture."
        )


def merge_targets(pyramid: AlphaPyramid, guidance: Guidance, options: MergeOptions = PUBLISHED_MERGE) -> Tensor:
    """Merges the pyramids of all targets of a picture. Returns float32 [T, H, W] on the CPU.

    Strokes on the subject and beside it, and so the sure parts of a trimap, are 1 and 0 in the matte too.
    """
    frame = guidance.frame
    alphas = torch.zeros(len(guidance), frame.height, frame.width)
    for target, prompt in enumerate(guidance.prompts):
        alpha = merge(pyramid[target : target + 1], guidance.post_mask(target), frame, options)
        # The bands in which finer scales replace the mask reach over what the user said.
        alphas[target] = alpha if prompt.scribbles is None else with_certain_strokes(alpha, prompt.scribbles)
    return alphas
