"""`hesstune.label_data`: from votes to labels and their noise matrix."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from hesstune.data.examples import MODEL_LABEL
from hesstune.data.labels import GIVEN, SOURCE, alike, read_checked_labels
from hesstune.errors import ConfigError, DataError, NoiseMatrixError, RunError, listed
from hesstune.labeling.options import LabelOptions, needs_features, size_for
from hesstune.labeling.review import contents_of
from hesstune.labeling.sources import Objects, Target, combined, read_sources
from hesstune.labeling.trained_annotators import TrainedAnnotator, train_annotators, written_votes
from hesstune.noise.estimate import Estimate, from_posterior, well_conditioned
from hesstune.noise.latent.channel import Checked, Observed
from hesstune.noise.latent.em import latent_truth
from hesstune.noise.latent.head import MIN_EXAMPLES
from hesstune.noise.latent.two_views import counted, rate_interval
from hesstune.noise.matrix import NEAR_GUESSING, NoiseMatrix, guessing_rate
from hesstune.noise.probes import Reduction
from hesstune.options import make_options, takes_options
from hesstune.runs.keywords import LabelKeywords
from hesstune.storage.files import json_writer, made_folder, replace_files
from hesstune.storage.tables import csv_writer
from hesstune.weak.dependence import dependence_note
from hesstune.weak.label_models import Labelled, label, label_model_class, majority_vote, read_balance
from hesstune.weak.vote_files import classes_named
from hesstune.weak.vote_sources import WrittenVotes
from hesstune.weak.votes import ABSTAIN, Votes


@dataclass(frozen=True)
class Labelling:
    """Labels made from votes.

    Attributes:
        target: The examples.
        classes: Names of the classes with votes.
        votes: Every vote.
        labels: (N,) int64 labels; −1 without a vote.
        posterior: (N, K) P(class | votes), the soft labels.
        kept: Rows of the target's test part, which keep their true label and are in no estimate.
        model: The label model.
        noise: The estimated noise matrix of the labels.
        rate: The estimated share of wrong labels among those made: the label model's own estimate.
        rate_interval: An interval for that share (`label_rate_interval`).
        annotators: A row for each annotator, as Snorkel's analysis; `accuracy` if true labels are known.
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
    annotators: list[dict[str, Any]]
    majority: NDArray[np.int64]
    notes: list[str] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        """One id an example."""
        return self.target.ids

    def accuracy(self, labels: NDArray[np.int64]) -> float | None:
        """Return the share of labels that are true; None if no true label is known."""
        true = self.target.true
        if true is None:
            return None
        index = {name: i for i, name in enumerate(self.classes)}
        # −2: the true class has no votes.
        known = np.array([index.get(name, -2) if name else ABSTAIN for name in true], dtype=np.int64)
        rows = (known != ABSTAIN) & (labels != ABSTAIN)
        rows[self.kept] = False
        return float((labels[rows] == known[rows]).mean()) if rows.any() else None

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
            "labelers": self.annotators,
            "noise_matrix": self.noise.to_dict(),
            "notes": self.notes,
        }

    def save(self, path: str | Path, noise_matrix: str | Path | None = None, overwrite: bool = False) -> Path:
        """Write labels.csv and the noise matrix; return the matrix's path (by default beside the labels).

        Columns: id, image or text, label, label_source (`label_model`; `given` in a test part, which keeps
        the labels of the data), split and true_label if known, p_CLASS (the soft label) and
        vote_ANNOTATOR, except for a crowd. Examples without votes are left out.

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
        # The votes of a crowd stay in its own file.
        shown = self.votes.names if self.votes.is_table else []
        header += [f"p_{name}" for name in self.classes] + [f"vote_{name}" for name in shown]
        # Votes err on the same hard examples: their matrix is a mean, whatever it was estimated by.
        record = {**self.noise.to_dict(), "origin": "instance_dependent", "classes": self.classes}
        record |= self._wrong()
        record |= {"label_model": self.model, "labelers": self.annotators}
        replace_files({path: csv_writer(header, self._rows(columns)), beside: json_writer(record)})
        return beside

    def _rows(self, columns: dict[str, list[str]]) -> Iterator[list[str]]:
        names = np.array([*self.classes, ""], dtype=object)
        parts = [column for column in (self.target.parts, self.target.true) if column is not None]
        sources = [MODEL_LABEL] * len(self.labels)
        for n in self.kept.tolist():
            sources[n] = GIVEN if self.target.sources is None else self.target.sources[n]
        for n in np.flatnonzero(self.labels != ABSTAIN).tolist():
            inputs, more = ([column[n] for column in own] for own in (columns.values(), parts))
            soft = [f"{p:.6g}" for p in self.posterior[n].tolist()]
            votes = names[self.votes.table[n]] if self.votes.is_table else ()
            yield [self.ids[n], *inputs, names[self.labels[n]], sources[n], *more, *soft, *votes]


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
def label_data(
    target: Any = None,
    votes: Any = None,
    functions: str | Callable[..., object] | Sequence[Callable[..., object]] | None = None,
    **options: Unpack[LabelKeywords],
) -> Labelling:
    """Make labels from votes, and estimate the labels' noise matrix; no true label is used for either.

    Votes come from annotators trained on other data, from labeling functions, from a file, or from all of
    these. Examples without votes get no label; a class without votes is left out.

    Args:
        target: What to label: a string as on the command line, a pandas DataFrame, a list of texts, (X, y)
            with labels for tables of accuracy alone, a map-style data set, or embeddings, (N, D); or all
            options as `LabelOptions`, which type checkers know.
        votes: A file of votes; a DataFrame with a row for each example (a column for each annotator, and `id`
            or an index) or with a row for each vote; or an array, (N, annotators), of class indices or names,
            −1, NaN or None if an annotator abstains. Rows without ids are those of the target, in order.
        functions: Labeling functions: callables, which get an example as a mapping (a DataFrame's row, with
            its own values) and return a class or None; or `py:module:name`.
        **options: Options of `LabelOptions`, by name.

    Raises:
        HesstuneError: If an option or a vote is wrong, or there are no votes.

    Example:
        >>> found = label_data("csv:reviews.csv", functions="py:rules:ALL")  # doctest: +SKIP
        >>> found.save("labels.csv")                                         # doctest: +SKIP
    """
    asked, objects = _asked(target, votes, functions, options)
    examples, sources, notes = read_sources(asked, objects)
    trained, features = _looked_at(examples, asked)
    named = {name for name in examples.true or () if name} | {c for own in trained for c in own.classes}
    if trained:
        sources = [written_votes(trained, asked.threshold), *sources]
    classes, every, more = _side_by_side(asked, examples, sources, named)
    notes += more
    annotators = every.analysis(_true_labels(examples, classes))
    own_accuracy = {own.name: own.own_accuracy for own in trained}
    for row in annotators:
        row["polarity"] = [classes[c] for c in row["polarity"]]
        if row["labeler"] in own_accuracy:
            row["own_accuracy"] = own_accuracy[row["labeler"]]
    classes, every = _with_votes(classes, every)

    kept, outside = _test_rows(examples, classes)
    if len(outside):
        notes.append(
            f"{len(outside)} test examples of classes without votes are left out: test accuracy does not "
            "count them"
        )
    checked, removed, more = _checked_labels(asked.checked_labels, classes, examples)
    notes += more
    kept = np.setdiff1d(kept, removed)
    rows = np.setdiff1d(np.arange(len(examples)), np.concatenate([kept, outside, removed]))
    some, near = every.take(rows), None if features is None else features[rows]
    fit = partial(
        label,
        some,
        features=near,
        clean=_checked_rows(checked, rows, examples, asked.checked_labels),
        balance=_balance(asked.class_balance, classes, some),
        seed=asked.seed,
    )
    # Annotators trained on other domains err together, so that none can be calibrated by the others.
    made = fit("soft" if trained and asked.label_model == "auto" else asked.label_model)
    noise = _noise(fit, made, asked.noise_from, some, near is not None)
    noise = of_one_annotator(noise, some, near is not None)
    rate = float(noise.details["rate"])
    interval = label_rate_interval(some, near, rate, asked.seed)

    labels, posterior = (
        np.full(len(examples), ABSTAIN),
        np.full((len(examples), len(classes)), 1 / len(classes)),
    )
    labels[rows], posterior[rows] = made.labels, made.posterior
    majority = labels.copy()
    majority[rows] = majority_vote(some, asked.seed)
    notes += made.details.get("reasons", [])
    if len(kept):
        assert examples.true is not None
        labels[kept] = [classes.index(examples.true[n]) for n in kept]
        posterior[kept] = np.eye(len(classes))[labels[kept]]
        notes.append(f"{len(kept)} test examples keep their true labels")
    return Labelling(
        examples, classes, every, labels, posterior, kept, _chosen(made), noise, rate, interval, annotators,
        majority, [*notes, *noise.notes],
    )  # fmt: skip


# Objects that are given in place of texts are named so in the options.
IN_MEMORY = "memory"


def _asked(
    target: Any, votes: Any, functions: Any, options: Mapping[str, Any]
) -> tuple[LabelOptions, Objects]:
    """Return the options, and the objects that are given in place of texts."""
    given = target.given() if isinstance(target, LabelOptions) else {"target": target}
    given |= {name: own for name, own in (("votes", votes), ("functions", functions)) if own is not None}
    objects = {
        name: given[name]
        for name in ("target", "votes", "functions")
        if given.get(name) is not None and not isinstance(given[name], str | os.PathLike)
    }
    asked = make_options(LabelOptions, {**given, **dict.fromkeys(objects, IN_MEMORY), **options})
    if "functions" in objects:
        own = objects["functions"]
        called = [own] if callable(own) else list(own) if isinstance(own, list | tuple) else []
        if not called or not all(callable(function) for function in called):
            raise ConfigError(
                f"functions must be callables, one or a list, or py:module:name; got {type(own).__name__}"
            )
        objects["functions"] = called
    return asked, Objects(**objects)


def _side_by_side(
    asked: LabelOptions, examples: Target, sources: Sequence[WrittenVotes], named: set[str]
) -> tuple[list[str], Votes, list[str]]:
    """Return the classes, named by the options or by votes and other labels, the votes, and notes."""
    classes = list(asked.classes)
    if not classes:
        voted = {name for source in sources for name in source.classes}
        classes = classes_named(named, voted, len(examples), "the table of votes")
    every, notes = combined(sources, classes, examples)
    return classes, every, [*notes, *alike(classes), *every.problems(classes)]


def describe_votes(asked: LabelOptions) -> tuple[list[str], dict[str, Any]]:
    """Read examples and votes, and return what they hold in sentences, and as a JSON-ready record."""
    examples, sources, notes = read_sources(asked)
    facts: dict[str, Any] = {"examples": len(examples), "annotators": 0, "votes": 0, "classes": []}
    lines = [f"{len(examples)} examples"]
    if sources:
        known = {name for name in examples.true or () if name}
        classes, every, more = _side_by_side(asked, examples, sources, known)
        counts = {"annotators": len(every.per_annotator), "votes": int(every.per_annotator.sum())}
        facts |= {**counts, "classes": classes}
        lines[0] += f", {counts['votes']} votes of {counts['annotators']} annotators"
        lines += [f"classes: {listed(classes)}"]
        notes = [*notes, *more]
    if asked.labelers:
        lines.append(f"annotators to be trained: {', '.join(asked.labelers)}")
    return [*lines, *notes], {**facts, "notes": notes}


def _looked_at(
    target: Target, asked: LabelOptions
) -> tuple[list[TrainedAnnotator], NDArray[np.float32] | None]:
    """Return the annotators trained on other domains, and the target's features if they are needed."""
    needs = needs_features(asked.label_model) or needs_features(asked.noise_from)
    # The label model `auto` uses features if there are images or texts.
    needs |= asked.label_model == "auto" and not asked.labelers and target.has_inputs
    if target.vectors is not None and not asked.labelers and asked.model is None:
        return [], target.vectors.numbers(np.arange(len(target)))
    if not (asked.labelers or needs):
        if asked.model is not None:
            raise ConfigError(
                "--model is the network for features of the examples, and these votes are of no images or "
                "texts: give --target with images or texts, or leave --model out"
            )
        return [], None
    if not target.has_inputs:
        raise ConfigError("--labelers and features need images or texts: give --target with these")
    return train_annotators(
        target.examples(size_for(asked.model, asked, target.texts is not None)), asked, needs
    )


def _chosen(made: Labelled) -> str:
    """Return the name of the label model, and of what `auto` or `weighted` chose."""
    chosen = made.details.get("chosen", made.model)
    return made.model if chosen == made.model else f"{made.model}: {chosen}"


def _balance(given: Sequence[str], classes: list[str], votes: Votes) -> NDArray[np.float64] | None:
    """Return the classes' shares, or None if none are given."""
    if not given:
        return None
    counts = votes.counts[votes.per_example > 0]
    most = counts >= counts.max(axis=1, keepdims=True)
    return read_balance(given, classes, (most / most.sum(axis=1, keepdims=True)).mean(axis=0))


def _true_labels(target: Target, classes: list[str]) -> NDArray[np.int64] | None:
    """Return the true labels as indices, ABSTAIN if unknown; None if none is known."""
    index = {name: i for i, name in enumerate(classes)}
    strange = set(target.true or ()) - set(classes) - {""}
    if strange:
        raise DataError(
            f"the data's own label '{sorted(strange)[0]}' is none of the classes {listed(classes)}; "
            "name all in --classes"
        )
    known = np.array([index.get(name, ABSTAIN) for name in target.true or ()], dtype=np.int64)
    return known if (known != ABSTAIN).any() else None


def _with_votes(classes: list[str], votes: Votes) -> tuple[list[str], Votes]:
    """Leave out the classes without votes: their labels' noise could not be inverted."""
    present = np.setdiff1d(np.arange(votes.k), votes.unvoted)
    if len(present) < 2:
        shown = listed(classes[i] for i in present) or "none"
        raise DataError(
            f"annotators vote for one class only ({shown}); labels of two classes at least are needed"
        )
    if len(present) == votes.k:
        return classes, votes
    return [classes[i] for i in present], votes.among(present)


def _test_rows(target: Target, classes: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the test examples that keep their true label, and those of classes that were left out."""
    names = zip(target.parts or (), target.true or (), strict=False)
    known = {n: name for n, (part, name) in enumerate(names) if part == "test" and name}
    inside = np.array([n for n, name in known.items() if name in classes], dtype=np.int64)
    return inside, np.array([n for n, name in known.items() if name not in classes], dtype=np.int64)


def _checked_labels(
    path: str | None, classes: list[str], examples: Target
) -> tuple[dict[str, int], NDArray[np.int64], list[str]]:
    """Return {id: class} of checked labels of a file, or that the data marks; the rows removed; and notes."""
    if path is None:
        marked = {name: classes.index(y) for name, y in examples.checked.items() if y in classes}
        return marked, np.array([], dtype=np.int64), []
    found = read_checked_labels(path, classes)
    decided = [] if found.decisions is None else found.decisions.by_id
    known = set(decided).intersection(examples.ids)
    contents = contents_of(examples, [name for name in decided if name in known])
    # The labels that were reviewed are not those that votes make: they are not compared.
    true, removed, notes = found.among({name: ("", contents.get(name, "")) for name in examples.ids})
    rows = [n for n, name in enumerate(examples.ids) if name in removed]
    return true, np.array(rows, dtype=np.int64), notes


def _checked_rows(
    true: dict[str, int], rows: NDArray[np.int64], examples: Target, path: str | None
) -> Checked | None:
    """Return the rows and classes of checked labels among the rows that are labelled; None if there is none.

    A file's labels of other examples raise DataError.
    """
    place = {examples.ids[n]: at for at, n in enumerate(rows.tolist())}
    strange = [name for name in true if name not in place]
    if strange and path is not None:
        raise DataError(
            f"{len(strange)} of the {len(true)} clean labels are of no example to be labelled, such as "
            f"'{strange[0]}'"
        )
    known = [(place[name], label) for name, label in true.items() if name in place]
    found, labels = np.array(known, dtype=np.int64).reshape(-1, 2).T
    return (found, labels) if known else None


# Inverse penalty of the probe of the majority vote.
PROBE_STRENGTH = 0.03


def label_rate_interval(
    votes: Votes, features: NDArray[np.float32] | None, rate: float, seed: int = 0
) -> tuple[float, float]:
    """Return an interval for the share of wrong labels among those made from votes.

    A label model's own estimate, `rate`, is too low if annotators err together. So the interval begins at the
    lower end of `two_views.rate_interval` and reaches up to the largest of the rate, the share of pairs of
    votes on an example that differ, and, with features, (N, D), the share of examples with a majority vote
    that a cross-fitted probe of the majority votes contradicts. Without any of these it reaches up to the
    rate of guessing.
    """
    counts, rows = votes.counts, np.flatnonzero(votes.per_example > 0)
    each = votes.per_example.astype(np.float64)
    pairs, seen = float((each * (each - 1)).sum()), []
    if pairs:
        seen.append(1 - float((counts * (counts - 1)).sum()) / pairs)
    if features is not None and len(rows) >= MIN_EXAMPLES:
        x = Reduction.of(features[rows]).apply(features[rows])
        labels = majority_vote(votes, seed)[rows]
        observed = Observed.of(labels, votes.k)
        plain = latent_truth(x, observed, strength=PROBE_STRENGTH, shape="none", seed=seed)
        seen.append(float((plain.probabilities.argmax(axis=1) != labels).mean()))
    most = max(rate, *seen) if seen else guessing_rate(votes.k)
    low = rate_interval(rate, most, len(rows))[0]
    return low, max(rate_interval(most, most, len(rows))[1], rate)


def _noise(
    fit: Callable[[str], Labelled], made: Labelled, noise_from: str, votes: Votes, has_features: bool
) -> Estimate:
    """Estimate the noise matrix of the labels that a label model made.

    It is estimated by the label model `noise_from`. `auto` is that of the labels, but for `majority` and
    `soft`, which give no probabilities of the true class: `soft_features` if there are features, else, or if
    that loses the classes, `weighted`.
    """
    name, is_calibrated = noise_from, label_model_class(made.model).is_calibrated
    if name == "auto":
        name = made.model if is_calibrated else "soft_features" if has_features else "weighted"
    try:
        return _noise_by(made if name == made.model else fit(name), made.labels, votes)
    except NoiseMatrixError as error:
        if noise_from != "auto" or name != "soft_features" or is_calibrated:
            raise
        reason = str(error).partition(";")[0]
    found = _noise_by(fit("weighted"), made.labels, votes)
    return replace(found, notes=(*found.notes, f"the noise matrix is that of weighted: {reason}"))


def of_one_annotator(found: Estimate, votes: Votes, has_features: bool) -> Estimate:
    """Return an estimate that is not of rate 0 only because nobody contradicts a single annotator.

    Without features, nothing in one annotator's votes says how often they are wrong. The estimate then is the
    mean of all rates from 0 to guessing. With features the rate is at least 1/(n + 2), the rule of succession
    for n labels without a known error.
    """
    n = int((votes.per_example > 0).sum())
    least = 1 / (n + 2)
    if (votes.per_annotator > 0).sum() != 1 or found.matrix.rate >= least:
        return found
    rate = least if has_features else guessing_rate(votes.k) / 2
    said = (
        f"one annotator votes, whose labels nothing contradicts: the noise matrix has the rate {rate:.3g}, "
        + (
            "of one wrong label among those seen"
            if has_features
            else "half way to guessing, which is a guess"
        )
        + "; check some labels by hand (--checked-labels), or add another annotator"
    )
    details = {**found.details, "rate": rate, "is_guess": not has_features}
    matrix = NoiseMatrix.symmetric(votes.k, rate).known_as("instance_dependent")
    return replace(found, matrix=matrix, notes=(*found.notes, said), details=details)


def _noise_by(judge: Labelled, labels: NDArray[np.int64], votes: Votes) -> Estimate:
    """Estimate the noise matrix of labels from the posterior of a label model."""
    rows = np.flatnonzero(labels != ABSTAIN)
    posterior = judge.posterior[rows]
    found = from_posterior(posterior, labels[rows], f"labelmodel ({_chosen(judge)})")
    notes = [*found.notes, *guessing_notes(found.matrix.rate, votes.k, judge.model)]
    notes += dependence_note(votes, judge.posterior)
    active = int((votes.per_annotator > 0).sum())
    if active < 3 and not needs_features(judge.model):
        notes.append(
            f"fewer than three annotators ({active}) do not determine their own error rates: the noise "
            "matrix is a guess; it takes three independent ones, features (--noise-from soft_features), or "
            "checked labels"
        )
    matrix, ridge = well_conditioned(found.matrix)
    if ridge:
        shown = "singular" if not np.isfinite(found.condition) else f"of condition {found.condition:.3g}"
        notes.append(
            f"the estimated noise matrix was {shown}; (1 - r)F + rI with r = {ridge:g} is what is written"
        )
    rate = float(1 - posterior[np.arange(len(rows)), labels[rows]].mean())
    details = {**found.details, "rate": rate}
    return replace(found, matrix=matrix, smoothing=ridge, notes=tuple(notes), details=details)


def guessing_notes(rate: float, k: int, model: str) -> list[str]:
    """Return a note if labels are as good as guessed by a noise matrix.

    NoiseMatrixError is raised if the label model may have assigned all examples to one class.
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
