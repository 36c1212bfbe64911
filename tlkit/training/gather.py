"""Everything a run needs from elsewhere, brought here before anything else happens. No lightning: what is missing is said at once."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tlkit.data.on_bad import leave_out_bad
from tlkit.data.samples import Samples
from tlkit.data.sources import read_source
from tlkit.errors import RecipeError, TlkitError
from tlkit.models.weights import Weights, find_weights
from tlkit.recipe.schema import Recipe

T = TypeVar("T")


def gather(recipe: Recipe) -> tuple[Samples, Weights]:
    """The recipe's pictures and weights, side by side.

    Raises what either raises; if both are missing, one TlkitError that tells of both.
    """
    samples, weights = gather_what_there_is(recipe)
    if isinstance(samples, TlkitError):
        if isinstance(weights, TlkitError):
            raise TlkitError(f"Neither the pictures nor the weights of this recipe can be had.\n\n{samples}\n\n{weights}")
        raise samples
    if isinstance(weights, TlkitError):
        raise weights
    return samples, weights


def gather_what_there_is(recipe: Recipe) -> tuple[Samples | TlkitError, Weights | TlkitError]:
    """Pictures and weights, or what keeps them from being had. Raises RecipeError: a fault of the recipe is no lack of anything."""
    skips = recipe.data.on_bad == "skip"
    with ThreadPoolExecutor(2) as pool:
        weights = pool.submit(find_weights, recipe.model)
        samples = pool.submit(read_source, recipe.data.source, Path(recipe.data.root), recipe.task, keep_missing=skips)
    found = _result(samples)
    if skips and isinstance(found, Samples):
        # Here, and not beside the weights: Ctrl-C reaches this thread alone.
        try:
            found = leave_out_bad(found, recipe.data)
        except TlkitError as error:
            found = error
    return found, _result(weights)


def _result(future: Future[T]) -> T | TlkitError:
    try:
        return future.result()
    except RecipeError:
        raise
    except TlkitError as error:
        return error
