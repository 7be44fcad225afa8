"""Many small fits at once: one thread of arithmetic for each, as many fits as there are cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

from threadpoolctl import threadpool_limits

__all__ = ["one_thread_each"]

MOST_WORKERS = 8

A = TypeVar("A")
B = TypeVar("B")


class _Each(Protocol):
    def __call__(self, function: Callable[[A], B], over: Sequence[A], /) -> list[B]:
        """Return the function of each, in order."""


@contextmanager
def one_thread_each(count: int) -> Iterator[_Each]:
    """Yield a map that runs up to `count` calls at once, linear algebra in one thread each.

    The matrices of a probe are small: several threads on one of them wait for each other most of the time.

    Example:
        >>> with one_thread_each(2) as each:
        ...     each(abs, [-1, 2])
        [1, 2]
    """
    workers = max(1, min(count, MOST_WORKERS, len(os.sched_getaffinity(0)) if _has_affinity() else 2))
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        yield lambda function, over: list(pool.map(function, over))


def _has_affinity() -> bool:
    return hasattr(os, "sched_getaffinity")
