"""The run folder: what a fine-tune leaves behind, and how it is read back."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from hesstune.checks import expanded
from hesstune.display import as_html
from hesstune.errors import ConfigError, DataError, HesstuneWarning, RunError
from hesstune.options import takes_options
from hesstune.runs import records as files
from hesstune.runs.config import FinetuneConfig, read_config
from hesstune.runs.options import (
    CertifyOptions,
    MeasureOptions,
    PredictOptions,
)
from hesstune.runs.read_records import Records
from hesstune.runs.records import NoiseCheck
from hesstune.storage.files import reading, write_text
from hesstune.storage.stored import read_record, write_record

if TYPE_CHECKING:
    from pandas import DataFrame

    from hesstune.bounds.record import Certificate
    from hesstune.curvature.result import Measure
    from hesstune.data.examples import Task
    from hesstune.models.load import LoadedModel, ModelObject
    from hesstune.noise.matrix import NoiseMatrix
    from hesstune.reference import Reference
    from hesstune.runs.keywords import (
        CertifyKeywords,
        MeasureKeywords,
        PredictKeywords,
    )
    from hesstune.runs.predictions import Predictions
    from hesstune.storage.seen_examples import SeenExamples

# The commands on finished runs, as methods. Their packages import this one: they are looked up by name when
# they are called.
_COMMANDS = {
    "measure": ("hesstune.analysis.measure", "measure_run"),
    "certify": ("hesstune.analysis.certify", "certify_run"),
    "predict": ("hesstune.analysis.predict", "predict"),
    "noise": ("hesstune.analysis.noise", "check_noise"),
    "label_issues": ("hesstune.analysis.label_issues", "label_issues"),
    "report": ("hesstune.report.write", "write_report"),
}


def _command(name: str) -> Any:
    module, function = _COMMANDS[name]
    return getattr(importlib.import_module(module), function)


@dataclass(frozen=True)
class SourceObjects:
    """What a run was made from that its folder does not hold: objects given in Python.

    Attributes:
        data: A task or what one is made of; None: the configuration's `data` names it.
        model: A network; None: the configuration's `model` names it.
    """

    data: Any = None
    model: ModelObject | None = None


class Run:
    """A fine-tuning run, read from its folder; the commands on finished runs are its methods.

    Attributes:
        path: The folder.
        config: The resolved configuration.
        facts: What `run.json` holds, typed: classes, preprocessing, sizes, versions and, once finished,
            the `result`.
        given: Data and model, if they were objects.

    Example:
        >>> run = Run.load("runs/a")                    # doctest: +SKIP
        >>> run.result["test_accuracy"]                 # doctest: +SKIP
        0.86
        >>> run.outcome.test_accuracy                   # doctest: +SKIP
        0.86
    """

    def __init__(
        self, path: Path, config: FinetuneConfig, facts: files.RunRecord, given: SourceObjects | None = None
    ) -> None:
        self.path = path
        self.config = config
        self.facts = facts
        self.given = given or SourceObjects()

    @classmethod
    def load(cls, path: str | Path, *, data: Any = None, model: ModelObject | None = None) -> Run:
        """Read a run folder, of this version or an earlier one.

        Args:
            path: The folder.
            data: The run's data again, if it was objects (`data: memory`) or is elsewhere by now; it is
                checked against what the run was trained on when it is needed.
            model: The run's network again, if it was a module (`model: module`); its weights are the
                folder's.

        Raises:
            RunError: If the folder is missing or is no run folder, or if its record or configuration is
                damaged or of a later version.
        """
        path = expanded(path)
        if not path.is_dir():
            raise RunError(f"the run folder {path} does not exist")
        if missing := [name for name in (files.CONFIG, files.RECORD) if not (path / name).is_file()]:
            raise RunError(f"{path} is no run folder: {missing[0]} is missing")
        facts = read_record(path / files.RECORD, files.RunRecord)
        assert facts is not None
        try:
            return cls(path, read_config(path / files.CONFIG), facts, SourceObjects(data, model))
        except ConfigError as error:
            raise RunError(
                f"{path / files.CONFIG} cannot be read as a run's configuration ({error}); train again with "
                "--overwrite"
            ) from error

    def with_given(self, data: Any = None, model: ModelObject | None = None) -> Run:
        """Return the same run with its data or model given again, as for `load`; itself if neither is."""
        if data is None and model is None:
            return self
        given = SourceObjects(
            self.given.data if data is None else data, self.given.model if model is None else model
        )
        return type(self)(self.path, self.config, self.facts, given)

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of their indices."""
        return list(self.facts.classes)

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` holds, as plain values (a copy; `facts` has the same, typed)."""
        return self.facts.to_dict()

    @property
    def records(self) -> Records:
        """Every record of the folder, typed, as it is now."""
        return Records(self.path, self.config, self.facts)

    @property
    def finished(self) -> bool:
        """Whether training ran to its end."""
        return self.facts.result is not None

    @property
    def outcome(self) -> files.Result:
        """The final numbers of a finished run, typed; RunError if it has not finished."""
        return self.records.outcome

    @property
    def result(self) -> dict[str, Any]:
        """The final numbers of a finished run, as plain values (a copy); RunError if it has not finished."""
        return self.outcome.to_dict()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One record an epoch, as plain values."""
        return [epoch.to_dict() for epoch in self.records.epochs]

    def to_frame(self) -> DataFrame:
        """Return a pandas DataFrame with a row for each epoch.

        Columns: epoch, train_loss, train_accuracy, lr, val_loss, val_accuracy, val_accuracy_true_labels,
        distance, seconds, and what `measure_every` adds (measure, measure_stderr, measure_examples; else
        empty). Epoch 0 is the network before its first step.
        """
        from pandas import DataFrame

        return DataFrame(self.metrics, columns=list(files.Epoch.model_fields))

    def _repr_html_(self) -> str:
        shown = {"Test accuracy": "test_accuracy", "Training accuracy": "train_accuracy", "Gap": "gap"}
        found = self.result if self.finished else {}
        numbers = [f"{title}: {found[n]:.3f}" for title, n in shown.items() if found.get(n) is not None]
        return as_html(repr(self), numbers, self.to_frame())

    @property
    def noise_matrix(self) -> NoiseMatrix | None:
        """The noise matrix of the loss, if any."""
        from hesstune.noise.matrix import NoiseMatrix

        path = self.path / files.NOISE_MATRIX
        return NoiseMatrix.load(path, self.classes) if path.is_file() else None

    def labels(self) -> list[dict[str, str]]:
        """Return the rows of labels.csv: id, part, label trained on, and the true label if known."""
        if not (path := self.path / files.LABELS).is_file():
            raise RunError(f"{path} is missing; train again with --overwrite")
        return self.records.labels

    def loaded(self) -> LoadedModel:
        """Rebuild the fine-tuned network with its preprocessing."""
        from safetensors.torch import load_file

        from hesstune.runs.loading import network_of
        from hesstune.storage.seen_examples import SeenExamples

        path = self.path / files.MODEL
        if not path.is_file():
            raise RunError(f"{path} is missing; continue the run with --resume")
        with reading(path, "weights"):
            weights = load_file(path)
        seen = SeenExamples.of_file(path) or SeenExamples()
        loaded = replace(network_of(self.config, self.facts, weights, str(path), self.given.model), seen=seen)
        seen.note_on(loaded.model)
        return loaded

    def model(self) -> Any:
        """Rebuild the fine-tuned network, in eval mode, on the CPU."""
        return self.loaded().model

    def reference(self) -> Reference:
        """Read the weights that fine-tuning started from."""
        from hesstune.reference import Reference

        return Reference.load(self.path / files.REFERENCE)

    def seen_by_start(self) -> SeenExamples:
        """Return the examples that the weights before fine-tuning have seen, as far as they are recorded."""
        from hesstune.storage.seen_examples import SeenExamples

        unrecorded = () if self.config.weights is None else (self.config.weights,)
        return SeenExamples.of_file(self.path / files.REFERENCE) or SeenExamples(unrecorded=unrecorded)

    def task(self) -> Task:
        """Return the run's examples again, with the labels it was trained on.

        Raises:
            DataError: If the data was objects, and is not given again.
            ChangedDataError: If an id, image, text or label of any part is not what the run was made from.
        """
        from hesstune.runs.integrity import DataRecord, check_data, check_labels_file
        from hesstune.runs.loading import located, missing_data, run_task

        config = located(self.config, self.facts)
        try:
            found = run_task(config, config.seed, self.given.data)
        except DataError as error:
            if self.given.data is not None or not (hint := missing_data(config.data, self.facts)):
                raise
            raise DataError(f"{error}{hint}") from error
        check_data(self.records, DataRecord.of(found, bool(self.config.inject_noise), self.given.data))
        check_labels_file(self.records, found)
        return found

    # -- the commands; `data` and `model` are as for `load` --------------------------------------

    @takes_options(MeasureOptions)
    def measure(
        self,
        *,
        data: Any = None,
        model: ModelObject | None = None,
        progress: Callable[[int, int, str], None] | None = None,
        **options: Unpack[MeasureKeywords],
    ) -> Measure:
        """Measure every layer on the training examples, as `hesstune measure`; write measure.json.

        Args:
            data: The run's data, as for `load`.
            model: The run's network, as for `load`.
            progress: Called with (done, in all, text).
            **options: Options of `MeasureOptions`, by name.

        Raises:
            HesstuneError: If the run has not finished, its data has changed, or is not at hand.
        """
        found: Measure = _command("measure")(self.with_given(data, model), progress=progress, **options)
        return found

    @takes_options(CertifyOptions)
    def certify(
        self,
        *,
        data: Any = None,
        model: ModelObject | None = None,
        progress: Callable[[int, int, str], None] | None = None,
        **options: Unpack[CertifyKeywords],
    ) -> Certificate:
        """Bound the test error from the training examples, as `hesstune certify`; write certificate.json.

        Arguments are as for `measure`, `options` those of `CertifyOptions`.

        Raises:
            HesstuneError: If the run has not finished, or an assumption of the certificate fails.
        """
        found: Certificate = _command("certify")(self.with_given(data, model), progress=progress, **options)
        return found

    @takes_options(PredictOptions)
    def predict(
        self, data: Any, *, model: ModelObject | None = None, **options: Unpack[PredictKeywords]
    ) -> Predictions:
        """Predict the classes of new data, as `hesstune predict`.

        Args:
            data: New data, as for `hesstune.finetune`; labels are not needed.
            model: The run's network, as for `load`.
            **options: Options of `PredictOptions`, by name.

        Raises:
            HesstuneError: If the run has not finished, or the data cannot be used.
        """
        found: Predictions = _command("predict")(self.with_given(model=model), data, **options)
        return found

    def noise(
        self, *, data: Any = None, model: ModelObject | None = None, seed: int = 0, device: str = "auto"
    ) -> NoiseCheck:
        """Compare the run's noise matrix with estimates from its labels, as `hesstune noise`.

        Arguments are as for `measure`; `seed` is that of what is drawn.

        Raises:
            HesstuneError: If the run has not finished, or there are too few examples.
        """
        found: NoiseCheck = _command("noise")(self.with_given(data, model), seed=seed, device=device)
        return found

    def label_issues(
        self, *, data: Any = None, model: ModelObject | None = None, device: str = "auto"
    ) -> list[dict[str, str]]:
        """Rank the training labels, likely errors first; write label_issues.csv and return its rows.

        Arguments are as for `measure`.

        Raises:
            HesstuneError: If the run has not finished, its data has changed, or is not at hand.
        """
        _command("label_issues")(self.with_given(data, model), device=device)
        return self.records.label_issues or []

    def report(self, *, data: Any = None, model: ModelObject | None = None, device: str = "auto") -> Path:
        """Write report.html, as `hesstune report`, and return its path.

        Arguments are as for `measure`. Without the run's data the page lacks images and suspected label
        errors; a warning says so.

        Raises:
            RunError: If the run has not finished, or a record is damaged.
        """
        page: Path
        page, note = _command("report")(self.with_given(data, model), device=device)
        if note:
            warnings.warn(note, HesstuneWarning, stacklevel=2)
        return page

    # -- writing -----------------------------------------------------------------------------

    def add(self, **facts: Any) -> None:
        """Set facts of the record; `write_record` writes them."""
        self.facts = self.facts.replaced(**facts)

    def write_record(self) -> None:
        """Write run.json."""
        write_record(self.path / files.RECORD, self.facts)

    def write_metrics(self, metrics: list[files.Epoch]) -> None:
        """Write metrics.jsonl whole, so that every epoch is there once."""
        text = "".join(json.dumps(epoch.to_dict(), allow_nan=False) + "\n" for epoch in metrics)
        write_text(self.path / files.METRICS, text)

    def __repr__(self) -> str:
        state = "finished" if self.finished else "not finished"
        return f"Run({str(self.path)!r}, method={self.config.method!r}, {state})"
