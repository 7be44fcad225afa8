"""The options of a run's training: its constraint, its steps, and the weights that are kept."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from hesstune.checks import parse_number
from hesstune.options import Options, numbers_by_name

__all__ = ["ConstraintOptions", "OptimisationOptions"]


class ConstraintOptions(Options):
    """The distance constraint of every layer."""

    heading: ClassVar[str] = "Constraint"

    radius: float | dict[str, float] | Literal["auto"] | None = Field(
        None,
        description="constraint radius of every layer, or PATTERN=RADIUS,… (first match wins; 'head' is the "
        "last layer); auto: chosen by noisy validation; default: a share of each layer's norm, and of the "
        "norm of a fitted linear head",
    )
    radius_scale: float = Field(
        1.0,
        gt=0,
        description="factor of the radii of the network's third stage; its square for the fourth stage",
    )
    norm: Literal["frobenius", "mars"] = Field("frobenius", description="norm of the constraint")

    @field_validator("radius", mode="before")
    @classmethod
    def _parse_radius(cls, value: Any) -> Any:
        if value == "auto":
            return value
        number = parse_number(value) if isinstance(value, str) else None
        if number is not None:
            return number
        return numbers_by_name(value, "write a number, auto, or PATTERN=RADIUS,PATTERN=RADIUS")

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
    batch_size: int = Field(32, gt=0, description="examples per batch")
    lr: float | None = Field(
        None, gt=0, description="peak learning rate; default: 1e-4, or 1e-2 with {train} head"
    )
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="optimizer")
    weight_decay: float | None = Field(
        None,
        ge=0,
        description="weight decay of the optimizer; default: 0, or by cross-validation on the given labels "
        "for an unconstrained head that is trained alone",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="learning-rate schedule; step divides by 10 at 1/2 and 3/4"
    )
    lr_warmup: float = Field(
        0.05, ge=0, lt=1, description="share of the steps for the linear warm-up of the learning rate"
    )
    warmup_epochs: int = Field(
        2, ge=0, description="epochs of plain cross-entropy before the method's own loss"
    )
    accumulate: int = Field(1, gt=0, description="batches per optimizer step (gradient accumulation)")
    grad_clip: float | None = Field(None, gt=0, description="clip gradients to this norm")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="autocast on devices that have it"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="weight classes by the inverse of their clean frequency"
    )
    sampler: Literal["uniform", "balanced"] = Field(
        "uniform", description="draw training examples uniformly, or all classes equally often"
    )
    patience: int | None = Field(
        None, gt=0, description="stop after this many epochs without a better validation loss"
    )
    select: Literal["last", "best"] = Field(
        "last", description="weights to keep: of the last epoch, or of the best epoch on validation"
    )
