"""The options of a run's network and method: what is trained, and how."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from hesstune.options import FilePath, Options, Shown, split_pairs

__all__ = ["ModelOptions"]


class ModelOptions(Options):
    """The network that a run starts from, the part that is trained, and the method."""

    heading: ClassVar[str] = "Model and method"

    model: Annotated[str, Shown("MODEL", names_file=True)] = Field(
        "efficientnet_lite0",
        description="efficientnet_lite0, minilm (texts), hf:NAME_OR_PATH, timm:NAME, torchvision:NAME or "
        "py:module:factory",
    )
    method: Annotated[str, Shown("NAME")] = Field(
        "auto", description="fine-tuning method: auto, vanilla, robust, … (a wrong name lists all)"
    )
    method_options: Annotated[dict[str, float], Shown("NAME=VALUE,…")] | None = Field(
        None, description="the method's own numbers; none: their defaults"
    )
    budget: Literal["fast", "default", "thorough"] = Field(
        "default",
        description="how much {method} auto tries: fast fits the head alone; thorough judges more candidates",
    )
    train: Annotated[str, Shown("WHAT")] = Field(
        "all",
        description="what is trained: all, head, last:N layers, from:MODULE on, or a pattern of parameter "
        "names; what is frozen before it runs once, not every epoch, where inputs allow",
    )
    weights: FilePath | None = Field(
        None, description="weights loaded on top of the model: safetensors or a torch state dict"
    )
    head_init: Literal["zero", "keep"] = Field(
        "zero", description="head at the start: zero, or keep what the model has"
    )
    batch_norm: Literal["frozen", "adapt"] = Field(
        "frozen", description="batch-norm statistics: the pretrained ones, or adapted"
    )

    @field_validator("method_options", mode="before")
    @classmethod
    def _parse_method_options(cls, value: Any) -> Any:
        return split_pairs(value, "write NAME=VALUE,NAME=VALUE") if isinstance(value, str) else value
