"""Sources of the field's tasks: frozen features, true labels, human labels, votes.

Features are computed once and kept below the cache folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from data_files import PACS, cifar10n_lines, sentences
from hesstune.data.examples import Examples, Texts
from hesstune.data.images import FileImages
from hesstune.data.load import load_task
from hesstune.inputs.batches import to_channels_last
from hesstune.inputs.features import FeatureStore, frozen_features, sharing
from hesstune.models.load import LoadedModel, load_model
from hesstune.storage.tables import read_table
from hesstune.weak.vote_files import vote_columns, votes_in
from hesstune.weak.vote_sources import RoleColumns, apply_functions, votes_by_row
from hesstune.weak.votes import Votes

HUMAN = ("worse", "aggregate", "random1", "random2", "random3")
# Encoders that are compared on the same texts: MiniLM (22M weights), and all-mpnet-base-v2 (110M) in the
# folder that the environment variable MPNET names.
ENCODERS = ("minilm", "mpnet")
# Texts of each part in that comparison at most.
MOST = {"train": 500, "val": 50, "test": 500}
CHUNK = 256  # texts whose features are stored together


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


class MeanPooled(nn.Module):
    """A linear head on the mean of an encoder's token states, as all-mpnet-base-v2 was pretrained."""

    def __init__(self, folder: str, k: int) -> None:
        import transformers

        super().__init__()
        self.encoder = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False)
        self.head = nn.Linear(self.encoder.config.hidden_size, k)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask[..., None].to(states.dtype)
        logits: torch.Tensor = self.head((states * weight).sum(1) / weight.sum(1))
        return logits


@cache
def _encoder(name: str) -> LoadedModel:
    """Load one of ENCODERS."""
    if name == "minilm":
        return load_model("minilm", 2, text=True)
    import transformers

    folder = os.environ["MPNET"]
    return load_model(
        (MeanPooled(folder, 2), transformers.AutoTokenizer.from_pretrained(folder)), 2, text=True, head="head"
    )


@dataclass(frozen=True)
class _Texts:
    """A data set of texts, or of pairs of texts, before they have features; see `Source`."""

    classes: list[str]
    texts: list[tuple[str, str | None]]
    true: NDArray[np.int64]
    part: NDArray[np.str_]
    votes: Votes | None = None

    def some(self) -> _Texts:
        """Return at most MOST texts of each part, the same ones whatever the task's seed."""
        order = np.random.default_rng(0x7E47).permutation(len(self.texts))
        rows = np.sort(np.concatenate([order[self.part[order] == p][:most] for p, most in MOST.items()]))
        votes = None if self.votes is None else self.votes.take(rows)
        texts = [self.texts[at] for at in rows.tolist()]
        return _Texts(self.classes, texts, self.true[rows], self.part[rows], votes)


def _encoded(name: str, read: Callable[[Path], _Texts], encoder: str, capped: bool, data: Path) -> Source:
    """Return a data set of texts with an encoder's features, of at most 128 tokens."""
    found = read(data).some() if capped else read(data)
    every = np.arange(len(found.texts))
    examples = Examples(Texts(found.texts), every, [str(at) for at in every], None)
    parts = np.split(every, every[CHUNK::CHUNK]) if capped else [every]
    loaded, cpu = _encoder(encoder), torch.device("cpu")
    features = np.concatenate([frozen_features(loaded, examples.take(rows), cpu, 128) for rows in parts])
    texts = [" ".join(text for text in pair if text is not None) for pair in found.texts]
    return Source(name, found.classes, features, found.true, found.part, {}, found.votes, texts)


def _alone(texts: list[str]) -> list[tuple[str, str | None]]:
    return [(text, None) for text in texts]


def _own_split(data: Path, name: str) -> tuple[list[tuple[str, ...]], NDArray[np.int64], NDArray[np.str_]]:
    """Return the texts of SST-2 or MRPC, their labels and their parts."""
    rows = [(*row, part) for part in ("train", "test") for row in sentences(data, name, part)]
    return (
        [row[0] for row in rows],
        np.array([int(row[1]) for row in rows]),
        np.array([row[2] for row in rows]),
    )


def _wrench(name: str) -> Callable[[Path], _Texts]:
    def read(data: Path) -> _Texts:
        table = read_table(data / "wrench" / f"{name}.csv")
        classes = sorted(set(table.cells("label")))
        votes = votes_in(table, vote_columns(table), classes)
        true, part = _indexed(table.cells("label"), classes), np.array(table.cells("split"))
        return _Texts(classes, _alone(table.cells("text")), true, part, votes)

    return read


def _amazon(data: Path) -> _Texts:
    table = read_table(data / "amazon_isbook" / "texts.csv")
    crowd = read_table(data / "amazon_isbook" / "votes_long.csv")
    written = votes_by_row(crowd, RoleColumns())
    assert written is not None
    assert written.ids is not None
    classes = sorted(set(table.cells("label")))
    place = {name: at for at, name in enumerate(table.cells("id"))}
    rows = np.array([place[name] for name in written.ids])
    votes = written.votes(classes)[0].spread(rows, len(place))
    true, part = _indexed(table.cells("label"), classes), np.array(table.cells("split"))
    return _Texts(classes, _alone(table.cells("text")), true, part, votes)


def _sst2(data: Path) -> _Texts:
    from sentiment_rules import RULES

    found, true, parts = _own_split(data, "sst2")
    texts, classes = [text for (text,) in found], ["negative", "positive"]
    rules = [(rule.__name__, rule) for rule in RULES]
    votes = apply_functions(rules, [{"text": text} for text in texts], classes)
    return _Texts(classes, _alone(texts), true, parts, votes)


def _mrpc(data: Path) -> _Texts:
    found, true, parts = _own_split(data, "mrpc")
    return _Texts(["different", "same"], [(one, other) for one, other in found], true, parts)


TEXTS: dict[str, Callable[[Path], _Texts]] = {
    "youtube": _wrench("youtube"),
    "trec": _wrench("trec"),
    "amazon_isbook": _amazon,
    "sst2": _sst2,
    "mrpc": _mrpc,
}
SOURCES: dict[str, Callable[[Path], Source]] = {
    "digits": _digits,
    **{domain: _pacs(domain) for domain in PACS},
    "cifar10n": _cifar10n,
    **{name: partial(_encoded, name, read, "minilm", False) for name, read in TEXTS.items()},
    **{
        f"{name} {encoder}": partial(_encoded, f"{name} {encoder}", read, encoder, True)
        for name, read in TEXTS.items()
        for encoder in ENCODERS
    },
}


def source(name: str, data: Path) -> Source:
    """Return a data set, its features computed once and kept."""
    with sharing(FeatureStore(cache_folder() / "features")):
        return SOURCES[name](data)
