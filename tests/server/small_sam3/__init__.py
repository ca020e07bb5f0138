"""A node pack for the tests' server: one node that stands in for Load Checkpoint with SAM 3.1.

ComfyUI builds SAM 3.1 in its published size only (1.7 GB, about a minute a frame on two CPU cores), so no file makes a
small one. This node builds ComfyUI's own classes with fewer channels, for pictures of 224 instead of 1008 pixels, and
gives them seeded random weights: what it finds means nothing, but core's nodes for SAM3 run as they are.
"""

from __future__ import annotations

import comfy.ldm.sam3.sam
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.text_encoders.sam3_clip
import torch

SIDE_PX, PATCH_PX, CHANNELS = 224, 14, 32
NETWORK = {
    "image_model": "SAM31",
    "d_model": CHANNELS,
    "mem_dim": CHANNELS,
    "embed_dim": 64,
    "depth": 1,
    "global_att_blocks": (0,),
    "img_size": SIDE_PX,
    "num_queries": 8,
}
TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}


class SmallSAM3:
    CATEGORY = "tests"
    FUNCTION = "build"
    RETURN_TYPES = ("MODEL", "CLIP")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def build(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            comfy.text_encoders.sam3_clip.SAM3_CLIP_CONFIG.update(TEXT)
            config = comfy.supported_models.SAM31(NETWORK)
            config.set_inference_dtype(torch.float32, None)
            model = config.get_model({})
            _for_smaller_pictures(model.diffusion_model.tracker)
            clip = comfy.sd.CLIP(config.clip_target(), tokenizer_data={}, parameters=0)
            _randomise(model)
            _randomise(clip.cond_stage_model)
        device = comfy.model_management.get_torch_device()
        patcher = comfy.model_patcher.CoreModelPatcher(model, device, comfy.model_management.unet_offload_device())
        return patcher, clip


def _for_smaller_pictures(tracker) -> None:
    grid = SIDE_PX // PATCH_PX
    tracker.image_size = SIDE_PX
    tracker.interactive_sam_prompt_encoder.image_embedding_size = (grid, grid)
    tracker.interactive_sam_prompt_encoder.input_image_size = (SIDE_PX, SIDE_PX)
    tracker.maskmem_backbone.mask_downsampler.interpol_size = [16 * grid, 16 * grid]
    memory = tracker.transformer.encoder
    memory._rope = comfy.ldm.sam3.sam.rope_2d(grid, grid, CHANNELS // 8)


def _randomise(network: torch.nn.Module) -> None:
    for weight in network.parameters():
        deviation = 0.05 if weight.ndim < 2 else weight[0].numel() ** -0.5
        torch.nn.init.normal_(weight, std=deviation)


NODE_CLASS_MAPPINGS = {"SmallSAM3": SmallSAM3}
