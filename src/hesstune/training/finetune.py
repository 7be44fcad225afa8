"""`hesstune.finetune`: from options and objects to a finished run; `--radius auto` chooses the radii."""

from __future__ import annotations

import contextlib
import copy
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from hesstune.data.examples import MEMORY, Task
from hesstune.errors import ConfigError, cut
from hesstune.inputs.batches import predict_logits
from hesstune.inputs.features import sharing
from hesstune.methods import Method, method_name
from hesstune.models.load import MODULE, ModelObject, spec_parts
from hesstune.models.networks import LINEAR
from hesstune.options import takes_options
from hesstune.runs import records as files
from hesstune.runs.checkpoint import refuse_one, weights_of
from hesstune.runs.config import (
    RESUMABLE,
    TEXT_MODEL,
    FinetuneConfig,
    make_config,
    read_config,
    read_yaml,
)
from hesstune.runs.folder import claim, entered
from hesstune.runs.integrity import check_data, check_weights
from hesstune.runs.keywords import FinetuneKeywords
from hesstune.runs.run import Run, SourceObjects
from hesstune.runtime.distributed import joined_ranks, on_main_process, refuse_adapting, world
from hesstune.runtime.signals import Progress
from hesstune.selection import first_within_errors
from hesstune.storage.files import writing
from hesstune.storage.remembered import remembering
from hesstune.storage.stored import read_record, write_record
from hesstune.training.fit import RunRequest, Trained, fit_prepared
from hesstune.training.metrics import Validation, check_tracker
from hesstune.training.prepare import CHOSEN_FROM_EXAMPLES, Prepared, named_radii, prepare

# Options that make a task; they are refused if a task is given.
_MAKE_A_TASK = (
    "data", "limit", "split", "fold", "val_fraction", "test_fraction", "vote_columns", "label_model",
    "skip_bad_images",
)  # fmt: skip
# The candidates: factors of the method's default radii.
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
RULE = (
    "the smallest radii whose validation risk is within one standard error of the least; risk is the mean of "
    "−ln Σ_i p_i F[i, given label] at the temperature of p that suits the labels best: the held-out "
    "log-likelihood of the noisy labels, which also chooses epochs"
)


@takes_options(FinetuneConfig)
def finetune(  # noqa: PLR0913
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
    **options: Unpack[FinetuneKeywords],
) -> Run:
    """Fine-tune a pretrained network on a small, perhaps noisily labelled data set.

    Without `out` the run goes to a new folder below the system's temporary one, `Run.path`. It is not
    removed: it holds the run that is returned. Features of frozen layers are kept in the user's cache, unless
    HESSTUNE_CACHE is set and empty.

    Args:
        data: The data set, by position or by name: a string as on the command line; a pandas DataFrame
            with columns as of `csv:` data; a pair (X, y) of texts, image files, PIL images or an array of
            images, and labels; a map-style data set of (input, label); or a `datasets.Dataset` or
            DatasetDict. Objects are not kept: the run says `data: memory` and knows them again by their
            contents. In its place, a mapping of options, a FinetuneConfig or the path of a YAML file
            is `config`.
        model: A string as on the command line, or a `torch.nn.Module` (for texts a pair of module and
            tokenizer). A copy of it is trained; the run starts from its weights, and it is left as it
            was. The layer that produces its K logits is the head (option `head`).
        method: The name of a method, or a subclass of `hesstune.methods.Method`.
        config: Options: a configuration, a mapping, or the path of a YAML file.
        overwrite: Replace the run in `out`; other files there are left alone.
        resume: Continue an interrupted run in `out`; start if there is none.
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
    if is_config(data):
        if config is not None:
            raise ConfigError("options are given twice, by position and as config; give them once")
        data, config = None, data
    elif data is not None and "data" in options:
        raise ConfigError("data is given twice, by position and by name; give it once")
    data = options.pop("data", None) if data is None else data
    given = SourceObjects(
        None if isinstance(data, str | Path) else data, None if isinstance(model, str) else model
    )
    named = {
        "data": data if given.data is None else MEMORY,
        "model": model if given.model is None else MODULE,
        "method": None if method is None else method_name(method),
    }
    made = _build(config, {**options, **{k: v for k, v in named.items() if v is not None}})
    resolved = (_for_task(made, data) if isinstance(data, Task) else made).resolved()
    if given.model is None:
        spec_parts(resolved.model)

    return _train_in_folder(resolved, given, RunRequest(overwrite, resume, progress, observe, keep_weights))


def is_config(given: Any) -> bool:
    """Tell whether the first argument is options and no data: a string is if it ends in .yaml or .yml."""
    if isinstance(given, str | Path):
        return Path(given).suffix.lower() in (".yaml", ".yml")
    # A datasets.DatasetDict is a mapping, too.
    is_dataset = type(given).__module__.partition(".")[0] == "datasets"
    return isinstance(given, FinetuneConfig | Mapping) and not is_dataset


def _build(config: Config | None, options: dict[str, Any]) -> FinetuneConfig:
    if isinstance(config, FinetuneConfig):
        values = config.model_dump(exclude_unset=True)
    elif isinstance(config, str | Path):
        values = read_yaml(config)
    else:
        values = dict(config or {})
    return make_config({**values, **options})


def _for_task(config: FinetuneConfig, task: Task) -> FinetuneConfig:
    """Return the configuration with what the task determines."""
    for name in _MAKE_A_TASK:
        default = MEMORY if name == "data" else FinetuneConfig.model_fields[name].default
        if name in config.model_fields_set and getattr(config, name) != default:
            raise ConfigError(f"the option {name} makes a task, but one is given; leave it out")
    known: dict[str, Any] = {"data": MEMORY}
    if task.kind == "image":
        size = task.train.images(np.arange(1)).shape[-1]
        if config.image_size not in (None, size):
            raise ConfigError(f"the task's images have {size} pixels a side, not {config.image_size}")
        known["image_size"] = size
    return config.model_copy(update=known)


@joined_ranks()
def _train_in_folder(config: FinetuneConfig, given: SourceObjects, request: RunRequest) -> Run:
    """Prepare a run and train it in its folder, or return the finished run that a resumed one has there.

    Raises:
        HesstuneError: If an option or input is wrong, or the folder cannot be used.
    """
    check_tracker(config.track)
    refuse_adapting(config.batch_norm)
    refuse_one(config.shard)
    if config.out:
        return _run(config, Path(config.out), given, request)
    if world() > 1:
        raise ConfigError("several processes write one run: give --out, a folder that all of them see")
    with writing(Path(tempfile.gettempdir())):
        folder = Path(tempfile.mkdtemp(prefix="hesstune-"))
    try:
        return _run(config, folder, given, request)
    except BaseException:
        with contextlib.suppress(OSError):  # a folder that holds files stays
            folder.rmdir()
        raise


def _run(config: FinetuneConfig, out: Path, given: SourceObjects, request: RunRequest) -> Run:
    """Prepare the run, choose its radii if asked, and train it; see `fit_prepared`."""
    resume, asked = request.resume, config
    if config.out:
        on_main_process(lambda: claim(out, request.overwrite, resume, create=False))
    before = _InterruptedRun.load(out) if resume and (out / files.CONFIG).is_file() else None
    if before is not None:
        config = before.chosen_by(config)
        if not before.undecided(config):
            before.check_same(config, out)
            # If no objects are given, the options determine all that a finished run is compared by.
            named = given.data is None and given.model is None
            if named and (run := _finished(out, given)) is not None:
                run.task()  # refuses data that has changed
                return run
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    # Estimates of the noise, trials of radii and the run itself use the same features.
    with torch.random.fork_rng(devices=devices), sharing(), remembering():
        torch.manual_seed(config.seed)
        prepared = prepare(config, given, out / files.NOISE_MATRIX if resume else None, request.keep_weights)
        if before is not None:
            prepared = before.with_choices(prepared, config, asked, out)
        with entered(out, request.overwrite, resume):
            if resume and (run := _finished(out, given)) is not None:
                # Finished earlier, from objects, or by another process while this one was loading.
                start = weights_of(prepared.loaded.model)
                check_data(run.records, prepared.record())
                check_weights(run.records, {name: start[name] for name in start.names()})
                return run
            if prepared.config.radius == "auto":
                radius = named_radii(choose_radius(prepared, out), prepared.loaded)
                prepared = replace(prepared, radius=radius)
                torch.manual_seed(config.seed)
            return fit_prepared(prepared, out, request)


@dataclass(frozen=True)
class _InterruptedRun:
    """The run to be resumed, as its folder has it: the configuration, and the record unless it is missing."""

    config: FinetuneConfig
    facts: files.RunRecord | None

    @classmethod
    def load(cls, out: Path) -> _InterruptedRun:
        facts = Run.load(out).facts if (out / files.RECORD).is_file() else None
        return cls(read_config(out / files.CONFIG), facts)

    def chosen_by(self, asked: FinetuneConfig) -> FinetuneConfig:
        """Return the configuration with the options that the run chose from the same examples."""
        kind, _, width = self.config.model.partition(":")
        if kind == LINEAR and asked.model != self.config.model:  # the data holds feature vectors
            asked, _ = asked.on_features(int(width))
        elif self.config.model == TEXT_MODEL:
            asked, _ = asked.on_texts()
        solves = asked.kind.solves_head
        names = ("weight_decay", "patience") if solves else ("weight_decay",)
        changes = {name: getattr(self.config, name) for name in names if getattr(asked, name) is None}
        if asked.weight_decay is None and asked.optimizer == "adamw":
            changes["optimizer"] = self.config.optimizer  # adam if the weight decay was chosen
        open_rule = solves or not {"patience", "select"} & asked.model_fields_set
        if open_rule and self.facts is not None and not self.facts.examples.val:
            # There is nothing to select by.
            changes |= {"select": self.config.select, "patience": self.config.patience}
        return asked.model_copy(update=changes)

    def with_choices(
        self, prepared: Prepared, config: FinetuneConfig, asked: FinetuneConfig, out: Path
    ) -> Prepared:
        """Return the same with the options that the run chose, as far as `asked` leaves them open."""
        opened = {name for name in CHOSEN_FROM_EXAMPLES if getattr(asked, name) is None}
        chosen = None if self.facts is None else self.facts.chosen_options
        opened |= set(CHOSEN_FROM_EXAMPLES if chosen is None else chosen)  # also if asked from the folder
        prepared = replace(prepared, chosen_options=sorted({*opened, *prepared.chosen_options}))
        if self.undecided(config):
            kept = {name: getattr(self.config, name) for name in prepared.chosen_options}
            prepared = replace(prepared, config=prepared.config.model_copy(update=kept))
            self.check_same(prepared.config, out)
        return prepared

    def undecided(self, now: FinetuneConfig) -> bool:
        """Tell whether only the network shows if both configurations train the same parameters."""
        return self.config.head_only and not now.head_only

    def check_same(self, now: FinetuneConfig, out: Path) -> None:
        """Raise ConfigError naming the first option that a resumed run would change."""
        old, new = self.config.to_dict(), now.to_dict()
        for name in old:
            if name not in RESUMABLE and old[name] != new[name]:
                raise ConfigError(
                    f"the run in {out} was started with --{name.replace('_', '-')} {cut(old[name])}, not "
                    f"{cut(new[name])}; resume it with the same options, or use --overwrite"
                )


def _finished(out: Path, given: SourceObjects) -> Run | None:
    if not (out / files.RECORD).is_file():
        return None
    run = Run.load(out, data=given.data, model=given.model)
    return run if run.finished else None


def choose_radius(prepared: Prepared, out: Path) -> dict[str, float]:
    """Choose the radii by short runs along a path of factors, and keep choice and curve in radius.json.

    The radii are the method's default ones times a factor. Runs of a head last as long as the run itself,
    others half as long. Validation labels are those of the run, as noisy as the training labels.

    Args:
        prepared: Of a configuration with the `radius` is `auto`; its network is left as it is.
        out: The run's folder.

    Returns:
        {layer pattern: radius}.

    Raises:
        RunError: If radius.json is damaged.
    """
    path = out / files.RADIUS
    if (chosen := read_record(path, files.RadiusRecord)) is not None:
        return chosen.radius
    shape = prepared.default_radii()
    folder = out / files.TRIALS
    losses = [_trial_losses(prepared, {k: v * f for k, v in shape.items()}, folder) for f in FACTORS]
    at = first_within_errors([-each for each in losses], ddof=1)
    curve = [
        files.CurvePoint(
            factor=factor,
            risk=float(each.mean()),
            stderr=float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else None,
        )
        for factor, each in zip(FACTORS, losses, strict=True)
    ]
    radius = {name: value * FACTORS[at] for name, value in shape.items()}
    record = files.RadiusRecord(rule=RULE, curve=curve, chosen=FACTORS[at], radius=radius)
    write_record(path, record)
    shutil.rmtree(folder, ignore_errors=True)
    return radius


def _trial_losses(prepared: Prepared, radius: dict[str, float], folder: Path) -> NDArray[np.float64]:
    """Train a copy with these radii, and return its losses on the validation examples, (n,)."""
    config, found = prepared.config, list[NDArray[np.float64]]()
    validation = Validation(None if config.clean_val else prepared.noise_matrix, tempered=True)

    def observe(trained: Trained) -> None:
        part = trained.task.val
        labels = part.soft if config.soft_labels and part.soft is not None else part.labels
        assert labels is not None
        logits = predict_logits(trained.net, trained.feeds["val"])
        found.append(validation.losses(logits, labels, part.clean).numpy())

    epochs = config.epochs if config.head_only else -(-config.epochs // 2)
    # The method's own loss has an epoch of every trial, as it has of the run.
    short = {"epochs": epochs, "warmup_epochs": min(config.warmup_epochs, epochs - 1)}
    own = config.model_copy(update={"radius": radius, "out": str(folder), **short})
    loaded = replace(prepared.loaded, model=copy.deepcopy(prepared.loaded.model))
    trial = replace(prepared, config=own, loaded=loaded, radius=named_radii(radius, loaded))
    with entered(folder, overwrite=True, resume=False):
        torch.manual_seed(config.seed)
        fit_prepared(trial, folder, RunRequest(observe=observe, keep_weights=False))
    return found[0]


Config = FinetuneConfig | Mapping[str, Any] | str | Path
