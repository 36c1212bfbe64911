"""`tlkit init` looks at ten made sets and writes a recipe for each: with a reason for every value, that `check` passes and that runs."""

import csv
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tlkit
from tlkit.cli import main
from tlkit.commands import init
from tlkit.recipe.fetched import OFFLINE
from tlkit.recipe.fields.source import CsvSource
from tlkit.recipe.load import load_recipe
from tlkit.search.choices import BACKBONES, STEPS, WAYS, Wanted, choose
from tlkit.search.look import find_groups, look_at

DRAWN = np.random.default_rng(0)


def image(file: Path, width: int = 40, height: int = 32, *, grey: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    colour = DRAWN.integers(0, 256, 1 if grey else 3, dtype=np.uint8)
    pixels = np.full((height, width, 3), colour, dtype=np.uint8)
    pixels[: height // 2] = DRAWN.integers(0, 256, (height // 2, width, 1), dtype=np.uint8) if grey else pixels[: height // 2]
    Image.fromarray(pixels).save(file)


def tiny(folder: Path) -> str:
    for name in ("cat", "dog"):
        for number in range(5):
            image(folder / f"{name}/{number}.png")
    return str(folder)


def imbalanced(folder: Path) -> str:
    for name, count in (("common", 40), ("rare", 4)):
        for number in range(count):
            image(folder / f"{name}/{number}.png")
    return str(folder)


def grey(folder: Path) -> str:
    for name in "ab":
        for number in range(6):
            image(folder / f"{name}/{number}.png", grey=True)
    return str(folder)


def huge(folder: Path) -> str:
    for name in ("sea", "sky"):
        for number in range(3):
            image(folder / f"{name}/{number}.png", 2_600, 1_200)
    return str(folder)


def already_split(folder: Path) -> str:
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            for number in range(3):
                image(folder / f"{split}/{name}/{number}.png", 32, 32)
    return str(folder)


def table(folder: Path) -> str:
    rows = [(f"{number}.png", ("cat", "dog")[number % 2], f"p{number // 2 % 6}") for number in range(24)]
    return written(folder, ("path", "label", "group"), rows)


def multilabel(folder: Path) -> str:
    rows = [(f"{number}.png", ("cat", "dog", "cat|dog")[number % 3]) for number in range(24)]
    return written(folder, ("path", "label"), rows)


def many_classes(folder: Path) -> str:
    for label in range(40):
        for number in range(3):
            image(folder / f"kind-{label:02}/{number}.png", 16, 16)
    return str(folder)


def groups_in_names(folder: Path) -> str:
    for patient in range(12):
        for number in range(3):
            image(folder / f"{('ill', 'well')[patient % 2]}/patient_{patient:02}_img{number}.png")
    return str(folder)


def digits(folder: Path) -> str:
    """Enough to train more than the head, and not to be mirrored."""
    for name in "01":
        for number in range(110):
            image(folder / f"{name}/{number}.png", 16, 16)
    return str(folder)


def one_image_a_class(folder: Path) -> str:
    for name in ("cat", "dog", "cow"):
        image(folder / f"{name}/1.png")
    return str(folder)


def written(folder: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    folder.mkdir()
    for path, *_ in rows:
        image(folder / path)
    with (folder / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(folder / "images.csv")


SETS: tuple[Callable[[Path], str], ...] = (
    tiny, imbalanced, grey, huge, already_split, table, multilabel, many_classes, groups_in_names, digits,
)  # fmt: skip
SAYS = {
    "tiny": [
        "only the head trains",
        "test: 0.2",
        "relative to where tlkit is run",
        "weights: {package: efficientnet-lite0}",
        "those on this machine: tf_efficientnet_lite0",
    ],
    "imbalanced": ["imbalance: logit_adjust", "classes differ 10-fold"],
    "grey": ["the images are grey", "resize: crop"],
    "huge": ["resize: pad", "100% are more than twice as long as wide", "the images are large (1,200 px)"],
    "already_split": ["resize: stretch", "18 images in 2 classes; 3 of each in the training split.", "6 training images: with so few"],
    "table": ["source: {csv: "],
    "multilabel": ["task: multilabel", "the table has images with several labels"],
    "many_classes": ["120 images in 40 classes"],
    "digits": [
        "220 images in 2 classes; 110 of each.",
        "220 training images, before validation and test are held out: the head is solved first",
        "last two stages train at a fifth of the rate",
        "without the flip",
        "lr: 0.0001, layer_decay: 0.75, batchnorm: frozen}",
    ],
    "groups_in_names": ["12 groups of 3.0 images: patient_00", "Nothing is assumed"],
}


@pytest.fixture(autouse=True)
def _offline_package_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's cache of this machine says nothing here: weights are those of pip's package."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in (OFFLINE, "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # which --offline sets for the whole process
        monkeypatch.setenv(name, "0")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("make", SETS, ids=lambda make: make.__name__)
def test_the_recipe_of_a_made_set_passes_check_and_says_why(make: Callable[[Path], str], capsys: pytest.CaptureFixture[str]) -> None:
    data = make(Path("made"))
    assert main(["init", data, "--yes", "--offline"]) == 0
    assert ("6 groups by the table: none will be in two splits" in capsys.readouterr().out) == (make is table)
    assert main(["check", "recipe.yaml"]) == 0
    text = Path("recipe.yaml").read_text()
    assert [words for words in SAYS[make.__name__] if words not in " ".join(text.replace("#", " ").split())] == []
    assert max(map(len, text.splitlines())) <= 140
    # A value that was chosen has its reason beside it, or above it if it is long.
    lines = text.splitlines()
    assert all(
        "# " in line or above.lstrip().startswith("#")
        for above, line in pairwise(lines)
        if line.lstrip().startswith(("image_size", "resize", "backbone", "- {train", "test"))
    )
    assert ("validation:" in text, "test:" in text) == ((False, False) if make is already_split else (True, True))


@pytest.mark.slow
@pytest.mark.parametrize("make", [groups_in_names, digits], ids=lambda make: make.__name__)
def test_the_recipe_trains_as_it_is(make: Callable[[Path], str]) -> None:
    assert main(["init", make(Path("made")), "--yes", "--offline"]) == 0
    shorter = ["phases[1].epochs=1"] if make is digits else []
    run = tlkit.finetune(load_recipe("recipe.yaml", ["data.image_size=32", "trainer.accelerator=cpu", *shorter]), out="run")
    assert run.metrics["test"]["pictures"] >= 4


# --- what can't be used ---


def empty(folder: Path) -> str:
    folder.mkdir()
    return str(folder)


def three_levels(folder: Path) -> str:
    for study in ("one", "two"):
        for name in ("cat", "dog"):
            for number in range(3):
                image(folder / f"{study}/{name}/{number}.png")
    return str(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (one_image_a_class, "made: too few images of cat (1), cow (1), dog (1).\n  Each class needs at least 3: one to train on, and"),
        (empty, "made: is empty: it has no class folders.\n  Expected one folder a class"),
        (three_levels, "made: no class folder has images itself, they are a level or more below: one/cat, one/dog, two/cat.\n  Name"),
        (lambda folder: str(folder), "made does not exist.\n  Expected a folder of images"),
        (lambda folder: "recipes/quickstart.yaml", "recipes/quickstart.yaml does not exist."),
        (lambda folder: "{fodler: made}", "data.source = {fodler: made} can't be used."),
    ],
)  # fmt: skip
def test_what_can_not_be_trained_on_exits_2_with_the_fix_and_writes_nothing(
    make: Callable[[Path], str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", make(Path("made")), "--yes", "--offline"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("recipe.yaml").exists()


def test_an_existing_file_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text("mine")
    assert main(["init", tiny(Path("made")), "--yes"]) == 2
    assert capsys.readouterr().err.startswith("recipe.yaml is there already, and is not overwritten.\n  Choose another name")
    assert Path("recipe.yaml").read_text() == "mine"


def test_a_folder_that_is_not_there_is_named_before_the_images_are_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", tiny(Path("made")), "--yes", "--offline", "--out", "nosuch/recipe.yaml"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "nosuch/recipe.yaml can't be written: nosuch is not a folder.\n  Make it first: mkdir -p nosuch\n"
    assert printed.out == ""


def test_without_weights_on_this_machine_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tlkit.models.weights.sources.find_spec", lambda name: None)
    assert main(["init", tiny(Path("made")), "--yes", "--offline"]) == 2
    assert "There are no pretrained weights on this machine (the hub was not asked).\n  Install some: pip" in capsys.readouterr().err


# --- questions ---


def answered(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Answers, in a terminal, of a user; the list gets the questions."""
    asked: list[str] = []
    given = iter(answers)
    monkeypatch.setattr("builtins.input", lambda question: (asked.append(question), next(given))[1])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(init, "_seen", lambda facts: "")
    return asked


def test_groups_are_used_where_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answered(monkeypatch, "y", "n", "7", "n")
    assert main(["init", groups_in_names(Path("made")), "--out", "mine.yaml"]) == 0
    assert len(asked) == 4
    assert "(patient_00) belong together" in asked[0]
    recipe = load_recipe("mine.yaml")
    source = recipe.data.source.model_dump()
    assert (source["csv"], source["root"]) == ("mine.csv", "made")
    text = " ".join(Path("mine.yaml").read_text().replace("#", " ").split())
    assert "files whose names begin alike belong together, 12 groups of 3.0 images: patient_00, ... A group is never in two splits" in text
    assert "Nothing is assumed" not in text
    assert "--offline" not in text
    samples = look_at({"csv": "mine.csv", "root": "made"}).samples.samples
    assert {sample.group for sample in samples} == {f"patient_{number:02}" for number in range(12)}


def test_five_questions_are_the_most_and_what_is_no_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for patient in range(24):
        for number in range(3):
            image(Path("made") / ("rare" if patient < 3 else "common") / f"patient_{patient:02}_img{number}.png", 16, 16)
    asked = answered(monkeypatch, "y", "perhaps", "n", "No", "soon", "7", "n")
    assert main(["init", "made"]) == 0
    assert [asked.count(question) for question in dict.fromkeys(asked)] == [1, 2, 1, 2, 1]
    recipe = load_recipe("recipe.yaml")
    assert (recipe.imbalance, recipe.data.source.model_dump()["csv"]) == ("none", "recipe.csv")


def test_ctrl_d_takes_what_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(question: str) -> str:
        raise EOFError

    data = groups_in_names(Path("made"))
    answered(monkeypatch)
    monkeypatch.setattr("builtins.input", ended)
    monkeypatch.setattr("tlkit.search.init.hub_is_reachable", lambda: False)
    assert main(["init", data]) == 0
    assert load_recipe("recipe.yaml").data.source.model_dump()["folder"] == "made"


def test_without_a_terminal_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert main(["init", tiny(Path("made")), "--offline"]) == 0


def test_unreadable_images_and_those_that_are_there_twice_are_both_noted() -> None:
    tiny(Path("made"))
    Path("made/cat/torn.jpg").write_bytes(b"\xff\xd8")
    Path("made/dog/again.png").write_bytes(Path("made/dog/0.png").read_bytes())
    assert main(["init", "made", "--yes", "--offline"]) == 0
    text = Path("recipe.yaml").read_text()
    assert "on_bad: skip" in text
    assert "1 image of those that were tried can't be read, cat/torn.jpg for one" in text
    assert "1 image is there twice, byte by byte" in text


def test_the_header_has_a_command_that_works_and_no_path_is_called_relative_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny(tmp_path / "made")
    (tmp_path / "made/dog/again.png").write_bytes((tmp_path / "made/dog/0.png").read_bytes())
    assert main(["init", str(tmp_path / "made"), "--yes", "--offline", "--out", "my recipe.yaml"]) == 0
    text = Path("my recipe.yaml").read_text()
    assert "#   tlkit finetune 'my recipe.yaml'\n" in text
    assert "relative to" not in text
    assert "\n  1 image is there twice\n" in capsys.readouterr().out
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert main(["init", "{folder: ~/made}", "--yes", "--offline", "--out", "home.yaml"]) == 0
    assert "\n  source: {folder: ~/made}\n" in Path("home.yaml").read_text()


def test_a_table_with_other_usual_names_of_columns_is_read_by_them() -> None:
    rows = [(f"{number}.png", ("cat", "dog")[number % 2]) for number in range(8)]
    data = written(Path("made"), ("filename", "class"), rows)
    assert main(["init", data, "--yes", "--offline"]) == 0
    assert load_recipe("recipe.yaml").data.source == CsvSource(csv=data, path="filename", label="class")


# --- the table ---


def wanted(training: int, minutes: float = 30.0, device: str = "cpu", short_side: int = 500) -> Wanted:
    return Wanted(training, training // 10, short_side, device, 2, minutes, BACKBONES)


def test_more_images_train_more_layers_and_more_minutes_a_larger_network() -> None:
    assert [choose(wanted(number, 600)).way for number in (150, 500, 2_000, 30_000)] == list(WAYS)
    small, large = choose(wanted(2_000, 20)), choose(wanted(2_000, 20, "cuda"))
    assert small.fits
    assert large.fits
    assert BACKBONES.index(small.backbone) > BACKBONES.index(large.backbone)
    assert choose(wanted(2_000, 600, short_side=28)).image_size == 128


def test_what_fits_in_no_time_is_the_cheapest_and_says_so() -> None:
    choice = choose(wanted(100_000, 0.1))
    assert (choice.fits, choice.epochs) == (False, 0)
    assert choice.backbone.name == "tf_efficientnet_lite0"


def test_the_last_stages_train_at_a_fifth_of_the_rate() -> None:
    choice = choose(wanted(430, 1_000))
    assert choice.way.second == "{last: 2}"
    assert choice.lr == pytest.approx(choice.backbone.lr / 5)
    # 500 steps of 32 images are 37 passes over 430, and fifteen are the most.
    assert (STEPS[0].steps, choice.batch_size, choice.epochs) == (500, 32, 15)


def test_without_any_weights_of_the_table_those_in_the_hubs_cache_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlkit.models.weights.sources.find_spec", lambda name: None)  # as where the package isn't installed
    repository = tmp_path / "hub/models--timm--resnet10t.c3_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    (repository / "snapshots/abc").mkdir(parents=True)
    (repository / "snapshots/abc/model.safetensors").touch()
    assert main(["init", digits(Path("made")), "--yes", "--offline"]) == 0
    text = Path("recipe.yaml").read_text(encoding="utf-8")
    assert "backbone: resnet10t.c3_in1k" in text
    assert "# prior: it is here, and none of the table is" in text
    assert "lr: 6e-05, layer_decay: 0.75, batchnorm: frozen}" in text  # a fifth of a ResNet's
    assert load_recipe("recipe.yaml").model.weights == "pretrained"


def test_class_names_and_numbers_are_no_groups(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(6):
            image(tmp_path / f"{name}/{name}_{number}.png")
    assert find_groups(look_at({"folder": str(tmp_path)}).samples) is None


@pytest.mark.parametrize("header", [("Image Name", "class label"), ("image_name", "Finding Labels"), ("filename?", "Class")])
def test_columns_of_usual_names_are_found_in_any_spelling(tmp_path: Path, header: tuple[str, str]) -> None:
    table = written(tmp_path / "made", header, [(f"{name}{number}.png", name) for name in ("cat", "dog") for number in range(4)])
    source = look_at({"csv": table}).source
    assert (source["path"], source["label"]) == header
