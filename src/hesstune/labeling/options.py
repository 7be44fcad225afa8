"""The options of `label` and `clean`, each declared once."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hesstune.data.reading import ROLES, Columns, Reading
from hesstune.models.preparation import own_size
from hesstune.options import DEVICE, FilePath, Names, Options, Shown
from hesstune.resizing import Size
from hesstune.runs.options import ColumnOptions
from hesstune.weak.label_models import LABEL_MODELS, LabelModelName, label_model_class

Specs = Annotated[Names, Shown("DATA,DATA,…")]


def default_model(is_text: bool) -> str:
    """Return the name of the network for features if none is given."""
    return "minilm" if is_text else "efficientnet_lite0"


def size_for(model: str | None, asked: FeatureOptions, is_text: bool) -> Size:
    """Return the side of images for a network, or the rule by which they are resized and cropped."""
    usual = asked.image_size or IMAGE_SIDE
    return usual if is_text else own_size(model, asked.image_size, IMAGE_SIDE)


def needs_features(model: str) -> bool:
    """Return whether a label model cannot do without features; `auto` can."""
    return model != "auto" and label_model_class(model).needs_features


# Side of images, in pixels, for networks without a rule of their own.
IMAGE_SIDE = 96


def how_read(asked: CleanOptions | LabelOptions) -> Reading:
    """Return how the examples are read: the columns that options name, and what several classes mean."""
    # The column of the votes in a file of votes is none of the examples.
    is_of_votes = isinstance(asked, LabelOptions) and asked.votes is not None
    columns = {role: getattr(asked, f"{role}_column") for role in ROLES if role != "label" or not is_of_votes}
    return Reading(Columns(**columns), several=getattr(asked, "several_labels", "refuse"))


class VoteOptions(Options):
    """What is labelled, and the votes."""

    heading: ClassVar[str] = "Votes"

    target: Annotated[str, Shown("DATA")] | None = Field(
        None,
        description="what to label: folder:PATH, csv:PATH or hf:NAME with texts; labels it has go into "
        "tables of accuracy alone, except those of a test part, which stay; default: the examples of {votes}",
    )
    labelers: Specs = Field(
        (), description="other domains' data, to train an annotator on each; NAME=DATA names it"
    )
    functions: Annotated[str, Shown("py:MODULE:NAME")] | None = Field(
        None, description="labeling functions, one or a list"
    )
    votes: FilePath | None = Field(
        None,
        description="table of votes with id and a column for each annotator, or columns "
        "p_ANNOTATOR_CLASS of probabilities; or .jsonl with an object {CLASS: probability} for each "
        "annotator; or either with a row for each vote; or a matrix (.npy, .npz); or the export of an "
        "annotation tool, a file or a folder",
    )
    vote_columns: Names = Field(
        (), description="columns of votes in csv data; default: those named vote_…, or else all that may be"
    )
    task_column: str | None = Field(
        None,
        description="column of {votes} with the example, if each row is one vote; default: recognised by its "
        "name",
    )
    worker_column: str | None = Field(None, description="column of {votes} with the annotator")
    label_column: str | None = Field(
        None,
        description="column of {votes} with the class voted for; without {votes}, of the labels of {target}",
    )
    text_column: str | None = Field(
        None, description="column of {target} with the texts, or two separated by a comma; default: text"
    )
    image_column: str | None = Field(
        None, description="column of {target} with the images' paths; default: image"
    )
    id_column: str | None = Field(
        None, description="column of {target} with the examples' ids; default: id, or row numbers"
    )
    confidence_column: str | None = Field(
        None,
        description="column of {votes} with the probability of that class, if each row is one vote; without "
        "a column of annotators, the votes are those of one",
    )
    classes: Names = Field(
        (), description="class names; default: those that annotators, true labels and votes name"
    )


class LabelModelOptions(Options):
    """How labels are made from votes, and how the labels' noise is estimated."""

    heading: ClassVar[str] = "Labels and their noise"

    label_model: LabelModelName = Field(
        "auto",
        description="label model; auto: latent if there are images or texts, else calibrated if annotators "
        "give probabilities, or the model with the best likelihood of held-out votes; soft for annotators "
        "trained by {labelers}",
    )
    class_balance: Annotated[Names, Shown("CLASS=SHARE,…")] = Field(
        (),
        description="shares of the classes, if they are known; or uniform, or majority (the majority vote's "
        "shares); default: as the label model estimates them",
    )
    noise_from: LabelModelName = Field(
        "auto",
        description="label model for the noise matrix; auto: that of the labels, but for majority and soft: "
        "soft_features if features are computed, else weighted",
    )
    checked_labels: FilePath | None = Field(
        None,
        description="CSV file of human-checked labels (id, label), or decisions from the page of hesstune "
        "clean: they stay; calibrated, latent and soft_features use them for the other examples, too",
    )
    seed: int = Field(0, ge=0, description="seed of splits, ties and training")


class FeatureOptions(Options):
    """The network that examples are passed through."""

    heading: ClassVar[str] = "Network and features"

    model: str | None = Field(None, description="network; default: efficientnet_lite0, or minilm for texts")
    head: Names = Field(
        (), description="module of that network's classifier, before which features are taken; default: found"
    )
    image_size: int | None = Field(
        None,
        ge=8,
        le=2048,
        description="side of the images in pixels; default: the network's own if it is of hf:, timm: or "
        "torchvision:; else 96",
    )
    max_length: int = Field(128, ge=4, le=1 << 20, description="the most tokens of a text")
    device: str = DEVICE


class AnnotatorOptions(Options):
    """How annotators are trained on other domains."""

    heading: ClassVar[str] = "Trained annotators"

    labeler: Literal["probe", "finetune"] = Field(
        "probe",
        description="how annotators are trained: a linear probe on frozen features, or the whole network",
    )
    epochs: int = Field(10, gt=0, description="epochs of an annotator of the kind finetune")
    threshold: float = Field(
        0.0, ge=0, le=1, description="trained annotators abstain if no class has this probability"
    )


class LabelOptions(FeatureOptions, AnnotatorOptions, LabelModelOptions, VoteOptions):
    """How labels are made from trained annotators, labeling functions and votes."""

    @model_validator(mode="after")
    def _have_an_effect(self) -> LabelOptions:
        """Refuse options without effect."""
        models = (self.label_model, self.noise_from)
        looks = bool(self.labelers) or self.label_model == "auto" or any(map(needs_features, models))
        rows = ("task_column", "worker_column", *(["label_column"] if self.target is None else []))
        rows = (*rows, "confidence_column")
        named = self.text_column or self.image_column or self.id_column
        has_rows = any(getattr(self, name) is not None for name in rows)
        for is_wrong, why in (
            (named and self.target is None, "{text_column}, {image_column} and {id_column} are columns of "
             "{target}, and there is none"),
            (has_rows and self.votes is None, "{task_column}, {worker_column}, {label_column} and "
             "{confidence_column} are columns of the file of {votes}, and there is none"),
            (has_rows and self.vote_columns, "{vote_columns} are for a row for each example, {task_column} "
             "for a row for each vote"),
            (self.labeler == "finetune" and not self.labelers,
             "{labeler} says how {labelers} are trained, and there are none"),
            (self.epochs != LabelOptions.model_fields["epochs"].default and self.labeler == "probe",
             "{epochs} is for {labeler} finetune; a probe has none"),
            (self.threshold and not self.labelers, "{threshold} is for {labelers}, and there are none"),
            (self.model is not None and not looks,
             "{model} is for {labelers}, or for a {label_model} or {noise_from} that uses features: "
             + ", ".join(name for name in LABEL_MODELS if name == "auto" or needs_features(name))),
        ):  # fmt: skip
            if is_wrong:
                raise ValueError(why)
        return self


class CleanOptions(FeatureOptions, ColumnOptions):
    """How label errors are found."""

    heading: ClassVar[str] = "Labels"

    data: Annotated[str, Shown("DATA")] | None = Field(
        None,
        description="labelled examples: a path, folder:PATH, a table such as csv:PATH, or hf:NAME with texts",
    )
    write: Literal["given", "corrected", "pruned"] = Field(
        "given",
        description="labels of the file: as given, beside soft ones; corrected: the most probable ones; "
        "pruned: as given, without suspected label errors",
    )
    checked_labels: FilePath | None = Field(
        None,
        description="CSV file of human-checked labels: id, and clean_label, true_label or label; or "
        "decisions from the page, or an export of Label Studio",
    )
    seed: int = Field(0, ge=0, description="seed of the folds")
