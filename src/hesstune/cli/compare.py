"""`hesstune compare`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from hesstune.checks import parse_integer
from hesstune.cli.options import CONFIG, DRY_RUN, JSON, QUIET, STYLE, replacing, with_options
from hesstune.cli.render import Interrupted, Output, progress_bars
from hesstune.errors import ConfigError, RunError
from hesstune.options import make_options
from hesstune.runs.config import FinetuneConfig
from hesstune.study.options import CompareOptions

if TYPE_CHECKING:
    from rich.table import Table

    from hesstune.study.compare import Comparison
    from hesstune.study.options import StudyResults


@with_options(hidden=("method",))
def compare(
    study: CompareOptions,
    options: Annotated[dict[str, Any], FinetuneConfig],
    config: CONFIG = None,
    dry_run: DRY_RUN = False,
    overwrite: Annotated[
        bool, replacing("the comparison in --out: start over; else it is continued")
    ] = False,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Compare fine-tuning methods: the same budget, split and selection, several seeds, one table."""
    folder = options.pop("out", None)
    if "method" in options:
        raise ConfigError("--method is for one run; a comparison takes --methods NAME,NAME,…")
    values = _values(config, options, study)
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
                overwrite=overwrite,
                progress=bars("compare") if bars else None,
                command=command,
            )
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; continue with the same command: {command}") from None
    output.say(*found.results.header, "")
    tasks = found.results.tasks
    for task in [None, *tasks] if len(tasks) > 1 else tasks:
        output.say(_table(found.results, task), "")
    _ended(found, output)


def _ended(found: Comparison, output: Output) -> None:
    """Say what failed and where the results are.

    Raises:
        RunError: If every cell failed.
    """
    from hesstune.study.results import RESULTS

    results = found.results
    failed = [c for c in results.cells if c.status == "failed"]
    for cell in failed:
        output.say(f"Failed: {cell.task}, {cell.method}, seed {cell.seed}: {cell.error}")
    for method, why in results.left_out.items():
        output.say(f"Left out: {method}: {why}")
    output.say(f"Written: {found.path / RESULTS}, results.csv and README.md beside it")
    output.record({"path": str(found.path), **results.to_dict()})
    if failed and len(failed) == len(results.cells):
        raise RunError(f"every cell failed, the first with: {failed[0].error}")


def _values(config: Path | None, options: dict[str, Any], study: CompareOptions) -> dict[str, Any]:
    """Return all options by name, checked, the command line's over those of the file."""
    from hesstune.runs.config import read_yaml

    # {seed} and {task} stand for what is not known yet.
    make_options(FinetuneConfig, {k: v for k, v in options.items() if "{" not in v}, STYLE)
    values = read_yaml(config) if config else {}
    first = options.pop("seed", None)
    values |= options | study.given()
    if first is not None:
        seeds = make_options(CompareOptions, {"seeds": values.get("seeds", len(study.seeds))}).seeds
        if list(seeds) != list(range(len(seeds))):
            raise ConfigError(f"--seed is the first of so many seeds, and {config} says which they are")
        start = parse_integer(first)
        if start is None:
            raise ConfigError(f"--seed must be an integer; got {first!r}")
        values["seeds"] = [start + seed for seed in seeds]
    return values


def _dry_run(values: dict[str, Any], output: Output) -> None:
    from hesstune.study.compare import plan_of

    plan, _ = plan_of(values)
    for cell in plan.cells:
        output.say(f"{cell.task}, {cell.method}, seed {cell.seed}")
    output.say(f"{len(plan.cells)} cells")
    output.record({"cells": [[c.task, c.method, c.seed] for c in plan.cells], "left_out": plan.left_out})


def _table(results: StudyResults, task: str | None) -> Table:
    from rich.table import Table

    from hesstune.study.results import method_rows

    title = task if task is not None else f"mean over {len(results.tasks)} tasks"
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    header, rows = method_rows(results, task, brief=True)
    for at, name in enumerate(header):
        table.add_column(name, justify="right" if at else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
