"""The options of a run's data: where it is, how it is split, read and varied."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from hesstune.checks import parse_number
from hesstune.data.reading import SplitRule, fold_of, rgb_of
from hesstune.options import Options, Shown

__all__ = ["SKIP_BAD_IMAGES", "ColumnOptions", "DataOptions"]

SKIP_BAD_IMAGES: Any = Field(False, description="leave out and list images that cannot be decoded")


class ColumnOptions(Options):
    """Which columns of csv and hf data, and of a DataFrame, hold what."""

    heading: ClassVar[str] = "Data"

    text_column: str | None = Field(
        None,
        description="column of texts, or two separated by a comma; default: text, and text2 for pairs",
    )
    label_column: str | None = Field(None, description="column of labels; default: label")
    id_column: str | None = Field(
        None, description="column of the examples' ids; default: id, or row numbers"
    )
    image_column: str | None = Field(None, description="column of images or their paths; default: image")


class ExampleOptions(Options):
    """Which examples a run is trained and tested on."""

    heading: ClassVar[str] = "Data"

    data: Annotated[str, Shown("DATA", names_file=True)] = Field(
        "digits", description="digits, folder:PATH, csv:PATH, array:PATH or hf:NAME_OR_PATH"
    )
    limit: int | None = Field(
        None, gt=0, description="largest number of training examples; they are drawn uniformly"
    )
    split: Annotated[str, Shown("HOW", names_file=True)] = Field(
        "uniform",
        description="how to split data that has no parts: uniform (needed by certificates); stratified (by "
        "class); group:COLUMN (each group in one part); time:COLUMN (the latest are the test part); or a CSV "
        "file with columns id and split, or id and group",
    )
    fold: Annotated[str, Shown("I/K")] | None = Field(
        None,
        description="test on fold I of K, drawn by {split}; for time:COLUMN, on the period after training",
    )
    val_fraction: float = Field(
        0.2, ge=0, lt=1, description="share for validation if the data has no such part"
    )
    test_fraction: float = Field(
        0.2, ge=0, lt=1, description="share for the test if the data has no such part"
    )
    corrected_test_labels: bool = Field(
        False,
        description="test on the labels that hesstune clean corrected, instead of the given labels",
    )
    image_size: int | None = Field(
        None, ge=8, le=2048, description="side of the images in pixels; default: 64 for digits, else 128"
    )
    mean: Annotated[list[float], Shown("R,G,B")] | None = Field(
        None, description="channel means of images in [0, 1], instead of the model's"
    )
    std: Annotated[list[float], Shown("R,G,B")] | None = Field(
        None, description="channel deviations, instead of the model's"
    )
    augment: Literal["auto", "none", "shift", "flip", "shift+flip"] = Field(
        "auto",
        description="augmentation of training images; auto shifts, and also mirrors if that keeps the label",
    )
    augment_views: int | None = Field(
        None,
        ge=1,
        description="number of augmented views of each image, drawn once and used in turn, so that frozen "
        "layers run once per view; default: new views every epoch",
    )
    max_length: int = Field(
        128,
        ge=4,
        le=1 << 20,
        description="largest number of tokens of a text; longer texts are cut and counted",
    )
    background: Annotated[str, Shown("COLOUR")] = Field(
        "white", description="background colour of transparent images: a name, #rrggbb or R,G,B"
    )
    skip_bad_images: bool = SKIP_BAD_IMAGES
    cache_mib: int = Field(
        4096, ge=0, description="memory for decoded images in MiB; the rest is decoded for every batch"
    )
    activations_mib: int = Field(
        4096,
        ge=0,
        description="disk space in MiB for the outputs of frozen layers during a run; if it is too small, "
        "frozen layers run every epoch",
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
