"""The table of the ways to transfer, from runs of a small network."""

import json
import re
from pathlib import Path

import pytest
from scipy import stats

from tlkit.bench.ways import NOT_FOR_EACH_BACKBONE, WAYS, main
from tlkit.recipe.load import load_recipe

SMALL = ("model={backbone: test_resnet, weights: random}", "data.image_size=32", "data.limit=120")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_a_recipe(way: str) -> None:
    backbone = ["model={backbone: vit_tiny_patch16_224, weights: random}"] if way in NOT_FOR_EACH_BACKBONE else []
    assert load_recipe("quickstart", [*backbone, *WAYS[way]])


def test_a_row_is_the_mean_over_seeds_its_interval_and_its_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    way = "5 nearest neighbours of the features"
    monkeypatch.setattr("sys.argv", ["ways", "--out", str(tmp_path), "--seeds", "3", "--way", way, *SMALL])
    main()
    row = capsys.readouterr().out.strip().splitlines()[-1]
    found = [json.loads(file.read_text())["test"]["accuracy"] for file in sorted(tmp_path.glob("*/seed_*/metrics.json"))]
    assert len(found) == 3
    mean = sum(found) / 3
    low, high = stats.t.interval(0.95, 2, mean, stats.sem(found))
    assert row.startswith(f"| {way} |")
    expected = (mean, max(low, 0), min(high, 1), min(found), max(found))
    assert [float(number) for number in re.findall(r"\d\.\d{3}", row)] == pytest.approx(expected, abs=5e-4)
    monkeypatch.setattr("sys.argv", ["ways", "--out", str(tmp_path), "--seeds", "1"])
    with pytest.raises(SystemExit):
        main()
    assert "expected at least two" in capsys.readouterr().err
