"""The options of a run's network and method: what is trained, and how."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from hesstune.options import FilePath, Names, Options, Shown, numbers_by_name

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
        None, description="numbers of the method; a wrong name lists them"
    )
    budget: Literal["fast", "default", "thorough"] = Field(
        "default",
        description="how much {method} auto tries: fast fits the head; thorough compares more candidates",
    )
    train: Annotated[str, Shown("WHAT")] = Field(
        "all",
        description="parameters to train: all, head, last:N (layers), from:MODULE (and all after it), or a "
        "pattern of parameter names",
    )
    weights: FilePath | None = Field(
        None, description="weights to load into the model: safetensors or a torch state dict"
    )
    head_init: Literal["zero", "keep"] = Field(
        "zero", description="initial head: zero, or keep the one of the model"
    )
    head: Names = Field(
        (),
        description="module whose output is the logits (or several, with commas); default: found by a "
        "forward pass",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="floating-point type of the trained and saved weights; bfloat16 halves the memory and "
        "loses small steps to rounding",
    )
    batch_norm: Literal["frozen", "adapt"] = Field(
        "frozen", description="batch-norm statistics: keep the pretrained ones, or adapt them"
    )

    @field_validator("dtype", mode="before")
    @classmethod
    def _no_float16(cls, value: Any) -> Any:
        if value in ("float16", "fp16", "half"):
            raise ValueError(
                "weights cannot be trained in float16, where gradients underflow; leave {dtype} at float32 "
                "and take {mixed_precision} fp16 (on a GPU) or bf16"
            )
        return value

    @field_validator("method_options", mode="before")
    @classmethod
    def _parse_method_options(cls, value: Any) -> Any:
        return numbers_by_name(value, "write NAME=NUMBER,NAME=NUMBER")
