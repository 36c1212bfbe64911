"""Restore what a run changes in its process: environment variables, and torch's switches for determinism."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tlkit.training.distributed.ranks import are_connected


@contextmanager
def left_as_found() -> Iterator[None]:
    """Restore what the libraries below set for a run, such as PL_GLOBAL_SEED and CUBLAS_WORKSPACE_CONFIG.

    Where the run has connected processes, their variables stay: a later run is connected by them.
    """
    import torch

    variables = dict(os.environ)
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.backends.cudnn.benchmark = benchmark
        if not are_connected():
            for name in os.environ.keys() - variables.keys():
                del os.environ[name]
            os.environ.update(variables)
