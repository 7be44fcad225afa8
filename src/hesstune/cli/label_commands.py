"""`hesstune clean` and `hesstune label`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hesstune.checks import expanded
from hesstune.cli.options import DRY_RUN, column_words, needed_data, replacing, with_options
from hesstune.cli.render import Output, command_line, name_table, percent, say_data, without_dry_run
from hesstune.errors import ConfigError
from hesstune.labeling.options import CleanOptions, FeatureOptions, LabelOptions

if TYPE_CHECKING:
    from rich.table import Table

    from hesstune.labeling.clean import LabelIssues
    from hesstune.labeling.label_data import Labelling
    from hesstune.labeling.sources import Target

# Rows of the tables.
ERRORS_SHOWN, ANNOTATORS_SHOWN = 10, 40
LABELS_OUT = Annotated[Path, typer.Option("--out", metavar="FILE", help="CSV file of labels to write")]


@with_options(
    "data", "out", "page", "model", "label_column", "text_column", "id_column", "write", "checked_labels",
    "apply",
)  # fmt: skip
def clean(
    out: LABELS_OUT,
    options: CleanOptions,
    output: Output,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="HTML page to review suspected label errors; to write"),
    ] = None,
    apply: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="apply decisions, from the page or an export of Label Studio, and write the corrected data",
        ),
    ] = None,
    label_studio: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="tasks of suspected label errors for Label Studio, to write"),
    ] = None,
    dry_run: DRY_RUN = False,
    overwrite: Annotated[bool, replacing("the files")] = False,
) -> None:
    """Find labels that are probably wrong, on features of a pretrained network."""
    from hesstune.labeling.review import check_outputs, config_path

    data = needed_data(options.data)
    if dry_run:
        from hesstune.data.describe import describe
        from hesstune.labeling.options import how_read

        say_data(output, describe(data, how_read(options)))
        return
    tasks = [label_studio, config_path(label_studio)] if label_studio else []
    inputs = [data.partition(":")[2] or data, options.checked_labels, apply]
    check_outputs(
        [out, *([page] if page else []), *tasks], [expanded(path) for path in inputs if path], overwrite
    )
    if apply is not None:
        _apply(options, apply, {"page": page, "label_studio": label_studio}, out, output)
        return
    from hesstune.inputs.features import sharing
    from hesstune.labeling.clean import clean as find_issues

    with sharing() as features:
        found = find_issues(options)
    made = found.save(out, options.write, overwrite)
    notes = (f"  {note}" for note in found.notes)
    output.say(issues_table(found), "", found.summary(), *notes, *features.said())
    if page is not None:
        from hesstune.report.clean_page import write_clean_page

        write_clean_page(found, page)
        output.say(
            f"Page: {page}; review the labels there, download the decisions, and give them to --apply or "
            "--checked-labels"
        )
    if label_studio is not None:
        output.say(*found.to_label_studio(label_studio, overwrite))
    output.say(
        f"Written: {made} labels to {out}, the most probable errors first; to review, fill in clean_label "
        "and give the file to --checked-labels",
    )
    record = {"path": str(out), "written": made, **found.to_dict()}
    output.end(record, _training(options, found.target, out, "runs/cleaned"))


def _training(options: CleanOptions, target: Target | None, out: Path, folder: str) -> str:
    """Return the command that trains on labels, or on the data itself if a table cannot hold it."""
    if target is None or target.is_in_table:
        return command_line("finetune", "--data", f"csv:{out}", "--out", folder)
    return command_line("finetune", "--data", options.data, *column_words(options), "--out", folder)


def _apply(
    options: CleanOptions, decisions: Path, others: dict[str, Path | None], out: Path, output: Output
) -> None:
    """Write the data with the labels that a person decided on."""
    from hesstune.labeling.clean import LABEL_COLUMNS
    from hesstune.labeling.review import apply_decisions
    from hesstune.labeling.sources import read_target

    unused = {"checked_labels", "write", "seed", *FeatureOptions.model_fields}
    idle = unused & options.model_fields_set | {name for name, path in others.items() if path is not None}
    if idle:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(idle))
        raise ConfigError(f"--apply only applies decisions, so {named} would have no effect; leave it out")
    reviewed = apply_decisions(read_target(needed_data(options.data), LABEL_COLUMNS), decisions)
    made = reviewed.save(out, overwrite=True)  # that it may be replaced is checked
    counts = reviewed.counts
    output.say(
        f"Labels kept: {counts['kept']}, changed: {counts['changed']}, removed with their examples: "
        f"{counts['removed']}, undecided (as given): {counts['undecided']}; decisions on examples not found: "
        f"{counts['not_found']}.",
        *(f"  {note}" for note in reviewed.notes),
        f"Written: {made} labels to {out}",
    )
    record = {"path": str(out), "written": made, **reviewed.to_dict()}
    output.end(record, _training(options, reviewed.target, out, "runs/reviewed"))


def issues_table(found: LabelIssues) -> Table:
    """Return the most probable label errors, one row for each example."""
    table = name_table("example", names=("given", "likely"), widths={"P(wrong)": 8})
    for at in found.ranked[:ERRORS_SHOWN].tolist():
        names = [found.classes[i] for i in (found.given[at], found.likely[at])]
        table.add_row(found.ids[at], *names, f"{found.p_wrong[at]:.3f}")
    return table


@with_options(
    "target", "votes", "functions", "labelers", "out", "label_model", "text_column", "label_column",
    "checked_labels", "noise_matrix",
)  # fmt: skip
def label(
    out: LABELS_OUT,
    options: LabelOptions,
    output: Output,
    noise_matrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="noise matrix to write; default: beside --out, NAME.noise.json"),
    ] = None,
    dry_run: DRY_RUN = False,
    overwrite: Annotated[bool, replacing("the files")] = False,
) -> None:
    """Make labels from annotators, labeling functions or votes; estimate their noise."""
    from hesstune.inputs.features import sharing
    from hesstune.labeling.label_data import check_free, describe_votes, label_data, noise_path
    from hesstune.noise.latent.two_views import count_text

    if dry_run:
        lines, facts = describe_votes(options)
        output.say(*lines)
        output.end({"data": facts}, without_dry_run())
        return
    beside = noise_matrix or noise_path(out)
    check_free(out, beside, overwrite)  # before anything is trained
    with sharing() as features:
        found = label_data(options)
    found.save(out, beside, overwrite)
    record = found.to_dict()
    output.say(annotator_table(found), "", labels_table(record), "")
    low, high = found.rate_interval
    output.say(
        f"Estimate for all: {count_text(found.wrong_labels)}; noise rate {found.rate:.3g}, interval "
        f"{low:.3g} to {high:.3g}. The rate is the label model's own, not checked; it is too low if "
        "annotators err together.",
        f"Noise matrix: condition number {found.noise.condition:.3g} ({found.noise.method}; estimated, no "
        "guarantee)",
        *(f"  {note}" for note in found.notes),
        *features.said(),
        f"Written: {record['labelled']} labels to {out}, their noise matrix to {beside}",
    )
    # A guess would be corrected for as if it were known; the method auto estimates the noise itself.
    matrix = [] if found.noise.details.get("is_guess") else ["--noise-matrix", beside]
    following = command_line("finetune", "--data", f"csv:{out}", *matrix, "--out", "runs/weak")
    if not found.target.is_in_table:
        source = ["--votes", options.votes] if options.votes else []
        again = command_line("label", *source, "--target", "DATA", "--out", out, "--overwrite")
        following = f"{again}, with DATA a table of the texts or images that have these ids"
    output.end({"path": str(out), "noise_path": str(beside), **record}, following)


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
