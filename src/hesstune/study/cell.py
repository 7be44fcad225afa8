"""Run one cell of a comparison: train, measure, and write what was found."""

from __future__ import annotations

import shutil
from pathlib import Path

from hesstune.analysis.label_story import story_of
from hesstune.analysis.subject import Subject, drawn_rows
from hesstune.data.examples import Task
from hesstune.errors import HesstuneError, RunError
from hesstune.inputs.batches import predict_logits
from hesstune.inputs.features import FeatureInputs
from hesstune.options import make_options
from hesstune.reference import Reference
from hesstune.runs.config import FinetuneConfig
from hesstune.runs.options.analysis import CertifyOptions
from hesstune.runs.records import OBSERVED
from hesstune.runs.run import Run
from hesstune.storage.atomic import made_folder
from hesstune.storage.stored import read_record, write_record
from hesstune.study.options import Settings
from hesstune.study.plan import Cell
from hesstune.study.records import CellRecord, HeadCertificate, Observed, Options
from hesstune.training.evaluate import cross_entropy_under
from hesstune.training.finetune import finetune
from hesstune.training.fit import Trained

__all__ = ["CELL", "run_cell"]

CELL, SEARCH = "cell.json", "search"
# Examples that a whole network is measured on where the user does not say.
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
# Counted of the test part's labels; a cell has them if they are not 0.
OF_TEST_LABELS = ("test_labels_rewritten", "test_labels_kept")


def run_cell(cell: Cell, folder: Path, settings: Settings) -> CellRecord:
    """Run a cell, or go on with it, and write its cell.json; an error of the input is its result.

    Args:
        cell: What to run.
        folder: The cell's folder.
        settings: What to do beside training.
    """
    made_folder(folder)
    try:
        config, searched = cell.config, None
        if settings.search:
            from hesstune.study.search import search_cell

            # Trials of other options or data are none of this search.
            trials = folder / SEARCH / cell.fingerprint
            config, searched = search_cell(cell.config, settings.search, trials)
        run = _finished_run(config, folder / "run", settings)
        found: Options = {"status": "done", "error": None, "metrics": _metrics(run)}
        if searched is not None:
            found["search"] = searched
            run.add(searched=sorted({name for trial in searched.trials for name in trial.options}))
            run.write_record()
    except HesstuneError as error:
        found = {"status": "failed", "error": " ".join(str(error).split()), "metrics": {}}
    record = CellRecord(
        task=cell.task, method=cell.method, seed=cell.seed, fingerprint=cell.fingerprint, **found
    )
    write_record(folder / CELL, record)
    shutil.rmtree(folder / SEARCH, ignore_errors=True)
    return record


def _finished_run(config: FinetuneConfig, out: Path, settings: Settings) -> Run:
    def observe(trained: Trained) -> None:
        write_record(out / OBSERVED, _observed(trained, config, settings, out))

    options = config.model_dump() | {"out": str(out)}
    return finetune(options, resume=True, observe=observe, keep_weights=settings.keep_runs)


def _metrics(run: Run) -> Options:
    epochs, observed = run.records.epochs, read_record(run.path / OBSERVED, Observed)
    if observed is None:
        raise RunError(f"{run.path / OBSERVED} is missing; {Observed.mend}")
    kept = run.records.kept_epoch
    found: Options = {name: getattr(run.outcome, name) for name in FROM_RESULT}
    found |= {name: count for name in OF_TEST_LABELS if (count := getattr(run.outcome, name))}
    found |= {"val_loss": kept and kept.val_loss, "val_accuracy": kept and kept.val_accuracy}
    found |= observed.to_dict()
    recipe = run.facts.recipe
    solving = 0.0 if recipe is None else float(recipe.details.get("seconds", 0.0))
    found["seconds"] = round(solving + sum(e.seconds for e in epochs), 3)
    return found


def _subject(trained: Trained, seed: int, most: int | None) -> Subject:
    """Return what is measured: the network, or its head alone on features, and the training examples."""
    feed, labels = trained.feeds["train"], trained.task.train.labels
    assert labels is not None
    if isinstance(feed, FeatureInputs):
        rows = drawn_rows(len(labels), most, seed)
        return Subject(trained.net, _of_head(trained), feed, labels, rows, batch=max(1, len(rows)))
    rows = drawn_rows(len(labels), MEASURED if most is None else most, seed)
    return Subject(trained.net, trained.reference, feed, labels, rows)


def _of_head(trained: Trained) -> Reference:
    prefix = f"{trained.loaded.head}." if trained.loaded.head else ""
    reference = trained.reference
    tensors = {
        name.removeprefix(prefix): reference[name] for name in reference.names() if name.startswith(prefix)
    }
    layers = [name.removeprefix(prefix) for name in reference.layers() if name.startswith(prefix)]
    return Reference(tensors, layers)


def _observed(trained: Trained, config: FinetuneConfig, settings: Settings, out: Path) -> Observed:
    """Measure a trained network; what was not asked for is None."""
    found: Options = {
        "val_gap": _validation_gap(trained),
        "measure": None,
        "measure_mean": None,
        "stability": None,
        "stability_taylor": None,
        "certificate": None,
    }
    subject = _subject(trained, config.seed, settings.measure_examples)
    n, head_alone = len(subject.labels), isinstance(subject.feed, FeatureInputs)
    if settings.measure_examples != 0:
        measured = subject.measure(examples="max", mean_sample=8, method="exact" if head_alone else "auto")
        found["measure"] = measured.hessian_distance(n)
        mean = (float(measured.losses.max()) * measured.mean.nan_to_num(nan=0.0) / (2 * n)).sqrt()
        found["measure_mean"] = float(mean.sum()) if bool(measured.mean.isfinite().all()) else None
        found["max_loss"] = float(measured.losses.max())
    if settings.stability:
        # Traces of a whole network take longer than its training.
        probes = 8 if head_alone else 0
        row = subject.stability([STABILITY_SIGMA], 16, config.seed, probes=probes)[0]
        found["stability"] = row.value
        found["stability_taylor"] = row.taylor if probes else None
    if settings.certify and head_alone:
        found["certificate"] = _certificate(subject, trained.task, Run.load(out))
    return Observed(**found)


def _validation_gap(trained: Trained) -> float | None:
    """Return the cross-entropy of the validation examples minus that of the training examples.

    Both by the labels that training saw: where those are wrong in a way that no matrix tells, this is
    the generalization gap on their distribution, and the gap on true test labels is not.
    """
    losses = {}
    for name, part in (("train", trained.task.train), ("val", trained.task.val)):
        if part.labels is None or not len(part):
            return None
        logits = predict_logits(trained.net, trained.feeds[name])
        losses[name] = cross_entropy_under(logits, part.labels, None)
    return losses["val"] - losses["train"]


def _certificate(subject: Subject, task: Task, run: Run) -> HeadCertificate:
    """Certify the head on its training examples, where the labels' noise is known; else say why not."""
    try:
        story = story_of(run, task, make_options(CertifyOptions, {}))
        found = subject.certify(
            noise_matrix=story.noise_matrix,
            noise_is=story.noise_is,
            leaks=story.leaks,
            assumptions=story.assumptions,
            repeats="allow",
        )
    except HesstuneError as error:
        return HeadCertificate(risk=None, why=" ".join(str(error).split()))
    return HeadCertificate(
        risk=found.risk,
        empirical=found.empirical,
        delta=found.delta,
        vacuous=found.vacuous,
        labels="assumed true" if story.noise_matrix is None else found.noise,
        facts=found.facts(),
    )
