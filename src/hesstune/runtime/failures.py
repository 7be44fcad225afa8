"""What ends one of several processes ends all of them, with the same message."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import distributed

from hesstune.errors import HesstuneError, RunError

__all__ = ["Failure", "RankError", "ending_together"]

# How long a process that fails waits for the others to fail, too, before and after it closes its connections.
ALIKE_SECONDS, WAIT_SECONDS = 1.0, 5.0
POLL_SECONDS = 0.05
HESSTUNE, INTERRUPT, EXIT, OTHER = "hesstune", "interrupt", "exit", "other"


class RankError(RuntimeError):
    """Another process ended with an error that is not one of hesstune's own."""


@dataclass(frozen=True)
class Failure:
    """How a process ended.

    Attributes:
        rank: Its number.
        kind: `hesstune` for a HesstuneError, `interrupt` for a KeyboardInterrupt, `exit` for a SystemExit, or
            `other`.
        text: The message; of other errors with their class.
        code: The exit code of a SystemExit.
    """

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
    """One call of `ending_together` on all processes: where each of them says how it failed."""

    entered = 0
    active = False

    def __init__(self) -> None:
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.store: Any = distributed.distributed_c10d._get_default_store()
        _Block.entered += 1
        self.name = f"hesstune/failed/{_Block.entered}"

    def failures(self) -> dict[int, Failure]:
        """Return the failures of the other processes so far."""
        found = {}
        for rank in range(self.world):
            key = f"{self.name}/{rank}"
            if rank != self.rank and self.store.check([key]):
                found[rank] = Failure(**json.loads(self.store.get(key)))
        return found

    def say(self, failure: Failure) -> None:
        """Tell the other processes how this one failed."""
        self.store.set(f"{self.name}/{self.rank}", json.dumps(asdict(failure)))

    def all_failed(self, seconds: float) -> bool:
        """Wait so long at most until all other processes have failed, and return whether they have."""
        end = time.monotonic() + seconds
        while len(self.failures()) < self.world - 1:
            if time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS)
        return True


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """End all processes if an error ends one of them within the block, each with that error's message.

    A process that fails says how, then closes its connections: the others, which wait for it or will, fail
    there and raise what it said. Their errors are a RunError for a HesstuneError, the same for
    KeyboardInterrupt and SystemExit, and a RankError for any other. All processes enter the same blocks; a
    block within another does nothing.
    """
    if _Block.active or not distributed.is_initialized() or distributed.get_world_size() == 1:
        yield
        return
    block, _Block.active = _Block(), True
    try:
        yield
    except BaseException as error:
        raised = _agreed(block, error)
        if raised is error:
            raise
        raise raised from error
    finally:
        _Block.active = False


def _agreed(block: _Block, error: BaseException) -> BaseException:
    """Return what this process raises for an error, once the other processes know of it."""
    own, raised = Failure.of(error, block.rank), error
    with contextlib.suppress(RuntimeError):  # the store is gone with the process that held it
        first = next(iter(block.failures().values()), None)
        # An error of ours has its own message; any other may be the other process's end, seen from here.
        if own.kind != HESSTUNE and own.rank == block.rank and first is not None and first.rank != block.rank:
            own, raised = first, first.error()
        block.say(own)
        # The same error on all processes, such as a wrong option, leaves their connections as they are.
        if not block.all_failed(ALIKE_SECONDS):
            _disconnect()
            block.all_failed(WAIT_SECONDS)
    return raised


def _disconnect() -> None:
    """Close this process's connections, so that what waits for it fails; give up where that takes long."""
    closing = threading.Thread(target=_destroy, daemon=True)
    closing.start()
    closing.join(WAIT_SECONDS)


def _destroy() -> None:
    with contextlib.suppress(Exception):
        distributed.destroy_process_group()
