"""The options of a run and of the commands on a finished run; each is declared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from hesstune.bounds import CHOICES, BoundName, first_lines
from hesstune.checks import expanded, parse_number
from hesstune.curvature.declared import (
    ABOVE,
    SKIP_CLASSES,
    TRACE_PASSES,
    ExamplesChoice,
    MethodChoice,
    sample_fault,
)
from hesstune.data.formats import WITH_PATH
from hesstune.data.reading import SplitRule, fold_of, rgb_of
from hesstune.options import DEVICE, FilePath, Names, Options, Shown, numbers_by_name
from hesstune.resizing import Resize

SKIP_BAD_IMAGES: Any = Field(False, description="leave out and list images that cannot be decoded")


def _parses(parse: Callable[[str], Any]) -> AfterValidator:
    """Return a check that a text can be parsed; the text stays as it is."""

    def check(value: str) -> str:
        parse(value)
        return value

    return AfterValidator(check)


def _parse_channels(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    numbers = [parse_number(part) for part in value.split(",")]
    if None in numbers:
        raise ValueError("must be numbers with commas between, such as 0.5,0.5,0.5")
    return numbers


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


# What Python also takes for the text of a noise matrix.
NOISE = "float | NoiseMatrix | ArrayLike"
Channels = Annotated[list[float], BeforeValidator(_parse_channels), Shown("R,G,B")]
LayerPatterns = Annotated[
    tuple[str, ...], BeforeValidator(_as_tuple), Shown("PATTERN", repeated=True, also="str")
]
Choices = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Shown("CHOICE", repeated=True, also="str")]


class ColumnOptions(Options):
    """Which columns of tables, hf data and DataFrames hold what."""

    heading: ClassVar[str] = "Data"

    text_column: str | None = Field(
        None,
        description="column of texts, or two separated by a comma; default: text, and text2 for pairs",
    )
    label_column: str | None = Field(None, description="column of labels; default: label")
    id_column: str | None = Field(
        None, description="column of the examples' ids; default: id, or row numbers"
    )
    image_column: str | None = Field(None, description="column of images or their paths; default: image")
    several_labels: Literal["refuse", "leave_out", "first", "share", "name"] = Field(
        "refuse",
        description="cells with several classes, such as a|b or a list: refuse; leave_out such examples; "
        "first: take the first; share: soft labels of equal shares; name: such a text is one class's name",
    )


class ExampleOptions(Options):
    """Which examples a run is trained and tested on."""

    heading: ClassVar[str] = "Data"

    data: Annotated[str, Shown("DATA", names_file=True, says_default=True, also="Any")] = Field(
        "digits",
        description=f"a path, FORMAT:PATH with a format of {', '.join(WITH_PATH)}, or digits (built in)",
    )
    limit: int | None = Field(
        None, gt=0, description="largest number of training examples; they are drawn uniformly"
    )
    split: Annotated[str, _parses(SplitRule.parse), Shown("HOW", names_file=True)] = Field(
        "uniform",
        description="how to split data that has no parts: uniform (needed by certificates); stratified (by "
        "class); group:COLUMN (each group in one part); time:COLUMN (the latest are the test part); or a CSV "
        "file with columns id and split, or id and group",
    )
    fold: Annotated[str, _parses(fold_of), Shown("I/K")] | None = Field(
        None,
        description="test on fold I of K, drawn by {split}; for time:COLUMN, on the period after training",
    )
    val_fraction: float = Field(
        0.2, ge=0, lt=1, description="share for validation if the data has no such part"
    )
    test_fraction: float = Field(
        0.2, ge=0, lt=1, description="share for the test if the data has no such part"
    )
    corrected_test_labels: bool = Field(
        False,
        description="test on the labels that hesstune clean corrected, instead of the given labels",
    )
    image_size: int | None = Field(
        None,
        ge=8,
        le=2048,
        description="side of the images in pixels; default: that of the pretrained network if it is of hf:, "
        "timm: or torchvision:; else 64 for digits and 128 for other data",
    )
    resize: Annotated[str, _parses(Resize.parse), Shown("HOW")] | None = Field(
        None,
        description="how images are resized before a centre of {image_size} is cropped: "
        "shorter:PIXELS:FILTER or both:PIXELS:FILTER (squeezed), such as both:224:bicubic; default: as the "
        "image processor of hf:, or the configuration of timm: and torchvision:, does; else the shorter "
        "side, bilinear",
    )
    mean: Channels | None = Field(
        None, description="channel means of images in [0, 1], instead of the model's"
    )
    std: Channels | None = Field(None, description="channel deviations, instead of the model's")
    augment: Literal["auto", "none", "shift", "flip", "shift+flip"] = Field(
        "auto",
        description="augmentation of training images; auto shifts, and also mirrors if that keeps the label",
    )
    augment_views: int | None = Field(
        None,
        ge=1,
        description="number of augmented views of each image, drawn once and used in turn, so that frozen "
        "layers run once per view; default: new views every epoch",
    )
    max_length: int = Field(
        128,
        ge=4,
        le=1 << 20,
        description="largest number of tokens of a text; longer texts are cut and counted",
    )
    background: Annotated[str, _parses(rgb_of), Shown("COLOUR")] = Field(
        "white", description="background colour of transparent images: a name, #rrggbb or R,G,B"
    )
    skip_bad_images: bool = SKIP_BAD_IMAGES
    cache_mib: int = Field(
        4096, ge=0, description="memory for decoded images in MiB; further images are decoded for every batch"
    )
    activations_mib: int = Field(
        4096,
        ge=0,
        description="disk space in MiB for the outputs of frozen layers during a run; if it is too small, "
        "frozen layers run every epoch",
    )


class DataOptions(ColumnOptions, ExampleOptions):
    """What a run is trained and tested on, and how it is read."""


class ModelOptions(Options):
    """The network that a run starts from, the part that is trained, and the method."""

    heading: ClassVar[str] = "Model and method"

    model: Annotated[str, Shown("MODEL", names_file=True, says_default=True, also="ModelObject")] = Field(
        "efficientnet_lite0",
        description="efficientnet_lite0, minilm, hf:NAME_OR_PATH, timm:NAME, torchvision:NAME or "
        "py:module:factory; default: efficientnet_lite0, or minilm for texts",
    )
    method: Annotated[str, Shown("NAME", also="type[Method]")] = Field(
        "auto", description="fine-tuning method: auto, vanilla, robust, … (a wrong name lists all)"
    )
    method_options: Annotated[dict[str, float], Shown("NAME=VALUE,…")] | None = Field(
        None, description="numbers of the method; a wrong name lists them"
    )
    budget: Literal["fast", "default", "thorough"] = Field(
        "default",
        description="how much {method} auto tries: fast fits the head; thorough compares more candidates",
    )
    train: Annotated[str, Shown("WHAT")] = Field(
        "all",
        description="parameters to train: all, head, last:N (layers), from:MODULE (and all after it), or a "
        "pattern of parameter names",
    )
    lora: Annotated[int, Shown("RANK")] | None = Field(
        None,
        gt=0,
        description="train LoRA adapters of this rank in place of the linear layers and 1×1 convolutions "
        "that {train} names, and the head; the run keeps their merged weights (needs the extra peft)",
    )
    weights: FilePath | None = Field(
        None, description="weights to load into the model: safetensors or a torch state dict"
    )
    head_init: Literal["zero", "keep"] = Field(
        "zero", description="initial head: zero, or keep the one of the model"
    )
    head: Names = Field(
        (),
        description="module whose output is the logits (or several, with commas); default: found by a "
        "forward pass",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="floating-point type of the trained and saved weights; bfloat16 halves the memory and "
        "loses small steps to rounding",
    )
    batch_norm: Literal["frozen", "adapt"] = Field(
        "frozen", description="batch-norm statistics: keep the pretrained ones, or adapt them"
    )

    @field_validator("dtype", mode="before")
    @classmethod
    def _no_float16(cls, value: Any) -> Any:
        if value in ("float16", "fp16", "half"):
            raise ValueError(
                "weights cannot be trained in float16, where gradients underflow; leave {dtype} at float32 "
                "and take {mixed_precision} fp16 (on a GPU) or bf16"
            )
        return value

    @field_validator("method_options", mode="before")
    @classmethod
    def _parse_method_options(cls, value: Any) -> Any:
        return numbers_by_name(value, "write NAME=NUMBER,NAME=NUMBER")


class NoiseOptions(Options):
    """The noise of a run's labels, and the noise matrix of the loss."""

    heading: ClassVar[str] = "Labels and their noise"

    noise_matrix: Annotated[str, Shown("NOISE", names_file=True, also=NOISE)] | None = Field(
        None,
        description="noise matrix of the loss: true (the injected one; the default with {inject_noise}), a "
        "rate, symmetric:RATE, pair:RATE, a matrix file, or estimate:METHOD (auto, em, confident, "
        "labelmodel, holdout)",
    )
    inject_noise: Annotated[str, Shown("NOISE", names_file=True, also=NOISE)] | None = Field(
        None,
        description="for experiments: corrupt training and validation labels by symmetric:RATE, pair:RATE, "
        "instance:RATE (depends on the example) or a matrix file",
    )
    clean_val: bool = Field(False, description="inject no noise into validation labels (recorded)")
    checked_labels: FilePath | None = Field(
        None,
        description="CSV file of labels that a person checked: id, and clean_label, true_label or label; or "
        "decisions from the page of hesstune clean; the loss and the noise estimates treat them as correct",
    )
    vote_columns: Annotated[str, Shown("NAME,NAME,…")] | None = Field(
        None,
        description="annotators' columns of a table; default: those named vote_…",
    )
    label_model: Literal["majority", "soft", "dawid_skene", "mace"] = Field(
        "majority", description="label model for csv data with votes and no label"
    )
    soft_labels: bool = Field(
        False,
        description="train on soft labels: columns p_CLASS of a table, {confidence_column}, or the label "
        "model's",
    )
    confidence_column: str | None = Field(
        None,
        description="column of the confidence in each label, 0 to 1, which makes soft labels; give "
        "{soft_labels}, too",
    )

    @field_validator("noise_matrix", "inject_noise", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # YAML reads `true` and `0.4` as a flag and a number. Python also has matrices.
        if value is None or isinstance(value, str | bool):
            return "true" if value is True else value
        from hesstune.noise.matrix import written_out

        return written_out(value)


class TaskOptions(NoiseOptions, DataOptions):
    """What a run's examples and their labels are made from."""


class ConstraintOptions(Options):
    """The distance constraint of every layer."""

    heading: ClassVar[str] = "Constraint"

    radius: float | dict[str, float] | Literal["auto"] | None = Field(
        None,
        description="constraint radius of every layer, or PATTERN=RADIUS,… (first match wins; 'head' is the "
        "last layer); auto: chosen by noisy validation; default: a share of each layer's norm, and of the "
        "norm of a fitted linear head",
    )
    radius_scale: float = Field(
        1.0,
        gt=0,
        description="factor of the radii of the network's third stage; its square for the fourth stage",
    )
    norm: Literal["frobenius", "mars"] = Field("frobenius", description="norm of the constraint")

    @field_validator("radius", mode="before")
    @classmethod
    def _parse_radius(cls, value: Any) -> Any:
        if value == "auto":
            return value
        number = parse_number(value) if isinstance(value, str) else None
        if number is not None:
            return number
        return numbers_by_name(value, "write a number, auto, or PATTERN=RADIUS,PATTERN=RADIUS")

    @field_validator("radius")
    @classmethod
    def _positive_radius(cls, value: Any) -> Any:
        for number in value.values() if isinstance(value, dict) else [value]:
            if isinstance(number, float) and not 0 < number < float("inf"):
                raise ValueError("radii must be finite and above 0")
        return value


class OptimisationOptions(Options):
    """How a run's weights are trained, and which are kept."""

    heading: ClassVar[str] = "Optimisation"

    epochs: int = Field(15, gt=0, description="passes over the training set")
    batch_size: int = Field(32, gt=0, description="examples per batch")
    lr: float | None = Field(
        None,
        gt=0,
        description="peak learning rate; default: 1e-4, 5e-5 for minilm, ten times that with {lora}, or 1e-2 "
        "with {train} head",
    )
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="optimizer")
    weight_decay: float | None = Field(
        None,
        ge=0,
        description="weight decay of the optimizer; default: 0, or by cross-validation on the given labels "
        "for an unconstrained head that is trained alone",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="learning-rate schedule; step divides by 10 at 1/2 and 3/4"
    )
    lr_warmup: float = Field(
        0.05, ge=0, lt=1, description="share of the steps for the linear warm-up of the learning rate"
    )
    warmup_epochs: int = Field(
        2, ge=0, description="epochs of plain cross-entropy before the method's own loss"
    )
    accumulate: int = Field(1, gt=0, description="batches per optimizer step (gradient accumulation)")
    grad_clip: float | None = Field(None, gt=0, description="clip gradients to this norm")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="autocast on devices that have it"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="weight classes by the inverse of their clean frequency"
    )
    sampler: Literal["uniform", "balanced"] = Field(
        "uniform", description="draw training examples uniformly, or all classes equally often"
    )
    patience: int | None = Field(
        None, gt=0, description="stop after this many epochs without a better validation loss"
    )
    select: Literal["last", "best"] = Field(
        "last", description="weights to keep: of the last epoch, or of the best epoch on validation"
    )


class RunOptions(Options):
    """Where a run is written and computed."""

    heading: ClassVar[str] = "Run"

    out: Annotated[str, Shown("FOLDER", also="PathLike[str]")] | None = Field(
        None, description="folder to write; in Python, default: a temporary folder"
    )
    seed: int = Field(0, ge=0, description="random seed of split, noise, order and augmentation")
    device: str = DEVICE
    shard: bool = Field(
        False,
        description="distribute weights, reference, gradients and optimizer state over the processes (FSDP2; "
        "under torchrun)",
    )
    checkpoint_minutes: float = Field(
        10.0, gt=0, description="minutes between checkpoints within an epoch; each epoch ends with one"
    )
    measure_every: int | None = Field(
        None,
        gt=0,
        description="measure a fixed sample of validation examples after every so many epochs (Gauss–Newton "
        "distance measure), in at most 5 % of the passes of training; default: never",
    )
    track: Literal["tensorboard", "mlflow"] | None = Field(
        None, description="also send each epoch's metrics to this tracker (needs the extra tracking)"
    )

    @field_validator("out")
    @classmethod
    def _at_home(cls, value: str | None) -> str | None:
        return str(expanded(value)) if value and value.startswith("~") else value


class SampleOptions(Options):
    """Which layers are measured, on how many examples, and where."""

    heading: ClassVar[str] = "What is measured, on which device"

    layers: LayerPatterns | None = Field(
        None, description="layers to measure, by name or pattern; may be repeated; default: all"
    )
    max_examples: int | None = Field(
        None,
        gt=ABOVE["max_examples"],
        description="at most so many examples, drawn uniformly; default: all",
    )
    device: str = DEVICE


class MeasureOptions(SampleOptions):
    """How the Hessian distance measure of a run is computed; see `hesstune.measure`.

    By default held-out examples are measured, because fitted training examples have almost no curvature,
    and smooth layers on a random sample of them (examples="max", mean_sample=8, trace="exact").
    `hesstune.measure` has other defaults: every example and no trace.
    """

    heading: ClassVar[str] = "How"

    part: Literal["val", "train"] = Field(
        "val",
        description="val: examples held out from training; train: training examples, as in the paper; a run "
        "without validation examples takes train",
    )

    trace: bool | Literal["exact"] = Field(
        "exact",
        description="also the trace of each layer's H⁺ or G; exact: of layers in closed form that moved",
    )
    spectrum: bool = Field(
        False, description="also the nonzero eigenvalues of exact layers' H, or of G, K − 1 an example"
    )
    examples: ExamplesChoice = Field(
        "max", description="smooth layers: max measures a random sample of {mean_sample}, all every example"
    )
    mean_sample: int = Field(8, description="smooth layers: size of the random sample; 0: every example")
    method: MethodChoice = Field(
        "auto",
        description="auto decides layer by layer; exact refuses layers without a closed form; gauss_newton "
        "measures vᵀGv in place of vᵀH⁺v, for all layers from a few passes",
    )
    tol: float | None = Field(
        None,
        gt=ABOVE["tol"],
        description="smooth layers: relative error that the bracket proves; default: 0.03",
    )
    skip_classes: float = Field(
        SKIP_CLASSES,
        ge=0,
        lt=1,
        description="closed form: share of an entry that skipped classes may add; 0: take all classes",
    )
    trace_passes: int = Field(
        TRACE_PASSES,
        gt=ABOVE["trace_passes"],
        description="closed form: passes for a trace; with more classes it is an estimate",
    )
    memory_mib: float | None = Field(
        None,
        gt=ABOVE["memory_mib"],
        description="memory beside the network and its reference, in MiB; default: 512 for the examples "
        "measured at a time, or the memory of one",
    )
    seed: int = Field(0, ge=0, description="seed of the probes and of the sample")

    @field_validator("mean_sample")
    @classmethod
    def _gives_an_error(cls, value: int) -> int:
        if fault := sample_fault(value):
            raise ValueError(fault)
        return value

    @model_validator(mode="after")
    def _is_of_use(self) -> MeasureOptions:
        if self.examples == "all" and self.mean_sample not in (0, 8):
            raise ValueError("{mean_sample} is for {examples} max; with all, every example is measured")
        return self


class StabilityOptions(SampleOptions):
    """How a run's noise stability is measured; see `hesstune.noise_stability`."""

    samples: int = Field(16, ge=2, description="draws of the noise")


class CertifyOptions(Options):
    """How a run is certified; see `hesstune.certify`."""

    heading: ClassVar[str] = "Conditions and computation"

    bound: BoundName = Field(
        "pac_bayes",
        description="".join(f"{name}: {first_lines()[name]}; " for name in CHOICES)
        + "best: the smallest of these, which share delta",
    )
    delta: float = Field(0.05, gt=0, lt=1, description="probability with which the certificate may fail")
    prior_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="train the prior's centre, or the network's start, anew on this share of the training "
        "examples and certify on the others; 0: it is the network before fine-tuning",
    )
    noise_is: Literal["auto", "none", "known", "estimated", "instance_dependent"] = Field(
        "auto",
        description="how the labels' noise is known; default: labels are true; auto: from the run's options",
    )
    clean_sample: FilePath | None = Field(
        None,
        description="CSV file of ids and true labels, drawn at random among the training examples: they "
        "leave the certificate's and give a confidence set for the noise matrix",
    )
    checked_labels: FilePath | None = Field(
        None,
        description="CSV file of ids and true labels of examples drawn at random, by hesstune check, among "
        "those that the bound counts on (the test part, or what {prior_fraction} leaves): bounds the true "
        "error whatever the noise of the given labels",
    )
    test_labels: Literal["auto", "true", "noisy", "unknown"] = Field(
        "auto",
        description="whether the test part's labels are correct; noisy: as the training labels are; auto: "
        "true if labels count as true or noise was injected into training labels alone",
    )
    draws: int | None = Field(
        None, gt=0, description="weight draws; more make it tighter; default: 2048, or 100 an example"
    )
    repeats: Literal["refuse", "drop", "allow"] = Field(
        "refuse",
        description="what to do about inputs that are repeated, exactly or nearly, among the examples that "
        "the bound counts on, and those that the network has learnt from; drop: count no copy; allow: "
        "count them as draws from a distribution that has such repeats",
    )
    vouch: Choices = Field(
        (),
        description="a choice that the run cannot show to be free of its examples and that you vouch for, "
        "such as normalisation; may be repeated",
    )
    no_groups: bool = Field(
        False,
        description="state that rows which share a value of a column such as patient_id are independent "
        "draws; without it a certificate is refused if the data has a column that may group its rows",
    )
    diagnostic: bool = Field(
        False, description="if an assumption fails give the number, marked as no certificate"
    )
    seed: int = Field(0, ge=0, description="seed of the draws and of the prior's part")
    device: str = DEVICE

    @field_validator("vouch")
    @classmethod
    def _known_choices(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value:
            from hesstune.bounds.sample import LEAKS
            from hesstune.checks import one_of

            for name in value:
                one_of("choice to vouch for", name, tuple(LEAKS))
        return value

    @model_validator(mode="after")
    def _is_consistent(self) -> CertifyOptions:
        if self.checked_labels is not None and (self.bound != "pac_bayes" or self.clean_sample is not None):
            raise ValueError("{checked_labels} is a bound of its own; leave {bound} and {clean_sample} out")
        if self.noise_is == "none" and self.clean_sample is not None:
            raise ValueError(
                "{noise_is} none says that labels are true, and {clean_sample} that they are not"
            )
        return self


class CheckOptions(ColumnOptions):
    """Which examples a person is to label, for `certify --checked-labels`.

    Columns that are not named are the run's.
    """

    sample: int = Field(300, gt=0, description="examples to draw, uniformly at random")
    prior_fraction: float = Field(
        0.0, ge=0, lt=1, description="as of certify: the sample is of what it leaves; 0: of the test part"
    )
    seed: int = Field(0, ge=0, description="as of certify, and of the sample")


class NoiseCheckOptions(Options):
    """How a run's noise matrix is checked."""

    seed: int = Field(0, ge=0, description="seed of what is drawn")
    device: str = DEVICE


class PredictOptions(ColumnOptions):
    """How new data is predicted; columns that are not named are the run's, or the usual ones."""

    blank_texts: Literal["predict", "leave_out"] = Field(
        "predict",
        description="what to do with texts that hold nothing: predict them all the same, or list them",
    )

    skip_bad_images: bool = SKIP_BAD_IMAGES
    device: str = DEVICE


class ReportOptions(Options):
    """What a page about a run or a comparison is made with."""

    baseline: str | None = Field(
        None,
        description="baseline method of a comparison's differences; default: the comparison's own",
    )
    device: str = DEVICE
