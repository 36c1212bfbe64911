"""search: what `tlkit tune` varies, by dotted keys of the recipe."""

from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from tlkit.recipe.explain import format_value
from tlkit.recipe.fields.strict import Strict, rule_broken

KINDS = {"log": "log", "uniform": "uniform", "int": "integer", "choice": "choice"}
"""Key -> attribute: `int` is the type's name here."""
OTHER_NAMES = {
    **dict.fromkeys(("loguniform", "log_uniform", "log_float"), "log"),
    **dict.fromkeys(("float", "range", "quniform"), "uniform"),
    **dict.fromkeys(("integer", "randint"), "int"),
    **dict.fromkeys(("choices", "values", "options", "categorical", "categories", "grid", "grid_search"), "choice"),
}
"""A kind's name in Optuna, Ray Tune, Keras Tuner and sweeps of Weights & Biases -> its name here."""
ENDS = ("low", "lower", "min", "min_value"), ("high", "upper", "max", "max_value")


class Range(Strict):
    """Exactly one of the four. An end of a range can be drawn."""

    log: tuple[float, float] | None = Field(
        None, strict=False, examples=[[1e-5, 1e-1]], description="lowest and highest value, drawn evenly by order of magnitude"
    )
    uniform: tuple[float, float] | None = Field(None, strict=False, examples=[[0.0, 0.5]], description="lowest and highest value")
    integer: tuple[int, int] | None = Field(
        None, alias="int", strict=False, examples=[[1, 10]], description="lowest and highest whole number"
    )
    choice: tuple[Any, ...] | None = Field(None, strict=False, examples=[["adamw", "momentum"]], description="the values to choose from")

    @model_validator(mode="before")
    @classmethod
    def _is_spelled_so(cls, value: Any) -> Any:
        if meant := " or ".join(_meant(value)):
            raise rule_broken("", "", f"= {format_value(value)} can't be used.", f"Write it as {meant}.")
        return value

    @model_validator(mode="after")
    def _is_one_range(self) -> Self:
        given = [kind for kind, name in KINDS.items() if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"has {' and '.join(given)}." if given else "is empty."
            raise rule_broken(given[0] if given else "log", "uniform", what, f"Expected one of {', '.join(KINDS)}.")
        kind, ends = given[0], getattr(self, KINDS[given[0]])
        if kind == "choice":
            if len(ends) < 2:
                raise rule_broken("choice", "choice", f"has {len(ends)} value(s), so there is nothing to choose.", "Expected two or more.")
            return self
        low, high = ends
        if low >= high:
            raise rule_broken(kind, kind, f"= [{low:g}, {high:g}] is empty or reversed.", "Expected the lower end first.")
        if kind == "log" and low <= 0:
            raise rule_broken(kind, kind, f"= [{low:g}, {high:g}] has no logarithm at its lower end.", "Expected a lower end above 0.")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """The lowest and the highest value, or all choices."""
        ends: tuple[Any, ...] = self.log or self.uniform or self.integer or self.choice or ()
        return ends


def _meant(value: Any) -> Iterator[str]:
    """Yield the ranges that another tool's spelling means: [16, 32], {values: [16, 32]}, {low: 1e-5, high: 1e-1, log: true}."""
    if isinstance(value, list) and value:
        yield format_value({"choice": value})
    if not isinstance(value, Mapping):
        return
    for word, ends in value.items():
        if (kind := OTHER_NAMES.get(word)) and isinstance(ends, list) and ends:
            yield format_value({kind: ends if kind == "choice" else ends[:2]})  # Ray Tune's quniform has a step after them
    low, high = (next((value[word] for word in words if word in value), None) for words in ENDS)
    if not {type(low), type(high)} <= {int, float}:
        return
    if value.get("log") is True or any("log" in text.lower() for text in value.values() if isinstance(text, str)):
        yield format_value({"log": [low, high]})
    elif isinstance(low, int) and isinstance(high, int):
        yield f"{format_value({'int': [low, high]})}, or {format_value({'uniform': [low, high]})} for any number between them"
    else:
        yield format_value({"uniform": [low, high]})
