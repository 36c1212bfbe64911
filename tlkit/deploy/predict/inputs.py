"""Which image files are meant: files, folders, globs, and lists on standard input. Names come one by one: there may be a million."""

import glob
import os
from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path

from tlkit.data.sources.image_files import UnusedImages, file_use
from tlkit.errors import DataError

STDIN = "-"
_READ_BYTES = 1 << 16


def check_paths(paths: Sequence[str]) -> list[str]:
    """Return the folders that hold no image. Raises DataError, before anything slow begins, where no path leads to one, or a glob
    matches nothing."""
    if paths.count(STDIN) > 1:
        raise DataError("'-' is given twice, but standard input can be read only once.\n  Name it once.")
    empty: list[str] = []
    unused = UnusedImages()
    for path in paths:
        if path == STDIN or next(_expand(path, unused), None) is not None:
            continue
        if not Path(path).is_dir():
            raise DataError(f"{path}: no file matches.\n  Expected files, folders, globs such as 'photos/**/*.jpg', or - for a list.")
        empty.append(path)
    if empty and len(empty) == len(paths):
        fix = str(unused) or "Looked for files that Pillow reads, such as .jpg, .png, .webp, .avif and .tif."
        raise DataError(f"{', '.join(empty[:5])}: there is no image in {'this folder' if len(empty) == 1 else 'these folders'}.\n  {fix}")
    return empty


def file_names(
    paths: Sequence[str], stdin: BufferedIOBase, *, separator: bytes = b"\n", unused: UnusedImages | None = None
) -> Iterator[str]:
    """Yield the names of files, in the order of the paths; those in a folder and its subfolders are sorted.

    Names that are no files are yielded too: whoever reads them reports the error. separator: of the list on stdin, for the path `-`;
    its names are taken as they are. unused: counts files in folders that look like images and are left out.
    """
    unused = unused if unused is not None else UnusedImages()
    for path in paths:
        yield from _listed(stdin, separator) if path == STDIN else _expand(path, unused)


def _expand(path: str, unused: UnusedImages) -> Iterator[str]:
    if os.path.isdir(path):
        yield from _walk(path, unused)
    elif glob.has_magic(path) and not os.path.lexists(path):
        for found in sorted(glob.iglob(path, recursive=True)):
            if not os.path.isdir(found):
                yield found
            elif "**" not in path:  # which finds the files in the folder by itself
                yield from _walk(found, unused)
    else:
        yield path


def _walk(folder: str, unused: UnusedImages) -> Iterator[str]:
    """Yield the images in a folder and below it; hidden ones and links to folders are left out."""
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError:
        yield folder  # no image either: reading it gives the reason
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, unused)
        elif (use := file_use(entry.path)) == "image":
            yield entry.path
        elif use == "unused":
            unused.add(entry.path)


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
