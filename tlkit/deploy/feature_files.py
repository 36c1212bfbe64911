"""`tlkit predict --features`: what the head sees of each picture, in one .npz or .parquet. Batches go to disk as they come."""

import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import numpy as np
from numpy.typing import NDArray

from tlkit.deploy.out_file import check_out
from tlkit.errors import DataError, MissingExtraError

Features = NDArray[np.float32]
Write = Callable[[Sequence[str], Features, Sequence[str]], None]
"""Names, their features [B, F], and names of files that can't be read."""
_CHUNK = 1 << 16


def open_features(file: Path) -> AbstractContextManager[Write]:
    """The file comes to be when all is written: an earlier one isn't touched before.

    .npz: `paths` [N], `features` [N, F] float32, `unreadable`. .parquet: columns path and features, a list that is null for an unreadable
    file. Raises DataError for another kind of file, MissingExtraError if pyarrow is missing.
    """
    kinds = {".npz": _npz, ".parquet": _parquet}
    if file.suffix not in kinds:
        raise DataError(f"--out {file}: features can't be written to this kind of file.\n  Expected FILE.npz or FILE.parquet.")
    check_out(file)
    return kinds[file.suffix](file)


@contextmanager
def _npz(file: Path) -> Iterator[Write]:
    with TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as folder:
        place = Path(folder)
        names, unreadable = _NameFile(place / "paths"), _NameFile(place / "unreadable")
        width = 0
        with (place / "features").open("wb") as rows:

            def write(batch: Sequence[str], features: Features, bad: Sequence[str]) -> None:
                nonlocal width
                width = features.shape[1] if len(batch) else width
                rows.write(features.tobytes())
                names.add(batch)
                unreadable.add(bad)

            yield write
        with zipfile.ZipFile(place / "npz", "w", zipfile.ZIP_STORED) as archive:
            with archive.open("features.npy", "w", force_zip64=True) as entry, (place / "features").open("rb") as kept:
                _header(entry, np.dtype(np.float32), (names.number, width))
                while block := kept.read(_CHUNK):
                    entry.write(block)
            for key, listed in (("paths", names), ("unreadable", unreadable)):
                with archive.open(f"{key}.npy", "w", force_zip64=True) as entry:
                    listed.write_to(entry)
        os.replace(place / "npz", file)


class _NameFile:
    """Names on disk until there is a longest one, because a numpy array of text has a fixed width."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._opened = file.open("wb")
        self._longest = 1
        self.number = 0

    def add(self, names: Sequence[str]) -> None:
        for name in names:
            self._opened.write(name.encode(errors="surrogateescape") + b"\0")
            self._longest = max(self._longest, len(name))
            self.number += 1

    def write_to(self, entry: IO[bytes]) -> None:
        """As an .npy of [N] text."""
        self._opened.close()
        _header(entry, np.dtype(f"<U{self._longest}"), (self.number,))
        rest = b""
        with self._file.open("rb") as names:
            while block := names.read(_CHUNK):
                *whole, rest = (rest + block).split(b"\0")
                # "replace": numpy keeps no text that isn't Unicode.
                entry.write(np.array([name.decode(errors="replace") for name in whole], f"<U{self._longest}").tobytes())


def _header(entry: IO[bytes], dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_2_0(entry, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})


@contextmanager
def _parquet(file: Path) -> Iterator[Write]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", "To write features to .parquet") from error
    schema = pa.schema([("path", pa.string()), ("features", pa.list_(pa.float32()))])
    writing = file.with_name(f".{file.name}.writing")
    try:
        with parquet.ParquetWriter(writing, schema) as writer:

            def write(batch: Sequence[str], features: Features, bad: Sequence[str]) -> None:
                rows = [*features, *([None] * len(bad))]
                names = [name.encode(errors="replace").decode() for name in (*batch, *bad)]
                writer.write_table(pa.table([names, rows], schema=schema))

            yield write
        os.replace(writing, file)
    finally:
        writing.unlink(missing_ok=True)
