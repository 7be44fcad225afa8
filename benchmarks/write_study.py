"""Write docs/study.md from the study's records: python benchmarks/write_study.py"""

from __future__ import annotations

import json

from hesstune.study.records import StudyResults
from hesstune.study.results import read_compact
from hesstune.study.summary import differences
from hesstune.study.tables import method_rows
from records import DOCS
from write_study_gap import MEASURES, TITLES, draw, summary
from write_study_goals import (
    RESULTS,
    by_other_means,
    first,
    goals,
    interval,
    measure_goal,
    table,
    tuning,
)
from write_study_heads import heads

PAGE = DOCS / "study.md"


def gaps(records: dict[str, StudyResults]) -> list[str]:
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
        "Over runs of all layers (above) and of heads: Kendall's τ between each measure and the observed gap, "
        "and how its scale compares. The heads' records are of an earlier version and kept for this alone: heads "
        "had no penalty then, and no accuracy of theirs is shown.",
        "",
        *table(header, rows),
        f"- The Hessian measure within a factor 5 of the gap in most runs: {said[scale]}. By part: "
        + "; ".join(f"{TITLES[p]} {100 * found['measure']['parts_near'][p]:.0f} %" for p in parts)
        + ". Heads that fit their labels have hardly any curvature left at the training examples.",
        f"- The Hessian measure has the highest τ: {said[best == 'measure']}; the highest is of: {MEASURES[best]}.",
        "",
        "![measures against the gap](figures/study_gap.png)",
        "",
        "The solid line is equality, the dotted ones a factor 5. With weak labels the gap here is cross-entropy on the "
        "validation examples, which the same labelers labelled, minus that on the training examples; with "
        "injected noise, that on test examples in expectation over the noise. The gap to true labels would "
        "contain the labels' errors, which no measure of the network sees.",
        "",
    ]


def full(record: StudyResults) -> list[str]:
    return [
        "## Programmatic labels, all layers",
        "",
        "Four targets, the domains of PACS; each is labelled by linear probes of the other three (the protocol "
        "of Mazzetto et al. 2021). F is estimated from the votes and the features by the label model "
        "`soft_features`, without a clean label. `robust_plus` and `vanilla+posterior` learn from that model's "
        "P(class | votes, features) of each example in place of the weak label, with nothing left to correct. "
        "Plain fine-tuning stopped on noisy validation is `early_stopping`. Balls have radius 0.05, the head's 0.25, "
        "or, `--radius auto`, are chosen along a path of these by the rule of version 0.1.0.",
        "",
        *(f"- {text}" for text in record["header"]),
        f"- Validation has 100 examples; measure and stability on {record['settings']['measure_examples']} "
        "training examples. `robust_plus` chooses its radii by runs of half the length.",
        made_with(record),
        "",
        "### The goals",
        "",
        *goals(record),
        "",
        *table(*method_rows(record, None)),
        *by_other_means(record),
        first(
            read_compact(RESULTS / "programmatic_full_first.csv"),
            "the radii of `robust_plus` by validation with the most likely classes in place of soft labels",
            "judging radii by the error that the soft labels expect. The seeds above were not used before",
            ["vanilla+posterior"],
        ),
        "",
        *tuning(),
        "### The measure against plain fine-tuning's",
        "",
        "For heads from zero a small measure can be had by scaling them; for whole networks it cannot:",
        "",
        *measure_goal(record),
        *(
            line
            for task in record["tasks"]
            for line in [f"### {task}, all layers", "", *table(*method_rows(record, task))]
        ),
    ]


def clean(record: StudyResults) -> list[str]:
    found = {(d["method"], d["task"]): d for d in differences(record["cells"], "vanilla", ["test_accuracy"])}
    tasks = list(record["tasks"])
    rows = [
        [f"`{m}`", *(interval(found[m, t], "") if (m, t) in found else "-" for t in [*tasks, None])]
        for m in record["methods"]
        if m != "vanilla"
    ]
    return [
        "## Small clean data, all layers",
        "",
        "Does the constraint help without noise? True labels of PACS's photos and art paintings. Test accuracy "
        "minus plain fine-tuning's, points; the mean is over the tasks that both have:",
        "",
        *(f"- {text}" for text in record["header"]),
        made_with(record),
        "",
        *table(["method", *tasks, "mean"], rows),
    ]


def networks(record: StudyResults) -> list[str]:
    made = json.loads((RESULTS / "pretraining.json").read_text())
    lines = [
        "## Other architectures",
        "",
        "**Not ImageNet weights**: a ReLU ResNet and a small vision transformer, built from a configuration "
        "through `hf:` and pretrained here on the true labels of PACS's cartoons, then fine-tuned on photos "
        "with 40 % symmetric noise. This shows the code paths; it ranks nothing. The radii are those found "
        "good for a network with ImageNet weights; one that hardly knows anything yet likely has to move further.",
        "",
        *(
            f"- {name}: {facts['parameters']:,} weights, {facts['examples']:,} images, {facts['epochs']} epochs, "
            f"{100 * facts['test_accuracy']:.0f} % of the held-out cartoons right."
            for name, facts in made.items()
        ),
        *(f"- {text}" for text in record["header"]),
        made_with(record),
        "",
    ]
    for task in record["tasks"]:
        lines += [f"### {task}", "", *table(*method_rows(record, task, brief=False))]
    return lines


def made_with(record: StudyResults) -> str:
    versions = record["versions"]
    seeds = ", ".join(map(str, record["seeds"]))
    return (
        f"- hesstune {versions['hesstune']} (its history has `{record['command']}`), torch {versions['torch']}, "
        f"seeds {seeds}."
    )


def records() -> dict[str, StudyResults]:
    """Return the committed records by part; a part that was never run is absent."""
    found = {name: RESULTS / f"{name}.csv" for name in TITLES}
    return {name: read_compact(path) for name, path in found.items() if path.is_file()}


def page(found: dict[str, StudyResults]) -> str:
    lines = [
        "# The study",
        "",
        "Which fine-tuning method is best? Written by `python benchmarks/write_study.py` from the records in "
        "`benchmarks/results`. Heads are of today's defaults; the sections after them are a study of version 0.1.0, "
        "kept for what it found of all layers and of the measure.",
        "",
        heads(),
    ]
    lines += full(found["programmatic_full"])
    lines += clean(found["clean_full"])
    lines += gaps(found)
    lines += networks(found["architectures"])
    return "\n".join(lines)


if __name__ == "__main__":
    found = records()
    PAGE.write_text(page(found))
    draw(found)
