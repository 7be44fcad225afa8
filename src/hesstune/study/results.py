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

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hesstune._version import __version__
from hesstune.errors import ConfigError, RunError
from hesstune.methods import method_class
from hesstune.storage.stored import checked_record
from hesstune.study.fingerprint import ELSEWHERE
from hesstune.study.plan import Cell, StudyPlan
from hesstune.study.records import CellRecord, Configs, Options, StudyResults
from hesstune.study.summary import differences, means, ranks

__all__ = [
    "FORMAT",
    "RESULTS",
    "assembled",
    "check_unchanged",
    "read_results",
    "results_of",
]

FORMAT = 1
RESULTS = "results.json"
# What the cells do not tell.
TOLD = ("header", "command", "versions", "baseline", "left_out", "settings", "shared", "configs")
# What is said in the header, in this order.
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
    told = {
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
    return assembled(told, cells)


def assembled(told: Mapping[str, Any], cells: list[CellRecord]) -> StudyResults:
    """Put together what is told and what is derived from the cells."""
    return StudyResults(
        format=FORMAT,
        **{name: told[name] for name in TOLD},
        tasks=list(dict.fromkeys(c.task for c in cells)),
        methods=list(dict.fromkeys(c.method for c in cells)),
        seeds=sorted({c.seed for c in cells}),
        means=means(cells),
        differences=differences(cells, told["baseline"]),
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


def _shared(cells: Sequence[Cell]) -> tuple[Options, Configs]:
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
    told: dict[tuple[str, int], set[str]] = {}
    for cell in plan.cells:
        told.setdefault((cell.task, cell.seed), set()).add(str(getattr(cell.config, name)))
    return "by method" if any(len(values) > 1 for values in told.values()) else "by task"


def _labels(plan: StudyPlan, shared: Mapping[str, Any]) -> str:
    injected = (
        shared["inject_noise"] if "inject_noise" in shared else f"noise {_varies(plan, 'inject_noise')}"
    )
    given = f"{injected} injected into training and validation"
    given = "as the data gives them" if injected is None else given
    matrix = shared["noise_matrix"] if "noise_matrix" in shared else _varies(plan, "noise_matrix")
    own = "the injected one" if injected is not None else "none"
    return f"Labels: {given}. The noise matrix that methods are told: {own if matrix is None else matrix}."


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
