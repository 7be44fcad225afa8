"""What a comparison keeps as JSON, typed: its cells, what is derived from them, and the rest."""

# ruff: noqa: RUF012  (pydantic copies defaults)

from __future__ import annotations

from typing import Any, ClassVar, Literal

from hesstune.storage.stored import Stored

__all__ = [
    "CellRecord", "Configs", "Difference", "HeadCertificate", "Interval", "Mean", "Observed", "Options",
    "Rank", "Search", "StudyResults", "Trial",
]  # fmt: skip

# Options by name, as they are kept; those that differ between cells, by task and method.
Options = dict[str, Any]
Configs = dict[str, dict[str, Options]]


class HeadCertificate(Stored):
    """A certificate of a comparison's cell in short; without a risk, `why` there is none.

    `facts` are what the same counts give at another probability of failure (see `Certificate.facts`).
    """

    risk: float | None
    why: str | None = None
    empirical: float | None = None
    delta: float | None = None
    vacuous: bool | None = None
    labels: str | None = None
    facts: dict[str, Any] | None = None


class Observed(Stored):
    """observed.json: what a comparison measured of a trained network; None where not asked for."""

    what: ClassVar[str] = "a cell's measurements"
    mend: ClassVar[str] = "run the comparison again with --overwrite"

    val_gap: float | None
    measure: float | None = None
    measure_mean: float | None = None
    stability: float | None = None
    stability_taylor: float | None = None
    certificate: HeadCertificate | None = None
    max_loss: float | None = None


class Row(Stored):
    """A record whose fields are read by `[name]`, too, as they are."""

    def __getitem__(self, key: str) -> Any:
        if key not in self.model_fields_set:
            raise KeyError(key)
        return getattr(self, key)


class Trial(Row):
    """Options that a search has tried, and the validation loss, or the error where there is none."""

    what: ClassVar[str] = "a trial of a search"
    mend: ClassVar[str] = "remove it and run the comparison again"

    options: Options
    val_loss: float | None
    error: str | None


class Search(Row):
    """The trials of a cell's search, and the number of the one that was chosen."""

    trials: list[Trial]
    chosen: int


class CellRecord(Row):
    """cell.json: a cell, whether it was run, and its metrics by name (see `hesstune.study.results`)."""

    what: ClassVar[str] = "a comparison's cell"
    mend: ClassVar[str] = "remove it and run the comparison again"

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
        """Return a metric's value, of a certificate the risk; None where there is none."""
        value = self.metrics.get(metric)
        return value.risk if isinstance(value, HeadCertificate) else value


class Interval(Row):
    """A mean over n values with its t interval; without spread, the mean alone."""

    n: int
    mean: float
    stderr: float | None
    low: float | None = None
    high: float | None = None


class Mean(Row):
    """A metric's mean over a method's seeds; `task` None: over the tasks."""

    metric: str
    method: str
    task: str | None
    n: int
    mean: float
    stderr: float | None
    low: float | None = None
    high: float | None = None


class Difference(Row):
    """A method minus the baseline, paired by task and seed; `task` None: over the tasks."""

    metric: str
    method: str
    baseline: str
    task: str | None
    n: int
    mean: float
    stderr: float | None
    low: float | None = None
    high: float | None = None


class Rank(Row):
    """A method's mean rank over n pairs of task and seed."""

    method: str
    mean_rank: float
    stderr: float | None
    n: int


class StudyResults(Row):
    """results.json (see `hesstune.study.results`)."""

    what: ClassVar[str] = "a comparison"
    mend: ClassVar[str] = "run the comparison again with --overwrite"
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
    settings: Options = {}
    shared: Options = {}
    configs: Configs = {}
    means: list[Mean] = []
    differences: list[Difference] = []
    ranks: list[Rank] = []
    cells: list[CellRecord] = []
