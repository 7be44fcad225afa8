"""The result of a measurement: per example and layer, summed up per layer, saved and loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hesstune.curvature.declared import CHECKSUM, FORMS, MEASURE, MEASURE_TENSORS, FormKind, FormNames
from hesstune.curvature.quantities import QUANTITIES, Quantity, number
from hesstune.display import as_html
from hesstune.errors import ConfigError, RunError, listed
from hesstune.storage.files import json_writer, made_folder, one_line, replace_files
from hesstune.storage.tensors import digest, tensor_writer

if TYPE_CHECKING:
    from pandas import DataFrame

# The results of the studies in a sentence each; tests compare them with the records.
TRAINING_EVIDENCE = (
    "Over the study's 1,262 runs it did not follow the generalization gap: Kendall's τ was −0.00, +0.38 "
    "for whole networks were trained on weak labels (+0.52 for the distance from the reference alone), and "
    "between −0.10 and +0.04 for heads alone"
)
HELD_OUT_EVIDENCE = (
    "Over 155 whole networks on 13 tasks the mean over held-out examples had τ +0.68 with the gap within a "
    "test task (+0.55 for the distance alone, +0.29 for the maximum over training examples), and was within "
    "a factor 5 of it in 87 % of the runs; its form was vᵀGv, which is vᵀH⁺v if only piecewise-linear "
    "operations follow a layer, but not on the 54 networks on texts"
)
# docs/research/gap.md has the table.
CONSTRAINT_EVIDENCE = (
    "Evidence, for distance constraints on all layers together (radius 0.05, of the head 0.25): in 33 "
    "settings with every layer trained, robust had a mean measure over held-out examples 5.0 times smaller "
    "(median) than plain fine-tuning to the last epoch, and a gap of 0.47 instead of 1.45, at a test "
    "accuracy 1.2 points lower; the effect of smaller radii of single layers was not measured"
)
STATEMENT = (
    "The Hessian distance measure is no guarantee: the maximum over these examples and the largest observed "
    f"loss stand in for the theorem's suprema, and its O(n^(-3/4)) term is unknown. "
    f"{TRAINING_EVIDENCE}. {HELD_OUT_EVIDENCE}."
)
GAUSS_NEWTON_STATEMENT = (
    "The Gauss–Newton distance measure is no guarantee, and not the Hessian distance measure of the theorem: "
    f"it has vᵀGv in place of vᵀH⁺v. {HELD_OUT_EVIDENCE}."
)
# The attributes with one row for each example.
_ROWS = ("quadratic", "lower", "upper", "losses", "trace", "trace_stderr", "spectrum")


@dataclass
class Measure:
    """v_iᵀ H_i⁺ v_i of n examples and L layers, and how it was computed.

    H_i is the Hessian of one example's loss in vec(W_i), H_i⁺ its positive part, and
    v_i = vec(W_i − W_i⁽ˢ⁾). All tensors are float64 on the CPU. With `method="gauss_newton"` they are those
    of G_i, the Gauss–Newton part of H_i, in place of H_i⁺ and H_i; `quantity` tells which.

    Attributes:
        names: The L layers.
        quadratic: v_iᵀ H_i⁺ v_i, (n, L); NaN for examples outside the sample of a smooth layer.
        lower: A bound from below, (n, L).
        upper: A bound from above, (n, L). Exact entries have lower = quadratic = upper, up to rounding.
        losses: The loss of each example, (n,).
        distances: ‖v_i‖, (L,).
        methods: Per layer: `exact`, `lanczos`, `weight_space`, `gauss_newton` or `unused`.
        reasons: Per layer: the reason for the method.
        trace: Tr H_i⁺, (n, L), or None if not requested.
        trace_stderr: Its standard error, (n, L); 0 for traces in closed form from all K − 1 passes.
        spectrum: The K − 1 largest eigenvalues of H_i, descending, (n, L, K − 1); NaN for
            layers without a closed form; None if not requested.
        notes: Further notes for readers, such as the size of the sample.
        sampled_mean: The means estimated from a random sample of examples, (L,); NaN for layers measured on
            all examples; None without a sample.
        sampled_stderr: Its standard error, (L,).
        sampling_stderr: The part of that from the sampling, (L,), independent between layers.
        not_layers: Weight matrices that have changed but are not layers, so that they are not measured.
        skipped: The largest share of the passes that a batch with skipped classes took, or 0, and the
            tolerance, (2,); not saved.
        more: The tensors of further quantities, (n, L, ...), by name.

    Example:
        >>> one = torch.ones(4, 1, dtype=torch.float64)
        >>> losses = torch.tensor([0.5, 0.1, 0.2, 2.0])
        >>> m = Measure(["w"], one, one, one, losses, torch.ones(1), ["exact"], [""])
        >>> round(m.hessian_distance(n=100), 4)  # sqrt(2 · 1 / 100)
        0.1414
    """

    names: list[str]
    quadratic: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor
    losses: torch.Tensor
    distances: torch.Tensor
    methods: list[str]
    reasons: list[str]
    trace: torch.Tensor | None = None
    trace_stderr: torch.Tensor | None = None
    spectrum: torch.Tensor | None = None
    notes: list[str] = field(default_factory=list)
    sampled_mean: torch.Tensor | None = None
    sampled_stderr: torch.Tensor | None = None
    sampling_stderr: torch.Tensor | None = None
    not_layers: list[str] = field(default_factory=list)
    skipped: torch.Tensor | None = None
    more: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def quantity(self) -> FormKind:
        """Which quadratic form was measured: `positive_form`, vᵀH⁺v, or `gauss_newton`, vᵀGv."""
        return "gauss_newton" if "gauss_newton" in self.methods else "positive_form"

    @property
    def form(self) -> FormNames:
        """The names of the form and of what is computed from it."""
        return FORMS[self.quantity]

    @property
    def rows(self) -> dict[str, torch.Tensor]:
        """All tensors with one row for each example, by name."""
        own = {name: getattr(self, name) for name in _ROWS}
        return {name: rows for name, rows in own.items() if rows is not None} | self.more

    def with_rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Measure:
        """Return the measurement with every tensor of `rows` changed."""
        found = {name: change(rows) for name, rows in self.rows.items()}
        more = {name: found.pop(name) for name in self.more}
        return replace(self, **found, more=more)  # type: ignore[arg-type]

    @property
    def quantities(self) -> list[type[Quantity]]:
        """The quantities that were computed."""
        return [quantity for quantity in QUANTITIES.values() if set(quantity.keys) <= set(self.rows)]

    def quantity_notes(self) -> list[str]:
        """Return the notes on how the quantities were computed."""
        return [note for quantity in self.quantities for note in quantity.notes(self)]

    @property
    def exact(self) -> list[bool]:
        """Whether each layer's entries are v_iᵀ H_i⁺ v_i to rounding: no quadrature, no skipped classes.

        False for layers measured by `gauss_newton`, which is another form.
        """
        return [
            m == "unused" or (m == "exact" and bool((self.lower[:, i] == self.upper[:, i]).all()))
            for i, m in enumerate(self.methods)
        ]

    @property
    def maximum(self) -> torch.Tensor:
        """The largest v_iᵀ H_i⁺ v_i over the measured examples, (L,)."""
        return self.quadratic.nan_to_num(nan=-math.inf).amax(0)

    @property
    def refined(self) -> torch.Tensor:
        """Which entries of `quadratic` were measured, (n, L) bool."""
        return ~self.quadratic.isnan()

    @property
    def mean(self) -> torch.Tensor:
        """The mean of v_iᵀ H_i⁺ v_i over the examples, (L,).

        For layers measured on a random sample it is an estimate.
        """
        return _filled(self.quadratic.mean(0), self.sampled_mean)

    @property
    def mean_stderr(self) -> torch.Tensor:
        """The standard error of `mean`, (L,); NaN with fewer than two examples."""
        n = self.quadratic.shape[0]
        if n < 2:
            return torch.full_like(self.maximum, math.nan)
        return _filled(self.quadratic.std(0) / math.sqrt(n), self.sampled_stderr)

    @property
    def sampling_error(self) -> float:
        """The standard error that the sampling adds to the sum of the layers' means, relative to the sum."""
        if self.sampling_stderr is None:
            return 0.0
        error = self.sampling_stderr.square().nansum().sqrt()
        return float(error / self.mean.sum().clamp_min(1e-300))

    @property
    def p99(self) -> torch.Tensor:
        """The 99th percentile over the examples, (L,); NaN for layers measured on a sample."""
        return self.quadratic.quantile(0.99, dim=0)

    def hessian_distance(self, n: int, C: float | None = None) -> float:
        """Return the Hessian distance measure Σ_i √(C·𝓗_i/n) (the paper, Theorem 2.1).

        With `method="gauss_newton"` it is that of v_iᵀ G_i v_i, which the theorem does not cover.

        Args:
            n: The size of the training set.
            C: A bound on the loss; default: the largest observed loss, which is a plug-in.

        Raises:
            ConfigError: If n < 1 or C is negative.
        """
        return float(self.shares(n, C).sum())

    def mean_hessian_distance(self, n: int, C: float | None = None) -> float:
        """Return Σ_i √(C·mean v_iᵀ H_i⁺ v_i / n), the default of `hesstune measure`, over held-out examples.

        docs/research/gap.md compares it with other measures. NaN if a layer's mean is unknown. Arguments are
        those of `hessian_distance`.

        Example:
            >>> values = torch.tensor([[4.0], [0.0]], dtype=torch.float64)
            >>> losses = torch.tensor([2.0, 0.5])
            >>> m = Measure(["w"], values, values, values, losses, torch.ones(1), ["exact"], [""])
            >>> m.mean_hessian_distance(n=100), round(m.hessian_distance(n=100), 4)  # √(2·2/100), √(2·4/100)
            (0.2, 0.2828)
        """
        return float(self.mean_shares(n, C).sum())

    def mean_shares(self, n: int, C: float | None = None) -> torch.Tensor:
        """Return each layer's term √(C·mean/n) of `mean_hessian_distance`, (L,)."""
        return (self._bound(n, C) * self.mean.clamp_min(0) / n).sqrt()

    def shares(self, n: int, C: float | None = None) -> torch.Tensor:
        """Return each layer's term √(C·𝓗_i/n) of `hessian_distance`, (L,)."""
        return (self._bound(n, C) * self.maximum / n).sqrt()

    def _bound(self, n: int, C: float | None) -> float:
        """Check n and C; return C, or the largest observed loss if it is None."""
        if n < 1:
            raise ConfigError(f"n must be the size of the training set, at least 1; got {n}")
        bound = float(self.losses.max()) if C is None else float(C)
        if bound < 0 or math.isnan(bound):
            if C is not None:
                raise ConfigError(f"C bounds the loss and cannot be negative; got {C}")
            bound = 0.0
        return bound

    def to_dict(self, n: int | None = None) -> dict[str, Any]:
        """Return a JSON-ready summary: numbers per layer, no per-example values; NaN becomes None.

        Args:
            n: The size of the training set; default: the number of measured examples.
        """
        computed = self.quantities
        layers: list[dict[str, Any]] = [
            {
                "name": name,
                "distance": number(self.distances[i]),
                "exact": self.exact[i],
                "method": self.methods[i],
                "reason": self.reasons[i],
            }
            for i, name in enumerate(self.names)
        ]
        for quantity in QUANTITIES.values():
            for i, layer in enumerate(layers):
                layer |= quantity.summary(self, i) if quantity in computed else quantity.missing
        n = self.losses.shape[0] if n is None else n
        return {
            "examples": self.losses.shape[0],
            "quantity": self.quantity,
            "measure": {"n": n, "C": float(self.losses.max()), "value": self.hessian_distance(n)},
            "mean_measure": self._mean_dict(n),
            "losses": {"mean": float(self.losses.mean()), "max": float(self.losses.max())},
            "layers": layers,
            "notes": list(self.notes),
            "not_layers": list(self.not_layers),
            "statement": STATEMENT if self.quantity == "positive_form" else GAUSS_NEWTON_STATEMENT,
        }

    def _mean_dict(self, n: int) -> dict[str, float | int | None]:
        """Summarise `mean_hessian_distance`, with an upper bound on its standard error by the means'."""
        shares = self.mean_shares(n)
        # √(Cm/n) moves by half its relative change in m; layers share their examples, so errors add up, but
        # each has draws of its own.
        slopes = torch.where(shares > 0, shares / (2 * self.mean), 0)
        own = torch.zeros_like(slopes)
        if self.sampling_stderr is not None:
            own = self.sampling_stderr.nan_to_num(nan=0.0)
        shared = (self.mean_stderr.square() - own.square()).clamp_min(0).sqrt()
        error = ((slopes * shared).sum().square() + (slopes * own).square().sum()).sqrt()
        value, stderr = number(shares.sum()), number(error)
        return {"n": n, "C": float(self.losses.max()), "value": value, "stderr": stderr}

    def save(self, folder: str | Path, n: int | None = None, **more: Any) -> None:
        """Write measure.json (see `to_dict`) and measure.safetensors (all tensors).

        Both files are complete before one replaces an earlier file, and both hold a checksum of the tensors.

        Args:
            folder: The folder; it is created.
            n: The number of training examples, as of `to_dict`.
            **more: Further entries of measure.json, such as the part that was measured.

        Raises:
            RunError: If they cannot be written; earlier files are then unchanged.
        """
        target = Path(folder)
        others = ("sampled_mean", "sampled_stderr", "sampling_stderr", "distances")
        tensors = self.rows | {k: v for k in others if (v := getattr(self, k)) is not None}
        facts = {k: getattr(self, k) for k in ("names", "methods", "reasons", "notes", "not_layers")}
        metadata = {k: json.dumps(v) for k, v in facts.items()}
        checksum = digest(tensors)
        summary = {**self.to_dict(n), **more, "tensors": checksum}
        writers = {
            target / MEASURE_TENSORS: tensor_writer(tensors, {**metadata, CHECKSUM: checksum}),
            target / MEASURE: json_writer(summary),
        }
        made_folder(target)
        replace_files(writers)

    @classmethod
    def load(cls, folder: str | Path) -> Measure:
        """Read the files that `save` wrote.

        Raises:
            RunError: If the folder holds no readable measurement.
        """
        from safetensors import safe_open

        path = Path(folder) / MEASURE_TENSORS
        try:
            with safe_open(str(path), framework="pt") as file:
                facts = {
                    key: json.loads(value)
                    for key, value in (file.metadata() or {}).items()
                    if key != CHECKSUM
                }
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            more = {name: tensors.pop(name) for name in tensors.keys() - {f.name for f in fields(cls)}}
            return cls(**facts, **tensors, more=more)
        except Exception as error:  # damaged files raise many kinds
            reason = one_line(error)
            raise RunError(f"{path} is not a readable measurement ({reason}); run `measure` first") from error

    def to_frame(self) -> DataFrame:
        """Return a pandas DataFrame with a row for each layer, the largest share of the measure first.

        Columns: layer, share (of the mean measure, or of the measure if a mean is unknown), maximum, mean,
        mean_stderr, distance, trace_mean (NaN if not computed), method and exact.
        """
        from pandas import DataFrame

        shares = self.mean_shares(1)
        shares = self.shares(1) if shares.isnan().any() else shares
        unknown = torch.full_like(shares, math.nan)
        numbers = {
            "share": shares / shares.sum().clamp_min(1e-300),
            "maximum": self.maximum,
            "mean": self.mean,
            "mean_stderr": self.mean_stderr,
            "distance": self.distances,
            "trace_mean": unknown if self.trace is None else self.trace.nanmean(0),
        }
        columns = {name: values.tolist() for name, values in numbers.items()}
        rest = {"method": self.methods, "exact": self.exact}
        frame = DataFrame({"layer": self.names, **columns, **rest})
        return frame.sort_values("share", ascending=False, kind="stable", ignore_index=True)

    def _repr_html_(self) -> str:
        return as_html(repr(self), ["A measure, no guarantee.", *self.notes], self.to_frame())

    def __repr__(self) -> str:
        kinds = ", ".join(f"{self.methods.count(m)} {m}" for m in dict.fromkeys(self.methods))
        without = f"; without {listed(self.not_layers)}" if self.not_layers else ""
        what = "" if self.quantity == "positive_form" else f"{self.form.form} of "
        return f"Measure({what}{self.losses.shape[0]} examples, {len(self.names)} layers: {kinds}{without})"


def _filled(values: torch.Tensor, sampled: torch.Tensor | None) -> torch.Tensor:
    return values if sampled is None else torch.where(values.isnan(), sampled, values)
