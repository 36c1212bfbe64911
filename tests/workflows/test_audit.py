"""`tlkit data audit` from its words to its files, on real images with installed weights."""

import csv
import hashlib
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkit.cli import main
from tlkit.recipe.fields.source import CsvSource
from tlkit.recipe.load import load_recipe
from tlkit.system import shipped

CLASSES = ("ankle-boot", "bag", "dress", "trouser")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, set[str]]]:
    """60 training and 15 test images of four classes, with ten exact and ten near copies across splits and twelve wrong labels."""
    folder, draws = tmp_path_factory.mktemp("planted") / "pictures of mine", np.random.default_rng(0)
    truth: dict[str, set[str]] = {"exact": set(), "near": set(), "label": set()}
    for split, number in (("train", 60), ("test", 15)):
        for position, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for i, file in enumerate(sorted((shipped("data/fashion_mnist_mini") / split / name).iterdir())[:number]):
                label = CLASSES[(position + 1 + i) % 4] if split == "train" and i < 3 and (position + 1 + i) % 4 != position else name
                target = folder / split / label / f"{name}{i}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
                if label != name:
                    truth["label"].add(target.relative_to(folder).as_posix())
    for i in range(10):
        name = CLASSES[i % 4]
        shutil.copy(folder / "train" / name / f"{name}{20 + i}.png", folder / "test" / name / f"copy{i}.png")
        truth["exact"].add(f"test/{name}/copy{i}.png")
        image = Image.open(folder / "train" / name / f"{name}{40 + i}.png")
        side = int(draws.choice([20, 24, 36, 56]))
        image.resize((side, side), Image.Resampling.BICUBIC).save(
            folder / "test" / name / f"near{i}.jpg", quality=int(draws.integers(60, 95))
        )
        truth["near"].add(f"test/{name}/near{i}.jpg")
    return folder, truth


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def hashes_below(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_was_planted_is_found_and_nothing_of_the_users_is_touched(
    planted: tuple[Path, dict[str, set[str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, truth = planted
    before = hashes_below(folder)
    assert main(["data", "audit", str(folder), "--fix", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    rows = rows_of(tmp_path / "out" / "audit.csv")
    for kind in ("exact", "near"):
        assert truth[kind] <= {row["id"] for row in rows if row["kind"] == kind and row["across_splits"] == "yes"}
    doubted = [row["id"] for row in rows if row["kind"] == "label"]
    assert len(truth["label"] & set(doubted[: 2 * len(truth["label"])])) >= 0.75 * len(truth["label"])
    assert "20 of 80 held-out images are in another split too (10 exactly, 10 nearly)" in printed
    assert hashes_below(folder) == before

    override = shlex.split(printed.split("Train on it with: ")[1])[0]
    source = load_recipe("quickstart", [override]).data.source
    assert isinstance(source, CsvSource)
    assert source.csv == str(tmp_path / "out" / "cleaned.csv")

    kept, removed = rows_of(tmp_path / "out" / "cleaned.csv"), rows_of(tmp_path / "out" / "removed.csv")
    assert {Path(row["path"]).parts[0] for row in removed} == {"train"}
    assert len(removed) == 20
    assert {row["path"] for row in kept if row["doubt"]} == set(doubted) - {row["path"] for row in removed}
    page = (tmp_path / "out" / "gallery.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<figure>") > 50


def test_strict_ends_with_2_where_something_was_found(planted: tuple[Path, dict[str, set[str]]], tmp_path: Path) -> None:
    assert main(["data", "audit", str(planted[0]), "--strict", "--out", str(tmp_path / "out")]) == 2


def test_a_recipe_is_audited_in_its_own_splits_and_random_weights_are_not_asked(
    planted: tuple[Path, dict[str, set[str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quickstart", f"data.source={{folder: {json.dumps(str(planted[0]))}}}", "model.weights=random"]
    assert main(["data", "audit", *words, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "labels and similar images were not looked at: the recipe's weights are random" in printed
    assert {row["split"] for row in rows_of(tmp_path / "out" / "audit.csv")} == {"train", "val", "test"}


def test_images_that_cannot_be_read_are_counted_and_the_others_audited(planted: tuple[Path, dict[str, set[str]]], tmp_path: Path) -> None:
    folder = tmp_path / "with a broken one"
    shutil.copytree(planted[0], folder)
    (folder / "train" / "bag" / "broken.png").write_bytes(b"")
    (folder / "test" / "bag" / "broken too.jpg").write_bytes(b"no image")
    (folder / "test" / "bag" / "link.png").symlink_to(folder / "nowhere.png")
    assert main(["data", "audit", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "3 can't be read" in (tmp_path / "out" / "gallery.html").read_text(encoding="utf-8")
    assert [Path(row["id"]).name for row in rows_of(tmp_path / "out" / "skipped.csv")] == ["broken too.jpg", "link.png", "broken.png"]
    assert any(row["kind"] == "label" for row in rows_of(tmp_path / "out" / "audit.csv"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere"),
        (["{folder}", "model.backbon=resnet18"], "Did you mean 'backbone'?"),
        (["{folder}/train/bag"], "no class folders"),
        (["{folder}/train/bag/bag9.png"], "bag9.png"),
    ],
)
def test_what_cannot_be_audited_is_reported(
    planted: tuple[Path, dict[str, set[str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    words = [word.replace("{folder}", str(planted[0])) for word in words]
    assert main(["data", "audit", *words, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
