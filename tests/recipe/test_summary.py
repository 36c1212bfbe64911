"""What `tlkit check` says of a sound recipe."""

import pytest

from tlkit.recipe.load import load_recipe
from tlkit.recipe.summary import recipe_notes, recipe_summary


def notes(*overrides: str) -> list[str]:
    return recipe_notes(load_recipe("quickstart", overrides))


def test_a_usual_recipe_has_no_notes() -> None:
    assert notes() == []


def test_a_margin_without_augment_does_nothing() -> None:
    (note,) = notes("data.margin=1.25", "augment=[]")
    assert note.startswith("data.margin = 1.25 does nothing: augment is empty")
    assert notes("data.margin=1.25") == []


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
