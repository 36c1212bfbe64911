"""`tlkit completion SHELL`, and what a shell that completes a word of `tlkit ...` asks for."""

import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tlkit.errors import MissingExtraError

ASKED = "_ARGCOMPLETE"
"""Set in the environment by argcomplete's shell function, which then runs `tlkit` for the words that may follow."""

SHELLS = ("bash", "zsh", "fish")


def completion_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="prints the script of this shell; docs/recipes.md says where to put it")


def completion(arguments: Namespace) -> int:
    try:
        from argcomplete.shell_integration import shellcode
    except ImportError as error:
        raise MissingExtraError("argcomplete", "completion", "Shell completion") from error
    print(shellcode(["tlkit"], shell=arguments.shell))
    return 0


def answer_shell(commands: Mapping[str, tuple[str, Callable[[ArgumentParser], None], Any]]) -> None:
    """Write what may follow to the shell that asks, and end the process.

    Only the command that is being typed gets its arguments: those of others may take imports.
    """
    import argcomplete

    line = os.environ["COMP_LINE"].encode()[: int(os.environ["COMP_POINT"])].decode(errors="ignore")
    typed = line.split()[1:]
    parser = ArgumentParser("tlkit")
    groups = {"": parser.add_subparsers()}
    for name, (purpose, add_arguments, _) in commands.items():
        group, _, word = name.rpartition(" ")
        if group not in groups:
            groups[group] = groups[""].add_parser(group, help=f"{group} ...").add_subparsers()
        command = groups[group].add_parser(word, help=purpose)
        if typed[: len(name.split())] == name.split():
            add_arguments(command)
    argcomplete.autocomplete(parser, always_complete_options=False)


def complete_recipe(prefix: str, **given: Any) -> list[str]:
    """Return the recipes that ship, and the YAML files and folders that are there."""
    from argcomplete.completers import FilesCompleter

    from tlkit.system import bundled_recipes

    files: Iterable[str] = FilesCompleter(("yaml", "yml"))(prefix)
    return [*bundled_recipes(), *files]


def complete_override(prefix: str, **given: Any) -> list[str]:
    """Return `KEY=` for every key of a recipe that begins so; after the `=` the values that it can have."""
    from tlkit.recipe.reference import choices_of

    key, equals, _ = prefix.partition("=")
    return [f"{key}={value}" for value in choices_of(key)] if equals else [f"{known}=" for known in complete_key(prefix)]


def complete_key(prefix: str, **given: Any) -> list[str]:
    """Return the keys of a recipe that begin so."""
    from tlkit.recipe.reference import all_keys

    first = re.sub(r"\[\d+\]", "[0]", prefix)  # the second phase has the keys of the first
    return [f"{prefix}{known[len(first) :]}" for known in all_keys() if known.startswith(first)]
