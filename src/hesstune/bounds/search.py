"""Choosing posterior, prior and loss by pilot draws that the certificate does not use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hesstune.bounds.monte_carlo import Draws, HeadDraws, WeightDraws
from hesstune.bounds.noisy import CleanLoss
from hesstune.bounds.pac_bayes import complexity, kl_inverse
from hesstune.bounds.prior import Posterior, PriorFamily, Sigma, Travel
from hesstune.errors import ConfigError

__all__ = ["Choice", "Problem", "choose"]

PILOT_BLOCKS = 16
# A KL per example outside of this range leaves a bound near 1, or noise in which the weights drown.
_USEFUL = (2e-3, 2.0)


@dataclass(frozen=True)
class Problem:
    """The bound's fixed numbers: what a choice of posterior, prior and loss is judged by.

    Attributes:
        travel: The trained weights' distances from the prior's centre.
        family: The priors.
        losses: The losses.
        n: Number of examples.
        delta: The share of δ for the PAC-Bayes bound.
        delta_draws: The share for the Monte-Carlo step.
    """

    travel: Travel
    family: PriorFamily
    losses: list[CleanLoss]
    n: int
    delta: float
    delta_draws: float

    @property
    def size(self) -> int:
        """The number of pairs of prior and loss that share δ."""
        return self.family.size * len(self.losses)

    def bound(self, mean: float, kl: float, loss: CleanLoss) -> float:
        """Return the risk bound, given a bound on the scaled loss's empirical expectation."""
        return loss.risk(float(kl_inverse(mean, complexity(kl, self.n, self.delta, self.size))))

    def certified(self, choice: Choice, draws: Draws) -> tuple[float, float]:
        """Return the certified risk, and the bound on the empirical term in units of risk."""
        upper = draws.upper(choice.loss, self.delta_draws)
        kl = float(self.family.kl(choice.posterior)[choice.member])
        return self.bound(upper, kl, choice.loss), max(0.0, choice.loss.risk(upper))


@dataclass(frozen=True)
class Choice:
    """A posterior, a member of the prior family, a loss, and the risk the pilot made likely."""

    posterior: Posterior
    member: int
    loss: CleanLoss
    risk: float


def choose(
    problem: Problem,
    estimator: WeightDraws | HeadDraws,
    given: Sigma | None,
    factors: Sequence[float],
    generator: torch.Generator,
) -> Choice:
    """Choose posterior, prior and loss by pilot draws that the certificate does not use."""
    if given is not None:
        return _judge(problem, estimator, Posterior(problem.travel, given), generator)
    best: Choice | None = None
    for factor in factors:
        for group in range(problem.family.sets):
            best = _search(problem, estimator, factor, group, generator, best)
    if best is None:
        raise ConfigError(
            "every prior scale gives a KL too large or too small for this distance and n; widen prior_scales"
        )
    return best


def _search(
    problem: Problem,
    estimator: WeightDraws | HeadDraws,
    factor: float,
    group: int,
    generator: torch.Generator,
    best: Choice | None,
) -> Choice | None:
    """Search one set of ratios over the global scales: every fourth useful one, then between."""
    count = len(problem.family.scales)
    kls = {}
    for index in range(group * count, (group + 1) * count):
        posterior = Posterior(problem.travel, problem.family.tied(index, factor))
        kls[index] = float(problem.family.kl(posterior).min()) / problem.n
    useful = [i for i, kl in kls.items() if _USEFUL[0] <= kl <= _USEFUL[1]]
    useful = useful or [min(kls, key=lambda i: abs(np.log(max(kls[i], 1e-300) / 0.1)))]
    local: tuple[int, Choice] | None = None
    tried: set[int] = set()
    for stride in (4, 2, 1):
        middle = None if local is None else local[0]
        wanted = useful[::stride] if middle is None else [middle - stride, middle + stride]
        for index in wanted:
            if index in tried or index not in useful:
                continue
            tried.add(index)
            posterior = Posterior(problem.travel, problem.family.tied(index, factor))
            choice = _judge(problem, estimator, posterior, generator)
            if local is None or choice.risk < local[1].risk:
                local = index, choice
    if local is None or (best is not None and best.risk <= local[1].risk):
        return best
    return local[1]


def _judge(
    problem: Problem, estimator: WeightDraws | HeadDraws, posterior: Posterior, generator: torch.Generator
) -> Choice:
    kls = problem.family.kl(posterior)
    member = int(kls.argmin())
    pilot = estimator.pilot(posterior.sigma, PILOT_BLOCKS, generator)
    risks = [problem.bound(pilot.mean(loss), float(kls[member]), loss) for loss in problem.losses]
    index = int(np.argmin(risks))
    return Choice(posterior, member, problem.losses[index], risks[index])
