"""The cells and options of a comparison as a table: what is common to methods or tasks is told once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hesstune.study.records import CellRecord, Configs, Options

__all__ = ["cells_of", "expanded", "factored", "table_rows"]

# What every cell has, as text; `search` where one was asked for; then a column a metric, as JSON.
TEXTS = ("task", "method", "seed", "fingerprint", "status", "error")
SEARCH = "search"
PLACE = "{task}"


def table_rows(records: Sequence[CellRecord]) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row a cell; an empty place is a metric that the cell does not have."""
    cells = [record.to_dict() for record in records]
    metrics = list(dict.fromkeys(name for cell in cells for name in cell["metrics"]))
    searched = [SEARCH] if any(SEARCH in cell for cell in cells) else []
    rows = []
    for cell in cells:
        row = ["" if cell[name] is None else str(cell[name]) for name in TEXTS]
        row += [json.dumps(cell[SEARCH]) if SEARCH in cell else "" for _ in searched]
        row += [json.dumps(cell["metrics"][name]) if name in cell["metrics"] else "" for name in metrics]
        rows.append(row)
    return [*TEXTS, *searched, *metrics], rows


def cells_of(rows: Iterable[Mapping[str, str]]) -> list[CellRecord]:
    """Return the cells of a table's rows, number for number as they were."""
    cells = []
    for row in rows:
        cell: Options = {name: row[name] for name in TEXTS}
        cell |= {"seed": int(row["seed"]), "error": row["error"] or None}
        metrics = {name: text for name, text in row.items() if name not in (*TEXTS, SEARCH) and text}
        cell["metrics"] = {name: json.loads(text) for name, text in metrics.items()}
        if row.get(SEARCH):
            cell[SEARCH] = json.loads(row[SEARCH])
        cells.append(CellRecord.model_validate(cell))
    return cells


def factored(configs: Configs) -> dict[str, Configs | dict[str, Options]]:
    """Return options by task, by method (where `{task}` stands for the task's name), and the rest by cell."""
    tasks: dict[str, Options] = {task: {} for task in configs}
    methods: dict[str, Options] = {method: {} for own in configs.values() for method in own}
    if any(set(own) != set(methods) for own in configs.values()):
        return {"tasks": {}, "methods": {}, "cells": configs}  # nothing is common to a part of a table
    rest: Configs = {}
    names = dict.fromkeys(n for own in configs.values() for options in own.values() for n in options)
    for name in names:
        values = {(t, m): o[name] for t, own in configs.items() for m, o in own.items() if name in o}
        general = {key: _general(value, key[0]) for key, value in values.items()}
        common = len(values) == len(tasks) * len(methods)
        common = common and not any(isinstance(value, str) and PLACE in value for value in values.values())
        if common and _told_by(0, values):
            for (task, _), value in values.items():
                tasks[task][name] = value
        elif common and _told_by(1, general):
            for (_, method), value in general.items():
                methods[method][name] = value
        else:
            for (task, method), value in values.items():
                rest.setdefault(task, {}).setdefault(method, {})[name] = value
    return {"tasks": tasks, "methods": methods, "cells": rest}


def expanded(common: Mapping[str, Any]) -> Configs:
    """Return {task: {method: options}} of what `factored` returned."""
    found: Configs = {}
    for task, of_task in common["tasks"].items():
        for method, of_method in common["methods"].items():
            own = {name: _special(value, task) for name, value in of_method.items()}
            found.setdefault(task, {})[method] = {**of_task, **own}
    for task, by_method in common["cells"].items():
        for method, options in by_method.items():
            found.setdefault(task, {}).setdefault(method, {}).update(options)
    return found


def _told_by(part: int, values: Mapping[tuple[str, str], Any]) -> bool:
    """Whether the task (0) or the method (1) alone tells the value."""
    texts = {key: json.dumps(value, sort_keys=True) for key, value in values.items()}
    first: dict[str, str] = {}
    return all(first.setdefault(key[part], text) == text for key, text in texts.items())


def _general(value: Any, task: str) -> Any:
    return value.replace(task, PLACE) if isinstance(value, str) else value


def _special(value: Any, task: str) -> Any:
    return value.replace(PLACE, task) if isinstance(value, str) else value
