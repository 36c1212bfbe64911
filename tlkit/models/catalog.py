"""`tlkit models [PATTERN]`: the backbones there are, with what is published about them."""

import csv
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import translate
from functools import cache
from pathlib import Path

import timm
from rich.table import Table

from tlkit.errors import BackboneError, expected_one_of
from tlkit.models.backbones import pretrained_cfg
from tlkit.models.weights.sources import weights_here
from tlkit.terminal import output_console, print_text

COLUMNS = ("backbone", "top-1", "M", "input", "here", "licence", "default weights")
NARROW = 80
"""Terminals with fewer columns than this show the first five."""


@cache
def published(figure: str) -> dict[str, str]:
    """Read `top1` in percent by backbone and tag (`resnet50.a1_in1k`), or `parameters` by backbone. Unpublished figures are missing."""
    file = Path(__file__).with_name({"top1": "imagenet_top1.csv", "parameters": "parameters.csv"}[figure])
    lines = (line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return {row["backbone"]: row[figure] for row in csv.DictReader(lines)}


def list_models(pattern: str | None = None, *, pretrained: bool = False) -> list[str]:
    """List the backbones that a recipe can name.

    Args:
        pattern: A part of the name, or a pattern such as `resnet*`. With a dot (`resnet50.*`) it lists weights by their tags. None lists
            all backbones.
        pretrained: Leave out backbones without published weights.

    Returns:
        timm's names and tlkit's own (googlenet, lenet5, ..), sorted as timm sorts them; empty where no name matches.
    """
    matches = re.compile(translate(pattern if pattern and "*" in pattern else f"*{pattern or ''}*")).match
    everything = timm.list_pretrained() if pattern and "." in pattern else timm.list_models(pretrained=pretrained, include_tags=False)
    return [str(name) for name in everything if matches(name)]


def print_models(pattern: str | None) -> int:
    """Print a row for every backbone whose name matches; a pattern with a dot (`resnet50.*`) gives a row for each of its weights.

    Raises BackboneError if no name matches.
    """
    names = list_models(pattern)
    if not names:
        raise BackboneError(f"No model's name matches '{pattern}'.\n  {expected_one_of(pattern or '', timm.list_models())}")
    everything = len(timm.list_pretrained() if pattern and "." in pattern else timm.list_models())
    console = output_console()
    console.print(_table(names, COLUMNS if console.width >= NARROW else COLUMNS[:5]))
    print_text(
        f"{len(names)} of {everything}. top-1: in % on ImageNet-1k, as timm and torchvision publish it for the default weights.\n"
        "M: million parameters, with 1000 classes. here: where the default weights are on this machine.\n"
        "All weights of one:  tlkit models 'resnet50.*'\n"
        "The stages of one:   tlkit models show resnet50",
        sys.stderr,
    )
    return 0


def _row(name: str) -> tuple[str, ...]:
    cfg = pretrained_cfg(name)
    architecture, _, own_tag = name.partition(".")
    tag = own_tag or str(cfg.get("tag") or "")
    accuracy, count = published("top1").get(f"{architecture}.{tag}"), published("parameters").get(architecture)
    return (
        name,
        f"{float(accuracy):.1f}" if accuracy else "",
        f"{int(count) / 1e6:.1f}" if count else "",
        "x".join(map(str, cfg.get("input_size", ()))),
        weights_here(name),
        cfg.get("license") or "",
        "" if own_tag else _weights(tag, _sets_of_weights()[architecture]),
    )


def _table(names: Iterable[str], columns: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in columns:
        is_number = heading in ("top-1", "M")
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold", no_wrap=is_number or heading == "input")
    for name in names:
        table.add_row(*_row(name)[: len(columns)])
    return table


@cache
def _sets_of_weights() -> Counter[str]:
    """Return for each architecture how many sets of weights timm names."""
    return Counter(str(pretrained).partition(".")[0] for pretrained in timm.list_pretrained())


def _weights(tag: str, sets: int) -> str:
    return f"{tag or 'untagged'}{f' and {sets - 1} more' if sets > 1 else ''}" if sets else "[dim]none[/dim]"
