"""`tlkit rank` on tiny real images: random backbones, and one whose weights are not here."""

import csv
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.shades import draw_shades
from tlkit.cli import main
from tlkit.data.samples import Sample, Samples
from tlkit.evaluation.intervals import wilson_interval
from tlkit.files import write_csv
from tlkit.models.catalog import published
from tlkit.recipe.load import load_recipe
from tlkit.search.rank import FOLDS, Candidate, Ranked, candidates_of, score_features, variant, with_pareto

pytestmark = pytest.mark.usefixtures("draws")

RECIPE = """
name: shades
data: {source: {folder: photos}, image_size: 32, resize: stretch, normalize: none, batch_size: 8, test: 0.25}
model: {backbone: test_resnet, weights: random}
augment: [HorizontalFlip]
phases: [{train: {from: layer4}, epochs: 2, lr: 1e-2}]
"""
WANTED = "test_resnet@random,lenet5@random,resnet18,nosuch"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the command has written into `ranked`."""
    folder = tmp_path_factory.mktemp("rank")
    draw_shades(folder / "photos")
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TLKIT_CACHE", str(folder / "cache"))
        assert main(["rank", "recipe.yaml", "--backbones", WANTED, "--out", "ranked", "--write", "best.yaml", "--offline"]) == 0
    return folder


def rows(workplace: Path) -> list[dict[str, str]]:
    with (workplace / "ranked/rank.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_best_comes_first_and_what_is_missing_last_with_the_reason(workplace: Path) -> None:
    found = rows(workplace)
    assert {row["backbone"] for row in found[:2]} == {"test_resnet@random", "lenet5@random"}
    assert float(found[0]["accuracy"]) >= float(found[1]["accuracy"]) > 0.5
    assert all(float(row["low"]) <= float(row["accuracy"]) <= float(row["high"]) for row in found[:2])
    assert all(row["accuracy"] == "" for row in found[2:])
    notes = {row["backbone"]: row["note"] for row in found[2:]}
    assert "resnet18" in notes["resnet18"]
    assert "nosuch" in notes["nosuch"]
    assert (workplace / "ranked/rank.png").read_bytes().startswith(b"\x89PNG")


def test_the_winning_recipe_is_written_and_passes_check(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    assert main(["check", "best.yaml"]) == 0
    assert rows(workplace)[0]["backbone"].partition("@")[0] in (workplace / "best.yaml").read_text()


def test_what_was_measured_is_not_measured_again(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    before = rows(workplace)
    assert main(["rank", "recipe.yaml", "--backbones", WANTED, "--out", "ranked", "--offline"]) == 0
    errors = capsys.readouterr().err
    assert errors.count("was measured before") == 2
    assert "In --backbones, weights are written as NAME@random or NAME@FILE." in errors
    assert rows(workplace) == before  # images per second too
    kept = json.loads((workplace / "ranked/candidates/lenet5@random.json").read_text())
    assert kept["row"]["n"] == 30


@pytest.mark.parametrize("column", ["label", "group"])
def test_images_with_another_label_or_group_are_measured_again(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TLKIT_CACHE", str(workplace / "cache"))
    draw_shades(Path("photos"))
    Path("recipe.yaml").write_text(RECIPE.replace("folder: photos", "csv: photos.csv").replace(", test: 0.25", ""))
    table = [
        {"path": str(path), "label": path.parent.name, "group": path.stem, "split": "train" if path.stem < "15" else "val"}
        for path in sorted(Path("photos").rglob("*.png"))
    ]
    for changed in (False, True):
        if changed:
            table[0][column], table[34][column] = table[34][column], table[0][column]  # both of train
        write_csv(Path("photos.csv"), list(table[0]), table)
        assert main(["rank", "recipe.yaml", "--backbones", "lenet5@random", "--out", "ranked", "--offline"]) == 0
    assert "was measured before" not in capsys.readouterr().err


def test_the_speed_is_measured_again_on_request_alone(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    file = Path("ranked/candidates/lenet5@random.json")
    kept = json.loads(file.read_text())
    slow = {**kept["row"], "images_per_s": 0.001, "timed": "2020-01-01 00:00"}
    file.write_text(json.dumps({**kept, "row": slow}))
    command = ["rank", "recipe.yaml", "--backbones", "lenet5@random", "--out", "ranked", "--offline"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "\n* no other one is as accurate and faster, or as fast and more accurate\n" in printed
    assert "images/s measured 2020-01-01 00:00 on this machine; again with --time-again" in printed
    assert main([*command, "--time-again"]) == 0
    (row,) = rows(workplace)
    assert float(row["images_per_s"]) > 1
    assert row["timed"] > "2026"
    assert float(row["accuracy"]) == pytest.approx(kept["row"]["score"], abs=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x"], "tlkit rank needs backbones to compare"),
        (["--backbones", "nosuch*", "--out", "x"], "no backbone's name matches 'nosuch*'"),
        (["--backbones", "lenet5", "--out", "x", "--write", "recipe.yaml"], "--write recipe.yaml is there already"),
    ],
)
def test_bad_input_is_named(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    monkeypatch.chdir(workplace)
    assert main(["rank", "recipe.yaml", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (workplace / "x").exists()


@pytest.mark.parametrize(("out", "words"), [("photos", "is not empty, and no earlier"), ("recipe.yaml", "is a file")])
def test_nothing_is_written_where_something_else_is(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str, words: str
) -> None:
    monkeypatch.chdir(workplace)
    before = sorted(workplace.rglob("*"))
    assert main(["rank", "recipe.yaml", "--backbones", "test_resnet@random", "--out", out, "--offline"]) == 2
    assert words in capsys.readouterr().err
    assert sorted(workplace.rglob("*")) == before


def test_a_fault_of_the_images_is_no_backbones_and_ends_the_ranking(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    for name in ("dark", "light"):
        (tmp_path / "two" / name).mkdir(parents=True)
        for i in range(2):
            shutil.copy(f"photos/{name}/0{i}.png", tmp_path / "two" / name)
    command = ["rank", "recipe.yaml", f"data.source.folder={tmp_path / 'two'}", "--backbones", "test_vit@random,lenet5@random"]
    assert main([*command, "--out", str(tmp_path / "x"), "--offline"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("too few images to split: dark (2), light (2)") == 1
    assert "left out" not in errors
    assert not (tmp_path / "x").exists()


def test_a_backbone_without_dense_layers_is_measured_whole_beside_the_convolutions_of_another(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    command = ["rank", "recipe.yaml", "model.backbone=alexnet", "model.features=conv", "data.image_size=64", "--offline"]
    out, best = tmp_path / "x", tmp_path / "best.yaml"
    assert main([*command, "--backbones", "alexnet@random,test_resnet@random", "--out", str(out)]) == 0
    assert "model.features = 'conv' is for VGG and AlexNet; measured with `all`: test_resnet@random" in capsys.readouterr().err
    kept = {file.stem: json.loads(file.read_text())["row"] for file in (out / "candidates").iterdir()}
    assert kept["test_resnet@random"]["score"] > 0.5
    assert kept["alexnet@random"]["parameters"] == 34_944 + 307_456 + 885_120 + 663_936 + 442_624  # Krizhevsky's five convolutions
    assert main([*command, "--backbones", "test_resnet@random", "--out", str(tmp_path / "y"), "--write", str(best)]) == 0
    assert load_recipe(best).model.features == "all"


def test_a_batch_size_that_is_to_be_found_is_any_for_features() -> None:
    candidate = Candidate("lenet5@random", "lenet5", "random")
    assert variant("quickstart", ["data.batch_size={find: 0.8}"], candidate, 100).data.batch_size == 64
    assert variant("quickstart", ["data.batch_size=16"], candidate, 100).data.batch_size == 16


def test_a_backbone_that_is_named_twice_is_measured_once() -> None:
    words = ["lenet5@random", "alexnet@random", "lenet5@random", "lene*@random", "lenet5@pretrained"]
    found = candidates_of(load_recipe("quickstart"), words, None, offline=True)
    assert [candidate.name for candidate in found] == ["lenet5@random", "alexnet@random", "lenet5@pretrained"]


def test_a_budget_chooses_backbones_that_no_smaller_one_beats_from_small_to_large() -> None:
    names = [candidate.name for candidate in candidates_of(load_recipe("quickstart"), [], 5, offline=False)]
    sizes = [int(published("parameters")[name]) for name in names]
    accuracies = [float(published("top1")[f"{name}.{timm.get_pretrained_cfg(name).tag}"]) for name in names]
    assert sizes == sorted(set(sizes))
    assert accuracies == sorted(set(accuracies))
    assert sizes[0] < 5e6 < 15e6 < sizes[-1] <= 60e6
    many = [candidate.name for candidate in candidates_of(load_recipe("quickstart"), [], 40, offline=False)]
    assert len(set(many)) == 40


def test_a_budget_without_a_network_chooses_among_the_weights_that_are_here(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(workplace / "hub"))
    (found,) = candidates_of(load_recipe("quickstart"), [], 20, offline=True)
    assert (found.name, found.weights) == ("tf_efficientnet_lite0", {"package": "efficientnet-lite0"})
    monkeypatch.setattr("tlkit.models.weights.sources.find_spec", lambda name: None)
    monkeypatch.chdir(workplace)
    assert main(["rank", "recipe.yaml", "--budget", "20", "--out", "x", "--offline"]) == 2
    assert "--budget: no backbone with a published accuracy has its weights on this machine." in capsys.readouterr().err


def test_the_solved_head_answers_as_scikit_learns_cross_validation() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 40)
    features = random.normal(size=(120, 6)) + 1.1 * np.eye(3, 6)[labels]
    samples = Samples(("a", "b", "c"), tuple(Sample(str(i), Path("x"), (int(label),), "train") for i, label in enumerate(labels)))
    found = score_features(torch.from_numpy(features).float(), torch.from_numpy(labels), samples)
    shares = []
    for decay in (1.0, 0.1, 0.01, 0.001):  # 1 / (N C) of scikit-learn, N the images that a fold is fitted on
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (96 * decay), max_iter=1000))
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        shares.append(np.mean(cross_val_predict(model, features, labels, cv=folds) == labels))
    assert found["metric"] == "accuracy"
    assert found["score"] == pytest.approx(max(shares), abs=1.5 / 120)
    assert (found["low"], found["high"]) == pytest.approx(wilson_interval(round(120 * found["score"]), 120))


def test_where_classes_are_uneven_the_score_is_balanced_accuracy_as_for_the_best_epoch() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], [150, 20])
    features = random.normal(size=(170, 4)) + 1.2 * np.eye(2, 4)[labels]
    samples = Samples(("a", "b"), tuple(Sample(str(i), Path("x"), (int(label),), "train") for i, label in enumerate(labels)))
    found = score_features(torch.from_numpy(features).float(), torch.from_numpy(labels), samples)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    shares = []
    for decay in (1.0, 0.1, 0.01, 0.001):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (136 * decay), max_iter=1000))
        shares.append(balanced_accuracy_score(labels, cross_val_predict(model, features, labels, cv=folds)))
    assert found["metric"] == "balanced_accuracy"
    assert found["score"] == pytest.approx(max(shares), abs=1.5 / 40)
    near = cross_val_predict(KNeighborsClassifier(5, metric="cosine"), features, labels, cv=folds)
    assert found["knn"] == pytest.approx(balanced_accuracy_score(labels, near))
    assert found["low"] < found["score"] - 0.05  # 20 images of b: a share of 0.7 alone has a standard error of 0.1
    assert found["high"] > found["score"] + 0.05


def test_several_labels_are_scored_by_mean_average_precision() -> None:
    random = np.random.default_rng(0)
    labels = torch.from_numpy(random.integers(0, 2, (200, 3))).float()
    features = torch.cat([labels[:, :2], torch.from_numpy(random.normal(size=(200, 1))).float()], 1)  # the third says nothing
    classes = tuple(tuple(row.nonzero().flatten().tolist()) for row in labels)
    samples = Samples(("a", "b", "c"), tuple(Sample(str(i), Path("x"), each, "train") for i, each in enumerate(classes)), "multilabel")
    found = score_features(features, labels, samples)
    assert found["metric"] == "mean_average_precision"
    chance = float(labels[:, 2].mean())
    assert found["score"] == pytest.approx((1 + 1 + chance) / 3, abs=0.05)
    assert found["low"] < found["score"] < found["high"]


def test_the_interval_counts_groups_and_not_their_images() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 60)
    features = random.normal(size=(60, 2)) + 1.5 * np.eye(2)[labels]
    each = [Sample(f"{i}", Path("x"), (int(label),), "train") for i, label in enumerate(labels)]
    ten = [replace(sample, id=f"{sample.id}.{copy}", group=sample.id) for sample in each for copy in range(10)]
    found = score_features(
        torch.from_numpy(features).float().repeat_interleave(10, 0),
        torch.from_numpy(labels).repeat_interleave(10),
        Samples(("a", "b"), tuple(ten)),
    )
    assert found["groups"] == 60
    right = round(60 * found["score"])
    expected = binomtest(right, 60).proportion_ci(method="wilson")
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_fewer_groups_than_folds_make_fewer_folds() -> None:
    labels = torch.arange(24) % 2
    samples = Samples(("a", "b"), tuple(Sample(str(i), Path("x"), (i % 2,), "train", group=str(i // 8)) for i in range(24)))
    assert score_features(torch.eye(2)[labels], labels, samples)["score"] == 1


def test_the_front_has_what_nobody_beats() -> None:
    given = [("slow", 0.9, 10.0), ("quick", 0.7, 100.0), ("worse", 0.6, 90.0), ("equal", 0.9, 10.0), ("gone", None, None)]
    marked = with_pareto([Ranked(name, score=accuracy, images_per_s=speed) for name, accuracy, speed in given])
    assert [row.backbone for row in marked if row.pareto] == ["slow", "quick", "equal"]


def test_table_and_file_name_the_metric_and_what_its_interval_is_over(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    figures = {"score": 0.51239, "low": 0.4, "high": 0.6, "images_per_s": 10.0, "knn": 0.5, "logme": 0.1, "megabytes": 1.0}
    row = Ranked("lenet5@random", **figures, n=300, groups=20, metric="balanced_accuracy")
    monkeypatch.setattr("tlkit.search.rank._measured", lambda *_: row)
    assert main(["rank", "recipe.yaml", "--backbones", "lenet5@random", "--out", "named"]) == 0
    printed = capsys.readouterr().out
    assert printed.split()[:3] == ["backbone", "balanced", "accuracy"]
    assert "\n95 % interval over 300 images in 20 groups\n" in printed
    header, cells = Path("named/rank.csv").read_text().splitlines()
    assert header.startswith("backbone,balanced_accuracy,low,high,")
    assert cells.startswith("lenet5@random,0.5124,0.4,0.6,")


def test_ctrl_c_says_how_to_go_on(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("tlkit.search.rank._measured", lambda *_: signal.raise_signal(signal.SIGINT))
    assert main(["rank", "recipe.yaml", "--backbones", "lenet5@random", "--out", "stopped"]) == 130
    assert capsys.readouterr().err.endswith("warning: interrupted; go on with the same command\nInterrupted.\n")
