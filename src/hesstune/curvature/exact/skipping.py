"""Unlikely classes left out: fewer than K − 1 passes, with random probes that bound what is left out.

Where the classes from some rank on hold little probability, their part of an entry, Σ_k q_k ⟨J_iᵀ s_k, v_i⟩²,
is small, and a few random combinations tell how small: with g standard normal, the squared product of v_i
with J_iᵀ Σ_k √q_k g_k s_k is that part times χ²₁, and its squared norm is the trace's part on average.
"""

from __future__ import annotations

import math

import torch

from hesstune.curvature.exact.factor import LogitFactor
from hesstune.curvature.exact.forms import LogitForms
from hesstune.curvature.exact.passes import Passes

__all__ = ["FAILS", "left_out", "likely_classes_alone", "planned_passes", "probe_factor", "trace_factor"]

# Gaussian probes of the skipped classes.
_PROBES = 4
# The probability that the bound of an entry fails, over all looks at it together.
FAILS = 0.01


def probe_factor(look: int) -> float:
    """Return the factor between the probes' mean square and a bound at the look-th look, from 0.

    The bound is looked at again after further passes, until it is small enough, so each look has a share of
    what may fail: 1/2, 1/4, …. The mean square of m probes is χ²_m/m times the truth.
    """
    from scipy.special import gammaincinv

    return _PROBES / (2 * float(gammaincinv(_PROBES / 2, _failing(look))))


def trace_factor(look: int) -> float:
    """Return the same factor for the probes' mean squared norm.

    It is Σ_j λ_j χ²_m(j)/m with weights λ_j ≥ 0 that sum to the truth τ, so by Chernoff, and because
    Π(1 + a λ_j) ≥ 1 + a τ, it is below x·τ with probability at most (x·exp(1 − x))^(m/2), x < 1.
    """
    from scipy.special import lambertw

    return 1 / -float(lambertw(-(_failing(look) ** (2 / _PROBES)) / math.e).real)


def _failing(look: int) -> float:
    return float(FAILS * 0.5 ** (look + 1))


def planned_passes(factor: LogitFactor, tol: float) -> int:
    """Return how many passes skipping is likely to take, with probes: all K − 1 unless that halves them."""
    passes = int((factor.shares > tol / probe_factor(0)).sum()) + _PROBES
    return passes if 2 * passes <= factor.columns else factor.columns


def left_out(skipped: torch.Tensor) -> list[str]:
    """Return the note of a measurement, if classes were left out.

    Args:
        skipped: (2,): the largest share of their passes that such batches took, or 0; what they may add.
    """
    share, tol = skipped.tolist()
    told = (
        f"unlikely classes were left out ({share:.0%} of the passes taken, or fewer): they add at most "
        f"{tol:.2g} of an exact layer's entry or trace, each with {1 - FAILS:.0%}, as told by random probes"
    )
    return [told] if share else []


def likely_classes_alone(passes: Passes, factor: LogitFactor, tol: float, seed: int) -> LogitForms:
    """Take passes until the skipped classes add at most a share `tol` to every entry and every trace."""
    columns, share = factor.columns, factor.shares
    generator = torch.Generator().manual_seed(seed)
    normals = torch.randn(_PROBES, columns, generator=generator, dtype=torch.float64)
    done = look = 0
    enough = planned_passes(factor, tol) - _PROBES
    while enough + _PROBES < columns:
        for rank in range(done, enough):
            passes.add(*factor.seed(rank))
        done = enough
        probed = [passes.terms(*factor.probe(done, row)) for row in normals]
        forms = passes.forms().with_rest(probed, probe_factor(look), trace_factor(look))
        if (excess := forms.uncertain(tol)) <= 1:
            return forms
        look += 1
        # What is left falls about as the mass of the classes: go on to where that would do.
        enough = max(done + 1, int((share > share[done] / excess).sum()))
    for rank in range(done, columns):
        passes.add(*factor.seed(rank))
    return passes.forms()
