"""The options of a run's training: its constraint, its steps, and the weights that are kept."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from hesstune.checks import parse_number
from hesstune.options import Options, numbers_by_name

__all__ = ["ConstraintOptions", "OptimisationOptions"]


class ConstraintOptions(Options):
    """The balls around the reference that layers are kept in."""

    heading: ClassVar[str] = "Constraint"

    radius: float | dict[str, float] | Literal["auto", "curvature"] | None = Field(
        None,
        description="radius of every layer's ball, or PATTERN=RADIUS,… (first match wins; 'head' is the last "
        "layer); auto: by noisy validation along a path; curvature: likewise, shaped by the layers' traces; "
        "none: a share of each layer's norm, and of the norm of a linear head fitted to the features",
    )
    radius_scale: float = Field(
        1.0,
        gt=0,
        description="factor of the radii on the network's third stage, its square on the fourth",
    )
    norm: Literal["frobenius", "mars"] = Field("frobenius", description="norm of the constraint")

    @field_validator("radius", mode="before")
    @classmethod
    def _parse_radius(cls, value: Any) -> Any:
        if isinstance(value, str) and value in ("auto", "curvature"):
            return value
        number = parse_number(value) if isinstance(value, str) else None
        if number is not None:
            return number
        return numbers_by_name(value, "write a number, auto, curvature, or PATTERN=RADIUS,PATTERN=RADIUS")

    @field_validator("radius")
    @classmethod
    def _positive_radius(cls, value: Any) -> Any:
        for number in value.values() if isinstance(value, dict) else [value]:
            if isinstance(number, float) and not 0 < number < float("inf"):
                raise ValueError("radii must be finite and above 0")
        return value


class OptimisationOptions(Options):
    """How a run's weights are trained, and which are kept."""

    heading: ClassVar[str] = "Optimisation"

    epochs: int = Field(15, gt=0, description="passes over the training set")
    batch_size: int = Field(32, gt=0, description="examples a step")
    lr: float | None = Field(
        None, gt=0, description="peak learning rate; none: 1e-4, or 1e-2 with {train} head"
    )
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="optimizer")
    weight_decay: float | None = Field(
        None,
        ge=0,
        description="weight decay of the optimizer; none: 0, or, of a head that is trained alone and held by "
        "no ball, by cross-validation on the labels as given",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="learning-rate schedule; step divides by 10 at 1/2 and 3/4"
    )
    lr_warmup: float = Field(
        0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises"
    )
    warmup_epochs: int = Field(
        2, ge=0, description="epochs of plain cross-entropy before the consistent loss (robust)"
    )
    accumulate: int = Field(1, gt=0, description="batches a real optimizer step")
    grad_clip: float | None = Field(None, gt=0, description="largest gradient norm")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="autocast on devices that have it"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="weight classes by the inverse of their clean frequency"
    )
    sampler: Literal["uniform", "balanced"] = Field(
        "uniform", description="draw training examples uniformly, or classes alike"
    )
    patience: int | None = Field(
        None, gt=0, description="stop after so many epochs without a better validation loss"
    )
    select: Literal["last", "best"] = Field(
        "last", description="weights kept: the last epoch's, or the best on validation"
    )
