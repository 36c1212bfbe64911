"""What goes to a terminal or a pipe: text that its encoding may not have, and commands that people copy."""

import codecs
import io
import sys

ESCAPE = "tlkit.escape"
"""The name of the error handler below."""


def escape_unencodable_output() -> None:
    r"""Let stdout and stderr write `\u65e5` for a character that their encoding lacks, where Python would raise UnicodeEncodeError.

    Python's own backslashreplace writes `\xe9` and `\U0001f600`, which JSON doesn't know; see `escape`.
    An error handler that the user chose (PYTHONIOENCODING=ascii:replace) stays.
    """
    codecs.register_error(ESCAPE, escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape", "backslashreplace"):
            stream.reconfigure(errors=ESCAPE)


def escape(error: UnicodeError) -> tuple[str, int]:
    r"""Return each character as `\uXXXX`, in two such where it needs them, as JSON writes it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)), error.end


def takes_unicode() -> bool:
    """Return whether stdout takes every character: JSON and YAML on another one are written in ASCII, so that any reader reads them."""
    return (sys.stdout.encoding or "").lower().startswith("utf")
