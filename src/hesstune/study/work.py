"""Work through a plan's cells, alone or beside other processes: `python -m hesstune.study.work FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from hesstune.data.load import reusing_decoded
from hesstune.inputs.feature_store import FeatureStore, sharing
from hesstune.storage.atomic import made_folder
from hesstune.storage.remembered import remembering
from hesstune.study.cell import CELL, run_cell
from hesstune.study.plan import Cell, StudyPlan
from hesstune.study.records import CellRecord

__all__ = ["PLAN", "STORE", "finished", "one", "work"]

PLAN, STORE = "plan.json", "features"


def finished(out: Path, cell: Cell) -> CellRecord | None:
    """Return the record of a cell that has been run as it is planned now, else None."""
    path = out / cell.folder / CELL
    try:
        record = CellRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    return record if record.fingerprint == cell.fingerprint else None


def work(
    out: Path,
    plan: StudyPlan,
    start: int = 0,
    done: Callable[[Cell], None] | None = None,
    parent: int | None = None,
    threads: int | None = None,
) -> None:
    """Run every cell that is neither finished nor in another process's hands.

    Args:
        out: The comparison's folder.
        plan: Its plan.
        start: The cell to begin with, so that workers begin apart.
        done: Called with each cell when it is finished.
        parent: Stop between cells once this process is no longer the parent. (Windows never names another
            one: there a worker whose parent has gone does the rest.)
        threads: Of all workers together: one computes features while the others wait for them.
    """
    order = plan.cells[start:] + plan.cells[:start]
    with sharing(FeatureStore(out / STORE, threads=threads)), remembering(out / STORE), reusing_decoded():
        for cell in order:
            if parent is not None and os.getppid() != parent:
                return
            if finished(out, cell) or not one(out, plan, cell):
                continue
            if done is not None:
                done(cell)


def one(out: Path, plan: StudyPlan, cell: Cell, wait: bool = False) -> bool:
    """Run one cell unless it is finished; return False where it is in another process's hands.

    Args:
        out: The comparison's folder.
        plan: Its plan.
        cell: Which.
        wait: Wait for the other process instead, which may be about to end.
    """
    folder = out / cell.folder
    made_folder(folder)
    claim = FileLock(folder / ".claimed")
    try:
        claim.acquire(blocking=wait)
    except Timeout:
        return False
    try:
        if not finished(out, cell):  # another worker may have had it meanwhile
            run_cell(cell, folder, plan.settings)
    finally:
        claim.release()
    return True


def _main() -> None:
    import torch

    folder, start, threads, together, parent = Path(sys.argv[1]), *(int(a) for a in sys.argv[2:6])
    torch.set_num_threads(threads)
    work(folder, StudyPlan.read(folder / PLAN), start, parent=parent, threads=together)


if __name__ == "__main__":
    _main()
