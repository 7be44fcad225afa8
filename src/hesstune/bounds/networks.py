"""Certificates of a network without weight noise: held-out, compression and checked-label bounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn
from torch.utils.data import default_collate

from hesstune.bounds.conditions import (
    Conditions,
    check_bound,
    check_floor,
    check_separate,
    check_story,
    class_count_of,
)
from hesstune.bounds.data import BoundData, Share
from hesstune.bounds.monte_carlo import Feeder
from hesstune.bounds.noisy import (
    CleanLoss,
    KnownNoise,
    NoiseConfidenceSet,
    kind_of,
    losses_for,
    margin_of,
    noise_as_told,
    sample_assumptions,
    spent_by,
    zero_one_loss,
)
from hesstune.bounds.pac_bayes import confidence_upper, kl_inverse
from hesstune.bounds.record import Certificate
from hesstune.errors import DataError, RunError
from hesstune.forward import evaluating, logits_of

__all__ = [
    "UNCHECKED",
    "certify_checked",
    "certify_compression",
    "certify_holdout",
    "confusion_of",
    "errors_in",
    "held_out_beside",
    "tail_bound",
    "tail_certificate",
]


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


# In the place of a label that nobody gave.
UNCHECKED = -1


def certify_holdout(
    model: nn.Module,
    dataset: Any,
    delta: float = 0.05,
    noise_matrix: Any = None,
    *,
    noise_method: str = "tightest",
    noise_is: str = "known",
    seen: Any = None,
    block_size: int = 32,
    repeats: str = "refuse",
    leaks: Sequence[str] = (),
    assumptions: Sequence[str] = (),
    diagnostic: bool = False,
    share: Share | None = None,
) -> Certificate:
    """Bound the clean error of a network by examples that it has not seen: exact binomial tails.

    With probability at least 1 − δ the error is at most the largest p with P(Binomial(n, p) ≤ errors) ≥ δ
    (Clopper & Pearson 1934); from noisy labels, see `hesstune.bounds.networks.tail_bound`.

    Args:
        model: The network; runs in eval mode and is left as it was.
        dataset: Map-style (input, target), independent draws that nothing of the network depends on.
        delta: Probability with which the certificate may fail, in (0, 1).
        noise_matrix: As of `hesstune.certify`.
        noise_method: As there.
        noise_is: As there.
        seen: Examples that the network was trained or selected on: checked to be others.
        block_size: Examples to a batch.
        repeats: `refuse` repeated inputs, or `allow` them.
        leaks: As of `hesstune.certify`.
        assumptions: Further assumptions to print.
        diagnostic: Return a number marked as no certificate where an assumption fails, not an error.
        share: As of `hesstune.certify`.

    Raises:
        HesstuneError: If a condition fails.

    Example:
        >>> x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
        >>> model = nn.Linear(5, 2)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.stack([-torch.ones(5), torch.ones(5)])), model.bias.zero_()
        >>> data = torch.utils.data.TensorDataset(x, (x.sum(dim=1) > 0).long())
        >>> round(certify_holdout(model, data).risk, 4)
        0.0099
    """
    conditions, share = Conditions(diagnostic), share or Share()
    noise_is = noise_as_told(noise_matrix, noise_is)
    check_story(conditions, leaks, noise_is, noise_matrix is not None)
    spent = spent_by(noise_matrix, delta)
    data = _read(conditions, dataset, block_size, repeats, share)
    other = _seen(seen, block_size)
    check_separate(conditions, data, {"network's training": other})
    k = class_count_of(model, data)
    losses = losses_for(noise_matrix, k, noise_method)
    with evaluating(model), torch.no_grad():
        confusion = confusion_of(model, data, k, share)
    conditions.attempt(lambda: check_floor(confusion, noise_matrix, delta))
    told = [
        *sample_assumptions(data.n, noise_matrix, noise_is, repeats),
        "the network (its training, its selection, input normalisation) did not use these examples",
        *assumptions,
    ]
    found = tail_certificate(confusion, losses, delta, delta - spent, noise_matrix, told)
    conditions.attempt(lambda: check_bound(found.risk, noise_matrix, delta))
    return dataclasses.replace(found, failures=list(conditions.failures))


def certify_compression(
    model: nn.Module,
    dataset: Any,
    kept: Sequence[int],
    delta: float = 0.05,
    noise_matrix: Any = None,
    *,
    noise_is: str = "known",
    seen: Any = None,
    held_out: Any = None,
    held_out_labels: str = "true",
    block_size: int = 32,
    repeats: str = "refuse",
    leaks: Sequence[str] = (),
    assumptions: Sequence[str] = (),
    diagnostic: bool = False,
    share: Share | None = None,
) -> Certificate:
    """Bound the error of a network that Pick-to-Learn trained, by the number of examples it kept.

    See `hesstune.bounds.compression.compression_bound`. From noisy labels the bound is one of the error on
    noisy labels, ε ≥ c + γ·(the true error), so that the true error is at most (ε − c)/γ.

    Args:
        model: The network; runs in eval mode and is left as it was.
        dataset: Map-style (input, target): all N examples, independent draws.
        kept: Which of them it was trained on: by `hesstune.bounds.pick_to_learn` or another preferent scheme.
        delta: Probability with which the certificate may fail, in (0, 1).
        noise_matrix: As of `hesstune.certify`.
        noise_is: As there.
        seen: Examples that trained its start: checked to be others.
        held_out: As of `hesstune.certify`.
        held_out_labels: As there.
        block_size: As of `certify_holdout`, like all that follow.
        repeats: `refuse` repeated inputs, or `allow` them.
        leaks: As of `hesstune.certify`.
        assumptions: Further assumptions to print.
        diagnostic: Return a number marked as no certificate where an assumption fails, not an error.
        share: As of `hesstune.certify`.

    Raises:
        HesstuneError: If a condition fails, or an example that was not kept is misclassified.
    """
    conditions, share = Conditions(diagnostic), share or Share()
    noise_is = noise_as_told(noise_matrix, noise_is)
    check_story(conditions, leaks, noise_is, noise_matrix is not None)
    spent = spent_by(noise_matrix, delta)
    data = _read(conditions, dataset, block_size, repeats, share)
    other = _seen(seen, block_size)
    aside = None if held_out is None else BoundData(held_out, block_size, 0, "held_out", share)
    check_separate(conditions, data, {"start's training": other, "held-out": aside})
    k = class_count_of(model, data)
    _check_picked(model, dataset, kept, data.n, k, block_size, share)
    told = [
        *sample_assumptions(data.n, noise_matrix, noise_is, repeats),
        "the start (weights, batch-norm statistics, input normalisation), the penalty and the number of "
        "examples added at a time were fixed without these examples",
        "an example's features depend on it alone, up to rounding",
        *assumptions,
    ]
    found = Certificate.of_compression(
        {"kept": float(len(kept)), **_under_noise(noise_matrix)},
        n=data.n,
        delta=delta,
        spent=spent,
        classes=k,
        noise=kind_of(noise_matrix),
        assumptions=told,
    )
    conditions.attempt(lambda: check_bound(found.risk, noise_matrix, delta))
    beside = {}
    if aside is not None:
        known = losses_for(noise_matrix, k)
        beside = held_out_beside(conditions, model, aside, known, held_out_labels, delta, noise_matrix, share)
    return dataclasses.replace(found, failures=list(conditions.failures), **beside)


def _check_picked(
    model: nn.Module, dataset: Any, kept: Sequence[int], n: int, k: int, block_size: int, share: Share
) -> None:
    """Raise unless the examples kept are some of the n, each once, and every other one is right."""
    picked = set(map(int, kept))
    if len(picked) < len(kept) or not picked <= set(range(n)):
        raise DataError(f"kept must name some of the {n} examples, each once; got {len(kept)}")
    rest = _Some(dataset, sorted(set(range(n)) - picked))
    if not len(rest):
        return
    with evaluating(model), torch.no_grad():
        confusion = confusion_of(model, BoundData(rest, block_size, 0, share=share), k, share)
    if wrong := errors_in(confusion):
        raise RunError(
            f"the network misclassifies {wrong} of the examples that it was not trained on, so Pick-to-Learn "
            "had not ended; train it again with --overwrite"
        )


def _seen(seen: Any, block_size: int) -> BoundData | None:
    return None if seen is None else BoundData(seen, block_size, 0, "seen")


def _read(conditions: Conditions, dataset: Any, block_size: int, repeats: str, share: Share) -> BoundData:
    data = BoundData(dataset, block_size, 0, share=share)
    conditions.attempt(data.check_steady)
    if repeats == "refuse":
        conditions.attempt(data.check_repeats)
    return data


def certify_checked(
    model: nn.Module,
    dataset: Any,
    true: Mapping[int, int],
    delta: float = 0.05,
    *,
    sheets: int = 1,
    seen: Any = None,
    block_size: int = 32,
    repeats: str = "refuse",
    leaks: Sequence[str] = (),
    assumptions: Sequence[str] = (),
    diagnostic: bool = False,
    share: Share | None = None,
) -> Certificate:
    """Bound the true error of a network by the given labels of all examples and the true ones of a few.

    See `hesstune.bounds.checked.checked_bound`: nothing is assumed of the given labels' noise.

    Args:
        model: The network; runs in eval mode and is left as it was.
        dataset: Map-style (input, given label), independent draws that nothing of the network depends on.
        true: {index: true label} of all examples that were drawn, uniformly at random among them. UNCHECKED
            where nobody gave a label: it counts as an error, since hard examples are the ones left out.
        delta: As of `certify_holdout`, like all that follow but `sheets`.
        sheets: How many samples were drawn to be checked: they share delta.
        seen: Examples that the network was trained or selected on: checked to be others.
        block_size: Examples to a batch.
        repeats: `refuse` repeated inputs, or `allow` them.
        leaks: As of `hesstune.certify`.
        assumptions: Further assumptions to print.
        diagnostic: Return a number marked as no certificate where an assumption fails, not an error.
        share: As of `hesstune.certify`.

    Raises:
        HesstuneError: If a condition fails.
    """
    conditions, share = Conditions(diagnostic), share or Share()
    check_story(conditions, leaks, "known", False)
    spent_by(None, delta)
    data = _read(conditions, dataset, block_size, repeats, share)
    check_separate(conditions, data, {"network's training": _seen(seen, block_size)})
    k, picked = class_count_of(model, data), sorted(true)
    if not picked or not 0 <= picked[0] <= picked[-1] < data.n:
        raise DataError(f"checked labels must be of some of the {data.n} examples; got {len(picked)}")
    some = _Some(dataset, picked)
    with evaluating(model), torch.no_grad():
        given = confusion_of(model, data, k, share)
        guesses = [logits_of(model, Feeder(model)(x)).argmax(dim=1).cpu().numpy() for x, _ in _listed(some)]
    labels = np.concatenate([np.asarray(y) for _, y in _listed(some)])
    guess, truth = np.concatenate(guesses), np.array([true[at] for at in picked])
    apart, wrong = guess != labels, guess != truth
    numbers = {
        "wrong_disagreeing": float((apart & wrong).sum()),
        "checked_disagreeing": float(apart.sum()),
        "wrong_agreeing": float((~apart & wrong).sum()),
        "checked_agreeing": float((~apart).sum()),
        "disagreeing": float(errors_in(given)),
        "unchecked": float((truth == UNCHECKED).sum()),
    }
    told = [
        *sample_assumptions(data.n, None, "known", repeats),
        "the network (its training, its selection, input normalisation) did not use these examples",
        f"the {len(picked)} checked examples were drawn uniformly at random among them, and checked rightly",
        *assumptions,
    ]
    found = Certificate.of_checked(numbers, n=data.n, delta=delta, classes=k, sheets=sheets, assumptions=told)
    return dataclasses.replace(found, failures=list(conditions.failures))


def _listed(some: _Some, size: int = 32) -> Iterator[tuple[Any, Any]]:
    """Yield batches in the order of the examples."""
    for at in range(0, len(some), size):
        part = list(range(at, min(at + size, len(some))))
        items = [some[i] for i in part]
        yield default_collate([x for x, _ in items]), np.array([int(y) for _, y in items])


def _under_noise(noise_matrix: Any) -> dict[str, float]:
    if noise_matrix is None:
        return {}
    known = noise_matrix if isinstance(noise_matrix, NoiseConfidenceSet) else KnownNoise(noise_matrix)
    floor, gamma = margin_of(known)
    return {"floor": floor, "gamma": gamma}


class _Some:
    """Some examples of a map-style data set, read in batches where it reads so."""

    def __init__(self, dataset: Any, rows: list[int]) -> None:
        self._dataset, self._rows = dataset, rows
        if hasattr(dataset, "batch"):
            self.batch = lambda part: dataset.batch([rows[i] for i in part])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._rows[index]]
