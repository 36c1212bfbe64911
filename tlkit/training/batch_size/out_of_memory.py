"""Report out of memory with the batch size that would have fitted."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tlkit.errors import Fault, RecipeError
from tlkit.training.batch_size.find import largest_batch

LOG = logging.getLogger("tlkit")

# Words of torch's CPU allocator, of C++ and of oneDNN; CUDA has an error class of its own.
_WORDS = re.compile(r"out of memory|can't allocate|bad_alloc|could not create a primitive|not enough memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and bool(_WORDS.search(str(error))))


@contextmanager
def memory_explained(asked: int, recipe: str) -> Iterator[None]:
    """Raise RecipeError instead of torch's error, with the batch size that fits every phase, tried in another process.

    asked: the batch size that is too large. recipe: as YAML.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        LOG.warning("training ran out of memory; looking for the largest batch that fits")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        fits = largest_batch(recipe, most=asked - 1)
        problem = f"= {asked} doesn't fit into memory: {_first_line(error)}"
        if fits:
            fix = f"Set it to {fits}, the largest that fitted when it was tried now; optimizer.accumulate keeps a step as large as it was."
        else:
            fix = "Not even two images fit: lower data.image_size, train fewer stages, or choose a smaller backbone."
        raise RecipeError([Fault("data.batch_size", problem, fix)]) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
