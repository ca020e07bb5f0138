"""SAM's image encoder through torch.compile, for those who want to try it on their graphics card."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from . import sockets
from .models import SharedSam


class CompileSAM(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_CompileSAM",
            display_name="Compile SAM",
            category=sockets.CATEGORY,
            description=(
                "Runs SAM's image encoder through torch.compile. The first picture waits for the compiler. Of no use "
                "on a CPU: 14 to 46 s of compiling once per session, then 1.15 to 1.25 times as long as without. On a "
                "graphics card it was not measured. Needs a C++ compiler and, on NVIDIA, Triton; without them SAM "
                "works as it does without this node."
            ),
            search_aliases=["torch compile", "torch.compile", "compile model", "sam compile", "inductor", "triton"],
            is_experimental=True,
            inputs=[
                sockets.Sam.Input(
                    "sam", tooltip="From Load SAM. It stays as it is for nodes that are connected to Load SAM itself."
                )
            ],
            outputs=[
                sockets.Sam.Output(
                    "sam",
                    display_name="SAM",
                    tooltip="The same SAM in memory; its encoder is compiled when it meets its first picture.",
                )
            ],
        )

    @classmethod
    def execute(cls, sam: SharedSam) -> io.NodeOutput:
        return io.NodeOutput(sam.compiling())


NODES = [CompileSAM]
