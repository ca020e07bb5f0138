"""Picture files: any photo as the library's tensors, and the library's pictures as files that appear whole or not."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from .places import reason

# What a folder of photos is searched for. A file named outright is tried whatever its suffix.
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif")

_WRITERS = {
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
}
# The longest side that a format can hold, where photos come near it; for JPEG that of the library that writes it.
_LONGEST_PX = {"WEBP": 16_383, "JPEG": 65_500}
# What Pillow's decoders are known to raise for damaged files.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


class PhotoError(ValueError):
    """A picture file that cannot be read or written, said in words its owner understands."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture file as tensors.

    Attributes:
        image: float32 [H, W, 3], sRGB 0..1, upright; straight colours where the file has alpha.
        alpha: float32 [H, W], 0..1, or None when the file has none.
    """

    image: Tensor
    alpha: Tensor | None = None


def read_photo(path: str | os.PathLike) -> Photo:
    """Reads a photo as a viewer shows it: turned upright by its EXIF tag, its colour profile converted to sRGB.

    8 and 16-bit grey, palette, RGB, CMYK and files with alpha are understood; of 16-bit RGB the upper 8 bits are
    taken. Of an animation or a stack the first picture counts.

    Raises:
        PhotoError: no such file, not a picture, damaged, of floating-point values, or of more than about 179 million
            pixels.
    """
    return _photo(_opened(Path(path)), path)


def _photo(picture: Image.Image, path: str | os.PathLike) -> Photo:
    if picture.mode == "F":
        raise PhotoError(f"{path} holds floating-point values without a fixed range. Save it as PNG (8 or 16 bits).")
    if picture.mode.startswith("I"):
        grey = _sixteen_bits(picture)
        return Photo(grey[..., None].repeat(1, 1, 3))
    alpha = None
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        alpha = _levels(picture.getchannel("A"))
    return Photo(_levels(_in_srgb(picture)), alpha)


def read_mask(path: str | os.PathLike) -> Tensor:
    """Reads a mask: its alpha when that says something, else its brightness.

    Its levels say how much of a pixel is covered, not how bright it looks, so a colour profile changes nothing.

    Returns:
        float32 [H, W], 0..1, 1 = subject, upright.
    Raises:
        PhotoError: see `read_photo`.
    """
    picture = _opened(Path(path))
    picture.info.pop("icc_profile", None)
    photo = _photo(picture, path)
    if photo.alpha is not None and bool((photo.alpha < 1).any()):
        return photo.alpha
    return photo.image.mean(dim=-1)


def check_writable(path: str | os.PathLike, *, with_alpha: bool = False, bits: int = 8) -> None:
    """Refuses a name under which `write_picture` could not write, before any work is done.

    Raises:
        PhotoError: for an unknown suffix, or a format that would lose alpha or bits.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        known = ", ".join(suffix for suffix in _WRITERS if suffix not in (".jpeg", ".tiff"))
        raise PhotoError(f"{path.name} has no suffix of a picture that can be written. Choose one of {known}.")
    form, _ = _WRITERS[path.suffix.lower()]
    if with_alpha and form == "JPEG":
        raise PhotoError(f"{path.name} would lose its transparency, because JPEG has none. Choose a name in .png.")
    if bits == 16 and form not in ("PNG", "TIFF"):
        raise PhotoError(f"{path.name} cannot hold 16 bits. Choose a name in .png or .tif.")


def write_picture(path: str | os.PathLike, picture: Tensor, *, bits: int = 8) -> None:
    """Writes a picture in the format of its suffix (png, webp, tif, jpg), each value rounded to the nearest level.

    The file appears under its name only when it is complete; what was there before is replaced.

    Args:
        picture: float (or bool) [H, W] grey, [H, W, 3] sRGB or [H, W, 4] with straight alpha, 0..1; clipped beyond.
        bits: 8, or 16 for a grey picture in png or tif.
    Raises:
        PhotoError: see `check_writable`; or for what is no such picture, or larger than its format can hold.
        OSError: when the file cannot be written.
    """
    path = Path(path)
    check_writable(path, with_alpha=picture.ndim == 3 and picture.shape[-1] == 4, bits=bits)
    _check_levels(path, picture, bits)
    form, settings = _WRITERS[path.suffix.lower()]
    longest = max(picture.shape[:2])
    if longest > _LONGEST_PX.get(form, longest):
        raise PhotoError(
            f"{path.name} cannot hold {longest:,} pixels a side, {form} at most {_LONGEST_PX[form]:,}. Choose a name "
            "in .png or .tif."
        )
    top, dtype = (65535, np.uint16) if bits == 16 else (255, np.uint8)
    levels = (picture.detach().cpu().double().clamp(0, 1) * top).round().numpy().astype(dtype)
    encoded = io.BytesIO()
    Image.fromarray(levels).save(encoded, form, **settings)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(encoded.getbuffer())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _check_levels(path: Path, picture: Tensor, bits: int) -> None:
    is_grey = picture.ndim == 2
    if not (is_grey or picture.ndim == 3 and picture.shape[-1] in (3, 4)) or not picture.numel():
        shape = " x ".join(str(n) for n in picture.shape)
        raise PhotoError(
            f"{path.name} was not written: a picture is height x width, or that x 3 or 4, and this one is {shape}."
        )
    if bits not in (8, 16):
        raise PhotoError(f"{path.name} was not written: it can have 8 or 16 bits, not {bits} bits.")
    if bits == 16 and not is_grey:
        raise PhotoError(f"{path.name} was not written: 16 bits are for grey pictures, and this one has colours.")
    if not picture.is_floating_point() and picture.dtype != torch.bool:
        raise PhotoError(
            f"{path.name} was not written: the picture holds {str(picture.dtype)[6:]}, and values go from 0 to 1. "
            "Divide 8-bit ones by 255."
        )
    if not torch.isfinite(picture).all():
        raise PhotoError(f"{path.name} was not written: the picture holds NaN or infinite values.")


def _opened(path: Path) -> Image.Image:
    """The file's first picture, decoded and upright."""
    try:
        with warnings.catch_warnings():
            # A warning at half of Pillow's limit; photos of 100 megapixels are none of the attacks it means.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                return ImageOps.exif_transpose(file)
    except FileNotFoundError as error:
        raise PhotoError(f"There is no file {path}.") from error
    except (IsADirectoryError, PermissionError) as error:
        raise PhotoError(f"{path} cannot be read: {reason(error)}.") from error
    except Image.UnidentifiedImageError as error:
        raise PhotoError(f"{path} is not a picture that can be read, such as JPEG, PNG, WebP or TIFF.") from error
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise PhotoError(f"{path} has more than {limit} million pixels, which is too much. Make it smaller.") from error
    except _DECODING_ERRORS as error:
        raise PhotoError(f"{path} is damaged or incomplete ({error}).") from error


def _sixteen_bits(picture: Image.Image) -> Tensor:
    # Mode "I" is how 16-bit grey arrives in formats for which Pillow has no 16-bit mode.
    levels = np.array(picture).astype(np.float32)
    return torch.from_numpy(levels / 65535).clamp(0, 1)


def _levels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).float() / 255


def _in_srgb(picture: Image.Image) -> Image.Image:
    """The colours in sRGB, mode RGB. A profile that cannot be used is passed over, as viewers do."""
    profile = picture.info.get("icc_profile")
    colors = picture if picture.mode == "CMYK" else picture.convert("RGB")
    # A grey profile does not fit the three channels that grey was made.
    if profile and picture.mode in ("P", "RGB", "RGBA", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                return ImageCms.profileToProfile(colors, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass
    return colors.convert("RGB")
