"""The certificate: a bound that holds with probability 1 − δ, its computation, and its text."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hesstune.bounds.checked import checked_bound
from hesstune.bounds.compression import compression_bound
from hesstune.bounds.pac_bayes import complexity, confidence_upper, kl_inverse, monte_carlo_upper
from hesstune.checks import unit_interval
from hesstune.errors import ConfigError, RefutedNoiseError, RunError
from hesstune.storage.atomic import write_json
from hesstune.storage.reading import one_line

__all__ = ["BOUNDS", "Certificate", "dependence_text", "risk_of", "summary_of"]


def risk_of(
    bound: str,
    numbers: Mapping[str, float],
    shares: Mapping[str, float],
    n: int,
    kl: float = 0.0,
    family: int = 1,
    draws: int = 0,
) -> float:
    """Return the bound on the true error that a certificate's numbers give.

    Under a noise matrix it may be below 0: the matrix is then refuted, see `hesstune.bounds.conditions`.

    Args:
        bound: The kind of bound.
        numbers: As of `hesstune.bounds.Certificate`.
        shares: The parts of delta.
        n: Number of examples.
        kl: KL of posterior from prior, in nats.
        family: The priors and losses that share delta.
        draws: Weight draws.

    Raises:
        ConfigError: If a number is missing: a record of an earlier version.
    """
    if bound == "compression":
        noisy = compression_bound(int(numbers["kept"]), n, shares["compression"])
        # Under noise the bound is of the error on noisy labels, which is at least c + γ·(the true one).
        return min(1.0, (noisy - numbers.get("floor", 0.0)) / numbers.get("gamma", 1.0))
    if bound == "checked":
        counts = {name: int(value) for name, value in numbers.items()}
        return checked_bound(
            (counts["wrong_disagreeing"], counts["checked_disagreeing"]),
            (counts["wrong_agreeing"], counts["checked_agreeing"]),
            counts["disagreeing"],
            n,
            shares["checked"],
        )
    if "mean" not in numbers:
        raise ConfigError("the certificate's record, of an earlier version, lacks numbers; certify again")
    low, high = numbers["low"], numbers["high"]
    if bound == "holdout" and "errors" in numbers:
        return confidence_upper(int(numbers["errors"]), n, shares["exact_tail"])
    if bound == "holdout":
        unit = float(kl_inverse(numbers["mean"], math.log(family / shares["exact_tail"]) / n))
    else:
        padding = numbers["padding"]
        drawn = monte_carlo_upper(min(1.0, numbers["mean"] / padding), draws, shares["monte_carlo"])
        side = complexity(kl, n, shares["pac_bayes"], family)
        unit = float(kl_inverse(min(1.0, padding * drawn), side))
    return min(1.0, low + (high - low) * unit)


HELD_OUT = ("errors", "n", "error", "bound", "delta")
# The predictor that each kind of bound speaks of, and what it says of no other.
BOUNDS = {
    "pac_bayes": "randomised: fresh weights N(W, sigma^2) for every prediction",
    "holdout": "the network itself, as it stood before it saw the examples counted here",
    "compression": "the network itself, trained on the examples kept and on no others",
    "checked": "the network itself, as it stood before it saw the examples counted here",
}
_FACTS = (
    "risk", "empirical", "empirical_bound", "kl", "n", "delta", "shares", "classes", "family", "draws",
    "draw_size", "loss", "noise", "bound", "numbers",
)  # fmt: skip


@dataclass(frozen=True)
class Certificate:
    """An upper bound on the clean 0-1 risk of a predictor, which `bound` names.

    `pac_bayes`: the randomised predictor, which draws fresh weights N(Ŵ, σ²) for every prediction; nothing
    is claimed of the network with the weights Ŵ themselves. `holdout` and `compression`: the network itself.

    Attributes:
        risk: The bound; it fails with probability at most delta over the draw of the examples and of
            the weights. Of a diagnostic whose noise matrix is refuted it may be below 0.
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
        held_out: Errors on the given labels, n and the bound on the clean error for the unperturbed network
            on held-out examples, where given: Clopper–Pearson's where their labels are true.
        bound: The kind of bound: a key of BOUNDS.
        numbers: What else the bound is computed from: of PAC-Bayes the scaled loss's mean over the draws, the
            loss's ends `low` and `high` and the `padding` of unequal blocks; of a hold-out bound `mean`,
            `low`, `high` and, for true labels, `errors`; of compression the number of examples `kept` and,
            under noise, `floor` c and `gamma` γ: the noisy error is at least c + γ·(the true one).
        held_out_labels: `true`, `noisy` as the certificate's own, or `unknown`: then no bound follows.
        tried: {kind of bound: risk} of those that shared delta, where the smallest was taken.
        near_duplicates: {what: number of examples} of a run's: those counted that repeat another one counted
            or one of training, and those left out; empty where nobody looked.
        number: How many different certificates its run folder has had, with this one.
        smallest: The smallest of them with the union paid: it holds whichever of them is reported.
        noise_dependence: Of a run under noise that hesstune did not inject: the permutation test of whether
            the noise depends on the input, as `hesstune.noise.instance.Conditional`; empty if not run.
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
        """What the number speaks of."""
        return BOUNDS[self.bound]

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
            "predictor": self.predictor,
            "vacuous": self.vacuous,
            **dataclasses.asdict(self),
        }

    def save(self, path: str | Path) -> None:
        """Write the certificate as JSON.

        Raises:
            RunError: If it cannot be written: a former file is then as it was.
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
        if self.bound not in BOUNDS:
            raise ValueError(f"'bound' must be one of {', '.join(BOUNDS)}")

    def at(self, delta: float) -> float:
        """Return the bound that the same counts give at another probability of failure.

        For a union: of J certificates each taken at δ/J, the smallest holds with probability 1 − δ.

        Raises:
            ConfigError: If delta is out of range or below the part that a confidence set has spent, or the
                record, of an earlier version, does not hold the numbers.
            RefutedNoiseError: If the bound is below 0 there.

        Example:
            >>> c = Certificate.of_tail({"errors": 3.0, "mean": 0.03, "low": 0.0, "high": 1.0}, n=100,
            ...                         delta=0.05, classes=2)
            >>> round(c.risk, 4), round(c.at(0.025), 4)
            (0.0757, 0.0852)
        """
        spent = self.shares.get("noise", 0.0)
        if not spent < unit_interval("delta", delta) < 1:
            raise ConfigError(f"delta must lie above {spent:g} and below 1; got {delta}")
        factor = (delta - spent) / (self.delta - spent)
        shares = {name: share * factor for name, share in self.shares.items() if name != "noise"}
        risk = self._risk(shares)
        if risk < 0 and not self.diagnostic:
            raise RefutedNoiseError(
                f"at delta {delta:g} the bound on the true error is {risk:.4g}, below 0: it refutes the "
                "noise matrix; certify again with the matrix of these labels"
            )
        return risk

    def _risk(self, shares: dict[str, float]) -> float:
        return risk_of(self.bound, self.numbers, shares, self.n, self.kl, self.family, self.draws)

    def facts(self) -> dict[str, Any]:
        """Return, JSON-ready, what `at` needs: the certificate without its parameters and words."""
        return {name: getattr(self, name) for name in _FACTS}

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> Certificate:
        """Make a certificate of what `facts` returned; what it leaves out is empty.

        Raises:
            KeyError: If a fact is missing.
            ValueError: If a fact has a wrong type or value.
        """
        blank: dict[str, Any] = {"sigma": {}, "prior_sigma": {}, "distance": {}, "kl_terms": {}}
        found = cls(**blank, **{name: facts[name] for name in _FACTS}, assumptions=[])
        found._check()
        return found

    @classmethod
    def of_tail(
        cls,
        numbers: dict[str, float],
        *,
        n: int,
        delta: float,
        classes: int,
        share: float | None = None,
        spent: float = 0.0,
        family: int = 1,
        loss: str = "zero_one",
        noise: str = "clean",
        empirical: float | None = None,
        assumptions: list[str] | None = None,
        **more: Any,
    ) -> Certificate:
        """Make the certificate of a network that was fixed before n examples, from what they counted.

        Args:
            numbers: As of the attribute, for a hold-out bound.
            n: Number of examples.
            delta: Probability of failure.
            classes: K.
            share: The part of delta that the tail has; all that is not spent, by default.
            spent: The part of delta that a confidence set of the noise has.
            family: J, the losses that share it.
            loss: The loss's name.
            noise: How the labels' noise is known.
            empirical: Error on the given labels.
            assumptions: What must hold.
            **more: Further fields.
        """
        shares = {"exact_tail": delta - spent if share is None else share, "noise": spent}
        mean = numbers["mean"] if empirical is None else empirical
        return cls._of_network(
            "holdout",
            numbers,
            shares,
            mean,
            n=n,
            delta=delta,
            classes=classes,
            family=family,
            loss=loss,
            noise=noise,
            assumptions=assumptions or [],
            **more,
        )

    @classmethod
    def of_compression(
        cls,
        numbers: dict[str, float],
        *,
        n: int,
        delta: float,
        classes: int,
        spent: float = 0.0,
        noise: str = "clean",
        assumptions: list[str] | None = None,
        **more: Any,
    ) -> Certificate:
        """Make the certificate of a network that some of n examples determine.

        Args:
            numbers: As of the attribute, for compression.
            n: Number of examples.
            delta: Probability of failure.
            classes: K.
            spent: The part of delta that a confidence set of the noise has.
            noise: How the labels' noise is known.
            assumptions: What must hold.
            **more: Further fields.

        Example:
            >>> round(Certificate.of_compression({"kept": 10.0}, n=100, delta=0.05, classes=2).risk, 4)
            0.2051
        """
        shares = {"compression": delta - spent, "noise": spent}
        # Every example that was not kept is right; of those kept nothing is counted.
        return cls._of_network(
            "compression",
            numbers,
            shares,
            0.0,
            n=n,
            delta=delta,
            classes=classes,
            noise=noise,
            assumptions=assumptions or [],
            **more,
        )

    @classmethod
    def of_checked(
        cls,
        numbers: dict[str, float],
        *,
        n: int,
        delta: float,
        classes: int,
        sheets: int = 1,
        **more: Any,
    ) -> Certificate:
        """Make the certificate of a network that was fixed before n examples, some of them checked.

        Args:
            numbers: What `hesstune.bounds.checked.checked_bound` takes: `wrong_disagreeing` and
                `checked_disagreeing`, `wrong_agreeing` and `checked_agreeing`, and `disagreeing`.
            n: Number of examples.
            delta: Probability of failure.
            classes: K.
            sheets: How many samples were drawn to be checked; they share delta.
            **more: Further fields.
        """
        told = "noisy in any way, some of them checked"
        return cls._of_network(
            "checked",
            numbers,
            {"checked": delta / sheets, "other_sheets": delta - delta / sheets},
            numbers["disagreeing"] / n,
            n=n,
            delta=delta,
            classes=classes,
            noise=told,
            **more,
        )

    @classmethod
    def _of_network(
        cls, bound: str, numbers: dict[str, float], shares: dict[str, float], empirical: float, **more: Any
    ) -> Certificate:
        blank: dict[str, Any] = {"sigma": {}, "prior_sigma": {}, "distance": {}, "kl_terms": {}, "kl": 0.0}
        blank |= {"draws": 0, "draw_size": 0, "family": 1, "loss": "zero_one"}
        bare = cls(
            risk=1.0,
            empirical=empirical,
            empirical_bound=1.0,
            shares=shares,
            bound=bound,
            numbers=numbers,
            **{**blank, **more},
        )
        risk = bare._risk(shares)
        return dataclasses.replace(bare, risk=risk, empirical_bound=risk)

    def summary(self) -> str:
        """Return the certificate in words, for a terminal."""
        return summary_of(self)

    def __str__(self) -> str:
        return self.summary()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# What a bound speaks of, and of what it says nothing.
_SPOKEN = {
    "pac_bayes": (
        "the randomised predictor",
        "Predictor: fresh weights N(trained weights, sigma^2) for every prediction; "
        "nothing is claimed of the unperturbed network.",
    ),
    "holdout": (
        "the network",
        "Predictor: the network itself, fixed before it saw the examples counted; no noise on its weights.",
    ),
    "compression": (
        "the network",
        "Predictor: the network itself, trained on the examples kept and no others; no noise on its weights.",
    ),
    "checked": (
        "the network",
        "Predictor: the network itself, fixed before it saw the examples counted; no noise on its weights.",
    ),
}


def summary_of(found: Any) -> str:
    """Return a certificate in words, for a terminal."""
    if found.diagnostic:
        head = f"DIAGNOSTIC, NO CERTIFICATE: the number {found.risk:.4f} is not guaranteed, because"
        lines = [head, *(f"  - {reason}" for reason in found.failures)]
    else:
        verdict = (
            f"vacuous: guessing among {found.classes} classes does as well"
            if found.vacuous
            else "non-vacuous"
        )
        lines = [
            f"Certified: {_SPOKEN[found.bound][0]}'s true error is at most {found.risk:.4f} "
            f"with probability {1 - found.delta:g} ({verdict})."
        ]
    if found.number > 1 and not found.diagnostic:
        lines.append(
            f"It is certificate {found.number} of this run folder. The smallest of them holds only with the "
            f"union paid: {found.smallest:.4f}."
        )
    lines += [_SPOKEN[found.bound][1], _counts(found)]
    if found.tried:
        told = ", ".join(f"{name} {risk:.4f}" for name, risk in found.tried.items())
        lines.append(f"The smallest of bounds that share delta: {told}.")
    if found.held_out:
        lines.append(_beside(found, found.held_out))
    if some := {name: count for name, count in found.near_duplicates.items() if count}:
        told = ", ".join(f"{name.replace('_', ' ')} {count:.0f}" for name, count in some.items())
        lines.append(f"Near-duplicates among the examples: {told}.")
    if found.noise_dependence:
        lines.append(dependence_text(found.noise_dependence))
    lines += ["It holds if:", *(f"  - {text}" for text in found.assumptions)]
    return "\n".join(lines)


def dependence_text(test: Mapping[str, float]) -> str:
    """Return the result of the test of whether the noise depends on the input, in words."""
    rejected = bool(test["depends"])
    told = "rejected" if rejected else "did not reject; that shows nothing"
    return (
        f"Permutation test of whether the noise depends on the input: {told} (p = {test['p_value']:.2g}, "
        f"{test['examples']:.0f} examples; within a class, neighbours have the same label "
        f"{test['agreement']:.1%} of the time, {test['expected']:.1%} expected)."
    )


def _counts(found: Any) -> str:
    head = f"n = {found.n}, delta = {found.delta:g}, "
    labels = f"labels: {found.noise}; loss: {found.loss}"
    if found.bound == "compression":
        kept = f"examples kept = {found.numbers['kept']:.0f}"
        return f"{head}{kept}; every other one is classified right; {labels}"
    if found.bound == "checked":
        told = {name: f"{count:.0f}" for name, count in found.numbers.items()}
        if found.numbers.get("unchecked"):
            head += f"drawn examples without a label, counted as errors: {told['unchecked']}, "
        return (
            f"{head}disagreeing with the given label: {told['disagreeing']}; truly wrong among the checked: "
            f"{told['wrong_disagreeing']} of {told['checked_disagreeing']} of these, "
            f"{told['wrong_agreeing']} of {told['checked_agreeing']} of the others"
        )
    if found.bound == "holdout":
        return f"{head}error on the given labels: {found.empirical:.4f}; {labels}"
    return (
        f"{head}KL = {found.kl:.2f} nats, priors and losses to choose from = {found.family}, "
        f"draws = {found.draws}\n"
        f"Error on the given labels over the draws: {found.empirical:.4f}; {labels}"
    )


def _beside(found: Any, held: dict[str, float]) -> str:
    if found.held_out_labels == "unknown":
        return (
            f"Beside it, the unperturbed network disagrees with {held['error']:.4f} of the labels of "
            f"{held['n']:.0f} held-out examples; how many of these are wrong is not known, so no bound "
            "on the true error follows."
        )
    text = f"Beside it, the unperturbed network on {held['n']:.0f} held-out examples: "
    text += f"error {held['error']:.4f}"
    sure = f"probability {1 - held['delta']:g}"
    if found.held_out_labels == "noisy":
        return (
            f"{text} on labels as noisy as the certificate's own; its true error is at most "
            f"{held['bound']:.4f} ({sure})."
        )
    return f"{text}, at most {held['bound']:.4f} (Clopper-Pearson, {sure})."
