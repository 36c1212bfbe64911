"""`tlkit reproduce RUN`: its recipe once more, on the same images and weights, and what came out beside what came out then."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from tlkit.data.samples import Samples
from tlkit.data.splits.folds import split_by_recipe
from tlkit.data.splits.holdout import hash_images, manifest_rows, read_manifest
from tlkit.errors import RunError
from tlkit.models.model_folder import read_card
from tlkit.models.weights.sources import Weights
from tlkit.recipe.schema import Recipe
from tlkit.system import cache_folder, caching_in
from tlkit.terminal import output_console, print_line
from tlkit.training.checkpointing.resume import image_changes
from tlkit.training.distributed.ranks import is_main_process
from tlkit.training.finetune import run_recipe
from tlkit.training.outputs.environment import differences, read_environment
from tlkit.training.outputs.run_folder import check_out
from tlkit.training.setup import gather
from tlkit.workflows.compare_runs import TOLERANCES, Finding, compare, first_beyond, run_folders


def reproduce_run(run: Path, recipe: Recipe, *, out: Path | None = None) -> int:
    """Run the recipe into a new folder and print the comparison. Return 0 if the run was reproduced, otherwise 2.

    recipe: the run's own, or changed for this machine. On the same kind of machine every bit must be the same;
    on another, TOLERANCES apply, and the differences between the machines are listed.
    Raises RunError, before any training, if images, labels, splits or weights aren't those of the run.
    """
    check_out(out)
    if is_main_process():
        check_inputs(run, recipe, *gather(recipe.data, recipe.model, recipe.task))
    with _activations_of_its_own():
        again = run_recipe(recipe, out=out)
    if not is_main_process():
        return 0
    return _print_result(run, again, recipe)


def check_inputs(run: Path, recipe: Recipe, samples: Samples, weights: Weights) -> None:
    """Raise RunError, with the number and the first ids, if the run had other images or weights than there are now."""
    here = {sample.id for sample in samples.samples}
    for number, folder in enumerate(run_folders(run), 1):
        was = read_manifest(folder / "split.csv")
        # Before they are split, which may not be possible any more.
        _tell(folder, image_changes([row for row in was if row["id"] not in here], []))
        divided = split_by_recipe(samples, recipe.data, recipe.seed, fold=number)
        _tell(folder, image_changes(was, manifest_rows(divided, hash_images(divided))))
        _check_weights(folder, weights)


def _tell(run: Path, changes: Sequence[str]) -> None:
    if changes:
        lines = "\n".join(changes)
        raise RunError(f"The images are not those of the run ({run / 'split.csv'}):\n{lines}\n  Restore them: nothing was trained.")


def _check_weights(run: Path, weights: Weights) -> None:
    was = read_card(run / "model").weights.get("sha256")
    if was != weights.sha256:
        raise RunError(
            f"The weights ({weights.origin}) are not those of the run: their sha256 was {was} and is {weights.sha256}.\n"
            "  Restore them: nothing was trained."
        )


@contextmanager
def _activations_of_its_own() -> Iterator[None]:
    """Compute activations again: the cached ones were perhaps computed by the run, or by another one since."""
    if not is_main_process():  # it inherits the first one's
        yield
        return
    # Within what `tlkit cache clear` removes, should this process be killed.
    parent = cache_folder() / "activations"
    with suppress(OSError):
        parent.mkdir(parents=True, exist_ok=True)
    # Where the cache can't be written, as in a read-only home, the system's folder for temporary files is as good.
    with TemporaryDirectory(prefix="reproduce-", dir=parent if os.access(parent, os.W_OK) else None) as folder, caching_in(Path(folder)):
        yield


def _print_result(run: Path, again: Path, recipe: Recipe) -> int:
    console = output_console()
    pairs = list(zip(run_folders(run), run_folders(again), strict=True))
    environments = [read_environment(folder) for folder in pairs[0]]
    differ = differences(*environments) if all(environments) else {}
    to_the_bit = all(environments) and not differ and _repeats(environments[1], recipe)
    found: list[Finding] = []
    for was, now in pairs:
        fold = f"{was.name}: " if len(pairs) > 1 else ""
        findings = compare(was, now)
        found += findings
        console.print(_table(findings, title=f"{fold}{was} and {now}", to_the_bit=to_the_bit))
    for line in _about_machines(environments, differ, recipe):
        print_line(console, line)
    beyond = first_beyond(found, to_the_bit=to_the_bit)
    if beyond is not None:
        expected = "every bit should be the same" if to_the_bit else f"expected: {TOLERANCES}"
        words = f"NOT reproduced: {beyond.what} was {beyond.was} and is {beyond.now}; {expected}."
    elif all(finding.same for finding in found):
        words = "Reproduced, bit for bit: splits, epochs, figures and weights."
    else:
        words = f"Reproduced within the tolerances: {TOLERANCES}."
    print_line(console, words)
    return 0 if beyond is None else 2


def _repeats(environment: Mapping[str, Any], recipe: Recipe) -> bool:
    """Check whether the same machine must give the same bits: on a GPU some operations don't, and Lightning warns of them."""
    return recipe.trainer.deterministic and environment["device"]["type"] == "cpu"


def _about_machines(environments: Sequence[Mapping[str, Any]], differ: Mapping[str, tuple[Any, Any]], recipe: Recipe) -> Iterator[str]:
    if not all(environments):
        yield "The run has no environment.json, so this may be another kind of machine."
    elif differ:
        yield f"This is another kind of machine: {'; '.join(f'{key} was {was}, is {now}' for key, (was, now) in differ.items())}."
    elif not _repeats(environments[1], recipe):
        why = "trainer.deterministic is false" if not recipe.trainer.deterministic else "not every operation of a GPU repeats to the bit"
        yield f"The same kind of machine; {why}."
    else:
        yield "The same kind of machine."


def _table(findings: Sequence[Finding], *, title: str, to_the_bit: bool) -> Table:
    table = Table("", "then", "now", "", title=title, title_justify="left", box=None, header_style="bold")
    for finding in findings:
        good = finding.same if to_the_bit else finding.within
        table.add_row(finding.what, finding.was, finding.now, "equal" if finding.same else "within" if good else "[red]DIFFERS[/red]")
    return table
