"""What every part of a recipe is: a strict, frozen model, whose clashes are reported at a key."""

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """A part of the recipe: unknown keys are faults, nothing is converted ("3" is not a number), and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, strict=True, allow_inf_nan=False)


def rule_broken(key: str, with_key: str, problem: str, fix: str) -> PydanticCustomError:
    """Create the error of two keys of one part that clash, reported at the first. Both are relative to the part."""
    return PydanticCustomError("rule", "{key} {problem} {fix}", {"key": key, "with_key": with_key, "problem": problem, "fix": fix})
