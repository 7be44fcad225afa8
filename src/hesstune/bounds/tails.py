"""Bounds of a fixed network on examples that it has not seen: exact binomial tails, and under noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from hesstune.bounds.conditions import Conditions
from hesstune.bounds.data import BoundData
from hesstune.bounds.monte_carlo import Feeder
from hesstune.bounds.noisy import CleanLoss, zero_one_loss
from hesstune.bounds.pac_bayes import confidence_upper, kl_inverse
from hesstune.bounds.partition import Share
from hesstune.bounds.record import Certificate
from hesstune.bounds.refute import check_bound, check_floor
from hesstune.bounds.told import kind_of, spent_by
from hesstune.forward import evaluating, logits_of

__all__ = ["confusion_of", "errors_in", "held_out_beside", "tail_bound", "tail_certificate"]


def confusion_of(model: nn.Module, data: BoundData, k: int, share: Share) -> NDArray[np.int64]:
    """Count the model's predictions as it stands, (K, K), indexed [given label, prediction]."""
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
    """Bound the clean error of a network that was fixed before these examples; return the loss, too.

    Labels that count as true: the exact binomial tail (Clopper–Pearson). Noisy ones: the smallest over J
    losses L of a + (b − a)·kl⁻¹(mean of (L − a)/(b − a), ln(J/δ)/n), Chernoff's bound for means in [0, 1].

    Args:
        confusion: (K, K) counts, indexed [given label, prediction].
        losses: Losses fixed without these examples; 1 − I alone where labels are true.
        delta: Probability of failure.

    Example:
        >>> from hesstune.bounds.noisy import zero_one_loss
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


def held_out_beside(
    conditions: Conditions,
    model: nn.Module,
    data: BoundData,
    losses: Sequence[CleanLoss],
    labels: str,
    delta: float,
    noise_matrix: Any,
    share: Share,
) -> dict[str, Any]:
    """Count the network's errors on held-out examples, and bound its clean error by them.

    Args:
        conditions: What a refuted noise matrix is reported to.
        model: The network as it stands.
        data: The held-out examples.
        losses: What bounds the clean risk by labels as noisy as the certificate's.
        labels: `true`, `noisy` or `unknown`.
        delta: Probability with which the bound may fail.
        noise_matrix: As of `hesstune.certify`.
        share: As of `confusion_of`.

    Returns:
        The certificate's fields `held_out` and `held_out_labels`.
    """
    k = len(losses[0].matrix)
    with evaluating(model), torch.no_grad():
        confusion = confusion_of(model, data, k, share)
    wrong, bound = errors_in(confusion), 1.0
    if labels != "unknown":
        noise_matrix = noise_matrix if labels == "noisy" else None
        used = [zero_one_loss(k)] if noise_matrix is None else list(losses)
        bound = tail_bound(confusion, used, delta - spent_by(noise_matrix, delta))[0]
        conditions.attempt(lambda: check_floor(confusion, noise_matrix, delta))
        conditions.attempt(lambda: check_bound(bound, noise_matrix, delta))
    told = {"errors": wrong, "n": data.n, "error": wrong / data.n, "bound": bound, "delta": delta}
    return {"held_out": told, "held_out_labels": labels}


def tail_certificate(
    confusion: ArrayLike,
    losses: Sequence[CleanLoss],
    delta: float,
    share: float,
    noise_matrix: Any = None,
    assumptions: Sequence[str] = (),
) -> Certificate:
    """Return the certificate of a network that was fixed before the examples counted.

    Args:
        confusion: (K, K) counts, indexed [given label, prediction].
        losses: As of `tail_bound`.
        delta: Probability of failure of the whole certificate.
        share: The tail's part of it.
        noise_matrix: As of `hesstune.certify`.
        assumptions: What must hold.
    """
    table = np.asarray(confusion, np.float64)
    n = int(table.sum())
    risk, loss = tail_bound(table, losses, share)
    numbers = {"mean": loss.unit(table / n), "low": loss.low, "high": loss.high}
    if loss.name == "zero_one":
        numbers["errors"] = float(errors_in(table))
    made = Certificate.of_tail(
        numbers,
        n=n,
        delta=delta,
        share=share,
        spent=spent_by(noise_matrix, delta),
        classes=len(table),
        family=len(losses),
        loss=loss.name,
        noise=kind_of(noise_matrix),
        empirical=errors_in(table) / n,
        assumptions=list(assumptions),
    )
    assert abs(made.risk - risk) < 1e-9
    return made
