"""The choice of how each layer is measured, from the autograd graph's structure and numerical probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import nn

from hesstune.curvature.batches import differing_rows, ignores_padding, rows_of
from hesstune.curvature.capture import Capture, capture
from hesstune.curvature.declared import MethodChoice
from hesstune.curvature.layers import Layout
from hesstune.curvature.layouts import calls_depend_on_values, find_layouts, layers_with_mixed_rows
from hesstune.curvature.memory import PeakBytes
from hesstune.curvature.objective import Objective
from hesstune.curvature.structure import Structure, graph_signature, read_structure
from hesstune.curvature.verification import (
    probe_errors,
    refuse_bad_logits,
    refuse_false_gradients,
    refuse_hidden_use,
    refuse_mixed_examples,
    refuse_other_alone,
    refuse_training_modules,
)
from hesstune.errors import MeasureError
from hesstune.forward import Inputs, batch_size, named_parameters

MeasureMethod = Literal["exact", "lanczos", "weight_space", "gauss_newton", "unused"]
_PROBE_EXAMPLES = 4
_CURVATURE_EXAMPLES = 2


# The last plan of each network, after the arguments and the forward pass that it is for.
_PLANS: WeakKeyDictionary[nn.Module, tuple[Any, Any, MeasurePlan]] = WeakKeyDictionary()


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is measured, and why.

    Attributes:
        name: The layer.
        method: `exact`; `lanczos` (in output space, batched); `weight_space` (Lanczos example by example, for
            weights used more than once or in other ways, or inputs in which the place of the examples is
            unknown); `gauss_newton` (v_iᵀ G_i v_i in place of v_iᵀ H_i⁺ v_i); `unused` (0 everywhere).
        reason: The reason for people, one clause.
        apart: Whether derivatives are taken in the weight itself, example by example: always in weight space,
            and with `gauss_newton` for such layers.
    """

    name: str
    method: MeasureMethod
    reason: str
    apart: bool = False


@dataclass(frozen=True)
class MeasurePlan:
    """How a network is measured.

    Attributes:
        layers: One entry for each layer, in the requested order.
        layouts: The place of the examples in each captured layer's tensors.
        copied: Layers whose input the network overwrites in place, so that it must be copied.
        cuts_padding: Whether masked trailing tokens can be cut without changing the logits.
        depends_on_values: Whether calls depend on the values of the inputs; then each batch is checked.
        classes: K.
        peaks: The memory of passes and of Lanczos that was measured, by what they compute.
    """

    layers: list[LayerPlan]
    layouts: dict[str, Layout]
    copied: frozenset[str] = frozenset()
    cuts_padding: bool = False
    depends_on_values: bool = False
    classes: int = 0
    peaks: dict[Any, tuple[PeakBytes, PeakBytes]] = field(default_factory=dict, compare=False)

    def by(self, *methods: MeasureMethod) -> list[str]:
        """List the layers with one of the methods."""
        return [layer.name for layer in self.layers if layer.method in methods]

    def cost(self, products: int, sampled: int, computed: Sequence[str]) -> str:
        """Describe in one line how many layers are measured how, and about how many passes that takes.

        Args:
            products: The expected number of Hessian-vector products of a smooth layer and example.
            sampled: The number of examples in the sample for smooth layers; 0: all.
            computed: The layers that take work: those that have moved, or all.
        """
        counts = {method: len(self.by(method)) for method in get_args(MeasureMethod)}
        words = ", ".join(f"{count} {method}" for method, count in counts.items() if count)
        if still := len(self.layers) - len(computed):
            words += f", {still} of them unmoved"
        closed = [name for name in self.by("exact", "gauss_newton") if name in computed]
        smooth = len([name for name in self.by("lanczos", "weight_space") if name in computed])
        all_layers = closed_form_passes(self.classes, len(computed))
        passes = all_layers if closed or sampled else 0
        text = f"cost forecast: layers {words}; about {passes} forward passes an example"
        if smooth:
            # A product takes about three passes through what comes after the layer: half of the network.
            each = round(1.5 * smooth * products)
            text += f", and {each} for each of {sampled or 'all'} examples by Lanczos"
            text += f"; gauss_newton would take about {all_layers} for all"
        return text

    @property
    def apart(self) -> list[str]:
        """The layers that are differentiated in the weight itself."""
        return [layer.name for layer in self.layers if layer.apart]


def closed_form_passes(classes: int, layers: int) -> int:
    """Return about how many forward passes of an example the closed form of its layers takes.

    One forward pass, one evaluation of the layers, and K − 1 backward passes to their outputs, which take as
    long as forward passes, or L forward-mode products, which take twice as long.
    """
    return 2 + min(classes - 1, 2 * layers)


def make_measure_plan(
    model: nn.Module,
    inputs: Inputs,
    names: Sequence[str],
    objective: Objective,
    method: MethodChoice,
    seed: int,
) -> MeasurePlan:
    """Choose from a few examples of one batch how each layer is measured, inside `differentiable`.

    A single example does not show whether examples influence each other. A loss that is not a mixture of
    cross-entropies is measured by Lanczos. The last plan of the same network object is used again if the
    inputs have the same shapes and the graph of a forward pass the same operations, unless that plan has
    unused layers or a `torch.autograd.Function` written in Python.

    Raises:
        MeasureError: If the network cannot be measured, or a layer not by the method asked.
    """
    if method == "gauss_newton" and not objective.is_mixture:
        raise MeasureError(
            "method='gauss_newton' needs cross-entropy or a mixture of it (consistent loss, label smoothing, "
            "class weights, soft targets); with a loss given as a callable take method='lanczos'"
        )
    refuse_training_modules(model)
    rows = differing_rows(inputs, _PROBE_EXAMPLES)
    probe = rows_of(inputs, rows)
    key = (tuple(names), method, objective.is_mixture, len(rows), _shapes(inputs))
    known = _PLANS.get(model)
    if known is not None and known[0] == key and known[1] == _signature(model, probe, names):
        return replace(known[2], cuts_padding=ignores_padding(model, inputs))
    found = find_layouts(model, probe, names)
    layouts = {name: layout for name, layout in found.items() if layout is not None}
    captured = capture(model, probe, names, layouts)
    logits = captured.logits.detach()
    refuse_bad_logits(model, probe, logits, rows)
    refuse_mixed_examples(model, probe, logits, [n for n in found if n not in layouts])
    depends_on_values = calls_depend_on_values(model, probe)
    if depends_on_values:
        refuse_other_alone(model, probe, logits, "in the logits")
        for name in layers_with_mixed_rows(captured):
            del layouts[name], captured.layers[name]
    parameters = named_parameters(model)
    structure = read_structure(captured.logits, {n: parameters[n] for n in names}, captured.layers)
    refuse_false_gradients(model, probe, structure.custom, structure.has_kinks)
    plans = {name: _plan_layer(model, probe, name, captured, structure) for name in names}
    exact = [name for name, plan in plans.items() if plan.method == "exact"]
    if exact and method in ("auto", "exact") and objective.is_mixture:
        few = rows_of(probe, torch.arange(min(batch_size(probe), _CURVATURE_EXAMPLES)))
        again = capture(model, few, exact, layouts, copied=captured.overwritten)
        again.require(exact)
        plans |= _confirmed(plans, exact, again, structure.unsure, seed)
    layers = [_as_asked(plans[name], method, objective) for name in names]
    cuts = ignores_padding(model, inputs)
    plan = MeasurePlan(layers, layouts, captured.overwritten, cuts, depends_on_values, logits.shape[1])
    if not (structure.custom or plan.by("unused")):
        _PLANS[model] = key, _signature(model, probe, names), plan
    return plan


def _signature(model: nn.Module, probe: Inputs, names: Sequence[str]) -> tuple[Any, ...]:
    """Return what a forward pass of one or two examples shows of the network."""
    few = rows_of(probe, torch.arange(min(batch_size(probe), _CURVATURE_EXAMPLES)))
    captured = capture(model, few, names, {})
    return str(captured.logits.dtype), tuple(captured.calls.items()), graph_signature(captured.logits)


def _shapes(inputs: Inputs) -> tuple[Any, ...]:
    """Return the type and the shape of an example's tensors."""
    values = {"": inputs} if isinstance(inputs, torch.Tensor) else inputs
    return tuple(
        (key, str(value.dtype), *value.shape[1:])
        for key, value in values.items()
        if isinstance(value, torch.Tensor)
    )


def moved_to_weight_space(plan: MeasurePlan, reasons: Mapping[str, str], method: MethodChoice) -> MeasurePlan:
    """Return the plan with these layers in weight space, because a later batch uses them in another way."""
    form: MeasureMethod = "gauss_newton" if method == "gauss_newton" else "weight_space"
    layers = [
        LayerPlan(entry.name, form, f"{reasons[entry.name]} in some of the batches", apart=True)
        if entry.name in reasons
        else entry
        for entry in plan.layers
    ]
    return replace(plan, layers=layers)


def _plan_layer(
    model: nn.Module, probe: Inputs, name: str, captured: Capture, structure: Structure
) -> LayerPlan:
    calls, uses = captured.calls[name], structure.uses[name]
    if uses == 0:
        refuse_hidden_use(model, probe, name)
        return LayerPlan(name, "unused", "the logits do not depend on it")
    if calls != 1 or uses != 1:
        reason = f"its weight is used {uses} times" if uses > 1 else "its weight is not used by a plain call"
        return LayerPlan(name, "weight_space", reason + " in the forward pass", apart=True)
    if name not in captured.layers:
        reason = "no dimension of its input is known to run over the examples"
        return LayerPlan(name, "weight_space", reason, apart=True)
    if name in structure.smooth:
        return LayerPlan(name, "lanczos", f"{structure.smooth[name]} comes after it")
    return LayerPlan(name, "exact", "only piecewise-linear operations come after it")


def _as_asked(plan: LayerPlan, method: str, objective: Objective) -> LayerPlan:
    """Return the plan of a layer under the method that the user asked for."""
    if method == "gauss_newton":
        if plan.method == "unused":
            return plan
        asked = "method='gauss_newton' was requested"
        why = f"{asked}; example by example: {plan.reason}" if plan.apart else asked
        return replace(plan, method="gauss_newton", reason=why)
    reason = None if objective.is_mixture else "the loss is not a mixture of cross-entropies"
    if method == "exact" and (plan.method not in ("exact", "unused") or reason):
        raise MeasureError(
            f"'{plan.name}' cannot be measured exactly: {reason or plan.reason}. Use method='auto', which "
            "takes Lanczos there"
        )
    if method == "lanczos":
        reason = "method='lanczos' was requested"
    return replace(plan, method="lanczos", reason=reason) if plan.method == "exact" and reason else plan


def _confirmed(
    plans: Mapping[str, LayerPlan], names: list[str], captured: Capture, unsure: frozenset[str], seed: int
) -> dict[str, LayerPlan]:
    """Check the exact layers by autograd on a few examples; use Lanczos for those that disagree."""
    tolerance = 1e-6 if captured.logits.dtype == torch.float64 else 1e-2
    slopes, curvatures = probe_errors(captured, names, unsure, seed)
    worst = max((error for name, error in curvatures.items() if name not in unsure), default=0.0)
    confirmed = {}
    for name in names:
        error = max(slopes[name], curvatures.get(name, 0.0))
        if error > tolerance or worst > tolerance:
            how = "disagrees at a layer of the same network"
            if error > tolerance:
                how = f"differs by {error:.0e}"
            reason = f"it looks piecewise linear, but double backward {how}"
            confirmed[name] = LayerPlan(name, "lanczos", reason)
        else:
            how = "there" if name in curvatures else "at layers before and after it"
            reason = f"{plans[name].reason}; double backward agrees {how}"
            confirmed[name] = replace(plans[name], reason=reason)
    return confirmed
