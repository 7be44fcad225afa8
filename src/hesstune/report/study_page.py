"""A comparison's page, from results.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hesstune.errors import counted
from hesstune.report.rendering import bars, render, scatter
from hesstune.study.options import Mean, StudyResults
from hesstune.study.results import certificate_rows

METRICS = {
    "test_accuracy": ("test accuracy", "%.1f %%", 100),
    "gap": ("generalization gap", "%.3f", 1),
    "measure": ("Hessian distance measure", "%.3f", 1),
    "certificate": ("mean of certificates", "%.1f %%", 100),
    "distance": ("distance", "%.3g", 1),
    "seconds": ("seconds of solving and training", "%.3g", 1),
}


class Shown(NamedTuple):
    """A mean in the table: its value, its text, and the text of its interval."""

    value: float | None
    text: str
    interval: str


class TableRow(NamedTuple):
    """A method's means, a metric each."""

    method: str
    cells: list[Shown]


class Table(NamedTuple):
    """The table of a task, or over the tasks."""

    title: str
    columns: list[str]
    rows: list[TableRow]


class Certificates(NamedTuple):
    """The certificates of a task, each alone, and the smallest of them by a union bound."""

    task: str
    columns: list[str]
    rows: list[list[str]]
    note: str


class DifferenceRow(NamedTuple):
    """A method's difference from the baseline, in points, over n pairs."""

    method: str
    task: str
    mean: float
    interval: str
    apart: str
    n: int


class Point(NamedTuple):
    """A run in the scatter: its measure, and another metric."""

    task: str
    method: str
    seed: int
    x: float
    y: float


class Points(NamedTuple):
    """A scatter, in words and numbers too."""

    svg: str
    words: str
    rows: list[Point]
    title: str


class Times(NamedTuple):
    """The bars of the time of training, in words and numbers too."""

    svg: str
    words: str
    rows: dict[str, float]


def render_study(results: StudyResults) -> str:
    """Return the HTML page of a comparison: one file, complete without JavaScript.

    Args:
        results: What results.json holds (see `hesstune.study.results`).
    """
    return render("study.html.j2", context(results))


def context(results: StudyResults) -> dict[str, object]:
    """Return everything the template shows."""
    tasks = results.tasks
    groups: list[str | None] = [None, *tasks] if len(tasks) > 1 else list(tasks)
    return {
        "s": results,
        "verdict": verdict(results),
        "tables": [_table(results, task) for task in groups],
        "certificates": _certificates(results),
        "differences": _differences(results),
        "gap": _against(results, "gap", "generalization gap (cross-entropy)"),
        "accuracy": _against(results, "test_accuracy", "test accuracy (share of 1)"),
        "time": _time(results),
        "open": [cell for cell in results.cells if cell.status != "done"],
    }


def _mean(results: StudyResults, metric: str, method: str, task: str | None) -> Mean | None:
    for row in results.means:
        if (row.metric, row.method, row.task) == (metric, method, task):
            return row
    return None


def verdict(results: StudyResults) -> str:
    """Return the comparison in words: the best method, and whether it differs from the baseline."""
    task = None if len(results.tasks) > 1 else next(iter(results.tasks), None)
    found = [m for m in results.means if (m.metric, m.task) == ("test_accuracy", task)]
    if not found:
        return "No method has been run on every task yet."
    best = max(found, key=lambda m: m.mean)
    text = f"{best.method} has the highest mean test accuracy, {best.mean:.1%}"
    if best.method == results.baseline:
        return f"{text}; it is the baseline."
    for d in results.differences:
        if (d.metric, d.method, d.task) == ("test_accuracy", best.method, task):
            text += f", {100 * d.mean:+.1f} points against {results.baseline}"
            if d.low is None or d.high is None:
                return f"{text}; one seed gives no interval."
            sure = "does not hold" if d.low > 0 or d.high < 0 else "holds"
            return f"{text} (95 % interval {100 * d.low:+.1f} to {100 * d.high:+.1f}, which {sure} zero)."
    return f"{text}."


def _table(results: StudyResults, task: str | None) -> Table:
    rows = []
    for method in results.methods:
        cells = {name: _mean(results, name, method, task) for name in METRICS}
        if any(cells.values()):
            rows.append(TableRow(method, [_cell(cells[name], name) for name in METRICS]))
    rows.sort(key=lambda row: -float(row.cells[0].value or -1))
    title = task if task is not None else f"Mean over {counted(len(results.tasks), 'task')}"
    return Table(title, [title for title, _, _ in METRICS.values()], rows)


def _cell(row: Mean | None, metric: str) -> Shown:
    _, form, factor = METRICS[metric]
    if row is None:
        return Shown(None, "–", "")
    text = form % (factor * row.mean)
    ends = ""
    if row.low is not None and row.high is not None:
        digits = form.split()[0]  # the unit stands once
        ends = f"[{digits % (factor * row.low)}, {digits % (factor * row.high)}]"
    return Shown(factor * row.mean, text, ends)


def _certificates(results: StudyResults) -> list[Certificates]:
    found = [(task, *certificate_rows(results, task)) for task in results.tasks]
    return [Certificates(*table) for table in found if table[2]]


def _differences(results: StudyResults) -> list[DifferenceRow]:
    shown = []
    for d in results.differences:
        if d.metric != "test_accuracy":
            continue
        interval, apart = "one seed", "–"
        if d.low is not None and d.high is not None:
            interval = f"{100 * d.low:+.1f} to {100 * d.high:+.1f}"
            apart = "yes" if d.low > 0 or d.high < 0 else "no"
        task = "all tasks" if d.task is None else d.task
        shown.append(DifferenceRow(d.method, task, 100 * d.mean, interval, apart, d.n))
    return shown


def concordance(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Kendall's τ-b of two lists; None if one of them is constant, or shorter than two.

    Example:
        >>> round(concordance([1, 2, 3], [1, 3, 2]), 4)
        0.3333
    """
    from scipy.stats import kendalltau

    if len(x) < 2 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(kendalltau(x, y).statistic)


def _against(results: StudyResults, metric: str, title: str) -> Points | None:
    """Return the scatter of the measure and another metric over all runs, with τ within and over tasks."""
    cells = [
        Point(c.task, c.method, c.seed, x, y)
        for c in results.cells
        if c.status == "done"
        and (x := c.number("measure")) is not None
        and (y := c.number(metric)) is not None
    ]
    if len(cells) < 2:
        return None
    points = [
        (m, [c.x for c in cells if c.method == m], [c.y for c in cells if c.method == m])
        for m in results.methods
    ]
    shown = concordance([c.x for c in cells], [c.y for c in cells])
    words = f"{counted(len(cells), 'run')}; Kendall's τ " + (
        "is undefined" if shown is None else f"= {shown:.2f}"
    )
    within = []
    for task in results.tasks:
        some = [c for c in cells if c.task == task]
        tau = concordance([c.x for c in some], [c.y for c in some])
        within += [] if tau is None else [f"{task} {tau:.2f}"]
    if len(results.tasks) > 1 and within:
        words += f" over all; by task: {', '.join(within)}"
    plot = scatter(
        f"measure-{metric.replace('_', '-')}",
        [p for p in points if p[1]],
        (f"Hessian distance measure and {title.split(' (')[0]}", "Hessian distance measure", title),
    )
    return Points(plot, f"{words}.", cells, title)


def _time(results: StudyResults) -> Times | None:
    values = {}
    for method in results.methods:
        found = [c.number("seconds") for c in results.cells if c.method == method]
        known = [float(v) for v in found if v is not None]
        if known:
            values[method] = sum(known) / len(known)
    if not values:
        return None
    slowest = max(values, key=lambda m: values[m])
    plot = bars("time", list(values.items()), ("Time of solving and training", "mean seconds a run"))
    return Times(plot, f"Slowest: {slowest}, {values[slowest]:.3g} s a run.", values)
