"""`hesstune certify`, and `hesstune check`, which draws the sample for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune.cli.options import JSON, QUIET, RUN, with_options
from hesstune.cli.render import Output, name_table, progress_bars
from hesstune.runs.options import CertifyOptions, CheckOptions

if TYPE_CHECKING:
    from rich.table import Table

    from hesstune.bounds.record import Certificate


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
    titles = ("KL, nats", "distance", "noise σ", "prior s")
    table = name_table("parameter", widths=dict.fromkeys(titles, 8))
    order = sorted(found.kl_terms, key=found.kl_terms.__getitem__, reverse=True)
    for name in order[:most]:
        cells = (found.kl_terms, found.distance, found.sigma, found.prior_sigma)
        table.add_row(name, *(f"{column[name]:.3g}" for column in cells))
    if len(order) > most:
        other = sum(found.kl_terms[name] for name in order[most:])
        table.add_row(f"and {len(order) - most} more", f"{other:.3g}", "", "", "")
    return table


@with_options()
def check(run: RUN, options: CheckOptions, json: JSON = False, quiet: QUIET = False) -> None:
    """Draw examples at random for a person to label, and write the sheet for `certify --checked`."""
    from hesstune.analysis.certify import check_run
    from hesstune.runs.run import Run

    path = check_run(Run.load(run), **options.given())
    output = Output(quiet, json)
    output.say(
        f"Written: {path}. Fill in true_label for every example, then run hesstune certify {run} "
        f"--checked {path}, with the same --prior-fraction and --seed."
    )
    output.record({"path": str(path)})
