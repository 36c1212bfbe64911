"""A solved head: scikit-learn's solution of the same problem, at the place where the next phase goes on."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests import warm
from tlkit.data.samples import Sample, Samples
from tlkit.errors import TlkitError
from tlkit.evaluation.evaluate import evaluate
from tlkit.planning.lr_range import check_has_rate
from tlkit.planning.plan_table import show_plan
from tlkit.recipe.fields.learning import Loss
from tlkit.recipe.load import load_recipe
from tlkit.recipe.schema import Imbalance
from tlkit.training.closed_form import solve as solving
from tlkit.training.closed_form.solve import WEIGHT_DECAYS, Regression, solve
from tlkit.training.finetune import run_recipe
from tlkit.training.objective.losses import build_criterion

N, F = 120, 6


def features() -> tuple[np.ndarray, np.ndarray]:
    """Of very different sizes, as a backbone has them, the last dead; and labels of four classes, of which one is rare."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(4, F))
    labels = random.choice(4, N, p=[0.4, 0.3, 0.2, 0.1])
    found = (centres[labels] + random.normal(size=(N, F))) * [1, 10, 100, 1, 0.1, 0] + 7
    return found.astype(np.float32), labels


def standardised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The features, their means, and what they are divided by: their standard deviations, at least 0.3 of the upper quartile of all."""
    mean, deviation = x.astype(float).mean(0), x.astype(float).std(0)
    scale = np.maximum(deviation, 0.3 * np.quantile(deviation, 0.75))
    return (x - mean) / scale, mean, scale


def samples_of(labels: np.ndarray) -> Samples:
    """labels: [N], or for multilabel [N, K]."""
    several = labels.ndim == 2
    sets = [tuple(np.flatnonzero(row).tolist()) if several else (int(row),) for row in labels]
    samples = tuple(Sample(str(i), Path(), those, "train") for i, those in enumerate(sets))
    return Samples(tuple("abcd"), samples, "multilabel" if several else "multiclass")


def solved(labels: np.ndarray, weight_decay: float, *, loss: Loss = Loss(), imbalance: Imbalance = "none") -> tuple[Tensor, Regression]:  # noqa: B008
    """The layer's logits of the training images, [N, K]."""
    train = torch.tensor(features()[0]), torch.tensor(labels)
    samples = samples_of(labels)
    regression = Regression(train, build_criterion(loss, imbalance, samples), 4)
    return solve(regression, train, samples, (weight_decay,), title="")(train[0]).detach(), regression


def test_probabilities_are_scikit_learns() -> None:
    x, labels = features()
    x = standardised(x)[0]
    theirs = LogisticRegression(C=1 / (N * 0.01), tol=1e-10, max_iter=10_000).fit(x, labels)
    logits, _ = solved(labels, 0.01)
    np.testing.assert_allclose(logits.softmax(1).numpy(), theirs.predict_proba(x), atol=1e-4)


def test_weights_are_scikit_learns_with_the_standardisation_folded_in() -> None:
    x, labels = features()
    features_, mean, scale = standardised(x)
    theirs = LogisticRegression(C=1 / (N * 0.01), tol=1e-10, max_iter=10_000).fit(features_, labels)
    train = torch.tensor(x), torch.tensor(labels)
    layer = solve(Regression(train, nn.CrossEntropyLoss(), 4), train, samples_of(labels), (0.01,), title="")
    np.testing.assert_allclose(layer.weight.detach().numpy() * scale, theirs.coef_, atol=1e-4)
    # A bias more for all classes changes nothing.
    bias = (layer.weight.detach().numpy() @ mean + layer.bias.detach().numpy()).astype(float)
    np.testing.assert_allclose(bias - bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=1e-4)


def test_loss_weights_are_scikit_learns_balanced_class_weights() -> None:
    x, labels = features()
    x = standardised(x)[0]
    weights = dict(enumerate(compute_class_weight("balanced", classes=np.arange(4), y=labels)))
    theirs = LogisticRegression(C=1 / (N * 0.01), tol=1e-10, max_iter=10_000, class_weight=weights).fit(x, labels)
    logits, _ = solved(labels, 0.01, imbalance="loss_weights")
    np.testing.assert_allclose(logits.softmax(1).numpy(), theirs.predict_proba(x), atol=1e-4)


def test_several_labels_are_scikit_learns_binary_regressions() -> None:
    x, labels = features()
    hot = np.stack([labels == 0, labels != 1, labels > 1, labels % 2 == 0], axis=1).astype(np.float32)
    x = standardised(x)[0]
    logits, _ = solved(hot, 0.01)
    for k in range(4):
        # The mean over N * K answers leaves each class a quarter of its own mean loss.
        theirs = LogisticRegression(C=1 / (4 * N * 0.01), tol=1e-10, max_iter=10_000).fit(x, hot[:, k])
        np.testing.assert_allclose(logits[:, k].sigmoid().numpy(), theirs.predict_proba(x)[:, 1], atol=1e-4)


def test_the_gradient_is_that_of_the_whole_split_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    _, labels = features()
    _, regression = solved(labels, 0.1, loss=Loss(label_smoothing=0.1), imbalance="logit_adjust")
    point = np.random.default_rng(1).normal(size=4 * F + 4)
    whole = regression.loss_and_gradient(point, 0.1)
    monkeypatch.setattr(solving, "CHUNK", 50)
    chunked = regression.loss_and_gradient(point, 0.1)
    assert chunked[0] == pytest.approx(whole[0], rel=1e-12)
    np.testing.assert_allclose(chunked[1], whole[1], atol=1e-12)
    assert np.abs(regression.loss_and_gradient(regression.minimum(point, 0.1, 1e-6), 0.1)[1]).max() <= 1e-6


def test_smoothing_and_log_priors_are_part_of_the_loss() -> None:
    x, labels = features()
    _, regression = solved(labels, 0.1, loss=Loss(label_smoothing=0.1), imbalance="logit_adjust")
    point = np.random.default_rng(1).normal(size=4 * F + 4)
    weight, bias = torch.tensor(point[: 4 * F]).view(4, F), torch.tensor(point[4 * F :])
    logits = torch.tensor(standardised(x)[0]) @ weight.T + bias
    priors = torch.tensor(np.bincount(labels) / N).log()
    expected = cross_entropy(logits + priors, torch.tensor(labels), label_smoothing=0.1) + 0.05 * weight.square().sum()
    assert regression.loss_and_gradient(point, 0.1)[0] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("imbalance", ["none", "loss_weights"])
def test_the_weight_decay_with_the_lowest_criterion_on_validation_is_taken(imbalance: Imbalance) -> None:
    x, labels = features()
    parts = [(torch.tensor(x[part]), torch.tensor(labels[part])) for part in (slice(0, N // 2), slice(N // 2, N))]
    (train, val), samples = parts, samples_of(labels[: N // 2])
    criterion = build_criterion(Loss(), imbalance, samples)
    regression = Regression(train, criterion, 4)
    one_by_one = [solve(regression, val, samples, (weight_decay,), title="")(val[0]).detach() for weight_decay in WEIGHT_DECAYS]
    weights = compute_class_weight("balanced", classes=np.arange(4), y=labels[: N // 2]) if imbalance == "loss_weights" else np.ones(4)
    # Class weights as scikit-learn has them: the mean over images of weight times cross-entropy.
    losses = [float((torch.tensor(weights)[val[1]] * cross_entropy(logits, val[1], reduction="none")).mean()) for logits in one_by_one]
    chosen = solve(regression, val, samples, WEIGHT_DECAYS, title="")(val[0]).detach()
    torch.testing.assert_close(chosen, one_by_one[losses.index(min(losses))], atol=1e-3, rtol=1e-3)


def test_an_image_is_not_classified_by_one_feature_that_was_nearly_constant_in_training() -> None:
    x, labels = features()
    x = x / x.std(0).clip(1e-9)
    nearly = np.where(np.arange(N) == np.flatnonzero(labels == 0)[0], 1e-3, 0.0)  # a thousandth in one image of class 0
    train = torch.tensor(np.column_stack([x, nearly]), dtype=torch.float32), torch.tensor(labels)
    layer = solve(Regression(train, nn.CrossEntropyLoss(), 4), train, samples_of(labels), (0.01,), title="")
    with torch.no_grad():
        usual, once = layer(train[0][:1]), layer(torch.cat([train[0][:1, :-1], torch.ones(1, 1)], 1))
    # The feature is 1, as large as others are: with scikit-learn's own scaling the logits move by hundreds.
    assert (usual - once).abs().max() < 0.1


# --- from end to end ---

RECIPE = """
name: colours
data: {source: {folder: pictures}, image_size: 32, resize: stretch, normalize: dataset, batch_size: 8, validation: 0.2, test: 0.2}
augment: [HorizontalFlip: {p: 0.5}]
model: {backbone: test_resnet, weights: random, head: {dropout: 0.1}}
phases:
  - {train: head, solver: lbfgs}
"""
THEN_HEAD = "phases=[{train: head, solver: lbfgs}, {train: head, epochs: 1, lr: 1e-12}]"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 noisy images of each of three colours that are classified with some mistakes, and the recipe."""
    folder = tmp_path_factory.mktemp("solved")
    draws = np.random.default_rng(0)
    for name, colour in {"blue": (120, 120, 150), "green": (120, 150, 120), "red": (150, 120, 120)}.items():
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            noisy = np.clip(np.array(colour) + draws.normal(0, 20, 3) + draws.normal(0, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / "pictures" / name / f"{i:02d}.png")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def there(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_solved_phase_alone_is_shipped_and_measured(there: None) -> None:
    run = run_recipe(load_recipe("recipe.yaml"), out=Path("alone"))
    (row,) = rows_of(run)
    metrics = json.loads((run / "metrics.json").read_text())
    assert (row["phase"], row["epoch"], row["lr"]) == ("1", "1", "")
    assert float(row["val/accuracy"]) == pytest.approx(metrics["val"]["accuracy"])
    assert float(row["val/loss"]) == pytest.approx(metrics["val"]["loss"], rel=1e-4)
    assert metrics["test"]["accuracy"] > 0.6
    # One entry has the images of both splits.
    log = (run / "log.txt").read_text()
    assert log.count("frozen part run once") + log.count("found in") == 1
    assert evaluate(run, split="test") == metrics["test"]
    log = (run / "log.txt").read_text()
    assert "phase 1/1 head  validation loss (accuracy) by weight decay  10: " in log
    assert "phases[0] is solved on training images without augment or head dropout." in log
    assert metrics["best"]["fitted_by"] == "L-BFGS"
    assert all(words in (run / "report.html").read_text() for words in ("head, solved by L-BFGS", "The head was fitted by L-BFGS"))


def test_later_phases_go_on_from_the_solution_and_its_score_competes(there: None) -> None:
    alone = run_recipe(load_recipe("recipe.yaml", ["augment=[]"]), out=Path("first"))
    run = run_recipe(load_recipe("recipe.yaml", ["augment=[]", THEN_HEAD, "wise_ft=false"]), out=Path("then"))
    first, second = rows_of(run)
    assert (first["phase"], second["phase"]) == ("1", "2")
    assert float(second["val/loss"]) == pytest.approx(float(first["val/loss"]), rel=1e-4)
    # The second phase can't be better but in the last digits of its loss, which decides between equals: with two threads it is.
    lower = float(second["val/loss"]) < float(first["val/loss"])
    assert json.loads((run / "metrics.json").read_text())["best"]["phase"] == (2 if lower else 1)
    weights = (load_file(folder / "model/model.safetensors")["fc.weight"] for folder in (alone, run))
    torch.testing.assert_close(*weights, rtol=1e-3 if lower else 0, atol=1e-4 if lower else 0)


def test_fine_tuning_may_come_before_and_after(there: None) -> None:
    phases = "phases=[{train: head, solver: lbfgs, weight_decay: 0.1}, {train: all, epochs: 1, lr: 1e-3}, {train: head, solver: lbfgs}]"
    run = run_recipe(load_recipe("recipe.yaml", [phases, "wise_ft=true"]), out=Path("around"))
    assert [row["phase"] for row in rows_of(run)] == ["1", "2", "3"]
    assert [bool(row["lr"]) for row in rows_of(run)] == [False, True, False]
    log = (run / "log.txt").read_text()
    assert "phase 1/3 head  weight decay 0.1\n" in log
    assert "wise_ft  ships" in log


def test_with_two_processes_the_second_gets_the_solution_too(workplace: Path) -> None:
    """Its validation loss is half of the mean, and a head that never learned would spoil it."""
    devices = ["trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=4"]
    words = ["finetune", "recipe.yaml", "--out", "two", THEN_HEAD, *devices]
    done = warm.run_together(*words, folders=(workplace, workplace), env=os.environ)
    assert [process.returncode for process in done] == [0, 0], done
    assert done[0].stderr.count("phase 1/2 head  solved") == 1
    first, second = rows_of(workplace / "two")
    assert float(second["val/loss"]) == pytest.approx(float(first["val/loss"]), rel=1e-4)


def test_the_plan_shows_a_solved_phase_between_the_others(there: None, capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(load_recipe("recipe.yaml", [THEN_HEAD]))
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.index("phase 1/2: head, solved by L-BFGS on the features") < shown.index("phase 2/2: head, 1 epoch")
    assert "phases[0] trains a head on a backbone that has learned nothing" in shown


def test_a_solved_phase_has_no_rate_to_find(there: None) -> None:
    with pytest.raises(TlkitError, match=r"(?s)--phase 1 has no learning rate: phases\[0\] is solved.*epochs and lr in place of solver"):
        check_has_rate(load_recipe("recipe.yaml"), 1)
