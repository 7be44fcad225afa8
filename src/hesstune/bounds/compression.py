"""Sample compression: the error of a network itself, where a few of its examples determine it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from hesstune.checks import unit_interval
from hesstune.errors import ConfigError

# Sums of up to N terms of logarithms of factorials: each is off by a few units of rounding of its size.
_ROUNDINGS = 64
_EPS = float(np.finfo(np.float64).eps)


def compression_bound(kept: int, n: int, delta: float) -> float:
    """Bound the error of a network trained on `kept` of n examples that classifies all the others right.

    ε(k, N, δ) is the root of (δ/N) Σ_{m=k}^{N−1} C(m, k)/C(N, k) · (1 − ε)^{−(N−m)} = 1, and 1 for k = N:
    with probability at least 1 − δ over N independent examples, the network's error is at most ε(k, N, δ),
    whatever k turns out to be. It holds for preferent compression: the examples kept do not change when
    others are left out, and an example that the network gets wrong would have been kept. Campi & Garatti,
    Compression, Generalization and Learning (JMLR 2023), theorem 7; the derivation is in
    docs/compression.md.

    Args:
        kept: k, the number of examples that determine the network, every one counted.
        n: N, the number of all examples.
        delta: Probability of failure, in (0, 1).

    Returns:
        The bound, never below the root.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> round(compression_bound(0, 100, 0.05), 4), round(compression_bound(10, 100, 0.05), 4)
        (0.0439, 0.2051)
    """
    if n < 1 or not 0 <= kept <= n:
        raise ConfigError(f"kept examples must be between 0 and n, with n at least 1; got {kept} of {n}")
    if not 0 < unit_interval("delta", delta) < 1:
        raise ConfigError(f"delta must lie strictly between 0 and 1; got {delta}")
    if kept == n:
        return 1.0
    counts = np.arange(kept, n)
    terms, size = _log_terms(counts, kept, n)
    base, slack = math.log(delta) - math.log(n), _ROUNDINGS * _EPS * size
    low, high = kept / n, 1.0
    for _ in range(200):
        middle = low + (high - low) / 2
        if not low < middle < high:
            break
        # Only where the sum exceeds 1 even if all was rounded the wrong way does the end move down.
        steps = (n - counts) * -np.log1p(-middle)
        above = base + logsumexp(terms + steps) - slack - _ROUNDINGS * _EPS * float(steps.max()) > 0
        low, high = (low, middle) if above else (middle, high)
    return high


def _log_terms(counts: NDArray[np.int64], kept: int, n: int) -> tuple[NDArray[np.float64], float]:
    """Return ln C(m, k) − ln C(N, k) for every m, and the size of what was subtracted."""
    m = counts.astype(np.float64)
    terms = gammaln(m + 1) - gammaln(m - kept + 1) - (gammaln(n + 1) - gammaln(n - kept + 1))
    return np.asarray(terms, np.float64), float(4 * gammaln(n + 1) + 4)
