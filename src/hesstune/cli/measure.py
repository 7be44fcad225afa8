"""`hesstune measure`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hesstune.cli.options import JSON, QUIET, RUN, with_options
from hesstune.cli.render import Output, progress_bars
from hesstune.runs.options.analysis import MeasureOptions, SampleOptions

if TYPE_CHECKING:
    from rich.table import Table

    from hesstune.curvature.result import Measure
    from hesstune.curvature.stability import Stability

__all__ = ["measure"]


@with_options()
def measure(
    run: RUN,
    options: MeasureOptions,
    stability: Annotated[
        bool,
        typer.Option(
            "--stability",
            help="also the rise of the loss under Gaussian noise on the weights",
            rich_help_panel=SampleOptions.heading,
        ),
    ] = False,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Measure which layers went far along sharp directions: the Hessian distance measure of a run."""
    from hesstune.analysis.measure import measure_run, stability_of_run
    from hesstune.runs.measure_records import MeasureRecord
    from hesstune.runs.records import MEASURE, MEASURE_TENSORS
    from hesstune.runs.run import Run
    from hesstune.storage.stored import read_record

    loaded = Run.load(run)
    with progress_bars(quiet) as bars:
        found = measure_run(loaded, progress=bars("measure") if bars else None, **options.given())
    alike = {name: v for name, v in options.given().items() if name in SampleOptions.model_fields}
    stable = stability_of_run(loaded, **alike) if stability else []
    n = loaded.facts.examples.train
    record = found.to_dict(n)
    output = Output(quiet, json)
    output.say(layer_table(found, n), "")
    written = read_record(loaded.path / MEASURE, MeasureRecord)
    record["part"] = written.part if written else "train"
    for line in summary(record, loaded.outcome.gap):
        output.say(line)
    output.say("", others_table(found.others))
    if stable:
        output.say("", stability_table(stable))
        record["noise_stability"] = [row.to_dict() for row in stable]
    output.say(f"Written: {loaded.path / MEASURE}, {loaded.path / MEASURE_TENSORS}")
    output.record({"path": str(loaded.path), "gap": loaded.outcome.gap, **record})


def layer_table(found: Measure, n: int) -> Table:
    """Return the layers sorted by their share of the mean measure; of the maximum's where it is unknown."""
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("layer", no_wrap=True, overflow="ellipsis")
    # On a narrow terminal the names give way, not the numbers.
    widths = {"share": 7, "max vᵀH⁺v": 10, "mean ± s.e.": 15, "distance": 8, "Tr H⁺": 8, "how": 7}
    for title, width in widths.items():
        table.add_column(title, justify="right", no_wrap=True, min_width=width)
    terms = found.mean_shares(n)
    if bool(terms.isnan().any()):
        terms = found.shares(n)
    total = float(terms.sum()) or 1.0
    moved = found.distances > 0
    for i in terms.argsort(descending=True, stable=True).tolist():
        if not moved[i]:
            continue
        table.add_row(
            found.names[i],
            f"{100 * float(terms[i]) / total:.1f} %",
            f"{float(found.maximum[i]):.3g}",
            _figure(found.mean[i], ".2g", f" ± {float(found.mean_stderr[i]):.1g}"),
            f"{float(found.distances[i]):.3f}",
            "-" if found.trace is None else _figure(found.trace[:, i].nanmean(), ".3g"),
            "exact" if found.exact[i] else found.methods[i],
        )
    if still := int((~moved).sum()):
        table.add_row(f"{still} did not move", "0.0 %", "0", "-", "0.000", "-", "")
    return table


def others_table(rows: list[dict[str, Any]]) -> Table:
    """Return the older measures of the same run: they rank models, and none is a guarantee."""
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("other measures", no_wrap=True, min_width=24)
    table.add_column("value", justify="right", no_wrap=True, min_width=8)
    table.add_column("from, or why there is none", overflow="fold")
    for row in rows:
        value = "-" if row["value"] is None else f"{row['value']:.3g}"
        table.add_row(row["name"], value, row.get("why", row["source"]))
    return table


def _figure(value: Any, form: str, rest: str = "") -> str:
    number = float(value)
    return "-" if number != number else f"{number:{form}}{rest}"


def stability_table(rows: list[Stability]) -> Table:
    """Return the rise of the mean loss under noise of several sizes, beside its Taylor prediction."""
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for title in ("noise σ", "rise of the loss", "½σ²·Tr H", "ratio"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.sigma:g}",
            f"{row.value:.3g} ± {row.stderr:.1g}",
            f"{row.taylor:.3g}" + (f" ± {row.taylor_stderr:.1g}" if row.taylor_stderr else ""),
            _figure(row.ratio, ".2f"),
        )
    return table


def summary(record: dict[str, Any], gap: float | None) -> list[str]:
    """Return the measure, the gap observed, and what the number is and is not."""
    value, mean, part = record["measure"], record["mean_measure"], record["part"]
    where = f"{record['examples']} {'held-out' if part == 'val' else 'training'} examples"
    lines = [f"Measured on {where}; n = {value['n']}, C = {value['C']:.3g}, the largest loss observed"]
    if mean["value"] is not None:
        error = "" if mean["stderr"] is None else f" ± {mean['stderr']:.2g}"
        lines.append(f"Mean Hessian distance measure, Σ √(C·mean vᵀH⁺v/n): {mean['value']:.3f}{error}")
    lines.append(f"Hessian distance measure, Σ √(C·max vᵀH⁺v/n): {value['value']:.3f}")
    if gap is not None:
        lines.append(f"Generalization gap observed: {gap:.3f} (cross-entropy, test minus training)")
    return [*lines, *record["notes"], record["statement"]]
