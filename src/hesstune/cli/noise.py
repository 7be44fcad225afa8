"""`hesstune noise`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hesstune.cli.options import JSON, QUIET, RUN, with_options
from hesstune.cli.render import Output, name_table
from hesstune.runs.options import NoiseCheckOptions

if TYPE_CHECKING:
    from rich.table import Table

    from hesstune.runs.records import CostOfError, MatrixFacts, NoiseCheck


@with_options()
def noise(run: RUN, options: NoiseCheckOptions, json: JSON = False, quiet: QUIET = False) -> None:
    """Check a run's noise matrix: estimates of it, the cost of an error, and its assumption."""
    from hesstune.analysis.noise import check_noise
    from hesstune.runs.records import NOISE_CHECK
    from hesstune.runs.run import Run

    loaded = Run.load(run)
    found = check_noise(loaded, **options.given())
    output = Output(quiet, json)
    output.say(estimates_table(found), "", "Change of accuracy, in points, were F off (by simulation):")
    output.say(cost_table(found), "")
    for line in found.statements:
        output.say(line)
    output.say(f"Written: {loaded.path / NOISE_CHECK}")
    output.record({"path": str(loaded.path), **found.to_dict()})


def estimates_table(found: NoiseCheck) -> Table:
    """Return a row for each matrix: noise rate, condition, log-likelihood, distance from the given."""
    from hesstune.runs.records import Failed

    table = name_table("noise matrix", "rate", "condition", "log-lik.", "from given")
    table.add_row("given" if found.matrix_given else "none (identity)", *_figures(found.assumed), "")
    if (counted := found.counted) is not None:
        table.add_row("counted (truth)", f"{counted.rate:.2f}", "-", "-", f"{counted.total_variation:.2f}")
    for row in found.estimates:
        if isinstance(row, Failed):
            table.add_row(row.method, "-", "-", "-", "failed")
        else:
            name = row.method if row.chose is None else f"{row.method}: {row.chose}"
            table.add_row(name, *_figures(row), f"{row.total_variation:.2f}")
    return table


def _figures(row: MatrixFacts) -> list[str]:
    fit, condition = row.log_likelihood, row.condition
    return [
        f"{row.rate:.2f}",
        "singular" if condition is None else f"{condition:.3g}",
        "-" if fit is None else f"{fit:.3f}",
    ]


def cost_table(found: NoiseCheck) -> Table:
    """Return the accuracy lost, in points, by how far F is off and where."""
    rows = found.cost_of_an_error
    sizes = sorted({row.off for row in rows})
    table = name_table("noise in F", *(f"off by {size:.0%}" for size in sizes))
    for direction in dict.fromkeys(row.direction for row in rows):
        lost = {row.off: row for row in rows if row.direction == direction}
        table.add_row(direction, *(_points(lost.get(size)) for size in sizes))
    return table


def _points(row: CostOfError | None) -> str:
    if row is None:
        return "-"
    error = "" if row.stderr is None else f" ± {100 * row.stderr:.1f}"
    return f"{-100 * row.accuracy_lost:+.1f}{error}"
