"""The options of what is asked of a finished run: measure, certify, noise and predict, each declared once."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from hesstune.curvature.declared import ABOVE, SKIP_CLASSES, ExamplesChoice, MethodChoice, sample_fault
from hesstune.options import DEVICE, FilePath, Options, Shown
from hesstune.runs.options.data import SKIP_BAD_IMAGES, ColumnOptions

__all__ = [
    "CertifyOptions",
    "CheckOptions",
    "DeviceOptions",
    "MeasureOptions",
    "NoiseCheckOptions",
    "PredictOptions",
    "SampleOptions",
    "StabilityOptions",
]


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


LayerPatterns = Annotated[
    tuple[str, ...], BeforeValidator(_as_tuple), Shown("PATTERN", repeated=True, also=str)
]
Choices = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Shown("CHOICE", repeated=True, also=str)]


class DeviceOptions(Options):
    """Where to compute."""

    device: str = DEVICE


class SampleOptions(Options):
    """Which layers are measured, on how many examples, and where."""

    heading: ClassVar[str] = "What is measured, and where"

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
    first: ClassVar[tuple[str, ...]] = ("part", "layers", "max_examples", "trace")

    part: Literal["val", "train"] = Field(
        "val",
        description="val: examples held out from training; train: training examples, as in the paper; a run "
        "without validation examples takes train",
    )

    trace: bool | Literal["exact"] = Field(
        "exact", description="also the trace of each layer's H⁺; exact: of exact layers only"
    )
    spectrum: bool = Field(
        False, description="also the nonzero eigenvalues of exact layers' H, K − 1 an example"
    )
    examples: ExamplesChoice = Field(
        "max", description="smooth layers: max measures a random sample of {mean_sample}, all every example"
    )
    mean_sample: int = Field(8, description="smooth layers: size of the random sample; 0: every example")
    method: MethodChoice = Field(
        "auto", description="auto decides layer by layer; exact refuses layers without a closed form"
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
        description="exact layers: share of an entry that skipped classes may add; 0: take all classes",
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
    def _tells_an_error(cls, value: int) -> int:
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
    first: ClassVar[tuple[str, ...]] = ("bound", "delta", "prior_fraction", "noise_is", "clean_sample")

    bound: Literal["pac_bayes", "holdout", "compression", "best"] = Field(
        "pac_bayes",
        description="pac_bayes: of the network with random weights; holdout: exact, by the test part or by "
        "what {prior_fraction} leaves; compression: of a network that a few examples determine (method "
        "pick_to_learn); best: the smallest of the three, which share delta",
    )
    delta: float = Field(0.05, gt=0, lt=1, description="probability with which the certificate may fail")
    prior_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="train the prior's centre, or the network's start, anew on this share of the training "
        "examples and certify on the rest; 0: it is the network before fine-tuning",
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
    checked: FilePath | None = Field(
        None,
        description="CSV file of ids and true labels of examples drawn at random, by hesstune check, among "
        "those that the bound counts on (the test part, or what {prior_fraction} leaves): bounds the true "
        "error whatever the noise of the given labels",
    )
    test_labels: Literal["auto", "true", "noisy", "unknown"] = Field(
        "auto",
        description="what the test part's labels are worth; noisy: as the training labels are; auto: true "
        "where labels count as true or noise was injected into training labels alone",
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
        False, description="where an assumption fails give the number, marked as no certificate"
    )
    seed: int = Field(0, ge=0, description="seed of the draws and of the prior's part")
    device: str = DEVICE

    @field_validator("vouch")
    @classmethod
    def _known_choices(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value:
            from hesstune.bounds.conditions import LEAKS
            from hesstune.checks import one_of

            for name in value:
                one_of("choice to vouch for", name, tuple(LEAKS))
        return value

    @model_validator(mode="after")
    def _one_story(self) -> CertifyOptions:
        if self.checked is not None and (self.bound != "pac_bayes" or self.clean_sample is not None):
            raise ValueError("{checked} is a bound of its own; leave {bound} and {clean_sample} out")
        if self.noise_is == "none" and self.clean_sample is not None:
            raise ValueError(
                "{noise_is} none says that labels are true, and {clean_sample} that they are not"
            )
        return self


class CheckOptions(Options):
    """Which examples a person is to label, for `certify --checked`."""

    first: ClassVar[tuple[str, ...]] = ("sample", "prior_fraction")

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
