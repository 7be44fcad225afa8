"""`measure`: the Hessian distance measure of a model against its reference, streamed over batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from hesstune.curvature.batches import LabelledBatch, by_length, checked_batches, rows_of, trimmed
from hesstune.curvature.capture import bytes_in_full_precision, differentiable
from hesstune.curvature.declared import SKIP_CLASSES, TRACE_PASSES, ExamplesChoice, MethodChoice
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.exact import FormOptions
from hesstune.curvature.memory import MIB, SHARED_GRAPH_EXAMPLES, MemoryForecast, PeakBytes, bytes_of
from hesstune.curvature.objective import Objective, PerExampleLoss
from hesstune.curvature.plan import LayerPlan
from hesstune.curvature.quadrature import Stopping
from hesstune.curvature.quantities import QUANTITIES, MeasureSettings, PositiveForm
from hesstune.curvature.result import Measure
from hesstune.curvature.sample import Sample, SampledMeans, sampled_means
from hesstune.errors import DataError, listed
from hesstune.forward import Inputs, batch_size
from hesstune.reference import NO_LAYER, Reference
from hesstune.runtime.device import free_memory
from hesstune.runtime.sharding import gathered

# With more sentences at once, padding to the longest one costs more than they save.
_SENTENCES = 16
# A layer takes so many draws, and then one more at a time until the standard error of the sum of the layers'
# means is this share of it.
_FIRST_DRAWS, _SAMPLE_ERROR = 4, 0.05


def measure(  # noqa: PLR0913
    model: nn.Module,
    ref: Reference,
    batches: Iterable[LabelledBatch],
    method: MethodChoice = "auto",
    layers: str | Sequence[str] | None = None,
    steps: int = 16,
    tol: float | None = None,
    examples: ExamplesChoice = "all",
    trace: bool | Literal["exact"] = False,
    spectrum: bool = False,
    loss: str | PerExampleLoss = "cross_entropy",
    seed: int = 0,
    *,
    mean_sample: int = 0,
    quantities: Sequence[str] = (),
    noise_matrix: Any = None,
    label_smoothing: float = 0.0,
    class_weights: torch.Tensor | None = None,
    max_examples: int | None = None,
    memory_mib: float | None = None,
    skip_classes: float = SKIP_CLASSES,
    trace_passes: int = TRACE_PASSES,
    progress: Callable[[int], None] | None = None,
    plan_on: Inputs | None = None,
    on_forecast: Callable[[str], None] | None = None,
) -> Measure:
    """Compute v_iᵀ H_i⁺ v_i of every layer and example: in closed form if there is one, else by Lanczos.

    With `method="gauss_newton"`, compute v_iᵀ G_i v_i instead, another quantity with a closed form on any
    network.

    H_i is the Hessian of one example's loss in vec(W_i), H_i⁺ its positive part, v_i = vec(W_i − W_i⁽ˢ⁾). The
    model is used in eval mode. Its weights, buffers, gradients, flags and hooks, and the global random state,
    are left unchanged.

    Args:
        model: The fine-tuned network, in float32 or float64. Weights in half precision are measured as
            float32, on copies. Sharded weights (FSDP2) are gathered on every process; all processes call this
            function.
        ref: Its reference, taken before fine-tuning.
        batches: Iterable of (inputs, targets): inputs a tensor or a mapping of tensors, targets class indices
            (B,) or soft targets (B, K). Read once.
        method: `auto` decides layer by layer, by structure and a numerical probe; `exact` refuses layers
            without a closed form; `lanczos` takes the smooth path for all layers. `gauss_newton` measures
            v_iᵀ G_i v_i with G_i = J_iᵀ Λ J_i, the Gauss–Newton part of H_i, from K − 1 backward passes for
            all layers together. The result's `quantity` and notes say so; traces and spectra are those of
            G_i; `more["joint"]` has uᵀ Λ u, u = Σ_i J_i v_i, of all layers moved together, (n, 1).
        layers: Names or fnmatch patterns of layers; default: all.
        steps: Expected Lanczos steps of smooth layers: fewer if the bracket reaches `tol` sooner, up to four
            times as many if it does not.
        tol: Relative error of smooth layers that the bracket must prove; default: 3 %, and 25 % in a sample
            (their mean was then within 3 %).
        examples: `all` measures every example. With `max` and a `mean_sample`, each smooth layer is measured
            on a random sample: other entries are NaN, `mean` is estimated with a standard error, and
            `maximum` is that of the sample. Without a `mean_sample` both measure every example. Exact layers
            always do.
        trace: Also Tr H_i⁺ of every example and layer; "exact": of exact layers that moved only (the trace of
            a smooth layer takes several Lanczos runs for each example).
        spectrum: Also the nonzero eigenvalues of H_i (exact layers) or G_i, for at most 4,096 classes.
        loss: `cross_entropy`, `consistent` (needs `noise_matrix`), or a callable (logits, targets) -> (B,) of
            per-example losses, which takes the smooth path and has no `gauss_newton`.
        seed: Seed of all random probes and of the sample; the global random state is not used.
        mean_sample: With examples="max": the largest number of examples drawn for each smooth layer, with
            probabilities in proportion to predicted forms; 0: all. After four draws they end if the standard
            error of the sum of the layers' means is 5 % of it.
        quantities: Names of further quantities of `hesstune.curvature.quantities`; their tensors are in the
            result's `more`.
        noise_matrix: F as an array, F[i, j] = P(noisy = j | true = i), or anything with `.inverse`.
        label_smoothing: ε of label smoothing.
        class_weights: (K,): the loss −Σ c_k log p_k becomes −Σ w_k c_k log p_k.
        max_examples: Stop after so many examples.
        memory_mib: Memory in MiB beside the network and its reference: layer differences, batches,
            activations, graphs and Lanczos vectors. Batches are split to fit; an error names a budget that is
            enough for one example. Default: 512 MiB for the examples measured at a time, or the memory of one
            example, if the device has it. The result does not depend on it, nor on the batch size, up to
            `skip_classes`.
        skip_classes: Closed form, many classes: if that is likely to halve a batch's passes, stop when the
            skipped classes add at most this share to every entry (by random probes, 99 % each; `upper` covers
            it, and a note says so). 0 takes all K − 1 passes, as `spectrum` does.
        trace_passes: Closed form: with more than so many classes beside the most probable one, a trace is
            estimated from so many passes, without bias; `trace_stderr` has the error. At least 2.
        progress: Called with the number of examples done after each chunk.
        plan_on: Inputs that decide how each layer is measured; default: the first batch. Processes that share
            the examples plan on the same inputs.
        on_forecast: Called before the first example is measured: with the memory forecast, one line, which is
            in the result's notes, too; then with how many layers are measured how and about how many passes
            that takes.

    Returns:
        The measurement, with the method of each layer and the reason. Its `not_layers` names the weight
        matrices that changed but are not layers (embeddings, recurrent weights, experts of three dimensions).

    Raises:
        LayerError: If the model does not match the reference, or a pattern matches no layer.
        DataError: If there are no examples, or targets do not fit the logits.
        MeasureError: If the network or a layer cannot be measured; the message names it.
        ConfigError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from hesstune.reference import Reference
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> ref = Reference.of(model)
        >>> with torch.no_grad():
        ...     for p in model.parameters():
        ...         _ = p.add_(0.1)
        >>> m = measure(model, ref, [(torch.ones(5, 4), torch.zeros(5, dtype=torch.long))])
        >>> m.names, tuple(m.quadratic.shape), m.exact
        (['0.weight', '2.weight'], (5, 2), [True, True])
    """
    settings = MeasureSettings(
        method=method,
        examples=examples,
        steps=steps,
        tol=tol,
        trace=trace,
        spectrum=spectrum,
        quantities=tuple(quantities),
        seed=seed,
        max_examples=max_examples,
        memory_mib=memory_mib,
        skip_classes=skip_classes,
        trace_passes=trace_passes,
        mean_sample=mean_sample,
    )
    objective = Objective(loss, noise_matrix, label_smoothing, class_weights)
    with gathered(model):
        whole = ref.gathered()
        engine = CurvatureEngine.of(model, whole, layers, objective, method=method, seed=seed)
        run = _Measurement(engine, settings, copies=bytes_in_full_precision(model))
        with differentiable(model, engine.names):
            if plan_on is not None:
                engine.plan_on(plan_on)
            for batch in checked_batches(batches, max_examples):
                inputs, targets = engine.take(batch)
                at_once = run.examples_at_once((inputs, targets), on_forecast)
                for chunk in run.chunks(inputs, targets, at_once):
                    run.add(*chunk)
                    if progress is not None:
                        progress(run.count)
            run.measure_sample()
        return run.result(whole.changed_others(model))


@dataclass
class _Measurement:
    """The state of one measurement: the engine, the settings, and the rows so far."""

    engine: CurvatureEngine
    settings: MeasureSettings
    copies: int
    count: int = 0
    rows: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    order: list[torch.Tensor] = field(default_factory=list)
    sampled: dict[str, torch.Tensor] = field(default_factory=dict)
    shares_of_passes: list[float] = field(default_factory=list)  # of chunks with skipped classes
    forecast: MemoryForecast | None = None
    peaks: tuple[PeakBytes, PeakBytes] = (PeakBytes(), PeakBytes())
    tried_bytes: int = -1  # of one example of the batch on which `peaks` were measured
    tried_layers: list[LayerPlan] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sample = Sample(self.settings.sampled, len(self.engine.names), self.settings.seed)
        self.quantities = self.settings.chosen

    def examples_at_once(self, batch: LabelledBatch, on_forecast: Callable[[str], None] | None) -> int:
        """Forecast the memory from this batch on and return how many examples are measured at once.

        Raises:
            MeasureError: If it is over the budget for one example at a time.
        """
        inputs, asked, plan = batch[0], self.settings, self.engine.plan
        size = batch_size(inputs)
        each = bytes_of(inputs) // size
        first, differences = self.forecast is None, self.engine.differences.values()
        smooth = self.engine.moved("lanczos")
        if each > self.tried_bytes or plan.layers != self.tried_layers:
            self.peaks = self.peaks_of(batch)
            self.tried_bytes, self.tried_layers = each, plan.layers
        kept, sharing = 0, SHARED_GRAPH_EXAMPLES
        if asked.sampled and smooth:
            pairs = asked.sampled * len(smooth)
            kept = each * min(pairs, asked.max_examples or pairs)
            if not plan.by("weight_space") and asked.trace is not True:
                sharing = 1
        budget = None if asked.memory_mib is None else asked.memory_mib * MIB
        passes, lanczos = self.peaks
        self.forecast = MemoryForecast(
            differences=sum(d.nbytes for d in differences) + self.copies,
            inputs=2 * bytes_of(inputs) + kept,  # this batch and the next one
            passes=passes,
            lanczos=lanczos,
            vectors=asked.stopping.most + 1,
            sharing=sharing,
        ).within(budget, free_memory(self.engine.device), size, _SENTENCES if plan.cuts_padding else None)
        self.engine.sharing = self.forecast.sharing
        if first and on_forecast is not None:
            on_forecast(self.forecast.sentence())
            on_forecast(
                plan.cost(
                    min(asked.steps, asked.stopping.most),
                    asked.mean_sample if asked.sampled else 0,
                    self.engine.moved() if asked.moved_only else self.engine.names,
                )
            )
        return self.forecast.at_once

    def peaks_of(self, batch: LabelledBatch) -> tuple[PeakBytes, PeakBytes]:
        """Measure on a few examples of a batch the memory of the passes, and of Lanczos."""
        engine, asked = self.engine, self.settings
        closed = engine.plan.by("exact", "gauss_newton")
        names = [name for name in (engine.moved() if asked.moved_only else engine.names) if name in closed]
        options = FormOptions(
            trace="trace" in asked.passes, spectrum="spectrum" in asked.passes, joint="joint" in asked.passes
        )
        passes = [(names, options)]
        sampled = engine.moved("lanczos") if asked.sampled else []
        if sampled:
            passes.append((sampled, FormOptions()))
        smooth = engine.moved("lanczos", "weight_space")
        if asked.trace is True:
            smooth = engine.plan.by("lanczos", "weight_space")
        products, each = asked.stopping.most, bytes_of(batch[0]) // batch_size(batch[0])
        key = str((passes, smooth, products, engine.moved(), each, engine.plan.layers))
        if key not in engine.plan.peaks:
            lanczos = engine.peak_of_lanczos(batch, smooth, products) if smooth else PeakBytes()
            engine.plan.peaks[key] = engine.peak_of_passes(batch, passes), lanczos
        return engine.plan.peaks[key]

    def chunks(self, inputs: Inputs, targets: torch.Tensor, most: int) -> Iterator[LabelledBatch]:
        """Split one batch into parts of so many examples at most."""
        size, plan = batch_size(inputs), self.engine.plan
        order = torch.arange(size)
        if plan.cuts_padding:  # sentences of similar length together
            order = by_length(inputs)
        self.order.append(sum(len(part) for part in self.order) + order)
        self.sample.draw_keys(size)
        for index in order.split(most):
            if not plan.cuts_padding and most >= size:
                yield inputs, targets
                return
            part = rows_of(inputs, index)
            yield trimmed(part) if plan.cuts_padding else part, targets[index.to(targets.device)]

    def add(self, inputs: Inputs, targets: torch.Tensor) -> None:
        """Measure one chunk and append its rows."""
        batch, size = (inputs, targets), batch_size(inputs)
        numbers = torch.cat(self.order)[self.count : self.count + size]
        passes = self.settings.passes
        forms = self.engine.exact(
            batch,
            self.engine.moved() if self.settings.moved_only else None,
            trace="trace" in passes,
            spectrum="spectrum" in passes,
            joint="joint" in passes,
            skip_classes=self.settings.skip_classes,
            trace_passes=self.settings.trace_passes,
            numbers=numbers,
        )
        if not torch.equal(forms.lower, forms.upper):
            self.shares_of_passes.append(forms.passes / forms.all_passes)
        assert forms.losses is not None
        rows = {"losses": forms.losses}
        for quantity in self.quantities:
            rows |= quantity.rows(self.engine, batch, forms, self.settings)
        for key, value in rows.items():
            self.rows.setdefault(key, []).append(value)
        # Examples that are in the sample stay in it if a later batch moves all smooth layers to weight space.
        if self.settings.sampled and (self.engine.moved("lanczos") or self.sample.examples):
            self.sample.offer(numbers, rows["predicted"], batch)
        self.count += size

    def measure_sample(self) -> None:
        """Measure smooth layers on drawn examples, until the sum of their means is known well enough."""
        if not self.sample.examples:
            return
        joined = {key: torch.cat(self.rows[key]) for key in (*PositiveForm.keys, "predicted")}
        weights = joined.pop("predicted")
        left = ~weights.isnan()
        columns = left.any(0).nonzero().flatten()
        # Rows are in the order of measurement until `result` sorts them.
        place = torch.cat(self.order).argsort()
        if self.sample.is_complete:
            self._measure_pairs(joined, left, self.settings.stopping)
            values = joined["quadratic"][:, columns]
            error = values.std(0) / math.sqrt(self.count) if self.count > 1 else math.nan * values[0]
            means = SampledMeans(values.mean(0), error, torch.zeros_like(error))
        else:
            done, rows = 0, place[self.sample.drawn.clamp_min(0)]
            while done < len(rows):
                done = max(done + 1, min(_FIRST_DRAWS, len(rows)))
                wanted = torch.zeros_like(left).scatter(0, rows[:done], value=True)
                self._measure_pairs(joined, wanted & left, self.settings.sample_stopping)
                quadratic = joined["quadratic"]
                means = sampled_means(quadratic[:, columns], weights[:, columns], rows[:done, columns])
                total = means.mean.sum() + quadratic.mean(0).nansum()
                if means.sampling_stderr.square().sum().sqrt() <= _SAMPLE_ERROR * total:
                    break
        for key, value in joined.items():
            self.rows[key] = [value]
        names = [self.engine.names[column] for column in columns.tolist()]
        found = {"sampled_mean": means.mean, "sampled_stderr": means.stderr}
        for key, value in (found | {"sampling_stderr": means.sampling_stderr}).items():
            self.sampled[key] = self.engine.spread(names, value[None], math.nan)[0]

    def _measure_pairs(
        self, joined: dict[str, torch.Tensor], wanted: torch.Tensor, stopping: Stopping
    ) -> None:
        """Fill in the forms of some pairs, (n, L) bool, that have not been measured."""
        numbers, engine = torch.cat(self.order), self.engine
        wanted = wanted & joined["quadratic"].isnan()
        for row in wanted.any(1).nonzero().flatten().tolist():
            inputs, targets = self.sample.examples[int(numbers[row])]
            one = (trimmed(inputs) if engine.plan.cuts_padding else inputs), targets
            columns = wanted[row].nonzero().flatten()
            forms = engine.lanczos(one, [engine.names[column] for column in columns.tolist()], stopping)
            for key, values in joined.items():
                values[row, columns] = getattr(forms, key)[0]

    def result(self, not_layers: list[str]) -> Measure:
        """Join the rows; `not_layers` are weight matrices that have changed but are not layers.

        Raises:
            DataError: If there were no examples.
        """
        if not self.rows or self.forecast is None:
            raise DataError("there are no examples to measure: the batches are empty")
        engine, place = self.engine, torch.cat(self.order).argsort()
        joined = {key: torch.cat(values)[place] for key, values in self.rows.items() if key != "predicted"}
        more = {key: joined.pop(key) for key in joined.keys() - set(Measure.__dataclass_fields__)}
        distances = [_norm(delta) for delta in engine.differences.values()]
        measured = Measure(
            names=engine.names,
            distances=torch.stack(distances),
            methods=[layer.method for layer in engine.plan.layers],
            reasons=[layer.reason for layer in engine.plan.layers],
            not_layers=not_layers,
            skipped=torch.tensor([max(self.shares_of_passes, default=0.0), self.settings.skip_classes]),
            more=more,
            **joined,  # type: ignore[arg-type]
            **self.sampled,  # type: ignore[arg-type]
        )
        sentences = [f"{name}: {QUANTITIES[name].sentence}" for name in self.settings.quantities]
        notes = [*measured.quantity_notes(), *sentences, self.forecast.sentence()]
        if not_layers:
            notes.append(f"{listed(not_layers)} not measured: {NO_LAYER}")
        measured.notes = notes
        return measured


def _norm(delta: torch.Tensor) -> torch.Tensor:
    """Return ‖v‖ in float64, a few rows at a time: a copy of a whole layer would take memory."""
    parts = [torch.linalg.vector_norm(rows.double()) for rows in delta.split(256)]
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(parts))
    return norm.cpu()
