"""What results.json holds, made without training."""

import numpy as np

from hesstune.study.options import CellRecord, StudyResults
from hesstune.study.results import differences, means, ranks

METHODS = ("vanilla", "robust", "<b>bold</b>")


def study_results(tasks=("photo", "art"), seeds=3, methods=METHODS, baseline="vanilla"):
    rng = np.random.default_rng(0)
    cells = []
    for t, task in enumerate(tasks):
        for m, method in enumerate(methods):
            for seed in range(seeds):
                measure = 1.0 + m + t + 0.1 * seed
                metrics = {
                    "test_accuracy": 0.5 + 0.1 * m + 0.01 * float(rng.random()), "gap": 2 * measure,
                    "measure": measure, "distance": 0.4, "seconds": 3.0 + m, "certificate": None,
                }  # fmt: skip
                cells.append(
                    CellRecord(
                        task=task, method=method, seed=seed, status="done", error=None, metrics=metrics
                    )
                )
    record = {
        "format": 1, "header": ["Budget: 3 epochs."], "command": "hesstune compare", "left_out": {},
        "versions": {"hesstune": "0.1.0"}, "tasks": list(tasks), "methods": list(methods),
        "seeds": list(range(seeds)), "baseline": baseline, "settings": {}, "shared": {"epochs": 3},
        "configs": {}, "means": means(cells), "differences": differences(cells, baseline),
        "ranks": ranks(cells), "cells": cells,
    }  # fmt: skip
    return StudyResults(**record)
