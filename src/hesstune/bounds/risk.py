"""From what was counted to the bound: each kind of certificate as a function of its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hesstune.bounds.checked import checked_bound
from hesstune.bounds.compression import compression_bound
from hesstune.bounds.pac_bayes import complexity, confidence_upper, kl_inverse, monte_carlo_upper
from hesstune.errors import ConfigError

__all__ = ["risk_of"]


def risk_of(
    bound: str,
    numbers: Mapping[str, float],
    shares: Mapping[str, float],
    n: int,
    kl: float = 0.0,
    family: int = 1,
    draws: int = 0,
) -> float:
    """Return the bound on the true error that a certificate's numbers give.

    Under a noise matrix it may be below 0: the matrix is then refuted, see `hesstune.bounds.refute`.

    Args:
        bound: The kind of bound.
        numbers: As of `hesstune.bounds.Certificate`.
        shares: The parts of delta.
        n: Number of examples.
        kl: KL of posterior from prior, in nats.
        family: The priors and losses that share delta.
        draws: Weight draws.

    Raises:
        ConfigError: If a number is missing: a record of an earlier version.
    """
    if bound == "compression":
        noisy = compression_bound(int(numbers["kept"]), n, shares["compression"])
        # Under noise the bound is of the error on noisy labels, which is at least c + γ·(the true one).
        return min(1.0, (noisy - numbers.get("floor", 0.0)) / numbers.get("gamma", 1.0))
    if bound == "checked":
        counts = {name: int(value) for name, value in numbers.items()}
        return checked_bound(
            (counts["wrong_disagreeing"], counts["checked_disagreeing"]),
            (counts["wrong_agreeing"], counts["checked_agreeing"]),
            counts["disagreeing"],
            n,
            shares["checked"],
        )
    if "mean" not in numbers:
        raise ConfigError("the certificate's record, of an earlier version, lacks numbers; certify again")
    low, high = numbers["low"], numbers["high"]
    if bound == "holdout" and "errors" in numbers:
        return confidence_upper(int(numbers["errors"]), n, shares["exact_tail"])
    if bound == "holdout":
        unit = float(kl_inverse(numbers["mean"], math.log(family / shares["exact_tail"]) / n))
    else:
        padding = numbers["padding"]
        drawn = monte_carlo_upper(min(1.0, numbers["mean"] / padding), draws, shares["monte_carlo"])
        side = complexity(kl, n, shares["pac_bayes"], family)
        unit = float(kl_inverse(min(1.0, padding * drawn), side))
    return min(1.0, low + (high - low) * unit)
