"""Runs that are killed wherever they happen to be, and resumed, end with the uninterrupted run's weights.

`TLKIT_KILLS=20 pytest -s tests/training/test_kills.py -m slow` kills 20 runs and prints a table: the moments, files left half
written, where it went on, the outcome. By default one run is killed at every moment in turn.
"""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from tests import warm
from tests.processes import when_written

UNFINISHED = ".writing"
"""tlkit.files.UNFINISHED, which isn't imported: a warm process reads this file before it has imported tlkit."""
BUNDLED = Path(__file__).parents[2] / "data/fashion_mnist_mini"
RECIPE = """
name: killed
data: {source: {folder: pictures}, image_size: 32, resize: stretch, batch_size: 16, validation: 0.2, test: 0.2}
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
trainer: {checkpoint_every: {minutes: 0.000001}, accelerator: cpu}
"""


def phases(run: Path) -> int:
    """Return how many phases have a row in metrics.csv."""
    file = run / "metrics.csv"
    return len({line.partition(",")[0] for line in file.read_text().splitlines()[1:]}) if file.is_file() else 0


def checkpoint(run: Path, path: Path) -> int:
    """Return the number of the checkpoint that a file belongs to, written or being written; 0 if it is none."""
    number = path.name.removeprefix(".")[:4]
    return int(number) if path.parent == run / "checkpoints" and number.isdigit() else 0


def is_best(run: Path, path: Path) -> bool:
    """Whether these are the best weights, written or being written."""
    return path.parent == run / "checkpoints" and path.name.removeprefix(".").startswith("best.")


MOMENTS: dict[str, Callable[[Path, Path], bool]] = {
    "cache writing": lambda run, path: path.parent.name == "activations" and path.name.endswith(UNFINISHED),
    "head phase": lambda run, path: checkpoint(run, path) > 1,
    "checkpoint writing": lambda run, path: checkpoint(run, path) >= 4,
    "second phase": lambda run, path: phases(run) == 2,
    "best writing": lambda run, path: is_best(run, path) and phases(run) >= 2,
    "checkpoint writing, full phase": lambda run, path: checkpoint(run, path) > 0 and phases(run) == 3,
    "model writing": lambda run, path: path.parent == run and "model" in path.name,
    "test": lambda run, path: run / "model" in path.parents,
}
"""In the order in which a run comes to them. path: what it is about to make, open for writing or rename to."""
DELAY_S = {
    "cache writing": 0.1,
    "head phase": 0.1,
    "checkpoint writing": 0.002,
    "second phase": 0.1,
    "best writing": 0.001,
    "checkpoint writing, full phase": 0.004,
    "model writing": 0.003,
    "test": 0.01,
}
"""Killed so long after the moment has come, at most: whenever that is, the run ends the same."""


def kill_at(run: Path, moment: str, delay_s: float) -> None:
    """Have the kernel end this process at the moment, or at a later one where this is not to come any more: no line of Python runs then."""
    awaited = list(MOMENTS.values())[list(MOMENTS).index(moment) :]
    when_written(lambda path: any(came(run, path) for came in awaited), partial(signal.setitimer, signal.ITIMER_REAL, delay_s))


def words(run: Path) -> list[str]:
    return ["finetune", "recipe.yaml", "--out", str(run), "--resume"]


def environment(cache: Path) -> dict[str, str]:
    return os.environ | {"TLKIT_CACHE": str(cache)}


def killed(place: Path, run: Path, cache: Path, moment: str, delay_s: float) -> None:
    first = partial(kill_at, run, moment, max(delay_s, 1e-6))
    ended = warm.start(*words(run), cwd=place, env=environment(cache), out=place / "out", first=first).finished()
    assert ended.returncode == -signal.SIGALRM, f"{moment} was over before the run could be killed:\n{ended.stderr}"


def left_in(run: Path) -> list[str]:
    return sorted(str(file.relative_to(run)) for file in run.rglob(f"*{UNFINISHED}"))


def result(run: Path) -> str:
    metrics = {**json.loads((run / "metrics.json").read_text()), "seconds": None}
    table = [line.rpartition(",")[0] for line in (run / "metrics.csv").read_text().splitlines()]
    weights = (run / "model/model.safetensors").read_bytes()
    return sha256(weights + json.dumps([metrics, table], sort_keys=True).encode()).hexdigest()[:12]


@pytest.mark.slow
def test_runs_killed_at_any_moment_end_with_the_same_weights_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tlkit import files
    from tlkit.cli import main

    assert files.UNFINISHED == UNFINISHED
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for folder in BUNDLED.glob("train/*"):
        (tmp_path / "pictures" / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:25]:  # 15 of them train
            shutil.copy(file, tmp_path / "pictures" / folder.name)
    # In this process, which has another hash seed than all those that are forked.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "cache"))
    assert main(words(tmp_path / "whole")) == 0
    whole = result(tmp_path / "whole")
    draws = random.Random(0)
    outcomes = []
    for number in range(int(os.environ.get("TLKIT_KILLS", "1"))):
        # The first one at every moment, others at two.
        moments = sorted(draws.sample(list(MOMENTS), 2 if number else len(MOMENTS)), key=list(MOMENTS).index)
        run, cache = tmp_path / f"run{number}", tmp_path / f"cache{number}"
        left = []
        for moment in moments:
            killed(tmp_path, run, cache, moment, draws.uniform(0, DELAY_S[moment]))
            left += left_in(run)
        ended = warm.run(*words(run), cwd=tmp_path, env=environment(cache))
        assert ended.returncode == 0, ended.stderr
        outcomes.append(result(run))
        assert left_in(run) == []
        resumed = [line.partition("resumed")[2] for line in (run / "log.txt").read_text().splitlines() if " resumed" in line]
        places = "; ".join(line.rpartition("ckpt: ")[2].lstrip(": ") for line in resumed)
        outcome = f"{outcomes[-1]} {'equal' if outcomes[-1] == whole else 'DIFFERS'}"
        print(f"| {number + 1} | {', '.join(moments)} | {', '.join(left)} | {places} | {outcome} |", flush=True)
    assert outcomes == [whole] * len(outcomes)
