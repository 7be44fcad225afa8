"""The options of a run itself: where it goes, and where it is computed."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from hesstune.checks import expanded
from hesstune.options import DEVICE, Options, Shown

__all__ = ["RunOptions"]


class RunOptions(Options):
    """Where a run is written and computed."""

    heading: ClassVar[str] = "Run"

    out: Annotated[str, Shown("FOLDER")] | None = Field(
        None, description="folder to write; in Python, default: a temporary folder"
    )
    seed: int = Field(0, ge=0, description="random seed of split, noise, order and augmentation")
    device: str = DEVICE
    shard: bool = Field(
        False,
        description="distribute weights, reference, gradients and optimizer state over the processes (FSDP2; "
        "under torchrun)",
    )
    checkpoint_minutes: float = Field(
        10.0, gt=0, description="minutes between checkpoints within an epoch; each epoch ends with one"
    )
    track: Literal["tensorboard", "mlflow"] | None = Field(
        None, description="also send each epoch's metrics to this tracker (needs the extra tracking)"
    )

    @field_validator("out")
    @classmethod
    def _at_home(cls, value: str | None) -> str | None:
        return str(expanded(value)) if value and value.startswith("~") else value
