"""How often each class is: told by the user, and kept by whatever label model there is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import parse_rate
from hesstune.errors import ConfigError, listed, unknown_name

__all__ = ["at_balance", "read_balance"]

STEPS, TOLERANCE = 2000, 1e-6
# Shares that sum to 1 within this are taken as they are, divided by their sum.
SUM_TOLERANCE = 0.02


def read_balance(
    told: Sequence[str], classes: Sequence[str], majority: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (K,) shares of the classes.

    Args:
        told: `uniform`; `majority`, the majority vote's; or `CLASS=SHARE` of every class.
        classes: Class names.
        majority: (K,) the classes' shares of the majority vote.

    Raises:
        ConfigError: If it is none of these, or shares do not sum to 1.

    Example:
        >>> read_balance(["spam=0.1", "ham=0.9"], ["ham", "spam"], np.ones(2) / 2).tolist()
        [0.9, 0.1]
    """
    if list(told) == ["uniform"]:
        return np.full(len(classes), 1 / len(classes))
    if list(told) == ["majority"]:
        if not majority.all():
            missing = classes[int(np.flatnonzero(majority == 0)[0])]
            raise ConfigError(
                f"the majority vote is never '{missing}'; give a class balance as CLASS=SHARE,…"
            )
        return majority
    shares: dict[str, float] = {}
    for one in told:
        name, share = _share(one, classes)
        if name in shares:
            raise ConfigError(f"the class balance names '{name}' twice")
        shares[name] = share
    rest = [name for name in classes if name not in shares]
    if rest:
        raise ConfigError(f"the class balance has no share of {listed(rest)}; give one of each class")
    total = sum(shares.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise ConfigError(f"the class balance: its shares sum to {total:g}, not to 1")
    return np.array([shares[name] / total for name in classes])


def _share(one: str, classes: Sequence[str]) -> tuple[str, float]:
    name, equals, share = one.rpartition("=")
    number = parse_rate(share)
    if not equals or number is None or not 0 < number < 1:
        raise ConfigError(
            f"a class balance is uniform, majority or CLASS=SHARE,… with shares in (0, 1); got '{one}'"
        )
    if name not in classes:
        raise unknown_name("class", name, classes, ConfigError)
    return name, number


def at_balance(
    posterior: NDArray[np.float64], balance: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Return the posteriors nearest to these whose mean is the balance, and how far their mean stays off.

    q_i(c) ∝ w_c·p_i(c), w by iterative proportional fitting: of all posteriors of that mean, these have the
    least Kullback–Leibler divergence from the ones given. Examples that are certain stay so; where too many
    are, the balance cannot be met.

    Args:
        posterior: (N, K).
        balance: (K,) shares, all above 0.

    Returns:
        The posteriors, and the largest difference of their mean from the balance.

    Example:
        >>> q, off = at_balance(np.array([[0.6, 0.4], [0.7, 0.3]]), np.array([0.5, 0.5]))
        >>> q.mean(axis=0).round(3).tolist(), q.argmax(axis=1).tolist()
        ([0.5, 0.5], [1, 0])
    """
    weight = np.ones(len(balance))
    for _ in range(STEPS):
        found = posterior * weight
        found /= np.maximum(found.sum(axis=1, keepdims=True), 1e-300)
        mean = found.mean(axis=0)
        if float(np.abs(mean - balance).max()) < TOLERANCE:
            break
        weight *= np.clip(balance / np.maximum(mean, 1e-12), 1e-3, 1e3)
        weight = np.clip(weight / weight.max(), 1e-12, 1)
    return found, float(np.abs(mean - balance).max())
