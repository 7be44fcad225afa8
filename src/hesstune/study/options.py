"""The options of `compare` besides those of its runs, and the records that it keeps as JSON."""

# ruff: noqa: RUF012  (pydantic copies defaults)

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from hesstune.checks import parse_integer
from hesstune.options import OFF_COMMAND_LINE, Options, Shown
from hesstune.storage.stored import Stored


class Settings(Options):
    """What is computed for every cell besides training."""

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
    """Methods, tasks and seeds, and the processes that run them."""

    heading: ClassVar[str] = "Comparison"

    methods: Annotated[dict[str, Any] | tuple[str, ...], Shown("NAME,…")] = Field(
        ("vanilla", "robust"),
        description="methods to compare, or all; in Python and YAML also a mapping of names to options",
    )
    seeds: Annotated[tuple[int, ...], Shown("N", also="int")] = Field(
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
        description="processes of this machine, or tasks of a Ray cluster with a shared folder (needs the "
        "extra ray)",
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
        value = parse_integer(value) if isinstance(value, str) else value
        seeds = range(value) if type(value) is int else value
        if not isinstance(seeds, range | list | tuple) or not all(type(s) is int and s >= 0 for s in seeds):
            raise ValueError("must be a count or a list of integers from 0")
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError("must be at least one, each once")
        return tuple(seeds)


# Options by name, as they are kept; those that differ between cells, by task and method.
OptionValues = dict[str, Any]
Configs = dict[str, dict[str, OptionValues]]


class HeadCertificate(Stored):
    """The certificate of a cell in short; `why` is the reason if there is no risk.

    `facts` give the risk at another probability of failure (see `Certificate.facts`).
    """

    risk: float | None
    why: str | None = None
    empirical: float | None = None
    delta: float | None = None
    vacuous: bool | None = None
    labels: str | None = None
    facts: dict[str, Any] | None = None


class Observed(Stored):
    """observed.json: what a comparison measured of a trained network; None if not asked for."""

    what: ClassVar[str] = "a cell's measurements"
    fix: ClassVar[str] = "run the comparison again with --overwrite"

    val_gap: float | None
    measure: float | None = None
    measure_mean: float | None = None
    stability: float | None = None
    stability_taylor: float | None = None
    certificate: HeadCertificate | None = None
    max_loss: float | None = None


class Trial(Stored):
    """Options that a search has tried, and the validation loss, or the error."""

    options: OptionValues
    val_loss: float | None
    error: str | None


class Search(Stored):
    """The trials of a cell's search, and the number of the one that was chosen."""

    trials: list[Trial]
    chosen: int


class CellRecord(Stored):
    """cell.json: a cell, its status, and its metrics by name (see `hesstune.study.results`)."""

    what: ClassVar[str] = "a comparison's cell"
    fix: ClassVar[str] = "remove it and run the comparison again"

    task: str
    method: str
    seed: int
    fingerprint: str = ""
    status: Literal["done", "failed", "pending"]
    error: str | None = None
    metrics: dict[str, int | float | HeadCertificate | None] = {}
    search: Search | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """Task, method and seed."""
        return self.task, self.method, self.seed

    def number(self, metric: str) -> float | None:
        """Return a metric's value, or the risk of a certificate; None if there is none."""
        value = self.metrics.get(metric)
        return value.risk if isinstance(value, HeadCertificate) else value


class Interval(Stored):
    """A mean over n values with its t interval; without spread, the mean alone."""

    n: int
    mean: float
    stderr: float | None
    low: float | None = None
    high: float | None = None


class Mean(Interval):
    """The mean of a metric over the seeds of a method; `task` None: over the tasks."""

    metric: str
    method: str
    task: str | None


class Difference(Mean):
    """The difference between a method and the baseline, paired by task and seed."""

    baseline: str


class Rank(Stored):
    """A method's mean rank over n pairs of task and seed."""

    method: str
    mean_rank: float
    stderr: float | None
    n: int


class StudyResults(Stored):
    """results.json (see `hesstune.study.results`)."""

    what: ClassVar[str] = "a comparison"
    fix: ClassVar[str] = "run the comparison again with --overwrite"
    newest: ClassVar[int] = 1

    format: int = 1
    header: list[str] = []
    command: str | None = None
    versions: dict[str, str] = {}
    tasks: list[str]
    methods: list[str]
    seeds: list[int] = []
    baseline: str
    left_out: dict[str, str] = {}
    settings: OptionValues = {}
    shared: OptionValues = {}
    configs: Configs = {}
    means: list[Mean] = []
    differences: list[Difference] = []
    ranks: list[Rank] = []
    cells: list[CellRecord] = []
