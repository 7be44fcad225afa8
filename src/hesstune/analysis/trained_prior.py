"""A prior trained on data: the run's recipe on one part, a posterior on all, the bound on the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.analysis.near_copies import Found, NearCopies
from hesstune.data.examples import Task
from hesstune.errors import DataError
from hesstune.models.heads import freeze
from hesstune.models.load import LoadedModel
from hesstune.reference import Reference
from hesstune.runs.config import FinetuneConfig, make_config
from hesstune.runs.fingerprint import changed_files, fingerprints
from hesstune.runs.folder import entered, locked_by_first
from hesstune.runs.records import COMPRESSED, POSTERIOR, PRIOR, RECORD
from hesstune.runs.run import Run
from hesstune.runtime.distributed import all_reduce_sum, on_main_process, rank
from hesstune.training.fit import RunRequest, fit_prepared
from hesstune.training.prepare import CHOSEN_FROM_EXAMPLES, Prepared, choose_from_examples

__all__ = ["Centred", "Picked", "compressed", "network_of_part", "parted", "with_trained_prior"]

PICKING = "pick_to_learn"

# Of the run's options, what the posterior's training keeps; the rest are the `certified` method's own.
KEPT = (
    "model",
    "data",
    "weights",
    "train",
    "head_init",
    "head",
    "dtype",
    "inject_noise",
    "noise_matrix",
    "epochs",
    "augment",
    "split",
    "fold",
    "val_fraction",
    "test_fraction",
    "limit",
    "image_size",
    "max_length",
    "mean",
    "std",
    "skip_bad_images",
    "cache_mib",
    "seed",
    "device",
)
SPLIT_KEY = 0x9217


@dataclass(frozen=True)
class Centred:
    """A network, its prior's centre, and the examples that the bound may count on.

    Attributes:
        loaded: The network whose weights are the posterior's means.
        reference: The prior's centre.
        rows: Training examples the bound counts on.
        prior_rows: Training examples that trained the prior; None where none did.
        posterior: The deviations the network was trained to bear, if any.
        selecting: Validation examples that selected the prior.
        found: The near-duplicates among them.
    """

    loaded: LoadedModel
    reference: Reference
    rows: NDArray[np.int64]
    prior_rows: NDArray[np.int64] | None
    posterior: dict[str, float] | None
    selecting: NDArray[np.int64]
    found: Found


@dataclass(frozen=True)
class Picked:
    """A run of `pick_to_learn`, and its examples.

    Attributes:
        run: The run.
        rows: Its training examples.
        start_rows: Those that trained its start; None where none did.
        selecting: Validation examples that selected its start.
        found: The near-duplicates among them.
    """

    run: Run
    rows: NDArray[np.int64]
    start_rows: NDArray[np.int64] | None
    selecting: NDArray[np.int64]
    found: Found


def with_trained_prior(
    run: Run,
    task: Task,
    rows: NDArray[np.int64],
    fraction: float,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int, str], None] | None = None,
    copies: NearCopies | None = None,
) -> Centred:
    """Return the run as it is, or, with a fraction above 0, a prior and a posterior trained anew.

    The prior repeats the run's configuration on a uniformly drawn part of the examples (validation
    examples may select it); the posterior is trained from there on all examples by the method
    `certified`, whose bound counts on the rest. Both are kept in the run's folder and made once.

    Raises:
        DataError: If a part would be left without examples, or the run's recipe holds what was chosen
            on all examples.
    """
    copies = copies or NearCopies.of(task)
    if fraction == 0:
        rows, found = copies.counted("train", rows)
        selecting = np.zeros(0, np.int64)
        return Centred(run.loaded(), run.reference(), rows, None, run.outcome.posterior, selecting, found)
    with locked_by_first(run.path):
        part = Part.of(run, task, rows, fraction, seed, device, progress, copies)
        config = _config(run.config, {"method": "certified", "method_options": {"examples": len(part.rest)}})
        every = replace(task, train=task.train.take(np.sort(rows)))
        made = part.trained_on(every, config, run.path / POSTERIOR, progress)
    posterior = made.outcome.posterior
    return Centred(
        made.loaded(), made.reference(), part.rest, part.first, posterior, part.selecting, part.found
    )


def network_of_part(
    run: Run,
    task: Task,
    rows: NDArray[np.int64],
    fraction: float,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int, str], None] | None = None,
    copies: NearCopies | None = None,
) -> Centred:
    """Return the run's recipe trained on a part, as the network to certify on the rest.

    Raises:
        DataError: As `with_trained_prior`.
    """
    with locked_by_first(run.path):
        copies = copies or NearCopies.of(task)
        part = Part.of(run, task, rows, fraction, seed, device, progress, copies)
    loaded = part.start.loaded()
    ref = Reference.of(loaded.model)
    return Centred(loaded, ref, part.rest, part.first, None, part.selecting, part.found)


def compressed(
    run: Run,
    task: Task,
    rows: NDArray[np.int64],
    fraction: float,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int, str], None] | None = None,
    copies: NearCopies | None = None,
) -> Picked:
    """Return a run of `pick_to_learn`, its training examples, and those that trained its start, if any.

    The run itself, where it is one; else one trained in its folder, from the network before fine-tuning
    or, with a fraction above 0, from the run's recipe trained on a part: its last layer learns on the rest.

    Raises:
        DataError: As `with_trained_prior`.
    """
    picks, copies = run.config.method == PICKING, copies or NearCopies.of(task)
    none, found = np.zeros(0, np.int64), Found()
    if fraction == 0:
        rows, found = copies.counted("train", rows)
        if picks and len(rows) == len(task.train):
            return Picked(run, rows, None, none, found)
    options: dict[str, object] = {"method": PICKING, "train": "head", "noise_matrix": None}
    if picks:
        options["method_options"] = run.config.method_options
    with locked_by_first(run.path):
        if fraction > 0:
            part = Part.of(run, task, rows, fraction, seed, device, progress, copies)
        else:
            key: dict[str, object] = {"fraction": 0.0, "seed": seed, "rows": []}
            part = Part(Prepared.of(run, task, device), None, none, np.sort(rows), key, none, found)
        own = replace(task, train=task.train.take(part.rest))
        made = part.trained_on(own, _config(run.config, options), run.path / COMPRESSED, progress)
    return Picked(made, part.rest, part.first if fraction > 0 else None, part.selecting, part.found)


def parted(
    rows: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a part of the rows, drawn uniformly, and the rest.

    Raises:
        DataError: If one of them would be empty.
    """
    shuffled = np.random.default_rng([seed, SPLIT_KEY]).permutation(rows)
    count = round(fraction * len(rows))
    if not 0 < count < len(rows):
        raise DataError(f"a prior fraction of {fraction:g} of {len(rows)} examples leaves a part empty")
    return np.sort(shuffled[:count]), np.sort(shuffled[count:])


@dataclass(frozen=True)
class Part:
    """A network trained on a part of the examples, and the rest of them.

    Attributes:
        base: What the run started from.
        prior: The run of its recipe on the part; None: the start is the run's own.
        first: Training examples of the part that have no near-duplicate among the others.
        rest: The others that a bound counts on.
        key: What the part was drawn by.
        selecting: Validation examples likewise.
        found: The near-duplicates.
    """

    base: Prepared
    prior: Run | None
    first: NDArray[np.int64]
    rest: NDArray[np.int64]
    key: dict[str, object]
    selecting: NDArray[np.int64]
    found: Found

    @classmethod
    def of(
        cls,
        run: Run,
        task: Task,
        rows: NDArray[np.int64],
        fraction: float,
        seed: int,
        device: torch.device,
        progress: Callable[[int, int, str], None] | None,
        copies: NearCopies,
    ) -> Part:
        """Train the run's recipe on a part that is drawn uniformly, or take what an earlier call left."""
        _refuse_leaks(run)
        drawn, others = parted(rows, fraction, seed)
        first, selecting, found = copies.apart(drawn, others)
        rest, more = copies.counted("train", others)
        base = Prepared.of(run, task, device)
        key: dict[str, object] = {"fraction": fraction, "seed": seed, "rows": first.tolist()}
        # What all examples settled is settled anew by the part. Older versions did not record what that was.
        told = run.facts.settled
        anew = dict.fromkeys(CHOSEN_FROM_EXAMPLES if told is None else told)
        recipe = run.config.model_copy(update={"shard": False, **anew})
        seen = replace(task, train=task.train.take(first), val=task.val.take(selecting))
        prior = _trained(replace(base, task=seen), recipe, run.path / PRIOR, key, progress)
        return cls(base, prior, first, rest, key, selecting, found + more)

    @property
    def start(self) -> Run:
        """The run of the recipe on the part."""
        assert self.prior is not None
        return self.prior

    def trained_on(
        self,
        task: Task,
        config: FinetuneConfig,
        out: Path,
        progress: Callable[[int, int, str], None] | None,
    ) -> Run:
        """Train on from the part's network."""
        loaded = self.base.loaded if self.prior is None else self.prior.loaded()
        freeze(loaded.model, config.train, loaded.heads)
        return _trained(
            replace(self.base, task=task, config=config, loaded=loaded), config, out, self.key, progress
        )


def _refuse_leaks(run: Run) -> None:
    config, searched = run.config, run.facts.searched
    if searched:
        raise DataError(
            f"a search chose {', '.join(searched)} on all of the run's examples, so a prior trained with "
            "them would know those of the bound; train a run with options that were fixed before, and "
            "certify that"
        )
    told = None if config.noise_matrix is None else run.noise_matrix
    if told is not None and told.origin in ("estimated", "instance_dependent") and not _estimates(config):
        raise DataError(
            f"the run's --noise-matrix {config.noise_matrix} was estimated; were it from these examples, a "
            "prior trained with it would know those of the bound: train a run with a matrix that is known "
            "without them and certify that"
        )
    chosen = {"radius": isinstance(config.radius, str), "noise-matrix": _estimates(config)}
    for name, leaks in chosen.items():
        if leaks:
            raise DataError(
                f"the run's --{name} was chosen on all examples, so a prior trained with it would know those "
                f"of the bound; train a run with a fixed --{name} and certify that"
            )


def _estimates(config: FinetuneConfig) -> bool:
    return (config.noise_matrix or "").startswith("estimate")


def _config(config: FinetuneConfig, changes: dict[str, object]) -> FinetuneConfig:
    kept = {name: getattr(config, name) for name in KEPT}
    if "train" in changes:  # its own number of epochs, and no augmentation of what is frozen
        kept = {name: value for name, value in kept.items() if name not in ("epochs", "augment", "train")}
    return make_config({**kept, **changes}).resolved()


def _trained(
    prepared: Prepared,
    config: FinetuneConfig,
    out: Path,
    key: dict[str, object],
    progress: Callable[[int, int, str], None] | None,
) -> Run:
    """Train into a folder, or take what an earlier call left there for the same contents and options."""
    made_from = {**key, "config": {**config.to_dict(), "out": None}, **_contents(prepared)}
    if _first_has(out, made_from):
        return Run.load(out, data=prepared.given.data, model=prepared.given.model)
    with entered(out, overwrite=True, resume=False):
        own = choose_from_examples(replace(prepared, config=config))  # of these examples alone
        run = fit_prepared(own, out, RunRequest(progress=progress))
        run.add(made_from=made_from)
        on_main_process(run.write_record)
    return run


def _contents(prepared: Prepared) -> dict[str, object]:
    """Return checksums of all that training sees: a prior of other examples may have seen the bound's."""
    start = Reference.of(prepared.loaded.model)
    told = prepared.noise_matrix
    return {
        "settled": "by these examples",
        "checksums": fingerprints(prepared.record(), {name: start[name] for name in start.names()}),
        "noise_matrix": None if told is None else told.array.tolist(),
    }


def _first_has(out: Path, made_from: dict[str, object]) -> bool:
    """Tell, on every rank, whether the first finds a finished run there that was made so."""

    def found() -> bool:
        run = Run.load(out) if (out / RECORD).is_file() else None
        same = run is not None and run.finished and run.facts.made_from == made_from
        return run is not None and same and not changed_files(run)

    return bool(all_reduce_sum(torch.tensor(int(rank() == 0 and found()))))
