"""`tlkit predict` as a user runs it, on a model folder and real files."""

import csv
import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tlkit.cli import main
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.models.heads import last_linear
from tlkit.models.model_folder import ModelCard, load_with_card, write_model_folder
from tlkit.recipe.fields.model import Head


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with three classes, 40 images (more than a batch) and a file that is none."""
    folder = tmp_path_factory.mktemp("predict")
    torch.manual_seed(0)
    classifier = Classifier(create_backbone("test_resnet", 32), Head(), 3, 32)
    preprocessing = {
        "image_size": 32,
        "resize": "stretch",
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    write_model_folder(folder / "model", classifier, ModelCard("test_resnet", Head(), ("cat", "dog", "[red]"), preprocessing, {}, {}, {}))
    draws = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(draws.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def images(workplace: Path) -> list[str]:
    return [str(file) for file in sorted(workplace.glob("*.png"))]


def test_json_has_a_logit_a_class_and_probabilities_that_follow_from_them(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(workplace), *images(workplace), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in rows] == images(workplace)
    for row in rows:
        exponentials = np.exp(row["logits"])
        assert row["probability"] == pytest.approx((exponentials / exponentials.sum()).max())
        assert row["top"][0]["class"] == row["class"] == ("cat", "dog", "[red]")[int(np.argmax(row["logits"]))]


def test_an_image_gets_the_same_logits_alone_and_in_a_batch(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", str(workplace), *images(workplace), "--format", "json"])
    together = json.loads(capsys.readouterr().out)[35]["logits"]
    main(["predict", str(workplace), images(workplace)[35], "--format", "json"])
    alone = json.loads(capsys.readouterr().out)[0]["logits"]
    assert together == pytest.approx(alone, abs=1e-6)


def test_csv_has_a_column_a_rank_and_k_is_clamped_to_the_classes(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(workplace / "model"), *images(workplace)[:2], "--format", "csv", "--top-k", "9"]) == 0
    rows = list(csv.DictReader(StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == ["path", "class1", "probability1", "class2", "probability2", "class3", "probability3", "error"]
    assert sum(float(rows[0][f"probability{rank}"]) for rank in (1, 2, 3)) == pytest.approx(1)


def test_unreadable_files_are_named_and_the_others_predicted(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [images(workplace)[0], str(workplace / "broken.jpg"), str(workplace / "nowhere.png")]
    assert main(["predict", str(workplace), *files, "--format", "json"]) == 2
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert [bool(row.get("error")) for row in rows] == [False, True, True]
    assert "broken.jpg" in printed.err
    assert "nowhere.png" in printed.err
    assert "2 of 3 files could not be read" in printed.err


def test_a_model_never_answers_nan(workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights of 3e38 are finite, and what a network makes of them isn't: every image has a row that says so, and no figure."""
    classifier, card = load_with_card(workplace)
    with torch.no_grad():
        last_linear(classifier.head).weight.fill_(3e38)
    write_model_folder(tmp_path / "model", classifier, card)
    assert main(["predict", str(tmp_path), *images(workplace)[:3], "--format", "jsonl"]) == 2
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["error"] for row in rows] == [f"{file}: the model answers NaN for this image." for file in images(workplace)[:3]]
    assert all(row.keys() == {"path", "error"} for row in rows)
    assert "3 of 3 files could not be read or predicted" in printed.err
    with torch.no_grad():
        next(classifier.backbone.parameters()).fill_(3e38)
    write_model_folder(tmp_path / "model", classifier, card)
    assert main(["predict", str(tmp_path), images(workplace)[0], "--features", "--out", str(tmp_path / "f.npz")]) == 2
    written = np.load(tmp_path / "f.npz")
    assert (written["features"].shape, written["unreadable"].tolist()) == ((0, 96), [images(workplace)[0]])


def test_the_table_shows_class_names_as_they_are(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(workplace), images(workplace)[0], "--top-k", "3"]) == 0
    assert "[red]" in capsys.readouterr().out  # not taken for rich's markup


def test_a_folder_without_a_model_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path), "x.png"]) == 2
    assert "holds no model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.pkl", "model.pkl is a pickle by its name"),
        ("model.onnx", "model.onnx is a file that tlkit can't use by itself.\n  Expected"),
    ],
)
def test_a_file_that_is_no_artifact_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str) -> None:
    (tmp_path / name).touch()
    assert main(["predict", str(tmp_path / name), "x.png"]) == 2
    assert said in capsys.readouterr().err


def test_a_network_of_an_artifact_points_to_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("model.onnx", "artifact.json"):
        (tmp_path / name).touch()
    assert main(["predict", str(tmp_path / "model.onnx"), "x.png"]) == 2
    assert f"Expected {tmp_path}." in capsys.readouterr().err
