"""Whether images can be read: each is decoded once, and what was found is kept for as long as its file stays the same."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from tlkit.data.decode import Decoding, decoded_size, decoder_versions, header
from tlkit.data.file_facts import FileFacts, file_key
from tlkit.data.samples import ImageSource
from tlkit.errors import DataError
from tlkit.files import key_of
from tlkit.recipe.fields.data import Data
from tlkit.system import processors

FORMAT = 2
"""Part of the key: raised where the decoder takes what it refused, or the other way round."""
LARGE = 30_000_000
"""Pixels: larger images are decoded one at a time, so that many threads don't fill the memory with them."""
_A_TASK = 32  # images: few enough for progress to be seen
_ONE_AT_A_TIME = Lock()


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """What decoding an image has shown. problem, fix: empty for a good one. frames: of which the first is taken.

    lasts: it holds until the file changes; permissions, links, disks and memory may change without that.
    """

    problem: str = ""
    fix: str = ""
    width: int = 0
    height: int = 0
    frames: int = 1
    lasts: bool = True


def decode_results(images: Sequence[ImageSource], data: Data, advance: Callable[[int], None]) -> list[DecodeResult]:
    """Return the result for each image, by the decoder's settings in `data`. advance: is called with the number of images done."""
    keys = [file_key(image) for image in images]
    with closing(FileFacts(_kind(data))) as facts:
        found = {i: _from_text(kept) for i, key in enumerate(keys) if key is not None and (kept := facts.get(key)) is not None}
        advance(len(found))
        rest = [i for i in range(len(images)) if i not in found]
        for i, result in _decoded(rest, images, data):
            found[i] = result
            if (key := keys[i]) is not None and result.lasts:
                facts.put(key, _to_text(result))
            advance(1)
    return [found[i] for i in range(len(images))]


def _kind(data: Data) -> str:
    """Return all that a result depends on besides the file."""
    settings = {"channels": data.channels, "max_pixels": data.max_pixels, "range_16bit": data.range_16bit}
    return f"decode {key_of({'format': FORMAT, **decoder_versions(), **settings})}"


def _to_text(result: DecodeResult) -> str:
    return json.dumps([result.problem, result.fix, result.width, result.height, result.frames])


def _from_text(text: str) -> DecodeResult:
    return DecodeResult(*json.loads(text))


def _decoded(rest: Sequence[int], images: Sequence[ImageSource], data: Data) -> Iterator[tuple[int, DecodeResult]]:
    """Decode in threads, not processes: Pillow releases the GIL while it decodes, and image functions need not be pickled."""
    tasks = [rest[i : i + _A_TASK] for i in range(0, len(rest), _A_TASK)]
    pool = ThreadPoolExecutor(processors())
    try:
        for task, results in zip(tasks, pool.map(lambda task: [_decode_result(images[i], data) for i in task], tasks), strict=True):
            yield from zip(task, results, strict=True)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C too, at once


def _decode_result(image: ImageSource, data: Data) -> DecodeResult:
    pixels, frames = header(image) if isinstance(image, Path) else (0, 1)
    try:
        if pixels > LARGE:
            with _ONE_AT_A_TIME:
                width, height = _size(image, data)
        else:
            width, height = _size(image, data)
        return DecodeResult(width=width, height=height, frames=frames)
    except DataError as error:
        text = str(error).removeprefix(f"{image}: ")
        problem, _, fix = text.partition("\n")
        cause = error.__cause__
        changes = isinstance(cause, OSError) and cause.errno is not None
        return DecodeResult(problem.removesuffix("."), " ".join(fix.split()), lasts=not changes)
    except MemoryError:
        return DecodeResult("there is not enough memory to read it", "Set data.max_pixels lower, or scale it down.", lasts=False)


def _size(image: ImageSource, data: Data) -> tuple[int, int]:
    return decoded_size(image, Decoding.of(data))
