"""Images through a model in a stream: threads decode while the network runs, and no more is held than a few batches."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tlkit.data.preprocess import Preprocessing
from tlkit.deploy.predict.prediction import NOT_FINITE, Prediction
from tlkit.deploy.predict.predictor import Predictor
from tlkit.errors import DataError
from tlkit.system import processors

BATCH_SIZE = 32
# Batches that are being decoded while one is in the network.
AHEAD = 3
# Names that a thread takes at once: handing over costs as much as decoding a very small image.
SHARE = 8
Fitted = NDArray[np.uint8] | str
"""An image [S, S, C], or why there is none."""


@dataclass(frozen=True)
class Batch:
    """errors: of the names that can't be read, by their place. images: [B, S, S, C] of all others, in their order."""

    names: tuple[str, ...]
    errors: dict[int, str]
    images: NDArray[np.uint8] | None

    @property
    def readable(self) -> list[str]:
        return [name for place, name in enumerate(self.names) if place not in self.errors]


def predictions(predictor: Predictor, names: Iterable[str]) -> Iterator[list[Prediction]]:
    """Yield predictions a batch at a time, in the order of the names. A file that can't be read gets a prediction with `error`."""
    for batch in batches(predictor.preprocessing, names):
        yield _predict(predictor, batch)


def batches(preprocessing: Preprocessing, names: Iterable[str]) -> Iterator[Batch]:
    """Yield decoded and fitted batches, in the order of the names; the next ones are decoded while the caller works on one."""
    remaining = iter(names)
    under_way: deque[tuple[tuple[str, ...], list[Future[list[Fitted]]]]] = deque()
    with ThreadPoolExecutor(_decoders(), thread_name_prefix="decode") as pool:
        try:
            while True:
                while len(under_way) <= AHEAD and (batch := tuple(islice(remaining, BATCH_SIZE))):
                    shares = [batch[start : start + SHARE] for start in range(0, len(batch), SHARE)]
                    under_way.append((batch, [pool.submit(_read_all, share, preprocessing) for share in shares]))
                if not under_way:
                    return
                batch, futures = under_way.popleft()
                yield _gathered(batch, [fitted for future in futures for fitted in future.result()])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _gathered(names: tuple[str, ...], found: list[Fitted]) -> Batch:
    errors = {place: fitted for place, fitted in enumerate(found) if isinstance(fitted, str)}
    images = [fitted for fitted in found if not isinstance(fitted, str)]
    return Batch(names, errors, np.stack(images) if images else None)


def _predict(predictor: Predictor, batch: Batch) -> list[Prediction]:
    answers: Iterator[Prediction] = iter(())
    if batch.images is not None:
        found = predictor.answer(batch.images)
        rows = [()] * len(found.probabilities) if found.logits is None else map(tuple, found.logits.tolist())
        unknown = [None] * len(found.probabilities) if found.unknown is None else found.unknown.tolist()
        answers = map(partial(_prediction, thresholds=predictor.thresholds), batch.readable, found.probabilities, rows, unknown)
    return [Prediction(name, error=batch.errors[i]) if i in batch.errors else next(answers) for i, name in enumerate(batch.names)]


def _prediction(
    name: str, probabilities: NDArray[np.float64], logits: tuple[float, ...], unknown: float | None, *, thresholds: tuple[float, ...]
) -> Prediction:
    if not np.isfinite(probabilities).all():
        return Prediction(name, error=f"{name}: {NOT_FINITE}")
    return Prediction(name, probabilities, logits, thresholds=thresholds, unknown=unknown)


def _read_all(names: Iterable[str], preprocessing: Preprocessing) -> list[Fitted]:
    return [_read(name, preprocessing) for name in names]


def _read(name: str, preprocessing: Preprocessing) -> Fitted:
    try:
        return preprocessing.read(Path(name))
    except DataError as error:
        return str(error)
    except Exception as error:  # one odd file of a million is no reason to stop, and to stop at it again when resumed
        return f"{name}: it can't be decoded ({type(error).__name__}: {error})."


def _decoders() -> int:
    """Return how many threads: one a processor, as the network leaves them idle; limited, so that large images don't fill memory."""
    return min(8, processors())
