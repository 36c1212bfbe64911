"""Read a file of weights and find in it the tensors that belong to a backbone. Nothing in a file is ever run."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tlkit.errors import WeightsError
from tlkit.files import atomic_file
from tlkit.terminal import counted

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar")

COUNTERS = "num_batches_tracked"
"""Batch-norm's counters, which old files lack and torch's own load_state_dict sets to 0: they don't count as matches."""

_AVERAGED = re.compile(r"(?<![a-z])(ema|teacher|averaged|swa|shadow)(?![a-z])", re.IGNORECASE)
"""Words by which trainers name averaged weights: `state_dict_ema`, `params_ema`, DINO's `teacher`."""

_DEEPEST = 6
"""Dictionaries in dictionaries that are looked into."""


@dataclass(frozen=True)
class Fit:
    """A state dict of a file, seen as a backbone's.

    container: keys that lead to it, `model.state_dict`; empty for the file itself. prefix: what was taken off the tensors' names.
    tensors: those below the prefix, without it. fitting: how many are the backbone's by name and shape, of `expected`.
    left_out: tensors of the container that have another prefix.
    """

    container: str
    prefix: str
    tensors: Mapping[str, Tensor]
    fitting: int
    expected: int
    left_out: int

    @property
    def is_averaged(self) -> bool:
        return bool(_AVERAGED.search(f"{self.container}.{self.prefix}"))

    def __str__(self) -> str:
        """Return `'state_dict' without the prefix 'module.'`; empty for the names as they are in the file."""
        parts = [f"'{self.container}'"] if self.container else []
        parts += [f"without the prefix '{self.prefix}'"] if self.prefix else []
        return " ".join(parts)


def read_state_dicts(file: Path) -> dict[str, dict[str, Tensor]]:
    """Return every dictionary of tensors in a file with one of SUFFIXES, by the keys that lead to it: `model.state_dict`, or nothing.

    Raises WeightsError if the file is damaged, holds no tensors, or is a pickle of more than tensors and plain containers.
    """
    content = _read_pickle(file) if _is_pickle(file) else _read_safetensors(file)
    found = dict(_state_dicts(content))
    if not found:
        keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else ""
        empty = "an empty" if isinstance(content, Mapping | list | tuple) and not content else "a"
        what = f"a dictionary of {keys}" if keys else f"{empty} {type(content).__name__}"
        raise WeightsError(f"{file} holds no state dict but {what}.\n  Save the network's state_dict() into it, or in it as 'state_dict'.")
    return found


def fits(state_dicts: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Tensor]) -> list[Fit]:
    """Return the ways to see a file as a backbone's, the best first: of each dictionary the prefix under which most tensors fit.

    Averaged weights go before others that fit as well. expected: the backbone's own state dict.
    """
    found = [_fit(container, tensors, expected) for container, tensors in state_dicts.items()]
    return sorted(found, key=lambda fit: (-fit.fitting, not fit.is_averaged, -len(fit.tensors)))


BOUNDS = ("_min", "_max")
"""Ends of the names of buffers that values are clamped to: infinite where they clamp nothing, as in timm's gemma4_vit."""


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Return `bn1.running_var holds NaN or infinity in 1 of its 64 values` for the first tensor that does, or an empty string."""
    broken = [name for name, tensor in tensors.items() if (tensor.isnan() if name.endswith(BOUNDS) else ~tensor.isfinite()).any()]
    if not broken:
        return ""
    tensor = tensors[broken[0]]
    more = f" (and {counted(len(broken) - 1, 'other tensor')})" if len(broken) > 1 else ""
    return f"{broken[0]} holds NaN or infinity in {int((~tensor.isfinite()).sum())} of its {tensor.numel()} values{more}"


def _fit(container: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Fit:
    """Match names under each prefix that leaves a name of the backbone; the first of equal prefixes wins, averaged ones before others."""
    by_name, by_shape = Counter({"": 0}), Counter[str]()
    for name, tensor in tensors.items():
        for prefix, rest in _prefixes(name):
            if rest in expected and not rest.endswith(COUNTERS):
                by_name[prefix] += 1
                by_shape[prefix] += tensor.shape == expected[rest].shape
    prefix = max(by_name, key=lambda prefix: (by_shape[prefix], by_name[prefix], bool(_AVERAGED.search(prefix))))
    below = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    counted = sum(not name.endswith(COUNTERS) for name in expected)
    return Fit(container, prefix, below, by_shape[prefix], counted, len(tensors) - len(below))


def _prefixes(name: str) -> Iterator[tuple[str, str]]:
    """Yield `a.b.c` -> ("", "a.b.c"), ("a.", "b.c"), ("a.b.", "c")."""
    start = 0
    while True:
        yield name[:start], name[start:]
        if (dot := name.find(".", start)) < 0:
            return
        start = dot + 1


def _state_dicts(content: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if isinstance(content, list | tuple):
        content = {str(number): value for number, value in enumerate(content) if isinstance(value, Mapping)}
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    if tensors := {str(key): value for key, value in content.items() if isinstance(value, Tensor)}:
        yield path, tensors
    for key, value in content.items():
        yield from _state_dicts(value, f"{path}.{key}".removeprefix("."), depth + 1)


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write safetensors, whole or not at all. Their user flushes them where they must outlive a power failure.

    Raises OSError with the file's name where safetensors 0.8 raises an error of its own.
    """
    try:
        with atomic_file(file, durable=False) as writing:
            save_file(dict(tensors), writing)
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error
        raise


_NOT_WEIGHTS = (
    (re.compile(rb"$"), "is empty", "Fetch it again."),
    (re.compile(rb"version https://git-lfs"), "is a pointer of Git LFS, not the weights themselves", "Fetch them: git lfs pull"),
    (re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE), "is a web page", "Fetch the file itself: its page links to it."),
    (re.compile(rb"[\w\s{}\[\]\"':,.#/=-]{16}"), "is text", "Name the file that holds the tensors."),
)
"""What a file begins with that stands in the place of weights, what it is, and what to do."""


LONGEST_HEADER = 100_000_000
"""Bytes: safetensors itself reads no longer one. A pickle's first eight bytes, as a number, are more."""


def _is_pickle(file: Path) -> bool:
    """Return whether torch.save wrote a file, by its first bytes: people rename them. Raises WeightsError for what holds no weights."""
    with file.open("rb") as opened:
        start = opened.read(64)
    if found := next(((what, fix) for form, what, fix in _NOT_WEIGHTS if form.match(start)), None):
        raise WeightsError(f"{file} {found[0]}.\n  {found[1]}")
    # safetensors begin with the length of their header, in eight bytes, so that any two may come first: also those of a pickle or a zip.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= LONGEST_HEADER:
        return False
    return start.startswith((b"PK", b"\x80")) or file.suffix.lower() != ".safetensors"


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise WeightsError(
            f"{file} can't be read as safetensors: {error}\n  The file may be cut short: compare its size, and fetch it again."
        ) from error


def _read_pickle(file: Path) -> Any:
    try:
        with file.open("rb") as opened, warnings.catch_warnings():  # of a path, torch 2.15 goes by its ending
            warnings.simplefilter("ignore", UserWarning)  # torch 2.15's words on what is refused below
            # weights_only unpickles tensors and plain containers, and refuses everything that could run.
            return torch.load(opened, map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged bytes an unpickler can make nearly any error
        raise WeightsError(_why_not(file, error)) from error


def _why_not(file: Path, error: Exception) -> str:
    needs = re.search(r"GLOBAL ([\w.]+)", str(error))
    if needs is None and "TorchScript" not in str(error):
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if "weights_only" in reason:  # torch goes on to advise what would run the code in a file
            reason = "it is no file that torch.save has written"
        return f"{file} can't be read: {reason}\n  The file may be damaged or cut short: compare its size, and fetch it again."
    what = f"it needs {needs[1]}" if needs else "it is a TorchScript program"
    return (
        f"{file} holds more than weights: {what}. To read that can run any code that somebody put into the file, so tlkit never does.\n"
        "  If you trust who made it, convert it once, where the code that it needs is installed:\n"
        "    import torch; from safetensors.torch import save_file\n"
        f"    content = torch.load('{file.name}', map_location='cpu', weights_only=False)  # a dictionary, or the network itself\n"
        "    state = content.get('state_dict', content) if isinstance(content, dict) else content.state_dict()\n"
        f"    save_file({{name: tensor.clone() for name, tensor in state.items()}}, '{file.name.partition('.')[0]}.safetensors')"
    )
