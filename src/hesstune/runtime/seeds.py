"""Seeds of random generators, made of several numbers."""

from __future__ import annotations

import numpy as np

__all__ = ["mixed_seed"]


def mixed_seed(*key: int) -> int:
    """Return a seed in [0, 2⁶³) that is a fixed function of its key, on every platform and version.

    Keys are mixed by `numpy.random.SeedSequence`, whose values numpy guarantees not to change.

    Args:
        key: Integers from 0, such as a run's seed and an epoch.

    Example:
        >>> mixed_seed(0, 1), mixed_seed(1, 0)
        (2918264622725855778, 3717377837946358015)
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1
