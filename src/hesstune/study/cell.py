"""Run one cell of a comparison: search its options, train, measure, and write the results."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from hesstune.analysis.label_provenance import read_label_provenance
from hesstune.analysis.measure import MeasuredNetwork, drawn_rows
from hesstune.data.examples import Task
from hesstune.errors import HesstuneError, MissingExtraError, RunError
from hesstune.inputs.batches import predict_logits
from hesstune.inputs.features import FeatureInputs
from hesstune.methods import method_class
from hesstune.methods._base import Option
from hesstune.methods.constrained import unused_radius_options
from hesstune.options import make_options
from hesstune.reference import Reference
from hesstune.runs.config import FinetuneConfig, make_config
from hesstune.runs.options import CertifyOptions
from hesstune.runs.records import OBSERVED
from hesstune.runs.run import Run
from hesstune.runtime.device import mixed_seed
from hesstune.storage.files import made_folder, one_line
from hesstune.storage.stored import read_record, write_record
from hesstune.study.options import (
    CellRecord,
    HeadCertificate,
    Observed,
    OptionValues,
    Search,
    Settings,
    Trial,
)
from hesstune.study.plan import Cell
from hesstune.training.finetune import finetune
from hesstune.training.fit import Trained
from hesstune.training.metrics import cross_entropy_under

# The learning rate of every method, and radii that are given, are searched by a factor.
LR_FACTORS = (0.2, 5.0)
RADIUS_FACTORS = (0.125, 8.0)


def search_cell(
    config: FinetuneConfig, trials: int, folder: Path, data: Any = None
) -> tuple[FinetuneConfig, Search]:
    """Try a method with several options; return the best by validation loss, and the record of the trials.

    The first trial has the given options. The validation labels are as noisy as the training labels unless
    the configuration has clean ones. The learning rate, given radii and each option with a search range are
    searched. Proposals depend on the seed and on the earlier trials alone, so an interrupted search continues
    with the same proposals. `folder` keeps the study and the runs of this configuration's trials.
    """
    try:
        import optuna
    except ImportError:
        raise MissingExtraError("optuna", "search", "--search") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = f"sqlite:///{made_folder(folder).resolve() / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name="search", load_if_exists=True)
    if not study.trials:
        own, ranges = config.method_options or {}, _searched_options(config)
        factors = {"lr_factor": 1.0}
        if isinstance(config.radius, float | dict):
            factors["radius_factor"] = 1.0
        study.enqueue_trial({name: value for name, value in own.items() if name in ranges} | factors)
    running = [trial._trial_id for trial in study.trials if trial.state == optuna.trial.TrialState.RUNNING]
    for number in range(sum(trial.state.is_finished() for trial in study.trials), trials):
        study.sampler = optuna.samplers.TPESampler(seed=mixed_seed(config.seed, number) % 2**32)
        # An interrupted trial keeps its options, and its run continues.
        trial = optuna.trial.Trial(study, running.pop()) if running else study.ask()
        try:
            loss = _loss_of(_suggested(config, trial), folder / str(trial.number), data)
        except HesstuneError as error:
            trial.set_user_attr("error", one_line(error, 1000))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, loss)
    tried = study.trials
    record = [Trial(options=t.params, val_loss=t.value, error=t.user_attrs.get("error")) for t in tried]
    if all(row.error for row in record):
        raise RunError(str(record[0].error))
    best = study.best_trial
    return _suggested(config, optuna.trial.FixedTrial(best.params)), Search(trials=record, chosen=best.number)


def _loss_of(config: FinetuneConfig, out: Path, data: Any) -> float:
    options = config.model_dump() | {"out": str(out)}
    run = finetune(data, config=options, resume=True, keep_weights=False)
    kept = run.records.kept_epoch
    if kept is None or kept.val_loss is None:
        raise RunError("a search needs validation examples; there are none: raise --val-fraction")
    return kept.val_loss


def _suggested(config: FinetuneConfig, trial: Any) -> FinetuneConfig:
    own = dict(config.method_options or {})
    for name, option in _searched_options(config).items():
        low, high = option.search or (option.low, option.high)
        own[name] = trial.suggest_float(name, low, high, log=option.log)
    assert config.lr is not None
    changes: OptionValues = {"method_options": own or None}
    changes["lr"] = config.lr * trial.suggest_float("lr_factor", *LR_FACTORS, log=True)
    radius = config.radius
    if isinstance(radius, float | dict):
        factor = trial.suggest_float("radius_factor", *RADIUS_FACTORS, log=True)
        if isinstance(radius, dict):
            changes["radius"] = {name: value * factor for name, value in radius.items()}
        else:
            changes["radius"] = radius * factor
    return make_config(config.model_dump() | changes)


def _searched_options(config: FinetuneConfig) -> dict[str, Option]:
    """Return the method's own options that have a search range and an effect."""
    found = method_class(config.method).own_options
    unused = unused_radius_options(config.radius, config.head_only)
    return {name: option for name, option in found.items() if option.search and name not in unused}


CELL, SEARCH = "cell.json", "search"
# Default number of examples that a whole network is measured on.
MEASURED = 200
# Standard deviation of the noise on the weights.
STABILITY_SIGMA = 0.01
FROM_RESULT = (
    "test_accuracy",
    "test_balanced_accuracy",
    "train_accuracy",
    "train_accuracy_true_labels",
    "train_loss",
    "test_loss",
    "gap",
    "distance",
    "epochs",
)
# Counts of labels of the test part; a cell has them if they are not 0.
TEST_LABEL_COUNTS = ("test_labels_rewritten", "test_labels_kept")


def run_cell(cell: Cell, folder: Path, settings: Settings, data: Any = None) -> CellRecord:
    """Run or continue a cell, on an object if its data is one; an error of the input is its result."""
    made_folder(folder)
    try:
        config, searched = cell.config, None
        if settings.search:
            # The trials of other options or data belong to another search.
            trials = folder / SEARCH / cell.fingerprint
            config, searched = search_cell(config, settings.search, trials, data)
        out = folder / "run"

        def observe(trained: Trained) -> None:
            write_record(out / OBSERVED, _observed(trained, config.seed, settings, out))

        options = config.model_dump() | {"out": str(out)}
        run = finetune(data, config=options, resume=True, observe=observe, keep_weights=settings.keep_runs)
        found: OptionValues = {"status": "done", "metrics": _metrics(run)}
        if searched is not None:
            found["search"] = searched
            run.add(searched=sorted({name for trial in searched.trials for name in trial.options}))
            run.write_record()
    except HesstuneError as error:
        found = {"status": "failed", "error": one_line(error, 1000)}
    record = cell.record(**found)
    write_record(folder / CELL, record)
    shutil.rmtree(folder / SEARCH, ignore_errors=True)
    return record


def _metrics(run: Run) -> OptionValues:
    epochs, observed = run.records.epochs, read_record(run.path / OBSERVED, Observed)
    if observed is None:
        raise RunError(f"{run.path / OBSERVED} is missing; {Observed.fix}")
    kept = run.records.kept_epoch
    found: OptionValues = {name: getattr(run.outcome, name) for name in FROM_RESULT}
    found |= {name: count for name in TEST_LABEL_COUNTS if (count := getattr(run.outcome, name))}
    found |= {"val_loss": kept and kept.val_loss, "val_accuracy": kept and kept.val_accuracy}
    found |= observed.to_dict()
    recipe = run.facts.recipe
    solving = 0.0 if recipe is None else float(recipe.details.get("seconds", 0.0))
    found["seconds"] = round(solving + sum(e.seconds for e in epochs), 3)
    return found


def _measured_network(trained: Trained, seed: int, most: int | None) -> MeasuredNetwork:
    """Return the network, or its head alone on features, with the training examples to measure."""
    inputs, labels, reference = trained.feeds["train"], trained.task.train.labels, trained.reference
    assert labels is not None
    if not isinstance(inputs, FeatureInputs):
        rows = drawn_rows(len(labels), MEASURED if most is None else most, seed)
        return MeasuredNetwork(trained.net, reference, inputs, labels, rows)
    rows = drawn_rows(len(labels), most, seed)
    prefix = f"{trained.loaded.head}." if trained.loaded.head else ""
    own = {
        name.removeprefix(prefix): reference[name] for name in reference.names() if name.startswith(prefix)
    }
    layers = [name.removeprefix(prefix) for name in reference.layers() if name.startswith(prefix)]
    return MeasuredNetwork(trained.net, Reference(own, layers), inputs, labels, rows, batch=max(1, len(rows)))


def _observed(trained: Trained, seed: int, settings: Settings, out: Path) -> Observed:
    """Measure a trained network as the settings ask; the other values are None."""
    found: OptionValues = {name: None for name in Observed.model_fields if name != "max_loss"}
    found["val_gap"] = _validation_gap(trained)
    network = _measured_network(trained, seed, settings.measure_examples)
    n, head_alone = len(network.labels), isinstance(network.feed, FeatureInputs)
    if settings.measure_examples != 0:
        measured = network.measure(examples="max", mean_sample=8, method="exact" if head_alone else "auto")
        found["measure"] = measured.hessian_distance(n)
        mean = (float(measured.losses.max()) * measured.mean.nan_to_num(nan=0.0) / (2 * n)).sqrt()
        found["measure_mean"] = float(mean.sum()) if bool(measured.mean.isfinite().all()) else None
        found["max_loss"] = float(measured.losses.max())
    if settings.stability:
        # Traces of a whole network take longer than its training.
        probes = 8 if head_alone else 0
        row = network.stability([STABILITY_SIGMA], 16, seed, probes=probes)[0]
        found["stability"] = row.value
        found["stability_taylor"] = row.taylor if probes else None
    if settings.certify and head_alone:
        found["certificate"] = _certificate(network, trained.task, Run.load(out))
    return Observed(**found)


def _validation_gap(trained: Trained) -> float | None:
    """Return the gap on the distribution of noisy labels: validation minus training cross-entropy."""
    losses = {}
    for name, part in (("train", trained.task.train), ("val", trained.task.val)):
        if part.labels is None or not len(part):
            return None
        logits = predict_logits(trained.net, trained.feeds[name])
        losses[name] = cross_entropy_under(logits, part.labels, None)
    return losses["val"] - losses["train"]


def _certificate(network: MeasuredNetwork, task: Task, run: Run) -> HeadCertificate:
    """Certify the head on its training examples if the label noise is known; else give the reason."""
    try:
        labels = read_label_provenance(run, task, make_options(CertifyOptions, {}))
        found = network.certify(
            noise_matrix=labels.noise_matrix,
            noise_is=labels.noise_is,
            leaks=labels.leaks,
            assumptions=labels.assumptions,
            repeats="allow",
        )
    except HesstuneError as error:
        return HeadCertificate(risk=None, why=one_line(error, 1000))
    return HeadCertificate(
        risk=found.risk,
        empirical=found.empirical,
        delta=found.delta,
        vacuous=found.vacuous,
        labels="assumed true" if labels.noise_matrix is None else found.noise,
        facts=found.facts(),
    )
