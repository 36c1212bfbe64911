"""Runs one side of a bench as a process of its own, and says what it took."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import tlkit
from tlkit.bench.work import Work
from tlkit.errors import RunError

CACHE_FOLDER = "TLKIT_CACHE"
"""The environment variable that names the folder of tlkit's caches."""


@dataclass(frozen=True)
class Run:
    """One process from start to exit. start_s: until the first epoch. epochs_s: each epoch with its validation.

    accuracy: on validation, after the last epoch. used: what the system counted.
    """

    whole_s: float
    start_s: float
    epochs_s: tuple[float, ...]
    accuracy: float
    used: "ResourceUsage"


@dataclass(frozen=True)
class ResourceUsage:
    """cpu_s: processor seconds, of worker processes too: they tell more than the clock on a machine that others use.

    peak_mb: resident memory of the largest of its processes, in 10^6 bytes. Both None where the system doesn't tell (Windows).
    """

    cpu_s: float | None = None
    peak_mb: float | None = None


def run_floor(work: Work, folder: Path) -> Run:
    return _run_module("tlkit.bench.floor", work, folder)


def run_textbook(work: Work, folder: Path) -> Run:
    return _run_module("tlkit.bench.textbook", work, folder)


def run_tlkit(work: Work, folder: Path) -> Run:
    """Run the real command, on a recipe for this work; `timed` sets its cache folder."""
    recipe, out = folder / "recipe.yaml", folder / "run"
    recipe.write_text(json.dumps(work.recipe()), encoding="utf-8")
    began = time.time()
    whole_s, used = timed([sys.executable, "-m", "tlkit", "finetune", str(recipe), "--out", str(out)], folder)
    with (out / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    epochs_s = tuple(float(row["seconds"]) for row in rows)
    start_s = _end_of_first_epoch(out / "log.txt") - epochs_s[0] - began
    return Run(whole_s, start_s, epochs_s, float(rows[-1]["val/accuracy"]), used)


def _end_of_first_epoch(log: Path) -> float:
    """Return the seconds since 1970. The log has local time, in milliseconds."""
    line = next(line for line in log.read_text(encoding="utf-8").splitlines() if re.search(r" epoch 1/\d+ ", line))
    return datetime.strptime(" ".join(line.split()[:2]), "%Y-%m-%d %H:%M:%S,%f").timestamp()


def _run_module(module: str, work: Work, folder: Path) -> Run:
    given, answer = folder / "work.json", folder / "result.json"
    work.write(given)
    began = time.time()
    whole_s, used = timed([sys.executable, "-m", module, str(given), str(answer)], folder)
    result = json.loads(answer.read_text(encoding="utf-8"))
    return Run(whole_s, result["training_began"] - began, tuple(result["epochs_s"]), float(result["accuracy"]), used)


SIDES: Mapping[str, Callable[[Work, Path], Run]] = {"floor": run_floor, "tlkit": run_tlkit, "textbook": run_textbook}


def run_side(side: str, work: Work, home: Path, *, keep_cache: bool = False) -> Run:
    """Run a side. home: a folder for its output, removed afterwards, and for tlkit's caches, which stay with keep_cache.

    Raises RunError with the end of its output if the process fails.
    """
    folder = home / "now"
    folder.mkdir()
    try:
        return SIDES[side](work, folder)
    finally:
        shutil.rmtree(folder)
        if not keep_cache:
            shutil.rmtree(home / "cache", ignore_errors=True)


def timed(command: list[str], folder: Path) -> tuple[float, ResourceUsage]:
    """Return the wall-clock seconds of a process from its start to its exit. folder: for its output; tlkit's caches are in `cache`
    beside it.

    Raises RunError with the end of its output if it fails.
    """
    path = os.pathsep.join(filter(None, (str(Path(tlkit.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    environment: dict[str, str] = {
        **os.environ,
        "PYTHONPATH": path,
        CACHE_FOLDER: str(folder.parent / "cache"),
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }
    output = folder / "output.txt"
    with output.open("wb") as file:
        began = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)  # noqa: S603  # our own words
        try:
            used = _wait(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - began
    if process.returncode:
        end = "\n  ".join(output.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:])
        raise RunError(f"{' '.join(command[1:3])} ended with {process.returncode}. Its last words:\n  {end}")
    return seconds, used


def _wait(process: "subprocess.Popen[bytes]") -> ResourceUsage:
    """Wait for the process. wait4 measures this child and its children; getrusage would measure all children so far."""
    if not hasattr(os, "wait4"):
        process.wait()
        return ResourceUsage()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    # Linux counts memory in units of 1,024 bytes, macOS in bytes.
    return ResourceUsage(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6)


def circumstances(work: Work, training: int, validation: int) -> dict[str, Any]:
    """Describe what was measured, on how many images, and where, for the JSON of a benchmark."""
    return {
        "backbone": work.backbone,
        "pictures": {"train": training, "val": validation},
        "image_size": work.image_size,
        "batch_size": work.batch_size,
        "epochs": work.epochs,
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Describe the machine, without importing torch."""
    import platform
    from importlib.metadata import version

    packages = ("torch", "torchvision", "timm", "lightning", "albumentations")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "threads": os.environ.get("OMP_NUM_THREADS", "as torch chooses"),
        **{package: version(package) for package in packages},
    }
