"""Features: the inputs of the head of a frozen network, computed once and stored by content."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

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

# Raised whenever what is stored, or how it is computed, changes.
FORMAT = "3"
MOST_MIB = 2048
# So many rows of a cache are computed again when its file is read; they may differ by a share of their norm.
# An edited `forward` of a user's network, or another version of its library, has the same key.
CHECKED_ROWS, TOLERANCE = 4, 1e-3
# The environment variable that names the user's cache; if it is empty, nothing is kept there.
CACHE = "HESSTUNE_CACHE"


class FeatureInputs(ModelInputs):
    """Features as inputs of the head; they are the same in every epoch and view."""

    def __init__(self, features: torch.Tensor) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def inputs(self, indices: NDArray[np.int64], augment: bool = False, view: int = 0) -> torch.Tensor:
        """Return features, (B, D)."""
        return self.features[torch.from_numpy(indices).to(self.features.device)]


@torch.no_grad()
def cached_features(
    model: nn.Module, heads: Sequence[nn.Module], feed: ModelInputs, rows: NDArray[np.int64] | None = None
) -> FeatureInputs | None:
    """Compute the inputs of the head for every example, or for some, in eval mode; several side by side.

    None is returned if they do not determine the logits: a single head is not the network's last operation,
    or a head has other inputs than one row per example.
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
                features = torch.cat(seen, dim=1)
                if (
                    not parts
                    and len(heads) == 1
                    and not _determines(model, heads[0], feed.inputs(indices[:2]))
                ):
                    return None
                parts.append(features)
    finally:
        for handle in handles:
            handle.remove()
    return FeatureInputs(in_order(parts, batches) if parts else torch.zeros((0, 1)))


def _determines(model: nn.Module, head: nn.Module, inputs: Inputs) -> bool:
    """Tell whether the logits are the head's own output, with random weights: a head may be zero."""
    seen: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    kept = [p.detach().clone() for p in head.parameters()]
    generator = torch.Generator().manual_seed(0)
    try:
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=generator).to(p))
        logits = logits_of(model, inputs)
        # The module's own forward does not call the hook.
        return len(seen) == 1 and torch.equal(type(head).forward(head, seen[0]), logits)
    finally:
        handle.remove()
        for p, value in zip(head.parameters(), kept, strict=True):
            p.copy_(value)


@dataclass(frozen=True)
class _Features:
    """Features of some rows of one source, by ascending index."""

    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    features: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 1))

    @classmethod
    def read(cls, path: Path) -> _Features:
        """Read a file; no rows if it is missing, or damaged: these are computed again."""
        try:
            tree = load_tree(path) if path.is_file() else None
        except RunError:
            tree = None
        return cls() if tree is None else cls(tree["rows"].numpy(), tree["features"])

    def missing(self, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of wanted rows that are not here."""
        return np.flatnonzero(~np.isin(wanted, self.rows))

    def take(self, wanted: NDArray[np.int64]) -> torch.Tensor:
        """Return the features of rows that are here, (N, D)."""
        return self.features[torch.from_numpy(np.searchsorted(self.rows, wanted))]

    def joined(self, rows: NDArray[np.int64], features: torch.Tensor) -> _Features:
        """Return the table with other rows as well."""
        every = np.concatenate([self.rows, rows])
        order = np.argsort(every, kind="stable")
        values = torch.cat([self.features, features]) if len(self.rows) else features
        return _Features(every[order], values[torch.from_numpy(order)])


_ACTIVE: ContextVar[FeatureStore | None] = ContextVar("feature_store", default=None)


class FeatureStore:
    """The inputs of a network's head for each image or text: each row is computed once.

    Rows are stored by content: of the network without its head (weights, kinds of modules, precision, kind
    of device), of its normalisation or its tokenizer and longest input, and of the images (pixels, or bytes
    of files and the size they are brought to) or texts. Changed images and weights have rows of their own;
    rows of a source without a digest are not stored.

    Rows are computed when they are first needed, in the batches of a head's own training. The last digits of
    a row depend on its batch: rows that another part of the data computed first keep their digits.

    Several processes share the rows in a folder, under a lock; without one they are kept in memory only.
    Beyond `most_mib` of memory the oldest data set is dropped. At least `threads` threads compute rows, since
    other processes of the folder wait for them. `computed` counts the rows that this store has computed, and
    `read` the files with rows that it found. RunError is raised if the folder cannot be written to.

    A `cache` outlives its block: beyond `most_mib` of files, those not used for longest are deleted, and rows
    that cannot be written are kept in memory only. A few rows are compared with the network's present
    features; if they differ, all are computed again.

    Example:
        >>> import hesstune as ht
        >>> head = {"data": "digits", "train": "head", "epochs": 1, "image_size": 32, "limit": 64}
        >>> with sharing(FeatureStore()) as store:
        ...     run = ht.finetune(head, inject_noise="symmetric:0.2", method="robust")
        >>> store.computed == sum(run.record["examples"].values())
        True
    """

    def __init__(
        self,
        folder: Path | None = None,
        most_mib: int = MOST_MIB,
        threads: int | None = None,
        *,
        cache: bool = False,
    ) -> None:
        self.folder = folder
        self.computed = self.read = 0
        self._cache = cache
        self._most, self._threads = most_mib * 2**20, threads
        self._memory: OrderedDict[str, _Features] = OrderedDict()

    def rows(
        self,
        loaded: LoadedModel,
        parts: Mapping[str, Examples],
        feeds: Mapping[str, ModelInputs],
        max_length: int,
    ) -> dict[str, torch.Tensor] | None:
        """Return the features of each part, (N, D) on the CPU; None if they do not determine the logits."""
        network = _network_digest(loaded, max_length)
        found, keys = {}, dict[int, str | None]()
        for name, feed in feeds.items():
            part = parts[name]
            if not len(part) or part.vectors is not None:  # vectors are features
                given = None if part.vectors is None else part.vectors.batch(np.arange(len(part)))
                found[name] = torch.zeros((0, 1)) if given is None or not len(part) else given
                continue
            if id(part.source) not in keys:  # parts share one, and hashing it takes a while
                keys[id(part.source)] = _key(network, part.source)
            table = self._completed(keys[id(part.source)], loaded, part, feed)
            if table is None:
                return None
            found[name] = table.take(part.rows)
        return found

    def said(self) -> list[str]:
        """Return a sentence on where rows come from, for the user; none if no folder had any."""
        if not self.read or self.folder is None:
            return []
        computed = f"{self.computed:,} computed, the others" if self.computed else "all"
        return [f"Features: {computed} read from {self.folder} ({CACHE}= computes them anew)."]

    def _completed(
        self, key: str | None, loaded: LoadedModel, part: Examples, feed: ModelInputs
    ) -> _Features | None:
        """Return a table with all rows of a part: from memory, the folder, or computed and written there."""
        table = self._memory.get(key or "", _Features())
        if not len(table.missing(part.rows)):
            return table
        with self._locked(key) as path:
            if path is not None:
                table = _Features.read(path)
                if self._cache and self._is_stale(table, loaded, part, feed):
                    table = _Features()
            missing = table.missing(part.rows)
            if path is not None and len(missing) < len(part.rows):
                self.read += 1
                with contextlib.suppress(OSError):  # it cannot be changed, or another process deleted it
                    os.utime(path)
            if len(missing):
                heads = [loaded.model.get_submodule(name) for name in loaded.heads]
                with torch_threads(self._threads):
                    made = cached_features(loaded.model, heads, feed, missing)
                if made is None:
                    return None
                self.computed += len(missing)
                table = table.joined(part.rows[missing], made.features.cpu())
                if path is not None:
                    self._write(path, table)
        if key is not None:
            self._memory.pop(key, None)
            self._memory[key] = table
        while sum(kept.features.nbytes for kept in self._memory.values()) > self._most:
            self._memory.popitem(last=False)
        return table

    @staticmethod
    def _is_stale(table: _Features, loaded: LoadedModel, part: Examples, feed: ModelInputs) -> bool:
        """Tell whether the network has other features than the table, for a few of the rows that it has."""
        known = np.flatnonzero(np.isin(part.rows, table.rows))
        if not len(known):
            return False
        some = known[:: -(-len(known) // CHECKED_ROWS)]
        heads = [loaded.model.get_submodule(name) for name in loaded.heads]
        made = cached_features(loaded.model, heads, feed, some)
        stored = table.take(part.rows[some]).float()
        if made is None or made.features.shape != stored.shape:
            return True
        error = torch.linalg.vector_norm(made.features.cpu().float() - stored)
        return not bool(error <= TOLERANCE * torch.linalg.vector_norm(stored))

    def _write(self, path: Path, table: _Features) -> None:
        """Write a table; in a cache, delete those not used for longest beyond `most_mib` of files."""
        tree = {"rows": torch.from_numpy(table.rows), "features": table.features}
        if not self._cache:
            save_tree(path, tree)
        elif table.features.nbytes <= self._most:
            with contextlib.suppress(RunError, OSError):  # a full disk, or deleted by another process
                save_tree(path, tree)
                others = (one for one in path.parent.glob("*.safetensors") if one != path)
                room = self._most - path.stat().st_size
                for one in sorted(others, key=lambda one: -one.stat().st_mtime):
                    room -= one.stat().st_size
                    if room < 0:
                        one.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, key: str | None) -> Iterator[Path | None]:
        """Hold the lock of one file of the folder; yield its path, or None if nothing is stored."""
        if self.folder is None or key is None:
            yield None
            return
        lock = FileLock(self.folder / f"{key}.lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            if self._cache:
                yield None
                return
            reason = error.strerror or error
            raise RunError(f"cannot keep features in {self.folder}: {reason}") from error
        try:
            yield self.folder / f"{key}.safetensors"
        finally:
            lock.release()


def _key(network: str, source: object) -> str | None:
    """Return the name of a network's features of a source; None if the source has no digest."""
    found = getattr(source, "digest", None)
    size = repr(source.size) if isinstance(source, FileImages) else ""
    contents = f"{type(source).__name__} {size} {found}"
    return None if found is None else digest_of_texts((FORMAT, network, contents))


def _network_digest(loaded: LoadedModel, max_length: int) -> str:
    """Return a checksum of all that features depend on: the network, but not its head, and preprocessing."""
    tensors = {**dict(loaded.model.named_parameters()), **dict(loaded.model.named_buffers())}
    modules = [
        f"{name} {type(module).__module__}.{type(module).__qualname__} {module.extra_repr()}"
        for name, module in loaded.model.named_modules()
        if not in_modules(f"{name}.", loaded.heads)
    ]
    device = next(loaded.model.parameters()).device.type
    made_of = [torch.__version__, device, f"{loaded.mean} {loaded.std}{' bgr' * loaded.bgr}", *modules]
    if loaded.tokenizer is not None:
        made_of += [str(max_length), tokenizer_digest(loaded.tokenizer)]
    return digest({n: t for n, t in tensors.items() if not in_modules(n, loaded.heads)}, "\n".join(made_of))


def user_cache() -> Path | None:
    """Return the folder of features that later commands read; None if CACHE is empty or there is no home."""
    if (asked := os.environ.get(CACHE)) is not None:
        return Path(asked).absolute() / "features" if asked else None
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # as in a container whose user is in no table of users
        return None
    return base.absolute() / "hesstune" / "features"


@contextlib.contextmanager
def sharing(store: FeatureStore | None = None) -> Iterator[FeatureStore]:
    """Take all features that are needed within this block, and in this thread, from one store.

    Default: the store that is shared already, or else the user's cache (`user_cache`).
    """
    store = store or _ACTIVE.get() or FeatureStore(user_cache(), cache=True)
    token = _ACTIVE.set(store)
    try:
        yield store
    finally:
        _ACTIVE.reset(token)


def features_of(
    loaded: LoadedModel, parts: Mapping[str, Examples], feeds: Mapping[str, ModelInputs], max_length: int
) -> dict[str, ModelInputs] | None:
    """Return the inputs of the head for every part, from the shared store if there is one.

    Returns None if features alone do not determine the logits, as with several classifiers.
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

    The network is moved to the device. ModelError is raised if the head is not the network's last operation,
    so that it has no features.
    """
    loaded.model.to(device)
    feed = make_inputs(examples, loaded, device, max_length=max_length)
    found = (_ACTIVE.get() or FeatureStore()).rows(loaded, {"": examples}, {"": feed}, max_length)
    if found is None:
        raise ModelError(
            "the head is not the network's last operation on its features, so there are no features to work "
            "with; use another model, or give --noise-matrix a rate or a file"
        )
    return found[""].float().numpy()
