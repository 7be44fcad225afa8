"""`hesstune export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hesstune.cli.options import JSON, QUIET, RUN, replacing
from hesstune.cli.render import Output


def export(
    run: RUN,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the folder to write")],
    overwrite: Annotated[bool, replacing("an earlier export")] = False,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Write a run's network for others: save_pretrained for transformers, safetensors for other networks."""
    from hesstune.analysis.export import export_run
    from hesstune.runs.run import Run

    how = export_run(Run.load(run), folder, overwrite=overwrite)
    output = Output(quiet, json)
    output.say(f"Written: {folder}", f"Load it with: {how}")
    output.record({"path": str(folder), "load": how, "files": sorted(p.name for p in folder.iterdir())})
