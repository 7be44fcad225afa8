"""The run folder: what a fine-tune leaves behind, and how it is read back."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesstune.errors import RunError
from hesstune.training.config import FinetuneConfig, make_config, read_yaml
from hesstune.training.files import replace_file, write_json, write_text

if TYPE_CHECKING:
    from hesstune.models.load import LoadedModel
    from hesstune.noise.matrix import NoiseMatrix
    from hesstune.reference import Reference

__all__ = ["Run", "claim", "clear", "locked"]

CONFIG, MODEL, REFERENCE = "config.yaml", "model.safetensors", "reference.safetensors"
METRICS, LABELS, NOISE, RECORD = "metrics.jsonl", "labels.csv", "noise_matrix.json", "run.json"
CHECKPOINT, BAD_IMAGES, CARD, LOCK = "checkpoint.safetensors", "bad_images.csv", "README.md", ".lock"
# Written from a run's results by other commands: void once the run is replaced.
DERIVED = (
    "measure.json",
    "measure.safetensors",
    "certificate.json",
    "report.html",
    "doubtful.csv",
    "examples.json",
    "noise_estimate.json",
    "noise_stability.json",
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
        try:
            record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise RunError(f"{path / RECORD} cannot be read ({error})") from error
        if not isinstance(record, dict) or not isinstance(record.get("classes"), list):
            raise RunError(f"{path / RECORD} does not hold a run's record")
        return cls(path, make_config(read_yaml(path / CONFIG)), record)

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
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        except ValueError as error:
            raise RunError(f"{path} is damaged ({error})") from error

    @property
    def noise_matrix(self) -> NoiseMatrix | None:
        """The noise matrix that the loss was told, if any."""
        from hesstune.noise.matrix import NoiseMatrix

        path = self.path / NOISE
        return NoiseMatrix.load(path) if path.is_file() else None

    def labels(self) -> list[dict[str, str]]:
        """Return the rows of labels.csv: id, part, label trained on, and the true label where known."""
        with (self.path / LABELS).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def loaded(self) -> LoadedModel:
        """Rebuild the fine-tuned network with its preprocessing."""
        from dataclasses import replace

        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from hesstune.models.load import load_model, set_parameters

        path = self.path / MODEL
        if not path.is_file():
            raise RunError(f"{path} is missing; continue the run with --resume")
        text = self.record.get("kind") == "text"
        loaded = load_model(
            self.config.model, len(self.classes), head_init="keep", text=text, pretrained=False
        )
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} cannot be read ({error})") from error
        set_parameters(loaded.model, state, str(path))
        loaded.model.eval()
        shape = self.record["normalisation"]
        return replace(loaded, mean=tuple(shape["mean"]), std=tuple(shape["std"]))

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


def claim(out: Path, overwrite: bool, resume: bool, create: bool = True) -> None:
    """Make sure that a run may be written to `out`, and create the folder unless told otherwise.

    Raises:
        RunError: If the folder holds anything and neither overwrite nor resume is given, if it is
            no run folder, or if it cannot be written to.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out} is a file; give the path of a folder")
    kept = [p for p in out.iterdir() if p.name != LOCK] if out.is_dir() else []
    if kept and not (overwrite or resume):
        raise RunError(
            f"the folder {out} exists and is not empty; choose another --out, continue it with --resume "
            "or replace it with --overwrite"
        )
    if kept and not (out / CONFIG).is_file():
        raise RunError(f"the folder {out} holds files but no run; choose another --out")
    if not create:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / ".writable", lambda part: part.write_bytes(b""))
        (out / ".writable").unlink()
    except OSError as error:
        raise RunError(f"cannot write to --out {out}: {error.strerror or error}") from error


def clear(out: Path) -> None:
    """Remove the files of the run that is replaced; whatever else lies in the folder stays."""
    names = (RECORD, MODEL, REFERENCE, METRICS, LABELS, NOISE, CHECKPOINT, BAD_IMAGES, CARD, *DERIVED)
    for name in names:
        (out / name).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the run folder's lock (flock: it goes with the process).

    Raises:
        RunError: If another process holds it.
    """
    try:
        file = (out / LOCK).open("w")
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(
                f"another process is writing to {out}; wait for it or choose another --out"
            ) from None
        yield
