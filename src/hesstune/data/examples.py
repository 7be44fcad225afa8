"""Examples in memory: images decoded once or texts, labels, and an id for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hesstune.data.contents import Digests, text_digests
from hesstune.storage.tensors import digest_of_texts
from hesstune.weak.votes import Votes

PARTS = ("train", "val", "test")
# What stands for data given in Python.
MEMORY = "memory"
# Where a label comes from, if not from the data itself: `hesstune clean` put a more probable class in its
# place, or left out other examples, those whose labels it suspected; a label model made it from votes; or it
# is a model's prediction.
REWRITTEN, KEPT, MODEL_LABEL, PREDICTED = "corrected", "kept", "label_model", "predicted"
MODEL_SOURCES = (REWRITTEN, KEPT, MODEL_LABEL, PREDICTED)

Text = tuple[str, str | None]
"""A text, and the second one of a pair or None."""


class ImageSource(Protocol):
    """Where images come from: decoded batches by index.

    A source may have a `digest`, a checksum of its images, by which what was computed of them is found again,
    and a method `digests(indices, anew)` that returns (B, 16) digests of some images: those taken when the
    images were read, or, `anew`, of what the source holds now. See `hesstune.data.contents`.
    """

    def batch(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """Return the images at the indices, uint8, (B, 3, S, S)."""


@dataclass(frozen=True)
class Texts:
    """Texts kept in memory."""

    rows: list[Text]

    def batch(self, indices: NDArray[np.int64]) -> list[Text]:
        """Return the texts at the indices."""
        return [self.rows[i] for i in indices]

    @property
    def digest(self) -> str:
        """Checksum of the texts."""
        return digest_of_texts(text for pair in self.rows for text in pair)

    def digests(self, indices: NDArray[np.int64], anew: bool = False) -> Digests:
        """Return the digests of the texts at the indices."""
        return text_digests(self.batch(indices))


T = TypeVar("T", "Listing", "Examples")


def _taken(whole: T, rows: ArrayLike, names: Sequence[str]) -> T:
    """Return a dataclass with some rows of those of its fields that hold one entry an example."""
    at = np.asarray(rows, dtype=np.int64)
    found: dict[str, Any] = {}
    for name in names:
        value = getattr(whole, name)
        if isinstance(value, list):
            found[name] = [value[i] for i in at.tolist()]
        elif isinstance(value, Votes):
            found[name] = value.take(at)
        elif value is not None:
            found[name] = value[at]
    return replace(whole, **found)


@dataclass(frozen=True)
class Listing:
    """What a data adapter found, before images are decoded and examples are split.

    Attributes:
        ids: One id an example: its relative path, or its row.
        labels: (N,) int64 class indices, or None where the data has no labels.
        classes: Class names, in the order of their indices.
        paths: Image files, or None where `array` holds the images.
        array: (N, 3, S, S) uint8 images that need no decoding.
        texts: Texts, for data that holds no images.
        parts: `train`, `val` or `test` for each example (where no labels were asked for, "" for none), or
            None where the data is not split.
        flip: Whether mirroring an image keeps its label (not so for digits).
        votes: Annotators' votes, or None.
        soft: (N, K) soft labels, or None.
        unlabelled: Ids of examples left out because they have neither label nor vote.
        given: Where no labels were asked for, each example's label as written, "" where it has none.
        notes: What was left out, changed or guessed, in sentences.
        bad: {index: reason} of images that could not be decoded, where `array` holds the images.
        told: What the column says that the split is drawn by, or None where the data has no columns.
        digests: (N, 16) digests of the images as given, for `array`; None: those of its pixels count.
        before: (N,) int64 labels before they were rewritten, −1 if they are no class; None if none was.
        label_sources: Where each label comes from, as the column `label_source` says, or None.
        groups: {column: number of distinct values} of columns that may group the examples.
    """

    ids: list[str]
    labels: NDArray[np.int64] | None
    classes: list[str]
    paths: list[Path] | None = None
    array: torch.Tensor | None = None
    texts: list[Text] | None = None
    parts: list[str] | None = None
    flip: bool = True
    votes: Votes | None = None
    soft: NDArray[np.float64] | None = None
    unlabelled: list[str] = field(default_factory=list)
    given: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)
    told: list[str] | None = None
    digests: Digests | None = None
    before: NDArray[np.int64] | None = None
    label_sources: list[str] | None = None
    groups: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: ArrayLike) -> Listing:
        """Return the listing of some of the examples."""
        own = ("ids", "labels", "paths", "array", "texts", "parts", "votes", "soft", "given", "told")
        made = _taken(self, rows, (*own, "digests", "before", "label_sources"))
        at = np.asarray(rows, dtype=np.int64).tolist() if self.bad else []
        return replace(made, bad={new: self.bad[row] for new, row in enumerate(at) if row in self.bad})


@dataclass(frozen=True)
class Examples:
    """A part of a data set: some rows of one source of images or texts.

    Attributes:
        source: The images or texts of the whole data set.
        rows: (N,) indices of this part's examples in the source.
        ids: One id an example.
        labels: (N,) int64 labels to train on, or None.
        true: (N,) int64 true labels where they are known to differ from `labels`, else None.
        votes: Annotators' votes, or None.
        soft: (N, K) float64 soft labels, or None.
        clean: (N,) whether a person has checked the label; None where nobody has checked any.
        given: (N,) int64 the labels before that, or None.
        given_soft: (N, K) the soft labels before that, or None.
        label_sources: Where each label comes from, as the column `label_source` says, or None.
    """

    source: ImageSource | Texts
    rows: NDArray[np.int64]
    ids: list[str]
    labels: NDArray[np.int64] | None
    true: NDArray[np.int64] | None = None
    votes: Votes | None = None
    soft: NDArray[np.float64] | None = None
    clean: NDArray[np.bool_] | None = None
    given: NDArray[np.int64] | None = None
    given_soft: NDArray[np.float64] | None = None
    label_sources: list[str] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """Return decoded images, uint8, (B, 3, S, S), of some of this part's examples."""
        assert not isinstance(self.source, Texts)
        return self.source.batch(self.rows[indices])

    @property
    def texts(self) -> list[Text] | None:
        """This part's texts, or None where the examples are images."""
        return self.source.batch(self.rows) if isinstance(self.source, Texts) else None

    def take(self, rows: ArrayLike) -> Examples:
        """Return some of this part's examples as a part of its own."""
        own = ("rows", "ids", "labels", "true", "votes", "soft", "clean", "given", "given_soft")
        return _taken(self, rows, (*own, "label_sources"))

    def count_source(self, source: str) -> int:
        """Return how many labels come from one source, such as REWRITTEN."""
        return 0 if self.label_sources is None else self.label_sources.count(source)

    @property
    def has_model_labels(self) -> bool:
        """Whether, as far as is recorded, a model made some labels or chose examples by their labels."""
        made = any(self.count_source(source) for source in MODEL_SOURCES)
        return self.votes is not None or self.soft is not None or made

    def relabelled(self, noisy: NDArray[np.int64]) -> Examples:
        """Return the same examples with noisy labels; today's labels are kept as the true ones."""
        return replace(self, labels=noisy, true=self.labels)


@dataclass(frozen=True)
class Task:
    """Training, validation and test examples of one classification task.

    Attributes:
        classes: Class names.
        train: Training examples.
        val: Validation examples, perhaps none.
        test: Test examples, perhaps none; their labels are never corrupted.
        split: How the parts were drawn: `uniform`, `stratified` or `given`.
        flip: Whether mirroring keeps the label.
        skipped: (id, reason) of images left out because they could not be decoded.
        unlabelled: Ids of examples left out because nobody gave them a label or voted on them.
        notes: What was left out, changed or guessed when the data was read, in sentences.
        possible_groups: {column: number of distinct values} of columns that may group the examples, other
            than the column by which the parts were drawn.
    """

    classes: list[str]
    train: Examples
    val: Examples
    test: Examples
    split: str
    flip: bool
    skipped: list[tuple[str, str]] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    possible_groups: dict[str, int] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        """Whether the examples are texts; images otherwise."""
        return isinstance(self.train.source, Texts)

    @property
    def k(self) -> int:
        """The number of classes."""
        return len(self.classes)
