"""Certify a finished run, and draw examples whose labels a person checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from hesstune.analysis.label_provenance import (
    add_class_conditional_test,
    read_label_provenance,
)
from hesstune.analysis.measure import InputExamples
from hesstune.analysis.near_copies import NOT_FOUND, Found, NearCopies, SeenStart
from hesstune.analysis.trained_prior import (
    NETWORKS,
    BoundNetwork,
    CertifiedRun,
    Rows,
    TrainedPrior,
    split_prior_and_bound,
    train_prior,
)
from hesstune.bounds import CHOICES
from hesstune.bounds.kinds.checked import UNCHECKED
from hesstune.bounds.prior import head_ratios, random_parameters
from hesstune.bounds.record import Certificate, Network, Prior, bound_class
from hesstune.bounds.sample import BoundOptions, Sample, spent_by
from hesstune.data.examples import KEPT, Examples
from hesstune.data.labels import read_clean_labels
from hesstune.errors import DataError, HesstuneError, RefutedNoiseError, RunError
from hesstune.inputs.batches import make_inputs, to_channels_last
from hesstune.models.heads import freeze
from hesstune.models.load import LoadedModel
from hesstune.options import make_options, takes_options
from hesstune.runs.guarantee_log import (
    check_log,
    log_certificate,
    log_sheet,
    sheet_of,
    sheets,
    with_union,
)
from hesstune.runs.integrity import check_files
from hesstune.runs.keywords import CertifyKeywords, CheckKeywords
from hesstune.runs.options import CertifyOptions, CheckOptions, ColumnOptions
from hesstune.runs.records import CERTIFICATE, TO_CHECK
from hesstune.runs.run import Run
from hesstune.runtime.device import pick_device
from hesstune.runtime.distributed import joined_ranks, on_main_process, rank
from hesstune.storage.tables import write_csv

SAMPLE_KEY = 0xC4EC


@takes_options(CertifyOptions)
@joined_ranks()
def certify_run(
    run: Run, *, progress: Callable[[int, int, str], None] | None = None, **options: Unpack[CertifyKeywords]
) -> Certificate:
    """Certify a finished run on the examples it was trained on; write certificate.json to its folder.

    Args:
        run: A finished run.
        progress: Called with (steps done, steps in all, text).
        **options: Options of `CertifyOptions`, by name.
    """
    asked = make_options(CertifyOptions, options)
    _ = run.outcome
    check_files(run.records)
    check_log(run.path, run.records.certificate)
    task, device = run.task(), pick_device(asked.device)
    labels = read_label_provenance(run, task, asked)
    copies = NearCopies.of(task, asked.repeats, asked.seed, asked.diagnostic, SeenStart.of(run))
    case = CertifiedRun(run, task, labels, asked, device, copies, progress if rank() == 0 else None)
    prior = train_prior(case) if asked.prior_fraction else None
    name = "checked" if asked.checked_labels is not None else asked.bound
    certificate = (
        best_bound(case, prior) if name == "best" else evaluate_bound(case, prior, name, asked.delta)
    )
    if labels.failures:
        certificate = certificate.replaced(failures=[*certificate.failures, *labels.failures])
    if not certificate.diagnostic:
        on_main_process(lambda: log_certificate(run.path, certificate, asked.model_dump(mode="json")))
        certificate = with_union(run.path, certificate)
    on_main_process(lambda: certificate.save(run.path / CERTIFICATE))
    return certificate


def best_bound(case: CertifiedRun, prior: TrainedPrior | None) -> Certificate:
    """Return the smallest of all bounds; each has its part of delta, fixed beforehand."""
    asked, spent = case.asked, spent_by(case.labels.noise_matrix)
    part = spent + (asked.delta - spent) / len(CHOICES)
    made: dict[str, Certificate] = {}
    failed: dict[str, HesstuneError] = {}
    for name in CHOICES:
        try:
            made[name] = evaluate_bound(case, prior, name, part)
        except RefutedNoiseError:  # no bound may rely on the matrix
            raise
        except HesstuneError as error:
            failed[name] = error
    if not made:
        raise next(iter(failed.values()))
    best = min(made.values(), key=lambda one: one.risk)
    missing = {f"no {name} bound: {error}" for name, error in failed.items()}
    return best.replaced(
        delta=asked.delta,
        shares={**best.shares, "other_bounds": asked.delta - part},
        tried={name: one.risk for name, one in made.items()},
        assumptions=[*best.assumptions, *sorted(missing)],
    )


def evaluate_bound(case: CertifiedRun, trained: TrainedPrior | None, name: str, delta: float) -> Certificate:
    """Return the certificate of one kind of bound."""
    kind, run, labels, asked = bound_class(name), case.run, case.labels, case.asked
    noise = labels.noise_matrix
    if name == "checked":
        noise = None
    elif kind.network == "unseen" and trained is None:
        if labels.test_labels == "unknown":
            raise DataError("what the test labels are worth is not known; say so by --test-labels")
        noise = None if labels.test_labels == "true" else noise
    network = NETWORKS[kind.network](case, trained)
    counted, loaded, kept = network.counted, network.loaded, list[int]()
    found = counted.near_copies
    more: dict[str, Any] = _checked(case, network) if name == "checked" else {}
    if kind.network != "unseen":
        held_out, left_out = _held_out(case, loaded)
        found += left_out
        more |= {"held_out": held_out, "held_out_labels": labels.test_labels}
    to_channels_last(loaded.model, case.device)
    # Batch-norm statistics may depend on the training examples if other examples give the bound.
    leaks = [name for name in labels.leaks if kind.network != "unseen" or name != "batch_norm"]
    options = BoundOptions(
        delta=delta,
        noise_matrix=noise,
        noise_is=labels.noise_is,
        seen=_seen(case, network),
        draws=asked.draws,
        seed=asked.seed,
        # Near-duplicate images and texts were treated before; shortened inputs may still be equal.
        repeats="allow" if asked.repeats == "allow" else "refuse",
        leaks=leaks,
        assumptions=labels.assumptions,
        diagnostic=asked.diagnostic,
        progress=case.progress,
        distributed=True,
        **more,
    )
    prior: Prior | None = None
    posterior = network.posterior
    if network.reference is not None:
        freeze(loaded.model, run.config.train, loaded.heads)
        parameters = random_parameters(loaded.model)
        prior = Prior(
            reference=network.reference.to(case.device),
            ratios=head_ratios(list(parameters), loaded.heads),
        )
        if posterior is not None:
            posterior = {name: sigma for name, sigma in posterior.items() if name in parameters}
    if network.picked is not None:
        place = {counted.part.ids[row]: at for at, row in enumerate(counted.rows)}
        kept = [place[name] for name in network.picked.outcome.kept or []]
        found += Found(assumptions=[f"the network is that of {network.picked.path}"])
    sample = Sample.read(loaded.model, _input_examples(case, counted.part, loaded, counted.rows), options)
    weights = Network(model=loaded.model, posterior=posterior, kept=kept)
    certificate = kind.evaluate(weights, prior, sample)
    part = counted.part.take(counted.rows)
    certificate = add_class_conditional_test(certificate, run, part, noise, asked, case.device)
    return certificate.replaced(
        assumptions=[*certificate.assumptions, *found.assumptions, NOT_FOUND],
        failures=[*certificate.failures, *found.failures],
        near_duplicates=found.counts,
    )


def _checked(case: CertifiedRun, network: BoundNetwork) -> dict[str, Any]:
    """Return the checked labels of a sheet that was drawn, by the index among the examples counted."""
    path, folder, counted = case.asked.checked_labels, case.run.path, network.counted
    assert path is not None
    part, rows = counted.part, counted.rows
    if part.count_source(KEPT) and case.asked.noise_is != "none":
        raise DataError(
            "hesstune clean left suspected label errors out of the examples that the bound counts on, so "
            "checked labels of the others bound the error on such examples alone: certify on all, or "
            "accept that by --noise-is none"
        )
    true = read_clean_labels(path, case.task.classes)
    place = {part.ids[row]: at for at, row in enumerate(rows)}
    # A copy that is not counted is left out with its checked label: the others are still drawn uniformly.
    left_out = {part.ids[row] for row in np.setdiff1d(counted.drawn, rows)}
    drawn = [name for name in sheet_of(folder, list(true), path) if name not in left_out]
    if missing := [name for name in drawn if name not in place]:
        raise DataError(
            f"the sheet of {path} has '{missing[0]}' ({len(missing)} in all), which is none of the "
            f"{len(rows)} examples that the bound counts on; give the --prior-fraction and --seed that "
            "hesstune check was given"
        )
    checked = {place[name]: true.get(name, UNCHECKED) for name in drawn}
    return {"checked": checked, "sheets": len(sheets(folder))}


def _held_out(case: CertifiedRun, loaded: LoadedModel) -> tuple[InputExamples | None, Found]:
    """Return the test examples as held-out ones, and their near-duplicates."""
    test = case.task.test
    if not len(test):
        return None, Found()
    rows, found = case.copies.held_out()
    return _input_examples(case, test, loaded, rows) if len(rows) else None, found


def _seen(case: CertifiedRun, network: BoundNetwork) -> InputExamples | None:
    """Return the examples that trained and selected a network, its prior or its start."""
    task, counted = case.task, network.counted
    if counted.seen is None:
        return None
    prior, val = task.train.take(counted.seen), task.val.take(counted.selecting)
    assert prior.labels is not None
    assert val.labels is not None
    # Parts of one task share their source.
    every = Examples(
        prior.source,
        np.concatenate([prior.rows, val.rows]),
        [*prior.ids, *val.ids],
        np.concatenate([prior.labels, val.labels]),
    )
    return _input_examples(case, every, network.loaded, np.arange(len(every)))


def _input_examples(case: CertifiedRun, part: Examples, loaded: LoadedModel, rows: Rows) -> InputExamples:
    assert part.labels is not None
    max_length = case.run.config.max_length
    inputs = make_inputs(part, loaded, case.device, max_length=max_length)
    return InputExamples(inputs, rows, part.labels)


@takes_options(CheckOptions)
def check_run(run: Run, **options: Unpack[CheckKeywords]) -> Path:
    """Draw examples for a person to label, for `certify --checked-labels`; write the sheet to fill in.

    It has the columns id, text (of texts) and an empty true_label. The given labels are not shown, so that
    they do not influence the person. The draw is recorded: an example that is left empty counts as an error
    of the network, and each further sheet of a run pays a part of delta. `options` are those of
    `CheckOptions`.
    """
    asked = make_options(CheckOptions, options)
    _ = run.outcome
    check_files(run.records)
    path = run.path / TO_CHECK
    if path.exists():
        raise RunError(f"{path} exists, and may hold labels already; move it away to draw another sample")
    # The columns of the data may have other names by now.
    columns = {name: value for name, value in asked.given().items() if name in ColumnOptions.model_fields}
    task = Run(run.path, run.config.model_copy(update=columns), run.facts, run.given).task()
    part, rows = task.test, np.arange(len(task.test))
    if asked.prior_fraction:
        part, rows = task.train, np.arange(len(task.train))
        rows = split_prior_and_bound(rows, asked.prior_fraction, asked.seed)[1]
    if not len(rows):
        raise DataError("there are no test examples to draw from; give --prior-fraction")
    if why := SeenStart.of(run).refusal(part, rows):
        raise DataError(why)
    drawn = np.random.default_rng([asked.seed, SAMPLE_KEY]).permutation(rows)[: asked.sample]
    log_sheet(run.path, [part.ids[row] for row in drawn], asked.model_dump(mode="json"))
    texts = part.texts
    header = ("id", "true_label") if texts is None else ("id", "text", "true_label")
    lines = []
    for row in drawn.tolist():
        shown = [] if texts is None else [" / ".join(text for text in texts[row] if text is not None)]
        lines.append((part.ids[row], *shown, ""))
    write_csv(path, header, lines)
    return path
