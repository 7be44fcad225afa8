"""`hesstune measure`."""

from __future__ import annotations

from typing import Annotated

import typer

from hesstune.cli.measure_tables import (
    block_table,
    layer_table,
    spectrum_table,
    stability_table,
    summary,
)
from hesstune.cli.options import JSON, LAST, QUIET, RUN, with_options
from hesstune.cli.render import Output, progress_bars
from hesstune.runs.options.analysis import MeasureOptions, SampleOptions

__all__ = ["measure"]

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
    """Measure which layers went far along sharp directions: the Hessian distance measure of a run."""
    from hesstune.analysis.measure import measure_run, stability_of_run
    from hesstune.report.layer_shares import blocks_of, carriers, is_large, layer_shares
    from hesstune.runs.measure_records import MeasureRecord
    from hesstune.runs.records import MEASURE, MEASURE_TENSORS
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
