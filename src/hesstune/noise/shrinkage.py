"""How strongly counts are drawn to a matrix believed beforehand: by their evidence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["STRENGTHS", "drawn_to", "prior_strength"]

# Strengths tried for a prior matrix, in pseudo-examples a row.
STRENGTHS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)


def prior_strength(counts: NDArray[np.float64], prior: NDArray[np.float64]) -> float:
    """Choose the strength of a prior matrix by the evidence of counts (empirical Bayes).

    The strength s maximises Σ_i ln DirMult(counts_i | s·prior_i) over STRENGTHS.

    Args:
        counts: (K, K) how often each given label (column) stood with each true one (row); may be expected.
        prior: (K, K) rows of probabilities.
    """
    from scipy.special import gammaln

    def evidence(strength: float) -> float:
        alpha = strength * np.clip(prior, 1e-3, None)
        total, rows = alpha.sum(axis=1), counts.sum(axis=1)
        inner = (gammaln(alpha + counts) - gammaln(alpha)).sum(axis=1)
        return float((gammaln(total) - gammaln(total + rows) + inner).sum())

    return max(STRENGTHS, key=evidence)


def drawn_to(counts: NDArray[np.float64], prior: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows of counts drawn to a prior matrix by `prior_strength`, (K, K), rows sum to 1.

    Row i is the mean of a Dirichlet posterior, (s·prior_i + counts_i)/(s + Σ counts_i).
    """
    drawn = prior_strength(counts, prior) * prior + counts
    return np.asarray(drawn / drawn.sum(axis=1, keepdims=True))
