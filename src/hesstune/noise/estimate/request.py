"""How an estimate is asked for: `estimate:METHOD`, or `estimate:anchor:PERCENTILE`."""

from __future__ import annotations

from dataclasses import dataclass

from hesstune.checks import one_of, unit_interval
from hesstune.errors import ConfigError

__all__ = ["ESTIMATORS", "PERCENTILE", "Request", "parse_request"]

# `holdout` needs clean labels and `labelmodel` votes.
ESTIMATORS = ("auto", "em", "anchor", "dual_t", "confident", "volmin", "holdout", "labelmodel")
PERCENTILE = 0.97


@dataclass(frozen=True)
class Request:
    """An estimator's name, and the percentile of `anchor`."""

    method: str
    percentile: float = PERCENTILE


def parse_request(text: str) -> Request:
    """Read `estimate:METHOD[:PERCENTILE]`.

    Raises:
        ConfigError: If the estimator is unknown, or a percentile is given where there is none.

    Example:
        >>> parse_request("estimate:anchor:0.9")
        Request(method='anchor', percentile=0.9)
    """
    kind, _, rest = text.partition(":")
    method, _, number = rest.partition(":")
    if kind != "estimate" or not method:
        raise ConfigError(f"'{text}' must be written estimate:METHOD, such as estimate:auto")
    one_of("estimator", method, ESTIMATORS)
    if not number:
        return Request(method)
    if method != "anchor":
        raise ConfigError(f"the estimator {method} takes no number; only anchor has a percentile")
    return Request(method, unit_interval("the percentile", number))
