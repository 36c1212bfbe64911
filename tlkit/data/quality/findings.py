"""What `tlkit data check` finds: rows that say where, what is wrong, and what to do."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tlkit.errors import TlkitError

Level = Literal["fault", "warning", "note"]
LEVELS: tuple[Level, ...] = ("fault", "warning", "note")
"""A fault ends a run or is a picture that can't be read; a warning costs pictures or accuracy; a note is good to know."""


@dataclass(frozen=True)
class Finding:
    level: Level
    where: str
    problem: str
    fix: str = ""


def odd_class(name: str, other: str, where: str = "") -> Finding:
    """Of odd_classes."""
    where = where or f"class '{name}'"
    if other:
        return Finding("warning", where, f"'{name}' and '{other}' count as two classes", "Join them if they are the same.")
    return Finding("warning", where, f"'{name}' is a class like others", "If it means that there is no label, remove these pictures.")


def faults_of(error: TlkitError) -> Iterator[Finding]:
    """The rows of a message, which has a line for each problem, and then what mends them all, indented."""
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
    """`FILE: what is wrong.` parted at the first colon with a space after it."""
    where, colon, what = problem.partition(": ")
    return Finding("fault", where, what.removesuffix("."), fix) if colon else Finding("fault", "", problem.removesuffix("."), fix)
