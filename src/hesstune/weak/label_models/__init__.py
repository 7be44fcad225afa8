"""Label models: one label, and a posterior over labels, from many votes.

Each model is the class LABEL_MODEL of a file in this folder, and the file's name is its name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import integer_labels, one_of, parse_rate
from hesstune.errors import ConfigError, DataError, listed, unknown_name
from hesstune.weak.votes import ABSTAIN, Votes

if TYPE_CHECKING:
    from hesstune.noise.latent.channel import Checked

LABEL_MODELS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
if TYPE_CHECKING:
    LabelModelName = str
else:  # what options accept
    LabelModelName = Literal[LABEL_MODELS]

Answer = tuple[NDArray[np.float64], dict[str, Any]]
"""P(class | votes), (N, K), and the model's own numbers, JSON-ready."""


@dataclass(frozen=True)
class ModelInputs:
    """What a label model may use beside the votes.

    Attributes:
        features: (N, D), or None.
        checked: Rows and true classes of human-checked examples, or None.
        balance: (K,) shares of the classes, or None if unknown.
        seed: Seed of ties, folds and restarts.
    """

    features: NDArray[np.floating] | None
    checked: Checked | None
    balance: NDArray[np.float64] | None
    seed: int


class LabelModel:
    """A label model.

    Attributes:
        summary: A sentence for users, which `docs/howto/weak-labels.md` repeats.
        record: The keys of its record, and what they mean.
        needs_features: Whether it cannot do without features.
        is_calibrated: Whether it gives probabilities of the true class, so that they say how often labels are
            wrong.
        keeps_classes: Whether it fits so few numbers that it cannot assign all examples to one class.
    """

    summary: ClassVar[str]
    record: ClassVar[dict[str, str]] = {}
    needs_features: ClassVar[bool] = False
    is_calibrated: ClassVar[bool] = True
    keeps_classes: ClassVar[bool] = False

    @classmethod
    def fit(cls, votes: Votes, inputs: ModelInputs) -> Answer:
        """Return posterior and record of votes, on every example at least one."""
        raise NotImplementedError


def label_model_class(name: str) -> type[LabelModel]:
    """Return the class of a label model by its name; ConfigError if there is none, with the nearest name."""
    one_of("label model", name, LABEL_MODELS)
    found: type[LabelModel] = importlib.import_module(f"{__name__}.{name}").LABEL_MODEL
    return found


@dataclass(frozen=True)
class Labelled:
    """Labels from a label model.

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
        DataError: If there are no votes, or features or checked labels do not match them.
        MissingExtraError: If the package behind it is not installed.

    Example:
        >>> label(Votes([[0, 0, 1], [1, 1, 1], [-1, -1, -1]], k=2)).labels.tolist()
        [0, 1, -1]
    """
    kind = label_model_class(model)
    voted = np.flatnonzero(votes.per_example > 0)
    if not len(voted):
        raise DataError("there is no vote on any example, so there is nothing to label")
    if kind.needs_features and features is None:
        raise ConfigError(f"the label model {model} needs the examples' features: give images or texts")
    x = None if features is None else np.asarray(features)
    if x is not None and (x.ndim != 2 or len(x) != len(votes) or not np.isfinite(x).all()):
        raise DataError(f"features must be finite, ({len(votes)}, D); got shape {x.shape}")
    checked = None if clean is None else _checked(clean, voted, votes)
    shares = None if balance is None else np.asarray(balance, dtype=np.float64)
    inputs = ModelInputs(None if x is None else x[voted], checked, shares, seed)
    posterior, details = kind.fit(votes.take(voted, np.flatnonzero(votes.per_annotator > 0)), inputs)
    if shares is not None:
        posterior, off = at_balance(posterior, shares)
        if off > 0.01:
            said = f"the classes' shares are up to {off:.2f} off those given: too many examples are certain"
            details = {**details, "reasons": [*details.get("reasons", []), said]}
    if checked is not None:
        posterior = posterior.copy()
        posterior[checked[0]] = np.eye(votes.k)[checked[1]]
    whole = np.full((len(votes), votes.k), 1.0 / votes.k)
    whole[voted] = posterior
    labels = np.full(len(votes), ABSTAIN)
    labels[voted] = _best_classes(posterior, seed)
    return Labelled(model, labels, whole, details)


def majority_vote(votes: Votes, seed: int = 0) -> NDArray[np.int64]:
    """Return the class with the most votes, (N,), ties drawn by the seed; ABSTAIN without a vote."""
    labels, voted = np.full(len(votes), ABSTAIN), votes.per_example > 0
    counts = votes.counts[voted]
    labels[voted] = _best_classes(counts / counts.sum(axis=1, keepdims=True), seed)
    return labels


def _checked(clean: tuple[ArrayLike, ArrayLike], voted: NDArray[np.int64], votes: Votes) -> Checked:
    """Return the human-checked examples among those that have votes."""
    rows = integer_labels(clean[0], len(votes), "rows of clean labels")
    true = integer_labels(clean[1], votes.k, "clean labels")
    if len(rows) != len(true) or len(set(rows.tolist())) < len(rows):
        raise DataError(f"{len(true)} clean labels need as many different rows; got {len(rows)}")
    kept = np.isin(rows, voted)
    return np.searchsorted(voted, rows[kept]), true[kept]


def _best_classes(scores: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """Return the best class of each row; ties are drawn by the seed."""
    best = scores >= scores.max(axis=1, keepdims=True) - 1e-12
    draw = np.random.default_rng([seed, 0x71E]).random(scores.shape)
    return np.asarray((best * (1 + draw)).argmax(axis=1), dtype=np.int64)


STEPS, TOLERANCE = 2000, 1e-6
# Shares that sum to 1 within this are divided by their sum.
SUM_TOLERANCE = 0.02


def read_balance(
    given: Sequence[str], classes: Sequence[str], majority: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (K,) shares of the classes: `uniform`, `majority` (as given), or `CLASS=SHARE` of each class.

    ConfigError is raised if it is none of these, or shares do not sum to 1.

    Example:
        >>> read_balance(["spam=0.1", "ham=0.9"], ["ham", "spam"], np.ones(2) / 2).tolist()
        [0.9, 0.1]
    """
    if list(given) == ["uniform"]:
        return np.full(len(classes), 1 / len(classes))
    if list(given) == ["majority"]:
        if not majority.all():
            missing = classes[int(np.flatnonzero(majority == 0)[0])]
            raise ConfigError(
                f"the majority vote is never '{missing}'; give a class balance as CLASS=SHARE,…"
            )
        return majority
    shares: dict[str, float] = {}
    for one in given:
        name, equals, share = one.rpartition("=")
        number = parse_rate(share)
        if not equals or number is None or not 0 < number < 1:
            raise ConfigError(
                f"a class balance is uniform, majority or CLASS=SHARE,… with shares in (0, 1); got '{one}'"
            )
        if name not in classes:
            raise unknown_name("class", name, classes, ConfigError)
        if name in shares:
            raise ConfigError(f"the class balance names '{name}' twice")
        shares[name] = number
    if rest := [name for name in classes if name not in shares]:
        raise ConfigError(f"the class balance has no share of {listed(rest)}; give one of each class")
    total = sum(shares.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise ConfigError(f"the class balance: its shares sum to {total:g}, not to 1")
    return np.array([shares[name] / total for name in classes])


def at_balance(
    posterior: NDArray[np.float64], balance: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Return the posteriors nearest to these, (N, K), with the balance, (K,), as mean, and what is missing.

    q_i(c) ∝ w_c·p_i(c), w by iterative proportional fitting: of all posteriors of that mean, these have the
    least Kullback–Leibler divergence from the ones given. Examples that are certain stay so; if too many are,
    the balance cannot be met, and a difference remains.

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
