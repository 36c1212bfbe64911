"""The files that a table names: as they are written, with back-slashes of Windows, or without their ending."""

import os
import shlex
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tlkit.data.decode import image_endings
from tlkit.data.sources.tables.faults import Faults


class TableFiles:
    """Turns written paths into ids, finds their files, and remembers those that aren't there or lead out of the root."""

    def __init__(self, file: Path, folder: Path, faults: Faults) -> None:
        self.file, self.folder, self.faults = file, folder, faults
        self.root = os.path.abspath(folder)
        self.inside = self.root if self.root.endswith(os.sep) else self.root + os.sep
        self.outside: list[tuple[int, str]] = []
        self.missing: dict[str, tuple[int, list[str]]] = {}
        self.completed: list[tuple[str, str]] = []
        self.turned: list[str] = []
        self._stems: dict[str, dict[str, list[str]]] = {}

    def id(self, number: int, path: str) -> str | None:
        """Return the path relative to the root with forward slashes, or None where it leads out of the root."""
        id_ = self._inside(path)
        if id_ is None:
            self.outside.append((number, path))
            return None
        if os.path.isfile(self.inside + id_):
            return id_
        if "\\" in path and (turned := self._inside(path.replace("\\", "/"))) is not None:
            if found := self._find(turned):
                self.turned.append(path)
                return found
        elif found := self._find(id_):
            return found
        self.missing.setdefault(id_, (number, self._of_stem(id_)))
        return id_

    def _inside(self, path: str) -> str | None:
        whole = os.path.normpath(os.path.join(self.root, path))
        return whole[len(self.inside) :].replace(os.sep, "/") if whole.startswith(self.inside) else None

    def _find(self, id_: str) -> str:
        """Return the id itself, or the only id that has it as its stem and the ending of an image; otherwise an empty string."""
        if os.path.isfile(self.inside + id_):
            return id_
        names = self._of_stem(id_)
        if len(names) != 1 or os.path.lexists(self.inside + id_):
            return ""
        found = f"{id_.rpartition('/')[0]}/{names[0]}".lstrip("/")
        self.completed.append((id_, found))
        return found

    def _of_stem(self, id_: str) -> list[str]:
        """Return the images with this stem beside the id. A folder is listed once."""
        folder, _, name = id_.rpartition("/")
        if folder not in self._stems:
            stems: dict[str, list[str]] = defaultdict(list)
            place = self.inside + folder
            for found in sorted(os.listdir(place)) if os.path.isdir(place) else []:
                stem, ending = os.path.splitext(found)
                if ending.lower() in image_endings():
                    stems[stem].append(found)
            self._stems[folder] = stems
        return self._stems[folder].get(name, [])

    def warnings(self) -> Iterator[str]:
        if self.completed:
            has = "1 path has" if len(self.completed) == 1 else f"{len(self.completed):,} paths have"
            yield f"{self.file}: {has} no ending and a file with one was found, such as {' -> '.join(self.completed[0])}"
        if self.turned:
            has = "1 path has" if len(self.turned) == 1 else f"{len(self.turned):,} paths have"
            yield f"{self.file}: {has} back-slashes, read as forward slashes, such as {self.turned[0]}"

    def report_missing(self) -> None:
        if not self.missing:
            return
        fix = f"Paths are relative to {Path(self.root)}. {self._missing_hint(next(iter(self.missing)))}".rstrip()
        for id_, (number, names) in self.missing.items():
            path = self.inside + id_
            what = "is a folder" if os.path.isdir(path) else "is a broken link" if os.path.islink(path) else "does not exist"
            if names:
                self.faults.add(
                    number, f"the image {id_} {what}; {' and '.join(names[:4])} do.", "Write the ending too.", kind="several endings"
                )
            else:
                self.faults.add(number, f"the image {id_} {what}.", fix, kind=f"file {what}")

    def _missing_hint(self, missing: str) -> str:
        """Say where an image may be whose path leads nowhere: under another name, or from another folder."""
        first = missing.replace("\\", "/")
        if first[:1] == first[-1:] and first[:1] in "'`":
            return f"Write {first[1:-1]} without quotes, or in double ones."
        if near := self._near_name(first):
            return f"{near} is there: correct the name."
        if inside := self._end_inside(first):
            return f"{inside} is there: write the paths from there on."
        above = next((folder for folder in Path(self.root).parents if os.path.isfile(folder / first)), None)
        return f"{first} is in {above}: data.source.root={shlex.quote(str(above))}." if above else self._root_hint(first)

    def _near_name(self, id_: str) -> str:
        """Return the only image beside it that differs in case, in its ending, or in zeros that a spreadsheet takes off: 0007.png."""
        folder, _, name = id_.rpartition("/")
        place = self.inside + folder
        names = [name for name in os.listdir(place) if os.path.splitext(name)[1].lower() in image_endings()] if os.path.isdir(place) else []
        stem = os.path.splitext(name)[0] if os.path.splitext(name)[1].lower() in image_endings() else name
        names = [found for found in names if found != name and os.path.isfile(os.path.join(place, found))]
        near = [found for found in names if os.path.splitext(found)[0].casefold() == stem.casefold()]
        if not near and stem.isdecimal():
            near = [found for found in names if (whole := os.path.splitext(found)[0]).isdecimal() and int(whole) == int(stem)]
        return f"{folder}/{near[0]}".lstrip("/") if len(near) == 1 else ""

    def _end_inside(self, path: str) -> str:
        """Return the longest end of a path that is an image below the root: of `C:/photos/cat/1.png`, `cat/1.png`."""
        parts = [part for part in path.split("/") if part]
        ends = ("/".join(parts[number:]) for number in range(1, len(parts)))
        return next((end for end in ends if os.path.isfile(self.inside + end)), "")

    def _root_hint(self, first: str) -> str:
        """Return `.. is in ROOT/photos: data.source.root=ROOT/photos`: the folder below the root that has the image."""
        with os.scandir(self.root) as entries:
            folders = sorted(entry.path for entry in entries if entry.is_dir())
        for folder in folders:
            place = os.path.join(folder, first)
            if os.path.isfile(place) or any(os.path.isfile(place + ending) for ending in (".jpg", ".png", ".jpeg", ".tif")):
                return f"{first} is in {folder}: data.source.root={shlex.quote(folder)}."
        return ""

    def report_outside(self) -> None:
        """Report paths outside of the root; the fix names the nearest folder that contains all images."""
        if not self.outside:
            return
        wholes = [os.path.normpath(os.path.join(self.root, path)) for _, path in self.outside]
        together = os.path.commonpath([self.root, *wholes])
        word = "csv" if self.faults.word == "line" else "parquet"
        fix = "Put the images below it, or remove these rows."
        if (end := self._end_inside(self.outside[0][1])) and not os.path.isfile(wholes[0]):
            fix = f"{end} is there: write the paths from there on."
            together = "/"
        if together != os.path.dirname(together):  # the root of the disk holds everything
            source = f"{{{word}: {self.file}, root: {together}}}"
            fix = f"Put them below it, or name a folder that holds all images: {source}, with paths from there."
        for number, path in self.outside:
            self.faults.add(number, f"the path {path} leads out of {self.root}.", fix, kind="outside")
