"""What a plan reports: likely slips as remarks, and a table that fits a terminal."""

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from tests import warm
from tests.planning.colours import RECIPE, SMALL, count, planned, shown
from tlkit.data.samples import Sample, Samples
from tlkit.errors import DataError, RecipeError, WeightsError
from tlkit.models.backbones import create_backbone
from tlkit.planning import plan as planning
from tlkit.planning.plan import Plan, make_plan
from tlkit.planning.plan_table import _joined, duration
from tlkit.planning.remarks import remarks
from tlkit.planning.stages import StageRow
from tlkit.recipe.load import load_recipe


def texts(plan: Plan) -> str:
    return "\n".join(f"{remark.kind}: {remark.text}" for remark in remarks(plan))


def test_without_images_and_weights_the_plan_says_so_and_plans_on(there: Path) -> None:
    plan = planned("data.source={folder: nowhere}", "model.weights={file: nowhere.safetensors}")
    assert (plan.samples, plan.steps, plan.phases[0].seconds, plan.classes) == (None, None, None, 10)
    said = texts(plan)
    assert "warning: no images: steps and times are unknown, and 10 classes are assumed; batch-norm is planned as below 20,000" in said
    assert " training images.\ndata.source.folder" in said
    assert "warning: no weights: planned with random ones of the same shape.\nmodel.weights.file = 'nowhere.safetensors'" in said
    assert plan.phases[0].trained == count(create_backbone("test_resnet", 32)) + 10 * (plan.phases[0].rows[-1].parameters // 10)
    assert "10 classes are assumed.\ndata.source.folder" in texts(planned("data.source={folder: nowhere}"))  # random weights adapt


def test_what_would_stop_the_training_stops_the_plan_and_is_no_missing_image(there: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "there.png")
    (tmp_path / "some.csv").write_text("path,label\nthere.png,cat\ngone.png,dog\n")
    (tmp_path / "none.csv").write_text("path,label\ngone.png,cat\nlost.png,dog\n")
    (tmp_path / "one" / "cat").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    with pytest.raises(DataError, match="has one class only"):
        planned(f"data.source={{folder: {tmp_path / 'one'}}}")
    with pytest.raises(DataError, match="is a file, not a folder"):
        planned(f"data.source={{folder: {tmp_path / 'some.csv'}}}")
    with pytest.raises(DataError, match=r"some.csv:3: the image gone.png does not exist"):
        planned(f"data.source={{csv: {tmp_path / 'some.csv'}}}")
    with pytest.raises(WeightsError, match=r"neither tlkit.json nor"):
        planned(f"model.weights={{run: {tmp_path / 'run'}}}")
    assert "warning: no images: steps" in texts(planned(f"data.source={{csv: {tmp_path / 'none.csv'}}}"))
    assert "warning: no images: steps" in texts(planned(f"data.source={{csv: {tmp_path / 'none.csv'}}}", "data.on_bad=skip"))


def test_a_sound_plan_has_nothing_to_say_but_its_size(plan: Plan, there: Path) -> None:
    said = texts(planned())
    assert said.count("warning") == 1
    assert "parameters on 36 images" in said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.normalize=none", "model.weights=pretrained"], "warning: data.normalize = 'none' feeds the weights"),
        (
            ["data.normalize=dataset", "model.weights=pretrained", "phases=[{train: head, epochs: 1, lr: 0.1}]"],
            "accuracy of 0.834 instead of 0.842: use `normalize: weights`. They were trained with mean 0.5",
        ),
        (["model.weights=pretrained"], "warning: data.image_size = 32 is far from the 160 px that the weights were trained at."),
        (
            ["data.source={folder: uneven}"],
            "classes differ more than 5-fold: blue has 36 training images, green 4. Set `imbalance: loss_weights`",
        ),
        (["data.source={folder: uneven}"], "too few training images to learn a class from: green (4)"),
        (
            ["data.validation=0.01"],
            "warning: data.validation = 0.01 would be 1 of 60 images, and the validation split has 3: each class has",
        ),
        (["data.batch_size=64"], "warning: data.batch_size = 64 is more than the 36 training images: an epoch is one step of 36."),
        (["optimizer.accumulate=9"], "optimizer.accumulate = 9, but an epoch has 5 batches"),
        (
            ["phases=[{train: head, epochs: 1, lr: 0.1}]"],
            "warning: phases[0] trains a head on a backbone that has learned nothing.",
        ),
        (
            ["phases=[{train: all, epochs: 1, lr: 0.1, layer_decay: 0.1}]"],
            "warning: phases[0].layer_decay = 0.1 leaves stem to layer1 a rate of 1.0e-06 or little more.",
        ),
        (["phases=[{train: all, epochs: 1, lr: 0.1, backbone_lr: 1e-4}]"], "backbone_lr = 0.0001 leaves stem to "),
        (
            ["phases=[{train: head, epochs: 1, lr: 0.1}]", "augment=[HorizontalFlip]"],
            "note: phases[0] trains only the head on augmented images",
        ),
    ],
)
def test_what_looks_like_a_slip_is_reported(there: Path, overrides: list[str], said: str) -> None:
    assert said in texts(planned(*overrides))


def test_a_phase_with_adapters_is_beside_all_in_parameters_and_memory(there: Path) -> None:
    phases = "phases=[{train: {lora: {rank: 4}}, epochs: 1, lr: 0.1}]"
    found = planned("model.backbone=test_vit", phases)
    (phase,) = found.phases
    assert phase.beside_all is not None
    everything, memory = phase.beside_all
    backbone = create_backbone("test_vit", 32)
    assert everything == sum(parameter.numel() for parameter in backbone.parameters()) + 64 * 3 + 3
    layers = [module for module in backbone.modules() if isinstance(module, nn.Linear)]
    assert phase.trained == sum(4 * (layer.in_features + layer.out_features) for layer in layers) + 64 * 3 + 3
    assert phase.memory.total < memory.total
    assert f"note: phases[0] trains {phase.trained:,} parameters in " in texts(found)


def test_the_size_without_dense_layers_is_beside_that_with_them(there: Path) -> None:
    # As torchvision's vgg11 has them: 9,220,480 in its convolutions, 119,545,856 in its first two dense layers.
    found = texts(planned("model.backbone=vgg11", "model.features=conv"))
    assert "model.features = 'conv': vgg11 has 9,220,480 parameters below the head, and 128,766,336 with all." in found


def test_what_does_not_fit_into_memory_is_reported(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_device_memory", lambda device: 10_000)
    assert re.search(r"warning: phases\[0\] needs about [\d.]+ MB on each device, which has 10 kB\.", texts(planned()))


TWO_EPOCHS = "phases=[{train: all, epochs: 2, lr: 0.1}]"


def test_decoded_images_have_a_size_and_a_margin_that_exceeds_the_budget_is_named_with_its_place(there: Path) -> None:
    given = [TWO_EPOCHS, "augment=[HorizontalFlip]", "data.image_size=32", "data.margin=1.5"]
    found = planned(*given, "cache.budget_gb=2e-4")
    assert found.samples is not None
    train, val = len(found.samples.of("train")), len(found.samples.of("val"))
    assert found.decoded == (train * 48 * 48 * 3, val * 32 * 32 * 3)  # 32 px x 1.5; validation has no margin
    assert "kB of images on disk of cache.budget_gb 0.0002, training images at data.margin 1.5" in shown(found)
    needed = f"{(train * 48 * 48 + val * 32 * 32) * 3 / 1000:.0f}"
    assert re.search(
        rf"warning: override data\.margin=1\.5: data\.margin = 1\.5 makes {needed} kB of decoded images, and cache\.budget_gb is 0\.0002: "
        r"they are decoded in every epoch\. Lower it to 1\.\d+, or raise cache\.budget_gb\.",
        texts(found),
    )


@pytest.mark.parametrize("budget", ["2.9e-4", "2.4e-4", "2.1e-4"])
def test_the_margin_that_is_named_fits_into_the_budget(there: Path, budget: str) -> None:
    given = [TWO_EPOCHS, "augment=[HorizontalFlip]", "data.source={folder: wide}", "data.resize=crop", f"cache.budget_gb={budget}"]
    named = re.search(r"Lower it to ([\d.]+),", texts(planned(*given, "data.margin=1.5")))
    assert named is not None
    fitting = planned(*given, f"data.margin={named[1]}")
    assert sum(fitting.decoded or ()) <= float(budget) * 1e9
    more = planned(*given, f"data.margin={float(named[1]) + 0.12:g}")  # two steps of two pixels
    assert sum(more.decoded or ()) > float(budget) * 1e9


def test_every_process_of_a_machine_has_decoded_images_of_its_own(there: Path) -> None:
    alone, two, two_machines = (
        planned(TWO_EPOCHS, "trainer.accelerator=cpu", *given)
        for given in ([], ["trainer.devices=2"], ["trainer.devices=2", "trainer.num_nodes=2"])
    )
    assert alone.decoded is not None
    assert two.decoded == two_machines.decoded == tuple(2 * size for size in alone.decoded)


def test_decoded_images_are_left_out_where_no_epoch_needs_them_again(there: Path) -> None:
    frozen = "phases=[{train: {from: layer4}, epochs: 3, lr: 0.1}, {train: all, epochs: 1, lr: 0.1}]"
    assert planned().decoded is None  # one epoch
    assert planned(frozen).decoded is None  # three of cached activations, then one of images


def test_a_head_of_scikit_learn_is_one_line(there: Path) -> None:
    plan = planned("phases=[{train: head, epochs: 1, lr: 0.1}]", "model.head={kind: svm}")
    assert plan.phases == ()
    printed = shown(plan)
    assert "head svm, fitted by scikit-learn on the features" in printed
    assert "phases[0] is not run" in printed


def test_the_plan_fits_a_terminal_of_100_columns(plan: Plan) -> None:
    printed = shown(plan)
    lines = [line.split() for line in printed.splitlines()]
    assert ["layer4", "all", "adapts", "0.05", "0.05", "8,393,728", "8,393,728"] in lines
    assert ["total", "11,178,051", "11,178,051"] in lines
    assert "phase 3/3: all, 3 epochs of 5 steps, about " in printed
    assert "30: 5 in each of 6 epochs" in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_a_step_is_reported_as_devices_times_images_times_batches(plan: Plan) -> None:
    optimizer = plan.recipe.optimizer.model_copy(update={"accumulate": 4})
    printed = shown(replace(plan, devices=2, recipe=plan.recipe.model_copy(update={"optimizer": optimizer})))
    assert "32 images: 2 devices x 4 x 4 batches; batch_size and lr hold for any number of devices" in printed


def test_neighbours_to_which_the_same_happens_share_a_row() -> None:
    def row(name: str, trained: int, lr: float | None) -> StageRow:
        return StageRow(name, 10, trained, "", lr, None if lr is None else 0.05)

    joined = _joined((row("block0", 0, None), row("block1", 0, None), row("block2", 10, 0.1), row("block3", 10, 0.1), row("head", 10, 0.1)))
    assert [(row.name, row.parameters, row.trained) for row in joined] == [
        ("block0 .. block1", 20, 0),
        ("block2 .. block3", 20, 20),
        ("head", 10, 10),
    ]


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "1 s"), (9.6, "10 s"), (99, "99 s"), (600, "10 min"), (7500, "2 h 5 min")])
def test_durations_are_in_the_unit_that_people_use(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_command_prints_a_plan_and_exits_0(there: Path) -> None:
    done = warm.run("plan", "recipe.yaml", *SMALL, cwd=Path.cwd(), env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "phase 1/1: all, 1 epoch of 5 steps, about " in done.stdout


def test_a_plan_into_a_pipe_is_the_plan_and_nothing_of_its_trials(there: Path) -> None:
    phases = "phases=[{train: head, epochs: 1, lr: 0.1}, {train: head, solver: lbfgs}, {train: all, epochs: 1, lr: 0.1}]"
    done = warm.run("plan", "recipe.yaml", *SMALL, phases, cwd=Path.cwd(), env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["colours: loading torch, then looking for images and weights"]
    assert not re.search(r"cached|epoch 1|\d%\||█|━", done.stdout)


def test_16_bit_images_that_hardly_use_their_range_are_a_warning(plan: Plan, tmp_path: Path) -> None:
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(tmp_path / "a.png")
    images = (Sample("a.png", tmp_path / "a.png", (0,), "train"),)
    text = texts(replace(plan, samples=Samples(("a",), images)))
    assert "data.range_16bit=[0, 4095] fits" in text


@pytest.mark.usefixtures("there")
def test_a_size_that_the_backbone_cannot_take_is_a_fault_with_its_line_and_a_border_that_it_does_not_see_a_warning() -> None:
    Path("odd.yaml").write_text(RECIPE.replace("image_size: 32", "image_size: 33"))
    for file, changed, place in (("odd.yaml", [], "odd.yaml:3"), ("recipe.yaml", ["data.image_size=33"], "override data.image_size=33")):
        expected = f"{place}: data.image_size = 33 can't be used with test_vit.\n  Sizes near it that work: 32 or 48."
        with pytest.raises(RecipeError, match=re.escape(expected)):
            make_plan(load_recipe(file, ["model.backbone=test_vit", *changed]))
    border = "warning: data.image_size = 33 leaves 1 px at the right and the bottom of every image unseen: test_convnext looks at patches"
    assert f"{border} of 4 px. Use 32 or 36." in texts(planned("model.backbone=test_convnext", "data.image_size=33"))
