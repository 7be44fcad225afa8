"""`hesstune.predict`: labels and probabilities for new data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.load import load_examples
from hesstune.errors import RunError
from hesstune.inputs.batches import make_inputs, predict_logits
from hesstune.inputs.image_inputs import to_channels_last
from hesstune.runs.run import Run
from hesstune.runtime.device import pick_device
from hesstune.storage.atomic import write_csv
from hesstune.training.evaluate import accuracy

__all__ = ["Predictions", "predict"]


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of new examples.

    Attributes:
        ids: One id an example: its relative path, or its row.
        classes: Class names.
        probabilities: (N, K) float64, rows sum to 1.
        labels: (N,) given labels, or None where the data has none of the run's classes.
        accuracy: Share of the given labels predicted, or None.
        skipped: (id, reason) of images left out.
    """

    ids: list[str]
    classes: list[str]
    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64] | None
    accuracy: float | None
    skipped: list[tuple[str, str]]

    @property
    def predicted(self) -> list[str]:
        """The most probable class of each example, by name."""
        return [self.classes[i] for i in self.probabilities.argmax(axis=1)]

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a CSV file: id, prediction, the given label if any, and p_CLASS for each class.

        Raises:
            RunError: If the file exists and `overwrite` is not set, or cannot be written.
        """
        path = Path(path)
        if path.is_dir():
            raise RunError(f"--out {path} is a folder; give the path of a CSV file")
        if path.exists() and not overwrite:
            raise RunError(f"{path} exists; choose another --out or give --overwrite")
        header = ["id", "prediction", *(["label"] if self.labels is not None else [])]
        rows = []
        for at, (example, name) in enumerate(zip(self.ids, self.predicted, strict=True)):
            given = [] if self.labels is None else [self.classes[self.labels[at]]]
            rows.append([example, name, *given, *(f"{p:.6g}" for p in self.probabilities[at])])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror or error}") from error
        write_csv(path, [*header, *(f"p_{name}" for name in self.classes)], rows)


def predict(
    run: Run | str | Path, data: str, *, device: str = "auto", skip_bad_images: bool = False
) -> Predictions:
    """Predict the classes of new data with a finished run.

    Args:
        run: A run or its folder.
        data: A data specification, as for `finetune`; labels are not needed.
        device: Where to compute.
        skip_bad_images: Leave out images that cannot be decoded.

    Raises:
        RunError: If the run is missing or has not finished.
        DataError: If the data cannot be used.

    Example:
        >>> found = predict("runs/a", "folder:photos")    # doctest: +SKIP
        >>> found.predicted[:2]                           # doctest: +SKIP
        ['dog', 'horse']
    """
    run = run if isinstance(run, Run) else Run.load(run)
    _ = run.result
    config: Any = run.config
    target = pick_device(device)
    examples, skipped = load_examples(
        data,
        size=config.image_size,
        classes=run.classes,
        skip_bad=skip_bad_images,
        cache_mib=config.cache_mib,
    )
    loaded = run.loaded()
    to_channels_last(loaded.model, target)
    feed = make_inputs(examples, loaded, target, max_length=config.max_length)
    logits = predict_logits(loaded.model, feed)
    return Predictions(
        examples.ids,
        run.classes,
        torch.softmax(logits.double(), dim=1).numpy(),
        examples.labels,
        accuracy(logits, examples.labels),
        skipped,
    )
