"""Tables of the field benchmark's labels, and means over seeds with their intervals, for the pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t

__all__ = ["interval", "label_words", "labels_table", "rate_words", "shown", "votes_table"]

LABEL_COLUMNS = (
    "ece",
    "top100",
    "tv_em",
    "tv_confident",
    "ap_clean",
    "ap_cleanlab",
    "f1_clean",
    "f1_cleanlab",
)
# The goals: a calibration error, and a distance between the noise rate and its estimate.
MOST_ERROR, NEAR_RATE = 0.05, 0.06


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
    titles = (
        "ECE",
        "top 100",
        "F: em",
        "F: confident",
        "AP: clean",
        "AP: cleanlab",
        "F1: clean",
        "F1: cleanlab",
    )
    lines = ["| task | wrong | estimate | " + " | ".join(titles) + " |", "|" + "---|" * (3 + len(titles))]
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        figures: list[Any] = [_number(own, key) for key in LABEL_COLUMNS]
        cells = ["–" if value is None else f"{value:.3f}" for value in figures]
        rate, low, high = (100 * (_number(own, key) or 0) for key in ("rate", "low", "high"))
        estimate = f"{rate:.0f} % ({low:.0f} to {high:.0f})"
        lines.append(
            f"| {task} | {100 * (_number(own, 'noise') or 0):.0f} % | {estimate} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(lines)


def rate_words(rows: list[dict[str, str]]) -> str:
    """Say in how many runs on labels that people gave the goals for rates and probabilities were reached."""
    human = [row for row in rows if row["task"].startswith(("cifar10n", "amazon"))]
    noise, rate, low, high = (
        np.array([float(row[key]) for row in human]) for key in ("noise", "rate", "low", "high")
    )
    inside, near = (low <= noise) & (noise <= high), np.abs(rate - noise) <= NEAR_RATE
    errors = np.array([float(row["ece"]) for row in human])
    missed = [row["task"] for row, error in zip(human, errors, strict=True) if error > MOST_ERROR]
    above = ", ".join(dict.fromkeys(missed)) or "none"
    lower = [row["task"] for row in human if float(row["f1_clean"]) <= float(row["f1_cleanlab"])]
    behind = ", ".join(dict.fromkeys(lower)) or "none"
    return (
        f"- Labels by people, {len(human)} runs: the rate is in the interval in {inside.sum()}, within "
        f"{NEAR_RATE} of its estimate in {near.sum()}, either in {(inside | near).sum()}. The largest "
        f"distance is {np.abs(rate - noise).max():.3f}.\n"
        f"- Calibration error (ECE) at most {MOST_ERROR} in {(errors <= MOST_ERROR).sum()} of {len(human)}; "
        f"above it on: {above}.\n"
        f"- F1 of the default cut is not above cleanlab's on: {behind}."
    )


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
        ends = row.get("interval")
        said = f"{100 * row['rate said']:.1f}" + (
            f" ({100 * ends[0]:.0f} to {100 * ends[1]:.0f})" if ends else ""
        )
        wrong = f"{said} | {100 * (1 - row['auto']):.1f}"
        lines.append(f"| {row['set']} | {row['labelers']} | {' | '.join(cells)} | {wrong} |")
    return "\n".join(lines)
