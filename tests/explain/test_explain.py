"""The command, on a run of a network so small that every section takes a moment."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.metrics.pairwise import cosine_distances

import tlkit
from tests.shades import draw_shades
from tlkit.cli import main
from tlkit.explain.feature_space import project
from tlkit.explain.maximisation import Objective, maximise
from tlkit.explain.neighbours import nearest_images
from tlkit.explain.sanity_check import Randomised, sanity_note
from tlkit.explain.sections import SECTIONS
from tlkit.explain.weight_drift import linear_cka

pytestmark = pytest.mark.usefixtures("draws")

RECIPE = """
name: shades
data: {source: {folder: images}, validation: 0.2, image_size: 32, resize: stretch, batch_size: 8, workers: 0}
model: {backbone: test_resnet, weights: random}
phases: [{train: all, epochs: 1, lr: 1e-3}]
trainer: {log_gradients: true, accelerator: cpu}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a finished run, and one that began with its weights; a class with a tag in its name."""
    folder = tmp_path_factory.mktemp("explain")
    draw_shades(folder / "images", size=32)
    (folder / "images" / "dark").rename(folder / "images" / "<i>dark")
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tlkit.finetune("recipe.yaml", out="first")
        tlkit.finetune(tlkit.load_recipe("recipe.yaml", ["model.weights={run: first}"]), out="run")
        tlkit.finetune(tlkit.load_recipe("recipe.yaml", ["model.head.kind=knn"]), out="knn")
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def test_the_page_has_every_section_and_asks_for_nothing_outside(here: Path) -> None:
    assert main(["explain", "run", "--out", "page", "--steps", "2"]) == 0
    page = Path("page/index.html").read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="(\w+)"', page) == list(SECTIONS)
    assert "&lt;i&gt;dark" in page
    assert "<i>" not in page
    assert not re.search(r'(src|href)="(?!data:|#|[\w.-]+\.png")', page)
    for file, width, height, alt in re.findall(r'<img src="([^"]+)" width="(\d+)" height="(\d+)"[^>]* alt="([^"]*)"', page):
        with Image.open(Path("page") / file) as image:
            assert image.size == (int(width), int(height))
        assert alt
    assert {"filters", "heat_maps", "sanity_check", "maximisation", "neighbours", "feature_space", "drift", "gradients"} <= {
        file.stem for file in Path("page").glob("*.png")
    }
    assert "Sanity check" in page
    assert main(["explain", "run", "--out", "page", "--only", "filters"]) == 0  # its own folder is written again
    assert {file.name for file in Path("page").iterdir()} == {"index.html", "filters.png"}


FEW_PLACES = "At 32 px the last stage has 2 x 2 places: its maps say little about where. Larger images have more."


def test_maps_of_a_few_places_are_called_what_they_are(here: Path) -> None:
    """test_resnet halves an image five times. Of 32 px it leaves one place, so that the maps are of the stage before; of 128 px 4 x 4."""
    tlkit.finetune(tlkit.load_recipe("recipe.yaml", ["data.image_size=128"]), out="large")
    for run, has_few in (("run", True), ("large", False)):
        assert main(["explain", run, "--out", f"places_{run}", "--only", "cam"]) == 0
        page = Path(f"places_{run}/index.html").read_text(encoding="utf-8")
        assert (FEW_PLACES in page) == has_few
        assert ("its maps say little" in page) == has_few


def test_two_runs_gradients_are_side_by_side(here: Path) -> None:
    assert main(["explain", "run", "first", "--only", "gradients", "--out", "pair"]) == 0
    assert main(["explain", "run", "--only", "gradients", "--out", "single"]) == 0
    with Image.open("pair/gradients.png") as pair, Image.open("single/gradients.png") as single:
        assert pair.width > 1.5 * single.width


def test_a_model_folder_needs_an_image_and_says_what_it_lacks(here: Path) -> None:
    image = "images/light/00.png"
    assert main(["explain", "run/model", image, "--only", "maps,cam", "--out", "of_model"]) == 0
    assert main(["explain", "knn", image, "--steps", "1", "--unit", "layer4:0", "--out", "of_knn"]) == 0
    page = Path("of_knn/index.html").read_text(encoding="utf-8")
    assert "A knn head has no gradient" in page
    assert "trained from random weights" in page
    assert Path("of_knn/neighbours.png").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["knn", "--only", "cam"], "A knn head has no gradient"),
        (["run/model", "--only", "cam"], "No image is at hand: name some. This is a model folder"),
        (["run", "recipe.yaml"], "recipe.yaml"),
        (["run", "images"], "images is a folder, and neither an image nor a run"),
        (["run", "--only", "cams"], "--only cams is not a section.\n  Expected one of: filters, maps, cam"),
        (["run", "--only", "maximise", "--unit", "layer4"], "--unit layer4 can't be read.\n  Expected STAGE:CHANNEL"),
        (["run", "--only", "maximise", "--unit", "layer9:1"], "Did you mean 'layer"),
        (["run", "--only", "maximise", "--unit", "layer4:99999"], "has 96 channels"),
        (["run", "--only", "maximise", "--class", "lihgt"], "Did you mean 'light'?"),
        (["run", "--class", "lihgt"], "Did you mean 'light'?"),
        (["run", "--unit", "layer9:1"], "Did you mean 'layer"),
        (["images"], "images holds no model"),
    ],
)
def test_what_cannot_be_explained_has_one_message(words: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *words, "--out", "refused"]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_with_other_things_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "run", "--out", "images"]) == 2
    assert "--out images holds other things, such as" in capsys.readouterr().err
    Path("mine").mkdir()
    Path("mine/holiday.png").write_bytes(b"")
    assert main(["explain", "run", "--out", "mine"]) == 2
    assert Path("mine/holiday.png").exists()


def test_maximisation_raises_what_it_is_to_raise(here: Path) -> None:
    classifier = tlkit.load_model("run")
    assert classifier.preprocessing is not None
    light = Objective("light", "", classifier.classes.index("light"))
    few, many = (maximise(classifier, [light], steps=steps) for steps in (1, 30))
    assert few.shape == (1, 3, 32, 32)
    assert 0 <= many.min() < many.max() <= 1
    with torch.inference_mode():
        logits = classifier(classifier.preprocessing.normalize(255 * torch.cat([few, many])))
    assert logits[1, light.index] > logits[0, light.index]


def test_cka_is_one_for_a_rotation_and_as_worked_out_by_hand() -> None:
    torch.manual_seed(0)
    features = torch.randn(40, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    assert linear_cka(features, 3 * features @ rotation) == pytest.approx(1)
    # Centred columns a and b with a.b = 2, |a|^2 = 2, |b|^2 = 8/3: CKA of single columns is the squared correlation 4 / (2 * 8/3).
    assert linear_cka(torch.tensor([[0.0], [1], [2]]), torch.tensor([[0.0], [2], [2]])) == pytest.approx(0.75)
    assert linear_cka(features, torch.ones(40, 2)) is None


def test_nearest_images_are_nearest_by_angle() -> None:
    torch.manual_seed(0)
    features, of_training = torch.randn(3, 5), torch.randn(20, 5)
    expected = cosine_distances(features, of_training).argsort(1)[:, :6]
    assert (nearest_images(features, of_training).rows == expected).all()


@pytest.mark.parametrize(("count", "width"), [(4, 1), (5, 8), (60, 3)])
def test_any_number_of_features_has_a_map(count: int, width: int) -> None:
    torch.manual_seed(0)
    assert {name: points.shape for name, points in project(torch.randn(count, width)).items()} == {"PCA": (count, 2), "t-SNE": (count, 2)}


def test_the_sanity_check_passes_only_where_maps_become_others() -> None:
    def steps(*correlations: float) -> list[Randomised]:
        return [Randomised(f"stage{n}", torch.zeros(1), correlation) for n, correlation in enumerate(correlations)]

    assert sanity_note(steps(0.9, 0.3, 0.8, 0.2, 0.1)).startswith(
        "Sanity check passed: with the weights random from the head down to 'stage3'"
    )
    assert sanity_note(steps(0.1, 0.2, 0.7)).startswith(
        "Sanity check failed: with all weights random the maps still have a rank correlation of 0.70"
    )


def test_the_sanity_check_tells_nothing_from_empty_maps() -> None:
    def steps(*empty: int) -> list[Randomised]:
        return [Randomised("stage0", torch.ones(3, 1), 0.9), *(Randomised(f"stage{n}", torch.zeros(3, 1), 0.0, n) for n in empty)]

    assert sanity_note(steps(3, 3)).startswith("The sanity check can't tell: with the weights random from the head down to 'stage3'")
    assert sanity_note(steps(1, 3)).endswith(" Of those 6 maps 4 are empty, and count as 0.")
