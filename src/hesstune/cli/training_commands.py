"""The commands that train: `finetune`, `compare`, `demo`, and `methods`, which lists what they train by."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hesstune.checks import parse_integer
from hesstune.cli.options import CONFIG, DRY_RUN, JSON, QUIET, STYLE, replacing, with_options
from hesstune.cli.render import (
    Interrupted,
    Output,
    ProgressFor,
    name_table,
    percent,
    progress_bars,
    progress_lines,
    results_table,
)
from hesstune.errors import ConfigError, RunError
from hesstune.options import make_options
from hesstune.runs import records
from hesstune.runs.config import FinetuneConfig, make_config, read_config, read_yaml
from hesstune.study.options import CompareOptions

if TYPE_CHECKING:
    from rich.table import Table

    from hesstune.methods import Method
    from hesstune.study.demo import FoundErrors, Plan
    from hesstune.study.options import StudyResults


@with_options()
def finetune(
    options: FinetuneConfig,
    config: CONFIG = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="continue the interrupted run in --out", rich_help_panel="Run"),
    ] = False,
    dry_run: DRY_RUN = False,
    overwrite: Annotated[bool, replacing("the run in --out")] = False,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Fine-tune a pretrained network on noisily labelled data, into a run folder."""
    values: dict[str, Any] = {}
    if config:
        values = read_yaml(config)
        try:
            make_config(values)
        except ConfigError as error:  # name the file
            raise ConfigError(f"{config}: {error}") from None
    elif resume and options.out and (stored := Path(options.out) / records.CONFIG).is_file():
        values = read_config(stored).to_dict()
    resolved = make_config(values | options.given()).resolved()
    if dry_run:
        import yaml

        from hesstune.data.describe import describe
        from hesstune.runs.loading import reading_of

        output = Output(quiet, json)
        facts = describe(resolved.data, reading_of(resolved))
        if resolved.train not in ("all", "head"):
            output.say(
                f"# If --train {resolved.train} names the parameters of the head alone in this network, "
                "defaults are those of --train head."
            )
        # Comments, so that what is printed is a file for --config.
        output.say(*(f"# {' '.join(line.split())}" for line in (facts.lines() if facts else ())))
        output.say(yaml.safe_dump(resolved.to_dict(), sort_keys=False, allow_unicode=True).rstrip("\n"))
        output.record({"config": resolved.to_dict(), "data": facts and facts.to_dict()})
        return
    if resolved.out is None:
        raise ConfigError("give --out, the folder for the run, such as --out runs/a")
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite contradict each other; give one of them")
    from hesstune.training.finetune import finetune as run_finetune

    output = Output(quiet, json)
    try:
        with progress_bars(quiet) as bars:
            shown = bars(resolved.method) if bars else None
            run = run_finetune(resolved, overwrite=overwrite, resume=resume, progress=shown)
    except KeyboardInterrupt:
        if not (Path(resolved.out) / records.CONFIG).is_file():
            raise Interrupted("interrupted before the run began; give the same command again") from None
        command = f"hesstune finetune --out {shlex.quote(resolved.out)} --resume"
        raise Interrupted(f"interrupted; continue with: {command}") from None
    output.say(results_table({resolved.method: run}), "")
    output.say(*_fact_lines(run.facts), f"Run: {run.path}")
    output.record({"path": str(run.path), **run.record})


def _fact_lines(facts: records.RunRecord) -> Iterator[str]:
    """Return one line for each fact about a run's labels and data."""
    noise = facts.noise
    if facts.recipe is not None:
        yield f"Head: {facts.recipe.chosen}; {facts.recipe.reason}."
    if noise.injected:
        changed = f"{noise.realised_rate:.1%} of the training labels changed"
        yield f"Noise injected: {noise.injected}; {changed}."
    yield f"Noise matrix of the loss: {noise.loss_matrix}."
    yield from (f"  {note}" for note in noise.estimate_notes)
    yield from (f"Data: {note}." for note in facts.data_notes)
    if facts.skipped_images:
        yield f"Left out: {facts.skipped_images} damaged images, listed in {records.BAD_IMAGES}."
    if facts.unlabelled:
        yield f"Left out: {facts.unlabelled} examples with neither label nor vote."
    if facts.checked_labels:
        yield f"Checked labels, assumed correct: {facts.checked_labels}."
    yield from (f"Note: {note}." for note in facts.notes)


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
    values = _comparison_values(config, options, study)
    output = Output(quiet, json)
    if dry_run:
        from hesstune.data.describe import describe
        from hesstune.runs.loading import reading_of
        from hesstune.study.compare import plan_of

        plan, _ = plan_of(values)
        read = {(cell.config.data, reading_of(cell.config)): None for cell in plan.cells}
        facts = [said for data, how in read if (said := describe(data, how)) is not None]
        lines = dict.fromkeys(line for said in facts for line in said.lines())
        output.say(*lines)
        output.say(*(f"{cell.task}, {cell.method}, seed {cell.seed}" for cell in plan.cells))
        output.say(f"{len(plan.cells)} cells")
        cells = [[c.task, c.method, c.seed] for c in plan.cells]
        record = {"cells": cells, "left_out": plan.left_out}
        output.record({**record, "data": [said.to_dict() for said in facts]})
        return
    if folder is None:
        raise ConfigError("give --out, the folder for the comparison, such as --out runs/cmp")
    from hesstune.study.compare import compare as run_compare
    from hesstune.study.results import RESULTS

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
    results = found.results
    output.say(*results.header, "")
    for task in [None, *results.tasks] if len(results.tasks) > 1 else results.tasks:
        output.say(comparison_table(results, task), "")
    failed = [c for c in results.cells if c.status == "failed"]
    for cell in failed:
        output.say(f"Failed: {cell.task}, {cell.method}, seed {cell.seed}: {cell.error}")
    for method, why in results.left_out.items():
        output.say(f"Left out: {method}: {why}")
    output.say(f"Written: {found.path / RESULTS}, results.csv and README.md beside it")
    output.record({"path": str(found.path), **results.to_dict()})
    if failed and len(failed) == len(results.cells):
        raise RunError(f"every cell failed, the first with: {failed[0].error}")


def _comparison_values(config: Path | None, options: dict[str, Any], study: CompareOptions) -> dict[str, Any]:
    """Return all options by name, checked, the command line's over those of the file."""
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


def comparison_table(results: StudyResults, task: str | None) -> Table:
    """Return a row for each method, of one task or of the mean over all tasks."""
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


def demo(
    out: Annotated[Path, typer.Option(help="folder for the runs; a free name beside it if it exists")] = Path(
        "runs/demo"
    ),
    full: Annotated[
        bool, typer.Option("--full", help="more methods and epochs: the table of the README; takes minutes")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="number of seeds")] = 1,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Find wrong labels among digits, and fine-tune on them: plain training beside auto."""
    output = Output(quiet, json)
    output.say("The demo finds wrong labels among images of handwritten digits, then fine-tunes on them.")
    try:
        with progress_lines(quiet) as progress:  # before the slow imports
            from hesstune.study.demo import FULL, SHORT, demo_folder

            with demo_folder(out) as folder:
                _run_demo(FULL if full else SHORT, folder, range(seeds), progress, output)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the demo left nothing behind: give the same command again") from None


def _run_demo(
    plan: Plan, folder: Path, seeds: Sequence[int], progress: ProgressFor | None, output: Output
) -> None:
    """Run the demo on some seeds in its folder, and print what it finds."""
    from hesstune.inputs.features import sharing
    from hesstune.study.demo import find_errors, train_runs

    errors, rows = [], []
    for seed in seeds:
        if progress:
            progress("find label errors")(0, 0, "")
        with sharing():  # label errors and auto need the features of the same images
            found = find_errors(plan, seed)
            errors.append({"seed": seed, **found.to_dict()})
            output.say(*([f"\nSeed {seed}"] if len(seeds) > 1 else []), *_error_lines(found), "")
            runs = train_runs(plan, seed, folder, progress, many=len(seeds) > 1)
        output.say(results_table(runs), "")
        rows += [
            {"method": run.config.method, "name": name, "seed": seed, "path": str(run.path)}
            | {"noise": run.record["noise"], **run.result}
            for name, run in runs.items()
        ]
    auto = runs["auto"]
    output.say(
        f"All layers of {auto.config.model} were trained from its ImageNet weights, for at most "
        f"{auto.config.epochs} epochs. Test labels are true.",
        *(f"Noise matrix of {name}: {run.facts.noise.loss_matrix}." for name, run in runs.items()),
        f"Runs: {folder}, a folder for each",
        f"Next: hesstune report {shlex.quote(str(auto.path))}",
    )
    output.record({"path": str(folder), "setting": dict(plan.setting), "label_errors": errors, "runs": rows})


def _error_lines(found: FoundErrors) -> Iterator[str]:
    """Return sentences on the label errors that were found, beside the truth."""
    yield (
        f"Data: {found.examples} training images of {found.classes} classes. {found.wrong} labels "
        f"({percent(found.wrong / found.examples)}) were changed at random, so the wrong ones are known."
    )
    yield (
        f"Label errors: {found.suspected} labels are suspected, and {found.right} of them are wrong "
        f"({percent(found.precision)}): {percent(found.recall)} of the wrong labels were found."
    )


def methods(json: JSON = False) -> None:
    """List the fine-tuning methods by tier: recommended, baselines, research."""
    from hesstune.methods import TIERS, method_class, method_names

    kinds = {name: method_class(name) for name in method_names()}
    output = Output(quiet=False, as_json=json)
    for tier in TIERS:
        table = name_table(tier, "")
        table.columns[1].justify, table.columns[1].no_wrap = "left", False
        for name, kind in kinds.items():
            if kind.tier == tier:
                table.add_row(name, _summary(kind))
        output.say(table, "")
    output.record({tier: {n: _summary(k) for n, k in kinds.items() if k.tier == tier} for tier in TIERS})


def _summary(kind: type[Method]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())
