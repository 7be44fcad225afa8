"""`hesstune predict`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from hesstune.cli.options import JSON, QUIET
from hesstune.cli.render import Output

__all__ = ["predict"]


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    data: Annotated[str, typer.Option(help="As for finetune; labels are not needed.")],
    out: Annotated[Path, typer.Option(help="CSV file to write.")],
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    skip_bad_images: Annotated[
        bool, typer.Option("--skip-bad-images", help="Leave out images that cannot be decoded.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file in --out.")] = False,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Predict the classes of new data: ids, labels and probabilities as CSV."""
    from hesstune.analysis.predict import predict as run_predict
    from hesstune.errors import RunError

    if out.exists() and not overwrite:
        raise RunError(f"{out} exists; choose another --out or give --overwrite")
    found = run_predict(run, data, device=device, skip_bad_images=skip_bad_images)
    found.save(out, overwrite=overwrite)
    counts = Counter(found.predicted)
    output = Output(quiet, json)
    output.say(
        f"{len(found.ids)} examples: " + ", ".join(f"{n} {name}" for name, n in counts.most_common(12))
    )
    if found.accuracy is not None:
        output.say(f"accuracy on the labels given: {found.accuracy:.1%}")
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
        }
    )
