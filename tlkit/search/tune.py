"""`tlkit tune RECIPE`: the values of `search:` that validate best, found by Optuna. Trials never see the test split."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from tlkit.data.progress import progress_console
from tlkit.data.splits.holdout import hash_images
from tlkit.errors import BackboneError, DeviceError, Fault, RecipeError, RunError, TlkitError, TrainingError, WeightsError
from tlkit.evaluation.primary_metric import PrimaryMetric, metric_label, primary_metric_of
from tlkit.files import write_atomically, write_csv
from tlkit.recipe.differences import flat_values
from tlkit.recipe.edit import edited_recipe
from tlkit.recipe.explain import format_value
from tlkit.recipe.fields.model import CLASSICAL_HEADS
from tlkit.recipe.fields.search import Range
from tlkit.recipe.load import load_recipe, recipe_yaml
from tlkit.recipe.schema import Recipe
from tlkit.recipe.search_space import ranges_of, search_faults, with_values
from tlkit.recipe.yaml12 import read_yaml
from tlkit.system import cache_folder
from tlkit.terminal import counted
from tlkit.training.batch_size.find import with_batch_size
from tlkit.training.batch_size.out_of_memory import is_out_of_memory
from tlkit.training.callbacks.metrics_table import ReportScore
from tlkit.training.closed_form.classical import fit_classical_head
from tlkit.training.context import RunContext
from tlkit.training.distributed.signals import current_stop
from tlkit.training.outputs.log import warnings_only
from tlkit.training.phases import Training, train_phases
from tlkit.training.setup import Setup, prepare

if TYPE_CHECKING:
    import optuna

LOG = logging.getLogger("tlkit")

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["median", "halving", "none"]

STUDY = "study.db"
PROBLEM = "problem"
"""Attribute of a trial whose values could not be trained with: why."""
BY_VALUES = (RecipeError, TrainingError, BackboneError, WeightsError, DeviceError)
"""What a trial's values may cause: the recipe itself was prepared before the first trial, with its devices, weights and batch size."""
HEARTBEAT_S, GRACE_S = 10, 60
"""A worker that was killed is known by its silence; its trial is run again by the next worker."""


@dataclass(frozen=True)
class Search:
    """How to search. trials: finished ones, of all workers together. storage: a URL that Optuna takes; None for a file in `out`."""

    trials: int
    sampler: Sampler
    pruner: Pruner
    storage: str | None


@dataclass(frozen=True)
class Tuned:
    """What a search has found. values: key -> value of the best trial. score: its primary metric on validation.

    metric: its name. trials: finished ones. equal: those with the best score.
    """

    values: dict[str, Any]
    metric: PrimaryMetric
    score: float
    trials: int
    equal: int


@dataclass(frozen=True)
class Space:
    """A recipe file, the changes of the command line, and what varies."""

    file: str
    overrides: Sequence[str]
    ranges: Mapping[str, Range]

    @classmethod
    def of(cls, file: str, overrides: Sequence[str]) -> "Space":
        """Raise RecipeError without a `search:`, and for each key or end of a range that the recipe can't take."""
        recipe = load_recipe(file, overrides)
        ranges = ranges_of(recipe, file)
        with recipe.located():
            if faults := [*_untunable(recipe), *search_faults(recipe, file, overrides)]:
                raise RecipeError(faults)
        return cls(file, overrides, ranges)

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """Return the plain recipe with these values. Raises RecipeError, which names the key as an override."""
        return with_values(self.file, self.overrides, values)

    def suggest(self, trial: "optuna.Trial") -> dict[str, Any]:
        return {key: _suggested(trial, key, values) for key, values in self.ranges.items()}

    def grid(self, trials: int) -> dict[str, Sequence[Any]]:
        """Return evenly spaced values of each key: as many as make at least so many combinations. Choices are all taken."""
        from numpy import geomspace, linspace

        numbers = [values for values in self.ranges.values() if values.choice is None]
        combined = 1
        for values in self.ranges.values():
            combined *= len(values.choice or (0,))
        steps = max(2, ceil((trials / combined) ** (1 / len(numbers)) - 1e-9)) if numbers else 1
        spaced: dict[str, Sequence[Any]] = {}
        for key, values in self.ranges.items():
            if values.choice is not None:
                spaced[key] = [json.dumps(choice) for choice in values.choice]
            elif values.integer is not None:
                spaced[key] = sorted({round(value) for value in linspace(values.integer[0], values.integer[1], steps)})
            else:
                low, high = values.ends
                spaced[key] = (geomspace(low, high, steps) if values.log else linspace(low, high, steps)).tolist()
        return spaced


def _untunable(recipe: Recipe) -> Iterator[Fault]:
    """Yield what a trial, on one device and validated on one split, can't do."""
    if recipe.data.folds:
        fix = "Search on one split, with data.folds=null, and remove it from best.yaml afterwards."
        yield Fault("data.folds", f"= {recipe.data.folds} can't be used by tlkit tune: a trial is validated on one split.", fix)
    several = {"trainer.devices": recipe.trainer.devices not in ("auto", 1, "1"), "trainer.num_nodes": recipe.trainer.num_nodes > 1}
    for key in (key for key, is_set in several.items() if is_set):
        value = getattr(recipe.trainer, key.removeprefix("trainer."))
        fix = f"Set {key}=1, and start a worker for each device: with one --storage URL they share a study."
        yield Fault(key, f"= {format_value(value)} can't be used by tlkit tune: a trial trains on one device.", fix)


def _suggested(trial: "optuna.Trial", key: str, values: Range) -> Any:
    if values.choice is not None:
        # As JSON: Optuna takes text and numbers, and a choice may be a list of transforms.
        return json.loads(trial.suggest_categorical(key, [json.dumps(choice) for choice in values.choice]))
    if values.integer is not None:
        return trial.suggest_int(key, *values.integer)
    return trial.suggest_float(key, *values.ends, log=values.log is not None)


def tune(space: Space, out: Path, how: Search) -> Tuned:
    """Run trials until the study has `how.trials` finished ones, by all workers together, and write what was found into `out`.

    The study is in out/study.db, or in any storage whose URL Optuna takes; a worker that is started again, or on another machine with the
    same storage, goes on with it. Raises RunError if the study is one of another recipe or other images.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # below that it prints a traceback for each trial that is interrupted
    optuna.logging.disable_default_handler()
    check_study_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    base = space.recipe({})
    setup = without_test(prepare(with_batch_size(base)))
    study = open_study(space, base, setup, out, how)
    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    enough = optuna.study.MaxTrialsCallback(how.trials, states=finished)
    done = len(study.get_trials(states=finished))
    metric, trials = primary_metric_of(setup.samples), counted(how.trials, "trial")
    LOG.info("%d of %s finished, by %s on validation; the same command goes on after a break", done, trials, metric_label(metric))
    if done < how.trials:
        study.optimize(lambda trial: run_trial(trial, space), callbacks=[enough, _log_trial], catch=())
    if not study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
        problems = [trial.user_attrs[PROBLEM] for trial in study.get_trials(deepcopy=False) if PROBLEM in trial.user_attrs]
        raise RunError(
            f"None of {trials} could be finished, the last one because: {problems[-1]}\n"
            "  Narrow the ranges of search:, and choose another --out."
        )
    write_results(study, space, out)
    best, equal = best_of(study)
    return Tuned(_values(best, space), metric, float(best.value or 0.0), len(study.get_trials(states=finished)), equal)


def best_of(study: "optuna.Study") -> "tuple[optuna.trial.FrozenTrial, int]":
    """Return the trial with the best score, and how many have it: of these, the first that trained the fewest epochs."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    best = max(trials, key=lambda trial: (trial.value or 0.0, -len(trial.intermediate_values)))
    return best, sum(trial.value == best.value for trial in trials)


def check_study_folder(out: Path) -> None:
    """Raise RunError for a file, and for a folder that holds something else than a study."""
    if out.is_file():
        raise RunError(f"--out {out} is a file. Expected a folder that is empty or isn't there yet, or that of a study.")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).is_file() for name in (STUDY, "trials.csv")):
        raise RunError(f"--out {out} is not empty and has no {STUDY}, so it is no study that could go on.\n  Choose another folder.")


def open_study(space: Space, base: Recipe, setup: Setup, out: Path, how: Search) -> "optuna.Study":
    """Return the new study, or the one that is there. Raises RunError if that has another recipe, other ranges or other images."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    url = how.storage or f"sqlite:///{out.resolve() / STUDY}"
    # One after the other: two workers that create the tables at once fail (Optuna 5.0).
    cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_folder() / f"study-{sha256(url.encode()).hexdigest()[:16]}.lock"):
        try:
            with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):  # the heartbeat is one since 2.8
                storage = optuna.storages.RDBStorage(
                    url,
                    heartbeat_interval=HEARTBEAT_S,
                    grace_period=GRACE_S,
                    heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=3),
                )
                study = optuna.create_study(study_name=base.name, storage=storage, direction="maximize", load_if_exists=True)
        except (SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            place = f"--storage {how.storage}" if how.storage else str(out / STUDY)
            fix = "Expected a URL that Optuna takes, such as postgresql+pg8000://HOST/DATABASE with pip install 'tlkit[postgresql]'."
            raise TlkitError(f"{place}: the study can't be opened: {reason}\n  {fix}") from error
        _check_same_study(study, space, base, setup)
        worker = study.user_attrs.get("workers", 0)
        study.set_user_attr("workers", worker + 1)
    # Another seed for each worker, and after each break: the same one would draw the same values again.
    study.sampler = _sampler(how, space, (base.seed + 1_000_003 * worker) % 2**32)
    study.pruner = _pruner(how.pruner)
    return study


def _check_same_study(study: "optuna.Study", space: Space, base: Recipe, setup: Setup) -> None:
    hashes = hash_images(setup.samples)
    rows = "\n".join(f"{sample.id}\0{sample.split}\0{sample.labels}\0{hashes[sample.id]}" for sample in setup.samples.samples)
    mine = {
        "recipe": recipe_yaml(base),
        "search": json.dumps({key: values.model_dump(mode="json", by_alias=True) for key, values in space.ranges.items()}, sort_keys=True),
        "images": sha256(rows.encode("utf-8", "surrogateescape")).hexdigest(),
    }
    for what, value in mine.items():
        theirs = study.user_attrs.get(what)
        if theirs is None:
            study.set_user_attr(what, value)
        elif theirs != value:
            raise RunError(
                f"The study '{study.study_name}' was begun with {_begun_with(what, theirs, value)}.\n"
                "  Choose another --out, another name, or go back to what it had."
            )


def _begun_with(what: str, theirs: str, mine: str) -> str:
    """Return in words what a study was begun with. theirs, mine: a recipe or ranges as YAML, or a hash of the images."""
    if what == "images":
        return "other images or splits"
    before, now = (dict(flat_values("", read_yaml(text, str).value)) for text in (theirs, mine))
    changed = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    values = ", ".join(f"{key} = {format_value(before[key])}" if key in before else f"no {key}" for key in changed[:3])
    return f"{'another recipe' if what == 'recipe' else 'other ranges'}: {values}{' and others' if len(changed) > 3 else ''}"


def _sampler(how: Search, space: Space, seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    if how.sampler == "grid":
        return optuna.samplers.GridSampler(space.grid(how.trials), seed=seed)
    return optuna.samplers.RandomSampler(seed=seed) if how.sampler == "random" else optuna.samplers.TPESampler(seed=seed)


def _pruner(name: Pruner) -> "optuna.pruners.BasePruner":
    import optuna

    if name == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=5) if name == "median" else optuna.pruners.SuccessiveHalvingPruner()


def run_trial(trial: "optuna.Trial", space: Space) -> float:
    """Return the primary metric on validation of the best epoch. What is cached of frozen layers is shared by all trials.

    Raises optuna.TrialPruned if the trial is ended early, or its values can't be trained with.
    """
    import optuna

    def report(epoch: int, score: float) -> None:
        trial.report(score, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        return _trained_score(space.recipe({**space.suggest(trial), "trainer.logger": [], "trainer.devices": 1}), report)
    except Exception as error:
        if not (isinstance(error, BY_VALUES) or is_out_of_memory(error)):
            raise
        trial.set_user_attr(PROBLEM, str(error).partition("\n")[0])
        raise optuna.TrialPruned from error


def _trained_score(recipe: Recipe, report: Callable[[int, float], None]) -> float:
    """Train in a folder of its own, and return the best validation score. report: is called with the score of every epoch."""
    recipe = with_batch_size(recipe)
    setup = without_test(prepare(recipe))
    setup.data.hashes = hash_images(setup.samples)
    with TemporaryDirectory(prefix="tlkit-trial-") as folder, warnings_only():
        context = RunContext(Path(folder), progress_console(), current_stop(), perf_counter(), callbacks=(ReportScore(report),))
        training = Training.begin(setup, recipe.trainer.checkpoint_every, context)
        trained = train_phases(training)
        if recipe.model.head.kind not in CLASSICAL_HEADS:
            return training.best.score
        trained = fit_classical_head(setup, recipe.model.head, trained, phase=len(recipe.phases) + 1, context=context)
        return float(trained.rows[-1][f"val/{primary_metric_of(setup.samples)}"])


def without_test(setup: Setup) -> Setup:
    """Return the setup without the test images: a search must not see them."""
    samples = replace(setup.samples, samples=tuple(sample for sample in setup.samples.samples if sample.split != "test"))
    setup.data.samples = samples
    return replace(setup, samples=samples)


def _log_trial(study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> None:
    import optuna

    values = "  ".join(f"{key}={label(value)}" for key, value in trial.params.items())
    seconds = trial.duration.total_seconds() if trial.duration else 0.0
    if PROBLEM in trial.user_attrs:
        LOG.info("trial %d  given up: %s  %s  %.1f s", trial.number + 1, trial.user_attrs[PROBLEM], values, seconds)
        return
    if trial.state == optuna.trial.TrialState.PRUNED:
        epochs = counted(len(trial.intermediate_values), "epoch")
        LOG.info("trial %d  pruned after %s  %s  %.1f s", trial.number + 1, epochs, values, seconds)
        return
    best, _ = best_of(study)
    LOG.info(
        "trial %d  %.4f  (best %.4f, trial %d)  %s  %.1f s", trial.number + 1, trial.value, best.value, best.number + 1, values, seconds
    )


def label(value: Any) -> str:
    """Return a value in four digits, and a choice as the recipe has it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else format_value(value)


def _values(trial: "optuna.trial.FrozenTrial", space: Space) -> dict[str, Any]:
    return {key: json.loads(value) if space.ranges[key].choice is not None else value for key, value in trial.params.items()}


def write_results(study: "optuna.Study", space: Space, out: Path) -> None:
    """Write best.yaml, trials.csv and study.html."""
    from tlkit.search.study_page import write_study_page

    best = _values(best_of(study)[0], space)
    write_atomically(out / "best.yaml", edited_recipe(space.file, space.overrides, best, by="tlkit tune"))
    rows = [
        {
            "trial": trial.number + 1,
            "state": trial.state.name.lower(),
            "score": "" if trial.value is None else f"{trial.value:.6f}",
            "epochs": len(trial.intermediate_values),
            "seconds": f"{trial.duration.total_seconds():.2f}" if trial.duration else "",
            **{key: trial.params.get(key, "") for key in space.ranges},
        }
        for trial in study.get_trials(deepcopy=False)
    ]
    write_csv(out / "trials.csv", ["trial", "state", "score", "epochs", "seconds", *space.ranges], rows)
    write_study_page(study, best_of(study), space.ranges, out / "study.html")
