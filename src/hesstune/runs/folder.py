"""Claim, lock and clear a run folder, and keep its old run until the new one is finished."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from hesstune.errors import RunError
from hesstune.runs.checkpoint import Checkpoints
from hesstune.runs.records import ASIDE, CONFIG, DERIVED, LOCK, MOVING, OWN, RADIUS, TRIALS, WRITABLE
from hesstune.runtime.distributed import on_main_process
from hesstune.storage.files import PART, writing

FILES = (*OWN, *DERIVED)


def claim(out: Path, overwrite: bool, resume: bool, create: bool = True) -> None:
    """Make sure that a run may be written to `out`, and create the folder unless `create` is false.

    Raises:
        RunError: If the folder holds anything and neither overwrite nor resume is given, if it is
            no run folder, or if it cannot be written to.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out} is a file; give the path of a folder")
    kept = [p for p in out.iterdir() if not _unfinished(p)] if out.is_dir() else []
    if kept and not (overwrite or resume):
        raise RunError(
            f"the folder {out} exists and is not empty; choose another --out, continue it with --resume "
            "or replace it with --overwrite"
        )
    if kept and not any((out / name).exists() for name in (CONFIG, ASIDE, MOVING)):
        raise RunError(f"the folder {out} holds files but no run; choose another --out")
    if not create:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / WRITABLE).write_bytes(b"")
        (out / WRITABLE).unlink()
    except OSError as error:
        raise RunError(f"cannot write to --out {out}: {error.strerror or error}") from error


def _unfinished(path: Path) -> bool:
    """Return whether a file is the lock, or was being written when the process was killed.

    Radii without a configuration may belong to other options: they are chosen again.
    """
    if path.name == RADIUS:
        return not any((path.parent / name).exists() for name in (CONFIG, MOVING))
    partial = path.name.startswith(".") and path.name.endswith(PART)
    return partial or path.name in (LOCK, WRITABLE, TRIALS)


def set_aside(out: Path) -> None:
    """Move the run that is to be replaced into a folder of its own; other files stay.

    If one was moved aside before, the unfinished run is deleted instead.
    """
    if (out / ASIDE).is_dir():
        _drop_run(out)
        return
    paths = [path for name in FILES if (path := out / name).exists()] + Checkpoints(out).files()
    if paths:
        (moving := out / MOVING).mkdir(exist_ok=True)
        for path in paths:
            path.replace(moving / path.name)
        moving.replace(out / ASIDE)


@contextlib.contextmanager
def entered(out: Path, overwrite: bool, resume: bool) -> Iterator[None]:
    """Claim and lock a run folder, clear up after kills, and set the run aside that is replaced.

    Of several processes, the first one does it for all.

    Raises:
        RunError: As `claim` and `locked`.
    """
    with contextlib.ExitStack() as stack:

        def enter() -> None:
            claim(out, overwrite, resume)
            stack.enter_context(locked(out))
            with writing(out):
                if (moving := out / MOVING).is_dir():  # a kill while a run was moved aside
                    _move_back(moving, out)
                for path in list(out.iterdir()):
                    if _unfinished(path) and path.name != LOCK:
                        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
                if not resume:
                    set_aside(out)
            stack.enter_context(_restored_on_failure(out))

        on_main_process(enter)
        yield


@contextlib.contextmanager
def _restored_on_failure(out: Path) -> Iterator[None]:
    """Put the run that was set aside back if the block fails while it is still there."""
    try:
        yield
    except Exception:
        if (aside := out / ASIDE).is_dir():
            _drop_run(out)
            _move_back(aside, out)
        raise


def _move_back(aside: Path, out: Path) -> None:
    """Put a run that was set aside back into its folder."""
    for path in aside.iterdir():
        path.replace(out / path.name)
    aside.rmdir()


def _drop_run(out: Path) -> None:
    """Remove the files of a run; others stay."""
    for path in (out / name for name in FILES):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    Checkpoints(out).clear()


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the run folder's lock, a lock of the operating system that ends with the process.

    Raises:
        RunError: If another process holds it.
    """
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise RunError(f"another process is writing to {out}; wait for it or choose another --out") from None
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def locked_by_first(out: Path) -> Iterator[None]:
    """Hold the run folder's lock for all of several processes: the first one has it.

    Raises:
        RunError: As `locked`.
    """
    with contextlib.ExitStack() as stack:
        on_main_process(lambda: stack.enter_context(locked(out)))
        yield
