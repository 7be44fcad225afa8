"""`hesstune report`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hesstune.cli.options import JSON, QUIET, with_options
from hesstune.cli.render import Output
from hesstune.runs.options import ReportOptions


@with_options()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN|STUDY", help="the folder of a run or a comparison")],
    options: ReportOptions,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Write one self-contained HTML page about a run or a comparison: report.html in its folder."""
    from hesstune.errors import ConfigError
    from hesstune.report.write import write_report, write_study
    from hesstune.runs.run import Run
    from hesstune.study.results import RESULTS

    output = Output(quiet, json)
    if (run / RESULTS).is_file():
        page, note = write_study(run, options.baseline), None
    elif options.baseline is not None:
        raise ConfigError("--baseline is for the report of a comparison, and this is none")
    else:
        page, note = write_report(Run.load(run), device=options.device)
    if note:
        output.say(note)
    output.say(f"Report: {page}")
    output.record({"path": str(page), "bytes": page.stat().st_size, "note": note})


def open_on_desktop(page: Path) -> None:
    """Open a page in the browser if a person sits at a desktop: never in pipes or automated runs."""
    screen = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if screen and sys.stdout.isatty() and not os.environ.get("CI"):
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
