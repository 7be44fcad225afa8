"""`hesstune label`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hesstune.cli.options import FIRST, JSON, QUIET, replacing, with_options
from hesstune.cli.render import Output, name_table
from hesstune.labeling.options import LabelOptions

if TYPE_CHECKING:
    from rich.table import Table

    from hesstune.labeling.label_data import Labelling

# Annotators in the table.
MOST_SHOWN = 40


@with_options()
def label(
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="CSV file of labels to write", rich_help_panel=FIRST)
    ],
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
    found = label_data(**options.given())
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
    for note in found.notes:
        output.say(f"  {note}")
    output.say(
        f"Written: {record['labelled']} labels to {out}, their noise matrix to {beside}",
        f"Next: hesstune finetune --data csv:{out} --noise-matrix {beside} --out runs/weak",
    )
    output.record({"path": str(out), "noise_path": str(beside), **record})


def annotator_table(found: Labelling) -> Table:
    """Return a row for each annotator: coverage, overlaps, conflicts, and accuracy if known."""
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("annotator", no_wrap=True, overflow="ellipsis")
    table.add_column("votes for", overflow="ellipsis", no_wrap=True)
    has_truth = any("accuracy" in row for row in found.labelers)
    own = any("own_accuracy" in row for row in found.labelers)
    titles = ["coverage", "overlaps", "conflicts", *(["accuracy"] if has_truth else [])]
    for title in [*titles, *(["own data"] if own else [])]:
        # On a narrow terminal the names give way, not the numbers.
        table.add_column(title, justify="right", no_wrap=True, min_width=max(7, len(title)))
    shown = sorted(found.labelers, key=lambda row: -row["coverage"])[:MOST_SHOWN]
    for row in [row for row in found.labelers if row in shown]:
        figures = [_share(row[t]) for t in ("coverage", "overlaps", "conflicts")]
        figures += [_share(row["accuracy"])] if has_truth else []
        figures += [_share(row.get("own_accuracy"))] if own else []
        table.add_row(row["labeler"], ", ".join(row["polarity"]) or "-", *figures)
    if others := len(found.labelers) - len(shown):
        table.add_row(f"{others} more, with fewer votes", "", *[""] * (len(table.columns) - 2))
    return table


def labels_table(record: dict[str, Any]) -> Table:
    """Return what the label model made, beside the baseline, majority vote."""
    table = name_table("labels", "labelled", "left out", "accuracy")
    counts = [str(record["labelled"] - record["test_labels_kept"]), str(record["left_out"])]
    table.add_row("majority vote (baseline)", *counts, _share(record["majority_accuracy"]))
    table.add_row(record["label_model"], *counts, _share(record["accuracy"]))
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
