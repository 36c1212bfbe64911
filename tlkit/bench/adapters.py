"""What do adapters cost beside `train: all`, and are they the same network when merged? Random weights, so that it needs no network.

    python -m tlkit.bench.adapters

prints what docs/experiments.md has measured, and the training losses; every row is a process of its own. The last row of a backbone
has the activation cache: its losses are to be those without. Needs the extra `adapters` and, for the peak memory, Linux.
"""

import json
import subprocess
import sys
from argparse import ArgumentParser
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tlkit.data.progress import progress_console
from tlkit.data.splits.holdout import hash_images
from tlkit.recipe.load import load_recipe
from tlkit.training.context import RunContext
from tlkit.training.distributed.signals import current_stop
from tlkit.training.module import PhaseModule
from tlkit.training.phases import Training, train_phases
from tlkit.training.setup import prepare

BACKBONES = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")
WAYS = {"lora": "{lora: {rank: 8}}", "dora": "{dora: {rank: 8}}", "all": "all", "lora, cached": "{lora: {rank: 8}}"}
PIXELS = 96
# 90 training and 10 validation images.
SETTINGS = ("data.limit=150", f"data.image_size={PIXELS}", "data.batch_size=16", "augment=[]")


@dataclass
class Measured(Callback):
    """parameters: that train. peak_bytes: by which the process grows in the phase at most. merging: the largest change of a logit."""

    parameters: int = 0
    peak_bytes: int = 0
    merging: float = 0.0
    largest_logit: float = 0.0
    losses: list[float] = field(default_factory=list)
    epochs_s: list[float] = field(default_factory=list)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.parameters = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
        # Sets the highest resident memory to what is resident now: proc(5).
        Path("/proc/self/clear_refs").write_text("5")
        self._before = highest_resident_bytes()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.peak_bytes = highest_resident_bytes() - self._before
        assert isinstance(pl_module, PhaseModule)  # noqa: S101  # for the types
        model = deepcopy(pl_module.classifier).eval()
        images = torch.randn(16, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            adapted = model(images)
            model.merge_adapters()
            self.merging = float((model.eval()(images) - adapted).abs().max())
        self.largest_logit = float(adapted.abs().max())


def highest_resident_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure(backbone: str, way: str) -> Measured:
    """Train the phase for two epochs in this process."""
    model = f"model={{backbone: {backbone}, weights: random}}"
    phases = f"phases=[{{train: {WAYS[way]}, epochs: 2, lr: 1e-3}}]"
    recipe = load_recipe("quickstart", [*SETTINGS, model, phases, f"cache.use={str('cached' in way).lower()}"])
    setup = prepare(recipe)
    setup.data.hashes = hash_images(setup.samples)
    found = Measured()
    with TemporaryDirectory(prefix="tlkit-adapters-") as folder:
        context = RunContext(Path(folder), progress_console(), current_stop(), perf_counter(), callbacks=(found,))
        rows = train_phases(Training.begin(setup, recipe.trainer.checkpoint_every, context)).rows
    found.losses, found.epochs_s = ([row[name] for row in rows] for name in ("train/loss", "seconds"))
    return found


def row(backbone: str, way: str) -> str:
    """Measure in a new process; format as a row of Markdown."""
    command = [sys.executable, "-m", "tlkit.bench.adapters", "--one", backbone, way]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603  # this Python, our own words
    found = json.loads(done.stdout.splitlines()[-1])
    cells = (
        backbone,
        way,
        f"{found['parameters']:,}",
        ", ".join(f"{seconds:.1f}" for seconds in found["epochs_s"]),
        f"{found['peak_bytes'] / 1e6:.0f}",
        f"{found['merging']:.1e} of {found['largest_logit']:.1f}" if way != "all" else "",
        ", ".join(map(str, found["losses"])),
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = ArgumentParser("python -m tlkit.bench.adapters", description=__doc__.partition("\n")[0])
    parser.add_argument("--one", nargs=2, metavar=("BACKBONE", "WAY"), help="measure this alone, and print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(asdict(measure(*arguments.one))))
        return
    print("| backbone | way | trained parameters | seconds an epoch | peak memory, MB | merging changes a logit by | training losses |")
    print("|---|---|---|---|---|---|---|")
    for backbone in BACKBONES:
        for way in WAYS:
            print(row(backbone, way), flush=True)


if __name__ == "__main__":
    main()
