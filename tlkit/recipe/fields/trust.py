"""abstain and unknown: what a model promises of its answers, fitted on validation and shipped with it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tlkit.recipe.fields.strict import Strict, rule_broken

UnknownScoreName = Literal["knn", "energy", "off"]


class AbstainOptions(Strict):
    error: float | None = Field(
        None,
        gt=0,
        lt=1,
        examples=[0.02],
        description="name no class where that keeps the error of all others below this, with 95 % confidence",
    )
    coverage: float | None = Field(
        None, gt=0, lt=1, examples=[0.95], description="also give a set of classes that holds the image's own for this share of images"
    )

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.error is None and self.coverage is None:
            raise rule_broken("error", "coverage", "is missing, and so is coverage.", "Write one of the two: {error: 0.02}.")
        return self
