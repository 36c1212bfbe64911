"""Kept activations: the same numbers as without, found again by whoever may use them, and never stale."""

import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import warm
from tlkit.data.decode import decode_pixels
from tlkit.files import UNFINISHED
from tlkit.recipe.load import load_recipe
from tlkit.system import cache_folder
from tlkit.training.cache import activations as activation_cache
from tlkit.training.cache.entries import entries, locked, make_room
from tlkit.training.finetune import run_recipe

RECIPE = """
name: stripes
data: {source: {folder: pictures}, image_size: 32, resize: stretch, batch_size: 8, validation: 0.2, test: 0.2}
model: {backbone: test_resnet, weights: random, head: {dropout: 0.2}}
phases:
  - {train: head, epochs: 3, lr: 1e-2}
  - {train: {from: layer4}, epochs: 2, lr: 1e-3}
optimizer: {name: sgd}
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stripes")
    draws = np.random.default_rng(0)
    for label, name in enumerate(("across", "down")):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(40):
            stripes = np.tile(np.arange(32) % 4 < 2, (32, 1)) * 150.0
            noisy = np.clip((stripes if label else stripes.T)[..., None] + draws.normal(50, 60, (32, 32, 3)), 0, 255)
            Image.fromarray(noisy.astype(np.uint8)).save(folder / "pictures" / name / f"{i:02d}.png")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def place(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, and the workplace as the current folder."""
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(workplace)
    return tmp_path


HEAD_ALONE = "phases=[{train: head, epochs: 1, lr: 1e-2}]"


@pytest.fixture(scope="module")
def first_with_cache(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that trained only the head, and the cache that it left."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLKIT_CACHE", str(folder / "cache"))
        patch.chdir(workplace)
        run_recipe(load_recipe("recipe.yaml", [HEAD_ALONE]), out=folder / "run")
    return folder


@pytest.fixture
def first(first_with_cache: Path, place: Path) -> Path:
    """That run; what it has cached is in the test's own cache."""
    shutil.copytree(first_with_cache / "cache", place / "cache")
    return first_with_cache / "run"


def train(place: Path, name: str, *overrides: str) -> tuple[list[dict[str, str]], dict[str, object], str]:
    """The rows of metrics.csv, metrics.json and the log."""
    run = run_recipe(load_recipe("recipe.yaml", overrides), out=place / name)
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file)), json.loads((run / "metrics.json").read_text()), (run / "log.txt").read_text()


def figures(rows: list[dict[str, str]]) -> list[list[float]]:
    return [[float(row[key]) for key in ("train/loss", "train/accuracy", "val/loss", "val/accuracy")] for row in rows]


@pytest.mark.parametrize(
    ("backbone", "train_what"),
    [
        ("test_resnet", "{last: 1}"),
        ("test_byobnet", "{last: 1}"),
        ("test_efficientnet", "{last: 1}"),
        ("test_convnext", "{last: 1}"),
        ("test_convnext", "{lora: {rank: 4}}"),
    ],
)
def test_losses_and_accuracy_are_those_of_a_run_without(place: Path, backbone: str, train_what: str) -> None:
    phases = f"phases=[{{train: head, epochs: 2, lr: 1e-2}}, {{train: {train_what}, epochs: 2, lr: 1e-2}}]"
    cached, metrics, log = train(place, "with", f"model.backbone={backbone}", phases)
    plain, plain_metrics, plain_log = train(place, "without", f"model.backbone={backbone}", phases, "cache.use=false")
    assert log.count("frozen part run once") == 2
    assert "frozen part run once" not in plain_log
    np.testing.assert_allclose(figures(cached), figures(plain), rtol=1e-4)
    assert metrics["test"]["accuracy"] == plain_metrics["test"]["accuracy"]  # type: ignore[index]


def test_a_backbone_that_can_not_be_cut_says_so_and_keeps_its_features_all_the_same(place: Path) -> None:
    rows, _, log = train(
        place, "vit", "model.backbone=test_vit", "phases=[{train: head, epochs: 1, lr: 1e-2}, {train: {last: 1}, epochs: 1, lr: 1e-2}]"
    )
    assert len(rows) == 2
    assert "frozen part run once, up to the features" in log
    assert "phase 2/2 last 1  its frozen part runs in every epoch: torch.fx can't trace it" in log


def test_another_seed_and_another_head_find_what_was_kept(place: Path, first: Path) -> None:
    # Random weights would differ with the seed: the first run's are taken.
    weights = f"model.weights={{run: {first}}}"
    _, _, log = train(place, "second", HEAD_ALONE, weights, "seed=7")
    _, _, other = train(place, "third", HEAD_ALONE, weights, "seed=8", "model.head={kind: mlp}")
    assert "activations of 80 images found" in log
    assert "activations of 80 images found" in other


@pytest.mark.usefixtures("first")
def test_other_images_sizes_and_weights_do_not(place: Path) -> None:
    for number, change in enumerate(("data.image_size=64", "data.normalize=none", "seed=1", "cache.dtype=float16")):
        assert "found in" not in train(place, f"other{number}", HEAD_ALONE, change)[2]


def test_a_random_augmentation_runs_live_and_views_are_kept_if_asked(place: Path) -> None:
    flip = "augment=[{HorizontalFlip: {p: 0.5}}]"
    _, _, live = train(place, "live", flip)
    assert "its frozen part runs in every epoch: augment changes the images" in live
    rows, _, views = train(place, "views", flip, "cache.views=2", "phases=[{train: head, epochs: 4, lr: 1e-2}]")
    assert "48 images in 2 views" in views
    assert len(rows) == 4
    # With a margin they are other images, though the transforms are the same.
    _, _, larger = train(place, "larger", flip, "cache.views=2", "data.margin=1.25", "phases=[{train: head, epochs: 1, lr: 1e-2}]")
    assert "48 images in 2 views" in larger


def test_over_budget_says_what_would_be_needed_and_half_precision_is_taken_only_if_allowed(place: Path) -> None:
    # test_resnet's features are [96]: 80 images of 4 * 96 bytes.
    small = "cache.budget_gb=0.00002"
    _, _, refused = train(place, "refused", small)
    assert "its frozen part runs in every epoch: 30.7 kB would be needed and cache.budget_gb is 2e-05" in refused
    _, _, halved = train(place, "halved", small, "cache.half_over_budget=true", HEAD_ALONE)
    assert "frozen part run once" in halved
    assert [entry.facts["dtype"] for entry in entries()] == ["float16"]


def test_a_damaged_entry_is_made_again(place: Path, first: Path) -> None:
    with (first / "metrics.csv").open() as file:
        good = list(csv.DictReader(file))
    (entry,) = entries()
    kept = (entry.folder / "0.bin").read_bytes()
    for number, damage in enumerate((kept[:-4], bytes(len(kept)))):
        (entry.folder / "0.bin").write_bytes(damage)
        rows, _, log = train(place, f"again{number}", HEAD_ALONE)
        assert "computed again" in log
        assert figures(rows) == figures(good)
        assert (entry.folder / "0.bin").read_bytes() == kept


KILLED_WHILE_IT_WRITES = """
import os, signal
from tlkit.training.cache import activations as activation_cache
whole = activation_cache.as_bytes
def killed(tensor):
    if tensor.ndim == 2:  # activations, not weights
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(tensor)
activation_cache.as_bytes = killed
"""


def test_a_run_killed_while_it_writes_leaves_nothing_that_is_taken_for_whole(place: Path, workplace: Path) -> None:
    (place / "sitecustomize.py").write_text(KILLED_WHILE_IT_WRITES)
    paths = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
    done = warm.run("finetune", "recipe.yaml", "--out", str(place / "killed"), cwd=workplace, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == -signal.SIGKILL
    assert [path.suffix for path in (cache_folder() / "activations").iterdir() if path.is_dir()] == [UNFINISHED]
    assert entries() == []
    rows, _, log = train(place, "next", HEAD_ALONE)
    assert "frozen part run once" in log
    assert not list((cache_folder() / "activations").glob(f"*{UNFINISHED}"))
    plain, _, _ = train(place, "plain", HEAD_ALONE, "cache.use=false")
    np.testing.assert_allclose(figures(rows), figures(plain), rtol=1e-4)


def test_a_full_disk_costs_the_cache_and_not_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(activation_cache.ActivationCache, "_write", full)
    rows, _, log = train(place, "full")
    assert len(rows) == 5
    assert "its frozen part runs in every epoch: the disk of" in log


def test_room_is_made_by_removing_what_was_unused_for_longest(place: Path) -> None:
    for age, name in enumerate(("new", "middle", "old")):
        folder = cache_folder() / "activations" / name
        folder.mkdir(parents=True)
        (folder / "0.bin").write_bytes(bytes(1_000_000))
        (folder / "entry.json").write_text("{}")
        os.utime(folder, (time.time() - 100 * age,) * 2)
    make_room(1_000_000, budget_gb=0.0031)
    assert [entry.folder.name for entry in entries()] == ["middle", "new"]
    with locked(cache_folder() / "activations" / "middle"):
        make_room(10_000_000, budget_gb=0.0031, keep={cache_folder() / "activations" / "new"})
    assert [entry.folder.name for entry in entries()] == ["middle", "new"]
    make_room(10_000_000, budget_gb=0.0031)
    assert entries() == []


def test_another_pooling_is_another_entry_and_no_alarm(place: Path) -> None:
    phases = "phases=[{train: head, epochs: 1, lr: 1e-2}]"
    logs = [train(place, f"{number}", phases, f"model.head.pool={pool}")[2] for number, pool in enumerate(("avg", "max", "avg"))]
    assert [log.count("frozen part run once") for log in logs] == [1, 1, 0]
    assert not any("differ from the network's" in log for log in logs)


def test_a_cache_that_cannot_be_written_costs_the_cache_and_not_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "file").write_text("no folder")
    monkeypatch.setenv("TLKIT_CACHE", str(place / "file" / "cache"))
    phases = "phases=[{train: head, epochs: 1, lr: 1e-2}, {train: all, epochs: 2, lr: 1e-3}]"
    _, metrics, log = train(place, "run", phases)
    assert "can't be written: Not a directory" in log
    assert "its images are decoded in every epoch" in log
    assert "test" in metrics


def test_a_live_phase_decodes_each_image_once_or_says_why_not(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    counted = lambda image, *rest, **named: (decoded.append(image), decode_pixels(image, *rest, **named))[1]  # noqa: E731
    monkeypatch.setattr("tlkit.data.preprocess.decode_pixels", counted)
    recipe = ("phases=[{train: all, epochs: 3, lr: 1e-3}]", "augment=[{HorizontalFlip: {p: 0.5}}]")
    kept, _, _ = train(place, "kept", *recipe)
    once = len(decoded)
    # 48 training and 16 validation images once; then the shipped model is measured on 16 test images.
    # The sheet of augmented images has eight rows; and the audit, which keeps what it finds, looks at each image.
    # The report's thumbnails and its heat maps each take some of the 16 test images again.
    on_the_page = once - (48 + 16 + 16 + 8 + (48 + 16 + 16))
    assert 0 < on_the_page <= 16 + 16
    plain, _, log = train(place, "without", *recipe, "cache.budget_gb=0.00001")
    assert len(decoded) - once == 3 * (48 + 16) + 16 + 16 + 8 + on_the_page
    assert "its images are decoded in every epoch: 197 kB would be needed and cache.budget_gb is 1e-05" in log
    assert figures(kept) == figures(plain)


def test_solved_and_classical_heads_find_what_a_phase_has_kept(place: Path, first: Path) -> None:
    weights = f"model.weights={{run: {first}}}"
    for name, change in (("svm", "model.head={kind: svm}"), ("lbfgs", "phases=[{train: head, solver: lbfgs}]")):
        phases = ["phases=[]"] if name == "svm" else []
        flip = "augment=[{HorizontalFlip: {p: 0.5}}]"  # of no account for them
        rows, metrics, log = train(place, name, weights, change, *phases, flip)
        assert "frozen part run once" not in log
        plain, plain_metrics, _ = train(place, f"{name}_plain", weights, change, *phases, flip, "cache.use=false")
        np.testing.assert_allclose(figures(rows), figures(plain), rtol=1e-4)
        assert metrics["test"]["accuracy"] == plain_metrics["test"]["accuracy"]  # type: ignore[index]
