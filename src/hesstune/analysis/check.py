"""Which examples a person is to label to bound the true error: drawn at random, written as a sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hesstune.analysis.seen_start import SeenStart
from hesstune.analysis.trained_prior import parted
from hesstune.errors import DataError, RunError
from hesstune.options import make_options, takes_options
from hesstune.runs.fingerprint import check_files
from hesstune.runs.guarantee_log import log_sheet
from hesstune.runs.options.analysis import CheckOptions
from hesstune.runs.records import TO_CHECK
from hesstune.runs.run import Run
from hesstune.storage.atomic import write_csv

__all__ = ["check_run"]

SAMPLE_KEY = 0xC4EC


@takes_options(CheckOptions)
def check_run(run: Run, **options: Any) -> Path:
    """Draw examples at random for a person to label, for `certify --checked`; write the sheet to fill in.

    It goes to the run's folder and has the columns id, text (of texts) and an empty true_label. The given
    labels are not shown, so that they do not influence the person. The draw is recorded: an example that is
    left empty counts as an error of the network, and each further sheet of a run pays a part of delta.

    Args:
        run: A finished run.
        **options: Options of `CheckOptions`, by name.

    Raises:
        DataError: If there are no examples to draw from, or the weights before fine-tuning have seen some.
        RunError: If the sheet is there: it may be filled in already.
    """
    asked = make_options(CheckOptions, options)
    _ = run.outcome
    check_files(run)
    path = run.path / TO_CHECK
    if path.exists():
        raise RunError(f"{path} exists, and may hold labels already; move it away to draw another sample")
    task = run.task()
    part, rows = task.test, np.arange(len(task.test))
    if asked.prior_fraction:
        part, rows = task.train, parted(np.arange(len(task.train)), asked.prior_fraction, asked.seed)[1]
    if not len(rows):
        raise DataError("there are no test examples to draw from; give --prior-fraction")
    if why := SeenStart.of(run).refusal(part, rows):
        raise DataError(why)
    drawn = np.random.default_rng([asked.seed, SAMPLE_KEY]).permutation(rows)[: asked.sample]
    log_sheet(run.path, [part.ids[row] for row in drawn], asked.model_dump(mode="json"))
    texts = part.texts
    header = ("id", "true_label") if texts is None else ("id", "text", "true_label")
    lines = []
    for row in drawn.tolist():
        shown = [] if texts is None else [" / ".join(text for text in texts[row] if text is not None)]
        lines.append((part.ids[row], *shown, ""))
    write_csv(path, header, lines)
    return path
