"""Does the noise look class-conditional? A test of the labels against the features, within each class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import integer_labels
from hesstune.errors import DataError

__all__ = ["Conditional", "class_conditional", "sure_half"]

NEIGHBOURS, FEWEST = 10, 20
# Dependence is claimed where it is both certain and large enough to matter.
LEVEL, LEAST_EXCESS = 0.01, 0.03


@dataclass(frozen=True)
class Conditional:
    """The agreement of noisy labels among neighbours of the same class.

    Attributes:
        agreement: Share of neighbours, within a class, that have the same noisy label.
        expected: The same share after labels are permuted within each class.
        p_value: P(an agreement as large | labels independent of the features within each class).
        examples: Examples it was computed from.
    """

    agreement: float
    expected: float
    p_value: float
    examples: int

    @property
    def depends(self) -> bool:
        """Whether labels depend on the example beyond its class: certain (1 %), and by 3 points."""
        return self.p_value < LEVEL and self.agreement - self.expected >= LEAST_EXCESS


def class_conditional(
    features: ArrayLike, noisy: ArrayLike, classes: ArrayLike, k: int, *, draws: int = 300, seed: int = 0
) -> Conditional:
    """Test whether noisy labels are independent of the features within each class, by permutation.

    Class-conditional noise chooses the wrong label by the class alone: within a class, neighbours in the
    features agree no more often than any two examples do. The permutation keeps each class's counts, so
    the test is exact for true classes. Believed classes that mix two true ones let their borders show as
    dependence; give those examples alone whose class is sure.

    Args:
        features: (N, D).
        noisy: Noisy labels, (N,).
        classes: True or believed classes, (N,).
        k: Number of classes.
        draws: Permutations.
        seed: Theirs.

    Raises:
        DataError: If no class has enough examples.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(400, 2))
        >>> class_conditional(x, (x[:, 0] > 0).astype(int), np.zeros(400, int), 2).depends
        True
    """
    from sklearn.neighbors import NearestNeighbors

    x = np.asarray(features, dtype=np.float64)
    given, true = integer_labels(noisy, k, "noisy labels"), integer_labels(classes, k, "classes")
    rng = np.random.default_rng([seed, 0xCC])
    seen, total, drawn = 0, 0.0, np.zeros(draws)
    for label in range(k):
        rows = np.flatnonzero(true == label)
        if len(rows) < FEWEST:
            continue
        near = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(x[rows]).kneighbors(return_distance=False)
        own = given[rows]
        seen += len(rows)
        total += float((own[near] == own[:, None]).mean(axis=1).sum())
        for at in range(draws):
            mixed = rng.permutation(own)
            drawn[at] += (mixed[near] == mixed[:, None]).mean(axis=1).sum()
    if not seen:
        raise DataError(
            f"no class has {FEWEST} examples, too few to tell whether noise depends on the example"
        )
    p = (1 + int((drawn >= total - 1e-9).sum())) / (draws + 1)
    return Conditional(total / seen, float(drawn.mean() / seen), p, seen)


def sure_half(posterior: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the half of the examples of each most probable class that is most probable, sorted."""
    best, top = posterior.argmax(axis=1), posterior.max(axis=1)
    kept = []
    for label in np.unique(best):
        rows = np.flatnonzero(best == label)
        kept.append(rows[np.argsort(-top[rows], kind="stable")[: (len(rows) + 1) // 2]])
    return np.sort(np.concatenate(kept))
