"""`measure`: the Hessian distance measure of a model against its reference, streamed over batches."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

from hesstune.curvature.batches import LabelledBatch, by_length, checked_batches, rows_of, trimmed
from hesstune.curvature.capture import bytes_in_full_precision, differentiable
from hesstune.curvature.declared import ABOVE, SKIP_CLASSES, ExamplesChoice, MethodChoice, sample_fault
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.exact import skipped_classes_note
from hesstune.curvature.lanczos import LanczosForms
from hesstune.curvature.memory import MIB, SHARED_GRAPH_EXAMPLES, MemoryForecast, bytes_of
from hesstune.curvature.objective import Objective, PerExampleLoss
from hesstune.curvature.plan import MeasureMethod
from hesstune.curvature.quadrature import Stopping
from hesstune.curvature.result import Measure, sample_note
from hesstune.errors import ConfigError, DataError, listed, unknown_name
from hesstune.forward import Inputs, batch_size
from hesstune.reference import Reference
from hesstune.runtime.device import free_memory
from hesstune.runtime.sharding import gathered

_FORMS = ("quadratic", "lower", "upper")
_DEFAULT_TOLERANCE = 0.03
# A wide bracket (vᵀHv very negative) needs more products than `steps`.
_MOST_PER_STEP = 4
# With more sentences at once, padding to the longest one costs more than they save.
_SENTENCES = 16


def measure(
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
    noise_matrix: Any = None,
    label_smoothing: float = 0.0,
    class_weights: torch.Tensor | None = None,
    max_examples: int | None = None,
    memory_mib: float | None = None,
    skip_classes: float = SKIP_CLASSES,
    progress: Callable[[int], None] | None = None,
    plan_on: Inputs | None = None,
    on_forecast: Callable[[str], None] | None = None,
) -> Measure:
    """Compute v_iᵀ H_i⁺ v_i of every layer and example: in closed form if there is one, else by Lanczos.

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
            without a closed form; `lanczos` takes the smooth path for all layers.
        layers: Names or fnmatch patterns of layers; default: all.
        steps: Expected Lanczos steps of smooth layers: fewer if the bracket reaches `tol` sooner, up to four
            times as many if it does not.
        tol: Relative error of smooth layers that the bracket must prove; default: 3 %.
        examples: `all` measures every example. With `max` and a `mean_sample`, smooth layers are measured on
            a random sample: other entries are NaN, `mean` is estimated with a standard error, and `maximum`
            is that of the sample. Without a `mean_sample` both measure every example. Exact layers always do.
        trace: Also Tr H_i⁺ of every example and layer; "exact": of exact layers only (the trace of a smooth
            layer takes several Lanczos runs for each example).
        spectrum: Also the nonzero eigenvalues of H_i (exact layers).
        loss: `cross_entropy`, `consistent` (needs `noise_matrix`), or a callable (logits, targets) -> (B,) of
            per-example losses, which takes the smooth path.
        seed: Seed of all random probes and of the sample; the global random state is not used.
        mean_sample: With examples="max": the number of examples drawn at random for smooth layers; 0: all.
        noise_matrix: F as an array, F[i, j] = P(noisy = j | true = i), or anything with `.inverse`.
        label_smoothing: ε of label smoothing.
        class_weights: (K,): the loss −Σ c_k log p_k becomes −Σ w_k c_k log p_k.
        max_examples: Stop after so many examples.
        memory_mib: Memory in MiB beside the network and its reference: layer differences, batches,
            activations, graphs and Lanczos vectors. Batches are split to fit; an error names a budget that is
            enough for one example. Default: 512 MiB for the examples measured at a time, or the memory of one
            example, if the device has it. The result does not depend on it, nor on the batch size, up to
            `skip_classes`.
        skip_classes: Exact path, many classes: if that is likely to halve a batch's passes, stop when the
            skipped classes add at most this share to every entry and trace (by random probes, 99 % each;
            `upper` covers it, and a note says so). 0 takes all K − 1 passes, as `spectrum` does.
        progress: Called with the number of examples done after each chunk.
        plan_on: Inputs that decide how each layer is measured; default: the first batch. Processes that share
            the examples plan on the same inputs.
        on_forecast: Called with the memory forecast, one line, before the first example is measured. It is in
            the result's notes, too.

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
    settings = _MeasureSettings(
        method=method,
        examples=examples,
        steps=steps,
        tol=tol,
        trace=trace,
        spectrum=spectrum,
        seed=seed,
        max_examples=max_examples,
        memory_mib=memory_mib,
        skip_classes=skip_classes,
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
                for chunk in run.chunks(inputs, targets, run.examples_at_once(inputs, on_forecast)):
                    run.add(*chunk)
                    if progress is not None:
                        progress(run.count)
            run.measure_sample()
        return run.result().leaving_out(whole.changed_others(model))


@dataclass(frozen=True, kw_only=True)
class _MeasureSettings:
    """The arguments of `measure` that choose the computation; ConfigError if one is out of range."""

    method: str
    examples: str
    steps: int
    tol: float | None
    trace: bool | Literal["exact"]
    spectrum: bool
    seed: int
    max_examples: int | None
    memory_mib: float | None
    skip_classes: float
    mean_sample: int

    def __post_init__(self) -> None:
        choices = (
            ("method", self.method, get_args(MethodChoice)),
            ("value of examples", self.examples, get_args(ExamplesChoice)),
        )
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
    def sampled(self) -> int:
        """The number of examples in the sample for smooth layers; 0: all are measured."""
        return self.mean_sample if self.examples == "max" else 0


class _RandomSample:
    """Examples drawn uniformly from a stream: those with the smallest random keys, each as a batch of one."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._generator = size, torch.Generator().manual_seed(seed + 1)
        self._keys = torch.empty(0, dtype=torch.float64)
        self.drawn: list[tuple[float, int, LabelledBatch]] = []

    def draw_keys(self, count: int) -> None:
        """Draw the keys of the next examples, in their own order."""
        new = torch.rand(count, generator=self._generator, dtype=torch.float64)
        self._keys = torch.cat([self._keys, new])

    def offer(self, examples: torch.Tensor, inputs: Inputs, targets: torch.Tensor) -> None:
        """Keep those of a chunk's examples, given by number, that belong to the sample so far."""
        for row, example in enumerate(examples.tolist()):
            key = float(self._keys[example])
            if len(self.drawn) < self._size or key < self.drawn[-1][0]:
                one = rows_of(inputs, torch.tensor([row])), targets[row : row + 1]
                bisect.insort(self.drawn, (key, example, one), key=lambda entry: entry[0])
                del self.drawn[self._size :]


@dataclass
class _Measurement:
    """The state of one measurement: the engine, the settings, and the rows so far."""

    engine: CurvatureEngine
    settings: _MeasureSettings
    copies: int
    count: int = 0
    rows: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    order: list[torch.Tensor] = field(default_factory=list)
    sampled: dict[str, torch.Tensor] = field(default_factory=dict)
    shares_of_passes: list[float] = field(default_factory=list)  # of chunks with skipped classes
    forecast: MemoryForecast | None = None

    def __post_init__(self) -> None:
        self.sample = _RandomSample(self.settings.sampled, self.settings.seed)

    def examples_at_once(self, inputs: Inputs, on_forecast: Callable[[str], None] | None) -> int:
        """Forecast the memory from this batch on and return how many examples are measured at once.

        Raises:
            MeasureError: If it is over the budget for one example at a time.
        """
        size, plan, asked = batch_size(inputs), self.engine.plan, self.settings
        each = bytes_of(inputs) // size
        memory = plan.memory.scaled(each)
        kept, sharing = 0, SHARED_GRAPH_EXAMPLES
        if asked.sampled and plan.by("lanczos"):
            kept = each * asked.sampled
            if not plan.by("weight_space") and asked.trace is not True:
                sharing = 1
        budget = None if asked.memory_mib is None else asked.memory_mib * MIB
        first, differences = self.forecast is None, self.engine.differences.values()
        self.forecast = MemoryForecast(
            differences=sum(d.nbytes for d in differences) + memory.start + self.copies,
            inputs=2 * bytes_of(inputs) + kept,  # this batch and the next one
            example=memory.exact(trace=bool(asked.trace), spectrum=asked.spectrum),
            lanczos=memory.lanczos(asked.stopping.most),
            vectors=asked.stopping.most + 1,
            sharing=sharing,
        ).within(budget, free_memory(self.engine.device), size)
        self.engine.sharing = self.forecast.sharing
        if first and on_forecast is not None:
            on_forecast(self.forecast.sentence())
        return self.forecast.at_once

    def chunks(self, inputs: Inputs, targets: torch.Tensor, most: int) -> Iterator[LabelledBatch]:
        """Split one batch into parts of so many examples at most."""
        size, plan = batch_size(inputs), self.engine.plan
        order = torch.arange(size)
        if plan.cuts_padding:  # sentences of similar length together
            order, most = by_length(inputs), min(most, _SENTENCES)
        even = math.ceil(size / math.ceil(size / most))
        self.order.append(sum(len(part) for part in self.order) + order)
        self.sample.draw_keys(size)
        for index in order.split(even):
            if not plan.cuts_padding and even >= size:
                yield inputs, targets
                return
            part = rows_of(inputs, index)
            yield trimmed(part) if plan.cuts_padding else part, targets[index.to(targets.device)]

    def add(self, inputs: Inputs, targets: torch.Tensor) -> None:
        """Measure one chunk and append its rows."""
        size = batch_size(inputs)
        numbers = torch.cat(self.order)[self.count : self.count + size]
        keys = (*_FORMS, "trace", "trace_stderr", "gauss_newton")
        rows = {key: torch.zeros(size, len(self.engine.names), dtype=torch.float64) for key in keys}
        self._measure_exact((inputs, targets), rows, numbers)
        self._measure_smooth((inputs, targets), rows, numbers)
        for key, value in rows.items():
            self.rows.setdefault(key, []).append(value)
        self.count += size

    def _columns(self, names: Sequence[str]) -> list[int]:
        return [self.engine.names.index(name) for name in names]

    def _measure_exact(
        self, batch: LabelledBatch, rows: dict[str, torch.Tensor], numbers: torch.Tensor
    ) -> None:
        asked = self.settings
        forms = self.engine.exact(
            batch,
            trace=bool(asked.trace),
            spectrum=asked.spectrum,
            skip_classes=asked.skip_classes,
            rows=numbers,
        )
        rows["losses"] = forms.losses
        columns = self._columns(forms.names)
        if not torch.equal(forms.lower, forms.upper):
            self.shares_of_passes.append(forms.passes / forms.all_passes)
        for key in (*_FORMS, "trace", "trace_stderr"):
            value = getattr(forms, key)
            rows[key][:, columns] = 0.0 if value is None else value
        if forms.spectrum is not None:
            shape = (*rows["trace"].shape, forms.spectrum.shape[2])
            rows["spectrum"] = torch.full(shape, math.nan, dtype=torch.float64)
            rows["spectrum"][:, columns] = forms.spectrum

    def _measure_smooth(
        self, batch: LabelledBatch, rows: dict[str, torch.Tensor], numbers: torch.Tensor
    ) -> None:
        asked, plan = self.settings, self.engine.plan
        names = plan.by("lanczos", "weight_space")
        sampled = plan.by("lanczos") if asked.sampled else []
        if sampled:
            columns = self._columns(sampled)
            rows["gauss_newton"][:, columns] = self.engine.gauss_newton(batch, sampled)
            for key in _FORMS:
                rows[key][:, columns] = math.nan
        if sampled or self.sample.drawn:  # a later batch may move all smooth layers to weight space
            self.sample.offer(numbers, *batch)
        filled = [name for name in names if name not in sampled]
        if filled:
            forms = self.engine.lanczos(batch, filled, asked.stopping)
            for key in _FORMS:
                rows[key][:, self._columns(filled)] = getattr(forms, key)
        if asked.trace == "exact":
            for key in ("trace", "trace_stderr"):
                rows[key][:, self._columns(names)] = math.nan
        elif asked.trace:
            self._trace(batch, rows, "lanczos", None)
            # In weight space each product takes as long as a pass, so `steps` and `tol` apply.
            self._trace(batch, rows, "weight_space", asked.stopping)

    def _trace(
        self,
        batch: LabelledBatch,
        rows: dict[str, torch.Tensor],
        method: MeasureMethod,
        stopping: Stopping | None,
    ) -> None:
        names = self.engine.plan.by(method)
        if names:
            found, columns = self.engine.trace(batch, names, stopping), self._columns(names)
            rows["trace"][:, columns], rows["trace_stderr"][:, columns] = found.value, found.stderr

    def measure_sample(self) -> None:
        """Measure the smooth layers of the sample, and estimate their means over all examples.

        The estimate is the mean of the Gauss–Newton values, known for every example, plus the sample's mean
        difference from them. Its variance as a mean over the distribution is Var q / n + (1 − m/n)·Var(q −
        GN)/m.
        """
        if not self.sample.drawn:
            return
        joined = {key: torch.cat(self.rows[key]) for key in (*_FORMS, "gauss_newton")}
        columns = torch.tensor(self._columns([n for n in self.engine.names if self._is_sampled(n, joined)]))
        names = [self.engine.names[column] for column in columns.tolist()]
        forms = LanczosForms.joined(
            [
                self.engine.lanczos(
                    (trimmed(inputs) if self.engine.plan.cuts_padding else inputs, targets),
                    names,
                    self.settings.stopping,
                )
                for _, _, (inputs, targets) in self.sample.drawn
            ]
        )
        # Rows are in the order of measurement until `result` sorts them.
        place = torch.cat(self.order).argsort()
        drawn = place[torch.tensor([example for _, example, _ in self.sample.drawn])]
        for key in _FORMS:
            joined[key][drawn[:, None], columns[None, :]] = getattr(forms, key)
            self.rows[key] = [joined[key]]
        known, n, m = joined["gauss_newton"][:, columns], self.count, len(drawn)
        extra = forms.quadratic - known[drawn]
        variance = torch.full_like(extra[0], math.nan)
        if m > 1:
            variance = forms.quadratic.var(0) / n + (1 - m / n) * extra.var(0) / m
        estimates = {"sampled_mean": known.mean(0) + extra.mean(0), "sampled_stderr": variance.sqrt()}
        for key, value in estimates.items():
            self.sampled[key] = torch.full((len(self.engine.names),), math.nan, dtype=torch.float64)
            self.sampled[key][columns] = value

    def _is_sampled(self, name: str, joined: dict[str, torch.Tensor]) -> bool:
        return bool(joined["quadratic"][:, self.engine.names.index(name)].isnan().any())

    def result(self) -> Measure:
        """Join the rows.

        Raises:
            DataError: If there were no examples.
        """
        if not self.rows:
            raise DataError("there are no examples to measure: the batches are empty")
        engine = self.engine
        place = torch.cat(self.order).argsort()
        joined: dict[str, Any] = {key: torch.cat(values)[place] for key, values in self.rows.items()}
        joined |= self.sampled
        del joined["gauss_newton"]
        if not self.settings.trace:
            del joined["trace"], joined["trace_stderr"]
        distances = [torch.linalg.vector_norm(d.double()).cpu() for d in engine.differences.values()]
        return Measure(
            names=engine.names,
            distances=torch.stack(distances),
            methods=[layer.method for layer in engine.plan.layers],
            reasons=[layer.reason for layer in engine.plan.layers],
            notes=self._notes(joined["quadratic"]),
            skipped=self._skipped(),
            **joined,
        )

    def _skipped(self) -> torch.Tensor:
        return torch.tensor([max(self.shares_of_passes, default=0.0), self.settings.skip_classes])

    def _notes(self, quadratic: torch.Tensor) -> list[str]:
        notes = sample_note(quadratic)
        smooth = self.engine.plan.by("lanczos", "weight_space")
        if self.settings.spectrum and smooth:
            notes.append(f"no eigenvalues of {listed(smooth)}: only the exact path gives them")
        notes += skipped_classes_note(self._skipped())
        return notes if self.forecast is None else [*notes, self.forecast.sentence()]
