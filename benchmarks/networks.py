"""The networks that are measured, in their published sizes, and the published way from a picture to a matte."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mam_model.frame import Frame
from mam_model.m2m import MaskToMatte
from mam_model.merge import PUBLISHED_MERGE, os8_weight, unknown_area
from mam_model.sam import SAM_VIT_B, SAM_VIT_H, SAM_VIT_L, Sam, SamConfig
from tests.references import chain

CONFIGS = {"b": SAM_VIT_B, "l": SAM_VIT_L, "h": SAM_VIT_H}
# Rows and columns of SAM's 64 x 64 cells: head and body.
SUBJECT = ((10, 22, 26, 38), (22, 46, 18, 46))


def person_finder(config: SamConfig = SAM_VIT_B) -> Sam:
    """A SAM whose mask is the same drawn person for every prompt, by weights alone.

    The position embedding draws the person into two of its channels, one the opposite of the other. What attention and
    the feed-forward layers compute is multiplied by 0 before it is added; the other layers hand the channels on.
    """
    torch.manual_seed(0)
    sam = Sam(config)
    person = torch.full((64, 64), -1.0)
    for top, bottom, left, right in SUBJECT:
        person[top:bottom, left:right] = 1.0
    with torch.no_grad():
        for name, weight in sam.named_parameters():
            if name.endswith(("attn.proj.weight", "attn.proj.bias", "out_proj.weight", "out_proj.bias")):
                weight.zero_()
            if name.endswith(("mlp.lin2.weight", "mlp.lin2.bias")):
                weight.zero_()
        encoder, decoder = sam.image_encoder, sam.mask_decoder
        encoder.patch_embed.proj.weight.zero_()
        encoder.patch_embed.proj.bias.zero_()
        encoder.pos_embed.zero_()
        encoder.pos_embed[0, :, :, 0], encoder.pos_embed[0, :, :, 1] = person, -person
        first, _, second, _ = encoder.neck
        first.weight.zero_()
        second.weight.zero_()
        for channel in range(first.weight.shape[0]):
            first.weight[channel, channel] = 1.0
            second.weight[channel, channel, 1, 1] = 1.0
        sam.prompt_encoder.no_mask_embed.weight.zero_()
        enlarge, enlarge_again = decoder.output_upscaling[0], decoder.output_upscaling[3]
        for layer in (enlarge, enlarge_again):
            layer.weight.zero_()
            layer.bias.zero_()
        enlarge.weight[0, 0], enlarge.weight[1, 1] = 1.0, 1.0
        enlarge_again.weight[0, 0], enlarge_again.weight[1, 0] = 1.0, -1.0
        for layers in decoder.output_hypernetworks_mlps:
            layers.layers[-1].weight.zero_()
            layers.layers[-1].bias.zero_()
            layers.layers[-1].bias[0] = 10.0
    return sam.requires_grad_(False).eval()


def stock_sam(size: str, weights: dict[str, Tensor] | None = None) -> nn.Module:
    """segment-anything's own SAM, "b", "l" or "h"; with random weights if none are given."""
    from segment_anything import sam_model_registry

    if weights is None:
        torch.manual_seed(0)
        stock = sam_model_registry[f"vit_{size}"]()
        for name, weight in stock.image_encoder.named_parameters():
            # Tables of positions are 0 at birth.
            if "pos" in name:
                nn.init.normal_(weight, std=0.1)
    else:
        with torch.device("meta"):
            stock = sam_model_registry[f"vit_{size}"]()
        stock.load_state_dict(weights, assign=True)
    return stock.requires_grad_(False).eval()


class StockPath:
    """The published way: segment-anything's networks, Mask-to-Matte as it was trained over the whole square, and every
    scale brought to the picture's size and merged over all of it, with guidance "mask" and the usual bands."""

    def __init__(self, sam: nn.Module, m2m: MaskToMatte):
        self.sam = sam
        self.m2m = m2m

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, Frame]:
        """A picture, float [H, W, 3], as features, as Mask-to-Matte's input, and how it lies in the square."""
        frame = Frame(image.shape[0], image.shape[1])
        weight = self.sam.image_encoder.pos_embed
        square = frame.network_input(frame.shrink(image), weight.device)
        return self.sam.image_encoder(square.to(weight.dtype)).float(), square, frame

    def matte(self, encoded: tuple[Tensor, Tensor, Frame], point: tuple[float, float]) -> Tensor:
        """The matte of what a point lies on, float32 [H, W] on the CPU."""
        features, square, frame = encoded
        points = frame.points_to_network(torch.tensor([[point]])).to(features.device)
        labels = torch.ones(1, 1, dtype=torch.int32, device=features.device)
        sparse, dense = self.sam.prompt_encoder((points, labels), None, None)
        positions = self.sam.prompt_encoder.get_dense_pe()
        logits, predicted_iou = self.sam.mask_decoder(features, positions, sparse, dense, multimask_output=True)
        return self.matte_of(encoded, logits[:, predicted_iou[0].argmax()][:, None])

    def matte_of(self, encoded: tuple[Tensor, Tensor, Frame], logits: Tensor) -> Tensor:
        """The matte of SAM's mask, logits [1, 1, 256, 256]."""
        features, square, frame = encoded
        alpha = (frame.logits_to_original(logits) > 0).float()
        dtype = self.m2m.conv1.module.weight_bar.dtype
        pyramid = self.m2m(features.to(dtype), square.to(dtype), (logits > 0).to(dtype))
        scales = [frame.crop_to_original(getattr(pyramid, name).float()) for name in ("os8", "os4", "os1")]
        return merged_everywhere(alpha, *scales)[0, 0].cpu()


def merged_everywhere(mask: Tensor, os8: Tensor, os4: Tensor, os1: Tensor) -> Tensor:
    """Three scales merged in the published way, which looks at the whole picture for each of them: OpenCV on the
    processor finds the pixels, an index brings them over.

    Takes and returns [1, 1, H, W] on any device.
    """
    options, alpha = PUBLISHED_MERGE, mask.clone()
    scales = {"os8": os8, "os4": os4, "os1": os1}
    for name, width_px in (("os8", options.width_os8), ("os4", options.width_os4), ("os1", options.width_os1)):
        area = os8_weight if name == "os8" else unknown_area
        where = torch.from_numpy(area(alpha[0, 0].cpu().numpy(), width_px, options.sides)).to(alpha.device)[None, None]
        alpha[where] = scales[name][where]
    return alpha


def trained_m2m() -> MaskToMatte:
    """Mask-to-Matte in the form in which it is trained, with the weights of tests/references."""
    return chain.reference_m2m().requires_grad_(False)
