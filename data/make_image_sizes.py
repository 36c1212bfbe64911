"""Writes tlkit/recipe/image_sizes.csv: the smallest image size and the step between sizes, of each architecture that doesn't take all.

    python data/make_image_sizes.py      # no network; some minutes

`tlkit check` reads it, which imports no torch. One of each kind is tried, the one with the fewest parameters: architectures of one module
of timm whose names begin alike and have the same patch and window. Only what is built for one size is tried, and a few families of plain
convolutions; all others, and kinds whose smallest has more than 60 million parameters, are left to `tlkit plan`.
"""

import csv
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path

import timm

import tlkit.recipe
from tlkit.models.backbones import pretrained_cfg
from tlkit.models.catalog import list_models
from tlkit.models.image_sizes import SMALLEST, trial_of_sizes

FILE = Path(tlkit.recipe.__file__).parent / "image_sizes.csv"
PLAIN = ("alexnet", "vgg", "googlenet", "convnext", "inception")
LARGEST = 60_000_000
STEPS = (1, 2, 4, 7, 8, 14, 16, 28, 32, 48, 64, 128)


def kinds() -> Iterator[list[str]]:
    """Yield the architectures of each kind, the one with the fewest parameters first."""
    table = files("tlkit.models").joinpath("parameters.csv").read_text(encoding="utf-8").splitlines()
    parameters = {row["backbone"]: int(row["parameters"]) for row in csv.DictReader(line for line in table if line[0] != "#")}
    found = defaultdict(list)
    for name in list_models():
        cfg = pretrained_cfg(name)
        tokens = tuple(re.findall(r"patch\d+|window\d+|_[tsblh]\d+(?=_)|dinov3|rope", name))
        place = getattr(timm.models._registry._model_entrypoints[name], "__module__", "")
        found[place, re.match("[a-z]+", name).group(), bool(cfg.get("fixed_input_size")), tokens].append(name)  # type: ignore[union-attr]
    for names in found.values():
        names.sort(key=lambda name: parameters.get(name, LARGEST + 1))
        is_tried = pretrained_cfg(names[0]).get("fixed_input_size") or names[0].startswith(PLAIN)
        if is_tried and parameters.get(names[0], LARGEST + 1) <= LARGEST:
            yield names


def own_size(name: str) -> int:
    return int((pretrained_cfg(name).get("input_size") or (3, 224, 224))[-1])


def sizes_of(name: str) -> tuple[int, int] | None:
    """Return the smallest size and of what all are multiples; None where the own size fails for another reason."""
    takes, own = trial_of_sizes(name), own_size(name)
    if not takes(own):
        return None
    multiple = next((step for step in STEPS if own % step == 0 and takes(own + step)), None)
    if multiple is None:
        return None
    low, high = -(-SMALLEST // multiple), own // multiple
    if takes(low * multiple):
        return low * multiple, multiple
    while low < high:  # the smallest that works, by halves
        middle = (low + high) // 2
        low, high = (low, middle) if takes(middle * multiple) else (middle + 1, high)
    return high * multiple, multiple


def main() -> None:
    rows = {}
    for names in kinds():
        found = sizes_of(names[0])
        print(names[0], len(names), found, file=sys.stderr, flush=True)
        if found and found != (SMALLEST, 1):
            rows |= dict.fromkeys(names, found)
    write(rows)


def write(rows: Mapping[str, tuple[int, int]]) -> None:
    head = [
        f"# Image sizes that timm {timm.__version__} takes, in px: the smallest, and of what all are multiples.",
        f"# What isn't here takes all from {SMALLEST} on, or was not tried.",
        "# Written by data/make_image_sizes.py.",
        "backbone,smallest,multiple",
    ]
    FILE.write_text("\n".join([*head, *(f"{name},{rows[name][0]},{rows[name][1]}" for name in sorted(rows))]) + "\n", encoding="utf-8")
    print(f"{FILE}: {len(rows)} rows")


if __name__ == "__main__":
    main()
