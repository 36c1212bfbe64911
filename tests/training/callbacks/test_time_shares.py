"""The line on where the time went: shares by hand, and the one switch that would save most."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkit.recipe.fields.trainer import Cache
from tlkit.recipe.load import load_recipe
from tlkit.training.callbacks.time_shares import Setting, in_percent, quicker_with, shares_of
from tlkit.training.finetune import run_recipe

LIVE = Setting(
    device="cpu",
    precision="32-true",
    epochs=10,
    workers=0,
    processors=2,
    runs_frozen=False,
    decodes=False,
    augments=True,
    mixes=False,
    cache=Cache(),
)
SHARES = {"forward": 0.5, "decode": 0.2, "augment": 0.1, "batches": 0.02, "optimizer step": 0.18}


def test_shares_are_those_of_the_whole_phase_and_small_ones_go_into_other() -> None:
    # 10 s in all: the step's 7 s hold 2 s of forward and 4 s of backward, so 1 s is the optimizer's own.
    seconds = {"loading": 0.2, "forward": 2.0, "backward": 4.0, "step": 7.0, "validation": 1.5}
    shares = shares_of(seconds, loader=None, total=10.0)
    assert shares == pytest.approx({"reading the cache": 0.02, "forward": 0.2, "backward": 0.4, "optimizer step": 0.1, "validation": 0.15})
    assert in_percent(shares) == "backward 40 %, forward 20 %, validation 15 %, optimizer step 10 %, other 15 %"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        ({"processors": 8}, "; quicker with data.workers: 7"),
        ({"processors": 2, "device": "cuda", "precision": "bf16-mixed"}, "; quicker with data.workers: 1"),
        ({"processors": 1, "device": "cuda"}, "; quicker with trainer.precision: bf16-mixed"),
        ({"runs_frozen": True}, "; the frozen part runs in every epoch: cache.views: 5 would keep 5 augmented views of each image"),
        ({"runs_frozen": True, "epochs": 40}, "cache.views: 8"),
        ({"runs_frozen": True, "epochs": 2}, ""),
        ({"runs_frozen": True, "mixes": True}, ""),
        ({"runs_frozen": True, "augments": False}, ""),
        ({"runs_frozen": True, "cache": Cache(use=False)}, "; the frozen part runs in every epoch: cache.use: true would run it once"),
        ({"decodes": True}, "; quicker with a larger cache.budget_gb, so that images are decoded once"),
        ({"decodes": True, "cache": Cache(use=False)}, "; quicker with cache.use: true, so that"),
    ],
)
def test_the_switch_that_would_save_most_is_named(changes: dict[str, object], expected: str) -> None:
    found = quicker_with(SHARES, 60, replace(LIVE, **changes))  # type: ignore[arg-type]
    assert found == "" if not expected else expected in found


def test_less_than_a_second_saved_is_worth_no_words() -> None:
    assert quicker_with(SHARES, 2, replace(LIVE, processors=8)) == ""
    assert quicker_with(SHARES, 4, replace(LIVE, processors=8)) != ""  # 0.32 of 4 s


def test_more_workers_are_named_only_where_the_step_waits_for_them() -> None:
    busy = replace(LIVE, workers=2, processors=8)
    assert quicker_with({"waiting for workers": 0.4, "forward": 0.5}, 60, busy) == "; quicker with data.workers: 7"
    assert quicker_with({"waiting for workers": 0.1, "forward": 0.5}, 60, busy) == ""
    assert quicker_with({"waiting for workers": 0.4, "forward": 0.5}, 60, replace(busy, workers=7)) == ""


def test_each_phase_tells_in_the_log_where_its_time_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name, shade in (("dark", 40), ("light", 200)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(np.full((40, 40, 3), shade + i, np.uint8)).save(tmp_path / "pictures" / name / f"{i}.png")
    (tmp_path / "recipe.yaml").write_text("""
name: shades
data: {source: {folder: pictures}, image_size: 32, resize: stretch, batch_size: 8, validation: 0.2, test: 0.2}
model: {backbone: test_resnet, weights: random}
phases: [{train: head, epochs: 1, lr: 1e-2}, {train: all, epochs: 2, lr: 1e-2}]
""")
    log = (run_recipe(load_recipe("recipe.yaml"), out=tmp_path / "run") / "log.txt").read_text()
    lines = re.findall(r"phase (\d)/2 .*  time: (.+)", log)
    assert [number for number, _ in lines] == ["1", "2"]
    for _, line in lines:
        percents = [int(percent) for percent in re.findall(r"(\d+) %", line)]
        assert 97 <= sum(percents) <= 103  # each is rounded
        assert "forward" in line
    assert "backward" in lines[1][1]
