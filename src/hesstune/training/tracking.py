"""Metrics sent to TensorBoard or MLflow while a run trains: the records of metrics.jsonl, and the result."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from hesstune.errors import MissingExtraError
from hesstune.runs.records import MLFLOW, MLFLOW_RUN, TENSORBOARD, Epoch
from hesstune.runs.run import Run
from hesstune.storage.atomic import write_text

__all__ = ["check_tracker", "tracked"]

Metrics = list[Epoch]


class _Writer(Protocol):
    def write(self, values: dict[str, float], step: int) -> None:
        """Send values at a step; they are on disk, or with the server, when it returns."""


def check_tracker(name: str | None) -> None:
    """Raise MissingExtraError if the package behind a tracker is not installed: before training starts."""
    from importlib.util import find_spec

    package = {"tensorboard": "tensorboard", "mlflow": "mlflow"}.get(name or "")
    if package is not None and find_spec(package) is None:
        shown = "mlflow-skinny" if package == "mlflow" else package
        raise MissingExtraError(shown, "tracking", f"--track {name}")


def tracked(run: Run) -> Callable[[Metrics], None]:
    """Return what is called with all records so far after every epoch: it writes and, if asked, tracks.

    TensorBoard's files go to the run folder's `tensorboard`; MLflow's records to MLFLOW_TRACKING_URI,
    or to `mlruns` in the run folder. A resumed run goes on in the same place.
    """
    if run.config.track is None:
        return run.write_metrics
    writers: list[_Writer] = []
    sent = 0

    def on_epoch(metrics: Metrics) -> None:
        nonlocal sent
        run.write_metrics(metrics)
        if not writers:
            kind = _TensorBoard if run.config.track == "tensorboard" else _Mlflow
            writers.append(kind(run))
        for record in metrics[sent:]:
            told = record.to_dict().items()
            values = {k: float(v) for k, v in told if k != "epoch" and isinstance(v, int | float)}
            writers[0].write(values, record.epoch)
        sent = len(metrics)

    return on_epoch


class _TensorBoard:
    """Event files in the run folder, written afresh by each process: a resumed run sends all epochs again."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.path / TENSORBOARD
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.writer: Any = SummaryWriter(str(folder))

    def write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()


class _Mlflow:
    """One MLflow run, whose id is kept in the run folder; a resumed run sends what is not there yet."""

    def __init__(self, run: Run) -> None:
        self._last: dict[str, int] = {}
        # MLflow warns of its file store; here it is the one that needs no database.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        self.client: Any = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or _uri(run.path / MLFLOW))
        kept = run.path / MLFLOW_RUN
        if kept.is_file():
            self.id = kept.read_text(encoding="utf-8").strip()
            return
        experiment = self.client.get_experiment_by_name("hesstune")
        at = experiment.experiment_id if experiment else self.client.create_experiment("hesstune")
        self.id = self.client.create_run(at, run_name=str(run.path)).info.run_id
        write_text(kept, self.id + "\n")
        for name, value in run.config.to_dict().items():
            if value is not None:
                self.client.log_param(self.id, name, str(value)[:500])

    def write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            if name not in self._last:
                sent = self.client.get_metric_history(self.id, name)
                self._last[name] = max((metric.step for metric in sent), default=0)
            if step > self._last[name]:
                self.client.log_metric(self.id, name, value, step=step)
                self._last[name] = step


def _uri(folder: Path) -> str:
    return folder.resolve().as_uri()
