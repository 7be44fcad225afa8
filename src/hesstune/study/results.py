"""results.json: the results of a comparison, for tables, pages and a continued comparison.

One JSON object:

- `format`: 1.
- `header`: list of sentences: the budget, split, augmentation, selection rule and labels of all cells, and
  what the methods set themselves.
- `command`: the command line that made it, or null; `versions`: {hesstune, torch, python}.
- `tasks`, `methods`, `seeds`: their names, in the order given; `baseline`: the method that differences are
  taken from; `left_out`: {method: why}.
- `settings`: see `hesstune.study.options.Settings`; `shared`: options of `finetune` that all cells have
  alike; `configs`: {task: {method: options that differ between cells}}.
- `cells`: list of {task, method, seed, fingerprint, status: done | failed | pending, error: text or null,
  metrics, search (if one was asked for)}. `metrics` maps names to numbers or null: test_accuracy,
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

stderr, low and high are null if a task has a single seed.
"""

from __future__ import annotations

import io
import math
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from hesstune._version import __version__
from hesstune.bounds.record import Certificate
from hesstune.errors import ConfigError, RunError
from hesstune.methods import method_class
from hesstune.noise.matrix import shown_noise
from hesstune.storage.stored import read_record
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

# Metrics of the tables and differences, with their titles, and those in a terminal.
METRICS = {
    "test_accuracy": ("test accuracy, %", "test\naccuracy"),
    "test_balanced_accuracy": ("balanced, %", None),
    "gap": ("gap", "gap"),
    "measure": ("measure", "measure"),
    "distance": ("distance", "distance"),
    "certificate": ("mean of certificates", "mean of\ncertificates"),
    "seconds": ("seconds", "seconds"),
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

    Over tasks the mean is the plain mean of the tasks' means, as in `paired_difference`.
    """
    rows = []
    for metric in METRICS:
        table = table_of(cells, metric)
        tasks = sorted({task for by_task in table.values() for task in by_task})
        for method, by_task in table.items():
            values = {task: list(by_task[task].values()) for task in tasks if task in by_task}
            for task, found in _intervals(values, len(values) == len(tasks)):
                rows.append(Mean(metric=metric, method=method, task=task, **found))
    return rows


def _intervals(
    values: Mapping[str, list[float]], complete: bool = True
) -> Iterator[tuple[str | None, Interval]]:
    """Yield the interval of each task, and of several complete tasks together."""
    for task, own in values.items():
        yield task, paired_difference([own])
    if len(values) > 1 and complete:
        yield None, paired_difference(list(values.values()))


def paired_difference(strata: Sequence[ArrayLike]) -> Interval:
    """Return the mean of paired differences over tasks, with a 95 % t interval for fresh seeds.

    d̄ = mean_t mean_s d_{ts}; its variance is Σ_t s_t²/n_t / T², with Welch–Satterthwaite degrees of
    freedom. One task gives the usual paired t interval.

    Args:
        strata: Differences by task, each (seeds,).

    Returns:
        n, mean, stderr, low and high; stderr, low and high are None if a task has one seed only.

    Example:
        >>> found = paired_difference([[1.0, 2.0, 3.0]])
        >>> found.mean, round(found.low, 3), round(found.high, 3)  # 2 ± 4.303 · 1/√3
        (2.0, -0.484, 4.484)
    """
    from scipy.stats import t

    arrays = [np.asarray(s, dtype=np.float64) for s in strata]
    n, mean = sum(len(a) for a in arrays), float(np.mean([a.mean() for a in arrays]))
    if any(len(a) < 2 for a in arrays):
        return Interval(n=n, mean=mean, stderr=None, low=None, high=None)
    parts = np.array([a.var(ddof=1) / len(a) for a in arrays])
    total, stderr, freedom = float(parts.sum()), 0.0, float(n - len(arrays))
    if total > 0:
        stderr = math.sqrt(total) / len(arrays)
        freedom = total**2 / float(sum(p**2 / (len(a) - 1) for p, a in zip(parts, arrays, strict=True)))
    reach = float(t.ppf(0.5 + LEVEL / 2, freedom)) * stderr
    return Interval(n=n, mean=mean, stderr=stderr, low=mean - reach, high=mean + reach)


def differences(cells: Sequence[CellRecord], baseline: str) -> list[Difference]:
    """Return method minus baseline, paired by task and seed; `task` None: over all tasks of both."""
    rows: list[Difference] = []
    for metric in METRICS:
        table = table_of(cells, metric)
        base = table.pop(baseline, {})
        for method, by_task in table.items():
            pairs = {
                task: [by_task[task][s] - base[task][s] for s in sorted(set(by_task[task]) & set(base[task]))]
                for task in sorted(set(by_task) & set(base))
            }
            for task, found in _intervals({task: own for task, own in pairs.items() if own}):
                rows.append(Difference(metric=metric, method=method, baseline=baseline, task=task, **found))
    return rows


def ranks(cells: Sequence[CellRecord]) -> list[Rank]:
    """Return each method's mean rank by test accuracy (1 is best, ties share) over tasks and seeds.

    Methods that lack a task and seed are ranked among those present; `n` counts these.
    """
    from scipy.stats import rankdata

    blocks: dict[tuple[str, int], dict[str, float]] = {}
    for method, by_task in table_of(cells, "test_accuracy").items():
        for task, by_seed in by_task.items():
            for seed, value in by_seed.items():
                blocks.setdefault((task, seed), {})[method] = -value
    found: dict[str, list[float]] = {}
    for values in blocks.values():
        for method, rank in zip(values, rankdata(list(values.values())), strict=True):
            found.setdefault(method, []).append(float(rank))
    rows = []
    for method, own in found.items():
        stderr = float(np.std(own, ddof=1) / math.sqrt(len(own))) if len(own) > 1 else None
        rows.append(Rank(method=method, mean_rank=float(np.mean(own)), stderr=stderr, n=len(own)))
    return sorted(rows, key=lambda row: row.mean_rank)


@dataclass(frozen=True)
class Smallest:
    """The smallest of `count` certificates: `risk` holds with probability 1 − delta, their union counted."""

    cell: CellRecord
    risk: float
    count: int
    delta: float


def certificates_of(cells: Sequence[CellRecord], task: str) -> list[tuple[CellRecord, HeadCertificate]]:
    """Return the certificates of a task's cells, each with its cell."""
    found = [(cell, cell.metrics.get("certificate")) for cell in cells if cell.task == task]
    return [(c, v) for c, v in found if isinstance(v, HeadCertificate) and v.risk is not None and v.facts]


def smallest_of(cells: Sequence[CellRecord], task: str) -> Smallest | None:
    """Return the smallest certificate of a task over its methods and seeds, or None.

    J certificates that each fail with probability δ/J fail with probability up to δ together.
    """
    found = certificates_of(cells, task)
    if not found:
        return None
    count = len(found)
    delta = max(value.delta or 0.0 for _, value in found)
    risks = [Certificate.of_facts(value.facts or {}).at(delta / count) for _, value in found]
    best = min(range(count), key=risks.__getitem__)
    return Smallest(found[best][0], risks[best], count, delta)


RESULTS = "results.json"
# Options named in the header, in this order.
BUDGET = ("epochs", "batch_size", "optimizer", "lr", "schedule", "lr_warmup")


def read_results(path: Path) -> StudyResults:
    """Read the results of the comparison in a folder; raise RunError if there is none."""
    path = path / RESULTS if path.is_dir() else path
    found = read_record(path, StudyResults)
    if found is None:
        raise RunError(f"{path} does not exist; give the folder of a comparison")
    return found


def results_of(
    plan: StudyPlan, records: Sequence[CellRecord], baseline: str, command: str | None, notes: Sequence[str]
) -> StudyResults:
    """Assemble results.json from the plan and the records of all cells, present and earlier ones."""
    known = {record.key: record for record in records}
    cells = [known.pop(c.key) if c.key in known else c.record(status="pending") for c in plan.cells]
    cells += list(known.values())
    shared, configs = _shared_options(plan.cells)
    return StudyResults(
        format=StudyResults.newest,
        header=[*_header(plan, shared), *notes],
        command=command,
        versions={"hesstune": __version__, "torch": torch.__version__, "python": platform.python_version()},
        baseline=baseline,
        left_out=plan.left_out,
        settings=plan.settings.model_dump(),
        shared=shared,
        configs=configs,
        tasks=list(dict.fromkeys(c.task for c in cells)),
        methods=list(dict.fromkeys(c.method for c in cells)),
        seeds=sorted({c.seed for c in cells}),
        means=means(cells),
        differences=differences(cells, baseline),
        ranks=ranks(cells),
        cells=cells,
    )


def _shared_options(cells: Sequence[Cell]) -> tuple[OptionValues, Configs]:
    options = [(c, c.options()) for c in cells]
    first = options[0][1]
    alike = {name for name in first if all(o[name] == first[name] for _, o in options)}
    configs: Configs = {}
    for cell, own in options:
        differing = {name: value for name, value in own.items() if name not in alike}
        configs.setdefault(cell.task, {}).setdefault(cell.method, differing)
    return {name: first[name] for name in first if name in alike}, configs


def _header(plan: StudyPlan, shared: Mapping[str, Any]) -> list[str]:
    """Return the sentences above every table: the options that all runs share, and those that differ."""

    def varies(name: str) -> str:
        """Say whether an option differs between the methods of a task, or between tasks alone."""
        kept: dict[tuple[str, int], set[str]] = {}
        for cell in plan.cells:
            kept.setdefault((cell.task, cell.seed), set()).add(str(getattr(cell.config, name)))
        return "by method" if any(len(values) > 1 for values in kept.values()) else "by task"

    def value(name: str) -> Any:
        return shared[name] if name in shared else varies(name)

    def of(*names: str) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value(name)}" for name in names)

    most = "all" if shared.get("limit", "") is None else f"at most {value('limit')}"
    validation = "clean" if shared.get("clean_val") else "as noisy as the training labels"
    kept = {"last": "the last epoch's weights", "best": "the weights of the least validation loss"}
    rule = kept.get(str(shared.get("select")), "the last epoch's weights unless the method itself selects")
    injected, matrix = value("inject_noise"), value("noise_matrix")
    labels, own = "as the data gives them", "none" if matrix is None else shown_noise(matrix)
    if injected is not None:
        noise = shown_noise(injected) if "inject_noise" in shared else f"noise {shown_noise(injected)}"
        labels = f"{noise} injected into training and validation"
        own = "the injected one" if matrix is None else own
    lines = [
        f"Budget: {of(*BUDGET)}; training examples: {most}.",
        f"Model: {of('model', 'train', 'image_size')}. Augmentation: {value('augment')}.",
        f"Split: {value('split')}, {_drawn(plan)}; {of('val_fraction', 'test_fraction')}.",
        f"Selection: {rule}; validation labels are {validation}; nothing is selected on the test part.",
        f"Labels: {labels}. The noise matrix that methods are given: {own}.",
    ]
    changed = {}
    for cell in plan.cells:
        defaults = method_class(cell.config.method).defaults(cell.config.head_only)
        set_here = [f"{name} {v}" for name, v in defaults.items() if getattr(cell.config, name) == v]
        if set_here:
            changed[cell.method] = f"{cell.method} ({', '.join(set_here)})"
    if changed:
        lines.append(f"Set by methods themselves: {'; '.join(changed.values())}.")
    if plan.settings.search:
        lines.append(
            f"Search: {plan.settings.search} trials for each method, task and seed, the first with the "
            "defaults, chosen by validation loss on that seed's validation part."
        )
    return lines


def _drawn(plan: StudyPlan) -> str:
    """Say how the splits of the runs are drawn."""
    if not plan.cells or plan.cells[0].config.fold is None:
        return "drawn anew for every seed unless the data gives it"
    count = plan.cells[0].config.fold.partition("/")[2]
    return (
        f"{count} folds, each tested on once by a run of its own; runs on the folds of one split share "
        "most of their training examples, so that their standard error is too small"
    )


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


SHARES = ("test_accuracy", "test_balanced_accuracy")
NOTE = (
    "mean ± standard error over seeds; gap: cross-entropy, test minus training; measure: the Hessian "
    "distance measure over training examples, as the paper takes it, no guarantee (its relation to the gap "
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
    """Return a table's header and rows: one row per method, best test accuracy first; task None: the mean.

    With `brief`, for a terminal: fewer columns, and standard errors for the accuracy only.
    """
    found = {(m.metric, m.method): m for m in results.means if m.task == task}
    titles = {metric: title for metric, both in METRICS.items() if (title := both[brief])}
    shown = [metric for metric in titles if any(key[0] == metric for key in found)]
    paired = {d.method: d for d in results.differences if d.task == task and d.metric == "test_accuracy"}
    ranked = task is None or len(results.tasks) == 1
    rank = {r.method: f"{r.mean_rank:.1f}" for r in results.ranks}
    methods = [m for m in results.methods if any((metric, m) in found for metric in shown)]
    best = {m: found["test_accuracy", m].mean for m in methods if ("test_accuracy", m) in found}
    methods.sort(key=lambda m: -best.get(m, -1.0))
    against = f"minus {results.baseline}" + ("\npoints" if brief else ", points")
    header = ["method", *(titles[m] for m in shown), against]
    rows = [
        [
            method,
            *(_mean_text(found.get((metric, method)), metric in SHARES, brief) for metric in shown),
            _interval_text(paired.get(method)),
            *([rank.get(method, "-")] if ranked else []),
        ]
        for method in methods
    ]
    return [*header, *(["rank" if brief else "mean rank"] if ranked else [])], rows


def _mean_text(row: Mean | None, share: bool, brief: bool) -> str:
    """Write a share in percent with fixed decimals, any other metric with significant digits."""
    if row is None:
        return "-"
    if share:
        return f"{100 * row.mean:.1f}" + ("" if row.stderr is None else f" ± {100 * row.stderr:.1f}")
    return f"{row.mean:.3g}" + ("" if brief or row.stderr is None else f" ± {row.stderr:.2g}")


def _interval_text(row: Difference | None) -> str:
    if row is None:
        return "-"
    text = f"{100 * row.mean:+.1f}"
    if row.low is None or row.high is None:
        return text
    return f"{text} [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"


def markdown(results: StudyResults) -> str:
    """Return the comparison as Markdown: the header, a table over the tasks, a table for each task."""
    lines = ["# Comparison", "", *(f"- {line}" for line in results.header), ""]
    tasks: Sequence[str | None] = results.tasks
    for task in [None, *tasks] if len(tasks) > 1 else tasks:
        lines += [f"## {task if task is not None else f'Mean over {len(tasks)} tasks'}", ""]
        lines += _table_lines(*method_rows(results, task))
        if task is not None:
            header, rows, note = certificate_rows(results, task)
            if rows:
                lines += ["Certificates, error ≤:", "", *_table_lines(header, rows), note, ""]
    lines += [NOTE, ""]
    unfinished = [c for c in results.cells if c.status != "done"]
    if unfinished:
        lines += ["Not finished:", ""]
        lines += [f"- {c.task}, {c.method}, seed {c.seed}: {c.error or c.status}" for c in unfinished] + [""]
    if results.left_out:
        lines += ["Left out:", "", *(f"- {m}: {why}" for m, why in results.left_out.items()), ""]
    return "\n".join(lines)


def _table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---", *["---:"] * (len(header) - 1)]
    cells = ([cell.replace("|", "\\|") for cell in row] for row in (header, ruler, *rows))
    return [*("| " + " | ".join(row) + " |" for row in cells), ""]


def certificate_rows(results: StudyResults, task: str) -> tuple[list[str], list[list[str]], str]:
    """Return a table of certificates: header, one row per method and one for the smallest, and a note."""
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


def cells_table(results: StudyResults) -> tuple[list[str], list[list[Any]]]:
    """Return the header and the rows of the cells: one column per metric."""
    names = list(dict.fromkeys(name for c in results.cells for name in c.metrics))
    rows = [[c.task, c.method, c.seed, c.status, *map(c.number, names)] for c in results.cells]
    return ["task", "method", "seed", "status", *names], rows


def cells_csv(results: StudyResults) -> str:
    """Return the cells as CSV."""
    text = io.StringIO()
    write_rows(text, *cells_table(results), "\n")
    return text.getvalue()
