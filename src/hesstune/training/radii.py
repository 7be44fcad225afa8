"""`--radius auto`: the radii of the balls from the data alone, without a clean label."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.inputs.batches import predict_logits
from hesstune.runs.folder import entered
from hesstune.runs.records import RADIUS, TRIALS, CurvePoint, RadiusRecord
from hesstune.storage.stored import read_record, write_record
from hesstune.training.default_radii import default_radii
from hesstune.training.evaluate import Validation
from hesstune.training.fit import Trained, fit_prepared
from hesstune.training.prepare import Prepared, named_radii

__all__ = ["FACTORS", "choose_radius", "pick", "with_chosen_radii"]

# The path: factors of the method's default radii.
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
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

    The radii are the method's default ones times a factor. Runs of a head last as long as the run itself,
    others half as long. Validation labels are those of the run, as noisy as the training labels.

    Args:
        prepared: Of a configuration whose `radius` is `auto`; its network is left as it is.
        out: The run's folder.

    Returns:
        {layer pattern: radius}.

    Raises:
        RunError: If radius.json is damaged.
    """
    path = out / RADIUS
    if (chosen := read_record(path, RadiusRecord)) is not None:
        return chosen.radius
    shape = default_radii(prepared.config, prepared.task, prepared.loaded, prepared.device)
    folder = out / TRIALS
    losses = [_trial_losses(prepared, {k: v * f for k, v in shape.items()}, folder) for f in FACTORS]
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
    record = RadiusRecord(rule=RULE, curve=curve, chosen=FACTORS[at], radius=radius)
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


def _trial_losses(prepared: Prepared, radius: dict[str, float], folder: Path) -> NDArray[np.float64]:
    """Train a copy with these radii, and return its losses on the validation examples, (n,)."""
    config, found = prepared.config, list[NDArray[np.float64]]()
    validation = Validation(None if config.clean_val else prepared.noise_matrix, tempered=True)

    def observe(trained: Trained) -> None:
        part = trained.task.val
        labels = part.soft if config.soft_labels and part.soft is not None else part.labels
        assert labels is not None
        logits = predict_logits(trained.net, trained.feeds["val"])
        found.append(validation.losses(logits, labels, part.clean).numpy())

    epochs = config.epochs if config.head_only else -(-config.epochs // 2)
    # The method's own loss has an epoch of every trial, as it has of the run.
    short = {"epochs": epochs, "warmup_epochs": min(config.warmup_epochs, epochs - 1)}
    own = config.model_copy(update={"radius": radius, "out": str(folder), **short})
    loaded = replace(prepared.loaded, model=copy.deepcopy(prepared.loaded.model))
    trial = replace(prepared, config=own, loaded=loaded, radius=named_radii(radius, loaded))
    with entered(folder, overwrite=True, resume=False):
        torch.manual_seed(config.seed)
        fit_prepared(trial, folder, observe=observe, keep_weights=False)
    return found[0]
