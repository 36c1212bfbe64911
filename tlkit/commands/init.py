"""`tlkit init`: looks at the data, asks at most five questions, and writes a recipe that runs."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.commands.arguments import as_number, output_file, source_of, unknown_data
from tlkit.commands.log import show_log
from tlkit.commands.recipes import refuse_existing, write_new
from tlkit.files import expanded
from tlkit.terminal import counted, print_text, tlkit_command

if TYPE_CHECKING:
    from tlkit.search.init import Answers
    from tlkit.search.look import Facts

MINUTES = 30.0


def init_arguments(parser: ArgumentParser) -> None:
    help = "images: a folder, .csv, .tsv, .parquet, .npz, 'shards/*.tar', or any data.source, such as '{torchvision: CIFAR10}'"
    parser.add_argument("data", metavar="DATA", help=help)
    parser.add_argument(
        "--out", type=output_file, default=Path("recipe.yaml"), metavar="FILE", help="the recipe to write (default: recipe.yaml)"
    )
    parser.add_argument("--yes", action="store_true", help="ask nothing: take what would be proposed")
    parser.add_argument("--minutes", type=_minutes, metavar="N", help=f"how long training may take (default: {MINUTES:.0f})")
    parser.add_argument("--offline", action="store_true", help="make no network call: choose among the weights that are on this machine")


def init(arguments: Namespace) -> int:
    out: Path = arguments.out
    refuse_existing(out)
    from tlkit.recipe.fetched import go_offline

    source = _source(arguments.data)
    if arguments.offline:
        go_offline()
    print_text(f"{arguments.data}: loading torch, then looking at the images", sys.stderr)
    from tlkit.models.inference.devices import find_device
    from tlkit.search.choices import Wanted, choose
    from tlkit.search.init import check_enough, find_available, recipe_name, write_recipe
    from tlkit.search.look import look_at
    from tlkit.system import processors

    with show_log():
        facts = look_at(source)
    check_enough(facts, arguments.data)
    print_text(_seen(facts))
    asks = not arguments.yes and sys.stdin.isatty() and sys.stdout.isatty()
    answers, minutes, offline = _ask(facts, arguments) if asks else (_assumed(facts), arguments.minutes or MINUTES, arguments.offline)
    if offline:
        go_offline()
    available = find_available(offline=offline)
    device = find_device("auto").type
    wanted = Wanted(facts.training, facts.smallest, facts.short_side, device, processors(), minutes, available.backbones)
    choice = choose(wanted)
    written = write_recipe(facts, choice, answers, name=recipe_name(arguments.data), available=available, out=out)
    if written.table:
        write_new(out.with_suffix(".csv"), written.table)
    write_new(out, written.recipe)
    second = "the whole network" if choice.way.second == "all" else f"its {choice.way.second.strip('{}').replace(': ', ' ')} stages"
    phases = f"the head, then {second}, {choice.epochs} epochs" if choice.epochs else "the head"
    print_text(f"{out}: {choice.backbone.name} at {choice.image_size} px, {phases}. {available.note[0].upper()}{available.note[1:]}.")
    print_text(f"The reasons are beside the values. Next:\n    {tlkit_command('finetune', str(out))}")
    return 0


def _source(data: str) -> dict[str, Any]:
    if data.lstrip().startswith("{"):
        from tlkit.recipe.yaml12 import read_yaml

        value = read_yaml(data, lambda line: "DATA", root="data.source").value
        return value if isinstance(value, dict) else {}
    source = source_of(data)
    if source is None or not (expanded(data).exists() or any(sign in data for sign in "*?{")):
        raise unknown_data(data)
    return dict(source)


def _seen(facts: "Facts") -> str:
    splits = {"train": "training", "val": "validation", "test": "test", "": "not split"}
    parts = ", ".join(f"{facts.splits[split]:,} {name}" for split, name in splits.items() if split in facts.splits)
    colour = {1: "grey", 3: "colour"}.get(facts.channels, f"{facts.channels} channels")
    few, many = min(facts.counts.values()), max(facts.counts.values())
    each = f"{few:,} to {many:,}" if few < many else f"{few:,}"
    each += "" if facts.training == facts.images else " training images"
    lines = [
        f"{facts.images:,} images ({parts}) in {len(facts.counts)} classes of {each}",
        f"shorter side {facts.short_side:,} px, {colour}",
    ]
    if facts.duplicates:
        lines.append(f"{counted(facts.duplicates, 'image is', 'images are')} there twice")
    if named := {sample.group for sample in facts.samples.samples} - {None}:
        lines.append(f"{len(named):,} groups by the table: none will be in two splits")
    if facts.groups:
        lines.append(f"file names look like {facts.groups.count:,} groups, such as {facts.groups.example}")
    return "\n".join(f"  {line}" for line in lines)


def _assumed(facts: "Facts") -> "Answers":
    """Return the answers that are assumed: no groups; classes named by one character are letters or digits, which can't be mirrored."""
    from tlkit.search.init import Answers

    return Answers(mirror=not all(len(name) == 1 for name in facts.counts))


def _ask(facts: "Facts", arguments: Namespace) -> tuple["Answers", float, bool]:
    """Return the answers, the minutes, and whether no network is to be asked; five questions at most."""
    from tlkit.data.samples import LARGEST_FOLD
    from tlkit.search.init import Answers

    assumed = _assumed(facts)
    groups = False
    if facts.groups and "folder" in facts.source:
        groups = _yes(f"Do images whose names begin alike ({facts.groups.example}) belong together, such as those of one patient?", False)
    rare = facts.imbalance <= LARGEST_FOLD or _yes("Are rare classes to count as much as common ones?", True)
    mirror = _yes("Can an image be mirrored, left to right, and still show its class?", assumed.mirror)
    minutes = arguments.minutes or _number("How many minutes may training take?", MINUTES)
    offline = arguments.offline or not _yes("May weights be downloaded from the hub?", True)
    return Answers(groups, rare, mirror), minutes, offline


def _yes(question: str, default: bool) -> bool:
    while True:
        answer = _answer(f"{question} [{'Y/n' if default else 'y/N'}] ").lower()
        if answer in ("", "y", "yes", "n", "no"):
            return answer[0] == "y" if answer else default
        print_text(f"'{answer}' is not y or n")


def _number(question: str, default: float) -> float:
    while True:
        answer = _answer(f"{question} [{default:.0f}] ")
        try:
            return _minutes(answer) if answer else default
        except ArgumentTypeError as error:
            print_text(str(error))


def _answer(question: str) -> str:
    """Return what the user writes; for Ctrl-D nothing, which takes what is proposed."""
    try:
        return input(question).strip()
    except EOFError:
        print_text("")
        return ""


def _minutes(text: str) -> float:
    value = as_number(text)
    if not 0 < value < inf:
        raise ArgumentTypeError(f"'{text}' is not a number of minutes above 0")
    return value
