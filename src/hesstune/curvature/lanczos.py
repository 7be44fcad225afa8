"""The smooth path: vᵀ H_i⁺ v and Tr H_i⁺ of every example by batched Lanczos, with a bracket.

Where smooth operations follow a layer (GELU, softmax attention, layer norm, gates), H_i has
negative eigenvalues and the positive part has no closed form. Lanczos from v_i needs products only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from hesstune.curvature.batches import rows_of
from hesstune.curvature.capture import capture, differentiable
from hesstune.curvature.layers import Layout
from hesstune.curvature.objective import Objective, PerExampleLoss
from hesstune.curvature.products import HessianSource, LayerProducts, WeightProducts
from hesstune.curvature.quadrature import Bracket, Krylov, extrapolated, positive_bracket, probe_mean
from hesstune.errors import ConfigError
from hesstune.forward import Inputs, batch_size

__all__ = [
    "LanczosForms",
    "LanczosTraces",
    "Stopping",
    "hessian_source",
    "lanczos_forms",
    "lanczos_quadratic",
    "lanczos_trace",
]

# A bracket costs small eigenproblems, so it is not looked at after every product.
_FIRST_LOOK, _LOOK_EVERY = 4, 2
# Without proof: how far back the value is compared, how much wider than `tol` the bracket may be, and
# how far apart, in units of `tol`, the two estimates may be that err on opposite sides most often.
_LOOKS_BACK, _TRUST, _AGREE = 2, 6.0, 2.0


@dataclass(frozen=True)
class Stopping:
    """When Lanczos stops.

    Attributes:
        steps: Take exactly this many products (fewer only where the Krylov space is exhausted);
            None: as many as `tol` asks for.
        tol: Stop once `value` is within this relative error of the truth.
        most: The largest number of products that `tol` may take.
        proof: Whether the bracket must prove the error. Otherwise it is enough that the value moved
            by less than `tol` over the last four products, that the bracket's error is below 6·tol
            and that its harmonic mean is within 2·tol of the extrapolated value, which is taken: it
            is a good estimate long before the bracket is narrow.
    """

    steps: int | None = None
    tol: float = 0.03
    most: int = 64
    proof: bool = True

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps must be at least 1; got {self.steps}")
        if not self.tol > 0 or self.most < 1:
            raise ConfigError(
                f"tol must be positive and most at least 1; got tol={self.tol}, most={self.most}"
            )

    def run(self, krylov: Krylov) -> Bracket:
        """Advance the recurrence until it is time to stop; return the bracket."""
        limit = self.most if self.steps is None else self.steps
        looks: list[Bracket] = []
        while krylov.products < limit:
            krylov.advance()
            if bool(krylov.exhausted().all()):
                break
            due = krylov.products >= _FIRST_LOOK and krylov.products % _LOOK_EVERY == 0
            if self.steps is None and due:
                looks.append(positive_bracket(krylov.tridiagonal()))
                if self.reached(looks):
                    return self.best(looks)
        return positive_bracket(krylov.tridiagonal())

    def reached(self, looks: Sequence[Bracket]) -> bool:
        """Tell whether `tol` is reached, from the brackets after every second product."""
        newest = looks[-1]
        done = newest.error <= self.tol
        if not self.proof and len(looks) > _LOOKS_BACK:
            value, before = extrapolated(looks).value, extrapolated(looks[:-_LOOKS_BACK]).value
            settled = (value - before).abs() <= self.tol * value
            settled &= (value - newest.value).abs() <= _AGREE * self.tol * value
            done |= settled & (newest.error <= _TRUST * self.tol)
        return bool(done.all())

    def best(self, looks: Sequence[Bracket]) -> Bracket:
        """Return the newest bracket: with the value of least provable error, or the extrapolated one."""
        return looks[-1] if self.proof else extrapolated(looks)


@dataclass
class LanczosForms:
    """v_iᵀ H_i⁺ v_i of B examples and L layers, (B, L) float64 on the CPU.

    Attributes:
        value: The estimate, the harmonic mean of the bounds.
        lower: A lower bound.
        upper: An upper bound: both hold in exact arithmetic, with an allowance for rounding.
        products: Hessian-vector products taken, an int64 (B, L).
        losses: ℓ of every example, (B,).
    """

    value: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor
    products: torch.Tensor
    losses: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence[LanczosForms]) -> LanczosForms:
        """Join the forms of several batches."""
        return cls(*(torch.cat([getattr(part, f) for part in parts]) for f in cls.__dataclass_fields__))

    @property
    def error(self) -> torch.Tensor:
        """The largest relative error that the bracket leaves possible, (B, L)."""
        return Bracket(self.value, self.lower, self.upper).error


def lanczos_forms(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    deltas: Mapping[str, torch.Tensor],
    *,
    loss: PerExampleLoss | None = None,
    stopping: Stopping | None = None,
    chunk: int = 8,
    layouts: Mapping[str, Layout] | None = None,
    copied: frozenset[str] = frozenset(),
) -> LanczosForms:
    """Compute v_iᵀ H_i⁺ v_i of every named layer and every example of a batch.

    Args:
        model: The network; run in eval mode and left as it was.
        inputs: One batch of B examples.
        targets: Whatever `loss` takes, batch first.
        deltas: v_i = W_i − W_i⁽ˢ⁾ by layer name, each of the weight's shape; their order is the result's.
        loss: (logits (B, K), targets) -> (B,); cross-entropy where left out.
        stopping: When to stop; by default once the value is proved to 3 %, after 64 products at most.
        chunk: Examples that share one graph: memory against speed. It does not change the values
            by more than rounding.
        layouts: From `find_layouts`, where known.
        copied: Layers whose input is copied, from an earlier `Capture.overwritten`.

    Returns:
        Values and brackets, (B, L).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2))
        >>> x, y = torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1])
        >>> forms = lanczos_forms(model, x, y, {"0.weight": torch.ones(4, 3)})
        >>> bool((forms.lower <= forms.upper).all()), tuple(forms.value.shape)
        (True, (5, 1))
    """
    stopping = stopping or Stopping()
    parts = []
    for index in torch.arange(batch_size(inputs)).split(chunk):
        part, part_targets = rows_of(inputs, index), targets[index.to(targets.device)]
        with hessian_source(model, part, part_targets, list(deltas), loss, layouts, copied) as source:
            parts.append(_forms(source, deltas, stopping))
    return LanczosForms.joined(parts)


def lanczos_quadratic(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    layer: str,
    delta: torch.Tensor,
    *,
    loss: PerExampleLoss | None = None,
    stopping: Stopping | None = None,
) -> LanczosForms:
    """Compute v_iᵀ H_i⁺ v_i of one layer for every example: `lanczos_forms` with L = 1."""
    return lanczos_forms(model, inputs, targets, {layer: delta}, loss=loss, stopping=stopping)


@dataclass
class LanczosTraces:
    """Tr H_i⁺ of B examples and L layers, (B, L) float64: an estimate with its standard error."""

    value: torch.Tensor
    stderr: torch.Tensor
    probes: int


def lanczos_trace(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    names: Sequence[str],
    *,
    probes: int = 8,
    seed: int = 0,
    loss: PerExampleLoss | None = None,
    stopping: Stopping | None = None,
    chunk: int = 8,
    layouts: Mapping[str, Layout] | None = None,
    copied: frozenset[str] = frozenset(),
) -> LanczosTraces:
    """Estimate Tr H_i⁺ by stochastic Lanczos quadrature, Gaussian probes shared by all examples.

    Tr H_i⁺ = E zᵀH_i⁺z for z ~ N(0, I) (Ubaru, Chen & Saad, 2017). A layer's probes depend on the seed
    and its place in `names` alone, so neither batch size nor order of the examples matters.

    Args:
        model: The network; run in eval mode and left as it was.
        inputs: One batch of B examples.
        targets: Whatever `loss` takes, batch first.
        names: Layer names.
        probes: How many; at least 2.
        seed: Of the probes.
        loss: As in `lanczos_forms`.
        stopping: When each probe's recurrence stops; by default at 3 %.
        chunk: Examples that share one graph.
        layouts: From `find_layouts`, where known.
        copied: Layers whose input is copied, from an earlier `Capture.overwritten`.

    Raises:
        ConfigError: If there are fewer than two probes.
    """
    stopping = stopping or Stopping()
    weights = dict(model.named_parameters())
    means, errors = [], []
    for index in torch.arange(batch_size(inputs)).split(chunk):
        part, part_targets = rows_of(inputs, index), targets[index.to(targets.device)]
        with hessian_source(model, part, part_targets, names, loss, layouts, copied) as source:
            columns = []
            for place, name in enumerate(names):
                generator = torch.Generator().manual_seed(seed * 1_000_003 + place)
                shape = weights[name].shape
                found = [
                    stopping.run(source.krylov(name, _probe(shape, generator, weights[name]))).value
                    for _ in range(probes)
                ]
                columns.append(probe_mean(torch.stack(found)))
            means.append(torch.stack([mean for mean, _ in columns], 1))
            errors.append(torch.stack([error for _, error in columns], 1))
    return LanczosTraces(torch.cat(means), torch.cat(errors), probes)


def _probe(shape: torch.Size, generator: torch.Generator, like: torch.Tensor) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)


class _BatchSource:
    """Captured layers share one graph; for any other one a graph is made when it is asked for."""

    def __init__(self, shared: LayerProducts, weight_space: Callable[[str], WeightProducts]) -> None:
        self._shared, self._weight_space = shared, weight_space
        self.losses = shared.losses

    def krylov(self, name: str, delta: torch.Tensor) -> Krylov:
        if name in self._shared.layers:
            return self._shared.krylov(name, delta)
        return self._weight_space(name).krylov(name, delta)


@contextmanager
def hessian_source(
    model: nn.Module,
    inputs: Inputs,
    targets: torch.Tensor,
    names: Sequence[str],
    loss: PerExampleLoss | None = None,
    layouts: Mapping[str, Layout] | None = None,
    copied: frozenset[str] = frozenset(),
) -> Iterator[HessianSource]:
    """Build the graph that serves every named layer of one batch; the model is as before afterwards.

    A layer whose weight is not found in exactly one call (tied, used twice, used functionally) is
    served in weight space, one example at a time.
    """
    loss = loss or Objective()
    with differentiable(model, names):
        captured = capture(model, inputs, names, layouts, copied=copied)
        shared = LayerProducts(captured, targets, loss, [n for n in names if n in captured.layers])
        yield _BatchSource(shared, lambda name: WeightProducts(model, inputs, targets, loss, name))


def _forms(source: HessianSource, deltas: Mapping[str, torch.Tensor], stopping: Stopping) -> LanczosForms:
    brackets, taken = [], []
    for name, delta in deltas.items():
        krylov = source.krylov(name, delta)
        brackets.append(stopping.run(krylov))
        taken.append(torch.full_like(brackets[-1].value, krylov.products, dtype=torch.int64))
    return LanczosForms(
        value=torch.stack([b.value for b in brackets], 1),
        lower=torch.stack([b.lower for b in brackets], 1),
        upper=torch.stack([b.upper for b in brackets], 1),
        products=torch.stack(taken, 1),
        losses=source.losses.double().cpu(),
    )
