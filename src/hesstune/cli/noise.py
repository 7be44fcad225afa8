"""`hesstune noise`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hesstune.cli.options import JSON, QUIET
from hesstune.cli.render import Output

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["noise"]


def noise(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is drawn.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Ask whether a run's noise matrix is wrong: estimates, the cost of an error, its assumption."""
    from hesstune.analysis.noise import ESTIMATE, check_noise
    from hesstune.runs.run import Run

    loaded = Run.load(run)
    record = check_noise(loaded, device=device, seed=seed)
    output = Output(quiet, json)
    output.say(estimates_table(record), "", "Change of accuracy, in points, were F off (by simulation):")
    output.say(cost_table(record), "")
    for line in record["statements"]:
        output.say(line)
    output.say(f"Written: {loaded.path / ESTIMATE}")
    output.record({"path": str(loaded.path), **record})


def estimates_table(record: dict[str, Any]) -> Table:
    """Return a row a matrix: noise rate, condition, fit to the noisy labels, distance from the believed."""
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("noise matrix", no_wrap=True, overflow="ellipsis")
    for title in ("rate", "condition", "log-lik.", "from believed"):
        table.add_column(title, justify="right", no_wrap=True, min_width=len(title))
    table.add_row("believed" if record["told"] else "none (identity)", *_figures(record["believed"]), "")
    if record["counted"]:
        counted = record["counted"]
        table.add_row(
            "counted (truth)", f"{counted['rate']:.2f}", "-", "-", f"{counted['total_variation']:.2f}"
        )
    for row in record["estimates"]:
        if "failed" in row:
            table.add_row(row["method"], "-", "-", "-", "failed")
        else:
            name = f"auto: {row['chose']}" if row["method"] == "auto" else row["method"]
            table.add_row(name, *_figures(row), f"{row['total_variation']:.2f}")
    return table


def _figures(row: dict[str, Any]) -> list[str]:
    fit, condition = row["log_likelihood"], row["condition"]
    return [
        f"{row['rate']:.2f}",
        "singular" if condition is None else f"{condition:.3g}",
        "-" if fit is None else f"{fit:.3f}",
    ]


def cost_table(record: dict[str, Any]) -> Table:
    """Return the accuracy lost, in points, by how far F is off and where."""
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("noise in F", no_wrap=True)
    rows = record["cost_of_an_error"]
    sizes = sorted({row["off"] for row in rows})
    for size in sizes:
        table.add_column(f"off by {size:.0%}", justify="right", no_wrap=True)
    for direction in dict.fromkeys(row["direction"] for row in rows):
        found = {row["off"]: row for row in rows if row["direction"] == direction}
        table.add_row(direction, *(_points(found.get(size)) for size in sizes))
    return table


def _points(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    error = "" if row["stderr"] is None else f" ± {100 * row['stderr']:.1f}"
    return f"{-100 * row['accuracy_lost']:+.1f}{error}"
