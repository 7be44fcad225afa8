"""Predictions for new examples: classes and probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hesstune.data.examples import PREDICTED
from hesstune.data.labels import SOURCE
from hesstune.display import as_html
from hesstune.errors import RunError
from hesstune.storage.files import made_folder
from hesstune.storage.tables import write_csv

if TYPE_CHECKING:
    from pandas import DataFrame


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

    @property
    def given(self) -> list[str] | None:
        """The given labels by name, "" if an example has none; None if no example has one."""
        if self.labels is None:
            return None
        return [self.classes[label] if label >= 0 else "" for label in self.labels]

    def to_frame(self) -> DataFrame:
        """Return a pandas DataFrame with a row for each example, in the order of the data.

        Columns: id, prediction, label (as given, "" if none) if any is given, and p_CLASS for each class.
        """
        from pandas import DataFrame

        given = {} if self.given is None else {"label": self.given}
        soft = {f"p_{name}": self.probabilities[:, at] for at, name in enumerate(self.classes)}
        return DataFrame({"id": self.ids, "prediction": self.predicted, **given, **soft})

    def _repr_html_(self) -> str:
        notes = [] if self.accuracy is None else [f"Accuracy on the given labels: {self.accuracy:.1%}"]
        return as_html(f"{len(self.ids)} predictions", [*notes, *self.notes], self.to_frame())

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
        labels = self.given
        header = ["id", "prediction", SOURCE, *(["label"] if labels is not None else [])]
        rows = []
        for at, (example, name) in enumerate(zip(self.ids, self.predicted, strict=True)):
            given = [] if labels is None else [labels[at]]
            rows.append([example, name, PREDICTED, *given, *(f"{p:.6g}" for p in self.probabilities[at])])
        made_folder(path.parent)
        write_csv(path, [*header, *(f"p_{name}" for name in self.classes)], rows)
