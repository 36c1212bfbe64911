"""The sheet shows what training gets, pixel for pixel."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkit.data.augment import build_augmentation
from tlkit.data.dataset import ImageDataset, TrainingOrder, make_loader
from tlkit.data.preprocess import Preprocessing
from tlkit.data.preview import draw_sheet, preview_rows, readable
from tlkit.data.samples import Sample
from tlkit.recipe.fields.augment import Transform

SIZE = 32
PREPROCESSING = Preprocessing(SIZE, "crop", 0.9, "bilinear", (0.5,) * 3, (0.5,) * 3)
AUGMENT = [Transform(name="HorizontalFlip"), Transform(name="randaugment"), Transform(name="GaussNoise")]
CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    draws = np.random.default_rng(0)
    made = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.fromarray(draws.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
        made.append(Sample(path.name, path, (0 if number < 8 else 1 if number < 11 else 2,), "train"))
    return made


def image_dataset(samples: list[Sample]) -> ImageDataset:
    return ImageDataset(samples, PREPROCESSING, augmentation=build_augmentation(AUGMENT, SIZE), seed=3)


def test_each_column_is_an_epoch_of_the_training_loader_and_the_first_is_without_augmentation(samples: list[Sample]) -> None:
    rows = list(preview_rows(image_dataset(samples), CLASSES, rows=4, epochs=range(3)))
    augmentation = build_augmentation(AUGMENT, SIZE)
    loader = make_loader(
        ImageDataset(samples, PREPROCESSING, augmentation=augmentation, seed=3), batch_size=4, order=TrainingOrder(3), workers=0
    )
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        trained_on = {image.permute(1, 2, 0).numpy().tobytes() for images, _ in loader for image in images}
        assert {row.views[1 + epoch].tobytes() for row in rows} <= trained_on
    files = {sample.id: sample.image for sample in samples}
    for row in rows:
        assert np.array_equal(row.views[0], PREPROCESSING.read(files[row.id]))


def test_rows_take_all_classes_in_turn_and_are_the_same_for_the_same_seed(samples: list[Sample]) -> None:
    names = [[row.name for row in preview_rows(image_dataset(samples), CLASSES, rows=6, epochs=[0])] for _ in range(2)]
    assert names[0] == ["ant", "bee", "cat", "ant", "bee", "ant"]
    assert names[1] == names[0]
    assert len(list(preview_rows(image_dataset(samples), CLASSES, rows=100, epochs=[]))) == 12


def test_an_image_that_cannot_be_read_is_left_out_and_reported(samples: list[Sample], caplog: pytest.LogCaptureFixture) -> None:
    Path(str(samples[11].image)).write_bytes(b"")
    rows = list(preview_rows(image_dataset(samples), CLASSES, rows=100, epochs=[0]))
    assert len(rows) == 11
    assert f"left out of the sheet: {samples[11].image}: the file is empty" in caplog.text


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_small_images_are_enlarged_pixel_for_pixel_in_their_first_channels(tmp_path: Path, channels: int) -> None:
    from tlkit.data.preview import GAP_PX, MARGIN_PX, NAMES_PX, Row

    view = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, channels), dtype=np.uint8)
    name = "a very long name of a class that goes on and on without an end " * 4
    draw_sheet([Row("a", name, (view, view))], ["validation", "epoch 1"], tmp_path / "sheet.png", title="t", notes=["augment  Flip"])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    shown = view[:, :, :3] if channels >= 3 else np.repeat(view[:, :, :1], 3, axis=2)
    enlarged = np.kron(shown, np.ones((4, 4, 1), np.uint8))  # 32 px become 128
    left = MARGIN_PX + NAMES_PX
    tops = [top for top in range(len(sheet) - 128) if np.array_equal(sheet[top : top + 128, left : left + 128], enlarged)]
    assert len(tops) == 1
    second = left + 128 + GAP_PX
    assert np.array_equal(sheet[tops[0] : tops[0] + 128, second : second + 128], enlarged)
    # The name stays in its column: the gap before the images is paper.
    assert (sheet[tops[0] : tops[0] + 128, left - 2 : left] == 255).all()


def test_signs_that_the_font_lacks_are_boxes() -> None:
    assert readable("Ärger Ωmega кот") == "Ärger Ωmega кот"
    assert readable("cat 🐈 猫") == "cat □ □"
    assert readable("☕\ufe0f") in ("☕", "□")
