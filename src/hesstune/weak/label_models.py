"""Label models: one label, and a posterior over labels, from many votes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import integer_labels, one_of
from hesstune.errors import ConfigError, DataError, MissingExtraError
from hesstune.noise.latent.head import FEWEST, robust_head
from hesstune.noise.latent.observed import Observed
from hesstune.weak.amcl import amcl, outputs, risk_bounds
from hesstune.weak.balance import at_balance
from hesstune.weak.calibrated import calibrated_votes, weighed_counts
from hesstune.weak.choice import WEIGHTED, choose, collapse
from hesstune.weak.dawid_skene import dawid_skene
from hesstune.weak.evidence import vote_counts
from hesstune.weak.features import feature_dawid_skene, soft_dawid_skene
from hesstune.weak.names import LABEL_MODELS
from hesstune.weak.patterns import patterns
from hesstune.weak.votes import ABSTAIN, Votes

__all__ = ["LABEL_MODELS", "Labelled", "crowd_frame", "label", "no_deprecations"]

# The power of latent's posteriors: 1 were right if labelers erred independently, and of the features, too.
TEMPER = 0.5
# Labelers whose numbers are in a sentence.
MOST_SHOWN = 8


@dataclass(frozen=True)
class Labelled:
    """What a label model makes of the votes.

    Attributes:
        model: The label model's name.
        labels: (N,) int64 hard labels; ABSTAIN (−1) where nobody voted.
        posterior: (N, K) rows that sum to 1; uniform where nobody voted.
        details: The model's own numbers, JSON-ready.
    """

    model: str
    labels: NDArray[np.int64]
    posterior: NDArray[np.float64]
    details: dict[str, Any]


def label(
    votes: Votes,
    model: str = "majority",
    *,
    features: ArrayLike | None = None,
    clean: tuple[ArrayLike, ArrayLike] | None = None,
    balance: ArrayLike | None = None,
    delta: float = 0.1,
    seed: int = 0,
) -> Labelled:
    """Combine votes by a label model.

    Args:
        votes: The votes. Labelers that never vote are left out.
        model: `auto` (`latent` where there are features; else `calibrated` where labelers give
            probabilities, or chosen by votes not seen, see `hesstune.weak.choice`), `latent` (votes and
            features, see `hesstune.noise.latent`), `calibrated` (the labelers' probabilities as far as
            they can be believed, see `hesstune.weak.calibrated`), `weighted` (each labeler's votes by its
            accuracy, see `hesstune.weak.evidence`), `majority` (ties drawn by the seed), `soft` (sum of the
            labelers' probabilities, or of votes), `dawid_skene`, `mace` (crowd-kit), `features` (Dawid–Skene
            with a class prior from the nearest features), `soft_features` (tempered soft votes, priors from
            neighbours and a probe), `amcl` (Mazzetto et al. 2021) or `snorkel` (its LabelModel).
        features: (N, D), for `auto`, `latent`, `features` and `soft_features`.
        clean: (rows, true labels) of examples a person has checked, which keep them: needed by `amcl`; used
            by `latent`, `calibrated`, `features` and `soft_features` for the others, too.
        balance: (K,) how often each class is, where that is known: the posteriors are tilted until their
            mean is that, see `hesstune.weak.balance`.
        delta: For `amcl`: probability that its bounds on the labelers' risks fail.
        seed: Seed of ties and restarts.

    Raises:
        ConfigError: If the model is unknown or lacks what it needs.
        DataError: If nobody votes on anything.
        MissingExtraError: If the package behind it is not installed.

    Example:
        >>> label(Votes([[0, 0, 1], [1, 1, 1], [-1, -1, -1]], k=2)).labels.tolist()
        [0, 1, -1]
    """
    one_of("label model", model, LABEL_MODELS)
    heard = np.flatnonzero(votes.ballots.each > 0)
    speaking = np.flatnonzero(votes.coverage > 0)
    if not len(heard):
        raise DataError("no labeler votes on any example; there is nothing to label")
    some = votes.take(heard, speaking)
    call = _Call(
        None if features is None else np.asarray(features)[heard],
        _among(clean, heard, votes),
        None if balance is None else np.asarray(balance, dtype=np.float64),
        delta,
        seed,
    )
    posterior, details = _MODELS[model](some, call)
    posterior, details = _as_told(posterior, details, call)
    whole = np.full((len(votes), votes.k), 1.0 / votes.k)
    whole[heard] = posterior
    labels = np.full(len(votes), ABSTAIN)
    labels[heard] = _argmax(posterior, seed)
    return Labelled(model, labels, whole, details)


@dataclass(frozen=True)
class _Call:
    features: NDArray[np.float64] | None
    clean: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    balance: NDArray[np.float64] | None
    delta: float
    seed: int


def _as_told(
    posterior: NDArray[np.float64], details: dict[str, Any], call: _Call
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Let checked examples keep their labels, and the classes their shares."""
    if call.balance is not None:
        posterior, off = at_balance(posterior, call.balance)
        if off > 0.01:
            said = f"the classes' shares stay up to {off:.2f} off those told: too many examples are certain"
            details = {**details, "reasons": [*details.get("reasons", []), said]}
    if call.clean is not None and len(call.clean[0]):
        posterior = posterior.copy()
        posterior[call.clean[0]] = np.eye(posterior.shape[1])[call.clean[1]]
    return posterior, details


def _among(
    clean: tuple[ArrayLike, ArrayLike] | None, heard: NDArray[np.int64], votes: Votes
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Bring the clean examples' rows to the examples that have votes."""
    if clean is None:
        return None
    rows = integer_labels(clean[0], len(votes), "rows of clean labels")
    true = integer_labels(clean[1], votes.k, "clean labels")
    if len(rows) != len(true) or len(set(rows.tolist())) < len(rows):
        raise DataError(f"{len(true)} clean labels need as many different rows; got {len(rows)}")
    place = np.full(len(votes), -1)
    place[heard] = np.arange(len(heard))
    kept = place[rows] >= 0
    return place[rows][kept], true[kept]


def _argmax(scores: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """Return the best class of each row; ties are drawn by the seed."""
    best = scores >= scores.max(axis=1, keepdims=True) - 1e-12
    draw = np.random.default_rng([seed, 0x71E]).random(scores.shape)
    return np.asarray((best * (1 + draw)).argmax(axis=1), dtype=np.int64)


Answer = tuple[NDArray[np.float64], dict[str, Any]]


def _majority(votes: Votes, call: _Call) -> Answer:
    return votes.counts / votes.counts.sum(axis=1, keepdims=True), {}


def _auto(votes: Votes, call: _Call) -> Answer:
    given = _calibrated if votes.soft is not None else _chosen
    if call.features is None:
        return given(votes, call)
    if len(votes) < FEWEST:
        posterior, details = given(votes, call)
        few = f"{len(votes)} examples are too few to use features: {FEWEST} are needed"
        return posterior, {**details, "reasons": [*details["reasons"], few]}
    looked, found = _latent(votes, call)
    if (lost := collapse(looked, votes.ballots)) is None:
        return looked, found
    posterior, details = given(votes, call)
    return posterior, {**details, "reasons": [*details["reasons"], f"latent refused: {lost}"]}


def _latent(votes: Votes, call: _Call) -> Answer:
    if call.features is None:
        raise ConfigError("the label model latent needs the examples' features: images or texts to look at")
    soft = votes.soft is not None
    said = weighed_counts(votes, call.clean, call.seed) if soft else vote_counts(votes.ballots)
    head = robust_head(call.features, Observed.of(said, votes.k, checked=call.clean), seed=call.seed)
    why = (
        f"latent: votes and features, true classes by EM ({head.choice.candidate.name}); the noise rate of a "
        f"vote is put at {head.truth.channel.rate:.2g}"
    )
    posterior = head.truth.posterior**TEMPER
    posterior /= posterior.sum(axis=1, keepdims=True)
    return posterior, {"chosen": "latent", "reasons": [why], "latent": head.choice.details()}


def _calibrated(votes: Votes, call: _Call) -> Answer:
    found = calibrated_votes(votes, call.clean, call.seed)
    powers = dict(zip(votes.names, np.round(found.power, 3).tolist(), strict=True))
    shown = ", ".join(f"{name} {power:.2g}" for name, power in list(powers.items())[:MOST_SHOWN])
    why = f"calibrated: each labeler's probabilities to a power that the others speak for ({shown})"
    if votes.m == 1 and call.clean is None:
        why = (
            f"calibrated: {votes.names[0]} alone gives probabilities, and nothing tells how sure it may be: "
            "they stay as they are; check some labels by hand (--clean-labels)"
        )
    return found.posterior, {"chosen": "calibrated", "power": powers, "reasons": [why]}


def _weighted(votes: Votes, call: _Call) -> Answer:
    return _chosen(votes, call, WEIGHTED)


def _chosen(votes: Votes, call: _Call, among: tuple[str, ...] | None = None) -> Answer:
    ballots = votes.ballots
    # Classes are held alike unless told: a prior fitted to the votes is theirs who vote most.
    prior = np.full(votes.k, 1 / votes.k) if call.balance is None else call.balance
    choice = choose(ballots, np.log(prior), call.seed, among)
    if np.isnan(choice.evidence.accuracy).all():  # nobody is told apart: the majority vote, or all alike
        return _majority(votes, call)[0], choice.details()
    accuracy = dict(zip(votes.names, np.round(choice.evidence.accuracy, 4).tolist(), strict=True))
    return choice.evidence.posterior(ballots), {**choice.details(), "accuracy": accuracy}


def _soft(votes: Votes, call: _Call) -> Answer:
    total = votes.counts if votes.soft is None else votes.soft.sum(axis=1)
    return total / np.maximum(total.sum(axis=1, keepdims=True), 1e-300), {}


@contextlib.contextmanager
def no_deprecations() -> Iterator[None]:
    """Keep crowd-kit's use of pandas' old keywords from filling the user's screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def crowd_frame(votes: Votes) -> Any:
    """Return the votes as crowd-kit wants them: a frame of rows task, worker, label.

    Raises:
        MissingExtraError: If pandas, which comes with crowd-kit, is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise MissingExtraError("crowd-kit", "noise", "this label model") from None
    rows = votes.ballots
    return pd.DataFrame({"task": rows.example, "worker": rows.labeler, "label": rows.vote})


def _filled(probabilities: Any, votes: Votes) -> NDArray[np.float64]:
    """Bring crowd-kit's frame (tasks by the classes seen) to (N, K)."""
    table = np.zeros((len(votes), votes.k))
    columns = [int(c) for c in probabilities.columns]
    table[np.asarray(probabilities.index, dtype=np.int64)[:, None], columns] = probabilities.to_numpy()
    rows: NDArray[np.float64] = table / table.sum(axis=1, keepdims=True)
    return rows


def _dawid_skene(votes: Votes, call: _Call) -> Answer:
    distinct = patterns(votes)
    posterior, confusion = dawid_skene(distinct.votes, distinct.weight)
    return posterior[distinct.of], {"confusion": np.round(confusion, 4).tolist()}


def _mace(votes: Votes, call: _Call) -> Answer:
    try:
        from crowdkit.aggregation import MACE
    except ImportError:
        raise MissingExtraError("crowd-kit", "noise", "the label model mace") from None
    with no_deprecations():
        found = MACE(random_state=call.seed).fit_predict_proba(crowd_frame(votes))
    return _filled(found, votes), {}


def _snorkel(votes: Votes, call: _Call) -> Answer:
    try:
        from snorkel.labeling.model import LabelModel
    except ImportError:
        raise MissingExtraError("snorkel", "snorkel", "the label model snorkel") from None
    import torch

    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):  # snorkel seeds the global generators
        model = LabelModel(cardinality=votes.k, verbose=False)
        model.fit(votes.table, n_epochs=500, seed=call.seed, progress_bar=False)
    np.random.set_state(state)  # noqa: NPY002
    return np.asarray(model.predict_proba(votes.table)), {"weights": model.get_weights().tolist()}


def _features(votes: Votes, call: _Call) -> Answer:
    if call.features is None:
        raise ConfigError("the label model features needs the examples' features; give data with images")
    found = feature_dawid_skene(votes, call.features, clean=call.clean)
    return found.posterior, {"confusion": np.round(found.confusion, 4).tolist()}


def _soft_features(votes: Votes, call: _Call) -> Answer:
    if call.features is None:
        raise ConfigError("the label model soft_features needs the examples' features")
    return soft_dawid_skene(votes, call.features, clean=call.clean, seed=call.seed), {}


def _amcl(votes: Votes, call: _Call) -> Answer:
    if call.clean is None or not len(call.clean[0]):
        raise ConfigError("the label model amcl needs some clean labels to know the labelers' risks by")
    rows, true = call.clean
    rest = np.setdiff1d(np.arange(len(votes)), rows)
    lower, upper = risk_bounds(outputs(votes)[rows], true, len(rest), call.delta)
    found = amcl(votes.take(rest), lower, upper)
    posterior = np.einsum("nmk,m->nk", outputs(votes), found.weights)
    posterior = posterior / posterior.sum(axis=1, keepdims=True)
    return posterior, {
        "weights": dict(zip(votes.names, np.round(found.weights, 6).tolist(), strict=True)),
        "worst_case_brier_risk": found.risk,
        "delta": call.delta,
    }


_MODELS: dict[str, Callable[[Votes, _Call], Answer]] = {
    "auto": _auto,
    "weighted": _weighted,
    "latent": _latent,
    "majority": _majority,
    "soft": _soft,
    "calibrated": _calibrated,
    "dawid_skene": _dawid_skene,
    "mace": _mace,
    "snorkel": _snorkel,
    "features": _features,
    "soft_features": _soft_features,
    "amcl": _amcl,
}
