"""Which picture files are meant: files, folders, globs, and lists on standard input. Names come one by one: there may be a million."""

import glob
import os
from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path

from tlkit.data.decode import EXTENSIONS
from tlkit.errors import DataError

STDIN = "-"
_READ_BYTES = 1 << 16


def check_paths(paths: Sequence[str]) -> None:
    """Raises DataError for a folder or a glob that holds no picture, before anything slow begins."""
    if paths.count(STDIN) > 1:
        raise DataError("'-' stands twice among the pictures, but standard input can be read only once.\n  Name it once.")
    for path in paths:
        if path == STDIN or next(_expand(path), None) is not None:
            continue
        endings = ", ".join(sorted(EXTENSIONS))
        if Path(path).is_dir():
            raise DataError(f"{path}: there is no picture in this folder or below it.\n  Looked for files that end in {endings}.")
        raise DataError(f"{path}: no file matches.\n  Expected files, folders, globs such as 'photos/**/*.jpg', or - for a list.")


def file_names(paths: Sequence[str], stdin: BufferedIOBase, *, separator: bytes = b"\n") -> Iterator[str]:
    """Names of files, in the order of the paths; a folder's sorted, and those of the folders in it with them.

    A name that is no file is given too: whoever reads it says what is wrong. separator: of the list on stdin, which `-` stands for;
    names in it are taken as they are.
    """
    for path in paths:
        yield from _listed(stdin, separator) if path == STDIN else _expand(path)


def _expand(path: str) -> Iterator[str]:
    if os.path.isdir(path):
        yield from _walk(path)
    elif glob.has_magic(path) and not os.path.lexists(path):
        for found in sorted(glob.iglob(path, recursive=True)):
            if not os.path.isdir(found):
                yield found
            elif "**" not in path:  # which finds what lies in the folder by itself
                yield from _walk(found)
    else:
        yield path


def _walk(folder: str) -> Iterator[str]:
    """Pictures in a folder and below it; hidden ones and links to folders are left out."""
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError:
        yield folder  # no picture either: reading it tells why
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            yield entry.path


def _listed(stdin: BufferedIOBase, separator: bytes) -> Iterator[str]:
    rest = b""
    # read1 gives what is there, so that a program that writes the list slowly is followed.
    while chunk := stdin.read1(_READ_BYTES):
        *names, rest = (rest + chunk).split(separator)
        yield from _decoded(names, separator)
    yield from _decoded([rest], separator)


def _decoded(names: list[bytes], separator: bytes) -> Iterator[str]:
    for name in names:
        # Lists from Windows end their lines with \r\n. After NUL, every character is part of the name.
        if stripped := name if separator == b"\0" else name.removesuffix(b"\r"):
            yield os.fsdecode(stripped)
