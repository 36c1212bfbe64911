"""`tlkit bench`: tlkit, the floor and the textbook on the same work, in one run, each as a whole process."""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tlkit.bench.sides import Run, machine, run_side
from tlkit.bench.work import WORDS, Work, package_weights, write_images
from tlkit.data.progress import progress_console
from tlkit.errors import TlkitError
from tlkit.terminal import output_console

WARM_UP = (64, 32)
"""Images of the discarded first run, which brings libraries into the system's file cache."""


@dataclass(frozen=True)
class Spread:
    """The median of the repeats, the lowest and the highest."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Bench:
    """All runs of one work. training, validation: how many images. runs: side -> a run for each repeat."""

    work: Work
    training: int
    validation: int
    runs: Mapping[str, Sequence[Run]]

    def figures(self, side: str) -> dict[str, Spread | None]:
        """Return the figures of a side. images_s: training images of an epoch over its seconds, validation included.

        epoch_s: the median epoch of each run. The ratios are to the floor's run of the same repeat.
        """
        runs, floor = self.runs[side], self.runs.get("floor", ())
        epochs, floor_epochs = ([median(run.epochs_s) for run in some] for some in (runs, floor))
        figures = {
            "images_s": [self.training / seconds for seconds in epochs],
            "epoch_s": epochs,
            "start_s": [run.start_s for run in runs],
            "whole_s": [run.whole_s for run in runs],
            "cpu_s": [run.used.cpu_s for run in runs if run.used.cpu_s is not None],
            "peak_mb": [run.used.peak_mb for run in runs if run.used.peak_mb is not None],
            "accuracy": [run.accuracy for run in runs],
            "epoch_ratio": [own / floors for own, floors in zip(epochs, floor_epochs, strict=bool(floor))],
            "whole_ratio": [own.whole_s / floors.whole_s for own, floors in zip(runs, floor, strict=bool(floor))],
        }
        return {name: spread_of(values) if values else None for name, values in figures.items()}

    def to_json(self) -> dict[str, Any]:
        figures = {side: self.figures(side) for side in self.runs}
        return {
            "work": {key: value for key, value in asdict(self.work).items() if key not in ("images", "weights", "seed")},
            "weights": "package" if self.work.weights else "random",
            "pictures": {"train": self.training, "val": self.validation},
            "machine": machine(),
            "sides": {
                side: {
                    **{name: spread and asdict(spread) for name, spread in figures[side].items()},
                    "runs": [asdict(run) for run in runs],
                }
                for side, runs in self.runs.items()
            },
        }


def spread_of(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values))


def bench_command(
    work: Work, images: tuple[int, int], *, sides: Sequence[str], repeats: int, warm_cache: bool, as_json: bool, out: Path | None
) -> int:
    """Measure a work and print the result. work: its images and weights are filled in here. out: also write the figures here, as JSON."""
    if work.stage and work.kind != "from":
        raise TlkitError(f"--stage {work.stage} is for the work `from`.\n  Expected: tlkit bench from --stage {work.stage}")
    work = replace(work, weights=package_weights(work.backbone))
    jobs = {side: (side, work) for side in sides}
    bench = Bench(work, *images, run_in_turn(jobs, images, repeats=repeats, warm_cache=warm_cache))
    show(bench.to_json(), lambda: print_bench(bench, output_console()), as_json=as_json, out=out)
    return 0


def show(figures: Mapping[str, Any], as_table: Callable[[], None], *, as_json: bool, out: Path | None) -> None:
    text = json.dumps(figures, indent=2) + "\n"
    if out is not None:
        out.write_text(text, encoding="utf-8")
    if as_json:
        sys.stdout.write(text)
    else:
        as_table()


def run_in_turn(
    jobs: Mapping[str, tuple[str, Work]], images: tuple[int, int], *, repeats: int, warm_cache: bool = False
) -> dict[str, list[Run]]:
    """Run every side once on a few images, then all jobs in turn, `repeats` times with seeds from 0.

    jobs: name -> side and work. They run in turn, so that a machine that slows down is slow for all of them.
    warm_cache: tlkit reuses activations that an earlier run with another seed cached.
    """
    log = progress_console().print
    runs: dict[str, list[Run]] = {name: [] for name in jobs}
    with tempfile.TemporaryDirectory(prefix="tlkit-bench-") as name:
        home = Path(name)
        log(f"writing {sum(images):,} images to {home}, for as long as this takes")
        write_images(home / "pictures", *images)
        write_images(home / "few", *WARM_UP)
        works = {job: (side, replace(work, images=str(home / "pictures"))) for job, (side, work) in jobs.items()}
        for side, work in dict(works.values()).items():
            log(f"warm-up  {side}")
            run_side(side, replace(work, images=str(home / "few"), epochs=1), home)
        for job, (side, work) in works.items():
            if warm_cache and side == "tlkit":
                log(f"filling the cache  {job}")
                run_side(side, replace(work, seed=repeats), home, keep_cache=True)
        for repeat in range(repeats):
            for job, (side, work) in works.items():
                run = run_side(side, replace(work, seed=repeat), home, keep_cache=warm_cache)
                runs[job].append(run)
                log(f"repeat {repeat + 1}/{repeats}  {job:<9} {run.whole_s:.1f} s")
    return runs


ROWS = {
    "images_s": ("images/s", ".0f"),
    "epoch_s": ("s an epoch", ".3g"),
    "start_s": ("s until the first epoch", ".1f"),
    "whole_s": ("s for the whole process", ".1f"),
    "cpu_s": ("CPU s of it", ".1f"),
    "peak_mb": ("peak memory, MB", ".0f"),
    "accuracy": ("validation accuracy", ".3f"),
    "epoch_ratio": ("epoch / the floor's", ".2f"),
    "whole_ratio": ("whole / the floor's", ".2f"),
}


def print_bench(bench: Bench, console: Console) -> None:
    work = bench.work
    weights = "its ImageNet weights" if work.weights else "random weights, so that accuracy says nothing"
    console.print(f"[bold]{work.kind}[/bold]: {WORDS[work.kind]}", highlight=False)
    console.print(
        f"{work.backbone} with {weights}\n{bench.training:,} + {bench.validation:,} images at {work.image_size} px, "
        f"batches of {work.batch_size}, {work.epochs} epochs\n",
        highlight=False,
    )
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for side in bench.runs:
        table.add_column(side, justify="right", no_wrap=True)
    figures = {side: bench.figures(side) for side in bench.runs}
    for name, (words, form) in ROWS.items():
        cells = [format_spread(figures[side][name], form) for side in bench.runs]
        if any(cells):
            table.add_row(words, *cells)
    console.print(table, highlight=False)
    repeats = len(next(iter(bench.runs.values())))
    if repeats > 1:
        console.print(f"\n[dim]medians of {repeats} repeats, lowest to highest in brackets[/dim]", highlight=False)


def format_spread(spread: Spread | None, form: str) -> str:
    """Format `7.7 (7.5-8.1)`; without brackets if there is no spread."""
    if spread is None:
        return ""
    middle, low, high = (format(value, form) for value in (spread.median, spread.low, spread.high))
    return middle if low == high else f"{middle} ({low}-{high})"
