"""Choose a Gaussian posterior by pilot draws, or train one by the gradient of its bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from hesstune.bounds.monte_carlo import Draws, HeadDraws, WeightDraws
from hesstune.bounds.noisy import CleanLoss
from hesstune.bounds.pac_bayes import complexity, kl_inverse
from hesstune.bounds.prior import Displacement, Posterior, PriorFamily, Sigma
from hesstune.errors import ConfigError

PILOT_BLOCKS = 16
# A KL per example outside of this range gives a bound near 1, or noise much larger than the weights.
_USEFUL = (2e-3, 2.0)


@dataclass(frozen=True)
class Problem:
    """The fixed numbers of a PAC-Bayes bound, by which posterior, prior and loss are chosen.

    Attributes:
        displacement: The trained weights' distances from the prior's centre.
        family: The priors.
        losses: The losses.
        n: Number of examples.
        delta: The share of δ for the PAC-Bayes bound.
        delta_draws: The share for the Monte-Carlo step.
    """

    displacement: Displacement
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
    """A posterior, a member of the prior family, a loss, and the risk that the pilot predicts."""

    posterior: Posterior
    member: int
    loss: CleanLoss
    risk: float


def choose(
    problem: Problem,
    estimator: WeightDraws | HeadDraws,
    sigma: Sigma | None,
    generator: torch.Generator,
) -> Choice:
    """Choose prior, loss and, unless it is given, posterior by pilot draws, which do not certify."""
    if sigma is not None:
        return _predict_risk(problem, estimator, Posterior(problem.displacement, sigma), generator)
    best: Choice | None = None
    for group in range(problem.family.sets):
        best = _search(problem, estimator, group, generator, best)
    if best is None:
        raise ConfigError(
            "every prior scale gives a KL too large or too small for this distance and n; widen prior_scales"
        )
    return best


def _search(
    problem: Problem,
    estimator: WeightDraws | HeadDraws,
    group: int,
    generator: torch.Generator,
    best: Choice | None,
) -> Choice | None:
    """Search the global scales of one set of ratios: every fourth useful one, then between."""
    count = len(problem.family.scales)
    kls = {}
    for index in range(group * count, (group + 1) * count):
        posterior = Posterior(problem.displacement, problem.family.tied(index))
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
            posterior = Posterior(problem.displacement, problem.family.tied(index))
            choice = _predict_risk(problem, estimator, posterior, generator)
            if local is None or choice.risk < local[1].risk:
                local = index, choice
    if local is None or (best is not None and best.risk <= local[1].risk):
        return best
    return local[1]


def _predict_risk(
    problem: Problem, estimator: WeightDraws | HeadDraws, posterior: Posterior, generator: torch.Generator
) -> Choice:
    kls = problem.family.kl(posterior)
    member = int(kls.argmin())
    pilot = estimator.pilot(posterior.sigma, PILOT_BLOCKS, generator)
    risks = [problem.bound(pilot.mean(loss), float(kls[member]), loss) for loss in problem.losses]
    index = int(np.argmin(risks))
    return Choice(posterior, member, problem.losses[index], risks[index])


_MOST = 0.999
MOMENTUM = 0.9
STEPS = 400
RATE = 10.0
SCALE_STEP = 0.05
# Initial and largest standard deviation of the logits. Larger noise makes the softmax closer to the 0-1 loss
# and leaves fewer examples with a gradient.
FIRST_NOISE, MOST_NOISE = 4.0, 10.0
SAMPLES = 4


@dataclass(frozen=True)
class BoundGradient:
    """The PAC-Bayes-kl bound as a function of empirical loss and KL.

    Attributes:
        n: Number of examples.
        delta: Probability of failure.
        family: J, the priors and losses that share it.
    """

    n: int
    delta: float
    family: int

    def value(self, loss: float, kl: float) -> float:
        """Return kl⁻¹(loss, (KL + ln(2√n·J/δ))/n)."""
        return float(kl_inverse(min(max(loss, 0.0), 1.0), complexity(kl, self.n, self.delta, self.family)))

    def kl_weight(self, loss: float, kl: float) -> float:
        """Return λ with ∇bound ∝ ∇loss + λ·∇KL.

        By the implicit function theorem at p = kl⁻¹(q, c), ∂p/∂q : ∂p/∂c = ln[p(1 − q)/(q(1 − p))] : 1,
        and ∂c/∂KL = 1/n.

        Example:
            >>> 0.3 < BoundGradient(1000, 0.05, 1).kl_weight(0.1, 100.0) * 1000 < 1.5
            True
        """
        q = min(max(loss, 1e-4), _MOST)
        p = _inverse(q, complexity(kl, self.n, self.delta, self.family))
        return 1.0 / (self.n * math.log(p * (1 - q) / (q * (1 - p))))


def _inverse(q: float, c: float) -> float:
    """Return kl⁻¹(q, c) to six digits, for a gradient; a bound needs `kl_inverse`."""
    low, high = q, 1.0
    for _ in range(24):
        p = (low + high) / 2
        above = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)) > c
        low, high = (low, p) if above else (p, high)
    return min(max(high, q + 1e-6), 1 - 1e-6)


def soft_loss(logits: torch.Tensor, targets: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return the mean of Σ_h L[ỹ, h]·softmax(f)_h: the loss matrix's mean under the soft predictions.

    If the noise of the logits is large compared with 1, it approximates the mean of L[ỹ, argmax f].

    Args:
        logits: (…, N, K).
        targets: (N,) labels, noisy if L is for noisy labels.
        matrix: (K, K), L scaled to [0, 1], indexed [label, prediction].
    """
    return (torch.softmax(logits, dim=-1) * matrix.to(logits)[targets]).sum(dim=-1).mean()


def unit_matrix(loss: CleanLoss) -> torch.Tensor:
    """Return a loss matrix scaled to [0, 1] as a tensor."""
    return torch.from_numpy((loss.matrix - loss.low) / (loss.high - loss.low))


@dataclass(frozen=True)
class HeadPosterior:
    """A linear head that minimises its certificate.

    Attributes:
        weight: (K, D) posterior mean minus the prior's.
        bias: (K,) posterior mean minus the prior's.
        log_scale: ln of the global scale of prior and posterior.
        most: The largest it may be, for a useful gradient.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    log_scale: float
    most: float


def learn_head(
    features: torch.Tensor,
    targets: torch.Tensor,
    matrix: torch.Tensor,
    bound: BoundGradient,
    base: tuple[float, float],
    generator: torch.Generator,
    start: torch.Tensor | None = None,
    steps: int = STEPS,
) -> HeadPosterior:
    """Minimise the certificate of a linear head on fixed features; prior and posterior share one scale.

    In u = W/s the prior is N(0, I) and KL = ‖u‖²/2, so plain gradient descent with momentum is well
    conditioned. The logits of an example are Gaussian with mean W x + b and variance
    s²·(base_w²·‖x‖² + base_b²), drawn directly.

    Args:
        features: (n, D).
        targets: (n,) labels.
        matrix: (K, K) loss matrix in [0, 1], indexed [label, prediction].
        bound: The bound that is minimised.
        base: The prior's natural scales of weight and bias; 0 for a part that is fixed.
        generator: For the noise.
        start: (n, K) logits of the head at the prior's centre; zero if None.
        steps: Full-batch steps.
    """
    k, spread = len(matrix), (base[0] ** 2 * features.square().sum(dim=1) + base[1] ** 2).sqrt()
    u = torch.zeros(k, features.shape[1] + 1, device=features.device)
    moving = torch.zeros_like(u)
    log_scale = math.log(FIRST_NOISE / float(spread.mean()))
    most = math.log(MOST_NOISE / float(spread.mean()))
    inputs = torch.cat([base[0] * features, torch.full_like(features[:, :1], base[1])], dim=1)
    for step in range(steps):
        rate = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        scale = math.exp(log_scale)
        mean = (inputs @ u.T) * scale + (0.0 if start is None else start)
        noise = torch.randn((SAMPLES, *mean.shape), generator=generator, device=mean.device)
        logits = (mean + scale * spread[:, None] * noise).requires_grad_()
        with torch.enable_grad():
            loss = soft_loss(logits, targets, matrix)
            (slope,) = torch.autograd.grad(loss, logits)
        value = float(loss.detach())
        kl = float(u.square().sum()) / 2
        weight = bound.kl_weight(value, kl)
        # W = s·u is unchanged when s changes, so the step rescales u.
        pull = float((slope * (logits.detach() - mean)).sum()) - 2 * weight * kl
        moving = MOMENTUM * moving + scale * (slope.sum(dim=0).T @ inputs) + weight * u
        u = u - rate * moving
        shift = min(float(np.clip(-rate * pull, -SCALE_STEP, SCALE_STEP)), most - log_scale)
        log_scale, u = log_scale + shift, u * math.exp(-shift)
    scale = math.exp(log_scale)
    return HeadPosterior(scale * base[0] * u[:, :-1], scale * base[1] * u[:, -1], log_scale, most)
