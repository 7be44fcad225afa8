"""Sections of docs/benchmarks.md on texts and on the versions tried."""

from __future__ import annotations

from typing import Any

from hesstune.study.summary import paired_difference
from records import read_record

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
{sst2["noise"]} noise, and on {setting["tasks"]["mrpc"]["train"]} MRPC pairs with {setting["tasks"]["mrpc"]["noise"]} noise, {sst2["epochs"]} epochs;
test accuracy on true labels. Minutes were taken on a machine that other work shared.
{_choice()}
| task | seed | method | test accuracy | training accuracy (wrong labels included) | distance | minutes |
|---|---|---|---|---|---|---|
{rows}
{_difference(record["cells"])}"""


def _choice() -> str:
    choice = read_record("text_settings")
    if not all(choice["chosen"].values()):
        return ""
    seeds = sorted({c["seed"] for c in choice["cells"]})
    error = max(c["risk_stderr"] for c in choice["cells"])
    rows = []
    for name, own in choice["settings"].items():
        risks = {c["seed"]: f"{c['risk']:.1%}" for c in choice["cells"] if c["setting"] == name}
        radius = own["radius"]["*"] if "radius" in own else "-"
        taken = "yes" if name in choice["chosen"].values() else ""
        cells = [own["method"], f"{own['lr']:g}", str(radius), *(risks.get(s, "-") for s in seeds), taken]
        rows.append(f"| {' | '.join(cells)} |")
    head = choice["settings"][choice["chosen"]["robust"]]["radius"]["head"]
    seconds = " | ".join(f"seed {s}" for s in seeds)
    table = "\n".join(rows)
    return f"""
Each method's settings were chosen on SST-2 by `{choice["command"]}`: six on the first
seed, the best of them on the second, from {choice["validation"]} sentences whose labels are as noisy as the training
labels; no true label was read, and MRPC takes the same settings. The head's radius is {head}. Estimated clean
error, give or take {error:.1%}:

| method | learning rate | radius of a layer | {seconds} | chosen |
|---|---|---|{"---|" * len(seeds)}---|
{table}

Then, on seeds that chose nothing:
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
