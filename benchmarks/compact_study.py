"""Read a comparison that is kept as a CSV file, a row a cell, and a JSON file with everything else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hesstune.storage.csv_table import read_rows
from hesstune.storage.reading import read_json
from hesstune.study.options import CellRecord, Configs, OptionValues, StudyResults
from hesstune.study.results import assembled

TEXTS = ("task", "method", "seed", "fingerprint", "status", "error")


def read_compact(path: Path) -> StudyResults:
    """Return what results.json would hold; means, differences and ranks are computed from the cells."""
    told = read_json(path.with_suffix(".json"))
    assert isinstance(told, dict)
    cells = [_cell(row) for row in read_rows(path)]
    return assembled({**told, "configs": _expanded(told["configs"])}, cells)


def _cell(row: Mapping[str, str]) -> CellRecord:
    cell: OptionValues = {name: row[name] for name in TEXTS}
    cell |= {"seed": int(row["seed"]), "error": row["error"] or None}
    metrics = {name: text for name, text in row.items() if name not in (*TEXTS, "search") and text}
    cell["metrics"] = {name: json.loads(text) for name, text in metrics.items()}
    if row.get("search"):
        cell["search"] = json.loads(row["search"])
    return CellRecord.model_validate(cell)


def _expanded(common: Mapping[str, Any]) -> Configs:
    """Return {task: {method: options}} of options by task, by method, and by both."""
    found: Configs = {}
    for task, of_task in common["tasks"].items():
        for method, of_method in common["methods"].items():
            own = {n: v.replace("{task}", task) if isinstance(v, str) else v for n, v in of_method.items()}
            found.setdefault(task, {})[method] = {**of_task, **own}
    for task, by_method in common["cells"].items():
        for method, options in by_method.items():
            found.setdefault(task, {}).setdefault(method, {}).update(options)
    return found
