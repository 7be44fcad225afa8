"""Sections of docs/benchmarks.md on texts and on the versions tried."""

from __future__ import annotations

from typing import Any

__all__ = ["text", "text_rules", "versions"]


def text(record: dict[str, Any]) -> str:
    setting = record["setting"]
    rows = "\n".join(
        f"| {c['task']} | {c['seed']} | {c['method']} | {c['test_accuracy']:.1%} | {c['train_accuracy']:.1%} "
        f"| {c['distance']:.2f} | {c['seconds'] / 60:.1f} on {c['threads']} thread{'s' * (c['threads'] > 1)} |"
        for c in sorted(record["cells"], key=lambda c: (c["task"], c["seed"], c["method"] == "robust"))
    )
    sst2 = setting["tasks"]["sst2"]
    return f"""## Texts: robust against plain

`{record["command"]}` (torch {record["torch"]}): all of MiniLM on {sst2["train"]} SST-2 sentences with
{sst2["noise"]} noise, {sst2["epochs"]} epochs, learning rate {setting["lr"]:g}, radius {setting["radius"]["*"]} a layer and
{setting["radius"]["head"]} for the head; test accuracy on true labels. One choice of radius, not tuned to each seed; minutes
were taken on a machine that other work shared.

| task | seed | method | test accuracy | training accuracy (wrong labels included) | distance | minutes |
|---|---|---|---|---|---|---|
{rows}
"""


def text_rules(record: dict[str, Any]) -> str:
    methods = list(dict.fromkeys(c["method"] for c in record["cells"]))
    rows = []
    for method in methods:
        found = [c["test_accuracy"] for c in record["cells"] if c["method"] == method]
        rows.append(
            f"| {method} | {sum(found) / len(found):.1%} | {min(found):.1%} | {max(found):.1%} | {len(found)} |"
        )
    labels, table = record["labels"], "\n".join(rows)
    return f"""## Texts labelled by rules

`{record["command"]}` (torch {record["torch"]}): a sentiment lexicon and a dozen keyword rules
(`examples/sentiment_rules.py`) vote on {labels["sentences"]} SST-2 sentences; on {labels["silent"]} none votes. The majority is
right on {labels["correct"]["majority"]:.1%} of the others, Dawid–Skene on {labels["correct"]["dawid_skene"]:.1%}. MiniLM's head learns from
the majority's labels.

| method | mean test accuracy | lowest | highest | seeds |
|---|---|---|---|---|
{table}

Rules err on some sentences more than on others, so the noise is not class-conditional: a matrix that is
estimated without true labels, or from few of them, need not help.
"""


def versions(record: dict[str, Any]) -> str:
    rows = []
    for entry in record["tried"]:
        own = entry["versions"]
        told = ", ".join(f"{name} {own[name]}" for name in own if name not in ("torch", "numpy"))
        failed = ", ".join(f"`{name.rpartition('::')[2]}`" for name in entry["failed"]) or "none"
        rows.append(f"| {own['torch']} | {told} | {entry['passed']} | {entry['skipped']} | {failed} |")
    table = "\n".join(rows)
    return f"""## Versions tried

`{record["command"]}`: the tests that touch other libraries, once beside each set of versions.

| torch | beside | passed | skipped | failed |
|---|---|---|---|---|
{table}
"""
