"""`tlkit check` knows the names that the installed timm knows, and what is not on this machine, without importing either."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import timm

import tlkit.models.backbones  # noqa: F401  (registers tlkit's own backbones with timm)
from tlkit.cli import main
from tlkit.recipe import image_sizes, names
from tlkit.training.optimizers import OWN_NAMES

TABLE = Path(names.__file__).with_name(names.TABLE)
PROBLEMS = (
    ("optimizer.name=foo", "optimizer.name = 'foo' is not an optimizer."),
    ("model.backbone=renset18", "model.backbone = 'renset18' is not a model that timm knows.\n  Did you mean 'resnet18'?"),
    ("data={source: {folder: nowhere}}", "data.source.folder = 'nowhere' does not exist.\n  Expected a folder"),
    ("data={source: {csv: nowhere.csv}}", "data.source.csv = 'nowhere.csv' does not exist.\n  Expected a file"),
    ("data={source: {csv: photos}}", "data.source.csv = 'photos' is a folder, not a file."),
    ("data={source: {folder: photo}}", "data.source.folder = 'photo' does not exist.\n  Expected a folder"),
    ("data={source: {folder: photo}}", "Did you mean 'photos'?"),
    ("model.weights={file: nowhere.safetensors}", "model.weights.file = 'nowhere.safetensors' does not exist."),
    ("model.weights={run: nowhere}", "model.weights.run = 'nowhere' does not exist."),
)


def known_names() -> dict[str, Any]:
    optimizers = sorted({*OWN_NAMES, *map(str, timm.optim.list_optimizers())})  # type: ignore[attr-defined]
    return {"timm": version("timm"), "optimizers": optimizers, "backbones": sorted(timm.list_models())}


def test_the_list_is_that_of_the_version_of_timm_that_it_names() -> None:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    if version("timm") != table["timm"]:
        pytest.skip(f"the list is of timm {table['timm']}")
    assert table == known_names()


@pytest.mark.parametrize(("override", "message"), PROBLEMS)
def test_check_finds_names_that_nobody_knows_and_paths_that_are_not_there(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["check", "quickstart", "model.weights=random", override]) == 2
    assert message in capsys.readouterr().err


SIZES = [  # as tests/models/test_image_sizes.py finds by building
    ("vit_tiny_patch16_224", 10, "16"),
    ("vit_huge_patch14_224", 10, "14"),
    ("vgg19", 20, "32"),
    ("hrnet_w64", 100, "96 or 128"),
    ("mixer_s32_224", 20, "32"),
    ("googlenet", 8, "15"),
    ("convnext_atto", 20, "32"),
    ("maxvit_pico_rw_256", 100, "96 or 128"),
]


@pytest.mark.parametrize(("backbone", "size", "near"), SIZES)
def test_check_finds_an_image_size_that_the_backbone_cannot_take(
    backbone: str, size: int, near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [f"model.backbone={backbone}", "model.weights=random", "phases=[{train: all, epochs: 1, lr: 0.1}]"]
    assert main(["check", "quickstart", *changes, f"data.image_size={size}"]) == 2
    problem = f"override data.image_size={size}: data.image_size = {size} is a size that {backbone} can't take."
    assert f"{problem}\n  Sizes near it that work: {near}." in capsys.readouterr().err
    works = near.split(" or ")[-1]
    assert main(["check", "quickstart", *changes, f"data.image_size={works}"]) == 0


BORDERS = [  # size modulo the side of a patch, as tests/models/test_image_sizes.py finds by the gradient
    ("vit_tiny_patch16_224", 33, (1, 16, 32, 48)),
    ("vit_small_patch14_dinov2", 30, (2, 14, 28, 42)),
    ("swin_tiny_patch4_window7_224", 34, (2, 4, 32, 36)),
    ("mixer_s32_224", 40, (8, 32, 32, 64)),
    ("convnext_atto", 35, (3, 4, 32, 36)),
]
ALL_SEEN = [
    ("vit_tiny_patch16_224", 48),
    ("convnext_atto", 36),
    ("resnet18", 33),
    ("googlenet", 33),
    ("tf_efficientnet_lite0", 33),
    ("vgg11", 33),
]
ONLY_ALL = ["model.weights=random", "phases=[{train: all, epochs: 1, lr: 0.1}]"]


@pytest.mark.parametrize(("backbone", "size", "found"), BORDERS)
def test_check_warns_of_a_border_that_patches_leave_unseen(
    backbone: str, size: int, found: tuple[int, int, int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "quickstart", *ONLY_ALL, f"model.backbone={backbone}", f"data.image_size={size}"]) == 0
    unseen, patch, lower, upper = found
    place = f"warning    data.image_size = {size} leaves {unseen} px at the right and the bottom of every image unseen: {backbone} looks"
    assert f"{place} at patches of {patch} px. Use {lower} or {upper}." in capsys.readouterr().out


@pytest.mark.parametrize(("backbone", "size"), ALL_SEEN)
def test_check_says_nothing_of_an_image_that_is_seen_to_its_border(backbone: str, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "quickstart", *ONLY_ALL, f"model.backbone={backbone}", f"data.image_size={size}"]) == 0
    assert "unseen" not in capsys.readouterr().out


def test_a_backbone_of_a_tag_has_the_sizes_of_its_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    tagged = "vit_tiny_patch16_224.augreg_in21k"
    assert main(["check", "quickstart", *ONLY_ALL, f"model.backbone={tagged}", "data.image_size=10"]) == 2
    assert f"= 10 is a size that {tagged} can't take." in capsys.readouterr().err


def test_the_image_sizes_are_of_the_same_version_of_timm_and_of_backbones_in_the_list() -> None:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    text = TABLE.with_name(image_sizes.TABLE).read_text(encoding="utf-8")
    assert f"timm {table['timm']} takes" in text
    rows = [line.split(",") for line in text.splitlines() if line[0] != "#"][1:]
    assert len(rows) > 600
    assert {name for name, *_ in rows} <= set(table["backbones"])
    assert all(int(smallest) % int(multiple) == 0 for _, smallest, multiple, _ in rows)


def test_check_names_all_of_them_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "quickstart", "model.weights=random", *(override for override, _ in PROBLEMS[:3])]) == 2
    printed = capsys.readouterr().err
    assert all(message.splitlines()[0] in printed for _, message in PROBLEMS[:3])


def test_another_version_of_timm_may_know_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "version", lambda package: "99.0")
    assert main(["check", "quickstart", "model.backbone=resnet2030", "model.weights=random"]) == 0


if __name__ == "__main__":
    TABLE.write_text(json.dumps(known_names(), indent=0) + "\n", encoding="utf-8")
