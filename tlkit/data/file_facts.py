"""A cache of results per file (its sha256, whether it can be decoded), valid while its path, size and times stay the same."""

import logging
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from tlkit.data.samples import ImageSource
from tlkit.data.sources.webdataset_shards import TarImage
from tlkit.system import cache_folder

LOG = logging.getLogger("tlkit")

FILE = "checked/files.sqlite"
WAIT_S = 5.0
"""Longest wait for another run that writes to the same table."""
WRITE_EVERY_S = 5.0
"""Results are written this often, so that a killed process loses few."""
NEW_NS, NEW_IN_WHOLE_SECONDS_NS = 20_000_000, 2_000_000_000
"""A file that was changed so recently may change again with the same time: clocks of file systems tick every 10 ms or less,
some every second or two. Its result is not cached yet."""


class FileKey(NamedTuple):
    """A file, or a member of a tar, at one time. changed, status_changed: in nanoseconds; copying and unpacking can set the first only."""

    path: bytes
    size: int
    changed: int
    status_changed: int

    @property
    def is_settled(self) -> bool:
        """Check whether a later change of the file would change the key."""
        latest = max(self.changed, self.status_changed)
        return time.time_ns() - latest > (NEW_IN_WHOLE_SECONDS_NS if latest % 1_000_000_000 == 0 else NEW_NS)


def file_key(image: ImageSource) -> FileKey | None:
    """Return the key of a file or of a member of a tar; None for an image that is neither.

    An image of a torchvision set has its file's key, and is another thing than the file: its facts are those of its pixels.
    """
    file: Path | None
    if isinstance(image, TarImage):
        file, member = image.shard, b"\0%d" % image.offset
    else:
        file, member = (image, b"") if isinstance(image, Path) else (getattr(image, "file", None), b"\0pixels")
    if file is None:
        return None
    try:
        state = file.stat()
    except OSError:
        return None
    if not S_ISREG(state.st_mode):
        return None
    return FileKey(os.fsencode(os.path.abspath(file)) + member, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


class FileFacts:
    """A table of one kind of fact. What can't be read or written is done without: then it is found out again."""

    def __init__(self, kind: str) -> None:
        """Open the store of one kind of values. kind: names the values and all that they depend on besides the file."""
        self._kind = kind
        self._written = time.monotonic()
        self._table = _open_table(cache_folder() / FILE)

    def get(self, key: FileKey) -> str | None:
        """Return what was kept about this very file."""
        with suppress(sqlite3.Error):
            query = "SELECT value FROM facts WHERE path=? AND kind=? AND size=? AND changed=? AND status_changed=?"
            row: Sequence[str] | None = self._table.execute(query, (key.path, self._kind, *key[1:])).fetchone()
            return row[0] if row else None
        return None

    def put(self, key: FileKey, value: str) -> None:
        """Keep a value, in place of one about an earlier content of the file."""
        if not key.is_settled:
            return
        with suppress(sqlite3.Error):
            self._table.execute("INSERT OR REPLACE INTO facts VALUES (?,?,?,?,?,?)", (key.path, self._kind, *key[1:], value))
            if time.monotonic() - self._written > WRITE_EVERY_S:
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
        _warn_once(file, str(error))
    except OSError as error:
        _warn_once(file, error.strerror)
    return _connected(":memory:")


@cache
def _warn_once(file: Path, why: str) -> None:
    LOG.warning("results of checks of images can't be kept in %s (%s): this run makes them again", file, why)


def _connected(name: str) -> sqlite3.Connection:
    table = sqlite3.connect(name, timeout=WAIT_S)
    columns = "path BLOB, kind TEXT, size INT, changed INT, status_changed INT, value TEXT"
    table.execute(f"CREATE TABLE IF NOT EXISTS facts ({columns}, PRIMARY KEY (path, kind))")
    return table
