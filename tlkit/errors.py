"""Errors that a user can fix: one message with the place, what came, what was expected and the nearest fix."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path


class TlkitError(Exception):
    """An error that the user can fix. The command line prints its message without a traceback and exits with 2."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a recipe.

    key: dotted path, as for an override: `phases[1].train.from`.
    problem: what came and why it can't be used: `= 'layr4' is not a stage of resnet18.`
    fix: what was expected, and the nearest word.
    place: `file:line`; empty until the recipe that knows its lines fills it in.
    """

    key: str
    problem: str
    fix: str
    place: str = ""

    def __str__(self) -> str:
        start = f"{self.place}: " if self.place else ""
        return f"{start}{self.key} {self.problem}\n  {self.fix}"

    def at(self, place: str) -> "Fault":
        return replace(self, place=self.place or place)


def without_passwords(text: str) -> str:
    """Hide passwords: `https://name:secret@host` -> `https://***@host`, since libraries print the addresses of proxies and mirrors."""
    return re.sub(r"(\w://)[^/\s@]+@", r"\1***@", text)


class RecipeError(TlkitError):
    """Everything that is wrong with a recipe, all at once."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(map(str, self.faults)))


class DataError(TlkitError):
    """Images, labels or splits that can't be used. meant: the keys of the recipe's data that seem to be meant, with their values."""

    def __init__(self, message: str, meant: Mapping[str, str | int] | None = None) -> None:
        super().__init__(message)
        self.meant = dict(meant or {})


ON_BAD_HINT = "`tlkit data check RECIPE` names every such image, and data.on_bad=skip leaves them out of a run."
"""The last line of an error about one image of many."""


class MissingDataError(DataError):
    """Images that aren't on this machine, or their table or folder; not what is there and can't be used."""


class BackboneError(TlkitError):
    """A backbone that can't do what was asked of it."""


class WeightsError(TlkitError):
    """Weights that are missing, or don't fit the backbone."""


class MissingWeightsError(WeightsError):
    """Weights that aren't on this machine; not a file that is there and can't be used."""


class RunError(TlkitError):
    """A run folder or model folder that can't be read or written."""


class ArtifactError(TlkitError):
    """An exported model that can't be made, read, or trusted."""


class TrainingError(TlkitError):
    """Training that can't continue."""


class DeviceError(TlkitError):
    """A device, strategy or precision that this machine doesn't have."""


class CacheUnavailable(Exception):
    """Say why a cache is not used: what it would have held is computed in every epoch instead."""


class Interrupted(KeyboardInterrupt):
    """A signal ended what ran. code: the exit code of the command."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class MissingExtraError(TlkitError):
    """A part of tlkit whose optional packages aren't installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}, which is not installed.\n  Install it with: pip install 'tlkit[{extra}]'")


@contextmanager
def as_written(file: Path | str, *others: type[Exception]) -> Iterator[None]:
    """Raise RunError in place of what a file's content raises if it isn't as tlkit has written it: cut off, or changed by hand.

    others: what else it may raise, such as OSError.
    """
    expected: tuple[type[Exception], ...] = (ValueError, LookupError, TypeError, AttributeError, RecursionError, *others)
    try:
        yield
    except expected as error:
        is_sentence = isinstance(error, ValueError | OSError)
        what = str(error) if is_sentence else f"it has no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        fix = "Copy the whole folder again, as tlkit wrote it. If nothing has changed it, this is a bug in tlkit: --debug shows where."
        raise RunError(f"{file} can't be read: {what}\n  {fix}") from error


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `Did you mean 'layer4'?` for the nearest choice, or an empty string if nothing is near."""
    nearest = get_close_matches(word, list(choices), n=1, cutoff=0.6)
    if not nearest:
        lowered = {choice.lower(): choice for choice in choices}
        nearest = [lowered[found] for found in get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)]
    return f"Did you mean '{nearest[0]}'?" if nearest else ""


def expected_one_of(word: str, choices: Sequence[str]) -> str:
    """Return `Expected one of: a, b. Did you mean 'a'?`, with at most twelve choices."""
    shown = ", ".join(choices[:12]) + (f", ... ({len(choices)} in all)" if len(choices) > 12 else "")
    return f"Expected one of: {shown}. {did_you_mean(word, choices)}".rstrip()
