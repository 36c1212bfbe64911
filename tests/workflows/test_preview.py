"""`tlkit data preview`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkit.cli import main


def folder_of_images(root: Path) -> Path:
    draws = np.random.default_rng(0)
    for name in ("a cat 🐈", "b"):
        (root / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(draws.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def preview(root: Path, *words: str) -> int:
    return main(["data", "preview", "quickstart", f"data.source={{folder: '{root}'}}", *words])


def test_the_sheet_needs_no_weights_and_says_what_it_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder_of_images(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    words = ["model.backbone=resnet18", "model.weights=pretrained", "data.image_size=32", "augment=medium", "--rows", "3", "--columns", "4"]
    assert preview(root, *words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("preview.png: 3 of 12 training images, as validation sees them and as epochs 1 to 3 of training do\n")
    assert "□ stands for what the sheet's font lacks: a cat □ is a cat 🐈\n" in printed
    with Image.open("preview.png") as sheet:
        assert sheet.width >= 640
    assert preview(root, *words, "augment=[]", "data.normalize=dataset", "data.resize=pad", "--out", "plain.png") == 0
    assert "augment is empty" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "sheet.jpg"), "--out sheet.jpg is not a .png file."),
        (("--rows", "5000"), "5000 rows of 6 columns are more than 2000 images."),
        (("augment=[RandomCrop]",), "augment[0].RandomCrop lacks height and width."),
    ],
)
def test_a_sheet_that_cannot_be_is_reported_with_the_fix(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder_of_images(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    assert preview(root, *words) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.glob("*.png")) == []
