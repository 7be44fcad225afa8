"""Programmatic labels for text: a lexicon and keyword rules vote on SST-2, a label model decides.

The rules are those of examples/sentiment_rules.py. MiniLM, its encoder frozen, learns from the majority's
labels; the robust method's noise matrix comes from Dawid–Skene with a class prior from MiniLM's features
(no true label), from 100 sentences whose label is checked, or from all true labels (oracle). All have the
same budget, split and order. Finished cells are kept in benchmarks/results/text_rules.json and not run again.

    python benchmarks/text_rules.py --data DATA [--cells N]
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hesstune as ht
from hesstune.noise.estimate import from_posterior, holdout
from hesstune.weak.functions import apply_functions
from hesstune.weak.label_models import label
from hesstune.weak.votes import Votes
from records import ROOT, arguments, read_record, write_record

CLASSES = ["negative", "positive"]
SEEDS = range(3)
CHECKED = 100
SETTING = {"model": "minilm", "train": "head", "max_length": 64, "epochs": 20, "lr": 1e-2, "batch_size": 64}
RADIUS = 5.0
MATRICES = {
    "robust, F estimated without true labels": "estimated",
    "robust, F from 100 checked labels": "checked",
    "robust, true F": "oracle",
}
METHODS = ("vanilla", *MATRICES, "vanilla on the true labels")


def rows_of(root: Path, part: str) -> tuple[list[str], np.ndarray]:
    lines = [line.split("\t") for line in (root / "sst2" / f"{part}.tsv").read_text("utf-8").splitlines()]
    return [text for text, _ in lines], np.array([int(given) for _, given in lines])


def rule_votes(texts: list[str]) -> Votes:
    sys.path.insert(0, str(ROOT / "examples"))
    from sentiment_rules import RULES

    functions = [(rule.__name__, rule) for rule in RULES]
    return apply_functions(functions, [{"text": text} for text in texts], CLASSES)


def text_features(texts: list[str]) -> np.ndarray:
    """Return MiniLM's pooled features, (N, D)."""
    from hesstune.models.text import load_minilm

    model, tokenizer = load_minilm(2)
    found = []
    layer = next(m for m in reversed(list(model.modules())) if isinstance(m, torch.nn.Linear))
    handle = layer.register_forward_pre_hook(lambda _, args: found.append(args[0].numpy().copy()))
    with torch.no_grad():
        for at in range(0, len(texts), 64):
            encoded = tokenizer(
                texts[at : at + 64], padding=True, truncation=True, max_length=64, return_tensors="pt"
            )
            model.eval()(**encoded)
    handle.remove()
    return np.concatenate(found)


def labelled(root: Path) -> dict[str, Any]:
    """Return what the rules make of the training sentences: labels, matrices, and how right they are."""
    texts, true = rows_of(root, "train")
    votes = rule_votes(texts)
    majority = label(votes, "majority")
    kept = np.flatnonzero(majority.labels >= 0)
    given = majority.labels[kept]
    refined = label(votes.take(kept), "features", features=text_features([texts[n] for n in kept]))
    models = {name: label(votes, name) for name in ("majority", "dawid_skene", "mace")}
    joint = np.eye(2)[true[kept]].T @ np.eye(2)[given]
    return {
        "texts": [texts[n] for n in kept],
        "given": given,
        "true": true[kept],
        "estimated": from_posterior(refined.posterior, given).matrix.array.tolist(),
        "oracle": (joint / joint.sum(axis=1, keepdims=True)).tolist(),
        "record": {
            "sentences": len(texts),
            "silent": len(votes.silent),
            "rules": votes.analysis(true),
            "correct": {n: float((m.labels[kept] == true[kept]).mean()) for n, m in models.items()}
            | {"features": float((refined.labels == true[kept]).mean())},
        },
    }


def cell(root: Path, weak: dict[str, Any], method: str, seed: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(weak["texts"]))
    test, test_true = rows_of(root, "test")
    used = weak["true"] if method == METHODS[-1] else weak["given"]
    some = order[-CHECKED:]
    checked = holdout(weak["true"][some], weak["given"][some], 2).matrix.array.tolist()
    with tempfile.TemporaryDirectory() as folder:
        path, matrix = Path(folder) / "data.csv", Path(folder) / "matrix.json"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label", "split"])
            for at, n in enumerate(order):
                part = "val" if at < len(order) // 5 else "train"
                writer.writerow([weak["texts"][n], CLASSES[used[n]], part])
            for text, given in zip(test, test_true, strict=True):
                writer.writerow([text, CLASSES[given], "test"])
        options: dict[str, Any] = {"method": "vanilla"}
        if method in MATRICES:
            matrix.write_text(json.dumps((weak | {"checked": checked})[MATRICES[method]]))
            options = {"method": "robust", "noise_matrix": str(matrix), "radius": RADIUS}
        run = ht.finetune(SETTING, **options, data=f"csv:{path}", seed=seed, out=f"{folder}/run")
        keep = ("test_accuracy", "test_accuracy_interval", "train_accuracy", "distance")
        return {"method": method, "seed": seed, **{key: run.result[key] for key in keep}}


def main() -> None:
    parser = arguments(__doc__, "sst2")
    parser.add_argument("--cells", type=int, default=10**6, help="stop after so many new cells")
    given = parser.parse_args()
    record = read_record("text_rules", {"cells": []})
    weak = labelled(given.data)
    record |= {"command": "python benchmarks/text_rules.py --data DATA", "torch": torch.__version__}
    record |= {"setting": {**SETTING, "radius": RADIUS}, "labels": weak["record"]}
    record |= {"matrices": {name: weak[name] for name in ("estimated", "oracle")}}
    done = {(c["method"], c["seed"]) for c in record["cells"]}
    todo = [(m, s) for s in SEEDS for m in METHODS if (m, s) not in done]
    for method, seed in todo[: given.cells]:
        record["cells"].append(cell(given.data, weak, method, seed))
        write_record("text_rules", record)
        print(record["cells"][-1], flush=True)


if __name__ == "__main__":
    main()
