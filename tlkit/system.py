"""This machine, this process and this installation: the cache folder, processors, the allocator, the files that come with tlkit."""

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_COMMAND_LINE: ContextVar[bool] = ContextVar("tlkit_command_line", default=False)


def is_command_line() -> bool:
    """Return whether this process is a `tlkit` command, which may draw on the terminal and end it; as a library tlkit does neither."""
    return _COMMAND_LINE.get()


@contextmanager
def as_command_line() -> Iterator[None]:
    """Make what runs inside a `tlkit` command."""
    token = _COMMAND_LINE.set(True)
    try:
        yield
    finally:
        _COMMAND_LINE.reset(token)


def cache_folder() -> Path:
    """Return $TLKIT_CACHE, or tlkit's part of the user's cache folder."""
    chosen = os.environ.get("TLKIT_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tlkit"


@contextmanager
def caching_in(folder: Path) -> Iterator[None]:
    """Make another folder the cache folder, for this process and those that it starts."""
    before = os.environ.get("TLKIT_CACHE")
    os.environ["TLKIT_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("TLKIT_CACHE")
        if before is not None:
            os.environ["TLKIT_CACHE"] = before


def processors() -> int:
    """Count the processors that this process may use, if the system says so: those of a container or a job, not of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Source: glibc's malloc.h; described in mallopt(3)."""


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for the next batch instead of returning it to the system.

    Every batch asks for the same large blocks, and Linux fills each with zeros again, page by page: that took 30 % of an epoch on two
    cores (tf_efficientnet_lite0, 128 px, all layers). Peak memory was 10 % higher. It is a setting of the whole process, so only the
    command line makes it; without effect if the C library isn't glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def ignore_pillow_warnings() -> None:
    """Hide Pillow's warnings about large images, which tlkit limits itself, and about tags and EXIF blocks that change no pixel.

    The filters are shared by all threads of the process, so library calls don't change them.
    """
    warnings.filterwarnings("ignore", message=r"Image size \(\d+ pixels\) exceeds limit", category=RuntimeWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def hide_matplotlib_notes() -> None:
    """Hide that matplotlib makes its cache of fonts, or makes it in a temporary folder because the user's can't be written.

    It writes them by a logger that shows them even where nobody has set logging up.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


_PACKAGE = Path(__file__).parent
_IN_WHEEL = _PACKAGE / "shipped_files"


def package_version(package: str) -> str | None:
    """Return an installed package's version; None where it isn't there, or came by other means, such as conda's opencv."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def shipped(name: str) -> Path:
    """Return a file or folder that is bundled with tlkit: `recipes/quickstart.yaml`, `data/fashion_mnist_mini`. It need not exist.

    In a checkout it is beside the package; pyproject.toml puts it into the wheel as tlkit/shipped_files.
    """
    return (_IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent) / name


def bundled_recipes() -> dict[str, Path]:
    """Return name -> file."""
    return {file.stem: file for file in sorted(shipped("recipes").glob("*.yaml"))}
