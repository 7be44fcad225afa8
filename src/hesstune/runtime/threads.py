"""Linear algebra in one thread: numpy's and scipy's own threads wait for each other on small matrices.

Both bring an OpenBLAS of their own, whose threads keep a core busy while they wait. A fit that calls the one
and the other in turn then takes up to thirty times as long on two cores as on one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from threading import Lock
from typing import Protocol, TypeVar

import torch
from threadpoolctl import OpenBLASController, threadpool_limits

__all__ = ["one_thread", "one_thread_each", "torch_threads"]

MOST_WORKERS = 8

A = TypeVar("A")
B = TypeVar("B")


class _Limit:
    """The limit of this process: the first that asks sets it, the last that leaves lifts it.

    Were each to set and lift its own, threads that overlap would leave the limit behind for good. Newer
    versions of threadpoolctl let the one thread that set a limit lift it: what bars the others is cleared.
    """

    def __init__(self) -> None:
        self.lock, self.users = Lock(), 0
        self.held: threadpool_limits | None = None

    def enter(self) -> None:
        with self.lock:
            if self.users == 0:
                self.held = threadpool_limits(1, user_api="blas")
            self.users += 1

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0 and self.held is not None:
                clear = getattr(OpenBLASController, "clear_controlling_thread", lambda force: None)
                clear(force=True)
                self.held.restore_original_limits()
                clear(force=True)
                self.held = None


_LIMIT = _Limit()


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold numpy's and scipy's linear algebra to one thread; also a decorator, `@one_thread()`.

    Threads of torch are left as they are. The limit is the process's, while any of its threads is in here.

    Example:
        >>> import numpy as np
        >>> with one_thread():
        ...     float(np.eye(2).sum())
        2.0
    """
    _LIMIT.enter()
    try:
        yield
    finally:
        _LIMIT.leave()


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch compute with `count` threads while this lasts; None leaves them as they are.

    Example:
        >>> before = torch.get_num_threads()
        >>> with torch_threads(3):
        ...     torch.get_num_threads()
        3
        >>> torch.get_num_threads() == before
        True
    """
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Each(Protocol):
    def __call__(self, function: Callable[[A], B], over: Sequence[A], /) -> list[B]:
        """Return the function of each, in order."""


@contextmanager
def one_thread_each(count: int) -> Iterator[_Each]:
    """Yield a map that runs up to `count` calls at once, linear algebra in one thread each.

    As many at once as torch has threads.

    Example:
        >>> with one_thread_each(2) as each:
        ...     each(abs, [-1, 2])
        [1, 2]
    """
    workers = max(1, min(count, MOST_WORKERS, torch.get_num_threads()))

    with one_thread(), ThreadPoolExecutor(workers) as pool:
        # What is set where this is called, such as where results are kept, holds in the threads, too.
        yield lambda function, over: list(
            pool.map(lambda context, one: context.run(function, one), [copy_context() for _ in over], over)
        )
