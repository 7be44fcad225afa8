"""`hesstune finetune`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hesstune.cli.exits import Interrupted
from hesstune.cli.options import JSON, QUIET, with_config_options
from hesstune.cli.render import Output, progress_bars, results_table
from hesstune.errors import ConfigError
from hesstune.runs.config import make_config, read_config, read_yaml

__all__ = ["finetune"]


@with_config_options
def finetune(
    options: dict[str, Any],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file of options; the command line wins.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved options and stop.")] = False,
    json: JSON = False,
    quiet: QUIET = False,
) -> None:
    """Fine-tune a pretrained network on noisily labelled data, into a run folder."""
    values = (read_yaml(config) if config else _stored(options, resume)) | options
    resolved = make_config(values).resolved()
    if dry_run:
        import yaml

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
        if not (Path(resolved.out) / "config.yaml").is_file():
            raise Interrupted("interrupted before the run began; give the same command again") from None
        command = f"hesstune finetune --out {shlex.quote(resolved.out)} --resume"
        raise Interrupted(f"interrupted; continue with: {command}") from None
    output.say(results_table({resolved.method: run}), "")
    facts, noise = run.facts, run.facts.noise
    if noise.injected:
        changed = f"{noise.realised_rate:.1%} of the training labels changed"
        output.say(f"Noise injected: {noise.injected}; {changed}.")
    output.say(f"The loss was told about label noise: {noise.told}.")
    for note in noise.estimate_notes:
        output.say(f"  {note}")
    if facts.unlabelled:
        output.say(f"Left out: {facts.unlabelled} examples with neither label nor vote.")
    if facts.checked_labels:
        output.say(f"Checked labels that count as clean: {facts.checked_labels}.")
    output.say(f"Run: {run.path}")
    output.record({"path": str(run.path), **run.record})


def _stored(options: dict[str, Any], resume: bool) -> dict[str, Any]:
    """Return the options of the run to resume, so that they need not be given again."""
    stored = Path(str(options.get("out", ""))) / "config.yaml"
    if not (resume and options.get("out") and stored.is_file()):
        return {}
    return read_config(stored).to_dict()
