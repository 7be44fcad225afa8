"""The commands that train: `finetune`, `compare`, `demo`, and `methods`, which lists what they train by."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hesstune.checks import parse_integer
from hesstune.cli.options import CONFIG, DRY_RUN, STYLE, default, needed_data, replacing, with_options
from hesstune.cli.render import (
    Interrupted,
    Output,
    ProgressFor,
    command_line,
    name_table,
    percent,
    progress_lines,
    results_table,
    without_dry_run,
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

DEMO = Path("runs/demo")


@with_options(
    "data", "model", "method", "noise_matrix", "out", "epochs", "train", "lr", "label_column", "seed"
)
def finetune(
    options: FinetuneConfig,
    output: Output,
    config: CONFIG = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="continue the interrupted run in --out", rich_help_panel="Run"),
    ] = False,
    dry_run: DRY_RUN = False,
    overwrite: Annotated[bool, replacing("the run in --out")] = False,
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
    values |= options.given()
    resolved = make_config(values).resolved()
    if not dry_run and resolved.out is None:
        raise ConfigError("give --out, the folder for the run, such as --out runs/a")
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite contradict each other; give one of them")
    needed_data(values.get("data"))
    if dry_run:
        _say_plan(resolved, output)
        return
    from hesstune.inputs.features import sharing
    from hesstune.training.finetune import finetune as run_finetune

    assert resolved.out is not None
    try:
        with output.progress(resolved.method) as shown, sharing() as features:
            run = run_finetune(resolved, overwrite=overwrite, resume=resume, progress=shown)
    except KeyboardInterrupt:
        if not (Path(resolved.out) / records.CONFIG).is_file():
            raise Interrupted("interrupted before the run began; give the same command again") from None
        command = command_line("finetune", "--out", resolved.out, "--resume")
        raise Interrupted(f"interrupted; continue with: {command}") from None
    output.say(results_table({resolved.method: run}), "")
    output.say(*_fact_lines(run.facts), *features.said(), f"Run: {run.path}")
    output.end({"path": str(run.path), **run.record}, command_line("report", run.path))


def _say_plan(config: FinetuneConfig, output: Output) -> None:
    """End a dry run with what the data holds, and the options as a file for --config."""
    import yaml

    from hesstune.data.describe import describe
    from hesstune.runs.loading import reading_of

    facts, notes = describe(config.data, reading_of(config, config.seed)), list[str]()
    if facts is not None and facts.kind == "text":
        config, notes = config.on_texts()
    if config.train not in ("all", "head"):
        notes.append(
            f"If --train {config.train} names the parameters of the head alone in this network, defaults are "
            "those of --train head."
        )
    # Comments, so that what is printed is a file for --config.
    lines = [*notes, *(facts.lines() if facts else ())]
    output.say(*(f"# {' '.join(line.split())}" for line in lines))
    output.say(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True).rstrip("\n"))
    record = {"config": config.to_dict(), "data": facts and facts.to_dict()}
    output.end(record, without_dry_run(), mark="# ")


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


@with_options(
    "data", "methods", "seeds", "model", "noise_matrix", "out", "epochs", "train", "lr", "label_column",
    hidden=("method",),
)  # fmt: skip
def compare(
    study: CompareOptions,
    options: Annotated[dict[str, Any], FinetuneConfig],
    output: Output,
    config: CONFIG = None,
    dry_run: DRY_RUN = False,
    overwrite: Annotated[
        bool, replacing("the comparison in --out: start over; else it is continued")
    ] = False,
) -> None:
    """Compare fine-tuning methods: same budget, split and selection, several seeds."""
    folder = options.pop("out", None)
    if "method" in options:
        raise ConfigError("--method is for one run; a comparison takes --methods NAME,NAME,…")
    values = _comparison_values(config, options, study)
    if not values.get("tasks"):
        needed_data(values.get("data"))
    if dry_run:
        _say_cells(values, output)
        return
    if folder is None:
        raise ConfigError("give --out, the folder for the comparison, such as --out runs/cmp")
    from hesstune.study.compare import compare as run_compare
    from hesstune.study.results import RESULTS

    command = command_line(*sys.argv[1:])
    try:
        with output.progress("compare") as shown:
            found = run_compare(values, out=folder, overwrite=overwrite, progress=shown, command=command)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; continue with the same command: {command}") from None
    results = found.results
    output.say(*results.header, "")
    for task in [None, *results.tasks] if len(results.tasks) > 1 else results.tasks:
        output.say(comparison_table(results, task), "")
    failed = [c for c in results.cells if c.status == "failed"]
    output.say(
        *(f"Failed: {cell.task}, {cell.method}, seed {cell.seed}: {cell.error}" for cell in failed),
        *(f"Left out: {method}: {why}" for method, why in results.left_out.items()),
        f"Written: {found.path / RESULTS}, results.csv and README.md beside it",
    )
    output.end({"path": str(found.path), **results.to_dict()}, command_line("report", found.path))
    if failed and len(failed) == len(results.cells):
        raise RunError(f"every cell failed, the first with: {failed[0].error}")


def _say_cells(values: dict[str, Any], output: Output) -> None:
    """End a dry run with what the data holds, and the cells of a comparison."""
    from hesstune.data.describe import describe
    from hesstune.runs.loading import reading_of
    from hesstune.study.compare import plan_of

    plan, _ = plan_of(values)
    read = {(cell.config.data, reading_of(cell.config, cell.seed)): None for cell in plan.cells}
    facts = [said for data, how in read if (said := describe(data, how)) is not None]
    output.say(*dict.fromkeys(line for said in facts for line in said.lines()))
    output.say(*(f"{cell.task}, {cell.method}, seed {cell.seed}" for cell in plan.cells))
    output.say(f"{len(plan.cells)} cells")
    cells = [[c.task, c.method, c.seed] for c in plan.cells]
    record = {"cells": cells, "left_out": plan.left_out, "data": [said.to_dict() for said in facts]}
    output.end(record, without_dry_run())


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


@with_options()
def demo(
    output: Output,
    out: Annotated[
        Path,
        typer.Option(
            help=f"folder for the runs; a free name beside it if it exists{default(DEMO)}", show_default=False
        ),
    ] = DEMO,
    full: Annotated[
        bool, typer.Option("--full", help="more methods and epochs: the table of the README; takes minutes")
    ] = False,
    seeds: Annotated[
        int,
        typer.Option(min=1, max=100, metavar="N", help="number of seeds; default: 1", show_default=False),
    ] = 1,
) -> None:
    """Find label errors among digits, then fine-tune: plain training beside auto."""
    output.say("The demo finds wrong labels among images of handwritten digits, then fine-tunes on them.")
    try:
        with progress_lines(output.quiet) as progress:  # before the slow imports
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
    )
    record = {"path": str(folder), "setting": dict(plan.setting), "label_errors": errors, "runs": rows}
    output.end(record, command_line("report", auto.path))


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


@with_options()
def methods(output: Output) -> None:
    """List the fine-tuning methods by tier: recommended, baselines, research."""
    from hesstune.methods import TIERS, method_class, method_names

    kinds = {name: method_class(name) for name in method_names()}
    for tier in TIERS:
        table = name_table(tier, "")
        table.columns[1].justify, table.columns[1].no_wrap = "left", False
        for name, kind in kinds.items():
            if kind.tier == tier:
                table.add_row(name, _summary(kind))
        output.say(table, "")
    record: dict[str, Any] = {
        tier: {n: _summary(k) for n, k in kinds.items() if k.tier == tier} for tier in TIERS
    }
    output.end(record, command_line("demo"))


def _summary(kind: type[Method]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())
