"""`tlkit` on a pseudo-terminal, and what a terminal shows of what it wrote."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests import warm

CODE = re.compile(r"\x1b\[(\??)(\d*)(?:;\d+)*([A-Za-z])|(.)", re.DOTALL)
"""A control code of ECMA-48, or else one character."""


@dataclass
class Screen:
    """A terminal without a lower edge. It knows the control codes that rich writes; another one is an error."""

    columns: int
    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0
    shows_cursor: bool = True

    def write(self, text: str) -> None:
        for private, number, code, character in CODE.findall(text):
            if character == "\n":
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif character == "\r":
                self.column = 0
            elif character:
                assert character.isprintable(), repr(character)
                self._put(character)
            elif code == "A":
                self.row -= int(number or 1)
                assert self.row >= 0
            elif (number, code) == ("2", "K"):
                self.lines[self.row] = ""
            elif private and number == "25" and code in "hl":
                self.shows_cursor = code == "h"
            else:
                assert code == "m", (private, number, code)

    def _put(self, character: str) -> None:
        if self.column == self.columns:
            self.write("\r\n")
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1


def resize(terminal: int, columns: int) -> None:
    """Give a terminal another width, and what runs on it the signal for that."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))


def run_on_terminal(
    *words: str, columns: int, cwd: Path, env: Mapping[str, str], encoding: str = "utf-8", first: Callable[[], None] = lambda: None
) -> "subprocess.CompletedProcess[str]":
    """Run `python -m tlkit WORDS` on a terminal of its own, and return its exit code and what it wrote."""
    terminal, theirs = os.openpty()
    resize(terminal, columns)
    written: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(terminal, 65536):
                written.append(data)
        except OSError:  # all who had the other end open have closed it
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with TemporaryDirectory() as folder:
        begins = partial(_move_to, os.ttyname(theirs), encoding, first)
        code = (
            warm.start(*words, cwd=cwd, env={**env, "TERM": "xterm-256color"}, out=Path(folder) / "out", first=begins).finished().returncode
        )
    os.close(theirs)
    reader.join()
    os.close(terminal)
    return subprocess.CompletedProcess(words, code, b"".join(written).decode(encoding))


def _move_to(terminal: str, encoding: str, first: Callable[[], None]) -> None:
    """Make a terminal the input and the outputs of this process."""
    opened = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
    for number in (0, 1, 2):
        os.dup2(opened, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding=encoding, buffering=1, closefd=False) for number in (1, 2))
    first()
