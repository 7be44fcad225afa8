"""`measure`: the Hessian distance measure of a model against its reference, streamed over batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from hesstune.checks import also_called
from hesstune.curvature.arguments import LabelledBatch, check_arguments, limited
from hesstune.curvature.batches import fixed_entries, known_as, rows_of
from hesstune.curvature.capture import Capture, capture, differentiable
from hesstune.curvature.declared import Means, Refined
from hesstune.curvature.exact import ExactForms, exact_by_forward_mode, exact_forms
from hesstune.curvature.lanczos import Stopping
from hesstune.curvature.objective import Objective, PerExampleLoss
from hesstune.curvature.padding import by_length, trimmed
from hesstune.curvature.planning import MeasureMethod, MeasurePlan, make_measure_plan
from hesstune.curvature.refusals import require_finite
from hesstune.curvature.result import Measure
from hesstune.curvature.screening import Screening
from hesstune.curvature.selection import selected_layers
from hesstune.curvature.smooth import GaussNewtonScreen, SmoothSettings, smooth_brackets, smooth_traces
from hesstune.errors import DataError
from hesstune.forward import Inputs, batch_size, moved
from hesstune.reference import Reference

__all__ = ["measure"]

ExamplesDone = Callable[[int], None]

_FORMS = ("quadratic", "lower", "upper")
_DEFAULT_TOLERANCE = 0.03
# Where the bracket is wide (vᵀHv very negative) a fixed number of steps does not do.
_MOST_PER_STEP = 4
# Padded to the longest, more sentences at once cost more than they save.
_SENTENCES = 16


@also_called(noise="noise_matrix")
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
    memory_mib: float = 512.0,
    skip_classes: float | None = None,
    progress: ExamplesDone | None = None,
    plan_on: Inputs | None = None,
) -> Measure:
    """Compute v_iᵀ H_i⁺ v_i of every layer and example: exactly where possible, else by Lanczos.

    H_i is the Hessian of one example's loss in vec(W_i) alone, H_i⁺ its positive part,
    v_i = vec(W_i − W_i⁽ˢ⁾). The model is used in eval mode and left as it was found: weights,
    buffers, gradients, flags, hooks and the global random state.

    By default every entry is computed and no trace, for few examples of any network; `Run.measure`, of a
    whole training set, refines the maximum alone (examples="max", mean_sample=8, trace="exact").

    Args:
        model: The fine-tuned network, in float32 or float64.
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
        memory_mib: Memory for activations and the batches they come from, in MiB, beside the network and
            its reference; larger batches are split. The result does not depend on it, nor on the
            batch size.
        skip_classes: Exact path, many classes: stop a batch's passes once the skipped classes add
            at most this share to every entry (told by probes, 99 % an entry; `upper` covers it).
            None, the default, takes all K − 1 passes.
        progress: Called with the number of examples done after each chunk.
        plan_on: Inputs on which it is decided how each layer is measured; the first batch where None.
            Processes that share the examples plan on the same inputs.

    Returns:
        The measurement, with the method chosen per layer and why.

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
    ref.check(model)
    objective = Objective(loss, noise_matrix, label_smoothing, class_weights)
    names = selected_layers(ref.layers(), layers)
    settings = _MeasureSettings(
        method, steps, tol, trace, spectrum, seed, memory_mib, skip_classes, examples, mean_sample
    )
    run = _Measurement(model, ref, names, objective, settings)
    done = 0
    with differentiable(model, names):
        if plan_on is not None:
            run.plan_by(plan_on)
        for inputs, targets in limited(batches, max_examples):
            for chunk in run.chunks(inputs, targets):
                run.add(*chunk)
                done += len(chunk[1])
                if progress is not None:
                    progress(done)
        run.finish()
    return run.result()


def _bytes(inputs: Inputs) -> int:
    values = [inputs] if isinstance(inputs, torch.Tensor) else inputs.values()
    return sum(v.nbytes for v in values if isinstance(v, torch.Tensor))


@dataclass(frozen=True)
class _MeasureSettings:
    method: Means
    steps: int
    tol: float | None
    trace: bool | Literal["exact"]
    spectrum: bool
    seed: int
    memory_mib: float
    skip_classes: float | None
    examples: Refined
    mean_sample: int


@dataclass
class _Measurement:
    """The state of one measurement: what is asked, the plan once known, the rows so far."""

    model: nn.Module
    ref: Reference
    names: list[str]
    objective: Objective
    settings: _MeasureSettings
    plan: MeasurePlan | None = None
    plan_examples: int = 0
    fixed: frozenset[str] = frozenset()
    count: int = 0
    rows: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    order: list[torch.Tensor] = field(default_factory=list)
    screen: GaussNewtonScreen | None = None
    screened: Screening | None = None
    sampled: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parameters = dict(self.model.named_parameters())
        self.device = next(iter(parameters.values())).device
        self.deltas = {name: self.ref.difference(self.model, name) for name in self.names}
        self.moved = {name: delta for name, delta in self.deltas.items() if bool(delta.any())}

    def plan_by(self, inputs: Inputs) -> None:
        """Decide how each layer is measured."""
        inputs = moved(inputs, self.device)
        self.plan = make_measure_plan(
            self.model, inputs, self.names, self.objective, self.settings.method, self.settings.seed
        )
        self.plan_examples = batch_size(inputs)
        if self.plan_examples > 1:
            self.fixed = fixed_entries(inputs)

    def chunks(self, inputs: Inputs, targets: torch.Tensor) -> Iterator[LabelledBatch]:
        """Split one batch by the memory budget; the first batch (of two examples or more) makes the plan."""
        inputs, targets = moved(inputs, self.device), torch.as_tensor(targets).to(self.device)
        size = batch_size(inputs)
        if targets.shape[:1] != (size,):
            raise DataError(f"a batch has {size} inputs but targets of shape {tuple(targets.shape)}")
        if self.plan is None or (self.plan_examples == 1 and size > 1):
            self.plan_by(inputs)
        assert self.plan is not None
        inputs = known_as(inputs, self.fixed)
        # For spectra and traces kept gradients or unfolded inputs come on top; this batch and the next lie
        # there already.
        extras = bool(self.settings.trace) or self.settings.spectrum
        each = max(1, self.plan.bytes_per_example) * (3 if extras else 1)
        room = self.settings.memory_mib * 2**20 - 2 * _bytes(inputs)
        most = max(1, int(room / each))
        order = torch.arange(size)
        if self.plan.cuts_padding:  # sentences of similar length together
            order, most = by_length(inputs), min(most, _SENTENCES)
        even = math.ceil(size / math.ceil(size / most))
        first = sum(len(part) for part in self.order)
        self.order.append(first + order)
        for index in order.split(even):
            if not self.plan.cuts_padding and even >= size:
                yield inputs, targets
                return
            part = rows_of(inputs, index)
            yield trimmed(part) if self.plan.cuts_padding else part, targets[index.to(self.device)]

    def add(self, inputs: Inputs, targets: torch.Tensor) -> None:
        """Measure one chunk and append its rows."""
        assert self.plan is not None
        size = batch_size(inputs)
        shape = (size, len(self.names))
        rows = {key: torch.zeros(shape, dtype=torch.float64) for key in _FORMS}
        rows["trace"] = torch.zeros(shape, dtype=torch.float64)
        rows["trace_stderr"] = torch.zeros(shape, dtype=torch.float64)
        forms, logits = self._exact(inputs)
        require_finite(logits, torch.cat(self.order)[self.count :])
        rows["losses"] = self.objective(logits, targets).detach().double().cpu()
        exact = self._columns("exact")
        if exact:
            weight = self.objective.curvature_weight(targets, logits.shape[1]).clamp(min=0)[:, None]
            for key in _FORMS:
                rows[key][:, exact] = (weight * getattr(forms, key)).cpu()
            if forms.trace is not None:
                rows["trace"][:, exact] = (weight * forms.trace).cpu()
        if self.settings.spectrum:
            spectrum = torch.full((*shape, logits.shape[1] - 1), math.nan, dtype=torch.float64)
            if exact and forms.spectrum is not None:
                spectrum[:, exact] = (weight[:, :, None] * forms.spectrum).cpu()
            rows["spectrum"] = spectrum
        self._smooth(inputs, targets, rows)
        for key, value in rows.items():
            self.rows.setdefault(key, []).append(value)
        self.count += size

    def _columns(self, *methods: str) -> list[int]:
        assert self.plan is not None
        return [i for i, layer in enumerate(self.plan.layers) if layer.method in methods]

    def _exact(self, inputs: Inputs) -> tuple[ExactForms, torch.Tensor]:
        assert self.plan is not None
        names, plan = self.plan.by("exact"), self.plan
        forward = capture(self.model, inputs, names, plan.layouts, copied=plan.copied)
        forward.require(names)
        logits = forward.logits.detach()
        if not names:
            none = logits.new_zeros((logits.shape[0], 0), dtype=torch.float64)
            return ExactForms(none, none, none, None, None, 0), logits
        extras = bool(self.settings.trace) or self.settings.spectrum
        # One forward-mode product costs about two backward passes to the outputs.
        if (
            names
            and not extras
            and self.settings.skip_classes is None
            and 2 * len(names) < logits.shape[1] - 1
        ):
            del forward
            forms, _ = exact_by_forward_mode(
                self.model, inputs, names, self.deltas, plan.layouts, plan.copied
            )
            return forms, logits
        return self._backward_forms(forward, names), logits

    def _backward_forms(self, forward: Capture, names: list[str]) -> ExactForms:
        return exact_forms(
            forward,
            names,
            self.moved,
            trace=bool(self.settings.trace),
            spectrum=self.settings.spectrum,
            tol=self.settings.skip_classes,
            seed=self.settings.seed,
        )

    def _smooth(self, inputs: Inputs, targets: torch.Tensor, rows: dict[str, torch.Tensor]) -> None:
        assert self.plan is not None
        asked = self.settings
        tol = _DEFAULT_TOLERANCE if asked.tol is None else asked.tol
        stopping = Stopping(tol=tol, most=_MOST_PER_STEP * asked.steps)
        smooth = SmoothSettings(self.objective, stopping, asked.seed, asked.tol is not None)
        methods: tuple[MeasureMethod, ...] = ("lanczos", "weight_space")
        if asked.examples == "max" and self.plan.by("lanczos"):
            methods = ("weight_space",)
            self.screen = self.screen or GaussNewtonScreen(self.model, self.plan, self.deltas, smooth)
            self.screen.add(inputs, targets)
            for column in self._columns("lanczos"):
                for key in _FORMS:
                    rows[key][:, column] = math.nan
        brackets = smooth_brackets(self.model, inputs, targets, self.plan, self.deltas, smooth, methods)
        for name, bracket in brackets.items():
            column = self.names.index(name)
            for key, value in zip(_FORMS, (bracket.value, bracket.lower, bracket.upper), strict=True):
                rows[key][:, column] = value
        if asked.trace == "exact":
            for column in self._columns("lanczos", "weight_space"):
                rows["trace"][:, column] = rows["trace_stderr"][:, column] = math.nan
        elif asked.trace:
            traces = smooth_traces(self.model, inputs, targets, self.plan, smooth)
            for name, (value, stderr) in traces.items():
                column = self.names.index(name)
                rows["trace"][:, column], rows["trace_stderr"][:, column] = value, stderr

    def finish(self) -> None:
        """Refine the smooth layers' maxima, where that was asked for."""
        if self.screen is None:
            return
        found = self.screened = self.screen.maxima()
        columns = torch.tensor([self.names.index(name) for name in found.names])
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
        for key, value in zip(
            _FORMS, (sample.forms.value, sample.forms.lower, sample.forms.upper), strict=True
        ):
            joined[key][cells] = torch.where(new, value, joined[key][cells])
        for key, found in (("sampled_mean", sample.mean), ("sampled_stderr", sample.stderr)):
            self.sampled[key] = torch.full((len(self.names),), math.nan, dtype=torch.float64)
            self.sampled[key][columns] = found

    def result(self) -> Measure:
        """Join the rows.

        Raises:
            DataError: If there were no examples.
        """
        if self.plan is None or not self.rows:
            raise DataError("there are no examples to measure: the batches are empty")
        place = torch.cat(self.order).argsort()
        joined = {key: torch.cat(values)[place] for key, values in self.rows.items()}
        if not self.settings.trace:
            del joined["trace"], joined["trace_stderr"]
        distances = [torch.linalg.vector_norm(self.deltas[name].double()).cpu() for name in self.names]
        return Measure(
            names=self.names,
            distances=torch.stack(distances),
            methods=[layer.method for layer in self.plan.layers],
            reasons=[layer.reason for layer in self.plan.layers],
            quadratic=joined["quadratic"],
            lower=joined["lower"],
            upper=joined["upper"],
            losses=joined["losses"],
            trace=joined.get("trace"),
            trace_stderr=joined.get("trace_stderr"),
            spectrum=joined.get("spectrum"),
            notes=[] if self.screened is None else [self.screened.summary()],
            screened=None if self.screened is None else self.screened.tally(),
            sampled_mean=self.sampled.get("sampled_mean"),
            sampled_stderr=self.sampled.get("sampled_stderr"),
        )
