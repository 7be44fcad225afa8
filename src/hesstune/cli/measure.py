"""`hesstune measure`, its tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hesstune.cli.options import JSON, LAST, QUIET, RUN, with_options
from hesstune.cli.render import Output, name_table, progress_bars
from hesstune.curvature.declared import FORECAST
from hesstune.runs.options import MeasureOptions, SampleOptions

if TYPE_CHECKING:
    from rich.table import Table

    from hesstune.curvature.stability import Stability
    from hesstune.report.layers import Block
    from hesstune.runs.records import LayerMeasure

# Layers shown below the blocks of a large network.
LARGEST = 10
STABLE = Annotated[
    bool,
    typer.Option(
        "--stability",
        help="also the rise of the loss under Gaussian noise on the weights",
        rich_help_panel=SampleOptions.heading,
    ),
]
ALL_LAYERS = Annotated[
    bool,
    typer.Option(
        "--all-layers",
        help="of large networks, every layer's line below the blocks', not the ten largest alone",
        rich_help_panel=LAST,
    ),
]


@with_options()
def measure(
    run: RUN,
    options: MeasureOptions,
    stability: STABLE = False,
    all_layers: ALL_LAYERS = False,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Compute the Hessian distance measure of a run: which layers moved far along sharp directions."""
    from hesstune.analysis.measure import measure_run, stability_of_run
    from hesstune.report.layers import blocks_of, carriers, is_large, layer_shares
    from hesstune.runs.records import MEASURE, MEASURE_TENSORS, MeasureRecord
    from hesstune.runs.run import Run
    from hesstune.storage.stored import read_record

    loaded = Run.load(run)
    output = Output(quiet, json)
    with progress_bars(quiet) as bars:
        found = measure_run(
            loaded, progress=bars("measure") if bars else None, on_forecast=output.say, **options.given()
        )
    alike = {name: v for name, v in options.given().items() if name in SampleOptions.model_fields}
    stable = stability_of_run(loaded, **alike) if stability else []
    record = found.to_dict(loaded.facts.examples.train)
    written = read_record(loaded.path / MEASURE, MeasureRecord)
    assert written is not None
    record["part"] = written.part
    rows = layer_shares(written)
    if large := is_large(rows):
        output.say(block_table(blocks_of(rows)), "")
    output.say(layer_table(rows, LARGEST if large and not all_layers else None), "")
    if options.spectrum:
        output.say(spectrum_table(rows, LARGEST), "")
    for line in summary(record, loaded.outcome.gap):
        output.say(line)
    if sentence := carriers(rows, loaded.config.method if loaded.outcome.radii else None):
        output.say(sentence)
    if stable:
        output.say("", stability_table(stable))
        record["noise_stability"] = [row.to_dict() for row in stable]
    output.say(f"Written: {loaded.path / MEASURE}, {loaded.path / MEASURE_TENSORS}")
    output.record({"path": str(loaded.path), "gap": loaded.outcome.gap, **record})


# Eigenvalues that a line has room for.
FIRST = 3


def layer_table(rows: Sequence[tuple[LayerMeasure, float]], most: int | None = None) -> Table:
    """Return the layers, largest share of the measure first.

    Args:
        rows: The layers with their shares, in that order.
        most: At most so many lines; the others are one line. Default: all.
    """
    widths = {"share": 7, "max vᵀH⁺v": 10, "mean ± s.e.": 15, "distance": 8, "Tr H⁺": 8, "how": 7}
    table = name_table("layer", widths=widths)
    moved = [(layer, share) for layer, share in rows if layer.distance]
    for layer, share in moved[:most]:
        error = layer.mean_stderr
        table.add_row(
            layer.name,
            f"{100 * share:.1f} %",
            _figure(layer.maximum, ".3g"),
            _figure(layer.mean, ".2g", f" ± {'-' if error is None else f'{error:.1g}'}"),
            f"{layer.distance:.3f}",
            _figure(layer.trace_mean, ".3g"),
            layer.how,
        )
    if others := moved[len(moved[:most]) :]:
        share = sum(share for _, share in others)
        table.add_row(f"{len(others)} more: --all-layers", f"{100 * share:.1f} %", "", "", "", "", "")
    if still := len(rows) - len(moved):
        table.add_row(f"{still} did not move", "0.0 %", "0", "-", "0.000", "-", "")
    return table


def block_table(blocks: Sequence[Block]) -> Table:
    """Return the blocks of a large network, largest share of the measure first."""
    table = name_table("block", widths={"layers": 6, "share": 7, "distance": 8})
    moved = [block for block in blocks if block.distance > 0]
    for block in moved:
        share = 100 * (block.share or 0.0)
        table.add_row(block.name, str(len(block.layers)), f"{share:.1f} %", f"{block.distance:.3f}")
    if still := len(blocks) - len(moved):
        table.add_row(f"{still} did not move", "", "0.0 %", "0.000")
    return table


def spectrum_table(rows: Sequence[tuple[LayerMeasure, float]], most: int) -> Table:
    """Return the first mean eigenvalues of the layers that have any, largest share first."""
    known = [(layer.name, layer.spectrum) for layer, _ in rows if layer.spectrum is not None][:most]
    columns = min(FIRST, max((len(found.mean) for _, found in known), default=1))
    table = name_table("eigenvalues of H", widths={f"λ{at + 1} ± s.e.": 13 for at in range(columns)})
    for name, found in known:
        pairs = list(zip(found.mean, found.stderr, strict=True))[:columns]
        table.add_row(name, *(f"{v:.3g} ± {'-' if e is None else f'{e:.1g}'}" for v, e in pairs))
    return table


def _figure(value: float | None, form: str, suffix: str = "") -> str:
    return "-" if value is None or value != value else f"{value:{form}}{suffix}"


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
    """Return the lines with the measure, the observed gap, and the evidence for the measure."""
    from hesstune.curvature.result import HELD_OUT_EVIDENCE, TRAINING_EVIDENCE

    value, mean, part = record["measure"], record["mean_measure"], record["part"]
    where = f"{record['examples']} {'held-out' if part == 'val' else 'training'} examples"
    lines = [f"Measured on {where}; n = {value['n']}, C = {value['C']:.3g}, the largest loss observed"]
    if mean["value"] is not None:
        error = "" if mean["stderr"] is None else f" ± {mean['stderr']:.2g}"
        lines.append(f"Mean Hessian distance measure, Σ √(C·mean vᵀH⁺v/n): {mean['value']:.3f}{error}")
    lines.append(f"Hessian distance measure, Σ √(C·max vᵀH⁺v/n): {value['value']:.3f}")
    if gap is not None:
        lines.append(f"Generalization gap observed: {gap:.3f} (cross-entropy, test minus training)")
    # The forecast is printed before the measurement.
    notes = [note for note in record["notes"] if not note.startswith(FORECAST)]
    evidence = HELD_OUT_EVIDENCE if part == "val" else TRAINING_EVIDENCE
    return [*lines, *notes, f"It is a measure, no guarantee. {evidence}."]
