"""Means over all examples from a random sample in two phases, and how large the sample must be.

v_iᵀ H_i⁺ v_i of a smooth layer costs products with everything after it, so the last layers cost little. All
layers are measured on r random examples, and the last ones, the base, on m ≥ r. An example that is sharp in
one layer is sharp in others, so two regressions take out most of the variance between examples: of the other
layers on the base, and of all layers on the Gauss–Newton values, which are known for all n examples (double
sampling; Cochran, Sampling Techniques, 1977, chapter 12). Each has one slope for all layers.

With R the residuals of the first regression and T those of the second, summed over layers with the weights of
Σ_i √mean_i, the variance of that sum is (1/r − 1/m)·Var R + (1/m − 1/n)·Var T.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# The base takes at most this share of the time of all layers.
_BASE_SHARE = 0.1
# A plan aims at a little less than the error that is asked for, since variances are estimates.
_MARGIN = 0.9


def base_of(count: int) -> torch.Tensor:
    """Return which of so many layers, in order of use, are the base, (L,) bool: about the last third."""
    costs = costs_of(count)
    base = costs.flip(0).cumsum(0).flip(0) <= _BASE_SHARE * costs.sum()
    base[-1:] = True
    return base


def costs_of(count: int) -> torch.Tensor:
    """Return the relative cost of a product with each of so many layers, in order of use, (L,)."""
    return torch.arange(count, 0, -1, dtype=torch.float64)


@dataclass(frozen=True)
class SampledMeans:
    """Means over n examples, estimated from a sample.

    Attributes:
        mean: Of each layer, (L,).
        stderr: Its standard error as a mean over the distribution, (L,).
        error: The relative standard error of Σ_i √mean_i, as a sum over these n examples.
        residuals: Var R.
        totals: Var T; both relative to the sum's square.
        examples: n.
    """

    mean: torch.Tensor
    stderr: torch.Tensor
    error: float
    residuals: float
    totals: float
    examples: int

    def plan(self, now: tuple[int, int], most: int, tol: float) -> tuple[int, int]:
        """Return the cheapest r and m, from the present ones up to `most`, that reach an error of `tol`."""
        count = len(self.mean)
        costs, base = costs_of(count), base_of(count)
        each_base, each_rest = float(costs[base].sum()), float(costs[~base].sum())
        found, best = (most, most), float("inf")
        for m in range(now[1], most + 1):
            left = (_MARGIN * tol) ** 2 - (1 / m - 1 / self.examples) * self.totals + self.residuals / m
            r = m if self.residuals <= 0 else int(-(-self.residuals // left)) if left > 0 else most + 1
            r = max(r, now[0])
            cost = m * each_base + r * each_rest
            if r <= m and cost < best:
                found, best = (r, m), cost
        return found


def sampled_means(values: torch.Tensor, drawn: torch.Tensor, known: torch.Tensor) -> SampledMeans:
    """Estimate each layer's mean over n examples.

    Args:
        values: Of m drawn examples, (m, L); NaN in all layers but the base after the first r rows.
        drawn: Their rows in `known`, (m,), in random order.
        known: The Gauss–Newton values of all examples, (n, L).
    """
    whole = ~values.isnan().any(1)
    r, m, n = int(whole.sum()), len(values), len(known)
    base = ~values.isnan().any(0) if m > r else torch.ones(values.shape[1], dtype=torch.bool)
    scale = torch.where(base, values.nan_to_num().mean(0), values[:r].mean(0))
    y, weights = values / torch.where(scale > 0, scale, 1), scale.sqrt()
    weights = weights / weights.sum().clamp_min(1e-300)
    rest = torch.where(base, 0, weights)
    # The base's part of an example, with mean 1 over the m; the others' part of the first r.
    x = (y[:, base] * weights[base]).sum(1) / weights[base].sum().clamp_min(1e-300)
    others = (y[:r] * rest).sum(1)
    slope = _slope(others, x[:r]) if m > r else 0.0  # of the sum of the others, whose weights add up to less
    shared = slope / max(float(rest.sum()), 1e-300) if m > r else 0.0
    factor = torch.where(base, 1.0, 1 + shared * (1 - float(x[:r].mean())))
    control = _relative(known, weights)
    total = (y[:, base] * weights[base]).sum(1) + slope * x
    second = _slope(total, control[drawn])
    factor = factor * (1 + second * (1 - float(control[drawn].mean())))
    # Variances relative to each mean, and to the sum.
    left = torch.where(base, y[:r], y[:r] - shared * x[:r, None])
    within = torch.where(base, 0, _var(left, 2))
    between = _var(y[:r] - second * control[drawn[:r], None], 2)
    relative = (1 / r - 1 / m) * within + (1 / m - 1 / n) * between + _var(y[:r], 1) / n
    mean = scale * factor
    residuals = float(_var(others - slope * x[:r], 2)) if m > r else 0.0
    totals = residuals + float(_var(total - second * control[drawn], 2))
    if m == r:
        # Until there is a base, what the regression on it would leave says how large both must be.
        ahead = base_of(values.shape[1])
        x = (y[:, ahead] * weights[ahead]).sum(1)
        others = (y[:, ~ahead] * weights[~ahead]).sum(1)
        residuals = float(_var(others - _slope(others, x) * x, 2))
    error = (1 / r - 1 / m) * residuals + (1 / m - 1 / n) * totals
    # √ halves relative errors.
    return SampledMeans(mean, mean * relative.sqrt(), error**0.5 / 2, residuals / 4, totals / 4, n)


def _relative(known: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return each example's Gauss–Newton values over their means, averaged over layers, (n,)."""
    mean = known.mean(0)
    return torch.where(mean > 0, known / mean.clamp_min(1e-300), 1.0) @ weights


def _slope(y: torch.Tensor, x: torch.Tensor) -> float:
    """Return the least-squares slope of y on x; 0 if x does not vary or there are fewer than three."""
    centred = x - x.mean()
    square = float(centred.square().sum())
    return float((centred * y).sum()) / square if len(x) > 2 and square > 0 else 0.0


def _var(values: torch.Tensor, used: int) -> torch.Tensor:
    """Return the variance over the first dimension, with so many degrees of freedom used."""
    squares = (values - values.mean(0)).square().sum(0)
    return squares / max(1, len(values) - used)
