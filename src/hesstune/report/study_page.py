"""A comparison's page, from results.json alone."""

from __future__ import annotations

from collections.abc import Sequence

from hesstune.errors import counted
from hesstune.report.rendering import Cell, Plot, chart, render
from hesstune.study.options import Mean, StudyResults
from hesstune.study.results import certificate_rows

# Each metric's column, the format of its numbers, their unit and a factor.
METRICS = {
    "test_accuracy": ("test accuracy", ".1f", " %", 100),
    "gap": ("generalization gap", ".3f", "", 1),
    "measure": ("Hessian distance measure", ".3f", "", 1),
    "certificate": ("mean of certificates", ".1f", " %", 100),
    "distance": ("distance", ".3g", "", 1),
    "seconds": ("seconds of solving and training", ".3g", "", 1),
}


def render_study(results: StudyResults) -> str:
    """Return the HTML page of a comparison: one file, complete without JavaScript."""
    tasks = results.tasks
    tables = {f"Mean over {counted(len(tasks), 'task')}": _table(results, None)} if len(tasks) > 1 else {}
    found = [(task, *certificate_rows(results, task)) for task in tasks]
    context = {
        "s": results,
        "verdict": verdict(results),
        "columns": ["method", *(title for title, *_ in METRICS.values())],
        "tables": tables | {task: _table(results, task) for task in tasks},
        "certificates": [table for table in found if table[2]],
        "differences": _differences(results),
        "gap": _against(results, "gap", "generalization gap (cross-entropy)"),
        "accuracy": _against(results, "test_accuracy", "test accuracy (share of 1)"),
        "open": [cell for cell in results.cells if cell.status != "done"],
    }
    return render("study.html.j2", context)


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
            excluded = "does not hold" if d.low > 0 or d.high < 0 else "holds"
            return f"{text} (95 % interval {100 * d.low:+.1f} to {100 * d.high:+.1f}, which {excluded} zero)."
    return f"{text}."


def _table(results: StudyResults, task: str | None) -> list[list[Cell | str | None]]:
    """Return a row a method of the means of a task, or over the tasks, the best method first."""
    means = {(m.method, m.metric): m for m in results.means if m.task == task}
    methods = [name for name in results.methods if any((name, metric) in means for metric in METRICS)]

    def accuracy(method: str) -> float:
        found = means.get((method, "test_accuracy"))
        return -1.0 if found is None else found.mean

    return [
        [method, *(_mean_cell(means.get((method, metric)), metric) for metric in METRICS)]
        for method in sorted(methods, key=accuracy, reverse=True)
    ]


def _mean_cell(row: Mean | None, metric: str) -> Cell | None:
    if row is None:
        return None
    _, form, unit, factor = METRICS[metric]
    ends = ""
    if row.low is not None and row.high is not None:
        ends = f"[{factor * row.low:{form}}, {factor * row.high:{form}}]"
    return Cell(f"{factor * row.mean:{form}}{unit}", interval=ends)


def _differences(results: StudyResults) -> list[list[object]]:
    shown: list[list[object]] = []
    for d in results.differences:
        if d.metric != "test_accuracy":
            continue
        interval, apart = "one seed", "–"
        if d.low is not None and d.high is not None:
            interval = f"{100 * d.low:+.1f} to {100 * d.high:+.1f}"
            apart = "yes" if d.low > 0 or d.high < 0 else "no"
        task = "all tasks" if d.task is None else d.task
        shown.append([d.method, task, f"{100 * d.mean:+.1f}", interval, apart, d.n])
    return shown


def concordance(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Kendall's τ-b of two lists; None if one of them is constant, or shorter than two."""
    from scipy.stats import kendalltau

    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(kendalltau(x, y).statistic)


def _against(results: StudyResults, metric: str, title: str) -> Plot | None:
    """Return the scatter of the measure and another metric over all runs, with τ within and over tasks."""
    rows = [
        (c.task, c.method, c.seed, x, y)
        for c in results.cells
        if c.status == "done"
        and (x := c.number("measure")) is not None
        and (y := c.number(metric)) is not None
    ]
    if len(rows) < 2:
        return None

    def tau(task: str | None = None) -> float | None:
        some = [row for row in rows if task in (None, row[0])]
        return concordance([row[3] for row in some], [row[4] for row in some])

    over_all = tau()
    words = f"{counted(len(rows), 'run')}; Kendall's τ "
    words += "is undefined" if over_all is None else f"= {over_all:.2f}"
    within = {task: found for task in results.tasks if (found := tau(task)) is not None}
    if len(results.tasks) > 1 and within:
        words += f" over all; by task: {', '.join(f'{task} {found:.2f}' for task, found in within.items())}"
    short, positive = title.split(" (")[0], all(row[3] > 0 for row in rows)
    points = {m: [(row[3], row[4]) for row in rows if row[1] == m] for m in results.methods}
    plot = chart(
        f"measure-{metric.replace('_', '-')}",
        [(f"method {m}", [x for x, _ in xy], [y for _, y in xy], None) for m, xy in points.items() if xy],
        (f"Hessian distance measure and {short}", "Hessian distance measure", title),
        scales=("log" if positive else "linear", "linear"),
        joined=False,
    )
    return Plot(f"Measure and {short}", plot, f"{words}.", ["task", "method", "seed", "measure", title], rows)
