"""`hesstune.label_data`: from votes to labels and their noise matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.data.examples import MODEL_LABEL
from hesstune.data.labels import GIVEN, SOURCE, read_clean_labels
from hesstune.errors import ConfigError, DataError, NoiseMatrixError, RunError, listed
from hesstune.labeling.domain_labelers import Training, named_domains, train_labelers
from hesstune.labeling.options import LabelOptions, needs_features
from hesstune.labeling.sources import Target, read_sources
from hesstune.noise.estimate import Estimate, from_posterior, well_conditioned
from hesstune.noise.latent.channel import Observed
from hesstune.noise.latent.em import latent_truth
from hesstune.noise.latent.head import MIN_EXAMPLES
from hesstune.noise.latent.two_views import counted, rate_interval
from hesstune.noise.matrix import NEAR_GUESSING, guessing_rate
from hesstune.noise.probes import Reduction
from hesstune.options import make_options, takes_options
from hesstune.runtime.device import pick_device
from hesstune.storage.files import json_writer, made_folder, replace_files
from hesstune.storage.tables import csv_writer
from hesstune.weak.dependence import dependence_note
from hesstune.weak.label_models import Labelled, label, label_model_class, read_balance
from hesstune.weak.votes import ABSTAIN, Votes, patterns


@dataclass(frozen=True)
class Labelling:
    """Labels made from votes.

    Attributes:
        target: The examples.
        classes: Class names, those that some labeler votes for.
        votes: Every vote.
        labels: (N,) int64 labels; −1 where nobody votes.
        posterior: (N, K) P(class | votes), the soft labels.
        kept: Rows of the target's test part, whose label is the true one and in no estimate.
        model: The label model.
        noise: The estimated noise matrix of the labels.
        rate: The estimated share of wrong labels among those made: the label model's own estimate.
        rate_interval: An interval for that share (`label_rate_interval`).
        labelers: A row a labeler, as Snorkel's analysis; `accuracy` where the truth is known.
        majority: (N,) the baseline: majority vote.
        notes: What a reader should know, in sentences.
    """

    target: Target
    classes: list[str]
    votes: Votes
    labels: NDArray[np.int64]
    posterior: NDArray[np.float64]
    kept: NDArray[np.int64]
    model: str
    noise: Estimate
    rate: float
    rate_interval: tuple[float, float]
    labelers: list[dict[str, Any]]
    majority: NDArray[np.int64]
    notes: list[str] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        """One id an example."""
        return self.target.ids

    def accuracy(self, labels: NDArray[np.int64]) -> float | None:
        """Return the share of labels that are true, where the truth is known; None where it is nowhere."""
        true = self.target.true
        if true is None:
            return None
        index = {name: i for i, name in enumerate(self.classes)}
        # −2: the true class is one that nobody votes for.
        known = np.array([index.get(name, -2) if name else ABSTAIN for name in true], dtype=np.int64)
        judged = (known != ABSTAIN) & (labels != ABSTAIN)
        judged[self.kept] = False
        return float((labels[judged] == known[judged]).mean()) if judged.any() else None

    @property
    def wrong_labels(self) -> tuple[int, int, int]:
        """The expected number of wrong labels among those made, and the ends of its interval."""
        made = int((self.labels != ABSTAIN).sum()) - len(self.kept)
        return counted(self.rate, self.rate_interval, made)

    def _wrong(self) -> dict[str, Any]:
        """Return the estimated share and number of wrong labels, JSON-ready."""
        counts = dict(zip(("expected", "low", "high"), self.wrong_labels, strict=True))
        return {"rate": self.rate, "rate_interval": list(self.rate_interval), "wrong_labels": counts}

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready summary."""
        made = int((self.labels != ABSTAIN).sum())
        return {
            "examples": len(self.labels),
            "labelled": made,
            "left_out": len(self.labels) - made,
            "test_labels_kept": len(self.kept),
            "classes": self.classes,
            "label_model": self.model,
            "accuracy": self.accuracy(self.labels),
            "majority_accuracy": self.accuracy(self.majority),
            **self._wrong(),
            "labelers": self.labelers,
            "noise_matrix": self.noise.to_dict(),
            "notes": self.notes,
        }

    def save(self, path: str | Path, noise_matrix: str | Path | None = None, overwrite: bool = False) -> Path:
        """Write labels.csv and the noise matrix; return the matrix's path (by default beside the labels).

        Columns: id, image or text, label, label_source (`label_model`; `given` in a test part, whose labels
        are those of the data), split and true_label where known, p_CLASS (the soft label) and
        vote_LABELER, but for a crowd's. Examples that nobody votes on are left out.

        Raises:
            RunError: If a file exists and `overwrite` is not set, or cannot be written.
        """
        path = Path(path)
        beside = noise_path(path) if noise_matrix is None else Path(noise_matrix)
        check_free(path, beside, overwrite)
        for folder in (path.parent, beside.parent):
            made_folder(folder)
        columns = self.target.columns(path.parent, self.classes, self.votes.names)
        header = ["id", *columns, "label", SOURCE]
        header += ["split"] if self.target.parts is not None else []
        header += ["true_label"] if self.target.true is not None else []
        header += [f"p_{name}" for name in self.classes] + [f"vote_{name}" for name in self._shown()]
        # Votes err on the same hard examples: their matrix is a mean, whatever it was estimated by.
        record = {**self.noise.to_dict(), "origin": "instance_dependent", "classes": self.classes}
        record |= self._wrong()
        record |= {"label_model": self.model, "labelers": self.labelers}
        replace_files({path: csv_writer(header, self._rows(columns)), beside: json_writer(record)})
        return beside

    def _rows(self, columns: dict[str, list[str]]) -> Iterator[list[str]]:
        names = np.array([*self.classes, ""], dtype=object)
        shown = names[self.labels].tolist()
        extra = [column for column in (self.target.parts, self.target.true) if column is not None]
        tails, of = self._tails()
        sources = [MODEL_LABEL] * len(self.labels)
        for n in self.kept.tolist():
            sources[n] = GIVEN if self.target.sources is None else self.target.sources[n]
        for n in np.flatnonzero(self.labels != ABSTAIN).tolist():
            given = [column[n] for column in columns.values()]
            tail = [*(column[n] for column in extra), *tails[of[n]]]
            yield [self.ids[n], *given, shown[n], sources[n], *tail]

    def _shown(self) -> list[str]:
        """Return the labelers whose votes are written: those of a crowd stay in its own file."""
        return self.votes.names if self.votes.is_table else []

    def _tails(self) -> tuple[list[list[str]], NDArray[np.int64]]:
        """Return soft labels and votes as text: a row a pattern of votes where these determine both."""
        if not self.votes.is_table:
            return [[f"{p:.6g}" for p in row] for row in self.posterior.tolist()], np.arange(len(self.labels))
        distinct = patterns(self.votes)
        first = np.unique(distinct.of, return_index=True)[1]
        posterior, of = self.posterior[first], distinct.of
        table = distinct.votes.table
        if not np.array_equal(posterior[of], self.posterior):
            posterior, of, table = self.posterior, np.arange(len(self.labels)), self.votes.table
        names = [*self.classes, ""]
        return [
            [f"{p:.6g}" for p in row] + [names[vote] for vote in votes]
            for row, votes in zip(posterior.tolist(), table.tolist(), strict=True)
        ], of


def noise_path(path: Path) -> Path:
    """Return where the noise matrix of a file of labels goes: labels.csv -> labels.noise.json."""
    return path.parent / f"{path.stem}.noise.json"


def check_free(path: Path, noise: Path, overwrite: bool) -> None:
    """Raise RunError if a file is in the way."""
    if path == noise:
        raise RunError(f"labels and noise matrix cannot both go to {path}; give two paths")
    for file in (path, noise):
        if file.is_dir():
            raise RunError(f"{file} is a folder; give the path of a file")
        if file.exists() and not overwrite:
            raise RunError(f"{file} exists; choose another --out or give --overwrite")


@takes_options(LabelOptions)
def label_data(target: str | None = None, **options: Any) -> Labelling:
    """Make labels from votes, and estimate the labels' noise matrix; no true label is used for either.

    Votes come from labelers trained on other data, from labeling functions, from a CSV file, or from all
    of these. Examples that nobody votes on get no label; a class that nobody votes for is left out.

    Args:
        target: What to label, as in `LabelOptions`.
        **options: Options of `LabelOptions`, by name.

    Raises:
        HesstuneError: If an option or a vote is wrong, or nobody votes.

    Example:
        >>> found = label_data("csv:reviews.csv", functions="py:rules:ALL")  # doctest: +SKIP
        >>> found.save("labels.csv")                                         # doctest: +SKIP
    """
    asked = make_options(LabelOptions, {"target": target, **options})
    examples, sources = read_sources(asked)
    needs = needs_features(asked.label_model) or needs_features(asked.noise_from)
    if asked.label_model == "auto" and not asked.labelers and examples.has_inputs:
        needs = True  # the label model latent looks at the examples
    if asked.model is not None and not (asked.labelers or needs):
        raise ConfigError(
            "--model says whose features of the examples count, and these votes are of no images or texts: "
            "give --target with images or texts, or leave --model out"
        )
    trained, features = None, None
    if asked.labelers or needs:
        if not examples.has_inputs:
            raise ConfigError(
                "labelers and features need examples to look at: give --target with images or texts"
            )
        how = Training(
            asked.labeler,
            asked.model or ("minilm" if examples.texts is not None else "efficientnet_lite0"),
            asked.image_size,
            asked.epochs,
            asked.max_length,
            asked.seed,
            pick_device(asked.device),
            asked.head,
        )
        looked = examples.examples(asked.image_size)
        trained, features = train_labelers(named_domains(asked.labelers), looked, how)
        if needs and features is None:
            _, features = train_labelers((), examples.examples(asked.image_size), replace(how, kind="probe"))
    sources = replace(sources, trained=trained if asked.labelers else None, threshold=asked.threshold)
    names = list(asked.classes) or sources.classes(examples)
    every, notes = sources.votes(examples, names)
    made = _combined(examples, names, every, sources.own_accuracy(), features, asked)
    return replace(made, notes=[*notes, *made.notes])


def _combined(
    target: Target,
    classes: list[str],
    votes: Votes,
    own_accuracy: dict[str, float | None],
    features: NDArray[np.float32] | None,
    asked: LabelOptions,
) -> Labelling:
    model, noise_from, seed = asked.label_model, asked.noise_from, asked.seed
    notes = votes.problems(classes)
    rows = votes.analysis(_known(target, classes))
    for row in rows:
        row["polarity"] = [classes[c] for c in row["polarity"]]
        if row["labeler"] in own_accuracy:
            row["own_accuracy"] = own_accuracy[row["labeler"]]
    classes, votes = _voted_for(classes, votes)
    kept, outside = _test_rows(target, classes)
    if len(outside):
        notes.append(
            f"{len(outside)} test examples of classes that nobody votes for are left out: test accuracy "
            "does not count them"
        )
    open_rows = np.setdiff1d(np.arange(len(target)), np.concatenate([kept, outside]))
    clean = _clean(asked.checked_labels, classes, target, open_rows)
    some = votes.take(open_rows) if len(open_rows) < len(votes) else votes
    near = None if features is None else features[open_rows]
    # Labelers trained on other domains err together, so that none can be calibrated by the others.
    how = "soft" if asked.labelers and model == "auto" else model
    given = _Given(some, near, clean, _balance(asked.class_balance, classes, some), seed)
    made = given.label(how)
    notes += made.details.get("reasons", [])
    noise = _noise(given, made, noise_from)
    labels, posterior = np.full(len(target), ABSTAIN), np.full((len(target), len(classes)), 1 / len(classes))
    labels[open_rows], posterior[open_rows] = made.labels, made.posterior
    majority = labels.copy()
    majority[open_rows] = label(some, "majority", seed=seed).labels
    if len(kept):
        assert target.true is not None
        labels[kept] = [classes.index(target.true[n]) for n in kept]
        posterior[kept] = np.eye(len(classes))[labels[kept]]
        notes.append(f"{len(kept)} test examples keep their true labels")
    notes += noise.notes
    rate = float(noise.details["rate"])
    interval = label_rate_interval(some, near, rate, seed)
    return Labelling(
        target, classes, votes, labels, posterior, kept, _chosen(made), noise, rate, interval, rows, majority,
        notes,
    )  # fmt: skip


@dataclass(frozen=True)
class _Given:
    """What every label model is given.

    Attributes:
        votes: The votes of the examples to be labelled.
        features: (N, D) features of these examples, or None.
        clean: Rows and true labels of checked examples, or None.
        balance: (K,) shares of the classes, or None.
        seed: Of ties and restarts.
    """

    votes: Votes
    features: NDArray[np.float32] | None
    clean: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    balance: NDArray[np.float64] | None
    seed: int

    def label(self, model: str) -> Labelled:
        """Return the labels by a label model."""
        return label(
            self.votes,
            model,
            features=self.features,
            clean=self.clean,
            balance=self.balance,
            seed=self.seed,
        )


def _chosen(made: Labelled) -> str:
    """Return the name of the label model, and of what `auto` or `weighted` chose."""
    chosen = made.details.get("chosen", made.model)
    return made.model if chosen == made.model else f"{made.model}: {chosen}"


def _balance(told: Sequence[str], classes: list[str], votes: Votes) -> NDArray[np.float64] | None:
    """Return the classes' shares as told, or None."""
    if not told:
        return None
    counts = votes.counts[votes.ballots.each > 0]
    most = counts >= counts.max(axis=1, keepdims=True)
    return read_balance(told, classes, (most / most.sum(axis=1, keepdims=True)).mean(axis=0))


def _known(target: Target, classes: list[str]) -> NDArray[np.int64] | None:
    """Return the true labels as indices where all are known and of these classes."""
    if target.true is None:
        return None
    index = {name: i for i, name in enumerate(classes)}
    strange = set(target.true) - set(classes) - {""}
    if strange:
        raise DataError(
            f"the data's own label '{sorted(strange)[0]}' is none of the classes {listed(classes)}; "
            "name all in --classes"
        )
    known = np.array([index.get(name, ABSTAIN) for name in target.true], dtype=np.int64)
    return None if (known == ABSTAIN).all() else known


def _voted_for(classes: list[str], votes: Votes) -> tuple[list[str], Votes]:
    """Leave out the classes that nobody votes for: their labels' noise could not be inverted."""
    absent = votes.unvoted
    if not len(absent):
        return classes, votes
    present = np.setdiff1d(np.arange(votes.k), absent)
    if len(present) < 2:
        named = listed(classes[i] for i in present) or "none"
        raise DataError(
            f"labelers vote for one class only ({named}); labels of two classes at least are needed"
        )
    return [classes[i] for i in present], votes.among(present)


def _test_rows(target: Target, classes: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the test examples whose true label is known and stays, and those of classes left out."""
    if target.parts is None or target.true is None:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    known = [
        n
        for n, (part, name) in enumerate(zip(target.parts, target.true, strict=True))
        if part == "test" and name
    ]
    inside = [n for n in known if target.true[n] in classes]
    outside = sorted(set(known) - set(inside))
    return np.array(inside, dtype=np.int64), np.array(outside, dtype=np.int64)


def _clean(
    path: str | Path | None, classes: list[str], target: Target, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    if path is None:
        return None
    given = read_clean_labels(path, classes)
    place = {target.ids[n]: at for at, n in enumerate(rows.tolist())}
    strange = [example for example in given if example not in place]
    if strange:
        raise DataError(
            f"{len(strange)} of the {len(given)} clean labels are of no example to be labelled, such as "
            f"'{strange[0]}'"
        )
    return np.array([place[i] for i in given], dtype=np.int64), np.array(list(given.values()), dtype=np.int64)


# Inverse penalty of the probe of the majority vote.
PROBE_STRENGTH = 0.03


def _beside_guessing(rate: float, k: int, model: str) -> list[str]:
    """Say where a matrix holds that labels are as good as guessed; refuse it of models that lose classes.

    Raises:
        NoiseMatrixError: Of a model with parameters for each labeler, which may have taken one class for all.
    """
    guessing = guessing_rate(k)
    if rate <= NEAR_GUESSING * guessing:
        return []
    said = (
        f"by the label model {model}, {rate:.0%} of the labels would be wrong, and guessing is wrong on "
        f"{guessing:.0%}"
    )
    if label_model_class(model).keeps_classes:
        return [f"{said}: these votes say next to nothing; check some labels by hand (--checked-labels)"]
    raise NoiseMatrixError(
        f"{said}: it has lost the classes; take another (--label-model auto, --noise-from auto), or check "
        "some labels by hand (--checked-labels)"
    )


def label_rate_interval(
    votes: Votes, features: NDArray[np.float32] | None, rate: float, seed: int = 0
) -> tuple[float, float]:
    """Return an interval for the share of wrong labels among those made of votes.

    A label model's own estimate is too low if labelers err together. So the interval begins at the lower end
    of `two_views.rate_interval` and reaches up to the largest of the rate, the share of pairs of votes on an
    example that differ, and, with features, the share of examples whose majority vote a cross-fitted probe of
    the majority votes contradicts. Without any of these it reaches up to the rate of guessing.

    Args:
        votes: The votes.
        features: (N, D) features of the examples, or None.
        rate: The label model's estimate.
        seed: Of ties and folds.
    """
    counts = votes.counts
    each = counts.sum(axis=1)
    pairs, seen = float((each * (each - 1)).sum()), []
    if pairs:
        seen.append(1 - float((counts * (counts - 1)).sum()) / pairs)
    rows = np.flatnonzero(votes.ballots.each > 0)
    if features is not None and len(rows) >= MIN_EXAMPLES:
        labels = label(votes.take(rows), "majority", seed=seed).labels
        x = Reduction.of(features[rows]).apply(features[rows])
        observed = Observed.of(labels, votes.k)
        plain = latent_truth(x, observed, strength=PROBE_STRENGTH, shape="none", seed=seed)
        seen.append(float((plain.probabilities.argmax(axis=1) != labels).mean()))
    most = max(rate, *seen) if seen else guessing_rate(votes.k)
    low = rate_interval(rate, most, len(rows))[0]
    return low, max(rate_interval(most, most, len(rows))[1], rate)


def _noise(given: _Given, made: Labelled, noise_from: str) -> Estimate:
    """Estimate the noise matrix of the labels that a label model made, from a label model's posterior.

    Args:
        given: What label models are given.
        made: The labels.
        noise_from: The label model whose posterior counts; `auto`: that of the labels themselves, but for
            `majority` and `soft`, whose posteriors are no probabilities: of `soft_features` if there are
            features, else, or if that loses the classes, of `weighted`.
    """
    if noise_from != "auto":
        return _noise_by(given, made, noise_from)
    if label_model_class(made.model).is_calibrated:
        return _noise_by(given, made, made.model)
    if given.features is None:
        return _noise_by(given, made, "weighted")
    try:
        return _noise_by(given, made, "soft_features")
    except NoiseMatrixError as error:
        found = _noise_by(given, made, "weighted")
        reason = str(error).partition(";")[0]
        return replace(found, notes=(*found.notes, f"the noise matrix is that of weighted: {reason}"))


def _noise_by(given: _Given, made: Labelled, name: str) -> Estimate:
    """Estimate the noise matrix of labels from the posterior of a label model, by its name."""
    votes, labels = given.votes, made.labels
    judge = made if name == made.model else given.label(name)
    posterior = judge.posterior
    rows = np.flatnonzero(labels != ABSTAIN)
    found = from_posterior(posterior[rows], labels[rows], f"labelmodel ({_chosen(judge)})")
    notes = [*found.notes, *_beside_guessing(found.matrix.rate, votes.k, name)]
    notes += dependence_note(votes, posterior)
    speaking = int((votes.coverage > 0).sum())
    if speaking < 3 and not needs_features(name):
        notes.append(
            f"{speaking} labelers do not determine their own error rates: the noise matrix is a guess; three "
            "independent ones are the least, or features (--noise-from soft_features), or checked labels"
        )
    matrix, ridge = well_conditioned(found.matrix)
    if ridge:
        shown = "singular" if not np.isfinite(found.condition) else f"of condition {found.condition:.3g}"
        notes.append(
            f"the estimated noise matrix was {shown}; (1 - r)F + rI with r = {ridge:g} is what is written"
        )
    rate = float(1 - posterior[rows, labels[rows]].mean())
    return replace(
        found, matrix=matrix, smoothing=ridge, notes=tuple(notes), details={**found.details, "rate": rate}
    )
