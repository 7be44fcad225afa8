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
from numpy.typing import NDArray
from torch import nn

from hesstune.analysis.label_provenance import Story, story_of, tested_noise
from hesstune.analysis.measure import InputExamples, Subject
from hesstune.analysis.near_copies import NOT_FOUND, Found, NearCopies
from hesstune.analysis.seen_start import SeenStart
from hesstune.analysis.trained_prior import compressed, network_of_part, parted, with_trained_prior
from hesstune.bounds.data import Share
from hesstune.bounds.networks import UNCHECKED, certify_checked, certify_compression, certify_holdout
from hesstune.bounds.noisy import spent_by
from hesstune.bounds.prior import head_ratios, random_parameters
from hesstune.bounds.record import Certificate
from hesstune.data.clean import read_clean_labels
from hesstune.data.examples import KEPT, Examples, Task
from hesstune.errors import ConfigError, DataError, HesstuneError, RefutedNoiseError, RunError
from hesstune.inputs.batches import make_inputs, to_channels_last
from hesstune.models.heads import freeze
from hesstune.models.load import LoadedModel
from hesstune.options import make_options, takes_options
from hesstune.runs.fingerprint import check_files
from hesstune.runs.guarantee_log import check_log, log_certificate, log_sheet, sheet_of, sheets, with_union
from hesstune.runs.options.analysis import CertifyOptions, CheckOptions
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
from hesstune.storage.atomic import write_csv

__all__ = ["certify_run", "check_run"]

BLOCK = 32


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
    check_files(run)
    check_log(run.path, run.records.certificate)
    task = run.task()
    story = story_of(run, task, asked)
    if story.noise_matrix is None and asked.noise_method != "tightest":
        raise ConfigError("--noise-method is for noisy labels, and this run's count as true; leave it out")
    case = Case(run, task, story, asked, pick_device(asked.device), progress if rank() == 0 else None)
    if asked.checked is not None:
        found = case.checked(asked.checked)
    else:
        found = case.best() if asked.bound == "best" else BOUNDS[asked.bound](case, asked.delta)
    if story.failures:
        found = dataclasses.replace(found, failures=[*found.failures, *story.failures])
    if not found.diagnostic:
        on_main_process(lambda: log_certificate(run.path, found, asked.model_dump(mode="json")))
        found = with_union(run.path, found)
    on_main_process(lambda: found.save(run.path / CERTIFICATE))
    return found


@dataclass(frozen=True)
class Case:
    """A run to certify, and all that is known of it.

    Attributes:
        run: The run.
        task: Its examples, as labelled.
        story: What is known of the labels.
        asked: The options.
        device: Where to compute.
        progress: As of `certify_run`.
    """

    run: Run
    task: Task
    story: Story
    asked: CertifyOptions
    device: torch.device
    progress: Callable[[int, int, str], None] | None

    def pac_bayes(self, delta: float) -> Certificate:
        """Bound the randomised predictor's error, and that of a trained prior's own network."""
        run, task, asked, story = self.run, self.task, self.asked, self.story
        centred = with_trained_prior(
            run, task, story.rows, asked.prior_fraction, asked.seed, self.device, self.progress, self.copies
        )
        loaded = centred.loaded
        held_out, beside = self._test(loaded)
        self._placed(loaded)
        freeze(loaded.model, run.config.train, loaded.heads)
        assert task.train.labels is not None
        feed = make_inputs(task.train, loaded, self.device, max_length=run.config.max_length)
        reference = centred.reference.to(self.device)
        found = Subject(loaded.model, reference, feed, task.train.labels, centred.rows).certify(
            centred.rows,
            delta=delta,
            noise_matrix=story.noise_matrix,
            ratios=head_ratios(list(random_parameters(loaded.model)), loaded.heads),
            posterior=_known_posterior(loaded.model, centred.posterior),
            noise_method=asked.noise_method,
            noise_is=story.noise_is,
            draws=asked.draws,
            block_size=BLOCK,
            seed=asked.seed,
            prior_data=self._seen(loaded, centred.prior_rows, centred.selecting),
            held_out=held_out,
            held_out_labels=story.test_labels,
            repeats=self._exact_repeats,
            leaks=story.leaks,
            assumptions=story.assumptions,
            diagnostic=asked.diagnostic,
            progress=self.progress,
        )
        found = self._tested(found, task.train, centred.rows, story.noise_matrix)
        return _saying(found, centred.found + beside)

    def holdout(self, delta: float) -> Certificate:
        """Bound a network's error by examples it has not seen: the test part, or what a part left."""
        run, asked, story = self.run, self.asked, self.story
        noise = story.noise_matrix
        if not asked.prior_fraction:
            if story.test_labels == "unknown":
                raise DataError("what the test labels are worth is not known; say so by --test-labels")
            noise = None if story.test_labels == "true" else noise
        unseen = self._unseen()
        loaded = unseen.loaded
        self._placed(loaded)
        # What training did is of no matter to a network that others judge.
        leaks = [name for name in story.leaks if name != "batch_norm"]
        found = certify_holdout(
            loaded.model,
            _fed(unseen.examples, loaded, self.device, run.config.max_length, unseen.rows),
            delta,
            noise,
            noise_method=asked.noise_method,
            noise_is=story.noise_is,
            seen=unseen.seen,
            leaks=leaks,
            **self._common(),
        )
        return _saying(self._tested(found, unseen.examples, unseen.rows, noise), unseen.found)

    def compression(self, delta: float) -> Certificate:
        """Bound the error of a network that Pick-to-Learn trained: the run's, or one from its start."""
        run, task, asked, story = self.run, self.task, self.asked, self.story
        picked = compressed(
            run, task, story.rows, asked.prior_fraction, asked.seed, self.device, self.progress, self.copies
        )
        made, rows = picked.run, picked.rows
        loaded = made.loaded()
        self._placed(loaded)
        held_out, beside = self._test(loaded)
        place = {task.train.ids[row]: at for at, row in enumerate(rows)}
        kept = [place[name] for name in made.outcome.kept or []]
        found = certify_compression(
            loaded.model,
            _fed(task.train, loaded, self.device, run.config.max_length, rows),
            kept,
            delta,
            story.noise_matrix,
            noise_is=story.noise_is,
            seen=self._seen(loaded, picked.start_rows, picked.selecting),
            held_out=held_out,
            held_out_labels=story.test_labels,
            leaks=story.leaks,
            **self._common(),
        )
        found = self._tested(found, task.train, rows, story.noise_matrix)
        place_told = Found({}, [f"the network is that of {made.path}"])
        return _saying(found, picked.found + beside + place_told)

    def checked(self, path: str | Path) -> Certificate:
        """Bound a network's true error by the given labels of unseen examples and the true ones of a few."""
        unseen = self._unseen()
        loaded, examples, rows = unseen.loaded, unseen.examples, unseen.rows
        if examples.count_source(KEPT) and self.asked.noise_is != "none":
            raise DataError(
                "hesstune clean left suspected label errors out of the examples that the bound counts on, so "
                "checked labels of the others bound the error on such examples alone: certify on all, or "
                "accept that by --noise-is none"
            )
        self._placed(loaded)
        true = read_clean_labels(path, self.task.classes)
        drawn = sheet_of(self.run.path, list(true), path)
        place = {examples.ids[row]: at for at, row in enumerate(rows)}
        # A copy that is not counted leaves with its checked label: the others are drawn uniformly still.
        left = {examples.ids[row] for row in np.setdiff1d(unseen.drawn, rows)}
        drawn = [name for name in drawn if name not in left]
        if missing := [name for name in drawn if name not in place]:
            raise DataError(
                f"the sheet of {path} has '{missing[0]}' ({len(missing)} in all), which is none of the "
                f"{len(rows)} examples that the bound counts on; give the --prior-fraction and --seed that "
                "hesstune check was given"
            )
        found = certify_checked(
            loaded.model,
            _fed(examples, loaded, self.device, self.run.config.max_length, rows),
            {place[name]: true.get(name, UNCHECKED) for name in drawn},
            self.asked.delta,
            sheets=len(sheets(self.run.path)),
            seen=unseen.seen,
            leaks=[name for name in self.story.leaks if name != "batch_norm"],
            **self._common(),
        )
        return _saying(found, unseen.found)

    @cached_property
    def copies(self) -> NearCopies:
        """The near-duplicates among all examples."""
        asked = self.asked
        start = SeenStart.of(self.run)
        return NearCopies.of(self.task, asked.repeats, asked.seed, asked.diagnostic, start)

    @property
    def _exact_repeats(self) -> str:
        """What is left to do about equal inputs: pictures and texts were treated, what is fed may be cut."""
        return "allow" if self.asked.repeats == "allow" else "refuse"

    def _unseen(self) -> _Unseen:
        """Return a network, examples it has not seen, and those it has."""
        run, task, asked = self.run, self.task, self.asked
        if not asked.prior_fraction:
            if not len(task.test):
                raise DataError("a hold-out bound needs test examples; hold some out by --prior-fraction")
            every, loaded = np.arange(len(task.test)), run.loaded()
            rows, found = self.copies.counted("test", every, seen=True)
            seen = self._seen(loaded, np.arange(len(task.train)), np.arange(len(task.val)))
            return _Unseen(loaded, task.test, every, rows, seen, found)
        part = network_of_part(
            run,
            task,
            self.story.rows,
            asked.prior_fraction,
            asked.seed,
            self.device,
            self.progress,
            self.copies,
        )
        drawn = parted(self.story.rows, asked.prior_fraction, asked.seed)[1]
        seen = self._seen(part.loaded, part.prior_rows, part.selecting)
        return _Unseen(part.loaded, task.train, drawn, part.rows, seen, part.found)

    def best(self) -> Certificate:
        """Return the smallest of all bounds, each with its part of delta, fixed beforehand."""
        asked = self.asked
        spent = spent_by(self.story.noise_matrix, asked.delta)
        part = spent + (asked.delta - spent) / len(BOUNDS)
        found: dict[str, Certificate] = {}
        failed: dict[str, HesstuneError] = {}
        for name, bound in BOUNDS.items():
            try:
                found[name] = bound(self, part)
            except RefutedNoiseError:  # no bound is left that could rely on the matrix
                raise
            except HesstuneError as error:
                failed[name] = error
        if not found:
            raise next(iter(failed.values()))
        best = min(found.values(), key=lambda one: one.risk)
        left = {f"no {name} bound: {error}" for name, error in failed.items()}
        return dataclasses.replace(
            best,
            delta=asked.delta,
            shares={**best.shares, "other_bounds": asked.delta - part},
            tried={name: one.risk for name, one in found.items()},
            assumptions=[*best.assumptions, *sorted(left)],
        )

    def _tested(self, found: Certificate, part: Examples, rows: NDArray[np.int64], noise: Any) -> Certificate:
        """Return the certificate with the test of whether the noise depends on the input."""
        return tested_noise(found, self.run, part, rows, noise, self.asked, self.device)

    def _common(self) -> dict[str, Any]:
        asked = self.asked
        return {
            "block_size": BLOCK,
            "repeats": self._exact_repeats,
            "assumptions": self.story.assumptions,
            "diagnostic": asked.diagnostic,
            "share": Share(rank(), world(), all_reduce_sum, all_gather),
        }

    def _placed(self, loaded: LoadedModel) -> None:
        to_channels_last(loaded.model, self.device)

    def _test(self, loaded: LoadedModel) -> tuple[InputExamples | None, Found]:
        """Return the test examples; the run's story says what their labels are worth."""
        if not len(self.task.test):
            return None, Found()
        rows, found = self.copies.held_out()
        fed = _fed(self.task.test, loaded, self.device, self.run.config.max_length, rows)
        return fed if len(rows) else None, found

    def _seen(
        self, loaded: LoadedModel, rows: NDArray[np.int64] | None, selecting: NDArray[np.int64]
    ) -> InputExamples | None:
        """Return the training examples that trained a network, and those that selected it."""
        if rows is None:
            return None
        task = self.task
        val = task.val.take(selecting)
        prior = task.train.take(rows)
        assert prior.labels is not None
        assert val.labels is not None
        # Parts of one task share their source.
        every = Examples(
            prior.source,
            np.concatenate([prior.rows, val.rows]),
            [*prior.ids, *val.ids],
            np.concatenate([prior.labels, val.labels]),
        )
        return _fed(every, loaded, self.device, self.run.config.max_length, np.arange(len(every)))


@dataclass(frozen=True)
class _Unseen:
    """A network and examples that it has not seen.

    Attributes:
        loaded: The network.
        examples: The part that they belong to.
        drawn: Its rows that were drawn for the bound.
        rows: Those of them that are counted.
        seen: What trained and selected the network.
        found: The near-duplicates.
    """

    loaded: LoadedModel
    examples: Examples
    drawn: NDArray[np.int64]
    rows: NDArray[np.int64]
    seen: InputExamples | None
    found: Found


BOUNDS: dict[str, Callable[[Case, float], Certificate]] = {
    "pac_bayes": Case.pac_bayes,
    "holdout": Case.holdout,
    "compression": Case.compression,
}


def _saying(certificate: Certificate, found: Found) -> Certificate:
    """Return a certificate that says what near-duplicates were found."""
    return dataclasses.replace(
        certificate,
        assumptions=[*certificate.assumptions, *found.assumptions, NOT_FOUND],
        failures=[*certificate.failures, *found.failures],
        near_duplicates=found.counts,
    )


def _fed(
    part: Examples, loaded: LoadedModel, device: torch.device, max_length: int, rows: NDArray[np.int64]
) -> InputExamples:
    assert part.labels is not None
    return InputExamples(make_inputs(part, loaded, device, max_length=max_length), rows, part.labels)


def _known_posterior(model: nn.Module, posterior: dict[str, float] | None) -> dict[str, float] | None:
    if posterior is None:
        return None
    trained = random_parameters(model)
    return {name: sigma for name, sigma in posterior.items() if name in trained}


SAMPLE_KEY = 0xC4EC


@takes_options(CheckOptions)
def check_run(run: Run, **options: Any) -> Path:
    """Draw examples at random for a person to label, for `certify --checked`; write the sheet to fill in.

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
    check_files(run)
    path = run.path / TO_CHECK
    if path.exists():
        raise RunError(f"{path} exists, and may hold labels already; move it away to draw another sample")
    task = run.task()
    part, rows = task.test, np.arange(len(task.test))
    if asked.prior_fraction:
        part, rows = task.train, parted(np.arange(len(task.train)), asked.prior_fraction, asked.seed)[1]
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
