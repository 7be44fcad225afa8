"""Candidates for tighter certificates of a head on frozen features.

`average` and `center` were chosen on photo and cartoon, split of seed 100. Each split is evaluated once.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln

from data_files import PACS, data_string
from hesstune.bounds.kinds.compression import compression_bound
from hesstune.bounds.kl import complexity, kl_inverse
from hesstune.bounds.pick_to_learn import Picker
from hesstune.data.examples import Examples
from hesstune.data.load import load_task
from hesstune.inputs.features import frozen_features
from hesstune.models.load import load_model
from records import Run

DELTA = 0.05
BEFORE: dict[str, Any] = {"average": 0.0, "center": False}
NOW: dict[str, Any] = {"average": 0.95, "center": True}
PENALTIES = (0.1, 0.03, 0.01, 0.003)
SCALES = (0.02, 0.05, 0.07, 0.1, 0.2)
LONGEST = 2 * math.sqrt(2)  # between two gradients of norm √2
Sample = tuple[torch.Tensor, NDArray[np.int64]]


def features(data: Path, name: str, seed: int, folder: Path) -> tuple[Sample, Sample]:
    """Return frozen features and labels of the training part and the test part."""
    if name == "SST-2":
        spec, loaded = data_string(data, "sst2", folder, None), load_model("minilm", 2, text=True)
    else:
        spec, loaded = f"folder:{data / 'pacs128' / name}", load_model("efficientnet_lite0", 7)
    task = load_task(spec, size=128, seed=seed, val_fraction=0)
    assert task.test is not None

    def read(part: Examples) -> Sample:
        assert part.labels is not None
        return torch.from_numpy(frozen_features(loaded, part, torch.device("cpu"))), part.labels

    return read(task.train), read(task.test)


def picked(train: Sample, test: Sample, k: int, **how: Any) -> dict[str, float]:
    """Train a head by Pick-to-Learn and return its certificate and its test error."""
    n = len(train[1])
    found = Picker(*train, torch.zeros(n, k), **how).run()
    other, kept = Picker(*test, torch.zeros(len(test[1]), k), **how), len(found.kept)
    return {
        "kept": kept,
        "n": n,
        "risk": compression_bound(kept, n, DELTA),
        "real_valued": real_valued(kept, n),
        "test_error": float((other.lead(found.weight) <= 0).mean()),
    }


def real_valued(kept: int, n: int, mean: float = 0.0) -> float:
    """Return kl⁻¹(mean loss on the others, (ln C(n, m) + ln n + ln(2√(n − m)/δ))/(n − m)), m examples kept.

    Sample compression for losses in [0, 1], without a message (Bazinet et al. 2025); all n sizes share δ.
    """
    if kept == n:
        return 1.0
    left = n - kept
    choices = gammaln(n + 1) - gammaln(kept + 1) - gammaln(left + 1)
    return float(kl_inverse(mean, (choices + math.log(n) + math.log(2 * math.sqrt(left) / DELTA)) / left))


def localised(train: Sample, k: int) -> dict[str, dict[str, float]]:
    """Return the smallest PAC-Bayes bounds of N(Ŵ, σ²) by three priors (docs/compression.md)."""
    x, y = train
    x = x - x.mean(dim=1, keepdim=True)
    u, targets, n = x / x.norm(dim=1, keepdim=True), torch.from_numpy(y), len(y)
    best: dict[str, dict[str, float]] = {}
    for penalty in PENALTIES:
        w = _ridge(u, targets, k, penalty)
        residual = torch.softmax(u @ w.T, 1)
        residual[torch.arange(n), targets] -= 1
        distances = {
            "prior at 0": float(w.norm()),
            "localised": deviation(n) / penalty,
            "localised, variance taken as known": _by_variance(u, residual) / penalty,
        }
        for scale in SCALES:
            sigma = scale * float(w.norm()) / math.sqrt(k)
            error = _gibbs(u, y, w, sigma)
            for name, distance in distances.items():
                kl = distance**2 / (2 * sigma**2)
                risk = float(kl_inverse(error, complexity(kl, n, DELTA * 0.8, len(PENALTIES) * len(SCALES))))
                if name not in best or risk < best[name]["risk"]:
                    best[name] = {"risk": risk, "kl": kl, "error": error, "penalty": penalty, "scale": scale}
    return best


def deviation(n: int) -> float:
    """Bound the distance of a mean of n independent gradients from its expectation (McDiarmid).

    E‖mean − E‖ ≤ √(2/n), and one gradient changes the mean by at most 2√2/n.
    """
    delta = DELTA * 0.2 / len(PENALTIES)
    return math.sqrt(2 / n) + LONGEST * math.sqrt(math.log(1 / delta) / (2 * n))


def _by_variance(u: torch.Tensor, residual: torch.Tensor) -> float:
    """Return the bound of Bousquet (2002) with the sample's trace and norm of the gradients' covariance."""
    n = len(u)
    mean = residual.T @ u / n
    trace = float(residual.square().sum(1).mean() - mean.square().sum())
    vectors = (residual[:, :, None] * u[:, None, :]).flatten(1)
    direction = torch.randn(vectors.shape[1], generator=torch.Generator().manual_seed(0))
    for _ in range(30):
        direction = vectors.T @ (vectors @ direction)
        direction /= direction.norm()
    weak = float((vectors @ direction).square().mean())
    spread, log = math.sqrt(n * trace), math.log(len(PENALTIES) / (DELTA * 0.2))
    return (spread + math.sqrt(2 * log * (n * weak + 2 * LONGEST * spread)) + LONGEST * log / 3) / n


def _ridge(u: torch.Tensor, targets: torch.Tensor, k: int, penalty: float) -> torch.Tensor:
    """Return the minimiser of the mean cross-entropy plus (λ/2)‖W‖²."""
    w = torch.zeros(k, u.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(u @ w.T, targets) + penalty / 2 * w.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return w.detach()


def _gibbs(u: torch.Tensor, y: NDArray[np.int64], w: torch.Tensor, sigma: float, draws: int = 20) -> float:
    """Return the error under Gaussian weights, a mean of draws of the logits."""
    generator, mean = torch.Generator().manual_seed(0), u @ w.T
    noise = (sigma * torch.randn(mean.shape, generator=generator) for _ in range(draws))
    return float(np.mean([((mean + own).argmax(1).numpy() != y).mean() for own in noise]))


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the data sets with the seeds of their splits; SST-2 has one fixed split."""
    yield from ({"data": name, "seed": seed} for name in PACS for seed in range(3))
    yield {"data": "SST-2", "seed": 0}


def measure(case: dict[str, Any], asked: Run) -> dict[str, Any]:
    """Return the certificates of one data set and split."""
    with tempfile.TemporaryDirectory() as folder:
        train, test = features(asked.data, case["data"], asked.seed, Path(folder))
    k = int(train[1].max()) + 1
    found: dict[str, Any] = {"before": picked(train, test, k, **BEFORE), "now": picked(train, test, k, **NOW)}
    if asked.seed == 0:
        found["localised"] = localised(train, k)
    return found
