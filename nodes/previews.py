"""Pictures that a node shows of its own work, in ComfyUI's temp folder."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.v0_0_2 import io, ui
from torch import Tensor

from ..mam_model import view

# A long clip would spend more time on previews than on mattes.
MOST_FRAMES = 16
_LONGEST_SIDE_PX = 1024


def show(pictures: Iterable[Tensor]) -> dict:
    """The node's own picture view of the first pictures [h, w, 3]; the rest is not even made. Can be cancelled."""
    saved = []
    for picture in islice(pictures, MOST_FRAMES):
        throw_exception_if_processing_interrupted()
        small = view.reduced(picture.float().cpu(), _LONGEST_SIDE_PX)
        saved += ui.ImageSaveHelper.save_images(
            small[None], "mam_preview", io.FolderType.temp, cls=None, compress_level=1
        )
    return {"images": saved}


def show_alphas(alphas: Tensor) -> dict:
    """The same for mattes [B, H, W], in grey."""
    return show(view.grey(alpha) for alpha in alphas)
