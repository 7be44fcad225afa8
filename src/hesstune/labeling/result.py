"""Programmatic labels: what they are made of, how good they are, and the files that `finetune` takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hesstune.data.examples import MODEL_LABEL
from hesstune.data.label_sources import GIVEN, SOURCE
from hesstune.errors import RunError
from hesstune.labeling.labeling_target import Target
from hesstune.noise.estimate import Estimate
from hesstune.storage.atomic import csv_writer, json_writer, made_folder, replace_files
from hesstune.weak.patterns import patterns
from hesstune.weak.votes import ABSTAIN, Votes

__all__ = ["Labelling"]


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
