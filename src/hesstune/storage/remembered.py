"""Cache results that several runs compute from the same numbers."""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from hesstune.errors import RunError
from hesstune.storage.tensors import Tree, load_tree, save_tree

# Results kept in memory at most; the oldest give way.
MOST = 512
# Raised whenever what is kept, or how it is computed, changes.
FORMAT = 1


class _Results:
    """Results by key, in memory and, if there is one, in a folder that other processes read, too."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.held: OrderedDict[str, Tree] = OrderedDict()

    def get(self, key: str) -> Tree | None:
        """Return a result, or None; a damaged file is none."""
        if key in self.held:
            return self.held[key]
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            return self._keep(key, load_tree(path))
        except RunError:
            return None

    def put(self, key: str, made: Tree) -> None:
        """Keep a result; a folder that cannot be written to keeps none."""
        self._keep(key, made)
        path = self._path(key)
        if path is not None:
            with contextlib.suppress(RunError, OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                save_tree(path, made)

    @contextlib.contextmanager
    def claimed(self, key: str) -> Iterator[None]:
        """Hold a result's lock, if it is kept for other processes, too."""
        path = self._path(key)
        lock = None if path is None else FileLock(path.with_suffix(".lock"))
        if path is not None and lock is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire()
            except OSError:  # nothing can be kept there
                lock = None
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key}.result.safetensors"

    def _keep(self, key: str, made: Tree) -> Tree:
        self.held[key] = made
        while len(self.held) > MOST:
            self.held.popitem(last=False)
        return made


_ACTIVE: ContextVar[_Results | None] = ContextVar("remembered", default=None)


@contextlib.contextmanager
def remembering(folder: Path | None = None) -> Iterator[None]:
    """Let `remembered` cache results within this block; an inner block shares the cache of the outer one.

    Args:
        folder: Where they are kept for other processes; None keeps them in memory.
    """
    token = _ACTIVE.set(_ACTIVE.get() or _Results(folder))
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def remembered(what: str, arrays: Mapping[str, NDArray[Any] | None], make: Callable[[], Tree]) -> Tree:
    """Return the result of `make`, or its cached result for the same name and numbers.

    Args:
        what: What is computed, and all that it depends on beside the arrays.
        arrays: The numbers that it depends on; None is another value than any array.
        make: Returns nested dicts and lists of tensors, numbers, texts and None.

    Example:
        >>> import numpy as np
        >>> with remembering():
        ...     one = remembered("mean", {"x": np.ones(3)}, lambda: {"mean": 1.0})
        ...     remembered("mean", {"x": np.ones(3)}, lambda: {"mean": 2.0})
        {'mean': 1.0}
    """
    results = _ACTIVE.get()
    if results is None:
        return make()
    key = _key(what, arrays)
    found = results.get(key)
    if found is None:
        with results.claimed(key):  # another process may be computing it
            found = results.get(key)
            if found is None:
                found = make()
                results.put(key, found)
    return found


def _key(what: str, arrays: Mapping[str, NDArray[Any] | None]) -> str:
    made = hashlib.blake2b(f"{FORMAT} {what}".encode(), digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        made.update(f"\0{name}\0".encode())
        if array is not None:
            made.update(f"{array.dtype.str}{array.shape}".encode())
            made.update(np.ascontiguousarray(array).data)
    return made.hexdigest()
