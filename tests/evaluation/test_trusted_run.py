"""One small run whose answers are often wrong: what it promises, ships, answers, exports, and what `calibrate` and `drift` make of it."""

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tlkit.cli import main
from tlkit.errors import DataError, RunError
from tlkit.evaluation.calibrate import calibrate_run
from tlkit.evaluation.fit_trust import FittedTrust
from tlkit.models.inference.trust import Abstain, Trust
from tlkit.recipe.load import load_recipe
from tlkit.training.finetune import run_recipe
from tlkit.training.results import log_trust
from tlkit.workflows.drift import drift

RECIPE = """
name: greys
data: {source: {folder: PHOTOS}, validation: 0.5, image_size: 32, resize: stretch, normalize: none, batch_size: 64, workers: 0}
model: {backbone: test_resnet, weights: random}
phases: [{train: head, solver: lbfgs}]
abstain: {error: 0.1, coverage: 0.9}
"""


def draw(folder: Path, shade: float, images: int, seed: int) -> None:
    """Grey images around a shade, which differ among each other nearly as much as the two classes do."""
    folder.mkdir(parents=True)
    draws = np.random.default_rng(seed)
    for i in range(images):
        pixels = np.clip(shade + draws.normal(0, 28) + draws.normal(0, 10, (32, 32, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("greys")
    for split, images in (("train", 160), ("test", 60)):
        for seed, (name, shade) in enumerate((("dark", 95), ("light", 160))):
            draw(folder / "photos" / split / name, shade, images, 2 * seed + (split == "test"))
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (32, 32, 3), dtype=np.uint8) * 255).save(folder / "noise.png")
    return folder


@pytest.fixture(scope="module")
def trained(photos: Path) -> Path:
    (photos / "greys.yaml").write_text(RECIPE.replace("PHOTOS", str(photos / "photos")))
    return run_recipe(load_recipe(photos / "greys.yaml"), out=photos / "run")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def printed(*words: str) -> str:
    with redirect_stdout(io.StringIO()) as out:
        assert main(words) == 0
    return out.getvalue()


def facts_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "model" / "tlkit.json").read_text())
    return found


def test_a_run_measures_and_ships_what_it_promises(trained: Path) -> None:
    facts, test = facts_of(trained), json.loads((trained / "metrics.json").read_text())["test"]
    assert facts["calibration"]["temperature"] == test["calibration"]["temperature"] != 1
    assert sum(one["count"] for one in test["calibration"]["bins_after"]) == 120
    assert test["risk_coverage"][-1]["error"] == pytest.approx(test["error"])
    assert test["abstain"]["threshold"] == facts["abstain"]["threshold"] > 0.5
    assert test["abstain"]["error"] <= 0.1 < test["error"]
    assert test["conformal"]["coverage"] == pytest.approx(0.9, abs=0.1)
    assert facts["unknown"]["score"] == "knn"
    sample = load_file(trained / "model" / "training_sample.safetensors")["features"]
    assert sample.dtype == np.float16
    assert len(sample) == 100  # 50 of each class
    assert np.linalg.norm(sample.astype(np.float32), axis=1) == pytest.approx(1, abs=1e-2)
    assert "training_sample.safetensors" in facts["sha256"]


def test_predict_says_in_words_what_it_does_not_know(trained: Path, photos: Path) -> None:
    files = [*sorted(map(str, (photos / "photos" / "test").rglob("*.png"))), str(photos / "noise.png")]
    answers = json.loads(printed("predict", str(trained), *files, "--format", "json"))
    facts = facts_of(trained)
    assert list(answers[0]) == ["path", "class", "abstains", "probability", "top", "logits", "set", "unknown", "note"]
    logits = np.array([answer["logits"] for answer in answers])
    softened = np.exp(logits / facts["calibration"]["temperature"])
    assert [answer["probability"] for answer in answers] == pytest.approx((softened / softened.sum(1, keepdims=True)).max(1))
    for answer in answers:
        unsure = answer["probability"] < facts["abstain"]["threshold"]
        assert answer["abstains"] == unsure == (answer["class"] is None) == ("not sure" in answer["note"])
        assert answer["unknown"] == ("unlike any training image" in answer["note"])
        assert answer["set"] == [one["class"] for one in answer["top"] if one["probability"] >= 1 - facts["conformal"]["quantile"]]
    assert answers[-1]["unknown"]
    assert {answer["abstains"] for answer in answers} == {True, False}
    rows = list(csv.DictReader(io.StringIO(printed("predict", str(trained), *files, "--format", "csv"))))
    assert list(rows[0])[-4:] == ["error", "set", "unknown", "note"]
    assert [row["note"] for row in rows] == [answer["note"] for answer in answers]
    assert "unlike any training image" in printed("predict", str(trained), *files[-2:])
    everything = json.loads(printed("predict", str(trained), *files, "--format", "json", "--threshold", "0"))
    assert not any(answer["abstains"] for answer in everything)


def test_predictions_csv_has_the_probabilities_that_predict_gives(trained: Path) -> None:
    rows = list(csv.DictReader((trained / "predictions.csv").open()))
    given = json.loads(printed("predict", str(trained), str(trained.parent / "photos" / "test"), "--format", "json", "--threshold", "0"))
    assert [float(row["probability"]) for row in rows] == pytest.approx([answer["probability"] for answer in given], abs=1e-4)


def test_an_artifact_answers_as_the_run_does(run: Path, photos: Path) -> None:
    files = [*sorted(map(str, (photos / "photos" / "test").rglob("*.png")))[::10], str(photos / "noise.png")]
    printed("export", str(run))
    artifact = run / "export" / "onnx"
    of_run, of_artifact = (json.loads(printed("predict", str(model), *files, "--format", "json")) for model in (run, artifact))
    for ours, theirs in zip(of_run, of_artifact, strict=True):
        assert theirs["probability"] == pytest.approx(ours["probability"], abs=1e-4)
        assert {key: theirs[key] for key in ("class", "set", "unknown", "note")} == {
            key: ours[key] for key in ("class", "set", "unknown", "note")
        }
    facts = json.loads((artifact / "artifact.json").read_text())
    assert {name: facts[name] for name in ("calibration", "abstain", "conformal", "unknown")} == {
        name: facts_of(run)[name] for name in ("calibration", "abstain", "conformal", "unknown")
    }
    alone = subprocess.run(
        [sys.executable, artifact / "predict.py", *files], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [("not sure" in line, "unlike any training image" in line) for line in alone] == [
        (answer["abstains"], answer["unknown"]) for answer in of_run
    ]


def test_a_missing_training_sample_is_named(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "model/training_sample.safetensors").unlink()
    assert main(["predict", str(run), str(photos / "noise.png")]) == 2
    assert f"{run}/model/training_sample.safetensors is missing, which tlkit.json describes.\n" in capsys.readouterr().err


def test_a_promise_that_needs_no_abstaining_is_logged_as_that(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tlkit")
    log_trust(FittedTrust(Trust(abstain=Abstain(0.0, 0.3, 1.0, 257)), {}))
    assert caplog.messages == ["every image gets an answer: without abstaining the error stays below 0.3 with 95% confidence"]


def test_calibrate_puts_another_promise_into_the_model_folder(run: Path) -> None:
    text = printed("calibrate", str(run), "--error", "0.25", "--coverage", "0.8")
    facts, metrics = facts_of(run), json.loads((run / "metrics.json").read_text())
    assert facts["abstain"]["error"] == metrics["test"]["abstain"]["promised_error"] == 0.25
    assert facts["conformal"]["coverage"] == 0.8
    assert facts["metrics"] == metrics
    assert facts["abstain"]["threshold"] == 0
    assert (
        "no threshold is needed: the promise is kept without abstaining\n  promised: the error of all answers stays below 0.25, with"
        in text
    )
    # 129 of 161 order statistics: Beta(129, 32), as SciPy has its quantiles.
    assert "that is the mean of choices by as many images: of 95 % of them, the sets hold it for 74% to 86%" in text
    text = printed("calibrate", str(run), "--error", "0.1")
    assert f"threshold {facts_of(run)['abstain']['threshold']:.4f}: no class is named where none is as likely" in text


@pytest.mark.parametrize(
    ("error", "coverage", "message"),
    [
        (None, None, "Add --error 0.02, --coverage 0.95, or both"),
        (1.0, None, "--error 1 is not a share between 0 and 1"),
        (None, -0.5, "--coverage -0.5 is not a share between 0 and 1"),
        (0.0001, None, r"No threshold keeps the error below 0.0001 .* on 160 validation images(.|\n)*\n  Ask for less, or train with more"),
        (None, 0.999, "need 999 validation images, and there are 160"),
    ],
)
def test_what_cannot_be_promised_is_one_message_and_changes_nothing(
    trained: Path, error: float | None, coverage: float | None, message: str
) -> None:
    before = facts_of(trained)
    with pytest.raises(RunError, match=message):
        calibrate_run(trained, error=error, coverage=coverage)
    assert facts_of(trained) == before


def test_runs_without_end_validation_or_probabilities_cannot_be_calibrated(run: Path) -> None:
    facts = facts_of(run)
    several = {"task": "multilabel", "thresholds": [0.5] * len(facts["classes"])}
    for changes, message in (({"head": {"kind": "knn"}}, "A knn head gives scores"), (several, "one label per image")):
        (run / "model" / "tlkit.json").write_text(json.dumps({**facts, **changes}))
        with pytest.raises(RunError, match=message):
            calibrate_run(run, error=0.3, coverage=None)
    (run / "model" / "tlkit.json").write_text(json.dumps(facts))
    split = (run / "split.csv").read_text()
    (run / "split.csv").write_text(split.replace(",val,", ",train,"))
    with pytest.raises(DataError, match="has no validation images"):
        calibrate_run(run, error=0.3, coverage=None)
    (run / "metrics.json").unlink()
    with pytest.raises(RunError, match="the run was interrupted"):
        calibrate_run(run, error=0.3, coverage=None)


def test_drift_finds_darker_images_and_none_in_the_test_images(trained: Path, photos: Path, tmp_path: Path) -> None:
    same = drift(trained, photos / "photos" / "test")
    assert not same["differs"]
    assert (same["pictures"], same["compared_with"], same["unreadable"]) == (120, 160, 0)
    draw(tmp_path / "night", 40, 40, seed=9)
    (tmp_path / "night" / "broken.png").write_bytes(b"none")
    found = drift(trained, tmp_path / "night")
    assert found["unreadable"] == 1
    assert {"brightness", "features", "class shares"} <= set(found["differs_in"])
    assert "sizes" not in found["differs_in"]
    text = printed("drift", str(trained), str(tmp_path / "night"))
    assert "brightness" in text.splitlines()[0]


def test_drift_needs_images(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no image in this folder"):
        drift(trained, tmp_path / "empty")
    with pytest.raises(DataError, match=r"nowhere does not exist.\n  Expected a folder of images."):
        drift(trained, tmp_path / "nowhere")
    draw(tmp_path / "few", 90, 3, seed=0)
    with pytest.raises(DataError, match=r"few has 3 readable images, and a comparison needs 10 at least\.\n  Add images to the folder\."):
        drift(trained, tmp_path / "few")


def test_a_recipe_that_asks_for_promises_without_probabilities_is_refused(photos: Path) -> None:
    def refused(overrides: Sequence[str]) -> str:
        with pytest.raises(Exception, match=r"probabilities|energy") as error:
            load_recipe(photos / "greys.yaml", overrides)
        return str(error.value)

    (photos / "greys.yaml").write_text(RECIPE.replace("PHOTOS", str(photos / "photos")))
    assert "a knn head gives none" in refused(["model.head={kind: knn}", "phases=[]"])
    assert "'energy' needs logits" in refused(["model.head={kind: svm}", "phases=[]", "abstain=null", "unknown=energy"])
