"""The index of a tar shard: the offset and labels of each image; stored, so that a shard is read through once."""

import json
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from tlkit.data.decode import image_endings
from tlkit.data.samples import LABEL_SEPARATOR
from tlkit.data.sources.classes import Label
from tlkit.files import write_atomically
from tlkit.recipe.schema import Task

LABELS = ("cls", "json", "txt")
"""Members that may hold the label; the first of them that a sample has is read."""
JSON_KEYS = ("label", "labels", "cls", "class")
MOST_LABEL_BYTES = 1_000_000
_BLOCK = 512
_FORM = 2  # of the kept index
_PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}

log = logging.getLogger("tlkit")


class ShardFault(Exception):
    """faults: everything that is wrong with one shard, as (place, problem). entries: what there is all the same."""

    def __init__(self, faults: Sequence[tuple[str, str]], entries: Sequence["Entry"] = ()) -> None:
        self.faults, self.entries = tuple(faults), tuple(entries)
        super().__init__("\n".join(map(": ".join, faults)))


@dataclass(frozen=True, slots=True)
class Entry:
    """An image of a shard: its key, where its bytes are, and its labels as they are written."""

    key: str
    offset: int
    size: int
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class ShardIndex:
    """entries: the images of a shard in its order. unused: the first image member that isn't used, such as a mask `a.seg.png`, and how
    many there are. links: that aren't followed."""

    entries: Sequence[Entry]
    unused: tuple[str, int] = ("", 0)
    links: int = 0


def shard_index(shard: Path, folder: Path, task: Task) -> ShardIndex:
    """Return the index of a shard. Kept in `folder` for as long as the shard has the same size and time.

    Raises ShardFault.
    """
    try:
        state = shard.stat()
        facts = [_FORM, task, os.path.abspath(shard), state.st_size, state.st_mtime_ns]
        kept = folder / f"{sha256(os.fsencode(os.path.abspath(shard))).hexdigest()[:24]}-{task}.json"
        if (index := _kept(kept, facts)) is not None:
            return index
        index = _Scan(shard, task).index()
    except (OSError, tarfile.TarError) as error:
        raise ShardFault([(str(shard), f"can't be read ({error}).")]) from error
    _keep(kept, facts, index)
    return index


def _kept(file: Path, facts: list[Any]) -> ShardIndex | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["facts"] != facts:
            return None
        entries = [Entry(key, offset, size, tuple(labels)) for key, offset, size, labels in content["entries"]]
        first, number = content["unused"]
        return ShardIndex(entries, (first, number), content["links"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _keep(file: Path, facts: list[Any], index: ShardIndex) -> None:
    entries = [[entry.key, entry.offset, entry.size, entry.labels] for entry in index.entries]
    content = {"facts": facts, "entries": entries, "unused": index.unused, "links": index.links}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(content), durable=False)
    except OSError as error:
        log.warning("the index of shards can't be written to %s (%s): it is made again in every run", file.parent, error.strerror)


@dataclass
class _Member:
    """The files of one key: the places of its images and of its labels, and the endings of all."""

    key: str
    images: list[tuple[int, int]] = field(default_factory=list)
    labels: dict[str, tuple[int, int]] = field(default_factory=dict)
    endings: list[str] = field(default_factory=list)

    def add(self, ending: str, place: tuple[int, int]) -> None:
        self.endings.append(ending)
        if f".{ending}" in image_endings() and ending != "npy":
            self.images.append(place)
        elif ending in LABELS:
            self.labels[ending] = place


class _Scan:
    def __init__(self, shard: Path, task: Task) -> None:
        self.shard, self.task = shard, task
        self.faults: list[tuple[str, str]] = []
        self.links = 0
        self.unused: list[str] = []

    def index(self) -> ShardIndex:
        """Raise ShardFault if anything is wrong."""
        entries: list[Entry] = []
        with self.shard.open("rb") as file:
            for member in self._grouped(file):
                if (entry := self._entry(member, file)) is not None:
                    entries.append(entry)
        twice = [key for key, times in Counter(entry.key for entry in entries).items() if times > 1]
        if twice:
            more = f", and so do {len(twice) - 1} more" if len(twice) > 1 else ""
            self.faults.append((str(self.shard), f"the key {twice[0]} comes more than once{more}."))
        if not entries and not self.faults:
            self.faults.append((str(self.shard), "has no images."))
        if self.faults:
            raise ShardFault(self.faults, entries)
        return ShardIndex(entries, (min(self.unused, default=""), len(self.unused)), self.links)

    def _grouped(self, file: IO[bytes]) -> Iterator[_Member]:
        """Group consecutive members with the same key, by webdataset's rule: the name up to the first dot."""
        from webdataset.tariterators import base_plus_ext

        current, members = "", dict[str, _Member]()
        for name, offset, size in self._files(file):
            key, endings = base_plus_ext(name.removeprefix("./"))
            if key is None or os.path.basename(key).startswith("__"):
                continue
            if key != current:
                yield from self._samples(members)
                current, members = key, {}
            more, _, ending = endings.rpartition(".")
            members.setdefault(more, _Member(f"{key}.{more}" if more else key)).add(ending.lower(), (offset, size))
        yield from self._samples(members)

    def _samples(self, members: Mapping[str, _Member]) -> Iterator[_Member]:
        """Yield the samples among the files of one key: `a.jpg` and `a.cls` are one, and so are `a.1.jpg` and `a.1.cls`.

        What else is beside `a.jpg`, such as a mask `a.seg.png`, is no sample. members: by what is between the first and the last dot.
        """
        whole = "" in members and bool(members[""].images)
        for more, member in members.items():
            if not more or not whole or (member.images and "cls" in member.labels):
                yield member
            elif member.images:
                self.unused += [f"{member.key}.{ending}" for ending in member.endings if f".{ending}" in image_endings()]

    def _files(self, file: IO[bytes]) -> Iterator[tuple[str, int, int]]:
        """Yield (name, offset, size) of each file in the tar, up to its end mark."""
        try:
            tar = tarfile.open(self.shard, "r:")  # noqa: SIM115 (closed below)
        except tarfile.ReadError as error:
            packed = next((word for start, word in _PACKED.items() if _begins(file, start)), "")
            why = f"is no tar, or cut off at its beginning ({error})"
            if packed:
                why = f"is packed with {packed}, and can't be read at any offset: unpack it first"
            self.faults.append((str(self.shard), f"{why}."))
            return
        with tar:
            try:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # or it would remember every member of a large shard
                    if member.name.startswith("/") or ".." in member.name.split("/"):
                        self.faults.append((f"{self.shard}: {member.name}", "leads out of the shard; nothing was written."))
                    elif member.issym() or member.islnk():
                        self.links += 1
                    elif member.isreg() and not member.issparse():
                        yield member.name, member.offset_data, member.size
            except tarfile.ReadError:
                self._tell_end(tar.offset)
                return
            # tarfile takes a half or broken header for the end.
            file.seek(tar.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                self._tell_end(tar.offset)

    def _tell_end(self, offset: int) -> None:
        size = self.shard.stat().st_size
        end = f"is cut off or damaged at byte {offset:,}; the file has"
        if offset > size:
            end = f"is cut off: it goes on to byte {offset:,}, and has"
        self.faults.append((str(self.shard), f"{end} {size:,}."))

    def _entry(self, member: _Member, file: IO[bytes]) -> Entry | None:
        if not member.images and not member.labels:
            return None
        place = f"{self.shard}: {member.key}"
        if len(member.images) != 1:
            has = "more than one image" if member.images else f"no image, but {', '.join(f'.{ending}' for ending in member.endings)}"
            self.faults.append((place, f"has {has}."))
            return None
        labels = self._labels(member, place, file)
        return None if labels is None else Entry(member.key, *member.images[0], labels)

    def _labels(self, member: _Member, place: str, file: IO[bytes]) -> tuple[Label, ...] | None:
        ending = next((ending for ending in LABELS if ending in member.labels), None)
        if ending is None:
            self.faults.append((place, "has no label."))
            return None
        offset, size = member.labels[ending]
        if size > MOST_LABEL_BYTES:
            self.faults.append((place, f"its .{ending} has {size:,} bytes, which is no label."))
            return None
        file.seek(offset)
        try:
            labels = _parsed(ending, file.read(size).decode("utf-8"))
        except (ValueError, KeyError, TypeError) as error:
            self.faults.append((place, f"no label can be read from its .{ending} ({error})."))
            return None
        if self.task == "multiclass" and not labels:
            self.faults.append((place, f"its .{ending} is empty."))
            return None
        if self.task == "multiclass" and len(labels) != 1:
            self.faults.append((place, f"has {len(labels)} labels; for any number of them set task to multilabel."))
            return None
        return labels


def _begins(file: IO[bytes], start: bytes) -> bool:
    file.seek(0)
    return file.read(len(start)) == start


def as_label(text: str) -> Label:
    """Return the text without blanks around it; as a number only where that says the same: 7, but not 007."""
    word = text.strip()
    return int(word) if word.isdecimal() and str(int(word)) == word else word


def _parsed(ending: str, text: str) -> tuple[Label, ...]:
    """Parse a label. Raises ValueError, KeyError or TypeError if there is none."""
    if ending != "json":
        if "\0" in text:
            raise ValueError("it holds the bytes of a number, not its digits: write str(label)")
        labels = [as_label(word) for word in text.split(LABEL_SEPARATOR)]
        return tuple(label for label in labels if label != "")
    content = json.loads(text)
    if isinstance(content, dict):
        found = next((key for key in JSON_KEYS if key in content), None)
        if found is None:
            raise ValueError(f"it has none of the keys {', '.join(JSON_KEYS)}")
        content = content[found]
    several = content if isinstance(content, list) else [content]
    if not all(isinstance(label, int | str) and not isinstance(label, bool) for label in several):
        raise ValueError(f"{json.dumps(content)[:40]} is no label")
    return tuple(several)
