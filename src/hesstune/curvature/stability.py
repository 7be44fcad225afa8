"""Noise stability: how much the loss rises when weights are perturbed, beside its Taylor prediction.

The paper (section 2.2 and its table on noise stability) compares E[ℓ(W + U)] − ℓ(W) for Gaussian U
with ½σ²·Σ_i Tr H_i, the second-order term of its expansion; first and third order vanish on average.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from hesstune.curvature.batches import LabelledBatch, rows_of
from hesstune.curvature.capture import differentiable, kept_buffers
from hesstune.curvature.engine import CurvatureEngine, selected_layers
from hesstune.curvature.exact import FormOptions, exact_forms
from hesstune.curvature.lanczos import LayerProducts, WeightProducts
from hesstune.curvature.objective import Objective, PerExampleLoss
from hesstune.errors import ConfigError, DataError
from hesstune.forward import batch_size, evaluating, logits_of, moved, named_parameters
from hesstune.reference import layer_names

_CHUNK = 16


@dataclass(frozen=True)
class Stability:
    """The rise of the mean loss under Gaussian noise of one size, and its prediction.

    Attributes:
        sigma: Standard deviation of the noise on every entry.
        value: E[ℓ(W + U)] − ℓ(W), ℓ the mean loss over the examples.
        stderr: Its standard error over the draws of U.
        taylor: ½σ²·Σ_i Tr H_i, averaged over the examples.
        taylor_stderr: Its standard error over the probes; 0 if the trace is exact.
        samples: Draws of U; each was used as +U and −U.
        examples: How many examples.
        layers: The perturbed layers.
    """

    sigma: float
    value: float
    stderr: float
    taylor: float
    taylor_stderr: float
    samples: int
    examples: int
    layers: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """`value / taylor`: near 1 on smooth networks with small noise.

        Kinks (ReLU) add to the left side but not to the trace: there the ratio is larger than 1.
        """
        return self.value / self.taylor if self.taylor else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return the row of a table, JSON-ready."""
        row = asdict(self) | {"ratio": self.ratio if self.taylor else None}  # JSON has no NaN
        del row["layers"]
        return row


def noise_stability(  # noqa: PLR0913
    model: nn.Module,
    batches: Iterable[LabelledBatch],
    sigma: float,
    samples: int = 16,
    seed: int = 0,
    *,
    layers: str | Sequence[str] | None = None,
    loss: str | PerExampleLoss = "cross_entropy",
    noise_matrix: Any = None,
    probes: int = 8,
) -> Stability:
    """Measure E[ℓ(W + U)] − ℓ(W) for U ~ N(0, σ²) on chosen layers, and predict it from Tr H_i.

    Each draw is used as +U and −U, which removes the odd orders. The weights are perturbed in place and
    restored bit for bit, also after an error.

    Tr H_i (not its positive part) is Tr J_iᵀΛJ_i, exactly, plus Hutchinson's estimate of the trace
    of the other part, which is exactly zero if piecewise-linear operations follow the layer.

    Args:
        model: The network; run in eval mode and left as it was.
        batches: Iterable of (inputs, targets), read once.
        sigma: Standard deviation of the noise, in units of the weights.
        samples: Draws of U, at least 2.
        seed: Of the draws and the probes; the global random state is not used.
        layers: Names or fnmatch patterns; default: every layer (Linear, ConvNd, attention weights).
        loss: `cross_entropy`, `consistent` (needs `noise_matrix`), or a callable (logits, targets) -> (B,).
        noise_matrix: As in `measure`.
        probes: Hutchinson probes, at least 2.

    Raises:
        ConfigError: If an argument is out of range.
        LayerError: If a pattern matches no layer.
        DataError: If there are no examples.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(3, 2).double()
        >>> data = [(torch.randn(8, 3).double(), torch.zeros(8, dtype=torch.long))]
        >>> s = noise_stability(model, data, sigma=0.05, samples=64)
        >>> abs(s.value - s.taylor) < 5 * s.stderr, s.taylor_stderr
        (True, 0.0)
    """
    rows = noise_stability_table(
        model,
        batches,
        [sigma],
        samples,
        seed,
        layers=layers,
        loss=loss,
        noise_matrix=noise_matrix,
        probes=probes,
    )
    return rows[0]


def noise_stability_table(  # noqa: PLR0913
    model: nn.Module,
    batches: Iterable[LabelledBatch],
    sigmas: Sequence[float],
    samples: int = 16,
    seed: int = 0,
    *,
    layers: str | Sequence[str] | None = None,
    loss: str | PerExampleLoss = "cross_entropy",
    noise_matrix: Any = None,
    probes: int = 8,
    all_reduce_sum: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> list[Stability]:
    """Measure the noise stability over a range of σ: the rows of the paper's table, or of a figure.

    All σ share the scaled draws and the traces. Arguments and errors are those of `noise_stability`. With
    `probes=0` no traces are computed and `taylor` is NaN. `all_reduce_sum` adds up a tensor over the
    processes that share the batches.
    """
    if not sigmas or any(not s > 0 for s in sigmas):
        raise ConfigError(f"sigma must be positive; got {list(sigmas)}")
    if samples < 2 or probes < 0 or probes == 1:
        raise ConfigError(
            f"samples and probes must be at least 2 for a standard error; got {samples} and {probes}"
        )
    names = selected_layers(layer_names(model), layers)
    weights = {name: named_parameters(model)[name] for name in names}
    objective = Objective(loss, noise_matrix)
    engine = CurvatureEngine(model, {name: torch.zeros_like(w) for name, w in weights.items()}, objective)
    rises = torch.zeros(len(sigmas), samples, dtype=torch.float64)
    # The part of the traces that is known exactly, and each probe's estimate of the other part.
    traces, examples = torch.zeros(1 + probes, dtype=torch.float64), 0
    for raw_inputs, raw_targets in batches:
        inputs, targets = moved(raw_inputs, engine.device), raw_targets.to(engine.device)
        examples += batch_size(inputs)
        rises += _rises(model, weights, (inputs, targets), objective, sigmas, samples, seed)
        for index in torch.arange(batch_size(inputs)).split(_CHUNK) if probes else ():
            part = rows_of(inputs, index), targets[index.to(engine.device)]
            traces += _traces(engine, part, probes, seed)
    if all_reduce_sum is not None:
        rises, traces = all_reduce_sum(rises), all_reduce_sum(traces)
        examples = int(all_reduce_sum(torch.tensor(examples)))
    if not examples:
        raise DataError("there are no examples to measure: the batches are empty")
    trace = (traces[0] + traces[1:]) / examples
    return [
        Stability(
            sigma=float(sigma),
            value=float(rise.mean()),
            stderr=float(rise.std() / samples**0.5),
            taylor=float(sigma**2 / 2 * trace.mean()),  # of nothing: NaN
            taylor_stderr=float(sigma**2 / 2 * trace.std() / probes**0.5) if probes else math.nan,
            samples=samples,
            examples=examples,
            layers=tuple(names),
        )
        for sigma, rise in zip(sigmas, rises / examples, strict=True)
    ]


@torch.no_grad()
def _rises(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    batch: LabelledBatch,
    objective: Objective,
    sigmas: Sequence[float],
    samples: int,
    seed: int,
) -> torch.Tensor:
    """Return Σ_examples ½(ℓ(W + σU) + ℓ(W − σU)) − ℓ(W) for every σ and draw, (S, samples)."""
    inputs, targets = batch
    rises = torch.zeros(len(sigmas), samples, dtype=torch.float64)
    with kept_buffers(model), evaluating(model), torch.random.fork_rng(), _restored(weights) as before:

        def losses() -> torch.Tensor:
            return objective(logits_of(model, inputs), targets).double()

        start = losses()
        for draw in range(samples):
            # The same draw for every batch, without keeping it: from its own seed.
            generator = torch.Generator().manual_seed(seed * 1_000_003 + draw)
            draws = {name: _normal(w, generator) for name, w in before.items()}
            for row, sigma in enumerate(sigmas):
                for sign in (0.5 * sigma, -0.5 * sigma):
                    for name, weight in weights.items():
                        weight.copy_(before[name] + 2 * sign * draws[name])
                    # Example by example first: the rise is small beside the losses.
                    rises[row, draw] += (0.5 * (losses() - start)).sum().cpu()
    return rises


@contextmanager
def _restored(weights: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield clones of the weights; restore the weights bit for bit afterwards, also after an error."""
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        yield before
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])


def _normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


class _Linearised:
    """⟨∂ℓ/∂f, f⟩ with the first factor held fixed: its Hessian is H_i − J_iᵀ (∇²_f ℓ) J_i."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        point = logits.detach().requires_grad_()
        slope = torch.autograd.grad(self._objective(point, targets).sum(), point)[0]
        return (slope * logits).sum(1)


def _traces(engine: CurvatureEngine, batch: LabelledBatch, probes: int, seed: int) -> torch.Tensor:
    """Return Σ_examples Σ_i Tr H_i, (1 + probes,): the exact part, and each probe's estimate of the other."""
    inputs, targets = engine.take(batch)
    names, objective = engine.names, engine.loss
    traces = torch.zeros(1 + probes, dtype=torch.float64)
    with differentiable(engine.model, names):
        captured = engine.capture(inputs, names)
        apart = engine.plan.by("weight_space")
        found = [name for name in names if name in captured.layers and name not in apart]
        if objective.is_mixture and found:
            classes = captured.logits.shape[1]
            trace = exact_forms(captured, found, {}, FormOptions(trace=True, trace_passes=classes)).trace
            weight = objective.curvature_weight(targets, classes)
            assert trace is not None
            traces[0] = (weight.to(trace)[:, None] * trace).sum()
        loss = _Linearised(objective) if objective.is_mixture else objective
        products = LayerProducts(captured, targets, loss, found)
        for place, name in enumerate(names):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + place)
            if name in products.layers:
                traces[1:] += _hutchinson(products, name, probes, generator)
            else:
                single = WeightProducts(engine.model, inputs, targets, objective, name)
                traces[1:] += single.hutchinson(probes, generator)
    return traces


@torch.no_grad()
def _hutchinson(products: LayerProducts, name: str, probes: int, generator: torch.Generator) -> torch.Tensor:
    """Return Σ_examples zᵀ H z for `probes` Gaussian z of one layer, (probes,)."""
    layer = products.layers[name]
    found = torch.zeros(probes, dtype=torch.float64)
    for probe in range(probes):
        tangent = layer.apply(_normal(layer.weight, generator))
        image = products.product(name, tangent)
        if not bool(image.any()):  # piecewise linear after the layer: zero for every probe
            break
        found[probe] = layer.inner(image, tangent).double().sum().cpu()
    return found
