"""Test accuracy on PACS with plain cross-entropy, estimated noise matrices, and the true one.

python benchmarks/noise_pacs.py ROOT [SEEDS]

For each target domain and seed: a linear head on frozen EfficientNet-Lite0 features, trained on weak
labels by full-batch Adam inside a ball whose radius is chosen by the loss on weak validation labels.
True labels are read for the oracle's matrix, for the 50 checked labels, and for the test.
"""

from __future__ import annotations

import json
import platform
import sys
import warnings
from pathlib import Path

import numpy as np

from hesstune.noise.estimate import estimate_noise, from_posterior, holdout
from hesstune.noise.estimate.crossfit import cross_fit
from hesstune.noise.estimate.fit import well_conditioned
from hesstune.study.tasks import PACS, pacs
from hesstune.weak.label_models import label

OUT = Path(__file__).parent / "results" / "noise_pacs.json"
RADII, STEPS, LR, CLEAN = (8.0, 32.0), 200, 0.02, 50


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_accuracies(task, inverses):
    """Train a head for each inverse matrix and radius; return the test accuracy at the chosen radius."""
    mean = task.train.features.mean(0)
    scale = np.sqrt(((task.train.features - mean) ** 2).sum(1).mean() / 10)
    train, val, test = (
        np.append(((p.features - mean) / scale), np.ones((len(p), 1)), 1).astype(np.float32)
        for p in (task.train, task.val, task.test)
    )
    shape = (train.shape[1], len(inverses), len(RADII), task.k)
    targets = np.stack([i[task.train.weak] for i in inverses], 1)[:, :, None].astype(np.float32)
    w, m, v = (np.zeros(shape, np.float32) for _ in range(3))
    radius = np.array(RADII, np.float32)[None, None, :, None]

    def logits(x):
        return (x @ w.reshape(shape[0], -1)).reshape(len(x), *shape[1:])

    for step in range(1, STEPS + 1):
        # Rows of an inverse sum to 1, so the gradient in the logits is softmax less the row.
        error = (softmax(logits(train)) - targets).reshape(len(train), -1) / len(train)
        gradient = (train.T @ error).reshape(shape)
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        rate = LR * min(1, 2 * (1 - step / (STEPS + 1)))
        w -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
        norm = np.sqrt((w[:-1] ** 2).sum((0, 3), keepdims=True))
        w[:-1] *= np.minimum(1, radius / np.maximum(norm, 1e-12))
    logs, guessed = np.log(softmax(logits(val))), logits(test).argmax(-1)
    found = []
    for at, inverse in enumerate(inverses):
        loss = -(inverse[task.val.weak][:, None] * logs[:, at]).sum(-1).mean(0)
        found.append(float((guessed[:, at, loss.argmin()] == task.test.true).mean()))
    return found


def matrices(task, seed):
    part, k = task.train, task.k
    probs = cross_fit(part.features, part.weak, k, seed=seed)
    rows = np.random.default_rng([seed, CLEAN]).permutation(len(part))[:CLEAN]
    clean = (rows, part.true[rows])
    made = {"true F": task.noise}
    for name in ("anchor", "dual_t"):
        made[name] = estimate_noise(probs, part.weak, name).matrix
    for name in ("majority", "dawid_skene", "features", "soft_features"):
        posterior = label(part.votes, name, features=part.features, seed=seed).posterior
        made[name] = from_posterior(posterior, part.weak).matrix
    checked = label(part.votes, "soft_features", features=part.features, clean=clean, seed=seed).posterior
    prior = from_posterior(checked, part.weak).matrix
    made[f"soft_features, {CLEAN} checked"] = prior
    made[f"holdout, {CLEAN} checked"] = holdout(clean[1], part.weak[rows], k, prior=prior).matrix
    return made


def main():
    root, seeds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
    warnings.simplefilter("ignore")
    runs = []
    for seed in range(seeds):
        for target in PACS:
            task = pacs(root, target, seed=seed)
            made = matrices(task, seed)
            used = {n: f if n == "true F" else well_conditioned(f)[0] for n, f in made.items()}
            accuracies = test_accuracies(task, [np.eye(task.k), *(f.inverse for f in used.values())])
            for name, accuracy in zip(["cross-entropy", *used], accuracies, strict=True):
                error = None if name == "cross-entropy" else used[name].array - task.noise.array
                runs.append(
                    {
                        "target": target,
                        "seed": seed,
                        "matrix": name,
                        "test_accuracy": accuracy,
                        "total_variation": None if error is None else float(np.abs(error).sum(1).mean() / 2),
                        "condition": None if error is None else used[name].condition,
                    }
                )
            record = {
                "command": f"python benchmarks/noise_pacs.py PACS {seeds}",
                "machine": platform.machine(),
                "setting": {"radii": RADII, "steps": STEPS, "lr": LR, "checked": CLEAN, "pixels": 96},
                "seeds": seed + 1,
                "runs": runs,
            }
            OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
