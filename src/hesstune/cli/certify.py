"""`hesstune certify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hesstune.cli.options import JSON, QUIET
from hesstune.cli.render import Output, progress_bars

if TYPE_CHECKING:
    from rich.table import Table

    from hesstune.bounds.record import Certificate

__all__ = ["certify"]


def certify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    delta: Annotated[float, typer.Option(help="Probability with which the certificate may fail.")] = 0.05,
    prior_fraction: Annotated[
        float,
        typer.Option(
            help="Train the prior anew on this share of the training examples and certify on the rest; "
            "0: the prior is the network before fine-tuning."
        ),
    ] = 0.0,
    noise_is: Annotated[
        str,
        typer.Option(
            metavar="auto|none|known|estimated|instance_dependent",
            help="How the labels' noise is known; auto: from the run's options.",
        ),
    ] = "auto",
    noise_method: Annotated[
        str,
        typer.Option(
            metavar="tightest|inverse|linear_program|margin", help="From noisy labels to the clean error."
        ),
    ] = "tightest",
    clean_sample: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV of ids and true labels, drawn at random among the training examples: they give a "
            "confidence set for the noise matrix.",
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(min=1, help="Weight draws; more make it tighter.  [default: 2048, or 100 an example]"),
    ] = None,
    repeats: Annotated[
        str, typer.Option(metavar="refuse|allow", help="What to do about repeated inputs.")
    ] = "refuse",
    vouch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHOICE", help="A choice you vouch for, such as normalisation; may be repeated."
        ),
    ] = None,
    diagnostic: Annotated[
        bool,
        typer.Option("--diagnostic", help="Where an assumption fails print the number, as no certificate."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws and of the prior's part.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Bound the clean error of a run's network, weights randomised: a guarantee, with its assumptions."""
    from hesstune.analysis.certify import certify_run
    from hesstune.runs.records import CERTIFICATE
    from hesstune.runs.run import Run

    loaded = Run.load(run)
    with progress_bars(quiet) as bars:
        found = certify_run(
            loaded,
            delta=delta,
            prior_fraction=prior_fraction,
            noise_is=noise_is,
            noise_method=noise_method,
            clean_sample=clean_sample,
            draws=draws,
            repeats=repeats,
            vouch=vouch or (),
            diagnostic=diagnostic,
            seed=seed,
            device=device,
            progress=bars("certify") if bars else None,
        )
    output = Output(quiet, json)
    output.say(found.summary(), "", layer_table(found))
    output.say(f"Written: {loaded.path / CERTIFICATE}")
    output.record({"path": str(loaded.path), **found.to_dict()})


def layer_table(found: Certificate, most: int = 8) -> Table:
    """Return the parameters that cost the most KL, with how far each moved and how much noise it bears."""
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("parameter", no_wrap=True, overflow="ellipsis")
    for title, width in (("KL, nats", 8), ("distance", 8), ("noise σ", 8), ("prior s", 8)):
        table.add_column(title, justify="right", no_wrap=True, min_width=width)
    order = sorted(found.kl_terms, key=found.kl_terms.__getitem__, reverse=True)
    for name in order[:most]:
        cells = (found.kl_terms, found.distance, found.sigma, found.prior_sigma)
        table.add_row(name, *(f"{column[name]:.3g}" for column in cells))
    if len(order) > most:
        rest = sum(found.kl_terms[name] for name in order[most:])
        table.add_row(f"and {len(order) - most} more", f"{rest:.3g}", "", "", "")
    return table
