"""The one decoder: an image file becomes [H, W, C] uint8, upright, or raises a DataError with the reason."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, JpegImagePlugin, features

from tlkit.data.decode_faults import DAMAGED, reason, too_large
from tlkit.data.samples import ImageSource
from tlkit.errors import DataError

if TYPE_CHECKING:
    from tlkit.recipe.fields.data import Data

# Formats that Pillow knows and can't decode by itself: it hands EPS to Ghostscript, and knows no more than the header of the others.
_TRIED_FIRST = frozenset({"JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF"})
_NOT_DECODED = frozenset({"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR"})
# Pixels of one image: twice Pillow's warning limit, beyond which Pillow itself refuses; half a gigabyte as RGB.
MAX_PIXELS = 178_956_970
_PARSES_HEADER = Lock()
WHITE = (255, 255, 255)
# Pixels that are laid over a background at once: a large image as a whole would take 40 bytes a pixel on the way.
_AT_ONCE = 1 << 18
WHOLE_RANGE = (0, 65535)
Pixels = Image.Image | NDArray[np.uint8]
"""A decoded image: as Pillow has it, RGB or L, or [H, W, C]."""
NeededSize = Callable[[int, int], tuple[int, int]]
"""Width and height of an image -> the width and height that are needed of it, the same for a turned image."""


@cache
def image_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that the installed Pillow can read, in the order in which they are tried."""
    Image.init()
    return tuple(sorted((name for name in Image.ID if name not in _NOT_DECODED), key=lambda name: name not in _TRIED_FIRST))


@cache
def image_endings() -> frozenset[str]:
    """Return the file endings that are read, such as `.jpg`, in lower case."""
    formats = {*image_formats(), "MPO"}  # which Pillow opens as JPEG
    return frozenset({".npy", *(ending for ending, name in Image.registered_extensions().items() if name in formats)})


@cache
def decoder_versions() -> dict[str, str]:
    """Return the versions of what decodes: two releases of one library may round a pixel differently, or refuse another file."""
    codecs = {name: str(features.version(name)) for name in ("libjpeg_turbo", "jpg", "webp", "avif", "jpg_2000", "libtiff")}
    return {"pillow": PIL.__version__, "numpy": np.__version__, **codecs}


@dataclass(frozen=True)
class Decoding:
    """The settings of decoding: those of a recipe's data (`Decoding.of`), or of a model (`Preprocessing.decode`).

    channels: 3 makes every image RGB, and 1 makes it grey. With any other number an image must have as many: RGBA, CMYK, or an
    .npy file of [H, W, channels], uint8 or uint16, whose numbers are taken as they are.
    background: RGB; what transparent images are laid over, but for 4 channels.
    range_16bit: the 16-bit values that become 0 and 255.
    """

    channels: int = 3
    max_pixels: int = MAX_PIXELS
    background: tuple[int, int, int] = WHITE
    range_16bit: tuple[int, int] = WHOLE_RANGE

    @classmethod
    def of(cls, data: "Data") -> "Decoding":
        return cls(data.channels, data.max_pixels, data.background, data.range_16bit)


DEFAULT = Decoding()


def decode(image: ImageSource, how: Decoding = DEFAULT, *, needed: NeededSize | None = None) -> NDArray[np.uint8]:
    """Return [H, W, channels] uint8 of a file, or of an image that a function gives.

    EXIF orientation is applied, and of an animation or of several pages the first is taken.
    needed: a JPEG at least twice as large is decoded at a half, a quarter or an eighth of its size, by its own coefficients: quicker, and
    its pixels differ a little. None decodes every image in full.
    Raises DataError with the file and the reason: missing, a folder, empty, no image, cut off, more than max_pixels, unknown range,
    other channels.
    """
    return as_array(decode_pixels(image, how, needed=needed))


def decode_pixels(image: ImageSource, how: Decoding = DEFAULT, *, needed: NeededSize | None = None) -> Pixels:
    """Do what `decode` does, and leave an image where Pillow has it: copying a photograph takes as long as decoding it."""
    try:
        if not isinstance(image, Path):
            given = image()
            if not isinstance(given, Image.Image):
                return _from_numbers(given, how)
            return _from_pillow(_drafted(given, needed, how.max_pixels), how)
        _check_is_file(image)
        if image.suffix.lower() == ".npy":
            return _from_npy(image, how)
        # By a file, not its name: with a name Pillow 13 maps some files, and gives turned grey TIFFs with their rows mixed up.
        with image.open("rb") as file, Image.open(file, formats=image_formats()) as opened:
            return _from_pillow(_drafted(opened, needed, how.max_pixels), how)
    except DataError as error:
        raise DataError(f"{image}: {error}", error.meant) from error
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise DataError(f"{image}: {reason(image, error, how.max_pixels)}") from error


def _check_is_file(image: Path) -> None:
    """Raise DataError for a folder, and for a pipe, which would make whoever opens it wait for ever."""
    mode = image.stat().st_mode
    if S_ISDIR(mode):
        raise DataError("this is a folder, not an image.\n  Name an image file.")
    if not S_ISREG(mode):
        raise DataError("this is a device, a pipe or a socket, not a file.\n  Remove it.")


def as_array(pixels: Pixels) -> NDArray[np.uint8]:
    """Return [H, W, C], which may be written to."""
    if not isinstance(pixels, Image.Image):
        return pixels
    array = np.array(pixels)
    return array[:, :, None] if array.ndim == 2 else array


def size_of(pixels: Pixels) -> tuple[int, int]:
    """Return width and height."""
    return pixels.size if isinstance(pixels, Image.Image) else (pixels.shape[1], pixels.shape[0])


def decoded_size(image: ImageSource, how: Decoding = DEFAULT) -> tuple[int, int]:
    """Return width and height of an upright image that can be decoded. Raises DataError as `decode` does.

    A JPEG is decoded at an eighth of its size: that reads all of its data too, and fails where decoding in full does.
    """
    full: list[tuple[int, int]] = []

    def least(width: int, height: int) -> tuple[int, int]:
        full.append((width, height))
        return 1, 1

    found = size_of(decode_pixels(image, how, needed=least))
    if not full:
        return found
    is_turned = found[0] != found[1] and (found[0] < found[1]) != (full[0][0] < full[0][1])
    return (full[0][1], full[0][0]) if is_turned else full[0]


def header(file: Path) -> tuple[int, int]:
    """Return (pixels, frames) of a file as it promises them, of which nothing is decoded; (0, 1) where it can't be read.

    frames: of an animation, or pages; `decode` takes the first.
    """
    try:
        if file.suffix.lower() == ".npy" or not file.is_file():
            return 0, 1
        with file.open("rb") as content, Image.open(content, formats=image_formats()) as opened:
            # An MPO is a photograph by a telephone, with its own thumbnail as the second image.
            return opened.width * opened.height, 1 if opened.format == "MPO" else int(getattr(opened, "n_frames", 1))
    except (*DAMAGED, Image.DecompressionBombError):
        return 0, 1


def image_size(image: ImageSource) -> tuple[int, int]:
    """Return width and height as the header has them, before the EXIF orientation; (0, 0) where it can't be read."""
    try:
        if isinstance(image, Path):
            _check_is_file(image)
            if image.suffix.lower() == ".npy":
                height, width = open_npy(image).shape[:2]
                return width, height
            with image.open("rb") as file, Image.open(file, formats=image_formats()) as opened:
                return opened.size
        given = image()
        return given.size if isinstance(given, Image.Image) else (given.shape[1], given.shape[0])
    except (*DAMAGED, Image.DecompressionBombError, DataError):
        return 0, 0


def range_of_16bit(image: ImageSource, max_pixels: int = MAX_PIXELS) -> tuple[int, int] | None:
    """Return the least and the largest value of a 16-bit image; None for any other, and for one that can't be read."""
    try:
        if isinstance(image, Path):
            _check_is_file(image)
            if image.suffix.lower() == ".npy":
                return _range(open_npy(image))
            with image.open("rb") as file, Image.open(file, formats=image_formats()) as opened:
                return _range(_values_16bit(opened, max_pixels))
        given = image()
        return _range(_values_16bit(given, max_pixels) if isinstance(given, Image.Image) else given)
    except (*DAMAGED, Image.DecompressionBombError, DataError):
        return None


def _values_16bit(image: Image.Image, max_pixels: int) -> NDArray[Any] | None:
    if image.width * image.height > max_pixels:
        return None
    if _is_16_bit_colour(image):
        return _colour_values(encoded(image))[:, :, :3]
    return np.asarray(image).astype(np.uint16) if image.mode.startswith("I;16") or _is_16_bit_grey(image) else None


def _range(values: NDArray[Any] | None) -> tuple[int, int] | None:
    if values is None or values.dtype != np.uint16 or not values.size:
        return None
    return int(values.min()), int(values.max())


def _drafted(image: Image.Image, needed: NeededSize | None, max_pixels: int) -> Image.Image:
    """Return the image itself, set to be decoded at a reduced scale where it is a JPEG that has more than twice the pixels needed."""
    if needed is not None and isinstance(image, JpegImagePlugin.JpegImageFile) and image.width * image.height <= max_pixels:
        image.draft(None, needed(*image.size))
    return image


def _from_pillow(image: Image.Image, how: Decoding) -> Pixels:
    """Decode an opened image, of which nothing but the header may have been read."""
    if image.width * image.height > how.max_pixels:
        raise DataError(too_large(f"{image.width} x {image.height} pixels", how.max_pixels))
    content = encoded(image) if _is_16_bit_colour(image) else b""
    image.load()
    if image.mode in ("I", "F") and not _is_16_bit_grey(image):
        raise DataError(
            f"pixels of mode {image.mode} (32 bit) have no known range, so they can't become 0..255.\n"
            "  Save the image as 8-bit or 16-bit PNG or TIFF."
        )
    if content:
        image = _from_16_bit_colour(content, image, how.range_16bit)
    image = _upright(image)
    if image.mode.startswith("I"):
        grey = _from_16_bit(np.asarray(image), how.range_16bit)[:, :, None]
        if how.channels not in (1, 3):
            raise _other_channels("1 (16-bit grey)", 1, how.channels)
        return np.repeat(grey, how.channels, axis=2)
    if how.channels not in (1, 3):
        return _bands(image, how.channels)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = Image.fromarray(_over(how.background, np.asarray(image.convert("RGBA"))))
    mode = "L" if how.channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _bands(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """Return the image's own channels unchanged. A palette's colours are looked up."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    bands = image.getbands()
    if len(bands) != channels:
        raise _other_channels(f"{len(bands)} ({', '.join(bands)})", len(bands), channels)
    return np.array(image)


def open_npy(file: Path) -> NDArray[Any]:
    """Map a file by numpy.save, as numpy does: one that holds Python objects, and so a pickle, is refused. Threads take turns: NumPy
    parses the header with `ast`, which before Python 3.13 counts the depth of all threads in one place and fails where two parse at once
    (https://github.com/python/cpython/issues/106905).
    """
    with _PARSES_HEADER:
        return np.lib.format.open_memmap(file, mode="r")


def _from_npy(file: Path, how: Decoding) -> NDArray[np.uint8]:
    """Read a file by numpy.save: [H, W, channels], or [H, W] for one channel."""
    # Mapped, so that a header that promises too much is refused before anything is read.
    return _from_numbers(open_npy(file), how)


def _from_numbers(pixels: NDArray[Any], how: Decoding) -> NDArray[np.uint8]:
    """Return an array's pixels as uint8: [H, W, channels], or [H, W] for one channel."""
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f"numbers of type {pixels.dtype} have no known range.\n  Save them as uint8 (0 to 255) or uint16 (0 to 65535).")
    shape = " x ".join(map(str, pixels.shape)) or "one number"
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise DataError(f"its shape, {shape}, is not that of an image.\n  Expected height x width x channels.")
    if pixels.size > 3 * how.max_pixels:
        raise DataError(too_large(shape, how.max_pixels))
    if pixels.shape[2] != how.channels:
        raise _other_channels(f"{pixels.shape[2]} (height x width x channels is {shape})", pixels.shape[2], how.channels)
    return _from_16_bit(pixels, how.range_16bit) if pixels.dtype == np.uint16 else np.array(pixels, order="C")


def _other_channels(found: str, number: int, expected: int) -> DataError:
    return DataError(
        f"the number of its channels is {found}, but data.channels is {expected}.\n"
        f"  Set data.channels={number} if all images have as many; 3 (RGB) and 1 (grey) can be converted from any colours.",
        {"channels": number},
    )


def _is_16_bit_grey(image: Image.Image) -> bool:
    """Check for 16-bit grey. Pillow reads 16-bit PGM as mode I, with the file's largest value as 65535; before 10.4 also 16-bit grey
    PNG.
    """
    return image.mode == "I" and image.format in ("PNG", "PPM")


def _upright(image: Image.Image) -> Image.Image:
    """Turn the image as its EXIF orientation says; unchanged where the EXIF block itself is damaged, as image viewers do."""
    if _orientation(image) == 1:
        return image  # of which exif_transpose would make a copy
    try:
        return ImageOps.exif_transpose(image)
    except DAMAGED:
        return image


def _is_16_bit_colour(image: Image.Image) -> bool:
    """Check for 16-bit colour. Pillow gives only its high byte and shows it only in its raw mode: RGB;16B, RGBA;16N, LA;16B, .."""
    tiles = getattr(image, "tile", None) or [(None, None, None, "")]
    how = tiles[0][3]
    return ";16" in str(how[0] if isinstance(how, tuple) else how) and not image.mode.startswith("I")


def encoded(image: Image.Image) -> bytes:
    """Return the bytes of an opened image, without changing it."""
    opened: Any = image.fp  # type: ignore[attr-defined]  # of every image that Pillow has opened and not read
    place = opened.tell()
    opened.seek(0)
    content: bytes = opened.read()
    opened.seek(place)
    return content


def _colour_values(content: bytes) -> NDArray[np.uint16]:
    """Return the values of a 16-bit PNG or TIFF, [H, W, C] in BGR order, as OpenCV gives them. Raises DataError if it can't be read."""
    try:
        import cv2
    except ImportError as error:  # an exported model runs without it
        raise DataError("16-bit colour needs OpenCV here.\n  Install it with: pip install opencv-python-headless") from error

    try:
        values: NDArray[np.uint16] | None = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)  # type: ignore[assignment]
    except cv2.error:
        values = None
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise DataError("16-bit colour in a form that can't be read.\n  Save the image as 8-bit, or as 16-bit RGB PNG.")
    return values


def _from_16_bit_colour(content: bytes, high_bytes: Image.Image, range_16bit: tuple[int, int]) -> Image.Image:
    """Convert a 16-bit PNG or TIFF to RGB or RGBA. high_bytes: the image as Pillow read it; its orientation is still to be applied."""
    values = _colour_values(content)
    colour = _from_16_bit(values[:, :, 2::-1], range_16bit)
    if values.shape[2] == 4:
        colour = np.dstack([colour, _from_16_bit(values[:, :, 3:], WHOLE_RANGE)])
    image = Image.fromarray(colour)
    image.getexif()[ExifTags.Base.Orientation] = _orientation(high_bytes)
    return image


def _orientation(image: Image.Image) -> int:
    """Return the orientation as EXIF numbers it; 1, upright, for a TIFF, which is turned as it is read, and where EXIF is damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DAMAGED:
        return 1


def _from_16_bit(values: NDArray[np.generic], range_16bit: tuple[int, int]) -> NDArray[np.uint8]:
    """Map the range to 0..255, rounded. Raises DataError for values outside of it: nothing is clipped."""
    low, high = range_16bit
    numbers = np.array(values, np.uint32, order="C")
    least, most = int(numbers.min()), int(numbers.max())
    if least < low or most > high:
        raise DataError(
            f"its 16-bit values go from {least} to {most}, and data.range_16bit is [{low}, {high}].\n"
            f"  Set data.range_16bit to the range of all images, such as [{min(least, low)}, {max(most, high)}]: nothing is clipped."
        )
    span = high - low
    return (((numbers - low) * 510 + span) // (2 * span)).astype(np.uint8)


def _over(background: tuple[int, int, int], rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blend RGBA, [H, W, 4], with a background colour: (colour * alpha + background * (255 - alpha)) / 255, rounded."""
    pixels = rgba.reshape(-1, 4)
    laid = np.empty((len(pixels), 3), np.uint8)
    ground = np.array(background, np.uint16)
    for start in range(0, len(pixels), _AT_ONCE):
        colour, alpha = np.split(pixels[start : start + _AT_ONCE].astype(np.uint16), [3], axis=1)
        laid[start : start + _AT_ONCE] = (colour * alpha + ground * (255 - alpha) + 127) // 255  # at most 255 * 255 + 127: no overflow
    return laid.reshape(*rgba.shape[:2], 3)
