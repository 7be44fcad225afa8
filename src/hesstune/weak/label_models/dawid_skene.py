"""Dawid and Skene's latent-class model: its iterations, and the model of hard votes on weighted rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from hesstune.noise.latent.channel import Checked
from hesstune.weak.label_models import Answer, LabelModel, ModelInputs
from hesstune.weak.votes import Votes, patterns

# The least probability, as in crowd-kit.
LEAST = float(np.float_power(10, -10))

Array = NDArray[np.float64]


class Iteration(NamedTuple):
    """One step of expectation maximisation."""

    before: Array  # the posterior that prior and confusion matrices are made from, (N, K)
    prior: Array  # P(class), (K,) or one a row, (N, K)
    confusion: Array  # P(vote j | class i) of each annotator, (m, K, K)
    evidence: Array  # ln P(votes | class), (N, K)
    posterior: Array  # the posterior they give, (N, K)


def iterations(  # noqa: PLR0913
    views: Sequence[Array],
    start: Array,
    prior: Callable[[Array], Array],
    least: float,
    *,
    weight: Array,
    fixed: Checked | None = None,
    known: NDArray[np.bool_] | None = None,
    temper: float = 1.0,
    added: float = 0.0,
) -> Iterator[Iteration]:
    """Fit P(class) Π_d P(vote d | class) by expectation maximisation, without end.

    Source: Dawid and Skene 1979, section 2.

    Args:
        views: (N, K) one-hot or soft votes of each annotator; a row of zeros is an abstention.
        start: The posterior to start from, (N, K).
        prior: P(class) from a posterior.
        least: The least sum of votes in a confusion matrix.
        weight: (N,) how many times each row counts in the confusion matrices.
        fixed: (rows, true classes) of human-checked examples.
        known: (K,) the classes there are; None means all.
        temper: The power of the likelihood.
        added: What is added to each sum of votes.
    """
    q = start
    while True:
        counted, share = q * weight[:, None], prior(q)
        sums = np.clip(np.stack([counted.T @ view for view in views]), least, None) + added
        matrices = sums / sums.sum(axis=2, keepdims=True)
        evidence = np.zeros_like(q)
        for view, matrix in zip(views, matrices, strict=True):
            evidence += view @ np.log(matrix).T
        logs = temper * evidence + np.log(share)
        new = softmax(logs if known is None else np.where(known, logs, -np.inf), axis=1)
        if fixed is not None:
            new[fixed[0]] = np.eye(q.shape[1])[fixed[1]]
        yield Iteration(q, share, matrices, evidence, new)
        q = new


def dawid_skene(
    votes: Votes, weight: Array, *, steps: int = 200, tolerance: float = 1e-5
) -> tuple[Array, Array]:
    """Return P(class | votes), (N, K), and the confusion matrices P(vote j | class i), (m, K, K).

    Expectation maximisation from the vote shares; it stops when the evidence lower bound a vote rises
    by less than the tolerance. Each row counts by its weight, so a million examples cost what their
    distinct rows cost. Source: Dawid and Skene 1979, section 2; the same iterations as crowd-kit's.

    Example:
        >>> votes = Votes([[0, 0, 0], [1, 1, 1], [0, 0, 1]], k=2)
        >>> q, confusion = dawid_skene(votes, np.array([40.0, 40.0, 20.0]))
        >>> q.argmax(axis=1).tolist(), confusion[2].round(1).tolist()
        ([0, 1, 0], [[0.7, 0.3], [0.0, 1.0]])
    """
    # A class without votes would be a name for anything.
    seen = np.setdiff1d(np.arange(votes.k), votes.unvoted)
    votes_of = votes.per_example[:, None]
    start = votes.counts[:, seen] / votes_of
    total, each = float(weight.sum()), float((votes.per_example * weight).sum())

    def prior(q: Array) -> Array:
        return np.asarray(np.clip((q * weight[:, None]).sum(axis=0) / total, LEAST, None))

    views = [votes.onehot[:, d][:, seen] for d in range(votes.m)]
    before = -np.inf
    for step, now in enumerate(iterations(views, start, prior, LEAST, weight=weight)):
        held = np.clip(now.before, LEAST, None)
        # crowd-kit's bound counts the prior once a vote.
        joint = now.before * (now.evidence + votes_of * np.log(now.prior)) - held * np.log(held)
        bound = float(weight @ joint.sum(axis=1)) / each
        # The start is no iteration: its bound is compared with nothing.
        if step == steps or (step and bound - before < tolerance):
            break
        before = bound if step else -np.inf
    whole, matrices = np.zeros((len(votes), votes.k)), np.tile(np.eye(votes.k), (votes.m, 1, 1))
    whole[:, seen] = now.before
    matrices[:, seen[:, None], seen] = now.confusion
    return whole, matrices


class DawidSkene(LabelModel):
    """A confusion matrix for each annotator. Source: Dawid and Skene 1979."""

    summary = "Estimates a confusion matrix for each annotator (Dawid and Skene 1979)."
    record: ClassVar[dict[str, str]] = {"confusion": "P(vote j | class i) of each annotator"}

    @classmethod
    def fit(cls, votes: Votes, inputs: ModelInputs) -> Answer:
        """Return the posterior, from the distinct rows of votes."""
        first, of = patterns(votes)
        posterior, confusion = dawid_skene(votes.take(first), np.bincount(of).astype(np.float64))
        return posterior[of], {"confusion": np.round(confusion, 4).tolist()}


LABEL_MODEL = DawidSkene
