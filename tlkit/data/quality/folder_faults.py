"""Look through a folder of images to its end, for everything in it that will not be read as its owner expects."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tlkit.data.samples import composed, is_printable
from tlkit.data.sources.classes import odd_class_findings
from tlkit.data.sources.image_files import OTHER_IMAGES, SYSTEM_FOLDERS, file_use, has_image_ending, is_folder
from tlkit.data.sources.kind import Finding, SourceCheck, faults_of, warning_of
from tlkit.data.sources.layout import Layout, LayoutName, find_layout
from tlkit.errors import DataError, did_you_mean

SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})


@dataclass
class FolderScan:
    """A folder's images (id -> file), those of each class in each split ((split, class) -> number), and what else was found."""

    images: dict[str, Path] = field(default_factory=dict)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    system: set[str] = field(default_factory=set)
    hidden: set[str] = field(default_factory=set)
    others: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Ending -> files that are no images."""

    def add(self, level: str, where: str, problem: str, fix: str) -> None:
        self.findings.append(Finding(level, where, problem, fix))  # type: ignore[arg-type]  # written below


def look_through(root: Path, asked: LayoutName = "auto") -> SourceCheck:
    """Check a folder as `data.source.folder` takes it. No fault stops the check."""
    scan = FolderScan()
    layout = _layout(root, asked, scan)
    _entries(root, root, scan)  # for what is hidden there
    for place in dict.fromkeys([root, *layout.places.values()]):
        _loose(root, place, scan)
    for split, folders in layout.folders.items():
        for name, folder in sorted(folders.items()):
            scan.counts[split, name] += 0
            for id_, file in _files(root, folder, {_inode(root), _inode(layout.places[split])}, scan):
                scan.images[id_] = file
                scan.counts[split, name] += 1
    findings = dict.fromkeys([*scan.findings, *_class_findings(layout, scan), *_left_aside(scan)])
    return SourceCheck(scan.images, tuple(findings), len({name for _, name in scan.counts}))


def _layout(root: Path, asked: LayoutName, scan: FolderScan) -> Layout:
    try:
        layout = find_layout(root, asked)
    except DataError as error:
        scan.findings += faults_of(error)
        folders = {composed(name): path for name, path in _entries(root, root, scan)[0].items()}
        return Layout(root, {"": folders}, {"": root})
    scan.findings += (replace(warning_of(text), where=".") for text in layout.warnings)
    for split, place in layout.places.items():
        if place != root or not split:
            names = Counter(map(composed, _entries(root, place, scan)[0]))
            for name in sorted(name for name, number in names.items() if number > 1):
                scan.add(
                    "fault", _id(root, place / name), "two folders have this name in two Unicode spellings", "Join them in one folder."
                )
    return layout


def _loose(root: Path, place: Path, scan: FolderScan) -> None:
    for name in _entries(root, place, FolderScan())[1]:
        if file_use(str(place / name)) == "image":
            fix = f"Move it into {_id(root, place / 'CLASS')}/, or away."
            scan.add("warning", _id(root, place / name), "is beside the class folders: it has no class and is not read", fix)
        else:
            _other(root, place / name, scan)


def _files(root: Path, folder: Path, seen: set[tuple[int, int]], scan: FolderScan) -> Iterator[tuple[str, Path]]:
    """Yield (id, file) of all image files at any depth. seen: folders that are not entered, so that loops of links end."""
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        folders, files = _entries(root, place, scan)
        identity = _inode(place)
        if identity in seen:
            if place.is_symlink():
                fix = "Remove the link; its images are read where they are."
                scan.add("warning", f"{_id(root, place)}/", "is a link to a folder that is read already: it is not entered again", fix)
            continue
        seen.add(identity)
        for name in files:
            if file_use(str(place / name)) == "image":
                id_ = composed(_id(root, place / name))
                if id_ in scan.images:
                    scan.add("fault", id_, "two files have this name in two Unicode spellings", "Rename one of them.")
                yield id_, place / name
            else:
                _other(root, place / name, scan)
        for name, path in sorted(folders.items(), reverse=True):
            if has_image_ending(name):
                scan.add("fault", f"{_id(root, path)}/", "this is a folder, not an image", "Rename it, or put the image itself there.")
            waiting.append(path)


def _entries(root: Path, place: Path, scan: FolderScan) -> tuple[dict[str, Path], list[str]]:
    """Return folders by name, and names of files, both sorted; system files and hidden ones are left out."""
    folders: dict[str, Path] = {}
    files: list[str] = []
    try:
        with os.scandir(place) as entries:
            names = sorted((entry.name, is_folder(entry)) for entry in entries)
    except OSError as error:
        scan.add(
            "fault",
            f"{_id(root, place)}/",
            f"the folder can't be read ({error.strerror})",
            "Change its permissions so that you can read and enter it.",
        )
        return {}, []
    for name, enters in names:
        if name == ".DS_Store" or name.startswith("._") or name.lower() in SYSTEM_FILES or name in SYSTEM_FOLDERS:
            scan.system.add(_id(root, place / name))
        elif name.startswith("."):
            scan.hidden.add(_id(root, place / name))
        elif enters:
            folders[name] = place / name
        else:
            files.append(name)
    return folders, files


def _other(root: Path, file: Path, scan: FolderScan) -> None:
    """Add a file that is not read."""
    where, ending = _id(root, file), file.suffix.lower()
    if file.is_symlink() and not file.exists():
        scan.add("warning", where, "is a broken or circular link", "Restore its target, or remove it.")
    elif file_use(str(file)) != "unused":
        scan.others[ending or file.name].append(where)
    elif ending in OTHER_IMAGES:
        scan.add("warning", where, f"images in {ending[1:].upper()} form are not read", "Save it as JPEG or PNG.")
    else:
        problem = f"holds an image, but files ending in {ending or 'nothing'} are not read"
        scan.add("warning", where, problem, "Give it the ending of its format, such as .jpg, or save it as JPEG or PNG.")


def _class_findings(layout: Layout, scan: FolderScan) -> Iterator[Finding]:
    training, root = layout.training, layout.root
    classes = sorted(name for split, name in scan.counts if split == training)
    place = f"{layout.places[training].name}/" if layout.places[training] != root else ""
    if len(classes) < 2:
        what = f"there is one class only, '{classes[0]}'" if classes else "there are no class folders"
        yield Finding("fault", place or ".", what, f"Expected at least two folders of images: {place}CLASS/*.jpg")
    for name in classes:
        if not scan.counts[training, name]:
            yield Finding("fault", f"{place}{name}/", "the class folder holds no image", "Put images into it, or remove the folder.")
        if not is_printable(name):
            problem = "the name of the class is not UTF-8 or has unprintable characters"
            yield Finding("fault", f"{place}{name}/", problem, "Rename the folder.")
    yield from odd_class_findings([name for name in classes if is_printable(name)], lambda name: f"{place}{name}/")
    quoted = [name for name in classes if is_printable(name) and not all(sign.isalnum() or sign in "-_." for sign in name)]
    if quoted:
        more = f" (and {len(quoted) - 1} more with spaces or signs)" if len(quoted) > 1 else ""
        yield Finding(
            "note", f"{place}{quoted[0]}/", f"the name of the class is taken as it is{more}", "On the command line it needs quotes."
        )
    for split, folder in layout.places.items():
        if split == training or not classes:
            continue
        held = {name: number for (where, name), number in scan.counts.items() if where == split}
        for name in sorted(held.keys() - set(classes)):
            fix = f"Give it training images, or rename or remove it here. {did_you_mean(name, classes)}".rstrip()
            yield Finding("fault", f"{folder.name}/{name}/", "training has no such class", fix)
        if missing := [name for name in classes if not held.get(name)]:
            problem = f"has no image of {', '.join(missing)}: its figures say nothing about them"
            yield Finding("warning", f"{folder.name if folder != root else split}/", problem, "Move some images of each class there.")


def _left_aside(scan: FolderScan) -> Iterator[Finding]:
    """Yield one note for each kind of file that is left out on purpose."""
    kinds = {"left by the system": scan.system, "hidden": scan.hidden}
    kinds |= {f"no image ({ending})": set(names) for ending, names in scan.others.items()}
    for kind, names in sorted(kinds.items()):
        if names:
            yield Finding("note", min(names), f"{kind}: not read{f' (and {len(names) - 1} more like it)' if len(names) > 1 else ''}")


def _inode(folder: Path) -> tuple[int, int]:
    """Return what is the same for all names of one folder."""
    try:
        state = os.stat(folder)
    except OSError:  # gone by now, or behind one that may not be entered
        return 0, 0
    return state.st_dev, state.st_ino


def _id(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
