"""What an estimator of the noise matrix returns: the matrix, and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.noise.matrix import NoiseMatrix

__all__ = ["Estimate", "row_stderr"]


@dataclass(frozen=True)
class Estimate:
    """An estimated noise matrix.

    Attributes:
        matrix: The estimate, after the smoothing.
        method: The estimator's name.
        n: Number of examples it was made from.
        stderr: (K, K) standard errors of the entries, or None where the estimator has none. They
            tell of the sample's size, not of a wrong model.
        smoothing: λ of ((1 − λ)F + λI), 0 where the raw estimate was kept.
        temperature: The temperature that calibrated the probabilities, or None.
        log_likelihood: Mean log-likelihood of held-out noisy labels under the matrix, or None.
        notes: What a reader should know, in sentences.
        details: Numbers of the estimator's own, JSON-ready.
    """

    matrix: NoiseMatrix
    method: str
    n: int
    stderr: NDArray[np.float64] | None = None
    smoothing: float = 0.0
    temperature: float | None = None
    log_likelihood: float | None = None
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Let the matrix say that it is an estimate, wherever it goes; of votes, that it is a mean."""
        if self.matrix.origin in ("stated", "injected"):
            origin = "instance_dependent" if self.method == "labelmodel" else "estimated"
            object.__setattr__(self, "matrix", self.matrix.known_as(origin))

    @property
    def condition(self) -> float:
        """The condition number of the matrix."""
        return self.matrix.condition

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready record, which `NoiseMatrix.load` also reads."""
        return {
            **self.matrix.to_dict(),
            "method": self.method,
            "examples": self.n,
            "stderr": None if self.stderr is None else np.round(self.stderr, 6).tolist(),
            "smoothing": self.smoothing,
            "temperature": self.temperature,
            "log_likelihood": self.log_likelihood,
            "notes": list(self.notes),
            **({"details": self.details} if self.details else {}),
        }


def row_stderr(matrix: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return multinomial standard errors √(F[i, j](1 − F[i, j]) / n_i), (K, K); NaN-free.

    Args:
        matrix: F, (K, K).
        counts: (K,) examples behind each row; a row without any has standard error 0.5.
    """
    spread = np.sqrt(matrix * (1 - matrix) / np.maximum(counts, 1e-12)[:, None])
    return np.where(counts[:, None] < 1, 0.5, np.minimum(spread, 0.5))
