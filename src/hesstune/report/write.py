"""Write report.html into the folder of a run or of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hesstune.analysis.label_issues import label_issues, save_thumbnails
from hesstune.data.load import reusing_decoded
from hesstune.errors import ChangedDataError, DataError, ModelError, RunError, unknown_name
from hesstune.options import make_options, takes_options
from hesstune.report.run_page import pictured, render_run
from hesstune.report.study_page import render_study
from hesstune.runs.options.analysis import DeviceOptions
from hesstune.runs.records import REPORT
from hesstune.runs.run import Run
from hesstune.storage.atomic import write_text
from hesstune.study.results import differences, read_results

__all__ = ["write_report", "write_study"]


@takes_options(DeviceOptions)
def write_report(run: Run, **options: Any) -> tuple[Path, str | None]:
    """Write a run's report.html, with its doubtful labels where the data is at hand; return why not, too.

    Args:
        run: A finished run.
        **options: Options of `DeviceOptions`, by name.

    Raises:
        ConfigError: If an option is wrong.
        ChangedDataError: If the run's data is not what the run was made from.
        RunError: If a record is damaged.
    """
    asked = make_options(DeviceOptions, options)
    note, records = None, run.records
    records.read_all()  # a damaged record is an error of its own
    with reusing_decoded():
        _refuse_changed(run)
        try:  # the page is complete without: the data may be elsewhere by now
            if records.label_issues is None:
                label_issues(run, device=asked.device)
            ids = pictured(run.records)
            if set(ids) - set(records.pictures):
                save_thumbnails(run, ids)
        except (DataError, ModelError, RunError) as error:
            note = f"Without all examples and doubtful labels: {error}"
    page = run.path / REPORT
    write_text(page, render_run(run))
    return page, note


def _refuse_changed(run: Run) -> None:
    """Raise ChangedDataError if the run's data is at hand and is not what the run was made from."""
    try:
        run.task()
    except ChangedDataError:
        raise
    except (DataError, ModelError, RunError):
        return


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
