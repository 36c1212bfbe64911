"""Whether pictures can be read: each is decoded once, and what was found is kept for as long as its file stays the same."""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from threading import Lock

import PIL

from tlkit.data.decode import decode, header
from tlkit.data.samples import ImageSource
from tlkit.data.sources.webdataset_shards import TarImage
from tlkit.errors import DataError
from tlkit.files import key_of
from tlkit.recipe.fields.data import Data
from tlkit.system import cache_folder, processors

FORMAT = 2
"""Part of the key: raised where the decoder takes what it refused, or the other way round."""
LARGE = 30_000_000
"""Pixels: larger pictures are decoded one at a time, so that many threads don't fill the memory with them."""
_A_TASK = 32  # pictures: few enough for progress to be seen
PATIENCE_S = 5.0  # with another run that writes to the same table
_WRITE_EVERY_S = 5.0  # what is found is kept even if the check is ended
_ONE_AT_A_TIME = Lock()

Key = tuple[bytes, int, int]
"""Path, size in bytes, and time of the last change in nanoseconds."""


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """What decoding a picture has shown. problem, fix: empty for a good one. frames: of which the first is taken.

    lasts: it holds until the file changes; permissions, links, disks and memory may change without that.
    """

    problem: str = ""
    fix: str = ""
    width: int = 0
    height: int = 0
    frames: int = 1
    lasts: bool = True


def judge(images: Sequence[ImageSource], data: Data, advance: Callable[[int], None]) -> list[DecodeResult]:
    """Return the result for each image, by the decoder's settings in `data`. advance: is called with the number of images done."""
    keys = [_key(image) for image in images]
    with closing(_Kept(data)) as kept:
        found = {i: result for i, key in enumerate(keys) if key is not None and (result := kept.get(key)) is not None}
        advance(len(found))
        rest = [i for i in range(len(images)) if i not in found]
        for i, result in _decoded(rest, images, data):
            found[i] = result
            if (key := keys[i]) is not None and result.lasts:
                kept.put(key, result)
            advance(1)
    return [found[i] for i in range(len(images))]


def _decoded(rest: Sequence[int], images: Sequence[ImageSource], data: Data) -> Iterator[tuple[int, DecodeResult]]:
    """Threads, not processes: Pillow lets go of Python's lock while it decodes, and functions that give pictures need not travel."""
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
                height, width = _shape(image, data)
        else:
            height, width = _shape(image, data)
        return DecodeResult(width=width, height=height, frames=frames)
    except DataError as error:
        text = str(error).removeprefix(f"{image}: ")
        problem, _, fix = text.partition("\n")
        cause = error.__cause__
        changes = isinstance(cause, OSError) and cause.errno is not None
        return DecodeResult(problem.removesuffix("."), " ".join(fix.split()), lasts=not changes)
    except MemoryError:
        return DecodeResult("there is not enough memory to read it", "Set data.max_pixels lower, or scale it down.", lasts=False)


def _shape(image: ImageSource, data: Data) -> tuple[int, int]:
    pixels = decode(image, data.channels, max_pixels=data.max_pixels, background=data.background, range_16bit=data.range_16bit)
    return pixels.shape[0], pixels.shape[1]


def _key(image: ImageSource) -> Key | None:
    """None for what is no file or member of a tar, and is decoded each time: pictures in arrays are quicker to decode than to look up."""
    file, member = (image.shard, b"\0%d" % image.offset) if isinstance(image, TarImage) else (image, b"")
    if not isinstance(file, Path):
        return None
    try:
        state = file.stat()
    except OSError:
        return None
    return (os.fsencode(os.path.abspath(file)) + member, state.st_size, state.st_mtime_ns) if S_ISREG(state.st_mode) else None


class _Kept:
    """A table in $TLKIT_CACHE/checked. What can't be read or written is done without: then pictures are decoded again."""

    def __init__(self, data: Data) -> None:
        facts: Mapping[str, object] = {
            "format": FORMAT,
            "pillow": PIL.__version__,
            "channels": data.channels,
            "max_pixels": data.max_pixels,
            "range_16bit": data.range_16bit,
        }
        self._settings = key_of(facts)[:16]
        self._written = time.monotonic()
        self._table = _open_table(cache_folder() / "checked" / "pictures.sqlite")

    def get(self, key: Key) -> DecodeResult | None:
        with suppress(sqlite3.Error):
            query = "SELECT problem, fix, width, height, frames FROM checked WHERE path=? AND settings=? AND size=? AND changed=?"
            row = self._table.execute(query, (key[0], self._settings, *key[1:])).fetchone()
            return DecodeResult(*row) if row else None
        return None

    def put(self, key: Key, result: DecodeResult) -> None:
        with suppress(sqlite3.Error):
            values = (key[0], self._settings, *key[1:], result.problem, result.fix, result.width, result.height, result.frames)
            self._table.execute("INSERT OR REPLACE INTO checked VALUES (?,?,?,?,?,?,?,?,?)", values)
            if time.monotonic() - self._written > _WRITE_EVERY_S:
                self._table.commit()
                self._written = time.monotonic()

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._table.commit()
        self._table.close()


def _open_table(file: Path) -> sqlite3.Connection:
    """Open the table, made where there is none or a damaged one; in memory where nothing can be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return _connected(str(file))
    except sqlite3.DatabaseError as error:
        if not isinstance(error, sqlite3.OperationalError):  # of one that is locked or can't be opened
            with suppress(OSError, sqlite3.Error):
                file.unlink()
                return _connected(str(file))
    except OSError:
        pass
    return _connected(":memory:")


def _connected(name: str) -> sqlite3.Connection:
    table = sqlite3.connect(name, timeout=PATIENCE_S)
    columns = "path BLOB, settings TEXT, size INT, changed INT, problem TEXT, fix TEXT, width INT, height INT, frames INT"
    table.execute(f"CREATE TABLE IF NOT EXISTS checked ({columns}, PRIMARY KEY (path, settings))")
    return table
