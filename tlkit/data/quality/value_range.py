"""16-bit images whose values use little of `data.range_16bit`: a camera of 12 bits would give nearly black images."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tlkit.data.decode import range_of_16bit
from tlkit.data.samples import ImageSource
from tlkit.recipe.fields.data import Data

MOST_IMAGES = 64
"""Number of images examined, spread over all."""
HARDLY = 0.5
"""Share of the range: 15-bit values use half of it, and aren't reported."""


def range_warning(images: Sequence[ImageSource], data: Data) -> str:
    """Return what to set where 16-bit images leave more than half of the range unused, or the empty string."""
    step = max(1, -(-len(images) // MOST_IMAGES))
    with ThreadPoolExecutor() as threads:
        found = [pair for pair in threads.map(partial(range_of_16bit, max_pixels=data.max_pixels), images[::step]) if pair]
    if not found:
        return ""
    least, most = min(pair[0] for pair in found), max(pair[1] for pair in found)
    low, high = data.range_16bit
    if most - low > HARDLY * (high - low) or most <= low:
        return ""
    fits = min(2**bits - 1 for bits in range(8, 17) if 2**bits > most)
    number = "the one 16-bit image" if len(found) == 1 else f"{len(found)} 16-bit images"
    return (
        f"the values of {number} looked at go from {least} to {most}, and data.range_16bit = [{low}, {high}] makes them nearly black. "
        f"data.range_16bit=[{min(low, least)}, {fits}] fits."
    )
