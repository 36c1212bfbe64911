"""`tlkit data ...` takes data of every kind without a recipe."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkit.cli import main
from tlkit.commands.arguments import source_of

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 10, 10), dtype=np.uint8)
LABELS = (np.arange(12) % 2).astype(np.uint8)


def png(image: np.ndarray) -> bytes:  # type: ignore[type-arg]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def folder(root: Path) -> Path:
    for number, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        (root / f"class {label}").mkdir(parents=True, exist_ok=True)
        (root / f"class {label}" / f"{number}.png").write_bytes(png(image))
    return root


def csv(root: Path) -> Path:
    files = sorted(folder(root).rglob("*.png"))
    (root / "labels.csv").write_text("path,label\n" + "".join(f"{file.relative_to(root)},{file.parent.name}\n" for file in files))
    return root / "labels.csv"


def parquet(root: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    files = sorted(folder(root).rglob("*.png"))
    table = pyarrow.table({"path": [str(file.relative_to(root)) for file in files], "label": [file.parent.name for file in files]})
    pyarrow.parquet.write_table(table, root / "labels.parquet")
    return root / "labels.parquet"


def npz(root: Path) -> Path:
    root.mkdir()
    np.savez(root / "all.npz", images=IMAGES, labels=LABELS)
    return root / "all.npz"


def idx(root: Path) -> Path:
    root.mkdir()
    for name, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
        (root / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return root


def shards(root: Path) -> Path:
    root.mkdir()
    for shard in range(2):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for number in range(shard, 12, 2):
                for name, content in ((f"{number}.png", png(IMAGES[number])), (f"{number}.cls", b"%d" % (number % 3 % 2))):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return root


def huggingface(root: Path) -> Path:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    cells = [{"bytes": png(image), "path": None} for image in IMAGES]
    datasets.Dataset.from_dict({"image": cells, "label": LABELS.tolist()}, features=features).save_to_disk(str(root))
    return root


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("make", [folder, csv, parquet, npz, idx, shards, huggingface])
def test_every_command_knows_images_by_their_files(make: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(make(tmp_path / "pictures"))  # type: ignore[operator]
    assert main(["data", "check", place, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 12
    assert main(["data", "stats", place, "data.channels=1", "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["pictures"], facts["mean"]) == (12, [pytest.approx(IMAGES.mean() / 255)])
    assert main(["data", "preview", place, "augment=light", "data.image_size=32", "--rows", "2"]) == 0
    assert "as epochs 1 to 5 of training do" in capsys.readouterr().out
    assert main(["data", "audit", place, "model.weights=random", "--out", str(tmp_path / "audit")]) == 0
    assert "images compared with each other" in capsys.readouterr().out


def test_shards_may_be_named_by_a_pattern(tmp_path: Path) -> None:
    place = f"{shards(tmp_path / 'shards')}/{{0..1}}.tar"
    assert source_of(place) == {"webdataset": place}
    assert source_of("recipes/quickstart.yaml") is None


def test_an_npy_is_reported_that_it_needs_labels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", "images.npy"]) == 2
    assert "images.npy: an .npy file has no labels.\n  Name a recipe with data.source={npy: images.npy, labels:" in capsys.readouterr().err


def test_offline_a_set_that_is_missing_is_reported_without_asking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TLKIT_OFFLINE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "")
    for command in ("stats", "preview", "audit", "check"):
        words = ["quickstart", "data.source={torchvision: MNIST}", f"data.root={tmp_path / 'none'}", "--offline"]
        assert main(["data", command, *words]) == 2
        output = capsys.readouterr()
        assert "--offline makes no network calls" in output.out + output.err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "photo",
            "photo does not exist.\n  Expected a folder of images, a .csv, .tsv, .parquet or .npz file, 'shards/*.tar', or a recipe; ",
        ),
        ("photo", "Did you mean 'photos'?"),
        ("deep/photo", "Did you mean 'deep/photos'?"),
        ("quickstat", "Did you mean 'quickstart'?"),
        ("recipe.yml", "recipe.yml does not exist.\n  Did you mean 'recipe.yaml'?"),
        ("photos.zip", "photos.zip is no data that is known by its ending.\n  Expected a folder of images, a .csv"),
    ],
)
def test_a_word_that_is_neither_data_nor_a_recipe_is_answered_with_what_data_may_be(
    data: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path / "photos")
    folder(tmp_path / "deep/photos")
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / "photos.zip").write_bytes(b"PK\x03\x04\xff")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", data]) == 2
    assert message in capsys.readouterr().err


def test_a_table_separated_by_tabs_is_known_by_its_ending(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = csv(tmp_path / "photos").rename(tmp_path / "photos/labels.tsv")
    table.write_text(table.read_text().replace(",", "\t"))
    assert main(["data", "check", str(table)]) == 0
    assert "12 pictures in 2 classes were decoded" in capsys.readouterr().out
