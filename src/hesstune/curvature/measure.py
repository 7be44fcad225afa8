"""`measure`: the Hessian distance measure of a model against its reference, streamed over batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from hesstune.curvature.arguments import LabelledBatch, check_arguments, expected_examples, limited
from hesstune.curvature.batches import rows_of
from hesstune.curvature.capture import differentiable
from hesstune.curvature.declared import SKIP_CLASSES, Means, Refined
from hesstune.curvature.engine import CurvatureEngine
from hesstune.curvature.exact.skipping import left_out
from hesstune.curvature.full_precision import bytes_in_full
from hesstune.curvature.maxima import GaussNewtonScreen
from hesstune.curvature.objective import Objective, PerExampleLoss
from hesstune.curvature.padding import by_length, trimmed
from hesstune.curvature.planning.memory import MIB, SHARED, MemoryForecast, bytes_of
from hesstune.curvature.planning.plan import MeasureMethod
from hesstune.curvature.result import Measure
from hesstune.curvature.smooth.screening import Screening
from hesstune.curvature.smooth.stopping import Stopping
from hesstune.errors import DataError, listed
from hesstune.forward import Inputs, batch_size
from hesstune.reference import Reference
from hesstune.runtime.device import free_memory
from hesstune.runtime.sharding import gathered

__all__ = ["measure"]

ExamplesDone = Callable[[int], None]

_FORMS = ("quadratic", "lower", "upper")
_DEFAULT_TOLERANCE = 0.03
# Where the bracket is wide (vᵀHv very negative) a fixed number of steps does not do.
_MOST_PER_STEP = 4
# Padded to the longest, more sentences at once cost more than they save.
_SENTENCES = 16


def measure(
    model: nn.Module,
    ref: Reference,
    batches: Iterable[LabelledBatch],
    method: Means = "auto",
    layers: str | Sequence[str] | None = None,
    steps: int = 16,
    tol: float | None = None,
    examples: Refined = "all",
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
    progress: ExamplesDone | None = None,
    plan_on: Inputs | None = None,
    told: Callable[[str], None] | None = None,
) -> Measure:
    """Compute v_iᵀ H_i⁺ v_i of every layer and example: exactly where possible, else by Lanczos.

    H_i is the Hessian of one example's loss in vec(W_i) alone, H_i⁺ its positive part,
    v_i = vec(W_i − W_i⁽ˢ⁾). The model is used in eval mode and left as it was found: weights,
    buffers, gradients, flags, hooks and the global random state.

    By default every entry is computed and no trace, for few examples of any network; `Run.measure`, of a
    whole training set, refines the maximum alone (examples="max", mean_sample=8, trace="exact").

    Args:
        model: The fine-tuned network, in float32 or float64; weights in half precision are measured as
            float32, on copies; sharded ones (FSDP2) are gathered on every process, which all call this.
        ref: Its reference, taken before fine-tuning.
        batches: Iterable of (inputs, targets): inputs a tensor or a mapping of tensors, targets
            class indices (B,) or soft targets (B, K). Read once, streamed.
        method: `auto` decides layer by layer, by structure and a numerical probe; `exact` refuses
            layers that it does not hold for; `lanczos` takes the smooth path everywhere.
        layers: Names or fnmatch patterns of layers; all where None.
        steps: Lanczos steps to reckon with (smooth layers): fewer where the bracket is narrower than
            `tol` sooner, up to four times as many where it is not.
        tol: Relative error that Lanczos must prove by its bracket. Where None: 3 % proved with
            examples="all"; with "max" the maximum is refined until it stands still to 2 %, which
            takes fewer products, and its bracket is wider.
        examples: `all` fills every entry; `max` refines only what can be a smooth layer's maximum
            (and keeps the inputs in memory for it): other entries are NaN, and the result's
            notes say what covers them. Exact layers are always filled.
        trace: Also Tr H_i⁺ of every example and layer; "exact": of exact layers only, where it costs
            little (a smooth layer's takes several Lanczos runs an example).
        spectrum: Also the nonzero eigenvalues of H_i (exact layers).
        loss: `cross_entropy`, `consistent` (needs `noise_matrix`), or a callable (logits, targets) -> (B,)
            of per-example losses, which goes through the smooth path.
        seed: Of every random probe; the global random state is not used.
        mean_sample: With examples="max": how many examples, drawn at random, are refined in every
            smooth layer, so that `mean` has a value and a standard error there; 0 for none.
        noise_matrix: F as an array, F[i, j] = P(noisy = j | true = i), or anything with `.inverse`.
        label_smoothing: ε of label smoothing.
        class_weights: (K,): the loss −Σ c_k log p_k becomes −Σ w_k c_k log p_k.
        max_examples: Stop after so many examples.
        memory_mib: Memory in MiB beside the network and its reference, for everything: the layers'
            differences, the batches, activations, graphs and Lanczos vectors. Batches are split to fit;
            where one example does not, it is refused with what would. None: 512 MiB for the examples
            measured at a time, or what one of them takes, as long as the device has that left. The
            result does not depend on it, nor on the batch size, but for what `skip_classes` allows.
        skip_classes: Exact path, many classes: where that is likely to halve a batch's passes, stop once the
            skipped classes add at most this share to every entry and trace (told by probes, 99 % each;
            `upper` covers it, and a note says so). 0 takes all K − 1 passes, as `spectrum` does.
        progress: Called with the number of examples done after each chunk.
        told: Called with the forecast of memory, one line, before the first example is measured; it is
            in the result's notes, too.
        plan_on: Inputs on which it is decided how each layer is measured; the first batch where None.
            Processes that share the examples plan on the same inputs.

    Returns:
        The measurement, with the method chosen per layer and why. Its `not_layers` names the weight matrices
        that have changed but are not layers (embeddings, recurrent weights, experts of three dimensions).

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
    check_arguments(method, examples, steps, tol, max_examples, memory_mib, skip_classes, mean_sample)
    objective = Objective(loss, noise_matrix, label_smoothing, class_weights)
    with gathered(model):
        whole = ref.gathered()
        engine = CurvatureEngine.of(model, whole, layers, objective, method=method, seed=seed)
        settings = _MeasureSettings(
            steps, tol, trace, spectrum, seed, memory_mib, skip_classes, examples, mean_sample
        )
        run = _Measurement(engine, settings, copies=bytes_in_full(model))
        done = 0
        with differentiable(model, engine.names):
            if plan_on is not None:
                engine.plan_on(plan_on)
            for batch in limited(batches, max_examples):
                inputs, targets = engine.take(batch)
                if run.forecast is None:
                    run.expected = expected_examples(batches, batch_size(inputs), max_examples)
                for chunk in run.chunks(inputs, targets, run.look_ahead(inputs, told)):
                    run.add(*chunk)
                    done += len(chunk[1])
                    if progress is not None:
                        progress(done)
            run.finish()
        return run.result().leaving_out(whole.changed_others(model))


@dataclass(frozen=True)
class _MeasureSettings:
    steps: int
    tol: float | None
    trace: bool | Literal["exact"]
    spectrum: bool
    seed: int
    memory_mib: float | None
    skip_classes: float
    examples: Refined
    mean_sample: int

    @property
    def stopping(self) -> Stopping:
        """When a smooth layer's entries are known well enough."""
        tol = _DEFAULT_TOLERANCE if self.tol is None else self.tol
        return Stopping(tol=tol, most=_MOST_PER_STEP * self.steps)


@dataclass
class _Measurement:
    """The state of one measurement: the engine, what is asked, the rows so far."""

    engine: CurvatureEngine
    settings: _MeasureSettings
    count: int = 0
    rows: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    order: list[torch.Tensor] = field(default_factory=list)
    screen: GaussNewtonScreen | None = None
    screened: Screening | None = None
    sampled: dict[str, torch.Tensor] = field(default_factory=dict)
    copies: int = 0
    skipping: list[float] = field(default_factory=list)  # shares of the passes that a part took
    expected: int | None = None
    forecast: MemoryForecast | None = None

    def look_ahead(self, inputs: Inputs, told: Callable[[str], None] | None) -> int:
        """Forecast the memory from this batch on, say it first, and return how many examples go at once.

        Raises:
            MeasureError: If it is over the budget even for one example at a time.
        """
        size, plan, asked = batch_size(inputs), self.engine.plan, self.settings
        each = bytes_of(inputs) // size
        memory = plan.memory.scaled(each)
        kept, sharing = 0, SHARED
        if asked.examples == "max" and plan.by("lanczos"):  # the screen keeps inputs until it refines
            kept = each * max(self.count + size, self.expected or 0)
            if not plan.by("weight_space") and asked.trace is not True:
                sharing = 1
        room = None if asked.memory_mib is None else asked.memory_mib * MIB
        first, differences = self.forecast is None, self.engine.differences.values()
        self.forecast = MemoryForecast(
            differences=sum(d.nbytes for d in differences) + memory.start + self.copies,
            inputs=2 * bytes_of(inputs) + kept,  # this batch and the next lie there already
            example=memory.exact(trace=bool(asked.trace), spectrum=asked.spectrum),
            lanczos=memory.lanczos(asked.stopping.most),
            vectors=asked.stopping.most + 1,
            sharing=sharing,
        ).within(room, free_memory(self.engine.device), size)
        self.engine.sharing = self.forecast.sharing
        if first and told is not None:
            told(self.forecast.sentence())
        return self.forecast.at_once

    def chunks(self, inputs: Inputs, targets: torch.Tensor, most: int) -> Iterator[LabelledBatch]:
        """Split one batch into parts of so many examples at most."""
        size, plan = batch_size(inputs), self.engine.plan
        order = torch.arange(size)
        if plan.cuts_padding:  # sentences of similar length together
            order, most = by_length(inputs), min(most, _SENTENCES)
        even = math.ceil(size / math.ceil(size / most))
        first = sum(len(part) for part in self.order)
        self.order.append(first + order)
        for index in order.split(even):
            if not plan.cuts_padding and even >= size:
                yield inputs, targets
                return
            part = rows_of(inputs, index)
            yield trimmed(part) if plan.cuts_padding else part, targets[index.to(targets.device)]

    def add(self, inputs: Inputs, targets: torch.Tensor) -> None:
        """Measure one chunk and append its rows."""
        size = batch_size(inputs)
        keys = (*_FORMS, "trace", "trace_stderr")
        rows = {key: torch.zeros(size, len(self.engine.names), dtype=torch.float64) for key in keys}
        self._exact((inputs, targets), rows)
        self._smooth((inputs, targets), rows)
        for key, value in rows.items():
            self.rows.setdefault(key, []).append(value)
        self.count += size

    def _columns(self, *methods: MeasureMethod) -> list[int]:
        return [self.engine.names.index(name) for name in self.engine.plan.by(*methods)]

    def _exact(self, batch: LabelledBatch, rows: dict[str, torch.Tensor]) -> None:
        asked = self.settings
        forms = self.engine.exact(
            batch,
            trace=bool(asked.trace),
            spectrum=asked.spectrum,
            skip_classes=asked.skip_classes,
            rows=torch.cat(self.order)[self.count :],
        )
        rows["losses"] = forms.losses
        columns = self._columns("exact")  # the batch may have moved layers to weight space
        if not torch.equal(forms.lower, forms.upper):
            self.skipping.append(forms.passes / forms.all_passes)
        for key in _FORMS:
            rows[key][:, columns] = getattr(forms, key)
        for key, value in (("trace", forms.trace), ("trace_stderr", forms.trace_stderr)):
            rows[key][:, columns] = 0.0 if value is None else value
        if forms.spectrum is not None:
            shape = (*rows["trace"].shape, forms.spectrum.shape[2])
            rows["spectrum"] = torch.full(shape, math.nan, dtype=torch.float64)
            rows["spectrum"][:, columns] = forms.spectrum

    def _smooth(self, batch: LabelledBatch, rows: dict[str, torch.Tensor]) -> None:
        asked, plan = self.settings, self.engine.plan
        names = plan.by("lanczos", "weight_space")
        filled = names
        if asked.examples == "max" and plan.by("lanczos"):
            filled = plan.by("weight_space")
            self.screen = self.screen or GaussNewtonScreen(
                self.engine, asked.stopping, asked.seed, prove=asked.tol is not None
            )
            self.screen.add(batch)
            for key in _FORMS:
                rows[key][:, self._columns("lanczos")] = math.nan
        if filled:
            forms = self.engine.lanczos(batch, filled, asked.stopping)
            columns = [self.engine.names.index(name) for name in filled]
            for key in _FORMS:
                rows[key][:, columns] = getattr(forms, key)
        if asked.trace == "exact":
            for key in ("trace", "trace_stderr"):
                rows[key][:, self._columns("lanczos", "weight_space")] = math.nan
        elif asked.trace:
            self._traces(batch, rows, "lanczos", None)
            # Product by product for each example: there `steps` and `tol` count.
            self._traces(batch, rows, "weight_space", asked.stopping)

    def _traces(
        self,
        batch: LabelledBatch,
        rows: dict[str, torch.Tensor],
        method: MeasureMethod,
        stopping: Stopping | None,
    ) -> None:
        names, columns = self.engine.plan.by(method), self._columns(method)
        if names:
            found = self.engine.trace(batch, names, stopping)
            rows["trace"][:, columns], rows["trace_stderr"][:, columns] = found.value, found.stderr

    def finish(self) -> None:
        """Refine the smooth layers' maxima, where that was asked for."""
        if self.screen is None:
            return
        found = self.screened = self.screen.maxima()
        columns = torch.tensor([self.engine.names.index(name) for name in found.names])
        joined = {key: torch.cat(self.rows[key]) for key in _FORMS}
        joined["quadratic"][:, columns] = found.quadratic
        joined["lower"][found.argmax, columns] = found.lower
        joined["upper"][found.argmax, columns] = found.upper
        if self.settings.mean_sample:
            self._sample(columns, joined)
        for key, value in joined.items():
            self.rows[key] = [value]

    def _sample(self, columns: torch.Tensor, joined: dict[str, torch.Tensor]) -> None:
        """Refine a random sample of examples: the screened layers' means, and a check of the maxima."""
        assert self.screen is not None
        sample = self.screen.sample(self.settings.mean_sample)
        cells = (sample.rows[:, None], columns[None, :])
        new = joined["lower"][cells].isnan()  # bounds of a screened maximum cover more than its own value
        for key in _FORMS:
            joined[key][cells] = torch.where(new, getattr(sample.forms, key), joined[key][cells])
        for key, found in (("sampled_mean", sample.mean), ("sampled_stderr", sample.stderr)):
            self.sampled[key] = torch.full((len(self.engine.names),), math.nan, dtype=torch.float64)
            self.sampled[key][columns] = found

    def result(self) -> Measure:
        """Join the rows.

        Raises:
            DataError: If there were no examples.
        """
        if not self.rows:
            raise DataError("there are no examples to measure: the batches are empty")
        engine = self.engine
        place = torch.cat(self.order).argsort()
        joined = {key: torch.cat(values)[place] for key, values in self.rows.items()}
        if not self.settings.trace:
            del joined["trace"], joined["trace_stderr"]
        distances = [torch.linalg.vector_norm(d.double()).cpu() for d in engine.differences.values()]
        return Measure(
            names=engine.names,
            distances=torch.stack(distances),
            methods=[layer.method for layer in engine.plan.layers],
            reasons=[layer.reason for layer in engine.plan.layers],
            quadratic=joined["quadratic"],
            lower=joined["lower"],
            upper=joined["upper"],
            losses=joined["losses"],
            trace=joined.get("trace"),
            trace_stderr=joined.get("trace_stderr"),
            spectrum=joined.get("spectrum"),
            notes=self._notes(),
            screened=None if self.screened is None else self.screened.tally(),
            skipped=self._skipped(),
            sampled_mean=self.sampled.get("sampled_mean"),
            sampled_stderr=self.sampled.get("sampled_stderr"),
        )

    def _skipped(self) -> torch.Tensor:
        return torch.tensor([max(self.skipping, default=0.0), self.settings.skip_classes])

    def _notes(self) -> list[str]:
        notes = [] if self.screened is None else [self.screened.summary()]
        smooth = self.engine.plan.by("lanczos", "weight_space")
        if self.settings.spectrum and smooth:
            notes.append(
                f"no eigenvalues of {listed(smooth)}: they come with the exact path alone, and "
                f"{'these layers are' if len(smooth) > 1 else 'this layer is'} smooth"
            )
        notes += left_out(self._skipped())
        return notes if self.forecast is None else [*notes, self.forecast.sentence()]
