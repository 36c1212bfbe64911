"""What goes to a terminal or a pipe: text that its encoding may not have, and commands that people copy."""

import codecs
import io
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ESCAPE = "tlkit.escape"
"""The name of the error handler below."""
LABEL = re.compile(r" *\S+(?: \S+)* {2,}")
"""What a line begins with whose text stands in a column of its own."""
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""All but the line feed."""
COMMAND_INDENT = 4
"""A line of a message that begins with so many blanks is a command, and stays whole; one with a label is a row of a list."""
WIDTH_IN_FILES = 1000
"""Wide enough that nothing is folded."""


def escape_unencodable_output() -> None:
    r"""Let stdout and stderr write `\u65e5` for a character that their encoding lacks, where Python would raise UnicodeEncodeError.

    Python's own backslashreplace writes `\xe9` and `\U0001f600`, which JSON doesn't know; see `escape`.
    An error handler that the user chose (PYTHONIOENCODING=ascii:replace) stays.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape", "backslashreplace"):
            stream.reconfigure(errors=ESCAPE)


def escape(error: UnicodeError) -> tuple[str, int]:
    r"""Return each character as `\uXXXX`, in two such where it needs them, as JSON writes it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)), error.end


codecs.register_error(ESCAPE, escape)


def takes_unicode() -> bool:
    """Return whether stdout takes every character: JSON and YAML on another one are written in ASCII, so that any reader reads them."""
    return (sys.stdout.encoding or "").lower().startswith("utf")


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=not takes_unicode()))


def can_print(text: str) -> bool:
    """Return whether stdout writes the text without an escape, so that it can be copied from there."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def wrap(text: str, width: int) -> str:
    """Return the text broken between words, with what follows below its line's first word, or beside its label.

    A word that is longer stays whole, and so does a command: both are there to be copied.
    """
    return "\n".join(_wrapped_line(line, width) for line in text.split("\n"))


def _wrapped_line(line: str, width: int) -> str:
    indent, label = line[: len(line) - len(line.lstrip())], LABEL.match(line)
    if len(indent) >= COMMAND_INDENT and not label:
        return line
    if label and len(label[0]) <= width // 2:
        indent = len(label[0]) * " "
    options = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": indent}
    return textwrap.fill(line, max(20, width), **options)  # type: ignore[arg-type]  # two bools and a str


def counted(number: int, word: str, plural: str = "") -> str:
    """Return `1 class`, `1,200 classes`."""
    return f"{number:,} {word if number == 1 else plural or f'{word}s'}"


def padded(text: str, columns: int) -> str:
    """Return the text with blanks after it up to so many columns of a terminal, of which a Japanese letter takes two."""
    return text + " " * (columns - width_of(text))


def printable(text: str) -> str:
    """Return the text as stdout writes it: rich measures the cells of a table and a panel before what is in them is escaped.

    Control characters are escaped too: a file's name could otherwise colour or clear the terminal.
    """
    encoding = sys.stdout.encoding or "ascii"
    text = CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return text if can_print(text) else text.encode(encoding, ESCAPE).decode(encoding)


def width_of(text: str) -> int:
    """Return how many columns of a terminal the text takes, with what stdout can't write as the escape that is written instead."""
    from rich.cells import cell_len

    return cell_len(printable(text))


def columns_of(stream: TextIO) -> int | None:
    """Return how wide the terminal is that the stream goes to, or $COLUMNS; None for a file or a pipe, whose lines have no end."""
    try:
        own = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else None
    except (OSError, ValueError):  # a stream of a test or a notebook has no file number
        return None
    # A pseudo-terminal whose size nobody has set has 0.
    return None if own is None else shutil.get_terminal_size((own or 80, 24)).columns


def print_text(text: str, stream: TextIO | None = None) -> None:
    """Print to stdout, or to the stream, wrapped for a terminal."""
    stream = stream or sys.stdout
    width = columns_of(stream)
    print(text if width is None else wrap(text, width), file=stream)


def output_console() -> "Console":
    """Return the console for standard output: as wide as its terminal; in a file or a pipe, so wide that nothing is folded."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_IN_FILES
    return console


def print_line(console: "Console", text: str, style: str | None = None) -> None:
    """Print plain text to a console, wrapped for a terminal and as it is for a file."""
    shown = wrap(text, console.width) if console.is_terminal else text
    console.print(shown, style=style, markup=False, highlight=False, soft_wrap=True)


def print_fitting(console: "Console", tables: Sequence["Table"]) -> None:
    """Print the first table that is not wider than the console, or else the last: the fullest one comes first."""
    from rich.measure import Measurement

    unbounded = console.options.update_width(WIDTH_IN_FILES)
    console.print(next((table for table in tables if Measurement.get(console, unbounded, table).maximum <= console.width), tables[-1]))


def print_panel(title: str, rows: Iterable[tuple[str, str]], commands: Iterable[str] = ()) -> None:
    """Print what a command found: a box within the terminal's width, and below it the next commands, each alone on its line.

    rows: a label and a text, in rich's markup. commands: for the user's shell, never folded.
    """
    from rich.markup import escape as without_markup
    from rich.panel import Panel
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(f"[dim]{label}[/dim]", printable(text))
    console = output_console()
    console.print(Panel(table, title=without_markup(printable(title)), title_align="left", expand=False))
    for number, command in enumerate(commands):
        if number == 0:
            console.print("next:")
        console.print(f"  {command}", style="bold", markup=False, highlight=False, soft_wrap=True)


def tlkit_command(*words: str) -> str:
    """Return a command that works as it stands in the user's shell: `tlkit ...`, or with its path where `tlkit` isn't on the PATH."""
    return f"{_program()} {shlex.join(words)}"


def _program() -> str:
    installed = Path(sys.executable).with_name("tlkit")
    found = shutil.which("tlkit")
    if not installed.is_file():
        return "tlkit" if found else f"{shlex.quote(sys.executable)} -m tlkit"
    if found and Path(found).samefile(installed):
        return "tlkit"
    return shlex.quote(min(os.path.relpath(installed), str(installed), key=len))
