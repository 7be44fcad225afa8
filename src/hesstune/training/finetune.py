"""`hesstune.finetune`: from a configuration to a finished run folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from hesstune.errors import ConfigError
from hesstune.models.load import spec_parts
from hesstune.runs.config import RESUMABLE, FinetuneConfig, make_config, read_config, read_yaml
from hesstune.runs.folder import claim, entered
from hesstune.runs.run import CONFIG, NOISE, RECORD, Run
from hesstune.runs.sharded import refuse_one
from hesstune.runtime.distributed import on_main_process, refuse_adapting, start_ranks, world
from hesstune.training.fit import Trained, fit_prepared
from hesstune.training.prepare import AUTOMATIC, prepare
from hesstune.training.radii import with_chosen_radii
from hesstune.training.tracking import check_tracker
from hesstune.training.trainer import Progress

__all__ = ["finetune"]


def finetune(
    config: FinetuneConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    observe: Callable[[Trained], None] | None = None,
    keep_weights: bool = True,
    **options: Any,
) -> Run:
    """Fine-tune a pretrained network on a small, perhaps noisily labelled data set.

    Args:
        config: A configuration, a mapping of options, or the path of a YAML file.
        overwrite: Replace the run in `out`; other files there are left alone.
        resume: Continue an interrupted run in `out`; start where there is none.
        progress: Called with (steps done, steps in all, text) after every step.
        observe: Called with the network and its inputs when training has ended.
        keep_weights: Keep the fine-tuned weights and the reference; else the records alone.
        **options: Options by name, over those of `config` (see `FinetuneConfig`). Without `out` the
            run goes to a temporary folder, `Run.path`.

    Returns:
        The finished run.

    Raises:
        HesstuneError: If an option or input is wrong, with what is needed; nothing is lost.

    Example:
        >>> import hesstune as ht
        >>> run = ht.finetune(data="digits", train="head", inject_noise="symmetric:0.2", epochs=1, limit=64)
        >>> run.result["epochs"], round(run.record["noise"]["told_rate"], 3)
        (1, 0.2)
    """
    resolved = _build(config, options).resolved()
    spec_parts(resolved.model)
    check_tracker(resolved.track)
    start_ranks()
    refuse_adapting(resolved.batch_norm)
    refuse_one(resolved.shard)
    if resolved.out is None and world() > 1:
        raise ConfigError("several processes write one run: give --out, a folder that all of them see")
    out = Path(resolved.out) if resolved.out else Path(tempfile.mkdtemp(prefix="hesstune-"))
    if resolved.out:
        on_main_process(lambda: claim(out, overwrite, resume, create=False))
    if resume and (out / CONFIG).is_file():
        _check_same(read_config(out / CONFIG), resolved, out)
        if (out / RECORD).is_file() and (run := Run.load(out)).finished:
            return run
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(resolved.seed)
        prepared = prepare(resolved, out / NOISE if resume else None)
        with entered(out, overwrite, resume):
            if resume and (out / RECORD).is_file() and (run := Run.load(out)).finished:
                return run  # by another process, while this one was loading
            if resolved.radius in AUTOMATIC:
                prepared = with_chosen_radii(prepared, out)
                torch.manual_seed(resolved.seed)
            return fit_prepared(
                prepared,
                out,
                resume=resume,
                progress=progress,
                observe=observe,
                keep_weights=keep_weights,
            )


def _build(
    config: FinetuneConfig | Mapping[str, Any] | str | Path | None, options: dict[str, Any]
) -> FinetuneConfig:
    if isinstance(config, FinetuneConfig):
        values = config.model_dump(exclude_unset=True)
    elif isinstance(config, str | Path):
        values = read_yaml(config)
    else:
        values = dict(config or {})
    return make_config({**values, **options})


def _check_same(before: FinetuneConfig, now: FinetuneConfig, out: Path) -> None:
    """Raise ConfigError naming the first option that a resumed run would change."""
    old, new = before.to_dict(), now.to_dict()
    for name in old:
        if name not in RESUMABLE and old[name] != new[name]:
            raise ConfigError(
                f"the run in {out} was started with --{name.replace('_', '-')} {old[name]}, not {new[name]}; "
                "resume it with the same options, or use --overwrite"
            )
