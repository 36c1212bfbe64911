"""Try steps of a recipe's largest phases with generated images, in a process of its own, which may run out of memory.

    python -m tlkit.training.batch_size.probe RECIPE.yaml

Writes a line of facts; then answers each number of images on stdin with `fits` or `too large`.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from tlkit.data.datamodule import ImageDataModule
from tlkit.data.quality.on_bad import read_images
from tlkit.data.samples import Sample, Samples
from tlkit.data.splits.folds import split_by_recipe
from tlkit.models.weights.sources import Weights
from tlkit.recipe.fields.data import Data
from tlkit.recipe.fields.model import Model
from tlkit.recipe.fields.phases import Phase
from tlkit.recipe.load import load_recipe
from tlkit.system import keep_freed_memory
from tlkit.training.batch_size.out_of_memory import is_out_of_memory
from tlkit.training.callbacks.best_weights import moving_average
from tlkit.training.objective.objective import build_objective
from tlkit.training.phases import build_module
from tlkit.training.setup import build, trainable_parameters
from tlkit.training.specs import Learning, PhaseSpec, phase_specs
from tlkit.training.trainer import build_trial_trainer, check_devices, fit_unsaved

LEFT_TO_OTHERS = 0.05
"""Share of the free memory of a machine without a GPU."""
RESERVED = 1 << 30
"""Bytes of address space (`ulimit -v`) that a run takes and a trial doesn't, and mostly never uses: 64 MB for each thread that decodes or
writes logs, libraries, and gaps between blocks of many sizes. With tf_efficientnet_lite0 at 128 px, EMA and mixup a run had 354 to 657 MB
more than its trial (1 and 2 threads), of which at most 93 MB were memory."""


def main(recipe_file: str) -> None:
    recipe = load_recipe(recipe_file)
    data, model, learning = recipe.data.model_copy(update={"normalize": "weights"}), recipe.model, Learning.of(recipe)
    samples = split_by_recipe(read_images(data, recipe.task), data, recipe.seed)
    devices, here = check_devices(recipe.trainer)
    trained = trainable_parameters(recipe.phases, build(data, model, samples, Weights("random"))[0], model.backbone)
    images = len(samples.of("train"))
    specs = largest_phases(phase_specs(recipe, trained, images))
    print(json.dumps({"training_pictures": images, "devices": devices, "phases": [spec.number for spec in specs]}), flush=True)
    if here.type == "cpu":
        limit_memory()
    for line in sys.stdin:
        try:
            for spec in specs:
                two_steps(samples, int(line), data=data, model=model, learning=learning, spec=spec)
            print("fits", flush=True)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            print("too large", flush=True)


def largest_phases(specs: Sequence[PhaseSpec]) -> list[PhaseSpec]:
    """Return the gradient phase that trains the most, and that of each precision and adapter: what adapters add isn't in the others."""
    rising = sorted((spec for spec in specs if isinstance(spec.phase, Phase)), key=lambda spec: len(spec.trained))
    largest = {(spec.trainer.precision, str(cast(Phase, spec.phase).adapter)): spec for spec in rising}
    return sorted(largest.values(), key=lambda spec: spec.index)


def two_steps(samples: Samples, images: int, *, data: Data, model: Model, learning: Learning, spec: PhaseSpec) -> None:
    """Run two steps, because the optimizer's own memory exists only after the first one. images: of a step."""
    classifier, preprocessing = build(data, model, samples, Weights("random"))
    phase = cast(Phase, spec.phase).model_copy(update={"compile": False})
    classifier.train_only(spec.trained, spec.batchnorm, phase.adapter)
    made = ImageDataModule(made_up(samples, 2 * images, data.channels), preprocessing, batch_size=images, workers=0)
    module = build_module(classifier, made, build_objective(learning, classifier, samples), learning, phase)
    callbacks = [moving_average(learning.ema)] if learning.ema else []
    trainer = build_trial_trainer(spec.trainer, optimizer=learning.optimizer, callbacks=[*callbacks], max_epochs=1, limit_val_batches=0)
    fit_unsaved(trainer, module, made)


def made_up(samples: Samples, images: int, channels: int) -> Samples:
    """Return small grey images, which become the recipe's size as all others do; of 2, 4 or more channels, arrays with as many."""
    pixels = np.full((8, 8, 3 if channels == 1 else channels), 128, np.uint8)
    grey = Image.fromarray(pixels) if pixels.shape[2] == 3 else pixels
    made = (Sample(f"{number}", lambda: grey, (number % len(samples.classes),), "train") for number in range(images))
    return Samples(samples.classes, tuple(made), samples.task)


def limit_memory() -> None:
    """Limit this process's memory to what is free, so that too much is its own error and not the end of another process."""
    try:
        import resource
    except ImportError:  # Windows
        return
    free = free_memory()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if Path("/proc/self/statm").exists() else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if free and mapped:
        wanted = mapped + int((1 - LEFT_TO_OTHERS) * free)
        left = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - RESERVED)
        resource.setrlimit(resource.RLIMIT_AS, (max(0, left), hard))


def free_memory() -> int:
    """Return the bytes that this process may still use: of the machine, or of its control group; 0 if the system doesn't say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 0
    available = int(re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())[1]) * 1024  # type: ignore[index]
    group = Path("/sys/fs/cgroup")
    most, used = group / "memory.max", group / "memory.current"
    if most.exists() and used.exists() and (text := most.read_text().strip()) != "max":
        available = min(available, int(text) - int(used.read_text()))
    return available


if __name__ == "__main__":
    keep_freed_memory()
    main(sys.argv[1])
