"""Train a prior on a part of a run's examples, and what a bound needs besides: the networks of bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.analysis.label_provenance import LabelProvenance
from hesstune.analysis.near_copies import Found, NearCopies
from hesstune.data.examples import Examples, Task
from hesstune.errors import DataError
from hesstune.models.heads import freeze
from hesstune.models.load import LoadedModel
from hesstune.noise.matrix import shown_noise
from hesstune.reference import Reference
from hesstune.runs.config import FinetuneConfig, make_config
from hesstune.runs.folder import entered, locked_by_first
from hesstune.runs.integrity import changed_files, fingerprints
from hesstune.runs.options import CertifyOptions
from hesstune.runs.records import COMPRESSED, POSTERIOR, PRIOR, RECORD
from hesstune.runs.run import Run
from hesstune.runtime.distributed import all_reduce_sum, on_main_process, rank
from hesstune.runtime.signals import Progress
from hesstune.training.fit import RunRequest, fit_prepared
from hesstune.training.prepare import CHOSEN_FROM_EXAMPLES, Prepared, choose_from_examples

Rows = NDArray[np.int64]
PICKING = "pick_to_learn"
SPLIT_KEY = 0x9217
# Options of the run that the training of a posterior keeps; the method `certified` sets all others.
KEPT = (
    "model", "data", "weights", "train", "head_init", "head", "dtype", "inject_noise",
    "noise_matrix", "epochs", "augment", "split", "fold", "val_fraction", "test_fraction", "limit",
    "image_size", "resize", "max_length", "mean", "std", "skip_bad_images", "cache_mib", "seed", "device",
)  # fmt: skip


@dataclass(frozen=True)
class CertifiedRun:
    """A finished run, and what is asked about it."""

    run: Run  # The run
    task: Task  # Its examples
    labels: LabelProvenance  # What is known about the labels
    asked: CertifyOptions  # The options
    device: torch.device  # Where to compute
    copies: NearCopies  # The near-duplicates among the examples
    progress: Progress | None  # Called with (steps done, steps in all, text)


@dataclass(frozen=True, kw_only=True)
class Counted:
    """The examples that a bound counts on, and those that its network, prior or start has seen."""

    part: Examples  # A part of the task
    drawn: Rows  # Rows of this part that were drawn for the bound
    rows: Rows  # Those that are counted, without near-duplicates
    near_copies: Found  # The near-duplicates among them
    # Training examples that trained the prior, the start or the network; None if none did.
    seen: Rows | None = None
    # Validation examples that selected it.
    selecting: Rows = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class BoundNetwork:
    """A network, and the examples that a bound on its error may count on."""

    counted: Counted  # The examples
    loaded: LoadedModel  # The network; for PAC-Bayes its weights are the posterior's means
    reference: Reference | None = None  # The prior's centre, for PAC-Bayes
    posterior: dict[str, float] | None = None  # Standard deviations that the network was trained with, if any
    picked: Run | None = None  # The run of `pick_to_learn`, for compression


@dataclass(frozen=True)
class TrainedPrior:
    """The network that a bound starts from, and the examples that are left to the bound."""

    counted: Counted  # The examples of the bound's part, and those that the prior has seen
    base: Prepared  # What the run started from
    key: dict[str, object]  # What determined the part, for the record
    run: Run | None = None  # The run on the prior's part; None: the start is that of the certified run

    def continue_on(self, case: CertifiedRun, rows: Rows, config: FinetuneConfig, folder: str) -> Run:
        """Train the prior's network on some training examples, in a folder of the certified run."""
        task = replace(case.task, train=case.task.train.take(rows))
        loaded = self.base.loaded if self.run is None else self.run.loaded()
        freeze(loaded.model, config.train, loaded.heads)
        prepared = replace(self.base, task=task, config=config, loaded=loaded)
        with locked_by_first(case.run.path):
            return _trained(prepared, config, case.run.path / folder, self.key, case.progress)


def train_prior(case: CertifiedRun) -> TrainedPrior:
    """Repeat the run's configuration on a part that is drawn uniformly, or load an earlier result.

    Validation examples may select the prior. It is kept in the run's folder and trained once. DataError if a
    part would be empty, or the configuration has options that were chosen on all examples.
    """
    run, task = case.run, case.task
    _refuse_leaks(run)
    fraction, seed = case.asked.prior_fraction, case.asked.seed
    drawn_for_prior, drawn = split_prior_and_bound(case.labels.rows, fraction, seed)
    seen, selecting, near = case.copies.apart(drawn_for_prior, drawn)
    rows, more = case.copies.counted("train", drawn)
    base = Prepared.of(run, task, case.device)
    key: dict[str, object] = {"fraction": fraction, "seed": seed, "rows": seen.tolist()}
    # Options that all examples chose are chosen again by the part; a record may not say which they are.
    chosen = run.facts.chosen_options
    anew = dict.fromkeys(CHOSEN_FROM_EXAMPLES if chosen is None else chosen)
    config = run.config.model_copy(update={"shard": False, **anew})
    part = replace(task, train=task.train.take(seen), val=task.val.take(selecting))
    with locked_by_first(run.path):
        prior = _trained(replace(base, task=part), config, run.path / PRIOR, key, case.progress)
    counted = Counted(
        part=task.train, drawn=drawn, rows=rows, near_copies=near + more, seen=seen, selecting=selecting
    )
    return TrainedPrior(counted, base, key, prior)


def posterior_network(case: CertifiedRun, prior: TrainedPrior | None) -> BoundNetwork:
    """Return the run's network, or a posterior that `certified` trains around a prior, for PAC-Bayes."""
    if prior is None:
        run = case.run
        return BoundNetwork(_train_part(case), run.loaded(), run.reference(), run.outcome.posterior)
    options = {"method": "certified", "method_options": {"examples": len(prior.counted.rows)}}
    made = prior.continue_on(
        case, np.sort(case.labels.rows), _prior_config(case.run.config, options), POSTERIOR
    )
    return BoundNetwork(prior.counted, made.loaded(), made.reference(), made.outcome.posterior)


def unseen_network(case: CertifiedRun, prior: TrainedPrior | None) -> BoundNetwork:
    """Return the run's network and its test part, or the prior's network and the bound's part."""
    if prior is not None:
        assert prior.run is not None
        return BoundNetwork(prior.counted, prior.run.loaded())
    task = case.task
    if not len(task.test):
        raise DataError("a hold-out bound needs test examples; hold some out by --prior-fraction")
    drawn = np.arange(len(task.test))
    rows, near = case.copies.counted("test", drawn, seen=True)
    seen, selecting = np.arange(len(task.train)), np.arange(len(task.val))
    counted = Counted(
        part=task.test, drawn=drawn, rows=rows, near_copies=near, seen=seen, selecting=selecting
    )
    return BoundNetwork(counted, case.run.loaded())


def picked_network(case: CertifiedRun, prior: TrainedPrior | None) -> BoundNetwork:
    """Return a network that `pick_to_learn` trained, for a compression bound.

    The run's own if it used this method on these examples; else it is trained, from the prior or the start.
    """
    run, is_picked = case.run, case.run.config.method == PICKING
    if prior is None:
        counted = _train_part(case)
        if is_picked and len(counted.rows) == len(case.task.train):
            return BoundNetwork(counted, run.loaded(), picked=run)
        counted = replace(counted, rows=np.sort(counted.rows))
        key: dict[str, object] = {"fraction": 0.0, "seed": case.asked.seed, "rows": []}
        prior = TrainedPrior(counted, Prepared.of(run, case.task, case.device), key)
    options: dict[str, object] = {"method": PICKING, "train": "head", "noise_matrix": None}
    if is_picked:
        options["method_options"] = run.config.method_options
    made = prior.continue_on(case, prior.counted.rows, _prior_config(run.config, options), COMPRESSED)
    return BoundNetwork(prior.counted, made.loaded(), picked=made)


# By the attribute `network` of a bound.
NETWORKS = {"posterior": posterior_network, "unseen": unseen_network, "picked": picked_network}


def _train_part(case: CertifiedRun) -> Counted:
    """Return the training examples of a run whose network or reference has seen none of them before."""
    drawn = case.labels.rows
    rows, near = case.copies.counted("train", drawn)
    return Counted(part=case.task.train, drawn=drawn, rows=rows, near_copies=near)


def split_prior_and_bound(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Return a uniformly drawn share of the rows for a prior, and the others for its bound."""
    shuffled = np.random.default_rng([seed, SPLIT_KEY]).permutation(rows)
    count = round(fraction * len(rows))
    if not 0 < count < len(rows):
        raise DataError(f"a prior fraction of {fraction:g} of {len(rows)} examples leaves a part empty")
    return np.sort(shuffled[:count]), np.sort(shuffled[count:])


def _refuse_leaks(run: Run) -> None:
    """Refuse a configuration with options that were chosen on all examples."""
    config, searched = run.config, run.facts.searched
    estimates = (config.noise_matrix or "").startswith("estimate")
    given = None if config.noise_matrix is None else run.noise_matrix
    is_estimated = given is not None and given.origin in ("estimated", "instance_dependent")
    shown = shown_noise(config.noise_matrix)
    chosen = {
        f"a search chose {', '.join(searched)}": bool(searched),
        "--radius was chosen": isinstance(config.radius, str),
        "--noise-matrix was estimated": estimates,
        f"--noise-matrix {shown} was estimated, possibly": is_estimated and not estimates,
    }
    for what, leaks in chosen.items():
        if leaks:
            raise DataError(
                f"{what} on all of the run's examples, so a prior trained with it would depend on those of "
                "the bound; train a run with a value that was fixed without them and certify that"
            )


def _prior_config(config: FinetuneConfig, changes: Mapping[str, object]) -> FinetuneConfig:
    """Return the options that a prior keeps of the certified run's, with changes."""
    kept = {name: getattr(config, name) for name in KEPT}
    if "train" in changes:  # its own number of epochs; frozen layers need no augmentation
        kept = {name: value for name, value in kept.items() if name not in ("epochs", "augment", "train")}
    return make_config({**kept, **changes}).resolved()


def _trained(
    prepared: Prepared, config: FinetuneConfig, out: Path, key: dict[str, object], progress: Progress | None
) -> Run:
    """Train into a folder, or load the result of an earlier call with the same contents and options."""
    made_from = {**key, "config": {**config.to_dict(), "out": None}, **_contents(prepared)}

    def is_there() -> bool:
        run = Run.load(out) if (out / RECORD).is_file() else None
        same = run is not None and run.finished and run.facts.made_from == made_from
        return run is not None and same and not changed_files(run.records)

    if all_reduce_sum(torch.tensor(int(rank() == 0 and is_there()))):  # the first rank decides for all
        return Run.load(out, data=prepared.given.data, model=prepared.given.model)
    with entered(out, overwrite=True, resume=False):
        own = choose_from_examples(replace(prepared, config=config))  # of these examples alone
        run = fit_prepared(own, out, RunRequest(progress=progress))
        run.add(made_from=made_from)
        on_main_process(run.write_record)
    return run


def _contents(prepared: Prepared) -> dict[str, object]:
    """Return checksums of all inputs of training: a prior of other examples may have seen the bound's."""
    start = Reference.of(prepared.loaded.model)
    matrix = prepared.noise_matrix
    return {
        "chosen_options": "by these examples",
        "checksums": fingerprints(prepared.record(), {name: start[name] for name in start.names()}),
        "noise_matrix": None if matrix is None else matrix.array.tolist(),
    }
