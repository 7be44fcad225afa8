"""Every option of `finetune`: its type, default and meaning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hesstune.errors import ConfigError, unknown_name
from hesstune.runs.records import RECORD, RunRecord
from hesstune.storage.reading import one_line, read_text
from hesstune.storage.stored import refuse_later

if TYPE_CHECKING:
    from hesstune.methods import Method

__all__ = [
    "RENAMED",
    "RESUMABLE",
    "FinetuneConfig",
    "make_config",
    "read_config",
    "read_yaml",
    "renamed_option",
]

# Options that a resumed run may have otherwise than the interrupted one.
RESUMABLE = frozenset({"out", "track", "device", "cache_mib", "checkpoint_minutes"})


# Options that had another name before: now, and what else the old name may have meant.
RENAMED = {
    "noise": (
        "inject_noise",
        "it corrupts the labels, for experiments; what is believed about their noise is {noise_matrix}",
    )
}


class FinetuneConfig(BaseModel):
    """The configuration of one fine-tuning run."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = Field(
        "efficientnet_lite0",
        description="efficientnet_lite0, minilm (texts), hf:NAME_OR_PATH, timm:NAME, torchvision:NAME or "
        "py:module:factory",
    )
    data: str = Field("digits", description="digits, folder:PATH, csv:PATH, array:PATH or hf:NAME_OR_PATH")
    method: str = Field(
        "robust", description="fine-tuning method: vanilla, robust, … (a wrong name lists all)"
    )
    method_options: dict[str, float] | None = Field(
        None, description="the method's own numbers, NAME=VALUE,…; none: their defaults"
    )
    out: str | None = Field(
        None, description="run folder to write; none keeps nothing on disk but a temporary folder"
    )
    weights: str | None = Field(
        None, description="weights loaded on top of the model: safetensors or a torch state dict"
    )
    train: str = Field(
        "all", description="what is trained: all, head, last:N or a pattern of parameter names"
    )
    head_init: Literal["zero", "keep"] = Field(
        "zero", description="head at the start: zero, or keep what the model has"
    )
    inject_noise: str | None = Field(
        None,
        description="for experiments: corrupts training and validation labels by symmetric:RATE, pair:RATE, "
        "instance:RATE (depends on the example) or a matrix file",
    )
    noise_matrix: str | None = Field(
        None,
        description="noise the loss believes in: true (as injected; the default with --inject-noise), a "
        "rate, symmetric:RATE, pair:RATE, a matrix file, or estimate:METHOD (auto, anchor[:PERCENTILE], "
        "dual_t, confident, volmin, labelmodel, holdout)",
    )
    clean_labels: str | None = Field(
        None,
        description="CSV file of labels a person has checked: id, and clean_label, true_label or label; "
        "they count as clean in the loss and in estimates of the noise",
    )
    vote_columns: str | None = Field(
        None,
        description="annotators' columns of csv data, NAME,NAME,…; none: those named vote_…",
    )
    label_model: Literal["majority", "soft", "dawid_skene", "mace", "snorkel"] = Field(
        "majority", description="what makes labels from votes where csv data has no label"
    )
    soft_labels: bool = Field(
        False, description="train on soft labels: columns p_CLASS of csv data, or the label model's"
    )
    radius: float | dict[str, float] | Literal["auto", "curvature"] | None = Field(
        None,
        description="radius of every layer's ball, or PATTERN=RADIUS,… (first match wins; 'head' is the last "
        "layer); auto: by noisy validation along a path; curvature: likewise, shaped by the layers' traces; "
        "none: the method's own",
    )
    radius_scale: float = Field(
        1.0,
        gt=0,
        description="factor of the radii on the network's third stage, its square on the fourth",
    )
    norm: Literal["frobenius", "mars"] = Field("frobenius", description="norm of the constraint")
    warmup_epochs: int = Field(
        2, ge=0, description="epochs of plain cross-entropy before the consistent loss (robust)"
    )
    epochs: int = Field(15, gt=0, description="passes over the training set")
    batch_size: int = Field(32, gt=0, description="examples a step")
    lr: float | None = Field(
        None, gt=0, description="peak learning rate; none: 1e-4, or 1e-2 with --train head"
    )
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="optimizer")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of the optimizer")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="learning-rate schedule; step divides by 10 at 1/2 and 3/4"
    )
    lr_warmup: float = Field(
        0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises"
    )
    accumulate: int = Field(1, gt=0, description="batches a real optimizer step")
    grad_clip: float | None = Field(None, gt=0, description="largest gradient norm")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="autocast on devices that have it"
    )
    augment: Literal["auto", "none", "shift", "flip", "shift+flip"] = Field(
        "auto", description="label-preserving augmentation; auto also mirrors where that keeps the label"
    )
    batch_norm: Literal["frozen", "adapt"] = Field(
        "frozen", description="batch-norm statistics: the pretrained ones, or adapted"
    )
    patience: int | None = Field(
        None, gt=0, description="stop after so many epochs without a better validation loss"
    )
    select: Literal["last", "best"] = Field(
        "last", description="weights kept: the last epoch's, or the best on validation"
    )
    clean_val: bool = Field(False, description="leave validation labels free of injected noise (recorded)")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="weight classes by the inverse of their clean frequency"
    )
    sampler: Literal["uniform", "balanced"] = Field(
        "uniform", description="draw training examples uniformly, or classes alike"
    )
    split: Literal["uniform", "stratified"] = Field(
        "uniform", description="how parts are drawn where the data has none; certificates need uniform"
    )
    val_fraction: float = Field(0.2, ge=0, lt=1, description="share for validation where the data has none")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="share for the test where the data has none")
    limit: int | None = Field(None, gt=0, description="at most so many training examples, drawn uniformly")
    image_size: int | None = Field(
        None, ge=8, le=2048, description="side of the images in pixels; none: 64 for digits, else 128"
    )
    max_length: int = Field(
        128, ge=4, le=1 << 20, description="tokens of a text at most; longer ones are cut, and counted"
    )
    mean: list[float] | None = Field(
        None, description="channel means of images in [0, 1], instead of the model's"
    )
    std: list[float] | None = Field(None, description="channel deviations, instead of the model's")
    skip_bad_images: bool = Field(False, description="leave out images that cannot be decoded, and list them")
    cache_mib: int = Field(
        4096, ge=0, description="memory for decoded images; beyond it they are decoded per batch"
    )
    checkpoint_minutes: float = Field(
        10.0, gt=0, description="minutes between checkpoints within an epoch; each epoch ends with one"
    )
    shard: bool = Field(
        False,
        description="cut weights, reference, gradients and optimizer state over the processes (FSDP2; under "
        "torchrun)",
    )
    seed: int = Field(0, ge=0, description="seed of split, noise, order and augmentation")
    track: Literal["tensorboard", "mlflow"] | None = Field(
        None, description="also send each epoch's metrics there (needs hesstune[tracking])"
    )
    device: str = Field("auto", description="cpu, cuda, mps or auto")

    @field_validator("radius", mode="before")
    @classmethod
    def _parse_radius(cls, value: Any) -> Any:
        if not isinstance(value, str) or value in ("auto", "curvature"):
            return value
        try:
            return float(value)
        except ValueError:
            return _pairs(value, "write a number, auto, curvature, or PATTERN=RADIUS,PATTERN=RADIUS")

    @field_validator("method_options", mode="before")
    @classmethod
    def _parse_method_options(cls, value: Any) -> Any:
        return _pairs(value, "write NAME=VALUE,NAME=VALUE") if isinstance(value, str) else value

    @field_validator("radius")
    @classmethod
    def _positive_radius(cls, value: Any) -> Any:
        for number in value.values() if isinstance(value, dict) else [value]:
            if isinstance(number, float) and not 0 < number < float("inf"):
                raise ValueError("radii must be finite and above 0")
        return value

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _parse_channels(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("noise_matrix", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # YAML reads `true` and `0.4` as a flag and a number.
        if value is True:
            return "true"
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    def resolved(self) -> FinetuneConfig:
        """Return the configuration with every default that depends on another option filled in."""
        from hesstune.methods import method_class

        kind = method_class(self.method)
        size = self.image_size or (64 if self.data == "digits" else 128)
        changes: dict[str, Any] = {
            name: value
            for name, value in kind.defaults(self.train).items()
            if name not in self.model_fields_set
        }
        if not kind.constrained and self.radius in ("auto", "curvature"):
            changes["radius"] = None  # there is no ball to choose; a comparison may ask all methods alike
        changes["image_size"] = size
        changes["method_options"] = kind.checked_options(self.method_options) or None
        changes["lr"] = self.lr or changes.get("lr") or (1e-2 if self.train == "head" else 1e-4)
        if kind.constrained and self.radius is None and "radius" not in changes:
            changes["radius"] = kind.default_radius(self.train)
        if kind.uses_noise() and self.noise_matrix is None and self.inject_noise is not None:
            changes["noise_matrix"] = "true"
        if kind.needs_noise_matrix and changes.get("noise_matrix", self.noise_matrix) is None:
            raise ConfigError(
                f"method '{self.method}' needs to be told the labels' noise: give --noise-matrix "
                "(estimate:auto, a rate such as 0.3, symmetric:RATE, pair:RATE or a matrix file)"
            )
        self._check_labels(kind)
        if self.shard and not kind.shards:
            raise ConfigError(f"method '{self.method}' cannot train sharded weights; leave --shard out")
        if self.noise_matrix == "true" and self.inject_noise is None:
            raise ConfigError(
                "--noise-matrix true means the noise that --inject-noise injects, and none was given"
            )
        if self.class_weights == "balanced" and self.sampler == "balanced":
            raise ConfigError("balanced class weights and a balanced sampler correct twice; choose one")
        if self.class_weights == "balanced" and not kind.weighs_classes:
            raise ConfigError(
                f"method '{self.method}' has no balanced class weights; use --sampler balanced instead"
            )
        made = self.model_copy(update=changes)
        if (made.patience or made.select == "best") and self.val_fraction == 0 and self.data == "digits":
            raise ConfigError("early stopping and --select best need validation data; raise --val-fraction")
        return made

    def _check_labels(self, kind: type[Method]) -> None:
        """Raise ConfigError where options about labels contradict each other or the method."""
        if self.soft_labels and not kind.takes_soft:
            raise ConfigError(f"method '{self.method}' takes no soft labels; leave --soft-labels out")
        if self.soft_labels and self.inject_noise is not None:
            raise ConfigError(
                "--inject-noise corrupts hard labels; leave out --soft-labels or --inject-noise"
            )
        if self.soft_labels and (self.class_weights == "balanced" or self.sampler == "balanced"):
            raise ConfigError("soft labels cannot be balanced by class; leave one of the two out")
        if (self.noise_matrix or "").startswith("estimate"):
            from hesstune.noise.estimate.request import parse_request

            request = parse_request(str(self.noise_matrix))
            if request.method == "holdout" and self.clean_labels is None:
                raise ConfigError("estimate:holdout needs clean labels: give --clean-labels FILE")

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values for YAML."""
        return self.model_dump(mode="json")


def _pairs(text: str, wanted: str) -> dict[str, str]:
    """Split NAME=VALUE,NAME=VALUE."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and sign for name, sign, _ in pairs):
        raise ValueError(wanted)
    return {name.strip(): number.strip() for name, _, number in pairs}


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
    """Read the configuration that a run left in its folder, of this version or an earlier one.

    Raises:
        ConfigError: If the file is missing, damaged, or has options that no version had.
        RunError: If a later version wrote the run.
    """
    refuse_later(Path(path).with_name(RECORD), RunRecord)
    now = {old: new for old, (new, _) in RENAMED.items()}
    return make_config({now.get(name, name): value for name, value in read_yaml(path).items()})


def renamed_option(name: str, style: str = "{}") -> str:
    """Say what an option is called now; `style` shows a name as its user writes it."""
    new, more = RENAMED[name]
    others = more.format(noise_matrix=style.format("noise_matrix"))
    return f"{style.format(name)} is now {style.format(new)}: {others}".replace(
        "_", "-" if "--" in style else "_"
    )


def make_config(values: dict[str, Any]) -> FinetuneConfig:
    """Validate options; raise ConfigError naming the first wrong one, with the nearest valid name."""
    valid = list(FinetuneConfig.model_fields)
    for key in values:
        if key in RENAMED:
            raise ConfigError(renamed_option(key))
        if key not in valid:
            raise unknown_name("option", str(key), valid)
    values = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in values.items()}
    try:
        return FinetuneConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "options"
        message = first["msg"].removeprefix("Value error, ")
        given = one_line(repr(values.get(name)), 120)
        raise ConfigError(f"{name.replace('_', '-')}: {one_line(message)}; got {given}") from None
