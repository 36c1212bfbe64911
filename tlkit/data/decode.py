"""The one decoder: whatever lies in a picture file becomes [H, W, 3] uint8 RGB, upright, or a DataError that says why not."""

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tlkit.errors import DataError

# Pixels of one picture: twice Pillow's warning limit, about half a gigabyte as RGB. More is a damaged header or an attack.
MAX_PIXELS = 178_956_970
# What Pillow 13 raises for damaged files, over all its formats.
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error, zlib.error, OverflowError)


def decode(image: Path | Callable[[], Image.Image]) -> NDArray[np.uint8]:
    """[H, W, 3] uint8 RGB of a file, or of a picture that a function gives.

    EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled from 0..65535 to 0..255,
    and of an animation the first frame is taken.
    Raises DataError with the file and the reason: missing, a folder, empty, no picture, cut off, too large, unknown range.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns at half the limit below; the limit itself raises.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(image, Path):
                with Image.open(image) as opened:
                    return _rgb(opened)
            return _rgb(image())
    except DataError as error:
        raise DataError(f"{image}: {error}") from error
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise DataError(f"{image}: {_reason(image, error)}") from error


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Of an opened picture, of which nothing but the header may have been read."""
    if image.width * image.height > MAX_PIXELS:
        raise DataError(_too_large(f"{image.width} x {image.height} pixels"))
    image.load()
    if image.mode in ("I", "F") and not _is_16_bit_png(image):
        raise DataError(
            f"pixels of mode {image.mode} (32 bit) have no known range, so they can't become 0..255.\n"
            "  Save the picture as 8-bit or 16-bit PNG or TIFF."
        )
    image = _upright(image)
    if image.mode.startswith("I"):
        return _from_16_bit(np.asarray(image))
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return _over_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _is_16_bit_png(image: Image.Image) -> bool:
    """Pillow before 10.4 reads 16-bit grey PNG as mode I."""
    return image.mode == "I" and image.format == "PNG"


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; unchanged where the EXIF block itself is damaged, as picture viewers do."""
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGED:
        return image


def _from_16_bit(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    """[H, W] of 0..65535 to [H, W, 3] of 0..255, rounded. 65535 = 255 * 257."""
    scaled = ((np.clip(grey.astype(np.uint32), 0, 65535) + 128) // 257).astype(np.uint8)
    return np.repeat(scaled[:, :, None], 3, axis=2)


def _over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, 4] laid over a white ground: (colour * alpha + 255 * (255 - alpha)) / 255, rounded."""
    colour, alpha = rgba[:, :, :3].astype(np.uint32), rgba[:, :, 3:].astype(np.uint32)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _too_large(size: str) -> str:
    return f"the picture is too large ({size}; the limit is {MAX_PIXELS:,}).\n  Scale it down or remove it."


def _reason(image: Path | Callable[[], Image.Image], error: Exception) -> str:
    """Why a picture can't be read, and what to do."""
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(str(error).split(" exceeds")[0].removeprefix("Image size ").strip("()"))
    if isinstance(error, FileNotFoundError):
        return "there is no such file.\n  Check the path, or whether the folder changed while tlkit was running."
    if isinstance(error, IsADirectoryError) or (isinstance(image, Path) and image.is_dir()):
        return "this is a folder, not a picture.\n  Name a picture file."
    if isinstance(error, PermissionError):
        return "the file may not be read.\n  Give yourself the right to read it."
    if isinstance(image, Path) and image.exists() and image.stat().st_size == 0:
        return "the file is empty (0 bytes).\n  Replace or remove it."
    if isinstance(error, UnidentifiedImageError):
        return "this is not a picture in a format that can be read (JPEG, PNG, WebP, BMP, TIFF, GIF).\n  Replace or remove it."
    return f"the picture is damaged or cut off ({error}).\n  Replace or remove it."
