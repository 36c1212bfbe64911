"""From a request to images: the body is read in chunks within the limits, and every image's size is checked before it is decoded."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from io import BytesIO
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlkit.data.decode import MAX_PIXELS
from tlkit.data.preprocess import Preprocessing
from tlkit.deploy.serve.limits import Limits, Refusal, too_large
from tlkit.errors import DataError
from tlkit.terminal import counted

if TYPE_CHECKING:
    from starlette.requests import Request

# What browsers, cameras and microscopes make, as far as Pillow has it. It knows some thirty formats more, some of which can't be recognised
# from other bytes, and hands one of them to another program (EPS to Ghostscript).
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM", "QOI")
# Larger images are decoded one at a time: with transparency, each takes some 20 bytes a pixel while it is.
LARGE_PIXELS = 8_000_000
_one_large_image = Lock()
EXPECTED = "Expected the bytes of one image (image/jpeg, image/png, application/octet-stream ..), or multipart/form-data with files."


async def read_upload(request: "Request", limits: Limits, hold: Callable[[int], None]) -> list[bytes]:
    """Read the files of a request. hold: see Room.for_upload. Raises Refusal."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    form = kind == "multipart/form-data"
    if not (form or kind in ("", "application/octet-stream") or kind.startswith("image/")):
        hint = " With curl: -H 'Content-Type: image/jpeg'." if kind == "application/x-www-form-urlencoded" else ""
        raise Refusal(415, f"The content type is '{kind}'. {EXPECTED}{hint}")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.upload_bytes:
        raise too_large(limits)
    try:
        async with asyncio.timeout(limits.read_s):
            files = await _form_files(request, limits, hold) if form else [b"".join([piece async for piece in _pieces(request, hold)])]
    except TimeoutError as error:
        raise Refusal(408, f"The request had not arrived after {limits.read_s:g} s. Expected it sooner: is the connection slow?") from error
    if not any(files):
        raise Refusal(400, f"The request holds {'no file, or only empty ones' if form else 'no bytes'}. {EXPECTED}")
    return files


async def _pieces(request: "Request", hold: Callable[[int], None]) -> AsyncGenerator[bytes, None]:
    async for piece in request.stream():
        hold(len(piece))
        yield piece


async def _form_files(request: "Request", limits: Limits, hold: Callable[[int], None]) -> list[bytes]:
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    try:
        form = await MultiPartParser(request.headers, _pieces(request, hold), max_files=limits.files, max_fields=100).parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise Refusal(422, f"The form holds more than {counted(limits.files, 'file')}. Send them in several requests.") from error
        raise Refusal(400, f"The form can't be read: {error.message} {EXPECTED}") from error
    try:
        return [await part.read() for _, part in form.multi_items() if isinstance(part, UploadFile)]
    finally:
        await form.close()


@dataclass(frozen=True)
class Upload:
    """The bytes of an image, as the decoder takes one; its text is what messages call it."""

    data: bytes
    name: str

    def __call__(self) -> Image.Image:
        return Image.open(BytesIO(self.data), formats=PILLOW_FORMATS)

    def __str__(self) -> str:
        return self.name


def image(upload: Upload, preprocessing: Preprocessing, limits: Limits) -> NDArray[np.uint8]:
    """Return the image as the network sees it, [S, S, C]. Raises Refusal: 413 for too many pixels, 422 for what is no complete image."""
    if not upload.data:
        raise Refusal(422, f"{upload}: the file is empty (0 bytes). Expected an image.")
    pixels = _pixels(upload)
    most = min(limits.pixels, preprocessing.max_pixels)
    if pixels > most:
        number = f"more than {MAX_PIXELS / 1e6:.0f}" if pixels > MAX_PIXELS else f"{pixels / 1e6:.0f}"
        raise Refusal(413, f"{upload}: has {number} million pixels; the limit is {most / 1e6:g}. Scale it down.")
    try:
        if pixels <= LARGE_PIXELS:
            return preprocessing.read(upload)
        with _one_large_image:
            return preprocessing.read(upload)
    except DataError as error:
        raise Refusal(422, " ".join(str(error).split())) from error


def _pixels(upload: Upload) -> int:
    """Return width times height by the header; for a decompression bomb, whose size Pillow doesn't give, one more than it accepts.

    Returns 0 without a readable header; decoding reports that.
    """
    try:
        with upload() as opened:
            return opened.width * opened.height
    except Image.DecompressionBombError:
        return MAX_PIXELS + 1
    except Exception:  # Pillow raises what its decoders happen to
        return 0
