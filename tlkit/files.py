"""Files and folders that appear whole or not at all, their sha256, and sizes as people write them."""

import csv
import ctypes
import errno
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import file_digest, sha256
from io import StringIO
from pathlib import Path
from stat import S_IMODE
from typing import Any

UNFINISHED = ".writing"
"""Ending of a file or folder that a process is writing, or was writing when it was killed. Its name begins with a dot."""

NAME_LETTERS = 50
"""Letters of its own name in that: with up to four bytes each, it has no more than the 255 bytes that a name can have."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Source: Linux's fcntl.h and fs.h; described in renameat2(2)."""


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path as a user wrote it, in a recipe or a command, with `~` and `$VAR` expanded; unknown ones stay as they are."""
    return Path(os.path.expanduser(os.path.expandvars(path)))  # Path.expanduser raises for a folder `~old`


@contextmanager
def atomic_file(file: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a file beside `file` to write into, and put it in the place of `file`; where an error is raised, remove it.

    Its mode follows the umask, not the library that writes it (safetensors makes files that only their owner may read).
    durable: the file outlives a power failure from here on; flushing takes milliseconds or more, and is left out for what is
    written many times a second.
    """
    writing = _unfinished(file)
    with naming(file):
        writing.touch()
    try:
        mode = S_IMODE(writing.stat().st_mode)
        yield writing
        writing.chmod(mode)
        if durable:
            _flush(writing)
        with naming(file):
            os.replace(writing, file)
        if durable:
            _flush(file.parent)
    finally:  # POSIX leaves it there too where both are names of the same content
        writing.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system name this path, which people know, in place of a temporary or a lock file beside it."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder` to fill, and put it in the place of `folder`; where an error is raised, remove it.

    What was there before stays until the new folder is whole, and goes then. Needs no more than the parent's existence.
    """
    writing = _unfinished(folder)
    try:
        with naming(folder):
            writing.mkdir()
        yield writing
        for path in [*writing.rglob("*"), writing]:
            _flush(path)
        with naming(folder):
            _take_the_place(writing, folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def write_atomically(file: Path, content: bytes | memoryview | str, *, durable: bool = True) -> None:
    """Write a file whole or not at all; text as UTF-8, with the bytes of file names that are not UTF-8 as they are."""
    with atomic_file(file, durable=durable) as writing:
        writing.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)


def write_json(file: Path, values: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write JSON that people can read, whole or not at all; bytes of file names that are not UTF-8 as escapes, such as \\udcff.

    Raises ValueError for NaN and infinity, which JSON doesn't have.
    """
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(file, text.encode("utf-8", "backslashreplace"), durable=durable)


def read_facts(file: Path) -> dict[str, Any]:
    """Return JSON that only readers depend on; empty where an earlier version wrote none, or where it is damaged."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def write_csv(file: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]], *, durable: bool = True) -> None:
    """Write a table whole or not at all, with the bytes of file names that are not UTF-8 as they are."""
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(file, text.getvalue(), durable=durable)


def remove_unfinished(folder: Path, name: str = "*") -> None:
    """Remove what killed processes have left in and below a folder. name: of the files that they were writing, `*` for all."""
    for path in list(folder.rglob(f".{name[:NAME_LETTERS]}.*{UNFINISHED}")):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def sha256_of(file: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with file.open("rb") as opened:
        return file_digest(opened, "sha256").hexdigest()


def key_of(facts: Any) -> str:
    """Return a file name for what depends on these facts and nothing else: 32 hexadecimal digits. facts: plain JSON values."""
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def is_disk_full(error: OSError) -> bool:
    """Return whether the disk, or the user's share of it, has no room left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def format_bytes(number: float) -> str:
    """Return `44.8 MB`: three digits, in the unit that people would use; a kB is 1,000 bytes."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= 0.9995 * size:  # 999.9 MB would be written as 1e+03 MB
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} bytes"


def _unfinished(path: Path) -> Path:
    """Return a name of this writer alone: processes of several machines may write the same file at once, with equal process ids."""
    return path.with_name(f".{path.name[:NAME_LETTERS]}.{secrets.token_hex(4)}{UNFINISHED}")


def _take_the_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`. The previous folder is afterwards at the place of `new`, or removed."""
    if not folder.exists():
        os.replace(new, folder)
        return
    if _exchange(new, folder):
        return
    old = _unfinished(folder)
    os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step, so that neither is ever missing. Return False if the system or the disk can't."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    names = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    return renameat2 is not None and renameat2(*names, _RENAME_EXCHANGE) == 0


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    if os.name == "nt":  # which flushes only what is open for writing
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
