"""The run folder: what a fine-tune leaves behind, and how it is read back."""

from __future__ import annotations

import importlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesstune.errors import HesstuneWarning, RunError
from hesstune.runs.config import FinetuneConfig, read_config
from hesstune.storage.atomic import write_json, write_text
from hesstune.storage.reading import read_json, read_rows, read_text, reading

if TYPE_CHECKING:
    from hesstune.bounds.record import Certificate
    from hesstune.curvature.result import Measure
    from hesstune.data.examples import Task
    from hesstune.models.load import LoadedModel, ModelObject
    from hesstune.noise.matrix import NoiseMatrix
    from hesstune.reference import Reference
    from hesstune.runs.predictions import Predictions

__all__ = ["Given", "Run"]

CONFIG, MODEL, REFERENCE = "config.yaml", "model.safetensors", "reference.safetensors"
METRICS, LABELS, NOISE, RECORD = "metrics.jsonl", "labels.csv", "noise_matrix.json", "run.json"
BAD_IMAGES, CARD = "bad_images.csv", "README.md"
CERTIFICATE = "certificate.json"
# Folders of a certificate whose prior is trained on a part of the data.
PRIOR, POSTERIOR = "prior", "posterior"
# Written from a run's results by other commands: void once the run is replaced.
DERIVED = (
    "measure.json",
    "measure.safetensors",
    CERTIFICATE,
    "report.html",
    "doubtful.csv",
    "examples.json",
    "noise_estimate.json",
    "noise_stability.json",
    "mlflow_run",
    "radius.json",
)

# The commands on finished runs, as methods. They build on runs, so their rooms lie above this one: they
# are looked up by name, when called, and nothing here imports upward.
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
class Given:
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
        record: What `run.json` holds: classes, preprocessing, sizes, versions and, once finished,
            the `result`.
        given: Data and model, where they were objects.

    Example:
        >>> run = Run.load("runs/a")                    # doctest: +SKIP
        >>> run.result["test_accuracy"]                 # doctest: +SKIP
        0.86
    """

    def __init__(
        self, path: Path, config: FinetuneConfig, record: dict[str, Any], given: Given | None = None
    ) -> None:
        self.path = path
        self.config = config
        self.record = record
        self.given = given or Given()

    @classmethod
    def load(cls, path: str | Path, *, data: Any = None, model: ModelObject | None = None) -> Run:
        """Read a run folder.

        Args:
            path: The folder.
            data: The run's data again, where it was objects (`data: memory`) or is elsewhere by now; it is
                checked against what the run was trained on when it is needed.
            model: The run's network again, where it was a module (`model: module`); its weights are the
                folder's.

        Raises:
            RunError: If the folder is missing or is no run folder.
        """
        path = Path(path)
        if not path.is_dir():
            raise RunError(f"the run folder {path} does not exist")
        for name in (CONFIG, RECORD):
            if not (path / name).is_file():
                raise RunError(f"{path} is no run folder: {name} is missing")
        record = read_json(path / RECORD)
        if not isinstance(record, dict) or not isinstance(record.get("classes"), list):
            raise RunError(f"{path / RECORD} does not hold a run's record")
        return cls(path, read_config(path / CONFIG), record, Given(data, model))

    def with_given(self, data: Any = None, model: ModelObject | None = None) -> Run:
        """Return the same run with its data or model given again, as for `load`; itself where neither is."""
        if data is None and model is None:
            return self
        given = Given(self.given.data if data is None else data, self.given.model if model is None else model)
        return type(self)(self.path, self.config, self.record, given)

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of their indices."""
        return [str(name) for name in self.record["classes"]]

    @property
    def finished(self) -> bool:
        """Whether training ran to its end."""
        return "result" in self.record

    @property
    def result(self) -> dict[str, Any]:
        """The final record of a finished run.

        Raises:
            RunError: If the run has not finished.
        """
        if not self.finished:
            raise RunError(f"the run in {self.path} has not finished; continue it with --resume")
        found: dict[str, Any] = self.record["result"]
        return found

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One record an epoch."""
        path = self.path / METRICS
        if not path.is_file():
            return []
        with reading(path, "one JSON object an epoch"):
            return [dict(json.loads(line)) for line in read_text(path).splitlines() if line]

    @property
    def noise_matrix(self) -> NoiseMatrix | None:
        """The noise matrix that the loss was told, if any."""
        from hesstune.noise.matrix import NoiseMatrix

        path = self.path / NOISE
        return NoiseMatrix.load(path) if path.is_file() else None

    def labels(self) -> list[dict[str, str]]:
        """Return the rows of labels.csv: id, part, label trained on, and the true label where known."""
        rows = read_rows(self.path / LABELS)
        if not all({"id", "part", "label", "true_label"} <= set(row) for row in rows):
            raise RunError(f"{self.path / LABELS} needs the columns id, part, label and true_label")
        return rows

    def loaded(self) -> LoadedModel:
        """Rebuild the fine-tuned network with its preprocessing."""
        from dataclasses import replace

        from safetensors.torch import load_file

        from hesstune.models.load import load_model, set_parameters

        path = self.path / MODEL
        if not path.is_file():
            raise RunError(f"{path} is missing; continue the run with --resume")
        text = self.record.get("kind") == "text"
        spec = self.config.model if self.given.model is None else self.given.model
        loaded = load_model(spec, len(self.classes), head_init="keep", text=text, pretrained=False)
        with reading(path, "weights"):
            state = load_file(path)
        set_parameters(loaded.model, state, str(path))
        loaded.model.eval()
        with reading(self.path / RECORD, "a run's record"):
            shape = self.record["normalisation"]
            mean = float(shape["mean"][0]), float(shape["mean"][1]), float(shape["mean"][2])
            std = float(shape["std"][0]), float(shape["std"][1]), float(shape["std"][2])
        return replace(loaded, mean=mean, std=std)

    def model(self) -> Any:
        """Rebuild the fine-tuned network, in eval mode, on the CPU."""
        return self.loaded().model

    def reference(self) -> Reference:
        """Read the weights that fine-tuning started from."""
        from hesstune.reference import Reference

        return Reference.load(self.path / REFERENCE)

    def task(self) -> Task:
        """Return the run's examples again, with the labels it was trained on.

        Raises:
            DataError: If the data was objects, and is not given again.
            RunError: If it is no longer what the run was trained on.
        """
        from hesstune.runs.task import run_task

        found = run_task(self.config, self.given.data)
        self._check_unchanged(found)
        return found

    def _check_unchanged(self, task: Task) -> None:
        """Raise RunError unless the training examples are those of labels.csv, objects by contents, too."""
        rows = [row for row in self.labels() if row["part"] == "train"]
        labels = [] if task.train.labels is None else [task.classes[y] for y in task.train.labels]
        now = list(zip(task.train.ids, labels, strict=True))
        differs = now != [(row["id"], row["label"]) for row in rows] and "labels.csv differs"
        then = self.record.get("checksums", {}).get("contents")
        if not differs and self.given.data is not None and then is not None:
            from hesstune.runs.fingerprint import contents_digest

            differs = contents_digest(task) != then and "other images or texts"
        if differs:
            raise RunError(
                f"the data {self.config.data} is no longer what {self.path} was trained on ({differs}); "
                "restore the data or train again"
            )

    # -- the commands ------------------------------------------------------------------------

    def measure(self, *, data: Any = None, model: ModelObject | None = None, **options: Any) -> Measure:
        """Measure every layer on the training examples, as `hesstune measure`; write measure.json.

        Args:
            data: The run's data again, as for `load`.
            model: The run's network again, as for `load`.
            **options: `layers`, `examples`, `max_examples`, `trace`, `mean_sample`, `memory_mib`, `device`,
                `progress`, and those of `hesstune.measure`.

        Raises:
            HesstuneError: If the run has not finished, its data has changed, or is not at hand.
        """
        found: Measure = _command("measure")(self.with_given(data, model), **options)
        return found

    def certify(self, *, data: Any = None, model: ModelObject | None = None, **options: Any) -> Certificate:
        """Bound the test error from the training examples, as `hesstune certify`; write certificate.json.

        Args:
            data: The run's data again, as for `load`.
            model: The run's network again, as for `load`.
            **options: `delta`, `prior_fraction`, `noise_is`, `noise_method`, `clean_sample`, `draws`,
                `repeats`, `vouch`, `diagnostic`, `seed`, `device`, `progress`.

        Raises:
            HesstuneError: If the run has not finished, or an assumption of the certificate fails.
        """
        found: Certificate = _command("certify")(self.with_given(data, model), **options)
        return found

    def predict(self, data: Any, *, model: ModelObject | None = None, **options: Any) -> Predictions:
        """Predict the classes of new data, as `hesstune predict`.

        Args:
            data: New data, as for `hesstune.finetune`; labels are not needed.
            model: The run's network again, as for `load`.
            **options: `device`, `skip_bad_images`.

        Raises:
            HesstuneError: If the run has not finished, or the data cannot be used.
        """
        found: Predictions = _command("predict")(self.with_given(model=model), data, **options)
        return found

    def noise(self, *, data: Any = None, model: ModelObject | None = None, **options: Any) -> dict[str, Any]:
        """Compare the run's noise matrix with estimates from its labels, as `hesstune noise`.

        Args:
            data: The run's data again, as for `load`.
            model: The run's network again, as for `load`.
            **options: `device`, `seed`.

        Raises:
            HesstuneError: If the run has not finished, or there are too few examples.
        """
        found: dict[str, Any] = _command("noise")(self.with_given(data, model), **options)
        return found

    def label_issues(
        self, *, data: Any = None, model: ModelObject | None = None, device: str = "auto"
    ) -> list[dict[str, str]]:
        """Rank the training labels, the most doubtful first; write doubtful.csv and return its rows.

        Args:
            data: The run's data again, as for `load`.
            model: The run's network again, as for `load`.
            device: Where to compute.

        Raises:
            HesstuneError: If the run has not finished, its data has changed, or is not at hand.
        """
        _command("label_issues")(self.with_given(data, model), device)
        return read_rows(self.path / "doubtful.csv")

    def report(self, *, data: Any = None, model: ModelObject | None = None, device: str = "auto") -> Path:
        """Write report.html, as `hesstune report`, and return its path.

        Without the run's data the page lacks pictures and doubtful labels; a warning says so.

        Args:
            data: The run's data again, as for `load`.
            model: The run's network again, as for `load`.
            device: Where to compute.

        Raises:
            RunError: If the run has not finished, or a record is damaged.
        """
        page: Path
        page, note = _command("report")(self.with_given(data, model), device)
        if note:
            warnings.warn(note, HesstuneWarning, stacklevel=2)
        return page

    # -- writing -----------------------------------------------------------------------------

    def write_record(self) -> None:
        """Write run.json."""
        write_json(self.path / RECORD, self.record)

    def write_metrics(self, metrics: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl whole, so that every epoch is there once."""
        write_text(self.path / METRICS, "".join(json.dumps(m, allow_nan=False) + "\n" for m in metrics))

    def __repr__(self) -> str:
        state = "finished" if self.finished else "not finished"
        return f"Run({str(self.path)!r}, method={self.config.method!r}, {state})"
