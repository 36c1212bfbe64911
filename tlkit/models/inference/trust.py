"""How far a model's answers can be trusted, as tlkit.json and artifact.json say it: plain values, read without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""With which the promise of `Abstain` holds."""
TRAINING_SAMPLE = "training_sample.safetensors"
NOT_SURE = "not sure"
UNLIKE = "unlike any training image"


@dataclass(frozen=True)
class Calibration:
    """temperature: what logits are divided by before the softmax; 1 where none can be fitted. reason: why not, as a sentence."""

    temperature: float = 1.0
    pictures: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Abstain:
    """threshold: the probability below which no class is named. error: that of the named classes stays below it, with `confidence`.

    coverage, pictures: the share of validation images that get an answer, and how many images there are. groups: in so many; 0 without.
    """

    threshold: float
    error: float
    coverage: float
    pictures: int
    confidence: float = CONFIDENCE
    groups: int = 0


@dataclass(frozen=True)
class Conformal:
    """coverage: the share of images whose own class is in the set, which has every class that is at least 1 - quantile likely."""

    coverage: float
    quantile: float
    pictures: int
    groups: int = 0


@dataclass(frozen=True)
class Unknown:
    """score: knn, one minus the cosine to the neighbours-th nearest training image; or energy. threshold: above it an image is unknown."""

    score: Literal["knn", "energy"]
    threshold: float
    pictures: int
    neighbours: int = 0


@dataclass(frozen=True)
class Trust:
    """None: there is none of it. training_sample: for knn, [M, F] float16 of length 1, in a file of its own."""

    calibration: Calibration | None = None
    abstain: Abstain | None = None
    conformal: Conformal | None = None
    unknown: Unknown | None = None
    training_sample: NDArray[np.float16] | None = field(default=None, compare=False)

    @property
    def temperature(self) -> float:
        return self.calibration.temperature if self.calibration else 1.0

    @property
    def least(self) -> float | None:
        """Return the probability below which no class is named."""
        return self.abstain.threshold if self.abstain else None

    def to_json(self) -> dict[str, Any]:
        """Return the keys of tlkit.json and artifact.json; there is none for what the model hasn't."""
        parts = {name: asdict(part) for name in _PARTS if (part := getattr(self, name)) is not None}
        return {name: {key: value for key, value in part.items() if value or key != "groups"} for name, part in parts.items()}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any], training_sample: NDArray[np.float16] | None = None) -> "Trust":
        """Read them; models of earlier versions have none. Raises ValueError or TypeError if a part isn't one."""
        return cls(**{name: _read(name, facts[name]) for name in _PARTS if name in facts}, training_sample=training_sample)


_PARTS: dict[str, type] = {"calibration": Calibration, "abstain": Abstain, "conformal": Conformal, "unknown": Unknown}


def _read(part: str, values: Mapping[str, Any]) -> Any:
    """Leave keys of later versions out."""
    kind = _PARTS[part]
    known = {one.name: values[one.name] for one in fields(kind) if one.name in values}
    for one in fields(kind):
        value = known.get(one.name, 1)
        if one.type in (int, float) and not (isinstance(value, int | float) and isfinite(value)):
            raise ValueError(f"{part}.{one.name} = {value!r}. Expected a number.")
        if one.name == "temperature" and value <= 0:
            raise ValueError(f"{part}.{one.name} = {value!r}. Expected a number above 0.")
    return kind(**known)
