"""Inner values of Stable Diffusion's UNet, taken through the patches of ComfyUI's transformer options."""

from __future__ import annotations

import comfy.model_management
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..mam_model.in_context.taps import Capture


def tapping_options(capture: Capture) -> dict:
    """transformer_options with which a UNet reports to `capture` and otherwise computes what it always does.

    They hold nothing else: the patches that a graph puts on its MODEL (FreeU, token merging, IP-Adapter) would change
    the features that the matting decoder was trained on.
    """

    def take_features(h: Tensor, skip: Tensor, options: dict) -> tuple[Tensor, Tensor]:
        # A pass over a large ensemble takes a while; a user who cancels need not wait for its end.
        comfy.model_management.throw_exception_if_processing_interrupted()
        capture.features(options["block"], h)
        return h, skip

    def take_attention(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        capture.attention(options["block"], q, k, options["n_heads"])
        return optimized_attention(q, k, v, options["n_heads"], attn_precision=options["attn_precision"])

    return {
        "patches": {"output_block_patch": [take_features]},
        "patches_replace": {"attn1": dict.fromkeys(capture.attention_blocks, take_attention)},
    }
