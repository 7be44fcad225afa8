"""Accuracies, losses and the generalization gap of a network, and metrics sent to TensorBoard or MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.examples import KEPT, REWRITTEN, Examples
from hesstune.errors import MissingExtraError
from hesstune.noise.matrix import NoiseMatrix
from hesstune.runs.records import MLFLOW, MLFLOW_RUN, TENSORBOARD, Epoch
from hesstune.runs.run import Run
from hesstune.storage.files import write_text

TEMPERATURES = tuple(np.geomspace(0.1, 10.0, 25))


def accuracy(logits: torch.Tensor, labels: NDArray[np.int64] | None) -> float | None:
    """Return the share of examples whose largest logit is their label; None without examples."""
    if labels is None or not len(labels):
        return None
    return float((logits.argmax(dim=1).numpy() == labels).mean())


def cross_entropy_under(
    logits: torch.Tensor,
    labels: NDArray[np.int64],
    noise_matrix: NoiseMatrix | NDArray[np.float64] | None,
) -> float:
    """Return the mean cross-entropy; with a noise matrix, its expectation over corrupted labels.

    That is Σ_j F[y, j] ℓ(f, j): the loss on the distribution of the noisy training labels, without drawing
    them. Noise that depends on the example is given as P(noisy = j | example), (N, K).
    """
    losses = -torch.log_softmax(logits.double(), dim=1).numpy()
    if noise_matrix is None:
        return float(losses[np.arange(len(labels)), labels].mean())
    rows = noise_matrix.array[labels] if isinstance(noise_matrix, NoiseMatrix) else noise_matrix
    return float((rows * losses).sum(axis=1).mean())


class Validation:
    """Losses of a network on validation examples; their labels may be noisy.

    The loss of an example with label (or soft label) q is −Σ_k q_k ln Σ_i p_i F[i, k]: a proper score of p
    under F, which needs no true label. It chooses epochs (`select`, `patience`) and radii (`--radius auto`).

    Args:
        noise_matrix: F; None: the labels are assumed correct, F = I.
        tempered: Take p at the temperature with the least loss, so that calibration does not count. If F is
            given, this is always done: losses corrected for F leave networks badly calibrated.
    """

    def __init__(self, noise_matrix: NoiseMatrix | None, tempered: bool = False) -> None:
        self.matrix = None if noise_matrix is None else torch.tensor(noise_matrix.array)
        self.temperatures = TEMPERATURES if tempered or noise_matrix is not None else (1.0,)

    def losses(
        self,
        logits: torch.Tensor,
        labels: NDArray[np.int64] | NDArray[np.float64],
        clean: NDArray[np.bool_] | None,
    ) -> torch.Tensor:
        """Return each example's loss, (N,); checked labels need no F.

        Args:
            logits: (N, K).
            labels: (N,) labels as validated on, or (N, K) soft ones.
            clean: (N,) whether a person has checked the label, or None.
        """
        targets = torch.from_numpy(labels)
        checked = None if clean is None else torch.from_numpy(clean)
        tried = [self._losses_at(logits.double() * t, targets, checked) for t in self.temperatures]
        return min(tried, key=lambda losses: float(losses.mean()))

    def _losses_at(
        self, logits: torch.Tensor, targets: torch.Tensor, checked: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the losses of the given labels, (n,), of logits at one temperature."""
        log_p, hard = torch.log_softmax(logits, dim=1), targets.ndim == 1
        plain = log_p.gather(1, targets[:, None]).squeeze(1) if hard else (targets * log_p).sum(dim=1)
        if self.matrix is None:
            return -plain
        if hard:  # a column of F an example: K² products would be many for many classes
            noisy = (log_p.exp() * self.matrix[:, targets].T).sum(dim=1).clamp_min(1e-12).log()
        else:
            noisy = (targets * (log_p.exp() @ self.matrix).clamp_min(1e-12).log()).sum(dim=1)
        return -noisy if checked is None else -torch.where(checked, plain, noisy)


def wilson_interval(correct: float, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of an accuracy measured on n examples."""
    from scipy.stats import binomtest

    interval = binomtest(round(correct * n), n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def final_metrics(
    train: Examples,
    train_logits: torch.Tensor,
    test: Examples,
    test_logits: torch.Tensor,
    injected: NoiseMatrix | NDArray[np.float64] | None,
) -> dict[str, float | tuple[float, float] | None]:
    """Return the final numbers of a run, by their names in a `Result`.

    `gap` is the generalization gap in cross-entropy on one distribution: the test examples with
    labels as noisy as the training labels (in expectation), minus the training examples.
    """
    assert train.labels is not None
    train_loss = cross_entropy_under(train_logits, train.labels, None)
    record: dict[str, float | tuple[float, float] | None] = {
        "train_accuracy": accuracy(train_logits, train.labels),
        "train_accuracy_true_labels": accuracy(train_logits, train.true),
        "train_loss": train_loss,
    }
    measured = accuracy(test_logits, test.labels)
    if measured is None or test.labels is None:
        return {**record, "test_accuracy": None, "test_loss": None, "gap": None}
    record["test_accuracy"] = measured
    record["test_labels_rewritten"] = test.count_source(REWRITTEN)
    record["test_labels_kept"] = test.count_source(KEPT)
    record["test_accuracy_interval"] = wilson_interval(measured, len(test))
    record["test_loss"] = test_loss = cross_entropy_under(test_logits, test.labels, injected)
    record["gap"] = test_loss - train_loss
    hits = test_logits.argmax(dim=1).numpy() == test.labels
    record["test_balanced_accuracy"] = float(
        np.mean([hits[test.labels == label].mean() for label in np.unique(test.labels)])
    )
    return record


# -- trackers ----------------------------------------------------------------------------------

Send = Callable[[dict[str, float], int], None]
"""Sends values at a step; they are on disk, or with the server, when it returns."""


def check_tracker(name: str | None) -> None:
    """Raise MissingExtraError if the package behind a tracker is not installed: before training starts."""
    from importlib.util import find_spec

    if name is not None and find_spec(name) is None:
        raise MissingExtraError("mlflow-skinny" if name == "mlflow" else name, "tracking", f"--track {name}")


def tracked(run: Run) -> Callable[[list[Epoch]], None]:
    """Return a function that writes all records so far and, if asked, sends new ones to the tracker.

    TensorBoard's files go to the run folder's `tensorboard`; MLflow's records to MLFLOW_TRACKING_URI,
    or to `mlruns` in the run folder. A resumed run continues in the same place.
    """
    if run.config.track is None:
        return run.write_metrics
    send = _tensorboard(run) if run.config.track == "tensorboard" else _mlflow(run)
    sent = 0

    def on_epoch(metrics: list[Epoch]) -> None:
        nonlocal sent
        run.write_metrics(metrics)
        sent = min(sent, len(metrics) - 1)  # a second path starts at an earlier epoch
        for record in metrics[sent:]:
            items = record.to_dict().items()
            send({k: float(v) for k, v in items if k != "epoch" and v is not None}, record.epoch)
        sent = len(metrics)

    return on_epoch


def _tensorboard(run: Run) -> Send:
    """Write event files into the run folder, anew in each process: a resumed run sends all epochs again."""
    from torch.utils.tensorboard import SummaryWriter

    folder = run.path / TENSORBOARD
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    writer: Any = SummaryWriter(str(folder))

    def send(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return send


def _mlflow(run: Run) -> Send:
    """Write to one MLflow run; its id is kept in the run folder. A resumed run sends what is missing."""
    # MLflow warns about its file store, which is the one that needs no database.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    uri = os.environ.get("MLFLOW_TRACKING_URI") or (run.path / MLFLOW).resolve().as_uri()
    client: Any = MlflowClient(uri)
    kept, last = run.path / MLFLOW_RUN, dict[str, int]()
    if kept.is_file():
        own = kept.read_text(encoding="utf-8").strip()
    else:
        experiment = client.get_experiment_by_name("hesstune")
        at = experiment.experiment_id if experiment else client.create_experiment("hesstune")
        own = client.create_run(at, run_name=str(run.path)).info.run_id
        write_text(kept, own + "\n")
        for name, value in run.config.to_dict().items():
            if value is not None:
                client.log_param(own, name, str(value)[:500])

    def send(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            if name not in last:
                last[name] = max((metric.step for metric in client.get_metric_history(own, name)), default=0)
            if step > last[name]:
                client.log_metric(own, name, value, step=step)
                last[name] = step

    return send
