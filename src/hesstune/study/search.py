"""Search a method's options on a cell's own validation part, by optuna."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesstune.errors import HesstuneError, MissingExtraError, RunError
from hesstune.methods import method_class
from hesstune.methods._base import Option
from hesstune.methods.constrained import unused_radius_options
from hesstune.runs.config import FinetuneConfig, make_config
from hesstune.storage.stored import read_record, write_record
from hesstune.study.records import Options, Search, Trial
from hesstune.training.finetune import finetune

if TYPE_CHECKING:
    from hesstune.runs.run import Run

__all__ = ["run_validation_loss", "search_cell"]

# Every method's learning rate, and radii that are given, are searched by a factor.
LR_FACTORS = (0.2, 5.0)
RADIUS_FACTORS = (0.125, 8.0)


def run_validation_loss(run: Run) -> float:
    """Return the validation loss of the weights that a run kept; infinite without validation."""
    kept = run.records.kept_epoch
    return float("inf") if kept is None or kept.val_loss is None else float(kept.val_loss)


def search_cell(config: FinetuneConfig, trials: int, folder: Path) -> tuple[FinetuneConfig, Search]:
    """Try a method with several options and return the best by validation loss, and the record.

    The first trial has the options as given. The validation labels are as noisy as the training labels
    unless the run says otherwise, and the loss is the consistent one where a noise matrix is told. Any
    option with a search range in its method, the learning rate and the radii are searched.

    The record of each finished trial is kept in the folder. The sampler's proposals depend on the seed and on
    the losses before alone, so that a search that is called again runs only the trials that are missing.

    Args:
        config: The resolved configuration.
        trials: How many.
        folder: For the trials' records and runs, of this configuration alone.

    Raises:
        MissingExtraError: If optuna is not installed.
        RunError: If every trial fails, with the first one's error.
    """
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", "search", "--search") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=config.seed))
    study.enqueue_trial(_as_given(config))
    record: list[Trial] = []
    configs: list[FinetuneConfig] = []
    for number in range(trials):
        trial = study.ask()
        chosen = _suggested(config, trial)
        row = _tried(chosen, dict(trial.params), folder / str(number))
        study.tell(trial, 1e12 if row.val_loss is None else row.val_loss)
        configs.append(chosen)
        record.append(row)
    if all(row.error for row in record):
        raise RunError(str(record[0].error))
    losses = [float("inf") if row.val_loss is None else row.val_loss for row in record]
    best = losses.index(min(losses))
    return configs[best], Search(trials=record, chosen=best)


def _tried(config: FinetuneConfig, options: dict[str, float], folder: Path) -> Trial:
    """Return a trial's record: what an earlier call left, or of a run, which is continued if it had begun."""
    path = folder.with_suffix(".json")
    if (kept := read_record(path, Trial)) is not None and kept.options == options:
        return kept
    loss, error = float("inf"), None
    try:
        run = finetune(config.model_dump() | {"out": str(folder)}, resume=True, keep_weights=False)
        loss = run_validation_loss(run)
    except HesstuneError as problem:
        error = " ".join(str(problem).split())
    folder.parent.mkdir(parents=True, exist_ok=True)
    row = Trial(options=options, val_loss=loss if loss < float("inf") else None, error=error)
    write_record(path, row)
    shutil.rmtree(folder, ignore_errors=True)
    return row


def _as_given(config: FinetuneConfig) -> dict[str, float]:
    ranges = _searched(config)
    own = {
        name: value
        for name, value in (config.method_options or {}).items()
        if name in ranges and ranges[name].search
    }
    factors = {"lr_factor": 1.0, **({"radius_factor": 1.0} if _scales(config) else {})}
    return {**own, **factors}


def _suggested(config: FinetuneConfig, trial: Any) -> FinetuneConfig:
    own = dict(config.method_options or {})
    for name, option in _searched(config).items():
        if option.search is not None:
            own[name] = trial.suggest_float(name, *option.search, log=option.log)
    assert config.lr is not None
    changes: Options = {"method_options": own or None}
    changes["lr"] = config.lr * trial.suggest_float("lr_factor", *LR_FACTORS, log=True)
    if _scales(config):
        factor = trial.suggest_float("radius_factor", *RADIUS_FACTORS, log=True)
        radius = config.radius
        assert isinstance(radius, float | dict)
        changes["radius"] = (
            {name: value * factor for name, value in radius.items()}
            if isinstance(radius, dict)
            else radius * factor
        )
    return make_config(config.model_dump() | changes)


def _searched(config: FinetuneConfig) -> dict[str, Option]:
    """Return the method's own options that have an effect: a radius that is given is no share."""
    found, idle = (
        method_class(config.method).own_options,
        unused_radius_options(config.radius, config.head_only),
    )
    return {name: option for name, option in found.items() if name not in idle}


def _scales(config: FinetuneConfig) -> bool:
    """Tell whether there are radii to scale: those that a run chooses itself are left to it."""
    return isinstance(config.radius, float | dict)
