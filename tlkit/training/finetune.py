"""The page: recipe -> one run, or one for each fold or seed."""

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tlkit.recipe.schema import Recipe
from tlkit.training.batch_size.find import with_batch_size
from tlkit.training.checkpointing.resume import recipe_as_begun
from tlkit.training.distributed.launch import broadcast_from_main, join_processes, local_main_process_first, start_processes
from tlkit.training.distributed.shutdown import end_with_the_first, ending_together
from tlkit.training.distributed.signals import handle_signals
from tlkit.training.run import train_and_measure
from tlkit.training.run_folder import (
    FIRST,
    check_out,
    disk_full_explained,
    is_finished,
    is_main_process,
    make_run_folder,
)
from tlkit.training.scale_lr import with_scaled_lr
from tlkit.training.setup import prepare

if TYPE_CHECKING:
    pass

LOG = logging.getLogger("tlkit")


def finetune(recipe: Recipe, *, out: Path | None = None, resume: bool = False) -> Path:
    """Runs a recipe to its end and returns the run folder; with `data.folds` that holds a run folder for each fold.

    out: the folder to make; None takes the next free number under runs/NAME. resume: `out` may hold an unfinished run, which goes on.
    Raises TlkitError for what the user can mend, nearly always before the folder is made; Interrupted after Ctrl-C or a scheduler's signal.
    """
    began = time.perf_counter()
    end_with_the_first()
    with ending_together(), handle_signals() as stop, disk_full_explained(stop):
        join_processes(recipe)
        check_out(out, resume=resume)
        recipe = with_scaled_lr(recipe)
        if resume and out is not None and broadcast_from_main((out / FIRST).is_file):
            if broadcast_from_main(lambda: is_finished(out)):
                if is_main_process():
                    print(f"{out}: this run is finished, and nothing is left to do.", file=sys.stderr)
                return out
            recipe = recipe_as_begun(out, recipe)
        recipe = with_batch_size(recipe)
        if recipe.data.folds:
            from tlkit.training.folds import finetune_folds

            return finetune_folds(recipe, out, resume=resume, stop=stop)
        with local_main_process_first():
            ready = prepare(recipe)
        start_processes(recipe)
        run = broadcast_from_main(lambda: make_run_folder(recipe.name, out, resume=resume))
        return train_and_measure(recipe, ready, run, began=began, resume=resume, stop=stop)
