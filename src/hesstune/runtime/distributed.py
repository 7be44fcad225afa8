"""Several processes for one run: batches are split over ranks, sums and rows are gathered, rank 0 writes.

`torchrun` or `accelerate launch` starts the processes. Every rank holds all examples and draws the same
order, augmentation and random numbers; it computes the logits of its share of each batch. The shares are
gathered before the loss, so every method takes the step of one process: the gradient of a rank's logits
goes to that rank alone, multiplied by the number of ranks, since DistributedDataParallel takes a mean.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from hesstune.errors import ConfigError, HesstuneError, RunError
from hesstune.forward import Inputs, batch_size, logits_of
from hesstune.runtime.device import mixed_seed

# A process that fails waits for the others to fail, before and after it closes its connections.
ALIKE_SECONDS, WAIT_SECONDS = 1.0, 5.0
POLL_SECONDS = 0.05
HESSTUNE, INTERRUPT, EXIT, OTHER = "hesstune", "interrupt", "exit", "other"


class RankError(RuntimeError):
    """Another process ended with an error that is not one of hesstune's own."""


@dataclass(frozen=True)
class Failure:
    """How a process ended: its rank, the kind of error, its message, and the exit code of a SystemExit."""

    rank: int
    kind: str
    text: str
    code: int = 1

    @classmethod
    def of(cls, error: BaseException, rank: int) -> Failure:
        """Describe an error that was raised on a process."""
        failure = getattr(error, "failure", None)
        if isinstance(failure, cls):  # raised here for another process
            return failure
        if isinstance(error, HesstuneError):
            return cls(rank, HESSTUNE, str(error))
        if isinstance(error, KeyboardInterrupt):
            return cls(rank, INTERRUPT, "interrupted")
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            return cls(rank, EXIT, str(error.code), code)
        return cls(rank, OTHER, f"{type(error).__name__}: {error}")

    def error(self) -> BaseException:
        """Return what the other processes raise."""
        made: BaseException
        if self.kind == HESSTUNE:
            made = RunError(self.text)
        elif self.kind == INTERRUPT:
            made = KeyboardInterrupt()
        elif self.kind == EXIT:
            made = SystemExit(self.code)
        else:
            made = RankError(f"process {self.rank} ended with {self.text}")
        made.__dict__["failure"] = self  # so that it is passed on as it is
        return made


class _Block:
    """One block of `joined_ranks` on all processes: a place for the failures of each."""

    entered = 0
    active = False

    def __init__(self) -> None:
        self.rank, self.world = rank(), world()  # kept after the connections are closed
        self.store: Any = distributed.distributed_c10d._get_default_store()
        _Block.entered += 1
        self.name = f"hesstune/failed/{_Block.entered}"

    def failures(self) -> list[Failure]:
        """Return the failures of the other processes so far."""
        keys = [f"{self.name}/{other}" for other in range(self.world) if other != self.rank]
        return [Failure(**json.loads(self.store.get(key))) for key in keys if self.store.check([key])]

    def wait_for_all(self, seconds: float) -> bool:
        """Wait at most so long until all other processes have failed, and return whether they have."""
        end = time.monotonic() + seconds
        while len(self.failures()) < self.world - 1:
            if time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def agreed(self, error: BaseException) -> BaseException:
        """Return the error that this process raises, after the other processes know of it."""
        own, raised = Failure.of(error, self.rank), error
        with contextlib.suppress(RuntimeError):  # the store is gone with the process that held it
            others = [failure for failure in self.failures() if failure.rank != self.rank]
            # A HesstuneError keeps its message; any other may be a consequence of another process's end.
            if own.kind != HESSTUNE and own.rank == self.rank and others:
                own, raised = others[0], others[0].error()
            self.store.set(f"{self.name}/{self.rank}", json.dumps(asdict(own)))
            # The same error on all processes, such as a wrong option, leaves their connections open.
            if not self.wait_for_all(ALIKE_SECONDS):
                _disconnect()
                self.wait_for_all(WAIT_SECONDS)
        return raised


def _disconnect() -> None:
    """Close this process's connections, so that calls that wait for it fail; give up after some seconds."""

    def destroy() -> None:
        with contextlib.suppress(Exception):
            distributed.destroy_process_group()

    closing = threading.Thread(target=destroy, daemon=True)
    closing.start()
    closing.join(WAIT_SECONDS)


T = TypeVar("T")
LEAVE_SECONDS = 0.3


def world() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


@contextlib.contextmanager
def joined_ranks() -> Iterator[None]:
    """Join the other processes for a block, and end all of them if an error ends one, each with its message.

    A process that fails stores its failure, then closes its connections: the other processes fail when they
    next wait for it, and raise the stored failure: a RunError for a HesstuneError, the same for
    KeyboardInterrupt and SystemExit, and a RankError for any other. All processes enter the same blocks; a
    block within another does nothing.

    Raises:
        RunError: If the processes cannot be reached, or another one ended with a HesstuneError.
    """
    start_ranks()
    if _Block.active or world() == 1:
        yield
        return
    block, _Block.active = _Block(), True
    try:
        yield
    except BaseException as error:
        raised = block.agreed(error)
        if raised is error:
            raise
        raise raised from error
    finally:
        _Block.active = False


def start_ranks() -> None:
    """Join the other processes if torchrun or accelerate launch started several."""
    if distributed.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        distributed.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the processes cannot reach each other: {error}") from error
    atexit.register(_leave_group)


def _leave_group() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
    # Gloo's threads outlive the group, and need the interpreter to release their last tensors. Without this
    # time they would abort the process while the interpreter ends.
    time.sleep(LEAVE_SECONDS)


def on_main_process(act: Callable[[], T]) -> T | None:
    """Call `act` on rank 0 while the others wait; its error ends the call on all of them."""
    if world() == 1:
        return act()
    result, mine = None, None
    if rank() == 0:
        try:
            result = act()
        except BaseException as error:
            mine = error
    try:
        failure_text = _broadcast("" if mine is None else json.dumps(asdict(Failure.of(mine, 0))))
    except RuntimeError:  # another process has ended
        if mine is None:
            raise
        failure_text = ""
    if mine is not None:
        raise mine
    if failure_text:
        raise Failure(**json.loads(failure_text)).error()
    return result


def _broadcast(text: str) -> str:
    """Return rank 0's text on every rank."""
    data = torch.tensor(list(json.dumps(text).encode()), dtype=torch.uint8)
    size = torch.tensor([len(data)])
    distributed.broadcast(size, 0)
    data = data if rank() == 0 else torch.zeros(int(size), dtype=torch.uint8)
    distributed.broadcast(data, 0)
    return str(json.loads(bytes(data.tolist())))


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Return the sum over the ranks."""
    if world() > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


def average_gradients_(tensors: list[torch.Tensor]) -> None:
    """Set each tensor's gradient to the mean over the ranks; a missing gradient counts as 0."""
    if world() > 1:
        for tensor in tensors:
            own = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            tensor.grad = all_reduce_sum(own) / world()


def all_gather(rows: torch.Tensor, sizes: list[int] | None = None) -> list[torch.Tensor]:
    """Return every rank's rows, (n_r, …), on every rank; `sizes` are the n_r by rank, if known."""
    if world() == 1:
        return [rows]
    if sizes is None:
        counts = all_reduce_sum(torch.nn.functional.one_hot(torch.tensor(rank()), world()) * len(rows))
        sizes = [int(n) for n in counts]
    # all_gather takes equal shapes.
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(found, padded.contiguous())
    return [part[:n] for part, n in zip(found, sizes, strict=True)]


def _shares(size: int) -> list[tuple[int, int]]:
    """Cut a batch into one share per rank; sizes differ by one at most."""
    edges = [size * r // world() for r in range(world() + 1)]
    return list(pairwise(edges))


class _Gather(torch.autograd.Function):
    """Every rank's rows in one tensor; backward gives this rank's gradient, times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, shares: list[tuple[int, int]]) -> torch.Tensor:
        ctx.share = shares[rank()]
        ctx.rows = len(rows)
        start, stop = ctx.share
        return torch.cat(all_gather(rows[: stop - start], [b - a for a, b in shares]))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        start, stop = ctx.share
        own = gradients[0].new_zeros((ctx.rows, *gradients[0].shape[1:]))
        own[: stop - start] = gradients[0][start:stop]
        return own * world(), None


class SplitForward:
    """Run a network, by its id as accelerate wrapped it, on this rank's share; return all logits."""

    def __init__(self, wrapped: dict[int, nn.Module]) -> None:
        self._wrapped = wrapped
        self._key: tuple[int, ...] = ()
        self._calls = 0

    def share(self, size: int) -> slice:
        """Return the rows of a batch of this size that this rank runs."""
        start, stop = _shares(size)[rank()]
        # A rank without a share runs one example: every rank takes part in the backward pass.
        return slice(start, stop) if stop > start else slice(0, 1)

    def start_batch(self, *key: int) -> None:
        """Seed the randomness inside networks (dropout) by these numbers, the call and the rank."""
        self._key, self._calls = key, 0

    def __call__(self, net: nn.Module, inputs: Inputs) -> torch.Tensor:
        """Return the (N, K) logits of N inputs, the same on every rank."""
        shares, own = _shares(batch_size(inputs)), self.share(batch_size(inputs))
        self._calls += 1
        with torch.random.fork_rng(enabled=net.training):
            if net.training:
                torch.manual_seed(mixed_seed(*self._key, self._calls, rank()))
            rows = _rows_of_inputs(inputs, torch.arange(own.start, own.stop))
            logits = logits_of(self._wrapped.get(id(net), net), rows)
        gather: Callable[..., torch.Tensor] = _Gather.apply
        return gather(logits, shares)


def _rows_of_inputs(inputs: Inputs, rows: torch.Tensor) -> Inputs:
    if isinstance(inputs, torch.Tensor):
        return inputs[rows.to(inputs.device)]
    size = batch_size(inputs)
    return {
        key: value[rows.to(value.device)]
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == size
        else value
        for key, value in inputs.items()
    }


def refuse_adapting(batch_norm: str) -> None:
    """Raise ConfigError if batch-norm statistics would differ between ranks."""
    if world() > 1 and batch_norm == "adapt":
        raise ConfigError(
            "with several processes, batch-norm statistics that adapt would differ between them; use "
            "--batch-norm frozen, or one process"
        )
