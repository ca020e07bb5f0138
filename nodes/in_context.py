"""In-Context Matting: one picture with its subject marked cuts out the same subject in any number of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..mam_model import view
from ..mam_model.in_context.fit import Fit
from ..mam_model.in_context.matching import Match, Networks, match, take_reference
from ..mam_model.in_context.reference import DEFAULT_REACH, MaskIs, Reference
from ..mam_model.instances import Instances, describe
from ..mam_model.picture import check_picture
from ..mam_model.prompt import Prompt, PromptError, PromptSet
from . import sockets
from .batch import as_output, check_same_size, frame_of, in_steps, masks, pair_count, pictures, room_for
from .diffusion_backbone import DiffusionBackbone
from .models import (
    IN_CONTEXT_FOLDER,
    SharedInContextDecoder,
    check_choice,
    file_choices,
    file_fingerprint,
    shared_in_context_decoder,
    with_fewer,
)
from .previews import show, show_alphas


@dataclass(frozen=True, eq=False)
class InContextModel:
    """What ICM_MODEL carries: a diffusion model and the decoder for its features.

    Attributes:
        backbone: Stable Diffusion 2.1 as some loader of ComfyUI gave it.
        decoder: in ComfyUI's memory management.
    """

    backbone: DiffusionBackbone
    decoder: SharedInContextDecoder

    @property
    def patcher(self) -> ModelPatcher:
        """By this ComfyUI recognises a model among the outputs that it caches."""
        return self.decoder.patcher

    def get_models(self) -> list[ModelPatcher]:
        """By this ComfyUI learns which further models an output needs."""
        return [self.backbone.model, self.backbone.vae.patcher]

    @property
    def identity(self) -> tuple:
        """Equal for models that understand each other's references."""
        return self.decoder.file, *self.backbone.identity

    @property
    def networks(self) -> Networks:
        """The three networks as the library calls them, each brought to its device when its turn comes."""
        return Networks(self.decoder.network.config.side, self.backbone.encode, self.backbone.run, self._decode)

    def load(self, pictures: int, ensemble: int) -> None:
        """Brings all three networks to the device at once where there is room, so that none evicts another.

        Args:
            pictures: how many go through the UNet together.
            ensemble: copies of each.
        """
        side = self.decoder.network.config.latent_side
        needed = max(
            self.backbone.running_bytes(pictures * ensemble, 4, side, side), self.decoder.decoding_bytes(pictures)
        )
        # First and whole: what ComfyUI has brought in part, for want of room, it never completes.
        self.decoder.load(0)
        models = [self.backbone.model, self.backbone.vae.patcher, self.decoder.patcher]
        comfy.model_management.load_models_gpu(models, memory_required=needed)

    def match(self, reference: Reference, targets: Tensor) -> list[Match]:
        """What `match` finds in pictures [N, H, W, 3]; fewer go through the networks together if the memory is full."""

        def found(at_once: int) -> list[Match]:
            steps = range(0, len(targets), at_once)
            return [one for start in steps for one in match(self.networks, reference, targets[start : start + at_once])]

        return with_fewer(found, len(targets), "In-Context Matting")

    def _decode(self, taps, squares: Tensor, tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        self.decoder.load(self.decoder.decoding_bytes(len(squares)))
        return self.decoder.within_memory(lambda _: self.decoder.network.matte(taps, squares, tokens), at_once=1)


class SharedReference(list):
    """What ICM_REFERENCE carries, in a form that ComfyUI's RAM cache can size: the tokens of each picture.

    Attributes:
        reference: tokens, and how they were made: targets are treated alike.
        label: what the subject is called; may be empty.
        model: identity of the model that made it; the tokens mean nothing to another one.
    """

    __slots__ = ("label", "model", "reference")

    def __init__(self, reference: Reference, label: str, model: tuple):
        super().__init__(reference.tokens)
        self.reference = reference
        self.label = label
        self.model = model


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ICM_LoadModel",
            display_name="Load In-Context Matting",
            category=sockets.CATEGORY,
            description=(
                "Puts Stable Diffusion 2.1 and the decoder of In-Context Matting together. One picture with its "
                "subject marked then cuts out the same subject, or others of its kind, in any number of pictures."
            ),
            search_aliases=["in-context matting", "iconmatting", "icm loader", "reference matting", "matting model"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "Stable Diffusion 2.1, the 768-pixel model (v2-1_768-ema-pruned.safetensors), from Load "
                        "Checkpoint. Another model is refused: it would fit and give meaningless mattes."
                    ),
                ),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint. It reads an empty text, once."),
                io.Combo.Input(
                    "decoder_name",
                    options=file_choices(IN_CONTEXT_FOLDER),
                    tooltip=(
                        "The authors' checkpoint, a file in models/in_context_matting. It cannot be downloaded by a "
                        "program; the help page says where it is."
                    ),
                ),
            ],
            outputs=[
                sockets.InContextModel.Output(
                    "icm_model",
                    display_name="ICM model",
                    tooltip="For In-Context Reference and In-Context Matting.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, decoder_name: str | None = None) -> bool | str:
        return check_choice(decoder_name, IN_CONTEXT_FOLDER)

    @classmethod
    def fingerprint_inputs(cls, decoder_name: str | None = None, **_linked) -> str:
        return file_fingerprint(decoder_name, IN_CONTEXT_FOLDER)

    @classmethod
    def execute(cls, model: ModelPatcher, vae: VAE, clip: CLIP, decoder_name: str) -> io.NodeOutput:
        decoder = shared_in_context_decoder(decoder_name)
        backbone = DiffusionBackbone.of(model, vae, clip, decoder.network.config)
        return io.NodeOutput(InContextModel(backbone, decoder))


class InContextReference(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ICM_Reference",
            display_name="In-Context Reference",
            category=sockets.CATEGORY,
            description=(
                "Remembers what a subject looks like, from one or more pictures in which a mask, points or strokes "
                "mark it. The preview shows the region that is really used. Made once, it serves any number of targets."
            ),
            search_aliases=["icm reference", "example picture", "reference image", "visual prompt", "in-context"],
            has_intermediate_output=True,
            inputs=[
                sockets.InContextModel.Input("icm_model", tooltip="From Load In-Context Matting."),
                io.Image.Input(
                    "image", tooltip="The reference picture, or a batch of several: what counts is what they share."
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The subject in each reference picture, at its size; 1 = subject. A good outline helps.",
                ),
                sockets.Prompt.Input(
                    "prompt",
                    optional=True,
                    tooltip="Points, strokes or a mask of any prompt node, instead of the mask or beside it.",
                ),
                io.Combo.Input(
                    "mask_is",
                    options=[meaning.value for meaning in MaskIs],
                    default=MaskIs.AREA.value,
                    optional=True,
                    tooltip=(
                        "area: the mask covers the whole subject. strokes: it only touches it, and the region grows "
                        "to the places that resemble it, as it does from points."
                    ),
                ),
                io.Combo.Input(
                    "fit",
                    options=[fit.value for fit in Fit],
                    default=Fit.PAD.value,
                    optional=True,
                    tooltip=(
                        "How a picture becomes the square of 768 pixels that the model sees. pad: all of it, with "
                        "borders. stretch: all of it, distorted. crop: only its middle. The targets are treated alike."
                    ),
                ),
                io.Int.Input(
                    "ensemble",
                    default=4,
                    min=1,
                    max=16,
                    optional=True,
                    tooltip=(
                        "How many noisy copies of each picture are averaged, here and in the targets. 4 is the "
                        "published setting; 1 takes about half the time."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    optional=True,
                    advanced=True,
                    control_after_generate=False,
                    tooltip="Seed of the noise, which is the same for the reference and for every target.",
                ),
                io.Int.Input(
                    "reach",
                    default=DEFAULT_REACH,
                    min=0,
                    max=2304,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "How far the region grows from points and strokes: each place of 16 pixels that they touch "
                        "adds this many others that it resembles most. 0 keeps to what they touch."
                    ),
                ),
            ],
            outputs=[
                sockets.InContextReference.Output(
                    "reference", tooltip="What to look for, for In-Context Matting with any number of pictures."
                ),
                io.Mask.Output(
                    "region",
                    tooltip="The region that is really used, in places of 16 pixels of the 768 that the model sees.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        icm_model: InContextModel,
        image: Tensor,
        mask: Tensor | None = None,
        prompt: PromptSet | None = None,
        mask_is: str = "area",
        fit: str = "pad",
        ensemble: int = 4,
        seed: int = 0,
        reach: int = DEFAULT_REACH,
    ) -> io.NodeOutput:
        image = pictures(image)
        subjects = _subjects(image, mask, prompt)
        references = [frame_of(image, index) for index in range(len(subjects))]
        icm_model.load(1, ensemble)
        networks, steps = icm_model.networks, in_steps(len(references))

        def encode(squares: Tensor) -> Tensor:
            # The reference pictures are taken one by one, and each step begins with the VAE.
            next(steps)
            return networks.encode(squares)

        reference = take_reference(
            replace(networks, encode=encode),
            references,
            subjects,
            fit=fit,
            ensemble=ensemble,
            seed=seed,
            mask_is=mask_is,
            reach=reach,
        )
        next(steps, None)
        regions = torch.stack(reference.regions)
        overlays = (view.tinted(picture.float().cpu(), region) for picture, region in zip(references, regions))
        label = next((subject.label for subject in subjects if subject.label), "")
        # The regions are the second output already.
        kept = SharedReference(replace(reference, regions=()), label, icm_model.identity)
        return io.NodeOutput(kept, as_output(regions), ui=show(overlays))


def _subjects(image: Tensor, mask: Tensor | None, prompt: PromptSet | None) -> list[Prompt]:
    """For each reference picture one prompt: all that mask and prompt say about it, as one subject."""
    if mask is None and prompt is None:
        raise PromptError("Connect a mask or a prompt: the reference needs to know what to look for.")
    batches = {"image": image}
    if prompt is not None:
        batches["prompt"] = prompt.frames
    if mask is not None:
        batches["mask"] = mask = masks(mask).float().cpu()
        if mask.any():
            check_same_size(image, mask)
    subjects = []
    for index in range(pair_count(**batches)):
        targets = frame_of(prompt.frames, index) if prompt is not None else ()
        # Load Image gives a blank mask of 64 x 64 pixels for a picture without transparency: it says nothing.
        if mask is not None and frame_of(mask, index).any():
            targets = (*targets, Prompt(mask=frame_of(mask, index)))
        subjects.append(reduce(Prompt.merged_with, targets, Prompt()))
    return subjects


class InContextMatting(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ICM_Match",
            display_name="In-Context Matting",
            category=sockets.CATEGORY,
            description=(
                "Finds what the reference shows in every picture of a batch and predicts its alpha. Made for many "
                "pictures of one subject or kind; the model sees 768 pixels, so refine the matte of a larger picture."
            ),
            search_aliases=["icm", "iconmatting", "match reference", "batch matting", "same subject", "cut out many"],
            has_intermediate_output=True,
            inputs=[
                sockets.InContextModel.Input("icm_model", tooltip="The model that the reference was made with."),
                sockets.InContextReference.Input("reference", tooltip="From In-Context Reference."),
                io.Image.Input("image", tooltip="The pictures to cut out, a batch of any length."),
                io.Int.Input(
                    "pictures_at_once",
                    default=1,
                    min=1,
                    max=16,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "How many pictures go through the model together, each with its ensemble. More is a little "
                        "faster on a large graphics card and takes more memory; the mattes stay the same."
                    ),
                ),
            ],
            outputs=[
                io.Mask.Output("alpha", tooltip="The matte, one per picture, at the picture's size. 1 = subject."),
                io.Mask.Output(
                    "similarity", tooltip="Where the model found what the reference shows, before the matte is drawn."
                ),
                sockets.Instances.Output(
                    "instances", tooltip="For each matte its frame, label and box, for the nodes that pick instances."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, icm_model: InContextModel, reference: SharedReference, image: Tensor, pictures_at_once: int = 1
    ) -> io.NodeOutput:
        image = pictures(image)
        if reference.model != icm_model.identity:
            raise ValueError(
                "The reference was made with another model. Connect one Load In-Context Matting to In-Context "
                "Reference and In-Context Matting."
            )
        icm_model.load(min(pictures_at_once, len(image)), reference.reference.ensemble)
        # Filled in place: a list of the frames and their stack would need twice the memory of the result.
        alphas, similarities = (room_for(*image.shape[:3]) for _ in range(2))
        entries = []
        chunks = range(0, len(image), pictures_at_once)
        for step in in_steps(len(chunks)):
            chunk = image[chunks[step] : chunks[step] + pictures_at_once]
            for picture in chunk:
                check_picture(picture)
            for frame, found in enumerate(icm_model.match(reference.reference, chunk), chunks[step]):
                alphas[frame], similarities[frame] = found.alpha, found.similarity
                entries += describe(frame, [Prompt(label=reference.label)], [1.0], found.alpha[None])
        index = Instances(tuple(entries), len(image))
        return io.NodeOutput(alphas, similarities, index, ui=show_alphas(alphas))


NODES = [LoadModel, InContextReference, InContextMatting]
