"""A user's own Lightning script: tlkit's module and data in a stock Trainer, on one process and on two."""

import json
import os
import runpy
import sys
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import tlkit
from tests import warm
from tlkit.errors import BackboneError, DataError, RecipeError, RunError
from tlkit.recipe.fields.model import Head

PHOTOS = Path(__file__).parents[1] / "fixtures" / "before_layout" / "photos"

SCRIPT = """
    import json
    import sys

    import lightning
    import torch

    import tlkit

    if __name__ == "__main__":
        photos, devices, replaced = sys.argv[1:]
        torch.manual_seed(0)
        data = tlkit.ImageDataModule.from_folder(photos, image_size=32, batch_size=6, validation=0.25)
        classifier = tlkit.create_classifier("test_resnet", data.classes, data.preprocessing, weights="random")
        module = tlkit.PhaseModule.create(classifier, train="all", lr=1e-3, weight_decay=0.0)
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", devices=int(devices), strategy="ddp" if devices == "2" else "auto",
            use_distributed_sampler=replaced == "yes", logger=False, enable_checkpointing=False,
        )
        trainer.fit(module, datamodule=data)
        figures = dict(trainer.callback_metrics)
        figures |= trainer.validate(module, datamodule=data)[0] | trainer.test(module, datamodule=data)[0]
        if trainer.is_global_zero:
            print("FIGURES", json.dumps({name: float(value) for name, value in figures.items()}))
"""


def figures_of_two(script: Path, replaced: str) -> dict[str, float]:
    """Figures of the script on two processes. replaced: whether its Trainer may replace samplers by its own."""
    first = partial(warm.run_script, script, str(PHOTOS), "2", replaced)
    done = warm.run_together(folders=(script.parent, script.parent), env=os.environ, first=first)
    assert [process.returncode for process in done] == [0, 0], done
    return figures_in(done[0].stdout)


def figures_in(out: str) -> dict[str, float]:
    line = next(line for line in out.splitlines() if line.startswith("FIGURES"))
    found: dict[str, float] = json.loads(line.removeprefix("FIGURES"))
    return found


@pytest.mark.slow
def test_two_processes_learn_and_measure_what_one_does_whoever_splits_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """18 training, 6 validation and 12 test images; batch-norm alone sees half a batch on each of two, so losses differ a little."""
    script = tmp_path / "script.py"
    script.write_text(dedent(SCRIPT))
    monkeypatch.setattr(sys, "argv", ["script.py", str(PHOTOS), "1", "yes"])
    runpy.run_path(str(script), run_name="__main__")  # in this process, which has everything imported
    one = figures_in(capsys.readouterr().out)
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/score", "test/loss", "test/accuracy"} <= set(one)
    two, own = figures_of_two(script, "yes"), figures_of_two(script, "no")
    assert two == own
    assert two["test/loss"] == pytest.approx(one["test/loss"], abs=0.2)
    for name, images in (("val/accuracy", 6), ("test/accuracy", 12)):  # whole images: none is counted twice or left out
        assert two[name] * images == pytest.approx(round(two[name] * images), abs=1e-4)


@pytest.fixture(scope="module")
def parts() -> tuple[tlkit.ImageDataModule, tlkit.Classifier]:
    data = tlkit.ImageDataModule.from_folder(PHOTOS, image_size=32, batch_size=6, validation=0.25, augment=["HorizontalFlip"])
    return data, tlkit.create_classifier("test_resnet", data.classes, data.preprocessing, weights="random")


def trainer(folder: Path, **settings: Any) -> Any:
    import lightning

    return lightning.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=False, enable_checkpointing=False, enable_progress_bar=False, **settings
    )


def test_a_stock_trainer_fits_tests_and_predicts(parts: tuple[Any, Any], tmp_path: Path) -> None:
    data, classifier = parts
    stage = classifier.stages[-1]
    before = {name: tensor.clone() for name, tensor in classifier.backbone.state_dict().items()}
    module = tlkit.PhaseModule.create(classifier, train={"from": stage.name}, lr=1e-2)
    stock = trainer(tmp_path, max_epochs=1)
    stock.fit(module, datamodule=data)
    changed = {name for name, tensor in classifier.backbone.state_dict().items() if not torch.equal(tensor, before[name])}
    assert set(stage.parameters) <= changed
    assert all(name.startswith(tuple(parameter.rpartition(".")[0] for parameter in stage.parameters)) for name in changed)
    accuracy = stock.test(module, datamodule=data, verbose=False)[0]["test/accuracy"]
    probabilities = torch.cat(stock.predict(module, datamodule=data))  # of the test split, in its order
    files = [sample.image for sample in data.samples.of("test")]
    with torch.inference_mode():
        expected = classifier.eval()(classifier.preprocess(files)).softmax(1)
    torch.testing.assert_close(probabilities, expected)
    labels = torch.tensor([sample.label for sample in data.samples.of("test")])
    assert accuracy == pytest.approx(float((probabilities.argmax(1) == labels).float().mean()))


def test_what_was_trained_is_saved_measured_read_back_predicted_and_exported(parts: tuple[Any, Any], tmp_path: Path) -> None:
    data, classifier = parts
    folder = tmp_path / "model"
    metrics = tlkit.save_model(classifier, folder, data=data)
    files, labels = zip(*((sample.image, sample.label) for sample in data.samples.of("test")), strict=True)
    with torch.inference_mode():
        expected = classifier.eval()(classifier.preprocess(files))
        torch.testing.assert_close(tlkit.load_model(folder)(classifier.preprocess(files)), expected, rtol=1e-5, atol=1e-5)
    assert metrics["test"]["accuracy"] == pytest.approx(float((expected.argmax(1) == torch.tensor(labels)).float().mean()))
    assert json.loads((folder / "tlkit.json").read_text())["metrics"] == json.loads(json.dumps(metrics))
    facts = json.loads((folder / "tlkit.json").read_text())
    validation = len(data.samples.of("val"))
    assert facts["calibration"]["pictures"] == validation  # too few for a temperature, which is said
    assert facts["calibration"]["reason"] == metrics["test"]["calibration"]["reason"]
    assert facts["calibration"]["reason"].startswith(f"{validation} validation images with ")
    classes, predictions = tlkit.predict(folder, [files[0]])
    assert classes == data.classes
    assert predictions[0].ranked(classes, 1)[0][0] == classes[int(expected[0].argmax())]
    (artifact,) = tlkit.export(folder, formats=["safetensors"], images=PHOTOS / "test", out=tmp_path / "export")
    assert (artifact / "model.safetensors").is_file()
    assert tlkit.save_model(tlkit.load_model(folder), folder) == {}  # a model folder may be replaced, by a loaded model too
    calibration = json.loads((folder / "tlkit.json").read_text())["calibration"]
    assert calibration == {"temperature": 1.0, "pictures": 0, "reason": "It was saved without validation images to fit a temperature to."}


def test_a_classifier_is_saved_into_no_other_folder_and_only_whole(parts: tuple[Any, Any], tmp_path: Path) -> None:
    data, classifier = parts
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="is there already and is no model folder"):
        tlkit.save_model(classifier, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    by_hand = type(classifier)(classifier.backbone, Head(), data.classes, 32, data.preprocessing)
    with pytest.raises(BackboneError, match=r"put together by hand.*\n  Make it by create_classifier"):
        tlkit.save_model(by_hand, tmp_path / "model")
    others = tlkit.create_classifier("test_resnet", ["cat", "dog"], data.preprocessing, weights="random")
    with pytest.raises(DataError, match=r"The data's classes are .*bag.*, and the classifier's are .*cat"):
        tlkit.save_model(others, tmp_path / "model", data=data)
    with torch.no_grad():
        next(others.parameters()).fill_(float("nan"))
    with pytest.raises(RunError, match="would answer NaN"):
        tlkit.save_model(others, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_it_takes_loaders_of_the_users_own(parts: tuple[Any, Any], tmp_path: Path) -> None:
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    module = tlkit.PhaseModule.create(parts[1], lr=1e-2)
    stock = trainer(tmp_path, max_steps=2)
    stock.fit(module, DataLoader(TensorDataset(images, labels), batch_size=4, num_workers=0))
    assert stock.callback_metrics["train/loss"] > 0


def test_what_cannot_be_used_is_named_by_the_argument(parts: tuple[Any, Any]) -> None:
    data, classifier = parts
    with pytest.raises(RecipeError, match=r"^image_size = 4 is out of range"):
        tlkit.ImageDataModule.from_folder(PHOTOS, image_size=4)
    with pytest.raises(RecipeError, match=r"augment\[0\].HorizontalFlop is not a transform"):
        tlkit.ImageDataModule.from_folder(PHOTOS, augment=["HorizontalFlop"])
    with pytest.raises(RecipeError, match=r"^train.from = 'layr4' is not a stage of "):
        tlkit.PhaseModule.create(classifier, train={"from": "layr4"})
    with pytest.raises(RecipeError, match=r"^weights = 'pretraind' can't be used"):
        tlkit.create_classifier("test_resnet", data.classes, data.preprocessing, weights="pretraind")
    with pytest.raises(BackboneError, match="was made without preprocessing"):
        tlkit.PhaseModule.create(type(classifier)(classifier.backbone, Head(), 3, 32))


def test_a_further_module_of_the_same_classifier_begins_with_the_adapters_before_it_merged(parts: tuple[Any, Any]) -> None:
    data, _ = parts
    classifier = tlkit.create_classifier("test_vit", data.classes, data.preprocessing, weights="random")
    plain = {name: parameter.numel() for name, parameter in classifier.named_parameters()}
    tlkit.PhaseModule.create(classifier, train={"lora": {"rank": 4}})
    tlkit.PhaseModule.create(classifier, train={"dora": {"rank": 2}})
    layers = [module.base_layer for module in classifier.backbone.modules() if hasattr(module, "base_layer")]
    head = sum(parameter.numel() for parameter in classifier.head.parameters())
    expected = sum(2 * (layer.in_features + layer.out_features) + layer.out_features for layer in layers) + head
    assert sum(parameter.numel() for parameter in classifier.parameters() if parameter.requires_grad) == expected
    tlkit.PhaseModule.create(classifier, train="all")
    assert {name: parameter.numel() for name, parameter in classifier.named_parameters() if parameter.requires_grad} == plain
