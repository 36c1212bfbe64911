"""The page from end to end, on real image files and timm's own tiny networks."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests import warm
from tests.drawing import drawn
from tlkit.data.decode import decode
from tlkit.data.preprocess import Preprocessing
from tlkit.deploy.predict.predict import predict
from tlkit.errors import DeviceError, RecipeError, RunError
from tlkit.evaluation.evaluate import evaluate
from tlkit.models.model_folder import load_with_card
from tlkit.recipe.load import load_recipe
from tlkit.report.kept import read_kept
from tlkit.training.finetune import run_recipe

COLOURS = {"blue": (40, 60, 200), "green": (30, 180, 60), "red": (210, 40, 50)}

RECIPE = """
name: colours
data: {source: {folder: pictures}, image_size: 32, resize: stretch, normalize: dataset, batch_size: 8, validation: 0.2, test: 0.2}
augment:
  - HorizontalFlip: {p: 0.5}
  - Rotate: {limit: 15}
model: {backbone: test_resnet, weights: random, head: {dropout: 0.1}}
phases:
  - {train: head, epochs: 1, lr: 1e-2}
  - {train: {from: layer3}, epochs: 1, lr: 1e-2}
  - {train: all, epochs: 2, lr: 1e-2}
"""


EVERY_BATCH = "trainer.checkpoint_every={minutes: 1e-6}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 20 noisy images of each colour, of differing sizes, and the recipe."""
    folder = tmp_path_factory.mktemp("colours")
    draws = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            height, width = draws.integers(20, 60, 2)
            noisy = np.clip(np.array(colour) + draws.normal(0, 40, (height, width, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / "pictures" / name / f"{i:02d}.png")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def run(workplace: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch, drawn():
        patch.chdir(workplace)
        return run_recipe(load_recipe("recipe.yaml"), out=Path("run")).absolute()


def test_the_run_folder_holds_what_scripts_rely_on(run: Path) -> None:
    expected = {"recipe.yaml", "split.csv", "metrics.csv", "metrics.json", "curves.png", "checkpoints", "model", "report.html", "log.txt"}
    assert expected <= {entry.name for entry in run.iterdir()}
    assert (run / "augmentations.png").is_file()  # the recipe has some
    with Image.open(run / "curves.png") as curves:
        assert min(curves.size) > 100
    assert "<h3>What training saw</h3>" in (run / "report.html").read_text()
    assert {entry.name for entry in (run / "model").iterdir()} == {"model.safetensors", "config.json", "tlkit.json"}
    assert {entry.name for entry in (run / "checkpoints").iterdir()} == {"best.safetensors"}


def test_the_page_is_written_again_from_what_the_run_has_kept_without_the_network_and_the_images(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    page = (tmp_path / "run/report.html").read_text()
    said = "print([name for name in ('torch', 'timm', 'lightning') if name in sys.modules])"
    code = f"import sys; from tlkit.cli import main; main(sys.argv[1:]); {said}"
    words = [sys.executable, "-c", code, "report", str(tmp_path / "run"), "--out", "again.html"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "heat maps are those that the run has kept" in done.stderr
    assert (tmp_path / "again.html").read_text() == page
    # Other weights than those that it was drawn with: everything is looked at again.
    (tmp_path / "run/model/head.safetensors").write_bytes(b"")
    assert read_kept(run, "test") is not None
    assert read_kept(tmp_path / "run", "test") is None


def test_metrics_csv_has_a_row_an_epoch_with_the_columns_of_the_contract(run: Path) -> None:
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["phase", "epoch", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr", "seconds"]
    assert [(row["phase"], row["epoch"]) for row in rows] == [("1", "1"), ("2", "1"), ("3", "1"), ("3", "2")]
    # The rate of the epoch's last step, 0-based 4 of 5, or 4 and 9 of 10, on half a cosine: not the 0 that it would come to after it.
    # Of 10 steps the first is the warm-up; a tenth of 5 is none.
    rates = [5e-3 * (1 + math.cos(math.pi * done)) for done in (0.8, 0.8, 3 / 9, 8 / 9)]
    assert [float(row["lr"]) for row in rows] == pytest.approx(rates)


def test_metrics_json_has_test_validation_and_seconds(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["pictures"] == {"train": 36, "val": 12, "test": 12}
    assert metrics["test"]["pictures"] == 12
    assert metrics["test"]["accuracy"] >= 0.9  # plain colours: anything less means that training is broken
    assert metrics["seconds"]["total"] > 0


def events(run: Path, name: str) -> EventAccumulator:
    found = EventAccumulator(str(run / "tensorboard" / name))
    found.Reload()
    return found


def test_tensorboard_has_the_rates_of_all_groups(run: Path) -> None:
    for name, groups in (("phase1", {"head"}), ("phase2", {"head", "layer3", "layer4"}), ("phase3", {"head", "layer1", "layer4", "stem"})):
        found = events(run, name)
        assert {f"lr/{group}" for group in groups} <= set(found.Tags()["scalars"])
        for tag in ("lr", *(f"lr/{group}" for group in groups)):
            first, *_, last = found.Scalars(tag)
            assert (first.step, first.value) == (0, pytest.approx(1e-2))
            assert (last.step, last.value) == (10 if name == "phase3" else 5, pytest.approx(0, abs=1e-6))  # a cosine's end
        assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/score"} <= set(found.Tags()["scalars"])


def test_tensorboard_has_test_figures_and_hyper_parameters(run: Path) -> None:
    found = events(run, "result")
    metrics = json.loads((run / "metrics.json").read_text())
    for split in ("test", "val"):
        for figure in ("accuracy", "loss"):
            assert found.Scalars(f"{split}/{figure}")[0].value == pytest.approx(metrics[split][figure])
    session = HParamsPluginData.FromString(found.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    values = session.session_start_info.hparams
    assert values["model/backbone"].string_value == "test_resnet"
    assert values["phases[1]/train/from"].string_value == "layer3"
    assert values["phases[2]/lr"].number_value == 1e-2


def test_the_shipped_weights_are_those_of_the_best_validation_epoch(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: (float(row["val/accuracy"]), -float(row["val/loss"])))
    assert (metrics["best"]["phase"], metrics["best"]["epoch"]) == (int(best["phase"]), int(best["epoch"]))
    assert metrics["val"]["accuracy"] == pytest.approx(float(best["val/accuracy"]))
    # Measured over all images at once there, and in batches of 8 and 4 here.
    assert metrics["val"]["loss"] == pytest.approx(float(best["val/loss"]), rel=1e-4)
    kept, shipped = load_file(run / "checkpoints/best.safetensors"), load_file(run / "model/model.safetensors")
    backbone = {key.removeprefix("backbone."): tensor for key, tensor in kept.items() if key.startswith("backbone.")}
    assert all(torch.equal(tensor, shipped[key]) for key, tensor in backbone.items())
    assert torch.equal(kept["head.1.weight"], shipped["fc.weight"])


def test_evaluate_gives_the_figures_of_the_run_again(run: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    metrics = json.loads((run / "metrics.json").read_text())
    for split in ("test", "val"):
        assert evaluate(run, split=split) == metrics[split]
    for tta, views in (("flip", 2), ("crops", 12), (3, 4)):
        measured = evaluate(run, split="test", tta=tta)
        beside = measured.pop("tta")
        assert measured == {name: metrics["test"][name] for name in measured}  # what ships is never measured otherwise
        assert set(metrics["test"]) - set(measured) == {"calibration", "risk_coverage"}  # of plain answers alone
        assert (beside["kind"], beside["views"], beside["pictures"]) == (tta, views, 12)
        assert beside["accuracy"] == pytest.approx(measured["accuracy"] + (beside["gained"] - beside["lost"]) / 12)
        assert beside["loss"] != measured["loss"]
        assert evaluate(run, split="test", tta=tta)["tta"] == beside


def test_plain_timm_gives_the_logits_that_predict_gives(run: Path, workplace: Path) -> None:
    files = sorted((workplace / "pictures").rglob("*.png"))[:20]
    _, predictions = predict(run, files)
    _, card = load_with_card(run)
    preprocessing = Preprocessing.from_json(card.preprocessing)
    plain = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    images = torch.from_numpy(np.stack([preprocessing.fit(decode(file)) for file in files])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits = plain(preprocessing.normalize(images))
    torch.testing.assert_close(torch.tensor([prediction.logits for prediction in predictions]), logits, atol=1e-5, rtol=0)


def test_the_same_recipe_and_seed_give_the_same_weights_and_figures(run: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    again = run_recipe(load_recipe("recipe.yaml"), out=workplace / "again")
    assert (again / "model/model.safetensors").read_bytes() == (run / "model/model.safetensors").read_bytes()
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (run, again))
    assert {**first, "seconds": None} == {**second, "seconds": None}


def test_another_seed_gives_another_split_and_other_weights(run: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    other = run_recipe(load_recipe("recipe.yaml", ["seed=1", "phases=[{train: head, epochs: 1, lr: 1e-2}]"]), out=workplace / "seed1")
    assert (other / "split.csv").read_text() != (run / "split.csv").read_text()


def test_a_folder_with_files_in_it_is_never_overwritten(run: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    before = (run / "metrics.json").read_bytes()
    with pytest.raises(RunError, match="never overwrites"):
        run_recipe(load_recipe("recipe.yaml"), out=run)
    assert (run / "metrics.json").read_bytes() == before


def test_an_unknown_stage_in_the_last_phase_is_found_before_training_with_its_line(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    (workplace / "wrong.yaml").write_text(RECIPE.replace("from: layer3", "from: layr3"))
    with pytest.raises(RecipeError) as caught:
        run_recipe(load_recipe("wrong.yaml"), out=workplace / "wrong")
    assert str(caught.value).startswith("wrong.yaml:10: phases[1].train.from = 'layr3' is not a stage of test_resnet.")
    assert "Did you mean 'layer3'?" in str(caught.value)
    assert not (workplace / "wrong").exists()


def test_an_mlp_head_ships_and_predicts(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    overrides = ["model.head={kind: mlp, hidden: 16}", "phases=[{train: all, epochs: 2, lr: 1e-2}]", "early_stopping={patience: 1}"]
    out = run_recipe(load_recipe("recipe.yaml", overrides), out=workplace / "mlp")
    assert (out / "model/head.safetensors").is_file()
    classes, predictions = predict(out, [workplace / "pictures/red/00.png"])
    assert classes == ("blue", "green", "red")
    assert len(predictions[0].logits) == 3


def test_an_average_with_no_past_is_the_plain_run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """decay near 0 keeps nothing of the past, so the same epoch must ship the same weights but for rounding."""
    monkeypatch.chdir(workplace)
    phases = "phases=[{train: all, epochs: 1, lr: 1e-2}]"
    plain = run_recipe(load_recipe("recipe.yaml", [phases]), out=workplace / "plain")
    average = run_recipe(load_recipe("recipe.yaml", [phases, "ema={decay: 1e-9}"]), out=workplace / "ema0")
    first, second = (load_file(folder / "model/model.safetensors") for folder in (plain, average))
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor, rtol=1e-5, atol=1e-6)


def test_a_moving_average_is_in_the_checkpoint_with_its_counter(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, saved: list[dict[str, Any]]
) -> None:
    monkeypatch.chdir(workplace)
    recipe = load_recipe("recipe.yaml", ["phases=[{train: all, epochs: 2, lr: 1e-2}]", "ema={decay: 0.9}", EVERY_BATCH])
    run_recipe(recipe, out=workplace / "ema_counter")
    checkpoint = [state for state in saved if "loops" in state][-1]
    # 36 images in batches of 8 are 5 steps an epoch; the first copies the weights.
    assert int(checkpoint["averaging_state"]["n_averaged"]) == 10
    assert checkpoint["current_model_state"].keys() == checkpoint["state_dict"].keys()
    assert not torch.equal(*(state["classifier.head.1.weight"] for state in (checkpoint["current_model_state"], checkpoint["state_dict"])))


def test_what_ships_with_ema_is_the_average_and_not_the_last_weights(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, saved: list[dict[str, Any]]
) -> None:
    monkeypatch.chdir(workplace)
    overrides = ["phases=[{train: all, epochs: 2, lr: 1e-2}]", "ema={decay: 0.9}", "mix={mixup: 0.2, cutmix: 1.0}", EVERY_BATCH]
    run = run_recipe(load_recipe("recipe.yaml", overrides), out=workplace / "ema9")
    last = [state for state in saved if "loops" in state][-1]
    average, current = last["state_dict"], last["current_model_state"]
    shipped = load_file(run / "model/model.safetensors")["fc.weight"]
    with (run / "metrics.csv").open() as file:
        scores = [float(row["val/accuracy"]) for row in csv.DictReader(file)]
    if scores[1] > scores[0]:  # the last epoch is the best, so its average is what ships
        assert torch.equal(shipped, average["classifier.head.1.weight"])
    assert not torch.equal(shipped, current["classifier.head.1.weight"])
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["val"]["accuracy"] == pytest.approx(max(scores))


def test_drop_path_is_refused_where_the_backbone_has_none(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    overrides = ["model.backbone=vgg11", "model.drop_path=0.1"]
    with pytest.raises(RecipeError, match=r"model\.drop_path = 0\.1, but vgg11 has no residual branches"):
        run_recipe(load_recipe("recipe.yaml", overrides), out=workplace / "droppath")


def test_a_device_that_is_not_there_is_reported_before_a_folder_is_made(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the GPU that the test asks for in vain")
    monkeypatch.chdir(workplace)
    with pytest.raises(DeviceError, match=r"accelerator: gpu(.|\n)*No supported gpu backend"):
        run_recipe(load_recipe("recipe.yaml", ["trainer.accelerator=gpu"]), out=workplace / "gpu")
    assert not (workplace / "gpu").exists()


def test_one_image_a_step_is_refused_where_batchnorm_would_train_on_it(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    phases = "phases=[{train: head, epochs: 1, lr: 1e-2}, {train: all, epochs: 1, lr: 1e-2}]"
    with pytest.raises(RecipeError) as raised:
        run_recipe(load_recipe("recipe.yaml", ["data.batch_size=1", phases]), out=workplace / "one")
    assert str(raised.value) == (
        "override data.batch_size=1: data.batch_size = 1: batch-norm needs two or more images of a step to take their statistics.\n"
        "  Raise it, or set phases[1].batchnorm to frozen."
    )
    assert not (workplace / "one").exists()  # before the phase of the head has trained for nothing


@pytest.mark.slow
def test_ctrl_c_keeps_the_checkpoints_and_exits_with_130(workplace: Path) -> None:
    out = workplace / "interrupted"
    words = ("finetune", "recipe.yaml", "--out", str(out), "phases=[{train: all, epochs: 500, lr: 1e-2}]")
    # A test run in the background of a shell inherits an ignored SIGINT, which Python would leave ignored.
    listens = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = warm.start(*words, cwd=workplace, env=os.environ, out=workplace / "out", first=listens)
    process.until("epoch 1/500")
    assert process.process.pid is not None
    os.kill(process.process.pid, signal.SIGINT)
    ended = process.finished()
    errors = ended.stderr
    assert ended.returncode == 130, errors
    assert "Traceback" not in errors
    assert f"resume with the same command, --out {out} and --resume" in errors
    assert (out / "checkpoints/best.safetensors").is_file()
    assert (out / "metrics.csv").read_text().count("\n") >= 2


@pytest.mark.parametrize("kind", ["svm", "logistic", "knn"])
def test_a_classical_head_is_fitted_shipped_and_measured_without_a_phase(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(workplace)
    run = run_recipe(load_recipe("recipe.yaml", [f"model.head={{kind: {kind}}}", "phases=[]"]), out=Path(f"run_{kind}"))
    with (run / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    metrics = json.loads((run / "metrics.json").read_text())
    assert (row["phase"], row["epoch"], row["lr"]) == ("1", "1", "")
    assert float(row["val/accuracy"]) == pytest.approx(metrics["val"]["accuracy"])
    assert metrics["test"]["accuracy"] > 0.9
    assert evaluate(run, split="test") == metrics["test"]
    if kind != "knn":
        plain = timm.create_model(f"local-dir:{(run / 'model').absolute()}", pretrained=True).eval()
        images = torch.randn(2, 3, 32, 32)
        with torch.inference_mode():
            torch.testing.assert_close(plain(images), load_with_card(run)[0](images))


def test_the_last_head_phase_of_a_classical_head_is_left_to_scikit_learn(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    phases = "phases=[{train: all, epochs: 1, lr: 1e-2}, {train: head, epochs: 9, lr: 1e-2}]"
    run = run_recipe(load_recipe("recipe.yaml", ["model.head={kind: svm}", phases]), out=Path("run_phases"))
    with (run / "metrics.csv").open() as file:
        assert [(row["phase"], row["epoch"]) for row in csv.DictReader(file)] == [("1", "1"), ("3", "1")]
    assert "phases[1] is not run: it would train only the head, which scikit-learn fits." in (run / "log.txt").read_text()


def test_wise_ft_ships_the_blend_that_validates_best(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    run = run_recipe(load_recipe("recipe.yaml", ["wise_ft=true", "loss.l2_sp=0.01"]), out=Path("run_wise"))
    metrics = json.loads((run / "metrics.json").read_text())
    tried = metrics["wise_ft"]["tried"]
    assert [row["share"] for row in tried] == pytest.approx([tenth / 10 for tenth in range(11)])
    assert metrics["val"]["accuracy"] == pytest.approx(max(row["accuracy"] for row in tried))
    before, after = (load_file(run / "checkpoints" / name) for name in ("before.safetensors", "best.safetensors"))
    shipped = load_file(run / "model/model.safetensors")["layer3.0.conv1.weight"]
    key, share = "backbone.layer3.0.conv1.weight", metrics["wise_ft"]["share"]
    torch.testing.assert_close(shipped, (1 - share) * before[key] + share * after[key])
