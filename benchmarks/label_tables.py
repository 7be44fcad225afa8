"""Tables of the field benchmark's labels, and means over seeds with their intervals, for the pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t

__all__ = ["interval", "label_words", "labels_table", "shown", "votes_table"]

LABEL_COLUMNS = ("tv_em", "tv_confident", "ap_clean", "ap_cleanlab", "f1_clean", "f1_cleanlab")


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of per-seed values and its 95 % t interval."""
    array = np.asarray(values)
    half = (
        float(t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else 0
    )
    return float(array.mean()), float(array.mean()) - half, float(array.mean()) + half


def shown(values: Sequence[float], form: str) -> str:
    """Return the mean over seeds, with its 95 % interval where there are several."""
    mean, low, high = interval(values)
    told = format(mean, form)
    return told if len(values) < 2 else f"{told}, 95 % interval over seeds [{low:{form}}, {high:{form}}]"


def _number(rows: Sequence[dict[str, str]], key: str) -> float | None:
    values = [float(row[key]) for row in rows if row[key]]
    return float(np.mean(values)) if values else None


def labels_table(rows: list[dict[str, str]]) -> str:
    """Return a row a task."""
    titles = ("F: em", "F: confident", "AP: clean", "AP: cleanlab", "F1: clean", "F1: cleanlab")
    lines = ["| task | wrong | " + " | ".join(titles) + " |", "|" + "---|" * (2 + len(titles))]
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        figures: list[Any] = [_number(own, key) for key in LABEL_COLUMNS]
        cells = ["–" if value is None else f"{value:.3f}" for value in figures]
        lines.append(f"| {task} | {100 * (_number(own, 'noise') or 0):.0f} % | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def label_words(rows: list[dict[str, str]]) -> str:
    """Say how the two compare on average, with intervals over seeds."""
    said = []
    for kind, mine, other in (
        ("Average precision", "ap_clean", "ap_cleanlab"),
        ("F1", "f1_clean", "f1_cleanlab"),
    ):
        by_seed = []
        for seed in sorted({row["seed"] for row in rows}):
            own = [row for row in rows if row["seed"] == seed and row[mine]]
            by_seed.append(float(np.mean([float(r[mine]) - float(r[other]) for r in own])))
        said.append(f"- {kind}, `clean` minus cleanlab, mean over tasks: {shown(by_seed, '+.3f')}.")
    return "\n".join(said)


def votes_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a row a set of votes."""
    models = ("majority", "dawid_skene", "mace", "snorkel", "auto, votes", "auto")
    titles = {"dawid_skene": "crowd-kit DS", "mace": "crowd-kit MACE", "auto, votes": "votes alone"}
    names = " | ".join(titles.get(name, name) for name in models)
    lines = [f"| set | labelers | {names} | said wrong | wrong |", "|" + "---|" * (len(models) + 4)]
    for row in rows:
        best = max(row[name] for name in models if name in row)
        told = {name: f"{100 * row[name]:.1f}" for name in models if name in row}
        cells = [f"**{told[name]}**" if row.get(name) == best else told.get(name, "–") for name in models]
        wrong = f"{100 * row['rate said']:.1f} | {100 * (1 - row['auto']):.1f}"
        lines.append(f"| {row['set']} | {row['labelers']} | {' | '.join(cells)} | {wrong} |")
    return "\n".join(lines)
