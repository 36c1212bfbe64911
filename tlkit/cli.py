"""The command line: one row per command. A command's imports happen when it runs, so that `tlkit --help` answers at once."""

import errno
import os
import sys
import traceback
from argparse import Action, ArgumentParser, HelpFormatter, Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import Any

from tlkit import __version__
from tlkit.commands import completion, data, deploy, evaluate, explain, init, models, recipes, runs, search, training
from tlkit.errors import Interrupted, TlkitError, did_you_mean, expected_one_of, without_passwords
from tlkit.files import is_disk_full
from tlkit.system import as_command_line, hide_matplotlib_notes, ignore_pillow_warnings
from tlkit.terminal import escape_unencodable_output, print_text, wrap

EXAMPLES = """examples:
  tlkit finetune recipes/quickstart.yaml
  tlkit finetune quickstart 'phases[0].epochs=1' --out trial"""


# name: (what it does, its arguments, the command)
COMMANDS: dict[str, tuple[str, Callable[[ArgumentParser], None], Callable[[Namespace], int]]] = {
    "finetune": ("fine-tune a recipe's model, measure it, and write a run folder", training.finetune_arguments, training.finetune),
    "init": ("look at your images and write a recipe for them", init.init_arguments, init.init),
    "check": ("check a recipe without running it", training.check_arguments, training.check),
    "recipes ls": ("list the bundled recipes", recipes.no_arguments, recipes.list_recipes),
    "recipes show": ("print a bundled recipe", recipes.name_argument, recipes.show),
    "recipes cp": ("copy a bundled recipe, to make it your own", recipes.copy_arguments, recipes.copy),
    "recipes help": ("explain a key of a recipe: its meaning, values, default, and an example", recipes.help_arguments, recipes.help_key),
    "schema": ("print the JSON Schema of a recipe, for editors", recipes.no_arguments, recipes.schema),
    "models": ("list the backbones that a recipe can name", models.models_arguments, models.models),
    "data check": ("decode every image and list everything that is wrong, in one table", data.check_arguments, data.check),
    "data stats": ("count and measure images: classes, sizes, formats, mean and std, the mean image", data.stats_arguments, data.stats),
    "data audit": ("find duplicate images, leaks between splits, and wrong labels", data.audit_arguments, data.audit),
    "data preview": ("draw a sheet of training images as each epoch will see them", data.preview_arguments, data.preview),
    "data fetch": ("put everything that a recipe needs into one folder, for a machine without a network", data.fetch_arguments, data.fetch),
    "plan": ("show what a run will do: what trains, memory, steps, time", training.plan_arguments, training.plan),
    "lr": ("run a learning-rate range test and suggest a rate", training.lr_arguments, training.lr),
    "explain": ("draw what a network learned, and where its answers come from", explain.explain_arguments, explain.explain),
    "evaluate": ("measure a run's model again on its test images", evaluate.evaluate_arguments, evaluate.evaluate),
    "calibrate": ("promise an error rate: abstain where a run's model isn't sure", evaluate.calibrate_arguments, evaluate.calibrate),
    "drift": ("compare a folder's images with those that a run's model knows", evaluate.drift_arguments, evaluate.drift),
    "report": ("write the page on a run again: figures, curves, mistakes as images", evaluate.report_arguments, evaluate.report),
    "rank": ("compare backbones by their frozen features, before anything is trained", search.rank_arguments, search.rank),
    "tune": ("search for the values of a recipe that validate best, with Optuna", search.tune_arguments, search.tune),
    "runs": ("list runs, what they measured, and what was changed between them", runs.runs_arguments, runs.runs),
    "compare": ("test whether runs differ by more than chance, on their test images", search.compare_arguments, search.compare),
    "soup": ("average the weights of runs that validate best together, into one model", search.soup_arguments, search.soup),
    "reproduce": ("run a run's recipe again and compare the two, bit for bit", training.reproduce_arguments, training.reproduce),
    "predict": ("classify images", deploy.predict_arguments, deploy.predict),
    "export": ("export a model to ONNX and other formats, proved to give the same answers", deploy.export_arguments, deploy.export),
    "verify": ("check an exported model, and that it still gives the same answers", deploy.verify_arguments, deploy.verify),
    "serve": ("serve an artifact over HTTP, with a page to drop images on", deploy.serve_arguments, deploy.serve),
    "cache": ("list or remove cached activations", training.cache_arguments, training.cache),
    "bench": ("compare tlkit with a bare loop and a textbook Lightning script on this machine", training.bench_arguments, training.bench),
    "completion": ("print the shell completion of `tlkit`", completion.completion_arguments, completion.completion),
}
"""Ordered as a user meets them: the run, what comes before it, what comes after it."""

OPTIONS = ("--help", "--version", "--debug")
OTHER_NAMES = {
    **dict.fromkeys(("train", "fit", "run", "start"), "finetune"),
    **dict.fromkeys(("test", "eval", "measure", "score"), "evaluate"),
    **dict.fromkeys(("classify", "infer", "inference"), "predict"),
    **dict.fromkeys(("validate", "lint"), "check"),
    **dict.fromkeys(("list", "backbones"), "models"),
    "resume": "finetune",
    "recipes list": "recipes ls",
    "recipes copy": "recipes cp",
    "recipes cat": "recipes show",
}
"""Name of a command in other tools -> its name here."""
_IN_THE_WAY = "Choose another name, or move what is there."
PATH_FIXES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Change its permissions, or use another place."),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP), _IN_THE_WAY),
    errno.ENAMETOOLONG: "Use a shorter name.",
}
"""Error of the system about a path -> what the user can do: where no command has found it before."""
WIDEST_HELP = 110
NARROW = 60
"""Columns below which the help of an option stands under its name."""
HELP_OPTIONS = {
    "--version": "print the version",
    "--debug": "show the traceback of an error",
    "-h, --help": "print this help, or a command's: tlkit finetune --help",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Return 0 if done, 2 if the user can fix it, 1 for an internal error, 130 if interrupted, 75 to resume."""
    # albumentations asks the network for a newer version when it is imported, unless it is switched off.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    ignore_pillow_warnings()
    hide_matplotlib_notes()
    escape_unencodable_output()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        with as_command_line():
            code = _dispatch([word for word in words if word != "--debug"])
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse ends so, after its own message
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:  # the reader has seen enough: tlkit models | head
        _discard_output()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            print(without_passwords(traceback.format_exc()), end="", file=sys.stderr)
        code, message = _exit_status(error)
        print_text(without_passwords(message), sys.stderr)
        return code


def run() -> None:
    """Run the console script."""
    for stream, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, stream) is None:  # closed: tlkit check RECIPE >&-
            setattr(sys, stream, Path(os.devnull).open(mode))  # noqa: SIM115  # until the process ends
    start_again_in_utf8()
    if completion.ASKED in os.environ:
        completion.answer_shell(COMMANDS)
    sys.exit(main())


def start_again_in_utf8() -> None:
    """Replace this process by one in Python's UTF-8 mode, if it would decode file names, which are a folder's classes, in another encoding.

    Python has that mode in the locale C, unless PYTHONUTF8 is 0, and not in others such as en_US.ISO-8859-1. The terminal's encoding stays.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # this very command


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if group and words[1:] in ([], ["-h"], ["--help"]):
        print(f"usage: tlkit {words[0]} COMMAND ...\n\ncommands:\n{_rows((name, COMMANDS[name][0]) for name in group)}")
        return 0 if words[1:] else 2
    if words[0] == "--version":
        print(f"tlkit {__version__}")
        return 0
    name, rest = _command(words, group)
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise TlkitError("The folder that the command is run in is not there any more.\n  Change to another one: cd ~") from error
    purpose, add_arguments, command = COMMANDS[name]
    description = f"{purpose[0].upper()}{purpose[1:]}."
    parser = ArgumentParser(f"tlkit {name}", description=description, allow_abbrev=False, formatter_class=_Help)
    add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    # Intermixed: overrides may come after --out too.
    return command(parser.parse_intermixed_args(rest))


def _command(words: list[str], group: list[str]) -> tuple[str, list[str]]:
    """Split the words into a name in COMMANDS, of one word or two, and the rest. group: the two-word commands with this first word."""
    number = 2 if group else 1
    name = " ".join(words[:number])
    if name in COMMANDS:
        return name, words[number:]
    if name.startswith("-"):
        raise TlkitError(f"tlkit has no option '{name}'.\n  {expected_one_of(name, OPTIONS)} See: tlkit --help")
    names = group or list(COMMANDS)
    nearest = f"Did you mean '{OTHER_NAMES[name]}'?" if name in OTHER_NAMES else did_you_mean(name, names)
    raise TlkitError(f"tlkit has no command '{name}'.\n  Expected one of: {', '.join(names)}. {nearest}".rstrip() + "\n  See: tlkit --help")


def _help() -> str:
    return f"""usage: tlkit COMMAND ... [--debug]

{_folded("Fine-tune pretrained image backbones from one recipe file.")}

commands:
{_rows((name, purpose) for name, (purpose, *_) in COMMANDS.items())}

options:
{_rows(HELP_OPTIONS.items())}

{EXAMPLES}"""


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    """Return a line for each name and its purpose, folded beside the name where the terminal is narrow."""
    return "\n".join(_folded(f"  {name:<13} {purpose}", indent=16) for name, purpose in rows)


def _folded(text: str, *, indent: int = 0) -> str:
    return fill(text, _help_columns(), subsequent_indent=indent * " ", break_on_hyphens=False)


def _help_columns() -> int:
    return min(get_terminal_size((WIDEST_HELP, 24)).columns, WIDEST_HELP)


class _Help(HelpFormatter):
    """argparse's own, for narrow terminals too, and without its breaks at any hyphen: in `data-fetch` or 'photos/**'."""

    def __init__(self, prog: str) -> None:
        self._is_narrow = _help_columns() < NARROW
        super().__init__(prog, width=_help_columns() - 2, max_help_position=8 if self._is_narrow else 24)

    def add_usage(self, usage: str | None, actions: Iterable[Action], groups: Iterable[Any], prefix: str | None = None) -> None:
        if self._is_narrow and usage is None:
            positional = (self._format_args(action, action.dest) for action in actions if not action.option_strings)
            usage = _folded(" ".join(("usage:", self._prog, "[OPTIONS]", *positional)), indent=7)
            prefix = ""
        super().add_usage(usage, actions, groups, prefix)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(" ".join(text.split()), width).splitlines()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return wrap(" ".join(text.split()), width)


def _exit_status(error: BaseException) -> tuple[int, str]:
    """Return the exit code, and the message for the user."""
    if isinstance(error, TlkitError):
        return 2, str(error)
    if isinstance(error, Interrupted):
        return error.code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "Interrupted."
    if isinstance(error, OSError) and is_disk_full(error):
        _discard_output()
        return 2, f"The disk is full: {error.filename or 'no space left to write to'}.\n  Free some space, or write elsewhere with --out."
    if isinstance(error, OSError) and error.filename and error.errno in PATH_FIXES:
        fix = PATH_FIXES[error.errno]
        return 2, f"{error.filename} can't be read or written: {error.strerror}.\n  {fix}"
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return 1, f"Internal error (a bug in tlkit): {what}\n  Run again with --debug for the traceback."


def _discard_output() -> None:
    """Keep Python from writing what is left, and failing again, when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
