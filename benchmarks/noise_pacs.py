"""Test accuracy on PACS with plain cross-entropy, estimated noise matrices, and the true one.

python benchmarks/noise_pacs.py ROOT [SEED …]

For each target domain and seed: a linear head on frozen EfficientNet-Lite0 features, trained on weak
labels by full-batch Adam inside a ball whose radius is chosen by the loss on weak validation labels.
True labels are read for the oracle's matrix, for the 50 checked labels, and for the test. The numbers of
`soft_features` are those of noise_choices.py, chosen without the target; seeds are ones it has not seen.
What is done already is not done again, and several processes may share the work.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.errors import NoiseMatrixError
from hesstune.noise.estimate import estimate_noise, from_posterior, holdout, well_conditioned
from hesstune.noise.linear_probe import cross_fit
from hesstune.noise.matrix import NoiseMatrix
from hesstune.weak.label_models import label
from hesstune.weak.label_models.soft_features import soft_dawid_skene
from records import alone, machine, read_record, write_record
from weak_tasks import PACS, WeakTask, pacs

SEEDS = (10, 11, 12, 13, 14)
RADII, STEPS, LR, CLEAN = (4.0, 16.0, 64.0), 200, 0.02, 50
Floats = NDArray[np.floating[Any]]
Row = dict[str, Any]


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    shares: Floats = powers / powers.sum(-1, keepdims=True)
    return shares


def test_accuracies(
    task: WeakTask, targets: Sequence[Floats], weights: Sequence[Floats], inverses: Sequence[Floats]
) -> list[tuple[float, float]]:
    """Train a head for each (N, K) of targets, with weights, and each radius; choose by inverses."""
    mean = task.train.features.mean(0)
    scale = np.sqrt(((task.train.features - mean) ** 2).sum(1).mean() / 10)
    train, val, test = (
        np.append(((p.features - mean) / scale), np.ones((len(p), 1)), 1).astype(np.float32)
        for p in (task.train, task.val, task.test)
    )
    shape = (train.shape[1], len(targets), len(RADII), task.k)
    aims = np.stack(targets, 1)[:, :, None].astype(np.float32)
    share = np.stack([w / w.sum() for w in weights], 1)[:, :, None, None].astype(np.float32)
    w, m, v = (np.zeros(shape, np.float32) for _ in range(3))
    radius = np.array(RADII, np.float32)[None, None, :, None]

    def logits(x: Floats) -> Floats:
        made: Floats = (x @ w.reshape(shape[0], -1)).reshape(len(x), *shape[1:])
        return made

    for step in range(1, STEPS + 1):
        # Rows of an inverse sum to 1, so the gradient in the logits is softmax less the row.
        error = ((softmax(logits(train)) - aims) * share).reshape(len(train), -1)
        gradient = (train.T @ error).reshape(shape)
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        rate = LR * min(1, 2 * (1 - step / (STEPS + 1)))
        w -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
        norm = np.sqrt((w[:-1] ** 2).sum((0, 3), keepdims=True))
        w[:-1] *= np.minimum(1, radius / np.maximum(norm, 1e-12))
    logs, guessed = np.log(softmax(logits(val)) + 1e-30), logits(test).argmax(-1)
    found = []
    for at, inverse in enumerate(inverses):
        loss = -(inverse[task.val.weak][:, None] * logs[:, at]).sum(-1).mean(0)
        found.append((float((guessed[:, at, loss.argmin()] == task.test.true).mean()), RADII[loss.argmin()]))
    return found


def clean_weight(inverse: Floats, weak: NDArray[np.int64], checked: int) -> float:
    """Return the weight of a checked label against a corrected one: by the inverse variance of its aim.

    A corrected label aims at a row of F⁻¹, whose mean squared norm is that many times a true label's;
    checked labels together count as much as the others at most.
    """
    return float(np.clip((inverse[weak] ** 2).sum(1).mean(), 1, (len(weak) - checked) / checked))


def matrices(
    task: WeakTask, seed: int, choice: dict[str, Any]
) -> tuple[dict[str, NoiseMatrix], Floats, Floats, NDArray[np.int64]]:
    """Return {name: noise matrix}, the posteriors without and with checked labels, and the rows checked."""
    part, k = task.train, task.k
    probs = cross_fit(part.features, part.weak, k, seed=seed)
    rows = np.random.default_rng([seed, CLEAN]).permutation(len(part))[:CLEAN]
    clean = (rows, part.true[rows])
    free = soft_dawid_skene(part.votes, part.features, seed=seed, **choice["none"])
    checked = soft_dawid_skene(part.votes, part.features, clean=clean, seed=seed, **choice["checked"])
    made = {"true F": task.noise}
    for name in ("confident", "auto"):
        features = part.features if name == "auto" else None
        given = free if name == "auto" else None
        try:
            made[name] = estimate_noise(probs, part.weak, name, features=features, posterior=given).matrix
        except NoiseMatrixError:  # a class that is never the most probable: nothing is known of its row
            made[name] = NoiseMatrix.identity(k)
    for name in ("majority", "dawid_skene", "features"):
        posterior = label(part.votes, name, features=part.features, seed=seed).posterior
        made[name] = from_posterior(posterior, part.weak).matrix
    made["soft_features"] = from_posterior(free, part.weak).matrix
    made[f"soft_features, {CLEAN} checked"] = prior = from_posterior(checked, part.weak).matrix
    made[f"holdout, {CLEAN} checked"] = holdout(clean[1], part.weak[rows], k, prior=prior).matrix
    return made, free, checked, rows


def compared(task: WeakTask, seed: int, choice: dict[str, Any]) -> list[Row]:
    part, eye = task.train, np.eye(task.k)
    made, free, checked, rows = matrices(task, seed, choice)
    used = {n: f if n == "true F" else well_conditioned(f)[0] for n, f in made.items()}
    names = ["cross-entropy", *used]
    inverses: list[Floats] = [eye, *(f.inverse for f in used.values())]
    targets = [i[part.weak] for i in inverses]
    weights: list[Floats] = [np.ones(len(part)) for _ in inverses]
    best = used[f"holdout, {CLEAN} checked"].inverse
    for kind in ("soft_features", "holdout"):
        inverse = used[f"{kind}, {CLEAN} checked"].inverse
        aim, weight = inverse[part.weak].copy(), np.ones(len(part))
        aim[rows] = eye[part.true[rows]]
        weight[rows] = clean_weight(inverse, part.weak, CLEAN)
        names.append(f"{kind}, {CLEAN} checked, also in the loss")
        targets, weights, inverses = [*targets, aim], [*weights, weight], [*inverses, inverse]
    for name, posterior, inverse in (
        ("posterior as soft labels", free, used["soft_features"].inverse),
        (f"posterior as soft labels, {CLEAN} checked", checked, best),
    ):
        names.append(name)
        targets, weights, inverses = (
            [*targets, posterior],
            [*weights, np.ones(len(part))],
            [*inverses, inverse],
        )
    runs = []
    for name, (accuracy, radius) in zip(
        names, test_accuracies(task, targets, weights, inverses), strict=True
    ):
        error = used[name].array - task.noise.array if name in used else None
        runs.append(
            {
                "target": task.target,
                "seed": seed,
                "matrix": name,
                "test_accuracy": accuracy,
                "radius": radius,
                "total_variation": None if error is None else float(np.abs(error).sum(1).mean() / 2),
                "condition": used[name].condition if name in used else None,
                "failed": name in used and name != "true F" and used[name].rate == 0,
            }
        )
    return runs


def kept(runs: Sequence[Row] = ()) -> list[Row]:
    """Add runs to the record, under a lock; return all of it."""
    with alone("noise_pacs"):
        setting = {"radii": list(RADII), "steps": STEPS, "lr": LR, "checked": CLEAN, "pixels": 96}
        old = read_record("noise_pacs", {})
        have: list[Row] = old.get("runs", []) if old.get("setting") == setting else []
        done = {(r["seed"], r["target"]) for r in have}
        if runs and (runs[0]["seed"], runs[0]["target"]) not in done:
            have = sorted([*have, *runs], key=lambda r: (r["seed"], PACS.index(r["target"])))
            record = {
                "command": "python benchmarks/noise_pacs.py PACS",
                "machine": machine(),
                "setting": setting,
                "seeds": sorted({r["seed"] for r in have}),
                "choices": read_record("noise_choices")["chosen"],
                "runs": have,
            }
            write_record("noise_pacs", record)
    return have


def main() -> None:
    root, seeds = sys.argv[1], [int(s) for s in sys.argv[2:]] or SEEDS
    warnings.simplefilter("ignore")
    choices = read_record("noise_choices")["chosen"]
    for seed in seeds:
        for target in PACS:
            if (seed, target) in {(r["seed"], r["target"]) for r in kept()}:
                continue
            kept(compared(pacs(root, target, seed=seed), seed, choices[target]))
            print(seed, target, flush=True)


if __name__ == "__main__":
    main()
