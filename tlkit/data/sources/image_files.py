"""Which files and folders of a tree are read: names with an image's ending, and no system's or hidden ones."""

import os

from tlkit.data.decode import EXTENSIONS

# What systems leave among people's files; some of it holds small copies of their images.
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def has_image_ending(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def is_folder(entry: os.DirEntry[str]) -> bool:
    """A link that runs in a circle, or to where one may not look, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False
