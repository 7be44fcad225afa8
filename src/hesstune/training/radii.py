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
from hesstune.inputs.batches import predict_logits
from hesstune.inputs.features import FeatureInputs
from hesstune.runs.folder import entered
from hesstune.runs.records import RADIUS, TRIALS, CurvePoint, RadiusRecord
from hesstune.storage.stored import read_record, write_record
from hesstune.training.default_radii import default_radii
from hesstune.training.evaluate import Validation
from hesstune.training.fit import Trained, fit_prepared
from hesstune.training.prepare import Prepared, named_radii

__all__ = ["FACTORS", "balanced_radii", "choose_radius", "pick", "with_chosen_radii"]

# The path: factors of the method's default radii.
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
# Examples whose traces set the shape by curvature.
TRACED = 64
RULE = (
    "the smallest radii whose validation risk is within one standard error of the least; risk is the mean of "
    "−ln Σ_i p_i F[i, given label] at the temperature of p that suits the labels best: how well noisy labels "
    "are foretold, by which epochs are chosen, too"
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
    shape = default_radii(config, prepared.task, prepared.loaded, prepared.device)
    folder = out / TRIALS
    traces: dict[str, float] = {}
    if config.radius == "curvature":
        first = _Trial(prepared, shape, folder, traced=True)
        shape, traces = first.balanced(shape), first.traces
    trials = [_Trial(prepared, {k: v * f for k, v in shape.items()}, folder) for f in FACTORS]
    losses = [trial.losses for trial in trials]
    at = pick(losses)
    curve = [
        CurvePoint(
            factor=factor,
            risk=float(each.mean()),
            stderr=float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else None,
        )
        for factor, each in zip(FACTORS, losses, strict=True)
    ]
    radius = {name: value * FACTORS[at] for name, value in shape.items()}
    record = RadiusRecord(rule=RULE, curve=curve, chosen=FACTORS[at], radius=radius, traces=traces)
    write_record(path, record)
    shutil.rmtree(folder, ignore_errors=True)
    return radius


def pick(losses: Sequence[NDArray[np.float64]]) -> int:
    """Return the first of several candidates whose loss is within one standard error of the least.

    Args:
        losses: Each candidate's losses on the same examples, (n,); candidates in order of preference.

    Example:
        >>> pick([np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0])])
        0
    """
    best = min(range(len(losses)), key=lambda i: float(losses[i].mean()))
    for at, each in enumerate(losses[:best]):
        worse = each - losses[best]
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
        self.losses = np.zeros(0)
        config = prepared.config
        judge = Validation(None if config.clean_val else prepared.noise_matrix, tempered=True)

        def observe(trained: Trained) -> None:
            part = trained.task.val
            logits = predict_logits(trained.net, trained.feeds["val"])
            soft = config.soft_labels and part.soft is not None
            labels = part.soft if soft else part.labels
            assert labels is not None
            self.losses = judge.losses(logits, labels, part.clean).numpy()
            self.layers = resolve_radii(trained.reference.layers(), named_radii(radius, trained.loaded) or {})
            if traced and not isinstance(trained.feeds["train"], FeatureInputs):
                self.traces = _traces(trained, list(self.layers))

        epochs = config.epochs if config.head_only else -(-config.epochs // 2)
        # The method's own loss has an epoch of every trial, as it has of the run.
        short = {"epochs": epochs, "warmup_epochs": min(config.warmup_epochs, epochs - 1)}
        own = config.model_copy(update={"radius": radius, "out": str(folder), **short})
        loaded = replace(prepared.loaded, model=copy.deepcopy(prepared.loaded.model))
        trial = replace(prepared, config=own, loaded=loaded, radius=named_radii(radius, loaded))
        with entered(folder, overwrite=True, resume=False):
            torch.manual_seed(config.seed)
            fit_prepared(trial, folder, observe=observe, keep_weights=False)

    def balanced(self, shape: dict[str, float]) -> dict[str, float]:
        """Return radii by layer, of an equal share each; the shape itself where nothing was traced."""
        return balanced_radii(self.layers, self.traces) if self.traces else shape


def _traces(trained: Trained, layers: list[str]) -> dict[str, float]:
    """Return the largest Tr H_i⁺ over some training examples, of the layers where it is exact."""
    from hesstune.curvature.measure import measure

    labels = trained.task.train.labels
    assert labels is not None
    rows = np.arange(min(TRACED, len(labels)))
    batches = [(trained.feeds["train"].inputs(rows), torch.from_numpy(labels[rows]))]
    # Only traces of exact layers are used, so smooth layers are measured on the smallest sample.
    found = measure(
        trained.net, trained.reference, batches, layers=layers, examples="max", mean_sample=2, trace="exact"
    )
    assert found.trace is not None
    largest = found.trace.nan_to_num(nan=0.0).amax(0)
    return {name: float(value) for name, value in zip(found.names, largest, strict=True)}
