"""Examples: images, texts or feature vectors with ids, labels and votes, and digests of their contents."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hesstune.storage.tensors import digest_of_texts
from hesstune.weak.votes import Votes

PARTS = ("train", "val", "test")
# The data string of a run whose examples were given in Python.
MEMORY = "memory"
# Sources of labels other than the data: `hesstune clean` replaced the label, or kept it and left out examples
# with suspected label errors; a label model combined votes; or a model predicted it.
REWRITTEN, KEPT, MODEL_LABEL, PREDICTED = "corrected", "kept", "label_model", "predicted"
MODEL_SOURCES = (REWRITTEN, KEPT, MODEL_LABEL, PREDICTED)

Text = tuple[str, str | None]
"""A text, and the second text of a pair or None."""

DIGEST_BYTES = 16
Digests = NDArray[np.uint8]
"""(N, 16): one BLAKE2b digest a row."""


def as_digests(digests: Iterable[bytes]) -> Digests:
    """Return digests as rows, (N, 16)."""
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


def digest_bytes(*contents: Any) -> bytes:
    """Return the digest of concatenated bytes-like objects."""
    made = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for content in contents:
        made.update(content)
    return made.digest()


def image_digests(images: Sequence[NDArray[Any]] | NDArray[Any]) -> Digests:
    """Return digests of images, (H, W, C) arrays of integers in [0, 255] or floats in [0, 1].

    A digest covers the shape and the values, floats in float32. It does not depend on the integer type.
    """

    def one(image: NDArray[Any]) -> bytes:
        kind = np.float32 if image.dtype.kind == "f" else np.uint8
        return digest_bytes(f"{image.shape} ".encode(), np.ascontiguousarray(image, kind).data)

    return as_digests(map(one, images))


class ImageSource(Protocol):
    """A source of decoded images.

    A source may also have `digest`, a checksum of its images under which computed features are stored, and a
    method `digests(indices, anew)` that returns (B, 16) digests of single images: taken when the images were
    read, or, with `anew`, of the present contents.
    """

    def batch(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """Return the images at the indices, uint8, (B, 3, S, S)."""


@dataclass(frozen=True)
class Texts:
    """Texts in memory."""

    rows: list[Text]

    def batch(self, indices: NDArray[np.int64]) -> list[Text]:
        """Return the texts at the indices."""
        return [self.rows[i] for i in indices]

    @property
    def digest(self) -> str:
        """Checksum of the texts."""
        return digest_of_texts(text for pair in self.rows for text in pair)

    def digests(self, indices: NDArray[np.int64], anew: bool = False) -> Digests:
        """Return digests of the texts at the indices, (B, 16)."""
        return as_digests(bytes.fromhex(digest_of_texts(pair)) for pair in self.batch(indices))


# Rows of vectors that are read from their file together.
ROWS = 8192


@dataclass(frozen=True)
class Vectors:
    """Feature vectors, such as embeddings: rows of an array, which may be a memory-mapped file."""

    array: NDArray[Any]  # (N, D) floating-point numbers or integers
    # (M,) rows of the array that these vectors are, or None for all of them
    at: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.array) if self.at is None else len(self.at)

    @property
    def width(self) -> int:
        """D, the number of features."""
        return int(self.array.shape[1])

    def __getitem__(self, rows: NDArray[np.int64]) -> Vectors:
        """Return some of the vectors; none is read."""
        return replace(self, at=rows if self.at is None else self.at[rows])

    def values(self) -> NDArray[Any]:
        """Return all vectors, (M, D), of the array's own type."""
        return self.array if self.at is None else self.array[self.at]

    def numbers(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors at the indices, (B, D) float32."""
        return np.ascontiguousarray(self.array[indices if self.at is None else self.at[indices]], np.float32)

    def batch(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """Return the vectors at the indices, (B, D) float32."""
        return torch.from_numpy(self.numbers(indices))

    @property
    def digest(self) -> str:
        """Checksum of the vectors."""
        return digest_bytes(self.digests(np.arange(len(self))).data).hex()

    def digests(self, indices: NDArray[np.int64], anew: bool = False) -> Digests:
        """Return digests of the vectors at the indices in single precision, (B, 16)."""
        head = f"vector {self.width} ".encode()
        parts = (indices[start : start + ROWS] for start in range(0, len(indices), ROWS))
        return as_digests(digest_bytes(head, row.data) for part in parts for row in self.numbers(part))


Kind = Literal["image", "text", "features"]

T = TypeVar("T", "Listing", "Examples")


def _take(whole: T, rows: ArrayLike, names: Sequence[str]) -> T:
    """Select rows in the named fields, which hold one entry per example or None."""
    at = np.asarray(rows, dtype=np.int64)
    changes: dict[str, Any] = {}
    for name in names:
        value = getattr(whole, name)
        if isinstance(value, list):
            changes[name] = [value[i] for i in at.tolist()]
        elif isinstance(value, Votes):
            changes[name] = value.take(at)
        elif value is not None:
            changes[name] = value[at]
    return replace(whole, **changes)


@dataclass(frozen=True)
class Listing:
    """The examples that a data format found, before images are decoded and parts are drawn."""

    ids: list[str]  # one id per example: its relative path, or its row
    labels: NDArray[np.int64] | None = None  # (N,) int64 class indices, or None if the data has no labels
    classes: list[str] = field(default_factory=list)  # class names, in the order of their indices
    paths: list[Path] | None = None  # image files, or None if `array` holds the images
    array: torch.Tensor | None = None  # (N, 3, S, S) uint8 decoded images
    texts: list[Text] | None = None  # texts, if the data holds no images
    vectors: Vectors | None = None  # feature vectors, if the data holds neither images nor texts
    # `train`, `val` or `test` for each example ("" for another part, if labels are not required), or None if
    # the data is not split.
    parts: list[str] | None = None
    flip: bool = True  # whether mirroring an image keeps its label (not for digits)
    votes: Votes | None = None  # annotators' votes, or None
    soft: NDArray[np.float64] | None = None  # (N, K) soft labels, or None
    # Ids of examples left out because they have neither label nor vote
    unlabelled: list[str] = field(default_factory=list)
    # If labels are not required, each example's label as written, "" if missing
    given: list[str] | None = None
    column_names: list[str] = field(default_factory=list)  # of a table
    notes: list[str] = field(default_factory=list)  # what was left out, changed or guessed, in sentences
    # {index: reason} of images in `array` that could not be decoded
    bad: dict[int, str] = field(default_factory=dict)
    split_values: list[str] | None = None  # values of the column by which the data is split, or None
    # (N, 16) digests of the images before they were resized to `array`; None: digests of `array`
    digests: Digests | None = None
    # (N,) int64 labels before `hesstune clean` replaced them, −1 if not a class; None if unknown
    before: NDArray[np.int64] | None = None
    label_sources: list[str] | None = None  # source of each label from the column `label_source`, or None
    # {column: number of distinct values} of columns that may group the examples
    groups: dict[str, int] = field(default_factory=dict)
    # (N,) group of each example, the same for copies of one example; None if not looked for
    copies: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: ArrayLike) -> Listing:
        """Return a listing of some of the examples."""
        own = ("ids", "labels", "paths", "array", "texts", "vectors", "parts", "votes", "soft", "given")
        made = _take(self, rows, (*own, "split_values", "digests", "before", "label_sources", "copies"))
        at = np.asarray(rows, dtype=np.int64).tolist() if self.bad else []
        return replace(made, bad={new: self.bad[row] for new, row in enumerate(at) if row in self.bad})


@dataclass(frozen=True)
class Examples:
    """A part of a data set: some rows of one source of images, texts or feature vectors.

    Attributes:
        source: The images, texts or feature vectors of the whole data set.
        rows: (N,) indices of this part's examples in the source.
        ids: One id per example.
        labels: (N,) int64 labels to train on, or None.
        true: (N,) int64 true labels if they are known to differ from `labels`, else None.
        votes: Annotators' votes, or None.
        soft: (N, K) float64 soft labels, or None.
        clean: (N,) whether a person has checked the label; None if no label was checked.
        given: (N,) int64 labels before they were checked, or None.
        given_soft: (N, K) soft labels before they were checked, or None.
        label_sources: Source of each label from the column `label_source`, or None.
        clean_by_chance: Whether the checked examples may be a random sample; suspected errors are none.
        copies: (N,) int64 group of each example, the same for copies of one example in the whole data; None
            if copies were not looked for.
    """

    source: ImageSource | Texts | Vectors
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
    clean_by_chance: bool = True
    copies: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """Return decoded images of some of this part's examples, uint8, (B, 3, S, S)."""
        assert not isinstance(self.source, Texts | Vectors)
        return self.source.batch(self.rows[indices])

    @property
    def texts(self) -> list[Text] | None:
        """This part's texts, or None if the examples are no texts."""
        return self.source.batch(self.rows) if isinstance(self.source, Texts) else None

    @property
    def vectors(self) -> Vectors | None:
        """This part's feature vectors, or None if the examples are images or texts."""
        return self.source[self.rows] if isinstance(self.source, Vectors) else None

    @property
    def kind(self) -> Kind:
        """What the examples are."""
        if isinstance(self.source, Texts | Vectors):
            return "text" if isinstance(self.source, Texts) else "features"
        return "image"

    def take(self, rows: ArrayLike) -> Examples:
        """Return some of this part's examples."""
        own = ("rows", "ids", "labels", "true", "votes", "soft", "clean", "given", "given_soft")
        return _take(self, rows, (*own, "label_sources", "copies"))

    def count_source(self, source: str) -> int:
        """Return the number of labels from one source, such as REWRITTEN."""
        return 0 if self.label_sources is None else self.label_sources.count(source)

    @property
    def has_model_labels(self) -> bool:
        """Whether a model is recorded to have made some labels or selected examples by their labels."""
        made = any(self.count_source(source) for source in MODEL_SOURCES)
        return self.votes is not None or self.soft is not None or made

    def relabelled(self, noisy: NDArray[np.int64]) -> Examples:
        """Return the examples with noisy labels; the present labels become the true ones."""
        return replace(self, labels=noisy, true=self.labels)


@dataclass(frozen=True)
class Task:
    """Training, validation and test examples of one classification task.

    Attributes:
        classes: Class names.
        train: Training examples.
        val: Validation examples; may be empty.
        test: Test examples; may be empty. Their labels are never corrupted.
        split: How the parts were drawn: `uniform`, `stratified`, `group`, `time` or `given`.
        flip: Whether mirroring keeps the label.
        skipped: (id, reason) of images left out because they could not be decoded.
        unlabelled: Ids of examples left out because they have neither label nor vote.
        notes: What was left out, changed or guessed when the data was read, in sentences.
        possible_groups: {column: number of distinct values} of columns that may group the examples, without
            the column by which the parts were drawn.
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
        """Whether the examples are texts."""
        return self.kind == "text"

    @property
    def kind(self) -> Kind:
        """What the examples are."""
        return self.train.kind

    @property
    def k(self) -> int:
        """The number of classes."""
        return len(self.classes)


SIDE, WORDS, BATCH = 8, 256, 256


def raw_features(examples: Examples) -> NDArray[np.float64]:
    """Return simple features, (N, D), for noise that depends on the example.

    Images are averaged to 8×8×3, texts become counts of hashed words, and vectors are scaled to one length.
    """
    if (vectors := examples.vectors) is not None:
        numbers = vectors.numbers(np.arange(len(vectors))).astype(np.float64)
        norms = np.linalg.norm(numbers, axis=1, keepdims=True)
        return np.asarray(numbers / np.maximum(norms, 1e-12) * np.sqrt(vectors.width))
    texts = examples.texts
    if texts is None:
        pooled = [torch.zeros((0, 3 * SIDE * SIDE))]
        for start in range(0, len(examples), BATCH):
            images = examples.images(np.arange(start, min(start + BATCH, len(examples)))).float()
            pooled.append(torch.nn.functional.adaptive_avg_pool2d(images, SIDE).flatten(1))
        return np.asarray((torch.cat(pooled).double().numpy() - 127.5) / 64.0)
    counts = np.zeros((len(examples), WORDS))
    for row, (first, second) in enumerate(texts):
        for word in f"{first} {second or ''}".lower().split():
            counts[row, zlib.crc32(word.encode()) % WORDS] += 1
    lengths = np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1)
    return np.asarray(counts / lengths * np.sqrt(WORDS))
