"""Which process of a run this is, by the variables that torchrun, SLURM and Lightning set."""

import os


def is_main_process() -> bool:
    """Return False in the processes for other devices, of this machine and of others: they run the same command, and leave no files.

    torchrun numbers them in RANK. SLURM and Lightning, which starts those of one machine itself, number machines and processes apart.
    """
    keys = ("RANK",) if "RANK" in os.environ else ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
    return all(int(os.environ.get(key, "0")) == 0 for key in keys)


def is_local_main_process() -> bool:
    """Return whether this is the first process of its machine."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))) == 0


def are_connected() -> bool:
    """Return whether the processes of this run have joined one process group."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()
