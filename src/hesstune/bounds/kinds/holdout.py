"""The error of a network, by an exact binomial tail on examples that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from hesstune.bounds.kl import kl_inverse
from hesstune.bounds.noisy import check_floor, errors_in, tail_bound
from hesstune.bounds.record import Bound, Certificate, Network, Prior, finished
from hesstune.bounds.sample import Sample
from hesstune.noise.confidence import confidence_upper

INDEPENDENT = "the network (its training, its selection, input normalisation) did not use these examples"


class Holdout(Bound):
    """The error of a network on examples that nothing of it depends on.

    With probability at least 1 − δ the error is at most the largest p with P(Binomial(n, p) ≤ errors) ≥ δ
    (Clopper & Pearson 1934). For noisy labels see `hesstune.bounds.noisy.tail_bound`.
    """

    share = "exact_tail"
    network = "unseen"
    record: ClassVar[dict[str, str]] = {
        "mean": "mean of the loss on the given labels, scaled to [0, 1]",
        "low": "smallest value of the loss",
        "high": "largest value of the loss",
        "errors": "errors, if the labels are true",
    }

    @classmethod
    def evaluate(cls, network: Network, prior: Prior | None, sample: Sample) -> Certificate:
        confusion = sample.data.confusion(network.model, sample.k)
        tail = tail_certificate(sample, confusion, sample.options.delta - sample.options.spent)
        return finished(tail, sample, network.model, INDEPENDENT)

    @staticmethod
    def risk(one: Certificate, shares: Mapping[str, float]) -> float:
        if "errors" in one.numbers:
            return confidence_upper(int(one.numbers["errors"]), one.n, shares["exact_tail"])
        low, high = one.numbers["low"], one.numbers["high"]
        unit = float(kl_inverse(one.numbers["mean"], math.log(one.family / shares["exact_tail"]) / one.n))
        return min(1.0, low + (high - low) * unit)

    @staticmethod
    def counts(one: Certificate) -> str:
        return f"error on the given labels: {one.empirical:.4f}; {one.labels_text()}"


def tail_certificate(sample: Sample, confusion: ArrayLike, share: float) -> Certificate:
    """Return the certificate of a network that was fixed before the examples counted."""
    delta = sample.options.delta
    sample.conditions.attempt(lambda: check_floor(confusion, sample.noise, delta))
    table = np.asarray(confusion, np.float64)
    loss = tail_bound(table, sample.losses, share)[1]
    numbers = {"mean": loss.unit(table / table.sum()), "low": loss.low, "high": loss.high}
    if loss.name == "zero_one":
        numbers["errors"] = float(errors_in(table))
    return Certificate.of_network(
        "holdout",
        numbers,
        n=sample.n,
        delta=delta,
        classes=sample.k,
        shares={"exact_tail": share, "noise": sample.options.spent},
        family=len(sample.losses),
        loss=loss.name,
        noise=sample.noise_text,
        empirical=errors_in(table) / sample.n,
    )


BOUND = Holdout
