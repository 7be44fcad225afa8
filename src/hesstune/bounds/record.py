"""The certificate: a bound that holds with probability 1 − δ, its computation, and its text.

To add a kind of bound, subclass `BoundKind` here: its name, the predictor that it is about, its part of δ,
the computation of the bound from the recorded numbers, and a sentence on the counts.
"""

from __future__ import annotations

import dataclasses
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hesstune.bounds.checked import checked_bound
from hesstune.bounds.compression import compression_bound
from hesstune.bounds.pac_bayes import complexity, confidence_upper, kl_inverse, monte_carlo_upper
from hesstune.checks import unit_interval
from hesstune.errors import ConfigError, RefutedNoiseError, RunError
from hesstune.storage.files import one_line, write_json

HELD_OUT = ("errors", "n", "error", "bound", "delta")
_FACTS = (
    "risk", "empirical", "empirical_bound", "kl", "n", "delta", "shares", "classes", "family", "draws",
    "draw_size", "loss", "noise", "bound", "numbers",
)  # fmt: skip


@dataclass(frozen=True)
class Certificate:
    """An upper bound on the clean 0-1 risk of a predictor, which `bound` names.

    `pac_bayes`: the randomised predictor, which draws fresh weights N(Ŵ, σ²) for every prediction; nothing
    is claimed of the network with the weights Ŵ themselves. Every other kind: the network itself.

    Attributes:
        risk: The bound; it fails with probability at most delta over the draw of the examples and of
            the weights. It may be below 0 in a diagnostic whose noise matrix is refuted.
        empirical: Mean error on the given labels over the draws.
        empirical_bound: Upper bound on the certified loss's empirical mean, in units of risk.
        kl: KL of the posterior from the chosen prior, in nats.
        n: Number of examples.
        delta: Probability of failure.
        shares: How delta is split.
        classes: K.
        sigma: Posterior's standard deviation of each trained parameter (root mean square of its entries).
        prior_sigma: The chosen prior's.
        distance: ‖W − W⁽ˢ⁾‖ of each trained parameter.
        kl_terms: Each parameter's share of the KL.
        family: J·T, the number of priors and losses fixed beforehand that share delta.
        draws: m, the number of weight draws.
        draw_size: The largest number of examples that one draw was counted on.
        loss: The loss with the bounded mean.
        noise: How the labels' noise is known.
        assumptions: Conditions of the bound.
        failures: Conditions that do not hold; if any, this is a diagnostic and no certificate.
        held_out: Errors on the given labels, n and the bound on the clean error for the unperturbed network
            on held-out examples, if given; the exact binomial bound if their labels are true.
        bound: The kind of bound: a key of BOUNDS.
        numbers: What else the bound is computed from. PAC-Bayes: `mean` of the scaled loss over the draws,
            the loss's ends `low` and `high`, and the `padding` of unequal blocks. Hold-out: `mean`, `low`,
            `high` and, for true labels, `errors`. Compression: the number of examples `kept` and, under
            noise, `floor` c and `gamma` γ (the noisy error is at least c + γ·(the true one)). Checked: the
            arguments of `hesstune.bounds.checked.checked_bound`.
        held_out_labels: `true`, `noisy` as the certificate's own, or `unknown` (no bound follows).
        tried: {kind of bound: risk} of the kinds that shared delta, if the smallest was taken.
        near_duplicates: {what: number of examples}: near-duplicates that were counted or left out; empty if
            no search was made.
        number: How many different certificates the run folder has had, this one included.
        smallest: The smallest of them at delta divided by their number: it holds whichever is reported.
        noise_dependence: Permutation test of whether the noise depends on the input, as
            `hesstune.noise.instance.Conditional`; empty if not run.
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
    bound: str = "pac_bayes"
    numbers: dict[str, float] = field(default_factory=dict)
    held_out_labels: str = "true"
    tried: dict[str, float] = field(default_factory=dict)
    near_duplicates: dict[str, float] = field(default_factory=dict)
    number: int = 1
    smallest: float | None = None
    noise_dependence: dict[str, float] = field(default_factory=dict)

    @property
    def predictor(self) -> str:
        """The predictor that the bound is about."""
        return BOUNDS[self.bound].predictor

    @property
    def vacuous(self) -> bool:
        """True if risk ≥ 1 − 1/K, the error of guessing at random."""
        return self.risk >= 1 - 1 / self.classes

    @property
    def diagnostic(self) -> bool:
        """True if an assumption is known to fail: the number is then no certificate."""
        return bool(self.failures)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {
            "kind": "diagnostic" if self.diagnostic else "certificate",
            "predictor": self.predictor,
            "vacuous": self.vacuous,
            **dataclasses.asdict(self),
        }

    def save(self, path: str | Path) -> None:
        """Write the certificate as JSON.

        Raises:
            RunError: If it cannot be written; an existing file is then unchanged.
        """
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read a certificate written by `save`.

        Raises:
            RunError: If the file is missing or is no certificate.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            certificate = cls(**{name: value for name, value in record.items() if name in names})
            certificate._check()
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(f"{path} is not a readable certificate ({one_line(error)})") from error
        return certificate

    def _check(self) -> None:
        """Raise ValueError unless every value has its declared type."""
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
        if self.bound not in BOUNDS:
            raise ValueError(f"'bound' must be one of {', '.join(BOUNDS)}")

    def at(self, delta: float) -> float:
        """Return the bound that the same counts give at another probability of failure.

        For a union bound: of J certificates each taken at δ/J, the smallest holds with probability 1 − δ.

        Raises:
            ConfigError: If delta is out of range or below the part that a confidence set has spent, or the
                record does not hold the numbers.
            RefutedNoiseError: If the bound is below 0 there.

        Example:
            >>> c = Certificate.of_network("holdout", {"errors": 3.0, "mean": 0.03, "low": 0.0, "high": 1.0},
            ...                            n=100, delta=0.05, classes=2)
            >>> round(c.risk, 4), round(c.at(0.025), 4)
            (0.0757, 0.0852)
        """
        spent = self.shares.get("noise", 0.0)
        if not spent < unit_interval("delta", delta) < 1:
            raise ConfigError(f"delta must lie above {spent:g} and below 1; got {delta}")
        factor = (delta - spent) / (self.delta - spent)
        risk = self._risk({name: share * factor for name, share in self.shares.items() if name != "noise"})
        if risk < 0 and not self.diagnostic:
            raise RefutedNoiseError(
                f"at delta {delta:g} the bound on the true error is {risk:.4g}, below 0: it refutes the "
                "noise matrix; certify again with the matrix of these labels"
            )
        return risk

    def _risk(self, shares: dict[str, float]) -> float:
        try:
            return BOUNDS[self.bound].risk(self, shares)
        except KeyError as error:
            raise ConfigError(f"the certificate's record lacks the number {error}; certify again") from error

    def facts(self) -> dict[str, Any]:
        """Return, JSON-ready, what `at` needs: the certificate without its parameters and texts."""
        return {name: getattr(self, name) for name in _FACTS}

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> Certificate:
        """Make a certificate from the result of `facts`; all other fields are empty.

        Raises:
            KeyError: If a fact is missing.
            ValueError: If a fact has a wrong type or value.
        """
        blank: dict[str, Any] = {"sigma": {}, "prior_sigma": {}, "distance": {}, "kl_terms": {}}
        certificate = cls(**blank, **{name: facts[name] for name in _FACTS}, assumptions=[])
        certificate._check()
        return certificate

    @classmethod
    def of_network(
        cls,
        bound: str,
        numbers: dict[str, float],
        *,
        n: int,
        delta: float,
        classes: int,
        shares: dict[str, float] | None = None,
        **fields: Any,
    ) -> Certificate:
        """Make the certificate of a network without weight noise, from its counts.

        Args:
            bound: The kind of bound, not `pac_bayes`.
            numbers: As of the attribute.
            n: Number of examples.
            delta: Probability of failure.
            classes: K.
            shares: How delta is split; by default the bound has all of it.
            **fields: Further fields.

        Example:
            >>> c = Certificate.of_network("compression", {"kept": 10.0}, n=100, delta=0.05, classes=2)
            >>> round(c.risk, 4)
            0.2051
        """
        kind = BOUNDS[bound]
        blank: dict[str, Any] = {"sigma": {}, "prior_sigma": {}, "distance": {}, "kl_terms": {}, "kl": 0.0}
        blank |= {"draws": 0, "draw_size": 0, "family": 1, "loss": "zero_one", "noise": "clean"}
        blank |= {"assumptions": [], "empirical": kind.empirical(numbers, n)}
        shares = {kind.share: delta, "noise": 0.0} if shares is None else shares
        fixed: dict[str, Any] = {"n": n, "delta": delta, "classes": classes, "shares": shares, "bound": bound}
        bare = cls(risk=1.0, empirical_bound=1.0, numbers=numbers, **fixed, **{**blank, **fields})
        risk = bare._risk(shares)
        return dataclasses.replace(bare, risk=risk, empirical_bound=risk)

    def summary(self) -> str:
        """Return the certificate as text for a terminal."""
        kind = BOUNDS[self.bound]
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
                f"Certified: the true error of {kind.short_name} is at most {self.risk:.4f} "
                f"with probability {1 - self.delta:g} ({verdict})."
            ]
        if self.number > 1 and not self.diagnostic:
            lines.append(
                f"This is certificate {self.number} of this run folder. The smallest of them is valid only "
                f"at delta divided by their number: {self.smallest:.4f}."
            )
        lines += [f"Predictor: {kind.predictor}.", self._head() + kind.counts(self)]
        if self.tried:
            risks = ", ".join(f"{name} {risk:.4f}" for name, risk in self.tried.items())
            lines.append(f"The smallest of several bounds that share delta: {risks}.")
        if self.held_out:
            lines.append(self._held_out_text(self.held_out))
        if some := {name: count for name, count in self.near_duplicates.items() if count}:
            counts = ", ".join(f"{name.replace('_', ' ')} {count:.0f}" for name, count in some.items())
            lines.append(f"Near-duplicates among the examples: {counts}.")
        if self.noise_dependence:
            lines.append(dependence_text(self.noise_dependence))
        return "\n".join([*lines, "It holds if:", *(f"  - {text}" for text in self.assumptions)])

    def _head(self) -> str:
        return f"n = {self.n}, delta = {self.delta:g}, "

    def _held_out_text(self, held: dict[str, float]) -> str:
        text = f"On {held['n']:.0f} held-out examples the unperturbed network has error {held['error']:.4f}"
        sure = f"probability {1 - held['delta']:g}"
        if self.held_out_labels == "unknown":
            return f"{text} on labels of unknown quality, so no bound on the true error follows."
        if self.held_out_labels == "noisy":
            text += " on labels as noisy as the certificate's own"
        else:
            sure = f"Clopper-Pearson, {sure}"
        return f"{text}; its true error is at most {held['bound']:.4f} ({sure})."

    def __str__(self) -> str:
        return self.summary()


BOUNDS: dict[str, type[BoundKind]] = {}


class BoundKind(ABC):
    """A kind of bound. Subclasses are registered in BOUNDS by their name.

    Attributes:
        name: The value of `Certificate.bound`.
        share: The part of delta that the bound has, a key of `Certificate.shares`.
        short_name: The predictor in a few words.
        predictor: The predictor that the bound is about.
    """

    name: ClassVar[str]
    share: ClassVar[str]
    short_name: ClassVar[str] = "the network"
    predictor: ClassVar[str]

    def __init_subclass__(cls) -> None:
        BOUNDS[cls.name] = cls

    @staticmethod
    @abstractmethod
    def risk(one: Certificate, shares: Mapping[str, float]) -> float:
        """Return the bound on the true error that a certificate's numbers give, at these parts of delta.

        Under a noise matrix it may be below 0: the matrix is then refuted, see `check_bound`.
        """

    @staticmethod
    @abstractmethod
    def counts(one: Certificate) -> str:
        """Return the counts of a certificate as text."""

    @staticmethod
    def empirical(numbers: Mapping[str, float], n: int) -> float:
        """Return the error on the given labels."""
        return numbers["mean"]


class PacBayes(BoundKind):
    """The randomised predictor's error, by PAC-Bayes-kl."""

    name, share = "pac_bayes", "pac_bayes"
    short_name = "the randomised predictor"
    predictor = (
        "randomised: fresh weights N(W, sigma^2) for every prediction; nothing is claimed of the unperturbed "
        "network"
    )

    @staticmethod
    def risk(one: Certificate, shares: Mapping[str, float]) -> float:
        low, high, padding = (one.numbers[name] for name in ("low", "high", "padding"))
        drawn = monte_carlo_upper(min(1.0, one.numbers["mean"] / padding), one.draws, shares["monte_carlo"])
        side = complexity(one.kl, one.n, shares["pac_bayes"], one.family)
        return min(1.0, low + (high - low) * float(kl_inverse(min(1.0, padding * drawn), side)))

    @staticmethod
    def counts(one: Certificate) -> str:
        return (
            f"KL = {one.kl:.2f} nats, priors and losses to choose from = {one.family}, draws = {one.draws}\n"
            f"Error on the given labels over the draws: {one.empirical:.4f}; {_labels(one)}"
        )


class Holdout(BoundKind):
    """The network's error, by examples that it has not seen."""

    name, share = "holdout", "exact_tail"
    predictor = "the network itself, fixed before it saw the examples counted; no noise on its weights"

    @staticmethod
    def risk(one: Certificate, shares: Mapping[str, float]) -> float:
        if "errors" in one.numbers:
            return confidence_upper(int(one.numbers["errors"]), one.n, shares["exact_tail"])
        low, high = one.numbers["low"], one.numbers["high"]
        unit = float(kl_inverse(one.numbers["mean"], math.log(one.family / shares["exact_tail"]) / one.n))
        return min(1.0, low + (high - low) * unit)

    @staticmethod
    def counts(one: Certificate) -> str:
        return f"error on the given labels: {one.empirical:.4f}; {_labels(one)}"


class Compression(BoundKind):
    """The error of a network that Pick-to-Learn trained, by the number of examples kept."""

    name, share = "compression", "compression"
    predictor = "the network itself, trained on the examples kept and no others; no noise on its weights"

    @staticmethod
    def risk(one: Certificate, shares: Mapping[str, float]) -> float:
        noisy = compression_bound(int(one.numbers["kept"]), one.n, shares["compression"])
        return min(1.0, (noisy - one.numbers.get("floor", 0.0)) / one.numbers.get("gamma", 1.0))

    @staticmethod
    def counts(one: Certificate) -> str:
        kept = f"examples kept = {one.numbers['kept']:.0f}"
        return f"{kept}; every other example is classified correctly; {_labels(one)}"

    @staticmethod
    def empirical(numbers: Mapping[str, float], n: int) -> float:
        return 0.0


class Checked(BoundKind):
    """The network's error, by the given labels of all examples and the true labels of a few."""

    name, share, predictor = "checked", "checked", Holdout.predictor

    @staticmethod
    def risk(one: Certificate, shares: Mapping[str, float]) -> float:
        counts = {name: int(value) for name, value in one.numbers.items()}
        return checked_bound(
            (counts["wrong_disagreeing"], counts["checked_disagreeing"]),
            (counts["wrong_agreeing"], counts["checked_agreeing"]),
            counts["disagreeing"],
            one.n,
            shares["checked"],
        )

    @staticmethod
    def counts(one: Certificate) -> str:
        count = {name: f"{value:.0f}" for name, value in one.numbers.items()}
        left = ""
        if one.numbers.get("unchecked"):
            left = f"drawn examples without a label, counted as errors: {count['unchecked']}, "
        return (
            f"{left}predictions that differ from the given label: {count['disagreeing']}; errors among the "
            f"checked: {count['wrong_disagreeing']} of {count['checked_disagreeing']} of these, "
            f"{count['wrong_agreeing']} of {count['checked_agreeing']} of the others"
        )

    @staticmethod
    def empirical(numbers: Mapping[str, float], n: int) -> float:
        return numbers["disagreeing"] / n


def dependence_text(test: Mapping[str, float]) -> str:
    """Return the result of the test of whether the noise depends on the input, as text."""
    result = "rejected" if test["depends"] else "did not reject; that shows nothing"
    return (
        f"Permutation test of whether the noise depends on the input: {result} (p = {test['p_value']:.2g}, "
        f"{test['examples']:.0f} examples; within a class, neighbours have the same label "
        f"{test['agreement']:.1%} of the time, {test['expected']:.1%} expected)."
    )


def _labels(one: Certificate) -> str:
    return f"labels: {one.noise}; loss: {one.loss}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
