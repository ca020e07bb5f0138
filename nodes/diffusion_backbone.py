"""Stable Diffusion 2.1 as In-Context Matting uses it, from the MODEL, VAE and CLIP of any loader of ComfyUI."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.model_base
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from ..mam_model.in_context.errors import InContextError
from ..mam_model.in_context.taps import TIMESTEP, Capture
from ..mam_model.published import sources
from .diffusion_taps import tapping_options

if TYPE_CHECKING:
    from ..mam_model.in_context.decoder import DecoderConfig

_TEXT_CHANNELS = 1024
_LOAD_THIS = (
    "In-Context Matting was trained on the features of Stable Diffusion 2.1, the 768-pixel model, and any other gives "
    f"meaningless mattes. {sources('checkpoints')}"
)


class DiffusionBackbone:
    """UNet, autoencoder and the encoded empty prompt.

    Attributes:
        model: ComfyUI's handle on the UNet.
        vae: ComfyUI's autoencoder.
        context: float32 [1, 77, 1024] on the CPU, the empty prompt.
    """

    def __init__(self, model: ModelPatcher, vae: VAE, context: Tensor):
        self.model = model
        self.vae = vae
        self.context = context

    @classmethod
    def of(cls, model: ModelPatcher, vae: VAE, clip: CLIP, decoder: DecoderConfig) -> DiffusionBackbone:
        """Takes a diffusion model for a decoder, if it is the right one, and encodes the empty prompt.

        Raises:
            InContextError: saying what was loaded and what is needed. Shapes alone do not protect: Stable Diffusion
                1.5 fits the decoder and gives nonsense.
        """
        _check_unet(model, decoder)
        _check_autoencoder(vae)
        if clip is None:
            raise InContextError(f"The checkpoint holds no text encoder. {_LOAD_THIS}")
        context = clip.encode_from_tokens(clip.tokenize("")).float().cpu()
        if context.shape[-1] != _TEXT_CHANNELS:
            raise InContextError(
                f"This text encoder gives {context.shape[-1]} channels where Stable Diffusion 2.1 needs "
                f"{_TEXT_CHANNELS}. Connect MODEL, VAE and CLIP of the same Load Checkpoint."
            )
        return cls(model, vae, context)

    @property
    def identity(self) -> tuple:
        """Equal for two backbones that give the same features; a LoRA makes another one."""
        return id(self.model.model), self.model.patches_uuid

    def encode(self, squares: Tensor) -> Tensor:
        """Pictures -> latents as the UNet expects them.

        Args:
            squares: float [N, side, side, 3] in 0..1.
        Returns:
            float32 [N, 4, side / 8, side / 8]: the most likely latent, where training drew one at random.
        """
        return self.model.model.process_latent_in(self.vae.encode(squares)).float()

    def run(self, noisy: Tensor, capture: Capture) -> None:
        """One pass of the UNet with the empty prompt, up to the last value that `capture` wants.

        Args:
            noisy: float32 [N, 4, s, s], latents noised to step 200.
        """
        comfy.model_management.load_models_gpu([self.model], memory_required=self.running_bytes(*noisy.shape))
        device, dtype = self.model.load_device, self.model.model.get_dtype_inference()
        # The UNet itself and not apply_model: the sampling that a graph chose for its MODEL must not rescale latents.
        self.model.model.diffusion_model(
            noisy.to(device, dtype),
            torch.full((len(noisy),), float(TIMESTEP), device=device),
            context=self.context.to(device, dtype).expand(len(noisy), -1, -1),
            transformer_options=tapping_options(capture),
        )

    def running_bytes(self, count: int, channels: int, height: int, width: int) -> int:
        """What a pass needs beside the weights: the UNet's activations and the attention maps in float32."""
        tokens = height * width // 4
        # The sum of the fine grid and the coarse one (a sixteenth), and the heads that are added at a time.
        maps = count * 4 * tokens**2 * 17 // 16 + 3 * 64 * 1024**2
        return int(self.model.memory_required([count, channels, height, width])) + maps


def _check_unet(model: ModelPatcher, decoder: DecoderConfig) -> None:
    config = getattr(getattr(model.model, "model_config", None), "unet_config", {})
    what = _kind_of(config)
    if what is None and model.model.model_type == comfy.model_base.ModelType.EPS:
        # Of the same shape, but trained to predict noise at 512 pixels instead of v at 768: other features.
        what = "the 512-pixel base model of Stable Diffusion 2"
    if what is not None:
        raise InContextError(f"The checkpoint is {what}. {_LOAD_THIS}")
    channels = config["model_channels"] * config["channel_mult"][-1]
    if channels != decoder.feature_channels:
        raise InContextError(
            f"The decoder was trained on features of {decoder.feature_channels} channels and this diffusion model "
            f"gives {channels}. {_LOAD_THIS}"
        )


def _kind_of(config: dict) -> str | None:
    """What a UNet is, if it is not built like Stable Diffusion 2.1."""
    context, inputs = config.get("context_dim"), config.get("in_channels")
    if config.get("model_channels") != 320 or context not in (768, 1024, 1280, 2048):
        return "no Stable Diffusion 2.1"
    if context == 768:
        return "Stable Diffusion 1"
    if context != _TEXT_CHANNELS:
        return "Stable Diffusion XL"
    if inputs == 9:
        return "an inpainting model"
    if inputs != 4:
        return "a model that is guided by a second picture, such as depth"
    if config.get("adm_in_channels") is not None:
        return "an unCLIP model"
    if not config.get("use_linear_in_transformer") or config.get("use_temporal_attention"):
        return "no Stable Diffusion 2.1"
    return None


def _check_autoencoder(vae: VAE) -> None:
    if vae is None or getattr(vae, "first_stage_model", None) is None:
        raise InContextError(f"The checkpoint holds no VAE. {_LOAD_THIS}")
    if vae.latent_channels != 4 or vae.spacial_compression_encode() != 8:
        raise InContextError(
            f"This VAE makes latents of {vae.latent_channels} channels, {vae.spacial_compression_encode()} times "
            "smaller than the picture; Stable Diffusion 2.1 has 4 channels and is 8 times smaller. Connect MODEL, VAE "
            "and CLIP of the same Load Checkpoint."
        )
