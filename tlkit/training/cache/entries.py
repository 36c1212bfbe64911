"""The folder of cached activations: what is in it, and how it stays within its budget. No torch, so that `tlkit cache` answers at once."""

import json
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.table import Table

from tlkit.errors import CacheUnavailable
from tlkit.files import UNFINISHED
from tlkit.system import cache_folder
from tlkit.terminal import output_console, print_text, tlkit_command


@contextmanager
def locked(entry: Path) -> Iterator[None]:
    """Hold an entry's lock, so that no other process makes or removes it. Raises CacheUnavailable if the folder can't be written."""
    lock = FileLock(f"{entry}.lock")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise CacheUnavailable(f"{entry.parent} can't be written: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def make_room(needed: int, budget_gb: float, *, keep: Collection[Path] = ()) -> None:
    """Remove the least recently used entries until `needed` bytes more are within the budget, but none that is locked or in `keep`."""
    listed = entries()
    total = sum(entry.size for entry in listed)
    for entry in listed:
        if total + needed <= budget_gb * 1e9:
            return
        if entry.folder in keep:
            continue
        with suppress(Timeout, OSError), FileLock(f"{entry.folder}.lock", timeout=0):
            shutil.rmtree(entry.folder, ignore_errors=True)
            total -= entry.size


@dataclass(frozen=True)
class Entry:
    """size in bytes; used: seconds since the epoch."""

    folder: Path
    size: int
    used: float
    facts: Mapping[str, Any]


def entries() -> list[Entry]:
    """Return all complete entries, the least recently used first."""
    folders = [file.parent for file in (cache_folder() / "activations").glob("*/entry.json")]
    found = [
        Entry(
            folder,
            sum(file.stat().st_size for file in folder.iterdir()),
            folder.stat().st_mtime,
            json.loads((folder / "entry.json").read_text(encoding="utf-8")),
        )
        for folder in folders
        if folder.suffix != UNFINISHED
    ]
    return sorted(found, key=lambda entry: entry.used)


def clear() -> int:
    """Remove the cache, and what killed runs have left. Return the number of bytes freed."""
    removed = 0
    for folder in (cache_folder() / name for name in ("activations", "checked", "dct", "waves")):
        removed += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        shutil.rmtree(folder, ignore_errors=True)
    return removed


def print_entries() -> None:
    """Print the entries (`tlkit cache list`)."""

    found = entries()
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("entry", "up to", "images", "views", "format", "MB", "last used"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "up to")
    for entry in reversed(found):
        facts, used = entry.facts, time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        views = str(facts["views"] or "")
        table.add_row(
            entry.folder.name[:8], facts["boundary"], str(facts["pictures"]), views, facts["dtype"], f"{entry.size / 1e6:.1f}", used
        )
    if found:
        output_console().print(table)
    print_text(f"{sum(entry.size for entry in found) / 1e6:.1f} MB in {cache_folder() / 'activations'}. To remove it all:")
    print_text(f"  {tlkit_command('cache', 'clear')}")
