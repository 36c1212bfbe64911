"""Whether the order of `rank` is the order after training: two small networks, ranked and trained."""

import csv
import json
from pathlib import Path

import pytest

from tlkit.search.ranking import main

SMALL = ("data.image_size=32", "data.limit=150", "phases=[{train: all, epochs: 1, lr: 1e-3}]")


def test_each_backbone_is_ranked_trained_and_correlated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backbones = ("test_resnet@random", "test_convnext@random")
    changed = [word for value in SMALL for word in ("--set", value)]
    monkeypatch.setattr("sys.argv", ["ranking", "quickstart", *backbones, "--out", str(tmp_path), *changed])
    main()
    _, _, *rows, _, last = capsys.readouterr().out.strip().splitlines()
    with (tmp_path / "ranked/rank.csv").open(newline="") as file:
        ranked = {row["backbone"].partition("@")[0]: float(row["accuracy"]) for row in csv.DictReader(file)}
    trained = {name: json.loads((tmp_path / f"{name}@random/metrics.json").read_text())["test"]["accuracy"] for name in ranked}
    assert set(rows) == {f"| {name}@random | {ranked[name]:.3f} | {trained[name]:.3f} |" for name in ranked}
    # Of two backbones with other figures the correlation of ranks can only be 1 or -1.
    by_features, after = ([of[name] for name in ranked] for of in (ranked, trained))
    same = (by_features[0] > by_features[1]) == (after[0] > after[1])
    assert f"over 2 backbones: {'1.00' if same else '-1.00'}" in last
