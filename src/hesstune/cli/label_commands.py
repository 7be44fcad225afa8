"""`hesstune clean` and `hesstune label`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hesstune.cli.options import FIRST, JSON, QUIET, replacing, with_options
from hesstune.cli.render import Output, name_table, percent
from hesstune.errors import ConfigError, RunError
from hesstune.labeling.options import CleanOptions, LabelOptions

if TYPE_CHECKING:
    from rich.table import Table

    from hesstune.labeling.clean import LabelIssues
    from hesstune.labeling.label_data import Labelling

# Rows of the tables.
ERRORS_SHOWN, ANNOTATORS_SHOWN = 10, 40
LABELS_OUT = Annotated[
    Path, typer.Option("--out", metavar="FILE", help="CSV file of labels to write", rich_help_panel=FIRST)
]


@with_options()
def clean(
    out: LABELS_OUT,
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

    found = find_issues(options)
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
        f"Written: {made} labels to {out}, the most probable errors first; to review, fill in clean_label "
        "and give the file to --checked-labels",
        f"Next: hesstune finetune --data csv:{out} --out runs/cleaned",
    )
    output.record({"path": str(out), "written": made, **found.to_dict()})


def issues_table(found: LabelIssues) -> Table:
    """Return the most probable label errors, one row for each example."""
    table = name_table("example", names=("given", "likely"), widths={"P(wrong)": 8})
    for at in found.ranked[:ERRORS_SHOWN].tolist():
        names = [found.classes[i] for i in (found.given[at], found.likely[at])]
        table.add_row(found.ids[at], *names, f"{found.p_wrong[at]:.3f}")
    return table


@with_options()
def label(
    out: LABELS_OUT,
    options: LabelOptions,
    noise_matrix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="noise matrix to write; default: beside --out, NAME.noise.json",
            rich_help_panel=FIRST,
        ),
    ] = None,
    overwrite: Annotated[bool, replacing("the files")] = False,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Make labels from annotators, labeling functions or votes, and estimate their noise."""
    from hesstune.labeling.label_data import check_free, label_data, noise_path
    from hesstune.noise.latent.two_views import count_text

    beside = noise_matrix or noise_path(out)
    check_free(out, beside, overwrite)  # before anything is trained
    found = label_data(options)
    found.save(out, beside, overwrite)
    record = found.to_dict()
    output = Output(quiet, json)
    output.say(annotator_table(found), "", labels_table(record), "")
    low, high = found.rate_interval
    output.say(
        f"Estimate for all: {count_text(found.wrong_labels)}; noise rate {found.rate:.3g}, interval "
        f"{low:.3g} to {high:.3g}. The rate is the label model's own, not checked; it is too low if "
        "annotators err together.",
        f"Noise matrix: condition number {found.noise.condition:.3g} ({found.noise.method}; estimated, no "
        "guarantee)",
    )
    output.say(
        *(f"  {note}" for note in found.notes),
        f"Written: {record['labelled']} labels to {out}, their noise matrix to {beside}",
        f"Next: hesstune finetune --data csv:{out} --noise-matrix {beside} --out runs/weak",
    )
    output.record({"path": str(out), "noise_path": str(beside), **record})


def annotator_table(found: Labelling) -> Table:
    """Return a row for each annotator: coverage, overlaps, conflicts, and accuracy if known."""
    keys = {"coverage": "coverage", "overlaps": "overlaps", "conflicts": "conflicts"}
    known = {"accuracy": "accuracy", "own data": "own_accuracy"}
    keys |= {title: key for title, key in known.items() if any(key in row for row in found.annotators)}
    widths = {title: max(7, len(title)) for title in keys}
    table = name_table("annotator", names=("votes for",), widths=widths)
    shown = sorted(found.annotators, key=lambda row: -row["coverage"])[:ANNOTATORS_SHOWN]
    for row in [row for row in found.annotators if row in shown]:
        figures = (percent(row.get(key)) for key in keys.values())
        table.add_row(row["labeler"], ", ".join(row["polarity"]) or "-", *figures)
    if others := len(found.annotators) - len(shown):
        table.add_row(f"{others} more, with fewer votes", "", *[""] * (len(table.columns) - 2))
    return table


def labels_table(record: dict[str, Any]) -> Table:
    """Return what the label model made, beside the baseline, majority vote."""
    table = name_table("labels", "labelled", "left out", "accuracy")
    counts = [str(record["labelled"] - record["test_labels_kept"]), str(record["left_out"])]
    table.add_row("majority vote (baseline)", *counts, percent(record["majority_accuracy"]))
    table.add_row(record["label_model"], *counts, percent(record["accuracy"]))
    return table
