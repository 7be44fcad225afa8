"""`hesstune demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hesstune.cli.options import JSON, QUIET
from hesstune.cli.render import Output, progress_bars, results_table
from hesstune.cli.report import open_on_desktop


def demo(
    out: Annotated[Path, typer.Option(help="folder for the runs; a free name beside it if it exists")] = Path(
        "runs/demo"
    ),
    seeds: Annotated[int, typer.Option(min=1, max=100, help="number of seeds")] = 1,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Fine-tune on real digits, 40 % of whose labels are wrong: plainly, robustly, and by auto."""
    from hesstune.report.write import write_report
    from hesstune.study.demo import SETTING, run_demo

    output = Output(quiet, json)
    output.say(
        f"{SETTING['limit']} images of handwritten digits, {SETTING['inject_noise']} label noise, "
        f"{SETTING['model']} with its ImageNet weights, every layer trained."
    )
    with progress_bars(quiet) as bars:
        runs = run_demo(out, seeds, bars)
    for seed in range(seeds):
        rows = {name: run for (name, at), run in runs.items() if at == seed}
        output.say("" if seeds == 1 else f"\nseed {seed}", results_table(rows))
    changed = runs["robust", 0].facts.noise
    output.say(
        "",
        f"{changed.realised_rate:.1%} of the training labels were changed; "
        f"the noise matrix of the robust run: {changed.loss_matrix}; auto was given no noise matrix.",
        "Runs: " + ", ".join(str(run.path) for run in runs.values()),
    )
    page, _ = write_report(runs["auto", 0])
    output.say(f"Report of the auto run: {page}")
    if not quiet:
        open_on_desktop(page)
    output.record(
        {
            "report": str(page),
            "setting": SETTING,
            "runs": [
                {"method": run.config.method, "name": name, "seed": seed, "path": str(run.path)}
                | {"noise": run.record["noise"], **run.result}
                for (name, seed), run in runs.items()
            ],
        }
    )
