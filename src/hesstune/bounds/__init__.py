"""Bounds on the test error that hold with probability 1 − δ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.bounds.certificate import certify
    from hesstune.bounds.noisy import NoiseConfidenceSet
    from hesstune.bounds.pac_bayes import confidence_upper, gaussian_kl, kl_inverse, pac_bayes_kl
    from hesstune.bounds.record import Certificate

__all__ = [
    "Certificate",
    "NoiseConfidenceSet",
    "certify",
    "confidence_upper",
    "gaussian_kl",
    "kl_inverse",
    "pac_bayes_kl",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Certificate": "hesstune.bounds.record",
        "NoiseConfidenceSet": "hesstune.bounds.noisy",
        "certify": "hesstune.bounds.certificate",
        "confidence_upper": "hesstune.bounds.pac_bayes",
        "gaussian_kl": "hesstune.bounds.pac_bayes",
        "kl_inverse": "hesstune.bounds.pac_bayes",
        "pac_bayes_kl": "hesstune.bounds.pac_bayes",
    },
)
