"""Write docs/study.md from the study's records: python benchmarks/write_study.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hesstune.study.summary import differences
from hesstune.study.tables import method_rows
from write_study_gap import MEASURES, TITLES, draw, summary

HERE = Path(__file__).parent
RESULTS = HERE / "study" / "results"
PAGE = HERE.parent / "docs" / "study.md"
NEW = "robust_plus"
# The paper's own parts, whose combination robust_plus is; the others are compared as published.
OWN = ("robust", NEW)
GOALS = {"best": 3.26, "vanilla": 10.0, "measure": 6.0}


def line(values: list[str]) -> str:
    return "| " + " | ".join(values) + " |"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [line(header), line(["---", *["---:"] * (len(header) - 1)]), *map(line, rows), ""]


def interval(row: dict[str, Any], unit: str = " points") -> str:
    text = f"{100 * row['mean']:+.2f}{unit}"
    return text if row["low"] is None else f"{text} [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"


def mean_of(record: dict[str, Any], metric: str) -> dict[str, float]:
    return {m["method"]: m["mean"] for m in record["means"] if m["task"] is None and m["metric"] == metric}


def goals(record: dict[str, Any]) -> list[str]:
    accuracy, measure = mean_of(record, "test_accuracy"), mean_of(record, "measure")
    published = {m: a for m, a in accuracy.items() if "+" not in m and m not in OWN}
    best = max(published, key=lambda m: published[m])
    bounded = {m: a for m, a in published.items() if m != "consistent"}
    second = max(bounded, key=lambda m: bounded[m])
    against = {
        row["baseline"]: row
        for base in (best, second, "robust", "vanilla")
        for row in differences(record["cells"], base, ["test_accuracy"])
        if row["method"] == NEW and row["task"] is None
    }
    ratio = measure["vanilla"] / measure[NEW]
    reached = {
        "best": 100 * against[best]["mean"] >= GOALS["best"],
        "vanilla": 100 * against["vanilla"]["mean"] >= GOALS["vanilla"],
        "measure": ratio >= GOALS["measure"],
    }
    said = {True: "reached", False: "**not reached**"}
    return [
        f"- At least {GOALS['best']} points over the best other published method: {said[reached['best']]}. The "
        f"best is `{best}`; `{NEW}` minus it: {interval(against[best])}. Over the best that does not use the "
        f"consistent loss, `{second}`: {interval(against[second])}. Over the paper's `robust`: "
        f"{interval(against['robust'])}.",
        f"- At least {GOALS['vanilla']:g} points over plain fine-tuning: {said[reached['vanilla']]}; "
        f"{interval(against['vanilla'])}.",
        f"- A Hessian distance measure at least {GOALS['measure']:g} times smaller than plain fine-tuning's at "
        f"equal or better accuracy: {said[reached['measure']]}; it is {max(ratio, 1 / ratio):.2g} times {'smaller' if ratio > 1 else 'larger'} "
        f"({measure['vanilla']:.3g} against {measure[NEW]:.3g}). The likely reason: a head that fits its labels is certain of "
        "every example, so the softmax's curvature vanishes and the measure with it, while a head inside a "
        "ball is uncertain and has curvature: for heads alone the measure is small where the noise is fitted. And for a "
        "head that starts from zero, multiplying its weights by a small number changes no prediction and takes the "
        "measure to zero, so that a small measure could be had for nothing: this is not claimed.",
    ]


def oracle(record: dict[str, Any]) -> list[list[str]]:
    accuracy = mean_of(record, "test_accuracy")
    rows = []
    for name in ("forward", "consistent", "robust", NEW):
        values = [accuracy.get(f"{name}{kind}") for kind in ("+uniform", "", "+oracle")]
        rows.append([f"`{name}`", *("-" if v is None else f"{100 * v:.1f}" for v in values)])
    return rows


def measure_goal(record: dict[str, Any]) -> list[str]:
    """Say for the full fine-tuning how each method's measure compares with plain fine-tuning's."""
    accuracy, measure = mean_of(record, "test_accuracy"), mean_of(record, "measure")
    rows = []
    for method in sorted(measure, key=lambda m: measure[m]):
        row = next(
            (
                d
                for d in differences(record["cells"], "vanilla", ["test_accuracy"])
                if d["method"] == method and d["task"] is None
            ),
            None,
        )
        gain = "-" if row is None else f"{100 * row['mean']:+.1f}"
        ratio = f"{measure['vanilla'] / measure[method]:.2f}"
        rows.append([f"`{method}`", f"{100 * accuracy[method]:.1f}", gain, f"{measure[method]:.3g}", ratio])
    return table(
        ["method", "test accuracy, %", "minus vanilla, points", "measure", "vanilla's ÷ its own"], rows
    )


def gaps(records: dict[str, dict[str, Any]]) -> list[str]:
    found = summary(records)
    parts = [name for name in TITLES if name in records]
    header = ["measure", "τ, all runs", *(f"τ, {TITLES[p]}" for p in parts), "median ratio to the gap"]
    header += ["within a factor 5", "runs"]
    rows = []
    for key, row in found.items():
        taus = [f"{row['parts'][p]:+.2f}" for p in parts]
        rest = [f"{row['ratio']:.2g}", f"{100 * row['near']:.0f} %", str(row["runs"])]
        rows.append([MEASURES[key], f"{row['tau']:+.2f}", *taus, *rest])
    best = max(found, key=lambda k: found[k]["tau"])
    said = {True: "reached", False: "**not reached**"}
    scale = found["measure"]["near"] > 0.5
    return [
        "## Measures against the gap",
        "",
        "Over all runs above: Kendall's τ between each measure and the observed gap, and how its scale compares.",
        "",
        *table(header, rows),
        f"- The Hessian measure within a factor 5 of the gap in most runs: {said[scale]}.",
        f"- The Hessian measure has the highest τ: {said[best == 'measure']}; the highest is of: {MEASURES[best]}.",
        "",
        "![measures against the gap](figures/study_gap.png)",
        "",
        "The solid line is equality, the dotted ones a factor 5. The gap of the weakly labelled parts contains "
        "the labels' errors, which no measure of the network sees.",
        "",
    ]


def programmatic(record: dict[str, Any]) -> list[str]:
    lines = [
        "## Programmatic labels, heads alone",
        "",
        "Four targets, the domains of PACS; each is labelled by linear probes of the other three (the protocol "
        "of Mazzetto et al. 2021). F is estimated from the votes and the features by the label model `features`, "
        "without a clean label.",
        "",
        *(f"- {text}" for text in record["header"]),
        "- No method's options were searched here: each has its own defaults (`--radius` too). `robust_plus` was put "
        "together on other splits (seeds 0 and 1) of the same domains, with their test labels seen: fresh "
        "domains could differ.",
        made_with(record),
        "",
        "### The goals",
        "",
        *goals(record),
        "",
        "Intervals are 95 % t intervals of paired differences for fresh seeds on these tasks, each by itself.",
        "",
        "### Mean over the four targets",
        "",
        *table(*method_rows(record, None)),
        "`lora` is not here: it adapts layers below the head. With a head alone `lp_ft` and `gradual_unfreezing` are plain fine-tuning. "
        "`NAME+oracle` is told F from true labels, `NAME+uniform` a symmetric F of the same rate; the gap here is "
        "cross-entropy on true test labels minus that on weak training labels.",
        "",
        "### What F is worth",
        "",
        "Mean test accuracy, %:",
        "",
        *table(["method", "uniform F", "estimated F", "oracle F"], oracle(record)),
    ]
    for task in record["tasks"]:
        lines += [f"### {task}", "", *table(*method_rows(record, task, brief=False))]
    return lines


def label_models(record: dict[str, Any]) -> list[str]:
    methods = [m for m in record["methods"] if m.endswith("+posterior")]
    best = max(
        (m for m in record["methods"] if m not in (*OWN, *methods) and "+" not in m),
        key=lambda m: mean_of(record, "test_accuracy")[m],
    )
    asked = [(NEW, best), (NEW, "vanilla"), (NEW, "robust")]
    asked += [(m, base) for m in methods for base in (m.removesuffix("+posterior"), NEW)]
    asked += [(f"{NEW}+posterior", "vanilla+posterior"), (f"{NEW}+posterior", best)]
    found = {
        (d["method"], base): d
        for base in {b for _, b in asked}
        for d in differences(record["cells"], base, ["test_accuracy"])
        if d["task"] is None
    }
    rows = [[f"`{m}`", f"`{b}`", interval(found[m, b])] for m, b in dict.fromkeys(asked) if (m, b) in found]
    return [
        "## A better label model: by its F, or by its own answers",
        "",
        "The same targets on other splits; F now comes from the label model `soft_features`, whose parts were "
        "chosen by test accuracy on other splits of the same pictures ([how](noise.md)), so what uses it is "
        "favoured. `NAME+posterior` is trained on that model's P(class | votes, features) of each example in "
        "place of the weak label, with nothing left to correct, and validated on its argmax: this does not "
        "assume that the noise depends on the class alone. The `+posterior` rows were settled before any result of "
        "them was seen, and nothing was changed afterwards; the other rows are fewer than above for time.",
        "",
        *(f"- {text}" for text in record["header"]),
        made_with(record),
        pending(record),
        "",
        *table(*method_rows(record, None)),
        *table(["method", "minus", "difference in test accuracy"], rows),
        "Over the tasks that both have; intervals need two seeds of every task.",
        "",
        *(
            line
            for task in record["tasks"]
            for line in [f"### {task}", "", *table(*method_rows(record, task))]
        ),
    ]


def full(record: dict[str, Any]) -> list[str]:
    return [
        "## Programmatic labels, all layers",
        "",
        *(f"- {text}" for text in record["header"]),
        f"- Validation has 100 examples; measure and stability on {record['settings']['measure_examples']} "
        "training examples. No search over options: it would not fit the time. `robust_plus` chooses its radii "
        "by runs of half the length.",
        f"- Targets: {', '.join(record['tasks'])}; the others, and more seeds, were not run for want of time: "
        "the command continues.",
        made_with(record),
        pending(record),
        "",
        *table(*method_rows(record, None)),
        "One seed: differences of a few points may be chance. `sam` with its default ρ = 0.05 ends at guessing here, "
        "where the other methods train. A likely reason, not tested: the head starts at zero, so a step of ρ up the "
        "loss turns it round, and the layers below learn under the head turned round.",
        "",
        "### The measure against plain fine-tuning's",
        "",
        "For heads from zero a small measure can be had by scaling (above); for whole networks it cannot:",
        "",
        *measure_goal(record),
    ]


def injected(record: dict[str, Any]) -> list[str]:
    accuracy = {
        (m["task"], m["method"]): m["mean"] for m in record["means"] if m["metric"] == "test_accuracy"
    }
    tasks = [t for t in record["tasks"] if (t, "vanilla") in accuracy]
    methods = sorted(record["methods"], key=lambda m: -accuracy.get((None, m), 0.0))
    rows = [
        [f"`{m}`", *(f"{100 * accuracy[t, m]:.1f}" if (t, m) in accuracy else "-" for t in [*tasks, None])]
        for m in methods
    ]
    return [
        "## Injected noise",
        "",
        "Symmetric and pair noise at 20, 40 and 60 % on digits and on PACS's photos with true labels; heads "
        "alone; the loss is told the injected matrix. Test accuracy on true labels, %:",
        "",
        *(f"- {text}" for text in record["header"]),
        made_with(record),
        pending(record),
        "",
        *table(["method", *tasks, "mean"], rows),
        "At 60 % of pair noise the most frequent label is a wrong one: only methods that are told the matrix "
        "can come out right.",
        "",
    ]


def clean(records: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "## Small clean data",
        "",
        "Does the constraint help without noise? True labels of PACS's photos and art paintings. Test accuracy "
        "minus plain fine-tuning's, points; the mean is over the tasks that both have:",
        "",
    ]
    for name in ("clean_head", "clean_full"):
        if name not in records:
            continue
        record = records[name]
        found = {
            (d["method"], d["task"]): d for d in differences(record["cells"], "vanilla", ["test_accuracy"])
        }
        tasks = list(record["tasks"])
        rows = [
            [f"`{m}`", *(interval(found[m, t], "") if (m, t) in found else "-" for t in [*tasks, None])]
            for m in record["methods"]
            if m != "vanilla"
        ]
        lines += [
            f"### {'Heads alone' if name == 'clean_head' else 'All layers'}",
            "",
            *(f"- {text}" for text in record["header"]),
            made_with(record),
            pending(record),
            "",
            *table(["method", *tasks, "mean"], rows),
        ]
    return lines


def networks(record: dict[str, Any]) -> list[str]:
    made = json.loads((RESULTS / "pretraining.json").read_text())
    lines = [
        "## Other architectures",
        "",
        "**Not ImageNet weights**: a ReLU ResNet and a small vision transformer, built from a configuration "
        "through `hf:` and pretrained here on the true labels of PACS's cartoons, then fine-tuned on photos "
        "with 40 % symmetric noise. This shows the code paths; it ranks nothing. The default radii are those found "
        "good for a network with ImageNet weights; one that hardly knows anything yet likely has to move further.",
        "",
        *(
            f"- {name}: {facts['parameters']:,} weights, {facts['examples']:,} images, {facts['epochs']} epochs, "
            f"{100 * facts['test_accuracy']:.0f} % of the held-out cartoons right."
            for name, facts in made.items()
        ),
        *(f"- {text}" for text in record["header"]),
        made_with(record),
        pending(record),
        "",
    ]
    for task in record["tasks"]:
        lines += [f"### {task}", "", *table(*method_rows(record, task, brief=False))]
    return lines


def made_with(record: dict[str, Any]) -> str:
    versions = record["versions"]
    seeds = ", ".join(map(str, record["seeds"]))
    return (
        f"- `{record['command']}`; hesstune {versions['hesstune']}, torch {versions['torch']}, seeds {seeds}."
    )


def pending(record: dict[str, Any]) -> str:
    cells = record["cells"]
    left = sum(c["status"] != "done" for c in cells)
    if not left:
        return f"- All {len(cells)} cells are done."
    return (
        f"- **{left} of {len(cells)} cells are not done**: the time did not allow them, and the command continues; "
        "means are of the cells there are."
    )


def records() -> dict[str, dict[str, Any]]:
    """Return the committed records by part; a part that was never run is absent."""
    found = {name: RESULTS / f"{name}.json" for name in TITLES}
    return {name: json.loads(path.read_text()) for name, path in found.items() if path.is_file()}


def page(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# The study",
        "",
        "Which fine-tuning method is best? Written by `python benchmarks/write_study.py` from the records in "
        "`benchmarks/study/results`, which `make study` makes and continues: a finished cell is never run again.",
        "",
        *programmatic(found["programmatic_head"]),
    ]
    for name, section in (
        ("label_models_head", label_models),
        ("programmatic_full", full),
        ("injected_head", injected),
    ):
        if name in found:
            lines += section(found[name])
    lines += clean(found) if "clean_head" in found else []
    lines += gaps(found)
    lines += networks(found["architectures"]) if "architectures" in found else []
    told = json.loads((RESULTS / "provenance.json").read_text())
    if any(name in found for name in told["parts"]):
        lines += ["## Where the records come from", "", told["text"], ""]
    absent = [TITLES[name] for name in TITLES if name not in found]
    if absent:
        lines += ["## Not yet run", "", f"{'; '.join(absent)}: their scripts are in `benchmarks/study`.", ""]
    return "\n".join(line for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(records()))
    draw(records())
