"""The pack's ComfyUI nodes. `comfy_entrypoint` is what ComfyUI calls."""

from __future__ import annotations

import logging
from pathlib import Path

from comfy_api.v0_0_2 import ComfyExtension, io


class MattingExtension(ComfyExtension):
    """All nodes of the pack, family by family."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        try:
            from server import PromptServer

            from . import (
                compiling,
                compositing,
                edges,
                editor,
                everything,
                in_context,
                instances,
                loaders,
                matting,
                measuring,
                prompts,
                refining,
                routes,
                steps,
                text,
            )

            # Before the server listens; there is none when somebody runs ComfyUI's executor alone.
            routes.register(getattr(PromptServer, "instance", None), Path(__file__).parents[1].name)
        except Exception:
            # ComfyUI reports a pack that fails to load in one line without a traceback.
            logging.exception("Matting Anything could not be loaded.")
            raise
        families = (
            loaders,
            compiling,
            prompts,
            editor,
            text,
            steps,
            matting,
            everything,
            in_context,
            instances,
            edges,
            refining,
            compositing,
            measuring,
        )
        return [node for family in families for node in family.NODES]


async def comfy_entrypoint() -> MattingExtension:
    return MattingExtension()
