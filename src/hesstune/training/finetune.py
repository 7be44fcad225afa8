"""`hesstune.finetune`: from options and objects to a finished run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hesstune.data.examples import MEMORY, Task
from hesstune.errors import ConfigError
from hesstune.methods import Method, method_name
from hesstune.models.load import MODULE, ModelObject, spec_parts
from hesstune.options import takes_options
from hesstune.runs.config import FinetuneConfig, make_config, read_yaml
from hesstune.runs.run import Given, Run
from hesstune.runtime.progress import Progress
from hesstune.training.fit import Trained, fit_prepared, for_task
from hesstune.training.in_folder import in_folder
from hesstune.training.prepare import Prepared
from hesstune.training.radii import with_chosen_radii

__all__ = ["finetune"]

Config = FinetuneConfig | Mapping[str, Any] | str | Path


@takes_options(FinetuneConfig, more=True)
def finetune(
    data: Any = None,
    /,
    model: str | ModelObject | None = None,
    method: str | type[Method] | None = None,
    *,
    config: Config | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    observe: Callable[[Trained], None] | None = None,
    keep_weights: bool = True,
    **options: Any,
) -> Run:
    """Fine-tune a pretrained network on a small, perhaps noisily labelled data set.

    Without `out` the run goes to a new folder below the system's temporary one, `Run.path`. It is not
    removed: it holds the run that is returned.

    Args:
        data: The data set, by position or by name: a string as on the command line; a pandas DataFrame
            with columns as of `csv:` data; a pair (X, y) of texts, image files, PIL images or an array of
            images, and labels; a map-style data set of (input, label); or a `datasets.Dataset` or
            DatasetDict. Objects are not kept: the run says `data: memory` and knows them again by their
            contents. In its place, a mapping of options, a FinetuneConfig or the path of a YAML file
            is `config`.
        model: A string as on the command line, or a `torch.nn.Module` (for texts a pair of module and
            tokenizer). A copy of it is trained; its weights are where the run starts, and it is left as it
            was. The layer that produces its K logits is the head (option `head`).
        method: The name of a method, or a subclass of `hesstune.methods.Method`.
        config: Options: a configuration, a mapping, or the path of a YAML file.
        overwrite: Replace the run in `out`; other files there are left alone.
        resume: Continue an interrupted run in `out`; start where there is none.
        progress: Called with (steps done, steps in all, text) after every step.
        observe: Called with the network and its inputs when training has ended.
        keep_weights: Keep the fine-tuned weights and the reference; else the records alone, and those without
            the errors of an estimated noise matrix, which take as long as the matrix.
        **options: Options of `FinetuneConfig` by name, over those of `config`; `data`, too.

    Returns:
        The finished run.

    Raises:
        HesstuneError: If an option or input is wrong, with what is needed; nothing is lost.

    Example:
        >>> import hesstune as ht
        >>> run = ht.finetune("digits", train="head", inject_noise="symmetric:0.2", limit=64)
        >>> run.config.method, run.record["recipe"]["chosen"].partition(" (")[0]
        ('auto', 'penalised cross-entropy on the labels as they are')
    """
    if _is_config(data):
        if config is not None:
            raise ConfigError("options are given twice, by position and as config; give them once")
        data, config = None, data
    elif data is not None and "data" in options:
        raise ConfigError("data is given twice, by position and by name; give it once")
    data = options.pop("data", None) if data is None else data
    given = Given(None if isinstance(data, str | Path) else data, None if isinstance(model, str) else model)
    named = {
        "data": data if given.data is None else MEMORY,
        "model": model if given.model is None else MODULE,
        "method": None if method is None else method_name(method),
    }
    made = _build(config, {**options, **{k: v for k, v in named.items() if v is not None}})
    resolved = (for_task(made, data) if isinstance(data, Task) else made).resolved()
    if given.model is None:
        spec_parts(resolved.model)

    fitted = partial(
        fit_prepared, resume=resume, progress=progress, observe=observe, keep_weights=keep_weights
    )

    def train(prepared: Prepared, out: Path) -> Run:
        if resolved.radius == "auto":
            prepared = with_chosen_radii(prepared, out)
            torch.manual_seed(resolved.seed)
        return fitted(prepared, out)

    return in_folder(resolved, given, train, overwrite=overwrite, resume=resume, errors=keep_weights)


def _is_config(given: Any) -> bool:
    """Tell options and files of options from data: of two strings, the one that ends in .yaml or .yml."""
    if isinstance(given, str | Path):
        return Path(given).suffix.lower() in (".yaml", ".yml")
    # The library datasets makes its dictionary of parts a mapping, too.
    own = type(given).__module__.partition(".")[0] == "datasets"
    return isinstance(given, FinetuneConfig | Mapping) and not own


def _build(config: Config | None, options: dict[str, Any]) -> FinetuneConfig:
    if isinstance(config, FinetuneConfig):
        values = config.model_dump(exclude_unset=True)
    elif isinstance(config, str | Path):
        values = read_yaml(config)
    else:
        values = dict(config or {})
    return make_config({**values, **options})
