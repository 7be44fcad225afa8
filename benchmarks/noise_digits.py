"""Error of estimated noise matrices on digits, where the true one is known.

python benchmarks/noise_digits.py

60 % of scikit-learn's digits, EfficientNet-Lite0's frozen features at 64 pixels, noise injected by each
matrix, probabilities by cross-fitting. The error is the total variation between the rows of the estimate and
of the injected matrix, averaged over the rows. `holdout` has 100 clean labels, drawn at random.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

from hesstune.data.load import load_task
from hesstune.inputs.feature_store import frozen_features
from hesstune.models.load import load_model
from hesstune.noise.estimate import confidence_set, estimate_noise, pair_counts
from hesstune.noise.linear_probe import cross_fit
from hesstune.noise.matrix import NoiseMatrix
from records import machine, write_record

NOISES, SEEDS, CLEAN, DELTA = (
    ("symmetric:0", "symmetric:0.2", "symmetric:0.4", "symmetric:0.6", "pair:0.4"),
    (0, 1, 2),
    100,
    0.05,
)
METHODS = ("em", "confident", "auto", "holdout")


def main() -> None:
    warnings.simplefilter("ignore")
    loaded = load_model("efficientnet_lite0", 10)
    features, labels = {}, {}
    for seed in SEEDS:
        task = load_task("digits", size=64, seed=seed)
        features[seed] = frozen_features(loaded, task.train, torch.device("cpu"))
        assert task.train.labels is not None
        labels[seed] = task.train.labels
    runs = []
    for noise in NOISES:
        for seed in SEEDS:
            x, true = features[seed], labels[seed]
            matrix = NoiseMatrix.parse(noise, 10)
            noisy = matrix.corrupt(true, seed=seed)
            rows = np.random.default_rng([seed, CLEAN]).permutation(len(true))[:CLEAN]
            probs = cross_fit(x, noisy, 10, seed=seed)
            for method in METHODS:
                clean = (rows, true[rows]) if method == "holdout" else None
                found = estimate_noise(probs, noisy, method, features=x, clean=clean, seed=seed, errors=False)
                run = {
                    "noise": noise,
                    "seed": seed,
                    "method": method,
                    "error": float(np.abs(found.matrix.array - matrix.array).sum(1).mean() / 2),
                }
                if method == "auto":
                    run["chose"] = found.method
                if method == "holdout":
                    box = confidence_set(pair_counts(true[rows], noisy[rows], 10), DELTA)
                    run["inside"] = box.contains(found.matrix)
                    run["covers"] = box.contains(matrix)
                runs.append(run)
            print(noise, seed, flush=True)
    record = {
        "command": "python benchmarks/noise_digits.py",
        "machine": machine(),
        "setting": {"seeds": SEEDS, "checked": CLEAN, "delta": DELTA, "pixels": 64, "train": len(true)},
        "runs": runs,
    }
    write_record("noise_digits", record)


if __name__ == "__main__":
    main()
