"""Train a prior, a posterior or a start on parts of a run's examples, and leave the others to a bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.analysis.near_copies import Found, NearCopies
from hesstune.data.examples import Examples, Task
from hesstune.errors import DataError
from hesstune.models.heads import freeze
from hesstune.models.load import LoadedModel
from hesstune.reference import Reference
from hesstune.runs.config import FinetuneConfig, make_config
from hesstune.runs.folder import entered, locked_by_first
from hesstune.runs.integrity import changed_files, fingerprints
from hesstune.runs.records import COMPRESSED, POSTERIOR, PRIOR, RECORD
from hesstune.runs.run import Run
from hesstune.runtime.distributed import all_reduce_sum, on_main_process, rank
from hesstune.training.fit import RunRequest, fit_prepared
from hesstune.training.prepare import CHOSEN_FROM_EXAMPLES, Prepared, choose_from_examples

Rows = NDArray[np.int64]
PICKING = "pick_to_learn"

# Options of the run that the posterior's training keeps; the method `certified` sets all others.
KEPT = (
    "model", "data", "weights", "train", "head_init", "head", "dtype", "inject_noise",
    "noise_matrix", "epochs", "augment", "split", "fold", "val_fraction", "test_fraction", "limit",
    "image_size", "max_length", "mean", "std", "skip_bad_images", "cache_mib", "seed", "device",
)  # fmt: skip
SPLIT_KEY = 0x9217


def _no_rows() -> Rows:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class BoundNetwork:
    """A network, and the examples that a bound on its error may count on.

    Attributes:
        loaded: The network; for PAC-Bayes its weights are the posterior's means.
        examples: The part of the task that the bound counts on.
        drawn: Rows of this part that were drawn for the bound.
        rows: Those that are counted, without near-duplicates.
        near_copies: The near-duplicates among them.
        seen: Training examples that trained the prior, the start or the network; None if none did.
        selecting: Validation examples that selected it.
        reference: The prior's centre, for PAC-Bayes.
        posterior: Standard deviations that the network was trained with, if any.
        run: The run of `pick_to_learn`, for compression.
    """

    loaded: LoadedModel
    examples: Examples
    drawn: Rows
    rows: Rows
    near_copies: Found
    seen: Rows | None = None
    selecting: Rows = field(default_factory=_no_rows)
    reference: Reference | None = None
    posterior: dict[str, float] | None = None
    run: Run | None = None


@dataclass(frozen=True)
class PriorSplit:
    """A division of a run's training examples into a part for a prior and a part for its bound.

    Attributes:
        run: The run.
        task: Its examples.
        all_rows: The training examples that are divided.
        fraction: The share that trains the prior; 0: nothing is trained.
        seed: Of the division.
        device: Where to train.
        copies: The near-duplicates among the examples.
        progress: Called with (steps done, steps in all, text).
    """

    run: Run
    task: Task
    all_rows: Rows
    fraction: float
    seed: int
    device: torch.device
    copies: NearCopies
    progress: Callable[[int, int, str], None] | None = None

    def randomised(self) -> BoundNetwork:
        """Return the run's network, or a posterior around a trained prior, for a PAC-Bayes bound.

        The prior repeats the run's configuration on a uniformly drawn part of the examples, and validation
        examples may select it. The method `certified` trains the posterior from there on all examples. Its
        bound counts on the other part. Both are kept in the run's folder and trained once.

        Raises:
            DataError: If a part would have no examples, or the run's configuration has options that were
                chosen on all examples.
        """
        run, task = self.run, self.task
        if self.fraction == 0:
            rows, near = self.copies.counted("train", self.all_rows)
            return BoundNetwork(
                loaded=run.loaded(),
                examples=task.train,
                drawn=self.all_rows,
                rows=rows,
                near_copies=near,
                reference=run.reference(),
                posterior=run.outcome.posterior,
            )
        with locked_by_first(run.path):
            prior = self.train_prior()
            options = {"method": "certified", "method_options": {"examples": len(prior.rows)}}
            made = prior.continue_on(np.sort(self.all_rows), _config(run.config, options), POSTERIOR)
        return replace(
            prior.network(made.loaded()), reference=made.reference(), posterior=made.outcome.posterior
        )

    def unseen(self) -> BoundNetwork:
        """Return a network and examples that it has not seen.

        With a fraction of 0: the run's network and its test part. Otherwise: the run's configuration trained
        on a part, and the other part.

        Raises:
            DataError: As `randomised`; or if there are no test examples.
        """
        if self.fraction == 0:
            task = self.task
            if not len(task.test):
                raise DataError("a hold-out bound needs test examples; hold some out by --prior-fraction")
            drawn = np.arange(len(task.test))
            rows, near = self.copies.counted("test", drawn, seen=True)
            return BoundNetwork(
                loaded=self.run.loaded(),
                examples=task.test,
                drawn=drawn,
                rows=rows,
                near_copies=near,
                seen=np.arange(len(task.train)),
                selecting=np.arange(len(task.val)),
            )
        with locked_by_first(self.run.path):
            prior = self.train_prior()
        assert prior.run is not None
        return prior.network(prior.run.loaded())

    def compressed(self) -> BoundNetwork:
        """Return a network that `pick_to_learn` trained, for a compression bound.

        It is the run's if the run used this method on these examples. Otherwise it is trained in the run's
        folder, from the network before fine-tuning or, with a fraction above 0, from the prior.

        Raises:
            DataError: As `randomised`.
        """
        run, task = self.run, self.task
        picks, rows, near = run.config.method == PICKING, self.all_rows, Found()
        if self.fraction == 0:
            rows, near = self.copies.counted("train", rows)
            if picks and len(rows) == len(task.train):
                return BoundNetwork(
                    loaded=run.loaded(),
                    examples=task.train,
                    drawn=self.all_rows,
                    rows=rows,
                    near_copies=near,
                    run=run,
                )
        options: dict[str, object] = {"method": PICKING, "train": "head", "noise_matrix": None}
        if picks:
            options["method_options"] = run.config.method_options
        with locked_by_first(run.path):
            if self.fraction > 0:
                start = self.train_prior()
            else:
                start = TrainedPrior(
                    split=self,
                    base=Prepared.of(run, task, self.device),
                    drawn=self.all_rows,
                    rows=np.sort(rows),
                    near_copies=near,
                    key={"fraction": 0.0, "seed": self.seed, "rows": []},
                )
            made = start.continue_on(start.rows, _config(run.config, options), COMPRESSED)
        return replace(start.network(made.loaded()), run=made)

    def train_prior(self) -> TrainedPrior:
        """Train the run's configuration on a part that is drawn uniformly, or load an earlier result."""
        run, task = self.run, self.task
        _refuse_leaks(run)
        drawn_for_prior, drawn = split_prior_and_bound(self.all_rows, self.fraction, self.seed)
        seen, selecting, near = self.copies.apart(drawn_for_prior, drawn)
        rows, more = self.copies.counted("train", drawn)
        base = Prepared.of(run, task, self.device)
        key: dict[str, object] = {"fraction": self.fraction, "seed": self.seed, "rows": seen.tolist()}
        # Options that all examples chose are chosen again by the part; a record may not say which they are.
        chosen = run.facts.chosen_options
        anew = dict.fromkeys(CHOSEN_FROM_EXAMPLES if chosen is None else chosen)
        recipe = run.config.model_copy(update={"shard": False, **anew})
        part = replace(task, train=task.train.take(seen), val=task.val.take(selecting))
        prior = _trained(replace(base, task=part), recipe, run.path / PRIOR, key, self.progress)
        return TrainedPrior(self, base, drawn, rows, near + more, key, prior, seen, selecting)


@dataclass(frozen=True)
class TrainedPrior:
    """A network trained on the prior's part, and the examples of the bound's part.

    Attributes:
        split: The division.
        base: What the run started from.
        drawn: The bound's part.
        rows: Its examples that are counted.
        near_copies: The near-duplicates.
        key: What determined the part, for the record.
        run: The run on the prior's part; None: the start is that of the given run.
        seen: The examples of the prior's part without near-duplicates in the bound's part.
        selecting: Validation examples without near-duplicates there.
    """

    split: PriorSplit
    base: Prepared
    drawn: Rows
    rows: Rows
    near_copies: Found
    key: dict[str, object]
    run: Run | None = None
    seen: Rows | None = None
    selecting: Rows = field(default_factory=_no_rows)

    def continue_on(self, rows: Rows, config: FinetuneConfig, folder: str) -> Run:
        """Train the prior's network on some training examples, in a folder of the run."""
        split = self.split
        task = replace(split.task, train=split.task.train.take(rows))
        loaded = self.base.loaded if self.run is None else self.run.loaded()
        freeze(loaded.model, config.train, loaded.heads)
        prepared = replace(self.base, task=task, config=config, loaded=loaded)
        return _trained(prepared, config, split.run.path / folder, self.key, split.progress)

    def network(self, loaded: LoadedModel) -> BoundNetwork:
        """Return a network with the examples of the bound."""
        return BoundNetwork(
            loaded=loaded,
            examples=self.split.task.train,
            drawn=self.drawn,
            rows=self.rows,
            near_copies=self.near_copies,
            seen=self.seen,
            selecting=self.selecting,
        )


def split_prior_and_bound(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Return a uniformly drawn share of the rows for a prior, and the others for its bound.

    Raises:
        DataError: If one of them would be empty.
    """
    shuffled = np.random.default_rng([seed, SPLIT_KEY]).permutation(rows)
    count = round(fraction * len(rows))
    if not 0 < count < len(rows):
        raise DataError(f"a prior fraction of {fraction:g} of {len(rows)} examples leaves a part empty")
    return np.sort(shuffled[:count]), np.sort(shuffled[count:])


def _refuse_leaks(run: Run) -> None:
    config, searched = run.config, run.facts.searched
    if searched:
        raise DataError(
            f"a search chose {', '.join(searched)} on all of the run's examples, so a prior trained with "
            "them would depend on those of the bound; train a run with options that were fixed before, and "
            "certify that"
        )
    given = None if config.noise_matrix is None else run.noise_matrix
    if given is not None and given.origin in ("estimated", "instance_dependent") and not _estimates(config):
        raise DataError(
            f"the run's --noise-matrix {config.noise_matrix} was estimated; if it was estimated from these "
            "examples, a prior trained with it would depend on those of the bound: train a run with a matrix "
            "that is known without them and certify that"
        )
    chosen = {"radius": isinstance(config.radius, str), "noise-matrix": _estimates(config)}
    for name, leaks in chosen.items():
        if leaks:
            raise DataError(
                f"the run's --{name} was chosen on all examples, so a prior trained with it would depend on "
                f"those of the bound; train a run with a fixed --{name} and certify that"
            )


def _estimates(config: FinetuneConfig) -> bool:
    return (config.noise_matrix or "").startswith("estimate")


def _config(config: FinetuneConfig, changes: Mapping[str, object]) -> FinetuneConfig:
    kept = {name: getattr(config, name) for name in KEPT}
    if "train" in changes:  # its own number of epochs; frozen layers need no augmentation
        kept = {name: value for name, value in kept.items() if name not in ("epochs", "augment", "train")}
    return make_config({**kept, **changes}).resolved()


def _trained(
    prepared: Prepared,
    config: FinetuneConfig,
    out: Path,
    key: dict[str, object],
    progress: Callable[[int, int, str], None] | None,
) -> Run:
    """Train into a folder, or load the result of an earlier call with the same contents and options."""
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
    """Return checksums of all inputs of training: a prior of other examples may have seen the bound's."""
    start = Reference.of(prepared.loaded.model)
    matrix = prepared.noise_matrix
    return {
        "chosen_options": "by these examples",
        "checksums": fingerprints(prepared.record(), {name: start[name] for name in start.names()}),
        "noise_matrix": None if matrix is None else matrix.array.tolist(),
    }


def _first_has(out: Path, made_from: dict[str, object]) -> bool:
    """Return, on every rank, whether the first rank has a finished run there made from these inputs."""

    def is_there() -> bool:
        run = Run.load(out) if (out / RECORD).is_file() else None
        same = run is not None and run.finished and run.facts.made_from == made_from
        return run is not None and same and not changed_files(run.records)

    return bool(all_reduce_sum(torch.tensor(int(rank() == 0 and is_there()))))
