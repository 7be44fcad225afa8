"""Write the HTML pages of runs and comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hesstune.analysis.label_issues import label_issues, save_thumbnails
from hesstune.data.load import reusing_decoded
from hesstune.errors import ChangedDataError, DataError, ModelError, RunError, unknown_name
from hesstune.options import make_options, takes_options
from hesstune.report.run_page import example_ids, render_run
from hesstune.report.study_page import render_study
from hesstune.runs.options import DeviceOptions
from hesstune.runs.records import REPORT
from hesstune.runs.run import Run
from hesstune.storage.files import write_text
from hesstune.study.results import differences, read_results


@takes_options(DeviceOptions)
def write_report(run: Run, **options: Any) -> tuple[Path, str | None]:
    """Write a run's report.html, with suspected label errors if the data is available; return why not, too.

    Args:
        run: A finished run.
        **options: Options of `DeviceOptions`, by name.
    """
    asked = make_options(DeviceOptions, options)
    note, records = None, run.records
    records.read_all()  # a damaged record is an error of its own
    with reusing_decoded():
        try:
            run.task()
        except ChangedDataError:
            raise
        except (DataError, ModelError, RunError):  # the data may be elsewhere by now
            pass
        try:  # the page is complete without suspected label errors
            if records.label_issues is None:
                label_issues(run, device=asked.device)
            ids = example_ids(run.records)
            if set(ids) - set(records.images):
                save_thumbnails(run, ids)
        except (DataError, ModelError, RunError) as error:
            note = f"Without all examples and suspected label errors: {error}"
    page = run.path / REPORT
    write_text(page, render_run(run))
    return page, note


def write_study(folder: Path, baseline: str | None = None) -> Path:
    """Write a comparison's report.html; differences are from its own baseline, or another of its methods."""
    results = read_results(folder)
    if baseline is not None:
        if baseline not in results.methods:
            raise unknown_name("baseline", baseline, results.methods)
        results = results.replaced(baseline=baseline, differences=differences(results.cells, baseline))
    page = folder / REPORT
    write_text(page, render_study(results))
    return page
