"""Bounds on the test error that hold with probability 1 − δ; each kind is a file of the folder `kinds`."""

from __future__ import annotations

import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hesstune._lazy import lazily

if TYPE_CHECKING:
    from hesstune.bounds.kinds.pac_bayes import certify
    from hesstune.bounds.kl import kl_inverse
    from hesstune.bounds.record import Certificate
    from hesstune.noise.confidence import NoiseConfidenceSet, confidence_upper

__all__ = [
    "Certificate",
    "NoiseConfidenceSet",
    "certify",
    "confidence_upper",
    "kl_inverse",
]

_KINDS = Path(__file__).parent / "kinds"
BOUNDS = tuple(sorted(m.name for m in pkgutil.iter_modules([str(_KINDS)])))
# Those that share delta under `best`; the examples of `checked` are drawn and labelled for it alone.
CHOICES = tuple(name for name in BOUNDS if name != "checked")
if TYPE_CHECKING:
    BoundName = str
else:  # what the option accepts
    BoundName = Literal[(*CHOICES, "best")]


def first_lines() -> dict[str, str]:
    """Return what each bound is for people: its file's first line, which is read without an import."""
    lines = {name: (_KINDS / f"{name}.py").read_text(encoding="utf-8").partition("\n")[0] for name in BOUNDS}
    return {name: line.strip('".').replace("The ", "the ", 1) for name, line in lines.items()}


__getattr__, __dir__ = lazily(
    __name__,
    {
        "Certificate": "hesstune.bounds.record",
        "NoiseConfidenceSet": "hesstune.noise.confidence",
        "certify": "hesstune.bounds.kinds.pac_bayes",
        "confidence_upper": "hesstune.noise.confidence",
        "kl_inverse": "hesstune.bounds.kl",
    },
)
