"""The socket types of the pack: what travels along its links. Their names are part of saved workflows."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

# models.SharedSam and models.SharedM2M: a network with the patcher that ComfyUI's memory management moves.
Sam = io.Custom("MAM_SAM")
M2M = io.Custom("MAM_M2M")

# text_detectors.SharedTextDetector, likewise.
TextDetector = io.Custom("MAM_TEXT_DETECTOR")

# mam_model.prompt.PromptSet: for every frame, or once for all, a prompt per target.
Prompt = io.Custom("MAM_PROMPT")

# embeddings.Embeddings: a list of one PictureEmbedding per frame.
Embedding = io.Custom("MAM_EMBEDDING")

# A list of one mam_model.sam.Guidance per frame.
Guidance = io.Custom("MAM_GUIDANCE")

# A list of one steps.FramePyramid per frame.
Alphas = io.Custom("MAM_ALPHAS")

# mam_model.instances.Instances: which matte belongs to which target of which frame.
Instances = io.Custom("MAM_INSTANCES")

# in_context.InContextModel: a diffusion model that was found fit, with the decoder that works on its features.
InContextModel = io.Custom("ICM_MODEL")

# in_context.SharedReference: what to look for, as features of one or more reference pictures.
InContextReference = io.Custom("ICM_REFERENCE")

# Boxes as core and other packs give them; dialects.py reads them all. io.BoundingBox.Input would put a default box of
# 512 x 512 into API prompts that leave it out.
AnyBoxes = io.Custom("BOUNDING_BOX,BBOX,BBOXES,BOX,SEGS")

CATEGORY = "image/matting"
