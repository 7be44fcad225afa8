"""Keywords of functions that take options, for type checkers; written by tests/keywords.py."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict

from numpy.typing import ArrayLike

from hesstune.methods import Method
from hesstune.models.load import ModelObject
from hesstune.noise.matrix import NoiseMatrix


class ColumnKeywords(TypedDict, total=False):
    """`ColumnOptions` by name."""

    text_column: str | None
    label_column: str | None
    id_column: str | None
    image_column: str | None
    several_labels: Literal["refuse", "leave_out", "first", "share", "name"]


class FinetuneKeywords(ColumnKeywords, total=False):
    """`FinetuneConfig` by name."""

    data: str | PathLike[str] | Any
    limit: int | None
    split: str | PathLike[str]
    fold: str | None
    val_fraction: float
    test_fraction: float
    corrected_test_labels: bool
    image_size: int | None
    resize: str | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    augment: Literal["auto", "none", "shift", "flip", "shift+flip"]
    augment_views: int | None
    max_length: int
    background: str
    skip_bad_images: bool
    cache_mib: int
    activations_mib: int
    method_options: Mapping[str, float] | None
    budget: Literal["fast", "default", "thorough"]
    train: str
    lora: int | None
    weights: str | PathLike[str] | None
    head_init: Literal["zero", "keep"]
    head: Sequence[str] | str
    dtype: Literal["float32", "bfloat16"]
    batch_norm: Literal["frozen", "adapt"]
    noise_matrix: str | PathLike[str] | float | NoiseMatrix | ArrayLike | None
    inject_noise: str | PathLike[str] | float | NoiseMatrix | ArrayLike | None
    clean_val: bool
    checked_labels: str | PathLike[str] | None
    vote_columns: str | None
    label_model: Literal["majority", "soft", "dawid_skene", "mace"]
    soft_labels: bool
    confidence_column: str | None
    epochs: int
    batch_size: int
    lr: float | None
    optimizer: Literal["adam", "adamw", "sgd"]
    weight_decay: float | None
    momentum: float
    schedule: Literal["cosine", "step", "constant"]
    lr_warmup: float
    warmup_epochs: int
    accumulate: int
    grad_clip: float | None
    mixed_precision: Literal["no", "bf16", "fp16"]
    class_weights: Literal["none", "balanced"]
    sampler: Literal["uniform", "balanced"]
    patience: int | None
    select: Literal["last", "best"]
    radius: float | Mapping[str, float] | Literal["auto"] | None
    radius_scale: float
    norm: Literal["frobenius", "mars"]
    out: str | PathLike[str] | None
    seed: int
    device: str
    shard: bool
    checkpoint_minutes: float
    measure_every: int | None
    track: Literal["tensorboard", "mlflow"] | None


class CompareKeywords(FinetuneKeywords, total=False):
    """`CompareOptions` by name."""

    measure_examples: int | None
    stability: bool
    certify: bool
    search: int
    keep_runs: bool
    methods: Mapping[str, Any] | Sequence[str]
    seeds: Sequence[int] | int
    folds: int | None
    tasks: Mapping[str, Any] | None
    baseline: str | None
    jobs: int | None
    engine: Literal["local", "ray"]
    model: str | PathLike[str] | ModelObject
    method: str | type[Method]


class LabelKeywords(TypedDict, total=False):
    """`LabelOptions` by name."""

    labelers: Sequence[str] | str
    vote_columns: Sequence[str] | str
    task_column: str | None
    worker_column: str | None
    label_column: str | None
    text_column: str | None
    image_column: str | None
    id_column: str | None
    confidence_column: str | None
    classes: Sequence[str] | str
    label_model: Literal[
        "auto", "calibrated", "dawid_skene", "latent", "mace", "majority", "soft", "soft_features", "weighted"
    ]
    class_balance: Sequence[str] | str
    noise_from: Literal[
        "auto", "calibrated", "dawid_skene", "latent", "mace", "majority", "soft", "soft_features", "weighted"
    ]
    checked_labels: str | PathLike[str] | None
    seed: int
    labeler: Literal["probe", "finetune"]
    epochs: int
    threshold: float
    model: str | None
    head: Sequence[str] | str
    image_size: int | None
    max_length: int
    device: str


class CleanKeywords(ColumnKeywords, total=False):
    """`CleanOptions` by name."""

    model: str | None
    head: Sequence[str] | str
    image_size: int | None
    max_length: int
    device: str
    checked_labels: str | PathLike[str] | None
    seed: int


class StabilityKeywords(TypedDict, total=False):
    """`StabilityOptions` by name."""

    layers: Sequence[str] | str | None
    max_examples: int | None
    device: str
    samples: int


class MeasureKeywords(TypedDict, total=False):
    """`MeasureOptions` by name."""

    layers: Sequence[str] | str | None
    max_examples: int | None
    device: str
    part: Literal["val", "train"]
    trace: bool | Literal["exact"]
    spectrum: bool
    examples: Literal["max", "all"]
    mean_sample: int
    method: Literal["auto", "exact", "lanczos", "gauss_newton"]
    tol: float | None
    skip_classes: float
    trace_passes: int
    memory_mib: float | None
    seed: int


class CertifyKeywords(TypedDict, total=False):
    """`CertifyOptions` by name."""

    bound: Literal["compression", "holdout", "pac_bayes", "best"]
    delta: float
    prior_fraction: float
    noise_is: Literal["auto", "none", "known", "estimated", "instance_dependent"]
    clean_sample: str | PathLike[str] | None
    checked_labels: str | PathLike[str] | None
    test_labels: Literal["auto", "true", "noisy", "unknown"]
    draws: int | None
    repeats: Literal["refuse", "drop", "allow"]
    vouch: Sequence[str] | str
    no_groups: bool
    diagnostic: bool
    seed: int
    device: str


class CheckKeywords(ColumnKeywords, total=False):
    """`CheckOptions` by name."""

    sample: int
    prior_fraction: float
    seed: int


class PredictKeywords(ColumnKeywords, total=False):
    """`PredictOptions` by name."""

    blank_texts: Literal["predict", "leave_out"]
    skip_bad_images: bool
    device: str


class ExtractionKeywords(TypedDict, total=False):
    """`ExtractionOptions` by name."""

    model: str | None
    head: Sequence[str] | str
    image_size: int | None
    max_length: int
    device: str
    text_column: str | None
    image_column: str | None
    id_column: str | None
    label_column: str | None
    batch_size: int | None
    workers: int
    cpus: int
    gpus: float
    skip_bad_images: bool
    overwrite: bool
