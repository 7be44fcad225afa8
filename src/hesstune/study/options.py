"""The options of `compare` beside those of its runs, each declared once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from hesstune.checks import parse_integer
from hesstune.options import OFF_COMMAND_LINE, Options, Shown

__all__ = ["CompareOptions", "Settings"]


class Settings(Options):
    """What is done with every cell beside training."""

    heading: ClassVar[str] = "Results of every run"

    measure_examples: int | None = Field(
        None,
        ge=0,
        description="training examples for the Hessian measure, drawn uniformly; 0: no measure; default: all "
        "if only the head is trained, else 200",
    )
    stability: bool = Field(False, description="also compute the noise stability")
    certify: bool = Field(False, description="also compute a certificate if only the head is trained")
    search: int = Field(
        0,
        ge=0,
        description="trials of a hyperparameter search per method, judged on noisy validation labels (needs "
        "the extra search); 0: no search",
    )
    keep_runs: bool = Field(
        False, description="keep the weights of every run, so that measure, report and predict work on cells"
    )


class CompareOptions(Settings):
    """What is compared, and by how many processes."""

    heading: ClassVar[str] = "Comparison"
    first: ClassVar[tuple[str, ...]] = ("methods", "seeds")

    methods: Annotated[dict[str, Any] | tuple[str, ...], Shown("NAME,…")] = Field(
        ("vanilla", "robust"),
        description="methods to compare, or all; in Python and YAML also a mapping of names to options",
    )
    seeds: Annotated[tuple[int, ...], Shown("N", also=int)] = Field(
        3,
        validate_default=True,
        description="number of seeds, counted from --seed; in Python and YAML also a list of seeds",
    )
    folds: int | None = Field(
        None,
        ge=2,
        description="K-fold cross-validation for every seed, folds drawn by {split}; default: one split",
    )
    tasks: Annotated[dict[str, Any] | None, OFF_COMMAND_LINE] = Field(
        None,
        description="mapping of task names to options; default: one task of the runs' options. {{seed}} and "
        "{{task}} in a text stand for the seed and the task's name",
    )
    baseline: str | None = Field(
        None, description="baseline method of the differences; default: vanilla, or the first method"
    )
    jobs: int | None = Field(
        None,
        ge=1,
        description="number of processes; default: one per core, or one if there are few short runs",
    )
    engine: Literal["local", "ray"] = Field(
        "local",
        description="processes of this machine, or tasks of a Ray cluster whose machines share the folder "
        "(needs the extra ray)",
    )

    @field_validator("methods", mode="before")
    @classmethod
    def _names_or_mapping(cls, value: Any) -> Any:
        from hesstune.methods import method_name

        if isinstance(value, str):
            value = [name.strip() for name in value.split(",") if name.strip()]
        if not isinstance(value, Mapping | list | tuple) or not value:
            raise ValueError("must be names or a mapping of names to options")
        return value if isinstance(value, Mapping) else [method_name(name) for name in value]

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_or_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = parse_integer(value)
        seeds = range(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(seeds, range | list | tuple) or not all(
            isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds
        ):
            raise ValueError("must be a count or a list of integers from 0")
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError("must be at least one, each once")
        return tuple(seeds)
