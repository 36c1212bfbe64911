"""Grey images and images of many channels, from the recipe to plain timm; and a run that begins with an earlier run's weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from tlkit.data.decode import Decoding, decode
from tlkit.data.preprocess import Preprocessing
from tlkit.deploy.predict.predict import predict
from tlkit.errors import DataError, RecipeError
from tlkit.evaluation.evaluate import evaluate
from tlkit.models.model_folder import load_with_card
from tlkit.recipe.load import load_recipe
from tlkit.training.finetune import run_recipe

RECIPE = """
name: channels
data: {source: {folder: grey}, channels: 1, image_size: 32, resize: stretch, normalize: dataset, batch_size: 8}
augment: [HorizontalFlip, {Rotate: {limit: 10}}]
model: {backbone: test_resnet, weights: random}
phases:
  - {train: all, epochs: 2, lr: 1e-2}
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy images, dark and bright: grey PNG files in `grey`, arrays of five channels in `many`."""
    folder = tmp_path_factory.mktemp("channels")
    draws = np.random.default_rng(0)
    for name, level in (("bright", 170), ("dark", 80)):
        for kind in ("grey", "many"):
            (folder / kind / name).mkdir(parents=True)
        for i in range(20):
            noisy = np.clip(level + draws.normal(0, 30, (30, 40, 5)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy[:, :, 0]).save(folder / f"grey/{name}/{i:02d}.png")
            np.save(folder / f"many/{name}/{i:02d}.npy", noisy)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def grey_run(workplace: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        return run_recipe(load_recipe("recipe.yaml"), out=Path("grey_run")).absolute()


def assert_ships(run: Path, channels: int, files: list[Path]) -> None:
    """Predict, evaluate and plain timm take the model's channels."""
    _, predictions = predict(run, files)
    assert not [prediction.error for prediction in predictions if prediction.error]
    _, card = load_with_card(run)
    preprocessing = Preprocessing.from_json(card.preprocessing)
    assert preprocessing.channels == channels
    plain = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    assert timm.data.resolve_model_data_config(plain)["input_size"] == (channels, 32, 32)
    config = json.loads((run / "model/config.json").read_text())
    assert config["model_args"]["in_chans"] == channels
    images = torch.from_numpy(np.stack([preprocessing.fit(decode(file, Decoding(channels))) for file in files])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        logits = plain(preprocessing.normalize(images))
    torch.testing.assert_close(torch.tensor([prediction.logits for prediction in predictions]), logits, atol=1e-5, rtol=0)
    metrics = json.loads((run / "metrics.json").read_text())
    assert evaluate(run, split="test") == metrics["test"]
    assert (run / "report.html").is_file()


def test_grey_images_are_trained_measured_and_shipped(grey_run: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    assert_ships(grey_run, 1, sorted((workplace / "grey").rglob("*.png"))[:6])
    facts = json.loads((grey_run / "model/tlkit.json").read_text())
    pixels = np.concatenate([np.asarray(Image.open(file)).ravel() for file in (workplace / "grey").rglob("*.png")]) / 255
    # Of nine in ten of the images, and resized, which takes away some of the noise.
    assert facts["preprocessing"]["mean"] == [pytest.approx(pixels.mean(), abs=0.03)]
    assert facts["preprocessing"]["std"] == [pytest.approx(pixels.std(), abs=0.05)]
    assert load_file(grey_run / "model/model.safetensors")["conv1.0.weight"].shape[1] == 1


def test_arrays_of_five_channels_are_trained_measured_and_shipped(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    run = run_recipe(load_recipe("recipe.yaml", ["data.source={folder: many}", "data.channels=5"]), out=workplace / "many_run")
    assert_ships(run, 5, sorted((workplace / "many").rglob("*.npy"))[:6])


def test_a_grey_run_goes_on_in_colour_with_its_weights_converted_and_says_so(
    grey_run: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    overrides = [
        "data.channels=3",
        "model.weights={run: grey_run}",
        "data.normalize=weights",
        "phases=[{train: head, epochs: 1, lr: 1e-2}]",
    ]
    run = run_recipe(load_recipe("recipe.yaml", overrides), out=workplace / "colour_run")
    log = (run / "log.txt").read_text()
    assert log.count("the first convolution (conv1.0) was converted from 1 to 3 channels") == 1
    grey, colour = (load_file(folder / "model/model.safetensors") for folder in (grey_run, run))
    torch.testing.assert_close(colour["conv1.0.weight"].sum(1, keepdim=True), grey["conv1.0.weight"])
    facts, earlier = (json.loads((folder / "model/tlkit.json").read_text()) for folder in (run, grey_run))
    assert facts["weights"] == {"origin": "run grey_run/model", "sha256": earlier["sha256"]["model.safetensors"]}
    assert facts["preprocessing"]["mean"] == earlier["preprocessing"]["mean"] * 3


def test_images_of_another_number_of_channels_are_named_with_the_fix(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    with pytest.raises(DataError, match=r"(?s)00\.npy: .* channels is 5 .* but data\.channels is 3\..*\n  Set data\.channels=5"):
        run_recipe(load_recipe("recipe.yaml", ["data.source={folder: many}", "data.channels=3"]), out=workplace / "three")
    assert not (workplace / "three").exists()


def test_check_names_a_transform_of_colours_for_grey_images(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    (workplace / "colours.yaml").write_text(RECIPE.replace("[HorizontalFlip,", "[HorizontalFlip, ToSepia,"))
    with pytest.raises(RecipeError, match=r"colours\.yaml:4: augment\[1\]\.ToSepia changes the colours(.|\n)*set data\.channels=3"):
        load_recipe("colours.yaml")
    load_recipe("colours.yaml", ["data.channels=3"])
