"""The options of a run's labels: their noise, the noise matrix of the loss, and their source."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from hesstune.options import FilePath, Options, Shown

__all__ = ["NoiseOptions"]


class NoiseOptions(Options):
    """The noise of a run's labels, and the noise matrix of the loss."""

    heading: ClassVar[str] = "Labels and their noise"

    noise_matrix: Annotated[str, Shown("NOISE", names_file=True)] | None = Field(
        None,
        description="noise matrix of the loss: true (the injected one; the default with {inject_noise}), a "
        "rate, symmetric:RATE, pair:RATE, a matrix file, or estimate:METHOD (auto, em, confident, "
        "labelmodel, holdout)",
    )
    inject_noise: Annotated[str, Shown("NOISE", names_file=True)] | None = Field(
        None,
        description="for experiments: corrupt training and validation labels by symmetric:RATE, pair:RATE, "
        "instance:RATE (depends on the example) or a matrix file",
    )
    clean_val: bool = Field(False, description="inject no noise into validation labels (recorded)")
    clean_labels: FilePath | None = Field(
        None,
        description="CSV file of labels that a person checked: id, and clean_label, true_label or label; the "
        "loss and the noise estimates treat them as correct",
    )
    vote_columns: Annotated[str, Shown("NAME,NAME,…")] | None = Field(
        None,
        description="annotators' columns of csv data; default: those named vote_…",
    )
    label_model: Literal["majority", "soft", "dawid_skene", "mace"] = Field(
        "majority", description="label model for csv data with votes and no label"
    )
    soft_labels: bool = Field(
        False, description="train on soft labels: columns p_CLASS of csv data, or the label model's"
    )

    @field_validator("noise_matrix", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # YAML reads `true` and `0.4` as a flag and a number.
        if value is True:
            return "true"
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
