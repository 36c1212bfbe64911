"""`tlkit data fetch RECIPE --to DIR`: everything that a recipe needs, in one folder, for a machine without network."""

import hashlib
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tlkit import __version__
from tlkit.data.samples import Samples
from tlkit.data.sources.kind import ReadOptions
from tlkit.data.sources.read import kind_of, read_source
from tlkit.errors import DataError, RunError
from tlkit.files import atomic_file, expanded, format_bytes, remove_unfinished, sha256_of, write_atomically, write_json
from tlkit.models.backbones import check_backbone_name
from tlkit.models.model_folder import find_model_folder
from tlkit.models.weights.sources import find_weights
from tlkit.recipe.fetched import (
    DOWNLOADS,
    MANIFEST,
    UNFINISHED,
    Fetched,
    FetchedData,
    FetchedFile,
    FetchedWeights,
    read_fetched,
)
from tlkit.recipe.fields.model import FileWeights, RunWeights
from tlkit.recipe.fields.source import Source
from tlkit.recipe.load import recipe_yaml
from tlkit.recipe.schema import Recipe
from tlkit.terminal import counted, print_text

TOLD_EVERY_S = 5.0


def fetch_command(recipe: Recipe, to: Path, *, leave_local: bool) -> int:
    """Fetch everything, or resume an earlier call. leave_local: don't copy what is given by path."""
    bring = _Folder(to)
    with recipe.located():
        check_backbone_name(recipe.model.backbone)
        bring.begin()
        local = [*_weights(recipe, bring, leave_local), *_data(recipe, bring, leave_local)]
    file = to / f"{recipe.name}.yaml"
    write_atomically(file, recipe_yaml(recipe))
    bring.end()
    size = sum(one.size for one in bring.files.values())
    print_text(f"{to}: {counted(len(bring.files), 'file')}, {format_bytes(size)}, each with its sha256 in {MANIFEST}")
    for what in local:
        print_text(f"  not copied: {what}. It has to be at the same path on the other machine.")
    print_text(f"  Copy the folder to the other machine, and run there:\n    tlkit finetune {shlex.quote(str(file))} --offline")
    return 0


class _Folder:
    """The folder that is filled. What it had from other recipes stays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FetchedFile] = {}
        self.weights: list[FetchedWeights] = []
        self.data: list[FetchedData] = []
        self._told = time.monotonic()

    def begin(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"--to {self.folder} is a file.\n  Expected a folder that is empty or doesn't exist yet.")
        ours = any((self.folder / name).exists() for name in (MANIFEST, UNFINISHED))
        if self.folder.is_dir() and not ours and any(path.name != DOWNLOADS for path in self.folder.iterdir()):
            raise RunError(
                f"--to {self.folder} has other files.\n  Expected a folder that is empty, doesn't exist yet, or was fetched before."
            )
        if (self.folder / MANIFEST).is_file():
            (self.folder / UNFINISHED).unlink(missing_ok=True)
            before = read_fetched(self.folder)
            self.files, self.weights, self.data = dict(before.files), list(before.weights), list(before.data)
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.folder)
        (self.folder / UNFINISHED).touch()

    def end(self) -> None:
        fetched = Fetched(tlkit=__version__, weights=tuple(self.weights), data=tuple(self.data), files=dict(sorted(self.files.items())))
        write_json(self.folder / MANIFEST, fetched.model_dump())
        (self.folder / UNFINISHED).unlink()

    def copy(self, source: Path, name: str) -> str:
        """Put a copy at `name`, unless it is there already; return the name. The copy is atomic."""
        target = self.folder / name
        if not (target.is_file() and target.stat().st_size == source.stat().st_size and sha256_of(target) == sha256_of(source)):
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target) as writing:
                shutil.copyfile(source, writing)
        return self.note(name)

    def forget(self, place: str) -> None:
        """Forget what an earlier call fetched to this place: it is found again, or is gone."""
        self.files = {name: file for name, file in self.files.items() if not name.startswith(f"{place}/")}

    def remove_others(self, place: str) -> None:
        """Remove files from a copy that its source no longer has, which would be read as images."""
        for path in (self.folder / place).rglob("*"):
            if path.is_file() and path.relative_to(self.folder).as_posix() not in self.files:
                path.unlink()

    def note_all(self, place: str) -> None:
        """Add all files below a place to the manifest, without hidden ones."""
        for path in sorted((self.folder / place).rglob("*")):
            name = path.relative_to(self.folder)
            if path.is_file() and not any(part.startswith(".") for part in name.parts):
                self.note(name.as_posix())

    def note(self, name: str) -> str:
        """Add an existing file to the manifest."""
        file = self.folder / name
        self.files[name] = FetchedFile(size=file.stat().st_size, sha256=sha256_of(file))
        if time.monotonic() - self._told > TOLD_EVERY_S:
            self._told = time.monotonic()
            print(f"{counted(len(self.files), 'file')}, {format_bytes(sum(one.size for one in self.files.values()))}", flush=True)
        return name


def _weights(recipe: Recipe, bring: _Folder, leave_local: bool) -> Iterator[str]:
    """Fetch the weights; yield phrases for what is left where it is."""
    asked = recipe.model.weights
    if asked == "random":
        return
    if leave_local and isinstance(asked, FileWeights | RunWeights):
        yield f"weights {next(iter(asked.model_dump().values()))}"
        return
    print(f"weights of {recipe.model.backbone}", flush=True)
    found = find_weights(recipe.model)
    if found.file is None:
        return
    use = None
    if isinstance(asked, RunWeights):
        folder = find_model_folder(expanded(asked.run))
        place = f"weights/{_own_name(folder)}"
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            bring.copy(path, f"{place}/{path.name}")
        file, use = f"{place}/model.safetensors", {"run": place}
    else:
        file = bring.copy(found.file, f"weights/{_safe(found.origin)}/{found.file.name}")
        use = {"file": file} if isinstance(asked, FileWeights) else None
    asked_for: Any = asked if isinstance(asked, str) else asked.model_dump()
    one = FetchedWeights(backbone=recipe.model.backbone, asked=asked_for, origin=found.origin, file=file, use=use)
    bring.weights = [*(kept for kept in bring.weights if (kept.backbone, kept.asked) != (one.backbone, one.asked)), one]


def _data(recipe: Recipe, bring: _Folder, leave_local: bool) -> Iterator[str]:
    """Bring the images; yield what is left where it is."""
    source = recipe.data.source
    kind = kind_of(source)
    origin = kind.origin(source)
    if origin == "shipped":
        return
    asked: dict[str, Any] = source.model_dump(mode="json")
    key, name = next(iter(asked.items()))
    if origin == "local" and leave_local:
        _take(bring, FetchedData(asked=asked, use={}, inside=""))
        yield f"data {name}"
        return
    print(f"data: {key} {name}", flush=True)
    into_root = origin == "downloaded" and kind.save is None
    place = DOWNLOADS if into_root else f"local/{_own_name(expanded(name))}"
    bring.forget(place)
    options = ReadOptions(bring.folder / DOWNLOADS if into_root else expanded(recipe.data.root), recipe.task)
    samples = kind.read(source, options)
    use: dict[str, str] = {}
    if origin == "local":
        local = kind.local_files(source, samples)
        for file, inside in local.files:
            bring.copy(file, f"{place}/{inside}")
        bring.remove_others(place)
        use = {key: f"{place}/{inside}".rstrip("/") for key, inside in local.keys.items()}
    else:
        if kind.save is not None:
            kind.save(source, options, bring.folder / place)
            use = {key: place}
        bring.note_all(place)
    _take(bring, FetchedData(asked=asked, use=use, inside=place))
    _check_copy(recipe, samples, {key: str(bring.folder / path) for key, path in use.items()})


def _check_copy(recipe: Recipe, samples: Samples, use: dict[str, str]) -> None:
    """Raise DataError unless the copy is read as the same images: a table may name its images by absolute paths."""
    if not use:
        return
    source: Source = recipe.data.source.model_copy(update=use)
    problem = ""
    try:
        copied = read_source(source, expanded(recipe.data.root), recipe.task)
        if [(one.id, one.labels, one.split) for one in copied.samples] != [(one.id, one.labels, one.split) for one in samples.samples]:
            problem = "other images are read from it"
    except DataError as error:
        problem = str(error).splitlines()[0].rstrip(".")
    if problem:
        raise DataError(
            f"The copy of the data can't be used in place of it: {problem}.\n"
            "  Use paths that are relative to the table's folder or its root, or copy the data yourself and use --leave-local."
        )


def _take(bring: _Folder, data: FetchedData) -> None:
    bring.data = [*(kept for kept in bring.data if kept.asked != data.asked), data]


def _own_name(path: Path) -> str:
    """Return `flowers-3f9c21`, so that two folders of one name from different places don't collide."""
    return f"{_safe(path.resolve().name)}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:6]}"


def _safe(text: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "._-" else "-" for sign in text)
