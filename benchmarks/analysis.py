"""Statistics of records, and how tables write them: shared by tables, figures and tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import binom, kendalltau, t

from gap import DEVELOPMENT, NOISE
from records import Row, rows

FACTOR = 5.0
# Accuracies of heads and networks

PEERS = ("auto", "sklearn_cv", "cleanlab")
VOTES = (
    *(f"{name} votes" for name in ("cifar10n", "youtube", "trec", "amazon_isbook", "sst2")),
    *(f"{domain} weak" for domain in ("photo", "art_painting", "cartoon", "sketch")),
)
FIRST_SEED = 3  # of deeper.jsonl: earlier seeds are of an earlier recipe of `auto`


def accuracies(found: Iterable[Row]) -> pd.DataFrame:
    """Return accuracies in per cent, one row per task and seed, one column per method."""
    frame = pd.DataFrame(found).set_index(["task", "seed", "method"])["accuracy"]
    return 100 * frame.unstack(sort=False)


def complete(found: pd.DataFrame, methods: Sequence[str], seeds: int) -> pd.DataFrame:
    """Return the rows with all of these methods, of tasks with at least so many of them."""
    whole = found.dropna(subset=list(methods))
    return whole[whole.groupby(level="task")[methods[0]].transform("size") >= seeds]


def all_heads() -> pd.DataFrame:
    """Return the accuracies of heads on the tasks that every method has on three seeds."""
    found = [*rows("methods"), *(r for r in rows("heads") if r["method"] in PEERS)]
    frame = accuracies(found)
    return complete(frame, list(frame.columns), 3)


def means(found: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over seeds, one row per task."""

    def mean(own: pd.Series) -> float:
        values = own.dropna().to_numpy()
        return float(np.mean(values)) if len(values) else math.nan

    return found.groupby(level="task", sort=False).agg(mean)


def mean_ranks(found: pd.DataFrame) -> dict[str, float]:
    """Return each method's mean rank over tasks; ties share their rank."""
    ranks = np.ascontiguousarray(found.rank(axis=1, ascending=False))
    return dict(zip(found.columns, ranks.mean(axis=0).tolist(), strict=True))


def gains(found: pd.DataFrame, other: str, tasks: Sequence[str]) -> list[float]:
    """Return, for each seed that all tasks have, the mean over tasks of `auto` minus another method."""
    difference = (found["auto"] - found[other]).unstack("task")
    return list(difference[list(tasks)].dropna().mean(axis=1).sort_index())


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of per-seed values and its 95 % t interval."""
    array, n = np.asarray(values), len(values)
    half = float(t.ppf(0.975, n - 1) * array.std(ddof=1) / np.sqrt(n)) if n > 1 else math.nan
    return float(array.mean()), float(array.mean()) - half, float(array.mean()) + half


# Measures against the generalization gap, from gap.jsonl

Measured = Callable[[Row], float]
DEFAULT = "held out, mean"


def _hessian(part: str, place: str, statistic: str, extra: str = "", loss: str = "max") -> Measured:
    def value(row: Row) -> float:
        forms: float = row[f"{part} {place} {statistic}{extra}"]
        return math.sqrt(row[f"{part} loss {loss}"] / row["n"]) * forms

    return value


MEASURES: dict[str, tuple[str, Measured]] = {
    "paper": ("training, maximum: the paper's", _hessian("train", "end", "max")),
    "training, mean": ("training, mean", _hessian("train", "end", "mean")),
    DEFAULT: ("**held out, mean**", _hessian("held", "end", "mean")),
    "held out, maximum": ("held out, maximum", _hessian("held", "end", "max")),
    "line": ("held out, mean along the line from the reference", _hessian("held", "line", "mean")),
    "half": ("held out, mean half-way", _hessian("held", "half", "mean")),
    "noise": (
        f"held out, mean under noise of {NOISE:g} times each layer's distance",
        _hessian("held", "noise", "mean"),
    ),
    "joint": ("held out, mean, all layers moved together", _hessian("held", "end", "joint mean")),
    "head": ("held out, mean, the head alone", _hessian("held", "end", "mean", " head")),
    "mean loss": ("held out, mean, C the mean loss", _hessian("held", "end", "mean", loss="mean")),
    "distance": ("Σ ‖v_i‖, the distance alone", lambda row: float(row["distance"])),
    "scaled distance": (
        "√(C/n) · Σ ‖v_i‖, the measure without the Hessian",
        lambda row: math.sqrt(row["train loss max"] / row["n"]) * row["distance"],
    ),
    "relative distance": ("Σ ‖v_i‖/‖W_i‖ below the head", lambda row: float(row["relative distance"])),
    "stability": (
        "rise of the held-out loss under that noise",
        lambda row: float(row["held noise loss"] - row["held loss mean"]),
    ),
    "difference": (
        "held-out loss − training loss: the gap itself, on these few",
        lambda row: float(row["held loss mean"] - row["train loss mean"]),
    ),
}


def gap_rows() -> list[Row]:
    """Return the runs in which a layer moved."""
    return [row for row in rows("gap") if "held loss mean" in row]


def gap_tasks(found: Sequence[Row], heads: bool, development: bool) -> list[str]:
    """Return the names of tasks of a kind."""
    names = sorted({row["task"] for row in found})
    return [n for n in names if n.endswith("head") == heads and (n in DEVELOPMENT) == development]


def taus(found: Sequence[Row], measure: str, names: Sequence[str]) -> list[float]:
    """Return Kendall's τ between a measure and the gap within each task."""
    made = []
    for name in names:
        own = [row for row in found if row["task"] == name]
        values = [MEASURES[measure][1](row) for row in own]
        made.append(float(kendalltau(values, [row["gap"] for row in own]).statistic))
    return made


def close(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the share of (measure, gap) pairs that are within the factor of each other."""
    return float(np.mean([a > 0 and b > 0 and 1 / FACTOR <= a / b <= FACTOR for a, b in pairs]))


def near(found: Sequence[Row], measure: str, names: Sequence[str]) -> tuple[float, float]:
    """Return the share of runs with a measure within the factor of the gap, and the median ratio."""
    pairs = [(MEASURES[measure][1](row), row["gap"]) for row in found if row["task"] in names]
    return close(pairs), float(np.median([a / b for a, b in pairs if b > 0]))


def scaled(found: Sequence[Row], measure: str, names: Sequence[str], by: Sequence[str]) -> float:
    """Return the share of runs within the factor of measures divided by their median ratio on other tasks."""
    ratio = near(found, measure, by)[1]
    return close([(MEASURES[measure][1](r) / ratio, r["gap"]) for r in found if r["task"] in names])


TEXTS_DEVELOPMENT, TEXTS_TEST = ("sst2 minilm",), ("mrpc minilm", "trec minilm")
FORMS = {
    "gauss_newton": "vᵀGv, by layer",
    "joint": "uᵀΛu, all layers moved together",
    "lanczos": "vᵀH⁺v, by layer",
}


def form_pairs(form: str) -> list[tuple[float, float]]:
    """Return (measure, gap) of the runs of gap_forms.jsonl, by the mean of a form over held-out examples."""
    return [
        (math.sqrt(row["loss max"] / row["n"]) * row[f"{form} mean"], row["gap"]) for row in rows("gap_forms")
    ]


def bootstrap(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean difference over tasks with its paired 95 % bootstrap interval over tasks."""
    differences = np.array(one) - np.array(other)
    rng = np.random.default_rng(0)
    drawn = differences[rng.integers(0, len(differences), (10_000, len(differences)))].mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(differences.mean()), float(low), float(high)


def against_plain(found: Sequence[Row], method: str) -> dict[str, float]:
    """Compare a method's whole networks with plain fine-tuning's of the same setting."""
    whole = {(r["task"], r["method"], r["noise"], r["epochs"]): r for r in found if "head" not in r["task"]}
    both = [
        (row, whole[task, method, noise, epochs])
        for (task, name, noise, epochs), row in whole.items()
        if name == "vanilla" and (task, method, noise, epochs) in whole
    ]
    better = [(a, b) for a, b in both if b["test accuracy"] >= a["test accuracy"]]

    def smaller(pairs: list[tuple[Row, Row]], measure: str) -> float:
        ratios = [MEASURES[measure][1](a) / MEASURES[measure][1](b) for a, b in pairs]
        return float(np.median(ratios)) if ratios else math.nan

    return {
        "runs": len(both),
        "accuracy": 100 * float(np.mean([b["test accuracy"] - a["test accuracy"] for a, b in both])),
        "gap plain": float(np.mean([a["gap"] for a, _ in both])),
        "gap": float(np.mean([b["gap"] for _, b in both])),
        "paper": smaller(both, "paper"),
        DEFAULT: smaller(both, DEFAULT),
        "better": len(better),
        "paper, better": smaller(better, "paper"),
        f"{DEFAULT}, better": smaller(better, DEFAULT),
    }


# The study of version 0.1.0, from study.jsonl. On weak labels its gap is that to the validation examples.

STUDY_MEASURES = {
    "measure": "Hessian distance measure",
    "measure_mean": "the same with half the mean in place of the maximum",
    "distance": "distance from the reference",
    "scaled_distance": "√C · distance / √n, the measure without the Hessian",
    "stability": "noise stability, σ = 0.01",
}
STUDY_PARTS = {
    "programmatic_head": "weak labels, heads",
    "programmatic_full": "weak labels, all layers",
    "injected_head": "injected noise, heads",
    "clean_head": "clean labels, heads",
    "clean_full": "clean labels, all layers",
    "architectures": "other networks",
}


def study_pairs(measure: str, part: str | None = None) -> list[tuple[float, float]]:
    """Return (measure, gap) of the study's runs."""
    found = [row for row in rows("study") if part is None or row["part"] == part]
    return [(row[measure], row["gap"]) for row in found if measure in row and "gap" in row]


def tau(pairs: Sequence[tuple[float, float]]) -> float:
    """Return Kendall's τ of pairs."""
    return float(kendalltau([a for a, _ in pairs], [b for _, b in pairs]).statistic)


# Failures of certificates, from coverage.jsonl and run_coverage.jsonl


def most_failures(way: Mapping[str, float]) -> int:
    """Return the largest number of failures that the stated probabilities allow, with 99 % probability.

    A sum of independent draws of different probabilities spreads no wider than one of their mean.
    """
    trials = int(way["trials"])
    return int(binom.ppf(0.99, trials, way["stated"] / trials))


def printed_failures(way: Mapping[str, float]) -> int:
    """Return how many certificates were printed and false."""
    return int(way.get("printed", 0 if way["refused"] else way["failures"]))


def markdown(titles: Iterable[str], cells: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    head = list(titles)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *cells])


def listed(found: Iterable[Row], columns: dict[str, str]) -> str:
    """Return a table of rows; a column is a title and a format string that names values of the row."""
    return markdown(columns, ([form.format_map(row) for form in columns.values()] for row in found))


def signed(value: float) -> str:
    """Return a number with its sign, or a dash if it is not one."""
    return "–" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")


def with_interval(values: Sequence[float], form: str = "+.1f") -> str:
    """Return the mean over seeds with its 95 % t interval."""
    mean, low, high = interval(values)
    return f"{mean:{form}}" if math.isnan(low) else f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def bold_best(values: Mapping[str, float], among: Sequence[str]) -> dict[str, str]:
    """Return the values as text, the largest of some in bold."""
    best = max(values[name] for name in among if name in values)
    shown = {name: f"{value:.1f}" for name, value in values.items()}
    return {n: f"**{shown[n]}**" if n in among and v >= best - 1e-9 else shown[n] for n, v in values.items()}


def joined(form: str, values: Iterable[object]) -> str:
    """Return the values in one cell."""
    return ", ".join(form.format(value) for value in values)


def robust_defaults() -> str:
    """Return the table of `robust` with its defaults against plain fine-tuning that is stopped."""
    found: dict[str, dict[str, float]] = {}
    for row in rows("robust_defaults"):
        found.setdefault(f"{row['task']}, {row['schedule']}", {})[row["method"]] = 100 * row["accuracy"]
    whole = pd.DataFrame.from_dict(found, orient="index").dropna()
    whole.loc["mean"] = whole.mean()
    whole["difference"] = whole["robust"] - whole["plain, stopped"]
    cells = [
        [name, *(f"{value:.1f}" for value in own[:-1]), signed(own.iloc[-1])]
        for name, own in whole.iterrows()
    ]
    return markdown(["task, schedule", *whole.columns], cells)
