"""Certify a finished run, and draw examples whose labels a person checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hesstune.analysis.label_provenance import (
    LabelProvenance,
    add_class_conditional_test,
    read_label_provenance,
)
from hesstune.analysis.measure import InputExamples
from hesstune.analysis.near_copies import NOT_FOUND, Found, NearCopies
from hesstune.analysis.seen_start import SeenStart
from hesstune.analysis.trained_prior import BoundNetwork, PriorSplit, Rows, split_prior_and_bound
from hesstune.bounds.certificate import certify
from hesstune.bounds.data import Share
from hesstune.bounds.networks import UNCHECKED, certify_checked, certify_compression, certify_holdout
from hesstune.bounds.noisy import spent_by
from hesstune.bounds.prior import head_ratios, random_parameters
from hesstune.bounds.record import Certificate
from hesstune.bounds.sample import SampleOptions
from hesstune.data.examples import KEPT, Examples, Task
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
from hesstune.runs.options import CertifyOptions, CheckOptions
from hesstune.runs.records import CERTIFICATE, TO_CHECK
from hesstune.runs.run import Run
from hesstune.runtime.device import pick_device
from hesstune.runtime.distributed import (
    all_gather,
    all_reduce_sum,
    joined_ranks,
    on_main_process,
    rank,
    world,
)
from hesstune.storage.tables import write_csv

BLOCK = 32
SAMPLE_KEY = 0xC4EC


@takes_options(CertifyOptions)
@joined_ranks()
def certify_run(
    run: Run, *, progress: Callable[[int, int, str], None] | None = None, **options: Any
) -> Certificate:
    """Certify a finished run on the examples it was trained on; write certificate.json to its folder.

    Args:
        run: A finished run.
        progress: Called with (steps done, steps in all, text).
        **options: Options of `CertifyOptions`, by name.

    Raises:
        ConfigError: If an option is wrong.
        HesstuneError: If the run has not finished, or an assumption of the certificate fails.
    """
    asked = make_options(CertifyOptions, options)
    _ = run.outcome
    check_files(run.records)
    check_log(run.path, run.records.certificate)
    task = run.task()
    labels = read_label_provenance(run, task, asked)
    case = Case(run, task, labels, asked, pick_device(asked.device), progress if rank() == 0 else None)
    if asked.checked_labels is not None:
        certificate = case.checked(asked.checked_labels)
    else:
        certificate = case.best() if asked.bound == "best" else BOUNDS[asked.bound](case, asked.delta)
    if labels.failures:
        certificate = dataclasses.replace(certificate, failures=[*certificate.failures, *labels.failures])
    if not certificate.diagnostic:
        on_main_process(lambda: log_certificate(run.path, certificate, asked.model_dump(mode="json")))
        certificate = with_union(run.path, certificate)
    on_main_process(lambda: certificate.save(run.path / CERTIFICATE))
    return certificate


@dataclass(frozen=True)
class Case:
    """A run to certify.

    Attributes:
        run: The run.
        task: Its examples, as labelled.
        labels: What is known about the labels.
        asked: The options.
        device: Where to compute.
        progress: As of `certify_run`.
    """

    run: Run
    task: Task
    labels: LabelProvenance
    asked: CertifyOptions
    device: torch.device
    progress: Callable[[int, int, str], None] | None

    def pac_bayes(self, delta: float) -> Certificate:
        """Bound the randomised predictor's error, and that of a trained prior's own network."""
        run, asked, labels = self.run, self.asked, self.labels
        network = self.split.randomised()
        loaded = network.loaded
        options, held_out_copies = self._with_held_out(network)
        freeze(loaded.model, run.config.train, loaded.heads)
        assert network.reference is not None
        trained, posterior = random_parameters(loaded.model), network.posterior
        if posterior is not None:
            posterior = {name: sigma for name, sigma in posterior.items() if name in trained}
        certificate = certify(
            loaded.model,
            network.reference.to(self.device),
            self._inputs(network.examples, loaded, network.rows),
            delta,
            labels.noise_matrix,
            ratios=head_ratios(list(trained), loaded.heads),
            posterior=posterior,
            noise_is=labels.noise_is,
            draws=asked.draws,
            block_size=options.block_size,
            seed=asked.seed,
            prior_data=options.seen,
            held_out=options.held_out,
            held_out_labels=options.held_out_labels,
            repeats=options.repeats,
            leaks=options.leaks,
            assumptions=options.assumptions,
            diagnostic=options.diagnostic,
            progress=self.progress,
            share=options.share,
        )
        return self._complete(certificate, network, labels.noise_matrix, held_out_copies)

    def holdout(self, delta: float) -> Certificate:
        """Bound a network's error by examples it has not seen: the test part, or the bound's part."""
        labels, noise = self.labels, self.labels.noise_matrix
        if not self.asked.prior_fraction:
            if labels.test_labels == "unknown":
                raise DataError("what the test labels are worth is not known; say so by --test-labels")
            noise = None if labels.test_labels == "true" else noise
        network = self.split.unseen()
        certificate = certify_holdout(
            network.loaded.model,
            self._inputs(network.examples, network.loaded, network.rows),
            delta,
            noise,
            noise_is=labels.noise_is,
            options=self._options(network, trained_on_sample=False),
        )
        return self._complete(certificate, network, noise)

    def compression(self, delta: float) -> Certificate:
        """Bound the error of a network that Pick-to-Learn trained."""
        network = self.split.compressed()
        made, rows = network.run, network.rows
        assert made is not None
        options, held_out_copies = self._with_held_out(network)
        place = {self.task.train.ids[row]: at for at, row in enumerate(rows)}
        certificate = certify_compression(
            network.loaded.model,
            self._inputs(network.examples, network.loaded, rows),
            [place[name] for name in made.outcome.kept or []],
            delta,
            self.labels.noise_matrix,
            noise_is=self.labels.noise_is,
            options=options,
        )
        copies = held_out_copies + Found({}, [f"the network is that of {made.path}"])
        return self._complete(certificate, network, self.labels.noise_matrix, copies)

    def checked(self, path: str | Path) -> Certificate:
        """Bound a network's true error by the given labels of unseen examples and the true ones of a few."""
        network = self.split.unseen()
        examples, rows = network.examples, network.rows
        if examples.count_source(KEPT) and self.asked.noise_is != "none":
            raise DataError(
                "hesstune clean left suspected label errors out of the examples that the bound counts on, so "
                "checked labels of the others bound the error on such examples alone: certify on all, or "
                "accept that by --noise-is none"
            )
        true = read_clean_labels(path, self.task.classes)
        drawn = sheet_of(self.run.path, list(true), path)
        place = {examples.ids[row]: at for at, row in enumerate(rows)}
        # A copy that is not counted is left out with its checked label: the others are still drawn uniformly.
        left_out = {examples.ids[row] for row in np.setdiff1d(network.drawn, rows)}
        drawn = [name for name in drawn if name not in left_out]
        if missing := [name for name in drawn if name not in place]:
            raise DataError(
                f"the sheet of {path} has '{missing[0]}' ({len(missing)} in all), which is none of the "
                f"{len(rows)} examples that the bound counts on; give the --prior-fraction and --seed that "
                "hesstune check was given"
            )
        certificate = certify_checked(
            network.loaded.model,
            self._inputs(examples, network.loaded, rows),
            {place[name]: true.get(name, UNCHECKED) for name in drawn},
            self.asked.delta,
            sheets=len(sheets(self.run.path)),
            options=self._options(network, trained_on_sample=False),
        )
        return self._complete(certificate, network, None)

    def best(self) -> Certificate:
        """Return the smallest of all bounds; each has its part of delta, fixed beforehand."""
        asked = self.asked
        spent = spent_by(self.labels.noise_matrix, asked.delta)
        part = spent + (asked.delta - spent) / len(BOUNDS)
        made: dict[str, Certificate] = {}
        failed: dict[str, HesstuneError] = {}
        for name, bound in BOUNDS.items():
            try:
                made[name] = bound(self, part)
            except RefutedNoiseError:  # no bound may rely on the matrix
                raise
            except HesstuneError as error:
                failed[name] = error
        if not made:
            raise next(iter(failed.values()))
        best = min(made.values(), key=lambda one: one.risk)
        missing = {f"no {name} bound: {error}" for name, error in failed.items()}
        return dataclasses.replace(
            best,
            delta=asked.delta,
            shares={**best.shares, "other_bounds": asked.delta - part},
            tried={name: one.risk for name, one in made.items()},
            assumptions=[*best.assumptions, *sorted(missing)],
        )

    @cached_property
    def split(self) -> PriorSplit:
        """The division of the training examples; near-duplicates are searched for here."""
        asked, task = self.asked, self.task
        copies = NearCopies.of(task, asked.repeats, asked.seed, asked.diagnostic, SeenStart.of(self.run))
        fraction, rows = asked.prior_fraction, self.labels.rows
        return PriorSplit(self.run, task, rows, fraction, asked.seed, self.device, copies, self.progress)

    def _options(self, network: BoundNetwork, trained_on_sample: bool = True, **more: Any) -> SampleOptions:
        """Return how a network's sample is read and checked, and move the network to the device."""
        to_channels_last(network.loaded.model, self.device)
        # Batch-norm statistics may depend on the training examples if other examples give the bound.
        leaks = [name for name in self.labels.leaks if trained_on_sample or name != "batch_norm"]
        return SampleOptions(
            seen=self._seen(network),
            block_size=BLOCK,
            # Near-duplicate images and texts were treated before; shortened inputs may still be equal.
            repeats="allow" if self.asked.repeats == "allow" else "refuse",
            leaks=leaks,
            assumptions=self.labels.assumptions,
            diagnostic=self.asked.diagnostic,
            share=Share(rank(), world(), all_reduce_sum, all_gather),
            **more,
        )

    def _with_held_out(self, network: BoundNetwork) -> tuple[SampleOptions, Found]:
        """Return the options with the test examples as held-out ones, and their near-duplicates."""
        test, held_out, copies = self.task.test, None, Found()
        if len(test):
            rows, copies = self.split.copies.held_out()
            held_out = self._inputs(test, network.loaded, rows) if len(rows) else None
        return self._options(network, held_out=held_out, held_out_labels=self.labels.test_labels), copies

    def _seen(self, network: BoundNetwork) -> InputExamples | None:
        """Return the examples that trained and selected a network, its prior or its start."""
        if network.seen is None:
            return None
        prior, val = self.task.train.take(network.seen), self.task.val.take(network.selecting)
        assert prior.labels is not None
        assert val.labels is not None
        # Parts of one task share their source.
        every = Examples(
            prior.source,
            np.concatenate([prior.rows, val.rows]),
            [*prior.ids, *val.ids],
            np.concatenate([prior.labels, val.labels]),
        )
        return self._inputs(every, network.loaded, np.arange(len(every)))

    def _inputs(self, part: Examples, loaded: LoadedModel, rows: Rows) -> InputExamples:
        assert part.labels is not None
        max_length = self.run.config.max_length
        return InputExamples(make_inputs(part, loaded, self.device, max_length=max_length), rows, part.labels)

    def _complete(
        self, certificate: Certificate, network: BoundNetwork, noise_matrix: Any, more: Found | None = None
    ) -> Certificate:
        """Add the test of whether the noise depends on the input, and the near-duplicates."""
        part = network.examples.take(network.rows)
        certificate = add_class_conditional_test(
            certificate, self.run, part, noise_matrix, self.asked, self.device
        )
        copies = network.near_copies + (more or Found())
        return dataclasses.replace(
            certificate,
            assumptions=[*certificate.assumptions, *copies.assumptions, NOT_FOUND],
            failures=[*certificate.failures, *copies.failures],
            near_duplicates=copies.counts,
        )


BOUNDS: dict[str, Callable[[Case, float], Certificate]] = {
    "pac_bayes": Case.pac_bayes,
    "holdout": Case.holdout,
    "compression": Case.compression,
}


@takes_options(CheckOptions)
def check_run(run: Run, **options: Any) -> Path:
    """Draw examples for a person to label, for `certify --checked-labels`; write the sheet to fill in.

    It goes to the run's folder and has the columns id, text (of texts) and an empty true_label. The given
    labels are not shown, so that they do not influence the person. The draw is recorded: an example that is
    left empty counts as an error of the network, and each further sheet of a run pays a part of delta.

    Args:
        run: A finished run.
        **options: Options of `CheckOptions`, by name.

    Raises:
        DataError: If there are no examples to draw from, or the weights before fine-tuning have seen some.
        RunError: If the sheet is there: it may be filled in already.
    """
    asked = make_options(CheckOptions, options)
    _ = run.outcome
    check_files(run.records)
    path = run.path / TO_CHECK
    if path.exists():
        raise RunError(f"{path} exists, and may hold labels already; move it away to draw another sample")
    task = run.task()
    part, rows = task.test, np.arange(len(task.test))
    if asked.prior_fraction:
        part, rows = (
            task.train,
            split_prior_and_bound(np.arange(len(task.train)), asked.prior_fraction, asked.seed)[1],
        )
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
