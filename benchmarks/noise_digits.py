"""Error of estimated noise matrices on digits with injected noise.

60 % of scikit-learn's digits, EfficientNet-Lite0's frozen features at 64 pixels, noise injected by each
matrix, probabilities by cross-fitting. The error is the total variation between the rows of the estimate and
of the injected matrix, averaged over the rows. `holdout` has 100 clean labels, drawn at random.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.load import load_task
from hesstune.inputs.features import frozen_features
from hesstune.models.load import load_model
from hesstune.noise.confidence import NoiseConfidenceSet
from hesstune.noise.estimate import estimate_noise, pair_counts
from hesstune.noise.matrix import NoiseMatrix
from hesstune.noise.probes import cross_fit

CLEAN, DELTA = 100, 0.05


@cache
def features_and_labels(seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the frozen features and true labels of the training part."""
    task = load_task("digits", size=64, seed=seed)
    assert task.train.labels is not None
    loaded = load_model("efficientnet_lite0", 10)
    return frozen_features(loaded, task.train, torch.device("cpu")), task.train.labels


def measure(case: dict[str, Any], run: Any) -> dict[str, Any]:
    """Return the error of one estimate."""
    warnings.simplefilter("ignore")
    (x, true), seed, method = features_and_labels(run.seed), run.seed, case["method"]
    matrix = NoiseMatrix.parse(case["noise"], 10)
    noisy = matrix.corrupt(true, seed=seed)
    rows = np.random.default_rng([seed, CLEAN]).permutation(len(true))[:CLEAN]
    probs = cross_fit(x, noisy, 10, seed=seed)
    clean = (rows, true[rows]) if method == "holdout" else None
    found = estimate_noise(probs, noisy, method, features=x, clean=clean, seed=seed, errors=False)
    result: dict[str, Any] = {"error": float(np.abs(found.matrix.array - matrix.array).sum(1).mean() / 2)}
    if method == "auto":
        result["chose"] = found.method
    if method == "holdout":
        noise = NoiseConfidenceSet(pair_counts(true[rows], noisy[rows], 10), DELTA)
        for name, one in (("inside", found.matrix), ("covers", matrix)):
            result[name] = bool(((noise.lower <= one.array) & (one.array <= noise.upper)).all())
    return result
