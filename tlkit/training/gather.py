"""Everything a run needs from elsewhere, brought here before anything else happens. No lightning: what is missing is said at once."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tlkit.data.samples import Samples
from tlkit.data.sources import read_source
from tlkit.errors import RecipeError, TlkitError
from tlkit.models.weights import Weights, find_weights
from tlkit.recipe.schema import Recipe


def gather(recipe: Recipe) -> tuple[Samples, Weights]:
    """The recipe's pictures and weights, side by side.

    Raises what either raises; if both are missing, one TlkitError that tells of both.
    """
    with ThreadPoolExecutor(2) as pool:
        weights = pool.submit(find_weights, recipe.model)
        samples = pool.submit(read_source, recipe.data.source, Path(recipe.data.root), recipe.task)
    missing = [error for future in (samples, weights) if (error := _missing(future)) is not None]
    if len(missing) == 2:
        raise TlkitError("Neither the pictures nor the weights of this recipe can be had.\n\n" + "\n\n".join(map(str, missing)))
    return samples.result(), weights.result()


def _missing(future: "Future[Samples] | Future[Weights]") -> TlkitError | None:
    error = future.exception()
    # A recipe fault gets its line from the recipe, so it goes its own way.
    return error if isinstance(error, TlkitError) and not isinstance(error, RecipeError) else None
