"""`tlkit compare` of runs of several seeds: real folders of seeds, whose figures are set by hand."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from tests.search.test_compare import change
from tlkit.cli import main
from tlkit.files import write_json

BEFORE = Path(__file__).parents[1] / "fixtures" / "before_layout"
A, B = [0.75, 0.5, 0.625], [0.875, 0.5, 0.875]


def seeds(name: str, values: list[float], *, first: int = 0) -> None:
    """Make a run of several seeds, as `finetune --seeds` leaves it: split.csv of each seed, and metrics.json of all."""
    for number, _ in enumerate(values, first):
        folder = Path(name) / f"seed_{number}"
        folder.mkdir(parents=True)
        for file in ("split.csv", "metrics.csv"):
            shutil.copy(BEFORE / "run" / file, folder)
    shutil.copy(BEFORE / "run" / "recipe.yaml", name)
    over = {split: {"accuracy": {"seeds": values}} for split in ("test", "val")}
    write_json(Path(name) / "metrics.json", {"primary_metric": "accuracy", "val": {}, "over_seeds": over})


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seeds("a", A)
    seeds("b", B)


def compared(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main(["compare", *words, "--format", "json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_the_difference_of_two_recipes_is_tested_by_the_seeds_that_both_have(capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, "a", "b")
    wanted = ttest_rel(B, A)
    interval = wanted.confidence_interval(0.95)
    assert (found["difference"], found["p"]) == (pytest.approx(0.125), pytest.approx(wanted.pvalue))
    assert found["interval"] == pytest.approx([interval.low, interval.high])
    assert (found["n"], found["better"], found["seeds"], found["split"]) == (3, 2, [0, 1, 2], "test")
    assert found["verdict"] == "not distinguishable over 3 seeds (p=0.23)"
    assert found["runs"] == [
        {"run": name, "accuracy": pytest.approx(sum(values) / 3), "seeds": values} for name, values in zip("ab", (A, B), strict=False)
    ]


def test_the_terminal_shows_means_ranges_and_what_the_interval_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a", "b", "--curves", "curves.png"]) == 0
    out = capsys.readouterr().out
    assert "test accuracy  mean of 3 seeds, lowest to highest (12 images)" in out
    assert "b  0.750  0.500 to 0.875" in out
    assert "b  +12.5 points, 95 % interval -18.6 to +43.6 points; better on 2 of 3 seeds" in out  # by hand: 12.5 -+ 4.303 * 12.5 / sqrt 3
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")


def test_equal_differences_have_no_interval_and_are_no_certainty(capsys: pytest.CaptureFixture[str]) -> None:
    seeds("c", [value + 0.125 for value in A])
    found = compared(capsys, "a", "c")
    assert found["p"] == 0.25  # of three coins all on one side, either one
    assert found["interval_note"] == "no interval: each seed has the same difference"
    assert compared(capsys, "a", "b")["interval_note"] == ""
    assert compared(capsys, "a", "a")["p"] == 1
    assert main(["compare", "a", "c"]) == 0
    assert "c  +12.5 points, no interval: each seed has the same difference; better on 3 of 3 seeds" in capsys.readouterr().out


def test_p_of_several_recipes_is_corrected(capsys: pytest.CaptureFixture[str]) -> None:
    seeds("c", [value + 0.125 for value in A])
    found = compared(capsys, "a", "b", "c")["comparisons"]
    assert [one["p"] for one in found] == pytest.approx([2 * ttest_rel(B, A).pvalue] * 2)  # type: ignore[attr-defined]  # Holm: twice the smaller, and no less


def other_seeds() -> None:
    seeds("c", A, first=1)


def a_seed_less() -> None:
    seeds("c", A[:2])


def another_metric() -> None:
    seeds("c", A)
    write_json(Path("c/metrics.json"), {"primary_metric": "balanced_accuracy", "val": {}, "over_seeds": {}})


def other_test_images() -> None:
    seeds("c", A)
    change(Path("c/seed_1/split.csv"), "split", lambda row: "val" if row["id"].endswith("00000.png") else row["split"])


def figures_of_two_seeds() -> None:
    seeds("c", A)
    text = Path("c/metrics.json").read_text()
    Path("c/metrics.json").write_text(text.replace("0.5,", "", 1))


def a_single_run() -> None:
    shutil.copytree(BEFORE / "run", "c")


def nothing() -> None:
    pass


def a_cross_validation() -> None:
    shutil.copytree(BEFORE / "run", "c/fold_1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_seeds, "a has the seeds 0, 1, 2, and c 1, 2, 3.\n  Train the missing ones"),
        (a_seed_less, "a has the seeds 0, 1, 2, and c 0, 1.\n"),
        (another_metric, "different primary metrics: a by accuracy, c by balanced accuracy"),
        (other_test_images, "a/seed_1 and c/seed_1 were tested on different images: 12 and 11, of which 11 images in both."),
        (figures_of_two_seeds, "c/metrics.json can't be read: over_seeds has 2 seeds, and the folder 3"),
        (nothing, "c does not exist.\n"),
        (a_cross_validation, "c is a cross-validation: each fold has its own run folder.\n  Name one of them: c/fold_1."),
        (a_single_run, "a is a run of several seeds, and c is not: they can't be compared.\n  Name a and another run of --seeds"),
    ],
)
def test_what_cant_be_paired_is_named(make: Callable[[], None], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    make()
    assert main(["compare", "a", "c"]) == 2
    assert message in capsys.readouterr().err
