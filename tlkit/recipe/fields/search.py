"""search: what `tlkit tune` varies, by dotted keys of the recipe."""

from typing import Any, Self

from pydantic import Field, model_validator

from tlkit.recipe.fields.strict import Strict, rule_broken

KINDS = {"log": "log", "uniform": "uniform", "int": "integer", "choice": "choice"}
"""Key -> attribute: `int` is the type's name here."""


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
