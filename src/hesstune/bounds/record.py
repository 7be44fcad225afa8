"""The certificate: a number that holds with probability 1 − δ, with everything it rests on."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hesstune.errors import RunError
from hesstune.storage.reading import one_line

__all__ = ["Certificate"]

HELD_OUT = ("errors", "n", "error", "bound", "delta")


@dataclass(frozen=True)
class Certificate:
    """An upper bound on the clean 0-1 risk of the randomised predictor.

    The randomised predictor draws fresh weights N(Ŵ, σ²) for every prediction; nothing is claimed of
    the network with the weights Ŵ themselves.

    Attributes:
        risk: The bound; it fails with probability at most delta over the draw of the examples and of
            the weights.
        empirical: Mean error on the given labels (noisy ones, if they are) over the draws.
        empirical_bound: Upper bound on the certified loss's empirical mean, in units of risk.
        kl: KL of the posterior from the chosen prior, in nats.
        n: Number of examples.
        delta: Probability of failure.
        shares: How delta is split.
        classes: K.
        sigma: Posterior's standard deviation of each trained parameter (root mean square, where it
            differs between entries).
        prior_sigma: The chosen prior's.
        distance: ‖W − W⁽ˢ⁾‖ of each trained parameter.
        kl_terms: Each parameter's share of the KL.
        family: J·T, the number of priors and losses fixed beforehand that share delta.
        draws: m, the number of weight draws.
        draw_size: The largest number of examples that one draw was counted on.
        loss: The loss whose mean is bounded.
        noise: How the labels' noise is known.
        assumptions: What must hold for the bound to hold.
        failures: Assumptions known to fail; if any, this is a diagnostic and no certificate.
        held_out: Errors, n and the Clopper–Pearson bound for the unperturbed network on held-out
            examples, where given.
    """

    risk: float
    empirical: float
    empirical_bound: float
    kl: float
    n: int
    delta: float
    shares: dict[str, float]
    classes: int
    sigma: dict[str, float]
    prior_sigma: dict[str, float]
    distance: dict[str, float]
    kl_terms: dict[str, float]
    family: int
    draws: int
    draw_size: int
    loss: str
    noise: str
    assumptions: list[str]
    failures: list[str] = field(default_factory=list)
    held_out: dict[str, float] | None = None

    @property
    def vacuous(self) -> bool:
        """True where risk ≥ 1 − 1/K, what guessing at random reaches without any training."""
        return self.risk >= 1 - 1 / self.classes

    @property
    def diagnostic(self) -> bool:
        """True where an assumption is known to fail: the number is then no certificate."""
        return bool(self.failures)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {
            "kind": "diagnostic" if self.diagnostic else "certificate",
            "predictor": "randomised: fresh weights N(W, sigma^2) for every prediction",
            "vacuous": self.vacuous,
            **dataclasses.asdict(self),
        }

    def save(self, path: str | Path) -> None:
        """Write the certificate as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read a certificate written by `save`.

        Raises:
            RunError: If the file is missing or is no certificate.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            found = cls(**{name: value for name, value in record.items() if name in names})
            found._check()
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(f"{path} is not a readable certificate ({one_line(error)})") from error
        return found

    def _check(self) -> None:
        """Raise ValueError unless every value has the type that it is declared with."""
        kinds: dict[str, Callable[[Any], bool]] = {
            "float": _is_number,
            "int": lambda v: _is_number(v) and v == int(v),
            "str": lambda v: isinstance(v, str),
            "dict[str, float]": lambda v: isinstance(v, dict) and all(map(_is_number, v.values())),
            "list[str]": lambda v: isinstance(v, list) and all(isinstance(text, str) for text in v),
        }
        for field_ in dataclasses.fields(self):
            value, kind = getattr(self, field_.name), str(field_.type)
            if value is None and kind.endswith(" | None"):
                continue
            if not kinds[kind.removesuffix(" | None")](value):
                raise ValueError(f"'{field_.name}' must be {kind}")
        if not set(HELD_OUT) <= set(HELD_OUT if self.held_out is None else self.held_out):
            raise ValueError(f"'held_out' must hold {', '.join(HELD_OUT)}")
        if self.classes < 2:
            raise ValueError("'classes' must be at least 2")

    def summary(self) -> str:
        """Return the certificate in words, for a terminal."""
        if self.diagnostic:
            head = f"DIAGNOSTIC, NO CERTIFICATE: the number {self.risk:.4f} is not guaranteed, because"
            lines = [head, *(f"  - {reason}" for reason in self.failures)]
        else:
            verdict = (
                f"vacuous: guessing among {self.classes} classes does as well"
                if self.vacuous
                else "non-vacuous"
            )
            lines = [
                f"Certified: the randomised predictor's true error is at most {self.risk:.4f} "
                f"with probability {1 - self.delta:g} ({verdict})."
            ]
        lines += [
            "Predictor: fresh weights N(trained weights, sigma^2) for every prediction; "
            "nothing is claimed of the unperturbed network.",
            f"n = {self.n}, delta = {self.delta:g}, KL = {self.kl:.2f} nats, "
            f"priors and losses to choose from = {self.family}, draws = {self.draws}",
            f"Error on the given labels over the draws: {self.empirical:.4f}; "
            f"labels: {self.noise}; loss: {self.loss}",
        ]
        if self.held_out:
            lines.append(
                f"Beside it, the unperturbed network on {self.held_out['n']:.0f} held-out examples: error "
                f"{self.held_out['error']:.4f}, at most {self.held_out['bound']:.4f} (Clopper-Pearson, "
                f"probability {1 - self.held_out['delta']:g})."
            )
        lines += ["It holds if:", *(f"  - {text}" for text in self.assumptions)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
