"""Statistics of a comparison: means, paired differences with intervals, ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.study.records import CellRecord, Difference, Interval, Mean, Rank

__all__ = ["METRICS", "differences", "means", "paired_difference", "ranks", "table_of"]

# Metrics that tables and differences are made of; whether more is better.
METRICS = {
    "test_accuracy": True,
    "test_balanced_accuracy": True,
    "gap": False,
    "measure": False,
    "distance": False,
    "certificate": False,
    "seconds": False,
}
LEVEL = 0.95

# {method: {task: {seed: value}}}
Table = dict[str, dict[str, dict[int, float]]]


def table_of(cells: Iterable[CellRecord], metric: str) -> Table:
    """Return the values of a metric by method, task and seed; failed cells and absent values are left out."""
    table: Table = {}
    for cell in cells:
        value = cell.number(metric)
        if cell.status == "done" and value is not None and math.isfinite(value):
            table.setdefault(cell.method, {}).setdefault(cell.task, {})[cell.seed] = float(value)
    return table


def means(cells: Sequence[CellRecord]) -> list[Mean]:
    """Return mean, standard error and interval over seeds, by metric, method and task; `task` None: all.

    Over tasks the mean is the plain mean of the tasks' means, its standard error √(Σ_t s_t²/n_t)/T: that
    of fresh seeds on these tasks. `low` and `high` are the ends of the 95 % t interval, with
    Welch–Satterthwaite degrees of freedom; they and the standard error are None where a task has one seed.
    """
    rows = []
    for metric in METRICS:
        table = table_of(cells, metric)
        tasks = sorted({task for by_task in table.values() for task in by_task})
        for method, by_task in table.items():
            strata = [np.array(list(by_task[t].values())) for t in tasks if t in by_task]
            for task in tasks:
                if task in by_task:
                    rows.append(_mean_row(metric, method, task, [np.array(list(by_task[task].values()))]))
            if len(tasks) > 1 and len(strata) == len(tasks):
                rows.append(_mean_row(metric, method, None, strata))
    return rows


def _mean_row(metric: str, method: str, task: str | None, strata: list[NDArray[np.float64]]) -> Mean:
    return Mean(metric=metric, method=method, task=task, **paired_difference(strata))


def _stratified(strata: Sequence[NDArray[np.float64]]) -> tuple[float, float | None, float]:
    """Return the mean of the strata's means, its standard error and Welch–Satterthwaite's degrees."""
    mean = float(np.mean([s.mean() for s in strata]))
    if any(len(s) < 2 for s in strata):
        return mean, None, 0.0
    parts = np.array([s.var(ddof=1) / len(s) for s in strata])
    total = float(parts.sum())
    if total <= 0:
        return mean, 0.0, float(sum(len(s) - 1 for s in strata))
    freedom = total**2 / float(sum(p**2 / (len(s) - 1) for p, s in zip(parts, strata, strict=True)))
    return mean, math.sqrt(total) / len(strata), freedom


def paired_difference(strata: Sequence[ArrayLike], level: float = LEVEL) -> Interval:
    """Return the mean of paired differences over tasks, with a t interval for fresh seeds.

    d̄ = mean_t mean_s d_{ts}; its variance is Σ_t s_t²/n_t / T², with Welch–Satterthwaite degrees of
    freedom. One task gives the usual paired t interval.

    Args:
        strata: Differences by task, each (seeds,).
        level: Coverage of the interval.

    Returns:
        n, mean, stderr, low and high; stderr, low and high are None where a task has one seed only.

    Example:
        >>> found = paired_difference([[1.0, 2.0, 3.0]])
        >>> found.mean, round(found.low, 3), round(found.high, 3)  # 2 ± 4.303 · 1/√3
        (2.0, -0.484, 4.484)
    """
    from scipy.stats import t

    arrays = [np.asarray(s, dtype=np.float64) for s in strata]
    mean, stderr, freedom = _stratified(arrays)
    n, low, high = sum(len(a) for a in arrays), None, None
    if stderr is not None:
        reach = float(t.ppf(0.5 + level / 2, freedom)) * stderr
        low, high = mean - reach, mean + reach
    return Interval(n=n, mean=mean, stderr=stderr, low=low, high=high)


def differences(
    cells: Sequence[CellRecord], baseline: str, metrics: Iterable[str] = METRICS
) -> list[Difference]:
    """Return method minus baseline, paired by task and seed; `task` None: over all tasks of both."""
    rows: list[Difference] = []
    for metric in metrics:
        table = table_of(cells, metric)
        base = table.get(baseline, {})
        for method, by_task in table.items():
            if method == baseline:
                continue
            pairs = {
                task: [by_task[task][s] - base[task][s] for s in sorted(set(by_task[task]) & set(base[task]))]
                for task in sorted(set(by_task) & set(base))
            }
            pairs = {task: d for task, d in pairs.items() if d}
            strata: list[tuple[str | None, list[list[float]]]] = [(task, [d]) for task, d in pairs.items()]
            if len(pairs) > 1:
                strata.append((None, list(pairs.values())))
            rows += [
                Difference(metric=metric, method=method, baseline=baseline, task=task, **paired_difference(d))
                for task, d in strata
            ]
    return rows


def ranks(cells: Sequence[CellRecord], metric: str = "test_accuracy") -> list[Rank]:
    """Return each method's mean rank (1 is best, ties share) over the tasks and seeds that all have.

    Methods that lack a (task, seed) which most have are ranked where they are present; `n` says where.
    """
    from scipy.stats import rankdata

    table = table_of(cells, metric)
    sign = -1.0 if METRICS.get(metric, True) else 1.0
    blocks: dict[tuple[str, int], dict[str, float]] = {}
    for method, by_task in table.items():
        for task, by_seed in by_task.items():
            for seed, value in by_seed.items():
                blocks.setdefault((task, seed), {})[method] = sign * value
    found: dict[str, list[float]] = {}
    for values in blocks.values():
        for method, rank in zip(values, rankdata(list(values.values())), strict=True):
            found.setdefault(method, []).append(float(rank))
    rows = [
        Rank(
            method=method,
            mean_rank=float(np.mean(r)),
            stderr=float(np.std(r, ddof=1) / math.sqrt(len(r))) if len(r) > 1 else None,
            n=len(r),
        )
        for method, r in found.items()
    ]
    return sorted(rows, key=lambda row: row.mean_rank)
