"""Features: what the head of a frozen network is given, computed once and stored by content."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import nn

from hesstune.data.examples import Examples
from hesstune.data.images import FileImages
from hesstune.errors import ModelError, RunError
from hesstune.forward import Inputs, evaluating, logits_of
from hesstune.inputs.batches import EVAL_BATCH, ModelInputs, batches_of, in_order, make_inputs
from hesstune.models.load import LoadedModel
from hesstune.models.networks import tokenizer_digest
from hesstune.reference import in_modules
from hesstune.runtime.device import torch_threads
from hesstune.storage.tensors import digest, digest_of_texts, load_tree, save_tree


class FeatureInputs:
    """Features in front of the head, computed once."""

    def __init__(self, features: torch.Tensor) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    @property
    def lengths(self) -> None:
        """None: all are alike."""

    def start_epoch(self, epoch: int) -> None:
        """Do nothing: features are the same in every epoch."""

    def inputs(self, indices: NDArray[np.int64], augment: bool = False, view: int = 0) -> torch.Tensor:
        """Return features, (B, D); they are the same in every view."""
        return self.features[torch.from_numpy(indices).to(self.features.device)]


@torch.no_grad()
def cached_features(
    model: nn.Module, heads: Sequence[nn.Module], feed: ModelInputs, rows: NDArray[np.int64] | None = None
) -> FeatureInputs | None:
    """Compute the inputs of the head for every example, or for some, in eval mode.

    Args:
        model: The network.
        heads: Its classifier, or all layers that its logits are made of: their inputs are concatenated.
        feed: The network's inputs.
        rows: Which examples, ascending; all where None.

    Returns:
        The features, or None if the one head is not the network's last operation on them, so that
        features alone do not determine the logits, or if a head has other inputs than one row an example.
    """
    seen: list[torch.Tensor] = []
    handles = [h.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach())) for h in heads]
    parts: list[torch.Tensor] = []
    batches = batches_of(feed, np.arange(len(feed)) if rows is None else rows, EVAL_BATCH)
    try:
        with evaluating(model):
            for indices in batches:
                seen.clear()
                logits_of(model, feed.inputs(indices))
                if len(seen) != len(heads) or any(x.ndim != 2 or len(x) != len(indices) for x in seen):
                    return None
                one = heads[0] if len(heads) == 1 else None
                row, features = feed.inputs(indices[:2]), torch.cat(seen, dim=1)
                if not parts and one is not None and not _determines(model, one, row):
                    return None
                parts.append(features)
    finally:
        for handle in handles:
            handle.remove()
    return FeatureInputs(in_order(parts, batches) if parts else torch.zeros((0, 1)))


def _determines(model: nn.Module, head: nn.Module, inputs: Inputs) -> bool:
    """Tell whether the logits are the head's own output, whatever its weights: a zero head hides it."""
    seen: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    kept = [p.detach().clone() for p in head.parameters()]
    generator = torch.Generator().manual_seed(0)
    try:
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=generator).to(p))
        logits = logits_of(model, inputs)
        return len(seen) == 1 and torch.equal(_apply(head, seen[0]), logits)
    finally:
        handle.remove()
        for p, value in zip(head.parameters(), kept, strict=True):
            p.copy_(value)


def _apply(head: nn.Module, features: torch.Tensor) -> torch.Tensor:
    # Without the hook's recording: the module's own forward.
    result: torch.Tensor = type(head).forward(head, features)
    return result


# Raised whenever what is stored, or how it is computed, changes.
FORMAT = "2"
MOST_MIB = 2048

_ACTIVE: ContextVar[FeatureStore | None] = ContextVar("feature_store", default=None)


class FeatureStore:
    """What the head of a network is given for each image or text: each row computed once.

    Rows are known by content: of the network without its head (weights, kinds of modules, precision, kind
    of device), of its normalisation or its tokenizer and longest input, and of the images (pixels, or
    bytes of files and the size they are brought to) or texts. A changed image or weight is never served.

    Rows are computed when they are first needed, in the batches that a head's own training takes. The last
    digits of a row depend on its batch: where another part of the same data came first, its rows keep the
    digits they had there.

    Args:
        folder: Where rows are kept, under a lock, so that several processes share them; made when needed.
            None keeps them in memory alone.
        most_mib: Memory for rows at most; the oldest data set gives way, and without a folder its rows
            are computed again.
        threads: Threads of arithmetic that compute rows, where the process has fewer: other processes of the
            folder wait for the same rows meanwhile. None: as many as the process has.

    Attributes:
        computed: How many rows this store has computed.

    Raises:
        RunError: On use, if the folder cannot be written to.

    Example:
        >>> import hesstune as ht
        >>> head = {"data": "digits", "train": "head", "epochs": 1, "image_size": 32, "limit": 64}
        >>> with sharing(FeatureStore()) as store:
        ...     run = ht.finetune(head, inject_noise="symmetric:0.2", method="robust")
        >>> store.computed == sum(run.record["examples"].values())
        True
    """

    def __init__(
        self, folder: Path | None = None, most_mib: int = MOST_MIB, threads: int | None = None
    ) -> None:
        self.folder = folder
        self.computed = 0
        self._most, self._threads = most_mib * 2**20, threads
        self._memory: OrderedDict[str, _Features] = OrderedDict()
        # Sources without a digest, kept so that no other object gets their ids.
        self._nameless: dict[int, object] = {}

    def rows(
        self,
        loaded: LoadedModel,
        parts: Mapping[str, Examples],
        feeds: Mapping[str, ModelInputs],
        max_length: int,
    ) -> dict[str, torch.Tensor] | None:
        """Return the features of each part, (N, D) on the CPU, computing the rows that are missing.

        Returns:
            The rows, or None where features alone do not determine the logits (see `cached_features`).
        """
        network = _network_digest(loaded, max_length)
        found, keys = {}, dict[int, _Key]()
        for name, feed in feeds.items():
            part = parts[name]
            if not len(part):
                found[name] = torch.zeros((0, 1))
                continue
            if id(part.source) not in keys:  # parts share one, and hashing it takes a while
                keys[id(part.source)] = self._key(network, part.source)
            table = self._table(keys[id(part.source)], loaded, part, feed)
            if table is None:
                return None
            found[name] = table.features[torch.from_numpy(table.places(part.rows))]
        return found

    def _table(self, key: _Key, loaded: LoadedModel, part: Examples, feed: ModelInputs) -> _Features | None:
        """Return a table with all of a part's rows."""
        table = self._memory.get(key.text, _Features())
        if not table.holds(part.rows).all():
            made = self._completed(key, table, loaded, part, feed)
            if made is None:
                return None
            table = made
            self._keep(key.text, table)
        return table

    def _completed(
        self, key: _Key, table: _Features, loaded: LoadedModel, part: Examples, feed: ModelInputs
    ) -> _Features | None:
        """Take what other processes have computed, compute the rest of a part, and write it back."""
        with self._locked(key) as path:
            if path is not None:
                table = _read(path)
            missing = np.flatnonzero(~table.holds(part.rows))
            if len(missing):
                heads = [loaded.model.get_submodule(name) for name in loaded.heads]
                with torch_threads(self._threads):
                    found = cached_features(loaded.model, heads, feed, missing)
                if found is None:
                    return None
                self.computed += len(missing)
                table = table.joined(part.rows[missing], found.features.cpu())
                if path is not None:
                    save_tree(path, {"rows": torch.from_numpy(table.rows), "features": table.features})
        return table

    @contextlib.contextmanager
    def _locked(self, key: _Key) -> Iterator[Path | None]:
        """Hold the lock of one file of the folder; yield its path, or None where nothing is kept."""
        if self.folder is None or not key.lasting:
            yield None
            return
        lock = FileLock(self.folder / f"{key.text}.lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"cannot keep features in {self.folder}: {reason}") from error
        try:
            yield self.folder / f"{key.text}.safetensors"
        finally:
            lock.release()

    def _key(self, network: str, source: object) -> _Key:
        found = getattr(source, "digest", None)
        if found is None:
            self._nameless[id(source)] = source
        size = source.size if isinstance(source, FileImages) else ""
        contents = f"object {id(source)}" if found is None else f"{type(source).__name__} {size} {found}"
        return _Key(digest_of_texts((FORMAT, network, contents)), found is not None)

    def _keep(self, key: str, table: _Features) -> None:
        self._memory.pop(key, None)
        self._memory[key] = table
        while sum(kept.features.nbytes for kept in self._memory.values()) > self._most:
            self._memory.popitem(last=False)


class _Key(NamedTuple):
    """What tells one network's features of one source from all others."""

    text: str
    # Whether another process would say the same.
    lasting: bool


@dataclass(frozen=True)
class _Features:
    """Some rows of one source, by ascending index."""

    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    features: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 1))

    def places(self, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where the wanted rows are, or would be."""
        return np.minimum(np.searchsorted(self.rows, wanted), max(len(self.rows) - 1, 0))

    def holds(self, wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which of the wanted rows are here."""
        if not len(self.rows):
            return np.zeros(len(wanted), dtype=bool)
        return np.asarray(self.rows[self.places(wanted)] == wanted)

    def joined(self, rows: NDArray[np.int64], features: torch.Tensor) -> _Features:
        """Return the table with other rows as well."""
        every = np.concatenate([self.rows, rows])
        order = np.argsort(every, kind="stable")
        values = torch.cat([self.features, features]) if len(self.rows) else features
        return _Features(every[order], values[torch.from_numpy(order)])


def _read(path: Path) -> _Features:
    """Read a table; none where there is no file, or a damaged one, which is computed anew."""
    try:
        tree = load_tree(path) if path.is_file() else None
    except RunError:
        tree = None
    return _Features() if tree is None else _Features(tree["rows"].numpy(), tree["features"])


def _network_digest(loaded: LoadedModel, max_length: int) -> str:
    """Return a checksum of all that makes features of inputs: not of the head."""
    tensors = {**dict(loaded.model.named_parameters()), **dict(loaded.model.named_buffers())}
    modules = [
        f"{name} {type(module).__module__}.{type(module).__qualname__}"
        for name, module in loaded.model.named_modules()
        if not in_modules(f"{name}.", loaded.heads)
    ]
    device = next(loaded.model.parameters()).device.type
    made_of = [device, f"{loaded.mean} {loaded.std}", *modules]
    if loaded.tokenizer is not None:
        made_of += [str(max_length), tokenizer_digest(loaded.tokenizer)]
    return digest({n: t for n, t in tensors.items() if not in_modules(n, loaded.heads)}, "\n".join(made_of))


@contextlib.contextmanager
def sharing(store: FeatureStore | None = None) -> Iterator[FeatureStore]:
    """Let all that needs features in this block, and in this thread, take them from one store.

    Args:
        store: None is the store that is shared already, or else one in memory for the block.
    """
    store = store or _ACTIVE.get() or FeatureStore()
    token = _ACTIVE.set(store)
    try:
        yield store
    finally:
        _ACTIVE.reset(token)


def features_of(
    loaded: LoadedModel, parts: Mapping[str, Examples], feeds: Mapping[str, ModelInputs], max_length: int
) -> dict[str, ModelInputs] | None:
    """Return the inputs of the head for every part, from the shared store where there is one.

    Returns None where the features alone do not determine the logits, as with several classifiers.
    """
    if loaded.other_heads:
        return None
    found = (_ACTIVE.get() or FeatureStore()).rows(loaded, parts, feeds, max_length)
    device = next(loaded.model.parameters()).device
    return None if found is None else {name: FeatureInputs(rows.to(device)) for name, rows in found.items()}


def frozen_features(
    loaded: LoadedModel, examples: Examples, device: torch.device, max_length: int = 128
) -> NDArray[np.float32]:
    """Return the inputs of the network's head, (N, D) float32, in eval mode, from the shared store.

    Raises:
        ModelError: If the head is not the network's last operation, so that it has no features.
    """
    feed = make_inputs(examples, loaded, device, max_length=max_length)
    found = (_ACTIVE.get() or FeatureStore()).rows(loaded, {"": examples}, {"": feed}, max_length)
    if found is None:
        raise ModelError(
            "the head is not the network's last operation on its features, so there are no features to work "
            "with; use another model, or give --noise-matrix a rate or a file"
        )
    return found[""].float().numpy()
