"""Dawid and Skene's latent-class model of hard votes, on weighted rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hesstune.weak.votes import Votes

__all__ = ["dawid_skene"]

# The least probability, as in crowd-kit.
LEAST = float(np.float_power(10, -10))


def dawid_skene(
    votes: Votes, weight: NDArray[np.float64], *, steps: int = 200, tolerance: float = 1e-5
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return P(class | votes), (N, K), and the confusion matrices P(vote j | class i), (m, K, K).

    Expectation maximisation from the vote shares; it stops when the evidence lower bound a vote rises
    by less than the tolerance. Rows count by their weight, so a million examples cost what their
    distinct rows cost. Source: Dawid and Skene 1979, section 2; the same iterations as crowd-kit's.

    Args:
        votes: Votes, on every row at least one.
        weight: (N,) how many examples each row stands for.
        steps: At most so many iterations.
        tolerance: See above.

    Example:
        >>> votes = Votes([[0, 0, 0], [1, 1, 1], [0, 0, 1]], k=2)
        >>> q, confusion = dawid_skene(votes, np.array([40.0, 40.0, 20.0]))
        >>> q.argmax(axis=1).tolist(), confusion[2].round(1).tolist()
        ([0, 1, 0], [[0.7, 0.3], [0.0, 1.0]])
    """
    # A class that nobody votes for would be a name for anything.
    seen = np.flatnonzero((votes.counts * weight[:, None]).sum(axis=0) > 0)
    views = [votes.onehot[:, d][:, seen] for d in range(votes.m)]
    total = float(weight.sum())
    each = float((votes.given.sum(axis=1) * weight).sum())
    q = votes.counts[:, seen] / votes.counts.sum(axis=1, keepdims=True)
    prior, confusion = _maximised(q, views, weight, total)
    evidence = _evidence(views, confusion)
    votes_of = votes.given.sum(axis=1, keepdims=True)
    before = -np.inf
    for _ in range(steps):
        q = evidence + np.log(prior)
        q -= q.max(axis=1, keepdims=True)
        np.exp(q, out=q)
        q /= q.sum(axis=1, keepdims=True)
        prior, confusion = _maximised(q, views, weight, total)
        evidence = _evidence(views, confusion)
        held = np.clip(q, LEAST, None)
        # crowd-kit's bound counts the prior once a vote.
        joint = q * (evidence + votes_of * np.log(prior)) - held * np.log(held)
        bound = float(weight @ joint.sum(axis=1)) / each
        if bound - before < tolerance:
            break
        before = bound
    whole, matrices = np.zeros((len(votes), votes.k)), np.tile(np.eye(votes.k), (votes.m, 1, 1))
    whole[:, seen] = q
    matrices[:, seen[:, None], seen] = confusion
    return whole, matrices


def _maximised(
    q: NDArray[np.float64], views: list[NDArray[np.float64]], weight: NDArray[np.float64], total: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    counted = q * weight[:, None]
    confusion = np.clip(np.stack([counted.T @ view for view in views]), LEAST, None)
    prior = np.clip(counted.sum(axis=0) / total, LEAST, None)
    return prior, confusion / confusion.sum(axis=2, keepdims=True)


def _evidence(views: list[NDArray[np.float64]], confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ln P(votes | class), (N, K)."""
    logs = np.zeros_like(views[0])
    for view, matrix in zip(views, confusion, strict=True):
        logs += view @ np.log(matrix).T
    return logs
