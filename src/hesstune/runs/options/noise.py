"""The options of a run's labels: their noise, what is believed about it, and who gave them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from hesstune.options import FilePath, Options, Shown

__all__ = ["NoiseOptions"]


class NoiseOptions(Options):
    """What is known of a run's labels, and what the loss believes."""

    heading: ClassVar[str] = "Labels and their noise"

    noise_matrix: Annotated[str, Shown("NOISE", names_file=True)] | None = Field(
        None,
        description="noise the loss believes in: true (as injected; the default with {inject_noise}), a "
        "rate, symmetric:RATE, pair:RATE, a matrix file, or estimate:METHOD (auto, em, anchor[:PERCENTILE], "
        "dual_t, confident, volmin, labelmodel, holdout)",
    )
    inject_noise: Annotated[str, Shown("NOISE", names_file=True)] | None = Field(
        None,
        description="for experiments: corrupts training and validation labels by symmetric:RATE, pair:RATE, "
        "instance:RATE (depends on the example) or a matrix file",
    )
    clean_val: bool = Field(False, description="leave validation labels free of injected noise (recorded)")
    clean_labels: FilePath | None = Field(
        None,
        description="CSV file of labels a person has checked: id, and clean_label, true_label or label; "
        "they count as clean in the loss and in estimates of the noise",
    )
    vote_columns: Annotated[str, Shown("NAME,NAME,…")] | None = Field(
        None,
        description="annotators' columns of csv data; none: those named vote_…",
    )
    label_model: Literal["majority", "soft", "dawid_skene", "mace", "snorkel"] = Field(
        "majority", description="what makes labels from votes where csv data has no label"
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
