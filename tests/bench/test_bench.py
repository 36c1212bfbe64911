"""The bench: its arithmetic, its images, the recipe it writes, and tiny real runs of every side."""

import hashlib
import json
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console

from tlkit import cli
from tlkit.bench.command import Bench, Spread, format_spread, print_bench
from tlkit.bench.curve import Curve, print_curve, shares_of_compute
from tlkit.bench.floor import cut
from tlkit.bench.processes import Decoding, Processes, parameters_that_train, print_processes
from tlkit.bench.sides import ResourceUsage, Run, run_side
from tlkit.bench.work import KINDS, Work, write_images
from tlkit.errors import RunError
from tlkit.models.backbones import create_backbone, stages
from tlkit.models.freeze import trained_parameters
from tlkit.recipe.fields.phases import FromStage, LastStages
from tlkit.recipe.load import load_recipe

TINY = "test_efficientnet"  # timm's own, 0.4 M parameters


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_images(folder, 40, 20)
    return folder


def run(whole_s: float, *epochs_s: float, accuracy: float = 0.8) -> Run:
    return Run(whole_s, 0.5, epochs_s, accuracy, ResourceUsage(cpu_s=whole_s, peak_mb=500.0))


TWO_SIDES = Bench(
    Work("head"),
    training=100,
    validation=50,
    # Medians of the epochs: 1, 2, 4 s and 3, 4, 4 s.
    runs={
        "floor": [run(10, 9, 1, 1), run(20, 2, 2, 2), run(40, 4, 4, 4)],
        "tlkit": [run(15, 3, 3, 3, accuracy=0.7), run(24, 4, 4, 4, accuracy=0.9), run(40, 4, 1, 9)],
    },
)


def test_figures_are_medians_over_the_repeats_of_each_runs_median_epoch() -> None:
    figures = TWO_SIDES.figures("tlkit")
    assert figures["epoch_s"] == Spread(4, 3, 4)
    assert figures["images_s"] == Spread(25, 25, pytest.approx(100 / 3))
    assert figures["whole_s"] == Spread(24, 15, 40)
    assert figures["accuracy"] == Spread(0.8, 0.7, 0.9)


def test_ratios_compare_runs_of_the_same_repeat() -> None:
    figures = TWO_SIDES.figures("tlkit")
    assert figures["whole_ratio"] == Spread(1.2, 1.0, 1.5)
    assert figures["epoch_ratio"] == Spread(2.0, 1.0, 3.0)
    assert TWO_SIDES.figures("floor")["whole_ratio"] == Spread(1, 1, 1)


def test_without_the_floor_there_are_no_ratios() -> None:
    alone = Bench(TWO_SIDES.work, 100, 50, {"tlkit": TWO_SIDES.runs["tlkit"]})
    assert alone.figures("tlkit")["whole_ratio"] is None
    assert alone.to_json()["sides"]["tlkit"]["whole_ratio"] is None


def test_the_table_shows_median_and_spread_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_bench(TWO_SIDES, Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split() == ["whole", "/", "the", "floor's", "1.00", "1.20", "(1.00-1.50)"] for line in lines)
    assert format_spread(Spread(7.71, 7.5, 8.1), ".1f") == "7.7 (7.5-8.1)"
    assert format_spread(None, ".1f") == ""


def test_images_are_as_many_as_asked_for_in_all_classes_and_no_two_files_are_equal(tmp_path: Path) -> None:
    write_images(tmp_path, 2_050, 1_033)
    files = {split: list((tmp_path / split).rglob("*.png")) for split in ("train", "val")}
    assert [len(files[split]) for split in ("train", "val")] == [2_050, 1_033]
    counts = [len(list(folder.iterdir())) for folder in (tmp_path / "train").iterdir()]
    assert counts == [205] * 10
    assert len({hashlib.sha256(file.read_bytes()).digest() for file in (*files["train"], *files["val"])}) == 3_083


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", ["a file", None])
def test_tlkit_is_given_a_recipe_that_checks(kind: str, weights: str | None, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(Work(kind, images="photos", weights=weights).recipe()))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert len(recipe.augment) == (2 if kind in ("all", "live") else 0)
    assert recipe.data.test == 0


@pytest.mark.parametrize(("name", "stage"), [("tf_efficientnet_lite0", "block6"), ("tf_efficientnet_lite0", "block3"), ("resnet18", None)])
def test_the_floor_trains_what_tlkit_trains_and_its_halves_are_the_whole(name: str, stage: str | None) -> None:
    backbone = create_backbone(name, 64).eval()
    named = {id(parameter): key for key, parameter in backbone.named_parameters()}
    train = FromStage(from_=stage) if stage else LastStages(last=1)
    expected = trained_parameters(train, backbone, stages(backbone), key="train", name=name)
    frozen, trained = cut(backbone, Work("from", backbone=name, stage=stage))
    assert frozen is not None
    assert {named[id(parameter)] for parameter in trained.parameters()} == expected
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(trained(frozen(images)), backbone(images))


def test_a_stage_that_the_floor_cannot_cut_is_named() -> None:
    with pytest.raises(SystemExit, match=r"at stage 'layer9'\. It knows: layer1, layer2, layer3, layer4"):
        cut(timm.create_model("resnet18", num_classes=0), Work("from", stage="layer9"))


@pytest.mark.slow
@pytest.mark.parametrize("side", ["tlkit", "textbook"])
def test_a_side_runs_as_a_process_and_is_measured(side: str, images: Path, tmp_path: Path) -> None:
    done = run_side(side, Work("live", images=str(images), backbone=TINY, image_size=32, batch_size=16, epochs=2), tmp_path)
    assert len(done.epochs_s) == 2
    assert 0 < done.start_s < done.start_s + sum(done.epochs_s) < done.whole_s
    assert 0 <= done.accuracy <= 1
    assert done.used.peak_mb is None or done.used.peak_mb > 100
    assert list(tmp_path.iterdir()) == []


def test_a_side_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"(?s)-m tlkit.bench.floor ended with 1\. .*Unknown model \(resnet19\)"):
        run_side("floor", Work("head", backbone="resnet19"), tmp_path)


def test_a_curve_compares_an_epoch_with_its_share_of_the_whole_networks(capsys: pytest.CaptureFixture[str]) -> None:
    runs = {"head only": [run(9, 2), run(9, 1), run(9, 3)], "layer4": [run(9, 9)], "stem": [run(9, 20)]}
    curve = Curve(Work("head"), 100, 50, {"stem": 1.0, "layer4": 0.25}, runs)
    assert curve.in_proportion_s("layer4") == 0.25 * 20 + 2
    assert curve.ratio("layer4") == 9 / 7
    assert curve.ratio("head only") == 1
    print_curve(curve, Console(width=80))
    assert ["from", "layer4", "25.0%", "9", "7", "1.29"] in map(str.split, capsys.readouterr().out.splitlines())


def test_two_processes_are_compared_with_one_of_the_same_repeat(capsys: pytest.CaptureFixture[str]) -> None:
    runs = {("all", 1): [run(9, 8), run(9, 10)], ("all", 2): [run(9, 5), run(9, 4)]}
    found = Processes(Work("all"), 128, 64, {"all": 1_000_000}, Decoding(Spread(200, 190, 210), 100_000), runs)
    assert found.speedup("all", 2) == Spread((8 / 5 + 10 / 4) / 2, 8 / 5, 10 / 4)
    assert found.bytes_a_step("all", 1) == 0
    assert found.bytes_a_step("all", 2) == 4_000_000  # 2 x 1/2 of 4 bytes for each
    print_processes(found, Console(width=100))
    shown = capsys.readouterr().out
    assert ["all", "2", "4.5", "(4-5)", "2250.0", "4.00", "2.05", "(1.60-2.50)"] in map(str.split, shown.splitlines())
    assert "one core decodes and resizes 200 (190-210) JPEG images" in shown


def test_parameters_that_train_are_counted() -> None:
    """resnet18 has 11,176,512 without its classifier, and 512 features (torchvision's 11,689,512 less 513 x 1000)."""
    assert parameters_that_train("resnet18") == {"head": 5130, "all": 11_176_512 + 5130}


def test_shares_of_compute_fall_from_one_towards_the_head() -> None:
    shares = shares_of_compute("vgg11", 64)
    assert list(shares) == ["conv1", "conv2", "conv3", "conv4", "conv5", "dense"]
    assert shares["conv1"] == 1
    # By hand, at 64 px: conv1 64*3*9 * 64^2 multiply-adds, conv2 128*64*9 * 32^2.
    assert shares["conv1"] - shares["conv2"] == pytest.approx(
        64 * 3 * 9 * 64**2 * (shares["conv2"] - shares["conv3"]) / (128 * 64 * 9 * 32**2)
    )
    assert sorted(shares.values(), reverse=True) == list(shares.values())


@pytest.mark.slow
def test_the_command_prints_json_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"bench head --backbone {TINY} --size 40+20 --repeats 1 --sides floor --format json --out {tmp_path / 'bench.json'}"
    assert cli.main(words.split()) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "bench.json").read_text()
    figures = json.loads(printed)
    assert figures["pictures"] == {"train": 40, "val": 20}
    assert "images" not in figures["work"]  # a temporary folder
    assert len(figures["sides"]["floor"]["runs"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("bench head --size huge", "'huge' is not a size: expected small, medium, or two numbers from 20 on, such as 800+200"),
        ("bench head --size 8+8", "'8+8' is not a size"),
        ("bench head --stage block6", "Expected: tlkit bench from --stage block6"),
        ("bench head --out nowhere/bench.json", "nowhere is not a folder"),
        ("bench curve --stage block6", "Leave out --stage"),
        ("bench curve --backbone resnet19", "Did you mean 'resnet18'?"),
        ("bench processes --warm-cache", "tlkit bench processes trains the head and all layers"),
        ("bench processes --backbone resnet19", "Did you mean 'resnet18'?"),
        ("bench processes --size 100+40", "counts whole steps of 64 images"),
        ("bench tail", "invalid choice: 'tail'"),
    ],
)
def test_a_slip_exits_2_before_anything_runs(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words.split()) == 2
    assert message in capsys.readouterr().err
