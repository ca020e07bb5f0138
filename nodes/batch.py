"""The batch contract: as many mattes as pictures, in order, in steps that show progress and can be cancelled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from functools import partial
from typing import TypeVar

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ..mam_model.picture import check_picture

T = TypeVar("T")

# Into how many shares of the progress bar a step of several parts is divided.
_SHARES = 100


def in_steps(count: int) -> Iterator[int]:
    """0 to count - 1, moving the node's progress bar, until the user cancels."""
    bar = comfy.utils.ProgressBar(count)
    for index in range(count):
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield index
        bar.update_absolute(index + 1)


def in_steps_of_parts(count: int) -> Iterator[tuple[int, Callable[[int, int], None]]]:
    """`in_steps` for steps that take long: with each index comes what is to be told after each part of the step.

    It is told how many parts are done and how many there are, and raises when the user cancels.
    """
    bar = comfy.utils.ProgressBar(_SHARES * count)

    def tell(step: int, done: int, parts: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(_SHARES * step + _SHARES * done // parts)

    for index in range(count):
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield index, partial(tell, index)
        bar.update_absolute(_SHARES * (index + 1))


def in_steps_of_targets(frames: Sequence[Sequence[T]]) -> Iterator[tuple[int, Iterator[T]]]:
    """`in_steps` over the targets of all frames, for targets that take long: with each index come those of the frame.

    They have to be taken one by one, to the last, before the next frame. A frame without any is a step too.
    """
    steps = in_steps(sum(max(1, len(targets)) for targets in frames))
    for index, targets in enumerate(frames):
        if not targets:
            next(steps)
        yield index, (target for target, _ in zip(targets, steps))
    # Now the last step is over too.
    next(steps, None)


def pictures(image: Tensor) -> Tensor:
    """An IMAGE as [B, H, W, 3], whatever further channels it has.

    Raises:
        ValueError: when the batch is empty or is not made of pictures.
    """
    if image.ndim != 4 or image.shape[-1] < 3 or 0 in image.shape:
        shape = " x ".join(str(n) for n in image.shape)
        raise ValueError(
            f"A batch of pictures has the shape frames x height x width x 3; this one is {shape}. "
            "It needs at least one picture with red, green and blue."
        )
    return image[..., :3]


def masks(mask: Tensor) -> Tensor:
    """A MASK as [B, H, W]; [H, W] and [B, 1, H, W] are taken too.

    Raises:
        ValueError: when it is something else, an empty batch, or holds values that are no numbers.
    """
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(f"A batch of masks has the shape frames x height x width; this one is {tuple(mask.shape)}.")
    # NaN is both the lowest and the highest value. Asked of each value, a clip would take nearly thrice its memory.
    if not (torch.isfinite(mask.amin()) and torch.isfinite(mask.amax())):
        raise ValueError("The mask holds NaN or infinite values. Look at the node that made it.")
    return mask


def pair_count(**batches: Sized) -> int:
    """How many frames come out when these batches are used together: a batch of one serves all frames.

    Args:
        batches: anything with one entry per frame, under the names that the user knows.
    Raises:
        ValueError: naming both sizes, when two batches of more than one frame differ.
    """
    sizes = {name: len(batch) for name, batch in batches.items()}
    largest = max(sizes, key=sizes.get)
    for name, size in sizes.items():
        if size not in (1, sizes[largest]):
            raise ValueError(
                f"There are {sizes[largest]} frames of {largest} but {size} of {name}. "
                "Both need the same number, or one of them a single frame that is used for all."
            )
    return sizes[largest]


def frame_of(batch: Sequence[T] | Tensor, index: int) -> T | Tensor:
    """Frame `index` of a batch, or its only one."""
    return batch[index if len(batch) > 1 else 0]


def check_frame(batch: Tensor, index: int) -> None:
    """`check_picture` of frame `index` of a batch; the only one of a batch, which serves all frames, is checked once.

    Args:
        batch: [B, H, W, 3].
        index: 0, 1, 2 and so on, one call after the other.
    """
    if index < len(batch):
        check_picture(batch[index])


def check_same_size(image: Tensor, other: Tensor, name: str = "mask") -> None:
    """Refuses a mask or a second picture of another size than the picture.

    Args:
        image: [B, H, W, C].
        other: a mask [B, H, W], or pictures [B, H, W, C].
        name: what the node calls it.
    Raises:
        ValueError: naming both sizes.
    """
    height, width = other.shape[1:3]
    if image.shape[1:3] == (height, width):
        return
    sentences = [
        f"The {name} is {width} x {height} pixels but the picture is {image.shape[2]} x {image.shape[1]}.",
        f"Resize the {name} to the picture's size.",
    ]
    if other.ndim == 3 and (height, width) == (64, 64):
        sentences.append("(Load Image gives a 64 x 64 mask for a picture without transparency.)")
    raise ValueError(" ".join(sentences))


def as_output(tensor: Tensor) -> Tensor:
    """The tensor on the device and in the dtype that ComfyUI wants between nodes."""
    return tensor.to(comfy.model_management.intermediate_device(), comfy.model_management.intermediate_dtype())


def room_for(*shape: int) -> Tensor:
    """A tensor to be filled, on the device and in the dtype of `as_output`; made elsewhere, it would lie there too."""
    device, dtype = comfy.model_management.intermediate_device(), comfy.model_management.intermediate_dtype()
    return torch.empty(shape, device=device, dtype=dtype)
