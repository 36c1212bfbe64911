"""`tlkit` in a process of its own that is forked from one with torch and Lightning imported: 4 s less for each.

It can be killed and signalled, and has its own environment, outputs and exit code. What reads the environment when it is imported
(huggingface_hub, timm, tlkit) is imported again by each process. All of them share one hash seed; where that or an import is the point,
run `sys.executable` instead.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.processes import HANGS_S, read_until

FORKED = get_context("forkserver")
FORKED.set_forkserver_preload(["lightning.pytorch", "sklearn.linear_model", "matplotlib.pyplot"])


def _nothing() -> None:
    pass


@dataclass
class Started:
    """A process whose standard error is read as it comes; its standard output goes to a file."""

    process: ForkServerProcess
    errors: TextIOWrapper
    out: Path
    read: str = ""

    def until(self, text: str) -> None:
        """Return as soon as the process has written a line with this text to standard error."""
        self.read += read_until(self.errors, text)

    def finished(self) -> "subprocess.CompletedProcess[str]":
        """Wait for its end, and return all that it wrote."""
        with self.errors:
            errors = self.read + self.errors.read()
        self.process.join()
        return subprocess.CompletedProcess(self.process.name, self.process.exitcode or 0, self.out.read_text(encoding="utf-8"), errors)


def start(*words: str, cwd: Path, env: Mapping[str, str], out: Path, first: Callable[[], None] = _nothing) -> Started:
    """Start `python -m tlkit WORDS`. out: the file of its standard output. first: what the process runs before it, as pickle takes it."""
    reader, writer = FORKED.Pipe(duplex=False)
    process = FORKED.Process(target=_tlkit, args=(words, str(cwd), dict(env), str(out), writer, first), name=f"tlkit {' '.join(words)}")
    process.start()
    writer.close()
    with reader:
        errors = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
    assert isinstance(errors, TextIOWrapper)
    return Started(process, errors, out)


def run(*words: str, cwd: Path, env: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run `python -m tlkit WORDS` to its end."""
    with TemporaryDirectory() as folder:
        return start(*words, cwd=cwd, env=env, out=Path(folder) / "out").finished()


def _tlkit(words: tuple[str, ...], cwd: str, env: dict[str, str], out: str, errors: Connection, first: Callable[[], None]) -> None:
    """Make the forked process what `python -m tlkit` begins as, and run it."""
    signal.alarm(HANGS_S)
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT, 0o600), 1)
    os.dup2(errors.fileno(), 2)
    errors.close()
    # Those that were there knew whether what they wrote to can seek.
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    assert "huggingface_hub" not in sys.modules
    assert "tlkit" not in sys.modules
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["tlkit", *words]
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.modules.pop("sitecustomize", None)
    with suppress(ModuleNotFoundError):
        import sitecustomize  # noqa: F401
    first()
    from tlkit.cli import main

    sys.exit(main(list(words)))
