"""Which files and folders of a tree are read: files that Pillow reads, and no system's or hidden ones. Others that look like images are
counted, so that they can be reported."""

import os
import re
from collections import Counter
from typing import Literal

from tlkit.data.decode import image_endings

# What systems leave among people's files; some of it holds small copies of their images.
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
OTHER_IMAGES = frozenset((
    ".heic", ".heif", ".hif", ".raw", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw", ".jxl",
    ".jxr", ".wdp", ".svg", ".svgz", ".eps", ".wmf", ".emf", ".exr", ".hdr", ".xcf", ".psb", ".dcm", ".dicom",
))  # fmt: skip
"""Endings of photographs by cameras, of drawings and of scans that Pillow doesn't decode."""
NO_IMAGES = frozenset((
    ".txt", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".md", ".yaml", ".yml", ".html", ".pdf", ".py", ".ipynb", ".log", ".zip", ".gz",
    ".tar", ".mat", ".db", ".ini",
))  # fmt: skip
"""Endings of what is often found beside images: such files aren't opened. Others are, for their first bytes."""
_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF.{4}WEBP|II\*\0|MM\0\*|BM.{4}\0{4}|.{4}ftypavi[fs]|\0{3}\x0cjP  |P[1-6]\s|8BPS", re.DOTALL
)
_OTHER_SIGNATURE = re.compile(rb".{4}ftyp(hei[cx]|hevc|mif1|msf1)|\0{3}\x0cJXL |\xff\x0a", re.DOTALL)
FileUse = Literal["image", "unused", ""]


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def has_image_ending(name: str) -> bool:
    return _ending(name) in image_endings()


def file_use(path: str) -> FileUse:
    """Return `image` for a file that is read: by its ending or, where the name has none, by its first bytes.

    `unused`: it looks like an image and is not read. The empty string: it is something else. The caller has excluded hidden files,
    pipes and devices.
    """
    ending = _ending(path)
    if ending in image_endings():
        return "image"
    if ending in OTHER_IMAGES:
        return "unused"
    if ending in NO_IMAGES:
        return ""
    start = _first_bytes(path)
    if _SIGNATURE.match(start):
        return "unused" if ending else "image"
    return "unused" if _OTHER_SIGNATURE.match(start) else ""


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _first_bytes(path: str) -> bytes:
    try:
        if not os.path.isfile(path):  # Opening a pipe would wait for ever.
            return b""
        with open(path, "rb", buffering=0) as file:
            return file.read(32)
    except OSError:
        return b""


class UnusedImages:
    """Files that look like images and are not read: how many of each ending, and the first of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, path: str) -> None:
        ending = _ending(path) or "without an ending"
        self.counts[ending] += 1
        self.first.setdefault(ending, path)

    def __str__(self) -> str:
        """Return `9 files look like images and are not used: 8 .heic, such as a/1.heic; 1 .svg, such as b.svg. ..`, or nothing."""
        if not self.counts:
            return ""
        number = self.counts.total()
        start = "1 file looks like an image and is not used" if number == 1 else f"{number:,} files look like images and are not used"
        kinds = [f"{count:,} {ending}, such as {self.first[ending]}" for ending, count in self.counts.most_common(5)]
        others = f"; and {len(self.counts) - 5} other endings" if len(self.counts) > 5 else ""
        return f"{start}: {'; '.join(kinds)}{others}. Save them as JPEG or PNG, with the ending .jpg or .png."


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return False for a link that runs in a circle, or to where one may not look."""
    try:
        return entry.is_dir()
    except OSError:
        return False
