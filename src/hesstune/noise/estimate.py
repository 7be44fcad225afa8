"""Estimate the noise matrix without true labels, or with a few."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import class_count, integer_labels, one_of
from hesstune.errors import ConfigError, DataError, NoiseMatrixError
from hesstune.noise.confidence import NoiseConfidenceSet
from hesstune.noise.latent.channel import Observed, prior_strength
from hesstune.noise.latent.copies import copies_note, merge_copies
from hesstune.noise.latent.em import DRAWS, FOLDS, bootstrap, latent_truth
from hesstune.noise.latent.head import MAX_EXAMPLES, robust_head
from hesstune.noise.matrix import NoiseMatrix, rate_matrix
from hesstune.selection import first_within_errors

# `holdout` needs human-checked labels and `labelmodel` votes.
ESTIMATORS = ("auto", "em", "confident", "holdout", "labelmodel")


def parse_request(text: str) -> str:
    """Return the estimator of `estimate:METHOD`.

    Raises:
        ConfigError: If the estimator is unknown.

    Example:
        >>> parse_request("estimate:em")
        'em'
    """
    kind, _, method = text.partition(":")
    if kind != "estimate" or not method:
        raise ConfigError(f"'{text}' must be written estimate:METHOD, such as estimate:auto")
    return one_of("estimator", method, ESTIMATORS)


@dataclass(frozen=True)
class Estimate:
    """An estimated noise matrix.

    Attributes:
        matrix: The estimate, after smoothing.
        method: The estimator's name.
        n: Number of examples it was made from.
        stderr: (K, K) standard errors of the entries, or None if the estimator has none. They cover the
            sample's size, not a wrong model.
        smoothing: λ of ((1 − λ)F + λI), 0 if the raw estimate was kept.
        temperature: The temperature that calibrated the probabilities, or None.
        log_likelihood: Mean log-likelihood of held-out noisy labels under the matrix, or None.
        notes: Remarks for the user, in sentences.
        details: Numbers of the estimator's own, JSON-ready.
    """

    matrix: NoiseMatrix
    method: str
    n: int
    stderr: NDArray[np.float64] | None = None
    smoothing: float = 0.0
    temperature: float | None = None
    log_likelihood: float | None = None
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Mark the matrix as an estimate; of votes, as a mean of noise that depends on the example."""
        if self.matrix.origin in ("stated", "injected"):
            origin = "instance_dependent" if self.method == "labelmodel" else "estimated"
            object.__setattr__(self, "matrix", self.matrix.known_as(origin))

    @property
    def condition(self) -> float:
        """The condition number of the matrix."""
        return self.matrix.condition

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready record, which `NoiseMatrix.load` also reads."""
        return {
            **self.matrix.to_dict(),
            "method": self.method,
            "examples": self.n,
            "stderr": None if self.stderr is None else np.round(self.stderr, 6).tolist(),
            "smoothing": self.smoothing,
            "temperature": self.temperature,
            "log_likelihood": self.log_likelihood,
            "notes": list(self.notes),
            **({"details": self.details} if self.details else {}),
        }


def row_stderr(matrix: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return multinomial standard errors √(F[i, j](1 − F[i, j]) / n_i), (K, K); NaN-free.

    Args:
        matrix: F, (K, K).
        counts: (K,) examples behind each row; a row without any has standard error 0.5.
    """
    spread = np.sqrt(matrix * (1 - matrix) / np.maximum(counts, 1e-12)[:, None])
    return np.where(counts[:, None] < 1, 0.5, np.minimum(spread, 0.5))


PROBABILITY_TOLERANCE = 1e-3


def check_probabilities(probs: ArrayLike, n: int | None = None) -> NDArray[np.float64]:
    """Return (N, K) probabilities as a float64 copy whose rows sum to 1.

    Raises:
        DataError: If they are not finite, not in [0, 1], or a row's sum is off by more than 1e-3.
    """
    array = np.array(probs, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] < 2 or not len(array):
        raise DataError(f"probabilities must be (N, K) with K of at least 2; got shape {array.shape}")
    if n is not None and len(array) != n:
        raise DataError(f"{len(array)} rows of probabilities do not match {n} labels")
    if not np.isfinite(array).all() or (array < 0).any():
        raise DataError("probabilities must be finite and not negative")
    sums = array.sum(axis=1, keepdims=True)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst, 0] - 1) > PROBABILITY_TOLERANCE:
        raise DataError(f"each row of probabilities must sum to 1; row {worst} sums to {sums[worst, 0]:.4g}")
    return np.asarray(array / sums, dtype=np.float64)


def confident(probs: NDArray[np.float64], labels: NDArray[np.int64]) -> NoiseMatrix:
    """Estimate F from the confident joint of given and true labels.

    An example counts for (ỹ, i) if g(x)[i] reaches the mean of g[i] over the examples labelled i; of several
    such classes the most probable one counts. Each row of the joint is scaled to the number of examples with
    that label. Source: Northcutt, Jiang, Chuang 2021, equations 1 to 3.

    Args:
        probs: g(x)[j] = P(given label = j | x), (N, K), out of sample.
        labels: (N,) given labels.

    Raises:
        NoiseMatrixError: If a class is never given as a label.

    Example:
        >>> g = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.9, 0.1]])
        >>> confident(g, np.array([0, 0, 1, 1])).array.round(2).tolist()
        [[0.67, 0.33], [0.0, 1.0]]
    """
    g, k = probs / probs.sum(axis=1, keepdims=True), probs.shape[1]
    counts = np.bincount(labels, minlength=k)
    if absent := np.flatnonzero(counts == 0).tolist():
        raise NoiseMatrixError(f"no example is labelled {absent[0]}; confident needs every class")
    threshold = np.array([g[labels == i, i].mean() for i in range(k)])
    above = g >= threshold - 1e-6
    joint = np.zeros((k, k))  # given label, true class
    rows = above.any(axis=1)
    np.add.at(joint, (labels[rows], np.where(above, g, -1.0).argmax(axis=1)[rows]), 1)
    np.fill_diagonal(joint, np.maximum(np.diagonal(joint), 1))
    joint *= (counts / joint.sum(axis=1))[:, None]
    return NoiseMatrix((joint / joint.sum(axis=0)).T)


def from_posterior(posterior: ArrayLike, labels: ArrayLike, method: str = "labelmodel") -> Estimate:
    """Estimate F[i, j] = Σ_n P(y_n = i | votes)[ỹ_n = j] / Σ_n P(y_n = i | votes).

    Exact in expectation if the posterior is calibrated. The standard errors are those of a multinomial with
    Σ_n P(y_n = i | votes) draws and do not cover a wrong label model.

    Args:
        posterior: P(true = i | votes), (N, K).
        labels: The labels trained on, (N,), or soft ones, (N, K).
        method: The name recorded.

    Example:
        >>> from_posterior([[0.9, 0.1], [0.1, 0.9]], [0, 1]).matrix.array.tolist()
        [[0.9, 0.1], [0.1, 0.9]]
    """
    q = check_probabilities(posterior, len(np.asarray(labels)))
    k = q.shape[1]
    soft = np.asarray(labels).ndim == 2
    given = check_probabilities(labels, len(q)) if soft else np.eye(k)[integer_labels(labels, k, "labels")]
    joint: NDArray[np.float64] = q.T @ given
    mass = joint.sum(axis=1)
    # Nothing is known of a class without mass: its labels are assumed correct.
    matrix = np.where(mass[:, None] > 1e-9, joint / np.maximum(mass, 1e-300)[:, None], np.eye(k))
    notes = [f"no example has probability for class {c}: its row is the identity's" for c in range(k)]
    return Estimate(
        NoiseMatrix(matrix),
        method,
        len(given),
        stderr=row_stderr(matrix, mass),
        notes=tuple(n for n, m in zip(notes, mass, strict=True) if m <= 1e-9),
    )


RIDGES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
# Beyond this the consistent loss warns of its own noise.
MOST_CONDITION = 100.0
# A share of uniform in every prediction, so that a zero is costly but not infinitely so.
FLOOR = 1e-3


def simplex_projection(points: ArrayLike) -> NDArray[np.float64]:
    """Return the Euclidean projection of each row, (N, K), onto the probability simplex.

    Source: Held, Wolfe, Crowder 1974; Duchi et al. 2008, figure 1.

    Example:
        >>> simplex_projection([[1.2, -0.2], [0.5, 0.5]]).tolist()
        [[1.0, 0.0], [0.5, 0.5]]
    """
    rows = np.atleast_2d(np.asarray(points, dtype=np.float64))
    ordered = -np.sort(-rows, axis=1)
    excess = (np.cumsum(ordered, axis=1) - 1) / np.arange(1, rows.shape[1] + 1)
    last = (ordered > excess).sum(axis=1) - 1
    result: NDArray[np.float64] = np.maximum(rows - excess[np.arange(len(rows)), last][:, None], 0)
    return result


def calibrate(probs: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """Return probabilities g^(1/τ), renormalised, and the temperature τ that fits the noisy labels best.

    Source: Guo et al. 2017, section 4.2, with noisy labels in place of clean ones.

    Args:
        probs: g, (N, K), out of sample.
        labels: Noisy labels, (N,).
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import softmax

    logs, rows = np.log(np.clip(probs, 1e-12, None)), np.arange(len(labels))

    def tempered(log_temperature: float) -> NDArray[np.float64]:
        return np.asarray(softmax(logs / np.exp(log_temperature), axis=1))

    def loss(log_temperature: float) -> float:
        return float(-np.log(tempered(log_temperature)[rows, labels] + 1e-300).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.1), np.log(10.0)), method="bounded")
    return tempered(float(found.x)), float(np.exp(found.x))


def log_likelihoods(
    noise_matrix: NoiseMatrix, probs: NDArray[np.float64], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the forward-corrected log-likelihood of each held-out noisy label, (N,).

    The clean posterior is the projection of g F⁻¹ onto the simplex, and the noisy one that posterior
    times F. If the rows of F do not enclose the probabilities, the projection lowers the likelihood.

    Raises:
        NoiseMatrixError: If F is singular.
    """
    g = probs / probs.sum(axis=1, keepdims=True)
    noisy = simplex_projection(g @ noise_matrix.inverse) @ noise_matrix.array
    found: NDArray[np.float64] = np.log(
        (1 - FLOOR) * noisy[np.arange(len(labels)), labels] + FLOOR / noise_matrix.k
    )
    return found


def well_conditioned(
    noise_matrix: NoiseMatrix,
    probs: NDArray[np.float64] | None = None,
    labels: NDArray[np.int64] | None = None,
) -> tuple[NoiseMatrix, float]:
    """Return ((1 − λ)F + λI) and λ.

    λ is the smallest of RIDGES with a condition number of at most MOST_CONDITION and, with probabilities, a
    likelihood of the given labels within one standard error of the best.
    """
    tried = [(noise_matrix.regularized(ridge), ridge) for ridge in RIDGES]
    usable = [one for one in tried if one[0].condition <= MOST_CONDITION] or tried[-1:]
    if probs is None or labels is None or len(usable) == 1:
        return usable[0]
    return usable[first_within_errors([log_likelihoods(matrix, probs, labels) for matrix, _ in usable])]


def pair_counts(clean: ArrayLike, noisy: ArrayLike, k: int) -> NDArray[np.float64]:
    """Count the pairs (clean i, noisy j), (K, K).

    Raises:
        DataError: If the labels differ in number or lie outside the classes.
    """
    k = class_count(k)
    true = integer_labels(clean, k, "clean labels")
    given = integer_labels(noisy, k, "noisy labels")
    if len(true) != len(given) or not len(true):
        raise DataError(f"{len(true)} clean labels do not pair with {len(given)} noisy ones")
    counts = np.zeros((k, k))
    np.add.at(counts, (true, given), 1)
    return counts


def holdout(
    clean: ArrayLike,
    noisy: ArrayLike,
    k: int,
    *,
    prior: NoiseMatrix | None = None,
) -> Estimate:
    """Estimate F from examples that have both a clean and a noisy label.

    Row i has a Dirichlet posterior with parameters s·prior_i + counts_i, with s of `prior_strength`. The
    estimate is its mean and `stderr` its standard deviation. The confidence set in `details` uses the counts
    alone.

    Args:
        clean: True labels, (N,).
        noisy: Noisy labels of the same examples, (N,).
        k: Number of classes.
        prior: A prior estimate, such as one without human-checked labels; without it,
            the prior is symmetric with the noise rate of the counts, pooled over the classes.

    Example:
        >>> holdout([0, 0, 0, 1, 1], [0, 0, 1, 1, 1], 2).matrix.k
        2
    """
    counts = pair_counts(clean, noisy, k)
    if prior is None:
        wrong = (counts.sum() - np.trace(counts) + 1) / (counts.sum() + k)
        prior = NoiseMatrix(rate_matrix("symmetric", k, float(wrong)))
    base = prior.sized(k)
    weight = prior_strength(counts, base.array)
    alpha = weight * np.clip(base.array, 1e-3, None) + counts
    total = alpha.sum(axis=1, keepdims=True)
    mean = alpha / total
    box = NoiseConfidenceSet(counts, delta=0.05)
    absent = np.flatnonzero(counts.sum(axis=1) == 0)
    notes = [f"no clean label of class {c}: its row is the prior's" for c in absent]
    return Estimate(
        NoiseMatrix(mean),
        "holdout",
        int(counts.sum()),
        stderr=np.sqrt(mean * (1 - mean) / (total + 1)),
        notes=tuple(notes),
        details={
            "prior_strength": weight,
            "delta": box.delta,
            "lower": np.round(box.lower, 6).tolist(),
            "upper": np.round(box.upper, 6).tolist(),
            "assumption": "clean-labelled examples drawn at random, independently of their noise",
        },
    )


def estimate_by_em(
    features: ArrayLike, labels: NDArray[np.int64], k: int, *, errors: bool = True, seed: int = 0
) -> Estimate:
    """Estimate F by EM over true classes, cross-fitted probes and F; shape and penalty by hold-out.

    If labels are best predicted as they are, F is the symmetric matrix through which a plain probe
    predicts them best: near the identity without noise. Copies of an example count as one.

    Args:
        features: (N, D).
        labels: Noisy labels, (N,).
        k: Number of classes.
        errors: Whether standard errors are those of a bootstrap, beside a test whether noise depends on the
            class alone. Otherwise they are multinomial, of the rows' expected counts.
        seed: Of folds and draws.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = np.arange(600) % 2
        >>> x = np.eye(2)[y] + 0.2 * rng.normal(size=(600, 2))
        >>> noisy = np.where((y == 0) & (rng.random(600) < 0.4), 1, y)
        >>> estimate_by_em(x, noisy, 2, errors=False).matrix.array.round(1).tolist()
        [[0.6, 0.4], [0.0, 1.0]]
    """
    merged = merge_copies(features, Observed.of(labels, k))
    head = robust_head(merged.features, merged.labels, find_errors=True, seed=seed)
    truth, chosen, x = head.truth, head.choice.candidate, head.reduced
    matrix = truth.channel.matrix
    found = Estimate(
        NoiseMatrix(matrix, "estimated"),
        "em",
        len(merged.labels),
        stderr=row_stderr(matrix, truth.posterior.sum(axis=0)),
        temperature=truth.temperature,
        notes=(
            f"em: {chosen.name}, of {head.choice.tried} candidates",
            *copies_note(merged.row, labels),
        ),
        details=head.choice.details(),
    )
    if not errors:
        return found
    # One label of each group: the bootstrap draws labels, not means of labels.
    given = labels[np.unique(merged.row, return_index=True)[1]]
    if len(given) > MAX_EXAMPLES:  # refits of a part are enough; errors shrink with the root of the number
        rows = np.sort(np.random.default_rng([seed, 0xB0]).permutation(len(given))[:MAX_EXAMPLES])
        x, given = x[rows], given[rows]
        how: dict[str, Any] = {"strength": chosen.strength, "shape": chosen.shape, "folds": FOLDS}
        truth = latent_truth(x, Observed.of(given, k), **how, seed=seed)
    made = bootstrap(x, given, truth, chosen.strength, chosen.shape, seed)
    shrink = float(np.sqrt(len(given) / len(merged.labels)))
    median, largest = (shrink * one for one in made.row_tv)
    notes = [f"by bootstrap its rows are off by {median:.3f} in total variation on average"]
    if not made.by_class_alone:
        notes.append(
            f"the noise does not depend on the class alone (p = {made.p_value:.2g}): F is a mean over "
            "examples, and its errors are larger than the bootstrap's"
        )
    details = {
        **found.details,
        "bootstrap": {"draws": DRAWS, "row_tv": {"median": median, "largest": largest}},
        "by_class_alone": {"statistic": made.statistic, "p_value": made.p_value},
    }
    return replace(found, stderr=shrink * made.stderr, notes=(*found.notes, *notes), details=details)


# A label model that estimates a noise rate larger by this than the features do has lost the classes.
COLLAPSED = 0.15


def estimate_noise(
    probs: ArrayLike,
    labels: ArrayLike,
    method: str = "auto",
    *,
    features: ArrayLike | None = None,
    posterior: ArrayLike | None = None,
    clean: tuple[ArrayLike, ArrayLike] | None = None,
    seed: int = 0,
    errors: bool = True,
) -> Estimate:
    """Estimate the noise matrix from given labels.

    The result is smoothed to ((1 − λ)F + λI), with the least λ that its condition number allows, and for
    `confident` the likelihood of the given labels.

    Args:
        probs: g(x)[j] = P(given label = j | x), (N, K), out of sample.
        labels: (N,) given labels.
        method: One of ESTIMATORS. `em` uses features, `confident` the probabilities, `labelmodel` votes and
            `holdout` human-checked labels. `auto` is `holdout` if there are human-checked labels; with
            features `labelmodel` if there are votes and features see about as much noise, else `em`; and
            otherwise `confident`.
        features: (N, D), for `em`.
        posterior: P(true | votes), (N, K), of a label model, for `labelmodel`.
        clean: (rows, true labels) of human-checked examples, for `holdout`.
        seed: Seed of the folds and draws of `em`.
        errors: Whether `em` adds bootstrap errors and a test, which take as long again.

    Raises:
        ConfigError: If the method is unknown, or lacks what it needs.
        DataError: If probabilities and labels do not fit together.
        NoiseMatrixError: If the estimate is singular even after smoothing.

    Example:
        >>> g = np.array([[0.8, 0.2], [0.3, 0.7]] * 50)
        >>> estimate_noise(g, np.arange(100) % 2, "confident").matrix.k
        2
    """
    one_of("estimator", method, ESTIMATORS)
    g = check_probabilities(probs, len(np.asarray(labels)))
    k = g.shape[1]
    given = integer_labels(labels, k, "noisy labels")
    g, temperature = calibrate(g, given)
    estimators: dict[str, Callable[..., Estimate]] = {
        "confident": lambda: Estimate(confident(g, given), "confident", len(given))
    }
    if features is not None:
        estimators["em"] = partial(estimate_by_em, features, given, k, errors=errors, seed=seed)
    if posterior is not None:
        estimators["labelmodel"] = lambda: from_posterior(posterior, given)
    if clean is not None:
        rows, true = np.asarray(clean[0], dtype=np.int64), clean[1]
        prior = None if posterior is None else from_posterior(posterior, given).matrix
        estimators["holdout"] = lambda: holdout(true, given[rows], k, prior=prior)
    if method != "auto" and method not in estimators:
        needs = {"em": "features", "labelmodel": "votes", "holdout": "human-checked labels"}[method]
        raise ConfigError(f"the estimator {method} needs {needs}; give them, or choose confident")
    found = _best_informed(estimators) if method == "auto" else estimators[method]()
    matrix, ridge = well_conditioned(found.matrix, *((g, given) if found.method == "confident" else ()))
    if matrix.condition == float("inf"):
        raise NoiseMatrixError(
            f"the estimate by {found.method} is singular even after smoothing; choose another estimator"
        )
    return replace(
        found,
        matrix=matrix,
        smoothing=ridge,
        temperature=temperature,
        log_likelihood=float(log_likelihoods(matrix, g, given).mean()),
        stderr=None if found.stderr is None else (1 - ridge) * found.stderr,
    )


def _best_informed(estimators: dict[str, Callable[..., Estimate]]) -> Estimate:
    """Return the estimate of `auto`, with the reason as its first note."""
    if "holdout" in estimators:
        found, why = estimators["holdout"](), "since there are human-checked labels"
    elif "em" not in estimators:
        found, why = estimators["confident"](), "since there are probabilities alone"
    elif "labelmodel" not in estimators:
        found, why = estimators["em"](), "which chooses by features between correct labels and noise by class"
    else:
        by_votes = estimators["labelmodel"]()
        rate, by_features = by_votes.matrix.rate, estimators["em"](errors=False).matrix.rate
        found, why = by_votes, "since there are votes"
        if rate > by_features + COLLAPSED:
            why = f"since votes say a rate of {rate:.2f} and features {by_features:.2f}"
            found = estimators["em"]()
    return replace(found, notes=(f"auto: {found.method}, {why}", *found.notes))
