"""Sections of docs/benchmarks.md on texts and on the versions tried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hesstune.study.summary import paired_difference

__all__ = ["text", "text_rules", "versions"]

CHOICE = Path(__file__).parent / "results" / "text_radius.json"


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
{sst2["noise"]} noise, and on {setting["tasks"]["mrpc"]["train"]} MRPC pairs with {setting["tasks"]["mrpc"]["noise"]} noise, {sst2["epochs"]} epochs, learning rate
{setting["lr"]:g}; test accuracy on true labels. Minutes were taken on a machine that other work shared.
{_choice()}
| task | seed | method | test accuracy | training accuracy (wrong labels included) | distance | minutes |
|---|---|---|---|---|---|---|
{rows}
{_difference(record["cells"])}"""


def _choice() -> str:
    choice = json.loads(CHOICE.read_text())
    seeds = sorted({c["seed"] for c in choice["cells"]})
    risks = ", ".join(
        f"{name.split()[1]} {sum(found) / len(found):.1%}"
        for name in choice["settings"]
        if (found := [c["risk"] for c in choice["cells"] if c["setting"] == name])
    )
    error = max(c["risk_stderr"] for c in choice["cells"])
    radius = choice["settings"][choice["chosen"]]["radius"]
    return f"""
The radius, {radius["*"]} a layer and {radius["head"]} for the head, was chosen on SST-2 by `{choice["command"]}`
on seeds {" and ".join(map(str, seeds))}, from {choice["validation"]} sentences whose labels are as noisy as the training labels: no true label
was read. Estimated clean error by radius, give or take {error:.1%} for each seed: {risks}.
"""


def _difference(cells: list[dict[str, Any]]) -> str:
    """Return robust minus plain on SST-2, paired by seed, with its interval."""
    found = {(c["method"], c["seed"]): c["test_accuracy"] for c in cells if c["task"] == "sst2"}
    seeds = [seed for method, seed in found if method == "robust" and ("vanilla", seed) in found]
    if not seeds:
        return ""
    told = paired_difference([[100 * (found["robust", s] - found["vanilla", s]) for s in seeds]])
    ends = "" if told["low"] is None else f" (95 % interval {told['low']:+.1f} to {told['high']:+.1f})"
    return f"""
On SST-2 robust lies {told["mean"]:+.1f} points from plain in the mean over {len(seeds)} seed{"s" * (len(seeds) > 1)}{ends}.
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

`{record["command"]}`: the tests that touch other libraries, once beside each set of versions (`--libraries`, for
the oldest ones: those that use more than torch).

| torch | beside | passed | skipped | failed |
|---|---|---|---|---|
{table}
"""
