"""What `measure` computes of every layer and example: one class for each quantity.

To add a quantity, write a subclass of `Quantity` here, a test of its numbers, and its entry in
docs/measure.md. `measure(quantities=[name])` then computes it. `Measure.more` and measure.safetensors have
its tensors, gathered over processes; measure.json has its summary, and the notes have its sentence.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch

from hesstune.curvature.batches import LabelledBatch
from hesstune.curvature.declared import ABOVE, ExamplesChoice, MethodChoice, sample_fault
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.exact import FAILURE_PROBABILITY, ExactForms
from hesstune.curvature.quadrature import Stopping
from hesstune.errors import ConfigError, listed, unknown_name

QUANTITIES: dict[str, type[Quantity]] = {}
# So many eigenvalues a layer are summed up; the file of tensors has all.
EIGENVALUES = 10
GAUSS_NEWTON_NOTE = (
    "this is vᵀGv, G = JᵀΛJ the Gauss–Newton part of H, in place of vᵀH⁺v: equal where only piecewise-linear "
    "operations follow a layer, and another number elsewhere"
)
_DEFAULT_TOLERANCE = 0.03
# In a sample, whose means have larger errors.
_SAMPLE_TOLERANCE = 0.25
# A wide bracket (vᵀHv very negative) needs more products than `steps`.
_MOST_PER_STEP = 4


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """The arguments of `measure` that choose the computation; ConfigError if one is out of range."""

    method: str
    examples: str
    steps: int
    tol: float | None
    trace: bool | Literal["exact"]
    spectrum: bool
    quantities: tuple[str, ...]
    seed: int
    max_examples: int | None
    memory_mib: float | None
    skip_classes: float
    trace_passes: int
    mean_sample: int

    def __post_init__(self) -> None:
        choices = [
            ("method", self.method, get_args(MethodChoice)),
            ("value of examples", self.examples, get_args(ExamplesChoice)),
            *(("quantity", name, tuple(QUANTITIES)) for name in self.quantities),
        ]
        for kind, given, valid in choices:
            if given not in valid:
                raise unknown_name(kind, given, valid)
        for name, limit in ABOVE.items():
            value = getattr(self, name)
            if value is not None and not value > limit:
                raise ConfigError(f"{name} must be above {limit}; got {value}")
        if not 0 <= self.skip_classes < 1:
            raise ConfigError(
                f"skip_classes must be at least 0 (take all) and below 1; got {self.skip_classes}"
            )
        if fault := sample_fault(self.mean_sample):
            raise ConfigError(f"mean_sample {fault}; got {self.mean_sample}")

    @property
    def stopping(self) -> Stopping:
        """When Lanczos stops."""
        tol = _DEFAULT_TOLERANCE if self.tol is None else self.tol
        return Stopping(tol=tol, most=_MOST_PER_STEP * self.steps)

    @property
    def sample_stopping(self) -> Stopping:
        """When Lanczos stops on pairs of a sample."""
        return self.stopping if self.tol is not None else replace(self.stopping, tol=_SAMPLE_TOLERANCE)

    @property
    def sampled(self) -> int:
        """The largest number of draws for each smooth layer; 0: all examples are measured."""
        return self.mean_sample if self.examples == "max" and self.method != "gauss_newton" else 0

    @property
    def chosen(self) -> list[type[Quantity]]:
        """The quantities that are computed."""
        asked = {PositiveForm.name, *self.quantities}
        given = {"trace": self.trace, "spectrum": self.spectrum, "joint": self.method == "gauss_newton"}
        asked |= {name for name, on in given.items() if on}
        return [quantity for name, quantity in QUANTITIES.items() if name in asked]

    @property
    def passes(self) -> set[str]:
        """What the quantities need of the backward passes beside the form."""
        return {key for quantity in self.chosen for key in quantity.passes}

    @property
    def moved_only(self) -> bool:
        """Whether nothing is computed of layers that have not moved: their traces and spectra are not 0."""
        return "spectrum" not in self.passes and (self.trace == "exact" or "trace" not in self.passes)


class Quantity(ABC):
    """A quantity of every layer and example. Subclasses are registered in QUANTITIES by their name.

    Attributes:
        name: Its name in `measure(quantities=)`.
        sentence: What it is, for people.
        keys: The names of its tensors, each with one row for each example and one column for each layer.
        passes: What it needs of the backward passes beside the form: `trace`, `spectrum`, `joint`.
        missing: The entries of a layer in measure.json if it was not computed.
    """

    name: ClassVar[str]
    sentence: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]
    passes: ClassVar[tuple[str, ...]] = ()
    missing: ClassVar[Mapping[str, None]] = {}

    def __init_subclass__(cls) -> None:
        QUANTITIES[cls.name] = cls

    @staticmethod
    @abstractmethod
    def rows(
        engine: CurvatureEngine, batch: LabelledBatch, forms: ExactForms, settings: MeasureSettings
    ) -> dict[str, torch.Tensor]:
        """Compute the tensors of a batch: (B, L, ...) by key.

        Args:
            engine: Of the network; `engine.spread` fills columns of layers.
            batch: (inputs, targets).
            forms: The batch's forms of the layers in closed form, with what `passes` asks for.
            settings: The arguments of `measure`.
        """

    @staticmethod
    @abstractmethod
    def summary(measured: Any, layer: int) -> dict[str, Any]:
        """Return a layer's entries in measure.json, JSON-ready, from a `Measure`."""

    @staticmethod
    def notes(measured: Any) -> list[str]:
        """Return notes for people on how it was computed, from a `Measure`."""
        return []


class PositiveForm(Quantity):
    """v_iᵀ H_i⁺ v_i with bounds, and with `mean_sample` the predicted forms that choose the sample.

    With `method="gauss_newton"` its tensors hold v_iᵀ G_i v_i in place of that.
    """

    name = "positive_form"
    sentence = "vᵀH⁺v: how sharp the loss of an example is along the way that the layer moved"
    keys = ("quadratic", "lower", "upper")

    @staticmethod
    def rows(
        engine: CurvatureEngine, batch: LabelledBatch, forms: ExactForms, settings: MeasureSettings
    ) -> dict[str, torch.Tensor]:
        """Take the layers in closed form from their passes, others from Lanczos; sampled entries are NaN."""
        rows = {key: engine.spread(forms.names, getattr(forms, key)) for key in PositiveForm.keys}
        sampled = engine.moved("lanczos") if settings.sampled else []
        if settings.sampled:
            rows["predicted"] = torch.full_like(rows["quadratic"], math.nan)
        if sampled:
            columns = engine.columns(sampled)
            rows["predicted"][:, columns] = engine.predicted_forms(batch, sampled)
            for key in PositiveForm.keys:
                rows[key][:, columns] = math.nan
        if filled := [name for name in engine.moved("lanczos", "weight_space") if name not in sampled]:
            bracket = engine.lanczos(batch, filled, settings.stopping)
            for key in PositiveForm.keys:
                rows[key][:, engine.columns(filled)] = getattr(bracket, key)
        return rows

    @staticmethod
    def summary(measured: Any, layer: int) -> dict[str, Any]:
        """Return maximum, mean and 99th percentile over the examples."""
        bounds = [largest(rows[:, layer]) for rows in (measured.lower, measured.upper)]
        return {
            "maximum": number(measured.maximum[layer]),
            "maximum_bounds": bounds,
            "mean": number(measured.mean[layer]),
            "mean_stderr": number(measured.mean_stderr[layer]),
            "p99": number(measured.p99[layer]),
            "refined": int(measured.refined[:, layer].sum()),
        }

    @staticmethod
    def notes(measured: Any) -> list[str]:
        """Return the notes on the sample of smooth layers and on skipped classes."""
        found, counts = [], measured.refined.sum(0)
        if measured.quantity == "gauss_newton":
            found.append(GAUSS_NEWTON_NOTE)
        smooth = counts[counts < len(measured.quadratic)]
        if len(smooth):
            low, high = int(smooth.min()), int(smooth.max())
            many = f"{low}" if low == high else f"{low} to {high}"
            found.append(
                f"smooth layers were measured on {many} of {len(measured.quadratic)} examples, drawn at "
                "random in proportion to predicted forms: their maximum is over these, and their mean is "
                f"estimated for all; the drawing adds a standard error of {measured.sampling_error:.1%} to "
                "the sum of the layers' means"
            )
        share, tol = (0.0, 0.0) if measured.skipped is None else measured.skipped.tolist()
        if share:
            found.append(
                f"classes of little probability were skipped ({share:.0%} of the passes taken, or fewer): "
                f"they add at most {tol:.2g} of an entry in closed form, each with "
                f"{1 - FAILURE_PROBABILITY:.0%}, by random probes"
            )
        return found


class Trace(Quantity):
    """Tr H_i⁺: for exact layers exactly or, with many classes, by a few probes; or Tr G_i.

    By stochastic Lanczos quadrature for smooth layers.
    """

    name = "trace"
    sentence = "Tr H⁺: how sharp the loss of an example is in all directions of the layer together"
    keys = ("trace", "trace_stderr")
    passes = ("trace",)
    missing: ClassVar[Mapping[str, None]] = {"trace_max": None, "trace_mean": None}

    @staticmethod
    def rows(
        engine: CurvatureEngine, batch: LabelledBatch, forms: ExactForms, settings: MeasureSettings
    ) -> dict[str, torch.Tensor]:
        """Take layers in closed form from their passes; others by probes, or NaN with trace="exact"."""
        assert forms.trace is not None
        assert forms.trace_stderr is not None
        values = engine.spread(forms.names, forms.trace)
        stderrs = engine.spread(forms.names, forms.trace_stderr)
        closed = engine.plan.by("exact", "gauss_newton")
        left_out = engine.columns([name for name in closed if name not in forms.names])
        values[:, left_out] = stderrs[:, left_out] = math.nan
        # In weight space each product takes as long as a pass, so `steps` and `tol` apply.
        for method, stopping in (("lanczos", None), ("weight_space", settings.stopping)):
            names = engine.plan.by(method)  # type: ignore[arg-type]
            columns = engine.columns(names)
            if settings.trace == "exact":
                values[:, columns] = stderrs[:, columns] = math.nan
            elif names:
                found = engine.trace(batch, names, stopping)
                values[:, columns], stderrs[:, columns] = found.value, found.stderr
        return {"trace": values, "trace_stderr": stderrs}

    @staticmethod
    def summary(measured: Any, layer: int) -> dict[str, Any]:
        """Return maximum and mean over the examples."""
        traces = measured.trace[:, layer]
        return {"trace_max": largest(traces), "trace_mean": number(traces.nanmean())}

    @staticmethod
    def notes(measured: Any) -> list[str]:
        """Say how large the standard errors of estimated traces are."""
        known = ~measured.trace.isnan().any(0)
        closed = known & torch.tensor([m in ("exact", "gauss_newton") for m in measured.methods])
        traces, errors = measured.trace[:, closed].double(), measured.trace_stderr[:, closed].double()
        if not bool((errors > 0).any()):
            return []
        own = float((errors / traces.clamp(min=1e-300)).median())
        means = errors.square().sum(0).sqrt() / traces.sum(0).clamp(min=1e-300)
        return [
            "traces in closed form are estimates, by a few directions of the logits and random probes: the "
            f"standard error of one is {own:.1%} (median), and of a layer's mean over the examples "
            f"{float(means.median()):.1%}; their maximum over examples is too high by that"
        ]


class Spectrum(Quantity):
    """The K − 1 largest eigenvalues of H_i, descending, NaN for layers that are not exact; or of G_i."""

    name = "spectrum"
    sentence = "the nonzero eigenvalues of H: in how many directions the loss of an example is sharp"
    keys = ("spectrum",)
    passes = ("spectrum",)
    missing: ClassVar[Mapping[str, None]] = {"spectrum": None}

    @staticmethod
    def rows(
        engine: CurvatureEngine, batch: LabelledBatch, forms: ExactForms, settings: MeasureSettings
    ) -> dict[str, torch.Tensor]:
        """Take the layers in closed form from the Gram matrix of their passes' gradients."""
        assert forms.spectrum is not None
        return {"spectrum": engine.spread(forms.names, forms.spectrum, math.nan)}

    @staticmethod
    def summary(measured: Any, layer: int) -> dict[str, Any]:
        """Return the mean of the j-th largest eigenvalue and its standard error, j up to 10."""
        first = measured.spectrum[:, layer, :EIGENVALUES]
        if bool(first.isnan().any()):
            return {"spectrum": None}
        n = len(first)
        errors = first.std(0) / math.sqrt(n) if n > 1 else torch.full_like(first[0], math.nan)
        return {"spectrum": {"mean": [*map(number, first.mean(0))], "stderr": [*map(number, errors)]}}

    @staticmethod
    def notes(measured: Any) -> list[str]:
        """Name the layers without eigenvalues."""
        pairs = zip(measured.names, measured.methods, strict=True)
        smooth = [name for name, method in pairs if method in ("lanczos", "weight_space")]
        return [f"no eigenvalues of {listed(smooth)}: only the exact path gives them"] if smooth else []


class Joint(Quantity):
    """uᵀ Λ u with u = Σ_i J_i v_i, (n, 1): the Gauss–Newton form of all layers moved together.

    The sum over layers of v_iᵀ G_i v_i leaves out the products of different layers. NaN if a layer is not
    measured in closed form.
    """

    name = "joint"
    sentence = "uᵀΛu: how sharp the loss of an example is along the way that all layers moved together"
    keys = ("joint",)
    passes = ("joint",)

    @staticmethod
    def rows(
        engine: CurvatureEngine, batch: LabelledBatch, forms: ExactForms, settings: MeasureSettings
    ) -> dict[str, torch.Tensor]:
        """Take it from the passes of the layers in closed form, if these are all layers."""
        assert forms.joint is not None
        whole = not engine.plan.by("lanczos", "weight_space")
        return {"joint": forms.joint if whole else torch.full_like(forms.joint, math.nan)}

    @staticmethod
    def summary(measured: Any, layer: int) -> dict[str, Any]:
        """Return no entries: it is not a layer's."""
        return {}

    @staticmethod
    def notes(measured: Any) -> list[str]:
        """Return its mean beside that of the sum of the layers' forms."""
        joint, parts = float(measured.more["joint"].mean()), float(measured.quadratic.sum(1).mean())
        if math.isnan(joint):
            return ["uᵀΛu of all layers together is not known: some layers were measured by Lanczos"]
        times = f", {joint / parts:.2g} times that" if parts > 0 else ""
        return [
            "the measured layers moved together: their own forms add up to "
            f"{parts:.3g} (mean over the examples), and uᵀΛu, u = Σ J_i v_i, is {joint:.3g}{times}"
        ]


def largest(values: torch.Tensor) -> float | None:
    """Return the largest value that is not NaN; None if there is none."""
    return number(values.nan_to_num(nan=-math.inf).max())


def number(value: torch.Tensor) -> float | None:
    """Return a float; None, as JSON has it, for what is not finite."""
    found = float(value)
    return found if math.isfinite(found) else None
