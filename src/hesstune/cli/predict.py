"""`hesstune predict`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from hesstune.cli.options import FIRST, JSON, QUIET, RUN, replacing, with_options
from hesstune.cli.render import Output
from hesstune.runs.options import PredictOptions


@with_options()
def predict(
    run: RUN,
    data: Annotated[
        str,
        typer.Option(metavar="DATA", help="as for finetune; labels are not needed", rich_help_panel=FIRST),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="CSV file to write", rich_help_panel=FIRST)],
    options: PredictOptions,
    overwrite: Annotated[bool, replacing("the file in --out")] = False,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Predict the classes of new data: ids, labels and probabilities as CSV."""
    from hesstune.analysis.predict import predict as run_predict
    from hesstune.errors import RunError

    if out.exists() and not overwrite:
        raise RunError(f"{out} exists; choose another --out or give --overwrite")
    found = run_predict(run, data, **options.given())
    found.save(out, overwrite=overwrite)
    counts = Counter(found.predicted)
    output = Output(quiet, json)
    output.say(
        f"{len(found.ids)} examples: " + ", ".join(f"{n} {name}" for name, n in counts.most_common(12))
    )
    if found.accuracy is not None and found.labels is not None:
        given = int((found.labels >= 0).sum())
        output.say(f"accuracy on the {given} labels given: {found.accuracy:.1%}")
    for note in found.notes:
        output.say(f"Data: {note}.")
    for example, reason in found.skipped:
        output.say(f"left out: {example} ({reason})")
    output.say(f"Predictions: {out}")
    output.record(
        {
            "path": str(out),
            "examples": len(found.ids),
            "predicted": dict(counts),
            "accuracy": found.accuracy,
            "skipped": len(found.skipped),
            "notes": found.notes,
        }
    )
