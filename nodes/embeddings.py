"""Embeddings found again by what is in the picture, whichever node or workflow asks."""

from __future__ import annotations

import hashlib
import weakref

import comfy.model_management
from torch import Tensor

from ..mam_model.frame import Frame
from ..mam_model.matting import check_picture
from ..mam_model.sam import Embedding
from .models import SharedSam


class PictureEmbedding(list):
    """The embedding of one picture, in the form that ComfyUI's RAM cache can size: a list of CPU tensors.

    Attributes:
        frame: how the picture lies in SAM's square.
    """

    __slots__ = ("frame", "__weakref__")

    def __init__(self, embedding: Embedding):
        super().__init__((embedding.features.cpu(), embedding.content))
        self.frame = embedding.frame

    @property
    def embedding(self) -> Embedding:
        features, content = self
        return Embedding(features, content, self.frame)


class Embeddings(list):
    """What MAM_EMBEDDING carries: one PictureEmbedding per frame, and the SAM that made them.

    Attributes:
        sam_file: of which SAM; the decoder needs features of the encoder that it was trained with.
    """

    __slots__ = ("sam_file", "__weakref__")

    def __init__(self, pictures: list[PictureEmbedding], sam_file: tuple):
        super().__init__(pictures)
        self.sam_file = sam_file


# Holds nothing alive: that is for ComfyUI's output cache and for SharedSam.recent_embeddings.
_known: weakref.WeakValueDictionary[tuple, PictureEmbedding] = weakref.WeakValueDictionary()


def embedding_of(image: Tensor, sam: SharedSam) -> PictureEmbedding:
    """The embedding of a picture: the one that is in memory, or a new one.

    Args:
        image: float [H, W, 3].
    Raises:
        ValueError: when it is not a picture; see `check_picture`.
    """
    check_picture(image)
    frame = Frame(image.shape[0], image.shape[1], sam.network.config.image_size)
    content = frame.shrink(image)
    # Two pictures that look the same to the encoder share an embedding if they also have the same size.
    key = (sam.file, sam.dtype, frame, hashlib.blake2b(content.numpy().data, digest_size=16).digest())
    picture = _known.get(key)
    if picture is None:
        sam.load(sam.encoding_bytes)
        picture = _known[key] = PictureEmbedding(
            sam.network.encode_content(content, frame, comfy.model_management.throw_exception_if_processing_interrupted)
        )
    if all(recent is not picture for recent in sam.recent_embeddings):
        sam.recent_embeddings.append(picture)
    return picture
