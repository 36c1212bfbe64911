"""`tlkit data stats` on real files, beside numpy's figures over the whole array."""

import json
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from PIL import Image

from tlkit.cli import main
from tlkit.data.decode import Decoding, decode
from tlkit.data.quality.survey import survey
from tlkit.data.sources.read import read_source
from tlkit.recipe.fields.source import BundledSource, FolderSource

SIZES = [(20, 30), (40, 10), (25, 25), (64, 48), (9, 80)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 images of cats, 35 and one broken file of dogs, in several sizes and formats; as train, and one each as test."""
    root = tmp_path_factory.mktemp("pets")
    draws = np.random.default_rng(0)
    for name, number in (("cat", 7), ("dog", 36)):
        for split in ("train", "test"):
            (root / split / name).mkdir(parents=True)
        for i in range(number):
            width, height = SIZES[i % len(SIZES)]
            colours = draws.integers(0, 200 if name == "cat" else 256, (height, width, 3), dtype=np.uint8)
            place = root / ("test" if i == 0 else "train") / name
            image = Image.fromarray(colours)
            if i % 3 == 0:
                image.convert("L").save(place / f"{i:02d}.bmp")
            else:
                image.save(place / f"{i:02d}.png")
    (root / "train/dog/broken.png").write_text("no image")
    return root


def pixels(folder: Path) -> list[np.ndarray]:
    files = [file for file in sorted(folder.rglob("*.*")) if file.name != "broken.png"]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def stats(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> dict:  # type: ignore[type-arg]
    assert main(["data", "stats", *map(str, words), "--format", "json"]) == code
    found: dict = json.loads(capsys.readouterr().out)  # type: ignore[type-arg]
    return found


def test_mean_and_std_equal_numpys_over_the_whole_array(folder: Path) -> None:
    found = survey(read_source(FolderSource(folder=str(folder)), Path("data")), read=decode)
    for split, where in ((None, folder), ("train", folder / "train"), ("test", folder / "test")):
        whole = np.concatenate([image.reshape(-1, 3) for image in pixels(where)]).astype(np.float64) / 255
        mean, std = found.mean_and_std(split)
        np.testing.assert_allclose(mean, whole.mean(0), atol=1e-6, rtol=0)
        np.testing.assert_allclose(std, whole.std(0), atol=1e-6, rtol=0)


def test_the_mean_image_equals_numpys_where_all_images_have_one_size() -> None:
    samples = read_source(BundledSource(bundled="fashion_mnist_mini"), Path("data"))
    found = survey(samples, read=partial(decode, how=Decoding(1)))
    whole = np.stack([np.asarray(Image.open(sample.image)) for sample in samples.samples]) / 255  # type: ignore[arg-type]
    np.testing.assert_allclose(found.mean_picture()[:, :, 0], whole.mean(0), atol=1e-6, rtol=0)
    assert found.mean_and_std()[0] == pytest.approx((whole.mean(),), abs=1e-6)
    assert found.mean_and_std()[1] == pytest.approx((whole.std(),), abs=1e-6)


def test_counts_sizes_and_formats_are_those_of_the_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = stats(capsys, folder, code=2)
    assert found["splits"] == {"training": 42, "test": 2}
    assert found["classes"] == {"cat": {"training": 6, "test": 1}, "dog": {"training": 36, "test": 1}}
    assert found["imbalance"] == {"largest": "dog", "smallest": "cat", "ratio": 6.0}
    shapes = [image.shape for image in pixels(folder)]
    widths, heights = [width for _, width, _ in shapes], [height for height, _, _ in shapes]
    assert found["width"] == {"min": min(widths), "median": median(widths), "max": max(widths)}
    assert found["height"] == {"min": min(heights), "median": median(heights), "max": max(heights)}
    ratios = [width / height for height, width, _ in shapes]
    assert found["aspect_ratio"] == pytest.approx({"min": min(ratios), "median": median(ratios), "max": max(ratios)})
    assert found["longer_than_2_to_1"] == sum(max(ratio, 1 / ratio) > 2 for ratio in ratios)
    assert found["formats"] == {"PNG RGB": 28, "BMP L": 15}
    assert found["unreadable"]["count"] == 1
    assert "train/dog/broken.png" in found["unreadable"]["first"]


def test_the_table_hints_at_what_a_recipe_should_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", str(folder)]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "classes differ 6.0-fold: dog has most images to train on, cat fewest. Set `imbalance: loss_weights`" in said
    assert "more than twice as long as wide" in said
    assert "1 image can't be read" in said


def test_a_recipes_splits_size_and_limit_are_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = stats(capsys, "quickstart", "data.limit=300", "data.image_size=20", "data.channels=1", "--out", tmp_path / "out")
    assert found["splits"] == {"training": 180, "validation": 20, "test": 100}
    assert found["source_size"] == 3000
    assert len(found["mean"]) == 1
    assert Image.open(found["mean_picture"]).size == (20, 20)
    assert json.loads((tmp_path / "out/statistics.json").read_text()) == found


def test_what_can_not_be_surveyed_is_reported(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", str(folder), "data.limt=3"]) == 2
    assert "data.limt is not a key of data" in capsys.readouterr().err
    assert main(["data", "stats", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["data", "stats", str(folder), "--out", str(folder / "test/cat/00.bmp")]) == 2
    assert "is a file, or is in one" in capsys.readouterr().err
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "broken.png").write_text("no image")
    assert main(["data", "stats", str(tmp_path)]) == 2
    assert "none of the images can be read" in capsys.readouterr().err
