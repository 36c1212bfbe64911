"""Why an image can't be decoded, and what to do: by its error, and by its first bytes."""

import os
import re
import struct
import zlib
from pathlib import Path
from tokenize import TokenError

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from tlkit.data.samples import ImageSource

# What Pillow 13 raises for damaged files, over all its formats, and numpy for an .npy (TokenError); found with some 40,000 damaged files.
DAMAGED = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, RuntimeError, struct.error, zlib.error, TokenError
)  # fmt: skip


def too_large(size: str, max_pixels: int) -> str:
    return f"the image is too large ({size}; data.max_pixels is {max_pixels:,}).\n  Scale it down or remove it."


def reason(image: ImageSource, error: Exception, max_pixels: int) -> str:
    """Explain why an image can't be read, and what to do."""
    if isinstance(error, Image.DecompressionBombError):
        return too_large(str(error).split(" exceeds")[0].removeprefix("Image size ").strip("()"), max_pixels)
    if isinstance(error, FileNotFoundError):
        if isinstance(image, Path) and image.is_symlink():
            return f"this is a link to {os.readlink(image)}, where there is no file.\n  Restore that file, or remove the link."
        if "\\" in str(image):
            return "there is no such file.\n  Write its path with forward slashes."
        return "there is no such file.\n  Check the path, or whether the folder changed while tlkit was running."
    if isinstance(error, PermissionError):
        return "the file may not be read.\n  Change its permissions so that you can read it."
    if isinstance(error, OSError) and error.errno is not None:
        return f"the file can't be opened ({error.strerror}).\n  Check the path, the disk, or remove it."
    if isinstance(image, Path) and image.stat().st_size == 0:
        return "the file is empty (0 bytes).\n  Replace or remove it."
    if isinstance(error, UnidentifiedImageError):
        return _float_tiff(image) or _no_image(image)
    return f"the image is damaged or cut off ({error}).\n  Replace or remove it."


def _float_tiff(image: ImageSource) -> str:
    """Say what a TIFF of 32-bit colour contains, which Pillow doesn't open; return an empty string for any other file."""
    if not isinstance(image, Path):
        return ""
    try:
        with image.open("rb") as file:
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
        bits, kind = tags[TiffImagePlugin.BITSPERSAMPLE], tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
    except (*DAMAGED, AssertionError):
        return ""
    if max(bits) <= 16:
        return ""
    numbers = "floating-point numbers" if kind[0] == 3 else "whole numbers"
    return (
        f"a TIFF of {len(bits)} channels of {max(bits)}-bit {numbers}, which have no known range, so they can't become 0..255.\n"
        "  Save the image as 8-bit or 16-bit PNG or TIFF."
    )


def _no_image(image: ImageSource) -> str:
    """Say what a file contains instead of an image, by its first bytes."""
    start = b""
    if isinstance(image, Path):
        with image.open("rb") as opened:
            start = opened.read(512)
    for pattern, holds, fix in _OTHER_CONTENT:
        if re.search(pattern, start, re.IGNORECASE):
            return f"this is not an image that can be read but {holds}.\n  {fix}"
    return "this is not an image in a format that can be read (JPEG, PNG, WebP, AVIF, TIFF and others).\n  Replace or remove it."


# (pattern in the first bytes, what it is, what to do)
_OTHER_CONTENT = (
    (rb"\Aversion https://git-lfs", "a pointer to a file in Git LFS", "Fetch the file itself: git lfs pull"),
    (rb"\A.{4}ftyp(heic|heix|mif1|msf1|hevc)", "an HEIC photograph", "Save it as JPEG or PNG."),
    (rb"<svg[\s>]", "a drawing (SVG), which has no pixels", "Save it as PNG."),
    (rb"\A\s*<(!doctype html|html|head)", "a web page", "Download the image again, or remove the file."),
    (rb"\A%PDF", "a PDF", "Save its page as PNG or JPEG."),
    (rb"\A(PK\x03\x04|Rar!|\x1f\x8b)", "an archive", "Unpack it, or remove it."),
    (rb"\A\0+\Z", "a file of zeros", "Restore it from a backup, or remove it."),
    (rb"\A[\t\n\r -~]+\Z", "text", "Replace or remove it."),
)
