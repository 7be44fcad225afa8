"""What docs/study.md says of heads: every method on the tasks of benchmarks/field, from their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from label_tables import shown
from records import RESULTS, read_rows
from write_field import PROGRAMMATIC

__all__ = ["accuracies", "heads", "mean_ranks", "task_means"]

# Of the field's own record: what needs no votes, no texts and no true label.
BESIDE = ("auto", "sklearn_cv", "cleanlab")
SEEDS = 3

Found = Mapping[str, Mapping[str, Mapping[int, float]]]

TEXT = """## Heads

Linear heads on frozen features of EfficientNet-Lite0 (96 pixels) and MiniLM, {tasks} of the {every} tasks of
[the field](field.md) and its splits (larger ones were not run for all), {seeds}: every method with its defaults, told nothing about the
noise. `robust`, `robust_plus` and `forward` are given a noise matrix estimated from the labels as given
(`--noise-matrix estimate:auto`); heads in no ball have a penalty by cross-validation on the labels as given,
`vanilla` first of all. `sklearn_cv` and `cleanlab` run by their own packages. Where labels come from votes,
methods but `auto` learn from their majority. Which share of the penalty, which radii and which rule of
`--radius auto` was settled on the development tasks of `benchmarks/field/tasks.py`; the tasks below were
then run once: `python benchmarks/field/methods.py --data DATA --part test`.

Test accuracy on true labels, in per cent; *votes*: the {votes} tasks whose labels come from votes; *rank*:
the mean over tasks; *below* counts tasks on which a method is more than half a point below `vanilla`.

{summary}

By task, mean over seeds:

{table}
"""


def accuracies() -> dict[str, dict[str, dict[int, float]]]:
    """Return {task: {method: {seed: accuracy in per cent}}} of tasks that every method was run on."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for name in ("field_heads_test", "field_methods_test"):
        for row in read_rows(RESULTS / f"{name}.csv"):
            if name == "field_heads_test" and row["method"] not in BESIDE:
                continue
            own = found.setdefault(row["task"], {}).setdefault(row["method"], {})
            own[int(row["seed"])] = 100 * float(row["accuracy"])
    every = {method for own in found.values() for method in own}
    whole = {task: own for task, own in found.items() if set(own) == every}
    return {task: own for task, own in whole.items() if len(_seeds(own)) >= SEEDS}


def _seeds(own: Mapping[str, Mapping[int, float]]) -> list[int]:
    """Return the seeds that all methods have."""
    return sorted(set.intersection(*(set(seeds) for seeds in own.values())))


def _gains(found: Found, method: str, tasks: Sequence[str]) -> list[float]:
    """Return, for each seed that all tasks have, the mean over tasks of `auto` minus a method."""
    seeds = sorted(set.intersection(*(set(_seeds(found[task])) for task in tasks)))
    return [float(np.mean([found[t]["auto"][s] - found[t][method][s] for t in tasks])) for s in seeds]


def task_means(found: Found) -> dict[str, dict[str, float]]:
    """Return {task: {method: mean over the seeds that all have}}."""
    return {
        task: {method: float(np.mean([seeds[s] for s in _seeds(own)])) for method, seeds in own.items()}
        for task, own in found.items()
    }


def mean_ranks(means: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return each method's mean rank over tasks; those that are level share theirs."""
    names = list(next(iter(means.values())))
    ranks = [rankdata([-own[name] for name in names]) for own in means.values()]
    return dict(zip(names, np.mean(ranks, axis=0).tolist(), strict=True))


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def summary(found: Found) -> str:
    """Return a row a method, the best mean first."""
    means = task_means(found)
    names, tasks = list(next(iter(means.values()))), list(means)
    voted = [task for task in tasks if task in PROGRAMMATIC]
    ranks = mean_ranks(means)
    rows = []
    for name in sorted(names, key=lambda n: -np.mean([means[t][n] for t in tasks])):
        below = sum(means[t][name] < means[t]["vanilla"] - 0.5 for t in tasks)
        rows.append(
            [
                f"`{name}`",
                f"{np.mean([means[t][name] for t in tasks]):.1f}",
                f"{np.mean([means[t][name] for t in voted]):.1f}" if voted else "–",
                f"{ranks[name]:.1f}",
                "–" if name == "auto" else _interval(_gains(found, name, tasks)),
                "–" if name == "auto" or not voted else _interval(_gains(found, name, voted)),
                str(below),
            ]
        )
    header = ["method", "all tasks", "votes", "rank", "`auto` minus it", "the same, votes", "below"]
    return _rows(header, rows)


def _interval(values: Sequence[float]) -> str:
    return shown(values, "+.1f").replace(", 95 % interval over seeds", "")


def by_task(found: Found) -> str:
    """Return a row a task, a column a method."""
    means = task_means(found)
    names = sorted(next(iter(means.values())), key=lambda n: -np.mean([own[n] for own in means.values()]))
    rows = []
    for task, own in means.items():
        best = max(own.values())
        cells = [f"**{own[n]:.1f}**" if own[n] >= best - 1e-9 else f"{own[n]:.1f}" for n in names]
        rows.append([task, *cells])
    return _rows(["task", *(f"`{name}`" for name in names)], rows)


def heads() -> str:
    """Return the section."""
    found = accuracies()
    counts = sorted({len(_seeds(own)) for own in found.values()})
    said = f"{counts[0]} seeds" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]} seeds"
    return TEXT.format(
        tasks=len(found),
        every=len({row["task"] for row in read_rows(RESULTS / "field_heads_test.csv")}),
        seeds=said,
        votes=sum(task in PROGRAMMATIC for task in found),
        summary=summary(found),
        table=by_task(found),
    )
