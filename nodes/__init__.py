"""The pack's ComfyUI nodes. `comfy_entrypoint` is what ComfyUI calls."""

from __future__ import annotations

import logging

from comfy_api.v0_0_2 import ComfyExtension, io


class MattingExtension(ComfyExtension):
    """All nodes of the pack, family by family."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        try:
            from . import compositing, edges, instances, loaders, matting, measuring, prompts, steps
        except Exception:
            # ComfyUI reports a pack that fails to load in one line without a traceback.
            logging.exception("Matting Anything could not be loaded.")
            raise
        families = (loaders, prompts, steps, matting, instances, edges, compositing, measuring)
        return [node for family in families for node in family.NODES]


async def comfy_entrypoint() -> MattingExtension:
    return MattingExtension()
