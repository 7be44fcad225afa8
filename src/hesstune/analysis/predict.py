"""`hesstune.predict`: labels and probabilities for new data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from hesstune.data.load import load_examples
from hesstune.inputs.batches import make_inputs, predict_logits, to_channels_last
from hesstune.models.load import LoadedModel
from hesstune.options import make_options, takes_options
from hesstune.runs.keywords import PredictKeywords
from hesstune.runs.loading import reading_of, size_of
from hesstune.runs.options import PredictOptions, TaskOptions
from hesstune.runs.predictions import Predictions
from hesstune.runs.run import Run
from hesstune.runtime.device import pick_device
from hesstune.training.metrics import accuracy


@takes_options(PredictOptions)
def predict(run: Run | str | Path, data: Any, **options: Unpack[PredictKeywords]) -> Predictions:
    """Predict the classes of new data with a finished run.

    Args:
        run: A run or its folder.
        data: As for `hesstune.finetune`; labels are not needed, so texts, arrays or images alone are enough.
        **options: Options of `PredictOptions`, by name.

    Raises:
        HesstuneError: If an option is wrong, the run has not finished, or the data cannot be used.

    Example:
        >>> predictions = predict("runs/a", "folder:photos")    # doctest: +SKIP
        >>> predictions.predicted[:2]                     # doctest: +SKIP
        ['dog', 'horse']
    """
    asked = make_options(PredictOptions, options)
    run = run if isinstance(run, Run) else Run.load(run)
    _ = run.outcome
    return predict_with(run.loaded(), run.config, run.config.seed, run.classes, data, asked)


def predict_with(
    loaded: LoadedModel,
    options: TaskOptions,
    seed: int,
    classes: list[str],
    data: Any,
    asked: PredictOptions | None = None,
) -> Predictions:
    """Predict with a network in memory, moved to the device, with the input options and seed of its run."""
    asked = asked or make_options(PredictOptions, {})
    target = pick_device(asked.device)
    loaded_data = load_examples(
        data,
        size=size_of(options),
        classes=classes,
        skip_bad=asked.skip_bad_images,
        cache_mib=options.cache_mib,
        how=reading_of(options, seed, asked),
        skip_blank=asked.blank_texts == "leave_out",
    )
    examples = loaded_data.examples
    to_channels_last(loaded.model, target)
    feed = make_inputs(examples, loaded, target, max_length=options.max_length, blank=True)
    logits = predict_logits(loaded.model, feed)
    labels = examples.labels
    labelled = np.flatnonzero(labels >= 0) if labels is not None else np.zeros(0, dtype=np.int64)
    return Predictions(
        examples.ids,
        classes,
        torch.softmax(logits.double(), dim=1).numpy(),
        labels,
        None if labels is None else accuracy(logits[torch.from_numpy(labelled)], labels[labelled]),
        loaded_data.skipped,
        loaded_data.notes,
    )
