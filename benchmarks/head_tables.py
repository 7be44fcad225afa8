"""Generated parts of the documentation that compare `auto` and `robust` with what users have."""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd

import analysis as a
from analysis import bold_best, joined, markdown, with_interval
from records import rows

VECTORS = "svm_rbf"  # of some tasks alone
ENCODERS = {"minilm": "MiniLM", "mpnet": "mpnet"}


def field_heads() -> str:
    columns = {name: name for name in (*a.PEERS, VECTORS, "crowd_kit", "tf_idf")}
    columns |= {f"clean_{n}": f"clean {n}" for n in (5, 10, 50)} | {"sklearn_cv, true labels": "*true*"}
    mean = a.means(a.accuracies(rows("heads"))).dropna(subset=list(a.PEERS))
    columns = {name: title for name, title in columns.items() if name in mean}  # with records
    shown = {task: bold_best(dict(own.dropna()), a.PEERS) for task, own in mean.iterrows()}
    cells = ([task, *(own.get(name, "–") for name in columns)] for task, own in shown.items())
    return markdown(["task", *columns.values()], cells)


def field_head_differences() -> str:
    found, cells = a.accuracies(rows("heads"))[[*a.PEERS, VECTORS]], []
    mean = a.means(found).dropna(subset=list(a.PEERS))
    counts = found[list(a.PEERS)].groupby(level="task", sort=False).count().loc[mean.index].min(axis=1)
    every, ranks = list(counts[counts >= 5].index), a.mean_ranks(mean[list(a.PEERS)])
    for other in (*a.PEERS[1:], VECTORS):
        lost = mean["auto"] - mean[other]
        below = joined("{0[0]} ({0[1]:+.1f})", lost[lost < -0.5].items())
        own = [task for task in every if mean[other].notna()[task]]
        groups = (own, [task for task in own if task in a.VOTES])
        minus = [with_interval(a.gains(found, other, tasks), "+.2f") for tasks in groups]
        rank = (
            f"rank {ranks[other]:.2f}; `auto` {ranks['auto']:.2f}" if other in ranks else f"{len(own)} tasks"
        )
        cells.append([f"`{other}` ({rank})", *minus, below])
    titles = ["`auto` minus", f"all {len(every)} tasks", "labels from votes", "more than 0.5 points below on"]
    return markdown(titles, cells)


def field_encoders() -> str:
    mean = a.means(a.accuracies(rows("heads_encoders")))
    columns = {**{name: name for name in a.PEERS}, "sklearn_cv, true labels": "*true*"}
    tasks = list(dict.fromkeys(str(name).rpartition(" ")[0] for name in mean.index))
    cells = [[task] for task in [*tasks, "mean"]]
    for encoder in ENCODERS:
        own = mean.reindex([f"{task} {encoder}" for task in tasks])
        for row, (_, values) in zip(cells, [*own.iterrows(), ("mean", own.mean())], strict=True):
            shown = bold_best(dict(values.dropna()), a.PEERS)
            row += [shown.get(name, "–") for name in columns]
    return markdown(["task", *(f"{n}, {e}" for e in ENCODERS.values() for n in columns.values())], cells)


def field_regret() -> str:
    found = rows("heads_development")
    cells: list[list[str]] = []
    auto = pd.Series({r["task"]: r["accuracy"] for r in found if r["method"] == "auto"})
    heads = pd.DataFrame({r["task"]: r["accuracies"] for r in found if r["method"] == "single heads"})
    for title, end in (("softmax regressions", " softmax"), ("all heads", "")):
        own = heads[heads.index.str.endswith(end)]
        regret, fixed = 100 * (own.max() - auto), 100 * (own.mean(axis=1).max() - auto.mean())
        cells.append(
            [title, str(len(own)), f"{regret.mean():+.2f}", str((regret > 0.5).sum()), f"{fixed:+.2f}"]
        )
    best = f"best of each task minus `auto`, mean of {len(auto)} tasks"
    titles = ["", "number", best, "tasks with more than 0.5", "best for all tasks minus `auto`"]
    return markdown(titles, cells)


def _deeper(schedule: str) -> pd.DataFrame:
    """Return the accuracies of a schedule; a method that lacks a seed of a task is left out there."""
    found = [r for r in rows("deeper") if r["schedule"] == schedule and r["seed"] >= a.FIRST_SEED]
    whole = a.complete(a.accuracies(found), ("auto", "plain", "auto, head"), 1)
    whole = whole.where(whole.notna().groupby(level="task").transform("all"))
    names = ("auto", "plain", "plain, stopped", "auto, head", "robust, known noise")
    return whole[[name for name in names if name in whole and whole[name].notna().any()]]


def _deeper_table(schedule: str) -> str:
    found, cells = _deeper(schedule), []
    for task, own in a.means(found).iterrows():
        shown = ("–" if math.isnan(value) else f"{value:.1f}" for value in own)
        cells.append([task, str(len(found.loc[task])), *shown])
    return markdown(["task", "seeds", *found.columns], cells)


def field_deeper_differences() -> str:
    cells = []
    for schedule in ("fitted", "short"):
        found = _deeper(schedule).dropna(axis=1)
        for other in found.columns[1:]:
            gains = a.gains(found, other, list(a.means(found).index))
            cells.append([schedule, f"`{other}`", with_interval(gains)])
    return markdown(["schedule", "`auto` minus", "points [95 % interval]"], cells)


def field_lora() -> str:
    found = a.accuracies(rows("lora"))
    mean = a.means(found)
    mean.loc["mean"] = mean.mean()
    cells = [[task, *(f"{own[name]:.1f}" for name in ("auto", "plain"))] for task, own in mean.iterrows()]
    return markdown(["task", "auto", "plain"], cells)


MADE = (
    field_heads, field_head_differences, field_regret, field_encoders, field_deeper_differences, field_lora
)  # fmt: skip
TABLES: dict[str, Callable[[], str]] = {
    **{made.__name__: made for made in MADE},
    "field_deeper_fitted": lambda: _deeper_table("fitted"),
    "field_deeper_short": lambda: _deeper_table("short"),
    "robust_defaults": a.robust_defaults,
}
