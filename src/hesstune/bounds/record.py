"""The certificate: its record, its text, and what every kind of bound is."""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, model_validator
from torch import nn

from hesstune.bounds import BOUNDS
from hesstune.bounds.noisy import check_bound, check_floor, errors_in, tail_bound, zero_one_loss
from hesstune.bounds.prior import Sigma
from hesstune.bounds.sample import Sample
from hesstune.checks import one_of, unit_interval
from hesstune.display import as_html
from hesstune.errors import ConfigError, RefutedNoiseError
from hesstune.reference import Reference
from hesstune.storage.files import read_text, write_json
from hesstune.storage.stored import Stored, checked_record

if TYPE_CHECKING:
    from pandas import DataFrame

_HELD_OUT = ("errors", "n", "error", "bound", "delta")
# What `at` needs: all but the parameters and the texts. A file must have all but the last two.
_FACTS = (
    "risk", "empirical", "empirical_bound", "kl", "n", "delta", "shares", "classes", "family", "draws",
    "draw_size", "loss", "noise", "bound", "numbers",
)  # fmt: skip


class Certificate(Stored):
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
        sigma: Posterior's deviation of each trained parameter (root mean square of its entries).
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
        held_out: Errors, n and the bound of the unperturbed network on held-out examples, if given.
        bound: The kind of bound, one of `hesstune.bounds.BOUNDS`.
        numbers: What else the bound is computed from; `record` of the bound's class describes them.
        held_out_labels: `true`, `noisy` as the certificate's own, or `unknown` (no bound follows).
        tried: {kind of bound: risk} of the kinds that shared delta, if the smallest was taken.
        near_duplicates: {what: number of near-duplicates counted or left out}; empty without a search.
        number: How many different certificates the run folder has had, this one included.
        smallest: The smallest of them at delta divided by their number: it holds whichever is reported.
        noise_dependence: `hesstune.noise.instance.Conditional` of the permutation test; empty if not run.
    """

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    what: ClassVar[str] = "a certificate"
    fix: ClassVar[str] = "certify again"

    risk: float
    empirical: float
    empirical_bound: float
    kl: float = 0.0
    n: int
    delta: float
    shares: dict[str, float]
    classes: int
    sigma: dict[str, float] = {}
    prior_sigma: dict[str, float] = {}
    distance: dict[str, float] = {}
    kl_terms: dict[str, float] = {}
    family: int = 1
    draws: int = 0
    draw_size: int = 0
    loss: str = "zero_one"
    noise: str = "clean"
    assumptions: list[str] = []
    failures: list[str] = []
    held_out: dict[str, float] | None = None
    bound: str = "pac_bayes"
    numbers: dict[str, float] = {}
    held_out_labels: str = "true"
    tried: dict[str, float] = {}
    near_duplicates: dict[str, float] = {}
    number: int = 1
    smallest: float | None = None
    noise_dependence: dict[str, float] = {}

    @model_validator(mode="after")
    def _is_whole(self) -> Certificate:
        if not set(_HELD_OUT) <= set(_HELD_OUT if self.held_out is None else self.held_out):
            raise ValueError(f"'held_out' must hold {', '.join(_HELD_OUT)}")
        if self.classes < 2:
            raise ValueError("'classes' must be at least 2")
        one_of("bound", self.bound, BOUNDS)
        return self

    @property
    def kind(self) -> type[Bound]:
        """The class of the bound."""
        return bound_class(self.bound)

    @property
    def predictor(self) -> str:
        """The predictor that the bound is about."""
        return self.kind.predictor

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
            **self.model_dump(),
        }

    def save(self, path: str | Path) -> None:
        """Write the certificate as JSON, whole or not at all."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read a certificate written by `save`; RunError if the file is missing or is none."""

        def content() -> Any:
            record = json.loads(read_text(Path(path)))
            if missing := [name for name in (*_FACTS[:-2], "assumptions") if name not in record]:
                raise ValueError(f"'{missing[0]}' is missing")
            return record

        return checked_record(Path(path), cls, content)

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
        """Return the bound if δ is shared in this way."""
        try:
            return self.kind.risk(self, shares)
        except KeyError as error:
            raise ConfigError(f"the certificate's record lacks the number {error}; certify again") from error

    def facts(self) -> dict[str, Any]:
        """Return, JSON-ready, what `at` needs: the certificate without its parameters and texts."""
        return {name: getattr(self, name) for name in _FACTS}

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> Certificate:
        """Make a certificate from the result of `facts`; KeyError or ValueError if one is missing or bad."""
        return cls.model_validate({name: facts[name] for name in _FACTS})

    @classmethod
    def of_network(
        cls, bound: str, numbers: dict[str, float], *, n: int, delta: float, classes: int, **fields: Any
    ) -> Certificate:
        """Make the certificate of a network without weight noise, from its counts."""
        kind = bound_class(bound)
        fields = {
            "shares": {kind.share: delta, "noise": 0.0},
            "empirical": kind.empirical(numbers, n),
            **fields,
        }
        fields |= {"bound": bound, "numbers": numbers, "n": n, "delta": delta, "classes": classes}
        bare = cls(risk=1.0, empirical_bound=1.0, **fields)
        risk = bare._risk(bare.shares)
        return bare.replaced(risk=risk, empirical_bound=risk)

    def summary(self) -> str:
        """Return the certificate as text for a terminal."""
        if self.diagnostic:
            head = f"DIAGNOSTIC, NO CERTIFICATE: the number {self.risk:.4f} is not guaranteed, because"
            lines = [head, *(f"  - {reason}" for reason in self.failures)]
        else:
            guessing = f"vacuous: guessing among {self.classes} classes does as well"
            lines = [
                f"Certified: the true error of {self.kind.short_name} is at most {self.risk:.4f} "
                f"with probability {1 - self.delta:g} ({guessing if self.vacuous else 'non-vacuous'})."
            ]
        if self.number > 1 and not self.diagnostic:
            lines.append(
                f"This is certificate {self.number} of this run folder. The smallest of them is valid only "
                f"at delta divided by their number: {self.smallest:.4f}."
            )
        counts = f"n = {self.n}, delta = {self.delta:g}, {self.kind.counts(self)}"
        lines += [f"Predictor: {self.predictor}.", counts]
        if self.tried:
            risks = ", ".join(f"{name} {risk:.4f}" for name, risk in self.tried.items())
            lines.append(f"The smallest of several bounds that share delta: {risks}.")
        if self.held_out:
            lines.append(self._held_out_text(self.held_out))
        if some := {name: count for name, count in self.near_duplicates.items() if count}:
            found = ", ".join(f"{name.replace('_', ' ')} {count:.0f}" for name, count in some.items())
            lines.append(f"Near-duplicates among the examples: {found}.")
        if self.noise_dependence:
            lines.append(dependence_text(self.noise_dependence))
        return "\n".join([*lines, "It holds if:", *(f"  - {text}" for text in self.assumptions)])

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

    def labels_text(self) -> str:
        """Return how the labels' noise is known, and the loss."""
        return f"labels: {self.noise}; loss: {self.loss}"

    def __str__(self) -> str:
        return self.summary()

    def to_frame(self) -> DataFrame:
        """Return a pandas DataFrame of one row; `pandas.concat` puts several certificates together.

        Columns: kind (certificate or diagnostic), vacuous, bound, risk, empirical, empirical_bound, kl, n,
        delta, draws, loss and noise, as the attributes are.
        """
        from pandas import DataFrame

        names = ("kind", "vacuous", "bound", "risk", "empirical", "empirical_bound", "kl", "n", "delta")
        found = self.to_dict()
        return DataFrame([{name: found[name] for name in (*names, "draws", "loss", "noise")}])

    def _repr_html_(self) -> str:
        title, *sentences = self.summary().splitlines()
        return as_html(title, sentences, self.to_frame())


def dependence_text(test: Mapping[str, float]) -> str:
    """Return the result of the test of whether the noise depends on the input, as text."""
    result = "rejected" if test["depends"] else "did not reject; that shows nothing"
    return (
        f"Permutation test of whether the noise depends on the input: {result} (p = {test['p_value']:.2g}, "
        f"{test['examples']:.0f} examples; within a class, neighbours have the same label "
        f"{test['agreement']:.1%} of the time, {test['expected']:.1%} expected)."
    )


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network that a bound is about."""

    model: nn.Module  # The network; it runs in eval mode and is left unchanged, bit for bit
    # σ of each trained parameter, a number or a tensor; None: that of one of the priors.
    posterior: Sigma | None = None
    # The indices of the sample's examples that it was trained on, if these are a few.
    kept: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Prior:
    """A Gaussian prior on the weights, fixed without the examples of the bound."""

    reference: Reference  # Its centre
    # Global scales of its standard deviations; None for the default grid.
    scales: Sequence[float] | None = None
    # {parameter pattern: ratio} on top of the parameters' natural scales; or several such sets.
    ratios: Mapping[str, float] | Sequence[Mapping[str, float]] | None = None


class Bound(ABC):
    """A bound on the true error: the class BOUND of the file `hesstune/bounds/kinds/NAME.py`.

    The first line of the file is its sentence for people: what is bounded, and by what.
    """

    # The predictor that the bound is about.
    predictor: ClassVar[str] = (
        "the network itself, fixed before it saw the examples counted; no noise on its weights"
    )
    short_name: ClassVar[str] = "the network"  # The predictor in a few words
    share: ClassVar[str]  # The part of delta that the bound has, a key of `Certificate.shares`
    record: ClassVar[dict[str, str]]  # The keys of `Certificate.numbers`, and what they are
    # The network of a run that the bound is for: the means of a `posterior` around a prior, an `unseen`
    # one, trained on other examples, or a `picked` one, which a few of the examples determine.
    network: ClassVar[Literal["posterior", "unseen", "picked"]]

    @classmethod
    @abstractmethod
    def evaluate(cls, network: Network, prior: Prior | None, sample: Sample) -> Certificate:
        """Return the certificate of a network on a sample; HesstuneError if a condition fails."""

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


def bound_class(name: str) -> type[Bound]:
    """Return the class of a bound by its name."""
    one_of("bound", name, BOUNDS)
    found: type[Bound] = importlib.import_module(f"{__package__}.kinds.{name}").BOUND
    return found


def finished(certificate: Certificate, sample: Sample, model: nn.Module, *own: str) -> Certificate:
    """Return a certificate with its assumptions, its failures, and the bound on the held-out examples."""
    conditions, options = sample.conditions, sample.options
    delta, labels = options.delta, options.held_out_labels
    conditions.attempt(lambda: check_bound(certificate.risk, sample.noise, delta))
    fields: dict[str, Any] = {"assumptions": [*sample.assumptions(), *own, *options.assumptions]}
    if (data := sample.held_out) is not None:
        confusion = data.confusion(model, sample.k)
        wrong, bound = errors_in(confusion), 1.0
        if labels != "unknown":
            is_noisy = labels == "noisy" and sample.noise is not None
            noise = sample.noise if is_noisy else None
            losses = sample.losses if is_noisy else [zero_one_loss(sample.k)]
            bound = tail_bound(confusion, losses, delta - (options.spent if is_noisy else 0.0))[0]
            conditions.attempt(lambda: check_floor(confusion, noise, delta))
            conditions.attempt(lambda: check_bound(bound, noise, delta))
        counts = {"errors": wrong, "n": data.n, "error": wrong / data.n, "bound": bound, "delta": delta}
        fields |= {"held_out": counts, "held_out_labels": labels}
    return certificate.replaced(failures=list(conditions.failures), **fields)
