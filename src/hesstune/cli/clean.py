"""`hesstune clean`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hesstune.cli.options import FIRST, JSON, QUIET, replacing, with_options
from hesstune.cli.render import Output
from hesstune.errors import ConfigError, RunError
from hesstune.labeling.options import CleanOptions

if TYPE_CHECKING:
    from rich.table import Table

    from hesstune.labeling.clean import LabelIssues

MOST_SHOWN = 10


@with_options()
def clean(
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="CSV file of labels to write", rich_help_panel=FIRST)
    ],
    options: CleanOptions,
    page: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="HTML page of suspected label errors to write", rich_help_panel=FIRST
        ),
    ] = None,
    overwrite: Annotated[bool, replacing("the files")] = False,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Find labels that are probably wrong, on features of a pretrained network; nothing is trained."""
    if options.data is None:
        raise ConfigError("give --data, the labelled examples, such as --data folder:photos")
    for path in (out, *([page] if page else [])):
        if path.is_dir():
            raise RunError(f"{path} is a folder; give the path of a file")
        if path.exists() and not overwrite:
            raise RunError(f"{path} exists; choose another path or give --overwrite")
    from hesstune.labeling.clean import clean as find_issues

    given = options.given()
    given.pop("write", None)
    found = find_issues(**given)
    made = found.save(out, options.write, overwrite)
    output = Output(quiet, json)
    output.say(issues_table(found), "")
    wrong, suspected = int(found.wrong.sum()), int(found.suspected.sum())
    low, high = found.rate_interval
    output.say(
        f"{wrong} of {len(found)} labels are probably wrong, {suspected} are suspected errors. "
        f"Estimate for all: {found.count_text}; noise rate {found.rate:.3g}, 90 % interval {low:.3g} to "
        f"{high:.3g} ({found.chosen}; no guarantee)."
    )
    output.say(*(f"  {note}" for note in found.notes))
    if page is not None:
        from hesstune.report.write import write_clean_page

        write_clean_page(found, page)
        output.say(f"Page: {page}")
    output.say(
        f"Written: {made} labels to {out}, the most likely errors first; fill in clean_label and give the "
        "file to --clean-labels",
        f"Next: hesstune finetune --data csv:{out} --out runs/cleaned",
    )
    output.record({"path": str(out), "written": made, **found.to_dict()})


def issues_table(found: LabelIssues) -> Table:
    """Return the most likely label errors, one row for each example."""
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("example", no_wrap=True, overflow="ellipsis")
    for title in ("given", "likely"):
        table.add_column(title, no_wrap=True, overflow="ellipsis")
    table.add_column("P(wrong)", justify="right", no_wrap=True, min_width=8)
    for at in found.ranked[:MOST_SHOWN].tolist():
        names = [found.classes[i] for i in (found.given[at], found.likely[at])]
        table.add_row(found.ids[at], *names, f"{found.p_wrong[at]:.3f}")
    return table
