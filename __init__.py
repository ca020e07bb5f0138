"""Matting Anything for ComfyUI: the door through which ComfyUI takes the pack's nodes and web files."""

import importlib.util as _importlib_util

WEB_DIRECTORY = "./web"
__all__ = ["WEB_DIRECTORY"]

# There is no package when pytest collects this folder, and no comfy_api outside ComfyUI.
if __package__ and _importlib_util.find_spec("comfy_api") is not None:
    from .nodes import comfy_entrypoint  # noqa: F401 - ComfyUI looks for it here

    __all__.append("comfy_entrypoint")
