"""The faults of a table, gathered so that they are reported at once: those of one kind in one line, with their number."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tlkit.errors import DataError, MissingDataError

MOST_LINES = 100
"""Number of faults that are listed; for more, their number is given."""
MOST_NUMBERS = 8


@dataclass(frozen=True)
class Fault:
    number: int
    problem: str
    fix: str


class Faults:
    """word: what a row is called in messages: `file.csv:7`, but `file.parquet, row 7`."""

    def __init__(self, file: Path, word: Literal["line", "row"]) -> None:
        self.file, self.word = file, word
        self._by_kind: dict[str, list[Fault]] = {}
        self._number = 0

    def __len__(self) -> int:
        return self._number

    def add(self, number: int, problem: str, fix: str, *, kind: str = "") -> None:
        """Add a fault. number: of the row, or 0 for the table itself. kind: faults of one kind are one line; without it, each is one."""
        self._number += 1
        self._by_kind.setdefault(kind or f"fault {self._number}", []).append(Fault(number, problem, fix))

    def place(self, number: int) -> str:
        if not number:
            return str(self.file)
        return f"{self.file}:{number}" if self.word == "line" else f"{self.file}, row {number}"

    def raise_all(self, meant: Mapping[str, str] | None = None, *, none_there: bool = False) -> None:
        """Raise DataError with all faults, each fix once after the faults that it fixes; does nothing if there are none.

        none_there: not one of the table's images is on this machine, and nothing else is wrong.
        """
        if not self._by_kind:
            return
        by_fix: dict[str, list[str]] = {}
        kinds = sorted(self._by_kind.values(), key=lambda faults: faults[0].number)
        for faults in kinds[:MOST_LINES]:
            by_fix.setdefault(faults[0].fix, []).append(self._line(faults))
        text = "\n".join(line for fix, problems in by_fix.items() for line in (*problems, f"  {fix}"))
        more = len(kinds) - MOST_LINES
        raise (MissingDataError if none_there else DataError)(text + (f"\n... and {more:,} more." if more > 0 else ""), meant)

    def _line(self, faults: list[Fault]) -> str:
        """Return `table.csv:2: the image a.png does not exist (and 3 more such lines: 4, 5, 9).`"""
        first, *others = faults
        line = f"{self.place(first.number)}: {first.problem}"
        if not others:
            return line
        numbers = ", ".join(str(fault.number) for fault in others[:MOST_NUMBERS])
        more = ", .." if len(others) > MOST_NUMBERS else ""
        return f"{line.removesuffix('.')} (and {len(others):,} more such {self.word}{'s' if len(others) > 1 else ''}: {numbers}{more})."
