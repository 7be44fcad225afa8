"""Search a method's options on a cell's own validation part, by optuna."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesstune._former import former_names
from hesstune.errors import HesstuneError, MissingExtraError
from hesstune.methods import method_class
from hesstune.methods._setup import Option
from hesstune.methods.constraint import unheard
from hesstune.runs.config import FinetuneConfig, make_config
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
    losses = [e.val_loss for e in run.records.epochs if e.val_loss is not None]
    if not losses:
        return float("inf")
    return float(min(losses) if run.config.select == "best" else losses[-1])


def search_cell(config: FinetuneConfig, trials: int, folder: Path) -> tuple[FinetuneConfig, Search]:
    """Try a method with several options and return the best by validation loss, and the record.

    The first trial has the options as given. The validation labels are as noisy as the training labels
    unless the run says otherwise, and the loss is the consistent one where a noise matrix is told. Any
    option with a search range in its method, the learning rate and the radii are searched.

    Args:
        config: The resolved configuration.
        trials: How many.
        folder: For the trials' runs; removed at the end.

    Raises:
        MissingExtraError: If optuna is not installed.
        HesstuneError: If every trial fails; the first one's error.
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
    failed: HesstuneError | None = None
    for number in range(trials):
        trial = study.ask()
        chosen = _suggested(config, trial)
        loss, error = float("inf"), None
        try:
            options = chosen.model_dump() | {"out": str(folder / str(number))}
            loss = run_validation_loss(finetune(options, overwrite=True, keep_weights=False))
        except HesstuneError as problem:
            failed, error = failed or problem, " ".join(str(problem).split())
        study.tell(trial, loss if loss < float("inf") else 1e12)
        configs.append(chosen)
        record.append(Trial(options=dict(trial.params), val_loss=_finite(loss), error=error))
    shutil.rmtree(folder, ignore_errors=True)
    if failed is not None and all(row.error for row in record):
        raise failed
    losses = [float("inf") if row.val_loss is None else row.val_loss for row in record]
    best = losses.index(min(losses))
    return configs[best], Search(trials=record, chosen=best)


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
    found, idle = method_class(config.method).own_options, unheard(config.radius, config.train)
    return {name: option for name, option in found.items() if name not in idle}


def _scales(config: FinetuneConfig) -> bool:
    """Tell whether there are radii to scale: those that a run chooses itself are left to it."""
    return isinstance(config.radius, float | dict)


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None


__getattr__ = former_names(__name__, validation_loss="run_validation_loss")
