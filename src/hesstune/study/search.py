"""Search a method's options on a cell's own validation part: one optuna study in SQLite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesstune.errors import HesstuneError, MissingExtraError, RunError
from hesstune.methods import method_class
from hesstune.methods._base import Option
from hesstune.methods.constrained import unused_radius_options
from hesstune.runs.config import FinetuneConfig, make_config
from hesstune.runtime.seeds import mixed_seed
from hesstune.storage.atomic import made_folder
from hesstune.study.records import Options, Search, Trial
from hesstune.training.finetune import finetune

if TYPE_CHECKING:
    from hesstune.runs.run import Run

__all__ = ["run_validation_loss", "search_cell"]

# The learning rate of every method, and radii that are given, are searched by a factor.
LR_FACTORS = (0.2, 5.0)
RADIUS_FACTORS = (0.125, 8.0)


def run_validation_loss(run: Run) -> float | None:
    """Return the validation loss of the weights that a run kept; None without validation."""
    kept = run.records.kept_epoch
    return None if kept is None else kept.val_loss


def search_cell(config: FinetuneConfig, trials: int, folder: Path) -> tuple[FinetuneConfig, Search]:
    """Try a method with several options and return the best by validation loss, and the record.

    The first trial has the options as given. The validation labels are as noisy as the training labels unless
    the run says otherwise. The learning rate, the radii and each option with a search range are searched.
    Proposals depend on the seed and on the earlier trials alone, so an interrupted search continues as if
    nothing had happened.

    Args:
        config: The resolved configuration.
        trials: How many.
        folder: For the study and the runs of its trials, of this configuration alone.

    Raises:
        MissingExtraError: If optuna is not installed.
        RunError: If every trial fails, with the first error.
    """
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", "search", "--search") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = f"sqlite:///{made_folder(folder).resolve() / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name="search", load_if_exists=True)
    if not study.trials:
        study.enqueue_trial(_as_given(config))
    running = [trial._trial_id for trial in study.trials if trial.state == optuna.trial.TrialState.RUNNING]
    for number in range(sum(trial.state.is_finished() for trial in study.trials), trials):
        study.sampler = optuna.samplers.TPESampler(seed=mixed_seed(config.seed, number) % 2**32)
        # An interrupted trial keeps its options, and its run continues.
        trial = optuna.trial.Trial(study, running.pop()) if running else study.ask()
        try:
            loss = _loss_of(_suggested(config, trial), folder / str(trial.number))
        except HesstuneError as error:
            trial.set_user_attr("error", " ".join(str(error).split()))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, loss)
    tried = study.trials
    record = [Trial(options=t.params, val_loss=t.value, error=t.user_attrs.get("error")) for t in tried]
    if all(row.error for row in record):
        raise RunError(str(record[0].error))
    best = study.best_trial
    return _suggested(config, optuna.trial.FixedTrial(best.params)), Search(trials=record, chosen=best.number)


def _loss_of(config: FinetuneConfig, out: Path) -> float:
    run = finetune(config.model_dump() | {"out": str(out)}, resume=True, keep_weights=False)
    loss = run_validation_loss(run)
    if loss is None:
        raise RunError("a search needs validation examples; there are none: raise --val-fraction")
    return loss


def _as_given(config: FinetuneConfig) -> dict[str, float]:
    own, ranges = config.method_options or {}, _searched(config)
    factors = {"lr_factor": 1.0, **({"radius_factor": 1.0} if _scales(config) else {})}
    return {**{name: value for name, value in own.items() if name in ranges}, **factors}


def _suggested(config: FinetuneConfig, trial: Any) -> FinetuneConfig:
    own = dict(config.method_options or {})
    for name, option in _searched(config).items():
        own[name] = trial.suggest_float(name, *option.search, log=option.log)
    assert config.lr is not None
    changes: Options = {"method_options": own or None}
    changes["lr"] = config.lr * trial.suggest_float("lr_factor", *LR_FACTORS, log=True)
    if _scales(config):
        factor, radius = trial.suggest_float("radius_factor", *RADIUS_FACTORS, log=True), config.radius
        if isinstance(radius, dict):
            changes["radius"] = {name: value * factor for name, value in radius.items()}
        elif isinstance(radius, float):
            changes["radius"] = radius * factor
    return make_config(config.model_dump() | changes)


def _searched(config: FinetuneConfig) -> dict[str, Option]:
    """Return the method's own options that have a search range and an effect."""
    found, idle = method_class(config.method).own_options, unheard(config.radius, config.head_only)
    return {name: option for name, option in found.items() if option.search and name not in idle}


def _scales(config: FinetuneConfig) -> bool:
    """Return whether there are given radii to scale; the run chooses all others itself."""
    return isinstance(config.radius, float | dict)
