"""A bound's sample: how it is read and checked, and what a network's errors on it show."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from hesstune.bounds.conditions import (
    HELD_OUT_LABELS,
    Conditions,
    check_bound,
    check_floor,
    check_knowledge,
)
from hesstune.bounds.data import BoundData, Share
from hesstune.bounds.monte_carlo import Feeder
from hesstune.bounds.noisy import (
    CleanLoss,
    kind_of,
    noise_knowledge,
    sample_assumptions,
    spent_by,
    zero_one_loss,
)
from hesstune.bounds.pac_bayes import confidence_upper, kl_inverse
from hesstune.bounds.record import Certificate
from hesstune.checks import one_of
from hesstune.errors import ConfigError, DataError
from hesstune.forward import evaluating, logits_of


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How a bound reads and checks its examples.

    Attributes:
        seen: Examples that the network, its prior or its start was trained or selected on: checked to be
            different from those of the bound.
        held_out: Held-out examples for a second bound, on the unperturbed network.
        held_out_labels: Whether their labels are `true` (exact binomial bound), `noisy` as those of the
            bound's examples, or `unknown` (error without a bound).
        block_size: Examples in a batch.
        seed: Of the order of the examples.
        repeats: `refuse` repeated inputs, or `allow` them.
        leaks: Choices that used the bound's examples (keys of `hesstune.bounds.conditions.LEAKS`).
        assumptions: Further assumptions to print with the certificate.
        diagnostic: If an assumption fails, return a number marked as no certificate instead of an error.
        share: This process's share of the blocks, if several processes make the same call.
    """

    seen: Any = None
    held_out: Any = None
    held_out_labels: str = "true"
    block_size: int = 32
    seed: int = 0
    repeats: str = "refuse"
    leaks: Sequence[str] = ()
    assumptions: Sequence[str] = ()
    diagnostic: bool = False
    share: Share = field(default_factory=Share)

    def __post_init__(self) -> None:
        one_of("held_out_labels", self.held_out_labels, HELD_OUT_LABELS)
        one_of("repeats", self.repeats, ("refuse", "allow"))
        if self.block_size < 1:
            raise ConfigError(f"block_size must be at least 1; got {self.block_size}")


@dataclass(frozen=True)
class Sample:
    """The examples of a bound, read and checked, and what is known about their labels.

    Attributes:
        data: The examples.
        held_out: The held-out examples, if any.
        conditions: Collects the conditions that fail.
        options: How the examples were read.
        delta: Probability of failure of the whole certificate.
        noise_matrix: As of `hesstune.certify`.
        noise_is: How it is known, as of `hesstune.certify`.
        spent: The part of delta that a confidence set of the noise has.
    """

    data: BoundData
    held_out: BoundData | None
    conditions: Conditions
    options: SampleOptions
    delta: float
    noise_matrix: Any
    noise_is: str
    spent: float

    @classmethod
    def read(
        cls,
        dataset: Any,
        options: SampleOptions,
        delta: float,
        noise_matrix: Any = None,
        noise_is: str = "known",
        *,
        conditions: Conditions | None = None,
        seen_as: str = "network's training",
        least: int = 1,
    ) -> Sample:
        """Read all examples; check that they are a proper sample and separate from the others.

        Args:
            dataset: Map-style (input, label).
            options: How to read them.
            delta: Probability of failure.
            noise_matrix: As of `hesstune.certify`.
            noise_is: As there.
            conditions: Those that earlier checks failed.
            seen_as: What the examples in `options.seen` are, for messages.
            least: The smallest number of examples.

        Raises:
            HesstuneError: If a condition fails.
        """
        conditions = conditions or Conditions(options.diagnostic)
        noise_is = noise_knowledge(noise_matrix, noise_is)
        check_knowledge(conditions, options.leaks, noise_is, noise_matrix is not None)
        spent, size = spent_by(noise_matrix, delta), options.block_size
        data = BoundData(dataset, size, options.seed, share=options.share)
        if data.n < least:
            raise DataError(f"a certificate needs at least {least} examples; got {data.n}")
        conditions.attempt(data.check_steady)
        if options.repeats == "refuse":
            conditions.attempt(data.check_repeats)
        seen = None if options.seen is None else BoundData(options.seen, size, options.seed, "seen")
        held_out = options.held_out
        if held_out is not None:
            held_out = BoundData(held_out, size, options.seed, "held_out", options.share)
        for what, other in ((seen_as, seen), ("held-out", held_out)):
            shared = 0 if other is None else len(set(data.digests) & set(other.digests))
            if shared:
                conditions.fail(
                    DataError(
                        f"{shared} of the certificate's examples are also among the {what} examples; "
                        "split the data into parts without common examples"
                    )
                )
        return cls(data, held_out, conditions, options, delta, noise_matrix, noise_is, spent)

    @property
    def n(self) -> int:
        """The number of examples."""
        return self.data.n

    def class_count(self, model: nn.Module) -> int:
        """Return the number of classes, from one batch's logits; the labels are checked against it."""
        with evaluating(model), torch.no_grad():
            k = int(logits_of(model, Feeder(model)(self.data.first())).shape[1])
        self.data.check_labels(k)
        return k

    def confusion(self, model: nn.Module, k: int) -> NDArray[np.int64]:
        """Count the network's predictions, (K, K), indexed [given label, prediction]."""
        with evaluating(model), torch.no_grad():
            return confusion_of(model, self.data, k, self.options.share)

    def assumptions(self, *own: str) -> list[str]:
        """List the assumptions on the sample, a bound's own, and the caller's."""
        own_of_sample = sample_assumptions(self.n, self.noise_matrix, self.noise_is, self.options.repeats)
        return [*own_of_sample, *own, *self.options.assumptions]

    def tail_certificate(
        self, confusion: ArrayLike, losses: Sequence[CleanLoss], share: float
    ) -> Certificate:
        """Return the certificate of a network that was fixed before the examples counted.

        Args:
            confusion: (K, K) counts, indexed [given label, prediction].
            losses: As of `tail_bound`.
            share: The tail's part of delta.
        """
        self.conditions.attempt(lambda: check_floor(confusion, self.noise_matrix, self.delta))
        table = np.asarray(confusion, np.float64)
        risk, loss = tail_bound(table, losses, share)
        numbers = {"mean": loss.unit(table / table.sum()), "low": loss.low, "high": loss.high}
        if loss.name == "zero_one":
            numbers["errors"] = float(errors_in(table))
        certificate = Certificate.of_network(
            "holdout",
            numbers,
            n=self.n,
            delta=self.delta,
            classes=len(table),
            shares={"exact_tail": share, "noise": self.spent},
            family=len(losses),
            loss=loss.name,
            noise=kind_of(self.noise_matrix),
            empirical=errors_in(table) / self.n,
        )
        assert abs(certificate.risk - risk) < 1e-9
        return certificate

    def finish(
        self,
        certificate: Certificate,
        model: nn.Module,
        losses: Sequence[CleanLoss],
        assumptions: Sequence[str],
    ) -> Certificate:
        """Return the certificate with its assumptions, its failures, and the bound on held-out examples."""
        self.conditions.attempt(lambda: check_bound(certificate.risk, self.noise_matrix, self.delta))
        fields = {} if self.held_out is None else self._held_out_fields(model, self.held_out, losses)
        return dataclasses.replace(
            certificate, assumptions=list(assumptions), failures=list(self.conditions.failures), **fields
        )

    def _held_out_fields(
        self, model: nn.Module, data: BoundData, losses: Sequence[CleanLoss]
    ) -> dict[str, Any]:
        """Count the network's errors on held-out examples, and bound its clean error by them."""
        k, labels, delta = len(losses[0].matrix), self.options.held_out_labels, self.delta
        with evaluating(model), torch.no_grad():
            confusion = confusion_of(model, data, k, self.options.share)
        wrong, bound = errors_in(confusion), 1.0
        if labels != "unknown":
            noise = self.noise_matrix if labels == "noisy" else None
            used = [zero_one_loss(k)] if noise is None else losses
            bound = tail_bound(confusion, used, delta - spent_by(noise, delta))[0]
            self.conditions.attempt(lambda: check_floor(confusion, noise, delta))
            self.conditions.attempt(lambda: check_bound(bound, noise, delta))
        counts = {"errors": wrong, "n": data.n, "error": wrong / data.n, "bound": bound, "delta": delta}
        return {"held_out": counts, "held_out_labels": labels}


def confusion_of(model: nn.Module, data: BoundData, k: int, share: Share) -> NDArray[np.int64]:
    """Count the predictions of a model in eval mode, (K, K), indexed [given label, prediction]."""
    data.check_labels(k)
    feed, counts = Feeder(model), torch.zeros(k * k, dtype=torch.int64)
    for inputs, targets in data:
        pairs = targets * k + logits_of(model, feed(inputs)).argmax(dim=1).cpu()
        counts += torch.bincount(pairs, minlength=k * k)
    return np.asarray(share.all_reduce_sum(counts).numpy().reshape(k, k), np.int64)


def errors_in(confusion: ArrayLike) -> int:
    """Return how many predictions differ from the given label."""
    table = np.asarray(confusion)
    return int(table.sum() - np.trace(table))


def tail_bound(confusion: ArrayLike, losses: Sequence[CleanLoss], delta: float) -> tuple[float, CleanLoss]:
    """Bound the clean error of a network that was fixed before these examples; return the loss used, too.

    True labels: the exact binomial tail (Clopper–Pearson). Noisy labels: the smallest over J losses L of
    a + (b − a)·kl⁻¹(mean of (L − a)/(b − a), ln(J/δ)/n), Chernoff's bound for means in [0, 1].

    Args:
        confusion: (K, K) counts, indexed [given label, prediction].
        losses: Losses fixed without these examples; 1 − I alone for true labels.
        delta: Probability of failure.

    Example:
        >>> round(tail_bound([[50, 0], [0, 50]], [zero_one_loss(2)], 0.05)[0], 4)
        0.0295
    """
    table = np.asarray(confusion, np.float64)
    n = int(table.sum())
    if len(losses) == 1 and losses[0].name == "zero_one":
        return confidence_upper(errors_in(table), n, delta), losses[0]
    side = math.log(len(losses) / delta) / n
    risks = [loss.risk(float(kl_inverse(loss.unit(table / n), side))) for loss in losses]
    best = int(np.argmin(risks))
    return risks[best], losses[best]
