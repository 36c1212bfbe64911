"""environment.json: what a run's results can depend on besides its recipe and images.

It contains one environment variable, by name: others may hold secrets. No names of users or machines.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import features

import tlkit
from tlkit.files import read_facts, write_json
from tlkit.recipe.differences import flat_values
from tlkit.system import package_version

FILE = "environment.json"

# What computes, decodes, augments, solves and splits. OpenCV is what albumentations computes with.
PACKAGES = ("torch", "timm", "torchvision", "lightning", "albumentations", "opencv-python-headless", "numpy", "pillow", "scikit-learn")

NO_MATTER = ("git", "platform", "cpu.cores")
"""Facts for readers, which don't affect results."""


def write_environment(run: Path, recipe_place: str, device: torch.device) -> None:
    """Write environment.json. recipe_place: `file:line`, empty for a recipe that was made in Python.

    A run that goes on elsewhere keeps the facts of the places where it was before, under `earlier`."""
    facts = environment(recipe_place, device)
    earlier = read_environment(run)
    if earlier:
        before = earlier.pop("earlier", [])
        facts["earlier"] = before if earlier == facts else [*before, earlier]
    write_json(run / FILE, facts)


def read_environment(run: Path) -> dict[str, Any]:
    return read_facts(run / FILE)


def environment(recipe_place: str, device: torch.device) -> dict[str, Any]:
    """Return plain JSON values. device: of this process; its flags are the current ones, after Lightning has set them."""
    installed = {package: package_version(package) for package in PACKAGES}
    return {
        "versions": {"tlkit": tlkit.__version__, "python": platform.python_version(), **installed, "libjpeg": _libjpeg()},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": {
            "model": _cpu_model(),
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "device": _device(device),
        "flags": {
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            # cuBLAS is deterministic with this one alone, and Lightning sets it.
            "cublas_workspace_config": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        },
        "git": _commit(recipe_place),
    }


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return `cpu.threads` -> previous and current value, of everything that could change a result."""
    flat_was, flat_now = (dict(flat_values("", {key: value for key, value in of.items() if key != "earlier"})) for of in (was, now))
    return {
        key: (flat_was.get(key), flat_now.get(key))
        for key in {**flat_was, **flat_now}
        if flat_was.get(key) != flat_now.get(key) and not key.startswith(NO_MATTER)
    }


def _libjpeg() -> str | None:
    """Return libjpeg's version: two releases may round a JPEG's pixels differently."""
    return features.version("libjpeg_turbo") or features.version("jpg")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"type": device.type}
    return {
        "type": "cuda",
        "name": torch.cuda.get_device_name(device),
        "compute_capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _commit(place: str) -> str | None:
    """Return the commit of the repository that contains the recipe. place: `file:line` in the recipe; empty if it was made in Python."""
    folder, git = Path(place.rpartition(":")[0]).parent, shutil.which("git")
    if not place or git is None or not folder.is_dir():
        return None
    # `rev-parse` runs no hook and no program that a stranger's repository could name.
    command = [git, "-C", str(folder), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603  # no shell; a folder is the only word from outside
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
