"""Many small fits at once: one thread of arithmetic for each, as many fits as torch has threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Protocol, TypeVar

import torch
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
    workers = max(1, min(count, MOST_WORKERS, torch.get_num_threads()))
    with threadpool_limits(1), ThreadPoolExecutor(workers) as pool:
        # What is set where this is called, such as where results are kept, holds in the threads, too.
        yield lambda function, over: list(
            pool.map(lambda context, one: context.run(function, one), [copy_context() for _ in over], over)
        )
