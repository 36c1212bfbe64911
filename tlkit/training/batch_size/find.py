"""`data.batch_size: {find: 0.8}`: a share of the largest batch that fits in every phase, found by trial."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from tlkit.errors import DeviceError, Fault, RecipeError, TrainingError
from tlkit.recipe.fields.data import FindBatchSize
from tlkit.recipe.load import recipe_yaml
from tlkit.recipe.schema import Recipe
from tlkit.terminal import counted

LOG = logging.getLogger("tlkit")

FOUND = "TLKIT_BATCH_SIZE"
"""Environment variable that passes the result to the processes that Lightning starts for other devices."""

SMALLEST = 2
FIRST = 16
LARGEST = 4096
STEPS_AN_EPOCH = 8
"""Fewest steps per epoch: with a batch of half the training images little is learned."""
PRECISION = 1.125
"""The search ends where the smallest batch that doesn't fit is at most this much larger than the largest that does."""


def with_batch_size(recipe: Recipe) -> Recipe:
    """Return the recipe with a number for `data.batch_size`, logged; unchanged if it has a number already.

    A step of the largest phases is tried, forward and backward with its optimizer, in another process: where memory ends, that one ends.
    Raises DeviceError if not even two images fit, and RecipeError where the processes of other devices were started from outside.
    """
    wanted = recipe.data.batch_size
    if not isinstance(wanted, FindBatchSize):
        return recipe
    text = recipe_yaml(recipe)
    asked = sha256(text.encode()).hexdigest()
    for_recipe, _, found = os.environ.get(FOUND, "").partition(" ")
    if for_recipe != asked:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            problem = "can't be found by several processes at once, as torchrun or SLURM start them."
            fault = Fault("data.batch_size", problem, "Run `tlkit plan` once in one process, and write down the number that it finds.")
            raise RecipeError([fault.at(recipe.place_of("data.batch_size"))])
        found = str(_find(text, wanted))
        os.environ[FOUND] = f"{asked} {found}"
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"batch_size": int(found)})}).at_places_of(recipe)


def largest_batch(recipe: str, *, most: int) -> int:
    """Return the most images over all devices, up to `most`, with which a step of every phase fits; 0 if two a device don't."""
    with _Prober(recipe) as prober:
        return prober.devices * rounded(largest_that_fits(prober.fits, most // prober.devices))


def _find(recipe: str, wanted: FindBatchSize) -> int:
    LOG.info("looking for the largest batch that fits")
    with _Prober(recipe) as prober:
        most = min(LARGEST, prober.training_images // (STEPS_AN_EPOCH * prober.devices))
        largest = largest_that_fits(prober.fits, round(most / wanted.find))
    if not largest:
        raise DeviceError(
            f"data.batch_size = {{find: {wanted.find:g}}}: not even {SMALLEST} images fit into memory.\n"
            "  Lower data.image_size, train fewer stages, or choose a smaller backbone."
        )
    found = prober.devices * rounded(max(SMALLEST, min(most, int(wanted.find * largest))))
    bound = (
        f"{counted(largest, 'image fits', 'images fit')} on a device"
        if largest < round(most / wanted.find)
        else f"an epoch keeps {STEPS_AN_EPOCH} steps"
    )
    tried = " and ".join(f"phase {number}" for number in prober.phases)
    LOG.info("data.batch_size: %d. %s%s; tried in %s", found, bound[0].upper(), bound[1:], tried)
    return found


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest size up to `most` that fits, to within an eighth; 0 if two don't. Doubles until one doesn't fit, then bisects."""
    if most < SMALLEST:
        return 0
    good, bad = 0, most + 1
    size = min(FIRST, bad - 1)
    while bad > max(good + 1, good * PRECISION):
        if fits(size):
            good = size
            size = min(2 * size, bad - 1) if bad > most else (good + bad) // 2
        else:
            bad = size
            size = (good + bad) // 2
        if size < SMALLEST:
            break
    return good


def rounded(size: int) -> int:
    """Round down to a multiple of eight, which kernels prefer, from sixteen on."""
    return size // 8 * 8 if size >= 16 else size


class _Prober:
    """A process that tries steps. It is started again if it ran out of memory. recipe: as YAML."""

    training_images: int
    devices: int
    phases: list[int]

    def __init__(self, recipe: str) -> None:
        self._recipe = recipe

    def __enter__(self) -> Self:
        self._folder = TemporaryDirectory(prefix="tlkit-batch-")
        Path(self._folder.name, "recipe.yaml").write_text(self._recipe, encoding="utf-8")
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def fits(self, images: int) -> bool:
        if self._process.poll() is not None:
            self._start()
        answer = self._ask(images)
        LOG.debug("a batch of %d: %s", images, answer)
        return answer == "fits"

    def _start(self) -> None:
        errors = Path(self._folder.name, "errors.txt")
        command = [sys.executable, "-m", "tlkit.training.batch_size.probe", str(Path(self._folder.name, "recipe.yaml"))]
        with errors.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True)  # noqa: S603  # this Python, our own words
        facts = self._read()
        if not facts:
            said = errors.read_text(encoding="utf-8").strip().splitlines()
            raise TrainingError(f"data.batch_size = {{find: ..}}: the trial could not begin.\n  {said[-1] if said else 'It said nothing.'}")
        self.training_images, self.devices, self.phases = (json.loads(facts)[key] for key in ("training_pictures", "devices", "phases"))

    def _ask(self, images: int) -> str:
        """Return `fits`, `too large`, or nothing from a process that has ended."""
        try:
            print(images, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return ""
        return self._read().strip()

    def _read(self) -> str:
        return self._process.stdout.readline() if self._process.stdout else ""
