"""Label models: one label, and a posterior over labels, from many votes; each model is a file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import integer_labels, one_of, parse_rate
from hesstune.errors import ConfigError, DataError, listed, unknown_name
from hesstune.weak.label_models._base import Checked, LabelModel, ModelInputs
from hesstune.weak.votes import ABSTAIN, Votes

__all__ = [
    "LABEL_MODELS",
    "LabelModel",
    "LabelModelName",
    "Labelled",
    "at_balance",
    "label",
    "label_model_class",
    "read_balance",
]

LABEL_MODELS = tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))
if TYPE_CHECKING:
    LabelModelName = str
else:  # what options accept
    LabelModelName = Literal[LABEL_MODELS]


def label_model_class(name: str) -> type[LabelModel]:
    """Return the class of a label model by its name.

    Raises:
        ConfigError: If there is none, with the nearest name.
    """
    one_of("label model", name, LABEL_MODELS)
    found: type[LabelModel] = importlib.import_module(f"{__name__}.{name}").LABEL_MODEL
    return found


@dataclass(frozen=True)
class Labelled:
    """What a label model makes of the votes.

    Attributes:
        model: The label model's name.
        labels: (N,) int64 hard labels; ABSTAIN (−1) without a vote.
        posterior: (N, K) rows that sum to 1; uniform without a vote.
        details: The model's own numbers, JSON-ready.
    """

    model: str
    labels: NDArray[np.int64]
    posterior: NDArray[np.float64]
    details: dict[str, Any]


def label(
    votes: Votes,
    model: str = "majority",
    *,
    features: ArrayLike | None = None,
    clean: tuple[ArrayLike, ArrayLike] | None = None,
    balance: ArrayLike | None = None,
    seed: int = 0,
) -> Labelled:
    """Combine votes by a label model.

    Args:
        votes: The votes. Annotators who never vote are left out.
        model: One of LABEL_MODELS, which `docs/howto/weak-labels.md` lists.
        features: (N, D), for `auto`, `latent` and `soft_features`.
        clean: (rows, true labels) of human-checked examples, which keep them; `latent`, `calibrated` and
            `soft_features` use them for the others, too.
        balance: (K,) shares of the classes if they are known: the posteriors are tilted to that mean.
        seed: Seed of ties, folds and restarts.

    Raises:
        ConfigError: If the model is unknown or lacks what it needs.
        DataError: If nobody votes on anything.
        MissingExtraError: If the package behind it is not installed.

    Example:
        >>> label(Votes([[0, 0, 1], [1, 1, 1], [-1, -1, -1]], k=2)).labels.tolist()
        [0, 1, -1]
    """
    kind = label_model_class(model)
    voted = np.flatnonzero(votes.ballots.each > 0)
    if not len(voted):
        raise DataError("no labeler votes on any example; there is nothing to label")
    if kind.needs_features and features is None:
        raise ConfigError(f"the label model {model} needs the examples' features: give images or texts")
    inputs = ModelInputs(
        None if features is None else np.asarray(features)[voted],
        _among(clean, voted, votes),
        None if balance is None else np.asarray(balance, dtype=np.float64),
        seed,
    )
    posterior, details = kind.fit(votes.take(voted, np.flatnonzero(votes.coverage > 0)), inputs)
    if inputs.balance is not None:
        posterior, off = at_balance(posterior, inputs.balance)
        if off > 0.01:
            said = f"the classes' shares are up to {off:.2f} off those given: too many examples are certain"
            details = {**details, "reasons": [*details.get("reasons", []), said]}
    if inputs.checked is not None and len(inputs.checked[0]):
        posterior = posterior.copy()
        posterior[inputs.checked[0]] = np.eye(votes.k)[inputs.checked[1]]
    whole = np.full((len(votes), votes.k), 1.0 / votes.k)
    whole[voted] = posterior
    labels = np.full(len(votes), ABSTAIN)
    labels[voted] = _argmax(posterior, seed)
    return Labelled(model, labels, whole, details)


def _among(
    clean: tuple[ArrayLike, ArrayLike] | None, voted: NDArray[np.int64], votes: Votes
) -> Checked | None:
    """Return the human-checked examples among those that have votes."""
    if clean is None:
        return None
    rows = integer_labels(clean[0], len(votes), "rows of clean labels")
    true = integer_labels(clean[1], votes.k, "clean labels")
    if len(rows) != len(true) or len(set(rows.tolist())) < len(rows):
        raise DataError(f"{len(true)} clean labels need as many different rows; got {len(rows)}")
    place = np.full(len(votes), -1)
    place[voted] = np.arange(len(voted))
    kept = place[rows] >= 0
    return place[rows][kept], true[kept]


def _argmax(scores: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """Return the best class of each row; ties are drawn by the seed."""
    best = scores >= scores.max(axis=1, keepdims=True) - 1e-12
    draw = np.random.default_rng([seed, 0x71E]).random(scores.shape)
    return np.asarray((best * (1 + draw)).argmax(axis=1), dtype=np.int64)


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
