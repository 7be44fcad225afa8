"""`hesstune.clean`: which labels of a data set are probably wrong, without training a network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from hesstune.checks import one_of
from hesstune.data.examples import KEPT, MEMORY, MODEL_SOURCES, REWRITTEN, Examples
from hesstune.data.formats import listing
from hesstune.data.labels import CHECKED, GIVEN, GIVEN_LABEL, SOURCE, alike, read_checked_labels
from hesstune.data.near_duplicates import copies_in
from hesstune.data.vectors import dense, is_sparse
from hesstune.display import as_html
from hesstune.errors import ConfigError, DataError, RunError, listed
from hesstune.inputs.features import frozen_features, sharing
from hesstune.labeling.options import CleanOptions, default_model, how_read, size_for
from hesstune.labeling.review import (
    ReviewedLabels,
    Suspect,
    apply_decisions,
    write_label_studio,
)
from hesstune.labeling.sources import Target, read_target, target_of_listing
from hesstune.models.load import load_model
from hesstune.noise.latent.channel import Observed
from hesstune.noise.latent.copies import conflicting, copies_note, example_groups, has_copies, merge_copies
from hesstune.noise.latent.em import FOLDS
from hesstune.noise.latent.head import fit_truth, robust_head
from hesstune.noise.latent.two_views import count_text, counted, mean_posterior, rate_interval
from hesstune.noise.matrix import NoiseMatrix
from hesstune.options import make_options, takes_options
from hesstune.runs.integrity import content_digests
from hesstune.runs.keywords import CleanKeywords
from hesstune.runtime.device import pick_device
from hesstune.storage.files import made_folder
from hesstune.storage.tables import write_csv
from hesstune.weak.vote_files import in_order

if TYPE_CHECKING:
    from pandas import DataFrame

WRITE = ("given", "corrected", "pruned")
TEST = "test"
# Columns of a CSV file that may hold the labels as given: those of a file that `save` wrote, first.
LABEL_COLUMNS = (GIVEN_LABEL, "label")
# The least probability of being wrong of a suspected label error.
LEAST = 0.25


@dataclass(frozen=True)
class LabelIssues:
    """The estimated label errors of N examples.

    Attributes:
        ids: One id an example.
        classes: Class names.
        given: (N,) labels as given.
        posterior: (N, K) P(true class | features, given label), the mean of two classifiers that were not
            fitted to the example: the soft labels.
        checked: (N,) whether a person has checked the label.
        noise_matrix: F as realised in these labels, by the posteriors; an estimate.
        chosen: The model of the labels that was chosen.
        target: Where the examples come from, or None if features were given.
        notes: What a reader should know, in sentences.
        details: Candidates and scores, JSON-ready.
        disagreement: Share of the labels that a cross-fitted probe of the labels as given predicts otherwise;
            1 if unknown.
        contents: {id: digest of the image or text, 32 hexadecimal digits}; empty if features were given.
        groups: (N,) group of each example, the same for copies of one example; None: there are no copies.
    """

    ids: list[str]
    classes: list[str]
    given: NDArray[np.int64]
    posterior: NDArray[np.float64]
    checked: NDArray[np.bool_]
    noise_matrix: NoiseMatrix
    chosen: str
    target: Target | None = None
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    disagreement: float = 1.0
    contents: dict[str, str] = field(default_factory=dict)
    groups: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def likely(self) -> NDArray[np.int64]:
        """(N,) the most probable class."""
        return np.asarray(self.posterior.argmax(axis=1))

    @cached_property
    def otherwise(self) -> NDArray[np.int64]:
        """(N,) the most probable class if the given label is wrong."""
        others = self.posterior.copy()
        others[np.arange(len(self)), self.given] = -1.0
        return np.asarray(others.argmax(axis=1))

    @cached_property
    def p_wrong(self) -> NDArray[np.float64]:
        """(N,) the probability that the given label is wrong, as far as the model of the labels holds."""
        return np.asarray(1 - self.posterior[np.arange(len(self)), self.given])

    @cached_property
    def rate(self) -> float:
        """The estimated share of wrong labels, the mean of `p_wrong`."""
        return float(self.p_wrong.mean())

    @cached_property
    def rate_interval(self) -> tuple[float, float]:
        """A 90 % interval for the share of wrong labels (`hesstune.noise.latent.two_views`).

        Labels that were checked are right; the interval is that of the others. Copies of an example count as
        one.
        """
        others = ~self.checked
        n = int(others.sum())
        mean = float(self.p_wrong[others].mean()) if n else 0.0
        units = n if self.groups is None else len(np.unique(self.groups[others]))
        low, high = rate_interval(mean, self.disagreement, units)
        return low * n / len(self), high * n / len(self)

    @cached_property
    def wrong_labels(self) -> tuple[int, int, int]:
        """The expected number of wrong labels, and the ends of its 90 % interval."""
        return counted(self.rate, self.rate_interval, len(self))

    @property
    def count_text(self) -> str:
        """The number of wrong labels in words, such as `about 12 wrong labels (5 to 30)`."""
        return count_text(self.wrong_labels)

    @cached_property
    def wrong(self) -> NDArray[np.bool_]:
        """(N,) whether another class is more probable than the given one."""
        return np.asarray(self.likely != self.given)

    @cached_property
    def suspected(self) -> NDArray[np.bool_]:
        """(N,) whether the label is a suspected error: the set with the largest expected F-measure.

        Of the m labels with the largest probabilities of being wrong, Σp are expected to be wrong, so that
        precision and recall have the harmonic mean 2 Σ_{i≤m} p_i / (m + Σ_i p_i); m maximises it. Labels that
        are right with more than 1 − LEAST, and labels that were checked, are not in the set.
        """
        p = np.where(self.checked, 0.0, self.p_wrong)
        order = np.argsort(-p, kind="stable")
        expected = 2 * p[order].cumsum() / (np.arange(1, len(p) + 1) + max(float(p.sum()), 1e-300))
        found = np.zeros(len(p), dtype=bool)
        found[order[: int(expected.argmax()) + 1]] = True
        return found & (p >= LEAST)

    @cached_property
    def ranked(self) -> NDArray[np.int64]:
        """The examples, the most probable label errors first; checked ones last."""
        return np.argsort(-np.where(self.checked, -1.0, self.p_wrong), kind="stable")

    @property
    def issues(self) -> NDArray[np.int64]:
        """(M,) the examples with suspected label errors, the most probable errors first."""
        return self.ranked[self.suspected[self.ranked]]

    def summary(self) -> str:
        """Return the numbers of wrong labels in a sentence."""
        low, high = self.rate_interval
        return (
            f"{int(self.wrong.sum())} of {len(self)} labels are probably wrong, {int(self.suspected.sum())} "
            f"are suspected errors. Estimate for all: {self.count_text}; noise rate {self.rate:.3g}, 90 % "
            f"interval {low:.3g} to {high:.3g} ({self.chosen}; no guarantee)."
        )

    def suspects(self) -> list[Suspect]:
        """Return the suspected label errors, the most probable errors first."""
        return [
            Suspect(
                at,
                self.ids[at],
                self.classes[self.given[at]],
                self.classes[self.otherwise[at]],
                float(self.p_wrong[at]),
                float(self.posterior[at, self.otherwise[at]]),
                self.contents.get(self.ids[at], ""),
            )
            for at in self.issues.tolist()
        ]

    def labelled(self) -> Target:
        """Return all examples with the labels of the data, before any was checked if that is known."""
        return self.target or Target(self.ids, [self.classes[label] for label in self.given])

    def apply(self, decisions: str | Path | DataFrame) -> ReviewedLabels:
        """Apply the decisions of a person: labels are kept or changed, or examples removed.

        Args:
            decisions: The CSV file that the page of `hesstune clean` downloads, a finished export of the
                tasks of `to_label_studio`, or a DataFrame with the columns of the CSV file: id, given_label,
                decision (`keep`, `change` or `remove`) and label.

        Raises:
            DataError: If the decisions are of other data, a class or decision is unknown, or rows contradict
                each other.

        Example:
            >>> import pandas as pd
            >>> rng = np.random.default_rng(0)
            >>> y = np.arange(200) % 2
            >>> noisy = np.where(np.arange(200) < 20, 1 - y, y)
            >>> found = clean(features=np.eye(2)[y] + 0.1 * rng.normal(size=(200, 2)), labels=noisy)
            >>> decided = [["0", "1", "change", "0"], ["1", "0", "remove", ""]]
            >>> frame = pd.DataFrame(decided, columns=["id", "given_label", "decision", "label"])
            >>> reviewed = found.apply(frame)
            >>> len(reviewed), reviewed.labels[0], reviewed.counts["changed"]
            (199, '0', 1)
        """
        return apply_decisions(self.labelled(), decisions, self.contents or None)

    def to_label_studio(self, path: str | Path, overwrite: bool = False) -> list[str]:
        """Write the suspected label errors as tasks for Label Studio, with predictions; say how to use them.

        The labelling configuration is written beside the tasks, NAME.xml. `apply` takes the finished export.

        Raises:
            RunError: If a file exists and `overwrite` is not set, or cannot be written.
        """
        return write_label_studio(Path(path), self.suspects(), self.classes, self.labelled(), overwrite)

    def to_frame(self) -> DataFrame:
        """Return a pandas DataFrame with one row for each example, in the order of the data.

        Columns: id, label (as given), likely_label, wrong_probability, suspected, checked, and p_CLASS for
        each class.
        """
        from pandas import DataFrame

        names = np.array(self.classes, dtype=object)
        columns: dict[str, Any] = {
            "id": self.ids,
            "label": names[self.given],
            "likely_label": names[self.likely],
            "wrong_probability": self.p_wrong,
            "suspected": self.suspected,
            "checked": self.checked,
        }
        return DataFrame(
            columns | {f"p_{name}": self.posterior[:, at] for at, name in enumerate(self.classes)}
        )

    def _repr_html_(self) -> str:
        return as_html(self.summary(), self.notes, self.to_frame().iloc[self.issues])

    def labels(self, write: str = "given") -> NDArray[np.int64]:
        """Return the labels to train on, (N,): as given, or corrected; −1 if a suspected error is pruned.

        Raises:
            ConfigError: If it is none of given, corrected and pruned.
        """
        one_of("labels to write", write, WRITE)
        if write == "corrected":
            return self.likely
        return np.where(self.suspected & (write == "pruned"), -1, self.given)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready summary."""
        return {
            "examples": len(self),
            "probably_wrong": int(self.wrong.sum()),
            "suspected": int(self.suspected.sum()),
            "checked": int(self.checked.sum()),
            "rate": self.rate,
            "rate_interval": list(self.rate_interval),
            "wrong_labels": dict(zip(("expected", "low", "high"), self.wrong_labels, strict=True)),
            "classes": self.classes,
            "chosen": self.chosen,
            "noise_matrix": self.noise_matrix.to_dict(),
            "notes": self.notes,
            "details": self.details,
        }

    def save(self, path: str | Path, write: str = "given", overwrite: bool = False) -> int:
        """Write the examples to a CSV file for `csv:PATH`, the most probable errors first; return how many.

        Columns: id, image or text, columns that may group the examples, label, given_label, label_source
        (`given`, `corrected`, `checked`; `kept` if suspected label errors were left out; `label_model` or the
        like if the data says that a model made the label), likely_label, wrong_probability, clean_label
        (empty, to be filled in by a person: `--checked-labels`), split if there is one, and p_CLASS, the
        soft label.
        Examples of a test part keep their labels and come last.

        Raises:
            RunError: If the file exists and `overwrite` is not set, or cannot be written.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise RunError(f"{path} exists; choose another --out or give --overwrite")
        made_folder(path.parent)
        labels, target, names = self.labels(write), self.target or Target(self.ids), self.classes
        inputs = target.columns(path.parent, names)
        # Where each label comes from, if the data says that a model made it.
        known = target.sources or [""] * len(target)
        sources = [source if source in MODEL_SOURCES else GIVEN for source in known]

        def row(
            n: int, label: str, given: str, source: str, *estimates: str, soft: Sequence[str]
        ) -> list[str]:
            part = [] if target.parts is None else [target.parts[n]]
            shown = [column[n] for column in inputs.values()]
            return [target.ids[n], *shown, label, given, source, *estimates, *part, *soft]

        place, rows = {name: n for n, name in enumerate(target.ids)}, []
        for at in self.ranked.tolist():
            if labels[at] < 0:
                continue
            n, given = place[self.ids[at]], names[self.given[at]]
            source = CHECKED if self.checked[at] else sources[n]
            source = REWRITTEN if labels[at] != self.given[at] else source
            estimates = (names[self.likely[at]], f"{self.p_wrong[at]:.6g}", given if self.checked[at] else "")
            soft = [f"{p:.6g}" for p in self.posterior[at].tolist()]
            source = KEPT if write == "pruned" else source
            rows.append(row(n, names[labels[at]], given, source, *estimates, soft=soft))
        made = len(rows)
        for n, (part, name) in enumerate(zip(target.parts or (), target.true or (), strict=False)):
            if part == TEST and name in names:
                soft = ["1" if name == other else "0" for other in names]
                rows.append(row(n, name, name, sources[n], name, "", "", soft=soft))
        header = [
            "id",
            *inputs,
            "label",
            GIVEN_LABEL,
            SOURCE,
            "likely_label",
            "wrong_probability",
            "clean_label",
        ]
        header += [] if target.parts is None else ["split"]
        write_csv(path, [*header, *(f"p_{name}" for name in names)], rows)
        return made


@takes_options(CleanOptions, without=("write",))
def clean(
    data: Any = None,
    *,
    features: Any = None,
    labels: Any = None,
    **options: Unpack[CleanKeywords],
) -> LabelIssues:
    """Find the labels of a data set that are probably wrong: no network is trained, and no rate is needed.

    Features of a pretrained network, computed once, go into latent-truth EM (`hesstune.noise.latent`): the
    true class of each example is predicted by a probe that was not fitted to its label. Examples of a test
    part are left out.

    Examples without a label (None, NaN, an empty text, NA, −1) are left out, and counted.

    Args:
        data: Labelled examples, as in `CleanOptions`; or an object, as for `hesstune.finetune`: a DataFrame,
            (X, y), or a data set; or all options as `CleanOptions`, which type checkers know; or else
            features and labels.
        features: (N, D) array, DataFrame or sparse matrix, in place of data. A sparse matrix that is too
            large as an array is reduced by a truncated singular value decomposition.
        labels: Of features: (N,) class names or numbers, or (N, K) one-hot or soft labels.
        **options: Options of `CleanOptions`, by name.

    Raises:
        HesstuneError: If an option or input is wrong.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = np.arange(200) % 2
        >>> noisy = np.where(np.arange(200) < 20, 1 - y, y)
        >>> found = clean(features=np.eye(2)[y] + 0.1 * rng.normal(size=(200, 2)), labels=noisy)
        >>> sorted(found.ranked[:20].tolist()) == list(range(20))
        True
    """
    given = data.given() if isinstance(data, CleanOptions) else {"data": data}
    named = isinstance(given.get("data"), str | os.PathLike | None)
    asked = make_options(CleanOptions, {**given, **({} if named else {"data": MEMORY}), **options})
    if (asked.data is None) == (features is None):
        raise ConfigError("give data, or else features and their labels")
    if features is not None:
        if labels is None:
            raise ConfigError("features need labels: give labels, one a row of features")
        target = _target_of_features(features, labels)
    elif named:
        assert asked.data is not None
        target = read_target(asked.data, LABEL_COLUMNS, how_read(asked))
    else:
        size = size_for(asked.model or default_model(is_text=False), asked, is_text=False)
        target = target_of_listing(listing(data, size, labelled=False, how=how_read(asked)))
    what = asked.data if named else "data"
    if target.true is None:
        shown, named_by = "", ""
        if target.column_names:
            shown = f" among its columns {listed(target.column_names)}"
            named_by = "name their column by --label-column, or "
        raise DataError(f"'{what}' has no labels{shown}; {named_by}make some with hesstune label")
    if not target.has_inputs:
        raise DataError(
            f"'{what}' has neither images nor texts; a file of feature vectors is data features:FILE"
        )
    parts = target.parts or ["train"] * len(target)
    rows = [n for n, (part, name) in enumerate(zip(parts, target.true, strict=True)) if part != TEST and name]
    x, examples, notes = _features(target, rows, asked)
    if without := target.true.count(""):
        notes.append(f"{without} of {len(target)} examples without a label left out")
    digests = content_digests(examples, anew=False)
    contents = {name: row.tobytes().hex() for name, row in zip(examples.ids, digests, strict=True)}
    found = _find_issues(
        x, examples.ids, [target.true[n] for n in rows], asked, contents, copies_in([examples])[0]
    )
    return replace(found, target=target, notes=[*notes, *found.notes])


def _target_of_features(features: Any, labels: Any) -> Target:
    """Return the examples that are features, (N, D), with labels."""
    notes: list[str] = []
    if is_sparse(features):
        features, notes = dense(features, "features", reduce=True)
    found = listing((features, labels), size=8, labelled=False)
    if found.vectors is None:
        raise DataError("features must be numbers, (N, D); give images and texts as data=(X, y)")
    return target_of_listing(replace(found, notes=[*notes, *found.notes]))


def _features(
    target: Target, rows: list[int], asked: CleanOptions
) -> tuple[NDArray[Any], Examples, list[str]]:
    """Return the features, (N, D), of some rows, these examples, and notes.

    Features are vectors as given, or those of a pretrained network.
    """
    notes = list(target.notes)
    if target.vectors is not None:
        if asked.model is not None:
            notes.append(f"the data holds feature vectors: no effect of the model {asked.model}")
        every = len(rows) == len(target)
        kept = target.vectors if every else target.vectors[np.array(rows, dtype=np.int64)]
        return kept.values(), target.examples(8).take(rows), notes
    text = target.texts is not None
    model = asked.model or default_model(text)
    loaded = load_model(model, 2, text=text, head=asked.head, image_size=asked.image_size)
    with sharing():
        examples = target.examples(size_for(model, asked, text)).take(rows)
        x = frozen_features(loaded, examples, pick_device(asked.device), asked.max_length)
    return x, examples, [*notes, *loaded.notes]


def _present(classes: list[str], labels: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the classes that still have examples, and the labels as indices into them."""
    present = np.unique(labels)
    if len(present) < 2:
        left = listed(classes[c] for c in present) or "no class"
        raise DataError(f"checked labels leave examples of {left} alone; two classes at least are needed")
    return [classes[c] for c in present], np.searchsorted(present, labels)


def _find_issues(
    features: NDArray[Any],
    ids: list[str],
    names: list[str],
    asked: CleanOptions,
    contents: dict[str, str] | None = None,
    copies: NDArray[np.int64] | None = None,
) -> LabelIssues:
    """Return the issues of labels, by name, of examples with features, (N, D).

    `contents` are digests by id, and `copies` groups of copies by content, (N,), if they are known.
    """
    contents = contents or {}
    if len(features) != len(names):
        raise DataError(f"{len(features)} rows of features do not match {len(names)} labels")
    classes = in_order(set(names))
    if len(classes) < 2:
        raise DataError(f"labels of two classes at least are needed; got {listed(classes) or 'none'}")
    index = {name: at for at, name in enumerate(classes)}
    given = np.array([index[name] for name in names], dtype=np.int64)
    checked, known, notes = np.zeros(len(ids), dtype=bool), None, alike(classes)
    if asked.checked_labels is not None:
        clean_labels = read_checked_labels(asked.checked_labels, classes)
        by_id = {name: (own, contents.get(name, "")) for name, own in zip(ids, names, strict=True)}
        true, removed, more = clean_labels.among(by_id)
        notes += more
        stay = np.array([at for at, name in enumerate(ids) if name not in removed], dtype=np.int64)
        features, given, ids = features[stay], given[stay], [ids[at] for at in stay]
        rows = np.array([at for at, name in enumerate(ids) if name in true], dtype=np.int64)
        given[rows] = [true[ids[at]] for at in rows]
        classes, given = _present(classes, given)
        checked = np.isin(np.arange(len(ids)), rows)
        known = (rows, given[rows])
        copies = None if copies is None else copies[stay]
    every = Observed.of(given, len(classes), checked=known)
    groups = example_groups(features, copies) if len(ids) > 1 else np.arange(len(ids))
    merged = merge_copies(features, replace(every, copies=groups))
    observed = merged.labels
    head = robust_head(merged.features, observed, find_errors=True, patient=True, seed=asked.seed)
    x, folds = head.reduced, min(FOLDS, len(head.reduced))
    posterior = mean_posterior(x, observed, head.truth, folds, asked.seed)[merged.row]
    posterior = every.known(posterior)
    plain = fit_truth(x, observed, head.choice.plain, seed=asked.seed)
    differ = plain.probabilities.argmax(axis=1)[merged.row] != given
    realised = replace(head.truth, posterior=posterior).realised(every.given)
    notes += copies_note(groups, given)
    if not head.choice.scores:
        notes.append(f"{len(observed)} examples are too few to choose a model of their labels")
    if not head.truth.converged:
        notes.append("EM did not converge; probabilities may be rough")
    counted_once = {"groups": len(observed), "different_labels": conflicting(groups, given)}
    return LabelIssues(
        ids,
        classes,
        given,
        posterior,
        checked,
        NoiseMatrix(realised, "estimated"),
        head.choice.candidate.name,
        notes=notes,
        details={**head.choice.details(), **({"copies": counted_once} if has_copies(groups) else {})},
        disagreement=float(differ[~checked].mean()) if not checked.all() else 0.0,
        contents=contents,
        groups=groups if has_copies(groups) else None,
    )
