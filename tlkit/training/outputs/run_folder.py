"""The folder of one run: `runs/NAME/NNN/`, or --out. A finished run is never overwritten."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tlkit.data.splits.run_source import inner_runs
from tlkit.errors import RunError
from tlkit.files import is_disk_full
from tlkit.training.distributed.ranks import is_main_process
from tlkit.training.distributed.signals import Stop

RECIPE_FILE, LOG_FILE, REPORT_FILE = "recipe.yaml", "log.txt", "report.html"
"""The files that a run writes at its begin, all the time, and last."""


def is_finished(run: Path) -> bool:
    return (run / REPORT_FILE).is_file()


def is_run(folder: Path) -> bool:
    """Return whether a run began there. A soup has a recipe too, and so has the folder that `tlkit init` wrote one into."""
    return (folder / RECIPE_FILE).is_file() and (
        (folder / LOG_FILE).is_file() or bool(inner_runs(folder)) or len(list(folder.iterdir())) == 1
    )


def is_unfinished(run: Path) -> bool:
    return is_run(run) and not is_finished(run)


def check_out(out: Path | None, *, resume: bool = False) -> None:
    """Raise RunError if `--out` can't take a new run or, with `resume`, an unfinished one: found before anything is downloaded."""
    if not is_main_process():
        return
    if resume and out is None:
        raise RunError("--resume needs the folder of the run to resume.\n  Add --out DIR, as for the run itself.")
    if out is None or not out.exists():
        return
    if not out.is_dir():
        raise RunError(f"--out {out} is a file. Expected a folder that is empty or doesn't exist yet.")
    if not any(out.iterdir()) or (resume and is_run(out)):
        return
    if resume and (out / RECIPE_FILE).is_file():
        raise RunError(
            f"--out {out} has a {RECIPE_FILE} but no {LOG_FILE}, so it is a soup or another folder than a run's.\n  Choose another folder."
        )
    if resume:
        raise RunError(
            f"--out {out} is not empty and has no {RECIPE_FILE}, so it is not a run that could be resumed.\n  Choose another folder."
        )
    if is_unfinished(out):
        raise RunError(f"--out {out} holds a run that is not finished.\n  Resume it with --resume, or choose another folder.")
    raise RunError(f"--out {out} is not empty, and a run never overwrites one.\n  Choose another folder, or remove this one yourself.")


def make_run_folder(name: str, out: Path | None, *, resume: bool = False) -> Path:
    """Create an empty folder: `out`, or the next free number under runs/NAME. With `resume`, `out` as it is. For the main process."""
    check_out(out, resume=resume)
    folder = _next_number(name) if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_folders(run: Path, names: Iterable[str], *, resume: bool = False) -> list[Path]:
    """Make the folders of a run's folds or seeds, all at once: processes of other devices may reach one before the main process does."""
    folders = [run / name for name in names]
    if is_main_process():
        for folder in folders:
            folder.mkdir(exist_ok=resume)
    return folders


@contextmanager
def disk_full_explained(stop: Stop) -> Iterator[None]:
    """Raise RunError, with how the run goes on, in place of the system's error of a full disk; leave it alone before a run has begun."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error) or not stop.resume_hint:
            raise
        what = f": {error.filename} can't be written" if error.filename else ""  # closing a file doesn't say which
        raise RunError(f"The disk is full{what}.\n  What was written before is whole: free some space, then {stop.resume_hint}.") from error


def _next_number(name: str) -> Path:
    parent = Path("runs") / name
    parent.mkdir(parents=True, exist_ok=True)
    number = max((int(folder.name) for folder in parent.iterdir() if folder.name.isdecimal()), default=0)
    while True:
        number += 1
        folder = parent / f"{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue  # another run took this number a moment ago
        return folder
