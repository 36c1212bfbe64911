"""The folder of one run: `runs/NAME/NNN/`, or the one that was asked for. Nothing in it is ever overwritten."""

from pathlib import Path

from tlkit.errors import RunError


def check_out(out: Path | None) -> None:
    """Raises RunError if `--out` can't take a new run: found before anything is downloaded."""
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"--out {out} is not empty, and a run never overwrites one.\n  Choose another folder, or remove this one yourself.")


def make_run_folder(name: str, out: Path | None) -> Path:
    """A new, empty folder: `out`, or the next free number under runs/NAME."""
    check_out(out)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        return out
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
