"""Processes that tests start: what they write is read as it comes, so that a test waits for an event and never for a time."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

HANGS_S = 1_800
"""A process that takes so long hangs, on whatever machine, and is ended. No test compares with it."""


def never_wait_for_the_disk() -> None:
    """Leave to the system when it writes: no test cuts the power, and each of a run's files and checkpoints would wait for it."""
    os.fsync = lambda _: None  # type: ignore[assignment]


def start(words: list[str], folder: Path, **environment: str) -> "subprocess.Popen[str]":
    """Start `python WORDS` on one thread; its standard error is to be read."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        preexec_fn=partial(signal.alarm, HANGS_S),
    )


def errors_of(process: "subprocess.Popen[str]") -> str:
    """Return what is left of its standard error, once the process and all that hold it have ended."""
    assert process.stderr is not None
    with process.stderr:
        errors = process.stderr.read()
    process.wait()
    return errors


def finished(words: list[str], folder: Path) -> str:
    """Run `python WORDS` to its end, which is a good one, and return its standard error."""
    process = start(words, folder)
    errors = errors_of(process)
    assert process.returncode == 0, errors
    return errors


def read_until(lines: Iterable[str], text: str) -> str:
    """Return the lines up to the one with this text, as soon as it is there."""
    read = []
    for line in lines:
        read.append(line)
        if text in line:
            return "".join(read)
    raise AssertionError(f"ended before {text!r}:\n{''.join(read)}")


def when_written(wanted: Callable[[Path], bool], act: Callable[[], object]) -> None:
    """Call `act` once, at the first file or folder that this process is about to make, open for writing or rename, if it is wanted."""
    done = False

    def look(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal done
        if done or event not in ("open", "os.mkdir", "os.rename"):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        if isinstance(path, str | os.PathLike):
            done = True  # what `wanted` opens itself isn't looked at
            done = wanted(Path(os.fspath(path)))
            if done:
                act()

    sys.addaudithook(look)


def signal_itself_when_written(name: str, number: int) -> None:
    """Send this process a signal when it writes the file of this name."""
    when_written(lambda path: path.name == name, lambda: os.kill(os.getpid(), number))
