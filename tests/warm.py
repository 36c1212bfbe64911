"""`tlkit` in a process of its own that is forked from one that has imported what a run needs: a cold start takes 10 s of a processor.

It can be killed and signalled, and has its own environment, outputs and exit code. huggingface_hub, which reads its variables when it is
imported, is imported again where they differ. All of them share one hash seed; where that or an import is the point, run `sys.executable`
instead.
"""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import reload
from importlib.util import find_spec
from io import TextIOWrapper
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from runpy import run_path
from tempfile import TemporaryDirectory

from tests.drawing import draw_nothing, encode_quickly
from tests.processes import HANGS_S, never_wait_for_the_disk, read_until

FORKED = get_context("forkserver")
PRELOADED = [
    *("albumentations", "jinja2", "lightning.pytorch", "matplotlib.backends.backend_agg", "matplotlib.pyplot", "rich.progress"),
    *("sklearn.linear_model", "timm", "tlkit.cli", "tlkit.data.datamodule", "tlkit.models.split", "tlkit.training.closed_form.classical"),
    *("tlkit.training.run", "tlkit.training.phases", "torch.utils.tensorboard"),
]
FORKED.set_forkserver_preload(PRELOADED)
READ_ON_IMPORT = ("HF_", "HOME", "XDG_CACHE_HOME")


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


def run_script(script: Path, *words: str) -> None:
    """Run `python SCRIPT WORDS` in place of tlkit. For `first`."""
    sys.argv = [str(script), *words]
    run_path(str(script), run_name="__main__")
    sys.exit()


def run_together(
    *words: str, folders: Sequence[Path], env: Mapping[str, str], machines: bool = False, first: Callable[[], None] = _nothing
) -> list["subprocess.CompletedProcess[str]"]:
    """Run `python -m tlkit WORDS` as torchrun starts it: one process in each folder, by rank. machines: each is on one of its own."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    count = len(folders)
    # Source: https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
    same = {
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": 1 if machines else count,
        "GROUP_WORLD_SIZE": count if machines else 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": store.port,
        "TORCHELASTIC_RUN_ID": "tests",
        "TORCHELASTIC_USE_AGENT_STORE": True,
        "TORCHELASTIC_RESTART_COUNT": 0,
    }
    with TemporaryDirectory() as outputs:
        started = []
        for rank, folder in enumerate(folders):
            place = {"RANK": rank, "LOCAL_RANK": 0 if machines else rank, "GROUP_RANK": rank if machines else 0}
            own = {name: str(value) for name, value in {**same, **place}.items()}
            started.append(start(*words, cwd=folder, env={**env, **own}, out=Path(outputs) / str(rank), first=first))
        return [process.finished() for process in started]


def _tlkit(words: tuple[str, ...], cwd: str, env: dict[str, str], out: str, errors: Connection, first: Callable[[], None]) -> None:
    """Make the forked process what `python -m tlkit` begins as, and run it."""
    gc.freeze()
    signal.alarm(HANGS_S)
    never_wait_for_the_disk()
    draw_nothing()
    encode_quickly()
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT, 0o600), 1)
    os.dup2(errors.fileno(), 2)
    errors.close()
    # Those that were there knew whether what they wrote to can seek.
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    assert [name for name in PRELOADED if name not in sys.modules] == []
    before = {name: value for name, value in os.environ.items() if name.startswith(READ_ON_IMPORT)}
    if before != {name: value for name, value in env.items() if name.startswith(READ_ON_IMPORT)}:
        for module in [module for module in sys.modules if module.partition(".")[0] == "huggingface_hub"]:
            del sys.modules[module]
    os.environ.clear()
    os.environ.update(env)
    reload(sys.modules["timm.models._hub"])  # of what is preloaded, the one that took functions from it
    os.chdir(cwd)
    sys.argv = ["tlkit", *words]
    sys.modules["__main__"].__spec__ = find_spec("tlkit.__main__")  # what Lightning starts processes for other devices by
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.modules.pop("sitecustomize", None)
    with suppress(ModuleNotFoundError):
        import sitecustomize  # noqa: F401
    first()
    from tlkit.cli import main

    sys.exit(main(list(words)))
