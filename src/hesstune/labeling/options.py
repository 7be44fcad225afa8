"""The options of `label` and `clean`, each declared once."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hesstune.options import DEVICE, FilePath, Names, Options, Shown
from hesstune.weak.label_models import LABEL_MODELS, LabelModelName, label_model_class

Specs = Annotated[Names, Shown("DATA,DATA,…")]


def needs_features(model: str) -> bool:
    """Tell whether a label model cannot do without features; `auto` of --noise-from can."""
    return model != "auto" and label_model_class(model).needs_features


class VoteOptions(Options):
    """What is labelled, and who votes."""

    heading: ClassVar[str] = "Votes"

    target: Annotated[str, Shown("DATA")] | None = Field(
        None,
        description="what to label: folder:PATH, csv:PATH or hf:NAME with texts; labels it has go into "
        "tables of accuracy alone, except those of a test part, which stay; default: the examples of {votes}",
    )
    labelers: Specs = Field(
        (), description="other domains' data, to train a labeler on each; NAME=DATA names it"
    )
    functions: Annotated[str, Shown("py:MODULE:NAME")] | None = Field(
        None, description="labeling functions, one or a list"
    )
    votes: FilePath | None = Field(
        None,
        description="file of votes: CSV with id and a column a labeler, or columns p_LABELER_CLASS of "
        "probabilities; or .jsonl with an object {CLASS: probability} a labeler; or either with a row a vote",
    )
    vote_columns: Names = Field(
        (), description="columns of votes in csv data; default: those named vote_…, or else all that may be"
    )
    task_column: str | None = Field(
        None,
        description="column of {votes} that names the example, where each row is one vote; default: guessed, "
        "and said",
    )
    worker_column: str | None = Field(None, description="column of {votes} that says who votes")
    label_column: str | None = Field(None, description="column of {votes} that holds the class voted for")
    classes: Names = Field((), description="class names; default: those that labelers, truth and votes name")


class LabelModelOptions(Options):
    """What makes labels of votes, and estimates the labels' noise."""

    heading: ClassVar[str] = "Labels and their noise"

    label_model: LabelModelName = Field(
        "auto",
        description="what makes labels of votes; auto: latent where examples can be looked at, else "
        "calibrated where labelers give probabilities, or the model with the best likelihood of held-out "
        "votes; soft for labelers trained by {labelers}",
    )
    class_balance: Annotated[Names, Shown("CLASS=SHARE,…")] = Field(
        (),
        description="how often each class is, where that is known; or uniform, or majority (the majority "
        "vote's shares); default: as the label model finds",
    )
    noise_from: LabelModelName = Field(
        "auto",
        description="label model whose posterior gives the noise matrix; auto: that of the labels "
        "themselves, but for majority and soft: soft_features if features are computed, else weighted",
    )
    checked_labels: FilePath | None = Field(
        None,
        description="CSV file of checked labels (id, label): they stay; calibrated, latent and "
        "soft_features use them for the other examples, too",
    )
    seed: int = Field(0, ge=0, description="seed of splits, ties and training")


class LabelerOptions(Options):
    """How labelers are trained on other domains, and on what features."""

    heading: ClassVar[str] = "Trained labelers and features"

    labeler: Literal["probe", "finetune"] = Field(
        "probe",
        description="how labelers are trained: a linear probe on frozen features, or the whole network",
    )
    epochs: int = Field(10, gt=0, description="epochs of a labeler of the kind finetune")
    threshold: float = Field(
        0.0, ge=0, le=1, description="trained labelers abstain where no class is as probable"
    )
    model: str | None = Field(
        None,
        description="whose features, or which network; default: efficientnet_lite0, or minilm for texts",
    )
    head: Names = Field(
        (), description="module of that network's classifier, before which features are taken; default: found"
    )
    image_size: int = Field(96, ge=8, le=2048, description="side of the images in pixels")
    max_length: int = Field(128, ge=4, le=1 << 20, description="tokens of a text at most")
    device: str = DEVICE


class LabelOptions(LabelerOptions, LabelModelOptions, VoteOptions):
    """How labels are made from weak labelers, labeling functions and votes."""

    first: ClassVar[tuple[str, ...]] = ("target", "labelers", "functions", "votes", "label_model")

    @model_validator(mode="after")
    def _are_of_use(self) -> LabelOptions:
        """Refuse what would change nothing."""
        for name in ("task_column", "worker_column", "label_column"):
            if getattr(self, name) is not None and self.votes is None:
                raise ValueError(f"{{{name}}} is of the file of {{votes}}, and there is none")
        if self.vote_columns and (self.task_column or self.worker_column or self.label_column):
            raise ValueError("{vote_columns} are for a row an example, {task_column} for a row a vote")
        looks = bool(self.labelers) or self.label_model == "auto" or needs_features(self.label_model)
        looks = looks or needs_features(self.noise_from)
        if self.labeler == "finetune" and not self.labelers:
            raise ValueError("{labeler} says how {labelers} are trained, and there are none")
        if self.epochs != LabelOptions.model_fields["epochs"].default and self.labeler == "probe":
            raise ValueError("{epochs} is for {labeler} finetune; a probe has none")
        if self.threshold and not self.labelers:
            raise ValueError("{threshold} is for {labelers}, and there are none")
        if self.model is not None and not looks:
            raise ValueError(
                "{model} is for {labelers}, or for a {label_model} or {noise_from} that uses features: "
                f"{', '.join(name for name in LABEL_MODELS if name == 'auto' or needs_features(name))}"
            )
        return self


class CleanOptions(Options):
    """How wrong labels are looked for."""

    heading: ClassVar[str] = "Labels"
    first: ClassVar[tuple[str, ...]] = ("data", "checked_labels", "write")

    data: Annotated[str, Shown("DATA")] | None = Field(
        None, description="labelled examples: folder:PATH, csv:PATH or hf:NAME with texts"
    )
    write: Literal["given", "corrected", "pruned"] = Field(
        "given",
        description="labels of the file: as given, beside soft ones; corrected: the likely ones; pruned: as "
        "given, without the examples whose label is probably wrong",
    )
    checked_labels: FilePath | None = Field(
        None, description="CSV file of labels a person has checked: id, and clean_label, true_label or label"
    )
    model: str | None = Field(
        None, description="whose features; default: efficientnet_lite0, or minilm for texts"
    )
    head: Names = Field(
        (), description="module of the model's classifier, before which features are taken; default: found"
    )
    image_size: int = Field(96, ge=8, le=2048, description="side of the images in pixels")
    max_length: int = Field(128, ge=4, le=1 << 20, description="tokens of a text at most")
    seed: int = Field(0, ge=0, description="seed of the folds")
    device: str = DEVICE
