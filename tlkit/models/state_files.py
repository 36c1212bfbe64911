"""A file of weights -> its tensors, under a backbone's own names. Nothing in a file is ever run."""

import os
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tlkit.errors import WeightsError
from tlkit.files import atomic_file

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
# Where training scripts put a state dict: timm's, torchvision's and Lightning's, and DINO's teacher. Averaged weights go first, as in timm.
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "teacher")
# What they put before its names: DDP, torch.compile, the attribute that held the network, tlkit's own checkpoints.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "classifier.", "backbone.")


def read_tensors(file: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file with one of SUFFIXES, by name, and which of CONTAINERS they lay in: `state_dict`, or nothing.

    Raises WeightsError if the file is damaged, holds no tensors, or is a pickle of more than tensors and plain containers.
    """
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    container = ""
    while isinstance(content, Mapping) and (name := next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)):
        content, container = content[name], f"{container}.{name}".removeprefix(".")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        what = (
            f"a dictionary of {', '.join(map(str, list(content)[:8]))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        )
        raise WeightsError(f"{file} holds no state dict but {what}.\n  Save the network's state_dict() into it, or in it as 'state_dict'.")
    return tensors, container


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write safetensors, whole or not at all. Their user flushes them where they must outlive a power failure.

    Raises OSError, with the file's name, for what the system says: safetensors 0.8 has an error of its own for it.
    """
    try:
        with atomic_file(file, durable=False) as writing:
            save_file(dict(tensors), writing)
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error
        raise


def under_names(tensors: Mapping[str, Tensor], expected: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors without the PREFIXES that keep every name from being an expected one, and what was taken off: `module.backbone.`.

    What doesn't begin so (the head of a whole classifier, a loss) is left out. Unchanged where no prefix helps.
    """
    found, taken = dict(tensors), ""
    while not any(name in expected for name in found):
        prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in found)), None)
        if prefix is None:
            return dict(tensors), ""
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
        taken += prefix
    return found, taken


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise WeightsError(
            f"{file} can't be read as safetensors: {error}\n  The file may be cut short: compare its size, and fetch it again."
        ) from error


def _read_pickle(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch 2.15's words on what is refused below
            # weights_only unpickles tensors and plain containers, and refuses everything that could run.
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged bytes an unpickler can make nearly any error
        raise WeightsError(_why_not(file, error)) from error


def _why_not(file: Path, error: Exception) -> str:
    needs = re.search(r"GLOBAL ([\w.]+)", str(error))
    if needs is None and "TorchScript" not in str(error):
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
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
