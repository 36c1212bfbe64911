"""What the perceptual hash is made of, kept for the next run over the same pictures."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256

import numpy as np

from tlkit.cache_folder import cache_folder
from tlkit.data.near_duplicates import WAVES, Waves, waves_of
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Sample

FORMAT = 1
FOLDER = "waves"


def kept_waves(
    samples: Sequence[Sample], hashes: Mapping[str, str], preprocessing: Preprocessing, on_picture: Callable[[int], None]
) -> Waves:
    """As waves_of gives them. hashes: a picture's id -> its sha256, by which the pictures are known again, 256 bytes for each."""
    facts = [FORMAT, preprocessing.to_json(), [hashes[sample.id] for sample in samples]]
    file = cache_folder() / FOLDER / f"{sha256(json.dumps(facts).encode()).hexdigest()[:32]}.npy"
    with suppress(OSError, ValueError):
        found = np.load(file, allow_pickle=False)
        if found.shape == (len(samples), WAVES * WAVES) and found.dtype == np.float32:
            on_picture(len(samples))
            return np.asarray(found, np.float32)
    waves = waves_of(samples, preprocessing.decode, on_picture)
    if not np.isnan(waves).any():  # else one may be mended without another hash: a disk, permissions
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            writing = file.with_suffix(f".{os.getpid()}.npy")
            np.save(writing, waves)
            writing.replace(file)
    return waves
