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

# Results kept in memory at most; the oldest are dropped first.
MOST = 512
# Raised whenever what is kept, or how it is computed, changes.
FORMAT = 2


class _Results:
    """Results by key: in memory and, if there is a folder, in files that other processes read, too."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.held: OrderedDict[str, Tree] = OrderedDict()

    def get(self, key: str) -> Tree | None:
        if (found := self.held.get(key)) is None and self.folder is not None:
            with contextlib.suppress(RunError):  # absent or damaged
                found = load_tree(self.folder / f"{key}.result.safetensors")
                self.held[key] = found
        return found

    def put(self, key: str, made: Tree) -> None:
        self.held[key] = made
        while len(self.held) > MOST:
            self.held.popitem(last=False)
        if self.folder is not None:
            with contextlib.suppress(RunError, OSError):  # nothing can be kept there
                save_tree(self.folder / f"{key}.result.safetensors", made)

    @contextlib.contextmanager
    def claimed(self, key: str) -> Iterator[None]:
        """Hold a result's lock, if it is kept for other processes, too."""
        with contextlib.ExitStack() as stack:
            if self.folder is not None:
                with contextlib.suppress(OSError):  # nothing can be kept there
                    self.folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(FileLock(self.folder / f"{key}.result.lock"))
            yield


_ACTIVE: ContextVar[_Results | None] = ContextVar("remembered", default=None)


@contextlib.contextmanager
def remembering(folder: Path | None = None) -> Iterator[None]:
    """Let `remembered` cache results within this block, in memory, or in a folder for other processes, too.

    An inner block shares the cache of the outer one.
    """
    token = _ACTIVE.set(_ACTIVE.get() or _Results(folder))
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def remembered(what: str, arrays: Mapping[str, NDArray[Any] | None], make: Callable[[], Tree]) -> Tree:
    """Return the result of `make`, nested dicts and lists of tensors and plain values, or its cached result.

    It is cached by the name of what is computed and by the numbers that it depends on; None is another value
    than any array.
    """
    results = _ACTIVE.get()
    if results is None:
        return make()
    made = hashlib.blake2b(f"{FORMAT} {what}".encode(), digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        made.update(f"\0{name}\0".encode())
        if array is not None:
            made.update(f"{array.dtype.str}{array.shape}".encode())
            made.update(np.ascontiguousarray(array).data)
    key = made.hexdigest()
    if (found := results.get(key)) is None:
        with results.claimed(key):  # another process may be computing it
            if (found := results.get(key)) is None:
                found = make()
                results.put(key, found)
    return found
