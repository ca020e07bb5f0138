"""Embeddings found again by what is in the picture, whichever node or workflow asks."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..mam_model.frame import Frame
from ..mam_model.picture import check_picture
from .models import SharedModel, SharedSam, load_together

if TYPE_CHECKING:
    from ..mam_model.sam import Embedding


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
        from ..mam_model.sam import Embedding

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
    """The embedding of a picture: the one that is in memory, or a new one. Only inside a node's execute.

    Args:
        image: float [H, W, 3].
    Raises:
        ValueError: when it is not a picture; see `check_picture`.
    """
    return next(embeddings_of([image], sam))


def embeddings_of(
    images: Sequence[Tensor], sam: SharedSam, beside: Sequence[SharedModel] = ()
) -> Iterator[PictureEmbedding]:
    """`embedding_of` of each picture of a batch, in order. A GPU encodes the next few together, a processor in turn.

    Args:
        images: float [H, W, 3] each, of one size.
        beside: loaded networks that work on each picture next: bringing SAM back must not make them leave.
    """
    began = False
    for start in range(0, len(images), sam.pictures_at_once):
        keys, ready, unknown = [], [], {}
        for image in images[start : start + sam.pictures_at_once]:
            check_picture(image)
            frame = Frame(image.shape[0], image.shape[1], sam.network.config.image_size)
            content = frame.shrink(image)
            # Two pictures that look the same to the encoder share an embedding if they also have the same size.
            key = (sam.file, sam.dtype, frame, hashlib.blake2b(content.numpy().data, digest_size=16).digest())
            keys.append(key)
            ready.append(_known.get(key))
            if ready[-1] is None:
                unknown[key] = content
        if unknown:
            # A network that was too large for one of them goes on on the processor.
            if not (began and sam.on_processor):
                load_together([sam, *(model for model in beside if not model.on_processor)], sam.encoding_bytes)
            began = True
            made = dict(zip(unknown, map(PictureEmbedding, sam.encode(list(unknown.values()), frame))))
            _known.update(made)
            ready = [made.get(key, picture) for key, picture in zip(keys, ready)]
        for picture in ready:
            if all(recent is not picture for recent in sam.recent_embeddings):
                sam.recent_embeddings.append(picture)
            yield picture
