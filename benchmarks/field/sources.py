"""Sources of the field's tasks: frozen features, true labels, human labels, votes.

Features are computed once and kept below the cache folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from data_files import PACS, cifar10n_lines, sentences
from hesstune.data.examples import Examples, Texts
from hesstune.data.images import FileImages
from hesstune.data.load import load_task
from hesstune.inputs.batches import to_channels_last
from hesstune.inputs.features import FeatureStore, frozen_features, sharing
from hesstune.models.load import load_model
from hesstune.storage.tables import read_table
from hesstune.weak.vote_files import vote_columns, votes_in
from hesstune.weak.vote_sources import RoleColumns, apply_functions, votes_by_row
from hesstune.weak.votes import Votes

HUMAN = ("worse", "aggregate", "random1", "random2", "random3")


def cache_folder() -> Path:
    """Return the folder for features: $XDG_CACHE_HOME/hesstune, or ~/.cache/hesstune."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hesstune"


def image_features(paths: Sequence[Path], image_size: int = 96) -> NDArray[np.float32]:
    """Return EfficientNet-Lite0's features of image files, (N, D); they are stored in the cache folder."""
    loaded, device = load_model("efficientnet_lite0", 2), torch.device("cpu")
    to_channels_last(loaded.model, device)
    source = FileImages(paths, image_size)
    examples = Examples(source, np.arange(len(paths)), [str(path) for path in paths], None)
    with sharing(FeatureStore(cache_folder() / "features")):
        return frozen_features(loaded, examples, device)


@dataclass(frozen=True)
class Source:
    """A data set before anything is drawn from it.

    Attributes:
        name: Its name.
        classes: Class names, sorted.
        features: (N, D) float32 frozen features: EfficientNet-Lite0's, or MiniLM's of texts.
        true: (N,) true labels.
        part: (N,) `train` or `test` if the data set has its own split, else empty.
        given: Labels of people, by name, (N,).
        votes: Votes of annotators or labeling functions, or None.
        texts: The texts, or None.
    """

    name: str
    classes: list[str]
    features: NDArray[np.float32]
    true: NDArray[np.int64]
    part: NDArray[np.str_]
    given: dict[str, NDArray[np.int64]]
    votes: Votes | None = None
    texts: list[str] | None = None

    @property
    def k(self) -> int:
        """Number of classes."""
        return len(self.classes)


def _indexed(cells: Iterable[str], classes: list[str]) -> NDArray[np.int64]:
    return np.array([classes.index(cell) for cell in cells], dtype=np.int64)


def _digits(_: Path) -> Source:
    task = load_task("digits", size=64, seed=0)
    loaded, device = load_model("efficientnet_lite0", 10), torch.device("cpu")
    parts = [task.train, task.val, task.test]
    rows = np.concatenate([part.rows for part in parts])
    features = np.concatenate([frozen_features(loaded, part, device) for part in parts])
    labels = np.concatenate([part.labels for part in parts if part.labels is not None])
    order = np.argsort(rows)
    return Source("digits", list(task.classes), features[order], labels[order], _no_split(len(rows)), {})


def _no_split(n: int) -> NDArray[np.str_]:
    return np.full(n, "", dtype="<U5")


def _pacs(domain: str) -> Callable[[Path], Source]:
    def read(data: Path) -> Source:
        root = data / "pacs128" / domain
        classes = sorted(path.name for path in root.iterdir() if path.is_dir())
        files = [sorted((root / name).glob("*.*")) for name in classes]
        true = np.repeat(np.arange(len(classes)), [len(own) for own in files])
        features = image_features([path for own in files for path in own])
        return Source(domain, classes, features, true, _no_split(len(true)), {})

    return read


def _cifar10n(data: Path) -> Source:
    table = pd.DataFrame(cifar10n_lines(data / "cifar10n"))
    classes = sorted(set(table["true_label"]))
    features = image_features([Path(cell) for cell in table["image"]])
    given = {name: _indexed(table[name], classes) for name in HUMAN}
    # Of annotators 2 and 3 the wrong one, if one is wrong: about 31 % noise, for development.
    second, third = given["random2"], given["random3"]
    given["worse2"] = np.where(second == _indexed(table["true_label"], classes), third, second)
    three = ("random1", "random2", "random3")
    votes = Votes(np.stack([given[name] for name in three], axis=1), len(classes), names=three)
    true, part = _indexed(table["true_label"], classes), table["split"].to_numpy(str)
    return Source("cifar10n", classes, features, true, part, given, votes)


def _text_features(texts: list[str], others: list[str] | None = None) -> NDArray[np.float32]:
    """Return MiniLM's features of texts, or of pairs of texts."""
    pairs = [(text, others[at] if others else None) for at, text in enumerate(texts)]
    named = [str(at) for at in range(len(texts))]
    examples = Examples(Texts(pairs), np.arange(len(texts)), named, None)
    return frozen_features(load_model("minilm", 2, text=True), examples, torch.device("cpu"), 128)


def _own_split(data: Path, name: str) -> tuple[list[tuple[str, ...]], NDArray[np.int64], NDArray[np.str_]]:
    """Return the texts of SST-2 or MRPC, their labels and their parts."""
    rows = [(*row, part) for part in ("train", "test") for row in sentences(data, name, part)]
    return (
        [row[0] for row in rows],
        np.array([int(row[1]) for row in rows]),
        np.array([row[2] for row in rows]),
    )


def _wrench(name: str) -> Callable[[Path], Source]:
    def read(data: Path) -> Source:
        table = read_table(data / "wrench" / f"{name}.csv")
        classes = sorted(set(table.cells("label")))
        votes = votes_in(table, vote_columns(table), classes)
        texts = table.cells("text")
        true, part = _indexed(table.cells("label"), classes), np.array(table.cells("split"))
        return Source(name, classes, _text_features(texts), true, part, {}, votes, texts)

    return read


def _amazon(data: Path) -> Source:
    table = read_table(data / "amazon_isbook" / "texts.csv")
    crowd = read_table(data / "amazon_isbook" / "votes_long.csv")
    written = votes_by_row(crowd, RoleColumns())
    assert written is not None
    assert written.ids is not None
    classes = sorted(set(table.cells("label")))
    place = {name: at for at, name in enumerate(table.cells("id"))}
    rows = np.array([place[name] for name in written.ids])
    votes = written.votes(classes)[0].spread(rows, len(place))
    texts = table.cells("text")
    true, part = _indexed(table.cells("label"), classes), np.array(table.cells("split"))
    return Source("amazon_isbook", classes, _text_features(texts), true, part, {}, votes, texts)


def _sst2(data: Path) -> Source:
    from sentiment_rules import RULES

    found, true, parts = _own_split(data, "sst2")
    texts, classes = [text for (text,) in found], ["negative", "positive"]
    rules = [(rule.__name__, rule) for rule in RULES]
    votes = apply_functions(rules, [{"text": text} for text in texts], classes)
    return Source("sst2", classes, _text_features(texts), true, parts, {}, votes, texts)


def _mrpc(data: Path) -> Source:
    found, true, parts = _own_split(data, "mrpc")
    features = _text_features([one for one, _ in found], [other for _, other in found])
    return Source(
        "mrpc", ["different", "same"], features, true, parts, {}, None, [" ".join(p) for p in found]
    )


SOURCES: dict[str, Callable[[Path], Source]] = {
    "digits": _digits,
    **{domain: _pacs(domain) for domain in PACS},
    "cifar10n": _cifar10n,
    "youtube": _wrench("youtube"),
    "trec": _wrench("trec"),
    "amazon_isbook": _amazon,
    "sst2": _sst2,
    "mrpc": _mrpc,
}


def source(name: str, data: Path) -> Source:
    """Return a data set, its features computed once and kept."""
    with sharing(FeatureStore(cache_folder() / "features")):
        return SOURCES[name](data)
