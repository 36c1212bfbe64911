"""Images that are the same to the eye, in the bundled sample and in made ones."""

import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image, ImageOps
from scipy.fft import dctn

from tlkit.data.quality.look_alikes import SAME
from tlkit.data.quality.near_duplicates import HAMMING_RADIUS, dct_of, directions, find_near, mirrored
from tlkit.data.samples import Sample
from tlkit.system import shipped


def photograph(seed: int, size: int = 96) -> Image.Image:
    """Colours of random waves whose strength falls with the frequency, as in photographs."""
    draws = np.random.default_rng(seed)
    down, across = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    fall = 1 / np.maximum(np.hypot(down, across), 1 / size)
    channels = [np.fft.ifft2(fall * np.fft.fft2(draws.normal(size=(size, size)))).real for _ in range(3)]
    scaled = [255 * (channel - channel.min()) / np.ptp(channel) for channel in channels]
    return Image.fromarray(np.stack(scaled, axis=2).astype(np.uint8))


def saved(image: Image.Image, file: Path, **options: object) -> Sample:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)
    return Sample(file.name, file, (0,), "train")


def near(samples: list[Sample], known: list[int] | None = None, ranks: list[int] | None = None):  # type: ignore[no-untyped-def]
    number = len(samples)
    return find_near(dct_of(samples), np.array(known or range(number)), np.array(ranks or [0] * number))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("photographs")
    return [saved(photograph(i), folder / f"{i}.png") for i in range(40)]


def test_the_waves_of_an_image_of_32_pixels_are_scipys_cosine_transform(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    expected = dctn(grey.astype(np.float64), norm="ortho")[:8, :8]
    np.testing.assert_allclose(dct_of([saved(Image.fromarray(grey), tmp_path / "a.png")])[0].reshape(8, 8), expected, atol=0.01)


def test_the_waves_of_a_mirrored_image_are_known_without_it(photographs: list[Sample], tmp_path: Path) -> None:
    turned = saved(ImageOps.mirror(Image.open(photographs[3].image)), tmp_path / "a.png")
    np.testing.assert_allclose(mirrored(dct_of([photographs[3]])), dct_of([turned]), atol=0.05)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((61, 61), Image.Resampling.BICUBIC),
        lambda image: image.resize((300, 300), Image.Resampling.BILINEAR),
        lambda image: Image.open(BytesIO(_as_jpeg(image, 40))),
        lambda image: image.convert("L"),
        lambda image: image.point(lambda value: min(255, int(0.9 * value + 20))),
        lambda image: ImageOps.mirror(image),
        lambda image: ImageOps.mirror(image).resize((61, 61), Image.Resampling.BICUBIC),
    ],
    ids=["smaller", "larger", "jpeg", "grey", "brighter", "mirrored", "mirrored and smaller"],
)
def test_an_altered_copy_is_near_its_original_and_to_nothing_else(photographs: list[Sample], tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    copy = saved(change(Image.open(photographs[7].image)), tmp_path / "copy.png")
    found = near([*photographs, copy])
    assert np.flatnonzero(found.score > SAME).tolist() == [7, 40]
    assert found.group[7] == found.group[40]


def _as_jpeg(image: Image.Image, quality: int) -> bytes:
    written = BytesIO()
    image.save(written, "JPEG", quality=quality)
    return written.getvalue()


def test_a_large_jpeg_is_near_its_small_copy(photographs: list[Sample], tmp_path: Path) -> None:
    large = saved(photograph(100, 900), tmp_path / "large.jpg", quality=90)
    small = saved(photograph(100, 900).resize((120, 120), Image.Resampling.LANCZOS), tmp_path / "small.png")
    assert np.flatnonzero(near([*photographs, large, small]).score).tolist() == [40, 41]


def test_two_images_alone_can_be_near(tmp_path: Path) -> None:
    one = saved(photograph(0), tmp_path / "a.png")
    other = saved(photograph(0).resize((70, 70)), tmp_path / "b.png")
    different = saved(photograph(1), tmp_path / "c.png")
    assert near([one, other]).score.min() > SAME
    assert near([one, different]).score.max() == 0


def test_the_bundled_sample_has_no_near_duplicates_but_those_that_people_see() -> None:
    files = sorted(shipped("data/fashion_mnist_mini").rglob("*.png"))
    found = near([Sample(str(i), file, (0,), "train") for i, file in enumerate(files)])
    assert len(files) == 3000
    assert (found.score > 0).sum() <= 4


def test_images_that_cannot_be_read_are_near_to_nothing(photographs: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    bad = [Sample(name, tmp_path / name, (0,), "train") for name in ("a.png", "b.png", "missing.png")]
    found = near([*photographs, *bad])
    assert found.score.max() == 0
    assert len(set(found.group.tolist())) == 43


def test_postscript_that_is_named_jpg_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", "EPS")
    ran: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: ran.append(arguments))
    assert np.isnan(dct_of([Sample("a.jpg", tmp_path / "a.jpg", (0,), "train")])).all()
    assert ran == []


def test_blank_images_are_near_to_nothing(photographs: list[Sample], tmp_path: Path) -> None:
    blank = [saved(Image.new("L", (30 + i, 30), 40 * i), tmp_path / f"{i}.png") for i in range(5)]
    thin = saved(Image.new("RGB", (1, 500), "red"), tmp_path / "thin.png")
    assert near([*photographs, *blank, thin]).score.max() == 0


def test_equal_images_stand_for_each_other_and_are_not_reported_again() -> None:
    dct = np.random.default_rng(0).normal(0, 100, (200, 64)).astype(np.float32)
    dct[10:200] = dct[10]  # 190 times the same
    dct[9] = dct[10] * 1.01
    known, ranks = np.array([*range(10), *[10] * 190]), np.array([0] * 100 + [1] * 100)
    found = find_near(dct, known, ranks)
    assert np.flatnonzero(found.score).tolist() == list(range(9, 200))
    assert found.across[9]
    assert not found.across[[0, 1, 2]].any()
    assert found.later[9] >= 100


def test_the_nearest_in_a_later_split_is_found() -> None:
    dct = np.random.default_rng(1).normal(0, 100, (300, 64)).astype(np.float32)
    dct[1], dct[2] = dct[0] + 5, dct[0] + 1
    found = find_near(dct, np.arange(300), np.array([0, 1, 2] + [0] * 297))
    assert found.later[:3].tolist() == [2, 2, -1]
    assert found.across[:3].all()


def test_all_pairs_above_the_threshold_are_found(rng: np.random.Generator) -> None:
    """By one product of matrices, without hashes and blocks."""
    dct = rng.normal(0, 100, (1500, 64)).astype(np.float32)
    dct[700:] = dct[:800] + rng.normal(0, 100, (800, 64)).astype(np.float32) * rng.uniform(0.02, 0.3, (800, 1)).astype(np.float32)
    vectors = directions(dct)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, 0)
    found = find_near(dct, np.arange(1500), np.zeros(1500, int))
    expected = np.where(cosines.max(1) > SAME, cosines.max(1), 0)
    np.testing.assert_allclose(found.score, expected, atol=1e-5)
    bits = vectors > 0
    rows, columns = np.nonzero(cosines > SAME)
    assert (bits[rows] != bits[columns]).sum(1).max() <= HAMMING_RADIUS


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_set_of_look_alikes_takes_memory_for_its_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand frames of one scene, all near: half a million pairs make one group."""
    monkeypatch.setattr("tlkit.data.quality.candidate_pairs.CANDIDATES_AT_ONCE", 100_000)
    dct: NDArray[np.float32] = np.random.default_rng(0).normal(0, 100, (2000, 64)).astype(np.float32)
    dct[1000:] = dct[0] + 0.01 * dct[1000:]
    found = find_near(dct, np.arange(2000), np.arange(2000) % 2)
    assert len(set(found.group[1000:].tolist())) == 1
    assert found.across[1000:].all()
