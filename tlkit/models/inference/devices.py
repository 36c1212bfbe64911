"""Which device a model runs on where nothing is trained."""

import torch

from tlkit.errors import DeviceError


def find_device(name: str) -> torch.device:
    """Return the device of a name: cpu, cuda, cuda:1, mps, or auto for an accelerator where there is one.

    Raises DeviceError if this machine doesn't have it.
    """
    there = _devices()
    if name == "auto":
        return torch.device(there[1] if len(there) > 1 else "cpu")
    if name not in (*there, *(device.partition(":")[0] for device in there)):
        raise DeviceError(f"device = '{name}' is not available on this machine.\n  Expected auto, or one of: {', '.join(there)}.")
    return torch.device(name)


def _devices() -> list[str]:
    """Return the names of this machine's devices, cpu first."""
    return [
        "cpu",
        *(f"cuda:{number}" for number in range(torch.cuda.device_count())),
        *(["mps"] if torch.backends.mps.is_available() else []),
    ]
