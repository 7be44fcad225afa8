"""`CurvatureEngine`: forms, traces and spectra of H_i of one network, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch
from torch import nn

from hesstune.curvature.batches import (
    LabelledBatch,
    by_length,
    each_alone,
    in_full_precision,
    rows_of,
    shared_entries,
    trimmed,
    with_shared_entries,
)
from hesstune.curvature.capture import Capture, OnOutput, capture, differentiable
from hesstune.curvature.declared import TRACE_PASSES, MethodChoice
from hesstune.curvature.exact import (
    ExactForms,
    FormOptions,
    exact_by_forward_mode,
    exact_forms,
    planned_passes,
    refuse_large_spectrum,
    with_probed_traces,
)
from hesstune.curvature.factor import LogitFactor
from hesstune.curvature.lanczos import (
    KrylovSource,
    LanczosForms,
    LayerProducts,
    Traces,
    WeightProducts,
    lanczos_forms,
    quadrature_traces,
)
from hesstune.curvature.layers import WholeWeight
from hesstune.curvature.layouts import check_batch, used_weights
from hesstune.curvature.memory import SHARED_GRAPH_EXAMPLES, LiveBytes, PeakBytes, vector_and_span
from hesstune.curvature.objective import Objective, PerExampleLoss, loss_slopes
from hesstune.curvature.plan import MeasureMethod, MeasurePlan, make_measure_plan, moved_to_weight_space
from hesstune.curvature.quadrature import Krylov, Stopping, Tridiagonal, positive_bracket
from hesstune.curvature.verification import require_finite
from hesstune.errors import ConfigError, DataError, LayerError, unknown_name
from hesstune.forward import Inputs, batch_size, moved, named_parameters
from hesstune.reference import Reference, matching_names
from hesstune.runtime.sharding import refuse_sharded

# The classes of the passes on which memory is measured.
_FEW_CLASSES = 3


def selected_layers(names: list[str], patterns: str | Sequence[str] | None) -> list[str]:
    """Return the layers that match any of the patterns, in their own order; all if it is None.

    Raises:
        LayerError: If there are no layers at all, or a pattern matches none.
    """
    if not names:
        raise LayerError("the model has no layers (Linear, ConvNd, Conv1D or attention weights)")
    if patterns is None:
        return names
    wanted = [patterns] if isinstance(patterns, str) else patterns
    chosen = {n for pattern in wanted for n in matching_names(pattern, names, "layer or pattern")}
    return [name for name in names if name in chosen]


class CurvatureEngine:
    """H_i⁺ of a network's layers for each example, without forming the matrix.

    H_i is the Hessian of one example's loss in vec(W_i), H_i⁺ its positive part, and v_i a direction of W_i's
    shape, such as its difference from a reference. Each method takes a batch (inputs, targets), as `measure`
    does, and returns tensors with one row for each example, float64 on the CPU. `measure` streams batches
    through these methods.

    The first batch decides how each layer is measured (`plan`). One example does not show whether examples
    influence each other, so after a batch of one the next larger batch decides again. The network is used in
    eval mode and left as it was after each call. Its weights may change between calls; `differences` stay as
    they were given.

    Args:
        model: The network, in float32 or float64; weights in half precision are measured as float32.
        differences: v_i by layer name, each of the weight's shape; their order is that of the columns.
        loss: `cross_entropy`, an `Objective` (consistent loss, label smoothing, class weights), or a
            callable (logits (B, K), targets) -> (B,).
        method: `auto` decides layer by layer, `exact` refuses layers without a closed form, `lanczos` takes
            the smooth path for all layers, `gauss_newton` takes v_iᵀ G_i v_i in place of v_iᵀ H_i⁺ v_i for
            all layers, from `exact`.
        seed: Seed of all random probes; the global random state is not used.

    Attributes:
        model: As given.
        names: The L layers.
        differences: v_i by layer name.
        loss: The `Objective`.
        device: The device of the weights; batches are moved there.
        sharing: The largest number of examples that share one graph of Lanczos; fewer take less memory.

    Raises:
        LayerError: If a name is no parameter of the network, or there are none.
        ConfigError: If a difference has another shape than its weight.

    Example:
        >>> import torch
        >>> from hesstune import Reference
        >>> from hesstune.curvature import CurvatureEngine
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
        >>> ref = Reference.of(model)
        >>> with torch.no_grad():
        ...     for p in model.parameters():
        ...         _ = p.add_(0.1)
        >>> engine = CurvatureEngine.of(model, ref)
        >>> batch = torch.randn(5, 4), torch.tensor([0, 2, 1, 0, 2])
        >>> engine.exact(batch).names, engine.lanczos(batch, ["0.weight"]).quadratic.shape
        (['2.weight'], torch.Size([5, 1]))
        >>> bool((engine.trace(batch).value > 0).all()), tuple(engine.spectrum(batch).shape)
        (True, (5, 2, 2))
    """

    def __init__(
        self,
        model: nn.Module,
        differences: Mapping[str, torch.Tensor],
        loss: str | PerExampleLoss = "cross_entropy",
        *,
        method: MethodChoice = "auto",
        seed: int = 0,
    ) -> None:
        weights = named_parameters(model)
        for name, delta in differences.items():
            if name not in weights:
                raise unknown_name("layer", name, list(weights), LayerError)
            if delta.shape != weights[name].shape:
                raise ConfigError(
                    f"the difference of '{name}' must have its weight's shape, {tuple(weights[name].shape)}; "
                    f"got {tuple(delta.shape)}"
                )
        refuse_sharded(weights)
        if not differences:
            raise LayerError("there are no layers to measure: differences is empty")
        self.model, self.names, self.differences = model, list(differences), dict(differences)
        self.loss = loss if isinstance(loss, Objective) else Objective(loss)
        self.device = next(iter(weights.values())).device
        self.sharing = SHARED_GRAPH_EXAMPLES
        self._method, self._seed = method, seed
        self._moved = {name: delta for name, delta in self.differences.items() if bool(delta.any())}
        self._plan: MeasurePlan | None = None
        self._apart: dict[str, str] = {}  # layers that a later batch moved to weight space, and why
        self._planned_on = 0
        self._shared: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        model: nn.Module,
        ref: Reference,
        layers: str | Sequence[str] | None = None,
        loss: str | PerExampleLoss = "cross_entropy",
        *,
        method: MethodChoice = "auto",
        seed: int = 0,
    ) -> CurvatureEngine:
        """Build the engine with v_i = vec(W_i − W_i⁽ˢ⁾).

        Args:
            model: The network.
            ref: Its reference.
            layers: Names or fnmatch patterns of layers; default: all.
            loss: As in the constructor.
            method: As in the constructor.
            seed: As in the constructor.

        Raises:
            LayerError: If the model does not match the reference, or a pattern matches no layer.
        """
        ref.check(model)
        names = selected_layers(ref.layers(), layers)
        return cls(model, {n: ref.difference(model, n) for n in names}, loss, method=method, seed=seed)

    @property
    def plan(self) -> MeasurePlan:
        """How each layer is measured, and why.

        Raises:
            ConfigError: If no batch was seen yet.
        """
        if self._plan is None:
            raise ConfigError("no batch was seen yet, so nothing is planned: call plan_on(inputs) first")
        return self._plan

    def plan_on(self, inputs: Inputs) -> MeasurePlan:
        """Choose from a few examples of these inputs how each layer is measured.

        Raises:
            MeasureError: If the network, or a layer by the requested method, cannot be measured.
        """
        inputs = in_full_precision(moved(inputs, self.device))
        with differentiable(self.model, self.names):
            self._plan = make_measure_plan(
                self.model, inputs, self.names, self.loss, self._method, self._seed
            )
            if self._apart:
                self._plan = moved_to_weight_space(self._plan, self._apart, self._method)
        self._planned_on = batch_size(inputs)
        if self._planned_on > 1:
            self._shared = shared_entries(inputs)
        return self._plan

    def take(self, batch: LabelledBatch) -> LabelledBatch:
        """Check the batch and return it on the network's device; plan on it if it is the first.

        Raises:
            DataError: If the numbers of inputs and targets differ.
        """
        inputs = in_full_precision(moved(batch[0], self.device))
        targets = torch.as_tensor(batch[1]).to(self.device)
        size = batch_size(inputs)
        if targets.shape[:1] != (size,):
            raise DataError(f"a batch has {size} inputs but targets of shape {tuple(targets.shape)}")
        if self._plan is None or (self._planned_on == 1 and size > 1):
            self.plan_on(inputs)
        return with_shared_entries(inputs, self._shared), targets

    def capture(self, inputs: Inputs, names: Sequence[str], on_output: OnOutput | None = None) -> Capture:
        """Run one forward pass and return these layers as they were used in it.

        Layers that this batch uses in another way than planned are left out. Call it inside `differentiable`
        with inputs from `take`.
        """
        found = capture(self.model, inputs, names, self.plan.layouts, on_output, self.plan.copied)
        if self.plan.depends_on_values and on_output is None:
            check_batch(self.model, inputs, found, self.plan.by("exact"))
        return found

    def exact(
        self,
        batch: LabelledBatch,
        names: Sequence[str] | None = None,
        *,
        trace: bool = False,
        spectrum: bool = False,
        joint: bool = False,
        skip_classes: float = 0.0,
        trace_passes: int = TRACE_PASSES,
        numbers: torch.Tensor | None = None,
    ) -> ExactForms:
        """Compute the layers planned as `exact` or `gauss_newton` from at most K − 1 backward passes.

        The forms are v_iᵀ H_i⁺ v_i of exact layers, and v_iᵀ G_i v_i of an engine with the method
        `gauss_newton`. There, weights that are used more than once or in other ways take these passes for
        each example.

        Args:
            batch: (inputs, targets).
            names: The layers, in the order of the result, without those measured otherwise; default: all.
            trace: Also Tr H_i⁺ (or Tr G_i), from at most `trace_passes` passes.
            spectrum: Also the nonzero eigenvalues; this keeps the gradients of all passes.
            joint: Also the form of these layers moved together.
            skip_classes: As in `measure` (the default differs); not used with the spectrum.
            trace_passes: As in `measure`.
            numbers: The examples' numbers, (B,), for error messages and as seeds of probes of the trace;
                default: their places in the batch.

        Raises:
            MeasureError: If logits are not finite, a layer is used in another way than planned, or the
                spectrum is requested of too many classes.
        """
        inputs, targets = self.take(batch)
        # Gradients are on for all weights: some kernels, and so the last digits, depend on that.
        with differentiable(self.model, self.names):
            wanted = list(self._chosen(names))
            captured = self.capture(inputs, self._closed(wanted))
            names = self._still_closed(captured, inputs, wanted)
            logits = captured.logits.detach()
            require_finite(logits, numbers)
            if spectrum and names:
                refuse_large_spectrum(logits.shape[1])
            losses = self.loss(logits, targets)
            asked = FormOptions(
                trace=trace,
                spectrum=spectrum,
                joint=joint,
                tol=skip_classes,
                trace_passes=trace_passes,
                seed=self._seed,
                numbers=None if numbers is None else numbers.tolist(),
            )
            most = trace_passes if trace and trace_passes < logits.shape[1] - 1 else 0
            # One forward-mode product takes about as long as two backward passes to the outputs.
            passes = planned_passes(LogitFactor(logits), skip_classes)
            forms: ExactForms | None = None
            changed = [name for name in names if name in self._moved]
            everything = spectrum or self.plan.apart or (trace and not most)
            if changed and 2 * len(changed) + most < passes and not everything:
                del captured
                with suppress(NotImplementedError):  # an operation of the network has no forward mode
                    forms = exact_by_forward_mode(
                        lambda name, on_output: self.capture(inputs, [name], on_output).logits,
                        names,
                        self._moved,
                    )
                if forms is None or most:
                    captured = self.capture(inputs, names)
                if forms is not None and most:
                    forms = with_probed_traces(forms, captured, asked)
            if forms is None:
                apart = [name for name in names if name in self.plan.apart]
                forms = self._forms(captured, inputs, names, apart, asked)
        # Without such layers there is no weight to compute: the loss may be any callable.
        weight = self.loss.curvature_weight(targets, logits.shape[1]) if names else torch.ones_like(losses)
        return forms.of_loss(weight.to(logits.device), losses)

    def _closed(self, names: Sequence[str]) -> list[str]:
        """Return those of the layers that are measured in closed form."""
        closed = self.plan.by("exact", "gauss_newton")
        return [name for name in names if name in closed]

    def moved(self, *methods: MeasureMethod) -> list[str]:
        """List the layers whose v_i is not 0, with any of the methods if some are given."""
        return [name for name in (self.plan.by(*methods) if methods else self.names) if name in self._moved]

    def _forms(
        self,
        captured: Capture,
        inputs: Inputs,
        names: Sequence[str],
        apart: Sequence[str],
        asked: FormOptions | None = None,
    ) -> ExactForms:
        """Compute the closed forms of layers; with some `apart`, those of all of them for each example alone.

        A layer that one example does not use, or in another way than a plain call, is its own output there.
        """
        if apart and batch_size(inputs) > 1:
            parts, asked = [], asked or FormOptions()
            for row, given in each_alone(inputs):
                one = trimmed(given) if self.plan.cuts_padding else given
                alone = replace(
                    asked,
                    numbers=[row if asked.numbers is None else asked.numbers[row]],
                    slopes=None if asked.slopes is None else asked.slopes[row : row + 1],
                )
                parts.append(self._forms(self.capture(one, names), one, names, apart, alone))
            return ExactForms.joined(parts)
        if apart:
            weights = named_parameters(self.model)
            own = {n: layer for n, layer in captured.layers.items() if n not in apart}
            whole = {n: WholeWeight.of(n, weights[n]) for n in names if n not in own}
            captured = replace(captured, layers=own | whole)
        return exact_forms(captured, names, self._moved, asked)

    def _still_closed(self, captured: Capture, inputs: Inputs, names: Sequence[str]) -> list[str]:
        """Move layers that this batch uses in another way to weight space; return those in closed form."""
        weights, plan = named_parameters(self.model), self.plan
        captured.otherwise |= used_weights(captured, {name: weights[name] for name in plan.by("unused")})
        together = [name for name in self._closed(names) if name not in plan.apart]
        lost = captured.left_out([*together, *(n for n in captured.otherwise if n not in plan.apart)])
        if self._method == "exact" or not plan.depends_on_values:
            captured.require([n for n in lost if self._method == "exact" or n in together])
        if lost:
            self._apart |= lost
            self._plan = moved_to_weight_space(plan, lost, self._method)
        return self._closed(names)

    def lanczos(
        self, batch: LabelledBatch, names: Sequence[str] | None = None, stopping: Stopping | None = None
    ) -> LanczosForms:
        """Bracket v_iᵀ H_i⁺ v_i by Lanczos, for layers of any kind.

        Args:
            batch: (inputs, targets).
            names: The layers; default: all.
            stopping: When to stop; default: a bracket of 3 %, after 64 products at most.
        """
        deltas, parts = self._chosen(names), []
        for part in self._parts(batch):
            with self.source(part, list(deltas)) as source:
                parts.append(lanczos_forms(source, deltas, stopping or Stopping()))
        return LanczosForms.joined(parts)

    def gauss_newton(self, batch: LabelledBatch, names: Sequence[str] | None = None) -> torch.Tensor:
        """Compute the Gauss–Newton values w·v_iᵀ J_iᵀ Λ J_i v_i, (B, L), from K − 1 backward passes.

        They equal v_iᵀ H_i⁺ v_i for exact layers and are another quantity for smooth ones. w is the loss's
        weight of Λ, and 1 for a loss that is not a mixture of cross-entropies.

        Args:
            batch: (inputs, targets).
            names: The layers; default: all. With weights that are used more than once or in other ways, the
                passes are taken for each example.
        """
        return self._gauss_newton(batch, names)

    def predicted_forms(self, batch: LabelledBatch, names: Sequence[str] | None = None) -> torch.Tensor:
        """Predict v_iᵀ H_i⁺ v_i for the choice of a sample, (B, L), from one pass more than `gauss_newton`.

        It is the Gauss–Newton value plus the predicted size of the part that this leaves out
        (`BackwardPasses.residual`). Arguments are those of `gauss_newton`.
        """
        return self._gauss_newton(batch, names, residual=True)

    def _gauss_newton(
        self, batch: LabelledBatch, names: Sequence[str] | None, *, residual: bool = False
    ) -> torch.Tensor:
        inputs, targets = self.take(batch)
        deltas = self._chosen(names)
        with differentiable(self.model, list(deltas)):
            captured = self.capture(inputs, list(deltas))
            apart = [name for name in deltas if name in self.plan.apart]
            used = {n for n, calls in captured.calls.items() if calls} | captured.otherwise.keys()
            lost = captured.left_out([name for name in deltas if name in used and name not in apart])
            if not self.plan.depends_on_values:
                captured.require([name for name in lost if name in self.plan.layouts])
            found = [name for name in deltas if name in captured.layers or name in apart or name in lost]
            columns = [list(deltas).index(name) for name in found]
            slopes = loss_slopes(self.loss, captured.logits, targets) if residual else None
            forms = self._forms(captured, inputs, found, [*apart, *lost], FormOptions(slopes=slopes))
        values = forms.quadratic.cpu()
        if self.loss.is_mixture:
            weight = self.loss.curvature_weight(targets, captured.logits.shape[1])
            values = values * weight.cpu().clamp_min(0)[:, None]
        if forms.residual is not None:
            values = values + forms.residual.cpu()
        result = torch.zeros(len(targets), len(deltas), dtype=torch.float64)
        result[:, columns] = values
        return result

    def trace(
        self,
        batch: LabelledBatch,
        names: Sequence[str] | None = None,
        stopping: Stopping | None = None,
        probes: int = 8,
    ) -> Traces:
        """Compute Tr H_i⁺: as by `exact` for exact layers, by stochastic Lanczos quadrature for others.

        A layer's probes depend on the seed and its place only, not on batch size or order.

        Args:
            batch: (inputs, targets).
            names: The layers; default: all.
            stopping: When each probe's recurrence stops, as in `lanczos`.
            probes: The number of probes, at least 2.

        Raises:
            ConfigError: If there are fewer than two probes.
        """
        if probes < 2:
            raise ConfigError(f"probes must be at least 2 for a standard error; got {probes}")
        names, batch = list(self._chosen(names)), self.take(batch)
        value = torch.zeros(len(batch[1]), len(names), dtype=torch.float64)
        stderr = torch.zeros_like(value)
        if any(name in names for name in self.plan.by("exact", "unused")):
            forms = self.exact(batch, trace=True)
            assert forms.trace is not None
            assert forms.trace_stderr is not None
            for column, name in enumerate(forms.names):
                if name in names:
                    value[:, names.index(name)] = forms.trace[:, column]
                    stderr[:, names.index(name)] = forms.trace_stderr[:, column]
        smooth = [name for name in names if name in self.plan.by("lanczos", "weight_space")]
        if smooth:
            weights = named_parameters(self.model)
            columns = quadrature_traces(
                (self.source(part, smooth) for part in self._parts(batch)),
                {name: weights[name] for name in smooth},
                self.plan.by("lanczos"),
                stopping or Stopping(),
                probes,
                self._seed,
            )
            for name, (mean, error) in zip(smooth, columns, strict=True):
                value[:, names.index(name)], stderr[:, names.index(name)] = mean, error
        return Traces(names, value, stderr)

    def spectrum(self, batch: LabelledBatch) -> torch.Tensor:
        """Compute the K − 1 largest eigenvalues of H_i, descending, (B, L, K − 1); NaN for smooth layers.

        H_i = J_iᵀ w Λ J_i has rank K − 1 at most; the others are 0.
        """
        forms = self.exact(batch, spectrum=True)
        assert forms.spectrum is not None
        return self.spread(forms.names, forms.spectrum, torch.nan)

    def columns(self, names: Sequence[str]) -> list[int]:
        """Return the columns of some layers in the results."""
        return [self.names.index(name) for name in names]

    def spread(self, names: Sequence[str], values: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """Return values of some layers, (B, len(names), ...), as (B, L, ...) with `fill` for the others."""
        shape = (len(values), len(self.names), *values.shape[2:])
        found = torch.full(shape, fill, dtype=torch.float64)
        found[:, self.columns(names)] = values
        return found

    @contextmanager
    def source(self, batch: LabelledBatch, names: Sequence[str]) -> Iterator[KrylovSource]:
        """Build the graph for Lanczos on these layers of a batch; all examples share it.

        Layers without captured input are measured in weight space, one example at a time.
        """
        inputs, targets = self.take(batch)
        with differentiable(self.model, names):
            shared: LayerProducts | None = None
            batched = [name for name in names if name not in self.plan.by("weight_space")]
            if batched:
                captured = self.capture(inputs, batched)
                found = [name for name in batched if name in captured.layers]
                shared = LayerProducts(captured, targets, self.loss, found)
            apart: dict[str, WeightProducts] = {}

            def krylov(name: str, delta: torch.Tensor) -> Krylov:
                if shared is not None and name in shared.layers:
                    return shared.krylov(name, delta)
                if name not in apart:
                    apart.clear()  # at most one such graph is alive
                    apart[name] = WeightProducts(self.model, inputs, targets, self.loss, name)
                return apart[name].krylov(delta)

            yield krylov

    def peak_of_passes(
        self, batch: LabelledBatch, asked: Sequence[tuple[Sequence[str], FormOptions]]
    ) -> PeakBytes:
        """Measure the memory of the passes of layers in closed form, on one and two examples of a batch.

        Args:
            batch: (inputs, targets).
            asked: Layers and what is computed of them, one after another. Without the spectrum, the passes of
                three classes take as much memory as those of all.
        """

        def compute(inputs: Inputs, names: Sequence[str], options: FormOptions) -> None:
            with differentiable(self.model, self.names):
                captured = self.capture(inputs, names)
                found = [n for n in names if n in captured.layers or n in self.plan.apart]
                if options.spectrum and found:
                    refuse_large_spectrum(captured.logits.shape[1])
                else:
                    captured = replace(captured, logits=captured.logits[:, :_FEW_CLASSES])
                apart = [name for name in found if name in self.plan.apart]
                self._forms(captured, inputs, found, apart, options)

        def run(inputs: Inputs, targets: torch.Tensor) -> None:
            for names, options in asked:
                compute(inputs, names, options)

        return self._peak(run, batch)

    def peak_of_lanczos(self, batch: LabelledBatch, names: Sequence[str], products: int) -> PeakBytes:
        """Measure the memory of Lanczos with so many products, by one product on one and two examples.

        It is taken for the first layer, from which the graph is the longest, and for that with the largest
        vectors. The vectors of the other products, and the bracket after the last one, are added.
        """
        weights = named_parameters(self.model)
        sizes = {name: weights[name].nbytes for name in names}
        spans = dict.fromkeys(names, 0)
        with differentiable(self.model, names):
            few = rows_of(batch[0], by_length(batch[0])[-1:])
            for name, layer in self.capture(few, self.plan.by("lanczos")).layers.items():
                if name in sizes:
                    sizes[name], spans[name] = vector_and_span(layer)
        largest = max(names, key=lambda name: products * sizes[name] + spans[name])

        def run(inputs: Inputs, targets: torch.Tensor) -> None:
            with self.source((inputs, targets), names) as source:
                for name in dict.fromkeys((names[0], largest)):
                    Stopping(most=1).run(source(name, self.differences[name]))

        numbers = torch.ones(1, products, dtype=torch.float64)
        with LiveBytes() as bracket:
            positive_bracket(Tridiagonal(numbers, numbers, numbers[:, 0]))
        return self._peak(run, batch).plus((products - 1) * sizes[largest] + max(bracket.series))

    def _peak(self, run: Callable[[Inputs, torch.Tensor], None], batch: LabelledBatch) -> PeakBytes:
        """Run a computation on the longest example, and on the longest two, of a batch."""
        inputs, targets = self.take(batch)
        order, found = by_length(inputs), []
        for index in (order[-1:], order[-2:])[: len(order)]:
            with LiveBytes() as live:
                run(rows_of(inputs, index), targets[index.to(self.device)])
            found.append(live.series)
        return PeakBytes.of(*found)

    def _chosen(self, names: Sequence[str] | None) -> dict[str, torch.Tensor]:
        for name in names or ():
            if name not in self.differences:
                raise unknown_name("layer", name, self.names, LayerError)
        return self.differences if names is None else {name: self.differences[name] for name in names}

    def _parts(self, batch: LabelledBatch) -> Iterator[LabelledBatch]:
        """Split a batch into parts that share a graph, without the padding that a part does not need."""
        inputs, targets = self.take(batch)
        for index in torch.arange(batch_size(inputs)).split(self.sharing):
            part = rows_of(inputs, index)
            yield trimmed(part) if self.plan.cuts_padding else part, targets[index.to(self.device)]
