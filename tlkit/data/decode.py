"""The one decoder: whatever lies in a picture file becomes [H, W, C] uint8, upright, or a DataError that says why not."""

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tlkit.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".npy"})
# Pixels of one picture: twice Pillow's warning limit, about half a gigabyte as RGB. More is a damaged header or an attack.
MAX_PIXELS = 178_956_970
# What Pillow 13 raises for damaged files, over all its formats.
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error, zlib.error, OverflowError)


def decode(image: Path | Callable[[], Image.Image], channels: int = 3) -> NDArray[np.uint8]:
    """[H, W, channels] uint8 of a file, or of a picture that a function gives.

    channels: 3 makes every picture RGB, and 1 makes it grey. With any other number a picture must have as many: RGBA, CMYK, or an
    .npy file of [H, W, channels], uint8 or uint16, whose numbers are taken as they are.
    EXIF orientation is applied, transparency is laid over white (but for 4 channels), 16-bit values are scaled from 0..65535 to
    0..255, and of an animation the first frame is taken.
    Raises DataError with the file and the reason: missing, a folder, empty, no picture, cut off, too large, unknown range, other channels.
    """
    try:
        if isinstance(image, Path) and image.suffix.lower() == ".npy":
            return _from_npy(image, channels)
        with warnings.catch_warnings():
            # Pillow warns at half the limit below; the limit itself raises.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(image, Path):
                with Image.open(image) as opened:
                    return _from_pillow(opened, channels)
            return _from_pillow(image(), channels)
    except DataError as error:
        raise DataError(f"{image}: {error}") from error
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise DataError(f"{image}: {_reason(image, error)}") from error


def _from_pillow(image: Image.Image, channels: int) -> NDArray[np.uint8]:
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
    if channels not in (1, 3):
        return _bands(image, channels)
    if image.mode.startswith("I"):
        return np.repeat(_from_16_bit(np.asarray(image))[:, :, None], channels, axis=2)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = Image.fromarray(_over_white(np.asarray(image.convert("RGBA"))))
    return np.array(image.convert("L"))[:, :, None] if channels == 1 else np.array(image.convert("RGB"))


def _bands(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """The picture's own channels, as they are. A palette's colours are looked up."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    bands = image.getbands()
    if len(bands) != channels:
        raise DataError(_other_channels(f"{len(bands)} ({', '.join(bands)})", len(bands), channels))
    return np.array(image)


def _from_npy(file: Path, channels: int) -> NDArray[np.uint8]:
    """Of a file by numpy.save: [H, W, channels], or [H, W] for one channel."""
    # Mapped, so that a header that promises too much is refused before anything is read.
    pixels: NDArray[Any] = np.lib.format.open_memmap(file, mode="r")  # which refuses Python objects, and so pickles
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f"numbers of type {pixels.dtype} have no known range.\n  Save them as uint8 (0 to 255) or uint16 (0 to 65535).")
    shape = " x ".join(map(str, pixels.shape)) or "one number"
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise DataError(f"its shape, {shape}, is no picture's.\n  Expected height x width x channels.")
    if pixels.size > 3 * MAX_PIXELS:
        raise DataError(_too_large(shape))
    if pixels.shape[2] != channels:
        raise DataError(_other_channels(f"{pixels.shape[2]} (height x width x channels is {shape})", pixels.shape[2], channels))
    return _from_16_bit(pixels) if pixels.dtype == np.uint16 else np.array(pixels, order="C")


def _other_channels(found: str, number: int, expected: int) -> str:
    return (
        f"the number of its channels is {found}, but data.channels is {expected}.\n"
        f"  Set data.channels={number} if all pictures have as many; of colours, 3 and 1 (grey) are made of any others."
    )


def _is_16_bit_png(image: Image.Image) -> bool:
    """Pillow before 10.4 reads 16-bit grey PNG as mode I."""
    return image.mode == "I" and image.format == "PNG"


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; unchanged where the EXIF block itself is damaged, as picture viewers do."""
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGED:
        return image


def _from_16_bit(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """0..65535 to 0..255, rounded. 65535 = 255 * 257."""
    return ((np.clip(np.array(values, np.uint32, order="C"), 0, 65535) + 128) // 257).astype(np.uint8)


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
