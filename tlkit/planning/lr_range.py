"""The learning-rate range test: a copy is trained at a rate that rises with every step, and the loss shows a good rate.

Lightning 2.6's lr_find sets one rate for all parameter groups, and doesn't restore the random generators; hence this one.
Source: Smith 2017, section 3.3, https://arxiv.org/abs/1506.01186
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from rich.markup import escape

from tlkit.data.progress import progress, progress_console
from tlkit.errors import RunError, TlkitError
from tlkit.explain.sheet import figure_file
from tlkit.files import write_csv
from tlkit.planning.trial import try_phase, unchanged
from tlkit.recipe.fields.phases import Phase, SolvedPhase
from tlkit.recipe.schema import Recipe
from tlkit.report.curves import TRAINING, VALIDATION
from tlkit.terminal import counted, print_panel, tlkit_command
from tlkit.training.batch_size.find import with_batch_size
from tlkit.training.outputs.run_folder import check_out, make_run_folder
from tlkit.training.setup import Setup, prepare
from tlkit.training.specs import PhaseSpec, phase_name

LOWEST, HIGHEST = 1e-7, 10.0
DIVERGED = 4
"""Times the lowest loss, in the mean of the last few: from there on it only gets worse. fastai and Lightning stop there too."""
LAST = 5
SPREAD = 0.24
"""Standard deviation, in powers of ten of the rate, of the bell curve that smooths the losses: 3 of 100 steps."""
FEWEST_STEPS = 50
"""Fewest steps: with fewer, a step is so wide that the suggestion is off by up to ten times."""
MARGIN = 10
"""Factor by which the suggestion is below the rate at which the loss is lowest, which is already at the edge."""
LEARNED = 0.97
"""Share of its first value that the loss must fall below to be informative."""


@dataclass(frozen=True)
class LrRange:
    """A point for every step of the optimizer. lrs: the head's, the phase's `lr`. smoothed: the losses without their noise.

    suggestion: None where no rate made the loss fall. between: the rates that the noise of the losses leaves open.
    diverged: whether the loss ran away before the highest rate was reached.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    lowest_at: float
    suggestion: float | None
    diverged: bool
    between: tuple[float, float]


def lr_command(recipe: Recipe, number: int, *, steps: int, out: Path | None, words: Sequence[str]) -> int:
    """Sweep phase `number`, counted from 1, and write lr.csv and lr.png into a run folder (`tlkit lr`).

    words: the recipe and the overrides as the user wrote them.
    """
    check_out(out)
    if steps < FEWEST_STEPS:
        raise TlkitError(f"--steps {steps} is too few for a suggestion. Expected {FEWEST_STEPS} or more; 100 is usual.")
    check_has_rate(recipe, number)
    setup = prepare(with_batch_size(recipe))
    (spec,) = (spec for spec in setup.phases if spec.number == number)
    result = lr_range(setup, spec, steps=steps)
    run = make_run_folder(f"{recipe.name}-lr", out)
    columns = ("lr", "loss", "smoothed")
    steps_taken = zip(result.lrs, result.losses, result.smoothed, strict=True)
    write_csv(run / "lr.csv", columns, (dict(zip(columns, step, strict=True)) for step in steps_taken))
    draw_lr_range(result, spec, f"{recipe.name}, phase {number}: {phase_name(spec.phase.train)}", run / "lr.png")
    print_lr_range(result, spec, run, words=words)
    return 0


def lr_range(setup: Setup, spec: PhaseSpec, *, steps: int) -> LrRange:
    """Train a copy of the classifier for `steps` steps while the rate rises from 1e-7 to 10; all groups keep their ratio.

    spec: of a phase that trains by gradients. Raises RunError if the classifier or a random generator is not as it was before.
    """
    with unchanged(setup.classifier), progress(progress_console(), "raising the learning rate", steps, unit="steps") as advance:
        sweep = Sweep(rate_of(spec), steps, advance)
        limits = {"max_steps": steps, "max_epochs": -1, "limit_val_batches": 0}
        try_phase(setup.classifier, setup.data, setup.learning, spec, callback=sweep, **limits)
    return judged(sweep.lrs, sweep.losses, diverged=sweep.diverged)


def rate_of(spec: PhaseSpec) -> float:
    return cast(Phase, spec.phase).lr


class Sweep(Callback):
    """Sets the rate before every step, and stops when the loss runs away. phase_lr: the rate that the groups' own are relative to."""

    def __init__(self, phase_lr: float, steps: int, advance: Callable[[int], None]) -> None:
        self._phase_lr, self._steps = phase_lr, steps
        self._advance = advance
        self._batches: list[float] = []
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.diverged = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shares = [group["lr"] / self._phase_lr for group in trainer.optimizers[0].param_groups]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._lr = LOWEST * (HIGHEST / LOWEST) ** (trainer.global_step / max(1, self._steps - 1))
        for group, share in zip(trainer.optimizers[0].param_groups, self._shares, strict=True):
            group["lr"] = self._lr * share
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Each is the batch's part of the step's mean loss.
        self._batches.append(float(outputs["loss"]))
        if trainer.global_step == self._step and math.isfinite(self._batches[-1]):
            return
        self.lrs.append(self._lr)
        self.losses.append(sum(self._batches))
        self._batches.clear()
        self._advance(1)
        if ran_away(self.losses):
            self.diverged = trainer.should_stop = True


def ran_away(losses: Sequence[float]) -> bool:
    """Check whether the loss is NaN or infinite, or the mean of the last few is several times the lowest such mean."""
    if not math.isfinite(losses[-1]):
        return True
    means = [sum(losses[i : i + LAST]) / LAST for i in range(len(losses) - LAST + 1)]
    return bool(means) and means[-1] > DIVERGED * min(means)


def judged(lrs: Sequence[float], losses: Sequence[float], *, diverged: bool) -> LrRange:
    """Suggest a tenth of the rate at which the smoothed loss is lowest. Raises RunError if there are too few points."""
    finite = [(lr, loss) for lr, loss in zip(lrs, losses, strict=True) if math.isfinite(loss)]
    if len(finite) < 2 * LAST:
        reported = f"{counted(len(finite), 'step')} gave a loss that is a number, up to lr {lrs[-1]:.1e}"
        raise RunError(f"No rate can be suggested: {reported}.\n  Expected {2 * LAST} at least: set --steps higher, or check the data.")
    kept_lrs, kept = zip(*finite, strict=True)
    # Where the loss runs away it would pull up the points before it, which may still be falling.
    losses_kept = np.array(kept)
    calm = int(np.flatnonzero(losses_kept <= 1.5 * np.median(losses_kept[:LAST]))[-1]) + 1
    smoothed = np.concatenate([smooth(kept_lrs[:calm], losses_kept[:calm]), losses_kept[calm:]])
    best = int(np.argmin(smoothed))
    fell = smoothed[best] < LEARNED * smoothed[0]
    suggestion = kept_lrs[best] / MARGIN if fell else None
    return LrRange(
        kept_lrs,
        kept,
        tuple(smoothed.tolist()),
        kept_lrs[best],
        suggestion,
        diverged,
        _between(kept_lrs[:calm], losses_kept[:calm], smoothed[:calm]),
    )


def smooth(lrs: Sequence[float], losses: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each loss and its neighbours, weighed by a bell curve: unlike a running mean it doesn't lag behind."""
    weights = _weights(lrs)
    return np.array(weights @ np.asarray(losses) / weights.sum(1))


def _weights(lrs: Sequence[float]) -> NDArray[np.float64]:
    places = np.log10(lrs)
    return np.array(np.exp(-(((places[:, None] - places) / SPREAD) ** 2) / 2))


def _between(lrs: Sequence[float], losses: NDArray[np.float64], smoothed: NDArray[np.float64]) -> tuple[float, float]:
    """Return the tenths of the lowest and the highest rate whose smoothed loss is within three standard errors of the lowest one."""
    weights = _weights(lrs)
    best = int(np.argmin(smoothed))
    near = weights[best] > 0.1
    noise = float(np.std((losses - smoothed)[near]))
    error = noise * float(np.sqrt((weights[best] ** 2).sum()) / weights[best].sum())
    good = np.flatnonzero(smoothed <= smoothed[best] + 3 * error)
    return lrs[int(good[0])] / MARGIN, lrs[int(good[-1])] / MARGIN


def draw_lr_range(result: LrRange, spec: PhaseSpec, title: str, file: Path) -> None:
    with figure_file(file, 7.5, 4.2, dpi=120) as figure:
        figure.set_layout_engine("constrained")
        axis = figure.subplots()
        axis.plot(result.lrs, result.losses, ".", ms=4, color=TRAINING, alpha=0.6, label="loss of a step")
        axis.plot(result.lrs, result.smoothed, color=VALIDATION, label="smoothed")
        # Where the loss runs away it would press all else to the ground.
        low, high = min(result.losses), max(result.smoothed[: 2 * LAST])
        axis.set_ylim(low - 0.1 * (high - low + 0.1), high + 0.25 * (high - low + 0.1))
        if result.suggestion is not None:
            axis.axvline(result.suggestion, color="#2e7d32", ls="--", label=f"suggestion {result.suggestion:.1e}")
            axis.axvspan(*result.between, color="#2e7d32", alpha=0.12, lw=0)
        now = rate_of(spec)
        axis.axvline(now, color="#777777", ls=":", label=f"the recipe's {now:.1e}")
        axis.set(xscale="log", xlabel="learning rate (of the head)", ylabel="training loss")
        axis.set_title(title, fontweight="bold")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, loc="best")


def print_lr_range(result: LrRange, spec: PhaseSpec, run: Path, *, words: Sequence[str]) -> None:
    now = rate_of(spec)
    end = "then it ran away" if result.diverged else "and it never ran away"
    if result.suggestion is None:
        rows = [("suggestion", "none: no rate made the loss fall. More steps may tell: --steps 300")]
    else:
        low, high = result.between
        rows = [("suggestion", f"[bold]{result.suggestion:.1e}[/bold]  (the recipe has {now:.1e})")]
        rows.append(("how sure", f"{low:.1e} to {high:.1e} are as good, as far as {len(result.losses)} noisy steps can tell"))
    rows.append(("lowest loss", f"{min(result.smoothed):.3f} at {result.lowest_at:.1e}, {end}"))
    rows.append(("curve", escape(str(run / "lr.png"))))
    if spec.index:
        earlier = "phase 1 was" if spec.index == 1 else f"phases 1 to {spec.index} were"
        rows.append(("note", f"{earlier} not trained before it: the head is new here"))
    commands = [tlkit_command("finetune", *words, f"{spec.key}.lr={result.suggestion:.1e}")] if result.suggestion else []
    print_panel(spec.title, rows, commands)


def check_has_rate(recipe: Recipe, number: int) -> None:
    """Raise TlkitError for a phase that there is none of, that is solved, or that scikit-learn takes over."""
    count, kind = len(recipe.phases), recipe.model.head.kind
    if number > count:
        raise TlkitError(f"--phase {number}: the recipe has {count} phase{'' if count == 1 else 's'}, counted from 1.")
    if isinstance(recipe.phases[number - 1], SolvedPhase):
        fix = "Choose another with --phase N, or give it epochs and lr in place of solver."
        raise TlkitError(f"--phase {number} has no learning rate: phases[{number - 1}] is solved by L-BFGS.\n  {fix}")
    if number - 1 not in recipe.gradient_phases:
        raise TlkitError(f"--phase {number} has no learning rate: scikit-learn fits a {kind} head.\n  Set model.head.kind to linear.")
