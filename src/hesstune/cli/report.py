"""`hesstune report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hesstune.cli.options import JSON, QUIET
from hesstune.cli.render import Output

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Write one self-contained HTML page about a run: report.html in its folder."""
    from hesstune.errors import HesstuneError
    from hesstune.report.run_page import render_run
    from hesstune.training.doubts import doubtful_labels
    from hesstune.training.files import write_text
    from hesstune.training.run import Run

    output, loaded = Output(quiet, json), Run.load(run)
    _ = loaded.result
    note = None
    if not (run / "doubtful.csv").is_file():
        try:
            doubtful_labels(loaded, device)
        except HesstuneError as error:  # the page is complete without: the data may be elsewhere by now
            note = f"Without the list of doubtful labels: {error}"
            output.say(note)
    page = run / "report.html"
    write_text(page, render_run(run))
    output.say(f"Report: {page}")
    output.record({"path": str(page), "bytes": page.stat().st_size, "note": note})
