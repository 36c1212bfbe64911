"""Writes tlkit/recipe/image_sizes.csv: the smallest image size, the step between sizes, and the patch that leaves a border unseen.

    python data/make_image_sizes.py      # no network; ten minutes of a processor

`tlkit check` reads it, which imports no torch. Networks are built on torch's meta device, which needs no memory for weights. One of each
kind is tried, the one with the fewest parameters: architectures of one module of timm whose names begin alike and have the same patch,
window and variant. What is found must hold for the middle one of its kind too, or each of the kind is tried. A kind whose sizes follow
no such rule is left to `tlkit plan`.
"""

import csv
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

import tlkit.recipe
from tlkit.models.backbones import create_backbone, first_convolutions, pretrained_cfg
from tlkit.models.catalog import list_models
from tlkit.models.image_sizes import SMALLEST, own_size, trial_of_sizes

FILE = Path(tlkit.recipe.__file__).parent / "image_sizes.csv"
STEPS = (1, 2, 4, 7, 8, 14, 16, 28, 32, 48, 64, 128)
VARIANTS = r"patch\d+|window\d+|(?<=_)[tsblhpr]+\d+(?=_)|dinov3|rope|lite|svt|pcpvt|legacy|_tf_|_rw|_cr_|abswin|radio"


class Sizes(NamedTuple):
    smallest: int = SMALLEST
    multiple: int = 1
    patch: int = 1
    """Pixels of a patch; what an image has beyond a multiple of it isn't seen. 1: all is seen."""


def kinds() -> list[list[str]]:
    """Return the architectures of each kind, the one with the fewest parameters first."""
    table = files("tlkit.models").joinpath("parameters.csv").read_text(encoding="utf-8").splitlines()
    parameters = {row["backbone"]: int(row["parameters"]) for row in csv.DictReader(line for line in table if line[0] != "#")}
    found = defaultdict(list)
    for name in list_models():
        fixed, variants = bool(pretrained_cfg(name).get("fixed_input_size")), tuple(re.findall(VARIANTS, name))
        place = getattr(timm.models._registry._model_entrypoints[name], "__module__", "")
        found[place, re.match("[a-z]+", name).group(), fixed, variants if fixed else ()].append(name)  # type: ignore[union-attr]
    return [sorted(names, key=parameters.__getitem__) for names in found.values()]


def sizes_of(name: str) -> Sizes | None:
    """Return what sizes a backbone takes; None where its own size fails on the meta device, or where no such rule holds."""
    takes, own = cache(trial_of_sizes(name)), own_size(name)
    if not takes(own):
        return None
    multiple = next((step for step in STEPS if own % step == 0 and takes(own + step)), None)
    if multiple is None:
        return None
    low, high = -(-SMALLEST // multiple), own // multiple
    if takes(low * multiple):
        high = low
    while low < high:  # the smallest that works, by halves
        middle = (low + high) // 2
        low, high = (low, middle) if takes(middle * multiple) else (middle + 1, high)
    sizes = Sizes(high * multiple, multiple, patch_of(name, own + multiple))
    return sizes if holds(sizes, takes, own) else None


def holds(sizes: Sizes, takes: Callable[[int], bool], own: int) -> bool:
    """Check a few sizes that should work and a few that should not."""
    smallest, multiple, _ = sizes
    work = {smallest + multiple, (smallest + own) // 2 // multiple * multiple, own + 3 * multiple}
    fail = {smallest - multiple, smallest // 2} | ({smallest + 1, own + multiple // 3} if multiple > 1 else set())
    return all(takes(size) for size in work if size >= smallest) and not any(takes(size) for size in fail if size >= SMALLEST)


def patch_of(name: str, image_size: int) -> int:
    """Return the stride of the first convolution, where it neither overlaps nor pads and the image isn't padded before it; else 1."""
    with torch.device("meta"):
        backbone = create_backbone(name, image_size).eval()
    first = [backbone.get_submodule(layer) for layer in first_convolutions(backbone)]
    seen: list[int] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].shape[-1])

    if len(first) != 1 or not isinstance(first[0], nn.Conv2d):
        return 1
    layer = first[0]
    layer.register_forward_pre_hook(note)
    with torch.device("meta"), torch.inference_mode():
        backbone.forward_features(torch.zeros(1, 3, image_size, image_size))  # type: ignore[operator]
    stride = int(layer.stride[0])
    return stride if layer.padding == (0, 0) and layer.kernel_size[0] <= stride and seen == [image_size] else 1


def sizes_of_kind(names: list[str]) -> dict[str, Sizes]:
    """Return the sizes of what isn't left to `tlkit plan`."""
    found = sizes_of(names[0])
    print(names[0], len(names), found, file=sys.stderr, flush=True)
    middle = names[len(names) // 2]
    if found is None or len(names) == 1 or found == Sizes() or _also(middle, found):
        return {} if found is None else dict.fromkeys(names, found)
    return {names[0]: found} | {name: own for name in names[1:] if (own := sizes_of(name))}


def _also(name: str, sizes: Sizes) -> bool:
    takes, between = trial_of_sizes(name), sizes.smallest - sizes.multiple
    refused = {between, sizes.smallest + 1} if sizes.multiple > 1 else {between}
    return takes(sizes.smallest) and not any(takes(size) for size in refused if size >= SMALLEST)


def main() -> None:
    # Half of the time goes into drawing weights, which have no values on the meta device.
    timm.layers.weight_init._trunc_normal_ = lambda tensor, *_: tensor  # type: ignore[assignment]
    rows: dict[str, Sizes] = {}
    for names in kinds():
        rows |= sizes_of_kind(names)
    write({name: sizes for name, sizes in rows.items() if sizes != Sizes()}, tried=len(rows))


def write(rows: Mapping[str, Sizes], *, tried: int) -> None:
    head = [
        f"# Image sizes that timm {timm.__version__} takes, in px: the smallest, of what all are multiples, and the side of patches beyond",
        f"# whose last whole one nothing is seen. What isn't here takes all from {SMALLEST} on, or follows no such rule;",
        f"# {tried} of {len(list_models())} do. Written by data/make_image_sizes.py.",
        ",".join(("backbone", *Sizes._fields)),
    ]
    FILE.write_text("\n".join([*head, *(",".join(map(str, (name, *rows[name]))) for name in sorted(rows))]) + "\n", encoding="utf-8")
    print(f"{FILE}: {len(rows)} rows")


if __name__ == "__main__":
    main()
