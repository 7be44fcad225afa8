"""The run folder: what a fine-tune leaves behind, and how it is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesstune.errors import RunError
from hesstune.runs.config import FinetuneConfig, read_config
from hesstune.storage.atomic import write_json, write_text
from hesstune.storage.reading import read_json, read_rows, read_text, reading

if TYPE_CHECKING:
    from hesstune.models.load import LoadedModel
    from hesstune.noise.matrix import NoiseMatrix
    from hesstune.reference import Reference

__all__ = ["Run"]

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


class Run:
    """A fine-tuning run, read from its folder.

    Attributes:
        path: The folder.
        config: The resolved configuration.
        record: What `run.json` holds: classes, preprocessing, sizes, versions and, once finished,
            the `result`.

    Example:
        >>> run = Run.load("runs/a")                    # doctest: +SKIP
        >>> run.result["test_accuracy"]                 # doctest: +SKIP
        0.86
    """

    def __init__(self, path: Path, config: FinetuneConfig, record: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self.record = record

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Read a run folder.

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
        return cls(path, read_config(path / CONFIG), record)

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
        loaded = load_model(
            self.config.model, len(self.classes), head_init="keep", text=text, pretrained=False
        )
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

    def write_record(self) -> None:
        """Write run.json."""
        write_json(self.path / RECORD, self.record)

    def write_metrics(self, metrics: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl whole, so that every epoch is there once."""
        write_text(self.path / METRICS, "".join(json.dumps(m, allow_nan=False) + "\n" for m in metrics))

    def __repr__(self) -> str:
        state = "finished" if self.finished else "not finished"
        return f"Run({str(self.path)!r}, method={self.config.method!r}, {state})"
