"""All fast paths at once, for each form of SAM: from picture to matte as segment-anything's networks, Mask-to-Matte as
it was trained, and merging over the whole picture give it.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn

from mam_model.batched import matte_together
from mam_model.frame import Frame
from mam_model.m2m import MaskToMatte
from mam_model.matting import matte_in_turn, merge_targets
from mam_model.merge import MergeOptions
from mam_model.prompt import Prompt
from mam_model.sam import Guidance, Sam, SamConfig
from tests.references import chain
from tests.references.hashed_weights import hashed_sam

HEIGHT, WIDTH = 210, 300
# The published forms in small: as many channels a head, 80 for ViT-H, and global attention in the last block.
FORMS = {
    "B": SamConfig(3, 128, 2, global_attention=(0, 2), image_size=256),
    "L": SamConfig(4, 192, 3, global_attention=(1, 3), image_size=256),
    "H": SamConfig(3, 160, 2, global_attention=(1, 2), image_size=256),
}
PROMPTS = [
    Prompt(points_px=((150.0, 100.0),), labels=(1,)),
    Prompt(points_px=((80.0, 120.0),), labels=(1,)),
    Prompt(points_px=((200.0, 60.0),), labels=(1,)),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with chain.single_thread(), torch.inference_mode():
        yield


class StockSam(nn.Module):
    """segment-anything's networks, put together as its build functions do."""

    def __init__(self, config: SamConfig):
        super().__init__()
        grid = config.image_size // config.patch_size
        self.image_encoder = ImageEncoderViT(
            img_size=config.image_size,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=config.window_size,
            global_attn_indexes=config.global_attention,
        )
        self.prompt_encoder = PromptEncoder(256, (grid, grid), (config.image_size, config.image_size), 16)
        self.mask_decoder = MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048))

    def answer(self, features: torch.Tensor, frame: Frame, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
        points = frame.points_to_network(torch.tensor([prompt.points_px]))
        sparse, dense = self.prompt_encoder((points, torch.tensor([prompt.labels])), None, None)
        positions = self.prompt_encoder.get_dense_pe()
        return self.mask_decoder(features, positions, sparse, dense, multimask_output=True)


def plain_mattes(stock: StockSam, m2m: MaskToMatte, image: torch.Tensor, side: int, options: MergeOptions):
    """Features, SAM's answers as guidance, and the mattes."""
    frame = Frame(HEIGHT, WIDTH, side)
    square = frame.network_input(frame.shrink(image))
    features = stock.image_encoder(square)
    logits, predicted_iou = zip(*(stock.answer(features, frame, prompt) for prompt in PROMPTS))
    predicted_iou = torch.cat(predicted_iou)
    guidance = Guidance(tuple(PROMPTS), torch.cat(logits), predicted_iou, predicted_iou.argmax(dim=1), frame)
    count = len(PROMPTS)
    pyramid = m2m(features.expand(count, -1, -1, -1), square.expand(count, -1, -1, -1), guidance.network_mask)
    return features, guidance, merge_targets(pyramid, guidance, options)


@pytest.mark.parametrize("form", FORMS)
def test_the_fast_chain_gives_the_mattes_of_the_plain_one(form):
    config, options = FORMS[form], MergeOptions("alpha", "two")
    stock = StockSam(config).eval()
    stock.load_state_dict(hashed_sam(stock.state_dict()))
    sam = Sam(config).eval()
    sam.load_state_dict(stock.state_dict())
    trained = chain.reference_m2m()
    image = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    features, theirs, plain = plain_mattes(stock, trained, image, config.image_size, options)

    embedding = sam.encode(image)
    guidance = sam.decode(embedding, PROMPTS)
    assert (embedding.features - features).abs().max() < 1e-5
    assert (guidance.logits - theirs.logits).abs().max() < 2e-5
    assert torch.equal(guidance.chosen, theirs.chosen)
    folded = trained.fold()
    picture = folded.look_at(embedding)
    together = sam.decode(embedding, PROMPTS, targets_per_step=3)
    mattes = matte_in_turn(folded, picture, guidance, options), matte_together(folded, picture, together, options, 3)
    assert 0.1 < plain.mean() < 0.9
    for alphas in mattes:
        # Measured 8e-6. Rounding can carry single pixels over a threshold of the merge.
        assert int(((alphas - plain).abs() > 2e-5).sum()) <= 1e-5 * plain.numel()
