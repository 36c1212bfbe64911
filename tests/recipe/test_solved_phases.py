"""Heads without gradients: phases with a solver, and classical heads, which need no phases."""

from pathlib import Path

import pytest

from tests.recipe.trial import SOUND, faults_of, only_fault, with_override, write
from tlkit.recipe.fields.phases import SolvedPhase
from tlkit.recipe.load import load_recipe, recipe_yaml

SOLVED = "phases[0]={train: head, solver: lbfgs"


def test_a_phase_with_a_solver_needs_no_epochs_and_no_lr_and_survives_the_round_trip(tmp_path: Path) -> None:
    recipe = with_override(tmp_path, SOLVED + "}", "wise_ft=true")
    assert isinstance(recipe.phases[0], SolvedPhase)
    assert recipe.phases[0].weight_decay is None
    assert (list(recipe.run_phases), list(recipe.gradient_phases)) == ([0, 1], [1])
    again = load_recipe(write(tmp_path, recipe_yaml(recipe)))
    assert again.model_dump() == recipe.model_dump()


@pytest.mark.parametrize(
    ("overrides", "key", "problem", "fix"),
    [
        (
            [SOLVED + ", epochs: 3}"],
            "phases[0].epochs",
            "can't stand beside phases[0].solver.",
            "Remove one of the two. With solver, expected",
        ),
        (
            [SOLVED + "}", "phases[0].lr=1"],
            "phases[0].lr",
            "can't stand beside phases[0].solver.",
            "keys train, solver and if needed weight",
        ),
        (
            [SOLVED + ", batchnorm: frozen}"],
            "phases[0].batchnorm",
            "is not a key of phases[0].",
            "Expected one of: train, solver, weight_d",
        ),
        ([SOLVED + "}", "phases[0].train=all"], "phases[0].train", "can't be solved", "Set it to head, or give epochs and lr in place of"),
        ([SOLVED + "}", "phases[0].train={from: layer4}"], "phases[0].train", "can't be solved", "Set it to head, or give epochs and lr"),
        ([SOLVED + "}", "phases[0].train=haed"], "phases[0].train", "= 'haed' can't be used.", "Did you mean 'head'?"),
        ([SOLVED + "}", "phases[0].solver=lbgfs"], "phases[0].solver", "= 'lbgfs' can't be used.", "Did you mean 'lbfgs'?"),
        ([SOLVED + ", weight_decay: 0}"], "phases[0].weight_decay", "= 0 is out of range.", "Expected a number above 0"),
        (["phases[1].weight_decay=1"], "phases[1].weight_decay", "is not a key of phases[1].", "Expected one of: train, epochs, lr"),
        (
            [SOLVED + "}", "model.head={kind: mlp}"],
            "model.head.kind",
            "= 'mlp', but phases[0].solver finds a linear head.",
            "Set it to line",
        ),
        (
            [SOLVED + "}", "imbalance=sampler"],
            "imbalance",
            "= 'sampler' draws images by chance",
            "Set it to loss_weights or logit_adjust",
        ),
    ],
)
def test_what_does_not_fit_a_solved_phase_is_one_fault(overrides: list[str], key: str, problem: str, fix: str, tmp_path: Path) -> None:
    fault = only_fault(write(tmp_path, SOUND), *overrides)
    assert fault.key == key
    assert problem in fault.problem
    assert fix in fault.fix
    assert fault.place == f"override {overrides[-1]}"


def test_a_solver_put_on_a_phase_of_the_file_names_the_lines_of_what_has_to_go(tmp_path: Path) -> None:
    path = write(tmp_path, SOUND)
    assert [(fault.place, fault.key) for fault in faults_of(path, "phases[0].solver=lbfgs")] == [
        (f"{path}:7", "phases[0].epochs"),
        (f"{path}:7", "phases[0].lr"),
    ]


def test_a_misspelt_solver_is_reported(tmp_path: Path) -> None:
    faults = faults_of(write(tmp_path, SOUND), "phases[0]={train: head, solvr: lbfgs}")
    assert "Did you mean 'solver'?" in next(fault.fix for fault in faults if fault.key == "phases[0].solvr")


def test_a_classical_head_needs_no_phases(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, SOUND), ["model.head={kind: knn}", "phases=[]"]).phases == ()


@pytest.mark.parametrize("other", ["mix={mixup: 0.2}", "wise_ft=true", "imbalance=sampler"])
def test_what_needs_gradients_has_no_place_beside_a_classical_head(other: str, tmp_path: Path) -> None:
    fault = only_fault(write(tmp_path, SOUND), "model.head={kind: svm}", other)
    assert fault.key == other.partition("=")[0]
    assert "has no place here: scikit-learn fits a svm head" in fault.problem
