"""The options of a run's data: where it is, how it is split, read and varied."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from hesstune.checks import parse_number
from hesstune.data.reading import SplitRule, fold_of, rgb_of
from hesstune.options import Options, Shown

__all__ = ["SKIP_BAD_IMAGES", "ColumnOptions", "DataOptions"]

SKIP_BAD_IMAGES: Any = Field(False, description="leave out images that cannot be decoded, and list them")


class ColumnOptions(Options):
    """Which columns of csv and hf data, and of a DataFrame, hold what."""

    heading: ClassVar[str] = "Data"

    text_column: str | None = Field(
        None, description="column of texts, or two with a comma between; none: text, and text2 for pairs"
    )
    label_column: str | None = Field(None, description="column of labels; none: label")
    id_column: str | None = Field(None, description="column of the examples' ids; none: id, or the rows")
    image_column: str | None = Field(None, description="column of images or their paths; none: image")


class ExampleOptions(Options):
    """Which examples a run is trained and tested on."""

    heading: ClassVar[str] = "Data"

    data: Annotated[str, Shown("DATA", names_file=True)] = Field(
        "digits", description="digits, folder:PATH, csv:PATH, array:PATH or hf:NAME_OR_PATH"
    )
    limit: int | None = Field(None, gt=0, description="at most so many training examples, drawn uniformly")
    split: Annotated[str, Shown("HOW", names_file=True)] = Field(
        "uniform",
        description="how parts are drawn where the data has none: uniform, as certificates need; stratified "
        "by class; group:COLUMN, each group in one part; time:COLUMN, the latest for the test; or a CSV file "
        "of id and split, or id and group",
    )
    fold: Annotated[str, Shown("I/K")] | None = Field(
        None,
        description="test on the I-th of K folds, drawn by {split}; of time, on the stretch after training",
    )
    val_fraction: float = Field(0.2, ge=0, lt=1, description="share for validation where the data has none")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share for the test where the data has none")
    corrected_test_labels: bool = Field(
        False,
        description="test on labels that hesstune clean rewrote; else test labels are as they were given",
    )
    image_size: int | None = Field(
        None, ge=8, le=2048, description="side of the images in pixels; none: 64 for digits, else 128"
    )
    mean: Annotated[list[float], Shown("R,G,B")] | None = Field(
        None, description="channel means of images in [0, 1], instead of the model's"
    )
    std: Annotated[list[float], Shown("R,G,B")] | None = Field(
        None, description="channel deviations, instead of the model's"
    )
    augment: Literal["auto", "none", "shift", "flip", "shift+flip"] = Field(
        "auto", description="label-preserving augmentation; auto also mirrors where that keeps the label"
    )
    augment_views: int | None = Field(
        None,
        ge=1,
        description="draw so many views of each image and take them in turn, so that frozen layers run once "
        "a view; none: new ones every epoch",
    )
    max_length: int = Field(
        128, ge=4, le=1 << 20, description="tokens of a text at most; longer ones are cut, and counted"
    )
    background: Annotated[str, Shown("COLOUR")] = Field(
        "white", description="what transparent images are laid on: a name, #rrggbb or R,G,B"
    )
    skip_bad_images: bool = SKIP_BAD_IMAGES
    cache_mib: int = Field(
        4096, ge=0, description="memory for decoded images; beyond it they are decoded per batch"
    )
    activations_mib: int = Field(
        4096,
        ge=0,
        description="disk space, while a run lasts, for what frozen layers make of its inputs; where it is "
        "not enough they run every epoch",
    )

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _parse_channels(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        numbers = [parse_number(part) for part in value.split(",")]
        if None in numbers:
            raise ValueError("must be numbers with commas between, such as 0.5,0.5,0.5")
        return numbers

    @field_validator("split")
    @classmethod
    def _is_a_rule(cls, value: str) -> str:
        SplitRule.parse(value)
        return value

    @field_validator("fold")
    @classmethod
    def _is_a_fold(cls, value: str | None) -> str | None:
        if value is not None:
            fold_of(value)
        return value

    @field_validator("background")
    @classmethod
    def _is_a_colour(cls, value: str) -> str:
        rgb_of(value)
        return value


class DataOptions(ColumnOptions, ExampleOptions):
    """What a run is trained and tested on, and how it is read."""
