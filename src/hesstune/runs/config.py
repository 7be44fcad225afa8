"""The configuration of `finetune`: its options, their dependent defaults, and their YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hesstune.errors import ConfigError
from hesstune.models.preparation import own_size
from hesstune.options import make_options
from hesstune.resizing import Resize, side_of
from hesstune.runs.options import (
    ConstraintOptions,
    DataOptions,
    ModelOptions,
    NoiseOptions,
    OptimisationOptions,
    RunOptions,
    TaskOptions,
)
from hesstune.runs.records import RECORD, RunRecord
from hesstune.storage.files import one_line, read_text
from hesstune.storage.stored import refuse_later

if TYPE_CHECKING:
    from hesstune.methods import Method

# Options that may differ between an interrupted run and its continuation.
RESUMABLE = frozenset(
    {"out", "track", "device", "cache_mib", "activations_mib", "checkpoint_minutes", "measure_every"}
)

# The network for texts if none is given, and its learning rate if all layers are trained.
TEXT_MODEL, TEXT_LR = "minilm", 5e-5

# The deepest nesting of brackets in a file of options.
DEEPEST = 64


class FinetuneConfig(
    RunOptions, ConstraintOptions, OptimisationOptions, TaskOptions, NoiseOptions, ModelOptions, DataOptions
):
    """The configuration of one fine-tuning run: the options of five groups, all by plain names.

    Fields stand in the order data, model, noise, optimisation, run: pydantic takes the last base's first.
    """

    @property
    def kind(self) -> type[Method]:
        """The class of the method."""
        from hesstune.methods import method_class

        return method_class(self.method)

    @property
    def head_only(self) -> bool:
        """Whether the head's parameters are the only ones that are trained.

        `train` is `head` if and only if this holds, once `prepare` has loaded the network: it replaces every
        other spelling of the same parameters (`last:1`, a pattern) by `head`.
        """
        return self.train == "head"

    @property
    def head_alone(self) -> bool:
        """Whether the head alone is trained, on features of inputs that do not vary."""
        plain = self.augment in ("auto", "none") and self.batch_norm == "frozen"
        # A head alone cannot be called if its network is sharded.
        return self.head_only and plain and not self.shard

    def as_head_only(self) -> FinetuneConfig:
        """Return the resolved configuration of the same options with `train` set to `head`."""
        return make_config({**self.given(), "train": "head"}).resolved()

    def on_features(self, width: int) -> tuple[FinetuneConfig, list[str]]:
        """Return the resolved configuration of a linear head on feature vectors of a width, and notes.

        Raises:
            ConfigError: If other layers than a head are to be trained.
        """
        given, model = self.given(), f"linear:{width}"
        if self.lora is not None:
            raise ConfigError(
                "--lora: the data holds feature vectors, and the network is a linear head on them, without "
                "layers to adapt; leave --lora out"
            )
        if given.get("train", "head") != "head":
            raise ConfigError(
                f"--train {self.train}: the data holds feature vectors, and the network is a linear head on "
                "them, without other layers; leave --train out, or give --train head"
            )
        notes = [f"the network is a linear head on the {width} numbers of each feature vector"]
        if given.get("model", model) != model:
            notes.append(f"the data holds feature vectors: no effect of --model {self.model}")
        return make_config({**given, "model": model, "train": "head"}).resolved(), notes

    def on_texts(self) -> tuple[FinetuneConfig, list[str]]:
        """Return the resolved configuration for texts, with `minilm` if no model was given, and notes."""
        given = self.given()
        if "model" in given:
            return self, []
        made = make_config({**given, "model": TEXT_MODEL}).resolved()
        note = f"the data holds texts: the network is {TEXT_MODEL}"
        return made, [note if "lr" in given else f"{note}, with the learning rate {made.lr:g}"]

    def resolved(self) -> FinetuneConfig:
        """Return the configuration with every default that depends on another option filled in.

        The options that count as given stay the same, so that defaults can be filled in again.
        """
        kind, given = self.kind, self.model_fields_set
        changes: dict[str, Any] = {n: v for n, v in kind.defaults(self.head_only).items() if n not in given}
        if "select" in given and self.select == "last":
            changes.pop("patience", None)  # a method's default early stopping keeps the best epoch
        changes |= self._image_options(64 if self.data == "digits" else 128)
        changes["method_options"] = kind.checked_options(self.method_options) or None
        head_only = changes.get("train", self.train) == "head"
        changes["lr"] = self.lr or changes.get("lr") or usual_lr(head_only, self.model, self.lora is not None)
        decay = changes.get("weight_decay", self.weight_decay)
        if decay is not None or not (kind.head_penalty and self.head_alone):
            changes["weight_decay"] = decay or 0.0  # else it is chosen from the examples
        if not kind.constrained and self.radius == "auto":
            changes["radius"] = None  # no constraint; a comparison may give all methods the same options
        if kind.uses_noise() and not kind.solves_head and not self.noise_matrix and self.inject_noise:
            changes["noise_matrix"] = "true"
        self._check_labels(kind, changes.get("noise_matrix", self.noise_matrix))
        self._check_adapters(kind, head_only)
        if kind.warms_up and self.warmup_epochs >= self.epochs:
            if "warmup_epochs" in given:
                raise ConfigError(
                    f"--warmup-epochs {self.warmup_epochs} of --epochs {self.epochs} leaves none to the loss "
                    f"of method '{self.method}': it would train by plain cross-entropy alone. Lower "
                    "--warmup-epochs, raise --epochs, or choose --method vanilla or constraint"
                )
            changes["warmup_epochs"] = self.epochs - 1  # one epoch of the method's own loss
        made = self.model_copy(update=changes)
        made.__pydantic_fields_set__.intersection_update(given)
        return made

    def _image_options(self, usual: int) -> dict[str, Any]:
        """Return the side of the images and how they are resized: the network's own rule unless given."""
        if "resize" in self.model_fields_set:  # None as well: runs of earlier versions have none
            edge = Resize.parse(self.resize).edge if self.resize else 0
            return {"image_size": self.image_size or edge or usual}
        size = own_size(self.model, self.image_size, usual)
        return {"image_size": side_of(size), "resize": str(size) if isinstance(size, Resize) else None}

    def check_trained(self, texts: bool) -> None:
        """Raise ConfigError if the method cannot train these parameters, or not on this kind of input."""
        kind = self.kind
        if kind.head_alone and not self.head_only:
            deeper = (
                ""
                if kind.solves_head
                else " (deeper layers learn from a part: hesstune certify RUN --bound compression "
                "--prior-fraction 0.5)"
            )
            raise ConfigError(
                f"method '{self.method}' trains a linear head on frozen features; give --train head{deeper}"
            )
        if texts and kind.mixes_inputs and not self.head_alone:
            raise ConfigError(
                f"method '{self.method}' mixes inputs, and texts cannot be mixed; use it on images, or with "
                "--train head, where features are mixed, or choose another method"
            )

    def _check_adapters(self, kind: type[Method], head_only: bool) -> None:
        """Raise ConfigError if adapters are asked for that the method or another option cannot use."""
        if self.lora is None:
            return
        if kind.adapter_size(None, self.method_options) is not None:
            raise ConfigError(
                f"method '{self.method}' has adapters of its own (--method-options rank=RANK); leave --lora "
                "out, or give --method vanilla"
            )
        if head_only:
            raise ConfigError(
                "--lora adapts layers below the head, and --train head trains the head alone; leave one of "
                "the two out"
            )
        if not kind.adapts:
            raise ConfigError(
                f"method '{self.method}' cannot train adapters in place of layers; choose another, such as "
                "--method auto, or leave --lora out"
            )
        if self.shard:
            raise ConfigError(
                "--shard distributes whole layers, and --lora trains adapters; leave one of the two out"
            )

    def _check_labels(self, kind: type[Method], noise_matrix: str | None) -> None:
        """Raise ConfigError if options about labels and their noise contradict each other or the method."""
        weights, sampler = self.class_weights == "balanced", self.sampler == "balanced"
        held_out = False
        if (self.noise_matrix or "").startswith("estimate"):
            from hesstune.noise.estimate import parse_request

            held_out = parse_request(str(self.noise_matrix)) == "holdout"
        method = f"method '{self.method}'"
        for is_wrong, why in (
            (kind.needs_noise_matrix and noise_matrix is None,
             f"{method} needs a noise matrix: give --noise-matrix (estimate:auto, a rate such as 0.3, "
             "symmetric:RATE, pair:RATE or a matrix file)"),
            (self.noise_matrix == "true" and self.inject_noise is None,
             "--noise-matrix true means the noise that --inject-noise injects, and none was given"),
            (self.soft_labels and not kind.takes_soft,
             f"{method} takes no soft labels; leave --soft-labels out"),
            (self.confidence_column is not None and not self.soft_labels,
             "--confidence-column makes soft labels: give --soft-labels, too, or leave it out"),
            (self.soft_labels and self.inject_noise is not None,
             "--inject-noise corrupts hard labels; leave out --soft-labels or --inject-noise"),
            (held_out and self.checked_labels is None,
             "estimate:holdout needs checked labels: give --checked-labels FILE"),
            (self.soft_labels and (weights or sampler),
             "soft labels cannot be balanced by class; leave one of the two out"),
            (kind.head_alone and sampler, f"{method} has no balanced sampler; leave --sampler out"),
            (weights and sampler,
             "balanced class weights and a balanced sampler correct twice; choose one"),
            (weights and not kind.weighs_classes,
             f"{method} has no balanced class weights; use --sampler balanced instead"),
            (self.shard and not kind.shards,
             f"{method} cannot train sharded weights; choose another, such as --method vanilla, or leave "
             "--shard out"),
            (self.shard and self.measure_every is not None,
             "--measure-every measures whole weights; leave it or --shard out"),
        ):  # fmt: skip
            if is_wrong:
                raise ConfigError(why)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values for YAML."""
        return self.model_dump(mode="json")


def usual_lr(head_only: bool, model: str, adapters: bool) -> float:
    """Return the default learning rate: larger if the head alone is trained, or adapters beside it."""
    if head_only:
        return 1e-2
    from hesstune.models.adapters import ADAPTERS_LR

    return (TEXT_LR if model == TEXT_MODEL else 1e-4) * (ADAPTERS_LR if adapters else 1.0)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read options from a YAML file (safely); keys may be written with - or _.

    Raises:
        ConfigError: If the file is missing, not YAML, or not a mapping.
    """
    import yaml

    from hesstune.checks import readable_file

    path = readable_file(path, "the configuration file")
    try:
        text = read_text(path, most_mib=1)
        depths = accumulate((sign in "{[") - (sign in "]}") for sign in text)
        if max(depths, default=0) > DEEPEST:  # the parser takes the square of the depth
            raise ValueError(f"brackets are nested more than {DEEPEST} deep")
        # Aliases let a few lines stand for gigabytes.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError("options are written out, without aliases")
        values = yaml.safe_load(text)
    except Exception as error:  # the parser raises many kinds on damaged text
        raise ConfigError(f"{path} is not valid YAML ({one_line(error)})") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must hold options, one a line (method: robust); got {type(values).__name__}"
        )
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def read_config(path: str | Path) -> FinetuneConfig:
    """Read the configuration that a run left in its folder.

    Raises:
        ConfigError: If the file is missing, damaged, or has unknown options.
        RunError: If a later version wrote the run.
    """
    refuse_later(Path(path).with_name(RECORD), RunRecord)
    return make_config(read_yaml(path))


def make_config(values: Mapping[str, Any]) -> FinetuneConfig:
    """Validate options; raise ConfigError naming the first wrong one, with the nearest valid name."""
    return make_options(FinetuneConfig, values)
