"""What holds for every test: no updates looked for, no model hub, and a fixed plotting backend."""

import gc
import importlib.metadata
import logging
import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.processes import never_wait_for_the_disk
from tlkit.recipe.fetched import FETCHED, OFFLINE
from tlkit.system import processors

# Read by albumentations, huggingface_hub and matplotlib when they are first imported, so set before any test module is.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")
# One thread: on tiny networks more of them wait for each other, most of all where several test runs share a machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No package is installed meanwhile. Every Trainer asks again, and each time all packages' files are read: 2 % of a small run.
importlib.metadata.entry_points = cache(importlib.metadata.entry_points)
never_wait_for_the_disk()
# What is imported stays: looking through its million objects again and again for garbage took a twentieth of the suite.
gc.disable()
BEFORE = Path(__file__).parent / "fixtures" / "before_layout"
WORKER_BYTES = 3_000_000_000
"""Memory of a worker with the processes that it starts."""
# Activations that tests keep are their own, and gone when they end.
_CACHE = TemporaryDirectory(prefix="tlkit-tests-")
os.environ["TLKIT_CACHE"] = _CACHE.name


def pytest_configure() -> None:
    from tests.drawing import draw_nothing, encode_quickly  # imports matplotlib

    draw_nothing()
    encode_quickly()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # what nanobind has made says at the end that it leaks otherwise


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than processors: a worker waits a quarter of its time, for processes that it started, sockets and files."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(processors() + 1, memory // WORKER_BYTES))


@pytest.fixture(scope="module")
def draws() -> Iterator[None]:
    """Charts are drawn, which they aren't elsewhere."""
    from tests.drawing import drawn

    with drawn():
        yield


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what an earlier version wrote, to spoil; its runs were started in its folder, which is the current one."""
    return _copy(BEFORE, tmp_path, monkeypatch)


@pytest.fixture
def workplace(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the module's `made` has, to spoil; it is the current folder."""
    return _copy(made, tmp_path, monkeypatch)


def _copy(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture(autouse=True)
def _log_as_at_the_start() -> None:
    """An earlier test's run leaves its handlers on the logger, as it may: a process has one run."""
    log = logging.getLogger("tlkit")
    log.handlers.clear()
    log.filters.clear()
    log.setLevel(logging.NOTSET)
    log.propagate = True


@pytest.fixture(autouse=True)
def _online_as_at_the_start() -> Iterator[None]:
    """A command with --offline leaves that in the environment, for the processes that it starts: a process has one command."""
    yield
    for variable in (OFFLINE, FETCHED):
        os.environ.pop(variable, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: no worker begins one of them when the others are about to end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
