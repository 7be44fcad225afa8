"""What a run folder holds: every file name, and the type of what is kept as JSON."""

# ruff: noqa: RUF012  (pydantic copies defaults)
from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from hesstune.curvature.declared import FORMS, FormKind, FormNames
from hesstune.curvature.declared import MEASURE as MEASURE
from hesstune.curvature.declared import MEASURE_TENSORS as MEASURE_TENSORS
from hesstune.storage.stored import Stored

# The format of run.json.
FORMAT = 1
# What training writes.
CONFIG, RECORD, CARD = "config.yaml", "run.json", "README.md"
DATA = "data.safetensors"  # digests of the examples of every part
MODEL, REFERENCE, NOISE_MATRIX = "model.safetensors", "reference.safetensors", "noise_matrix.json"
METRICS, LABELS, BAD_IMAGES = "metrics.jsonl", "labels.csv", "bad_images.csv"
OWN = (CONFIG, RECORD, DATA, MODEL, REFERENCE, METRICS, LABELS, NOISE_MATRIX, BAD_IMAGES, CARD)
# What other commands write about the run; deleted if the run is replaced.
STABILITY, CERTIFICATE = "noise_stability.json", "certificate.json"
NOISE_CHECK = "noise_estimate.json"  # of `hesstune noise`
LABEL_ISSUES, LABEL_ISSUES_RECORD = "label_issues.csv", "label_issues.json"
EXAMPLES, REPORT, RADIUS, OBSERVED = "examples.json", "report.html", "radius.json", "observed.json"
# Folders of a certificate's own runs: of a prior trained on a part, and of Pick-to-Learn.
PRIOR, POSTERIOR, COMPRESSED = "prior", "posterior", "compressed"
GUARANTEES = "guarantees.jsonl"  # of every certificate and sheet; kept if the run is replaced
TO_CHECK = "to_check.csv"  # the sheet of hesstune check, for a person to fill in
TENSORBOARD, MLFLOW, MLFLOW_RUN = "tensorboard", "mlruns", "mlflow_run"
DERIVED = (
    MEASURE, MEASURE_TENSORS, STABILITY, CERTIFICATE, PRIOR, POSTERIOR, COMPRESSED, TO_CHECK, NOISE_CHECK,
    LABEL_ISSUES, LABEL_ISSUES_RECORD, EXAMPLES, REPORT, RADIUS, OBSERVED,
    TENSORBOARD, MLFLOW, MLFLOW_RUN,
)  # fmt: skip
# What exists only while a run is being written: its lock, the runs that choose its radii, a test of write
# permission, and the run that it replaces, until the new one has a checkpoint.
LOCK, TRIALS, WRITABLE, MOVING, ASIDE = ".lock", ".radius", ".writable", ".replacing", ".replaced"


def checkpoint_name(step: int | Literal["*"], part: str = "") -> str:
    """Return the name of the checkpoint after some steps, or their pattern; `part` is a process's suffix."""
    return f"checkpoint-{step if step == '*' else f'{step:09d}'}{part}.safetensors"


CHECKPOINTS = checkpoint_name("*")


def _square(rows: list[list[float]]) -> list[list[float]]:
    if rows and all(len(row) == len(rows) for row in rows):
        return rows
    raise ValueError("must be K rows of K numbers")


Matrix = Annotated[list[list[float]], AfterValidator(_square)]


class Sizes(Stored):
    """Examples by part."""

    train: int
    val: int
    test: int


class Normalisation(Stored):
    """Channel means and deviations of images in [0, 1], and whether the network takes blue first."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False


class LabelNoise(Stored):
    """The labels' noise: what was injected, the share of labels changed, and the noise matrix of the loss."""

    injected: str | None
    realised_rate: float | None
    loss_matrix: str
    loss_matrix_rate: float | None
    estimate_notes: list[str] = []

    @property
    def rate(self) -> float | None:
        """The share of training labels that are wrong, if it is known or assumed."""
        return self.realised_rate if self.injected else self.loss_matrix_rate


class Result(Stored):
    """The final numbers of a run; None if there are no test examples, or true labels are not known."""

    train_accuracy: float
    train_accuracy_true_labels: float | None = None
    train_loss: float | None = None
    test_accuracy: float | None
    test_accuracy_interval: tuple[float, float] | None = None
    test_labels_rewritten: int = 0  # of the test examples, by hesstune clean
    test_labels_kept: int = 0  # of the test examples, if hesstune clean left out those it suspected
    test_loss: float | None = None
    gap: float | None
    test_balanced_accuracy: float | None = None
    distances: dict[str, float]
    distance: float
    radii: dict[str, float] = {}
    posterior: dict[str, float] | None = None
    kept: list[str] | None = None
    epochs: int = 0
    # The epoch that the kept weights are from, from 1; 0: the start, which was solved.
    kept_epoch: int | None = None
    seconds: float = 0.0


class Recipe(Stored):
    """How a run's head was chosen: its name, why, and the candidates with their scores."""

    chosen: str
    reason: str
    details: dict[str, Any] = {}


class RunRecord(Stored):
    """run.json: what a run was made from and, once it has finished, its result."""

    what: ClassVar[str] = "a run's record"
    fix: ClassVar[str] = "train again with --overwrite"
    newest: ClassVar[int] = FORMAT

    format: int = Field(ge=FORMAT)
    classes: list[str]
    examples: Sizes
    split: str
    flip: bool = False
    kind: Literal["image", "text", "features"] = "image"
    skipped_images: int = 0
    unlabelled: int = 0
    data_notes: list[str] = []
    possible_groups: dict[str, int] = {}  # columns that may group the examples, and their distinct values
    working_folder: str = ""
    base_folder: str = ""
    checked_labels: int = 0
    soft_labels: bool = False
    head: str = ""
    other_heads: list[str] = []  # of a network that makes its logits of several classifiers
    stored_dtype: str = ""  # of the pretrained weights; the run's own is its option dtype
    normalisation: Normalisation
    noise: LabelNoise
    versions: dict[str, str]
    checksums: dict[str, str] = {}
    texts_cut: int = 0
    notes: list[str] = []
    recipe: Recipe | None = None
    chosen_options: list[str] | None = None  # options that were chosen from the examples; None: not recorded
    searched: list[str] = []  # options that a search chose on the run's examples
    result: Result | None = None
    made_from: dict[str, Any] | None = None


class Epoch(Stored):
    """A line of metrics.jsonl."""

    what: ClassVar[str] = "one JSON object an epoch"
    fix: ClassVar[str] = "train again with --overwrite"

    epoch: int
    train_loss: float
    train_accuracy: float
    lr: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    val_accuracy_true_labels: float | None = None
    distance: float | None = None
    seconds: float = 0.0
    # The Gauss–Newton distance measure of validation examples, if it was measured after the epoch.
    measure: float | None = None
    measure_stderr: float | None = None
    measure_examples: int | None = None


class NoiseMatrixRecord(Stored):
    """noise_matrix.json: F, rows sum to 1, and, if it was estimated, how."""

    what: ClassVar[str] = "a noise matrix"
    fix: ClassVar[str] = "train again with --overwrite"

    convention: str = ""
    matrix: Matrix
    condition: float | None = None
    rate: float | None = None
    origin: str | None = None
    classes: list[str] | None = None
    method: str | None = None
    examples: int | None = None
    stderr: Matrix | None = None
    smoothing: float = 0.0
    temperature: float | None = None
    log_likelihood: float | None = None
    notes: list[str] = []
    details: dict[str, Any] = {}
    made_from: dict[str, Any] | None = None


class CurvePoint(Stored):
    """One run along the path that radii are chosen on."""

    factor: float
    risk: float
    stderr: float | None


class RadiusRecord(Stored):
    """radius.json: the radii that were chosen, and the curve they were chosen from."""

    what: ClassVar[str] = "chosen radii"
    fix: ClassVar[str] = "use --overwrite"

    rule: str = ""
    curve: list[CurvePoint] = []
    chosen: float | None = None
    radius: dict[str, float]


class MatrixFacts(Stored):
    """A noise matrix, its noise rate and condition, and how well it explains the noisy labels."""

    matrix: Matrix
    rate: float
    condition: float | None
    log_likelihood: float | None


class Counted(Stored):
    """The matrix counted from true labels, and how far it is from the given one."""

    matrix: Matrix
    rate: float
    total_variation: float
    largest_at: tuple[int, int]


class Estimated(MatrixFacts):
    """An estimator's matrix, and how far it is from the given one; `chose` is what `auto` took."""

    method: str
    total_variation: float
    largest_at: tuple[int, int]
    chose: str | None = None


class Failed(Stored):
    """An estimator that could not be used, and why."""

    method: str
    failed: str


class CostOfError(Stored):
    """The accuracy lost for an error of F of this size and direction, by simulation."""

    off: float
    direction: str
    accuracy_lost: float
    stderr: float | None


class Dependence(Stored):
    """The test of whether noise depends on the example beyond its class."""

    agreement: float
    expected: float
    p_value: float
    examples: int
    depends: bool


class NoiseCheck(Stored):
    """noise_estimate.json: is a run's noise matrix wrong?"""

    what: ClassVar[str] = "a check of the noise matrix"
    fix: ClassVar[str] = "make it again with hesstune noise"

    run: str
    classes: list[str]
    examples: int
    matrix_given: bool
    assumed: MatrixFacts
    counted: Counted | None
    estimates: list[Estimated | Failed]
    cost_of_an_error: list[CostOfError]
    class_conditional: Dependence | None
    statements: list[str] = []


class Agreement(Stored):
    """Some labels, and how many of them the network agrees with."""

    agreed: int
    examples: int

    @property
    def share(self) -> float:
        """The share of the labels that the network agrees with; 0 if there are none."""
        return self.agreed / self.examples if self.examples else 0.0


class NoiseFit(Stored):
    """Agreement of the network with training labels that are wrong, or suspected to be, and with the others.

    `expected_right` is the share of the suspected labels that are right by their posterior; `known` says that
    the true labels are known.
    """

    wrong: Agreement
    right: Agreement
    expected_right: float
    known: bool


class MatrixCheck(Stored):
    """A test of the given noise matrix on the examples that probes are surest of, out of sample.

    `differing` of the `examples` labels differ from the prediction, a share between `low` and `high` (99 %
    interval). The matrix implies the share `implied` if all predictions are right, and `least` in any case.
    """

    # The share of the surest predictions that may be wrong before the matrix is blamed.
    ALLOWED_ERROR: ClassVar[float] = 0.1

    differing: int
    examples: int
    low: float
    high: float
    implied: float
    least: float

    @property
    def contradiction(self) -> Literal["too much noise", "too little noise"] | None:
        """What the matrix wrongly implies; None if the labels do not contradict it."""
        if self.high < self.least:
            return "too much noise"
        return "too little noise" if self.low > self.implied + self.ALLOWED_ERROR else None


class LabelIssuesRecord(Stored):
    """label_issues.json: what ranked the list, the noise matrix that validation examples show, and two tests.

    `fit` compares the network with the labels, `matrix_check` tests the given noise matrix; None if there is
    nothing to compare.
    """

    what: ClassVar[str] = "a record of label issues"
    fix: ClassVar[str] = "remove it and make it again with hesstune report"

    examples: int
    noise_matrix: NoiseMatrixRecord | None
    judged_by: Literal["probes", "network"] = "network"
    fit: NoiseFit | None = None
    matrix_check: MatrixCheck | None = None


class ExampleImage(Stored):
    """An example for display: a small PNG in base64, or the start of its text."""

    png: str | None = None
    text: str | None = None


class ExampleImages(Stored):
    """examples.json: images or texts by id."""

    what: ClassVar[str] = "images of examples"
    fix: ClassVar[str] = "remove it and make it again with hesstune report"

    __pydantic_extra__: dict[str, ExampleImage] = Field(init=False)

    @property
    def by_id(self) -> dict[str, ExampleImage]:
        """The images, by the ids of their examples."""
        return self.__pydantic_extra__


class LayerSpectrum(Stored):
    """The mean of the j-th largest eigenvalue of H over the examples, j = 1, 2, …, and its standard error."""

    mean: list[float]
    stderr: list[float | None]


class LayerMeasure(Stored):
    """One layer of a measurement; None if a number does not exist."""

    name: str
    maximum: float | None
    maximum_bounds: tuple[float | None, float | None] | None = None
    mean: float | None = None
    mean_stderr: float | None = None
    p99: float | None = None
    distance: float | None = None
    trace_max: float | None = None
    trace_mean: float | None = None
    exact: bool = False
    method: str = "–"
    reason: str = ""
    refined: int | None = None
    spectrum: LayerSpectrum | None = None

    @property
    def how(self) -> str:
        """The word in tables: `exact`, the method, or `probed` if classes were skipped."""
        if self.exact:
            return "exact"
        return "probed" if self.method == "exact" else self.method


class MeasureValue(Stored):
    """The measure by the maximum, the size of the training set, and the bound on the loss."""

    n: int
    C: float
    value: float


class MeanMeasure(Stored):
    """Σ √(C·mean/n) over the measured examples; None if a layer's mean is unknown."""

    n: int
    C: float
    value: float | None
    stderr: float | None = None


class MeasureRecord(Stored):
    """measure.json: the summary of a measurement; `ids` if not all examples of the part were measured.

    `tensors` is the checksum of measure.safetensors.
    """

    what: ClassVar[str] = "a measurement"
    fix: ClassVar[str] = "make it again with hesstune measure"

    examples: int | None = None
    part: str
    quantity: FormKind = "positive_form"
    measure: MeasureValue
    mean_measure: MeanMeasure | None = None
    losses: dict[str, float] = {}
    layers: list[LayerMeasure]
    notes: list[str] = []
    not_layers: list[str] = []
    statement: str
    ids: list[str] | None = None
    tensors: str | None = None

    @property
    def form(self) -> FormNames:
        """The names of the form that was measured."""
        return FORMS[self.quantity]


class StabilityRow(Stored):
    """The rise of the loss under noise of one size, and its Taylor prediction."""

    sigma: float
    value: float
    stderr: float
    taylor: float
    taylor_stderr: float = 0.0
    ratio: float | None = None
    samples: int | None = None
    examples: int | None = None


class StabilityRecord(Stored):
    """noise_stability.json: a row a size of noise."""

    what: ClassVar[str] = "noise stability"
    fix: ClassVar[str] = "make it again with hesstune measure --stability"

    examples: int
    rows: list[StabilityRow]
