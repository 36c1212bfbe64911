"""What `tlkit check` says of a sound recipe."""

from pathlib import Path

import pytest

from tlkit.recipe.load import load_recipe, recipe_yaml
from tlkit.recipe.summary import recipe_notes, recipe_summary
from tlkit.system import bundled_recipes


def notes(*overrides: str) -> list[str]:
    return recipe_notes(load_recipe("quickstart", overrides))


def test_a_usual_recipe_has_no_notes() -> None:
    assert notes() == []


def test_a_margin_without_augment_does_nothing() -> None:
    (note,) = notes("data.margin=1.25", "augment=[]")
    assert note.startswith("data.margin = 1.25 does nothing: augment is empty")
    assert notes("data.margin=1.25") == []


SVM_ALONE = ("model.head={kind: svm}", "phases=[]", "augment=[]")


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["schedule.factor=0.1"], "schedule.factor = 0.1 does nothing: schedule.name is cosine, and it is for step, plateau."),
        (["schedule={name: plateau, every: 0.5}"], "schedule.every = 0.5 does nothing: schedule.name is plateau"),
        (["schedule={name: step, patience: 3}"], "schedule.patience = 3 does nothing"),
        (["optimizer.momentum=0.9"], "optimizer.momentum = 0.9 does nothing: optimizer.name is adamw"),
        (["phases[0].batchnorm=adapt"], "phases[0].batchnorm = 'adapt' does nothing: only the head trains"),
        (["cache.views=8", "augment=[]"], "cache.views = 8 does nothing: augment is empty."),
        (["cache={views: 8, use: false}"], "cache.views = 8 does nothing: cache.use is false."),
        ([*SVM_ALONE, "ema={decay: 0.9}"], "ema does nothing: no phase trains by gradients."),
        (
            [*SVM_ALONE, "early_stopping={patience: 1}", "loss={label_smoothing: 0.1, l2_sp: 0.1}"],
            "early_stopping, loss.l2_sp, loss.label_smoothing do nothing",
        ),
    ],
)
def test_a_key_that_does_nothing_is_named(overrides: list[str], start: str) -> None:
    (note,) = notes(*overrides)
    assert note.startswith(start)


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule={name: step, factor: 0.1, every: 0.5}"],
        ["schedule={name: plateau, factor: 0.1, patience: 1}"],
        ["optimizer={name: rmsprop, momentum: 0.9}"],
        ["optimizer.momentum=0.9", "search={optimizer.name: {choice: [adamw, momentum]}}"],
        ["phases[1].batchnorm=adapt"],
        ["cache.views=8"],
        ["ema={decay: 0.9}", "early_stopping={patience: 1}", "loss={l2_sp: 0.1}", "model.head={kind: svm}"],
    ],
)
def test_a_key_that_does_something_is_not(overrides: list[str]) -> None:
    assert notes(*overrides) == []


def test_no_default_that_tlkit_wrote_out_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(load_recipe("quickstart")))
    assert recipe_notes(load_recipe(tmp_path / "recipe.yaml")) == []
    (note,) = recipe_notes(load_recipe(tmp_path / "recipe.yaml", ["schedule.factor=0.5"]))
    assert note.startswith("schedule.factor = 0.5 does nothing")


@pytest.mark.parametrize("name", bundled_recipes())
def test_no_recipe_that_ships_has_a_key_that_does_nothing(name: str) -> None:
    assert not [note for note in recipe_notes(load_recipe(name)) if "nothing" in note]


def test_a_knn_head_is_reported_to_stay_at_home() -> None:
    (note,) = notes("model.head={kind: knn}")
    assert "it can't be exported" in note


@pytest.mark.parametrize(("phases", "skipped"), [("[]", 0), ("[{train: head, epochs: 1, lr: 1}]", 1)])
def test_what_scikit_learn_takes_over_is_reported(phases: str, skipped: int) -> None:
    found = notes("model.head={kind: svm}", f"phases={phases}")
    assert sum("is not run" in note for note in found) == skipped
    assert sum("augment is not used" in note for note in found) == 1


def test_a_head_phase_before_fine_tuning_is_run_for_a_classical_head_too() -> None:
    recipe = load_recipe("quickstart", ["model.head={kind: svm}"])
    assert list(recipe.gradient_phases) == [0, 1]
    assert notes("model.head={kind: svm}") == []


def test_what_a_solved_phase_does_without_is_reported() -> None:
    (note,) = notes("phases[0]={train: head, solver: lbfgs}")
    assert note == "phases[0] is solved on training images without augment or head dropout."
    assert notes("phases[0]={train: head, solver: lbfgs}", "augment=[]", "model.head.dropout=0") == []


def test_the_summary_has_a_line_for_a_solved_phase() -> None:
    line = "phases[0]  train head, solved by L-BFGS on the features, weight_decay"
    assert f"{line} chosen on validation" in recipe_summary(load_recipe("quickstart", ["phases[0]={train: head, solver: lbfgs}"]))
    solved = "phases[0]={train: head, solver: lbfgs, weight_decay: 0.1}"
    assert f"{line} 0.1" in recipe_summary(load_recipe("quickstart", [solved]))


def test_the_summary_names_what_a_phase_does_otherwise_than_by_default() -> None:
    phase = "phases[1]={train: {last: 2}, epochs: 3, lr: 1e-4, layer_decay: 0.75, batchnorm: frozen}"
    assert "phases[1]  train last 2, 3 epochs, lr 0.0001, layer_decay 0.75, batchnorm frozen\n" in recipe_summary(
        load_recipe("quickstart", [phase])
    )
    assert "lr 0.0002, backbone_lr 0.1, batchnorm frozen\n" in recipe_summary(load_recipe("quickstart", ["phases[1].backbone_lr=0.1"]))


def test_the_summary_names_head_and_pooling() -> None:
    assert "head svm, fitted by scikit-learn, pool max" in recipe_summary(load_recipe("quickstart", ["model.head={kind: svm, pool: max}"]))


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ("{name: cosine}", "cosine lr, warmup 0.1 beyond the head\n"),
        ("{name: step, warmup: 0}", "step lr, warmup 0\n"),
        ("{name: one_cycle}", "one_cycle lr\n"),
    ],
)
def test_the_warm_up_is_there_also_where_the_recipe_names_none(schedule: str, words: str) -> None:
    assert words in recipe_summary(load_recipe("quickstart", [f"schedule={schedule}"]))


def test_a_head_alone_is_not_said_to_warm_up() -> None:
    head = "phases=[{train: head, epochs: 2, lr: 3e-3}]"
    assert "; cosine lr\n" in recipe_summary(load_recipe("quickstart", ["schedule={name: cosine}", head]))
