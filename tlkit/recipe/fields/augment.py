"""augment: albumentations by their own names and arguments, and two of torchvision."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tlkit.recipe.fields.strict import Strict, rule_broken


class Transform(Strict):
    """`Rotate: {limit: 15}`: a one-key mapping in the recipe, a name and its arguments here."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


Interpolation = Literal["nearest", "bilinear"]


class RandAugment(Strict):
    num_ops: int = Field(2, ge=1, le=14, examples=[1], description="number of operations drawn for an image, applied one after the other")
    magnitude: int = Field(9, ge=0, examples=[5], description="strength of each operation, below num_magnitude_bins")
    num_magnitude_bins: int = Field(31, ge=2, le=1000, examples=[11], description="number of magnitude levels")
    interpolation: Interpolation = Field("nearest", description="interpolation of rotations and shifts")
    p: float = Field(1.0, ge=0, le=1, examples=[0.5], description="probability that an image is changed")

    @model_validator(mode="after")
    def _magnitude_is_a_step(self) -> Self:
        if self.magnitude >= self.num_magnitude_bins:
            problem = f"= {self.magnitude} is none of {self.num_magnitude_bins} steps, which count from 0."
            raise rule_broken("magnitude", "num_magnitude_bins", problem, f"Expected at most {self.num_magnitude_bins - 1}.")
        return self


class TrivialAugment(Strict):
    num_magnitude_bins: int = Field(31, ge=2, le=1000, examples=[11], description="number of magnitude levels, of which one is drawn")
    interpolation: Interpolation = Field("nearest", description="interpolation of rotations and shifts")
    p: float = Field(1.0, ge=0, le=1, examples=[0.5], description="probability that an image is changed")


AUTO_AUGMENT: dict[str, type[RandAugment] | type[TrivialAugment]] = {"randaugment": RandAugment, "trivialaugment": TrivialAugment}
"""torchvision's, by name beside albumentations' transforms."""
