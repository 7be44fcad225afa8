"""Read the records of a run folder: typed, each file once; a damaged one is an error of one line."""

from __future__ import annotations

import json
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from hesstune.curvature.declared import CHECKSUM
from hesstune.errors import RunError
from hesstune.runs import records as files
from hesstune.runs.config import FinetuneConfig
from hesstune.storage.files import read_text, reading
from hesstune.storage.stored import Record, checked_record, read_record
from hesstune.storage.tables import read_rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hesstune.bounds.record import Certificate

LABEL_COLUMNS = ("id", "part", "label", "true_label")
ISSUE_COLUMNS = ("id", "given_label", "likely_label", "confidence", "p_given_label", "true_label")


def _record(name: str, kind: type[Record]) -> cached_property[Record | None]:
    """Return a property that is the record in a file; None if there is no such file."""
    return cached_property(lambda records: read_record(records.path / name, kind))


class Records:
    """The records of a run folder; each file is read once, at the first access.

    An absent file is None, or empty; a damaged one is a RunError that names it.

    Args:
        path: The folder.
        config: The run's configuration.
        facts: What run.json holds.
    """

    def __init__(self, path: Path, config: FinetuneConfig, facts: files.RunRecord) -> None:
        self.path = path
        self.config = config
        self.facts = facts

    @property
    def outcome(self) -> files.Result:
        """The final numbers of the run, if it has finished; else a RunError."""
        if self.facts.result is None:
            raise RunError(f"the run in {self.path} has not finished; continue it with --resume")
        return self.facts.result

    @cached_property
    def epochs(self) -> list[files.Epoch]:
        """The lines of metrics.jsonl."""
        path = self.path / files.METRICS
        if not path.is_file():
            return []
        with reading(path, files.Epoch.what):
            lines = [line for line in read_text(path).splitlines() if line]
        return [checked_record(path, files.Epoch, partial(json.loads, line)) for line in lines]

    @property
    def kept_epoch(self) -> files.Epoch | None:
        """The epoch that the kept weights are from, possibly the start; None if none was validated."""
        return next((epoch for epoch in self.epochs if epoch.epoch == self.outcome.kept_epoch), None)

    @cached_property
    def labels(self) -> list[dict[str, str]]:
        """The rows of labels.csv: id, part, label trained on, and the true label if known."""
        path = self.path / files.LABELS
        return _rows(path, LABEL_COLUMNS) if path.is_file() else []

    @cached_property
    def train(self) -> list[dict[str, str]]:
        """The training examples' rows of labels.csv."""
        return self.of_part("train")

    def of_part(self, part: str) -> list[dict[str, str]]:
        """Return a part's rows of labels.csv."""
        rows = [row for row in self.labels if row["part"] == part]
        known = set(self.facts.classes)
        strange = [row for row in rows if not {row["label"], row["true_label"]} <= known | {""}]
        if strange:
            raise RunError(
                f"{self.path / files.LABELS} has a label of '{strange[0]['id']}' that is no class; "
                "train again with --overwrite"
            )
        return rows

    @cached_property
    def noise_matrix(self) -> files.NoiseMatrixRecord | None:
        """The noise matrix of the loss, and how it was estimated."""
        found = read_record(self.path / files.NOISE_MATRIX, files.NoiseMatrixRecord)
        return self._checked_matrix(found, files.NOISE_MATRIX)

    measure = _record(files.MEASURE, files.MeasureRecord)
    stability = _record(files.STABILITY, files.StabilityRecord)
    noise_check = _record(files.NOISE_CHECK, files.NoiseCheck)
    label_issues_record = _record(files.LABEL_ISSUES_RECORD, files.LabelIssuesRecord)

    @cached_property
    def quadratic(self) -> NDArray[np.float64] | None:
        """The measurement's values by example and layer, (n, L); NaN for examples outside a sample."""
        path = self.path / files.MEASURE_TENSORS
        if not path.is_file():
            return None
        from safetensors import safe_open

        with reading(path, files.MeasureRecord.what), safe_open(str(path), framework="np") as file:
            found: NDArray[np.float64] = file.get_tensor("quadratic")
            checksum = (file.metadata() or {}).get(CHECKSUM)
        if found.ndim != 2 or (self.measure and self.measure.tensors != checksum):
            raise RunError(
                f"{path} is of another measurement than {files.MEASURE} in its folder; make both again "
                "with hesstune measure"
            )
        return found

    @cached_property
    def certificate(self) -> Certificate | None:
        """The run's certificate, or a diagnostic in its place."""
        from hesstune.bounds.record import Certificate

        path = self.path / files.CERTIFICATE
        return Certificate.load(path) if path.is_file() else None

    @cached_property
    def label_issues(self) -> list[dict[str, str]] | None:
        """The rows of label_issues.csv, the most likely label error first."""
        path = self.path / files.LABEL_ISSUES
        return _rows(path, ISSUE_COLUMNS) if path.is_file() else None

    @cached_property
    def estimated_afterwards(self) -> files.NoiseMatrixRecord | None:
        """The noise matrix that the validation examples show, estimated with the list of label issues."""
        kept = self.label_issues_record
        return None if kept is None else self._checked_matrix(kept.noise_matrix, files.LABEL_ISSUES_RECORD)

    @cached_property
    def images(self) -> dict[str, files.ExampleImage]:
        """Images, or texts, of examples by their ids."""
        found = read_record(self.path / files.EXAMPLES, files.ExampleImages)
        return {} if found is None else found.by_id

    def read_all(self) -> None:
        """Read every file now; raise RunError at a damaged one, or if the run has not finished."""
        _ = self.outcome
        for name in [name for name, value in vars(Records).items() if isinstance(value, cached_property)]:
            getattr(self, name)

    def _checked_matrix(
        self, found: files.NoiseMatrixRecord | None, name: str
    ) -> files.NoiseMatrixRecord | None:
        if found is not None and len(found.matrix) != len(self.facts.classes):
            raise RunError(
                f"{self.path / name} is for {len(found.matrix)} classes, but the run has "
                f"{len(self.facts.classes)}; {found.fix}"
            )
        return found


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    rows = read_rows(path)
    if not all(isinstance(row.get(name), str) for row in rows for name in columns):
        raise RunError(f"{path} needs the columns {', '.join(columns[:-1])} and {columns[-1]}")
    return rows
