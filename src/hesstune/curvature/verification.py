"""Refuse networks without a per-example Hessian, and verify derivatives numerically."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from hesstune.curvature.batches import changed_example, each_alone
from hesstune.curvature.capture import Capture
from hesstune.curvature.exact import exact_forms, independent_layers
from hesstune.curvature.layers import CapturedLayer
from hesstune.errors import MeasureError, listed
from hesstune.forward import Inputs, logits_of, named_modules, named_parameters

_SAME_LOGITS = 1e-4
# In a batch of another size, kernels sum in another order and, on some devices, with fewer bits.
_SAME_IN_OTHER_BATCH = 1e-2
# The step of a difference quotient as a share of the weight's norm. Over the long step the jumps of a rounded
# value may add up to the slope by chance.
_STEP, _SHORT_STEP = 1e-2, 1e-3
_SAME_SLOPE = 0.1
_SAME_CURVATURE = 0.25
# Smaller differences, as a share of the values themselves, may be rounding.
_ROUNDING = 1e-5
# Curvature that changes the gradient by a smaller share, over a step as long as the weight, is not compared.
_LEAST_CURVATURE = 0.05
_PROBED_LAYERS = 4
# Weights that are probed at a time, in bytes: a direction and a gradient of that size are kept for them.
_GROUP_BYTES = 64 * 2**20


def refuse_training_modules(model: nn.Module) -> None:
    """Refuse batch norm and dropout that do not follow eval()."""
    for name, module in named_modules(model).items():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise MeasureError(
                f"batch norm '{name}' uses the statistics of the batch even in eval mode, so examples "
                "influence each other; give it running statistics and let eval() reach it"
            )
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise MeasureError(f"dropout '{name}' stays active in eval mode; let eval() reach it")


def refuse_bad_logits(model: nn.Module, probe: Inputs, logits: torch.Tensor, rows: torch.Tensor) -> None:
    """Refuse logits that are malformed, change from call to call, or change with another example.

    `rows` are the places of the probe's examples in the batch, for messages.
    """
    if logits.shape[1] < 2:
        raise MeasureError(f"cross-entropy needs at least 2 classes; the model has {logits.shape[1]} logit")
    if logits.dtype not in (torch.float32, torch.float64):
        raise MeasureError(f"the logits are {logits.dtype}; measure in float32 or float64")
    require_finite(logits, rows)
    tolerance = _SAME_LOGITS * float(logits.abs().max())
    with torch.no_grad():
        # Two plain calls: the captured one computes batch norm in another way and rounds differently.
        logits = logits_of(model, probe)
        if not _close(logits_of(model, probe), logits, tolerance):
            raise MeasureError(
                "the logits change from one call to the next in eval mode (functional dropout with "
                "training=True, or another source of randomness); make the model deterministic"
            )
        for row in range(len(logits)):
            changed = changed_example(probe, row) if len(logits) > 1 else None
            if changed is not None:
                keep = torch.arange(len(logits), device=logits.device) != row
                if not _close(logits_of(model, changed)[keep], logits[keep], tolerance):
                    raise _influence_error("in the logits")


def refuse_mixed_examples(
    model: nn.Module, probe: Inputs, logits: torch.Tensor, names: Sequence[str]
) -> None:
    """Check layers in which the place of the examples is unknown; examples are measured alone there.

    Raises:
        MeasureError: If an example has other logits alone than in the batch, or all examples are the same.
    """
    if not names or len(logits) == 1:
        return
    if any(changed_example(probe, row) is None for row in range(len(logits))):
        raise MeasureError(
            f"the examples of the first batch are all the same, so their influence on each other at "
            f"{listed(names)} cannot be checked; put examples that differ in the first batch, or leave the "
            "layers out with layers="
        )
    refuse_other_alone(model, probe, logits, f"at {listed(names)}")


@torch.no_grad()
def refuse_other_alone(model: nn.Module, probe: Inputs, logits: torch.Tensor, where: str) -> None:
    """Refuse a network in which an example has other logits alone than in the batch."""
    alone = torch.cat([logits_of(model, one) for _, one in each_alone(probe)])
    refuse_other_logits(alone, logits, where)


def refuse_other_logits(found: torch.Tensor, logits: torch.Tensor, where: str) -> None:
    """Refuse a network with other logits, (B, K), in batches of other sizes."""
    if not _close(found, logits, _SAME_IN_OTHER_BATCH * float(logits.abs().max())):
        raise _influence_error(where)


def _influence_error(where: str) -> MeasureError:
    return MeasureError(
        f"the examples of a batch influence each other ({where}: changing or leaving out one changed "
        "another); a per-example Hessian needs a network that treats examples separately in eval mode"
    )


def _close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    return bool(((a - b).abs() <= tolerance).all())


def require_finite(logits: torch.Tensor, examples: torch.Tensor | None = None) -> None:
    """Raise MeasureError, naming the examples by `examples` or their rows, unless all logits are finite."""
    wrong = (~logits.isfinite().all(1)).nonzero().flatten().cpu()
    if wrong.numel():
        rows = listed((wrong if examples is None else examples[wrong]).tolist())
        raise MeasureError(f"the logits of example {rows} are not finite; did training diverge?")


def refuse_hidden_use(model: nn.Module, probe: Inputs, name: str) -> None:
    """Refuse a weight without a gradient on which the logits depend."""
    weight = named_parameters(model)[name]
    with torch.no_grad():
        before = logits_of(model, probe)
        kept = weight.detach().clone()
        try:
            weight.mul_(1.5).add_(0.1)
            after = logits_of(model, probe)
        finally:
            weight.copy_(kept)
    if not _close(before, after, 1e-6 * float(before.abs().max())):
        raise MeasureError(
            f"'{name}' changes the logits, but no gradient reaches it (no_grad, detach or .data in the "
            "forward pass); let gradients through, or leave it out with layers="
        )


def refuse_false_gradients(
    model: nn.Module, probe: Inputs, custom: Mapping[str, str], has_kinks: bool
) -> None:
    """Refuse layers for which double backward is not the second derivative.

    A `torch.autograd.Function` may approximate its gradient (YOSO), replace it (straight-through gradients of
    quantised networks), compute it without a graph, or keep intermediate results as constants. For c·f, a
    random combination of the logits, and a step along each layer's gradient, three quantities are compared:
    the gradient with a difference quotient; the gradient with its derivative by c, in which it is linear;
    and, in networks without kinks, the second derivative with a difference quotient.

    Args:
        model: The network.
        probe: A few examples.
        custom: The function that follows the weight, by layer; other layers are not checked.
        has_kinks: Whether gradients may jump.

    Raises:
        MeasureError: If they differ at a layer; the message names the layers and functions.
    """
    if not custom:
        return
    weights = {name: weight for name, weight in named_parameters(model).items() if name in custom}
    combined = _Combined(model, probe)
    gradients = torch.autograd.grad(
        combined.start, list(weights.values()), create_graph=True, allow_unused=True
    )
    wrong = [
        name
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        if gradient is not None
        and bool(gradient.detach().any())
        and not combined.agrees(weight, gradient, has_kinks)
    ]
    if wrong:
        kinds = listed(dict.fromkeys(custom[name] for name in wrong))
        raise MeasureError(
            f"differentiating {kinds} twice does not give the second derivative (its backward pass is an "
            f"approximation or not differentiable), so {listed(wrong)} cannot be measured; leave these "
            "layers out with layers="
        )


class _Combined:
    """c·f, summed over a few examples, as a function of one weight."""

    def __init__(self, model: nn.Module, probe: Inputs) -> None:
        self._model, self._probe = model, probe
        logits = logits_of(model, probe)
        generator = torch.Generator().manual_seed(0)
        c = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits)
        self._c = c.requires_grad_()
        self.start = (logits * self._c).sum()

    def agrees(self, weight: nn.Parameter, gradient: torch.Tensor, has_kinks: bool) -> bool:
        """Compare the gradient and its derivatives with difference quotients and with each other."""
        known = gradient.detach()
        unit = known * (weight.detach().norm() / known.norm())
        slope = float((known * unit).sum())
        for length in (_SHORT_STEP, _STEP):
            rise, turn = self._changes(weight, length * unit)
            rounding = _ROUNDING * abs(float(self.start.detach()))
            if abs(rise - length * slope) > max(_SAME_SLOPE * length * abs(slope), rounding):
                return False
        by_c, product = self._second(gradient, _STEP * unit, weight)
        if abs(float((by_c * self._c.detach()).sum()) - _STEP * slope) > _SAME_SLOPE * _STEP * abs(slope):
            return False
        least = _LEAST_CURVATURE * _STEP * known.norm()
        largest = torch.max(turn.norm(), product.norm())
        return has_kinks or bool((turn - product).norm() <= _SAME_CURVATURE * largest + least)

    def _changes(self, weight: nn.Parameter, step: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Return half the change of the value and of its gradient from weight − step to weight + step."""
        kept = weight.detach().clone()
        values, gradients = [], []
        try:
            for sign in (1, -1):
                # Not through autograd, which keeps the weight in the graph of the first gradients.
                weight.data.copy_(kept + sign * step)
                value = (logits_of(self._model, self._probe) * self._c).sum()
                values.append(float(value.detach()))
                gradients.append(torch.autograd.grad(value, weight)[0].detach())
        finally:
            weight.data.copy_(kept)
        return (values[0] - values[1]) / 2, (gradients[0] - gradients[1]) / 2

    def _second(
        self, gradient: torch.Tensor, step: torch.Tensor, weight: nn.Parameter
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the derivatives of ⟨gradient, step⟩ by c and by the weight; zeros if there are none."""
        none = torch.zeros_like(self._c), torch.zeros_like(weight)
        slope = (gradient * step).sum()
        if not slope.requires_grad:
            return none
        inputs = [self._c, weight]
        try:
            found = torch.autograd.grad(slope, inputs, retain_graph=True, materialize_grads=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # once_differentiable
            return none
        return found[0].detach(), found[1].detach()


def probe_errors(
    captured: Capture, names: Sequence[str], unsure: frozenset[str], seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Compare the formula with autograd through the weights themselves, in a random direction r.

    The first derivative is compared at every layer. The second, rᵀHr against rᵀJᵀΛJr, is compared at the
    independent layers, at a few more, and at all layers before a write into a slice; what follows another
    layer also follows one of these. The logits are divided by their spread and the target is the least
    probable class, because saturated logits would hide Σ_k (p_k − [k = y]) ∇²f_k. Directions and gradients
    are kept for a few layers at a time.

    Returns:
        The relative errors of the first derivative (all layers) and of the second (probed layers).
    """
    logits = captured.logits
    spread = (logits - logits.mean(1, keepdim=True)).abs().amax().detach().clamp(min=1e-30)
    scaled = replace(captured, logits=logits / spread)
    generator = torch.Generator().manual_seed(seed)
    layers = [captured.layers[name] for name in names]
    step = max(1, len(names) // _PROBED_LAYERS)
    hidden = [i for i, name in enumerate(names) if name in unsure]
    probed = {names[i] for i in (*independent_layers(layers), *range(0, len(names), step), *hidden)}
    slopes: dict[str, float] = {}
    curvatures: dict[str, float] = {}
    groups: list[list[CapturedLayer]] = []
    size = 0
    for layer in layers:
        size += layer.weight.nbytes
        if not groups or size > _GROUP_BYTES:
            groups.append([])
            size = layer.weight.nbytes
        groups[-1].append(layer)
    for group in groups:
        first, second = _group_errors(scaled, group, probed, generator)
        slopes |= first
        curvatures |= second
    return slopes, curvatures


def _group_errors(
    captured: Capture, layers: Sequence[CapturedLayer], probed: set[str], generator: torch.Generator
) -> tuple[dict[str, float], dict[str, float]]:
    """Return {layer: relative error} of slopes and of curvatures along random directions."""
    directions = {
        layer.name: torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64).to(layer.weight)
        for layer in layers
    }
    logits = captured.logits
    loss = nn.functional.cross_entropy(logits, logits.argmin(1), reduction="sum")
    found = torch.autograd.grad(loss, [layer.weight for layer in layers], create_graph=True)
    gradients = dict(zip(directions, found, strict=True))
    outputs = torch.autograd.grad(loss, [layer.edge for layer in layers], retain_graph=True)
    slopes: dict[str, float] = {}
    curvatures: dict[str, float] = {}
    for layer, output in zip(layers, outputs, strict=True):
        parts = layer.inner(output, layer.apply(directions[layer.name]).detach())
        slope = (gradients[layer.name] * directions[layer.name]).sum()
        slopes[layer.name] = _relative_error(slope, parts.sum(), parts.abs().sum())
    some = [layer for layer in layers if layer.name in probed]
    if not some:
        return slopes, curvatures
    forms = exact_forms(captured, [layer.name for layer in some], directions).quadratic.sum(0)
    for layer, form in zip(some, forms, strict=True):
        direction = directions[layer.name]
        slope = (gradients[layer.name] * direction).sum()
        product = torch.autograd.grad(slope, layer.weight, retain_graph=True, materialize_grads=True)[0]
        curvatures[layer.name] = _relative_error((product * direction).sum(), form, form)
    return slopes, curvatures


def _relative_error(measured: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor) -> float:
    found, wanted, largest = (float(value.detach()) for value in (measured, expected, scale))
    return abs(found - wanted) / max(largest, abs(found), 1e-300)
