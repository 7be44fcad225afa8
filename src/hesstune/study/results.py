"""results.json: what a comparison found, for tables, pages and a continued comparison.

One JSON object:

- `format`: 1.
- `header`: list of sentences: the budget, split, augmentation, selection rule and labels that every cell
  has alike, and what the methods set themselves.
- `command`: the command line that made it, or null; `versions`: {hesstune, torch, python}.
- `tasks`, `methods`, `seeds`: their names, in the order given; `baseline`: the method that differences are
  taken from; `left_out`: {method: why}.
- `settings`: see `hesstune.study.options.Settings`; `shared`: options of `finetune` that all cells have
  alike; `configs`: {task: {method: options that differ between cells}}.
- `cells`: list of {task, method, seed, fingerprint, status: done | failed | pending, error: text or null,
  metrics, search (where one was asked for)}. `metrics` maps names to numbers or null: test_accuracy,
  test_balanced_accuracy, train_accuracy (labels as trained on), train_accuracy_true_labels, val_accuracy
  and val_loss (labels as validated on), train_loss, test_loss, gap (cross-entropy, test minus training),
  distance (√Σ‖v_i‖²), measure (the Hessian distance measure), measure_mean (the same with half the mean in
  place of the maximum), max_loss, stability and stability_taylor, epochs, seconds (solving a head and
  training); and `certificate`: null, {risk, empirical, delta, vacuous, labels} or {risk: null, why}.
  Accuracies are shares.
  `search` is {trials: [{options, val_loss, error}], chosen: number of the trial}.
- `means`: list of {metric, method, task (null: over the tasks), n, mean, stderr, low, high},
  with the 95 % t interval for fresh seeds on these tasks.
- `differences`: list of {metric, method, baseline, task (null: over the tasks), n, mean, stderr, low, high}:
  method minus baseline, paired by task and seed, with a 95 % t interval for fresh seeds on these tasks.
- `ranks`: list of {method, mean_rank, stderr, n} by test accuracy, best first; 1 is best.

stderr, low and high are null where a task has a single seed.
"""

from __future__ import annotations

import io
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hesstune._version import __version__
from hesstune.bounds.record import Certificate
from hesstune.errors import ConfigError, RunError
from hesstune.methods import method_class
from hesstune.storage.stored import checked_record
from hesstune.storage.tables import write_rows
from hesstune.study.options import (
    CellRecord,
    Configs,
    Difference,
    HeadCertificate,
    Interval,
    Mean,
    OptionValues,
    Rank,
    StudyResults,
)
from hesstune.study.plan import ELSEWHERE, Cell, StudyPlan

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
            values = {task: list(by_task[task].values()) for task in tasks if task in by_task}
            strata: list[tuple[str | None, list[list[float]]]] = [(task, [v]) for task, v in values.items()]
            if len(tasks) > 1 and len(values) == len(tasks):
                strata.append((None, list(values.values())))
            rows += [
                Mean(metric=metric, method=method, task=task, **paired_difference(v)) for task, v in strata
            ]
    return rows


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


@dataclass(frozen=True)
class Smallest:
    """The smallest of J certificates, with the union over the J taken into account.

    Attributes:
        cell: The cell that has it.
        risk: Its bound at delta/J. It holds with probability 1 − delta, whichever is the smallest.
        count: J.
        delta: The largest delta of the J.
    """

    cell: CellRecord
    risk: float
    count: int
    delta: float


def certificates_of(cells: Sequence[CellRecord], task: str) -> list[tuple[CellRecord, HeadCertificate]]:
    """Return the certificates of a task's cells, each with its cell."""
    found = [(cell, cell.metrics.get("certificate")) for cell in cells if cell.task == task]
    return [(c, v) for c, v in found if isinstance(v, HeadCertificate) and v.risk is not None and v.facts]


def smallest_of(cells: Sequence[CellRecord], task: str) -> Smallest | None:
    """Return the smallest certificate of a task over its methods and seeds, with the union; None without any.

    Whoever picks the smallest of J certificates, each of which fails with probability δ, has one that fails
    with probability up to J·δ; taken at δ/J each, it is δ again.
    """
    found = certificates_of(cells, task)
    if not found:
        return None
    count = len(found)
    delta = max(value.delta or 0.0 for _, value in found)
    risks = [Certificate.of_facts(value.facts or {}).at(delta / count) for _, value in found]
    best = min(range(count), key=risks.__getitem__)
    return Smallest(found[best][0], risks[best], count, delta)


FORMAT = 1
RESULTS = "results.json"
# What the cells do not hold.
KEPT_FIELDS = ("header", "command", "versions", "baseline", "left_out", "settings", "shared", "configs")
# Options named in the header, in this order.
BUDGET = ("epochs", "batch_size", "optimizer", "lr", "schedule", "lr_warmup")


def read_results(path: Path) -> StudyResults:
    """Read results.json.

    Raises:
        RunError: If the file is missing or is none.
    """
    path = path / RESULTS if path.is_dir() else path
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} holds no readable comparison ({error})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or "cells" not in record:
        raise RunError(f"{path} holds no comparison of this version (format {FORMAT})")
    return checked_record(path, StudyResults, lambda: record)


def results_of(
    plan: StudyPlan, records: Sequence[CellRecord], baseline: str, command: str | None
) -> StudyResults:
    """Assemble results.json from the plan and the records of all cells, present ones and earlier ones."""
    known = {record.key: record for record in records}
    cells = [known.pop(c.key) if c.key in known else _pending(c) for c in plan.cells]
    cells += list(known.values())
    shared, configs = _shared(plan.cells)
    kept = {
        "header": _header(plan, shared),
        "command": command,
        "versions": {
            "hesstune": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "baseline": baseline,
        "left_out": plan.left_out,
        "settings": plan.settings.model_dump(),
        "shared": shared,
        "configs": configs,
    }
    return assembled(kept, cells)


def assembled(kept: Mapping[str, Any], cells: list[CellRecord]) -> StudyResults:
    """Return the record of these fields and of everything that is computed from the cells."""
    return StudyResults(
        format=FORMAT,
        **{name: kept[name] for name in KEPT_FIELDS},
        tasks=list(dict.fromkeys(c.task for c in cells)),
        methods=list(dict.fromkeys(c.method for c in cells)),
        seeds=sorted({c.seed for c in cells}),
        means=means(cells),
        differences=differences(cells, kept["baseline"]),
        ranks=ranks(cells),
        cells=cells,
    )


def _pending(cell: Cell) -> CellRecord:
    return CellRecord(
        task=cell.task,
        method=cell.method,
        seed=cell.seed,
        fingerprint=cell.fingerprint,
        status="pending",
        error=None,
        metrics={},
    )


def _shared(cells: Sequence[Cell]) -> tuple[OptionValues, Configs]:
    options = [(c, c.options()) for c in cells]
    first = options[0][1]
    alike = {name for name in first if all(o[name] == first[name] for _, o in options)}
    configs: Configs = {}
    for cell, own in options:
        differing = {name: value for name, value in own.items() if name not in alike}
        configs.setdefault(cell.task, {}).setdefault(cell.method, differing)
    return {name: first[name] for name in first if name in alike}, configs


def _header(plan: StudyPlan, shared: Mapping[str, Any]) -> list[str]:
    """Return the sentences above every table: what is the same for all, and what is not."""

    def value(name: str) -> str:
        return str(shared[name]) if name in shared else _varies(plan, name)

    def of(*names: str) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value(name)}" for name in names)

    most = "all" if shared.get("limit", "") is None else f"at most {value('limit')}"
    lines = [
        f"Budget: {of(*BUDGET)}; training examples: {most}.",
        f"Model: {of('model', 'train', 'image_size')}. Augmentation: {value('augment')}.",
        f"Split: {value('split')}, {_drawn(plan)}; {of('val_fraction', 'test_fraction')}.",
        _selection(plan, shared),
        _labels(plan, shared),
    ]
    own = _set_by_methods(plan)
    if own:
        lines.append(f"Set by methods themselves: {'; '.join(own)}.")
    if plan.settings.search:
        lines.append(
            f"Search: {plan.settings.search} trials for each method, task and seed, the first with the "
            "defaults, chosen by validation loss on that seed's validation part."
        )
    return lines


def _drawn(plan: StudyPlan) -> str:
    """Say what the parts of the runs have to do with each other."""
    if not plan.cells or plan.cells[0].config.fold is None:
        return "drawn anew for every seed unless the data gives it"
    count = plan.cells[0].config.fold.partition("/")[2]
    return (
        f"{count} folds, each tested on once by a run of its own; runs on the folds of one split share "
        "most of their training examples, so that their standard error is too small"
    )


def _varies(plan: StudyPlan, name: str) -> str:
    """Tell whether an option differs between the methods of a task, or between tasks alone."""
    kept: dict[tuple[str, int], set[str]] = {}
    for cell in plan.cells:
        kept.setdefault((cell.task, cell.seed), set()).add(str(getattr(cell.config, name)))
    return "by method" if any(len(values) > 1 for values in kept.values()) else "by task"


def _labels(plan: StudyPlan, shared: Mapping[str, Any]) -> str:
    injected = (
        shared["inject_noise"] if "inject_noise" in shared else f"noise {_varies(plan, 'inject_noise')}"
    )
    given = f"{injected} injected into training and validation"
    given = "as the data gives them" if injected is None else given
    matrix = shared["noise_matrix"] if "noise_matrix" in shared else _varies(plan, "noise_matrix")
    own = "the injected one" if injected is not None else "none"
    return f"Labels: {given}. The noise matrix that methods are given: {own if matrix is None else matrix}."


def _selection(plan: StudyPlan, shared: Mapping[str, Any]) -> str:
    labels = "clean" if shared.get("clean_val") else "as noisy as the training labels"
    kept = {"last": "the last epoch's weights", "best": "the weights of the least validation loss"}
    rule = kept.get(str(shared.get("select")), "the last epoch's weights unless the method itself selects")
    return f"Selection: {rule}; validation labels are {labels}; nothing is selected on the test part."


def _set_by_methods(plan: StudyPlan) -> list[str]:
    said = {}
    for cell in plan.cells:
        own = method_class(cell.config.method).defaults(cell.config.head_only)
        kept = {name: v for name, v in own.items() if getattr(cell.config, name) == v}
        if kept:
            said[cell.method] = f"{cell.method} ({', '.join(f'{k} {v}' for k, v in kept.items())})"
    return list(said.values())


def check_unchanged(plan: StudyPlan, before: StudyResults, out: Path) -> None:
    """Raise ConfigError, naming the first difference, if a finished cell would be computed otherwise now."""
    planned = {c.key: c for c in plan.cells}
    unseen = ("keep_runs", *ELSEWHERE)
    for record in before.cells:
        cell = planned.get(record.key)
        if cell is None or record.status == "pending" or record.fingerprint == cell.fingerprint:
            continue
        old = {**before.shared, **before.configs.get(cell.task, {}).get(cell.method, {})}
        was, now = {**old, **before.settings}, {**cell.options(), **plan.settings.model_dump()}
        changed = [n for n in now if n in was and n not in unseen and was[n] != now[n]]
        what = (
            f"--{changed[0].replace('_', '-')} {was[changed[0]]}, not {now[changed[0]]}"
            if changed
            else "other data or files"
        )
        raise ConfigError(
            f"the comparison in {out} was made with {what} ({cell.task}, {cell.method}); give the same "
            "options to continue it, choose another --out, or use --overwrite"
        )


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
    kept = f"smallest of {smallest.count} ({name}), probability {1 - smallest.delta:g}"
    rows.append([kept, f"{smallest.risk:.3f}", *[""] * (len(seeds) - 1)])
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
