"""One-standard-error rules: choose among candidates by scores of the same examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def paired_gain(scores: ArrayLike, others: ArrayLike, ddof: int = 0) -> tuple[float, float]:
    """Return the mean difference of paired scores, and its standard error (0 of a single pair).

    Args:
        scores: (n,).
        others: (n,), of the same examples.
        ddof: Degrees of freedom that the mean takes: 1 for the unbiased variance.
    """
    gain = np.asarray(scores) - np.asarray(others)
    return float(gain.mean()), float(gain.std(ddof=ddof) / np.sqrt(len(gain))) if len(gain) > ddof else 0.0


def within_errors(scores: ArrayLike, best: ArrayLike, errors: float = 1.0, ddof: int = 0) -> bool:
    """Tell whether the mean score is at most so many standard errors of the difference below the best one."""
    mean, error = paired_gain(best, scores, ddof)
    return mean <= errors * error + 1e-12


def first_within_errors(scores: Sequence[ArrayLike], errors: float = 1.0, ddof: int = 0) -> int:
    """Return the first of several candidates whose mean score is within standard errors of the best.

    Args:
        scores: Each candidate's scores of the same examples, (n,); larger is better. Candidates are in the
            order of preference.
        errors: How many standard errors.
        ddof: As of `paired_gain`.

    Example:
        >>> first_within_errors([[0.0, 0.0, 0.0], [1.0, 0.5, 1.4], [1.0, 1.0, 1.0]])
        1
    """
    best = int(np.argmax([np.asarray(own).mean() for own in scores]))
    return next((at for at in range(best) if within_errors(scores[at], scores[best], errors, ddof)), best)
