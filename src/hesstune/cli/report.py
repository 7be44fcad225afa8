"""`hesstune report`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hesstune.cli.options import JSON, QUIET
from hesstune.cli.render import Output

if TYPE_CHECKING:
    from hesstune.training.run import Run

__all__ = ["open_on_desktop", "report", "write_report", "write_study"]


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN|STUDY", help="The folder of a run or a comparison.")],
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="A comparison's differences are taken from it.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Write one self-contained HTML page about a run or a comparison: report.html in its folder."""
    from hesstune.errors import ConfigError
    from hesstune.training.run import Run

    output = Output(quiet, json)
    if (run / "results.json").is_file():
        page, note = write_study(run, baseline), None
    elif baseline is not None:
        raise ConfigError("--baseline is for the report of a comparison, and this is none")
    else:
        page, note = write_report(Run.load(run), device)
    if note:
        output.say(note)
    output.say(f"Report: {page}")
    output.record({"path": str(page), "bytes": page.stat().st_size, "note": note})


def write_report(run: Run, device: str = "auto") -> tuple[Path, str | None]:
    """Write a run's report.html, with its doubtful labels where the data is at hand; return why not, too."""
    from hesstune.errors import DataError, RunError
    from hesstune.report.records import read_records
    from hesstune.report.run_page import pictured, render_run
    from hesstune.training.doubts import doubtful_labels, save_pictures
    from hesstune.training.files import write_text

    _, note = run.result, None
    try:  # the page is complete without: the data may be elsewhere by now
        if not (run.path / "doubtful.csv").is_file():
            doubtful_labels(run, device)
        ids = pictured(run.path)
        if set(ids) - set(read_records(run.path).pictures):
            save_pictures(run, ids)
    except (DataError, RunError) as error:
        read_records(run.path)  # a damaged record is an error of its own
        note = f"Without all examples and doubtful labels: {error}"
    page = run.path / "report.html"
    write_text(page, render_run(run.path))
    return page, note


def write_study(folder: Path, baseline: str | None = None) -> Path:
    """Write a comparison's report.html; differences are from its own baseline, or another of its methods."""
    from hesstune.errors import unknown_name
    from hesstune.report.study_page import render_study
    from hesstune.study.results import read_results
    from hesstune.study.summary import differences
    from hesstune.training.files import write_text

    results = read_results(folder)
    if baseline is not None:
        if baseline not in results["methods"]:
            raise unknown_name("baseline", baseline, results["methods"])
        results |= {"baseline": baseline, "differences": differences(results["cells"], baseline)}
    page = folder / "report.html"
    write_text(page, render_study(results))
    return page


def open_on_desktop(page: Path) -> None:
    """Open a page in the browser where a person sits at a desktop: never in pipes or automated runs."""
    screen = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if screen and sys.stdout.isatty() and not os.environ.get("CI"):
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
