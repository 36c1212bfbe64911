"""`tlkit predict --features`: what the head sees of each image, in one .npz or .parquet.

Batches go to disk as they come, into a folder of parts beside the file. A call that is stopped leaves it, for --resume to continue with;
it goes when the file is whole.
"""

import os
import shutil
import zipfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tlkit.deploy.predict.out_file import Rows, check_notes, check_out, digest, only_writer, sorted_digests
from tlkit.errors import DataError, MissingExtraError
from tlkit.files import atomic_file, atomic_folder, write_json

Features = NDArray[np.float32]
Write = Callable[[Sequence[str], Features, Sequence[str]], None]
"""Names, their features [B, F], and names of files that can't be read."""
_CHUNK = 1 << 16
_AT_ONCE = 4096
"""Rows that are in memory while the file is put together."""
_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Parts:
    """The folder of parts. features: [N, F] float32, nothing else. names: + or -, readable or not, the name, NUL; in their order."""

    folder: Path
    width: int

    @property
    def features(self) -> Path:
        return self.folder / "features"

    @property
    def names(self) -> Path:
        return self.folder / "names"

    @property
    def notes(self) -> Path:
        return self.folder / "made_by.json"

    def records(self) -> Iterator[bytes]:
        """Yield complete records: the last one may be truncated."""
        rest = b""
        with self.names.open("rb") as names:
            while block := names.read(_CHUNK):
                *whole, rest = (rest + block).split(b"\0")
                yield from whole

    def listed(self, *, readable: bool) -> Iterator[str]:
        """Yield names for arrays and tables, which have no text that isn't Unicode."""
        return (record[1:].decode(errors="replace") for record in self.records() if (record[:1] == b"+") == readable)

    def cut(self) -> Rows:
        """Remove an incomplete end, since a call may be stopped while it writes, and return the complete rows."""
        with_features = self.features.stat().st_size // (4 * self.width)
        digests, readable, unreadable, end = array("Q"), 0, 0, 0
        for record in self.records():
            if record[:1] == b"+" and readable == with_features:
                break
            readable += record[:1] == b"+"
            unreadable += record[:1] == b"-"
            digests.append(digest(os.fsdecode(record[1:])))
            end += len(record) + 1
        os.truncate(self.names, end)
        os.truncate(self.features, readable * 4 * self.width)
        return Rows(sorted_digests(digests), unreadable)


@contextmanager
def open_features(file: Path, width: int, made_by: Mapping[str, Any], *, resume: bool) -> Iterator[tuple[Write, Rows]]:
    """Open a feature file: returns a function that writes a batch, and the rows of earlier calls. The file is created when all is written.

    .npz: `paths` [N], `features` [N, F] float32, `unreadable`. .parquet: columns path and features, a list that is null for an unreadable
    file. width: F. made_by: what the features depend on; only a call with the same values may resume.
    Raises DataError for another kind of file or if there is nothing to resume, MissingExtraError if pyarrow is missing.
    """
    put_together = _writer_of(file)
    check_out(file)
    parts = Parts(file.with_name(f"{file.name}.parts"), width)
    with only_writer(file):
        _begin(file, parts, made_by, resume=resume)
        check_notes(file, parts.notes, made_by)
        rows = parts.cut()
        with parts.features.open("ab") as features, parts.names.open("ab") as names:
            yield partial(_add, features, names), rows
        with atomic_file(file) as writing:
            put_together(parts, writing)
        shutil.rmtree(parts.folder)


def _begin(file: Path, parts: Parts, made_by: Mapping[str, Any], *, resume: bool) -> None:
    """Create a new folder of parts, unless there is one to resume."""
    if parts.folder.exists():
        if not resume:
            raise DataError(
                f"--out {file}: an earlier call for it was stopped, and its results are in {parts.folder}.\n"
                "  Resume it with --resume, or remove that folder."
            )
        return
    if resume and file.exists():
        raise DataError(f"--resume: {file} is complete, and nothing is appended to a complete file of features.\n  Write to another file.")
    with atomic_folder(parts.folder) as beginning:
        for part in (parts.features, parts.names):
            (beginning / part.name).touch()
        write_json(beginning / parts.notes.name, made_by)


def _add(features: IO[bytes], names: IO[bytes], batch: Sequence[str], rows: Features, bad: Sequence[str]) -> None:
    features.write(rows.tobytes())
    features.flush()  # before the names: a name says that its features are there
    records = [*(b"+" + os.fsencode(name) for name in batch), *(b"-" + os.fsencode(name) for name in bad)]
    names.write(b"".join(record + b"\0" for record in records))
    names.flush()


def _writer_of(file: Path) -> Callable[[Parts, Path], None]:
    if file.suffix == ".npz":
        return _write_npz
    if file.suffix != ".parquet":
        raise DataError(f"--out {file}: features can't be written to this kind of file.\n  Expected FILE.npz or FILE.parquet.")
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", "Writing features to .parquet") from error
    return _write_parquet


def _write_npz(parts: Parts, file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("features.npy"), "w", force_zip64=True) as entry, parts.features.open("rb") as kept:
            _header(entry, np.dtype(np.float32), (parts.features.stat().st_size // (4 * parts.width), parts.width))
            shutil.copyfileobj(kept, entry)
        for key, readable in (("paths", True), ("unreadable", False)):
            with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as entry:
                _write_text(entry, partial(parts.listed, readable=readable))


def _write_text(entry: IO[bytes], listed: Callable[[], Iterable[str]]) -> None:
    """Save an .npy of [N] text; numpy needs to know the longest first."""
    number, longest = 0, 1
    for name in listed():
        number, longest = number + 1, max(longest, len(name))
    _header(entry, np.dtype(f"<U{longest}"), (number,))
    for names in _batched(listed()):
        entry.write(np.array(names, f"<U{longest}").tobytes())


def _header(entry: IO[bytes], dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_2_0(entry, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})


def _write_parquet(parts: Parts, file: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([("path", pa.string()), ("features", pa.list_(pa.float32()))])
    with parquet.ParquetWriter(file, schema) as writer, parts.features.open("rb") as kept:
        for records in _batched(parts.records()):
            rows = [np.frombuffer(kept.read(4 * parts.width), np.float32) if record[:1] == b"+" else None for record in records]
            names = [record[1:].decode(errors="replace") for record in records]
            writer.write_table(pa.table([names, rows], schema=schema))


def _batched(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    remaining = iter(rows)
    return iter(lambda: list(islice(remaining, _AT_ONCE)), [])
