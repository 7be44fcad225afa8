"""vᵀH⁺v and its Gauss–Newton part vᵀGv on networks on texts, beside their generalization gaps.

`gap.py` has the Gauss–Newton values of every network. On heads and on the networks for images, which are
piecewise linear, they are vᵀH⁺v itself; on the transformer for texts they are not. This fine-tunes some of
its networks on texts again and computes both, and vᵀGv of all layers moved together, over the same held-out
examples.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gap
import hesstune as ht
from hesstune.analysis.measure import MeasuredNetwork
from hesstune.inputs.batches import make_inputs
from records import Run

EXAMPLES = 10  # held-out ones, at most: each takes Lanczos in every layer
STEPS, TOLERANCE = 8, 0.1  # of Lanczos: the sums over layers and examples are much closer


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the cases of `gap.py` with some tasks, training sizes and methods."""
    sizes = {(noise, epochs): n for n, noise, epochs in gap.SETTINGS}
    for case in gap.cases({}):
        size = sizes.get((case["noise"], case["epochs"]))
        asked = {"tasks": case["task"], "sizes": size, "methods": case["method"]}
        if all(value in settings[key] for key, value in asked.items()):
            yield case


def measure(case: dict[str, Any], asked: Run) -> dict[str, Any]:
    """Fine-tune one network and measure both forms."""
    with tempfile.TemporaryDirectory() as name:
        run = ht.finetune(gap.run_options(case, asked, Path(name)), out=f"{name}/run")
        task, loaded = run.task(), run.loaded()
        part = task.val
        assert part.labels is not None
        rows = np.sort(np.random.default_rng(0).permutation(len(part))[:EXAMPLES])
        feed = make_inputs(part, loaded, torch.device("cpu"), max_length=run.config.max_length)
        network = MeasuredNetwork(loaded.model, run.reference(), feed, part.labels, rows)
        found: dict[str, Any] = {"n": len(task.train), "examples": len(rows), "gap": run.outcome.gap}
        taken = {}
        for method in ("gauss_newton", "lanczos"):
            start = time.process_time()
            own = network.measure(method=method, steps=STEPS, tol=TOLERANCE)
            taken[method] = time.process_time() - start
            found |= {"loss max": float(own.losses.max()), f"{method} mean": float(own.mean.sqrt().sum())}
            if method == "gauss_newton":
                block = own.mean.double()
                found["joint mean"] = float(own.more["joint"].mean().sqrt())
        order = torch.stack([block, own.mean]).argsort(1).argsort(1).double()
        found["spearman of layers"] = float(torch.corrcoef(order)[0, 1])
        found["lanczos to gauss_newton, times as long"] = taken["lanczos"] / taken["gauss_newton"]
        found["distance"] = float(own.distances.sum())
        return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()}
