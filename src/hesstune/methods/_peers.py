"""Heads by other packages, as users fit them: what `auto` is compared with."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.errors import DataError
from hesstune.methods._head import HeadMaterial, SolvedHead
from hesstune.methods._solved import SolvedHeadMethod
from hesstune.runtime.threads import one_thread
from hesstune.storage.reading import one_line
from hesstune.storage.remembered import remembered
from hesstune.storage.tensors import Tree
from hesstune.weak.votes import Votes

__all__ = ["STRENGTHS", "Regression", "VotedHeadMethod", "cross_validated", "enough_examples", "unscaled"]

# scikit-learn's C on standardised features, from a mean to hardly a penalty.
STRENGTHS = tuple(np.geomspace(1e-5, 1e0, 6))
FOLDS = 5


@dataclass(frozen=True)
class Regression:
    """A logistic regression of scaled features, as scikit-learn fits it.

    Attributes:
        coefficients: (K, D), or (1, D) of two classes.
        intercept: (K,), or (1,).
        classes: Of the rows.
        strength: C.
    """

    coefficients: NDArray[np.float64]
    intercept: NDArray[np.float64]
    classes: NDArray[np.int64]
    strength: float

    def predict(self, x: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return the classes of scaled features, (N,)."""
        scores = x @ self.coefficients.T + self.intercept
        if scores.shape[1] == 1:
            scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
        return np.asarray(self.classes[scores.argmax(axis=1)])


def cross_validated(material: HeadMaterial, labels: NDArray[np.int64]) -> tuple[Any, Regression]:
    """Return scikit-learn's scaler, and its LogisticRegressionCV on scaled features."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(material.features)

    def make() -> Tree:
        found = _fitted(scaler.transform(material.features), labels, material.seed)
        arrays = {"coefficients": found.coef_, "intercept": found.intercept_, "classes": found.classes_}
        kept = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        return {**kept, "strength": float(found.C_)}

    # scikit-learn's own head, cleanlab's and those of votes ask for the same in a comparison.
    numbers = {"features": material.features, "labels": labels}
    kept = remembered(f"LogisticRegressionCV, seed {material.seed}", numbers, make)
    coefficients, intercept, classes = (kept[key].numpy() for key in ("coefficients", "intercept", "classes"))
    return scaler, Regression(coefficients, intercept, classes, float(kept["strength"]))


def _fitted(x: NDArray[np.float64], labels: NDArray[np.int64], seed: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import StratifiedKFold

    fewest = int(np.bincount(labels)[np.unique(labels)].min())
    folds = StratifiedKFold(max(2, min(FOLDS, fewest)), shuffle=True, random_state=seed)
    with one_thread(), enough_examples(len(labels)), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        return LogisticRegressionCV(
            Cs=list(STRENGTHS), cv=folds, max_iter=200, scoring="accuracy", use_legacy_attributes=False
        ).fit(x, labels)


@contextlib.contextmanager
def enough_examples(n: int) -> Iterator[None]:
    """Turn another package's word on too few examples, or classes, into an error of our own."""
    try:
        yield
    except ValueError as error:
        raise DataError(
            f"{n} training examples are too few for this head ({one_line(error)}); give more, or take "
            "--method auto"
        ) from error


def unscaled(scaler: Any, fitted: Regression, k: int, name: str, reason: str) -> SolvedHead:
    """Return a regression of scaled features as a head of the features themselves."""
    coefficients, intercept, present = fitted.coefficients, fitted.intercept, fitted.classes
    if len(present) == 2 and len(coefficients) == 1:
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercept = np.array([0.0, float(intercept[0])])
    # A feature of hardly any deviation has a huge weight: without it the other package's answers would not
    # be its own (MiniLM's features of deviation 1e-32 tell classes apart).
    scaled = coefficients / np.asarray(scaler.scale_)
    weight, bias = np.zeros((k, scaled.shape[1])), np.full(k, -1e3)
    weight[present], bias[present] = scaled, intercept - scaled @ np.asarray(scaler.mean_)
    return SolvedHead(weight, bias, None, name, reason)


class VotedHeadMethod(SolvedHeadMethod):
    """scikit-learn's LogisticRegressionCV on labels that another package makes of the votes."""

    head_alone = True
    takes_soft = False
    needs_votes = True
    # What makes the labels, for people.
    maker: ClassVar[str]

    @classmethod
    def voted(cls, votes: Votes, labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """Return the labels, (N,), that are made of votes; of no vote, -1.

        Args:
            votes: On the training examples.
            labels: As given: they may settle a tie.
            seed: Of everything drawn.
        """
        raise NotImplementedError

    @classmethod
    def solve_head(cls, material: HeadMaterial) -> SolvedHead:
        """Return the head of LogisticRegressionCV on these labels; an example without a vote keeps its own.

        Raises:
            DataError: If there are no votes for these classes, or one class takes all.
            MissingExtraError: If the other package is not installed.
        """
        votes = material.votes
        if votes is None or votes.k != material.k:
            what = "there are none" if votes is None else f"those given are for {votes.k}"
            raise DataError(f"{cls.maker} needs votes for the {material.k} classes; {what}")
        made = cls.voted(votes, material.labels, material.seed)
        labels = np.where(made < 0, material.labels, made)
        if len(np.unique(labels)) < 2:
            raise DataError(
                f"{cls.maker} puts all {len(labels)} training examples into one class; a head needs two: "
                "take --method auto or majority"
            )
        scaler, found = cross_validated(material, labels)
        changed, silent = int((labels != material.labels).sum()), int((made < 0).sum())
        name = f"scikit-learn's LogisticRegressionCV (C = {found.strength:g}) on labels by {cls.maker}"
        told = f"{changed} of {len(labels)} labels differ from those given; {silent} examples have no vote"
        return unscaled(scaler, found, material.k, name, told)
