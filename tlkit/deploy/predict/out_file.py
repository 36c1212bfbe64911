"""A file of predictions that is written row by row and can be resumed by a later call: every image has exactly one row."""

import csv
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tlkit.deploy.predict.layouts import Layout
from tlkit.errors import DataError
from tlkit.files import naming, write_json


@dataclass(frozen=True)
class Rows:
    """The rows of an earlier call. names: digests, sorted: eight bytes a name, so that a million take eight megabytes.

    That two of a million names share one has a chance of one in thirty million.
    """

    names: NDArray[np.uint64]
    unreadable: int

    def without(self, names: Iterable[str]) -> Iterator[str]:
        """Yield the names that have no row yet."""
        for name in names:
            wanted = np.uint64(digest(name))
            place = int(np.searchsorted(self.names, wanted))
            if place == len(self.names) or self.names[place] != wanted:
                yield name


NO_ROWS = Rows(np.empty(0, np.uint64), 0)


@contextmanager
def open_out(file: Path, layout: Layout, made_by: Mapping[str, Any], *, resume: bool) -> Iterator[tuple[BinaryIO, Rows]]:
    """Open the file for appending rows, and return the rows that it has.

    made_by: what the rows depend on; it is stored beside the file, and only a call with the same values may resume it.
    Raises DataError if the file exists and resume is false, if it was made differently, or if another call is writing it.
    """
    notes = notes_file(file)
    check_out(file)
    with only_writer(file):
        if not (resume and file.exists()):
            _refuse_existing(file)
            write_json(notes, made_by)
            file.write_bytes(layout.begin.encode())
        check_notes(file, notes, made_by)
        rows = _read_rows(file, layout)
        with file.open("ab") as opened:
            yield opened, rows


@contextmanager
def only_writer(file: Path) -> Iterator[None]:
    """Raise DataError if another call is writing the file."""
    from filelock import FileLock, Timeout

    lock = FileLock(file.with_name(f".{file.name}.lock"), timeout=0)
    try:
        with naming(file):
            lock.acquire()
    except Timeout as error:
        raise DataError(f"--out {file}: another tlkit is writing it.\n  Wait for it to end, or write to another file.") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def check_out(file: Path) -> None:
    if file.is_dir():
        raise DataError(f"--out {file}: this is a folder.\n  Expected a file to write.")


def notes_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.made_by.json")


def _refuse_existing(file: Path) -> None:
    if file.exists():
        raise DataError(f"--out {file}: the file exists.\n  Resume it with --resume, or remove it, or write to another file.")


def check_notes(file: Path, notes: Path, made_by: Mapping[str, Any]) -> None:
    try:
        before = json.loads(notes.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{notes} can't be read: {error}\n  It says which model the rows of {file.name} are from. Write to another file."
        ) from error
    for key, value in made_by.items():
        if before.get(key) != value:
            raise DataError(
                f"--resume: {file} was begun with another {key} ({before.get(key)}); this call has {value}.\n"
                "  Call tlkit predict as before, or write to another file."
            )


def _read_rows(file: Path, layout: Layout) -> Rows:
    """Read the rows and cut off what follows the last complete one: the previous call was stopped while it wrote."""
    columns = next(csv.reader([layout.begin])) if layout.begin else []
    as_csv = bool(columns)
    digests, unreadable, end = array("Q"), 0, 0
    with file.open("rb") as opened:
        for number, record in enumerate(_whole_records(opened, as_csv=as_csv)):
            end += len(record)
            if as_csv and number == 0:
                if record != layout.begin.encode():
                    raise DataError(f"--resume: {file} does not begin with the header of this call.\n  Write to another file.")
                continue
            path, failed = _row_of(file, number + 1, record, columns)
            digests.append(digest(path))
            unreadable += failed
    os.truncate(file, end)
    if as_csv and end == 0:
        file.write_bytes(layout.begin.encode())
    return Rows(sorted_digests(digests), unreadable)


def sorted_digests(digests: "array[int]") -> NDArray[np.uint64]:
    return np.sort(np.frombuffer(digests, np.uint64)) if digests else NO_ROWS.names


def _whole_records(opened: BinaryIO, *, as_csv: bool) -> Iterator[bytes]:
    """Yield lines; in a csv, where a name may contain a line end, those with all their quotes closed."""
    record = b""
    for line in opened:
        record += line
        if line.endswith(b"\n") and not (as_csv and record.count(b'"') % 2):
            yield record
            record = b""


def _row_of(file: Path, number: int, record: bytes, columns: Sequence[str]) -> tuple[str, bool]:
    """Return the path, and whether the row says that it couldn't be read. columns: those of a csv."""
    try:
        text = record.decode(errors="surrogateescape")
        if columns:
            (cells,) = csv.reader([text])
            return cells[0], bool(cells[columns.index("error")])
        values = json.loads(text)
        return str(values["path"]), bool(values.get("error"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(f"--resume: row {number} of {file} was not written by tlkit: {error}\n  Write to another file.") from error


def digest(name: str) -> int:
    """Hash a file name: the key of Rows.names."""
    return int.from_bytes(blake2b(os.fsencode(name), digest_size=8).digest())
