"""The page: recipe -> one run, or one for each fold or seed."""

import logging
import time
from os import PathLike
from pathlib import Path

from tlkit.data.dataset import worker_explained
from tlkit.files import expanded
from tlkit.recipe.load import load_recipe, recipe_yaml
from tlkit.recipe.schema import Recipe
from tlkit.training.batch_size.find import with_batch_size
from tlkit.training.checkpointing.resume import recipe_as_begun
from tlkit.training.distributed.launch import broadcast_from_main, join_processes, local_main_process_first, start_processes
from tlkit.training.distributed.ranks import is_main_process
from tlkit.training.distributed.shutdown import end_with_the_first, ending_together
from tlkit.training.distributed.signals import current_stop
from tlkit.training.left_as_found import left_as_found
from tlkit.training.outputs.finished import Run
from tlkit.training.outputs.run_folder import RECIPE_FILE, check_out, disk_full_explained, is_finished, make_run_folder
from tlkit.training.repeats import finetune_repeats, lacks_seeds, repeats_of
from tlkit.training.run import train_and_measure
from tlkit.training.scale_lr import with_scaled_lr
from tlkit.training.setup import prepare

LOG = logging.getLogger("tlkit")


def finetune(
    recipe: Recipe | str | PathLike[str], *, out: str | PathLike[str] | None = None, resume: bool = False, seeds: int | None = None
) -> Run:
    """Train a recipe's model, measure it, and keep it in a run folder.

    What it reports goes to log.txt in the folder and to the logger "tlkit": `logging.basicConfig(level=logging.INFO)` shows it. No signal
    handlers are installed: after Ctrl-C the run can be resumed from its last checkpoint.

    Args:
        recipe: The recipe, or what `load_recipe` takes: a file, or the name of a recipe that ships with tlkit.
        out: The folder to make; None takes the next free number under runs/NAME.
        resume: Go on with the unfinished run in `out`; start it if there is none, do nothing if it is finished.
        seeds: Train so many seeds, at least two, from the recipe's own on.

    Returns:
        The finished run. With `data.folds` or `seeds` its folder holds a run folder for each, and its metrics are means over them.

    Raises:
        TlkitError: An error that the user can fix, nearly always before the folder is made.
        KeyboardInterrupt: After Ctrl-C.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    with left_as_found():
        return Run(run_recipe(recipe, out=expanded(out) if out is not None else None, resume=resume, seeds=seeds))


def run_recipe(recipe: Recipe, *, out: Path | None = None, resume: bool = False, seeds: int | None = None) -> Path:
    """Run a recipe to its end and return the run folder; with `data.folds` or `seeds` it holds a run folder for each.

    A caller that wants a signal to save a checkpoint first makes its `Stop` the current one (`stopped_by`).
    Raises TlkitError, nearly always before the folder is made, and KeyboardInterrupt after Ctrl-C or a signal that the caller's `Stop`
    has taken.
    """
    began = time.perf_counter()
    stop = current_stop()
    end_with_the_first()
    # A dead worker is an error at any line, not only where its batch is waited for.
    with ending_together(stop), disk_full_explained(stop), worker_explained():
        join_processes(recipe.trainer, recipe_yaml(recipe))
        check_out(out, resume=resume)
        recipe = with_scaled_lr(recipe)
        resumed = None
        if resume and out is not None and broadcast_from_main((out / RECIPE_FILE).is_file):
            if broadcast_from_main(lambda: is_finished(out) and not lacks_seeds(out, recipe, seeds)):
                if is_main_process():
                    LOG.info("%s: this run is finished, and nothing is left to do.", out)
                return out
            recipe = recipe_as_begun(out, recipe)
            resumed = out
        recipe = with_batch_size(recipe)
        if repeats := repeats_of(recipe, seeds):
            return finetune_repeats(recipe, repeats, out, resume=resume, stop=stop)
        with local_main_process_first():
            setup = prepare(recipe, resumed=resumed)
        if recipe.gradient_phases:
            start_processes(recipe.trainer, recipe_yaml(recipe))
        run = broadcast_from_main(lambda: make_run_folder(recipe.name, out, resume=resume))
        return train_and_measure(recipe, setup, run, began=began, resume=resume, stop=stop)
