"""`--radius auto`: the radii of the balls from the data alone, without a clean label."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.constraints.distance import resolve_radii
from hesstune.data.examples import Examples
from hesstune.inputs.batches import predict_logits
from hesstune.inputs.features import FeatureInputs
from hesstune.methods import method_class
from hesstune.noise.matrix import NoiseMatrix
from hesstune.runs.folder import entered
from hesstune.runs.records import RADIUS, TRIALS, CurvePoint, RadiusRecord
from hesstune.storage.stored import read_record, write_record
from hesstune.training.fit import Trained, fit_prepared
from hesstune.training.prepare import Prepared, named_radii

__all__ = ["FACTORS", "balanced_radii", "choose_radius", "pick", "with_chosen_radii"]

# The path: factors of the method's default radii.
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
# Examples whose traces set the shape by curvature.
TRACED = 64
RULE = (
    "the smallest radii whose validation risk is within one standard error of the least; risk is the "
    "consistent 0-1 loss, the mean of 1 − (F⁻¹)[given label, predicted], whose expectation is the clean "
    "error: unlike the consistent cross-entropy it is bounded, so it cannot be had by growing weights; a "
    "soft label gives its mean over the classes, weighted by the label"
)


def with_chosen_radii(prepared: Prepared, out: Path) -> Prepared:
    """Return what was prepared with radii chosen, or read where an interrupted run had chosen them."""
    chosen = choose_radius(prepared, out)
    return replace(prepared, radius=named_radii(chosen, prepared.loaded))


def choose_radius(prepared: Prepared, out: Path) -> dict[str, float]:
    """Choose the radii by short runs along a path of factors, and keep choice and curve in radius.json.

    `auto` scales the method's default radii. `curvature` first gives every layer an equal share of the
    budget Σ_i √(α_i² max Tr H_i⁺) that the default radii spend (see `balanced_radii`), with traces taken
    after the first run of the path, and scales those. Runs of a head last as long as the run itself,
    others half as long. Validation labels are those of the run, as noisy as the training labels.

    Args:
        prepared: Of a configuration whose `radius` is one of AUTOMATIC; its network is left as it is.
        out: The run's folder.

    Returns:
        {layer pattern: radius}.

    Raises:
        RunError: If radius.json is damaged.
    """
    path = out / RADIUS
    if (chosen := read_record(path, RadiusRecord)) is not None:
        return chosen.radius
    config = prepared.config
    base = method_class(config.method).default_radius(config.train)
    assert base is not None
    shape: dict[str, float] = dict(base)
    folder = out / TRIALS
    traces: dict[str, float] = {}
    if config.radius == "curvature":
        first = _Trial(prepared, shape, folder, traced=True)
        shape, traces = first.balanced(shape), first.traces
    trials = [_Trial(prepared, {k: v * f for k, v in shape.items()}, folder) for f in FACTORS]
    risks = [trial.risks for trial in trials]
    at = pick(risks)
    curve = [
        CurvePoint(
            factor=factor,
            risk=float(r.mean()),
            stderr=float(r.std(ddof=1) / math.sqrt(len(r))) if len(r) > 1 else None,
            val_loss=trial.loss,
        )
        for factor, trial, r in zip(FACTORS, trials, risks, strict=True)
    ]
    radius = {name: value * FACTORS[at] for name, value in shape.items()}
    record = RadiusRecord(rule=RULE, curve=curve, chosen=FACTORS[at], radius=radius, traces=traces)
    write_record(path, record)
    shutil.rmtree(folder, ignore_errors=True)
    return radius


def pick(risks: Sequence[NDArray[np.float64]]) -> int:
    """Return the first of several candidates whose risk is within one standard error of the least.

    Args:
        risks: Each candidate's losses on the same examples, (n,); candidates in order of preference.

    Example:
        >>> pick([np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0])])
        0
    """
    best = min(range(len(risks)), key=lambda i: float(risks[i].mean()))
    for at, risk in enumerate(risks[:best]):
        worse = risk - risks[best]
        if worse.mean() <= worse.std(ddof=1) / math.sqrt(len(worse)):
            return at
    return best


def balanced_radii(radii: Mapping[str, float], traces: Mapping[str, float]) -> dict[str, float]:
    """Share the budget Σ_i α_i √(Tr H_i⁺) of some radii equally over the layers.

    α_i = B / (L·√t_i) with B = Σ_j r_j √t_j over the layers with t > 0; the others keep their radius.
    Source: the bound for distance-constrained fine-tuning, the paper, section 3.

    Args:
        radii: r_i by layer.
        traces: t_i, the largest trace of H_i⁺ over some examples, by layer.

    Example:
        >>> balanced_radii({"a": 1.0, "b": 1.0}, {"a": 4.0, "b": 1.0})
        {'a': 0.75, 'b': 1.5}
    """
    curved = {name: math.sqrt(traces[name]) for name in radii if traces.get(name, 0.0) > 0}
    budget = sum(radii[name] * root for name, root in curved.items())
    return {n: budget / (len(curved) * curved[n]) if n in curved else r for n, r in radii.items()}


class _Trial:
    """One run along the path: its losses on the validation part."""

    def __init__(
        self, prepared: Prepared, radius: dict[str, float], folder: Path, traced: bool = False
    ) -> None:
        self.traces: dict[str, float] = {}
        self.layers: dict[str, float] = {}
        self._logits = torch.zeros(0)
        self._targets = np.zeros((0, 0))
        self._clean: NDArray[np.bool_] | None = None
        config = prepared.config

        def observe(trained: Trained) -> None:
            self._logits = predict_logits(trained.net, trained.feeds["val"])
            self._targets = _targets(trained.task.val, self._logits.shape[1], config.soft_labels)
            self._clean = trained.task.val.clean
            self.layers = resolve_radii(trained.reference.layers(), named_radii(radius, trained.loaded) or {})
            if traced and not isinstance(trained.feeds["train"], FeatureInputs):
                self.traces = _traces(trained, list(self.layers))

        epochs = config.epochs if config.train == "head" else -(-config.epochs // 2)
        # The method's own loss has an epoch of every trial, as it has of the run.
        short = {"epochs": epochs, "warmup_epochs": min(config.warmup_epochs, epochs - 1)}
        own = config.model_copy(update={"radius": radius, "out": str(folder), **short})
        loaded = replace(prepared.loaded, model=copy.deepcopy(prepared.loaded.model))
        trial = replace(prepared, config=own, loaded=loaded, radius=named_radii(radius, loaded))
        with entered(folder, overwrite=True, resume=False):
            torch.manual_seed(config.seed)
            run = fit_prepared(trial, folder, observe=observe, keep_weights=False)
        self.loss = run.records.epochs[-1].val_loss
        k = self._logits.shape[1]
        inverse = (run.noise_matrix or NoiseMatrix.identity(k)).inverse
        predicted = self._logits.argmax(dim=1).numpy()
        told = self._targets @ inverse
        if self._clean is not None:  # labels that a person has checked need no correction
            told = np.where(self._clean[:, None], self._targets, told)
        self.risks = 1.0 - told[np.arange(len(predicted)), predicted]

    def balanced(self, shape: dict[str, float]) -> dict[str, float]:
        """Return radii by layer, of an equal share each; the shape itself where nothing was traced."""
        return balanced_radii(self.layers, self.traces) if self.traces else shape


def _targets(part: Examples, k: int, soft: bool) -> NDArray[np.float64]:
    """Return what the given labels say, (n, K): soft labels where the run learns from them."""
    if soft and part.soft is not None:
        return part.soft
    assert part.labels is not None
    return np.eye(k)[part.labels]


def _traces(trained: Trained, layers: list[str]) -> dict[str, float]:
    """Return the largest Tr H_i⁺ over some training examples, of the layers where it is exact."""
    from hesstune.curvature.measure import measure

    labels = trained.task.train.labels
    assert labels is not None
    rows = np.arange(min(TRACED, len(labels)))
    batches = [(trained.feeds["train"].inputs(rows), torch.from_numpy(labels[rows]))]
    found = measure(trained.net, trained.reference, batches, layers=layers, examples="max", trace="exact")
    assert found.trace is not None
    largest = found.trace.nan_to_num(nan=0.0).amax(0)
    return {name: float(value) for name, value in zip(found.names, largest, strict=True)}
