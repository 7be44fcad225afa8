"""Time and memory of `RobustLinearClassifier` and `clean` on many memory-mapped embeddings.

Settings: `width` (D), `classes` (K) and `rate` of symmetric noise.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import hesstune as ht
from hesstune.integrations import RobustLinearClassifier
from records import Run

CHUNK = 50_000
# Standard deviation of the class means, in noise of 1: a linear classifier of ten classes reaches .77.
SPREAD = 0.12


def measure(case: dict[str, Any], run: Run) -> dict[str, Any]:
    """Draw embeddings into a file, and fit or clean them; run in a process of its own (`--jobs 1`)."""
    n, settings = case["n"], run.settings
    width, k = settings["width"], settings["classes"]
    rng = np.random.default_rng(run.seed)
    true = rng.integers(0, k, n)
    means = (SPREAD * rng.normal(size=(k, width))).astype(np.float32)
    wrong = rng.random(n) < settings["rate"]
    given = np.where(wrong, (true + 1 + rng.integers(0, k - 1, n)) % k, true)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        made = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, width))
        for at in range(0, n, CHUNK):
            part = true[at : at + CHUNK]
            made[at : at + CHUNK] = means[part] + rng.standard_normal((len(part), width), dtype=np.float32)
        made.flush()
        del made
        x, before = np.load(path, mmap_mode="r"), time.perf_counter()
        if case["what"] == "fit":
            model = RobustLinearClassifier(random_state=run.seed).fit(x, given)
            found = {"accuracy": round(float((model.predict(x[:CHUNK]) == true[:CHUNK]).mean()), 4)}
        else:
            found = {"rate": round(ht.clean(features=x, labels=given.astype(str), seed=run.seed).rate, 4)}
        spent = time.perf_counter() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"fit_seconds": round(spent, 1), "peak_gib": round(peak, 2), "noise": float(wrong.mean()), **found}
