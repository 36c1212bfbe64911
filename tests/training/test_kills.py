"""Runs that are killed with SIGKILL wherever they happen to be, and resumed, end with the uninterrupted run's weights.

`TLKIT_KILLS=20 pytest -s tests/training/test_kills.py -m slow` prints a table: the moments, files left half written, where it
went on, the outcome.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

RECIPE = """
name: killed
data: {source: {bundled: fashion_mnist_mini}, image_size: 32, resize: stretch, batch_size: 64}
augment: [{HorizontalFlip: {p: 0.5}}, {Rotate: {limit: 10}}]
model: {backbone: test_resnet, weights: random, head: {dropout: 0.2}}
phases:
  - {train: head, epochs: 3, lr: 1e-2}
  - {train: {from: layer3}, epochs: 2, lr: 5e-3}
  - {train: all, epochs: 3, lr: 1e-2}
optimizer: {accumulate: 2}
ema: {decay: 0.99}
early_stopping: {patience: 2}
cache: {views: 2}
trainer: {checkpoint_every: {minutes: 0.0005}, accelerator: cpu}
"""


def rows(run: Path, phase: int) -> bool:
    file = run / "metrics.csv"
    return file.is_file() and f"\n{phase}," in file.read_text()


def writing(run: Path, first: int) -> bool:
    """Whether a checkpoint is being written, this number or a later one."""
    return any(int(file.name[:4]) >= first for file in run.glob("checkpoints/[0-9]*.writing"))


MOMENTS: dict[str, Callable[[Path, Path], bool]] = {
    "cache writing": lambda run, cache: any(cache.glob("activations/*.writing")),
    "head phase": lambda run, cache: any(run.glob("checkpoints/*.json")) and not rows(run, 1),
    "full phase": lambda run, cache: rows(run, 1),
    "checkpoint writing": lambda run, cache: writing(run, 4) and not rows(run, 1),
    "checkpoint writing, full phase": lambda run, cache: rows(run, 2) and writing(run, 12),
    "best writing": lambda run, cache: rows(run, 1) and (run / "checkpoints/best.writing").exists(),
    "model writing": lambda run, cache: any(run.glob(".model-*")),
    "test": lambda run, cache: (run / "model").is_dir(),
}
DELAY_S = {
    "cache writing": 0.2,
    "head phase": 0.4,
    "full phase": 3.0,
    "checkpoint writing": 0.002,
    "checkpoint writing, full phase": 0.004,
    "best writing": 0.001,
    "model writing": 0.003,
    "test": 0.3,
}
"""Killed so long after the moment has come, at most."""


def started(place: Path, run: Path, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tlkit", "finetune", "recipe.yaml", "--out", str(run), "--resume"]
    environment = {**os.environ, "TLKIT_CACHE": str(cache)}
    environment.pop("TLKIT_RUN_FOLDER", None)
    return subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def killed(place: Path, run: Path, cache: Path, moment: str, delay_s: float) -> None:
    process = started(place, run, cache)
    while process.poll() is None and not MOMENTS[moment](run, cache):
        time.sleep(0.0005)
    time.sleep(delay_s)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"{moment} was over before the run could be killed"


def finished(place: Path, run: Path, cache: Path) -> str:
    process = started(place, run, cache)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    metrics = {**json.loads((run / "metrics.json").read_text()), "seconds": None}
    table = [line.rpartition(",")[0] for line in (run / "metrics.csv").read_text().splitlines()]
    weights = (run / "model/model.safetensors").read_bytes()
    return sha256(weights + json.dumps([metrics, table], sort_keys=True).encode()).hexdigest()[:12]


@pytest.mark.slow
def test_runs_killed_at_any_moment_end_with_the_same_weights_and_figures(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    whole = finished(tmp_path, tmp_path / "whole", tmp_path / "cache")
    draws = random.Random(0)
    outcomes = []
    for number in range(int(os.environ.get("TLKIT_KILLS", "4"))):
        # Each second one is killed once more, at a moment that comes later.
        first = list(MOMENTS)[number % len(MOMENTS)]
        moments = [first, *(["full phase"] if number % 2 and first in ("cache writing", "head phase") else [])]
        run, cache = tmp_path / f"run{number}", tmp_path / f"cache{number}"
        left = []
        for moment in moments:
            killed(tmp_path, run, cache, moment, draws.uniform(0, DELAY_S[moment]))
            left += sorted(str(file.relative_to(run)) for file in (*run.glob("checkpoints/*.writing"), *run.glob(".model-*")))
        outcomes.append(finished(tmp_path, run, cache))
        assert not [*run.glob("checkpoints/*.writing"), *run.glob(".model-*")]
        resumed = [line.partition("resumed")[2] for line in (run / "log.txt").read_text().splitlines() if " resumed" in line]
        places = "; ".join(line.rpartition("ckpt: ")[2].lstrip(": ") for line in resumed)
        outcome = f"{outcomes[-1]} {'equal' if outcomes[-1] == whole else 'DIFFERS'}"
        print(f"| {number + 1} | {', '.join(moments)} | {', '.join(left)} | {places} | {outcome} |", flush=True)
    assert outcomes == [whole] * len(outcomes)
