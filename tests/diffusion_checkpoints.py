"""Small diffusion models in the published single-file layouts, and a decoder of In-Context Matting for one of them.

All weights are random and seeded.

ComfyUI's Load Checkpoint takes them for what they imitate, Stable Diffusion 2.1, or 1.5 and its kin: the UNet has the
blocks, transformers and heads of the real one, but 320 channels at every level. Two parts differ for the sake of time
and disk. The autoencoder is the tiny one of the same latents that ComfyUI also reads (TAESD). The text encoder has to
have its full size, because ComfyUI builds no other; all of its layers but the first are zero, which passes the text
through, and lie in the file as holes, so that 940 MB of file (2.1) take about 260 MB of disk.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import checkpoints
import torch

TEXT_CHANNELS = 1024
_TEXT_LAYERS = 24
CLIP_L_CHANNELS = 768
_CLIP_L_LAYERS = 12
_VOCABULARY = 49408
# The start token, the end token and the padding of an empty prompt.
_TOKENS_OF_NO_TEXT = (49406, 49407, 0)


@dataclass(frozen=True)
class Weight:
    """One tensor of the file: normally distributed, or a hole when mean and deviation are 0."""

    shape: tuple[int, ...]
    mean: float = 0.0
    deviation: float = 0.0


def save_diffusion_checkpoint(path: Path, *, seed: int = 0, v_prediction: bool = True) -> Path:
    """Writes UNet, autoencoder and text encoder of Stable Diffusion 2.1 as one float16 .safetensors file.

    Args:
        v_prediction: as the 768-pixel model of 2.1; False imitates the 512-pixel base model, which predicts noise.
    """
    weights = {
        **_prefixed("model.diffusion_model", unet_weights(v_prediction=v_prediction)),
        **_prefixed("first_stage_model", _autoencoder_weights()),
        **_prefixed("cond_stage_model.model", _text_encoder_weights()),
    }
    return _save(path, weights, seed)


def save_stable_diffusion_1_checkpoint(path: Path, *, in_channels: int = 4, seed: int = 0) -> Path:
    """Writes the same of Stable Diffusion 1.5, which loads faster, because its text encoder is a third of the size.

    Args:
        in_channels: 4; or 8 for InstructPix2Pix, which also sees the latents of a picture; or 9 for an inpainting
            model, which also sees a mask and the masked picture.
    """
    unet = unet_weights(context=CLIP_L_CHANNELS, in_channels=in_channels, linear=False, v_prediction=False)
    weights = {
        **_prefixed("model.diffusion_model", unet),
        **_prefixed("first_stage_model", _autoencoder_weights()),
        **_prefixed("cond_stage_model.transformer.text_model", _clip_l_weights()),
    }
    return _save(path, weights, seed)


def _save(path: Path, weights: dict[str, Weight], seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, weights, torch.Generator().manual_seed(seed))
    return path


def save_in_context_decoder(path: Path, *, seed: int = 0) -> Path:
    """Writes a decoder for pictures of 256 pixels and the small UNet's features, in the published checkpoint's form."""
    torch.save({"state_dict": in_context_decoder_weights(seed=seed)}, path)
    return path


def in_context_decoder_weights(feature_channels: int = 320, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """The 89 published entries. Its alphas are blots that use the whole range from 0 to 1."""
    decoder, taps = checkpoints.library("in_context.decoder"), checkpoints.library("in_context.taps")
    config = decoder.DecoderConfig(feature_channels, 8, 16, 32, (32, 24, 16, 12))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = decoder.InContextDecoder(config).train()
        with torch.no_grad():
            # Large blots instead of noise, so that a trimap finds a sure subject: the picture's detail is left out.
            for block, channels in zip(network.detail_decoder.fusion_blks, (192, 96, 48, 3)):
                block.conv.conv.weight[:, :channels] = 0
            # Settles the means and variances of the batch normalisation.
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = None
            for _ in range(8):
                seen = taps.Taps(
                    torch.randn(2, feature_channels, 16, 16),
                    torch.randn(2, feature_channels, 8, 8),
                    torch.randn(2, 256, 256).softmax(-1),
                    torch.randn(2, 64, 64).softmax(-1),
                )
                network.matte(seen, torch.rand(2, 256, 256, 3), [torch.randn(9, feature_channels)])
            last = network.detail_decoder.matting_head.matting_convs[3]
            last.weight.mul_(20)
            last.bias.add_(10)
        return {f"in_context_decoder.{key}": value.clone() for key, value in network.state_dict().items()}


def unet_weights(
    channels: tuple[int, ...] = (320, 320, 320, 320),
    context: int = TEXT_CHANNELS,
    *,
    in_channels: int = 4,
    linear: bool = True,
    v_prediction: bool = True,
) -> dict[str, Weight]:
    """Names and shapes of a UNet in the ldm layout: two residual blocks a level, transformers on all but the last.

    Args:
        channels: of each level. (320, 640, 1280, 1280) are the real ones.
        context: channels of the text encoder: 1024 for Stable Diffusion 2, 768 for 1.
        in_channels: 4 of the noisy latents, and those of what else the model sees.
        linear: projections around a transformer are linear layers (2) instead of 1 x 1 convolutions (1).
        v_prediction: ComfyUI tells the 768-pixel model from the 512-pixel one by the spread of one bias.
    """
    first, emb = channels[0], 4 * channels[0]
    spread = 0.2 if v_prediction else 0.0
    weights = {
        **_layer("time_embed.0", emb, first),
        **_layer("time_embed.2", emb, emb),
        **_layer("input_blocks.0.0", first, in_channels, 3, 3),
    }
    skips, width, number = [first], first, 1
    for level, level_channels in enumerate(channels):
        for _ in range(2):
            weights |= _residual_block(f"input_blocks.{number}.0", width, level_channels, emb)
            width = level_channels
            if level < len(channels) - 1:
                weights |= _transformer(f"input_blocks.{number}.1", width, context, linear, spread)
            skips.append(width)
            number += 1
        if level < len(channels) - 1:
            weights |= _layer(f"input_blocks.{number}.0.op", width, width, 3, 3)
            skips.append(width)
            number += 1
    weights |= _residual_block("middle_block.0", width, width, emb)
    weights |= _transformer("middle_block.1", width, context, linear, spread)
    weights |= _residual_block("middle_block.2", width, width, emb)
    number = 0
    for level, level_channels in reversed(list(enumerate(channels))):
        for index in range(3):
            weights |= _residual_block(f"output_blocks.{number}.0", width + skips.pop(), level_channels, emb)
            width, part = level_channels, 1
            if level < len(channels) - 1:
                weights |= _transformer(f"output_blocks.{number}.1", width, context, linear, spread)
                part = 2
            if level and index == 2:
                weights |= _layer(f"output_blocks.{number}.{part}.conv", width, width, 3, 3)
            number += 1
    return {**weights, **_norm("out.0", width), **_layer("out.2", 4, width, 3, 3)}


def _layer(name: str, *shape: int, bias: bool = True, gain: float = 1.0) -> dict[str, Weight]:
    weights = {f"{name}.weight": Weight(shape, deviation=gain / math.sqrt(math.prod(shape[1:])))}
    return {**weights, f"{name}.bias": Weight(shape[:1], deviation=0.05)} if bias else weights


def _norm(name: str, channels: int, spread: float = 0.0) -> dict[str, Weight]:
    return {f"{name}.weight": Weight((channels,), mean=1.0), f"{name}.bias": Weight((channels,), deviation=spread)}


def _residual_block(name: str, width_in: int, width: int, emb: int) -> dict[str, Weight]:
    weights = {
        **_norm(f"{name}.in_layers.0", width_in),
        **_layer(f"{name}.in_layers.2", width, width_in, 3, 3),
        **_layer(f"{name}.emb_layers.1", width, emb),
        **_norm(f"{name}.out_layers.0", width),
        **_layer(f"{name}.out_layers.3", width, width, 3, 3),
    }
    return weights if width_in == width else {**weights, **_layer(f"{name}.skip_connection", width, width_in, 1, 1)}


def _transformer(name: str, width: int, context: int, linear: bool, spread: float) -> dict[str, Weight]:
    square = (width, width) if linear else (width, width, 1, 1)
    block = f"{name}.transformer_blocks.0"
    weights = {**_norm(f"{name}.norm", width), **_layer(f"{name}.proj_in", *square)}
    for attention, source in (("attn1", width), ("attn2", context)):
        for part, width_in in (("to_q", width), ("to_k", source), ("to_v", source)):
            # Queries and keys of more than unit length, so that attention prefers some places to others.
            gain = 1.0 if part == "to_v" else 1.5
            weights |= _layer(f"{block}.{attention}.{part}", width, width_in, bias=False, gain=gain)
        weights |= _layer(f"{block}.{attention}.to_out.0", width, width)
    for number in (1, 2, 3):
        weights |= _norm(f"{block}.norm{number}", width, spread)
    return {
        **weights,
        **_layer(f"{block}.ff.net.0.proj", 8 * width, width),
        **_layer(f"{block}.ff.net.2", width, 4 * width),
        **_layer(f"{name}.proj_out", *square),
    }


def _autoencoder_weights() -> dict[str, Weight]:
    """ComfyUI's TAESD: latents of 4 channels, 8 times smaller than the picture."""
    encoder = {0: 3, 2: 64, 6: 64, 10: 64}
    decoder = {1: 4, 7: 64, 12: 64, 17: 64, 19: 64}
    # What ComfyUI multiplies latents of Stable Diffusion with; the tiny autoencoder divides by it beforehand.
    weights = {"vae_scale": Weight((), mean=0.18215), "vae_shift": Weight(())}
    for number, width_in in encoder.items():
        weights |= _layer(f"taesd_encoder.{number}", 64, width_in, 3, 3, bias=number == 0)
    # Latents of about unit variance, as those of real weights.
    weights |= _layer("taesd_encoder.14", 4, 64, 3, 3, gain=9.0)
    for number, width_in in decoder.items():
        weights |= _layer(f"taesd_decoder.{number}", 3 if number == 19 else 64, width_in, 3, 3, bias=number in (1, 19))
    for half, blocks in (
        ("encoder", (1, 3, 4, 5, 7, 8, 9, 11, 12, 13)),
        ("decoder", (3, 4, 5, 8, 9, 10, 13, 14, 15, 18)),
    ):
        for number in blocks:
            for part in (0, 2, 4):
                weights |= _layer(f"taesd_{half}.{number}.conv.{part}", 64, 64, 3, 3, gain=0.7)
    return weights


def _text_encoder_weights() -> dict[str, Weight]:
    """OpenCLIP ViT-H's text tower in its own names; only the first layer and the tokens of "" are not zero."""
    width = TEXT_CHANNELS
    weights = {
        "token_embedding.weight": Weight((_VOCABULARY, width)),
        "positional_embedding": Weight((77, width), deviation=0.3),
        "text_projection": Weight((width, width)),
        **_norm("ln_final", width),
    }
    for number in range(_TEXT_LAYERS):
        name = f"transformer.resblocks.{number}"
        layers = {
            **_norm(f"{name}.ln_1", width),
            **_layer(f"{name}.attn.in_proj", 3 * width, width),
            **_layer(f"{name}.attn.out_proj", width, width),
            **_norm(f"{name}.ln_2", width),
            **_layer(f"{name}.mlp.c_fc", 4 * width, width),
            **_layer(f"{name}.mlp.c_proj", width, 4 * width),
        }
        layers[f"{name}.attn.in_proj_weight"] = layers.pop(f"{name}.attn.in_proj.weight")
        layers[f"{name}.attn.in_proj_bias"] = layers.pop(f"{name}.attn.in_proj.bias")
        weights |= {key: weight if number == 0 else Weight(weight.shape) for key, weight in layers.items()}
    return weights


def _clip_l_weights() -> dict[str, Weight]:
    """CLIP ViT-L's text tower in the names of transformers; only the first layer and the tokens of "" are not zero."""
    width = CLIP_L_CHANNELS
    weights = {
        "embeddings.token_embedding.weight": Weight((_VOCABULARY, width)),
        "embeddings.position_embedding.weight": Weight((77, width), deviation=0.3),
        **_norm("final_layer_norm", width),
    }
    for number in range(_CLIP_L_LAYERS):
        name = f"encoder.layers.{number}"
        layers = {
            **_norm(f"{name}.layer_norm1", width),
            **_norm(f"{name}.layer_norm2", width),
            **_layer(f"{name}.mlp.fc1", 4 * width, width),
            **_layer(f"{name}.mlp.fc2", width, 4 * width),
        }
        for part in ("q", "k", "v", "out"):
            layers |= _layer(f"{name}.self_attn.{part}_proj", width, width)
        weights |= {key: weight if number == 0 else Weight(weight.shape) for key, weight in layers.items()}
    return weights


def _prefixed(prefix: str, weights: dict[str, Weight]) -> dict[str, Weight]:
    return {f"{prefix}.{name}": weight for name, weight in weights.items()}


def _write(path: Path, weights: dict[str, Weight], generator: torch.Generator) -> None:
    """The safetensors format by hand, because its library writes zeros as bytes where a hole takes no room."""
    header, end = {}, 0
    for name, weight in weights.items():
        begin, end = end, end + 2 * math.prod(weight.shape)
        header[name] = {"dtype": "F16", "shape": weight.shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        for name, weight in weights.items():
            file.seek(start + header[name]["data_offsets"][0])
            if name.endswith("token_embedding.weight"):
                for token in _TOKENS_OF_NO_TEXT:
                    file.seek(start + header[name]["data_offsets"][0] + 2 * token * weight.shape[1])
                    file.write(_bytes(Weight(weight.shape[1:], deviation=0.5), generator))
            elif weight.mean or weight.deviation:
                file.write(_bytes(weight, generator))
        file.truncate(start + end)


def _bytes(weight: Weight, generator: torch.Generator) -> bytes:
    values = torch.randn(weight.shape, generator=generator) * weight.deviation + weight.mean
    return values.half().numpy().tobytes()
