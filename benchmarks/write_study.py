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
    alone,
    by_other_means,
    first,
    goals,
    interval,
    measure_goal,
    oracle,
    table,
    tuning,
)

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
        "Over all runs above: Kendall's τ between each measure and the observed gap, and how its scale compares.",
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


def heads_intro(record: StudyResults) -> list[str]:
    return [
        "## Programmatic labels, heads alone",
        "",
        "Four targets, the domains of PACS; each is labelled by linear probes of the other three (the protocol "
        "of Mazzetto et al. 2021). F is estimated from the votes and the features by the label model "
        "`soft_features`, without a clean label. `robust_plus` and `NAME+posterior` learn from that model's "
        "P(class | votes, features) of each example in place of the weak label, with nothing left to correct: this "
        "does not assume that the noise depends on the class alone. `robust_plus+weak` learns from weak labels and "
        "F, as the others do.",
        "",
        *(f"- {text}" for text in record["header"]),
        "- No method's options were searched here: each has its own defaults (`--radius` too). Parts of the label "
        "model, and of `robust_plus`, were settled with test labels of other splits of the same pictures in sight "
        "([how](noise.md)): fresh domains could differ. These splits were fresh, but for "
        "one thing: when the results of seeds 21 to 23 had been seen, the rule of `--radius auto` was given soft "
        "labels (below, all layers), and `robust_plus` ran on these seeds again. "
        + alone(record, [24, 25, 26]),
        made_with(record),
        "",
    ]


def programmatic(record: StudyResults) -> list[str]:
    lines = [
        *heads_intro(record),
        "### The goals",
        "",
        *goals(record),
        "",
        "Why plain fine-tuning's measure is small here, likely: a head that fits its labels is certain of every example, so "
        "the softmax's curvature vanishes and the measure with it, while a head inside a ball is uncertain and has "
        "curvature. And for a head that starts from zero, multiplying its weights by a small number changes no "
        "prediction and takes the measure to zero, so that a small measure could be had for nothing: this is not "
        "claimed.",
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
        "### The labels' part and the method's",
        "",
        *by_other_means(record),
        first(
            read_compact(RESULTS / "programmatic_first.csv"),
            "F by the label model `features`, `robust_plus` on weak labels",
            "learning from the label model's answers",
        ),
        "",
    ]
    for task in record["tasks"]:
        lines += [f"### {task}", "", *table(*method_rows(record, task, brief=False))]
    return lines


def full(record: StudyResults) -> list[str]:
    return [
        "## Programmatic labels, all layers",
        "",
        *(f"- {text}" for text in record["header"]),
        f"- Validation has 100 examples; measure and stability on {record['settings']['measure_examples']} "
        "training examples. `robust_plus` chooses its radii by runs of half the length.",
        made_with(record),
        pending(record),
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
        "For heads from zero a small measure can be had by scaling (above); for whole networks it cannot:",
        "",
        *measure_goal(record),
        *(
            line
            for task in record["tasks"]
            for line in [f"### {task}, all layers", "", *table(*method_rows(record, task))]
        ),
    ]


def injected(record: StudyResults) -> list[str]:
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


def clean(records: dict[str, StudyResults]) -> list[str]:
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


def networks(record: StudyResults) -> list[str]:
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


def made_with(record: StudyResults) -> str:
    versions = record["versions"]
    seeds = ", ".join(map(str, record["seeds"]))
    return (
        f"- `{record['command']}`; hesstune {versions['hesstune']}, torch {versions['torch']}, seeds {seeds}."
    )


def pending(record: StudyResults) -> str:
    cells = record["cells"]
    left = sum(c["status"] != "done" for c in cells)
    if not left:
        return f"- All {len(cells)} cells are done."
    return (
        f"- **{left} of {len(cells)} cells are not done**: the time did not allow them, and the command continues; "
        "means are of the cells there are."
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
        "`benchmarks/study/results`, which `make study` makes and continues: a finished cell is never run again. Heads of `vanilla` were trained here without a penalty, which is not how they are trained by default any more: a user's baseline has one, and gains over plain heads without it are larger than gains over that. [Beside what users have](field.md) compares with penalised heads.",
        "",
        *programmatic(found["programmatic_head"]),
    ]
    for name, section in (("programmatic_full", full), ("injected_head", injected)):
        if name in found:
            lines += section(found[name])
    lines += clean(found) if "clean_head" in found else []
    lines += gaps(found)
    lines += networks(found["architectures"]) if "architectures" in found else []
    absent = [TITLES[name] for name in TITLES if name not in found]
    if absent:
        lines += ["## Not yet run", "", f"{'; '.join(absent)}: their scripts are in `benchmarks/study`.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    found = records()
    PAGE.write_text(page(found))
    draw(found)
