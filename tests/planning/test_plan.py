"""The plan says what training does: counts from torchvision, rates and bytes by hand, steps from Lightning."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from torchvision.models import resnet18

from tests.planning.colours import RECIPE, SMALL, count, planned, shown
from tlkit.data.datamodule import ImageDataModule
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Sample, Samples
from tlkit.data.splits.holdout import split_samples
from tlkit.errors import RecipeError, RunError
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.planning import plan as planning
from tlkit.planning.plan import Plan, make_plan, steps_an_epoch
from tlkit.planning.stages import StageRow
from tlkit.planning.timing import HEAT_MAP, IMAGE_S, IMPORT_S, IMPORTS_S, RESULTS_S, SolvedTiming, Timing
from tlkit.planning.trial import try_phase, unchanged
from tlkit.recipe.fields.model import Head
from tlkit.recipe.fields.trust import UnknownScoreName
from tlkit.recipe.load import load_recipe
from tlkit.recipe.schema import Recipe
from tlkit.training.specs import Learning, phase_specs


def rows(plan: Plan, phase: int) -> dict[str, StageRow]:
    return {row.name: row for row in plan.phases[phase].rows}


def test_every_stage_has_the_parameters_of_torchvisions_resnet18(plan: Plan) -> None:
    theirs = resnet18(num_classes=3)
    expected = {
        "stem": count(theirs.conv1, theirs.bn1),
        **{name: count(getattr(theirs, name)) for name in ("layer1", "layer2", "layer3", "layer4")},
        "head": 512 * 3 + 3,
    }
    for phase in range(3):
        assert {name: row.parameters for name, row in rows(plan, phase).items()} == expected
    assert rows(plan, 1)["layer2"].trained == 0
    assert plan.phases[0].trained == 1539
    assert plan.phases[1].trained == expected["layer3"] + expected["layer4"] + 1539
    assert plan.phases[2].trained == count(theirs)


def test_rates_are_those_of_backbone_lr_and_layer_decay(plan: Plan) -> None:
    assert {name: row.lr for name, row in rows(plan, 0).items() if row.lr} == {"head": 0.1}
    assert {name: row.lr for name, row in rows(plan, 1).items() if row.lr} == pytest.approx({"layer3": 0.01, "layer4": 0.01, "head": 0.1})
    halved = {"stem": 0.1 / 32, "layer1": 0.1 / 16, "layer2": 0.0125, "layer3": 0.025, "layer4": 0.05, "head": 0.1}
    assert {name: row.lr for name, row in rows(plan, 2).items()} == pytest.approx(halved)
    assert {row.weight_decay for row in rows(plan, 2).values()} == {0.05}
    assert rows(plan, 0)["layer4"].weight_decay is None


def test_batch_norm_is_held_where_it_is_frozen_or_reported_to_be(plan: Plan) -> None:
    for phase, policy in ((0, "held"), (1, "held"), (2, "adapts")):
        assert {row.batchnorm for row in plan.phases[phase].rows} == {policy, ""}
        assert rows(plan, phase)["head"].batchnorm == ""


def test_adamw_keeps_two_numbers_for_every_trained_parameter(plan: Plan) -> None:
    # And a step counter of four bytes for each of resnet18's 62 tensors: 20 convolutions, 20 norms with scale and shift, the head's two.
    assert plan.phases[0].memory.optimizer == 2 * 4 * 1539 + 4 * 2
    assert plan.phases[2].memory.optimizer == 2 * 4 * plan.phases[2].trained + 4 * 62


def test_weights_and_gradients_take_four_bytes_a_number(plan: Plan) -> None:
    # Means and variances of 4,800 batch-norm channels, 20 counters of eight bytes, and the mean and std of the images' 3 channels.
    assert plan.phases[0].memory.weights == 4 * count(resnet18(num_classes=3)) + 4 * 2 * 4800 + 8 * 20 + 4 * 2 * 3
    assert plan.phases[0].memory.gradients == 4 * 1539
    assert plan.phases[2].memory.gradients == 4 * count(resnet18(num_classes=3))


def test_activations_of_a_head_alone_are_its_features_and_its_loss(plan: Plan) -> None:
    # For each of 8 images: 512 features, 3 log-probabilities, a label of eight bytes; and the sum of the loss's weights.
    assert plan.phases[0].memory.activations == 8 * (4 * 512 + 4 * 3 + 8) + 4
    assert plan.phases[0].memory.activations < plan.phases[1].memory.activations < plan.phases[2].memory.activations
    assert plan.largest is plan.phases[2]


@pytest.mark.parametrize(("optimizer", "numbers"), [("sgd", 0), ("momentum", 1), ("adamw", 2), ("lion", 1)])
def test_optimizers_differ_in_what_they_keep(there: Path, optimizer: str, numbers: int) -> None:
    phase = planned(f"optimizer.name={optimizer}").phases[0]
    assert phase.memory.optimizer == pytest.approx(4 * numbers * phase.trained, rel=0.02)


@pytest.mark.parametrize(("overrides", "copies"), [([], 0), (["ema={}"], 1), (["ema={}", "loss.l2_sp=0.1"], 2)])
def test_a_moving_average_and_l2_sp_keep_a_second_set_of_weights_each(there: Path, overrides: list[str], copies: int) -> None:
    memory = planned(*overrides).phases[0].memory
    assert memory.copies == copies * memory.weights


def test_l2_sp_takes_the_place_of_the_backbones_weight_decay(there: Path) -> None:
    decays = {row.name: row.weight_decay for row in planned("loss.l2_sp=0.1").phases[0].rows}
    assert decays == {**dict.fromkeys(decays, 0.0), "head": 0.05}


class CountSteps(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps = trainer.global_step


@pytest.mark.parametrize(("batch_size", "accumulate", "steps"), [(8, 1, 5), (8, 2, 3), (5, 1, 7), (64, 1, 1), (8, 9, 1)])
def test_steps_are_those_that_lightning_takes(there: Path, batch_size: int, accumulate: int, steps: int) -> None:
    # 36 training images: batches of 8, 8, 8, 8, 4; in batches of 5 the one that is left over is left out.
    recipe = load_recipe("recipe.yaml", [*SMALL, f"data.batch_size={batch_size}", f"optimizer.accumulate={accumulate}"])
    counter = CountSteps()
    trial(recipe, counter, max_epochs=1)
    assert steps_an_epoch(recipe, 36, 1) == counter.steps == steps


def test_several_devices_share_a_batch(there: Path) -> None:
    # 36 images on 2 devices: 18 each, in batches of 4: 5.
    assert steps_an_epoch(load_recipe("recipe.yaml"), 36, 2) == 5


def trial(recipe: Recipe, callback: Callback, **limits: int) -> Classifier:
    from tlkit.data.sources.read import read_source

    samples = split_samples(read_source(recipe.data.source, Path("data"), recipe.task), 0.2, 0.2, 0)
    classifier = Classifier(create_backbone(recipe.model.backbone, 32), Head(), 3, 32)
    preprocessing = Preprocessing(32, "stretch", 1.0, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    data = ImageDataModule(samples, preprocessing, batch_size=recipe.data.batch_size, workers=0)
    everything = frozenset(name for name, _ in classifier.backbone.named_parameters())
    spec, *_ = phase_specs(recipe, [everything] * len(recipe.phases), len(samples.of("train")))
    try_phase(classifier, data, Learning.of(recipe), spec, callback=callback, limit_val_batches=0, **limits)
    return classifier


def test_changes_to_the_classifier_are_found_out() -> None:
    classifier = Classifier(create_backbone("test_resnet", 32), Head(), 3, 32)
    with pytest.raises(RunError, match="changed what it must not: weights"), unchanged(classifier):
        next(classifier.parameters()).data.add_(1)


def test_a_stage_that_the_backbone_does_not_have_is_named_with_its_line(there: Path) -> None:
    (there / "slip.yaml").write_text(RECIPE.replace("from: layer3", "from: layr3"))
    with pytest.raises(RecipeError) as raised:
        make_plan(load_recipe("slip.yaml"))
    assert str(raised.value) == (
        "slip.yaml:7: phases[1].train.from = 'layr3' is not a stage of resnet18.\n"
        "  Expected one of: stem, layer1, layer2, layer3, layer4. Did you mean 'layer3'?"
    )


def test_batch_norm_on_one_image_is_refused_as_in_training(there: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"data.batch_size = 1: batch-norm needs two or more images .*\n  .* phases\[0\].batchnorm to frozen"
    ):
        planned("data.batch_size=1")


def test_the_time_of_a_phase_is_that_of_its_cache_once_and_of_its_epochs() -> None:
    """By hand: 10 training and 4 validation images, three epochs of which the first loads at 2 s an image and the others at 0.5 s."""
    recipe = load_recipe("quickstart", ["phases=[{train: head, epochs: 3, lr: 0.1}]", "data.workers=0"])
    images = tuple(Sample(str(i), Path("x.png"), (0,), "train" if i < 10 else "val") for i in range(14))
    samples, phase = Samples(("a",), images), recipe.gradient_phases[0]
    timing = Timing(once=1.0, first=2.0, later=0.5, step=3.0, validate=1.0, is_cached=True)
    # 14 x 1 once; 10 x (2 + 3) + 4 x (1 + 2) in the first epoch; 10 x (0.5 + 3) + 4 x (1 + 0.5) in each of the others.
    assert timing.seconds(recipe, samples, phase, devices=1, is_new=True) == 14 + 62 + 2 * 41
    assert timing.seconds(recipe, samples, phase, devices=1, is_new=False) == 3 * 41
    assert timing.seconds(recipe, samples, phase, devices=2, is_new=False) == 3 * 41 / 2
    # Two workers load side by side, while the network works.
    working = recipe.model_copy(update={"data": recipe.data.model_copy(update={"workers": 2})})
    live = replace(timing, is_cached=False, once=0.0)
    assert live.seconds(working, samples, phase, devices=1, is_new=False) == 3 * (10 * 3 + 4 * (1 + 0.25))


@pytest.mark.parametrize(
    ("before", "again"),
    [
        # Everything before the head is as pretrained: its activations are those of the first fold.
        ((), 4 * 0.5),
        # Layer 4 was trained differently in each fold, and is frozen now: 14 x 1 again, and 4 x (2 + 0) + 10 x (2 + 0) in the first epoch.
        (({"layer4.weight"},), 14 * 1 + 14 * 2),
    ],
)
def test_a_further_fold_finds_in_the_cache_what_does_not_depend_on_the_fold(plan: Plan, before: tuple[set[str], ...], again: float) -> None:
    """By hand: 10 training and 4 validation images of one epoch, 1 s each to compute once and 2 s to load first."""
    recipe = load_recipe("quickstart", ["phases=[{train: head, epochs: 1, lr: 0.1}]", "data.workers=0"])
    images = tuple(Sample(str(i), Path("x.png"), (0,), "train" if i < 10 else "val") for i in range(14))
    later = 0.5 * 4 / 14
    timing = Timing(once=1.0, first=2.0, later=later, step=0.0, validate=0.0, is_cached=True)
    phase = replace(plan.phases[0], number=len(before), phase=recipe.gradient_phases[0], timing=timing)
    trained = [*(frozenset(names) for names in before), frozenset[str]()]
    (timed,) = planning.with_seconds([phase], recipe, Samples(("a",), images), trained, sharing=1)
    assert timed.seconds == 14 * 1 + 14 * 2
    assert timed.again == pytest.approx(again)
    folds = replace(plan, recipe=recipe.model_copy(update={"data": recipe.data.model_copy(update={"folds": 3})}), phases=(timed,))
    folds = replace(folds, seconds_around=5.0, seconds_once=3.0)
    assert folds.seconds_of_folds == pytest.approx(5 + 42 + 2 * (2 + again))


@pytest.mark.usefixtures("there")
def test_a_run_of_two_processes_takes_as_long_as_the_second_needs_to_begin_besides() -> None:
    processes = "trainer={accelerator: cpu, devices: 2, strategy: ddp}"
    alone, two, slow = planned(), planned(processes), make_plan(load_recipe("recipe.yaml", [*SMALL, processes]), import_s=2 * IMPORT_S)
    assert (alone.devices, two.devices) == (1, 2)
    assert alone.seconds_once == IMPORTS_S  # each fold lists its images and builds its network
    # By more than what it imports: it also lists the images and builds the network.
    assert two.seconds_once > IMPORT_S + IMPORTS_S
    assert slow.seconds_once > 2 * (IMPORT_S + IMPORTS_S)


@pytest.mark.parametrize(
    ("counts", "unknown", "is_cached", "answered", "thumbnails", "heat_maps"),
    [
        ((10, 20, 5), "knn", False, 5 + 20 + 10, 5, 5),  # the test and validation images, and training images to know unlike ones by
        ((10, 20, 5), "off", False, 5 + 20, 5, 5),
        ((10, 19, 5), "knn", False, 5 + 19, 5, 5),  # too few to tell a threshold
        ((10, 20, 5), "knn", True, 5, 5, 5),
        # 50 training images of a class, 400 thumbnails, and heat maps of the 12 worst answers and of one image of each of 8 classes.
        ((60, 20, 500), "knn", False, 500 + 20 + 50, 400, 12 + 8),
        ((10, 30, 0), "off", False, 30, 30, 12 + 8),  # without a test split the page shows validation
    ],
)
def test_the_time_of_results_is_that_of_every_image_that_is_answered_and_drawn(
    counts: tuple[int, int, int], unknown: UnknownScoreName, is_cached: bool, answered: int, thumbnails: int, heat_maps: int
) -> None:
    """By hand: images of training, validation and test; 2 s to decode one, 1 s to classify it, and 0.25 s to check each."""
    splits = [split for split, count in zip(("train", "val", "test"), counts, strict=True) for _ in range(count)]
    samples = Samples(("a",), tuple(Sample(str(i), Path("x.png"), (0,), split) for i, split in enumerate(splits)))
    timing = Timing(once=3.0 if is_cached else 0.0, first=2.0, later=0.5, step=3.0, validate=1.0, is_cached=is_cached)
    found = planning.seconds_of_results([timing], samples, check=0.25, unknown=unknown, slowness=2.0)
    assert found == pytest.approx(2 * (RESULTS_S + thumbnails * IMAGE_S) + 0.25 * len(splits) + 3 * (answered + heat_maps * HEAT_MAP))


def test_a_phase_whose_frozen_part_is_cached_is_timed_so(there: Path) -> None:
    cached = planned("phases=[{train: head, epochs: 1, lr: 0.1}]", "cache.use=true").phases[0]
    live = planned("phases=[{train: head, epochs: 1, lr: 0.1}]", "cache.use=false").phases[0]
    assert cached.timing is not None
    assert live.timing is not None
    assert (cached.timing.is_cached, live.timing.is_cached, live.timing.once) == (True, False, 0.0)
    assert not list(Path(os.environ["TLKIT_CACHE"]).glob("activations/*.writing"))


def test_a_solved_phase_is_timed_and_computes_features_that_no_phase_before_it_has_cached(there: Path) -> None:
    images = tuple(Sample(str(i), Path("x.png"), (0,), "train" if i < 10 else "val") for i in range(14))
    timing, samples = SolvedTiming(first=1.0, once=2.0, solve=5.0), Samples(("a",), images)
    assert timing.seconds(samples, is_new=True) == 14 * 2 + 5
    assert timing.seconds(samples, is_new=False) == 5
    plan = planned("phases=[{train: head, epochs: 1, lr: 0.1}, {train: head, solver: lbfgs}]", "data.folds=3", "data.validation=0.1")
    assert [phase.timing.is_cached for phase in plan.phases if phase.timing] == [True]
    assert plan.solved[1] > 0
    assert plan.seconds > plan.solved[1] + plan.seconds_around
    assert plan.solved_again == plan.solved[1]  # the phase before it has cached the features
    assert "solved by L-BFGS on the features, about" in shown(plan)
    assert ", 3 times: " in shown(plan)
