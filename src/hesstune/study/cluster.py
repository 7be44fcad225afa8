"""A comparison's cells as Ray tasks over a cluster: a lost machine's cells are run again on the others."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hesstune.errors import MissingExtraError, RunError
from hesstune.study.plan import StudyPlan
from hesstune.study.work import PLAN, STORE, finished, one

__all__ = ["work_on_cluster"]

# How often a cell is started anew when its process or its machine is lost; it continues from the run's
# last checkpoint.
RETRIES = 5
POLL = 0.5


def work_on_cluster(
    folder: Path, plan: StudyPlan, most: int | None, progress: Callable[[int, int, str], None] | None = None
) -> None:
    """Run every unfinished cell as a Ray task, each on one core.

    The cluster is the one that RAY_ADDRESS names, else the one started on this machine, else a new one
    on this machine alone. The folder must be on a file system that all its machines share.

    Args:
        folder: The comparison's folder, with its plan written.
        plan: The plan.
        most: Cells at a time; None: as many as the cluster has cores.
        progress: Called with (cells done, cells in all, text).

    Raises:
        MissingExtraError: If Ray is not installed.
        RunError: If the cluster cannot be reached, or a cell was lost too often.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray", "--engine ray") from None
    ours = not ray.is_initialized()
    if ours:
        _connect(ray)
    try:
        _run_all(ray, folder.resolve(), plan, most, progress)
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any) -> None:
    # Workers import what this process imports, from the same folders.
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    try:
        ray.init(
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False,
            runtime_env={"env_vars": environment},
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = os.environ.get("RAY_ADDRESS", "on this machine")
        raise RunError(f"cannot reach the Ray cluster {where}: {' '.join(str(error).split())}") from error


def _run_all(
    ray: Any,
    folder: Path,
    plan: StudyPlan,
    most: int | None,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_cell)
    waiting = [index for index, cell in enumerate(plan.cells) if finished(folder, cell) is None]
    done = len(plan.cells) - len(waiting)
    running: dict[Any, int] = {}
    if progress is not None:
        progress(done, len(plan.cells), "Ray")
    try:
        while waiting or running:
            while waiting and (most is None or len(running) < most):
                index = waiting.pop(0)
                running[task.remote(str(folder), index)] = index
            ready, _ = ray.wait(list(running), timeout=POLL)
            for reference in ready:
                _check(ray, reference, plan, running.pop(reference))
                done += 1
                if progress is not None:
                    progress(done, len(plan.cells), "Ray")
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _check(ray: Any, reference: Any, plan: StudyPlan, index: int) -> None:
    try:
        told = ray.get(reference)
    except ray.exceptions.RayError as error:
        cell = plan.cells[index]
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise RunError(
            f"the cell {cell.task}, {cell.method}, seed {cell.seed} was lost {RETRIES + 1} times or broke "
            f"({lines[-1].strip() if lines else type(error).__name__}); the same command continues"
        ) from error
    if told:
        raise RunError(told)


def _cell(folder: str, index: int) -> str:
    """Run one cell on a machine of the cluster; return what is wrong there, or nothing."""
    import torch

    from hesstune.data.load import reusing_decoded
    from hesstune.inputs.feature_store import FeatureStore, sharing

    torch.set_num_threads(1)
    out = Path(folder)
    if not (out / PLAN).is_file():
        return (
            f"a machine of the cluster does not see {out}: --out must be on a file system that all machines "
            "share"
        )
    plan = StudyPlan.read(out / PLAN)
    with sharing(FeatureStore(out / STORE)), reusing_decoded():
        # The process of a lost machine may still be about to end.
        one(out, plan, plan.cells[index], wait=True)
    return ""
