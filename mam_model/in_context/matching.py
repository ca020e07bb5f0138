"""The whole way: reference pictures and their prompts to a `Reference`, targets to their mattes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..picture import check_form
from ..prompt import Prompt
from .errors import InContextError
from .fit import LATENT_PX, Fit, Square
from .reference import DEFAULT_REACH, MaskIs, Reference, marks_of, region_mask
from .taps import Capture, Taps, Wanted, capture_taps, ensemble_noise, noised


@dataclass(frozen=True, eq=False)
class Networks:
    """The three networks, as callables, so that their owner decides where they run and when they are loaded.

    Attributes:
        side: pixels along a side of the square; `DecoderConfig.side`.
        encode: [N, side, side, 3], sRGB 0..1 -> latents [N, 4, side / 8, side / 8], scaled as the UNet expects them.
            The mean of the VAE's posterior, not a sample of it.
        unet: see `capture_taps`.
        decode: taps of N targets, their squares [N, side, side, 3] and the references' tokens -> alpha
            [N, side, side] and similarity [N, f, f]; `InContextDecoder.matte`.
    """

    side: int
    encode: Callable[[Tensor], Tensor]
    unet: Callable[[Tensor, Capture], object]
    decode: Callable[[Taps, Tensor, Sequence[Tensor]], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Match:
    """What was found of the reference in one target, at the target's own size and on the CPU.

    Attributes:
        alpha: float32 [H, W], 0..1.
        similarity: float32 [H, W], where the reference's subject was found, as a share of the strongest place.
    """

    alpha: Tensor
    similarity: Tensor


@torch.inference_mode()
def take_taps(networks: Networks, squares: Tensor, ensemble: int, seed: int, wanted: Wanted) -> Taps:
    """Looks at N pictures through the diffusion model. Each is encoded once, however large the ensemble.

    Args:
        networks: whose `encode` and `unet` are used.
        squares: float [N, side, side, 3], sRGB 0..1.
        ensemble: how many noised copies of each picture are averaged, 1..16; the published evaluation takes 4.
        seed: of the noise, which is the same for every picture.
        wanted: what is needed.
    Raises:
        InContextError: the VAE's or the UNet's results are not those of Stable Diffusion 2.1, or not numbers.
    """
    latent_side = networks.side // LATENT_PX
    noise = ensemble_noise(ensemble, latent_side, seed)
    latents = networks.encode(squares)
    if tuple(latents.shape) != (len(squares), *noise.shape[1:]):
        raise InContextError(
            f"The VAE turned a picture into {list(latents.shape[1:])} numbers instead of {list(noise.shape[1:])}. Take "
            "the VAE of Stable Diffusion 2.1."
        )
    if not torch.isfinite(latents).all():
        raise InContextError(
            "The VAE gave values that are not numbers (NaN or infinite). Load it with another precision (--fp32-vae)."
        )
    return capture_taps(networks.unet, noised(latents, noise), len(squares), wanted)


@torch.inference_mode()
def take_reference(
    networks: Networks,
    pictures: Sequence[Tensor] | Tensor,
    prompts: Sequence[Prompt],
    *,
    fit: Fit | str = Fit.PAD,
    ensemble: int = 4,
    seed: int = 0,
    mask_is: MaskIs | str = MaskIs.AREA,
    reach: int = DEFAULT_REACH,
) -> Reference:
    """Takes the features of what is marked in each reference picture.

    Args:
        networks: `decode` is not used.
        pictures: each float [H, W, 3], sRGB 0..1; or all of one size as [N, H, W, 3].
        prompts: one for each picture, see `marks_of`.
        fit: how the pictures, and later the targets, get into the square.
        ensemble: how many noised copies of each picture are averaged, 1..16.
        seed: of the noise.
        mask_is: whether the prompts' masks are the subject's area or strokes on it.
        reach: how many cells each point or stroked cell adds to the region of interest by self-attention.
    Raises:
        PromptError: for coordinates and masks that do not fit their picture.
        InContextError: a region of interest is empty, a picture cannot be used; see also `take_taps`.
    """
    if not len(pictures) or len(pictures) != len(prompts):
        raise InContextError(
            f"There are {len(pictures)} reference pictures and {len(prompts)} prompts. Give each its prompt."
        )
    if reach < 0:
        raise InContextError(f"A point can add 0 or more cells, not {reach}.")
    fit, mask_is = Fit(fit), MaskIs(mask_is)
    squares = [_square_of(picture, fit, networks.side) for picture in pictures]
    # All are looked at before the first is encoded, which takes long.
    marks = []
    for number, (prompt, square) in enumerate(zip(prompts, squares), start=1):
        try:
            marks.append(marks_of(prompt, square, mask_is))
        except InContextError as error:
            raise InContextError(f"Reference picture {number} has no region of interest: {error}") from error
    tokens, regions = [], []
    for picture, square, mark in zip(pictures, squares, marks):
        wanted = Wanted.PROMPTED_REFERENCE if mark.needs_attention and reach else Wanted.REFERENCE
        taps = take_taps(networks, square.picture(picture[..., :3])[None], ensemble, seed, wanted)
        attention = None if taps.fine_attention is None else taps.fine_attention[0]
        region = mark.region(attention, reach)
        tokens.append(taps.fine[0][:, region.to(taps.fine.device)].t().contiguous().cpu())
        regions.append(region_mask(region, square))
    return Reference(tuple(tokens), tuple(regions), networks.side, fit, ensemble, seed)


@torch.inference_mode()
def match(networks: Networks, reference: Reference, pictures: Sequence[Tensor] | Tensor) -> list[Match]:
    """Mattes what the reference shows in each of the pictures. All go through the UNet together; chunk them outside.

    Args:
        networks: of the same size as those that took the reference.
        reference: from `take_reference`.
        pictures: each float [H, W, 3], sRGB 0..1, of any size; or all of one size as [N, H, W, 3].
    Raises:
        InContextError: see `take_taps` and `InContextDecoder.matte`.
    """
    if not len(pictures):
        return []
    if reference.side != networks.side:
        raise InContextError(
            f"The reference was made for squares of {reference.side} pixels, this decoder uses {networks.side}. "
            "Make the reference again with this decoder."
        )
    squares = [_square_of(picture, reference.fit, networks.side) for picture in pictures]
    shown = torch.stack([square.picture(picture[..., :3]) for square, picture in zip(squares, pictures)])
    taps = take_taps(networks, shown, reference.ensemble, reference.seed, Wanted.TARGET)
    alphas, found = networks.decode(taps, shown, reference.tokens)
    found = found / found.amax((1, 2), keepdim=True)
    found = F.interpolate(found[:, None], (networks.side, networks.side), mode="bilinear", align_corners=False)[:, 0]
    return [
        Match(square.back(alpha), square.back(similarity))
        for square, alpha, similarity in zip(squares, alphas.float().cpu(), found.float().cpu())
    ]


def _square_of(picture: Tensor, fit: Fit, side: int) -> Square:
    try:
        check_form(picture)
    except ValueError as error:
        raise InContextError(str(error)) from error
    if not torch.isfinite(picture).all():
        raise InContextError("A picture holds values that are not numbers (NaN or infinite). Make it again.")
    return Square(picture.shape[0], picture.shape[1], fit, side)
