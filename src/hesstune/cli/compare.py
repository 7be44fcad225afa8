"""`hesstune compare`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hesstune.cli.exits import Interrupted
from hesstune.cli.options import JSON, QUIET, with_config_options
from hesstune.cli.render import Output, progress_bars
from hesstune.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["compare"]


@with_config_options
def compare(
    options: dict[str, Any],
    methods: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help="Methods, or all.  [default: vanilla,robust]"),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many seeds, from --seed.  [default: 3]")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file of options, with tasks, methods and seeds if wished."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Differences are taken from it.  [default: vanilla]")
    ] = None,
    search: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Trials of a search for each method's options, chosen on noisy "
            "validation labels (needs hesstune[search]).  [default: 0]",
        ),
    ] = None,
    measure_examples: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Training examples to take the measure on; 0 for none.  "
            "[default: all with --train head, else 200]",
        ),
    ] = None,
    stability: Annotated[bool, typer.Option("--stability", help="Also noise stability.")] = False,
    certify: Annotated[
        bool, typer.Option("--certify", help="Also a certificate, where a head alone is trained.")
    ] = False,
    keep_runs: Annotated[bool, typer.Option("--keep-runs", help="Keep the weights of every run.")] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes.  [default: one a core]")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="local|ray",
            help="Processes of this machine, or tasks of a Ray cluster (needs hesstune[ray]).",
        ),
    ] = "local",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over; else the comparison in --out is continued.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and stop.")] = False,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Compare fine-tuning methods: the same budget, split and selection, several seeds, one table."""
    folder = options.pop("out", None)
    if "method" in options:
        raise ConfigError("--method is for one run; a comparison takes --methods NAME,NAME,…")
    values = _values(config, options, methods, seeds)
    output = Output(quiet, json)
    if dry_run:
        _dry_run(values, output)
        return
    if folder is None:
        raise ConfigError("give --out, the folder for the comparison, such as --out runs/cmp")
    from hesstune.study.compare import compare as run_compare

    command = shlex.join(["hesstune", *sys.argv[1:]])
    try:
        with progress_bars(quiet) as bars:
            found = run_compare(
                values,
                out=folder,
                baseline=baseline,
                search=search,
                measure_examples=measure_examples,
                stability=stability,
                certify=certify,
                keep_runs=keep_runs,
                jobs=jobs,
                engine=engine,
                overwrite=overwrite,
                progress=bars("compare") if bars else None,
                command=command,
            )
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; continue with the same command: {command}") from None
    results = found.results
    output.say(*results["header"], "")
    tasks = results["tasks"]
    for task in [None, *tasks] if len(tasks) > 1 else tasks:
        output.say(_table(results, task), "")
    failed = [c for c in results["cells"] if c["status"] == "failed"]
    for cell in failed:
        output.say(f"Failed: {cell['task']}, {cell['method']}, seed {cell['seed']}: {cell['error']}")
    for method, why in results["left_out"].items():
        output.say(f"Left out: {method}: {why}")
    output.say(f"Written: {found.path / 'results.json'}, results.csv and README.md beside it")
    output.record({"path": str(found.path), **results})


def _values(
    config: Path | None, options: dict[str, Any], methods: str | None, seeds: int | None
) -> dict[str, Any]:
    from hesstune.runs.config import read_yaml

    values = read_yaml(config) if config else {}
    first = options.pop("seed", None)
    values |= options
    if methods is not None:
        values["methods"] = [name.strip() for name in methods.split(",") if name.strip()]
    if seeds is not None or first is not None:
        start = 0 if first is None else _integer(first)
        values["seeds"] = list(range(start, start + (3 if seeds is None else seeds)))
    return values


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"seed: must be an integer; got {text!r}") from None


def _dry_run(values: dict[str, Any], output: Output) -> None:
    from hesstune.study.compare import plan_of

    plan, _ = plan_of(values)
    for cell in plan.cells:
        output.say(f"{cell.task}, {cell.method}, seed {cell.seed}")
    output.say(f"{len(plan.cells)} cells")
    output.record({"cells": [[c.task, c.method, c.seed] for c in plan.cells], "left_out": plan.left_out})


def _table(results: dict[str, Any], task: str | None) -> Table:
    from rich.table import Table

    from hesstune.study.tables import method_rows

    title = task if task is not None else f"mean over {len(results['tasks'])} tasks"
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    header, rows = method_rows(results, task, brief=True)
    for at, name in enumerate(header):
        table.add_column(name, justify="right" if at else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
