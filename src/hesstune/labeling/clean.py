"""`hesstune.clean`: which labels of a data set are probably wrong, without training a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hesstune.checks import one_of
from hesstune.data.examples import KEPT, MODEL_SOURCES, REWRITTEN
from hesstune.data.labels import CHECKED, GIVEN, GIVEN_LABEL, SOURCE, read_clean_labels
from hesstune.errors import ConfigError, DataError, RunError, listed
from hesstune.inputs.features import frozen_features, sharing
from hesstune.labeling.options import CleanOptions
from hesstune.labeling.sources import Target, read_target
from hesstune.models.load import load_model
from hesstune.noise.latent.channel import Observed
from hesstune.noise.latent.em import FOLDS, latent_truth
from hesstune.noise.latent.head import RobustHead, robust_head
from hesstune.noise.latent.two_views import count_text, counted, mean_posterior, rate_interval
from hesstune.noise.matrix import NoiseMatrix
from hesstune.options import make_options, takes_options
from hesstune.runtime.device import pick_device
from hesstune.storage.files import made_folder
from hesstune.storage.tables import write_csv
from hesstune.weak.vote_files import in_order

WRITE = ("given", "corrected", "pruned")
TEST = "test"
# Columns of a CSV file that may hold the labels as given: those of a file that `save` wrote, first.
LABEL_COLUMNS = (GIVEN_LABEL, "label")
# The least probability of being wrong that makes a label a suspected error.
LEAST = 0.25


@dataclass(frozen=True)
class LabelIssues:
    """What was found about the labels of N examples.

    Attributes:
        ids: One id an example.
        classes: Class names.
        given: (N,) labels as given.
        posterior: (N, K) P(true class | features, given label), the mean of two classifiers that were not
            fitted to the example: the soft labels.
        checked: (N,) whether a person has checked the label.
        noise_matrix: F as realised in these labels, by the posteriors; an estimate.
        chosen: The model of the labels that was chosen.
        target: Where the examples come from, or None where features were given.
        notes: What a reader should know, in sentences.
        details: Candidates and scores, JSON-ready.
        disagreement: Share of the labels that a cross-fitted probe of the labels as given predicts otherwise;
            1 if unknown.
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

        Labels that were checked are right; the interval is that of the others.
        """
        others = ~self.checked
        n = int(others.sum())
        mean = float(self.p_wrong[others].mean()) if n else 0.0
        low, high = rate_interval(mean, self.disagreement, n)
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
        """(N,) whether another class is likelier than the given one."""
        return np.asarray(self.likely != self.given)

    @cached_property
    def suspected(self) -> NDArray[np.bool_]:
        """(N,) whether the label is worth a look: the set of the largest expected F-measure.

        Of the m examples most likely to be wrong Σp of them are expected to be, so that precision and recall
        have the harmonic mean 2 Σ_{i≤m} p_i / (m + Σ_i p_i); m is where that is largest. None is in it whose
        label is right with more than 1 − LEAST, and none that was checked.
        """
        p = np.where(self.checked, 0.0, self.p_wrong)
        order = np.argsort(-p, kind="stable")
        expected = 2 * p[order].cumsum() / (np.arange(1, len(p) + 1) + max(float(p.sum()), 1e-300))
        found = np.zeros(len(p), dtype=bool)
        found[order[: int(expected.argmax()) + 1]] = True
        return found & (p >= LEAST)

    @cached_property
    def ranked(self) -> NDArray[np.int64]:
        """The examples, the most probable errors first; checked ones last."""
        return np.argsort(-np.where(self.checked, -1.0, self.p_wrong), kind="stable")

    def labels(self, write: str = "given") -> NDArray[np.int64]:
        """Return the labels to train on, (N,): as given, or corrected; −1 for suspected errors if pruned.

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
        """Write the examples, the most probable errors first, to a CSV file for `csv:PATH`; return how many.

        Columns: id, image or text, columns that may group the examples, label, given_label, label_source
        (`given`, `corrected`, `checked`; `kept` if suspected label errors were left out; `label_model` or the
        like if the data says that a model made the label), likely_label, wrong_probability, clean_label
        (empty, to be filled in by a person: `--checked-labels`), split where there is one, and p_CLASS, the
        soft label.
        Examples of a test part keep their labels and come last.

        Raises:
            RunError: If the file exists and `overwrite` is not set, or cannot be written.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise RunError(f"{path} exists; choose another --out or give --overwrite")
        made_folder(path.parent)
        shown, rows = self.labels(write), []
        columns = {} if self.target is None else self.target.columns(path.parent, self.classes)
        place = _places(self.target, self.ids)
        sources = _model_sources(self.target, len(self) if self.target is None else len(self.target))
        parts = None if self.target is None else self.target.parts
        for at in self.ranked.tolist():
            if shown[at] < 0:
                continue
            row = [self.ids[at], *(column[place[at]] for column in columns.values())]
            row += [
                self.classes[shown[at]],
                self.classes[self.given[at]],
                self._source(at, shown[at], write, sources[place[at]]),
            ]
            row += [self.classes[self.likely[at]]]
            row += [f"{self.p_wrong[at]:.6g}", self.classes[self.given[at]] if self.checked[at] else ""]
            row += [] if parts is None else [parts[place[at]]]
            rows.append([*row, *(f"{p:.6g}" for p in self.posterior[at].tolist())])
        made = len(rows)
        rows += self._test_rows(columns, parts)
        header = ["id", *columns, "label", GIVEN_LABEL, SOURCE]
        header += ["likely_label", "wrong_probability", "clean_label"]
        header += [] if parts is None else ["split"]
        write_csv(path, [*header, *(f"p_{name}" for name in self.classes)], rows)
        return made

    def _source(self, at: int, label: int, write: str, before: str) -> str:
        """Return where the label of an example that is written comes from; it came from `before`."""
        if write == "pruned":
            return KEPT
        if label != self.given[at]:
            return REWRITTEN
        return CHECKED if self.checked[at] else before

    def _test_rows(self, columns: dict[str, list[str]], parts: Sequence[str] | None) -> list[list[str]]:
        """Return the rows of a test part, whose labels are not judged."""
        if self.target is None or parts is None or self.target.true is None:
            return []
        rows, sources = [], _model_sources(self.target, len(self.target))
        for at in np.flatnonzero([part == TEST for part in parts]).tolist():
            name = self.target.true[at]
            if name in self.classes:
                soft = ["1" if name == other else "0" for other in self.classes]
                given = [column[at] for column in columns.values()]
                rows.append([self.target.ids[at], *given, name, name, sources[at], name, "", "", TEST, *soft])
        return rows


def _model_sources(target: Target | None, n: int) -> list[str]:
    """Return where each label comes from as the data says if a model made it, else GIVEN."""
    known = [""] * n if target is None or target.sources is None else target.sources
    return [source if source in MODEL_SOURCES else GIVEN for source in known]


def _places(target: Target | None, ids: Sequence[str]) -> list[int]:
    if target is None:
        return list(range(len(ids)))
    where = {name: at for at, name in enumerate(target.ids)}
    return [where[name] for name in ids]


@takes_options(CleanOptions, without=("write",))
def clean(
    data: str | None = None,
    *,
    features: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    **options: Any,
) -> LabelIssues:
    """Find the labels of a data set that are probably wrong: no network is trained, no rate is asked.

    Features of a pretrained network, computed once, go into latent-truth EM (`hesstune.noise.latent`): the
    true class of each example is judged by a probe that did not see its label. Examples of a test part are
    left out.

    Args:
        data: Labelled examples, as in `CleanOptions`; or else features and labels.
        features: (N, D), in place of data.
        labels: (N,) class names or numbers, of features.
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
    asked = make_options(CleanOptions, {"data": data, **options})
    if (asked.data is None) == (features is None):
        raise ConfigError("give data, or else features and their labels")
    if features is not None:
        if labels is None:
            raise ConfigError("features need labels: give labels, one a row of features")
        names = [str(value) for value in np.asarray(labels).tolist()]
        return _judged(np.asarray(features), [str(at) for at in range(len(names))], names, None, asked)
    assert asked.data is not None
    target = read_target(asked.data, LABEL_COLUMNS)
    if target.true is None:
        raise DataError(f"'{asked.data}' has no labels to look at; make some with hesstune label")
    parts = target.parts or ["train"] * len(target)
    labelled = [part != TEST and bool(name) for part, name in zip(parts, target.true, strict=True)]
    rows = np.flatnonzero(labelled).tolist()
    if not target.has_inputs:
        raise DataError(f"'{asked.data}' has neither images nor texts to look at")
    text = target.texts is not None
    loaded = load_model(
        asked.model or ("minilm" if text else "efficientnet_lite0"),
        2,
        text=text,
        head=asked.head,
        image_size=asked.image_size,
    )
    with sharing():
        looked = target.examples(asked.image_size).take(rows)
        found = frozen_features(loaded, looked, pick_device(asked.device), asked.max_length)
    ids, names = [target.ids[at] for at in rows], [target.true[at] for at in rows]
    judged = _judged(found, ids, names, target, asked)
    return replace(judged, notes=[*loaded.notes, *judged.notes])


def _judged(
    features: NDArray[Any], ids: list[str], names: list[str], target: Target | None, asked: CleanOptions
) -> LabelIssues:
    if len(features) != len(names):
        raise DataError(f"{len(features)} rows of features do not match {len(names)} labels")
    classes = in_order(set(names))
    if len(classes) < 2:
        raise DataError(f"labels of two classes at least are needed; got {listed(classes) or 'none'}")
    index = {name: at for at, name in enumerate(classes)}
    given = np.array([index[name] for name in names], dtype=np.int64)
    sure, known = np.zeros(len(ids), dtype=bool), None
    if asked.checked_labels is not None:
        found = read_clean_labels(asked.checked_labels, classes)
        place = {name: at for at, name in enumerate(ids)}
        strange = [name for name in found if name not in place]
        if strange:
            raise DataError(f"{len(strange)} checked labels are of no example here, such as '{strange[0]}'")
        rows = np.array(sorted(place[name] for name in found), dtype=np.int64)
        given[rows] = [found[ids[at]] for at in rows]
        sure[rows], known = True, (rows, given[rows])
    observed = Observed.of(given, len(classes), checked=known)
    head = robust_head(features, observed, find_errors=True, patient=True, seed=asked.seed)
    x, folds = head.reduced, min(FOLDS, len(head.reduced))
    truth = replace(head.truth, posterior=mean_posterior(x, observed, head.truth, folds, asked.seed))
    strength = head.choice.plain.strength
    plain = latent_truth(x, observed, strength=strength, shape="none", folds=folds, seed=asked.seed)
    differ = plain.probabilities.argmax(axis=1) != given
    return LabelIssues(
        ids,
        classes,
        given,
        truth.posterior,
        sure,
        NoiseMatrix(truth.realised(observed.given), "estimated"),
        head.choice.candidate.name,
        target,
        _notes(head, given),
        head.choice.details(),
        float(differ[~sure].mean()) if not sure.all() else 0.0,
    )


def _notes(head: RobustHead, given: NDArray[np.int64]) -> list[str]:
    notes = []
    if not head.choice.scores:
        notes.append(f"{len(given)} examples are too few to choose a model of their labels")
    if not head.truth.converged:
        notes.append("EM had not come to rest; probabilities may be rough")
    return notes
