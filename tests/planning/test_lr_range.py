"""The range test: rates by hand, losses by torch, and nothing changed by it."""

import csv
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch.nn.functional import cross_entropy

from tests.shades import draw_shades
from tlkit import cli
from tlkit.errors import RunError, TlkitError
from tlkit.planning.lr_range import HIGHEST, LOWEST, Sweep, check_has_rate, judged, lr_range, ran_away, smooth
from tlkit.planning.trial import fingerprint, try_phase
from tlkit.recipe.load import load_recipe
from tlkit.training.setup import Setup, prepare

pytestmark = pytest.mark.usefixtures("draws")

RECIPE = """
name: colours
data: {source: {folder: pictures}, image_size: 32, resize: stretch, normalize: dataset, batch_size: 8, validation: 0.2, test: 0.2}
model: {backbone: test_resnet, weights: random, head: {dropout: 0.2}}
phases:
  - {train: all, epochs: 1, lr: 0.01, layer_decay: 0.5}
  - {train: head, epochs: 1, lr: 0.01}
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lr")
    colours = {"blue": (40, 60, 200), "green": (30, 180, 60), "red": (210, 40, 50)}
    draw_shades(folder / "pictures", colours=colours, size=40)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def there(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)


def ready(*overrides: str) -> Setup:
    return prepare(load_recipe("recipe.yaml", overrides))


def test_the_rate_rises_by_the_same_factor_every_step(there: None) -> None:
    things = ready()
    result = lr_range(things, things.phases[0], steps=41)
    # 1e-7 to 10 are eight decades: five steps each, if none is left out.
    assert result.lrs[0] == LOWEST
    assert result.lrs[20] == pytest.approx(1e-3)
    assert result.lrs[-1] == pytest.approx(HIGHEST) or result.diverged
    assert np.diff(np.log10(result.lrs)) == pytest.approx(0.2)


class Recorded(Sweep):
    """Notes the rate of every group as the optimizer used it."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        self.used = {group["name"]: group["lr"] for group in optimizer.param_groups}


def test_groups_keep_the_ratio_of_their_rates(there: None) -> None:
    things = ready()
    sweep = Recorded(0.01, 41, lambda steps: None)
    limits = {"max_steps": 21, "max_epochs": -1, "limit_val_batches": 0}  # of which a warm-up would take two
    try_phase(things.classifier, things.data, things.learning, things.phases[0], callback=sweep, **limits)
    # The 21st of 41 steps is half-way between 1e-7 and 10 on the logarithm's scale: 1e-3. layer_decay is 0.5, a stage a step.
    stages = [stage.name for stage in reversed(things.classifier.stages)]
    assert (sweep.lrs[0], sweep.lrs[20]) == pytest.approx((1e-7, 1e-3))
    assert {name: sweep.used[name] for name in ("head", *stages)} == pytest.approx(
        {"head": 1e-3, **{name: 1e-3 * 0.5**below for below, name in enumerate(stages, 1)}}
    )


def test_nothing_is_changed(there: None) -> None:
    things = ready("augment=[HorizontalFlip]")
    before = fingerprint(things.classifier)
    torch_next, numpy_next, python_next = torch.get_rng_state(), np.random.get_state(), random.getstate()
    lr_range(things, things.phases[0], steps=12)
    assert fingerprint(things.classifier) == before
    assert torch.equal(torch.get_rng_state(), torch_next)
    assert all(np.array_equal(now, then) for now, then in zip(np.random.get_state(), numpy_next, strict=True))
    assert random.getstate() == python_next


def test_the_fingerprint_sees_a_weight_a_mode_and_a_draw(there: None) -> None:
    things = ready()
    classifier = things.classifier
    before = fingerprint(classifier)
    with torch.no_grad():
        next(classifier.buffers()).add_(1e-3)
    classifier.eval()
    next(classifier.parameters()).requires_grad_(False)
    torch.rand(1)
    after = fingerprint(classifier)
    assert {part for part in before if before[part] != after[part]} == {"weights", "train mode", "what trains", "torch's generator"}


def test_losses_are_those_of_whole_steps(there: None) -> None:
    things = ready("optimizer.accumulate=2", "model.head.dropout=0.0", "phases[0].layer_decay=null")
    result = lr_range(things, things.phases[0], steps=12)
    things.classifier.train_only(things.phases[0].trained, "adapt")
    batches = [batch for _, batch in zip(range(2), things.data.train_dataloader(), strict=False)]
    with torch.no_grad():
        losses = [
            float(cross_entropy(things.classifier(things.data.preprocessing.normalize(images)), labels)) for images, labels in batches
        ]
    assert result.losses[0] == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert len(result.losses) == 12 or result.diverged


def test_the_suggestion_is_a_tenth_of_where_the_loss_is_lowest() -> None:
    lrs = [10 ** (-6 + i / 10) for i in range(61)]
    losses = [1 + abs(math.log10(lr) + 2) for lr in lrs]
    result = judged(lrs, losses, diverged=False)
    assert result.lowest_at == pytest.approx(1e-2)
    assert result.suggestion == pytest.approx(1e-3)


def test_noise_and_a_steep_end_do_not_move_the_suggestion_by_more_than_a_factor_of_two() -> None:
    draws = np.random.default_rng(0)
    lrs = [10 ** (-6 + i / 12) for i in range(73)]
    losses = [2 / (1 + lr * 300) + (lr / 0.1) ** 2 + float(noise) for lr, noise in zip(lrs, draws.normal(0, 0.1, 73), strict=True)]
    # Without noise the loss is lowest where 600 / (1 + 300 lr)^2 = 200 lr: at lr = 0.0300 by bisection.
    suggestion = judged(lrs, losses, diverged=False).suggestion
    assert suggestion is not None
    assert 0.0015 < suggestion < 0.006


def test_without_a_falling_loss_nothing_is_suggested() -> None:
    lrs = [10 ** (-6 + i / 10) for i in range(40)]
    assert judged(lrs, [1.1] * 20 + [1.1 + i for i in range(20)], diverged=True).suggestion is None


def test_too_few_points_are_refused() -> None:
    with pytest.raises(RunError, match=r"3 steps gave a loss that is a number, up to lr 1.0e-04"):
        judged([1e-7, 1e-6, 1e-5, 1e-4], [1.0, 1.0, 1.0, math.nan], diverged=True)


def test_smoothing_leaves_a_straight_level_and_does_not_lag() -> None:
    lrs = [10 ** (-6 + 0.24 * i / 3) for i in range(21)]  # three steps are a standard deviation
    assert smooth(lrs[:9], [2.0] * 9) == pytest.approx([2.0] * 9)
    peak = smooth(lrs, [0.0] * 10 + [1.0] + [0.0] * 10)
    assert max(range(21), key=peak.__getitem__) == 10
    assert peak[7] == pytest.approx(peak[13])
    # One standard deviation away a bell curve has e^(-1/2) of its height; the edges take little from it.
    assert peak[7] / peak[10] == pytest.approx(math.exp(-0.5), rel=0.01)


def test_the_smoothed_line_falls_as_long_as_the_points_do_although_the_loss_runs_away_after_them() -> None:
    lrs = [10 ** (-6 + i / 10) for i in range(50)]
    losses = [2 - 0.02 * i for i in range(45)] + [5.0, 50.0, 500.0, 5e4, 5e6]
    result = judged(lrs, losses, diverged=True)
    assert list(np.argsort(result.smoothed[:43])) == list(range(42, -1, -1))
    assert lrs[40] <= result.lowest_at <= lrs[45]


def test_the_range_is_narrow_without_noise_and_wide_with_it() -> None:
    draws = np.random.default_rng(0)
    lrs = [10 ** (-6 + i / 12) for i in range(73)]
    clean = [1 + 0.3 * abs(math.log10(lr) + 2) for lr in lrs]
    noisy = [loss + float(noise) for loss, noise in zip(clean, draws.normal(0, 0.3, 73), strict=True)]
    widths = [math.log10(found.between[1] / found.between[0]) for found in (judged(lrs, y, diverged=False) for y in (clean, noisy))]
    assert widths[0] < 0.5 < widths[1]
    low, high = judged(lrs, noisy, diverged=False).between
    assert low <= 1e-3 <= high


@pytest.mark.parametrize(
    ("losses", "away"),
    [([1.0] * 9, False), ([1.0] * 5 + [4.1] * 5, True), ([1.0] * 5 + [3.9] * 5, False), ([9.0] * 4, False), ([1.0, math.nan], True)],
)
def test_a_loss_runs_away_at_four_times_its_lowest(losses: list[float], away: bool) -> None:
    assert ran_away(losses) == away


def test_the_command_leaves_a_curve_and_says_what_to_run(there: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lr", "recipe.yaml", "--phase", "2", "--steps", "50", "--out", str(tmp_path / "lr")]) == 0
    with (tmp_path / "lr/lr.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["lr", "loss", "smoothed"]
    assert 10 <= len(rows) <= 50
    with Image.open(tmp_path / "lr/lr.png") as curve:
        assert curve.width > 500
    printed = capsys.readouterr().out
    assert "phase 2/2 head" in printed
    assert "tlkit finetune recipe.yaml 'phases[1].lr=" in printed or "no rate made the loss fall" in printed
    assert "phase 1 was not trained before it" in printed
    assert cli.main(["lr", "recipe.yaml", "--out", str(tmp_path / "lr")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_too_few_steps_are_refused_before_anything_is_loaded(there: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lr", "recipe.yaml", "--steps", "30"]) == 2
    assert "--steps 30 is too few for a suggestion. Expected 50 or more" in capsys.readouterr().err


def test_a_phase_that_has_no_rate_is_refused(there: None) -> None:
    with pytest.raises(TlkitError, match="--phase 3: the recipe has 2 phases, counted from 1"):
        check_has_rate(load_recipe("recipe.yaml"), 3)
    with pytest.raises(TlkitError, match="scikit-learn fits a svm head"):
        check_has_rate(load_recipe("recipe.yaml", ["model.head={kind: svm}"]), 2)
