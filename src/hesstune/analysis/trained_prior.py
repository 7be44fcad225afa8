"""A prior trained on data: the run's recipe on one part, a posterior on all, the bound on the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.examples import Task
from hesstune.errors import DataError
from hesstune.models.load import LoadedModel
from hesstune.reference import Reference
from hesstune.runs.config import FinetuneConfig, make_config
from hesstune.runs.fingerprint import fingerprints
from hesstune.runs.folder import entered, locked_by_first
from hesstune.runs.records import POSTERIOR, PRIOR, RECORD
from hesstune.runs.run import Run
from hesstune.runtime.distributed import all_reduce_sum, on_main_process, rank
from hesstune.training.fit import fit_prepared
from hesstune.training.prepare import Prepared

__all__ = ["Centred", "with_trained_prior"]

# Of the run's options, what the posterior's training keeps; the rest are the `certified` method's own.
KEPT = (
    "model",
    "data",
    "weights",
    "train",
    "head_init",
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
    """

    loaded: LoadedModel
    reference: Reference
    rows: NDArray[np.int64]
    prior_rows: NDArray[np.int64] | None
    posterior: dict[str, float] | None


def with_trained_prior(
    run: Run,
    task: Task,
    rows: NDArray[np.int64],
    fraction: float,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int, str], None] | None = None,
) -> Centred:
    """Return the run as it is, or, with a fraction above 0, a prior and a posterior trained anew.

    The prior repeats the run's configuration on a uniformly drawn part of the examples (validation
    examples may select it); the posterior is trained from there on all examples by the method
    `certified`, whose bound counts on the rest. Both are kept in the run's folder and made once.

    Raises:
        DataError: If a part would be left without examples, or the run's recipe holds what was chosen
            on all examples.
    """
    if fraction == 0:
        return Centred(run.loaded(), run.reference(), rows, None, run.outcome.posterior)
    _refuse_leaks(run.config)
    rng = np.random.default_rng([seed, SPLIT_KEY])
    shuffled = rng.permutation(rows)
    count = round(fraction * len(rows))
    if not 0 < count < len(rows):
        raise DataError(f"a prior fraction of {fraction:g} of {len(rows)} examples leaves a part empty")
    first, rest = np.sort(shuffled[:count]), np.sort(shuffled[count:])
    with locked_by_first(run.path):
        base = Prepared.of(run, task, device)
        key: dict[str, object] = {"fraction": fraction, "seed": seed, "rows": first.tolist()}
        part = replace(task, train=task.train.take(first))
        recipe = run.config.model_copy(update={"shard": False})
        prior = _trained(replace(base, task=part), recipe, run.path / PRIOR, key, progress)
        config = _posterior_config(run.config, len(rest))
        every = replace(task, train=task.train.take(np.sort(rows)))
        start = replace(base, task=every, config=config, loaded=prior.loaded())
        made = _trained(start, config, run.path / POSTERIOR, key, progress)
    return Centred(made.loaded(), made.reference(), rest, first, made.outcome.posterior)


def _refuse_leaks(config: FinetuneConfig) -> None:
    chosen = {
        "radius": isinstance(config.radius, str),
        "noise-matrix": (config.noise_matrix or "").startswith("estimate"),
    }
    for name, leaks in chosen.items():
        if leaks:
            raise DataError(
                f"the run's --{name} was chosen on all examples, so a prior trained with it would know those "
                f"of the bound; train a run with a fixed --{name} and certify that"
            )


def _posterior_config(config: FinetuneConfig, n: int) -> FinetuneConfig:
    kept = {name: getattr(config, name) for name in KEPT}
    options = {"examples": float(n)}
    return make_config({**kept, "method": "certified", "method_options": options}).resolved()


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
        run = fit_prepared(replace(prepared, config=config), out, progress=progress)
        run.add(made_from=made_from)
        on_main_process(run.write_record)
    return run


def _contents(prepared: Prepared) -> dict[str, object]:
    """Return checksums of all that training sees: a prior of other examples may have seen the bound's."""
    start = Reference.of(prepared.loaded.model)
    told = prepared.noise_matrix
    return {
        "checksums": fingerprints(prepared.task, {name: start[name] for name in start.names()}),
        "noise_matrix": None if told is None else told.array.tolist(),
    }


def _first_has(out: Path, made_from: dict[str, object]) -> bool:
    """Tell, on every rank, whether the first finds a finished run there that was made so."""

    def found() -> bool:
        run = Run.load(out) if (out / RECORD).is_file() else None
        return run is not None and run.finished and run.facts.made_from == made_from

    return bool(all_reduce_sum(torch.tensor(int(rank() == 0 and found()))))
