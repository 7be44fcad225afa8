"""`hesstune label`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hesstune.cli.options import JSON, QUIET
from hesstune.cli.render import Output

if TYPE_CHECKING:
    from rich.table import Table

    from hesstune.labeling.result import Labelling

__all__ = ["label"]


def label(
    out: Annotated[Path, typer.Option(metavar="FILE", help="CSV file of labels to write.")],
    target: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="What to label: folder:PATH, csv:PATH or hf:NAME; none: --votes."),
    ] = None,
    labelers: Annotated[
        str | None,
        typer.Option(metavar="DATA,DATA,…", help="Train a labeler on each of these; NAME=DATA names it."),
    ] = None,
    functions: Annotated[
        str | None, typer.Option(metavar="py:MODULE:NAME", help="Labeling functions, one or a list.")
    ] = None,
    votes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV file of votes: id, and a column a labeler.")
    ] = None,
    vote_columns: Annotated[
        str | None, typer.Option(metavar="NAME,NAME,…", help="Its columns; none: those named vote_…, or all.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="NAME,NAME,…", help="Class names; none: those that occur.")
    ] = None,
    label_model: Annotated[
        str,
        typer.Option(
            help="majority, soft, dawid_skene, mace, snorkel, features, soft_features or amcl.",
        ),
    ] = "soft",
    noise_from: Annotated[
        str, typer.Option(help="Label model whose posterior gives the noise matrix; auto or one of these.")
    ] = "auto",
    labeler: Annotated[
        str, typer.Option(metavar="probe|finetune", help="How labelers are trained.")
    ] = "probe",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of a fine-tuned labeler.")] = 10,
    threshold: Annotated[
        float, typer.Option(help="Trained labelers abstain where no class is as probable.")
    ] = 0.0,
    model: Annotated[
        str | None, typer.Option(help="Network; none: efficientnet_lite0, or minilm for texts.")
    ] = None,
    image_size: Annotated[int, typer.Option(min=8, max=2048, help="Side of the images in pixels.")] = 96,
    max_length: Annotated[int, typer.Option(min=4, help="Tokens of a text at most.")] = 128,
    clean_labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Checked labels (id, label), for amcl, features, soft_features."),
    ] = None,
    noise_out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Noise matrix to write; none: beside --out, NAME.noise.json."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of splits, ties and training.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files.")] = False,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Make labels from weak labelers, labeling functions or votes, and estimate their noise."""
    from hesstune.labeling.label_data import label_data
    from hesstune.labeling.result import check_free, noise_path

    beside = noise_out or noise_path(out)
    check_free(out, beside, overwrite)  # before anything is trained
    found = label_data(
        target,
        labelers=_listed(labelers),
        functions=functions,
        votes=votes,
        vote_columns=_listed(vote_columns),
        classes=_listed(classes),
        label_model=label_model,
        noise_from=noise_from,
        labeler=labeler,
        epochs=epochs,
        threshold=threshold,
        model=model,
        image_size=image_size,
        max_length=max_length,
        clean_labels=clean_labels,
        seed=seed,
        device=device,
    )
    found.save(out, beside, overwrite)
    record = found.to_dict()
    output = Output(quiet, json)
    output.say(labeler_table(found), "", labels_table(record), "")
    noise = found.noise.matrix
    output.say(
        f"Noise matrix: rate {noise.rate:.3g}, condition number {noise.condition:.3g} ({found.noise.method}; "
        "estimated, no guarantee)"
    )
    for note in found.notes:
        output.say(f"  {note}")
    output.say(
        f"Written: {record['labelled']} labels to {out}, their noise matrix to {beside}",
        f"Next: hesstune finetune --data csv:{out} --noise-matrix {beside} --out runs/weak",
    )
    output.record({"path": str(out), "noise_path": str(beside), **record})


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()] if text else []


def labeler_table(found: Labelling) -> Table:
    """Return a row a labeler: coverage, overlaps, conflicts, and accuracy where the truth is known."""
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("labeler", no_wrap=True, overflow="ellipsis")
    table.add_column("votes for", overflow="ellipsis", no_wrap=True)
    judged = any("accuracy" in row for row in found.labelers)
    own = any("own_accuracy" in row for row in found.labelers)
    titles = ["coverage", "overlaps", "conflicts", *(["accuracy"] if judged else [])]
    for title in [*titles, *(["own data"] if own else [])]:
        # On a narrow terminal the names give way, not the numbers.
        table.add_column(title, justify="right", no_wrap=True, min_width=max(7, len(title)))
    for row in found.labelers:
        figures = [_share(row[t]) for t in ("coverage", "overlaps", "conflicts")]
        figures += [_share(row["accuracy"])] if judged else []
        figures += [_share(row.get("own_accuracy"))] if own else []
        table.add_row(row["labeler"], ", ".join(row["polarity"]) or "-", *figures)
    return table


def labels_table(record: dict[str, Any]) -> Table:
    """Return what the label model made, beside the baseline, majority vote."""
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("labels", no_wrap=True)
    for title in ("labelled", "left out", "accuracy"):
        table.add_column(title, justify="right", no_wrap=True)
    counts = [str(record["labelled"] - record["test_labels_kept"]), str(record["left_out"])]
    table.add_row("majority vote (baseline)", *counts, _share(record["majority_accuracy"]))
    table.add_row(record["label_model"], *counts, _share(record["accuracy"]))
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
