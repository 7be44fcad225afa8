"""How an estimate is asked for: `estimate:METHOD`."""

from __future__ import annotations

from hesstune.checks import one_of
from hesstune.errors import ConfigError

__all__ = ["ESTIMATORS", "parse_request"]

# `holdout` needs human-checked labels and `labelmodel` votes.
ESTIMATORS = ("auto", "em", "confident", "holdout", "labelmodel")


def parse_request(text: str) -> str:
    """Return the estimator of `estimate:METHOD`.

    Raises:
        ConfigError: If the estimator is unknown.

    Example:
        >>> parse_request("estimate:em")
        'em'
    """
    kind, _, method = text.partition(":")
    if kind != "estimate" or not method:
        raise ConfigError(f"'{text}' must be written estimate:METHOD, such as estimate:auto")
    return one_of("estimator", method, ESTIMATORS)
