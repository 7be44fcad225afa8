"""`hesstune certify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune.cli.options import JSON, QUIET, RUN, with_options
from hesstune.cli.render import Output, progress_bars
from hesstune.runs.options.analysis import CertifyOptions

if TYPE_CHECKING:
    from rich.table import Table

    from hesstune.bounds.record import Certificate

__all__ = ["certify"]


@with_options()
def certify(run: RUN, options: CertifyOptions, json: JSON = False, quiet: QUIET = False) -> None:
    """Bound the clean error of a run's network: a guarantee, with its assumptions."""
    from hesstune.analysis.certify import certify_run
    from hesstune.runs.records import CERTIFICATE
    from hesstune.runs.run import Run

    loaded = Run.load(run)
    with progress_bars(quiet) as bars:
        found = certify_run(loaded, progress=bars("certify") if bars else None, **options.given())
    output = Output(quiet, json)
    output.say(found.summary())
    if found.kl_terms:
        output.say("", layer_table(found))
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
