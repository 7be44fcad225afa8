"""Weights of the heads in a mean, by the likelihood of held-out labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from hesstune.noise.latent.em import FLOOR

# Nats of likelihood that outweigh a Kullback-Leibler divergence of 1 from the prior. Of 1, 2, 4, 8 and 16 on
# development tasks of heads with 200 to 900 examples.
PRIOR_NATS = 4.0
# Rounds at most; they stop when a round gains less, in nats. A step size below the last one ends them, too.
ROUNDS, TOLERANCE, LEAST_STEP = 25, 1e-3, 1e-6


def stacked_weights(
    logs: Sequence[NDArray[np.float64]],
    likelihood: NDArray[np.float64],
    units: NDArray[np.float64],
    prior: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return weights w, (H,), of heads, whose mean log-probabilities predict given labels best.

    They maximise Σ_i ln Σ_c p_ic P(given_i | c) − PRIOR_NATS·KL(w, prior), with p_i the softmax of
    Σ_h w_h logs_hi, by exponentiated gradients. With few examples or much noise the likelihood hardly
    differs among heads, and the weights stay near the prior. Sources: Wolpert 1992, *Stacked generalization*;
    Kivinen and Warmuth 1997.

    Args:
        logs: Each head's log-probabilities of the true class, (n, K).
        likelihood: P(given | class), (n, K).
        units: (n,) how many labels were given.
        prior: (H,) positive, with the sum 1.
    """
    uniform = FLOOR * np.power(float(likelihood.shape[1]), -units)

    def scored(log_weight: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the objective and its gradient in the logits of the mean, (n, K)."""
        weight = np.exp(log_weight)
        p = softmax(sum(w * own for w, own in zip(weight, logs, strict=True)), axis=1)
        share = (p * likelihood).sum(axis=1)
        total = (1 - FLOOR) * share + uniform
        divergence = float(weight @ (log_weight - np.log(prior)))
        gradient = (1 - FLOOR) * p * (likelihood - share[:, None]) / total[:, None]
        return float(np.log(total).sum()) - PRIOR_NATS * divergence, gradient

    log_weight, step = np.log(prior), 1 / (PRIOR_NATS + 1)
    value, gradient = scored(log_weight)
    for _ in range(ROUNDS):
        slope = np.array([np.vdot(own, gradient) for own in logs])
        slope -= PRIOR_NATS * (log_weight - np.log(prior))
        before = value
        while step > LEAST_STEP:
            tried = log_softmax(log_weight + step * (slope - slope.max()))
            found, moved = scored(tried)
            if found >= value:
                log_weight, value, gradient = tried, found, moved
                break
            step /= 2
        if value - before < TOLERANCE:
            break
        step *= 1.5
    return np.asarray(np.exp(log_weight))
