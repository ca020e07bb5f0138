"""How good the network is on pictures that it never learns from, beside the mask that it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from ..frame import Frame
from ..m2m import MaskToMatte
from ..merge import MergeOptions, merge
from ..metrics import mad, mse
from ..photo import PhotoError
from ..prompt import Prompt
from ..sam import Sam
from .config import Config, TrainingError, Validation
from .folders import Pair, find_pairs, read_pair
from .samples import prompt_for, tight_box
from .weight_maps import generator

_PANEL_PX = 256


@dataclass(frozen=True, eq=False)
class Unseen:
    """A picture for validation: float32 [H, W, 3], its alpha float32 [H, W], and what SAM is asked."""

    picture: np.ndarray
    alpha: np.ndarray
    prompt: Prompt


# Reads a picture for validation, and may raise PhotoError. Those of a whole test set are more than memory holds.
Read = Callable[[], Unseen]


@dataclass(frozen=True, eq=False)
class Validated:
    """Means over the pictures.

    Attributes:
        mad, mse: mean absolute and squared difference of the mattes, 0..1.
        mask_mad, mask_mse: the same of the masks that guide the network.
        sheet: uint8 [H, W, 3], a row for each of the first pictures: the picture, its mask, os8, os4, os1, the
            merged matte and the true alpha. Empty when none is to be shown.
    """

    mad: float
    mse: float
    mask_mad: float
    mask_mse: float
    sheet: np.ndarray


def unseen_pictures(config: Config, side: int, say: Callable[[str], None], skip: Callable[[str], None]) -> list[Read]:
    """The pictures of the config's [validation]. Drawn ones have seeds that training never draws.

    Those of its folders are read once here, to know which of them can be, and again whenever they are asked for.

    Args:
        side: of drawn pictures in pixels.
        say: is told what was left out for want of a partner.
        skip: is told of each file that cannot be used.
    Raises:
        TrainingError: a folder is missing or empty, nothing in it belongs together, or none of it can be used.
    """
    wanted = config.validation
    kinds = wanted.kinds or (config.rendered.kinds if config.rendered else ())
    found: list[Read] = []
    for number in range(wanted.rendered):
        drawn = _drawn(config, number, side, kinds)
        found.append(lambda drawn=drawn: drawn)
    if wanted.pictures:
        pairs, left_out = find_pairs(wanted.pictures, wanted.alphas)
        for sentence in left_out:
            say(sentence)
        for pair in pairs:
            read = partial(_read, config, pair)
            try:
                read()
            except PhotoError as error:
                skip(str(error))
                continue
            found.append(read)
        if len(found) == wanted.rendered:
            raise TrainingError(f"None of the {len(pairs)} pictures in {wanted.pictures} can be used to validate.")
    return found


def _read(config: Config, pair: Pair) -> Unseen:
    picture, alpha = read_pair(pair)
    rng = generator(config.seed, "validation", pair.name)
    return Unseen(picture, alpha, prompt_for(rng, alpha, config.prompt))


def _drawn(config: Config, number: int, side: int, kinds: Sequence[str]) -> Unseen:
    from .render import render

    kind = kinds[number % len(kinds)] if kinds else None
    attempt = 0
    while True:
        rng = generator(config.seed, "validation", number, attempt)
        rendered = render(int(rng.integers(2**62)), side, side, kind=kind)
        if tight_box(rendered.alpha):
            return Unseen(rendered.picture, rendered.alpha, prompt_for(rng, rendered.alpha, config.prompt))
        attempt += 1


@torch.no_grad()
def validate(
    network: MaskToMatte, sam: Sam, pictures: Sequence[Read], wanted: Validation, skip: Callable[[str], None]
) -> Validated | None:
    """Mattes the pictures as the library does, from their prompts, and compares them with the true alphas.

    The network is in eval mode meanwhile, and afterwards as it was before.

    Args:
        wanted: says how many of the pictures the sheet shows, and what the scales are merged from.
        skip: is told of each file that can no longer be used, and the means are without it.
    Returns:
        None when none of the pictures can be used any more.
    """
    was_training = network.training
    network.eval()
    try:
        errors, rows = [], []
        for read in pictures:
            try:
                unseen = read()
            except PhotoError as error:
                skip(str(error))
                continue
            panels = _matted(network, sam, unseen, wanted.guidance)
            mask, matte = panels[1], panels[5]
            errors.append([error(x, unseen.alpha) for x in (matte, mask) for error in (mad, mse)])
            if len(rows) < wanted.shown:
                rows.append(np.concatenate([_panel(panel) for panel in panels], axis=1))
    finally:
        network.train(was_training)
    if not errors:
        return None
    sheet = np.concatenate(rows) if rows else np.zeros((0, 0, 3), np.uint8)
    return Validated(*np.mean(errors, axis=0).tolist(), sheet)


def _matted(network: nn.Module, sam: Sam, unseen: Unseen, guided_by: str) -> list[np.ndarray]:
    """The picture, its mask, os8, os4, os1, the matte and the true alpha, all [H, W] or [H, W, 3]."""
    device = next(network.parameters()).device
    embedding = sam.encode(torch.from_numpy(unseen.picture))
    guidance = sam.decode(embedding, [unseen.prompt])
    frame: Frame = embedding.frame
    image = frame.network_input(embedding.content, device)
    pyramid = network(embedding.features.to(device), image, guidance.network_mask.to(device))
    post_mask = guidance.post_mask(0)
    matte = merge(pyramid, post_mask, frame, MergeOptions(guided_by))
    scales = [frame.crop_to_original(scale)[0, 0] for scale in (pyramid.os8, pyramid.os4, pyramid.os1)]
    tensors = [post_mask, *scales, matte]
    return [unseen.picture, *(tensor.float().cpu().numpy() for tensor in tensors), unseen.alpha]


def _panel(panel: np.ndarray) -> np.ndarray:
    """uint8 [256, 256, 3]: the panel, centred in a grey square."""
    import cv2

    height, width = panel.shape[:2]
    factor = _PANEL_PX / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = cv2.resize(panel, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST)
    square = np.full((_PANEL_PX, _PANEL_PX, 3), 127, np.uint8)
    top, left = (_PANEL_PX - size[1]) // 2, (_PANEL_PX - size[0]) // 2
    levels = (small.clip(0, 1) * 255).round().astype(np.uint8)
    square[top : top + size[1], left : left + size[0]] = levels if levels.ndim == 3 else levels[..., None]
    return square
