"""Unlikely classes skipped: fewer than K − 1 passes, with random probes that bound what is left out."""

from __future__ import annotations

import torch

from hesstune.curvature.exact.factor import LogitFactor
from hesstune.curvature.exact.forms import LogitForms
from hesstune.curvature.exact.passes import Passes

__all__ = ["FAILS", "likely_classes_alone", "probe_factor"]

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

    return _PROBES / (2 * float(gammaincinv(_PROBES / 2, FAILS * 0.5 ** (look + 1))))


def likely_classes_alone(passes: Passes, factor: LogitFactor, tol: float, seed: int) -> LogitForms:
    """Take passes until the skipped classes add at most a share `tol` to every entry."""
    columns = factor.columns
    generator = torch.Generator().manual_seed(seed)
    normals = torch.randn(_PROBES, columns, generator=generator, dtype=torch.float64)
    mass = factor.sorted_q.flip(1).cumsum(1).flip(1)  # mass[:, r]: of the classes from rank r on
    share = (mass / mass[:, :1].clamp(min=1e-300)).amax(0)
    enough = int((share > tol / probe_factor(0)).sum())
    done = look = 0
    while enough + _PROBES < columns:
        for rank in range(done, enough):
            passes.add(*factor.seed(rank))
        done = enough
        lower = passes.quadratic
        squares = [passes.product(*factor.probe(done, row)) for row in normals]
        rest = torch.stack(squares).mean(0)
        upper = lower + probe_factor(look) * rest
        look += 1
        if bool((upper - lower <= tol * lower).all()):
            return LogitForms(lower + rest, lower, upper, None, None, passes.taken)
        # What is left falls about as the mass of the classes: go on to where that would do.
        excess = float(((upper - lower) / (tol * lower).clamp(min=1e-300)).max())
        enough = max(done + 1, int((share > share[done] / excess).sum()))
    for rank in range(done, columns):
        passes.add(*factor.seed(rank))
    return passes.forms()
