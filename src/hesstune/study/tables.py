"""A comparison's tables: Markdown for people, CSV for spreadsheets."""

from __future__ import annotations

import io
from collections.abc import Sequence

from hesstune.storage.csv_table import write_rows
from hesstune.study.certificates import certificates_of, smallest_of
from hesstune.study.records import Difference, Mean, StudyResults
from hesstune.study.summary import METRICS

__all__ = ["cells_csv", "certificate_rows", "markdown", "method_rows"]

TITLES = {
    "test_accuracy": "test accuracy, %",
    "test_balanced_accuracy": "balanced, %",
    "gap": "gap",
    "measure": "measure",
    "distance": "distance",
    "certificate": "mean of certificates",
    "seconds": "seconds",
}
BRIEF = {
    "test_accuracy": "test\naccuracy",
    "gap": "gap",
    "measure": "measure",
    "distance": "distance",
    "certificate": "mean of\ncertificates",
    "seconds": "seconds",
}
SHARES = ("test_accuracy", "test_balanced_accuracy")
NOTE = (
    "mean ± standard error over seeds; gap: cross-entropy, test minus training; measure: the Hessian "
    "distance measure over training examples, as the paper takes it, no guarantee (how it went with the gap "
    "is in the report; hesstune measure RUN takes held-out ones); seconds: solving a head and training, "
    "features apart, and what runs share counted once. Differences are paired by task and seed, with "
    "95 % t intervals for fresh seeds on these tasks, each by itself."
)
CERTIFICATES = (
    "Each number bounds the error of its own run with probability {sure:g}, by itself. A mean of them is no "
    "bound, and the smallest of several is one only with the union paid: the last row."
)


def method_rows(
    results: StudyResults, task: str | None, brief: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return a table's header and rows: a row a method, best test accuracy first.

    Args:
        results: What results.json holds.
        task: A task's name; None for the mean over the tasks.
        brief: Fewer columns, and standard errors for the accuracy only: for a terminal.
    """
    found = {(m.metric, m.method): m for m in results.means if m.task == task}
    shown = [metric for metric in METRICS if any(key[0] == metric for key in found)]
    titles = BRIEF if brief else TITLES
    shown = [metric for metric in shown if metric in titles]
    paired = {d.method: d for d in results.differences if d.task == task and d.metric == "test_accuracy"}
    rank = {r.method: r for r in results.ranks}
    methods = [m for m in results.methods if any((metric, m) in found for metric in shown)]
    best = {m: found["test_accuracy", m].mean for m in methods if ("test_accuracy", m) in found}
    methods.sort(key=lambda m: -best.get(m, -1.0))
    against = f"minus {results.baseline}" + ("\npoints" if brief else ", points")
    header = [
        "method",
        *(titles[m] for m in shown),
        against,
        *(["rank" if brief else "mean rank"] if _ranked(results, task) else []),
    ]
    rows = []
    for method in methods:
        row = [method]
        for metric in shown:
            value, share = found.get((metric, method)), metric in SHARES
            row.append(_cell(value, share, bare=brief and not share))
        row.append(_interval(paired.get(method)))
        if _ranked(results, task):
            row.append(f"{rank[method].mean_rank:.1f}" if method in rank else "-")
        rows.append(row)
    return header, rows


def _ranked(results: StudyResults, task: str | None) -> bool:
    return task is None or len(results.tasks) == 1


def _cell(row: Mean | None, share: bool, bare: bool = False) -> str:
    if row is None:
        return "-"
    factor = 100 if share else 1
    spread = "" if bare or row.stderr is None else f" ± {_figure(factor * row.stderr, 1 if share else 2)}"
    return f"{_figure(factor * row.mean, 1 if share else 3)}{spread}"


def _figure(value: float, digits: int) -> str:
    # Shares with fixed decimals; measures over several orders of magnitude with significant digits.
    return f"{value:.{digits}f}" if digits == 1 else f"{value:.{digits}g}"


def _interval(row: Difference | None) -> str:
    if row is None:
        return "-"
    text = f"{100 * row.mean:+.1f}"
    if row.low is None or row.high is None:
        return text
    return f"{text} [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"


def markdown(results: StudyResults) -> str:
    """Return the comparison as Markdown: the header, a table over the tasks, a table a task."""
    lines = ["# Comparison", "", *(f"- {line}" for line in results.header), ""]
    tasks: Sequence[str | None] = results.tasks
    for task in [None, *tasks] if len(tasks) > 1 else tasks:
        lines += [f"## {task if task is not None else f'Mean over {len(tasks)} tasks'}", ""]
        header, rows = method_rows(results, task)
        lines += [_line(header), _line(["---", *["---:"] * (len(header) - 1)]), *map(_line, rows), ""]
        if task is not None:
            lines += _certificates(results, task)
    lines += [NOTE, ""]
    open_cells = [c for c in results.cells if c.status != "done"]
    if open_cells:
        lines += ["Not finished:", ""]
        lines += [f"- {c.task}, {c.method}, seed {c.seed}: {c.error or c.status}" for c in open_cells] + [""]
    if results.left_out:
        lines += ["Left out:", "", *(f"- {m}: {why}" for m, why in results.left_out.items()), ""]
    return "\n".join(lines)


def _certificates(results: StudyResults, task: str) -> list[str]:
    """Return the table of a task's certificates: a row a method, a column a seed, and the smallest."""
    header, rows, note = certificate_rows(results, task)
    if not rows:
        return []
    ruler = _line(["---", *["---:"] * (len(header) - 1)])
    return ["Certificates, error ≤:", "", _line(header), ruler, *map(_line, rows), "", note, ""]


def certificate_rows(results: StudyResults, task: str) -> tuple[list[str], list[list[str]], str]:
    """Return a table of certificates: header, a row a method and one for the smallest, and what they say."""
    found = certificates_of(results.cells, task)
    smallest = smallest_of(results.cells, task)
    if smallest is None:
        return [], [], ""
    risks = {(cell.method, cell.seed): float(value.risk or 1.0) for cell, value in found}
    seeds = sorted({seed for _, seed in risks})
    rows = [
        [method, *(f"{risks[method, s]:.3f}" if (method, s) in risks else "-" for s in seeds)]
        for method in results.methods
        if any((method, s) in risks for s in seeds)
    ]
    name = f"{smallest.cell.method}, seed {smallest.cell.seed}"
    told = f"smallest of {smallest.count} ({name}), probability {max(0.0, smallest.sure):g}"
    rows.append([told, f"{smallest.risk:.3f}", *[""] * (len(seeds) - 1)])
    note = CERTIFICATES.format(sure=1 - smallest.delta)
    return ["method", *(f"seed {s}" for s in seeds)], rows, note


def _line(values: Sequence[str]) -> str:
    return "| " + " | ".join(v.replace("|", "\\|") for v in values) + " |"


def cells_csv(results: StudyResults) -> str:
    """Return one row a cell, one column a metric."""
    names = list(dict.fromkeys(name for c in results.cells for name in c.metrics))
    text = io.StringIO()
    rows = [
        [cell.task, cell.method, cell.seed, cell.status, *map(cell.number, names)] for cell in results.cells
    ]
    write_rows(text, ["task", "method", "seed", "status", *names], rows, "\n")
    return text.getvalue()
