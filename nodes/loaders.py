"""Loader nodes: a model file by name, from the model folders or downloaded and verified."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from . import sockets
from .models import (
    M2M_FOLDER,
    PRECISIONS,
    SAM_FOLDER,
    check_choice,
    file_choices,
    file_fingerprint,
    shared_m2m,
    shared_sam,
)

_PRECISION_TOOLTIP = (
    "auto takes half precision where the graphics card is fast at it, else fp32. fp32 is exact; fp16 and bf16 halve "
    "the memory and can change single pixels near an edge."
)


class LoadSAM(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_LoadSAM",
            display_name="Load SAM (Matting Anything)",
            category=sockets.CATEGORY,
            description=(
                "Loads a Segment Anything model (ViT-B, L or H) from models/sams. It finds the subject and supplies "
                "the features for the matte. Workflows that name the same file share one copy in memory."
            ),
            search_aliases=["segment anything", "sam loader", "matting model", "load matting anything"],
            inputs=[
                io.Combo.Input(
                    "sam_name",
                    options=file_choices(SAM_FOLDER),
                    tooltip=(
                        "A file in models/sams. A published file that is not there yet is downloaded when the node "
                        "runs and checked against its sha256: ViT-B 375 MB, ViT-L 1.2 GB, ViT-H 2.6 GB."
                    ),
                ),
                io.Combo.Input(
                    "precision",
                    options=PRECISIONS,
                    default="auto",
                    optional=True,
                    tooltip=_PRECISION_TOOLTIP,
                    advanced=True,
                ),
            ],
            outputs=[sockets.Sam.Output("sam", display_name="SAM", tooltip="The Segment Anything model.")],
        )

    @classmethod
    def validate_inputs(cls, sam_name: str | None = None) -> bool | str:
        return check_choice(sam_name, SAM_FOLDER)

    @classmethod
    def fingerprint_inputs(cls, sam_name: str | None = None, precision: str = "auto") -> str:
        return f"{file_fingerprint(sam_name, SAM_FOLDER)} {precision}"

    @classmethod
    def execute(cls, sam_name: str, precision: str = "auto") -> io.NodeOutput:
        return io.NodeOutput(shared_sam(sam_name, precision))


class LoadM2M(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_LoadM2M",
            display_name="Load Mask-to-Matte",
            category=sockets.CATEGORY,
            description=(
                "Loads the Mask-to-Matte network of Matting Anything from models/mam. It turns SAM's mask into a soft "
                "matte and belongs to one size of SAM: mam_vitb goes with SAM ViT-B, and so on."
            ),
            search_aliases=["m2m loader", "mam loader", "matting model", "load matting anything"],
            inputs=[
                io.Combo.Input(
                    "m2m_name",
                    options=file_choices(M2M_FOLDER),
                    tooltip=(
                        "A file in models/mam, trained for the SAM you load. mam_sam_vitb.pth (408 MB) is downloaded "
                        "when the node runs and checked against its sha256; the authors' other files have to be "
                        "downloaded by hand, and the node says where."
                    ),
                ),
                io.Combo.Input(
                    "precision",
                    options=PRECISIONS,
                    default="auto",
                    optional=True,
                    tooltip=_PRECISION_TOOLTIP,
                    advanced=True,
                ),
            ],
            outputs=[sockets.M2M.Output("m2m", display_name="M2M", tooltip="The Mask-to-Matte network.")],
        )

    @classmethod
    def validate_inputs(cls, m2m_name: str | None = None) -> bool | str:
        return check_choice(m2m_name, M2M_FOLDER)

    @classmethod
    def fingerprint_inputs(cls, m2m_name: str | None = None, precision: str = "auto") -> str:
        return f"{file_fingerprint(m2m_name, M2M_FOLDER)} {precision}"

    @classmethod
    def execute(cls, m2m_name: str, precision: str = "auto") -> io.NodeOutput:
        return io.NodeOutput(shared_m2m(m2m_name, precision))


NODES = [LoadSAM, LoadM2M]
