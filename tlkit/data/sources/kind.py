"""What each kind of source does: read its images, list its files, check them, save a copy. `read.py` has the table of all kinds."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from tlkit.data.samples import ImageSource, Samples
from tlkit.errors import DataError, TlkitError
from tlkit.files import expanded
from tlkit.recipe.schema import Task

Origin = Literal["shipped", "local", "downloaded"]
"""Part of tlkit, on this machine because the user put it there, or fetched into `data.root`."""
Level = Literal["fault", "warning", "note"]
LEVELS: tuple[Level, ...] = ("fault", "warning", "note")
"""A fault ends a run or is an image that can't be read; a warning costs images or accuracy; a note is good to know."""
S = TypeVar("S")


@dataclass(frozen=True)
class ReadOptions:
    """root: `data.root`, where downloads and indices are kept.

    keep_missing: files that a table names and that don't exist are samples like others, so that reading them says what is wrong.
    """

    root: Path
    task: Task = "multiclass"
    keep_missing: bool = False


@dataclass(frozen=True)
class LocalFiles:
    """The files of a source, each with its path in a copy. keys: of data.source, with what they become, relative to the copy."""

    files: list[tuple[Path, str]]
    keys: dict[str, str]


@dataclass(frozen=True)
class Finding:
    """A row of `tlkit data check`: where, what is wrong, and what to do."""

    level: Level
    where: str
    problem: str
    fix: str = ""


def faults_of(error: TlkitError) -> Iterator[Finding]:
    """Split an error message into findings: it has a line for each problem, followed by the indented fix for all of them."""
    problems: list[str] = []
    fixes: list[str] = []
    for line in [*str(error).splitlines(), ""]:
        if line.startswith("  "):
            fixes.append(line.strip())
            continue
        if fixes or not line:
            yield from (_fault(problem, " ".join(fixes)) for problem in problems)
            problems, fixes = [], []
        if line:
            problems.append(line)


def _fault(problem: str, fix: str) -> Finding:
    """Split `FILE: what is wrong.` at the first colon with a space after it."""
    where, colon, what = problem.partition(": ")
    return Finding("fault", where, what.removesuffix("."), fix) if colon else Finding("fault", "", problem.removesuffix("."), fix)


def warning_of(text: str) -> Finding:
    where, colon, problem = text.partition(": ")
    return Finding("warning", where if colon else "", (problem if colon else text).removesuffix("."))


@dataclass(frozen=True)
class SourceCheck:
    """What `tlkit data check` finds in a source beyond what `read` says, whatever is wrong with it.

    images: id -> image. findings: where there are any, they stand in place of the messages and warnings of `read`.
    """

    images: Mapping[str, ImageSource] = field(default_factory=dict)
    findings: tuple[Finding, ...] | None = None
    classes: int | None = None


def is_local(source: object) -> Origin:
    return "local"


def no_files(source: object, samples: Samples) -> LocalFiles:
    return LocalFiles([], {})


def nothing_to_check(source: object, options: ReadOptions) -> SourceCheck:
    return SourceCheck()


@dataclass(frozen=True)
class SourceKind(Generic[S]):
    """S: the keys of `data.source`, a class of recipe/fields/source.py.

    read: raises DataError where the source is missing, empty, or has fewer than two classes.
    local_files: of a source whose origin is local, and the samples that were read from it.
    save: writes what was downloaded elsewhere than `root` into a folder, which the first key of the source may then name.
    """

    read: Callable[[S, ReadOptions], Samples]
    origin: Callable[[S], Origin] = is_local
    local_files: Callable[[S, Samples], LocalFiles] = no_files
    check: Callable[[S, ReadOptions], SourceCheck] = nothing_to_check
    save: Callable[[S, ReadOptions, Path], None] | None = None


def image_files(samples: Samples) -> list[Path]:
    return [sample.image for sample in samples.samples if isinstance(sample.image, Path)]


def below(base: Path, files: Iterable[Path]) -> list[tuple[Path, str]]:
    """Return each file with its path relative to base. Raises DataError if one is outside of it."""
    return [(file, path_inside(os.path.abspath(file), os.path.abspath(base))) for file in files]


def path_inside(place: str, base: str) -> str:
    """Compare the text of the paths, and not what they lead to: a link stays where it is seen."""
    if not place.startswith(base.rstrip(os.sep) + os.sep):
        raise DataError(
            f"{place} is outside of {base}, so a copy of that folder would not have it.\n"
            "  Move it inside, or copy the data yourself and use --leave-local."
        )
    return place[len(base.rstrip(os.sep)) + 1 :].replace(os.sep, "/")


def named_files(files: dict[str, str]) -> LocalFiles:
    """Return the files of a source whose keys name them. files: key -> path."""
    paths = {key: expanded(name) for key, name in files.items()}
    places = {key: f"{key}/{path.name}" for key, path in paths.items()}
    return LocalFiles([(paths[key], place) for key, place in places.items()], places)


AnyKind = SourceKind[Any]
