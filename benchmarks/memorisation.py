"""Whether the measure of held-out examples warns of memorised labels before noisy validation does.

Plain fine-tuning of all layers with `--measure-every 1`, to the last epoch. `Recording` keeps, for each
epoch, the prediction of every training example in its training batch. A result has the curves, and the
agreement with the wrong given labels by epoch.

Memorisation starts in the first epoch with an agreement of 20 points above the least so far. The constants of
`RULES`, except patience, are the smallest in steps of 0.1 (of accuracy 0.02) without an alarm in the clean
development runs, those with seeds from 100 on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

import hesstune as ht
from data_files import data_string
from hesstune.methods import Batch, MethodSetup
from hesstune.methods.baselines import Vanilla
from records import Row, Run

DEVELOPMENT = 100
RISE, PATIENCE = 0.2, 3
MEASURE_TIMES, LOSS_TIMES, ACCURACY_GAP = 2.2, 1.3, 0.2
CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_accuracy_true_labels", "measure")


def _first(hits: Sequence[bool]) -> int | None:
    """Return the first epoch, from 1, that a rule holds in."""
    return next((at + 1 for at, hit in enumerate(hits) if hit), None)


def _times_least(values: Sequence[float | None], times: float) -> list[bool]:
    """Return which values are at least so many times the least up to them; None is left out."""
    array = np.array(values, dtype=float)
    return list(array >= times * np.fmin.accumulate(array))


def _waited(losses: Sequence[float]) -> list[bool]:
    """Return after which epochs the least loss is `PATIENCE` epochs old, as `--patience` counts."""
    return [at - int(np.argmin(losses[: at + 1])) >= PATIENCE for at in range(len(losses))]


def onset(row: Row) -> int | None:
    """Return the epoch in which memorisation starts; None if labels are correct, or it does not."""
    agreement = np.array(row.get("agreement", []))
    return _first(list(agreement >= np.minimum.accumulate(agreement) + RISE))


RULES: dict[str, Callable[[Row], int | None]] = {
    f"measure {MEASURE_TIMES} times its least": lambda r: _first(_times_least(r["measure"], MEASURE_TIMES)),
    f"validation loss {LOSS_TIMES} times its least": lambda r: _first(
        _times_least(r["val_loss"], LOSS_TIMES)
    ),
    f"`--patience {PATIENCE}`": lambda r: _first(_waited(r["val_loss"])),
    f"training − validation accuracy {ACCURACY_GAP}": lambda r: _first(
        list(np.array(r["train_accuracy"]) - np.array(r["val_accuracy"]) >= ACCURACY_GAP)
    ),
}


class Recording(Vanilla):
    """Plain fine-tuning that keeps what each example was predicted as, (epochs, n), -1 before."""

    kept: ClassVar[NDArray[np.int64]]  # the predictions, once training has ended

    def __init__(self, setup: MethodSetup) -> None:
        super().__init__(setup)
        assert setup.labels is not None
        self.predictions = torch.full((setup.epochs, len(setup.labels)), -1)

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        loss, logits = super().batch_loss(batch)
        self.predictions[batch.epoch, batch.indices.cpu()] = logits.detach().argmax(1).cpu()
        return loss, logits

    def state(self) -> dict[str, Any]:
        return {"predictions": self.predictions}

    def load_state(self, state: dict[str, Any]) -> None:
        self.predictions = state["predictions"]

    def finish(self) -> None:
        Recording.kept = self.predictions.numpy()


def cases(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the tasks, each with its seeds."""
    for task, own in settings["tasks"].items():
        yield from ({"task": task, "seed": seed} for seed in own["seeds"])


def train(case: dict[str, Any], asked: Run, folder: Path) -> dict[str, Any]:
    """Fine-tune in a folder, or continue there, and return the curves."""
    own = asked.settings["tasks"][case["task"]]
    source = data_string(asked.data, own["source"], folder, None)
    options = {**asked.settings["common"], "data": source, "inject_noise": own.get("noise")}
    run = ht.finetune(**options, method=Recording, seed=asked.seed, out=folder / "run", resume=True)
    classes, rows = run.facts.classes, [row for row in run.labels() if row["part"] == "train"]
    given = np.array([classes.index(row["label"]) for row in rows])
    wrong = np.array([row["true_label"] not in ("", row["label"]) for row in rows])
    found: dict[str, Any] = {name: [m.get(name) for m in run.metrics] for name in CURVES}
    found |= {"wrong": int(wrong.sum()), "n": len(rows), "test_accuracy": run.outcome.test_accuracy}
    if wrong.any():
        found["agreement"] = (Recording.kept == given)[:, wrong].mean(1).tolist()
    return found


def measure(case: dict[str, Any], asked: Run) -> dict[str, Any]:
    """Fine-tune once."""
    with tempfile.TemporaryDirectory() as name:
        return train(case, asked, Path(name))
