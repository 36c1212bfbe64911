"""data: which images, how they are split, and how they reach the network."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tlkit.recipe.fields.source import Source
from tlkit.recipe.fields.strict import Strict, rule_broken

Byte = Annotated[int, Field(ge=0, le=255)]
TwoBytes = Annotated[int, Field(ge=0, le=65535)]


LeakCheck = Literal["full", "exact", "off"]


class FindBatchSize(Strict):
    find: float = Field(
        gt=0, lt=1, title="SHARE", examples=[0.8], description="share of the largest batch that fits into memory, which is found by trial"
    )


class Data(Strict):
    source: Source = Field(description="where the images and labels come from")
    root: str = Field("data", examples=["/data/downloads"], description="folder for downloads")
    validation: float = Field(
        0.1,
        gt=0,
        lt=1,
        examples=[0.2],
        description="share of training held out for validation, if the source has no validation split",
    )
    test: float = Field(
        0.1, ge=0, lt=1, examples=[0.2], description="share of training held out for the test, if the source has no test split"
    )
    folds: Annotated[int, Field(ge=2, le=100)] | None = Field(
        None,
        examples=[5],
        description="k of k-fold cross-validation: one run per fold, validated on it; the test split is held out",
    )
    limit: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        examples=[500],
        description="images for a quick trial, or a share of all: stratified, from every split; by default all",
    )
    image_size: int = Field(224, ge=8, le=4096, examples=[128], description="side of the square input image, in pixels")
    channels: int = Field(3, ge=1, le=256, examples=[1], description="1 for grey, 3 for colour, or as many as the images have")
    resize: Literal["crop", "pad", "stretch"] = Field("crop", description="how an image becomes square")
    margin: float = Field(
        1.0,
        ge=1,
        le=2,
        examples=[1.25],
        description="with augment, training images are this many times as large before a crop; 1 augments the square itself",
    )
    normalize: Literal["weights", "dataset", "pixelwise", "none"] = Field(
        "weights", description="where mean and std come from; pixelwise subtracts the mean image of the training split"
    )
    on_bad: Literal["error", "skip"] = Field(
        "error", description="unreadable images end the run (error), or are left out and listed in skipped.csv (skip)"
    )
    leak_check: LeakCheck = Field(
        "full",
        description="search for held-out images in other splits: equal and nearly equal ones, equal ones, or none",
    )
    max_pixels: int = Field(
        178_956_970, ge=1, le=178_956_970, examples=[50_000_000], description="largest image, width times height; larger ones are not read"
    )
    background: tuple[Byte, Byte, Byte] = Field(
        (255, 255, 255), strict=False, examples=[[0, 0, 0]], description="colour under transparent images: R G B"
    )
    range_16bit: tuple[TwoBytes, TwoBytes] = Field(
        (0, 65535),
        strict=False,
        examples=[[0, 4095]],
        description="range of 16-bit values that is mapped to 0 to 255; values outside of it are an error",
    )
    batch_size: Annotated[int, Field(ge=1)] | FindBatchSize = Field(64, examples=[32], description="images per step, over all devices")
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field("auto", examples=[4], description="number of processes that load images")

    @model_validator(mode="after")
    def _leaves_images_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            problem = f"= {self.test} and validation = {self.validation} leave no images to train on."
            raise rule_broken("test", "validation", problem, "Expected shares whose sum is below 1.")
        return self

    @model_validator(mode="after")
    def _folds_validate(self) -> Self:
        default = Data.model_fields["validation"].default
        if self.folds is not None and self.validation != default:
            problem = f"= {self.validation} does nothing: with folds = {self.folds}, each fold validates in turn."
            fix = f"Remove one of the two; data.validation={default}, the default, counts as removed."
            raise rule_broken("validation", "folds", problem, fix)
        return self

    @model_validator(mode="after")
    def _decodes(self) -> Self:
        low, high = self.range_16bit
        if low >= high:
            problem = f"= [{low}, {high}] is no range."
            raise rule_broken("range_16bit", "range_16bit", problem, "Expected the lowest value and then the highest, such as [0, 4095].")
        if self.background != (255, 255, 255) and self.channels not in (1, 3):
            problem = f"= {list(self.background)} does nothing: with channels = {self.channels} an image is taken as it is."
            raise rule_broken("background", "channels", problem, "Remove it, or set channels to 3 or 1.")
        return self

    @property
    def known_batch_size(self) -> int:
        """Return the batch size, for everything after it was found."""
        if isinstance(self.batch_size, FindBatchSize):
            raise ValueError("data.batch_size is still to be found")
        return self.batch_size

    @property
    def channels_label(self) -> str:
        return {1: "grey", 3: "RGB"}.get(self.channels, f"{self.channels} channels")
