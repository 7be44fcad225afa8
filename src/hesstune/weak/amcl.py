"""AMCL: adversarial multi-class learning, the convex combination of weak labelers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hesstune.errors import DataError
from hesstune.weak.votes import Votes

__all__ = ["Combination", "adversarial_risk", "amcl", "brier", "risk_bounds"]


@dataclass(frozen=True)
class Combination:
    """A convex combination of labelers, and its risk under the worst labeling that is feasible.

    Attributes:
        weights: (m,) on the simplex.
        risk: The largest mean Brier loss over feasible labelings, in [0, 1].
        posterior: (N, K) the combination's outputs.
    """

    weights: NDArray[np.float64]
    risk: float
    posterior: NDArray[np.float64]


def outputs(votes: Votes) -> NDArray[np.float64]:
    """Return each labeler's output, (N, m, K): soft where known, uniform where it abstains."""
    given = votes.onehot if votes.soft is None else votes.soft
    total = given.sum(axis=2, keepdims=True)
    return np.where(total > 0, given / np.maximum(total, 1e-300), 1.0 / votes.k)


def brier(predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Brier loss ½‖p − e_y‖² of outputs, (…, K), for each class y, (…, K); in [0, 1]."""
    square = (predicted**2).sum(axis=-1, keepdims=True)
    return np.asarray(0.5 * (square - 2 * predicted + 1))


def risk_bounds(
    clean_outputs: NDArray[np.float64], clean: NDArray[np.int64], unlabeled: int, delta: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bound each labeler's mean Brier loss on the unlabeled examples from a few labeled ones.

    The difference of the two means is at most √((n + N) ln(2m/δ) / (2nN)) for all m labelers at once,
    with probability at least 1 − δ (Hoeffding; Mazzetto et al. 2021, section 4).

    Args:
        clean_outputs: (n, m, K).
        clean: (n,) true labels.
        unlabeled: N.
        delta: The probability of failure.

    Returns:
        Lower and upper bounds, (m,), within [0, 1].
    """
    n, m, _ = clean_outputs.shape
    losses = brier(clean_outputs)[np.arange(n), :, clean]
    slack = np.sqrt((n + unlabeled) * np.log(2 * m / delta) / (2 * n * unlabeled))
    mean = losses.mean(axis=0)
    return np.clip(mean - slack, 0, 1), np.clip(mean + slack, 0, 1)


def adversarial_risk(
    weights: NDArray[np.float64],
    given: NDArray[np.float64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
) -> tuple[float, NDArray[np.float64]]:
    """Maximise the combination's mean Brier loss over feasible labelings, a linear program.

    Args:
        weights: (m,).
        given: Labelers' outputs, (N, m, K).
        lower: (m,) least mean loss of each labeler under a feasible labeling.
        upper: (m,) largest.

    Returns:
        The risk, and the worst labeling z, (N, K), rows on the simplex.

    Raises:
        DataError: If no labeling is feasible.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_matrix, eye, kron

    n, m, k = given.shape
    each = brier(given).transpose(1, 0, 2).reshape(m, n * k) / n
    cost = brier(np.einsum("nmk,m->nk", given, weights)).ravel() / n
    solved = linprog(
        -cost,
        A_ub=csr_matrix(np.concatenate([each, -each])),
        b_ub=np.concatenate([upper, -lower]),
        A_eq=kron(eye(n), np.ones((1, k)), format="csr"),
        b_eq=np.ones(n),
        bounds=(0, 1),
        method="highs",
    )
    if solved.status != 0:
        raise DataError(
            "no labeling of the examples gives every labeler the error rate it has on the clean ones; "
            "give more clean labels, or a smaller delta"
        )
    return float(-solved.fun), solved.x.reshape(n, k)


def amcl(
    votes: Votes,
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    *,
    steps: int = 60,
    tolerance: float = 1e-4,
) -> Combination:
    """Find the weights whose risk under the worst feasible labeling is least.

    min_θ max_z mean ½‖Σ_d θ_d ψ_d(x_n) − z_n‖², θ on the simplex and z a labeling under which every
    labeler's own mean loss lies within its bounds. The inner problem is a linear program, its maximum
    convex in θ; the outer one is solved by cutting planes: each worst labeling adds a convex quadratic
    lower bound, and the minimum of their maximum is the next θ. `risk` and that minimum bracket the
    optimum. Source: Mazzetto et al. 2021, section 3 (their algorithm is a projected subgradient).

    Args:
        votes: The labelers' votes on N examples.
        lower: (m,) lower bounds of the labelers' mean Brier losses.
        upper: (m,) upper bounds.
        steps: At most so many linear programs.
        tolerance: Stop once the bracket is narrower.
    """
    given = outputs(votes)
    m = votes.m
    weights = np.full(m, 1.0 / m)
    best, best_risk = weights, np.inf
    cuts: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    gram = 0.5 * np.einsum("nak,nbk->ab", given, given) / len(given)
    for _ in range(steps):
        risk, worst = adversarial_risk(weights, given, lower, upper)
        if risk < best_risk:
            best, best_risk = weights, risk
        # mean ½‖gθ − e_y‖² under z: θᵀGθ − θᵀc + ½.
        cuts.append((gram, np.einsum("nak,nk->a", given, worst) / len(given)))
        weights, floor = _minimise([c for _, c in cuts], gram, best)
        if best_risk - floor < tolerance:
            break
    return Combination(best, best_risk, np.asarray(np.einsum("nmk,m->nk", given, best)))


def _minimise(
    linear: list[NDArray[np.float64]], gram: NDArray[np.float64], start: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Minimise θᵀGθ + ½ − min_c θᵀc over the simplex; return θ and the value."""
    from scipy.optimize import minimize

    cuts = np.array(linear)
    m = len(start)
    # Variables (θ, t): θᵀGθ + ½ + t with t ≥ −θᵀc for every cut.
    first = np.append(start, float((-cuts @ start).max()))
    found = minimize(
        lambda v: v[:m] @ gram @ v[:m] + 0.5 + v[m],
        first,
        jac=lambda v: np.append(2 * gram @ v[:m], 1.0),
        bounds=[(0, 1)] * m + [(None, None)],
        constraints=[
            {"type": "eq", "fun": lambda v: v[:m].sum() - 1, "jac": lambda v: np.append(np.ones(m), 0.0)},
            {
                "type": "ineq",
                "fun": lambda v: v[m] + cuts @ v[:m],
                "jac": lambda v: np.column_stack([cuts, np.ones(len(cuts))]),
            },
        ],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    theta = np.clip(found.x[:m], 0, None)
    return theta / theta.sum(), float(found.fun)
