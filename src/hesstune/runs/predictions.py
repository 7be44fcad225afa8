"""Predictions for new examples: classes and probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hesstune.data.examples import PREDICTED
from hesstune.data.labels import SOURCE
from hesstune.errors import RunError
from hesstune.storage.files import made_folder
from hesstune.storage.tables import write_csv


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of new examples.

    Attributes:
        ids: One id an example: its relative path, or its row.
        classes: Class names.
        probabilities: (N, K) float64, rows sum to 1.
        labels: (N,) given labels, −1 if an example has none of the run's classes; None if none has.
        accuracy: Share of the given labels predicted, or None.
        skipped: (id, reason) of examples left out.
        notes: What was left out, changed or guessed, and what had no label, in sentences.
    """

    ids: list[str]
    classes: list[str]
    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64] | None
    accuracy: float | None
    skipped: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)

    @property
    def predicted(self) -> list[str]:
        """The most probable class of each example, by name."""
        return [self.classes[i] for i in self.probabilities.argmax(axis=1)]

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a CSV file: id, prediction, label_source, the given label if any, and p_CLASS for each class.

        The column label_source says `predicted`: a file that takes labels from this one should keep it.

        Raises:
            RunError: If the file exists and `overwrite` is not set, or cannot be written.
        """
        path = Path(path)
        if path.is_dir():
            raise RunError(f"--out {path} is a folder; give the path of a CSV file")
        if path.exists() and not overwrite:
            raise RunError(f"{path} exists; choose another --out or give --overwrite")
        header = ["id", "prediction", SOURCE, *(["label"] if self.labels is not None else [])]
        rows = []
        for at, (example, name) in enumerate(zip(self.ids, self.predicted, strict=True)):
            given = [] if self.labels is None else [self.classes[n] if (n := self.labels[at]) >= 0 else ""]
            rows.append([example, name, PREDICTED, *given, *(f"{p:.6g}" for p in self.probabilities[at])])
        made_folder(path.parent)
        write_csv(path, [*header, *(f"p_{name}" for name in self.classes)], rows)
