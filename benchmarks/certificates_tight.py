"""Candidates for tighter certificates of a head on frozen features, and what each of them needs.

    python benchmarks/certificates_tight.py --data DATA [--only PART …] [--store FOLDER]

DATA holds pacs128/DOMAIN/CLASS/*.jpg and sst2/{train,dev,test}.tsv. `average` and `center` were chosen on
photo and cartoon, split of seed 100; seeds 0, 1 and 2 are evaluated once. Finished parts are kept in
results/certificates_tight.json.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hesstune.inputs.feature_store import FeatureStore, frozen_features, sharing
from numpy.typing import NDArray
from scipy import stats
from scipy.special import gammaln

from certificates_networks import DOMAINS, sentences
from hesstune.bounds.compression import compression_bound
from hesstune.bounds.pac_bayes import kl_inverse, pac_bayes_kl
from hesstune.bounds.pick_to_learn import Picker
from hesstune.data.load import load_task
from hesstune.models.load import load_model
from records import arguments, read_record, write_record

NAME = "certificates_tight"
DELTA = 0.05
SEEDS = (0, 1, 2)
BEFORE = {"average": 0.0, "center": False}
NOW = {"average": 0.95, "center": True}
# Fixed before the evaluation: the share of the examples that are picked by digest, the rest is only counted.
STOPPED = {**NOW, "worst_first": False, "stop": 0.06}
TRIALS = 400
PENALTIES = (0.1, 0.03, 0.01, 0.003)
SCALES = (0.02, 0.05, 0.07, 0.1, 0.2)
Sample = tuple[torch.Tensor, NDArray[np.int64]]


def features(data: Path, name: str, seed: int, folder: Path) -> tuple[Sample, Sample]:
    """Return frozen features and labels of the training part and the test part."""
    if name == "SST-2":
        spec, loaded = f"csv:{sentences(data, folder)}", load_model("minilm", 2, text=True)
    else:
        spec, loaded = f"folder:{data / 'pacs128' / name}", load_model("efficientnet_lite0", 7)
    task = load_task(spec, size=128, seed=seed, val_fraction=0)
    parts = []
    for part in (task.train, task.test):
        found = frozen_features(loaded, part, torch.device("cpu"), 128)
        assert part.labels is not None
        parts.append((torch.from_numpy(found), part.labels))
    return parts[0], parts[1]


def picked(train: Sample, test: Sample, k: int, how: dict[str, Any]) -> dict[str, float]:
    """Train a head by Pick-to-Learn and return its certificate and its test error."""
    n = len(train[1])
    stop = math.ceil(how.get("stop", 1.0) * n)
    picker = Picker(*train, torch.zeros(n, k), **{**how, "stop": stop})
    found = picker.run()
    other = Picker(*test, torch.zeros(len(test[1]), k), **{**how, "stop": None})
    kept = len(found.kept)
    return {
        "kept": kept,
        "n": n,
        "risk": compression_bound(kept, n, DELTA),
        "real_valued": real_valued(kept, n),
        "test_error": float((other.lead(found.weight) <= 0).mean()),
    }


def real_valued(kept: int, n: int, mean: float = 0.0) -> float:
    """Return kl⁻¹(mean loss on the rest, (ln C(n, m) + ln n + ln(2√(n − m)/δ))/(n − m)), m examples kept.

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
    family, best = len(PENALTIES) * len(SCALES), {}
    for penalty in PENALTIES:
        w = _ridge(u, targets, k, penalty)
        residual = torch.softmax(u @ w.T, 1)
        residual[torch.arange(n), targets] -= 1
        distances = {
            "prior at 0": float(w.norm()),
            "localised": deviation(n, 2.0, 2 * math.sqrt(2)) / penalty,
            "localised, variance taken as known": _by_variance(u, residual) / penalty,
        }
        for scale in SCALES:
            sigma = scale * float(w.norm()) / math.sqrt(k)
            error = _gibbs(u, y, w, sigma)
            for name, distance in distances.items():
                kl = distance**2 / (2 * sigma**2)
                risk = pac_bayes_kl(error, kl, n, DELTA * 0.8, family)
                if risk < best.get(name, {"risk": 2.0})["risk"]:
                    best[name] = {"risk": risk, "kl": kl, "error": error, "penalty": penalty, "scale": scale}
    return best


def deviation(n: int, variance: float, diameter: float, delta: float = DELTA * 0.2 / len(PENALTIES)) -> float:
    """Bound the distance of a mean of n independent vectors from its expectation.

    E‖mean − E‖ ≤ √(variance/n), and one vector changes the mean by at most diameter/n (McDiarmid).
    """
    return math.sqrt(variance / n) + diameter * math.sqrt(math.log(1 / delta) / (2 * n))


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
    most = 2 * math.sqrt(2)
    return (spread + math.sqrt(2 * log * (n * weak + 2 * most * spread)) + most * log / 3) / n


def _ridge(u: torch.Tensor, targets: torch.Tensor, k: int, penalty: float) -> torch.Tensor:
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


def gibbs_priors(n: int) -> dict[str, float]:
    """Return (KL + ln(2√n/δ))/n of priors that depend on the distribution, in nats an example.

    `gibbs`: posterior ∝ exp(−c·n·empirical risk), prior ∝ exp(−c·n·risk) (Lever et al. 2013), the least
    that c = 0.5 and 1.3 cost. `private`: a prior that is ε-differentially private (Dziugaite & Roy 2018).
    """
    log = math.log(2 * math.sqrt(n) / DELTA)
    found = {f"gibbs, c = {c}": c * math.sqrt(2 * log / n) + c * c / 2 + log / n for c in (0.1, 0.5, 1.3)}
    for e in (0.1, 0.3):
        spent = n * e * e / 2 + e * math.sqrt(n / 2 * math.log(4 / DELTA))
        found[f"private, ε = {e}"] = (spent + math.log(4 * math.sqrt(n) / DELTA)) / n
    return found


# -- coverage ----------------------------------------------------------------------------------


def coverage() -> dict[str, dict[str, float]]:
    """Count in how many trials each sound bound and each broken twin is below the true error."""
    found = {}
    for name, (delta, trial) in _ways().items():
        failed = sum(trial(np.random.default_rng([7, at])) for at in range(TRIALS))
        most = int(stats.binom.ppf(0.99, TRIALS, delta))
        found[name] = {"failed": failed, "trials": TRIALS, "delta": delta, "most": most}
        print(name, found[name], flush=True)
    return found


def _ways() -> dict[str, tuple[float, Callable[[np.random.Generator], bool]]]:
    return {
        "sound: averaged and centred": (0.05, lambda rng: _pick_fails(rng, 12, 2, NOW)),
        "sound: stopped, errors counted": (0.3, lambda rng: _pick_fails(rng, 3, 20, STOPPED, picks=1)),
        "broken: stopped, errors not counted": (0.3, lambda rng: _pick_fails(rng, 3, 20, STOPPED, 1, True)),
        "sound: real-valued compression": (0.05, lambda rng: _real_fails(rng, False)),
        "broken: real-valued compression, choice not paid": (0.05, lambda rng: _real_fails(rng, True)),
        "sound: localised prior": (0.05, lambda rng: _localised_fails(rng, False)),
        "broken: localised prior, deviation not paid": (0.05, lambda rng: _localised_fails(rng, True)),
    }


def _pick_fails(
    rng: np.random.Generator,
    n: int,
    k: int,
    how: dict[str, Any],
    picks: int | None = None,
    free: bool = False,
) -> bool:
    """Labels at random: every head errs on 1 − 1/K, whatever it learns."""
    x = torch.from_numpy(rng.normal(size=(n, 4))) if k == 2 else torch.tensor([[1.0, 0.0]] * n)
    own = Picker(x, rng.integers(0, k, n), torch.zeros(n, k), steps=5, **{**how, "stop": picks})
    kept = len(own.run().kept)
    bound = compression_bound(min(kept, picks or 0) if free else kept, n, 0.3 if k > 2 else DELTA)
    return bound < 1 - 1 / k


def _real_fails(rng: np.random.Generator, free: bool) -> bool:
    """Two classes at random; of all heads that are sums of three examples the best on the others is taken."""
    n = 40
    x, sign = rng.normal(size=(n, 20)), rng.choice([-1.0, 1.0], n)
    votes = sign[:, None] * (x @ x.T) * sign
    kept = np.array(list(itertools.combinations(range(n), 3)))
    wrong = votes[kept].sum(axis=1) < 0
    np.put_along_axis(wrong, kept, False, axis=1)
    mean = float(wrong.sum(axis=1).min() / (n - 3))
    if not free:
        return real_valued(3, n, mean) < 0.5
    return float(kl_inverse(mean, math.log(2 * math.sqrt(n - 3) / DELTA) / (n - 3))) < 0.5


def _localised_fails(rng: np.random.Generator, free: bool) -> bool:
    """Two classes at random in 200 dimensions: the true error of every Gaussian head is one half."""
    n, penalty, sigma = 100, 0.03, 0.2
    x = torch.from_numpy(rng.normal(size=(n, 200))).float()
    u, y = x / x.norm(dim=1, keepdim=True), rng.integers(0, 2, n)
    w = _ridge(u, torch.from_numpy(y), 2, penalty)
    lead = (u @ (w[1] - w[0])).numpy() * np.where(y, 1, -1)
    error = float(stats.norm.cdf(-lead / (sigma * math.sqrt(2))).mean())
    distance = 0.0 if free else deviation(n, 2.0, 2 * math.sqrt(2), DELTA * 0.2) / penalty
    return pac_bayes_kl(error, distance**2 / (2 * sigma**2), n, DELTA * 0.8) < 0.5


def _cells(data: Path, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    for seed in SEEDS:
        for name in (*DOMAINS, "SST-2") if seed == 0 else DOMAINS:
            yield f"{name}, {seed}", lambda name=name, seed=seed: _compared(data, name, seed, folder)
    yield "gibbs priors", lambda: {str(n): gibbs_priors(n) for n in (1336, 7792)}
    yield "coverage", coverage


def _compared(data: Path, name: str, seed: int, folder: Path) -> dict[str, Any]:
    train, test = features(data, name, seed, folder)
    k = int(train[1].max()) + 1
    ways = {"before": BEFORE, "now": NOW, "stopped": STOPPED}
    found: dict[str, Any] = {way: picked(train, test, k, how) for way, how in ways.items()}
    if seed == 0:
        found["localised"] = localised(train, k)
    return found


def main() -> None:
    parser = arguments(__doc__, "pacs128 and sst2")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--store", type=Path, help="folder that keeps features from call to call")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sharing(FeatureStore(asked.store)):
        for name, compute in _cells(asked.data, Path(folder)):
            record = read_record(NAME, {})
            if name in record or (asked.only and name not in asked.only):
                continue
            write_record(NAME, {**record, name: compute()})
            print(name, read_record(NAME)[name], flush=True)


if __name__ == "__main__":
    main()
