"""`tlkit bench curve`: what an epoch costs against the share of the network that trains, for every stage of a backbone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tlkit.bench.command import Spread, format_spread, run_in_turn, show, spread_of
from tlkit.bench.sides import Run, circumstances
from tlkit.bench.work import Work, package_weights
from tlkit.terminal import output_console

HEAD = "head only"


@dataclass(frozen=True)
class Curve:
    """shares: first trained stage -> share of the multiply-adds in it and after it, the whole network first.

    runs: stage, or `head only` -> a run for each repeat.
    """

    work: Work
    training: int
    validation: int
    shares: Mapping[str, float]
    runs: Mapping[str, Sequence[Run]]

    def epoch_s(self, trained: str) -> Spread:
        return spread_of([median(run.epochs_s) for run in self.runs[trained]])

    def share(self, trained: str) -> float:
        return self.shares.get(trained, 0.0)

    def in_proportion_s(self, trained: str) -> float:
        """Return what an epoch may cost in proportion: its share of an epoch of the whole network, and an epoch of the head."""
        return self.share(trained) * self.epoch_s(next(iter(self.shares))).median + self.epoch_s(HEAD).median

    def ratio(self, trained: str) -> float:
        return self.epoch_s(trained).median / self.in_proportion_s(trained)

    def to_json(self) -> dict[str, Any]:
        return {
            **circumstances(self.work, self.training, self.validation),
            "trained": {
                trained: {
                    "share": self.share(trained),
                    "epoch_s": asdict(self.epoch_s(trained)),
                    "in_proportion_s": self.in_proportion_s(trained),
                    "ratio": self.ratio(trained),
                    "runs": [asdict(run) for run in runs],
                }
                for trained, runs in self.runs.items()
            },
        }


def curve_command(work: Work, images: tuple[int, int], *, repeats: int, as_json: bool, out: Path | None) -> int:
    """Train from each stage in turn, with tlkit only."""
    shares = shares_of_compute(work.backbone, work.image_size)
    weights = package_weights(work.backbone)
    works: dict[str, Work] = {HEAD: Work("head", backbone=work.backbone, weights=weights, epochs=work.epochs)}
    for stage in reversed(shares):
        works[stage] = Work("from", backbone=work.backbone, weights=weights, epochs=work.epochs, stage=stage)
    runs = run_in_turn({name: ("tlkit", work) for name, work in works.items()}, images, repeats=repeats)
    curve = Curve(works[HEAD], *images, shares, runs)
    show(curve.to_json(), lambda: print_curve(curve, output_console()), as_json=as_json, out=out)
    return 0


def shares_of_compute(backbone: str, image_size: int) -> dict[str, float]:
    """Return stage -> share of the multiply-adds of a forward pass in it and after it, in forward order."""
    from tlkit.models.backbones import check_backbone_name
    from tlkit.models.show import measure

    check_backbone_name(backbone, "--backbone")
    stages = measure(backbone, image_size).stages
    after = list(accumulate(stage.multiply_adds for stage in reversed(stages)))[::-1]
    return {stage.name: own / after[0] for stage, own in zip(stages, after, strict=True)}


def print_curve(curve: Curve, console: Console) -> None:
    work = curve.work
    console.print(
        f"[bold]{work.backbone}[/bold], {curve.training:,} + {curve.validation:,} images at {work.image_size} px, "
        f"batches of {work.batch_size}, {work.epochs} epochs, no augmentation\n",
        highlight=False,
    )
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("trains")
    for heading in ("share of compute", "s an epoch", "in proportion, s", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for trained in curve.runs:
        words = trained if trained == HEAD else f"from {trained}"
        epoch_s = format_spread(curve.epoch_s(trained), ".3g")
        table.add_row(words, f"{curve.share(trained):.1%}", epoch_s, f"{curve.in_proportion_s(trained):.3g}", f"{curve.ratio(trained):.2f}")
    console.print(table, highlight=False)
    console.print("\n[dim]in proportion: the share of an epoch of the whole network, and an epoch of only the head[/dim]", highlight=False)
