"""The Segment Anything Model, frozen: a picture becomes an `Embedding`, prompts on it become `Guidance`.

Architecture and weights are those of the `segment-anything` package (Kirillov et al., "Segment Anything", 2023).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .averaging import averaged
from .frame import Frame
from .image_encoder import ImageEncoder
from .mask_decoder import decode_masks
from .prompt import Prompt
from .regions import Window
from .scribble import points_from_scribbles, strokes_on_all, with_scribbles

# Targets that a GPU decodes together.
_GPU_TARGETS = 8

# The mask decoder halves its channels for some of its attention, which has eight heads.
_PROMPT_DIM_STEP = 16

# How sure a mask hint is made of itself, as a logit. SAM was trained to refine its own logits, which are in the tens.
_HINT_LOGIT = 10.0


@dataclass(frozen=True)
class SamConfig:
    """Sizes of a SAM. `image_size` and `window_size` are in pixels and in tokens."""

    depth: int
    embed_dim: int
    num_heads: int
    global_attention: tuple[int, ...]
    image_size: int = 1024
    patch_size: int = 16
    window_size: int = 14
    prompt_dim: int = 256
    decoder_mlp_dim: int = 2048

    @property
    def name(self) -> str:
        """The name under which the size is published, or a description of it."""
        return {SAM_VIT_B: "SAM ViT-B", SAM_VIT_L: "SAM ViT-L", SAM_VIT_H: "SAM ViT-H"}.get(
            self, f"SAM with {self.depth} blocks of {self.embed_dim} channels"
        )

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> SamConfig:
        """Reads every size off the shapes of a SAM state dict.

        Raises:
            KeyError: when a tensor that every SAM has is missing.
            ValueError: when the shapes are of no SAM.
        """
        position = state_dict["image_encoder.pos_embed"].shape
        patch = state_dict["image_encoder.patch_embed.proj.weight"].shape
        prompt = state_dict["prompt_encoder.no_mask_embed.weight"].shape
        hidden = state_dict["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape
        depth = 1 + max(int(key.split(".")[2]) for key in state_dict if key.startswith("image_encoder.blocks."))
        spans = [state_dict[f"image_encoder.blocks.{i}.attn.rel_pos_h"].shape for i in range(depth)]
        dimensions = [len(shape) for shape in (position, patch, prompt, hidden, *spans)]
        if dimensions != [4, 4, 2, 2, *(2 for _ in spans)] or 0 in (*position, *patch, *chain(*spans)):
            raise ValueError("its tensors have other dimensions")
        _, grid, _, embed_dim = position
        num_heads, rest = divmod(embed_dim, spans[0][1])
        if rest or prompt[1] % _PROMPT_DIM_STEP:
            raise ValueError("its channels cannot be shared among attention heads")
        patch_size = patch[-1]
        # A relative position table covers -(n - 1)..(n - 1) tokens: the whole grid where attention is global.
        extents = [(length + 1) // 2 for length, _ in spans]
        return cls(
            depth=depth,
            embed_dim=embed_dim,
            num_heads=num_heads,
            global_attention=tuple(i for i, extent in enumerate(extents) if extent == grid),
            image_size=grid * patch_size,
            patch_size=patch_size,
            window_size=min(extents),
            prompt_dim=prompt[1],
            decoder_mlp_dim=hidden[0],
        )


SAM_VIT_B = SamConfig(depth=12, embed_dim=768, num_heads=12, global_attention=(2, 5, 8, 11))
SAM_VIT_L = SamConfig(depth=24, embed_dim=1024, num_heads=16, global_attention=(5, 11, 17, 23))
SAM_VIT_H = SamConfig(depth=32, embed_dim=1280, num_heads=16, global_attention=(7, 15, 23, 31))


@dataclass(frozen=True, eq=False)
class Embedding:
    """A picture as the networks know it.

    Attributes:
        features: float32 [1, 256, side / 16, side / 16], SAM's image embedding; the encoder's lie with their channels
            last in memory, so make them contiguous before they are written to a file.
        content: uint8 [content_height, content_width, 3], the picture as the encoder saw it; Mask-to-Matte needs it.
        frame: how the picture lies in the square.
    """

    features: Tensor
    content: Tensor
    frame: Frame


@dataclass(frozen=True, eq=False)
class Guidance:
    """SAM's answer for the T targets of one picture.

    Attributes:
        prompts: the T prompts that were answered, checked.
        logits: float32 [T, 3, side / 4, side / 4], the three candidate masks of each target; above 0 = target.
        predicted_iou: float32 [T, 3], SAM's own estimate of each candidate's quality.
        chosen: int64 [T], the candidate that is used.
        frame: how the picture lies in the square.
    """

    prompts: tuple[Prompt, ...]
    logits: Tensor
    predicted_iou: Tensor
    chosen: Tensor
    frame: Frame

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def chosen_logits(self) -> Tensor:
        """float32 [T, 1, side / 4, side / 4], the used candidate of each target."""
        return self.logits[torch.arange(len(self)), self.chosen.to(self.logits.device)][:, None]

    @property
    def network_mask(self) -> Tensor:
        """float32 [T, 1, side / 4, side / 4] of {0, 1}: the mask as Mask-to-Matte is shown it."""
        return (self.chosen_logits > 0).float()

    @property
    def scores(self) -> tuple[float, ...]:
        """The predicted IoU of the used candidate, one per target, times the score the prompt came with."""
        best = self.predicted_iou[torch.arange(len(self)), self.chosen.to(self.predicted_iou.device)]
        return tuple(float(iou) * prompt.score for iou, prompt in zip(best, self.prompts))

    def post_mask(self, target: int, window: Window | None = None) -> Tensor:
        """The mask of one target at the size of the original picture.

        Args:
            window: the part of the picture that is wanted; None takes all of it.
        Returns:
            float32 [H, W] of {0, 1}; a mask that was given as guidance comes back as it is, soft edges included.
            Strokes are certain: 1 on the subject, 0 beside it, 0.5 where the user said "unknown".
        """
        prompt = self.prompts[target]
        if prompt.mask_is_guidance and prompt.has_mask:
            mask = prompt.mask.to(self.logits.device, torch.float32)
            mask = mask if window is None else window.of(mask)
        else:
            # No number is taken out of `chosen`, for which a GPU would have to be waited for.
            chosen = self.chosen[target : target + 1].to(self.logits.device)
            logits = self.logits[target].index_select(0, chosen)[None]
            wanted = window or Window.whole(self.frame.height, self.frame.width)
            mask = self.frame.mask_to_original(logits, wanted).float()
        if prompt.scribbles is None:
            return mask
        return with_scribbles(mask, prompt.scribbles if window is None else window.of(prompt.scribbles))

    def mask_window(self, target: int) -> Window | None:
        """Part of the original picture outside which the target's post mask is 0; None for an empty mask.

        Found without drawing SAM's mask at the picture's size, so it may be some pixels wider than the mask.
        """
        return self.mask_windows()[target]

    def mask_windows(self) -> list[Window | None]:
        """`mask_window` of every target, for which a GPU is waited for once."""
        windows = []
        for target, cells in enumerate(Window.around_each(self.chosen_logits[:, 0] > 0)):
            prompt = self.prompts[target]
            window = None
            if prompt.scribbles is not None or (prompt.mask_is_guidance and prompt.has_mask):
                window = Window.around_each((self.post_mask(target) > 0)[None])[0]
            elif cells is not None:
                # Interpolation carries a cell's sign to its neighbours at most. A mask in the padding is no mask.
                window = self.frame.window_over(cells.grown(1, *self.logits.shape[-2:]).finer(4))
            windows.append(window if window is not None and window.height > 0 and window.width > 0 else None)
        return windows

    def at_content_size(self) -> Guidance:
        """The same answer for the picture at the size in which the network sees it, at most 1024 pixels.

        A matte of it takes as long for a photo of any size: what a preview needs while the user still points. The
        merge's widths are to be scaled along, see `MergeOptions.scaled`.
        """
        frame = self.frame.at_content_size
        if frame == self.frame:
            return self
        prompts = tuple(_resized(prompt, self.frame, frame) for prompt in self.prompts)
        return Guidance(prompts, self.logits, self.predicted_iou, self.chosen, frame)

    def cpu(self) -> Guidance:
        """The same answer on the processor. On a GPU it would take memory that ComfyUI cannot take back."""
        return replace(self, logits=self.logits.cpu(), predicted_iou=self.predicted_iou.cpu(), chosen=self.chosen.cpu())

    def united(self) -> Guidance:
        """All targets as one foreground: the semantic mask of the picture.

        Returns:
            Guidance of a single target, or of none if there was none.
        """
        if len(self) <= 1:
            return self
        united = Prompt()
        strokes = strokes_on_all([prompt.scribbles for prompt in self.prompts])
        if strokes is not None or any(prompt.mask_is_guidance for prompt in self.prompts):
            masks = torch.stack([self.post_mask(target) for target in range(len(self))])
            united = Prompt(mask=masks.amax(dim=0), mask_is_guidance=True, scribbles=strokes)
        logits = self.chosen_logits.amax(dim=0, keepdim=True).expand(1, 3, -1, -1)
        best = torch.tensor([[max(self.scores)] * 3], device=logits.device)
        return Guidance((united,), logits, best, self.chosen.new_zeros(1), self.frame)

    def content_masks(self) -> Tensor:
        """The hard masks at the size in which the network saw the picture, for showing.

        Returns:
            float32 [T, content_height, content_width] of {0, 1}.
        """
        square = F.interpolate(self.chosen_logits, (self.frame.side, self.frame.side), mode="bilinear")
        return (square[:, 0, : self.frame.content_height, : self.frame.content_width] > 0).float()


class Sam(nn.Module):
    """SAM's three networks under their published state-dict keys.

    Unlike `segment_anything.Sam` it has no read-only `device`, so ComfyUI can move it. Only the image encoder may be
    put in half precision: prompt encoder and mask decoder are small and sensitive, and always compute in float32.
    """

    def __init__(self, config: SamConfig):
        # Here and not above: it brings torchvision along, which ComfyUI's start should not wait for.
        from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

        super().__init__()
        self.config = config
        self._known_positions: tuple[Tensor, Tensor] | None = None
        grid = config.image_size // config.patch_size
        self.image_encoder = ImageEncoder(
            image_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            out_channels=config.prompt_dim,
            window_size=config.window_size,
            global_attention=config.global_attention,
        )
        self.prompt_encoder = PromptEncoder(
            embed_dim=config.prompt_dim,
            image_embedding_size=(grid, grid),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=16,
        )
        self.mask_decoder = MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=config.prompt_dim, mlp_dim=config.decoder_mlp_dim, num_heads=8
            ),
            transformer_dim=config.prompt_dim,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        )

    @property
    def decoding_bytes(self) -> int:
        """What decoding a picture's targets takes beside the weights, however many they are.

        Counted at 1024 pixels: the tensors of 8 targets that are decoded together come to 249 MiB, of 16 to 261.
        """
        return 9 * 8192 * (self.config.image_size // self.config.patch_size) ** 2

    def encode(self, image: Tensor, check: Callable[[], None] | None = None) -> Embedding:
        """Runs the image encoder: the expensive step, needed once per picture.

        Args:
            image: float [H, W, 3], sRGB 0..1.
            check: called several times on the way; what it raises ends the work.
        """
        frame = Frame(image.shape[0], image.shape[1], self.config.image_size)
        return self.encode_content(frame.shrink(image), frame, check)

    def encode_content(self, content: Tensor, frame: Frame, check: Callable[[], None] | None = None) -> Embedding:
        """`encode` for a picture that `frame.shrink` has already brought to the network's size."""
        weight = self.image_encoder.patch_embed.proj.weight
        square = frame.network_input(content, weight.device).to(weight.dtype)
        return Embedding(self.image_encoder(square, check).float(), content, frame)

    def encode_together(
        self, contents: Sequence[Tensor], frame: Frame, check: Callable[[], None] | None = None
    ) -> list[Embedding]:
        """`encode_content` of several pictures of one size, which a GPU does in less time than one after the other.

        Memory grows with their number; see `ImageEncoder.working_bytes`.
        """
        weight = self.image_encoder.patch_embed.proj.weight
        squares = torch.cat([frame.network_input(content, weight.device).to(weight.dtype) for content in contents])
        features = self.image_encoder(squares, check).float()
        return [Embedding(features[n : n + 1], content, frame) for n, content in enumerate(contents)]

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt], targets_per_step: int | None = None) -> Guidance:
        """Decodes all targets of a picture.

        Targets with the same number of points, box and mask go through the decoder in one batch; filling the others up
        to the longest would add tokens and change their masks. A target's answer does not depend on its neighbours. An
        empty prompt gets an empty mask with a score of 0.

        Args:
            prompts: T prompts in pixels of the original picture.
            targets_per_step: how many go through the decoder together; None is one on a processor and a few on a GPU.
        Raises:
            PromptError: see `Prompt.checked`.
            ValueError: for no target per step.
        """
        frame = embedding.frame
        device = self.prompt_encoder.no_mask_embed.weight.device
        if targets_per_step is None:
            targets_per_step = 1 if device.type == "cpu" else _GPU_TARGETS
        if targets_per_step < 1:
            raise ValueError(f"targets_per_step is at least 1, not {targets_per_step}.")
        prompts = tuple(prompt.checked(frame.width, frame.height) for prompt in prompts)
        side = frame.side // 4
        logits = torch.full((len(prompts), 3, side, side), -_HINT_LOGIT, device=device)
        predicted_iou = torch.zeros(len(prompts), 3, device=device)
        alike = defaultdict(list)
        for index, prompt in enumerate(prompts):
            if prompt.is_empty:
                continue
            if prompt.mask_is_guidance and prompt.has_mask:
                logits[index] = _hint_logits(prompt, frame, device)[0]
                predicted_iou[index] = 1.0
                continue
            points, labels = _points_of(prompt)
            form = (len(points), prompt.box_xyxy_px is not None, prompt.has_mask)
            # Strokes of "unknown" alone say nothing that SAM could answer.
            if any(form):
                alike[form].append((index, points, labels))
        features = embedding.features.to(device)
        for (_, has_box, has_mask), members in alike.items():
            indices = [index for index, _, _ in members]
            points = labels = boxes = masks = None
            if members[0][1]:
                points = frame.points_to_network(torch.tensor([p for _, p, _ in members])).to(device)
                labels = torch.tensor([label for _, _, label in members], dtype=torch.int32, device=device)
            if has_box:
                boxes = torch.tensor([prompts[index].box_xyxy_px for index in indices])
                boxes = frame.boxes_to_network(boxes).to(device)
            if has_mask:
                masks = torch.cat([_hint_logits(prompts[index], frame, device) for index in indices])
            sparse, dense = self.prompt_encoder((points, labels) if points is not None else None, boxes, masks)
            logits[indices], predicted_iou[indices] = decode_masks(
                self.mask_decoder, features, self._positions(), sparse, dense, targets_per_step
            )
        best = predicted_iou.argmax(dim=1)
        overruled = [-1 if prompt.candidate is None else prompt.candidate for prompt in prompts]
        choice = torch.tensor(overruled, dtype=torch.int64, device=device)
        return Guidance(prompts, logits, predicted_iou, torch.where(choice < 0, best, choice), frame)

    def _positions(self) -> Tensor:
        """The encoding of each place, float32 [g * g, 256]: on a processor made once for these weights.

        A GPU makes it for every prompt: to compare would be to wait for it, and what is kept would stay on it.
        """
        origin = self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        known = self._known_positions
        if known is not None and origin.device.type == "cpu" and torch.equal(known[0], origin):
            return known[1]
        positions = self.prompt_encoder.get_dense_pe()[0].flatten(1).t().contiguous()
        if origin.device.type == "cpu":
            self._known_positions = origin.clone(), positions
        return positions


def _resized(prompt: Prompt, frame: Frame, smaller: Frame) -> Prompt:
    """What the prompt says of the picture of one size, said of it at a smaller size."""
    size = (smaller.height, smaller.width)
    across, down = smaller.width / frame.width, smaller.height / frame.height
    box, mask, strokes = prompt.box_xyxy_px, prompt.mask, prompt.scribbles
    if mask is not None:
        mask = averaged(mask[None, None].float(), size)[0, 0].clamp(0, 1)
    if strokes is not None:
        strokes = F.interpolate(strokes[None, None], size, mode="nearest-exact")[0, 0]
    return replace(
        prompt,
        points_px=tuple((x * across, y * down) for x, y in prompt.points_px),
        box_xyxy_px=box and tuple(side * (down if i % 2 else across) for i, side in enumerate(box)),
        mask=mask,
        scribbles=strokes,
    )


def _points_of(prompt: Prompt) -> tuple[list[tuple[float, float]], list[int]]:
    points = list(prompt.points_px)
    labels = list(prompt.labels)
    if prompt.has_scribbles:
        for point, label in points_from_scribbles(prompt.scribbles):
            points.append(point)
            labels.append(label)
    return points, labels


def _hint_logits(prompt: Prompt, frame: Frame, device: torch.device) -> Tensor:
    """The prompt's mask in the form of SAM's own logits, float32 [1, 1, side / 4, side / 4]."""
    mask = frame.mask_to_network(prompt.mask.to(device))
    return (mask * 2 - 1) * _HINT_LOGIT
