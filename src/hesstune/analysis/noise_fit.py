"""Whether a network has learnt wrong labels, and whether the labels contradict a given noise matrix."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hesstune.bounds.pac_bayes import confidence_interval
from hesstune.noise.matrix import NoiseMatrix
from hesstune.runs.records import Agreement, MatrixCheck, NoiseFit

__all__ = ["FitVerdict", "check_matrix", "compare_agreement", "judge_fit"]

# Error probabilities of the intervals: of an agreement, and of a test of the given matrix.
DELTA, TEST_DELTA = 0.05, 0.01
# Fewer labels that are suspected to be wrong show nothing about the network.
MIN_SUSPECTED = 10
# Shares of the wrong labels: from MOST on "most" are learnt; up to FEW "not" at all.
MOST, FEW = 0.5, 0.2

Kind = Literal["most", "some", "not", "unknown"]


class FitVerdict(NamedTuple):
    """Whether a network has learnt wrong labels.

    Attributes:
        kind: `most` or `some` of the wrong labels are learnt, they are `not`, or that is `unknown`.
        low: Lower end of the 95 % interval of the share of wrong labels that the network agrees with.
        high: Its upper end.
        reason: Why it is unknown; empty otherwise.
    """

    kind: Kind
    low: float
    high: float
    reason: str = ""


def compare_agreement(
    predicted: NDArray[np.int64],
    labels: NDArray[np.int64],
    posterior: NDArray[np.float64] | None,
    true: NDArray[np.int64] | None = None,
) -> NoiseFit | None:
    """Count how often a network agrees with wrong labels, and how often with right ones.

    Args:
        predicted: The network's classes of its training examples, (N,).
        labels: The labels that it was trained on, (N,).
        posterior: P(true class | features, given label), (N, K), from probes that did not see the label.
            A label is suspected to be wrong if its own probability is below 1/2.
        true: The true labels, (N,), if all are known; wrong labels are then known, and not suspected.

    Returns:
        The counts; None if neither posterior nor true labels are given.
    """
    if true is not None:
        wrong, expected = labels != true, 0.0
    elif posterior is not None:
        own = posterior[np.arange(len(labels)), labels]
        wrong = own < 0.5
        expected = float(own[wrong].mean()) if wrong.any() else 0.0
    else:
        return None
    agrees = predicted == labels
    return NoiseFit(
        wrong=Agreement(agreed=int(agrees[wrong].sum()), examples=int(wrong.sum())),
        right=Agreement(agreed=int(agrees[~wrong].sum()), examples=int((~wrong).sum())),
        expected_right=expected,
        known=true is not None,
    )


def judge_fit(fit: NoiseFit | None) -> FitVerdict:
    """Decide from counts of agreement whether a network has learnt wrong labels.

    With A the agreement on suspected labels and e the share of them that are right by their posterior, the
    network agrees with a share (A − e)/(1 − e) of the wrong labels, if it agrees with all right ones. Wrong
    labels are learnt if the lower end of that share's interval is above the network's error rate on the other
    labels: errors alone give the wrong label at most that often.
    """
    if fit is None:
        return FitVerdict("unknown", 0.0, 1.0, "no labels were judged independently of the network")
    wrong, right = fit.wrong, fit.right
    low, high = (
        min(1.0, max(0.0, (end - fit.expected_right) / (1 - fit.expected_right)))
        for end in confidence_interval(wrong.agreed, wrong.examples, DELTA)
    )
    if wrong.examples < MIN_SUSPECTED:
        kind = "known" if fit.known else "suspected"
        return FitVerdict(
            "unknown",
            low,
            high,
            f"only {wrong.examples} of {wrong.examples + right.examples} labels are {kind} to be wrong",
        )
    errors = confidence_interval(right.examples - right.agreed, right.examples, DELTA)[1]
    if low > errors:
        return FitVerdict("most" if low > MOST else "some", low, high)
    if high <= FEW:
        return FitVerdict("not", low, high)
    return FitVerdict(
        "unknown",
        low,
        high,
        f"it agrees with {low:.1%} to {high:.1%} of the wrong labels (95 % interval) and may be wrong on up "
        f"to {errors:.1%} of the right ones, so its errors may explain the agreement",
    )


def check_matrix(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], noise_matrix: NoiseMatrix
) -> MatrixCheck:
    """Test a noise matrix F on the half of the examples whose out-of-sample prediction is surest.

    If prediction c is right, the given label differs from it with probability 1 − F[c, c]. Whatever the true
    class, it differs with probability 1 − max_i F[i, c] at least.

    Args:
        probabilities: P(given label | features), (N, K), of probes that did not see the label.
        labels: The given labels, (N,).
        noise_matrix: F.
    """
    surest = np.argsort(-probabilities.max(axis=1), kind="stable")[: max(1, len(labels) // 2)]
    predicted = probabilities[surest].argmax(axis=1)
    differing = int((predicted != labels[surest]).sum())
    low, high = confidence_interval(differing, len(surest), TEST_DELTA)
    rows = noise_matrix.array
    return MatrixCheck(
        differing=differing,
        examples=len(surest),
        low=low,
        high=high,
        implied=float((1 - rows.diagonal()[predicted]).mean()),
        least=float((1 - rows.max(axis=0)[predicted]).mean()),
    )
