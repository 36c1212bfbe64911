"""`tlkit` in a process of its own that is forked from one with torch and Lightning imported: 4 s less for each.

It can be killed and signalled, and has its own environment, outputs and exit code. What reads the environment when it is imported
(huggingface_hub, timm, tlkit) is imported by each process anew. All of them share one hash seed; where that or an import is the point,
run `sys.executable` instead.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

FORKED = get_context("forkserver")
FORKED.set_forkserver_preload(["lightning.pytorch", "sklearn.linear_model", "matplotlib.pyplot"])


@dataclass(frozen=True)
class Started:
    """A process that writes standard output and error into folder/out and folder/err."""

    process: ForkServerProcess
    folder: Path

    def finished(self, timeout_s: float) -> "subprocess.CompletedProcess[str]":
        """Waits for it."""
        self.process.join(timeout_s)
        out, err = ((self.folder / name).read_text(encoding="utf-8") for name in ("out", "err"))
        assert self.process.exitcode is not None, f"still running after {timeout_s} s\n{out}\n{err}"
        return subprocess.CompletedProcess(self.process.name, self.process.exitcode, out, err)


def start(*words: str, cwd: Path, env: Mapping[str, str], folder: Path) -> Started:
    """`python -m tlkit WORDS`. folder: of the outputs; made here."""
    folder.mkdir()
    process = FORKED.Process(target=_tlkit, args=(words, str(cwd), dict(env), str(folder)), name=f"tlkit {' '.join(words)}")
    process.start()
    return Started(process, folder)


def run(*words: str, cwd: Path, env: Mapping[str, str], timeout_s: float = 300) -> "subprocess.CompletedProcess[str]":
    """`python -m tlkit WORDS`, to its end."""
    with TemporaryDirectory() as folder:
        return start(*words, cwd=cwd, env=env, folder=Path(folder) / "said").finished(timeout_s)


def _tlkit(words: tuple[str, ...], cwd: str, env: dict[str, str], folder: str) -> None:
    """Makes the forked process what `python -m tlkit` begins as, and runs it."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT, 0o600), number)
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
    from tlkit.cli import main

    sys.exit(main(list(words)))
