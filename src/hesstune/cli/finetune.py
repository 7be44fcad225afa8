"""`hesstune finetune`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hesstune.cli.options import CONFIG, DRY_RUN, JSON, QUIET, replacing, with_options
from hesstune.cli.render import Interrupted, Output, progress_bars, results_table
from hesstune.errors import ConfigError
from hesstune.runs import records
from hesstune.runs.config import FinetuneConfig, make_config, read_config, read_yaml


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
    values = _read(config) if config else _stored(options.out, resume)
    resolved = make_config(values | options.given()).resolved()
    if dry_run:
        import yaml

        if resolved.train not in ("all", "head"):
            sys.stdout.write(
                f"# If --train {resolved.train} names the parameters of the head alone in this network, "
                "defaults are those of --train head.\n"
            )
        sys.stdout.write(yaml.safe_dump(resolved.to_dict(), sort_keys=False, allow_unicode=True))
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
    """Return a line for each thing to know of what a run was made from."""
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
        yield f"Checked labels that count as clean: {facts.checked_labels}."
    yield from (f"Note: {note}." for note in facts.notes)


def _read(path: Path) -> dict[str, Any]:
    """Return a file's options; its own errors name the file."""
    values = read_yaml(path)
    try:
        return make_config(values).given()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _stored(out: str | None, resume: bool) -> dict[str, Any]:
    """Return the options of the run to resume, so that they need not be given again."""
    if not (resume and out and (stored := Path(out) / records.CONFIG).is_file()):
        return {}
    return read_config(stored).to_dict()
