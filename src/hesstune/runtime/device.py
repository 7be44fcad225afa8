"""Devices, threads and seeds; accelerate's accelerator and the random state of its devices."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from threading import Lock
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from threadpoolctl import OpenBLASController, threadpool_limits

from hesstune.errors import ConfigError, RunError


def mixed_seed(*key: int) -> int:
    """Return a seed in [0, 2⁶³) that is a fixed function of its key, on every platform and version.

    Keys are mixed by `numpy.random.SeedSequence`; numpy guarantees that its values do not change.
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1


MOST_WORKERS = 8

A = TypeVar("A")
B = TypeVar("B")


class _Limit:
    """The limit of this process: the first user sets it, the last one lifts it.

    Overlapping threads with limits of their own would leave the limit set for good. Newer versions of
    threadpoolctl let only the thread that set a limit lift it: this restriction is cleared.
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
    """Limit numpy's and scipy's linear algebra to one thread; also a decorator, `@one_thread()`.

    Threads of torch are not limited. The limit holds for the process while any of its threads is in a block.
    """
    _LIMIT.enter()
    try:
        yield
    finally:
        _LIMIT.leave()


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch compute with `count` threads within the block; None changes nothing."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Each(Protocol):
    def __call__(self, function: Callable[[A], B], over: Sequence[A], /) -> list[B]:
        """Return the function's results, in order."""


@contextmanager
def one_thread_each(count: int) -> Iterator[_Each]:
    """Yield a map that runs up to `count` calls at once, at most as many as torch has threads.

    Each call has one thread of linear algebra.
    """
    workers = max(1, min(count, MOST_WORKERS, torch.get_num_threads()))

    with one_thread(), ThreadPoolExecutor(workers) as pool:
        # Context variables of the caller, such as the folder of results, hold in the threads, too.
        yield lambda function, over: list(
            pool.map(lambda context, one: context.run(function, one), [copy_context() for _ in over], over)
        )


def pick_device(name: str) -> torch.device:
    """Return the device by name; `auto` takes CUDA, then Apple's GPU, then the CPU."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto" and cuda and (place := os.environ.get("LOCAL_RANK")):
        return torch.device("cuda", int(place) % torch.cuda.device_count())  # torchrun: one each
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device '{name}'; valid: auto, cpu, cuda, mps") from None
    present = {"cpu": True, "cuda": cuda, "mps": mps}.get(device.type, False)
    if not present:
        raise ConfigError(f"device '{name}' is not available here; use --device cpu")
    return device


def free_memory(device: torch.device) -> int | None:
    """Return the free memory of a device in bytes; None if it is unknown."""
    if device.type == "cuda":
        left: int = torch.cuda.mem_get_info(device)[0]
        return left + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    import psutil  # type: ignore[import-untyped]

    return int(psutil.virtual_memory().available)


def make_accelerator(mixed_precision: str, device: torch.device, toggles_requires_grad: bool) -> Any:
    """Return an Accelerator for a device and a precision, `no`, `bf16` or `fp16`; RunError if they do not
    fit.

    `toggles_requires_grad` says whether training freezes and unfreezes parameters, so that some get no
    gradient.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState, GradientState, PartialState

    # accelerate keeps its state for the whole process; another run may need another precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()
    try:
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=mixed_precision,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=toggles_requires_grad)],
        )
    except ValueError as error:
        raise RunError(f"mixed precision {mixed_precision} does not work on {device}: {error}") from error


def loss_scale(accelerator: Any) -> float:
    """Return the factor of the loss in fp16 training, a power of 2; 1 without it."""
    return 1.0 if accelerator.scaler is None else float(accelerator.scaler.get_scale())


def scale_gradients_(tensors: Iterable[torch.Tensor], factor: float) -> None:
    """Multiply the gradients of these tensors in place."""
    if factor != 1.0:
        for tensor in tensors:
            if tensor.grad is not None:
                tensor.grad.mul_(factor)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of the global generators that training on a device draws from."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def set_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Set the global generators to a state of `random_state`."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
