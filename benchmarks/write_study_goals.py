"""What docs/study.md says of the study's goals: tables and sentences made from the records."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hesstune.study.records import Difference, StudyResults
from hesstune.study.summary import differences
from records import RESULTS as RECORDS

RESULTS = RECORDS / "study"
NEW = "robust_plus"
# The paper's own parts, whose combination robust_plus is; the others are compared as published.
OWN = ("robust", NEW)
GOALS = {"best": 3.26, "vanilla": 10.0, "measure": 6.0}


def line(values: list[str]) -> str:
    return "| " + " | ".join(values) + " |"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [line(header), line(["---", *["---:"] * (len(header) - 1)]), *map(line, rows), ""]


def interval(row: Difference, unit: str = " points") -> str:
    text = f"{100 * row.mean:+.2f}{unit}"
    if row.low is None or row.high is None:
        return text
    return f"{text} [{100 * row.low:+.2f}, {100 * row.high:+.2f}]"


def mean_of(record: StudyResults, metric: str) -> dict[str, float]:
    return {m["method"]: m["mean"] for m in record["means"] if m["task"] is None and m["metric"] == metric}


def minus(record: StudyResults, method: str, base: str) -> Difference | None:
    """Return the paired difference in test accuracy over the tasks."""
    found = differences(record["cells"], base, ["test_accuracy"])
    return next((d for d in found if d["method"] == method and d["task"] is None), None)


def told(record: StudyResults, method: str, base: str) -> Difference:
    """Return `minus` of methods that were both run."""
    found = minus(record, method, base)
    assert found is not None
    return found


def published_best(record: StudyResults, but: Sequence[str] = OWN) -> str:
    """Return the method of the best test accuracy as published, of all but some."""
    accuracy = mean_of(record, "test_accuracy")
    return max((m for m in accuracy if "+" not in m and m not in but), key=lambda m: accuracy[m])


def goals(record: StudyResults) -> list[str]:
    measure = mean_of(record, "measure")
    best, second = published_best(record), published_best(record, (*OWN, "consistent"))
    against = {base: told(record, NEW, base) for base in (best, second, "robust", "vanilla")}
    ratio = measure["vanilla"] / measure[NEW]
    reached = {
        "best": 100 * against[best]["mean"] >= GOALS["best"],
        "vanilla": 100 * against["vanilla"]["mean"] >= GOALS["vanilla"],
        "measure": ratio >= GOALS["measure"],
    }
    said = {True: "reached", False: "**not reached**"}
    return [
        f"- At least {GOALS['best']} points over the best other published method: {said[reached['best']]}. The "
        f"best is `{best}`; `{NEW}` minus it: {interval(against[best])}. "
        + ("" if second == best else f"Over the best that does not use the consistent loss, `{second}`: ")
        + ("" if second == best else f"{interval(against[second])}. ")
        + f"Over the paper's `robust`: {interval(against['robust'])}.",
        f"- At least {GOALS['vanilla']:g} points over plain fine-tuning: {said[reached['vanilla']]}; "
        f"{interval(against['vanilla'])}.",
        f"- A Hessian distance measure at least {GOALS['measure']:g} times smaller than plain fine-tuning's at "
        f"equal or better accuracy: {said[reached['measure']]}; it is {max(ratio, 1 / ratio):.2g} times {'smaller' if ratio > 1 else 'larger'} "
        f"({measure['vanilla']:.3g} against {measure[NEW]:.3g}).",
        *smaller(record, measure),
    ]


def smaller(record: StudyResults, measure: dict[str, float]) -> list[str]:
    """Say what balls of a quarter of the radii make of the measure's goal, where they were run."""
    name = f"{NEW}+quarter"
    if name not in measure:
        return []
    gain = told(record, name, "vanilla")
    ratio = measure["vanilla"] / measure[name]
    reached = ratio >= GOALS["measure"] and gain["mean"] >= 0
    return [
        f"- The same goal in balls of a quarter of those radii (`{name}`): "
        f"{'reached' if reached else '**not reached**'}; the measure is {ratio:.2g} times smaller ({measure[name]:.3g}) "
        f"and the accuracy minus plain fine-tuning's {interval(gain)}."
    ]


def measure_goal(record: StudyResults) -> list[str]:
    """Say for the full fine-tuning how each method's measure compares with plain fine-tuning's."""
    accuracy, measure = mean_of(record, "test_accuracy"), mean_of(record, "measure")
    rows = []
    for method in sorted(measure, key=lambda m: measure[m]):
        row = minus(record, method, "vanilla")
        gain = "-" if row is None else f"{100 * row['mean']:+.1f}"
        ratio = f"{measure['vanilla'] / measure[method]:.2f}"
        rows.append([f"`{method}`", f"{100 * accuracy[method]:.1f}", gain, f"{measure[method]:.3g}", ratio])
    return table(
        ["method", "test accuracy, %", "minus vanilla, points", "measure", "vanilla's ÷ its own"], rows
    )


def by_other_means(record: StudyResults) -> list[str]:
    """Return paired differences that tell the labels' part from the method's."""
    methods = [m for m in record["methods"] if m.endswith("+posterior")]
    asked = [(NEW, m) for m in methods]
    asked += [(m, m.removesuffix("+posterior")) for m in methods]
    rows = [[f"`{m}`", f"`{b}`", interval(d)] for m, b in dict.fromkeys(asked) if (d := minus(record, m, b))]
    return table(["method", "minus", "difference in test accuracy"], rows)


def first(record: StudyResults, made: str, led_to: str, others: Sequence[str] = ()) -> str:
    """Say what the first record of a part found, and what it led to.

    Args:
        record: The first record.
        made: What was different then.
        led_to: What was changed after it had been seen.
        others: Methods to subtract, beside the best published one and plain fine-tuning.
    """
    found = [
        f"minus `{b}`: {interval(told(record, NEW, b))}" for b in (published_best(record), "vanilla", *others)
    ]
    return (
        f"The first record of this part (seeds {', '.join(map(str, record['seeds']))}; {made}) had `robust_plus` "
        f"{', '.join(found)}. It led to {led_to}."
    )


def tuning() -> list[str]:
    """Show the three trials that every method's learning rate was chosen by."""
    found = json.loads((RESULTS / "tuning_full.json").read_text())
    risks = {(t["method"], t["lr"]): t["risk"] for t in found["trials"]}
    rows = [
        [f"`{m}`", *(f"{100 * risks[m, lr]:.1f}" for lr in found["rates"]), f"{chosen:g}"]
        for m, chosen in found["chosen"].items()
    ]
    error = 100 * max(t["stderr"] for t in found["trials"])
    return [
        "### Three trials for each method",
        "",
        f"Each method's learning rate is the best of three on {found['target']}, seed "
        f"{found['seed']}, which the study does not use: by the error that the label model expects on its validation "
        f"examples, %, give or take {error:.1f}. No true label is read.",
        "",
        *table(["method", *(f"{lr:g}" for lr in found["rates"]), "chosen"], rows),
    ]
