"""The result of a measurement: per example and layer, summed up per layer, saved and loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hesstune.curvature.declared import CHECKSUM, MEASURE, MEASURE_TENSORS
from hesstune.errors import ConfigError, RunError, listed, unknown_name
from hesstune.reference import NO_LAYER
from hesstune.storage.files import json_writer, made_folder, one_line, replace_files
from hesstune.storage.tensors import digest, tensor_writer

# The results of the studies in a sentence each; tests compare them with the records.
TRAINING_EVIDENCE = (
    "Over the study's 1,262 runs it did not follow the generalization gap: Kendall's τ was −0.00, +0.38 "
    "where whole networks were trained on weak labels (+0.52 for the distance from the reference alone), and "
    "between −0.10 and +0.04 for heads alone"
)
HELD_OUT_EVIDENCE = (
    "Over 155 whole networks on 13 tasks the mean over held-out examples had τ +0.68 with the gap within a "
    "test task (+0.55 for the distance alone, +0.29 for the maximum over training examples), and was within "
    "a factor 5 of it in 87 % of the runs"
)
# docs/gap.md has the table.
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
# So many eigenvalues a layer are summed up; the file of tensors has all.
EIGENVALUES = 10
_TENSORS = (
    "quadratic",
    "lower",
    "upper",
    "losses",
    "trace",
    "spectrum",
    "trace_stderr",
    "sampled_mean",
    "sampled_stderr",
)


@dataclass
class Measure:
    """v_iᵀ H_i⁺ v_i of n examples and L layers, and how it was computed.

    H_i is the Hessian of one example's loss in vec(W_i), H_i⁺ its positive part, and
    v_i = vec(W_i − W_i⁽ˢ⁾). All tensors are float64 on the CPU.

    Attributes:
        names: The L layers.
        quadratic: v_iᵀ H_i⁺ v_i, (n, L); NaN for examples outside the sample of a smooth layer.
        lower: A bound from below, (n, L).
        upper: A bound from above, (n, L). Exact entries have lower = quadratic = upper, up to rounding.
        losses: The loss of each example, (n,).
        distances: ‖v_i‖, (L,).
        methods: Per layer: `exact`, `lanczos`, `weight_space` or `unused`.
        reasons: Per layer: the reason for the method.
        trace: Tr H_i⁺, (n, L), or None if not requested.
        trace_stderr: Its standard error, (n, L); 0 for exact layers without skipped classes.
        spectrum: The K − 1 largest eigenvalues of H_i, descending, (n, L, K − 1); NaN for
            layers that are not exact; None if not requested.
        notes: Further notes for readers, such as the size of the sample.
        sampled_mean: The means estimated from a random sample of examples, (L,); NaN for layers measured on
            all examples; None without a sample.
        sampled_stderr: Its standard error, (L,).
        not_layers: Weight matrices that have changed but are not layers, so that they are not measured.
        skipped: The numbers of the note on skipped classes, (2,); not saved.

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
    not_layers: list[str] = field(default_factory=list)
    skipped: torch.Tensor | None = None

    @property
    def exact(self) -> list[bool]:
        """Whether each layer's entries are exact to rounding: no quadrature, no skipped classes."""
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
    def p99(self) -> torch.Tensor:
        """The 99th percentile over the examples, (L,); NaN for layers measured on a sample."""
        return self.quadratic.quantile(0.99, dim=0)

    def hessian_distance(self, n: int, C: float | None = None) -> float:
        """Return the Hessian distance measure Σ_i √(C·𝓗_i/n) (the paper, Theorem 2.1).

        Args:
            n: The size of the training set.
            C: A bound on the loss; default: the largest observed loss, which is a plug-in.

        Raises:
            ConfigError: If n < 1 or C is negative.
        """
        return float(self.shares(n, C).sum())

    def mean_hessian_distance(self, n: int, C: float | None = None) -> float:
        """Return Σ_i √(C·mean v_iᵀ H_i⁺ v_i / n), the default of `hesstune measure`, over held-out examples.

        docs/gap.md compares it with other measures. NaN if a layer's mean is unknown. Arguments are those of
        `hessian_distance`.

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

    def leaving_out(self, names: list[str]) -> Measure:
        """Return the measurement with a note that these weight matrices are not layers."""
        if not names:
            return self
        note = f"{listed(names)} not measured: {NO_LAYER}"
        return replace(self, not_layers=names, notes=[*self.notes, note])

    def example(self, layer: str) -> int:
        """Return the index of the example that attains a layer's maximum."""
        if layer not in self.names:
            raise unknown_name("layer", layer, self.names)
        return int(self.quadratic[:, self.names.index(layer)].nan_to_num(nan=-math.inf).argmax())

    def to_dict(self, n: int | None = None) -> dict[str, Any]:
        """Return a JSON-ready summary: numbers per layer, no per-example values; NaN becomes None.

        Args:
            n: The size of the training set; default: the number of measured examples.
        """
        layers = [self._layer_dict(i) for i in range(len(self.names))]
        n = self.losses.shape[0] if n is None else n
        return {
            "examples": self.losses.shape[0],
            "measure": {"n": n, "C": float(self.losses.max()), "value": self.hessian_distance(n)},
            "mean_measure": self._mean_dict(n),
            "losses": {"mean": float(self.losses.mean()), "max": float(self.losses.max())},
            "layers": layers,
            "notes": list(self.notes),
            "not_layers": list(self.not_layers),
            "statement": STATEMENT,
        }

    def _mean_dict(self, n: int) -> dict[str, float | int | None]:
        """Summarise `mean_hessian_distance`, with an upper bound on its standard error by the means'."""
        shares = self.mean_shares(n)
        # √(Cm/n) moves by half its relative change in m; layers share their examples, so errors add up.
        slopes = torch.where(shares > 0, shares * self.mean_stderr / (2 * self.mean), 0)
        value, stderr = _number(shares.sum()), _number(slopes.sum())
        return {"n": n, "C": float(self.losses.max()), "value": value, "stderr": stderr}

    def _layer_dict(self, i: int) -> dict[str, Any]:
        traces = None if self.trace is None else self.trace[:, i]
        return {
            "name": self.names[i],
            "maximum": _number(self.maximum[i]),
            "maximum_bounds": [_largest(self.lower[:, i]), _largest(self.upper[:, i])],
            "mean": _number(self.mean[i]),
            "mean_stderr": _number(self.mean_stderr[i]),
            "p99": _number(self.p99[i]),
            "distance": _number(self.distances[i]),
            "trace_max": None if traces is None else _largest(traces),
            "trace_mean": None if traces is None else _number(traces.nanmean()),
            "exact": self.exact[i],
            "method": self.methods[i],
            "reason": self.reasons[i],
            "refined": int(self.refined[:, i].sum()),
            "spectrum": self._spectrum_dict(i),
        }

    def _spectrum_dict(self, i: int) -> dict[str, list[float | None]] | None:
        """Summarise a layer's first eigenvalues over the examples; None without a spectrum."""
        if self.spectrum is None or bool(self.spectrum[:, i].isnan().any()):
            return None
        first = self.spectrum[:, i, :EIGENVALUES]
        n = len(first)
        errors = first.std(0) / math.sqrt(n) if n > 1 else torch.full_like(first[0], math.nan)
        return {"mean": list(map(_number, first.mean(0))), "stderr": list(map(_number, errors))}

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
        tensors = {k: getattr(self, k) for k in (*_TENSORS, "distances") if getattr(self, k) is not None}
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
            return cls(**facts, **tensors)
        except Exception as error:  # damaged files raise many kinds
            reason = one_line(error)
            raise RunError(f"{path} is not a readable measurement ({reason}); run `measure` first") from error

    def __repr__(self) -> str:
        kinds = _counted(self.methods)
        without = f"; without {listed(self.not_layers)}" if self.not_layers else ""
        return f"Measure({self.losses.shape[0]} examples, {len(self.names)} layers: {kinds}{without})"


def sample_note(quadratic: torch.Tensor) -> list[str]:
    """Return the note on smooth layers that were measured on a sample, in a list, or no note.

    Args:
        quadratic: (n, L), NaN for examples outside the sample.
    """
    counts = (~quadratic.isnan()).sum(0)
    if not len(quadratic) or int(counts.min()) == len(quadratic):
        return []
    return [
        f"smooth layers were measured on {int(counts.min())} of {len(quadratic)} examples, drawn at random: "
        "their maximum is over these, and their mean is estimated for all"
    ]


def _counted(methods: Sequence[str]) -> str:
    return ", ".join(f"{methods.count(m)} {m}" for m in dict.fromkeys(methods))


def _filled(values: torch.Tensor, sampled: torch.Tensor | None) -> torch.Tensor:
    return values if sampled is None else torch.where(values.isnan(), sampled, values)


def _largest(values: torch.Tensor) -> float | None:
    return _number(values.nan_to_num(nan=-math.inf).max())


def _number(value: torch.Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
