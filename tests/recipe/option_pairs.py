"""Every value that a recipe's fields can have besides their default, taken from the schema, and pairs of them as whole recipes."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from tlkit.errors import RecipeError
from tlkit.recipe.explain import alternatives, fields_of, is_model
from tlkit.recipe.fields.phases import Phase, SolvedPhase
from tlkit.recipe.schema import Recipe

LEFT_OUT = {
    "name": "changes nothing",
    "seed": "changes nothing",
    "data.source": "tests/data/sources has a file for each kind",
    "data.root": "a path",
    "model.backbone": "tests/models/test_contract.py builds every family",
    "model.weights": "tests/models/weights",
    "search": "other values of other keys; tests/search",
    "phases[1].compile": "a minute for each; tests/training/test_phase_settings.py",
    "phases[1].epochs": "one is enough for a step",
    "phases[1].lr": "any is as good",
    "phases[0].train": "only the head can be solved",
    "trainer.num_nodes": "needs several processes; tests/training/distributed",
    "trainer.strategy": "needs several processes; tests/training/distributed",
}
"""Key -> why no value of it is in the table."""

EXAMPLES: dict[str, Sequence[Any]] = {
    "abstain": [{"error": 0.5}, {"coverage": 0.5}],
    "augment": ["light", ["HorizontalFlip"], ["randaugment"], ["trivialaugment"]],
    "data.background": [[1, 2, 3]],
    "data.batch_size": [5],
    "data.channels": [1],
    "data.image_size": [48],
    "data.limit": [0.75],
    "data.max_pixels": [10_000],
    "data.range_16bit": [[0, 4095]],
    "data.workers": [1],
    # Those with the most values decide how many recipes there are; tests/training/test_optimizers.py makes every optimizer.
    "optimizer.name": ["nesterov", "adam", "lion"],
    "phases[1].train": ["head", "norm", "bias", {"from": "layer3"}],
    "trainer.accelerator": ["cpu"],
    "trainer.logger": [["csv", "tensorboard"], []],  # the others in tests/training/test_loggers.py
    "trainer.devices": [1],
}
"""Key -> values, where the schema alone gives none that can be used on any machine."""

WITH: dict[str, Mapping[str, Any]] = {
    "model.head.hidden": {"model.head.kind": "mlp"},
    "model.head.filters": {"model.head.kind": "locally_connected"},
    "model.head.c": {"model.head.kind": "logistic"},
    "model.head.neighbours": {"model.head.kind": "knn"},
    "optimizer.momentum": {"optimizer.name": "nesterov"},
    "phases[0].weight_decay": {"phases[0].solver": "lbfgs"},
    "schedule.every": {"schedule.name": "step"},
    "schedule.factor": {"schedule.name": "plateau"},
    "schedule.patience": {"schedule.name": "plateau"},
}
"""Key -> what it is of, and does nothing without."""

NUMBERS = (0.25, 2, 1, 8)
"""The first that a field accepts and isn't its default."""


@dataclass(frozen=True)
class Option:
    """What is set: dotted key -> value. The first is the option itself, the others are what it is of."""

    settings: Mapping[str, Any]

    def __str__(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items())

    def goes_with(self, other: "Option") -> bool:
        """Return whether the two are a pair: of different keys, and none says otherwise than the other."""
        if next(iter(self.settings)) == next(iter(other.settings)):
            return False
        return all(other.settings.get(key, value) == value for key, value in self.settings.items())


def options() -> list[Option]:
    """Return every option of a recipe with two phases: what a first solved phase and a second one with gradients have are among them."""
    keys = [*_values(Recipe, ""), *_values(SolvedPhase, "phases[0]."), *_values(Phase, "phases[1].")]
    return [Option({key: value, **WITH.get(key, {})}) for key, value in keys]


def _values(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in fields_of(model).items():
        key = f"{prefix}{name}"
        if key == "phases" or key in LEFT_OUT:
            continue
        if key in EXAMPLES:
            yield from ((key, value) for value in EXAMPLES[key])
            continue
        for kind in alternatives(field.annotation):
            if is_model(kind) and NoneType not in get_args(field.annotation):
                yield from _values(kind, f"{key}.")
            elif is_model(kind):
                yield from ((key, value) for value in _forms(kind))
            else:
                yield from ((key, value) for value in _plain_values(kind, field) if value != field.default)


def _forms(model: Any) -> Iterator[dict[str, Any]]:
    """Yield mappings for a part that a recipe may do without: what is required alone, and with each further field."""
    values = {name: _plain_values(field.annotation, field)[0] for name, field in fields_of(model).items()}
    required = {name: values[name] for name, field in fields_of(model).items() if field.is_required()}
    yield required
    yield from ({**required, name: value} for name, value in values.items() if name not in required)


def _plain_values(kind: Any, field: FieldInfo) -> list[Any]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if kind is bool:
        return [False, True]
    accepted = TypeAdapter(Annotated[field.annotation, field])
    for number in NUMBERS:
        try:
            if number != field.default:
                return [accepted.validate_python(number, strict=True)]
        except ValidationError:
            continue
    raise LookupError(f"{field} needs values in EXAMPLES or a reason in LEFT_OUT")


def with_options(base: Mapping[str, Any], chosen: Sequence[Option]) -> dict[str, Any]:
    """Return a recipe's values with these options set. base: with `csv_of`, task -> the source that has such labels."""
    values = deepcopy(dict(base))
    sources = values.pop("csv_of")
    for key, value in (setting for option in chosen for setting in option.settings.items()):
        *above, last = [int(word) if word.isdigit() else word for word in key.replace("[", ".").replace("]", "").split(".")]
        holder: Any = values
        for word in above:
            holder = holder.setdefault(word, {}) if isinstance(word, str) else holder[word]
        if key == "phases[0].solver":
            holder.clear()
            holder["train"] = "head"
        holder[last] = value
    values["data"]["source"] = {"csv": sources[values.get("task", "multiclass")]}
    return values


class Table:
    """All pairs: `recipes` that accept all of theirs, and `refused`, options by themselves and pairs -> what their RecipeError holds."""

    def __init__(self, base: Mapping[str, Any], *, most: int) -> None:
        """most: options in one recipe, so that few of them stand in another's way."""
        self.options, self._base = options(), base
        number = len(self.options)
        self.refused: dict[tuple[int, ...], RecipeError] = {(i,): error for i in range(number) if (error := self._error([i]))}
        self._fits = np.zeros((number, number), bool)
        for one, other in combinations([i for i in range(number) if (i,) not in self.refused], 2):
            if self.options[one].goes_with(self.options[other]):
                error = self._error([one, other])
                if error is None:
                    self._fits[one, other] = self._fits[other, one] = True
                else:
                    self.refused[one, other] = error
        self.accepted = int(self._fits.sum()) // 2
        self.recipes = list(self._packed(most))

    def recipe(self, chosen: Sequence[int]) -> Recipe:
        """Raise RecipeError where the options clash."""
        return Recipe.from_dict(with_options(self._base, [self.options[i] for i in chosen]))

    def _error(self, chosen: Sequence[int]) -> RecipeError | None:
        try:
            self.recipe(chosen)
        except RecipeError as error:
            return error
        return None

    def _packed(self, most: int) -> Iterator[list[int]]:
        """Yield options that go together, until every accepted pair was among them."""
        left = self._fits.copy()
        while left.any():
            chosen = [int(index) for index in np.argwhere(left)[0]]
            refused: list[int] = []
            while len(chosen) < most and (candidate := self._best(left, chosen, refused)) is not None:
                if self._error([*chosen, candidate]) is None:
                    chosen.append(candidate)
                else:  # three that clash, though no two of them do
                    refused.append(candidate)
            left[np.ix_(chosen, chosen)] = False
            yield chosen

    def _best(self, left: NDArray[np.bool_], chosen: list[int], refused: list[int]) -> int | None:
        """Return the option that has most new pairs with those chosen; None where none has any."""
        new = left[chosen].sum(0) * self._fits[chosen].all(0)
        new[refused] = 0
        return int(new.argmax()) if new.any() else None
