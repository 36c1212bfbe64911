"""`tlkit bench processes`: the same recipes on one process and on two, and what comes before a step: images read and decoded.

A device is a processor core here, and the processes talk by gloo over loopback: what two GPUs would gain, this doesn't tell.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from tlkit.bench.command import Spread, format_spread, run_in_turn, show, spread_of
from tlkit.bench.scaling import BYTES_A_GRADIENT
from tlkit.bench.sides import Run, circumstances
from tlkit.bench.work import Kind, Work, package_weights
from tlkit.errors import TlkitError
from tlkit.terminal import output_console

COUNTS = (1, 2)
MEASURED: tuple[Kind, ...] = ("head", "all")
PHOTO = (500, 375)
"""Width and height of a usual ImageNet image."""


@dataclass(frozen=True)
class Decoding:
    """Decoding on one core. images_s: JPEG files of PHOTO's size, read and resized to 224 px. image_bytes: of a file."""

    images_s: Spread
    image_bytes: int


@dataclass(frozen=True)
class Processes:
    """steps: of an epoch. trained: kind -> parameters that train. runs: kind and number of processes -> a run for each repeat."""

    work: Work
    training: int
    validation: int
    trained: Mapping[str, int]
    decoding: Decoding
    runs: Mapping[tuple[str, int], Sequence[Run]]

    @property
    def steps(self) -> int:
        return -(-self.training // self.work.batch_size)

    def epoch_s(self, kind: str, count: int) -> Spread:
        return spread_of([median(run.epochs_s) for run in self.runs[kind, count]])

    def speedup(self, kind: str, count: int) -> Spread:
        """Return the ratio of an epoch of one process to one of several, for the same repeat."""
        pairs = zip(self.runs[kind, 1], self.runs[kind, count], strict=True)
        return spread_of([median(one.epochs_s) / median(several.epochs_s) for one, several in pairs])

    def bytes_a_step(self, kind: str, count: int) -> float:
        """Return the bytes that each process sends and receives in a ring: see `scaling.allreduce_s`."""
        return 2 * (count - 1) / count * BYTES_A_GRADIENT * self.trained[kind]

    def to_json(self) -> dict[str, Any]:
        return {
            **circumstances(self.work, self.training, self.validation),
            "decoding": asdict(self.decoding),
            "works": {
                f"{kind} on {count}": {
                    "parameters_that_train": self.trained[kind],
                    "epoch_s": asdict(self.epoch_s(kind, count)),
                    "step_s": self.epoch_s(kind, count).median / self.steps,
                    "bytes_a_step": self.bytes_a_step(kind, count),
                    "speedup": asdict(self.speedup(kind, count)),
                    "runs": [asdict(run) for run in runs],
                }
                for (kind, count), runs in self.runs.items()
            },
        }


def processes_command(work: Work, images: tuple[int, int], *, repeats: int, as_json: bool, out: Path | None) -> int:
    """Measure one process and two. work: its kind is not used."""
    if images[0] % work.batch_size:
        raise TlkitError(f"--size {images[0]}+{images[1]}: tlkit bench processes counts whole steps of {work.batch_size} images.")
    trained = parameters_that_train(work.backbone)
    weights = package_weights(work.backbone)
    works: dict[tuple[str, int], Work] = {
        (kind, count): Work(kind, backbone=work.backbone, weights=weights, epochs=work.epochs, processes=count)
        for kind in MEASURED
        for count in COUNTS
    }
    os.environ["OMP_NUM_THREADS"] = "1"  # a process, a core: else one process takes all of them
    runs = run_in_turn({f"{kind} on {count}": ("tlkit", each) for (kind, count), each in works.items()}, images, repeats=repeats)
    by_work = {key: runs[f"{key[0]} on {key[1]}"] for key in works}
    found = Processes(work, *images, trained, measure_decoding(repeats), by_work)
    show(found.to_json(), lambda: print_processes(found, output_console()), as_json=as_json, out=out)
    return 0


def parameters_that_train(backbone: str) -> dict[str, int]:
    """Count the parameters of a linear head for the ten classes of the bench's images, and of all layers."""
    import torch

    from tlkit.models.backbones import check_backbone_name, create_backbone

    check_backbone_name(backbone, "--backbone")
    with torch.device("meta"):
        built = create_backbone(backbone, 128).eval()
        features = built(torch.zeros(1, 3, 128, 128)).shape[1]
    head = (features + 1) * 10
    return {"head": head, "all": head + sum(parameter.numel() for parameter in built.parameters())}


def measure_decoding(repeats: int, *, images: int = 100) -> Decoding:
    """Measure decoding on one core, after a first pass that isn't counted. The file is in the system's cache, so no disk is measured."""
    import cv2

    from tlkit.data.preprocess import Preprocessing

    preprocessing = Preprocessing(224, "crop", crop_pct=0.875, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    draws = np.random.default_rng(0)
    blurred = Image.fromarray(draws.integers(0, 256, (94, 125, 3), dtype=np.uint8)).resize(PHOTO, Image.Resampling.BICUBIC)
    rates = []
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    with TemporaryDirectory(prefix="tlkit-bench-") as folder:
        file = Path(folder) / "photo.jpg"
        blurred.save(file, quality=90)
        for _ in range(repeats + 1):
            began = time.perf_counter()
            for _ in range(images):
                preprocessing.read(file)
            rates.append(images / (time.perf_counter() - began))
        size = file.stat().st_size
    cv2.setNumThreads(threads)
    return Decoding(spread_of(rates[1:]), size)


def print_processes(found: Processes, console: Console) -> None:
    work = found.work
    console.print(
        f"[bold]{work.backbone}[/bold], {found.training:,} + {found.validation:,} images at {work.image_size} px, "
        f"batches of {work.batch_size} over all processes, {work.epochs} epochs\n",
        highlight=False,
    )
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))  # 80 characters wide
    table.add_column("trains", no_wrap=True)
    for heading in ("processes", "s an epoch", "ms a step", "MB a step", "speed-up"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind, count in found.runs:
        epoch_s = found.epoch_s(kind, count)
        ms, megabytes = 1e3 * epoch_s.median / found.steps, found.bytes_a_step(kind, count) / 1e6
        figures = (format_spread(epoch_s, ".3g"), f"{ms:.1f}", f"{megabytes:.2f}")
        table.add_row(kind, str(count), *figures, format_spread(found.speedup(kind, count), ".2f"))
    console.print(table, highlight=False)
    decoding = found.decoding
    console.print(
        f"\none core decodes and resizes {format_spread(decoding.images_s, '.0f')} JPEG images of {PHOTO[0]} x {PHOTO[1]} px a second, "
        f"{decoding.image_bytes / 1e3:.0f} kB each: {decoding.images_s.median * decoding.image_bytes / 1e6:.0f} MB/s",
        highlight=False,
    )
    console.print("[dim]an epoch has its validation; one thread a process; medians, lowest to highest in brackets[/dim]", highlight=False)
