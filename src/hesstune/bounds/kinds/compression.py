"""The error of a network that a few of its training examples determine, by their number (Pick-to-Learn)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from scipy.special import gammaln, logsumexp

from hesstune.bounds.noisy import margin_of
from hesstune.bounds.record import Bound, Certificate, Network, Prior, finished
from hesstune.bounds.sample import Sample
from hesstune.errors import ConfigError, DataError, RunError
from hesstune.noise.confidence import failure_probability

# Sums of up to N terms of logarithms of factorials: each is off by a few units of rounding of its size.
_ROUNDINGS = 64
_EPS = float(np.finfo(np.float64).eps)


def compression_bound(kept: int, n: int, delta: float) -> float:
    """Bound the error of a network trained on `kept` of n examples that classifies all the others right.

    ε(k, N, δ) is the root of (δ/N) Σ_{m=k}^{N−1} C(m, k)/C(N, k) · (1 − ε)^{−(N−m)} = 1, and 1 for k = N; the
    returned value is never below it. With probability at least 1 − δ over N independent examples, the
    network's error is at most ε(k, N, δ), whatever k turns out to be. It holds for preferent compression: the
    examples kept do not change when others are left out, and an example that the network gets wrong would
    have been kept. Campi & Garatti, Compression, Generalization and Learning (JMLR 2023), theorem 7; the
    derivation is in docs/compression.md.

    Example:
        >>> round(compression_bound(0, 100, 0.05), 4), round(compression_bound(10, 100, 0.05), 4)
        (0.0439, 0.2051)
    """
    if n < 1 or not 0 <= kept <= n:
        raise ConfigError(f"kept examples must be between 0 and n, with n at least 1; got {kept} of {n}")
    base = math.log(failure_probability(delta)) - math.log(n)
    if kept == n:
        return 1.0
    counts = np.arange(kept, n)
    m = counts.astype(np.float64)
    # ln C(m, k) − ln C(N, k), and a rounding that the size of what was subtracted allows.
    terms = gammaln(m + 1) - gammaln(m - kept + 1) - (gammaln(n + 1) - gammaln(n - kept + 1))
    slack = _ROUNDINGS * _EPS * float(4 * gammaln(n + 1) + 4)
    low, high = kept / n, 1.0
    for _ in range(200):
        middle = low + (high - low) / 2
        if not low < middle < high:
            break
        # Only if the sum exceeds 1 even if all was rounded the wrong way does the end move down.
        steps = (n - counts) * -np.log1p(-middle)
        above = base + logsumexp(terms + steps) - slack - _ROUNDINGS * _EPS * float(steps.max()) > 0
        low, high = (low, middle) if above else (middle, high)
    return high


class Compression(Bound):
    """The bound of `compression_bound`; a bound ε on noisy labels gives (ε − c)/γ for the true error."""

    predictor = "the network itself, trained on the examples kept and no others; no noise on its weights"
    share = "compression"
    network = "picked"
    record: ClassVar[dict[str, str]] = {
        "kept": "number of examples that the network was trained on",
        "floor": "c, under noise: the error on noisy labels is at least c + γ·(the true one)",
        "gamma": "γ, under noise",
    }

    @classmethod
    def evaluate(cls, network: Network, prior: Prior | None, sample: Sample) -> Certificate:
        """Bound a network trained on the examples `network.kept`; all others must be classified right."""
        kept, n, data, options = set(map(int, network.kept)), sample.n, sample.data, sample.options
        if len(kept) < len(network.kept) or not kept <= set(range(n)):
            raise DataError(f"kept must name some of the {n} examples, each once; got {len(network.kept)}")
        wrong = (data.predict(network.model) != data.labels) & ~np.isin(data.order, sorted(kept))
        if wrong.any():
            raise RunError(
                f"the network misclassifies {wrong.sum()} of the examples that it was not trained on, so "
                "Pick-to-Learn had not ended; train it again with --overwrite"
            )
        numbers = {"kept": float(len(kept))}
        if sample.noise is not None:
            numbers["floor"], numbers["gamma"] = margin_of(sample.noise)
        certificate = Certificate.of_network(
            "compression",
            numbers,
            n=n,
            delta=options.delta,
            classes=sample.k,
            shares={"compression": options.delta - options.spent, "noise": options.spent},
            noise=sample.noise_text,
        )
        return finished(
            certificate,
            sample,
            network.model,
            "the start (weights, batch-norm statistics, input normalisation), the penalty and the number of "
            "examples added at a time were fixed without these examples",
            "an example's features depend on it alone, up to rounding",
        )

    @staticmethod
    def risk(one: Certificate, shares: Mapping[str, float]) -> float:
        noisy = compression_bound(int(one.numbers["kept"]), one.n, shares["compression"])
        return min(1.0, (noisy - one.numbers.get("floor", 0.0)) / one.numbers.get("gamma", 1.0))

    @staticmethod
    def counts(one: Certificate) -> str:
        kept = f"examples kept = {one.numbers['kept']:.0f}"
        return f"{kept}; every other example is classified correctly; {one.labels_text()}"

    @staticmethod
    def empirical(numbers: Mapping[str, float], n: int) -> float:
        return 0.0


BOUND = Compression
