"""Losses that label noise changes less than cross-entropy.

All map (N, K) logits and (N,) integer targets to one loss (`reduction` mean or sum) or (N,) losses
(`none`), in float32 or better. p = softmax(logits), p_y the target's probability.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from hesstune.checks import one_of, stochastic_matrix, unit_interval
from hesstune.errors import ConfigError
from hesstune.losses.consistent import REDUCTIONS, check_targets, reduced

# log 0 in reverse cross-entropy; Wang et al. 2019 and Ma et al. 2020 both use −4.
LOG_ZERO = -4.0


class _TargetLoss(nn.Module):
    """Checks targets, takes log-probabilities and reduces."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = one_of("reduction", reduction, REDUCTIONS)

    def _losses(self, log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return (N,) losses of (N, K) log-probabilities and (N,) targets."""
        raise NotImplementedError

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of (N, K) logits against (N,) integer targets in [0, K)."""
        check_targets(logits, targets)
        log_p = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)
        return reduced(self._losses(log_p, targets.long()), self.reduction)


def _of_target(values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return values.gather(1, targets[:, None]).squeeze(1)


class ForwardLoss(_TargetLoss):
    """Forward correction: −log Σ_i F[i, ỹ] p_i, the likelihood of the noisy label, F (K, K).

    Bounded below by 0, and minimised in expectation by the clean class probabilities. Source:
    Patrini et al. 2017, section 4.2.

    Example:
        >>> loss = ForwardLoss([[0.8, 0.2], [0.2, 0.8]])
        >>> round(float(loss(torch.tensor([[100.0, 0.0]]), torch.tensor([1]))), 4)  # −log 0.2
        1.6094
    """

    log_noise: torch.Tensor

    def __init__(self, noise_matrix: Any, reduction: str = "mean") -> None:
        super().__init__(reduction)
        matrix = torch.from_numpy(stochastic_matrix(getattr(noise_matrix, "array", noise_matrix)))
        self.register_buffer("log_noise", matrix.log(), persistent=False)

    def _losses(self, log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if log_p.shape[1] != len(self.log_noise):
            raise ConfigError(
                f"the noise matrix is for {len(self.log_noise)} classes, but the logits have {log_p.shape[1]}"
            )
        columns = self.log_noise.to(log_p).t()[targets]
        return -torch.logsumexp(log_p + columns, dim=1)


class GeneralizedCrossEntropy(_TargetLoss):
    """GCE: (1 − p_y^q)/q, q in (0, 1]. q → 0 is cross-entropy, q = 1 the mean absolute error (half its L1
    norm).

    Lies in [0, 1/q]. Source: Zhang and Sabuncu 2018, equation 6; they use q = 0.7.

    Example:
        >>> loss = GeneralizedCrossEntropy(q=1.0)
        >>> float(loss(torch.zeros(1, 4), torch.tensor([0])))  # 1 − 1/4
        0.75
    """

    def __init__(self, q: float = 0.7, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.q = unit_interval("q", q)
        if self.q == 0:
            raise ConfigError("q must be above 0; at 0 the loss is cross-entropy")

    def _losses(self, log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return -torch.expm1(self.q * _of_target(log_p, targets)) / self.q


class SymmetricCrossEntropy(_TargetLoss):
    """SCE: α·CE + β·RCE with RCE = −Σ_k p_k log e_y[k] = −A(1 − p_y), log 0 set to A = −4.

    Source: Wang et al. 2019, equations 5 to 7; α = 0.1, β = 1 for CIFAR-10.

    Example:
        >>> loss = SymmetricCrossEntropy(alpha=0.0, beta=1.0)
        >>> float(loss(torch.zeros(1, 4), torch.tensor([0])))  # 4 · (1 − 1/4)
        3.0
    """

    def __init__(self, alpha: float = 0.1, beta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.alpha, self.beta = float(alpha), float(beta)

    def _losses(self, log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        log_y = _of_target(log_p, targets)
        return -self.alpha * log_y + self.beta * LOG_ZERO * torch.expm1(log_y)


class ActivePassiveLoss(_TargetLoss):
    """APL: α·NCE + β·RCE, NCE = log p_y / Σ_k log p_k.

    Both parts are symmetric: summed over all labels they are constant, 1 and −A(K − 1), so
    symmetric noise of any rate below (K − 1)/K does not change the minimiser. Source: Ma et al.
    2020, equations 6 and 8; α = β = 1 for CIFAR-10.

    Example:
        >>> loss = ActivePassiveLoss(alpha=1.0, beta=0.0)
        >>> float(loss(torch.zeros(1, 4), torch.tensor([0])))
        0.25
    """

    def __init__(self, alpha: float = 1.0, beta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.alpha, self.beta = float(alpha), float(beta)

    def _losses(self, log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        log_y = _of_target(log_p, targets)
        normalised = log_y / log_p.sum(dim=1)
        return self.alpha * normalised + self.beta * LOG_ZERO * torch.expm1(log_y)


def jensen_shannon(distributions: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """Return the generalised Jensen–Shannon divergence H(Σ_j π_j p_j) − Σ_j π_j H(p_j), (N,), of (N, K) p_j.

    Source: Lin 1991; Englesson and Azizpour 2021, equation 3.
    """
    pairs = list(zip(weights, distributions, strict=True))
    mixture = sum((w * p for w, p in pairs[1:]), pairs[0][0] * pairs[0][1])
    return _entropy(mixture) - torch.stack([w * _entropy(p) for w, p in pairs]).sum(dim=0)


def _entropy(p: torch.Tensor) -> torch.Tensor:
    # entr(0) is 0 but its slope is not finite: probabilities are kept above the least normal number.
    entropy: torch.Tensor = torch.special.entr(p.clamp_min(torch.finfo(p.dtype).tiny)).sum(dim=1)
    return entropy


class JensenShannonLoss(nn.Module):
    """GJS: the divergence of the label and the predictions of M − 1 views, over Z = −(1−π)log(1−π).

    The label has weight π in (0, 1), each view (1 − π)/(M − 1); with one view it is the JS loss. π → 0 gives
    cross-entropy, π → 1 the mean absolute error. Source: Englesson and Azizpour 2021, equation 7;
    they search π over 0.1, 0.3, 0.5, 0.7 and 0.9.

    Example:
        >>> loss = JensenShannonLoss(0.5)
        >>> round(float(loss([torch.tensor([[50.0, 0.0]])], torch.tensor([0]))), 6)
        0.0
    """

    def __init__(self, weight: float = 0.5, reduction: str = "mean") -> None:
        super().__init__()
        self.weight = unit_interval("weight", weight)
        if self.weight in (0.0, 1.0):
            raise ConfigError(f"weight must lie between 0 and 1; got {weight:g}")
        self.reduction = one_of("reduction", reduction, REDUCTIONS)

    def forward(self, views: list[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of the views' logits, each (N, K), against (N,) targets."""
        check_targets(views[0], targets)
        wide = [v.to(torch.promote_types(v.dtype, torch.float32)) for v in views]
        predicted = [torch.softmax(v, dim=1) for v in wide]
        label = nn.functional.one_hot(targets.long(), wide[0].shape[1]).to(wide[0])
        weights = [self.weight] + [(1.0 - self.weight) / len(views)] * len(views)
        scale = -(1.0 - self.weight) * math.log1p(-self.weight)
        return reduced(jensen_shannon([label, *predicted], weights) / scale, self.reduction)


def early_learning_penalty(p: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """Return log(1 − ⟨p, t⟩), (N,): the regulariser of early-learning regularisation, p and t (N, K).

    Its gradient keeps the prediction at the running average t of early predictions. Source: Liu et al. 2020,
    equation 6. p is kept within [1e-4, 1 − 1e-4], as in their code, so that the logarithm stays finite.
    """
    return torch.log1p(-(p.clamp(1e-4, 1.0 - 1e-4) * memory).sum(dim=1))
