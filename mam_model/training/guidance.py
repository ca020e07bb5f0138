"""What the network is shown of a sample: SAM's features, the picture, and the mask that SAM makes of the prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..frame import Frame
from ..sam import Embedding, Sam
from .samples import Sample
from .saving import write_atomically


class FrozenSam:
    """SAM, which is not trained, and the folder in which its embeddings may be kept.

    Args:
        sam: on the device where it is to compute.
        cache: None to encode each picture anew. Kept embeddings are in half precision; one that was just made is
            rounded alike, so what is trained does not depend on what was kept.
    """

    def __init__(self, sam: Sam, cache: Path | None = None):
        self._sam = sam
        self._cache = cache
        self.frame = Frame(sam.config.image_size, sam.config.image_size, sam.config.image_size)
        # Embeddings of another SAM must not be taken for this one's.
        self._fingerprint = _fingerprint(sam) if cache else b""

    @torch.no_grad()
    def inputs(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
        """What `MaskToMatte` takes for N samples.

        Returns:
            features float32 [N, 256, side / 16, side / 16], pictures float32 [N, 3, side, side], normalised, and
            masks float32 [N, 1, side / 4, side / 4] of {0, 1}.
        """
        device = self._sam.prompt_encoder.no_mask_embed.weight.device
        shown = []
        for sample in samples:
            embedding = self._embedding(torch.from_numpy(sample.picture))
            mask = self._sam.decode(embedding, [sample.prompt]).network_mask
            picture = self.frame.network_input(embedding.content, device)
            shown.append((embedding.features.to(device), picture, mask))
        features, pictures, masks = (torch.cat(tensors) for tensors in zip(*shown))
        return features, pictures, masks

    def _embedding(self, content: Tensor) -> Embedding:
        if self._cache is None:
            return self._sam.encode_content(content, self.frame)
        name = hashlib.sha256(self._fingerprint + content.numpy().tobytes()).hexdigest()
        file = self._cache / name[:2] / f"{name}.safetensors"
        try:
            kept = safetensors.torch.load_file(file)["features"]
        except (OSError, KeyError, safetensors.SafetensorError):
            # A file holds them in one piece, so that they are used in one piece the first time, too.
            kept = self._sam.encode_content(content, self.frame).features.half().cpu().contiguous()
            write_atomically(file, safetensors.torch.save({"features": kept}))
        return Embedding(kept.float(), content, self.frame)


def _fingerprint(sam: Sam) -> bytes:
    """Tells image encoders apart, and the precisions in which they compute."""
    digest = hashlib.sha256()
    for name, tensor in sorted(sam.image_encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()
